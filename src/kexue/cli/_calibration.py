"""Calibration at the end of a build, and in words."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from kexue.cli._verb import Output


def calibrate_built(out: Output, index: Path, documents: int, encoder: Any) -> tuple[dict[str, Any] | None, str]:
    """Calibrate an index that was just built; returns the record, None for too few documents, and a line of words.

    Args:
        index: its file. documents: in it. encoder: that has made its vectors.
    """
    from kexue.search import Index
    from kexue.search.calibration import LEAST

    if documents < LEAST:
        few = f"not calibrated: {LEAST} documents are needed to tell a good score from a common one"
        return None, f"{few}, and there {'is' if documents == 1 else 'are'} {documents}"
    start = time.perf_counter()
    with Index.open(index, encoder=encoder) as opened, out.progress("calibrating") as progress:
        calibrator = opened.calibrate(generator=out.seed, progress=progress)
        record = opened.info().calibration
    assert record is not None
    reach = f"; {words}" if (words := _describe_reach(record, calibrator)) else ""
    seconds = time.perf_counter() - start
    return record, f"calibrated with {record['null_queries']} {_name_queries(record)}, {seconds:.1f} s{reach}"


def describe_calibration(record: dict[str, Any], calibrator: Any) -> str:
    """Return what `kexue index calibrate` has measured in words."""
    pairs, queries, threshold = calibrator.null_, calibrator.best_.get(record["language"]), record["threshold"]
    drawn = len(pairs)
    median, high = (float(pairs[int(q * (drawn - 1))]) for q in (0.5, 0.99))
    lines = [
        f"{drawn:,} random pairs of {record['index']}: median score {median:.3f}, one in a hundred above {high:.3f}; "
        f"no percentile can be above {100 * drawn / (drawn + 1):.{max(2, len(str(drawn)) - 1)}f}"
    ]
    if queries is not None:
        reach = f"; {words}" if (words := _describe_reach(record, calibrator)) else ""
        best = f"median score of the best hit {queries[len(queries) // 2]:.3f}"
        lines.append(f"{len(queries)} {_name_queries(record)}: {best}{reach}")
    if answered := record["answered"]:
        left = "; ".join(answered[:3]) + (f" and {len(answered) - 3} more" if len(answered) > 3 else "")
        lines.append(f"left out, since the index seems to answer it: {left}")
    if threshold is not None:
        lines.append(
            f"on {record['labelled_pairs']:,} judged pairs a score of {threshold['value']:.3f} or more is right "
            f"{threshold['precision']:.0%} of the time [{threshold['low']:.0%}, {threshold['high']:.0%}] and finds "
            f"{threshold['recall']:.0%} of what belongs together"
        )
    return "\n".join(lines)


def _name_queries(record: dict[str, Any]) -> str:
    return "queries of mixed words of the documents" if record["mixed_words"] else "unrelated queries"


def _describe_reach(record: dict[str, Any], calibrator: Any) -> str:
    """Return from which score on a match is good in words; empty where no score is known to be."""
    from kexue.search.calibration import GOOD_CHANCE

    language = record["language"]
    for score in calibrator.best_.get(language, ()):
        if calibrator.chance(score, language) <= GOOD_CHANCE:
            return f"a match is good from {score:.3f} on, which at most one in {1 / GOOD_CHANCE:.0f} reaches"
    return ""
