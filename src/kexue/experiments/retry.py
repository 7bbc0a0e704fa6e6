"""kexue.fm/archives/9938: a loop around a `with` block retries code in place.

Measures: number of tries and pauses for any number of failures, the exact pauses of each policy on a simulated clock,
the share of flaky calls that succeed, and the time of a successful attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kexue._arrays import Array
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report
from kexue.retry import Retry

_POLICIES: dict[str, dict[str, Any]] = {
    "delay=2 (default)": {},
    "delay=1, backoff=2": {"delay": 1.0, "backoff": 2.0},
    "the same, max_delay=4": {"delay": 1.0, "backoff": 2.0, "max_delay": 4.0},
    "delay=(1, 1, 5)": {"delay": (1.0, 1.0, 5.0)},
    "delay=3, timeout=10": {"delay": 3.0, "timeout": 10.0},
}
_EXPECTED = {
    "delay=2 (default)": [2.0] * 5,
    "delay=1, backoff=2": [1.0, 2.0, 4.0, 8.0, 16.0],
    "the same, max_delay=4": [1.0, 2.0, 4.0, 4.0, 4.0],
    "delay=(1, 1, 5)": [1.0, 1.0, 5.0, 5.0, 5.0],
    "delay=3, timeout=10": [3.0, 3.0, 3.0, 1.0],
}
_TRIES = 6
_CHANCE = 0.3  # of a failure
_ALLOWED = (1, 2, 3, 4, 5)  # tries


@experiment(
    "retry",
    claim="A loop that yields a context manager retries a block in place, without moving it into a function.",
    effect="share of calls that succeed within three tries at 30 % failures {saved_by_three_tries}",
    minutes=0.1,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Count tries and pauses for every number of failures, save flaky calls, and time an attempt."""
    generator = np.random.default_rng(seed)
    calls = {"smoke": 2_000, "small": 20_000, "full": 200_000}[budget]
    pauses = {name: _simulate(options) for name, options in _POLICIES.items()}
    saved = np.array([np.mean([_is_saved(generator, n) for _ in range(calls)]) for n in _ALLOWED])
    figures = _figures(pauses, saved, calls)
    notes = (
        "added_per_attempt: a loop of Retry around an empty body minus the same by hand, the best of 20 rounds of "
        "2,000; a figure of this machine, which decides nothing.",
    )
    return Report(_claims(figures), figures, notes=notes, draw=lambda figure: _draw(figure, pauses, saved, calls))


def _figures(pauses: Mapping[str, list[float]], saved: Array, calls: int) -> dict[str, Figure]:
    wrong = sum(not _counts_right(failures, tries) for tries in range(1, 9) for failures in range(11))
    exact = sum(pauses[name] == _EXPECTED[name] for name in _POLICIES)
    expected = 1 - _CHANCE ** np.array(_ALLOWED)
    worst = float(np.abs((saved - expected) / np.sqrt(expected * (1 - expected) / calls)).max())
    added = _microseconds(_loop) - _microseconds(_by_hand)
    return {
        "wrong_counts": Figure(wrong, n=88, expected=0, source="computed"),
        "exact_policies": Figure(exact, n=len(_POLICIES), expected=len(_POLICIES), source="computed"),
        "saved_by_three_tries": Figure(float(saved[2]), n=calls, expected=float(expected[2]), source="computed"),
        "worst_deviation": Figure(worst, unit="standard errors", n=len(_ALLOWED)),
        "added_per_attempt": Figure(added, unit="microseconds", n=20),
    }


def _claims(figures: Mapping[str, Figure]) -> tuple[Claim, ...]:
    return (
        Claim.check(
            "The body runs until it succeeds or the tries are used up, with a pause between tries and none after the "
            "last; `allright` tells which, and variables of the body stay in the surrounding scope.",
            figures["wrong_counts"].value == 0,
            rule="tries, pauses, allright and a variable of the body right for 1-8 tries and 0-10 failures",
            figures=["wrong_counts"],
        ),
        Claim.check(
            "Delay, backoff, cap, list of delays and timeout give the pauses they promise.",
            figures["exact_policies"].value == len(_POLICIES),
            rule="every pause of every policy equal to the one worked out by hand",
            figures=["exact_policies"],
        ),
        Claim.check(
            "n tries of a call that fails with probability p save all but p^n of the calls.",
            figures["worst_deviation"].value < 4,
            rule="share of saved calls within 4 standard errors of 1 - 0.3^n for n = 1 ... 5",
            figures=["saved_by_three_tries", "worst_deviation"],
        ),
    )


def _draw(figure: Any, pauses: Mapping[str, list[float]], saved: Array, calls: int) -> None:
    """Pauses of every policy, and calls lost against tries."""
    tries = np.array(_ALLOWED)
    timeline, chances = figure.subplots(1, 2, width_ratios=[3, 2])
    for row, slept in enumerate(pauses.values()):
        times = np.concatenate([[0.0], np.cumsum(slept)])
        timeline.hlines(row, 0, times[-1], color="0.75", linewidth=3, zorder=1)
        timeline.scatter(times, [row] * len(times), color="tab:red", s=45, zorder=2)
    timeline.set_yticks(range(len(pauses)), list(pauses))
    timeline.invert_yaxis()
    timeline.set_xlabel("time since the first try, s (each dot is a failed try)")
    timeline.set_ylabel("policy")
    timeline.set_title(f"Up to {_TRIES} tries of a call that always fails")
    chances.semilogy(tries, _CHANCE**tries, color="0.6", label="$p^n$")
    chances.semilogy(tries, 1 - saved, "o", color="tab:blue", label="measured")
    chances.set_xticks(tries)
    chances.set_xlabel("tries allowed")
    chances.set_ylabel("share of calls lost")
    chances.set_title(f"p = {_CHANCE}, {calls:,} calls each")
    chances.legend(loc="lower left")


def _counts_right(failures: int, max_tries: int) -> bool:
    """Whether a loop over a body that fails `failures` times has the right tries, pauses, success and variable."""
    pauses: list[float] = []
    variable = None
    for attempt in Retry(max_tries, on_error=None, sleep=pauses.append):
        with attempt:
            variable = attempt.index
            if attempt.index < failures:
                raise OSError
    done = min(failures + 1, max_tries)
    counted = (attempt.tries, pauses, attempt.allright, variable)
    return counted == (done, [2.0] * (done - 1), failures < max_tries, done - 1)


def _simulate(options: dict[str, Any]) -> list[float]:
    """The pauses of a policy when every try fails at once."""
    pauses: list[float] = []
    for attempt in Retry(_TRIES, on_error=None, sleep=pauses.append, clock=lambda: sum(pauses), **options):
        with attempt:
            raise OSError
    return pauses


def _is_saved(generator: np.random.Generator, max_tries: int) -> bool:
    """Whether a call that fails at random succeeds within `max_tries`."""
    attempt = Retry(max_tries, delay=0.0, on_error=None, sleep=lambda _: None)
    for turn in attempt:
        with turn:
            if generator.random() < _CHANCE:
                raise OSError
    return attempt.allright


def _loop() -> None:
    """A loop of Retry around an empty body."""
    for attempt in Retry(3):
        with attempt:
            pass


def _by_hand() -> None:
    """The same loop by hand."""
    for _ in range(3):
        try:
            pass
        except Exception:
            continue
        break


def _microseconds(way: Callable[[], None], passes: int = 2000, rounds: int = 20) -> float:
    """Microseconds of one pass, the best of several rounds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(passes):
            way()
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / passes
