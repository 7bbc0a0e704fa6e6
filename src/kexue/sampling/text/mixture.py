"""Mixture of moves: a proposal on texts with exact Hastings factors."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np

from kexue.sampling import Proposed
from kexue.sampling.text.follower import Change
from kexue.sampling.text.laws import Tokens
from kexue.sampling.text.moves import DeleteMove, Edit, InsertMove, Move
from kexue.sampling.text.units import Parser, Units, join_units


class MixtureProposal:
    """A proposal that takes one of several moves at random; states are tuples of tokens.

    An edit is matched with the edit back by the move that undoes it: insertions with deletions, any other move with
    itself. One whose result would be read as other units, such as a token that completes a protected word further left,
    cannot be undone and is rejected.

    Args:
        moves: at least one; an `InsertMove` needs one `DeleteMove`, and the other way round.
        weights: of each move, > 0; None: all the same.
        protected: words, as tokens, that no move takes apart; a text keeps those that it has. Only moves between units
            change their order: `SwapMove`.

    Raises:
        TypeError: a protected word that is a string.
        ValueError: no move, weights that do not fit, an insertion without a deletion, a word without tokens.

    Example:
        >>> from kexue.sampling.text import DeleteMove, InsertMove, NGramLM, ReplaceMove
        >>> lm = NGramLM(2).fit(["ab", "abb"])
        >>> moves = MixtureProposal([ReplaceMove(lm), InsertMove(lm), DeleteMove()], protected=[lm.encode("ab")])
        >>> sorted({lm.decode(one.state) for one in moves.enumerate(lm.encode("abb")) if one.log_reverse > -9})
        ['aabb', 'ab', 'aba', 'abab', 'abb', 'abba', 'abbb', 'babb']
    """

    def __init__(
        self,
        moves: Sequence[Move],
        weights: Sequence[float] | None = None,
        *,
        protected: Iterable[Sequence[int]] = (),
    ) -> None:
        weights = [1.0] * len(moves) if weights is None else [float(weight) for weight in weights]
        if not moves or len(weights) != len(moves) or not all(0 < weight < math.inf for weight in weights):
            raise ValueError(
                f"moves and their weights, each > 0 and finite, are expected, got {list(moves)}, {weights}"
            )
        kinds = [sum(isinstance(move, kind) for move in moves) for kind in (InsertMove, DeleteMove)]
        if kinds not in ([0, 0], [1, 1]):
            raise ValueError(f"expected one InsertMove and one DeleteMove, which undo each other, got {kinds}")
        self.moves, self._parser = list(moves), Parser(protected)
        self._below = [part / sum(weights) for part in accumulate(weights)]
        self._log_weights = [math.log(weight / sum(weights)) for weight in weights]
        places = {move.tag: i for i, move in enumerate(moves)}
        self._undone_by = [i if move.undone_by == move.tag else places[move.undone_by] for i, move in enumerate(moves)]

    def propose(self, state: Tokens, generator: np.random.Generator, /) -> Proposed[Tokens]:
        """Draw a move, and an edit of it."""
        i = min(bisect_right(self._below, generator.random()), len(self.moves) - 1)
        units = self._parser.parse(state)
        edit = self.moves[i].draw(units, generator)
        if edit is None:
            return Proposed(state, 0.0, -math.inf, self.moves[i].tag)
        return self._proposed(units, i, edit)

    def enumerate(self, state: Tokens, /) -> Iterator[Proposed[Tokens]]:
        """Yield all edits of all moves."""
        units = self._parser.parse(state)
        for i, move in enumerate(self.moves):
            for edit in move.edits(units):
                yield self._proposed(units, i, edit)

    def _proposed(self, units: Units, i: int, edit: Edit) -> Proposed[Tokens]:
        """Return an edit by move i with the probabilities of it and of the edit back."""
        back = self._undone_by[i]
        after = edit.apply(units)
        state = join_units(after)
        forward = self._log_weights[i] + self.moves[i].log_prob(units, edit)
        reverse = -math.inf
        if self._parser.parse(state) == after:
            reverse = self._log_weights[back] + self.moves[back].log_prob(after, edit.undo())
        before = sum(map(len, units[: edit.place]))
        change = Change(before, sum(map(len, edit.old)), join_units(edit.new))
        return Proposed(state, forward, reverse, self.moves[i].tag, change)
