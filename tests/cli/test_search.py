"""How `kexue search` shows answers, asks at a prompt, and asks a running server."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from kexue.cli import main
from kexue.cli._answers import AnswerPrinter, format_chance, tsv_line, tsv_lines, wrap_cells
from kexue.cli._verb import Output
from kexue.search import Index
from kexue.search.answers import answer_queries
from kexue.text import Encoder

PROGRAM = "import sys; from kexue.cli import main; sys.exit(main())"
LONG = "退货要多久? 我们在三日天内退款,银行怎么办,你看信用卡账户。" * 30
ROWS = [
    ("订单-2024-0001", "refund money\tsoon\nplease \\ thanks", {"topic": "shop", "tags": ["a", "b"]}),
    ("https://example.com/a/very/long/path/to/a/page/about/lost/parcels.html?version=17", "lost parcel", {"n": 2}),
    ("c", LONG, {"topic": "退货"}),
]


@pytest.fixture
def folder(tiny_model, monkeypatch, tmp_path):
    """An empty folder to work in, with the index faq.kx."""
    for name in ("KEXUE_API_KEY", "KEXUE_API_KEY_READ", "KEXUE_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    ids, texts, metadata = zip(*ROWS, strict=True)
    with Index.create("faq.kx", Encoder(tiny_model, device="cpu")) as index:
        index.add(texts, ids=ids, metadata=metadata)
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    """Run `kexue search`: (exit code, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["search", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def record(run):
    """The answer to one query, as `--json` prints it."""
    return json.loads(run("faq.kx", "lost parcel", "--json")[1])


# In a pipe


def read_tsv(text):
    """Oracle: undo the escapes of a table of TSV."""
    unescaped = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}
    rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]

    def character(match):
        return unescaped.get(match[0]) or chr(int(match[0][2:], 16))

    plain = [[re.sub(r"\\(?:[\\tnr]|u[0-9a-f]{4})", character, field) for field in row] for row in rows]
    return [dict(zip(plain[0], row, strict=True)) for row in plain[1:]]


def test_a_pipe_gets_everything(run):
    code, out, err = run("faq.kx", "lost parcel", "refund", "--show", "topic", "--show", "tags")
    assert code == 0
    assert run("faq.kx", "lost parcel", "refund", "--show", "topic, tags")[1] == out
    assert "2 queries" in err
    rows = read_tsv(out)
    answers = [json.loads(line) for line in run("faq.kx", "lost parcel", "refund", "--json")[1].splitlines()]
    hits = [(answer["query"], hit) for answer in answers for hit in answer["results"]]
    assert [(row["query"], row["id"], row["text"]) for row in rows] == [
        (query, hit["id"], hit["document"]["text"]) for query, hit in hits
    ]
    assert [row["passage"] for row in rows] == [(hit["passage"] or {"text": ""})["text"] for _, hit in hits]
    assert any(row["passage"] and row["passage"] in LONG for row in rows)
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    for row, (_, hit) in zip(rows, hits, strict=True):
        assert float(row["score"]) == pytest.approx(hit["score"], abs=1e-6)
        assert row["percentile"] == row["chance"] == row["probability"] == ""
        data = hit["document"]["metadata"]
        assert row["topic"] == data.get("topic", "")
        assert (json.loads(row["tags"]) if row["tags"] else None) == data.get("tags")


def test_explanations_are_whole_in_a_pipe(run):
    _, out, _ = run("faq.kx", "lost parcel", "-k", 1, "--explain")
    [row] = read_tsv(out)
    hit = json.loads(run("faq.kx", "lost parcel", "-k", 1, "--explain", "--json")[1])["results"][0]
    lines = row["explanation"].splitlines()
    assert len(lines) == len(hit["explanation"]["pairs"]) + 1
    assert f"{hit['explanation']['distance']:.3f}" in lines[-1]


def test_no_hit_and_an_unknown_field_to_show(run):
    code, out, err = run("faq.kx", "lost", "--filter", "topic=none")
    assert code == 0
    assert len(out.splitlines()) == 1
    code, out, err = run("faq.kx", "lost", "dog", "--show", "nope")
    assert err.count("no hit has the field 'nope'") == 1
    assert len(out.splitlines()) == 7


def test_a_line_of_tsv():
    assert tsv_line(["a\tb\\\n", None, 0.1, 3, True, {"x": "退"}]) == 'a\\tb\\\\\\n\t\t0.1\t3\ttrue\t{"x": "退"}'


