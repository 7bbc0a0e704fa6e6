"""What every reader of files shares: where lines end, what separates fields, which bytes are text, how much is read."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kexue._files import explain
from kexue.corpus import read_records
from kexue.corpus.decoding import read_lines
from kexue.corpus.vectors import read_vectors, vector_chunks
from kexue.errors import DataError
from kexue.similarity import load_pairs

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

# ---- lines -----------------------------------------------------------------------------------------------------------


def of_records(path: Path) -> list[str]:
    return [record.text for record in read_records(path)]


def of_pairs(path: Path) -> list[str]:
    return load_pairs(path).texts_a


def json_rows(texts: list[str], end: str, **more: object) -> str:
    return "".join(json.dumps({"text": text, **more}, ensure_ascii=False) + end for text in texts)


def pair_rows(texts: list[str], end: str) -> str:
    rows = [{"text_a": text, "text_b": "b", "label": 1} for text in texts]
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


# of each reader of lines: ending, how texts are written with a given end of line, how they are read
READERS: dict[str, tuple[str, Callable[[list[str], str], str], Callable[[Path], list[str]]]] = {
    "txt": (".txt", lambda texts, end: "".join(text + end for text in texts), of_records),
    "csv": (".csv", lambda texts, end: "".join(text + end for text in ["text", *texts]), of_records),
    "tsv": (".tsv", lambda texts, end: "".join(f"{text}\tb{end}" for text in ["text", *texts]), of_records),
    "jsonl": (".jsonl", json_rows, of_records),
    "pairs tsv": (".tsv", lambda texts, end: "".join(f"{text}\tb\t1{end}" for text in texts), of_pairs),
    "pairs csv": (".csv", lambda texts, end: "".join(f"{text},b,1{end}" for text in texts), of_pairs),
    "pairs jsonl": (".jsonl", pair_rows, of_pairs),
    "side file": (".txt", lambda texts, end: "".join(text + end for text in texts), read_lines),
}
# what str.splitlines takes for the end of a line, and what str.strip eats
ODD = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\u3000", "\xa0", "\ufeff"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", READERS)
def test_lines_end_with_lf_or_crlf_and_nothing_else(tmp_path, kind, end):
    ending, write, read = READERS[kind]
    texts = [text for odd in ODD for text in (f"a{odd}b", f"{odd}a{odd}")] + ["last"]
    path = tmp_path / f"a{ending}"
    for mark in ("", "\ufeff"):
        path.write_bytes((mark + write(texts, end)).encode())
        assert read(path) == texts
        path.write_bytes((mark + write(texts, end).removesuffix(end)).encode())
        assert read(path) == texts, "the last line may lack its end"


@pytest.mark.parametrize("kind", READERS)
def test_cr_ends_the_lines_of_a_file_without_lf(tmp_path, kind):
    ending, write, read = READERS[kind]
    path = tmp_path / f"a{ending}"
    path.write_bytes(write(["one", "two", "three"], "\r").encode())
    assert read(path) == ["one", "two", "three"]
    path.write_bytes(write(["one", "two", "three"], "\r").encode().removesuffix(b"\r"))
    assert read(path) == ["one", "two", "three"]


def test_cr_ends_the_rows_of_csv_whose_fields_hold_lf(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text,m\r"one\nline, two",1\rthree,2\r')
    found = [(r.text, r.metadata, r.line) for r in read_records(tmp_path / "a.csv", metadata=["m"])]
    assert found == [("one\nline, two", {"m": 1}, 2), ("three", {"m": 2}, 3)]


def test_lines_of_standard_input_that_end_with_cr_are_refused_where_it_is_read_once(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\rtwo\r")))
    with pytest.raises(DataError, match="CR alone"):
        list(read_records("-", encoding="utf-8"))


def test_the_documents_of_a_folder_keep_their_cr(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\r")
    assert of_records(tmp_path) == ["one\rtwo\r"]


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("odd", ["\u2028", "\x85"])
def test_a_wrong_byte_is_named_with_the_line_it_is_in(tmp_path, kind, odd):
    ending, write, read = READERS[kind]
    path = tmp_path / f"a{ending}"
    content = ("\ufeff" + write([f"a{odd}b", "xyz", "last"], "\n")).encode()
    path.write_bytes(content.replace(b"xyz", b"x\xffz"))
    line = content[: content.index(b"xyz")].count(b"\n") + 1
    column = content.index(b"xyz") - content.rfind(b"\n", 0, content.index(b"xyz")) + 1
    with pytest.raises(DataError, match="0xff is not UTF-8") as caught:
        read(path)
    assert (caught.value.path, caught.value.line, caught.value.column) == (str(path), line, column)


def test_the_column_of_a_wrong_byte_does_not_count_the_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(DataError) as caught:
        read_lines(tmp_path / "a")
    assert (caught.value.line, caught.value.column) == (1, 3)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "UTF-16"), ("utf-16-le-bom", "UTF-16"), ("gb18030", "GB18030"), ("gbk", "GB18030")],
)
def test_other_encodings_are_read_or_named_with_a_remedy(tmp_path, kind, encoding, name):
    ending, write, read = READERS[kind]
    for texts in (["怎么办理退货和退款", "naive", "请问在哪里可以查到我的订单?"], ["退货"]):
        text = write(texts, "\r\n")
        data = b"\xff\xfe" + text.encode("utf-16-le") if encoding.endswith("bom") else text.encode(encoding)
        (tmp_path / f"a{ending}").write_bytes(data)
        if name == "UTF-16" or len(texts) > 1:
            assert read(tmp_path / f"a{ending}") == texts
            continue
        with pytest.raises(DataError, match="may be GB18030") as caught:  # two characters could be anything
            read(tmp_path / f"a{ending}")
        assert ("--encoding gb18030" in str(caught.value.remedy)) == (kind != "side file")
        assert "iconv -f GB18030 -t UTF-8" in str(caught.value.remedy)


@pytest.mark.parametrize("text", ["café au lait", "Müller, Straße 5", "señor año"])
def test_latin_text_is_not_taken_for_chinese(tmp_path, text):
    (tmp_path / "a.txt").write_bytes((text + "\n").encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8") as caught:
        of_records(tmp_path / "a.txt")
    assert "GB18030" not in str(caught.value)


def test_utf16_is_read_also_where_wrong_bytes_may_be_replaced(tmp_path):
    (tmp_path / "a.txt").write_bytes("every second byte is NUL\n".encode("utf-16"))
    records = read_records(tmp_path / "a.txt", errors="replace")
    assert [record.text for record in records] == ["every second byte is NUL"]
    assert (records.replaced, records.files[0].encoding) == (0, "utf-16")


# ---- separators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_the_header_says_what_separates_the_fields(tmp_path, mark, ending):
    path = tmp_path / f"a{ending}"
    path.write_text(f'text{mark}lang\nhello{mark}en\n"a{mark} b"{mark}fr\n')
    records = list(read_records(path, metadata=["lang"]))
    assert [(r.text, r.metadata, r.line) for r in records] == [
        ("hello", {"lang": "en"}, 2),
        (f"a{mark} b", {"lang": "fr"}, 3),
    ]


def test_a_separator_in_the_texts_or_in_a_quoted_name_separates_nothing(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\none; two\nthree; four\n")
    assert of_records(path) == ["one; two", "three; four"]
    path.write_text('"text; all of it"\none; two\n')
    assert of_records(path) == ["one; two"]
    path.write_text("\n\ntext;lang\none, two;en\n")
    assert [(r.text, r.line) for r in read_records(path)] == [("one, two", 4)]


def test_pairs_separated_by_semicolons(tmp_path):
    (tmp_path / "p.csv").write_text("text_a;text_b;label\na, b;c;1\nd;e;0\n")
    data = load_pairs(tmp_path / "p.csv")
    assert (data.texts_a, data.labels.tolist(), data.skipped) == (["a, b", "d"], [1.0, 0.0], 0)


def test_a_hundred_thousand_columns_are_read_in_time_that_grows_with_them(tmp_path, monkeypatch):
    """As a count: every comparison of two names is one, and there are fewer than 40 a column."""
    compared = 0

    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    from kexue.corpus import records, separated

    n = 5000
    names = [Name(f"c{i}") for i in range(n)]
    monkeypatch.setattr(separated, "csv_rows", lambda *_: iter([(1, names), (2, ["x"] * n)]))
    assert next(records.read_records(__file__, text="c7", format="csv")).text == "x"
    assert compared < 40 * n
    (tmp_path / "a.csv").write_text(",".join(names) + "\n")
    with pytest.raises(DataError) as caught:
        next(read_records(tmp_path / "a.csv", text="absent"))
    assert len(str(caught.value)) < 1000
    assert "4,980 more" in str(caught.value)


# ---- length ----------------------------------------------------------------------------------------------------------


LONG = {
    ".txt": b"short\n" + b"x" * 3_000_000 + b"\n",
    ".jsonl": b'{"text": "short"}\n{"text": "' + b"x" * 3_000_000 + b'"}\n',
    ".csv": b"text\nshort\n" + b"x" * 3_000_000 + b"\n",
    ".tsv": b'text\tb\nshort\tb\n"' + (b"x" * 999 + b"\n") * 3000 + b'"\tb\n',
}


@pytest.mark.parametrize("packing", ["", ".gz", ".bz2", ".xz", ".zst", ".lz4"])
@pytest.mark.parametrize("kind", LONG)
def test_a_line_or_row_longer_than_allowed_is_refused_before_it_is_in_memory(tmp_path, compress, kind, packing):
    path = tmp_path / f"a{kind}{packing}"
    path.write_bytes(compress(LONG[kind], packing))
    tracemalloc.start()
    with pytest.raises(DataError, match="longer than 100,000 bytes") as caught:
        list(read_records(path, max_bytes=100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000, "half of the line"
    assert caught.value.line == {".txt": 2, ".jsonl": 2, ".csv": 3, ".tsv": 3}[kind]
    assert "--max-bytes" in str(caught.value.remedy)
    assert max(len(r.text) for r in read_records(path, max_bytes=4_000_000)) >= 2_900_000


def test_the_limit_is_on_what_is_one_text_and_is_exact(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"1234567\n" * 100)
    assert len(of_records(tmp_path / "a.txt")) == 100
    assert len(list(read_records(tmp_path / "a.txt", max_bytes=8))) == 100
    with pytest.raises(DataError):
        list(read_records(tmp_path / "a.txt", max_bytes=7))
    assert len(list(read_records(tmp_path, max_bytes=800))) == 1, "a file of a folder is one text"
    with pytest.raises(DataError, match="the document is longer"):
        list(read_records(tmp_path, max_bytes=799))
    (tmp_path / "b.csv").write_bytes(b'text\n"a\nb"\n' + b"c\n" * 50)
    assert len(list(read_records(tmp_path / "b.csv", max_bytes=6))) == 51
    with pytest.raises(DataError, match="the row that begins here"):
        list(read_records(tmp_path / "b.csv", max_bytes=5))
    (tmp_path / "p.tsv").write_bytes(b"abc\tb\t1\n")
    with pytest.raises(DataError, match="longer than 5"):
        load_pairs(tmp_path / "p.tsv", max_bytes=5)
    with pytest.raises(ValueError, match="max_bytes"):
        read_records(tmp_path / "a.txt", max_bytes=0)


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_value_of_parquet_longer_than_allowed_is_refused(tmp_path, dictionary):
    path = tmp_path / "a.parquet"
    column = pa.array(["short", "x" * 200_000])
    pq.write_table(pa.table({"text": column.dictionary_encode() if dictionary else column}), path)
    with pytest.raises(DataError, match="column 'text' is longer than 100,000 bytes"):
        list(read_records(path, max_bytes=100_000))
    assert len(list(read_records(path))) == 2


def test_many_long_values_of_a_dictionary_are_not_in_memory_at_once(tmp_path):
    """A few kilobytes of Parquet that hold a thousand texts of a megabyte."""
    path = tmp_path / "a.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    assert sum(len(record.text) for record in read_records(path)) == 1_000_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000_000


# ---- repairs ---------------------------------------------------------------------------------------------------------

HALF = '{"text": "t", "id": "i", "m": "v", "deep": [{"k": ["v"]}]}'


@pytest.mark.parametrize("place", ['"t"', '"i"', '"v"', '"k"'])
@pytest.mark.parametrize("bad", ["\\ud83d", "\\u0000"])
def test_replace_reaches_texts_ids_and_metadata_at_any_depth(tmp_path, place, bad):
    path = tmp_path / "a.jsonl"
    path.write_text(HALF.replace(place, f'"{place[1]}{bad}"') + "\n")
    options = {"id": "id", "metadata": ["m", "deep"]}
    with pytest.raises(DataError, match="NUL" if "0000" in bad else "half a surrogate") as caught:
        list(read_records(path, **options))
    assert (caught.value.path, caught.value.line) == (str(path), 1)
    assert caught.value.column in ("text", "id", "m", "deep")
    records = read_records(path, errors="replace", **options)
    [record] = records
    expected = json.loads(HALF.replace(place, f'"{place[1]}\ufffd"'))
    assert (record.id, record.text) == (expected["id"], expected["text"])
    assert record.metadata == {"m": expected["m"], "deep": expected["deep"]}
    assert records.replaced == HALF.count(place)


def test_two_keys_that_a_repair_would_make_one_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t", "m": {"\\ud800": 1, "\\udfff": 2}}\n')
    with pytest.raises(DataError, match="two keys are the same"):
        list(read_records(tmp_path / "a.jsonl", metadata=["m"], errors="replace"))


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.struct([("a", pa.list_(pa.string()))]),
    ],
    ids=str,
)
def test_wrong_bytes_in_parquet_meet_the_same_rule_at_any_depth(tmp_path, kind):
    raw = pa.array([b"ok", b"a\xff"], pa.binary())
    strings = raw.view(pa.string())
    if pa.types.is_large_string(kind):
        strings = raw.cast(pa.large_binary()).view(pa.large_string())
    column = {
        "dictionary": lambda: pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), strings),
        "list": lambda: pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), strings),
        "large_list": lambda: pa.LargeListArray.from_arrays(
            pa.array([0, 1, 2], pa.int64()), raw.cast(pa.large_binary()).view(pa.large_string())
        ),
        "struct": lambda: pa.StructArray.from_arrays(
            [pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), strings)], ["a"]
        ),
    }.get(str(kind).partition("<")[0], lambda: strings)()
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", "two"], "m": column}), path)
    with pytest.raises(DataError, match="0xff") as caught:
        list(read_records(path, metadata=["m"]))
    assert (caught.value.line, caught.value.column) == (2, "m")
    records = read_records(path, metadata=["m"], errors="replace")
    assert "a\ufffd" in json.dumps([r.metadata for r in records], ensure_ascii=False)
    assert records.replaced == 1


@pytest.mark.parametrize("bad", ["\\ud83d", "\\u0000"])
def test_pairs_are_repaired_or_refused_alike(tmp_path, bad):
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"text_a": "a{bad}", "text_b": "b", "label": 1}}\n')
    with pytest.raises(DataError, match=r"NUL|surrogate") as caught:
        load_pairs(path)
    assert (caught.value.line, caught.value.column) == (1, "text_a")
    data = load_pairs(path, errors="replace")
    assert (data.texts_a, data.replaced) == (["a\ufffd"], 1)


@pytest.mark.parametrize("value", ["1e999", "[" * 100_000 + "]" * 100_000, "9" * 5000])
def test_json_that_no_index_can_hold_is_refused_with_its_line(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "m": 1}}\n{{"text": "b", "m": {value}}}\n')
    with pytest.raises(DataError) as caught:
        list(read_records(tmp_path / "a.jsonl", metadata=["m"]))
    assert caught.value.line == 2
    (tmp_path / "p.jsonl").write_text(f'{{"text_a": "b", "text_b": "c", "label": {value}}}\n')
    with pytest.raises(DataError) as caught:
        load_pairs(tmp_path / "p.jsonl")
    assert caught.value.line == 1


@pytest.mark.parametrize("depth", [300, 5000])
def test_deep_metadata_are_kept_or_refused(tmp_path, depth):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "m": {"[" * depth}{"]" * depth}}}\n')
    if depth == 300:
        assert json.dumps(next(read_records(tmp_path / "a.jsonl", metadata=["m"])).metadata)
        return
    with pytest.raises(DataError, match=r"nested too deeply|maximum recursion"):
        list(read_records(tmp_path / "a.jsonl", metadata=["m"]))


DAY = datetime.date(2024, 1, 2)
NOON = datetime.datetime(2024, 1, 2, 12)
PARQUET_VALUES = {
    "bool": (pa.bool_(), True, True),
    "int8": (pa.int8(), -1, -1),
    "uint64": (pa.uint64(), 2**64 - 1, 2**64 - 1),
    "half": (pa.float16(), np.float16(1.5), 1.5),
    "float": (pa.float64(), 0.1, 0.1),
    "nan": (pa.float64(), float("nan"), None),
    "infinity": (pa.float32(), float("inf"), None),
    "date32": (pa.date32(), DAY, "2024-01-02"),
    "date64": (pa.date64(), DAY, "2024-01-02"),
    "timestamp": (pa.timestamp("us"), NOON, "2024-01-02T12:00:00"),
    "timestamp ns": (pa.timestamp("ns"), NOON, "2024-01-02T12:00:00"),
    "zone": (pa.timestamp("ms", tz="UTC"), NOON.replace(tzinfo=datetime.UTC), "2024-01-02T12:00:00+00:00"),
    "time": (pa.time32("s"), datetime.time(3, 4, 5), "03:04:05"),
    "whole decimal": (pa.decimal128(20, 2), decimal.Decimal("100.00"), 100),
    "decimal": (pa.decimal128(20, 2), decimal.Decimal("1.50"), 1.5),
    "long decimal": (pa.decimal128(30, 20), decimal.Decimal("0.12345678901234567890"), "0.12345678901234567890"),
    "large string": (pa.large_string(), "x", "x"),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), "x", "x"),
    "dictionary of numbers": (pa.dictionary(pa.int8(), pa.int64()), 5, 5),
    "list": (pa.list_(pa.string()), ["x", None], ["x", None]),
    "list of dictionary": (pa.list_(pa.dictionary(pa.int32(), pa.string())), ["x"], ["x"]),
    "struct": (pa.struct([("a", pa.list_(pa.date32()))]), {"a": [DAY]}, {"a": ["2024-01-02"]}),
    "nothing": (pa.null(), None, None),
}


@pytest.mark.parametrize("kind", PARQUET_VALUES)
def test_values_of_parquet_become_json_without_loss(tmp_path, kind):
    arrow, value, read = PARQUET_VALUES[kind]
    pq.write_table(pa.table({"text": ["a", "b"], "m": pa.array([value, None], arrow)}), tmp_path / "a.parquet")
    first, second = read_records(tmp_path / "a.parquet", metadata=["m"])
    assert (first.metadata, second.metadata) == ({"m": read}, {"m": None})
    assert type(first.metadata["m"]) is type(read)
    json.dumps(first.metadata, allow_nan=False)


@pytest.mark.parametrize(
    ("arrow", "value"), [(pa.duration("s"), 1), (pa.map_(pa.string(), pa.int64()), [("k", 1)])], ids=str
)
def test_values_of_parquet_that_json_has_not_are_refused(tmp_path, arrow, value):
    pq.write_table(pa.table({"text": ["a"], "m": pa.array([value], arrow)}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="metadata cannot hold") as caught:
        list(read_records(tmp_path / "a.parquet", metadata=["m"]))
    assert (caught.value.line, caught.value.column) == (1, "m")


@pytest.mark.parametrize(
    ("format", "value", "read"),
    [
        ("jsonl", "1", "1"),
        ("jsonl", '"1"', "1"),
        ("jsonl", '" 1"', " 1"),
        ("jsonl", "1.0", None),
        ("jsonl", "true", None),
        ("jsonl", "null", None),
        ("jsonl", '"\\u3000"', None),
        ("csv", "1", "1"),
        ("csv", " 1", " 1"),
        ("csv", "1.0", "1.0"),
        ("csv", "", None),
    ],
)
def test_an_id_is_a_string_or_a_whole_number_as_it_is_written(tmp_path, format, value, read):
    path = tmp_path / f"a.{format}"
    path.write_text(f'{{"text": "t", "id": {value}}}\n' if format == "jsonl" else f"text,id\nt,{value}\n")
    if read is None:
        with pytest.raises(DataError, match=r"the id (must be|is empty)"):
            list(read_records(path, id="id"))
    else:
        assert next(read_records(path, id="id")).id == read


# ---- files that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [*dict.fromkeys(reader for _, _, reader in READERS.values()), read_vectors])
@pytest.mark.parametrize("state", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_named_with_a_remedy(tmp_path, monkeypatch, read, state):
    monkeypatch.delenv("KEXUE_DATA", raising=False)
    path = tmp_path / "a.tsv"
    if state == "folder":
        path.mkdir()
    with pytest.raises(DataError) as caught:
        read(path)
    assert "a.tsv" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("number", range(1, 134))
def test_every_error_of_the_system_has_a_remedy(number):
    message, remedy = explain(OSError(number, os.strerror(number)))
    assert message.endswith(".")
    assert remedy.endswith(".")


def test_closed_standard_input_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    for read in (of_records, read_lines):
        with pytest.raises(DataError, match="standard input is closed") as caught:
            read("-")  # type: ignore[operator]
        assert caught.value.remedy


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst", ".lz4"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_damaged_compressed_files_are_data_errors(tmp_path, compress, packing, kind, damage):
    if (packing, damage) == (".zst", "flipped"):
        damage = "cut"  # Arrow writes zstd without a checksum: what was flipped cannot always be told
    draw = np.random.default_rng(0)
    rows = [
        f'{{"text": "{draw.integers(10**9)}"}}' if kind == ".jsonl" else str(draw.integers(10**9)) for _ in range(5000)
    ]
    data = compress("\n".join(["text", *rows] if kind == ".csv" else rows).encode(), packing)
    middle = len(data) // 2
    data = {
        "cut": data[:-9],
        "flipped": data[:middle] + bytes(60) + data[middle + 60 :],
        "other": data[:10] + b"no compressed data",
    }[damage]
    (tmp_path / f"a{kind}{packing}").write_bytes(data)
    with pytest.raises(DataError) as caught:
        of_records(tmp_path / f"a{kind}{packing}")
    assert caught.value.remedy


def npy(array: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)  # type: ignore[arg-type]
    return out.getvalue()


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.zeros((2, 2)), b=np.ones(3))
    return out.getvalue()


MATRIX = npy(np.arange(12.0).reshape(3, 4))
VECTOR_FILES = {
    "empty": (b"", "empty"),
    "cut in the header": (MATRIX[:20], "the array of numbers cannot be read"),
    "cut in the numbers": (MATRIX[:-8], "the array of numbers cannot be read"),
    "text": (b"1 2 3\n", "it is not a .npy file"),
    "archive": (npz(), "archive of several arrays"),
    "damaged archive": (b"PK\x03\x04" + bytes(30), "archive"),
    "objects": (npy(np.array([{}], object), allow_pickle=True), "the array of numbers cannot be read"),
    "whole numbers": (npy(np.zeros((2, 2), int)), "int64"),
    "complex": (npy(np.zeros((2, 2), complex)), "complex"),
    "strings": (npy(np.array([["a"]])), "<U1"),
    "one vector": (npy(np.zeros(5)), r"\(5,\)"),
    "a cube": (npy(np.zeros((2, 2, 2))), r"\(2, 2, 2\)"),
    "no rows": (npy(np.zeros((0, 3))), "no rows"),
    "a number": (npy(np.array(1.0)), r"\(\)"),
    "huge": (MATRIX.replace(b"(3, 4), }", b"(3000000000, 4000000000), }", 1), "the array of numbers cannot be read"),
    "odd header": (MATRIX.replace(b"{'descr'", b"{'descr(", 1), "the array of numbers cannot be read"),
}


@pytest.mark.parametrize("case", VECTOR_FILES)
def test_vector_files_that_are_none_are_data_errors(tmp_path, case):
    content, words = VECTOR_FILES[case]
    (tmp_path / "v.npy").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_vectors(tmp_path / "v.npy")
    assert caught.value.path == str(tmp_path / "v.npy")
    assert caught.value.remedy


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_vector_files_of_any_layout_are_read(tmp_path, dtype, order):
    values = np.array(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
    np.save(tmp_path / "v.npy", values)
    assert np.array_equal(read_vectors(tmp_path / "v.npy"), values)
    assert np.array_equal(np.concatenate(list(vector_chunks(read_vectors(tmp_path / "v.npy"), "v.npy"))), values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 9999])
def test_a_number_that_is_not_finite_is_named_with_its_row_in_the_file(tmp_path, bad, row):
    values = np.zeros((10_000, 3))
    values[row, 2] = bad
    np.save(tmp_path / "v.npy", values)
    with pytest.raises(DataError, match=rf"row {row} holds {bad} in column 2") as caught:
        list(vector_chunks(read_vectors(tmp_path / "v.npy"), tmp_path / "v.npy"))
    assert caught.value.path == str(tmp_path / "v.npy")
