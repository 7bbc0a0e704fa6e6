import gzip
import json

import numpy as np
import pytest

from kexue.errors import DataError
from kexue.similarity import load_pairs
from kexue.similarity.pairs import pair_datasets

LINES = "a cat\ta kitten\t1\na cat\ta brick\t0.5\n"
HEADER = "text_a\ttext_b\tlabel\n"


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def assert_two(data):
    assert data.texts_a == ["a cat", "a cat"]
    assert data.texts_b == ["a kitten", "a brick"]
    assert data.labels.tolist() == [1.0, 0.5]
    assert data.labels.dtype == np.float64
    assert len(data) == 2


@pytest.mark.parametrize(
    "name", ["p.tsv", "p.tsv.gz", "p.txt", "p.csv", "p.csv.gz", "p.jsonl", "p.jsonl.gz", "p.ndjson"]
)
@pytest.mark.parametrize("header", [False, True])
def test_formats(tmp_path, name, header):
    rows = [line.split("\t") for line in LINES.splitlines()]
    if "json" in name:
        content = "".join(json.dumps({"text_a": a, "text_b": b, "label": float(y)}) + "\n" for a, b, y in rows)
    elif "csv" in name:
        content = ("text_a,text_b,label\n" if header else "") + "".join(f'"{a}",{b},{y}\n' for a, b, y in rows)
    else:
        content = (HEADER if header else "") + LINES
    data = load_pairs(write(tmp_path / name, content))
    assert_two(data)
    assert (data.name, data.split, data.skipped, data.replaced) == ("p", "", 0, 0)


def test_details_of_tsv(tmp_path):
    # quotes are letters, \r\n and a byte order mark are not; U+2028 does not end a line; blank lines do not count
    content = '\ufeffsays "hi\t"x"\t1\r\n\r\na\u2028b\tc\t-2.5e0\r\nonly two\tfields\r\n1\t2\t3\t4\r\n'
    data = load_pairs(write(tmp_path / "p.tsv", content))
    assert data.texts_a == ['says "hi', "a\u2028b"]
    assert data.texts_b == ['"x"', "c"]
    assert data.labels.tolist() == [1.0, -2.5]
    assert data.skipped == 2


def test_csv_quotes_and_long_lines(tmp_path):
    long = "x" * 1_000_000
    data = load_pairs(write(tmp_path / "p.csv", f'"one, two\nthree","say ""hi""",1\n{long},b,0\n'))
    assert data.texts_a == ["one, two\nthree", long]
    assert data.texts_b[0] == 'say "hi"'


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("id\tq1\tq2\tgold\tnote", ("q1", "q2", "gold")),
        ("id\tsentence2\tsentence1\tscore\tnote", None),
        ("id\tTEXT_B\tText_A\tLabel\tnote", None),
    ],
)
def test_headers(tmp_path, header, columns):
    swapped = columns is None
    body = "7\tb\ta\t1\tx\n8\tb\ta\t0\n" if swapped else "7\ta\tb\t1\tx\n8\ta\tb\t0\n"
    data = load_pairs(write(tmp_path / "p.tsv", f"{header}\n{body}"), columns=columns)
    assert (data.texts_a, data.texts_b, data.labels.tolist(), data.skipped) == (["a"], ["b"], [1.0], 1)


def test_json_columns(tmp_path):
    records = [{"q": "a", "p": "b", "y": True}, {"q": "a"}, {"q": "c", "p": "d", "y": "0.5"}]
    path = write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, records)))
    data = load_pairs(path, columns=("q", "p", "y"))
    assert (data.texts_a, data.labels.tolist(), data.skipped) == (["a", "c"], [1.0, 0.5], 1)


@pytest.mark.parametrize("label", ["x", "", "nan", "inf"])
@pytest.mark.parametrize("name", ["p.tsv", "p.csv"])
def test_a_bad_label_is_named(tmp_path, label, name):
    text = (HEADER + LINES + f"a\tb\t{label}\n").replace("\t", "\t" if name == "p.tsv" else ",")
    with pytest.raises(DataError, match=r"p\....: ?line 4, column 'label'|line 4, column 'label'") as caught:
        load_pairs(write(tmp_path / name, text))
    assert (caught.value.line, caught.value.column) == (4, "label")
    assert caught.value.path == str(tmp_path / name)
    assert repr(label) in str(caught.value)


