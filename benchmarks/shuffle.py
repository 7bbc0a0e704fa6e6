"""Shuffling a file of lines, beside GNU shuf, terashuf, sort -R, and copying the file twice.

    python benchmarks/shuffle.py [--size 1G] [--memory 256M] [--rounds 5] [--terashuf PROGRAM] [--kills 50]
                                 [--hard] [--large 10G] [--folder DIR] [--quick] [--out FILE]

Lines of 20 to 200 bytes. The ways take turns; figures are medians of seconds and the peaks of resident memory. The
two copies are synchronised to the disk, as our output is. --kills kills a run so often, each time at a random moment
and going on after; --hard shuffles awkward files and counts records lost or invented; --large adds one run on a file
of that size, to see how time grows.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from _shared import write_record
from kexue.corpus import shuffle_files, verify_shuffle
from kexue.corpus.shuffle.options import parse_size
from kexue.experiments.bigshuffle import watch, write_lines

GOALS = {"terashuf": 0.75, "shuf": 1.3, "two copies": 3.5}
PYTHON = 60_000_000
COPY = """import os, shutil, sys
for i in "12":
    path = sys.argv[2] + i
    shutil.copyfile(sys.argv[1], path)
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.unlink(path)
"""
OURS = "import sys;from kexue.corpus import shuffle_files as s;s(sys.argv[1],sys.argv[2],memory=sys.argv[3],seed=1)"


def commands(source: Path, target: Path, memory: str, terashuf: str | None, sort: bool) -> dict[str, tuple[Any, ...]]:
    """Every way as (command, options of subprocess)."""
    ways: dict[str, tuple[Any, ...]] = {
        "kexue": ([sys.executable, "-c", OURS, source, target, memory], {}),
        "two copies": ([sys.executable, "-c", COPY, source, target], {}),
    }
    if shutil.which("shuf"):
        ways["shuf"] = (["shuf", source, "-o", target], {})
    if terashuf:
        gigabytes = str(parse_size(memory) / 2**30)
        environment = {**os.environ, "MEMORY": gigabytes, "TMPDIR": str(target.parent)}
        shell = ["sh", "-c", f'exec "{terashuf}" < "{source}" > "{target}" 2> /dev/null']
        ways["terashuf"] = (shell, {"env": environment})
    if sort and shutil.which("sort"):
        shell = ["sort", "-R", "-S", memory, "-T", target.parent, source, "-o", target]
        ways["sort -R"] = (shell, {"env": {**os.environ, "LC_ALL": "C"}})
    return ways


def race(ways: dict[str, tuple[Any, ...]], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds and largest memory of each way, and our time over its."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            command, options = ways[name]
            found[name].append(watch(command, **options))
    table = {
        name: {"seconds": median(s for s, _ in some), "peak_rss_mb": max(p for _, p in some) / 1e6}
        for name, some in found.items()
    }
    for name, row in table.items():
        row["kexue_over_this"] = median(a / b for (a, _), (b, _) in zip(found["kexue"], found[name], strict=True))
    return table


def crash(source: Path, target: Path, memory: str, kills: int, seconds: float) -> dict[str, float]:
    """Kill again and again; how many of the outputs differ from that of an undisturbed run."""
    draw, command = random.Random(0), [sys.executable, "-c", OURS, str(source), str(target), memory]

    def digest() -> str:
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    watch(command)
    expected, wrong, done, hit = digest(), 0, 0, 0
    while done < kills:
        target.unlink()
        for _ in range(min(draw.randint(1, 4), kills - done)):
            with subprocess.Popen(command) as process:
                time.sleep(draw.uniform(0.3, max(0.5, 0.8 * seconds)))
                process.send_signal(signal.SIGKILL)
            done += 1
            hit += process.returncode != 0
        watch(command)
        wrong += digest() != expected
    left = len([path for path in target.parent.iterdir() if path.name.startswith(".kexue")])
    return {"kills": done, "hit_at_work": hit, "wrong_outputs": wrong, "folders_left": left}


def hard_files(folder: Path, large: int) -> dict[str, Path]:
    """Files that line tools stumble over."""
    contents = {
        "no final newline": b"a\nb\nc",
        "crlf": b"a\r\nb\r\n\r\n" * 1000,
        "nul": b"a\0b\n\0\n" * 1000,
        "0xff": b"\xff\na\xffb\n" * 1000,
        "invalid utf-8": b"\x80\xc3\n\xed\xa0\x80\n" * 1000,
        "u+2028": "a\u2028b\x85\x0b\n".encode() * 1000,
        "no line": b"",
        "one line": b"a\n",
        f"a line of {large:,} bytes": b"x\n" * 1000 + b"y" * large + b"\n" + b"z\n" * 1000,
        f"{large // 10:,} empty lines": b"\n" * (large // 10),
    }
    paths = {name: folder / f"hard-{number}" for number, name in enumerate(contents)}
    for name, path in paths.items():
        path.write_bytes(contents[name])
    return paths


def lost_or_invented(source: Path, target: Path) -> int:
    """Records that are in one file and not in the other, counted one by one."""

    def records(path: Path) -> collections.Counter[bytes]:
        content = path.read_bytes()
        return collections.Counter(content.split(b"\n")[: -1 if content.endswith(b"\n") or not content else None])

    a, b = records(source), records(target)
    return (a - b).total() + (b - a).total()


def main() -> int:
    """Run, print, and return the number of goals missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1G")
    parser.add_argument("--memory", default="256M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--terashuf", help="the program, built from its source")
    parser.add_argument("--sort", action="store_true", help="also sort -R, which takes minutes")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--hard", action="store_true")
    parser.add_argument("--large", help="size of one more file, such as 10G")
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder for temporary files")
    parser.add_argument("--quick", action="store_true", help="60 MB, one round, two kills")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.rounds, arguments.kills, arguments.hard = "60M", 1, 2, True
    missed = 0
    record: dict[str, Any] = {"size": arguments.size, "memory": arguments.memory, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source, target = Path(name, "in"), Path(name, "out")
        write_lines(source, parse_size(arguments.size), 0)
        table = race(
            commands(source, target, arguments.memory, arguments.terashuf, arguments.sort), max(1, arguments.rounds)
        )
        record["ways"] = table
        for way, row in table.items():
            goal = GOALS.get(way)
            verdict = "" if goal is None else f"  goal {goal}: {'met' if row['kexue_over_this'] <= goal else 'missed'}"
            missed += goal is not None and row["kexue_over_this"] > goal
            print(
                f"{way:11} {row['seconds']:7.2f} s  peak {row['peak_rss_mb']:7.0f} MB  "
                f"kexue / this {row['kexue_over_this']:.2f}{verdict}"
            )
        limit = (parse_size(arguments.memory) + PYTHON) / 1e6
        missed += table["kexue"]["peak_rss_mb"] > limit
        print(f"memory: {table['kexue']['peak_rss_mb']:.0f} MB, {limit:.0f} allowed")
        if arguments.kills:
            record["crash"] = crash(source, target, arguments.memory, arguments.kills, table["kexue"]["seconds"])
            missed += record["crash"]["wrong_outputs"] > 0
            print("crash:", record["crash"])
        if arguments.hard:
            record["lost_or_invented"] = {}
            for what, path in hard_files(Path(name), 10**6 if arguments.quick else 10**8).items():
                for memory in ("16M", "256M"):
                    shuffle_files(path, target, memory=memory)
                    count = lost_or_invented(path, target)
                    record["lost_or_invented"][f"{what}, {memory}"] = count
                    missed += count > 0
            print("records lost or invented:", record["lost_or_invented"])
        if arguments.large:
            size = source.stat().st_size
            big = Path(name, "big")
            write_lines(big, parse_size(arguments.large), 1)
            target.unlink(missing_ok=True)
            seconds, peak = watch([sys.executable, "-c", OURS, big, target, arguments.memory])
            growth = (seconds / big.stat().st_size) / (table["kexue"]["seconds"] / size)
            whole = verify_shuffle(big, target)
            record["large"] = {
                "size": arguments.large, "seconds": seconds, "peak_rss_mb": peak / 1e6,
                "seconds_a_byte_over_those_of_the_small_file": growth, "same_lines": whole,
            }  # fmt: skip
            missed += not whole
            print("large:", record["large"])
    write_record(arguments.out, record, "pyarrow")
    return missed


if __name__ == "__main__":
    sys.exit(main())