def test_control_characters_come_back_whole(run, capsys):
    texts = [
        "\x1b[31mred␛",
        "\u202bعربى\u202c",
        "a\u2028b\x85c\x0bd\u200e",
        r"\u001b \x85 \t",
        "\ufeffmark",
        "👩\u200d👩",
    ]
    hits = [{"id": text, "score": 0.5, "document": {"text": text, "metadata": {text: text}}} for text in texts]
    hits = [dict.fromkeys(("percentile", "chance", "probability", "passage", "explanation")) | hit for hit in hits]
    AnswerPrinter(Output(False, 0, True)).print({"query": "q", "results": hits, "warnings": []})
    out = capsys.readouterr().out
    assert [(row["id"], row["text"]) for row in read_tsv(out)] == [(text, text) for text in texts]
    assert len(out.splitlines()) == 1 + len(texts)


# On a terminal


@pytest.fixture
def shown(record, monkeypatch, capsys):
    """Print an answer on a terminal of so many columns: its lines."""

    def shown(width, **changes):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        capsys.readouterr()
        show = changes.pop("show", ())
        AnswerPrinter(Output(False, 0, True), show).print(record | changes)
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()

    return shown


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 160])
def test_scores_and_ids_are_whole_at_every_width(shown, record, width):
    lines = shown(width, show=["topic"])
    assert all(cell_len(line) <= width for line in lines)
    squeezed = re.sub(r"\s", "", "".join(lines))
    for hit in record["results"]:
        assert f"{hit['score']:.3f}" in "".join(lines)
    if lines[0].split() == ["score", "id", "topic", "text"]:  # a table: ids continue below themselves, in their column
        column = slice(lines[0].index("id"), lines[0].index("topic"))
        wide = "".join(line[column].strip() for line in lines[1:] if "…" not in line and line.isascii())
        assert ROWS[1][0] in wide
    else:
        assert ROWS[1][0] in squeezed
    assert "退货" in squeezed
    assert "lostparcel" in squeezed


def test_a_long_text_ends_with_its_length(shown, record):
    whole = [hit | {"passage": None} for hit in record["results"]]
    for width in (60, 120):
        assert any(f"... ({len(LONG):,} characters)" in line for line in shown(width, results=whole))


def test_numbers_of_a_calibrated_index(shown, record):
    chance = {"value": 0.5, "low": 0.25, "high": 0.75}
    hits = [hit | {"percentile": 99.996, "chance": 0.0123, "probability": chance} for hit in record["results"]]
    for width in (50, 120):
        text = "\n".join(shown(width, results=hits))
        assert all(part in text for part in ("1.3%", "0.50 (0.25-0.75)", "chance", "probability"))
        assert "percentile" not in text  # it is common among first hits
    values = tsv_lines(record | {"results": hits})[1].split("\t")
    assert values[4:9] == ["99.996", "0.0123", "0.5", "0.25", "0.75"]


def test_a_weak_answer_says_so_and_passages_are_shown(shown, record):
    text = "\n".join(shown(100, match="weak"))
    assert text.startswith("no good match")
    assert "lost parcel" in text
    passage = {"start": 0, "end": 4, "text": "only this part", "location": "page 3"}
    hits = [hit | {"passage": passage} for hit in record["results"]]
    text = "\n".join(shown(100, results=hits))
    assert text.count("[page 3] only this part") == 3
    assert "characters" not in text


@pytest.mark.parametrize(("chance", "text"), [(0.0, "0.0%"), (0.0001, "0.1%"), (0.0123, "1.3%"), (1.0, "100.0%")])
def test_a_chance_is_never_rounded_down(chance, text):
    assert format_chance(chance) == text


@pytest.mark.parametrize("width", [1, 2, 7, 20, 61])
@pytest.mark.parametrize(
    "text", ["", "one two  three", "a" * 50, "退货要多久？" * 9, "AI 客服：please 等短信（SMS）。", LONG]
)
def test_wrapped_lines_fit_and_lose_nothing(text, width):
    lines = wrap_cells(text, width)
    widest = max((cell_len(character) for character in text), default=0)
    assert all(cell_len(line) <= max(width, widest) for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
    if width >= 7:
        assert not any(line.startswith(tuple("，。？：）")) for line in lines)


# The prompt


def test_answers_of_a_prompt_carry_their_doubts(tiny_model, folder, monkeypatch, capsys):
    with Index.create("many.kx", Encoder(tiny_model, device="cpu")) as index:
        index.add([f"lost parcel {n}" for n in range(60)])
        index.calibrate(n=100)
        index.add([f"new card {n}" for n in range(30)])
        queries = ["lost parcel 7", "xyzzy plugh"]
        expected = answer_queries(index, queries, 2)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(queries)))
    assert main(["search", "many.kx", "-i", "-k", "2", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0]["match"] == "good"
    for answer, wanted in zip(answers, expected, strict=True):
        assert (answer["match"], answer["warnings"]) == (wanted["match"], wanted["warnings"])
        assert any("too old" in sentence for sentence in answer["warnings"])
        assert all(0 < hit["chance"] <= 1 for hit in answer["results"])


def test_lines_of_a_pipe_are_answered_one_by_one(folder):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "search", "faq.kx", "-i", "-k", "1", "--json"],
        input="lost parcel\n\n:k 2\n退货\n", capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(answer["query"], len(answer["results"])) for answer in answers] == [
        ("lost parcel", 1), (":k 2", 1), ("退货", 1),
    ]  # fmt: skip


