"""Reader of CLUENER: texts with named entities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kexue.clue.catalogue import TaskInfo
from kexue.clue.examples import Entity, EntityExample
from kexue.clue.readers.records import Record


def read_entities(records: Sequence[Record], info: TaskInfo) -> list[EntityExample]:
    """Return one example for each text.

    Raises:
        DataError: a field is missing or empty, a type is none of the task, or a span is not its mention in the text.
    """
    labelled = isinstance(records[0].value, dict) and "label" in records[0].value
    examples = []
    for record in records:
        text = record.text("text")
        entities = None
        if labelled or "label" in record.value:
            if not labelled:
                raise record.error("has a 'label', but the first record has none.", "Label all records or none.")
            label = record.field("label", dict, say="an object of types, mentions and spans")
            if problem := find_problem(label, text, info.labels):
                raise record.error(problem, "Spans are [start, end], counted from 0, with the end included.")
            entities = tuple(sorted(entities_of(label), key=lambda one: (one.start, one.end, one.type)))
        examples.append(EntityExample(record.id("id"), text, entities))
    return examples


def entities_of(label: dict[str, dict[str, list[list[int]]]]) -> list[Entity]:
    """Return the entities of {type: {mention: [[start, end], ...]}}."""
    return [
        Entity(type_, start, end)
        for type_, mentions in label.items()
        for spans in mentions.values()
        for start, end in spans
    ]


def find_problem(label: Any, text: str, types: Sequence[str]) -> str | None:
    """Return what is wrong with {type: {mention: [[start, end], ...]}} of a text; None where nothing is."""
    if not isinstance(label, dict):
        return f"'label' must be an object of types, got {label!r:.40}."
    for type_, mentions in label.items():
        if type_ not in types:
            return f"{type_!r} is no type of entity; they are {', '.join(types)}."
        if not isinstance(mentions, dict):
            return f"{type_!r} must be an object of mentions, got {mentions!r:.40}."
        for mention, spans in mentions.items():
            if not isinstance(spans, list) or not spans:
                return f"the spans of {mention!r} must be a list of [start, end], got {spans!r:.40}."
            for span in spans:
                whole = isinstance(span, list) and len(span) == 2 and all(type(place) is int for place in span)
                if not whole or not 0 <= span[0] <= span[1] < len(text):
                    return f"{span!r:.40} of {mention!r} is no span of a text of {len(text)} characters."
                if text[span[0] : span[1] + 1] != mention:
                    return f"the text has {text[span[0] : span[1] + 1]!r} at {span}, not {mention!r}."
    return None
