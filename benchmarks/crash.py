"""Kill a process that adds documents, at random moments, and see what is left.

    python benchmarks/crash.py [--kills 50] [--seed 0] [--quick] [--out FILE]

A worker opens an index, adds, replaces and deletes documents, and prints each call's effect after the call has
returned. It is killed with SIGKILL; the index is opened again and must hold exactly what was acknowledged, or that
and the one call that was under way, in full. The file is the same for all kills.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kexue.search import Index

DIM = 192


class Encoder:
    """A direction for each text, drawn from its hash."""

    dim = DIM
    model_id = "hash"

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.stack([np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIM) for text in texts])


@dataclass(frozen=True)
class Crashes:
    """What was seen: kills, documents acknowledged and left, and failures in words."""

    kills: int
    calls: int
    acknowledged: int
    lost: int
    documents: int
    unacknowledged_calls_kept: int
    seconds: float
    failures: list[str]


def work(path: str, seed: int) -> None:
    """Add, replace and delete for ever; print each call once it has returned."""
    draw = random.Random(seed)
    with Index.open(path, encoder=Encoder()) as index:
        serial = 0
        while True:
            serial += 1
            if draw.random() < 0.15:
                ids = [str(draw.randrange(3000)) for _ in range(20)]
                intent: dict[str, object] = {"delete": ids}
                print(json.dumps({"begin": intent}), flush=True)
                index.delete(ids)
            else:
                numbers = draw.sample(range(3000), draw.randint(1, 40))
                texts = {str(n): f"{n} of {seed} and {serial} " + "word " * draw.randrange(300) for n in numbers}
                intent = {"add": texts}
                print(json.dumps({"begin": intent}), flush=True)
                index.add(texts.values(), ids=texts)
            print(json.dumps({"done": intent}), flush=True)


def apply(state: dict[str, str], intent: dict[str, object]) -> dict[str, str]:
    """The documents after a call."""
    if "delete" in intent:
        return {name: text for name, text in state.items() if name not in intent["delete"]}  # type: ignore[operator]
    return {**state, **intent["add"]}  # type: ignore[dict-item]


def read(path: Path) -> dict[str, str]:
    """The documents of an index, after checking that it is sound and that its vectors are found."""
    connection = sqlite3.connect(path)
    try:
        [verdict] = connection.execute("PRAGMA integrity_check").fetchone()
        left = [
            n for (n,) in connection.execute("SELECT count(*) FROM documents UNION ALL SELECT count(*) FROM vectors")
        ]
    finally:
        connection.close()
    if verdict != "ok" or left[0] != left[1]:
        raise RuntimeError(f"integrity check: {verdict}; {left[0]} documents, {left[1]} vectors")
    with Index.open(path, encoder=Encoder()) as index:
        documents = {row.id: row.text for rows in index.store.iterate(vectors=False) for row in rows}
        if len(index) != len(documents):
            raise RuntimeError(f"count says {len(index)}, there are {len(documents)}")
        some = list(documents.items())[:: max(1, len(documents) // 20)]
        hits = index.search([text for _, text in some], 1) if some else []
        wrong = [name for (name, _), found in zip(some, hits, strict=True) if found[0].text != documents[name]]
        if wrong:
            raise RuntimeError(f"search does not find {wrong}")
    return documents


def run(kills: int, folder: Path, seed: int = 0) -> Crashes:
    """Kill `kills` workers on one index."""
    start, draw, path = time.perf_counter(), random.Random(seed), folder / "crash.kx"
    Index.create(path, Encoder()).close()
    state: dict[str, str] = {}
    calls = acknowledged = lost = kept = 0
    failures: list[str] = []
    for kill in range(kills):
        command = [sys.executable, __file__, "--work", str(path), "--seed", str(seed * 1000 + kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            lines = [worker.stdout.readline()]  # it has begun; from now on any moment may be the last
            reader = threading.Thread(target=lines.extend, args=(worker.stdout,))  # a full pipe would hold it up
            reader.start()
            time.sleep(draw.uniform(0, 0.6))
            worker.send_signal(signal.SIGKILL)
            reader.join()
        under_way = None
        for line in lines:
            if not line.endswith(b"\n"):
                break
            event = json.loads(line)
            under_way = event.get("begin")
            if "done" in event:
                state = apply(state, event["done"])
                calls += 1
                acknowledged += len(event["done"].get("add", ()))
        try:
            found = read(path)
        except Exception as error:
            failures.append(f"kill {kill}: {type(error).__name__}: {error}")
            continue
        after = state if under_way is None else apply(state, under_way)
        if found not in (state, after):
            missing = [name for name, text in state.items() if found.get(name) not in (text, after.get(name))]
            lost += len(missing)
            failures.append(
                f"kill {kill}: {len(missing)} documents lost, {len(found)} there, {len(state)} acknowledged"
            )
        kept += found == after and found != state
        state = found
    seconds = time.perf_counter() - start
    return Crashes(kills, calls, acknowledged, lost, len(state), kept, seconds, failures)


def main() -> int:
    """Run, print, and return 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="five kills")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = run(5 if arguments.quick else arguments.kills, Path(folder), arguments.seed)
    print(f"{found.kills} kills in {found.seconds:.0f} s")
    print(f"{found.calls} calls acknowledged, with {found.acknowledged} documents")
    print(f"{found.unacknowledged_calls_kept} calls had happened in full, but could not say so any more")
    print(f"{found.lost} documents lost, {found.documents} left")
    print("\n".join(found.failures) or "no failures")
    from _shared import write_record  # beside this file; a test loads the rest from elsewhere

    write_record(arguments.out, asdict(found))
    return int(bool(found.failures))


if __name__ == "__main__":
    sys.exit(main())
