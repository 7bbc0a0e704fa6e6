"""Files of predictions: JSON Lines with a text and its triples each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from kexue._files import replacing
from kexue._text import parse_json
from kexue.corpus.decoding import Decoder, decode_lines
from kexue.errors import DataError
from kexue.extract.reading import read_triples
from kexue.extract.scoring import Match, TripleScore, triple_f1, triple_f1_interval
from kexue.extract.triples import Triple, read_name, require_triples


def write_predictions(path: str | os.PathLike[str], texts: Iterable[str], found: Iterable[Iterable[Triple]]) -> None:
    """Write the triples of texts, ``{"text": ..., "triples": [{"subject": ..., "predicate": ..., ...}]}`` a line."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for text, triples in zip(texts, found, strict=True):
            record = {"text": text, "triples": [triple._asdict() for triple in triples]}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def score_files(
    pred: str | os.PathLike[str], gold: str | os.PathLike[str], *, match: Match = "string"
) -> tuple[TripleScore, tuple[float, float]]:
    """Return the `triple_f1` of a file of `write_predictions` on annotated texts, and the 95 % interval of its F1.

    Predictions go with annotations by their text, in any order; a text that was predicted twice, such as one in two
    rows of a table, counts with all that was found in it.

    Raises:
        DataError: a file that cannot be read, texts that only one of the files has, annotated texts without any triple;
            it names the line.
    """
    path, examples = os.fspath(pred), read_triples(gold)
    require_triples(examples, os.fspath(gold))
    found: dict[str, list[Any]] = {example.text: [] for example in examples}
    missing = dict.fromkeys(found)
    for line, raw in decode_lines(path, Decoder("strict", options=False)):
        if not raw.strip():
            continue
        record = parse_json(raw, path, line=line, kind=dict)
        text = read_name(record, "text", path, line)
        if text not in found:
            raise DataError(
                f"{os.fspath(gold)} does not have the text {text!r:.60}.",
                path=path,
                line=line,
                column="text",
                remedy="Predict the texts of the annotated file.",
            )
        missing.pop(text, None)
        triples = record.get("triples")
        if not isinstance(triples, list) or not all(isinstance(one, dict) for one in triples):
            raise DataError("triples must be a list of objects.", path=path, line=line, column="triples")
        fields = ("subject", "predicate", "object")
        found[text] += [tuple(read_name(one, field, path, line) for field in fields) for one in triples]
    if missing:
        count = f"{len(missing):,} of the {len(found):,} texts"
        raise DataError(
            f"{count} of {os.fspath(gold)} are not there, first {next(iter(missing))!r:.60}.",
            path=path,
            remedy="Predict the texts of the annotated file.",
        )
    pairs = [found[example.text] for example in examples], [example.triples for example in examples]
    return triple_f1(*pairs, match=match), triple_f1_interval(*pairs, match=match)
