"""What one successful attempt costs: the loop, the decorator, the same written by hand, and tenacity.

    python benchmarks/retry.py [--quick] [--out FILE]

Every way runs an empty body that succeeds at once. The loop is timed as it is written in place, with its object built
anew, and with one object used again. Figures are medians over rounds taken in turns, in microseconds a pass.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from _shared import take_turns, write_record
from kexue.retry import Retry, retry

POLICY = Retry(3)


def by_hand() -> None:
    for _ in range(3):
        try:
            pass
        except Exception:
            continue
        break


def ours() -> None:
    for attempt in Retry(3):
        with attempt:
            pass


def ours_again() -> None:
    for attempt in POLICY:
        with attempt:
            pass


@retry(3)
def ours_decorated() -> None:
    pass


def ways() -> dict[str, Callable[[], None]]:
    found = {"by hand": by_hand, "Retry": ours, "Retry, reused": ours_again, "@retry": ours_decorated}
    try:
        import tenacity
    except ImportError:
        print("tenacity is not installed: no peer")
        return found

    def peer() -> None:
        for attempt in tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(2)):
            with attempt:
                pass

    @tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(2))
    def peer_decorated() -> None:
        pass

    return found | {"tenacity loop": peer, "@tenacity.retry": peer_decorated}


def repeated(way: Callable[[], None], passes: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(passes):
            way()

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    passes, rounds = (1000, 3) if arguments.quick else (5000, 60)
    seconds = take_turns({name: repeated(way, passes) for name, way in ways().items()}, rounds, warmup=1)
    micro = {name: 1e6 * median(times) / passes for name, times in seconds.items()}
    for name, value in micro.items():
        print(f"{name:16} {value:6.2f} us, {value - micro['by hand']:6.2f} more than by hand")
    peers = ["tenacity"] if "tenacity loop" in micro else []
    write_record(arguments.out, {"microseconds": micro, "passes": passes, "rounds": rounds}, *peers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
