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
from kexue.extract.triples import Triple, read_name


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

    The annotated texts are the same in the same order.

    Raises:
        DataError: a file that cannot be read, or texts that differ; it names the line.
    """
    path, examples = os.fspath(pred), read_triples(gold)
    found: list[list[Any]] = []
    for line, raw in decode_lines(path, Decoder("strict", options=False)):
        if not raw.strip():
            continue
        record = parse_json(raw, path, line=line, kind=dict)
        text = read_name(record, "text", path, line)
        if len(found) >= len(examples) or text != examples[len(found)].text:
            wanted = repr(examples[len(found)].text)[:60] if len(found) < len(examples) else "no more text"
            raise DataError(
                f"the text is {text!r:.60}, but in {os.fspath(gold)} it is {wanted}.",
                path=path,
                line=line,
                column="text",
                remedy="Predict the texts of the annotated file, in its order.",
            )
        triples = record.get("triples")
        if not isinstance(triples, list) or not all(isinstance(one, dict) for one in triples):
            raise DataError("triples must be a list of objects.", path=path, line=line, column="triples")
        fields = ("subject", "predicate", "object")
        found.append([tuple(read_name(one, field, path, line) for field in fields) for one in triples])
    if len(found) < len(examples):
        raise DataError(f"{len(found)} texts, but {os.fspath(gold)} has {len(examples)}.", path=path)
    golds = [example.triples for example in examples]
    return triple_f1(found, golds, match=match), triple_f1_interval(found, golds, match=match)
