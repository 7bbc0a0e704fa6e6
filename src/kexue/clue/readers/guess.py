"""Which task a record is of, by its fields, so that a file of another task is refused by name."""

from __future__ import annotations

from typing import Any

from kexue.clue.catalogue import NLI


def guess_tasks(value: Any) -> tuple[str, ...]:
    """Return the tasks that a record may be of; none where its fields are those of no task.

    >>> guess_tasks({"sentence1": "a", "sentence2": "b", "label": "neutral"})
    ('cmnli', 'ocnli')
    """
    if isinstance(value, list):
        return ("c3",) if len(value) >= 2 and all(isinstance(part, list) for part in value[:2]) else ()
    if not isinstance(value, dict):
        return ()
    for names, task in _FIELDS:
        if names <= value.keys():
            return (task,)
    if {"sentence1", "sentence2"} <= value.keys():
        label = str(value.get("label"))
        if label in ("0", "1"):
            return ("afqmc",)
        return ("cmnli", "ocnli") if label in (*NLI, "-") else ("afqmc", "cmnli", "ocnli")
    if "sentence" in value:
        return ("tnews", "iflytek")
    if "text" in value and isinstance(value.get("label", {}), dict):
        return ("cluener",)
    return ()


_FIELDS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"sentence", "label_des"}), "iflytek"),
    (frozenset({"sentence", "label_desc"}), "tnews"),
    (frozenset({"sentence", "keywords"}), "tnews"),
    (frozenset({"text", "target"}), "cluewsc2020"),
    (frozenset({"abst"}), "csl"),
    (frozenset({"data"}), "cmrc2018"),
    (frozenset({"context", "qas"}), "cmrc2018"),
    (frozenset({"content", "candidates"}), "chid"),
    (frozenset({"sentence1", "sentence2", "genre"}), "ocnli"),
)
