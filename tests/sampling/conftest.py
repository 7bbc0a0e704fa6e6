"""Toys whose law can be listed: a ring of four states, strings of at most three letters."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from kexue.sampling import Proposed


class Listed:
    """A proposal that draws from its own list of moves."""

    def propose(self, state, generator):
        u = generator.random()
        for move in self.enumerate(state):
            u -= math.exp(move.log_forward)
            if u < 0:
                return move
        return Proposed(state, 0.0, -math.inf, "none")


class Ring(Listed):
    """Steps to either neighbour among four states."""

    def enumerate(self, state):
        return [Proposed((state + step) % 4, math.log(0.5), math.log(0.5), f"{step:+d}") for step in (1, -1)]


class Edits(Listed):
    """Insert, delete or replace a letter; letters in `protected` are neither deleted nor replaced.

    The move is (operation, position, letter). `positions=False` forgets the numbers of positions of both ways.
    """

    def __init__(self, alphabet="ab", operations="idr", protected="", positions=True, shares=(0.5, 0.2, 0.3)):
        self.alphabet, self.operations, self.protected, self.positions = alphabet, operations, protected, positions
        self.share = dict(zip("idr", shares, strict=True))

    def enumerate(self, x):
        free = [i for i, letter in enumerate(x) if letter not in self.protected]
        letter = 1 / len(self.alphabet)
        moves = []
        if "i" in self.operations:
            forward, reverse = self.share["i"] / (len(x) + 1) * letter, self.share["d"] / (len(free) + 1)
            for i, new in itertools.product(range(len(x) + 1), self.alphabet):
                moves.append((x[:i] + new + x[i:], forward, reverse, "insert"))
        for i in free if "d" in self.operations else []:
            forward, reverse = self.share["d"] / len(free), self.share["i"] / len(x) * letter
            moves.append((x[:i] + x[i + 1 :], forward, reverse, "delete"))
        for i, new in itertools.product(free if "r" in self.operations else [], self.alphabet):
            share = self.share["r"] / len(free) * letter
            moves.append((x[:i] + new + x[i + 1 :], share, share, "replace"))
        if not self.positions:  # as if the positions cancelled
            moves = [(y, f, f * {"insert": 1 / letter, "delete": letter}.get(tag, 1.0), tag) for y, f, _, tag in moves]
        return [Proposed(y, math.log(f), math.log(r), tag) for y, f, r, tag in moves]


def score(x):
    """log rho of a string of at most three letters: rough, and far from uniform."""
    return -math.inf if len(x) > 3 else 0.8 * x.count("a") - 0.4 * len(x) ** 2 + 0.9 * ("ab" in x)


class Fair:
    """Strings of 0 to 4 letters: the length uniformly, then each letter."""

    def sample(self, n, *, generator):
        return ["".join(generator.choice(["a", "b"], generator.integers(5))) for _ in range(n)]

    def log_prob(self, states):
        return [-math.log(5) - len(x) * math.log(2) for x in states]


def strings(alphabet="ab", most=3):
    return ["".join(letters) for n in range(most + 1) for letters in itertools.product(alphabet, repeat=n)]


def law(log_rho, states):
    p = np.exp([log_rho(state) for state in states])
    return p / p.sum()


def variation(samples, states, p):
    """Total variation between the shares of the samples and p."""
    counts = Counter(samples)
    assert set(counts) <= set(states)
    return 0.5 * sum(abs(counts[state] / len(samples) - share) for state, share in zip(states, p, strict=True))


RING = np.array([0.1, 0.4, 0.2, 0.3])


@pytest.fixture(scope="session")
def toys():
    return SimpleNamespace(
        Ring=Ring, Edits=Edits, Fair=Fair, score=score, strings=strings, law=law, variation=variation,
        ring=RING, log_ring=lambda i: math.log(RING[i]),
    )  # fmt: skip
