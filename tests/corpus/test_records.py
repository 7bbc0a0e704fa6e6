"""read_records against the bytes it was given: every format says the same, and every mistake says where it is."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from kexue.corpus import Record, parse_scalar, read_records
from kexue.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = [
    {"id": 1, "text": "How long, do returns take?", "lang": "en", "year": 2024},
    {"id": 2, "text": '退货 "要" 多久\nsecond line', "lang": "zh", "year": 2023},
    {"id": 3, "text": "naïve café \u2028 end", "lang": "fr", "year": 2022},
]


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    kind = path.suffix
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_table_format_gives_the_same_records(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"faq.{kind}"
    write_table(path, ROWS)
    records = list(read_records(path, id="id", metadata=["lang", "year"]))
    assert [(r.id, r.text, r.metadata) for r in records] == [
        (str(row["id"]), row["text"], {"lang": row["lang"], "year": row["year"]}) for row in ROWS
    ]
    first = {"csv": [2, 3, 5], "tsv": [2, 3, 5], "jsonl": [1, 2, 3], "parquet": [1, 2, 3]}[kind]
    assert [r.line for r in records] == first, "the second row spans two lines of CSV"
    assert {r.path for r in records} == {str(path)}


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst", ".lz4"])
def test_compressed_files_read_like_plain_ones(
    tmp_path: Path, compress: Callable[[bytes, str], bytes], ending: str
) -> None:
    plain = "".join(f"line {i} é\n" for i in range(5000)).encode()
    (tmp_path / "a.txt").write_bytes(plain)
    packed = tmp_path / f"a.TXT{ending}"
    packed.write_bytes(compress(plain, ending))
    want = [(r.text, r.line) for r in read_records(tmp_path / "a.txt")]
    assert [(r.text, r.line) for r in read_records(packed)] == want
    assert len(want) == 5000
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"damaged or cut short|cannot be read"):
        list(read_records(packed))


def test_text_lines_keep_what_they_say_and_skip_what_is_blank(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbffirst\r\n\r\n  \t\n  kept as it is \nlone\rreturn\nlast without end")
    records = read_records(path)
    assert [(r.text, r.line, r.id) for r in records] == [
        ("first", 1, None),
        ("  kept as it is ", 4, None),
        ("lone\rreturn", 5, None),
        ("last without end", 6, None),
    ]
    assert records.blank == 2


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r")), min_size=1))
def test_text_lines_are_the_lines_of_the_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_text("\n".join(["\ufeffx", *texts]), encoding="utf-8")
    assert [r.text for r in read_records(path)] == ["x", *(t for t in texts if t and not t.isspace())]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))] * 2),
        min_size=1,
        max_size=5,
    )
)
def test_csv_gives_back_what_the_csv_module_wrote(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("text", "note"), *((f"t{t}", n) for t, n in rows)])
    path.write_bytes(buffer.getvalue().encode())
    found = [(r.text, r.metadata["note"]) for r in read_records(path, metadata=["note"], types={"note": "text"})]
    assert found == [(f"t{t}", n or None) for t, n in rows]


def test_folder_is_one_document_a_file(tmp_path: Path) -> None:
    for name, content in {
        "b.txt": "bee\nsecond\n",
        "a/deep/x.md": "# deep",
        "a.rst": "rest",
        ".hidden.txt": "no",
        ".git/config.txt": "no",
        "picture.png": "\x89PNG",
        "empty.txt": " \n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    records = read_records(tmp_path)
    assert [(r.id, r.text) for r in records] == [
        ("a.rst", "rest"),
        ("a/deep/x.md", "# deep"),
        ("b.txt", "bee\nsecond\n"),
    ]
    assert records.blank == 1
    assert len(list(read_records(tmp_path, format="txt"))) == 4, "format='txt' takes every file that is not hidden"


def test_several_inputs_come_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n')
    assert [r.text for r in read_records([tmp_path / "b.jsonl", str(tmp_path / "a.txt")])] == ["two", "one"]


def test_standard_input_is_lines_unless_a_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    feed(b"one\ntwo\n")
    assert [r.text for r in read_records("-")] == ["one", "two"]
    feed(b'{"text": "three"}\n')
    assert [(r.text, r.path) for r in read_records("-", format="jsonl")] == [("three", "-")]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["only"], "only"),
        (["id", "Question"], "Question"),
        (["title", "text"], "text"),
        (["title", "content"], "content"),
        (["sentence", "title"], "sentence"),
    ],
)
def test_the_text_column_is_found_by_its_name(tmp_path: Path, columns: list[str], chosen: str) -> None:
    for kind in ("csv", "jsonl", "parquet"):
        path = tmp_path / f"a.{kind}"
        write_table(path, [{name: f"the {name}" for name in columns}])
        assert next(read_records(path)).text == f"the {chosen}"


def test_csv_metadata_are_numbers_where_they_look_like_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,a,b,c,d,e\nx,007,3.50,-12,,true\n")
    assert next(read_records(path, metadata=list("abcde"))).metadata == {
        "a": "007", "b": 3.5, "c": -12, "d": None, "e": True
    }  # fmt: skip


@settings(deadline=None)
@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.booleans())
def test_parse_scalar_never_changes_a_number(value: object) -> None:
    read = parse_scalar(str(value))
    if not isinstance(read, str):
        expected = value if isinstance(value, bool) else json.loads(str(value))
        assert (type(read), read) == (type(expected), expected)


def test_parquet_values_become_json(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    when = datetime.datetime(2024, 5, 1, 12, 30)
    table = pa.table(
        {
            "text": pa.array(["a", "b"]).dictionary_encode(),
            "when": [when, None],
            "price": pa.array([1, 2], pa.decimal128(5, 2)),
            "share": [float("nan"), 0.5],
            "tags": [["x"], []],
        }
    )
    pq.write_table(table, path)
    first, second = read_records(path, metadata=["when", "price", "share", "tags"])
    assert first.metadata == {"when": "2024-05-01T12:30:00", "price": 1, "share": None, "tags": ["x"]}
    assert second.metadata == {"when": None, "price": 2, "share": 0.5, "tags": []}


def test_a_line_of_a_megabyte_is_one_text(tmp_path: Path) -> None:
    long = "long text " * 100_000
    for kind in ("csv", "jsonl", "parquet"):
        write_table(tmp_path / f"a.{kind}", [{"text": long}])
        assert next(read_records(tmp_path / f"a.{kind}")).text == long
    (tmp_path / "a.txt").write_text(long)
    assert next(read_records(tmp_path / "a.txt")).text == long


def test_files_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            buffer[:10] = b"ten bytes\n"
            return 10

    class Stdin:
        buffer = io.BufferedReader(Endless())

    monkeypatch.setattr(sys, "stdin", Stdin())
    records = read_records("-", encoding="utf-8")
    assert [next(records).text for _ in range(3)] == ["ten bytes"] * 3


MISTAKES: dict[str, tuple[str, bytes, dict[str, object], dict[str, object], str]] = {
    # name of the case: file, content, arguments, what the error tells, words it says
    "empty": ("a.csv", b"", {}, {}, "the file has no text"),
    "blank lines": ("a.txt", b"\n \n", {}, {}, "the file has no text"),
    "header only": ("a.csv", b"text\n", {}, {}, "the file has no text"),
    "wrong column": ("a.csv", b"a,b\n1,2\n", {"text": "question"}, {"column": "question"}, "There are: a, b"),
    "wrong id column": ("a.csv", b"text,b\n1,2\n", {"id": "nr"}, {"column": "nr"}, "There are: text, b"),
    "wrong metadata": ("a.csv", b"text,b\n1,2\n", {"metadata": ["c"]}, {"column": "c"}, "There are: text, b"),
    "no obvious column": ("a.csv", b"a,b\n1,2\n", {}, {}, "which column holds the text? There are: a, b"),
    "double column": ("a.csv", b"text,text\n1,2\n", {}, {"column": "text"}, "two columns"),
    "short row": ("a.csv", b'text,b\n"x\ny",1\nz\n', {}, {"line": 4}, "1 fields, the header 2"),
    "long row": ("a.tsv", b"text\tb\nx\t1\t2\n", {}, {"line": 2}, "3 fields, the header 2"),
    "open quote": ("a.csv", b'text,b\nx,1\n"y,2\nz,3\n', {}, {"line": 3}, "begins here"),
    "empty text": ("a.csv", b"text,b\n ,1\n", {}, {"line": 2, "column": "text"}, "empty"),
    "bad UTF-8": ("a.txt", b"fine\nab\xffcd\n", {}, {"line": 2, "column": 3}, "errors='replace'"),
    "UTF-16 cut": ("a.txt", "hello".encode("utf-16")[:-1], {}, {}, "not UTF-16: truncated data"),
    "NUL": ("a.txt", b"a\0b\n", {}, {"line": 1, "column": 2}, "NUL"),
    "half surrogate": ("a.jsonl", b'{"text": "a\\ud800"}\n', {}, {"line": 1, "column": "text"}, "surrogate"),
    "bad JSON": ("a.jsonl", b'{"text": "a"}\n{"text": "b",\n', {}, {"line": 2, "column": 14}, "not JSON"),
    "JSON array": ("a.jsonl", b'[{"text": "a"}]\n', {}, {"line": 1}, "an array"),
    "JSON NaN": ("a.jsonl", b'{"text": "a", "x": NaN}\n', {}, {"line": 1}, "NaN"),
    "JSON number": ("a.jsonl", b'{"text": 5}\n', {}, {"line": 1, "column": "text"}, "must be a string, got 5"),
    "JSON null": ("a.jsonl", b'{"text": null}\n', {}, {"line": 1, "column": "text"}, "empty"),
    "JSON field gone": ("a.jsonl", b'{"text": "a"}\n{"note": "b"}\n', {}, {"line": 2, "column": "text"}, "note"),
    "JSON id": ("a.jsonl", b'{"text": "a", "id": 1.5}\n', {"id": "id"}, {"line": 1, "column": "id"}, "1.5"),
    "JSON metadata": ("a.jsonl", b'{"text": "a"}\n', {"metadata": ["x"]}, {"column": "x"}, "There are: text"),
    "not Parquet": ("a.parquet", b"PAR1 no", {}, {}, "Parquet"),
    "packed Parquet": ("a.parquet.gz", gzip.compress(b"PAR1"), {}, {}, "plain file"),
    "columns of lines": ("a.txt", b"a\n", {"text": "x"}, {}, "has no columns"),
    "unknown ending": ("a.doc", b"a\n", {}, {}, "--format"),
    "not gzip": ("a.txt.gz", b"\x1f\x8b\x08plain", {}, {}, "cannot be read|damaged"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_say_where_they_are(tmp_path: Path, case: str) -> None:
    name, content, options, told, words = MISTAKES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=words.replace("?", r"\?")) as caught:
        list(read_records(path, **options))  # type: ignore[arg-type]
    error = caught.value
    assert error.path == str(path)
    assert {"line": error.line, "column": error.column} == {"line": None, "column": None, **told}


def test_missing_paths_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(DataError, match="no such file") as caught:
        read_records([tmp_path / "a.txt", tmp_path / "b.txt"])
    assert caught.value.path == str(tmp_path / "b.txt")
    with pytest.raises(DataError, match="no input"):
        read_records([])


def test_folders_without_texts_say_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no documents.*It is empty"):
        read_records(tmp_path)
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=r"It holds \.csv files"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda p: read_records(p, format="xml"), ValueError),
        (lambda p: read_records(p, errors="ignore"), ValueError),
        (lambda p: read_records(p, metadata="lang"), TypeError),
    ],
)
def test_wrong_arguments(tmp_path: Path, call: Callable[[Path], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        call(tmp_path)


def test_replaced_characters_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"ab\xff\xfecd\nfine \xef\xbf\xbd\nn\0l\n\xe9\n")
    records = read_records(path, errors="replace")
    assert [r.text for r in records] == ["ab\ufffd\ufffdcd", "fine \ufffd", "n\ufffdl", "\ufffd"]
    assert records.replaced == 4, "the U+FFFD that was there is no repair"


def test_malformed_parquet_strings_meet_the_same_rule(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    raw = pa.array([b"ab\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": raw}), path)
    with pytest.raises(DataError, match="0xff"):
        list(read_records(path))
    records = read_records(path, errors="replace")
    assert next(records) == Record(None, "ab\ufffd", {}, str(path), 1)
    assert records.replaced == 1


def test_a_parquet_file_with_two_text_columns_of_one_name_is_refused(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "t.pq")
    with pytest.raises(DataError, match="two columns are called 'text'"):
        list(read_records(tmp_path / "t.pq"))