def test_a_first_line_that_is_neither_header_nor_data(tmp_path):
    with pytest.raises(DataError, match="name its columns") as caught:
        load_pairs(write(tmp_path / "p.tsv", "left\tright\tverdict\n" + LINES))
    assert caught.value.line == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.tsv", "", "no pairs"),
        ("p.tsv", HEADER, "no pairs"),
        ("p.tsv", "just a line\n", "no pairs .1 lines"),
        ("p.jsonl", "[1, 2]\n", "expected an object"),
        ("p.jsonl", '{"text_a": \n', "not JSON"),
        ("p.jsonl", '{"text_a": 3, "text_b": "b", "label": 1}\n', "expected a text, got 3"),
        ("p.csv", 'a,"b,1\n', "malformed"),
        ("p.parquet", "x", "unknown format '.parquet'"),
        ("p.tsv", b"a\tb\t1\n\xff\xfe\tb\t0\n", "not UTF-8"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        load_pairs(path)
    assert caught.value.path == str(path)


def test_damaged_gzip(tmp_path):
    path = write(tmp_path / "p.tsv.gz", LINES * 100)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged"):
        load_pairs(path)
    path.write_bytes(b"\x1f\x8b\x08 no more than a beginning")
    with pytest.raises(DataError, match="damaged"):
        load_pairs(path)


@pytest.mark.parametrize("name", ["p.tsv", "p.csv"])
def test_invalid_utf8_can_be_replaced_and_is_counted(tmp_path, name):
    content = b"a\tb\t1\ncaf\xe9\tb\t0\n".replace(b"\t", b"\t" if name == "p.tsv" else b",")
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match="errors='replace'") as caught:
        load_pairs(path)
    assert caught.value.line == 2
    data = load_pairs(path, errors="replace")
    assert data.texts_a == ["a", "caf\ufffd"]
    assert data.replaced == 1
    with pytest.raises(ValueError, match="'strict' or 'replace'"):
        load_pairs(path, errors="ignore")


def test_missing_columns(tmp_path):
    path = write(tmp_path / "p.tsv", HEADER + LINES)
    with pytest.raises(DataError, match="Columns found: text_a, text_b, label"):
        load_pairs(path, columns=("a", "b", "c"))
    with pytest.raises(ValueError, match="three columns"):
        load_pairs(path, columns="abc")


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name, splits in {
        "pairs_zh/lcqmc": ["train", "valid", "test"],
        "pairs_zh/atec": ["train", "valid"],
        "pairs_en/sick": ["train_part"],
        "pairs_en/odd": ["train", "dev"],
    }.items():
        for split in splits:
            write(tmp_path / name / f"{split}.tsv.gz", HEADER + f"{split}\tb\t1\n")
    write(tmp_path / "pairs_en/sick/LICENSE.txt.asc", "no data")
    monkeypatch.setenv("KEXUE_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "split", "chosen"),
    [
        ("lcqmc", None, "test"),
        ("atec", None, "valid"),
        ("sick", None, "train_part"),
        ("lcqmc", "train", "train"),
        ("odd", "dev", "dev"),
    ],
)
def test_names_and_splits(root, name, split, chosen):
    data = load_pairs(name, split)
    assert (data.name, data.split, data.texts_a) == (name, chosen, [chosen])
    assert load_pairs(next(root.glob(f"*/{name}")), split).texts_a == [chosen]


def test_unknown_names_and_splits(root, monkeypatch):
    with pytest.raises(DataError, match=r"Data sets found: odd, sick, atec, lcqmc"):
        load_pairs("stsb_en")
    with pytest.raises(DataError, match="Choose split from: test, train, valid"):
        load_pairs("lcqmc", "dev")
    with pytest.raises(DataError, match=r"no test or valid.*Choose split from: dev, train"):
        load_pairs("odd")
    with pytest.raises(DataError, match="a file has no splits"):
        load_pairs(root / "pairs_zh/atec/train.tsv.gz", "train")
    monkeypatch.delenv("KEXUE_DATA")
    with pytest.raises(DataError, match="KEXUE_DATA is not set"):
        load_pairs("lcqmc")


@pytest.mark.data
@pytest.mark.parametrize("name", ["stsb_en", "sick", "sts12", "stsb_zh", "lcqmc", "atec", "bq", "afqmc", "pawsx_zh"])
def test_real_sets_load(name):
    data = load_pairs(name)
    assert len(data) > 500
    assert data.skipped == 0
    assert set(np.unique(data.labels)) == {0.0, 1.0} or 0 <= data.labels.min() < data.labels.max() <= 5


def test_pairs_that_are_already_in_memory(tmp_path):
    a, b, labels = ["p", "q", "r"], ["s", "t", "u"], [1, 0, 0.5]
    rows = list(zip(a, b, labels, strict=True))
    path = write(tmp_path / "p.tsv", "".join(f"{x}\t{y}\t{z}\n" for x, y, z in rows))
    forms = [
        (a, b, labels),
        (a, b, np.array(labels)),
        rows,
        iter(rows),
        tuple(rows),  # three rows, not three columns
        [{"sentence1": x, "sentence2": y, "score": z} for x, y, z in rows],
        str(path),
        [path],
        load_pairs(path),
    ]
    for form in forms:
        (data,) = pair_datasets(form)
        assert (data.texts_a, data.texts_b, data.labels.tolist()) == (a, b, labels)
    assert [d.name for d in pair_datasets([path, load_pairs(path)])] == ["p", "p"]
    for wrong in ([], [1, 2], [("a", "b")], [{"x": 1}]):
        with pytest.raises(TypeError, match="pairs must be"):
            pair_datasets(wrong)
    with pytest.raises(TypeError, match="must be texts, got int"):
        pair_datasets([(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    with pytest.raises(ValueError, match="3, 2 and 3 rows"):
        pair_datasets((a, b[:2], labels))
