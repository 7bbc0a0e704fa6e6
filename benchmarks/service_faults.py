"""Kill a server that documents are sent to, at random moments, and see what is left.

    python benchmarks/service_faults.py MODEL [--kills 100] [--seed 0] [--quick] [--out FILE]

`kexue serve` listens on an index of MODEL, the folder of an encoder or a name such as ``auto``. A client adds and
replaces documents and deletes some; the server is killed with SIGKILL and started again. What was answered with 200
must then be there, over HTTP and in the file, and of the one request under way all or nothing. The file is the same
for all kills.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kexue.search import Index
from kexue.text import Encoder

NAME = "faults"
IDS = 400


@dataclass(frozen=True)
class Faults:
    """What was seen: kills, documents acknowledged and lost, seconds until ready, and failures in words."""

    kills: int
    calls: int
    acknowledged: int
    lost: int
    documents: int
    unacknowledged_calls_kept: int
    slowest_start: float
    seconds: float
    failures: list[str]


def ask(url: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    """The JSON of an answer; an error of urllib's where there is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@contextmanager
def server(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`kexue serve` in a process of its own, once it is ready; and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "import sys; from kexue.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", *arguments, "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            for _ in range(1200):
                try:
                    ask(f"{url}/ready")
                    break
                except OSError:
                    if process.poll() is not None:
                        assert process.stderr is not None
                        raise RuntimeError(process.stderr.read().decode()) from None
                    time.sleep(0.05)
            else:
                raise RuntimeError("the server did not become ready within a minute")
            yield process, url
        finally:
            process.kill()


def write(url: str, draw: random.Random, events: list[dict[str, Any]]) -> None:
    """Add, replace and delete until the server is gone; an event is "done" when the answer has come."""
    while True:
        ids = [str(n) for n in draw.sample(range(IDS), draw.randint(1, 20))]
        event: dict[str, Any] = {"done": False}
        if draw.random() < 0.15:
            event["delete"], body, method = ids, {"ids": ids}, "DELETE"
        else:
            event["add"] = {one: f"{one} is {draw.random()} of many " + "words " * draw.randrange(40) for one in ids}
            body, method = {"documents": [{"id": one, "text": text} for one, text in event["add"].items()]}, "POST"
        events.append(event)
        try:
            ask(f"{url}/v1/indexes/{NAME}/documents", body, method)
        except urllib.error.HTTPError as error:
            event["refused"] = f"{error.code} {error.read()[:200]!r}"
            return
        except (OSError, ValueError, EOFError):  # the server is gone
            return
        except Exception as error:  # half an answer
            event["refused"] = repr(error) if type(error).__module__ != "http.client" else ""
            return
        event["done"] = True


def apply(state: dict[str, str], event: dict[str, Any]) -> dict[str, str]:
    """The documents after a request."""
    if "delete" in event:
        return {name: text for name, text in state.items() if name not in event["delete"]}
    return {**state, **event["add"]}


def read(path: Path) -> dict[str, str]:
    """The documents in the file."""
    with Index.open(path, readonly=True) as index:
        return {document.id: document.text for document in index.get([str(n) for n in range(IDS)])}


def run(kills: int, model: str, folder: Path, seed: int = 0) -> Faults:
    """Kill `kills` servers on one index of `model`."""
    begin, draw, path = time.perf_counter(), random.Random(seed), folder / f"{NAME}.kx"
    state = {"0": "The first text names the encoder."}
    with Index.create(path, Encoder(model)) as index:
        index.add(state.values(), ids=state)
    calls = acknowledged = lost = kept = 0
    slowest = 0.0
    failures: list[str] = []
    for kill in range(kills + 1):  # the last start only looks
        start = time.perf_counter()
        with server(str(path)) as (process, url):
            slowest = max(slowest, time.perf_counter() - start)
            [count] = [one["documents"] for one in ask(f"{url}/v1/indexes")["indexes"]]
            if count != len(state):
                failures.append(f"start {kill}: the server says {count} documents, the file holds {len(state)}")
            if state:
                name = draw.choice(sorted(state))
                hits = ask(f"{url}/v1/search", {"query": state[name], "top_k": 1000})["results"]
                if [hit["document"]["text"] for hit in hits if hit["id"] == name] != [state[name]]:
                    failures.append(f"start {kill}: search does not find {name}")
            if kill == kills:
                break
            events: list[dict[str, Any]] = []
            client = threading.Thread(target=write, args=(url, draw, events))
            client.start()
            time.sleep(random.Random(f"{seed} {kill}").uniform(0, 1))
            process.send_signal(signal.SIGKILL)
            process.wait()
            client.join()
        for event in events[:-1]:
            state = apply(state, event)
        last = events[-1]
        if last.get("refused"):
            failures.append(f"kill {kill}: {last['refused']}")
        if last["done"]:
            state = apply(state, last)
        calls += sum(event["done"] for event in events)
        acknowledged += sum(len(event.get("add", ())) for event in events if event["done"])
        after, found = apply(state, last), read(path)
        if found not in (state, after):
            missing = [name for name, text in state.items() if found.get(name) not in (text, after.get(name))]
            lost += len(missing)
            failures.append(f"kill {kill}: {len(missing)} documents lost, {len(found)} of {len(state)} there")
        kept += found == after and found != state
        state = found
    seconds = time.perf_counter() - begin
    return Faults(kills, calls, acknowledged, lost, len(state), kept, slowest, seconds, failures)


def main() -> int:
    """Run, print, and return 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of an encoder, or auto")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="five kills")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(5 if arguments.quick else arguments.kills, arguments.model, Path(folder), arguments.seed)
    print(f"{found.kills} kills in {found.seconds:.0f} s; a server was ready within {found.slowest_start:.1f} s")
    print(f"{found.calls} requests acknowledged, with {found.acknowledged} documents")
    print(f"{found.unacknowledged_calls_kept} requests had been done in full, but could not be answered any more")
    print(f"{found.lost} documents lost, {found.documents} left")
    print("\n".join(found.failures) or "no failures")
    from _shared import write_record  # beside this file; a test loads the rest from elsewhere

    write_record(arguments.out, asdict(found))
    return int(bool(found.failures))


if __name__ == "__main__":
    sys.exit(main())
