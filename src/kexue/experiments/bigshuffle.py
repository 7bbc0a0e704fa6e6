"""kexue.fm/archives/8662: lines of a file larger than memory in random order, with little memory.

Shows: sorting by random keys reaches all orders alike and the article's scheme does not; memory stays within its
limit; memory and workers leave no trace in the bytes, nor does being killed; and what it costs beside GNU shuf.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from kexue.corpus.shuffle.keys import permutation_keys, rowwise_keys
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_SEEDS = 24_000
_TAIL = 1e-6
_PYTHON = 60_000_000  # bytes that Python, numpy and Arrow may take beside the limit
_SHUFFLE = """
import sys
from kexue.corpus import shuffle_files
source, target, memory, workers = sys.argv[1:]
shuffle_files(source, target, seed=1, memory=memory, workers=int(workers) or None, verify=False)
"""


@experiment(
    "bigshuffle",
    claim="Files larger than memory can be shuffled in little memory; two rounds through blocks come close to it.",
    effect=("a file of {file} within {peak_memory}; wrong after a kill {wrong_after_a_kill}"),
    minutes=2,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Count orders of few lines; shuffle a file in several ways; kill and go on; time."""
    size, limit, kills, rounds = {
        "smoke": (80_000_000, 128, 1, 1),
        "small": (500_000_000, 128, 20, 3),
        "full": (1_000_000_000, 256, 50, 5),
    }[budget]
    orders = {
        "keyed_4": _orders(4, lambda s: permutation_keys(s, 0, 4), seed),
        "keyed_5": _orders(5, lambda s: permutation_keys(s, 0, 5), seed),
        "rowwise_4": _orders(4, lambda s: rowwise_keys(s, 0, 4, rows=2), seed),
    }
    chi = {name: float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) for name, counts in orders.items()}
    bounds = {name: float(stats.chi2.isf(_TAIL, len(counts) - 1)) for name, counts in orders.items()}
    with tempfile.TemporaryDirectory(prefix="kexue-bigshuffle-") as name:
        folder = Path(name)
        write_lines(folder / "in", size, seed)
        ours = [sys.executable, "-c", _SHUFFLE, folder / "in", folder / "out", f"{limit}M", "0"]
        ways: dict[str, Sequence[Any]] = {f"kexue, {limit} MB": ours}
        if shutil.which("shuf"):
            ways["GNU shuf"] = ["shuf", folder / "in", "-o", folder / "out"]
        measured: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
        for way in list(ways) * rounds:
            measured[way].append(watch(ways[way]))
        seconds = {way: float(np.median([one[0] for one in found])) for way, found in measured.items()}
        peaks = {way: max(one[1] for one in found) for way, found in measured.items()}
        ways_of_work = [(f"{limit}M", 1), (f"{limit // 2}M", 2), (f"{2 * limit}M", 3)]
        digests = set()
        for memory, workers in ways_of_work:
            watch([*ours[:-2], memory, str(workers)])
            digests.add(_sha(folder / "out"))
        wrong = sum(_killed([*ours], folder, seconds[next(iter(ways))], seed + i) not in digests for i in range(kills))
    figures = {
        "chi_square_keyed_4_lines": Figure(chi["keyed_4"], n=_SEEDS, expected=23, source="computed"),
        "chi_square_keyed_5_lines": Figure(chi["keyed_5"], n=_SEEDS, expected=119, source="computed"),
        "chi_square_rowwise_2x2_lines": Figure(chi["rowwise_4"], n=_SEEDS, expected=_SEEDS / 2, source="computed"),
        "orders_reached_rowwise_2x2": Figure(int((orders["rowwise_4"] > 0).sum()), expected=16, source="article"),
        "file": Figure(size / 1e6, unit="MB"),
        "limit": Figure(limit * 1.048576, unit="MB"),
        "peak_memory": Figure(next(iter(peaks.values())) / 1e6, unit="MB"),
        "different_results": Figure(len(digests), n=len(ways_of_work), expected=1, source="computed"),
        "wrong_after_a_kill": Figure(wrong, n=kills, expected=0, source="computed"),
        "seconds": Figure(next(iter(seconds.values())), unit="s", n=rounds),
    }  # fmt: skip
    claims = [
        Claim.check(
            "Sorting by independent random keys gives every order with the same probability.",
            all(stats.chi2.sf(chi[f"keyed_{n}"], len(orders[f"keyed_{n}"]) - 1) > _TAIL for n in (4, 5))
            and all(stats.chi2.cdf(chi[f"keyed_{n}"], len(orders[f"keyed_{n}"]) - 1) > _TAIL for n in (4, 5)),
            rule=f"chi-square over the 24 and 120 orders of 4 and 5 lines within both tails of {_TAIL:g}",
            figures=["chi_square_keyed_4_lines", "chi_square_keyed_5_lines"],
        ),
        Claim.check(
            "The article's scheme, shuffled blocks read in turn, is not uniform, as it says itself.",
            chi["rowwise_4"] > bounds["rowwise_4"] and int((orders["rowwise_4"] > 0).sum()) == 16,
            rule="2 blocks of 2 lines: 16 of 24 orders are reached, and chi-square is beyond the tail of 1e-6",
            figures=["orders_reached_rowwise_2x2", "chi_square_rowwise_2x2_lines"],
        ),
        Claim.check(
            "A file larger than memory is shuffled in bounded memory.",
            figures["peak_memory"].value * 1e6 <= limit * 2**20 + _PYTHON,
            rule="peak resident memory of the process at most the limit and 60 MB for Python",
            figures=["file", "limit", "peak_memory"],
        ),
        Claim.check(
            "The same seed gives the same bytes whatever the memory and the number of workers.",
            len(digests) == 1,
            rule="one SHA-256 of three outputs",
            figures=["different_results"],
        ),
        Claim.check(
            "Killed at any moment, it goes on to the same bytes.",
            wrong == 0,
            rule="SIGKILL at random moments, then run again: the SHA-256 of an undisturbed run",
            figures=["wrong_after_a_kill"],
        ),
    ]
    notes = []
    if "GNU shuf" in seconds:
        ratio = figures["seconds"].value / seconds["GNU shuf"]
        figures["seconds_shuf"] = Figure(seconds["GNU shuf"], unit="s", n=rounds)
        figures["peak_memory_shuf"] = Figure(peaks["GNU shuf"] / 1e6, unit="MB")
        figures["time_of_shuf"] = Figure(ratio, unit="times", n=rounds)
        notes.append(
            f"it took {ratio:.2f} times the time of shuf, which holds the whole file in memory (medians of runs in "
            "turns): a figure of this machine, which decides nothing"
        )
    else:
        notes.append("the comparison with GNU shuf is left out: it is not installed")
    return Report(
        tuple(claims),
        figures,
        notes=tuple(notes),
        seeds=(seed,),
        draw=lambda figure: _draw(figure, orders, seconds, peaks, size, limit),
    )