class Terminal:
    """A process behind a pseudo-terminal."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], stdin=slave, stdout=slave, stderr=slave, close_fds=True,
            start_new_session=True, env=os.environ | {"TERM": "dumb", "COLUMNS": "100"},
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, text, seconds=90):
        """Read until `text` has come since the last call; return what came before it."""
        end = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self.master], [], [], 1)[0]:
                self.text += os.read(self.master, 65536).decode(errors="replace")
        before, _, self.text = self.text.partition(text)
        return before

    def interrupt_until(self, text):
        """Send SIGINT until `text` comes: Python sees one that comes while readline echoes only after the next key."""
        for _ in range(5):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.wait_for(text, seconds=20)
                return
        raise AssertionError(f"{text!r} did not come: {self.text}")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.slow
def test_a_prompt_on_a_terminal(folder):
    terminal = Terminal("search", "faq.kx", "-i")
    try:
        terminal.wait_for("kexue> ")
        terminal.type("lost parcel\n")
        assert "lost parcel" in terminal.wait_for("1 query in").split("lost parcel", 1)[1]
        terminal.wait_for("kexue> ")
        terminal.type(":k 1\n")
        terminal.wait_for("kexue> ")
        terminal.type("refund\n")
        assert len(re.findall(r"0\.\d\d\d", terminal.wait_for("1 query in"))) == 1
        terminal.wait_for("kexue> ")
        terminal.type(":nope\n")
        assert "no command :nope" in terminal.wait_for("kexue> ")
        terminal.type("\n")
        terminal.wait_for("kexue> ")
        terminal.type("half a line")
        terminal.wait_for("half a line")
        terminal.interrupt_until("kexue> ")  # Ctrl-C drops the line
        terminal.type("\x04")  # Ctrl-D ends
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()


def test_an_error_does_not_end_the_prompt(folder, monkeypatch, capsys):
    from kexue.cli import _prompt

    typed = iter(["bad", ":help", "good"])

    def read(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    def answer(query, k):
        if query == "bad":
            raise ValueError("no good")
        print(f"answer to {query}")

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    _prompt.answer_lines(Output(False, 0, False), 3, answer)
    out, err = capsys.readouterr()
    assert "answer to good" in out
    assert "kexue: no good" in err
    assert err.count(":k 5 shows five") == 2


@pytest.mark.parametrize("more", [("a query",), ("--queries", "q.txt")])
def test_a_prompt_takes_no_queries(run, more):
    code, _, err = run("faq.kx", *more, "-i")
    assert code == 2
    assert "-i" in err


# A running server


@pytest.mark.slow
def test_a_server_answers_as_the_index_does(run, folder, start_server, monkeypatch):
    server = start_server(indexes=["faq.kx"], api_keys={"secret": "read"})
    try:
        code, out, err = run("faq", "lost parcel", "--server", server.url)
        assert code == 1
        assert "401" in err
        assert "KEXUE_API_KEY" in err
        monkeypatch.setenv("KEXUE_API_KEY", "secret")
        options = ("-k", 2, "--filter", "topic=shop", "--explain", "--rerank", "wrd", "--json")
        code, out, _ = run("faq.kx", "lost parcel", "refund", "--server", server.url + "/", *options)
        assert code == 0
        here = [json.loads(line) for line in run("faq.kx", "lost parcel", "refund", *options)[1].splitlines()]
        there = [json.loads(line) for line in out.splitlines()]
        assert [list(answer) for answer in there] == [list(answer) for answer in here]
        for ours, theirs in zip(here, there, strict=True):
            assert ours["query"] == theirs["query"]
            assert [set(hit) for hit in theirs["results"]] == [set(hit) for hit in ours["results"]]
            assert [hit["id"] for hit in theirs["results"]] == [hit["id"] for hit in ours["results"]]
            assert [hit["document"] for hit in theirs["results"]] == [hit["document"] for hit in ours["results"]]
            scores = [hit["score"] for hit in ours["results"]]
            assert [hit["score"] for hit in theirs["results"]] == pytest.approx(scores, abs=1e-5)
        code, _, err = run("nope", "lost parcel", "--server", server.url)
        assert code == 1
        assert "404" in err
        assert "no index 'nope'; there are: faq" in err
        code, out, _ = run("faq", "lost", "--server", server.url, "--filter", "nope=1", "--json")
        assert code == 1
        assert "nope" in json.loads(out)["error"]["message"]
    finally:
        server.stop()


@pytest.mark.slow
def test_usage_is_that_of_the_server(run, tiny_model, make_tiny_model, folder, start_server):
    """The prompt for queries is read, too, so it counts; words alone are not encoded."""
    model = make_tiny_model()
    (model / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "refund money "}}))
    with Index.create("prompted.kx", Encoder(model, device="cpu")) as index:
        index.add(["lost parcel"])
    [read] = Encoder(tiny_model, device="cpu").count_tokens(["refund money lost parcel"])
    server = start_server(indexes=["prompted.kx"])
    try:
        for options, tokens in ([(), read], [("--mode", "lexical"), 0], [("--mode", "lexical", "--explain"), 0]):
            for place in ([], ["--server", server.url]):
                answer = json.loads(run("prompted.kx", "lost parcel", "--json", *options, *place)[1])
                assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    finally:
        server.stop()


@pytest.fixture
def fake_server():
    """A server that answers every request alike: `fake_server(status, body)` is its address."""
    running = []

    def fake(status, body):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield fake
    for server in running:
        server.shutdown()
        server.server_close()


HIT = {"id": "a", "score": 0.5, "document": {"text": "t", "metadata": {}}}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, "<html>", "not one of kexue serve"),
        (200, "[1]", "not one of kexue serve"),
        (200, json.dumps({"results": [], "usage": {}}), "not one of kexue serve"),
        (200, json.dumps({"results": [{"id": "a"}], "warnings": []}), "another version"),
        (404, "<html>", "not one of kexue serve"),
        (404, json.dumps({"detail": "Not Found"}), "not one of kexue serve"),
        (429, json.dumps({"error": {"message": "too many"}}), "status 429: too many"),
        (503, json.dumps({"error": {"message": "not ready"}}), "status 503: not ready"),
    ],
)
def test_an_answer_that_is_none(run, fake_server, status, body, said):
    code, out, err = run("faq", "lost", "--server", fake_server(status, body))
    assert code == 1
    assert said in err
    assert out == ""


def test_fields_that_a_server_leaves_out_are_null(run, fake_server):
    body = json.dumps({"results": [HIT], "warnings": ["read this."], "match": None})
    code, out, err = run("faq", "lost", "--server", fake_server(200, body))
    assert code == 0
    assert read_tsv(out)[0] | {"score": ""} == {
        "query": "lost", "rank": "1", "match": "", "score": "", "percentile": "", "chance": "", "probability": "",
        "low": "", "high": "", "id": "a", "text": "t", "passage": "", "explanation": "",
    }  # fmt: skip
    assert "kexue: warning: read this." in err


def test_a_key_that_none_can_be_is_not_shown(run, monkeypatch):
    for key in ("se\ncret", "секрет"):
        monkeypatch.setenv("KEXUE_API_KEY", key)
        code, _, err = run("faq", "lost", "--server", "http://127.0.0.1:9")
        assert code == 1
        assert "KEXUE_API_KEY holds a character" in err
        assert key not in err
        assert "cret" not in err


def test_the_remedy_is_for_what_is_missing(run, fake_server):
    for field, told in (("index", True), ("model", False), (None, False)):
        url = fake_server(404, json.dumps({"error": {"message": "no such thing", "param": field}}))
        code, _, err = run("faq", "lost", "--server", url)
        assert code == 1
        assert "no such thing" in err
        assert ("Name one of its indexes" in err) == told


def test_no_server_is_told(run):
    code, _, err = run("faq", "lost", "--server", "http://127.0.0.1:9")
    assert code == 1
    assert "no server answers at http://127.0.0.1:9" in err
    assert "kexue serve" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--server", "127.0.0.1:8000"), "such as http://127.0.0.1:8000"),
        (("--server", "file:///etc/passwd"), "such as http://127.0.0.1:8000"),
        (("--server", "http://127.0.0.1:none"), "such as http://127.0.0.1:8000"),
        (("--server", "http://[::1"), "such as http://127.0.0.1:8000"),
        (("--server", "http://a..b"), "such as http://127.0.0.1:8000"),
        (("--server", "http://127.0.0.1:9/?x=1"), "such as http://127.0.0.1:8000"),
        (("--server", "http://user:word@127.0.0.1:9"), "KEXUE_API_KEY"),
        (("--server", "http://127.0.0.1:9", "--exact"), "--exact: the server decides this"),
        (("--server", "http://127.0.0.1:9", "--model", "m", "--device", "cpu"), "--model, --device"),
    ],
)
def test_wrong_usage_of_a_server(run, options, said):
    code, _, err = run("faq", "lost", *options)
    assert code == 2
    assert said in re.sub(r"\s+", " ", err)
