"""Every verb with every file it is given: missing, a folder, empty; lines, limits and repairs from the outside."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from kexue.cli import main
from kexue.search import Index

HERE = ("index", "build", "faq.jsonl", "--id", "id", "--metadata", "g", "--out")


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """An index, pairs, vectors and a whitening, made once."""
    path = tmp_path_factory.mktemp("files")
    rows = [{"id": str(i), "text": f"text number {i}", "g": i % 3} for i in range(60)]
    (path / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "p.tsv").write_text("".join(f"text {i}\ttext {i + 1}\t{i % 2}\n" for i in range(40)))
    np.save(path / "v.npy", np.random.default_rng(0).normal(size=(50, 32)).astype("f4"))
    (path / "folder").mkdir()
    (path / "a.txt").write_text("a\nb\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("KEXUE_MODEL", str(tiny_model))
        assert main([*HERE, "faq.kx", "-q"]) == 0
        assert main(["whiten", "fit", "v.npy", "--out", "w.safetensors"]) == 0
    return path


@pytest.fixture
def run(folder, tiny_model, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KEXUE_MODEL", str(tiny_model))
    monkeypatch.delenv("KEXUE_DATA", raising=False)

    def run(*arguments):
        capsys.readouterr()
        code = main(list(map(str, arguments)))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# FILE stands for the file in question
VERBS = {
    "index build": "index build FILE.jsonl --out o.kx",
    "index build csv": "index build FILE.csv --out o.kx",
    "index build parquet": "index build FILE.parquet --out o.kx",
    "index build packed": "index build FILE.jsonl.zst --out o.kx",
    "index build --whiten": "index build faq.jsonl --out o.kx --whiten FILE.safetensors",
    "index build --model": "index build faq.jsonl --out o.kx --model FILE",
    "index add": "index add FILE.kx faq.jsonl --id id",
    "index add input": "index add faq.kx FILE.jsonl",
    "index delete": "index delete FILE.kx --id 1",
    "index delete --ids-file": "index delete faq.kx --ids-file FILE.txt",
    "index info": "index info FILE.kx",
    "index compact": "index compact FILE.kx",
    "index backup": "index backup FILE.kx --out backup.kx",
    "index restore": "index restore FILE.kx --out restored.kx",
    "index copy": "index copy FILE.kx copy.kx",
    "index calibrate": "index calibrate FILE.kx",
    "index calibrate --pairs": "index calibrate faq.kx --pairs FILE.tsv",
    "search": "search FILE.kx query",
    "search --queries": "search faq.kx --queries FILE.txt",
    "search --model": "search faq.kx query --model FILE",
    "search --cross-encoder": "search faq.kx query --rerank cross --cross-encoder FILE",
    "serve": "serve FILE.kx --port 1",
    "serve --api-key-file": "serve faq.kx --api-key-file FILE.keys",
    "compare": "compare a b --index FILE.kx",
    "evaluate": "evaluate FILE.tsv",
    "evaluate packed": "evaluate FILE.jsonl.gz",
    "evaluate --whiten": "evaluate p.tsv --whiten FILE.safetensors",
    "hubness": "hubness FILE.npy",
    "hubness of an index": "hubness FILE.kx",
    "summarize": "summarize FILE.txt",
    "whiten fit": "whiten fit FILE.npy --out o.safetensors",
    "whiten fit of texts": "whiten fit FILE.jsonl --out o.safetensors",
    "whiten apply": "whiten apply FILE.safetensors v.npy --out o.npy",
    "whiten apply to": "whiten apply w.safetensors FILE.npy --out o.npy",
    "whiten tune": "whiten tune FILE.tsv --out o.safetensors",
    "whiten tune --fit": "whiten tune p.tsv --fit FILE.jsonl --out o.safetensors",
    "whiten export": "whiten export FILE.safetensors auto --out exported",
    "whiten export of": "whiten export w.safetensors FILE --out exported",
    "shuffle": "shuffle FILE.txt -o shuffled.txt",
    "shuffle --aligned": "shuffle a.txt FILE.txt -o both --aligned",
    "cluster embed": "cluster embed FILE.jsonl --out vectors",
    "cluster index": "cluster index FILE.jsonl --out o.kx",
    "cluster shuffle": "cluster shuffle FILE.txt --out shuffled.txt",
    "projector on": "projector on --config FILE.toml",
    "projector bridge": "projector bridge --config FILE.toml",
    "reproduce --data": "reproduce whitening --budget smoke --data FILE",
}
FINE = {("shuffle", "empty"), ("cluster shuffle", "empty"), ("reproduce --data", "folder")}  # no mistake at all
NEEDS_RAY = {"cluster embed", "cluster index", "cluster shuffle"}


@pytest.mark.parametrize(
    ("verb", "state"), [(v, s) for v in VERBS for s in ("missing", "folder", "empty") if (v, s) not in FINE]
)
def test_a_file_that_is_none_is_named_with_a_remedy(run, folder, verb, state, monkeypatch):
    if verb in NEEDS_RAY:
        pytest.importorskip("ray")
        from kexue.cluster import build, embed

        class Idle:
            def __init__(self, _): ...
            def __enter__(self):
                return self

            def __exit__(self, *_): ...

        monkeypatch.setattr(embed, "RaySession", Idle)  # nothing is to be sent anywhere
        monkeypatch.setattr(build, "RaySession", Idle)
    [word] = [word for word in VERBS[verb].split() if word.startswith("FILE")]
    path = folder / word.replace("FILE", f"is-{state}")
    if state == "folder":
        path.mkdir(exist_ok=True)
    elif state == "empty":
        path.touch()
    code, out, err = run(*VERBS[verb].replace(word, path.name).split(), "--json")
    error = json.loads(out)["error"]  # and nothing else
    assert code in (1, 2)
    assert error["message"]
    assert error["remedy"], error
    assert "Traceback" not in err
    if state == "missing":
        assert path.name in error["message"]
    code, _, err = run(*VERBS[verb].replace(word, path.name).split())
    assert code in (1, 2)
    assert err


def test_ids_are_the_lines_of_a_file_as_they_are(run, folder, monkeypatch):
    ids = [
        "plain",
        "line\u2028separator",
        "next\x85line",
        "form\x0cfeed",
        "\u3000wide space",
        " leading",
        "file\x1cone",
    ]
    rows = [{"id": name, "text": f"text of {i}"} for i, name in enumerate([*ids, "stays", "line", "separator"])]
    Path("ids.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("index", "build", "ids.jsonl", "--id", "id", "--out", "ids.kx", "-q")[0] == 0
    Path("ids.txt").write_bytes(("\ufeff" + "\r\n".join(ids[:4]) + "\r\n\r\n").encode())
    code, out, _ = run("index", "delete", "ids.kx", "--ids-file", "ids.txt", "--json")
    assert (code, json.loads(out)["deleted"], json.loads(out)["missing"]) == (0, 4, [])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(ids[4:]).encode())))
    code, out, _ = run("index", "delete", "ids.kx", "--ids-file", "-", "--json")
    assert json.loads(out)["deleted"] == 3
    with Index.open("ids.kx", readonly=True) as index:
        assert len(index) == 3
        assert len(index.get(["stays", "line", "separator"])) == 3


@pytest.mark.parametrize("door", ["--queries", "stdin"])
def test_queries_are_the_lines_of_a_file(run, monkeypatch, door):
    queries = ["text\u2028number", "text\x0cnumber", "text\x85number"]
    data = ("\ufeff" + "\r\n".join(queries)).encode()
    Path("q.txt").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    code, out, _ = run("search", "faq.kx", *(["--queries", "q.txt"] if door == "--queries" else ["-"]), "--json")
    assert code == 0
    assert [json.loads(line)["query"] for line in out.split("\n")[:-1]] == queries
    bad = b"fine\nb\xffd\n"
    Path("q.txt").write_bytes(bad)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bad)))
    code, out, _ = run("search", "faq.kx", *(["--queries", "q.txt"] if door == "--queries" else ["-"]), "--json")
    error = json.loads(out)["error"]
    assert (code, error["line"], error["column"]) == (1, 2, 2)
    assert error["path"] == ("q.txt" if door == "--queries" else "-")


@pytest.mark.parametrize("bad", [b"\xff", b"a\0b", "中文".encode("gb18030") + b"\xff", "中".encode("utf-16") + b"\xd8"])
def test_remedies_name_no_option_that_the_verb_lacks(run, tmp_path, monkeypatch, bad):
    (tmp_path / "q.txt").write_bytes(b"fine\n" * (bad[:2] != b"\xff\xfe") + bad)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "q.txt").read_bytes())))
    for command in (["generate", "-"], ["search", "faq.kx", "--queries", str(tmp_path / "q.txt")]):
        code, _, err = run(*command)
        assert code == 1
        assert "--" not in err, err
        assert "errors=" not in err


RECORDS = {
    "index build": "index build half.jsonl --text text --out half.kx --overwrite",
    "index add": "index add faq.kx half.jsonl --text text --id=",
    "summarize": "summarize half.jsonl --text text -k 2",
    "whiten fit": "whiten fit half.jsonl --text text --dims 2 --out o.safetensors",
    "whiten tune --fit": "whiten tune p.tsv --fit half.jsonl --text text --out o.safetensors",
    "evaluate": "evaluate half-pairs.jsonl --bootstrap 10",
    "whiten tune": "whiten tune half-pairs.jsonl --out o.safetensors",
    "index calibrate": "index calibrate faq.kx --pairs half-pairs.jsonl --sample 50 --precision 0.2",
}


@pytest.mark.parametrize("verb", RECORDS)
def test_every_verb_that_reads_texts_can_repair_and_bound_them(run, folder, verb):
    words = ["dog", "cat", "guitar", "music", "red house", "blue water", "refund", "bank card", "old woman", "new file"]
    rows = [{"text": f"{word}\ud83d {i}"} for i, word in enumerate(words)]
    Path("half.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        {"text_a": f"{word}\ud83d {i}", "text_b": word if i % 2 else words[i // 2 % 10], "label": i % 2}
        for i, word in enumerate(words * 3)
    ]
    Path("half-pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    code, out, _ = run(*RECORDS[verb].split(), "--json")
    error = json.loads(out)["error"]
    assert (code, error["line"]) == (1, 1)
    assert "--encoding-errors replace" in error["remedy"]
    code, out, err = run(*RECORDS[verb].split(), "--encoding-errors", "replace", "--json")
    assert code == 0, (out, err)
    code, out, _ = run(*RECORDS[verb].split(), "--max-bytes", "8", "--json")
    error = json.loads(out)["error"]
    assert (code, error["line"]) == (1, 1)
    assert "longer than 8 bytes" in error["message"]
    assert "--max-bytes" in error["remedy"]


def test_an_end_of_file_is_bad_data_and_not_an_interruption(run, monkeypatch):
    from kexue.corpus import vectors

    def ends(*_, **__):
        raise EOFError("No data left in file")

    monkeypatch.setattr(vectors, "read_vectors", ends)
    code, out, err = run("hubness", "v.npy", "--json")
    assert code == 1
    assert json.loads(out)["error"]["remedy"]
    assert "interrupted" not in err


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        (("hubness", "v.npy"), False),
        (("whiten", "fit", "v.npy", "--out", "i.safetensors"), False),
        (("index", "build", "faq.jsonl", "--out", "i.kx"), True),
        (("index", "build", "faq.jsonl", "--out", "i.kx", "--no-resume"), False),
    ],
)
def test_only_a_verb_that_continues_says_so_when_interrupted(run, monkeypatch, command, goes_on):
    def stop(*_args, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("kexue.corpus.vectors.read_vectors", stop)
    monkeypatch.setattr("kexue.cli._options.load_encoder", stop)
    code, out, err = run(*command)
    assert (code, out) == (130, "")
    assert ("again to continue" in err, "kexue: interrupted" in err) == (goes_on, True)


@pytest.mark.parametrize(("answer", "code", "left"), [("", 2, 60), ("n\n", 1, 60), ("\n", 1, 60), ("y\n", 0, 40)])
def test_deleting_by_filter_asks_and_takes_silence_for_no(run, folder, monkeypatch, answer, code, left):
    assert run(*HERE, "asked.kx", "--overwrite", "-q")[0] == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    said = run("index", "delete", "asked.kx", "--filter", "g=1")
    assert said[0] == code
    assert "interrupted" not in said[2]
    assert ("--yes" in said[2]) == (code == 2)
    with Index.open("asked.kx", readonly=True) as index:
        assert len(index) == left


def test_too_little_memory_is_an_error_and_not_a_traceback(run, monkeypatch):
    from kexue.corpus import vectors

    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: tried to allocate 8 TB"),
    ):

        def large(*_, error=error, **__):
            raise error

        monkeypatch.setattr(vectors, "read_vectors", large)
        code, out, _ = run("hubness", "v.npy", "--json")
        assert code == 1
        assert json.loads(out)["error"]["message"] == "not enough memory."


def test_all_files_of_vectors_are_fitted(run):
    values = np.load("v.npy")
    np.save("first.npy", values[:20])
    np.save("second.npy", values[20:])
    code, out, _ = run("whiten", "fit", "first.npy", "second.npy", "--out", "o.safetensors", "--json")
    assert (code, json.loads(out)["n"]) == (0, 50)
    code, _, err = run("whiten", "fit", "first.npy", "faq.jsonl", "--out", "o.safetensors")
    assert code == 2
    assert "not both" in err


def test_a_whitening_never_replaces_what_it_reads(run):
    before = {name: Path(name).read_bytes() for name in ("v.npy", "faq.jsonl")}
    for command in (
        ("fit", "v.npy", "--out", "v.npy"),
        ("apply", "w.safetensors", "v.npy", "--out", "v.npy"),
        ("tune", "faq.jsonl", "--out", "faq.jsonl"),
    ):
        code, _, err = run("whiten", *command)
        assert (code, "would replace an input" in err) == (1, True)
    assert before == {name: Path(name).read_bytes() for name in before}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_what_is_written_obeys_the_umask_and_keeps_its_mode(run, folder, tiny_model, umask, tmp_path):
    before = os.umask(umask)
    try:
        out = tmp_path / "w.safetensors"
        assert run("whiten", "fit", "v.npy", "--out", out)[0] == 0
        assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~umask
        out.chmod(0o640)
        assert run("whiten", "fit", "v.npy", "--out", out)[0] == 0
        assert stat.S_IMODE(out.stat().st_mode) == 0o640
        exported = tmp_path / "exported"
        assert run("whiten", "export", out, tiny_model, "--out", exported)[0] == 0
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in [exported, *exported.rglob("*")] if path.is_dir()}
    assert modes == {0o777 & ~umask}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in exported.rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


DEEP = "[" * 100_000 + "]" * 100_000
CONFIGS = [
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
]


@pytest.mark.parametrize("content", [DEEP, "{", b'{"a": "\xff"}', "5", "null", "[5]"], ids=lambda c: str(c)[:8])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_folder_with_json_that_makes_no_sense_is_an_error_with_a_remedy(
    run, tiny_model, tmp_path, name, content
):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in (
        ("index", "build", "faq.jsonl", "--id", "id", "--out", tmp_path / "o.kx", "--model", model),
        ("whiten", "export", "w.safetensors", model, "--out", tmp_path / "exported"),
    ):
        code, out, err = run(*command, "--json")
        assert "Traceback" not in err
        error = json.loads(out)["error"]
        assert code == 1
        assert name in error["message"]
        assert error["remedy"]
        assert not (tmp_path / "o.kx").exists()
