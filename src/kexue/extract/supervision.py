"""Distant supervision: which known triples occur in a text, as features of the network.

A known triple fires where its subject and its object both occur in the text. Source: kexue.fm/archives/6671.

Which parts of a text are known names is looked up in a set, by every length that a name has. It takes the length of the
text times the number of lengths (about 30), whatever the number of names; an Aho-Corasick automaton saves the second
factor, at the price of a compiled package.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue.extract.triples import Span, Triple, TripleSchema, lower

_LONGEST = 64  # characters of a name that is looked for
Array = np.ndarray[Any, Any]


class PriorFeatures(NamedTuple):
    """Which spans of a text of T characters are known, shaped like the labels.

    Attributes:
        subjects: (T, 2) float32, 1 where the subject of a known triple begins, and where one ends.
        objects: span of such a subject -> (number of a predicate, span of an object) of its known triples.
        num_predicates: P.
    """

    subjects: Array
    objects: dict[Span, list[tuple[int, Span]]]
    num_predicates: int

    def of_subject(self, subject: Span) -> Array:
        """Return the features (T, P, 2) float32 of the objects of a subject; zeros where it is not known."""
        features = np.zeros((len(self.subjects), self.num_predicates, 2), dtype=np.float32)
        for predicate, (start, end) in self.objects.get(subject, []):
            features[start, predicate, 0] = features[end - 1, predicate, 1] = 1.0
        return features


class DistantSupervision:
    """A knowledge base of triples that were seen, with the sources that each comes from.

    Args:
        triples: the triples of each source; a source is a training sentence, numbered from 0 on.
        schema: the predicates; triples with others are left out.
    """

    def __init__(self, triples: Iterable[Sequence[Triple]], schema: TripleSchema) -> None:
        self.schema = schema
        numbers = {name: number for number, name in enumerate(schema.predicates)}
        self._sources: dict[tuple[str, int, str], set[int]] = {}
        for source, sentence in enumerate(triples):
            for subject, predicate, object, *_ in sentence:
                if predicate in numbers:
                    key = lower(subject), numbers[predicate], lower(object)
                    self._sources.setdefault(key, set()).add(source)
        self._by_subject: dict[str, list[tuple[int, str]]] = {}
        for subject, number, object in self._sources:
            self._by_subject.setdefault(subject, []).append((number, object))
        names = {name for subject, _, object in self._sources for name in (subject, object)}
        self._names = frozenset(name for name in names if 0 < len(name) <= _LONGEST)
        self._lengths = sorted({len(name) for name in self._names})

    def features(self, text: str, *, exclude_source: int | None = None) -> PriorFeatures:
        """Return the features of a text.

        Args:
            text: any text.
            exclude_source: number of the source that the text is: triples that no other source has do not fire. Without
                it a training sentence is told its own answers.
        """
        places = self._locate(lower(text))
        subjects = np.zeros((len(text), 2), dtype=np.float32)
        objects: dict[Span, list[tuple[int, Span]]] = {}
        for subject in places:
            for number, object in self._by_subject.get(subject, []):
                sources = self._sources[subject, number, object]
                if object not in places or sources == {exclude_source}:
                    continue
                for span in places[subject]:
                    subjects[span[0], 0] = subjects[span[1] - 1, 1] = 1.0
                    objects.setdefault(span, []).extend((number, other) for other in places[object])
        return PriorFeatures(subjects, objects, len(self.schema.predicates))

    def _locate(self, text: str) -> dict[str, list[Span]]:
        """Return where each known name occurs in a text."""
        places: dict[str, list[Span]] = {}
        for length in self._lengths:
            for start in range(len(text) - length + 1):
                if (name := text[start : start + length]) in self._names:
                    places.setdefault(name, []).append((start, start + length))
        return places

    def dump(self) -> list[list[Any]]:
        """Return the triples and their sources, ready for JSON; `load` takes them."""
        return [[*key, sorted(sources)] for key, sources in self._sources.items()]

    @classmethod
    def load(cls, dumped: Sequence[Sequence[Any]], schema: TripleSchema) -> DistantSupervision:
        """Return what was dumped."""
        by_source: dict[int, list[Triple]] = {}
        for subject, number, object, sources in dumped:
            for source in sources:
                by_source.setdefault(source, []).append(Triple(subject, schema.predicates[number], object))
        return cls([by_source.get(source, []) for source in range(max(by_source, default=-1) + 1)], schema)