def write_lines(path: Path, size: int, seed: int) -> None:
    """A file of at least `size` bytes: lines of 20 to 200 letters."""
    generator = np.random.default_rng(seed)
    with path.open("wb") as file:
        while file.tell() < size:
            ends = np.cumsum(generator.integers(20, 201, size=100_000) + 1)
            letters = generator.integers(97, 123, size=int(ends[-1]), dtype=np.uint8)
            letters[ends - 1] = 10
            file.write(letters.data)


def watch(command: Sequence[Any], **options: Any) -> tuple[float, int]:
    """Seconds that a command takes, and the peak of its resident memory in bytes (0 where /proc does not tell)."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([os.fspath(part) for part in command], **options) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                lines = status.read_text(encoding="ascii", errors="replace").splitlines()
                peak = max([peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
            except (OSError, ValueError):
                break
            time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return time.perf_counter() - start, peak


def _orders(lines: int, keys: Callable[[int], Any], seed: int) -> Any:
    """How often each order of so many lines came, over all seeds."""
    number = {order: i for i, order in enumerate(itertools.permutations(range(lines)))}
    counts = np.zeros(len(number))
    for one in range(_SEEDS):
        counts[number[tuple(np.argsort(keys(seed * _SEEDS + one)).tolist())]] += 1
    return counts


def _killed(command: list[Any], folder: Path, seconds: float, seed: int) -> str:
    """SHA-256 of what comes out after being killed once and run again."""
    (folder / "out").unlink(missing_ok=True)
    with subprocess.Popen([os.fspath(part) for part in command]) as process:
        time.sleep(random.Random(seed).uniform(0.1, 0.95) * seconds)
        process.send_signal(signal.SIGKILL)
    watch(command)
    return _sha(folder / "out")


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _draw(
    figure: Any, orders: dict[str, Any], seconds: dict[str, float], peaks: dict[str, int], size: int, limit: int
) -> None:
    figure.set_size_inches(13, 4.5)
    left, middle, right = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    ranked = {name: np.sort(orders[name])[::-1] for name in ("keyed_4", "rowwise_4")}
    place = np.arange(24)
    left.bar(place - 0.2, ranked["keyed_4"], 0.4, label="sorted by random keys")
    left.bar(place + 0.2, ranked["rowwise_4"], 0.4, label="shuffled blocks in turn (rowwise)")
    left.axhline(_SEEDS / 24, color="black", lw=1, label="uniform")
    left.set(
        title=f"orders of 4 lines over {_SEEDS:,} seeds", xlabel="order, the most frequent first", ylabel="times seen"
    )
    left.margins(y=0.28)
    left.legend(loc="upper right")
    for panel, values, title, unit in (
        (middle, {way: peak / 1e6 for way, peak in peaks.items()}, "peak memory", "MB"),
        (right, seconds, "time", "s"),
    ):
        bars = panel.bar(list(values), list(values.values()), color=["C0", "C2"][: len(values)], width=0.6)
        panel.bar_label(bars, fmt="%.0f" if unit == "MB" else "%.1f")
        panel.set(title=f"{title}, {size / 1e6:,.0f} MB of lines", xlabel="program", ylabel=f"{title}, {unit}")
        panel.margins(y=0.15)
    middle.axhline(limit * 1.048576 + _PYTHON / 1e6, color="black", lw=1, ls="--", label="limit + 60 MB")
    middle.legend(loc="upper left")
