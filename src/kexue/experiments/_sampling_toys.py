"""Toys of sampling whose law can be listed, or whose maximum is hard to find: strings, a ring, spin glasses."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kexue._arrays import Array
from kexue.sampling import (
    FiniteConditional,
    Proposed,
    anneal,
    gibbs,
    importance_sample,
    metropolis_1953,
    metropolis_hastings,
    rejection_sample,
    transition_matrix,
)

RING = (0.1, 0.4, 0.2, 0.3)  # probabilities around the ring: neighbours differ
_STEPS = 100_000


class Listed(ABC):
    """A proposal on strings or numbers that draws from its own list of moves."""

    def __init__(self) -> None:
        self.lists: dict[Any, tuple[list[Proposed[Any]], Array]] = {}

    @abstractmethod
    def enumerate(self, state: Any) -> list[Proposed[Any]]:
        """All moves."""

    def propose(self, state: Any, generator: np.random.Generator) -> Proposed[Any]:
        """One of them."""
        if state not in self.lists:
            moves = self.enumerate(state)
            shares = np.cumsum([math.exp(move.log_forward) for move in moves])
            self.lists[state] = [*moves, Proposed(state, 0.0, -math.inf, "none")], shares
        moves, shares = self.lists[state]
        return moves[int(np.searchsorted(shares, generator.random(), side="right"))]


class Ring(Listed):
    """Steps to either neighbour among four states."""

    def enumerate(self, state: int) -> list[Proposed[int]]:
        """All moves."""
        return [Proposed((state + step) % 4, math.log(0.5), math.log(0.5)) for step in (1, -1)]


class Edits(Listed):
    """Inserts, deletes, replaces letters, or replaces two neighbours at once.

    A letter of `protected` is neither inserted nor deleted nor replaced. With `positions=False` the factors are those
    of a sentence without protected letters, in which the numbers of positions cancel: insert 1 / q(letter), delete
    q(letter).
    """

    def __init__(
        self, alphabet: str, operations: Sequence[str], protected: str = "", *, positions: bool = True
    ) -> None:
        super().__init__()
        self.alphabet, self.operations = alphabet, operations
        self.protected, self.positions = protected, positions

    def enumerate(self, x: str) -> list[Proposed[str]]:
        """All moves."""
        free = [i for i, letter in enumerate(x) if letter not in self.protected]
        q, gaps, moves = 1 / len(self.alphabet), len(x) + 1, []
        if "insert" in self.operations:
            ratio = gaps / (len(free) + 1) if self.positions else 1.0
            moves += [
                (x[:i] + letter + x[i:], q / gaps, ratio / q, "insert")
                for i, letter in itertools.product(range(gaps), self.alphabet)
            ]
        if "delete" in self.operations:
            ratio = len(free) / len(x) if self.positions and x else 1.0
            moves += [(x[:i] + x[i + 1 :], 1 / len(free), ratio * q, "delete") for i in free]
        if "replace" in self.operations:
            moves += [
                (x[:i] + letter + x[i + 1 :], q / len(free), 1.0, "replace")
                for i, letter in itertools.product(free, self.alphabet)
            ]
        if "block" in self.operations:
            pairs = [a + b for a, b in itertools.product(self.alphabet, repeat=2)]
            moves += [
                (x[:i] + pair + x[i + 2 :], q * q / (len(x) - 1), 1.0, "block")
                for i, pair in itertools.product(range(len(x) - 1), pairs)
            ]
        share = 1 / len(self.operations)
        return [
            Proposed(y, math.log(share * forward), math.log(share * forward * ratio), tag)
            for y, forward, ratio, tag in moves
        ]


class Words:
    """Strings of at most three letters: the length uniformly, then each letter."""

    def sample(self, n: int, *, generator: np.random.Generator) -> list[str]:
        """Draw n."""
        letters, lengths = generator.choice(["a", "b"], (n, 3)), generator.integers(4, size=n)
        return ["".join(row[:length]) for row, length in zip(letters, lengths, strict=True)]

    def log_prob(self, states: Sequence[str]) -> list[float]:
        """Log probabilities."""
        return [-math.log(4) - len(x) * math.log(2) for x in states]


def list_strings(alphabet: str, most: int) -> list[str]:
    """All strings of at most `most` letters."""
    return ["".join(letters) for n in range(most + 1) for letters in itertools.product(alphabet, repeat=n)]


def score(x: str) -> float:
    """A rough log rho of strings of at most three letters."""
    return -math.inf if len(x) > 3 else 0.8 * x.count("a") - 0.4 * len(x) ** 2 + 0.9 * ("ab" in x)


def variation(samples: Sequence[Any], log_rho: Callable[[Any], float], states: Sequence[Any]) -> float:
    """Total variation between the shares of samples and the law of log rho on all states."""
    rho = np.exp([log_rho(state) for state in states])
    counts = Counter(samples)
    shares = np.array([counts[state] for state in states]) / len(samples)
    return float(np.abs(shares - rho / rho.sum()).sum() / 2)


def measure_variations(seed: int) -> dict[str, float]:
    """Total variation of 100,000 samples by each sampler from the law that enumeration has."""
    states = list_strings("ab", 3)
    log_z = math.log(sum(math.exp(score(x)) for x in states))
    three = [x for x in states if len(x) == 3]
    edits = Edits("ab", ["insert", "delete", "replace"])
    few: dict[str, Any] = {"steps": _STEPS // 8, "chains": 8, "generator": seed}

    def normalised(x: str) -> float:
        return score(x) - log_z

    def flat(result: Any) -> list[Any]:
        return list(itertools.chain(*result.states))

    log_bound = max(score(x) - Words().log_prob([x])[0] for x in states)
    conditional = FiniteConditional(score, "ab")
    samples: dict[str, tuple[Sequence[Any], Callable[[Any], float], Sequence[Any]]] = {
        "metropolis_hastings": (flat(metropolis_hastings(score, edits, "", **few)), score, states),
        "metropolis_1953": (flat(metropolis_1953(lambda i: math.log(RING[i]), Ring(), 0, **few)), _log_ring, range(4)),
        "gibbs_random": (flat(gibbs(conditional, "aaa", **few)), score, three),
        "gibbs_systematic": (flat(gibbs(conditional, "aaa", scan="systematic", **few)), score, three),
        "importance": (
            importance_sample(normalised, Words(), _STEPS, resample=True, generator=seed).states,
            score,
            states,
        ),
        "rejection": (
            rejection_sample(score, Words(), _STEPS, log_bound=log_bound, generator=seed).states,
            score,
            states,
        ),
    }
    return {name: variation(*triple) for name, triple in samples.items()}


def _log_ring(i: int) -> float:
    return math.log(RING[i])


def balance_gap() -> float:
    """Largest |p(x) T(x, y) - p(y) T(y, x)| of the chain of edits, which is 0 in detailed balance."""
    states = list_strings("ab", 3)
    p = np.exp([score(x) for x in states])
    flow = (p / p.sum())[:, None] * transition_matrix(score, Edits("ab", ["insert", "delete", "replace"]), states)
    return float(np.abs(flow - flow.T).max())


def ring_acceptance(seed: int) -> dict[str, float]:
    """Shares of accepted moves on the ring, of the algorithm of 1953 and of that of Hastings."""
    samplers: dict[str, Any] = {"1953": metropolis_1953, "hastings": metropolis_hastings}
    return {
        name: float(sampler(_log_ring, Ring(), 0, steps=_STEPS, generator=seed).accepted.mean())
        for name, sampler in samplers.items()
    }


class Positions(NamedTuple):
    """What forgetting the numbers of positions does: stationary masses, and mean lengths of 100,000 samples."""

    masses: Array
    right_length: float
    wrong_length: float
    exact_length: float


def forget_positions(seed: int) -> Positions:
    """Compare the chains with and without the factor on the strings of a protected letter and up to three others.

    The target is uniform over the 10 strings a..a k a..a.
    """
    states = [x for x in list_strings("ak", 4) if x.count("k") == 1]

    def uniform(x: str) -> float:
        return 0.0 if len(x) < 5 else -math.inf

    right, wrong = (Edits("a", ["insert", "delete"], "k", positions=positions) for positions in (True, False))
    T = transition_matrix(uniform, wrong, states)
    masses = np.linalg.matrix_power(T, 5000)[0]
    lengths = [
        metropolis_hastings(uniform, edits, "k", steps=_STEPS, generator=seed).measure(len).mean()
        for edits in (right, wrong)
    ]
    return Positions(masses, float(lengths[0]), float(lengths[1]), float(np.mean([len(x) for x in states])))


def count_reached(operations: Sequence[str], seed: int) -> tuple[int, float]:
    """How many of the 12 strings with exactly one c over {a, b, c}^3 a chain reaches, and its total variation."""
    states = [x for x in list_strings("abc", 3) if len(x) == 3 and x.count("c") == 1]

    def one_c(x: str) -> float:
        return 0.0 if len(x) == 3 and x.count("c") == 1 else -math.inf

    edits = Edits("abc", operations)
    reached = np.linalg.matrix_power(transition_matrix(one_c, edits, states), len(states))[0] > 0
    result = metropolis_hastings(one_c, edits, states[0], steps=_STEPS, generator=seed)
    return int(reached.sum()), variation(result.states[0], one_c, states)


# ---- a maximum that is hard to find ----------------------------------------------------------------------------------


class SpinGlass:
    """f(x) = sum over i < j of J_ij x_i x_j / n^1.5, J ~ N(0, 1): rugged, with a maximum near 0.76 for large n.

    Source: Sherrington and Kirkpatrick 1975; Parisi 1979 for the maximum.
    """

    def __init__(self, n: int, generator: np.random.Generator) -> None:
        J = np.triu(generator.normal(size=(n, n)), 1)
        self.couplings = (J + J.T) / (2 * n**1.5)

    def log_rho(self, states: Sequence[Array]) -> Array:
        """F of each state."""
        x = np.stack(states)
        return np.asarray(((x @ self.couplings) * x).sum(1))


class Flip:
    """Turns one spin."""

    def propose(self, state: Array, generator: np.random.Generator) -> Proposed[Array]:
        """Turn it."""
        new = state.copy()
        new[int(generator.random() * len(new))] *= -1
        return Proposed(new, 0.0, 0.0)


def search_glasses(n: int, glasses: int, steps: int, seed: int) -> dict[str, Array]:
    """Best objectives (glasses,) by annealing, by hill climbing from the same 20 starts, and from 200 at equal cost."""
    best: dict[str, list[float]] = {"annealing": [], "climbing": [], "restarts": []}
    for i in range(glasses):
        glass = SpinGlass(n, np.random.default_rng([seed, i]))

        def start(generator: np.random.Generator) -> Array:
            return generator.choice([-1.0, 1.0], n)

        for name, tau0, share in (("annealing", 2 / n, 1), ("climbing", 0.0, 1), ("restarts", 0.0, 10)):
            result = anneal(
                glass, Flip(), start, steps=steps // share, tau0=tau0, chains=20 * share, generator=seed + 1000 * i
            )
            best[name].append(float(result.best_value.max()))
    return {name: np.array(values) for name, values in best.items()}
