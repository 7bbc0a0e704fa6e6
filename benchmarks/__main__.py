"""Every benchmark in turn: `python -m benchmarks [--quick] [--out FOLDER]`."""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run each file of this folder; return the number that broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for the JSON results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    broken = 0
    for script in sorted(HERE.glob("[!_]*.py")):
        print(f"== {script.stem}", flush=True)
        command = [sys.executable, str(script), "--out", str(arguments.out / f"{script.stem}.json")]
        broken += subprocess.run(command + ["--quick"] * arguments.quick, check=False).returncode != 0
    return broken


if __name__ == "__main__":
    sys.exit(main())
