r"""Moves between texts: insert, delete, replace, swap, and replace several tokens at once.

Each move knows the probability with which it makes a given edit, so the Hastings factor of any edit is that of the edit
back, by the move that undoes it, over its own. With G(x) gaps between units, D(x) free tokens and a law g of tokens:

    insert w in a gap:  1 / G(x) · g(w | left, right),     undone by a deletion: 1 / D(y)
    replace a by b:     1 / D(x) · g(b | left, right),     undone by a replacement: 1 / D(y) · g(a | left, right)

Without protected words D(y) = |x| + 1 = G(x), which is the factor of the article; with them the places do not cancel.

Source: kexue.fm/archives/8194; Miao et al. 2019, "CGMH", arXiv:1811.10996. Differences: the article's code takes the
current token for a candidate whatever its score, so its chain keeps the law only approximately:
``candidate_policy="reference"``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from kexue._counts import check_count, check_counts
from kexue.sampling.text.laws import TokenLaw, TokenModel, Tokens
from kexue.sampling.text.units import Units, free_places, join_units

Policy = Literal["exact", "reference"]
_UNIFORM = 0.02  # share of uniform draws beside the candidates: every token can be reached, and left again


class Edit(NamedTuple):
    """Replacement of units of a text by others.

    Attributes:
        place: number of units before the first one that changes.
        old: units that go.
        new: units that come.
    """

    place: int
    old: Units
    new: Units

    def apply(self, units: Units) -> Units:
        """Return the units after the edit."""
        return units[: self.place] + self.new + units[self.place + len(self.old) :]

    def undo(self) -> Edit:
        """Return the edit back."""
        return Edit(self.place, self.new, self.old)


class Move(ABC):
    """A way to edit a text that is cut into units."""

    tag = ""
    undone_by = ""  # tag of the move that makes the edits back

    @abstractmethod
    def draw(self, units: Units, generator: np.random.Generator) -> Edit | None:
        """Draw an edit; None where the text has none."""

    @abstractmethod
    def log_prob(self, units: Units, edit: Edit) -> float:
        """Return the log-probability that `draw` gives an edit, -inf for one that it never gives."""

    @abstractmethod
    def edits(self, units: Units) -> Iterator[Edit]:
        """Yield all edits."""


class DeleteMove(Move):
    """Deletion of a free token, each with the same probability."""

    tag, undone_by = "delete", "insert"

    def draw(self, units: Units, generator: np.random.Generator) -> Edit | None:
        """Draw an edit."""
        places = free_places(units)
        if not places:
            return None
        place = places[int(generator.random() * len(places))]
        return Edit(place, (units[place],), ())

    def log_prob(self, units: Units, edit: Edit) -> float:
        """Return log 1 / D(x)."""
        return -math.log(len(free_places(units))) if type(edit.old[0]) is tuple else -math.inf

    def edits(self, units: Units) -> Iterator[Edit]:
        """Yield all edits."""
        return (Edit(place, (units[place],), ()) for place in free_places(units))


class SwapMove(Move):
    """Exchange of two units, each pair with the same probability; so protected words change places, too."""

    tag = undone_by = "swap"

    def draw(self, units: Units, generator: np.random.Generator) -> Edit | None:
        """Draw an edit."""
        if len(units) < 2:
            return None
        first = int(generator.random() * len(units))
        second = int(generator.random() * (len(units) - 1))
        second += second >= first
        return self._swap(units, min(first, second), max(first, second))

    def _swap(self, units: Units, first: int, second: int) -> Edit:
        old = units[first : second + 1]
        return Edit(first, old, (old[-1], *old[1:-1], old[0]))

    def log_prob(self, units: Units, edit: Edit) -> float:
        """Return log 2 / (U (U - 1)) for U units."""
        return -math.log(len(units) * (len(units) - 1) / 2)

    def edits(self, units: Units) -> Iterator[Edit]:
        """Yield all edits."""
        pairs = ((i, j) for i in range(len(units)) for j in range(i + 1, len(units)))
        return (self._swap(units, first, second) for first, second in pairs)


class _WritingMove(Move):
    """A move that writes tokens of a model.

    Args:
        model: gives the candidates of a place, such as an `NGramLM`.
        candidate_policy: ``"exact"``: the candidates of a place depend on what is around it alone, and a small share of
            draws is uniform over all tokens, so the chain keeps the law of its target and reaches every token.
            ``"reference"``: the tokens before and after the edit are always candidates, as in the article's code; the
            chain keeps the law approximately.
        top: number of candidates, at least 1; None is every token.

    Raises:
        ValueError: another policy, `top` below 1.
    """

    def __init__(self, model: TokenModel, *, candidate_policy: Policy = "exact", top: int | None = 64) -> None:
        if candidate_policy not in ("exact", "reference"):
            raise ValueError(f"candidate_policy must be 'exact' or 'reference', got {candidate_policy!r}")
        if top is not None:
            check_counts(top=top)
        self.model, self.candidate_policy, self.top = model, candidate_policy, top
        self._uniform = 0.0 if top is None or candidate_policy == "reference" else _UNIFORM
        self._writable = frozenset(model.writable)

    def _law(self, left: Tokens, right: Tokens | None, *forced: int) -> TokenLaw:
        """Return the law of a place; of `forced`, the reference policy makes candidates."""
        include = forced if self.candidate_policy == "reference" else ()
        return self.model.law(left, right, self.top, include)

    def _draw(self, law: TokenLaw, generator: np.random.Generator) -> int:
        uniform = generator.random()
        if uniform < self._uniform:
            writable = self.model.writable
            return int(writable[int(uniform / self._uniform * len(writable))])
        return law.draw((uniform - self._uniform) / (1 - self._uniform))

    def _log_prob(self, law: TokenLaw, token: int) -> float:
        share = (1 - self._uniform) * law.probability(token)
        if self._uniform and token in self._writable:
            share += self._uniform / len(self._writable)
        return math.log(share) if share else -math.inf

    def _tokens(self, law: TokenLaw) -> Sequence[int]:
        return self.model.writable if self._uniform else law.tokens


class InsertMove(_WritingMove):
    """Insertion of a token into a gap between units, each gap with the same probability, the token by a model's law.

    Args:
        model, candidate_policy, top: as of `ReplaceMove`.
    """

    tag, undone_by = "insert", "delete"

    def draw(self, units: Units, generator: np.random.Generator) -> Edit | None:
        """Draw an edit."""
        gap = int(generator.random() * (len(units) + 1))
        token = self._draw(self._law(join_units(units[:gap]), join_units(units[gap:])), generator)
        return Edit(gap, (), ((token,),))

    def log_prob(self, units: Units, edit: Edit) -> float:
        """Return log 1 / G(x) · g(w)."""
        token = edit.new[0][0]
        law = self._law(join_units(units[: edit.place]), join_units(units[edit.place :]), token)
        return self._log_prob(law, token) - math.log(len(units) + 1)

    def edits(self, units: Units) -> Iterator[Edit]:
        """Yield all edits."""
        for gap in range(len(units) + 1):
            law = self._law(join_units(units[:gap]), join_units(units[gap:]))
            yield from (Edit(gap, (), ((token,),)) for token in self._tokens(law))


class BlockMove(_WritingMove):
    """Replacement of several free tokens in a row, each block with the same probability, from left to right.

    It crosses what single edits cannot: for texts with exactly one 'c', it moves the 'c'.

    Args:
        model, candidate_policy, top: as of `ReplaceMove`.
        size: tokens of a block, at least 1.
    """

    tag = undone_by = "block"

    def __init__(
        self, model: TokenModel, size: int = 2, *, candidate_policy: Policy = "exact", top: int | None = 64
    ) -> None:
        super().__init__(model, candidate_policy=candidate_policy, top=top)
        self.size = check_count(size, "size", 1)

    def _blocks(self, units: Units) -> list[int]:
        """Return the places of blocks of free tokens."""
        if self.size == 1:
            return free_places(units)
        free = set(free_places(units))
        return [p for p in range(len(units) - self.size + 1) if all(p + k in free for k in range(self.size))]

    def draw(self, units: Units, generator: np.random.Generator) -> Edit | None:
        """Draw an edit."""
        places = self._blocks(units)
        if not places:
            return None
        place = places[int(generator.random() * len(places))]
        left, right = join_units(units[:place]), join_units(units[place + self.size :])
        new: Tokens = ()
        for k in range(self.size):
            law = self._law(left + new, right if k == self.size - 1 else None, units[place + k][0])
            new += (self._draw(law, generator),)
        return Edit(place, units[place : place + self.size], tuple((token,) for token in new))

    def log_prob(self, units: Units, edit: Edit) -> float:
        """Return log 1 / B(x) · the product of g over the tokens, B the number of blocks."""
        if any(type(unit) is not tuple for unit in edit.old):
            return -math.inf
        left, right = join_units(units[: edit.place]), join_units(units[edit.place + self.size :])
        total = -math.log(len(self._blocks(units)))
        for k, ((new,), (old,)) in enumerate(zip(edit.new, edit.old, strict=True)):
            law = self._law(left, right if k == self.size - 1 else None, new, old)
            total += self._log_prob(law, new)
            left += (new,)
        return total

    def edits(self, units: Units) -> Iterator[Edit]:
        """Yield all edits."""
        for place in self._blocks(units):
            old = units[place : place + self.size]
            left, right = join_units(units[:place]), join_units(units[place + self.size :])
            for new in self._writings(left, right, old):
                yield Edit(place, old, tuple((token,) for token in new))

    def _writings(self, left: Tokens, right: Tokens, old: Units, new: Tokens = ()) -> Iterator[Tokens]:
        """Yield all tokens that may come in the place of `old`."""
        if len(new) == len(old):
            yield new
            return
        law = self._law(left + new, right if len(new) == len(old) - 1 else None, old[len(new)][0])
        for token in self._tokens(law):
            yield from self._writings(left, right, old, (*new, token))


class ReplaceMove(BlockMove):
    """Replacement of a free token, each with the same probability, by a token of a model's law.

    Args:
        model: gives the candidates of a place, such as an `NGramLM`.
        candidate_policy: ``"exact"``: the candidates of a place depend on what is around it alone, and a small share of
            draws is uniform over all tokens, so the chain keeps the law of its target and reaches every token.
            ``"reference"``: the token that is there is always a candidate, as in the article's code; the chain keeps
            the law approximately.
        top: number of candidates, at least 1; None is every token.

    Raises:
        ValueError: another policy, `top` below 1.
    """

    tag = undone_by = "replace"

    def __init__(self, model: TokenModel, *, candidate_policy: Policy = "exact", top: int | None = 64) -> None:
        super().__init__(model, 1, candidate_policy=candidate_policy, top=top)
