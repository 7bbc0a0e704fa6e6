"""kexue.fm/archives/8662: lines of a file larger than memory in random order, with little memory.

Shows: sorting by random keys gives all orders with equal probability, and the article's scheme does not; memory stays
within its limit; the bytes depend on neither memory nor workers nor a kill; and the time beside GNU shuf.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from kexue._files import hash_file
from kexue.corpus.shuffle.keys import permutation_keys, rowwise_keys
from kexue.experiments._panels import draw_bars
from kexue.experiments.registry import Budget, experiment
from kexue.experiments.report import Claim, Figure, Report

_SEEDS = 24_000
_TAIL = 1e-6
_PYTHON = 60_000_000  # memory of Python, numpy and Arrow beside the limit, in bytes
_SHUFFLE = """
import sys
from kexue.corpus import shuffle_files
source, target, memory, workers = sys.argv[1:]
shuffle_files(source, target, seed=1, memory=memory, workers=int(workers) or None, verify=False)
"""


class _Runs(NamedTuple):
    """Measured runs of a shuffle and of GNU shuf.

    Attributes:
        size: size of the file, in bytes.
        limit: limit of memory, in MiB.
        rounds: number of timed runs of each command.
        seconds: median duration by command; ours is the first.
        peaks: largest resident memory in bytes by command.
        digests: SHA-256 of the outputs with several limits and numbers of workers.
        settings: number of those outputs.
        kills: number of runs that were killed once and started again.
        wrong: number of those with another SHA-256.
    """

    size: int
    limit: int
    rounds: int
    seconds: dict[str, float]
    peaks: dict[str, int]
    digests: set[str]
    settings: int
    kills: int
    wrong: int


@experiment(
    "bigshuffle",
    claim="Files larger than memory can be shuffled in little memory; two rounds through blocks come close to it.",
    effect=(
        "peak memory for a file of {file}: {peak_memory}; runs with wrong output after a kill: {wrong_after_a_kill}"
    ),
    minutes=2,
)
def run(budget: Budget, seed: int, data: Path | None) -> Report:
    """Count orders of few lines; shuffle a file in several ways; kill and resume; time."""
    orders = {
        "keyed_4": _count_orders(4, lambda s: permutation_keys(s, 0, 4), seed),
        "keyed_5": _count_orders(5, lambda s: permutation_keys(s, 0, 5), seed),
        "rowwise_4": _count_orders(4, lambda s: rowwise_keys(s, 0, 4, rows=2), seed),
    }
    chi = {name: float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) for name, counts in orders.items()}
    runs = _measure(budget, seed)
    figures = _figures(orders, chi, runs)
    return Report(
        _claims(orders, chi, runs, figures),
        figures,
        notes=(_compare_with_shuf(figures),),
        seeds=(seed,),
        draw=lambda figure: _draw(figure, orders, runs),
    )


def _measure(budget: Budget, seed: int) -> _Runs:
    """Shuffle a file with each command in turns, with several settings, and with kills."""
    size, limit, kills, rounds = {
        "smoke": (80_000_000, 128, 1, 1),
        "small": (500_000_000, 128, 20, 3),
        "full": (1_000_000_000, 256, 50, 5),
    }[budget]
    with tempfile.TemporaryDirectory(prefix="kexue-bigshuffle-") as name:
        folder = Path(name)
        write_lines(folder / "in", size, seed)
        ours = [sys.executable, "-c", _SHUFFLE, folder / "in", folder / "out", f"{limit}M", "0"]
        commands: dict[str, Sequence[Any]] = {f"kexue, {limit} MB": ours}
        if shutil.which("shuf"):
            commands["GNU shuf"] = ["shuf", folder / "in", "-o", folder / "out"]
        measured: dict[str, list[tuple[float, int]]] = {command: [] for command in commands}
        for command in list(commands) * rounds:
            measured[command].append(watch(commands[command]))
        seconds = {
            command: float(np.median([duration for duration, _ in pairs])) for command, pairs in measured.items()
        }
        peaks = {command: max(peak for _, peak in pairs) for command, pairs in measured.items()}
        settings = [(f"{limit}M", 1), (f"{limit // 2}M", 2), (f"{2 * limit}M", 3)]
        digests = set()
        for memory, workers in settings:
            watch([*ours[:-2], memory, str(workers)])
            digests.add(hash_file(folder / "out"))
        typical = next(iter(seconds.values()))
        wrong = sum(_kill_and_resume([*ours], folder, typical, seed + i) not in digests for i in range(kills))
    return _Runs(size, limit, rounds, seconds, peaks, digests, len(settings), kills, wrong)


def _figures(orders: dict[str, Any], chi: dict[str, float], runs: _Runs) -> dict[str, Figure]:
    """Return the figures of the report."""
    ours, reached = next(iter(runs.seconds.values())), int((orders["rowwise_4"] > 0).sum())
    figures = {
        "chi_square_keyed_4_lines": Figure(chi["keyed_4"], n=_SEEDS, expected=23, source="computed"),
        "chi_square_keyed_5_lines": Figure(chi["keyed_5"], n=_SEEDS, expected=119, source="computed"),
        "chi_square_rowwise_2x2_lines": Figure(chi["rowwise_4"], n=_SEEDS, expected=_SEEDS / 2, source="computed"),
        "orders_reached_rowwise_2x2": Figure(reached, expected=16, source="article"),
        "file": Figure(runs.size / 1e6, unit="MB"),
        "limit": Figure(runs.limit * 1.048576, unit="MB"),
        "peak_memory": Figure(next(iter(runs.peaks.values())) / 1e6, unit="MB"),
        "different_results": Figure(len(runs.digests), n=runs.settings, expected=1, source="computed"),
        "wrong_after_a_kill": Figure(runs.wrong, n=runs.kills, expected=0, source="computed"),
        "seconds": Figure(ours, unit="s", n=runs.rounds),
    }
    if "GNU shuf" in runs.seconds:
        figures["seconds_shuf"] = Figure(runs.seconds["GNU shuf"], unit="s", n=runs.rounds)
        figures["peak_memory_shuf"] = Figure(runs.peaks["GNU shuf"] / 1e6, unit="MB")
        figures["time_of_shuf"] = Figure(ours / runs.seconds["GNU shuf"], unit="times", n=runs.rounds)
    return figures


def _claims(
    orders: dict[str, Any], chi: dict[str, float], runs: _Runs, figures: dict[str, Figure]
) -> tuple[Claim, ...]:
    """Return the claims of the report, checked."""
    bounds = {name: float(stats.chi2.isf(_TAIL, len(counts) - 1)) for name, counts in orders.items()}
    tails = [(chi[f"keyed_{n}"], len(orders[f"keyed_{n}"]) - 1) for n in (4, 5)]
    return (
        Claim.check(
            "Sorting by independent random keys gives every order with the same probability.",
            all(stats.chi2.sf(x, k) > _TAIL and stats.chi2.cdf(x, k) > _TAIL for x, k in tails),
            rule=f"chi-square over the 24 and 120 orders of 4 and 5 lines within both tails of {_TAIL:g}",
            figures=["chi_square_keyed_4_lines", "chi_square_keyed_5_lines"],
        ),
        Claim.check(
            "The article's scheme, shuffled blocks read in turn, is not uniform, as it says itself.",
            chi["rowwise_4"] > bounds["rowwise_4"] and int((orders["rowwise_4"] > 0).sum()) == 16,
            rule="2 blocks of 2 lines: 16 of 24 orders are reached, and chi-square is beyond the tail of 1e-6",
            figures=["orders_reached_rowwise_2x2", "chi_square_rowwise_2x2_lines"],
        ),
        Claim.check(
            "A file larger than memory is shuffled in bounded memory.",
            figures["peak_memory"].value * 1e6 <= runs.limit * 2**20 + _PYTHON,
            rule="peak resident memory of the process at most the limit and 60 MB for Python",
            figures=["file", "limit", "peak_memory"],
        ),
        Claim.check(
            "The same seed gives the same bytes whatever the memory and the number of workers.",
            len(runs.digests) == 1,
            rule="one SHA-256 of three outputs",
            figures=["different_results"],
        ),
        Claim.check(
            "Killed at any moment, it goes on to the same bytes.",
            runs.wrong == 0,
            rule="SIGKILL at random moments, then run again: the SHA-256 of an undisturbed run",
            figures=["wrong_after_a_kill"],
        ),
    )


def _compare_with_shuf(figures: dict[str, Figure]) -> str:
    """Return the note about GNU shuf."""
    if "time_of_shuf" not in figures:
        return "the comparison with GNU shuf is left out: it is not installed"
    return (
        f"it took {figures['time_of_shuf'].value:.2f} times the time of shuf, which holds the whole file in memory "
        "(medians of runs in turns): a figure of this machine, which decides nothing"
    )


def write_lines(path: Path, size: int, seed: int) -> None:
    """Write a file of at least `size` bytes: lines of 20 to 200 letters."""
    generator = np.random.default_rng(seed)
    with path.open("wb") as file:
        while file.tell() < size:
            ends = np.cumsum(generator.integers(20, 201, size=100_000) + 1)
            letters = generator.integers(97, 123, size=int(ends[-1]), dtype=np.uint8)
            letters[ends - 1] = 10
            file.write(letters.data)


def watch(command: Sequence[Any], **options: Any) -> tuple[float, int]:
    """Run a command; return its seconds and its largest resident memory in bytes (0 without /proc)."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([os.fspath(part) for part in command], **options) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                lines = status.read_text(encoding="ascii", errors="replace").splitlines()
                peak = max([peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
            except (OSError, ValueError):
                break
            time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return time.perf_counter() - start, peak


def _count_orders(lines: int, keys: Callable[[int], Any], seed: int) -> Any:
    """Return how often each order of `lines` lines occurs, over all seeds, (lines!,)."""
    number = {order: i for i, order in enumerate(itertools.permutations(range(lines)))}
    counts = np.zeros(len(number))
    for one in range(_SEEDS):
        counts[number[tuple(np.argsort(keys(seed * _SEEDS + one)).tolist())]] += 1
    return counts


def _kill_and_resume(command: list[Any], folder: Path, seconds: float, seed: int) -> str:
    """Kill a run at a random moment and start it again; return the SHA-256 of its output."""
    (folder / "out").unlink(missing_ok=True)
    with subprocess.Popen([os.fspath(part) for part in command]) as process:
        time.sleep(random.Random(seed).uniform(0.1, 0.95) * seconds)
        process.send_signal(signal.SIGKILL)
    watch(command)
    return hash_file(folder / "out")


def _draw(figure: Any, orders: dict[str, Any], runs: _Runs) -> None:
    """Draw the frequencies of orders, the memory and the time."""
    figure.set_size_inches(13, 4.5)
    left, middle, right = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    ranked = {name: np.sort(orders[name])[::-1] for name in ("keyed_4", "rowwise_4")}
    place = np.arange(24)
    left.bar(place - 0.2, ranked["keyed_4"], 0.4, label="sorted by random keys")
    left.bar(place + 0.2, ranked["rowwise_4"], 0.4, label="shuffled blocks in turn (rowwise)")
    left.axhline(_SEEDS / 24, color="black", lw=1, label="uniform")
    left.set(
        title=f"orders of 4 lines over {_SEEDS:,} seeds", xlabel="order, the most frequent first", ylabel="times seen"
    )
    left.margins(y=0.28)
    left.legend(loc="upper right")
    for panel, values, title, unit in (
        (middle, {way: peak / 1e6 for way, peak in runs.peaks.items()}, "peak memory", "MB"),
        (right, runs.seconds, "time", "s"),
    ):
        draw_bars(panel, values, form="%.0f" if unit == "MB" else "%.1f", color=["C0", "C2"][: len(values)])
        panel.set(title=f"{title}, {runs.size / 1e6:,.0f} MB of lines", xlabel="program", ylabel=f"{title}, {unit}")
        panel.margins(y=0.15)
    middle.axhline(runs.limit * 1.048576 + _PYTHON / 1e6, color="black", lw=1, ls="--", label="limit + 60 MB")
    middle.legend(loc="upper left")
