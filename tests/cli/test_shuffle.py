"""`kexue shuffle` through its own door."""

import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kexue.cli import main
from kexue.corpus import multiset_digest, permutation_keys
from kexue.corpus.shuffle import plan

pytest.importorskip("pyarrow")

LINES = [b"line %d\n" % i for i in range(1000)]


def expected(seed: int, lines: list[bytes] = LINES) -> bytes:
    return b"".join(lines[i] for i in np.argsort(permutation_keys(seed, 0, len(lines))))


@pytest.fixture
def run(monkeypatch, capsysbinary, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_bytes(b"".join(LINES))

    def run(*arguments):
        capsysbinary.readouterr()
        code = main(["shuffle", *map(str, arguments)])
        captured = capsysbinary.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_file_to_a_file(run, tmp_path):
    code, out, _ = run("in.txt", "-o", "out.txt", "--json", "--seed", 5, "--verify", "--memory", "64M", "--workers", 1)
    report = json.loads(out)
    assert code == 0
    assert (tmp_path / "out.txt").read_bytes() == expected(5)
    assert set(report) == {"records", "bytes", "buckets", "passes", "seconds", "peak_rss", "digest", "seed", "outputs",
                           "resumed"}  # fmt: skip
    assert (report["records"], report["seed"], report["outputs"]) == (1000, 5, ["out.txt"])
    assert report["digest"] == multiset_digest("in.txt")
    _, out, _ = run("in.txt", "-o", "out.txt")
    drawn = int(out.decode().split("seed ")[1].split(",")[0])
    assert (tmp_path / "out.txt").read_bytes() == expected(drawn)


def test_a_plan(run, tmp_path):
    code, out, _ = run("in.txt", "-o", "out.txt", "--dry-run", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"records", "bytes", "buckets", "passes", "memory", "disk_tmp", "disk_out"}
    _, out, _ = run("in.txt", "-o", "out.txt", "--dry-run", "--memory", "2G")
    assert b"about 1,000" in out
    assert b"2.15 GB at most" in out
    assert not (tmp_path / "out.txt").exists()


def test_from_stdin_to_stdout(tmp_path):
    command = [sys.executable, "-m", "kexue.cli", "shuffle", "-", "-o", "-", "--seed", "3", "-n", "10", "-z"]
    command[1:3] = ["-c", "import sys; from kexue.cli import main; sys.exit(main())"]
    lines = [line.replace(b"\n", b"\0") for line in LINES]
    done = subprocess.run(command, input=b"".join(lines), capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout == b"".join(line + b"\0" for line in expected(3, lines).split(b"\0")[:10])
    assert b"10 records" in done.stderr
    assert b"seed 3" in done.stderr


def test_every_option_arrives(run, tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfhead\n" + b"".join(LINES[:500]))
    (tmp_path / "b.csv").write_bytes(b"head\n" + b"".join(LINES[500:]))
    assert run("a.csv", "b.csv", "-o", "out", "--header", 1, "--strip-bom", "--shards", 2, "--seed", 1)[0] == 0
    parts = [(tmp_path / "out" / f"part-0000{i}.csv").read_bytes() for i in range(2)]
    assert all(part.startswith(b"head\n") for part in parts)
    assert b"".join(part[5:] for part in parts) == expected(1)
    assert run("in.txt", "-o", "x.txt", "--shard-bytes", "2K")[0] == 0
    assert all(path.stat().st_size <= 2048 for path in tmp_path.glob("x-*.txt"))
    assert (
        run("in.txt", "-o", "y.txt", "--shard-lines", "300", "--lines-per-record", 2, "--algorithm", "rowwise")[0] == 0
    )
    assert len(list(tmp_path.glob("y-*.txt"))) == 2
    (tmp_path / "same.txt").write_bytes(b"".join(LINES))
    assert run("in.txt", "same.txt", "-o", "both", "--aligned")[0] == 0
    assert (tmp_path / "both" / "in.txt").read_bytes() == (tmp_path / "both" / "same.txt").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"b\na\n"))))
    assert run("-", "-o", "z.txt", "--seed", 1, "--tmp", tmp_path)[0] == 0
    assert (tmp_path / "z.txt").read_bytes() == expected(1, [b"b\n", b"a\n"])


def test_failures(run, tmp_path, monkeypatch):
    code, out, _ = run("absent", "-o", "out", "--json")
    assert (code, json.loads(out)["error"]["type"]) == (1, "DataError")
    assert run("in.txt", "-o", "-", "--json")[0] == 2
    assert run("in.txt")[0] == 2
    assert run("in.txt", "-o", "out", "--algorithm", "other")[0] == 2
    code, _, err = run("in.txt", "-o", "in.txt")
    assert code == 1
    assert b"one of the inputs" in err
    (tmp_path / "large").write_bytes(b"x\n" * 500_000)
    monkeypatch.setattr(plan, "in_memory", lambda _: True)
    code, _, err = run("large", "-o", "out", "--memory", "16M")
    assert code == 1
    assert b"--allow-tmpfs" in err
    assert run("large", "-o", "out", "--memory", "16M", "--allow-tmpfs")[0] == 0


@pytest.mark.parametrize("aligned", [(), ("--aligned",)])
def test_the_folder_in_memory_is_that_of_the_file_a_link_points_to(run, tmp_path, monkeypatch, aligned):
    (tmp_path / "large").write_bytes(b"x\n" * 500_000)
    for name in ("both", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "file").touch()
    (tmp_path / ("both/large" if aligned else "link")).symlink_to(tmp_path / "there" / "file")
    monkeypatch.setattr(plan, "in_memory", lambda folder: folder == tmp_path / "there")
    code, _, err = run("large", "-o", "both" if aligned else "link", "--memory", "16M", *aligned)
    assert code == 1
    assert f"{tmp_path / 'there'} is in memory".encode() in err


def test_the_output_is_verified_unless_no_verify_is_given(run, tmp_path, monkeypatch):
    from kexue.corpus.shuffle import verify

    monkeypatch.setattr(verify, "digest_of", lambda *_: "0" * 32)
    code, _, err = run("in.txt", "--out", "out")
    assert (code, (tmp_path / "out").exists()) == (1, False)
    assert b"does not hold the lines" in err
    assert run("in.txt", "-o", "out", "--verify")[0] == 1
    assert run("in.txt", "--output", "out", "--no-verify", "--seed", 1)[0] == 0
    assert (tmp_path / "out").read_bytes() == expected(1)


def test_what_goes_to_stdout_cannot_be_verified(run):
    code, out, err = run("in.txt", "-o", "-", "--verify")
    assert (code, out) == (2, b"")
    assert b"cannot be read again" in err


def test_interrupted_it_says_so_and_goes_on(tmp_path):
    (tmp_path / "in").write_bytes(b"".join(LINES) * 2000)
    code = "import sys; from kexue.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "shuffle", "in", "-o", "out", "--memory", "16M", "--json"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".kexue-shuffle-*/manifest.json")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert b"run the same command again to continue" in err
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    report = json.loads(done.stdout)
    assert report["resumed"]
    assert report["digest"] == multiset_digest(tmp_path / "in")
    assert (tmp_path / "out").read_bytes() == expected(report["seed"], LINES * 2000)
