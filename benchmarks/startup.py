"""What starting costs: `import kexue` and `kexue --help`, beside an empty Python and `import numpy`.

    python benchmarks/startup.py [--quick] [--out FILE]

Each way is a fresh process. The promise: `import kexue` below 0.3 s.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from _shared import take_turns, write_record

WAYS = {
    "python -c pass": ["-c", "pass"],
    "import numpy": ["-c", "import numpy"],
    "import kexue": ["-c", "import kexue"],
    "kexue --help": ["-c", "from kexue.cli import main; main(['--help'])"],
}


def start(arguments: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else 15
    seconds = take_turns({name: start(way) for name, way in WAYS.items()}, rounds, warmup=1)
    medians = {name: median(times) for name, times in seconds.items()}
    for name, value in medians.items():
        print(f"{name:16} {value:6.3f} s, {value / medians['python -c pass']:5.1f} of an empty Python")
    write_record(arguments.out, {"seconds": medians, "rounds": rounds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
