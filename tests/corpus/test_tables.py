"""Tables as people have them, written at random and read back: encodings, delimiters, line ends, types, sheets."""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings, strategies as st

from kexue.corpus import read_records
from kexue.corpus.encodings import check_encoding
from kexue.corpus.kinds import ColumnKinds, read_date
from kexue.errors import DataError

CHINESE = "退款会在五天内处理。要取消订单请联系客服中心。我忘记了密码,请告诉我如何重新设置账号。运费是多少钱?"
ENCODINGS = {"utf-8": "utf-8", "utf-8-sig": "utf-8", "utf-16": "utf-16", "utf-16-be": "utf-16", "gb18030": "gb18030"}


def write(path: Path, rows: list[list[str]], encoding: str, **style: Any) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, **style).writerows(rows)
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path.write_bytes(mark + out.getvalue().encode(encoding))


cells = st.text(
    st.characters(max_codepoint=0x7E, exclude_characters="\0\r\n") | st.sampled_from(',;\t|" 退货要多久,。“”…·0'),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(
    table=st.lists(st.tuples(cells, cells), min_size=1, max_size=5),
    inner=st.sampled_from(["", "\n"]),
    encoding=st.sampled_from(list(ENCODINGS)),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_a_table_in_any_encoding_delimiter_quoting_and_line_end_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    table: list[tuple[str, str]],
    inner: str,
    encoding: str,
    delimiter: str,
    quoting: int,
    end: str,
) -> None:
    assume(not inner or inner in end or quoting == csv.QUOTE_ALL)  # otherwise the csv module writes a line end bare
    path = tmp_path_factory.mktemp("t") / "a.csv"
    body = [[CHINESE, "x", "y"], *([f"t{a}{inner}{b}", a, b] for a, b in table)]
    write(path, [["text", "a", "b"], *body], encoding, delimiter=delimiter, quoting=quoting, lineterminator=end)
    records = read_records(path, metadata=["a", "b"], types={"a": "text", "b": "text"})
    found = [[record.text, record.metadata["a"] or "", record.metadata["b"] or ""] for record in records]
    assert found == body
    [file] = records.files
    decided = (file.encoding, file.delimiter, file.text, file.records)
    assert decided == (ENCODINGS[encoding], delimiter, "text", len(body))
    named = read_records(path, text="text", encoding=ENCODINGS[encoding], delimiter=delimiter)
    assert [record.text for record in named] == [row[0] for row in body]


OTHERS = {  # what also decodes as GB18030, or nearly, and is not Chinese in it
    "euc-kr": "환불은 며칠 안에 처리됩니다. 주문을 취소하려면 고객 센터에 문의하십시오. 비밀번호를 잊어버렸습니다.",
    "euc-jp": "返金は五日以内に処理されます。注文をキャンセルするにはお問い合わせください。",
    "shift_jis": "返金は五日以内に処理されます。注文をキャンセルするにはお問い合わせください。",
    "big5": "退款會在五天內處理。要取消訂單請聯絡客服中心。我忘記了密碼,請告訴我如何重新設定帳號。",
    "cp1251": "Возврат денег занимает пять дней. Чтобы отменить заказ, обратитесь в службу поддержки.",
    "koi8-r": "Возврат денег занимает пять дней. Чтобы отменить заказ, обратитесь в службу поддержки.",
    "cp1252": "Le café était fermé à Noël, où êtes-vous allé?",
    "cp874": "การคืนเงินใช้เวลาห้าวัน ฉันลืมรหัสผ่าน",
}


@pytest.mark.parametrize("encoding", OTHERS)
def test_text_of_other_languages_is_never_read_as_chinese(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    text = OTHERS[encoding]
    for repeats in (1, 50):
        path.write_bytes(("text\n" + (text + "\n") * repeats).encode(encoding))
        with pytest.raises(DataError, match="is not UTF-8") as caught:
            list(read_records(path, delimiter="\t"))
        assert (caught.value.line, "--encoding" in str(caught.value.remedy)) == (2, True)
    assert {record.text for record in read_records(path, encoding=encoding, delimiter="\t")} == {text}


@pytest.mark.parametrize("lines", ["问题\n怎么退保\n", "name,问题\nVIP,可以退款吗\n", "我要投诉\n联系方式\n"])
def test_a_few_chinese_words_are_enough(tmp_path: Path, lines: str) -> None:
    (tmp_path / "a.txt").write_bytes(lines.encode("gb18030"))
    assert [record.text for record in read_records(tmp_path / "a.txt")] == lines.split()


def test_a_repeated_word_of_another_language_counts_once(tmp_path: Path) -> None:
    """By chance all characters of a word may be common in Chinese; a column repeats it, and says no more thereby."""
    (tmp_path / "a.txt").write_bytes("的不一\n".encode("gb18030") * 100)
    with pytest.raises(DataError, match="may be GB18030"):
        list(read_records(tmp_path / "a.txt"))


@pytest.mark.data
def test_chinese_of_many_kinds_is_found(tmp_path: Path, data_folder: Path) -> None:
    import gzip

    for name in ("tnews_titles", "poems_tang", "oppo_xiaobu_utterances", "cmrc_wiki_paragraphs"):
        with gzip.open(data_folder / f"corpus_zh/{name}.txt.gz", "rt", encoding="utf-8") as lines:
            some = "".join(itertools.islice(lines, 200))
        (tmp_path / "a.txt").write_bytes(some.encode("gb18030"))
        records = read_records(tmp_path / "a.txt")
        assert "".join(record.text + "\n" for record in records).split() == some.split(), name
        assert records.files[0].encoding == "gb18030"


def test_a_file_of_two_encodings_names_the_line_that_is_not_utf8(tmp_path: Path) -> None:
    lines = [f"{CHINESE}{i}\n" for i in range(20)]
    data = [line.encode("utf-8" if i % 2 else "gb18030") for i, line in enumerate(lines)]
    (tmp_path / "a.txt").write_bytes(b"".join(data))
    with pytest.raises(DataError, match="may be GB18030") as caught:
        list(read_records(tmp_path / "a.txt"))
    assert caught.value.line == 1
    records = read_records(tmp_path / "a.txt", collect=True)
    assert [record.text + "\n" for record in records] == lines[1::2]
    assert [(f["kind"], f["count"], f["line"]) for f in records.faults.records()] == [("malformed", 10, 1)]


def test_a_malformed_byte_of_gb18030_is_named_with_line_and_byte(tmp_path: Path) -> None:
    lines = [f"{CHINESE}{i}\n".encode("gb18030") for i in range(200)]
    lines[120] = "退货".encode("gb18030") + b"\xff" + b"abc\n"
    (tmp_path / "a.txt").write_bytes(b"".join(lines))
    with pytest.raises(DataError, match="byte 0xff is not GB18030") as caught:
        list(read_records(tmp_path / "a.txt"))
    assert (caught.value.line, caught.value.column) == (121, 5)
    records = read_records(tmp_path / "a.txt", errors="replace")
    assert [record.text for record in records][120] == "退货\ufffdabc"
    assert records.replaced == 1


@pytest.mark.parametrize("name", ["", "no-such", "base64", "rot13", "punycode2"])
def test_names_that_are_no_encoding_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="unknown encoding"):
        check_encoding(name)


def test_standard_input_is_read_twice_where_types_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "text;v\n" + "\n".join(f"{CHINESE};3.{i}" for i in range(9, 12))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.encode("gb18030"))))
    records = read_records("-", format="csv", metadata=["v"])
    assert [record.metadata["v"] for record in records] == ["3.9", "3.10", "3.11"]
    assert (records.files[0].encoding, records.files[0].delimiter) == ("gb18030", ";")


def test_the_first_line_of_spreadsheets_may_name_the_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\ntext;b\none, two;x\n")
    assert [(r.text, r.line) for r in read_records(tmp_path / "a.csv", metadata=["b"])] == [("one, two", 3)]


def test_the_delimiter_is_the_one_by_which_rows_agree(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;question, in short;lang\n1;How long, please, is it?;en\n2;Hello;en\n")
    records = read_records(tmp_path / "a.csv", text="question, in short", id="id")
    assert [(r.id, r.text) for r in records] == [("1", "How long, please, is it?"), ("2", "Hello")]
    (tmp_path / "b.csv").write_text("id;question, in short;lang\n1;How long, please?;en\n")
    assert next(read_records(tmp_path / "b.csv", text="lang")).text == "en"
    with pytest.raises(ValueError, match="one character"):
        read_records(tmp_path / "a.csv", delimiter=";;")


# ---- types of columns ------------------------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[list[Any], list[Any]]] = {
    "numbers": (["1", "2.5", "", "-3"], [1, 2.5, None, -3]),
    "prices": (["3.50", "12.00"], [3.5, 12]),
    "versions": (["3.9", "3.10"], ["3.9", "3.10"]),
    "long versions": (["3.9", "3.10.1"], ["3.9", "3.10.1"]),
    "zero-led": (["007", "12"], ["007", "12"]),
    "one that is none": (["2020", "N/A", "2021"], ["2020", "N/A", "2021"]),
    "booleans": (["true", "false"], [True, False]),
    "half booleans": (["true", "1"], ["true", "1"]),
    "dates": (["2024/5/1", "2024/10/12 9:30"], ["2024-05-01", "2024-10-12T09:30:00"]),
    "iso": (["2024-05-01", "2023-12-31"], ["2024-05-01", "2023-12-31"]),
    "half dates": (["2024/5/1", "soon"], ["2024/5/1", "soon"]),
    "no dates": (["2024/13/1", "2024/5/1"], ["2024/13/1", "2024/5/1"]),
    "american": (["5/1/2024"], ["5/1/2024"]),
    "long": (["123456789012345678901"], ["123456789012345678901"]),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_all_values_of_a_column_decide_its_type(tmp_path: Path, case: str) -> None:
    given_, expected = COLUMNS[case]
    write(tmp_path / "a.csv", [["text", "v"], *(["t", value] for value in given_)], "utf-8")
    read = [record.metadata["v"] for record in read_records(tmp_path / "a.csv", metadata=["v"])]
    assert read == expected
    assert case == "prices" or list(map(type, read)) == list(map(type, expected))


def test_a_column_has_one_type_in_all_files_of_an_input(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [["text", "v"], ["one", "3.9"]], "utf-8")
    write(tmp_path / "b.csv", [["text", "v"], ["two", "3.10"]], "utf-8")
    both = read_records([tmp_path / "a.csv", tmp_path / "b.csv"], metadata=["v"])
    assert [record.metadata["v"] for record in both] == ["3.9", "3.10"]
    known = read_records(tmp_path / "a.csv", metadata=["v"], types={"v": "text"})
    assert [record.metadata["v"] for record in known] == ["3.9"]


def test_a_column_that_is_nearly_numbers_is_said_to_be_text(tmp_path: Path) -> None:
    values = [str(2000 + i) for i in range(30)] + ["N/A"]
    write(tmp_path / "a.csv", [["text", "year"], *(["t", value] for value in values)], "utf-8")
    records = read_records(tmp_path / "a.csv", metadata=["year"])
    list(records)
    [sentence] = records.remarks()
    assert "year is text, since 1 of its 31 values are no numbers (first: 'N/A'" in sentence
    assert "line 32" in sentence


@given(st.lists(st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3})?", fullmatch=True), min_size=1, max_size=6))
def test_different_spellings_never_become_one_number(values: list[str]) -> None:
    kinds = ColumnKinds()
    for value in values:
        kinds.add("v", value, "a.csv", 1)
    read = {value: kinds.read("v", value) for value in values}
    assert len(set(read.values())) == len(read)


@given(st.datetimes(min_value=datetime.datetime(1000, 1, 1), max_value=datetime.datetime(9999, 1, 1)))
def test_dates_are_read_as_they_are_meant(when: datetime.datetime) -> None:
    day = f"{when.year}/{when.month}/{when.day}"
    assert read_date(day) == when.date().isoformat()
    assert read_date(f"{when.year}年{when.month}月{when.day}日") == when.date().isoformat()
    exact = when.replace(microsecond=0, second=0)
    assert read_date(f"{day} {when.hour}:{when.minute:02}") == exact.isoformat()


# ---- sheets ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def workbook(tmp_path: Path) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    hidden = book.active
    hidden.title, hidden.sheet_state = "hidden", "hidden"
    hidden.append(["text"])
    sheet = book.create_sheet("问答")
    sheet.append(["常见问题 2024", None, None, None, None, None, None])
    sheet.merge_cells("A1:G1")
    sheet.append([])
    sheet.append(["编号", "问题", "类别", "日期", "版本", "价格", "是否", None])
    noon = datetime.datetime(2024, 5, 1, 12, 30)
    sheet.append(["007", "怎么退货?", "退货", datetime.date(2024, 5, 1), "3.10", 12, True, "extra"])
    sheet.append(["008", "多久到账?\n急", None, noon, 3.9, 0.5, False])
    sheet.append([])
    sheet.append([9, 42, "其他", datetime.date(2023, 1, 2), "#N/A", "=1+1", None])
    sheet.merge_cells("C4:C5")
    sheet["E7"].data_type = "e"
    other = book.create_sheet("more")
    other.append(["text"])
    other.append(["another sheet"])
    book.save(tmp_path / "a.xlsx")
    return tmp_path / "a.xlsx"


FIELDS = ["类别", "日期", "版本", "价格", "是否"]


def test_a_sheet_is_read_as_a_person_sees_it(workbook: Path) -> None:
    records = read_records(workbook, text="问题", id="编号", metadata=FIELDS)
    assert [(r.id, r.text, list(r.metadata.values()), r.line) for r in records] == [
        ("007", "怎么退货?", ["退货", "2024-05-01", "3.10", 12, True], 4),
        ("008", "多久到账?\n急", ["退货", "2024-05-01T12:30:00", "3.9", 0.5, False], 5),
        ("9", "42", ["其他", "2023-01-02", None, None, None], 7),
    ]
    assert records.files[0].sheet == "问答"
    [sentence] = records.remarks()
    assert "1 formula without a stored value" in sentence


def test_a_sheet_is_chosen_by_name(workbook: Path) -> None:
    assert [record.text for record in read_records(workbook, sheet="more")] == ["another sheet"]
    with pytest.raises(DataError, match=r"no sheet 'none'\. There are: hidden, 问答, more"):
        list(read_records(workbook, sheet="none"))


def test_codes_that_are_shown_with_leading_zeros_keep_them(tmp_path: Path) -> None:
    """A cell holds the number 7 and the format 000: the program shows 007, and writes 007 into a csv."""
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["text", "code", "number"])
    for place, (code, number) in enumerate([(7, 7), (1234, 20.0), (0, -3)], start=2):
        sheet.append([f"text {place}", code, number])
        sheet.cell(place, 2).number_format = "000"
        sheet.cell(place, 3).number_format = "0"
    book.save(tmp_path / "a.xlsx")
    records = list(read_records(tmp_path / "a.xlsx", id="code", metadata=["code", "number"]))
    assert [record.id for record in records] == ["007", "1234", "000"]
    assert [record.metadata for record in records] == [
        {"code": "007", "number": 7},
        {"code": "1234", "number": 20},
        {"code": "000", "number": -3},
    ]


def test_large_whole_numbers_are_written_in_full_digits(tmp_path: Path) -> None:
    """Oracle: the digits that the number has in the file."""
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["text", "number"])
    numbers = [2.0**54, 1.2e19, 1.234567890123457e19, -1e22]
    for place, number in enumerate(numbers):
        book.active.append([f"text {place}", number])
    book.active.append([-1e22, 1])
    book.save(tmp_path / "a.xlsx")
    records = list(read_records(tmp_path / "a.xlsx", text="text", id="number", metadata=["number"]))
    digits = [
        "18014398509481980",  # a workbook keeps 16 digits
        "12000000000000000000",
        "12345678901234570000",
        "-10000000000000000000000",
        "1",
    ]
    assert [record.id for record in records] == digits
    assert [str(record.metadata["number"]) for record in records] == digits
    assert records[-1].text == digits[3]


def test_small_numbers_of_a_sheet_are_numbers(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    numbers = [0.00002, -1e-7, 3, 0.25]
    for row in [("text", "number"), *((f"text {number}", number) for number in numbers)]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    records = read_records(tmp_path / "a.xlsx", metadata=["number"])
    assert [record.metadata["number"] for record in records] == numbers


@pytest.mark.parametrize(
    ("above", "merge"),
    [([["All questions"]], None), ([[None, "All questions"], []], None), ([["All"], ["Of 2024"]], "A2:B2")],
    ids=["A1", "B1", "beside a merged one"],
)
def test_a_title_in_one_cell_above_the_header_is_passed_over(
    tmp_path: Path, above: list[list[str | None]], merge: str | None
) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [*above, ["id", "text"], [1, "one"], [2, "two"]]:
        book.active.append(row)
    if merge:
        book.active.merge_cells(merge)
    book.save(tmp_path / "a.xlsx")
    first = len(above) + 2
    records = read_records(tmp_path / "a.xlsx", id="id")
    assert [(r.id, r.text, r.line) for r in records] == [("1", "one", first), ("2", "two", first + 1)]


def test_a_sheet_of_one_column_keeps_its_header(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [["question"], ["one"], ["two", "a note"]]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert [record.text for record in read_records(tmp_path / "a.xlsx", text="question")] == ["one", "two"]


def test_the_value_that_a_spreadsheet_stored_of_a_formula_counts(workbook: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(workbook) as old, zipfile.ZipFile(tmp_path / "b.xlsx", "w") as new:
        for name in old.namelist():
            data = old.read(name).replace(b"<f>1+1</f><v></v>", b"<f>1+1</f><v />")
            new.writestr(name, data.replace(b"<f>1+1</f><v />", b"<f>1+1</f><v>2</v>"))
    records = read_records(tmp_path / "b.xlsx", text="问题", metadata=FIELDS)
    assert [record.metadata["价格"] for record in records] == [12, 0.5, 2]
    assert records.remarks() == []


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(
                st.characters(exclude_categories=["Cs", "Cc", "Cn"], exclude_characters="\ufffe\uffff"), max_size=8
            ),
            st.integers(-(10**9), 10**9) | st.none(),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_sheets_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int | None]]
) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path = tmp_path_factory.mktemp("x") / "a.xlsx"
    book = openpyxl.Workbook()
    book.active.append(["text", "n"])
    for text, n in rows:
        book.active.append([f"t{text}", n])
    book.save(path)
    assert [(r.text, r.metadata["n"]) for r in read_records(path, metadata=["n"])] == [(f"t{t}", n) for t, n in rows]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "has a password, or is an old"),
        (b"text,lang\n", "cannot be read as .xlsx"),
        (b"PK\x03\x04" + bytes(50), "cannot be read as .xlsx"),
        (b"", "cannot be read as .xlsx"),
    ],
)
def test_what_is_no_workbook_says_so(tmp_path: Path, content: bytes, words: str) -> None:
    pytest.importorskip("openpyxl")
    (tmp_path / "a.xlsx").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        list(read_records(tmp_path / "a.xlsx"))
    assert caught.value.remedy
    (tmp_path / "a.xls").write_bytes(content)
    with pytest.raises(DataError, match=r"save it as \.xlsx"):
        read_records(tmp_path / "a.xls")


# ---- faults ----------------------------------------------------------------------------------------------------------

FAULTY = {
    "a.csv": b'id,text,n\n1,one,1\n,two,2\n2, ,3\n3,three\n4,"fo"ur,4\n5,five,5\n6,si\xffx,6\n7,"se\nven",7\n',
    "a.jsonl": b'{"id": 1, "text": "one", "n": 1}\n{"text": "two"}\n{"id": 2, "text": null}\n{"id": 3\n'
    b'[4]\n{"id": 5, "text": "five"}\n{"id": 6, "text": "si\xffx"}\n{"id": 7, "text": "se\\nven"}\n',
}


@pytest.mark.parametrize("name", FAULTY)
def test_all_faults_are_counted_with_their_first_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FAULTY[name])
    records = read_records(tmp_path / name, id="id", metadata=["n"], collect=True)
    assert [(record.id, record.text) for record in records] == [("1", "one"), ("5", "five"), ("7", "se\nven")]
    found = {fault["kind"]: (fault["count"], fault["line"]) for fault in records.faults.records()}
    first = 5 if name == "a.csv" else 4
    assert found == {"no_id": (1, first - 2), "empty": (1, first - 1), "malformed": (3, first)}
    assert records.faults.summary().startswith("3 malformed (first: line ")
    with pytest.raises(DataError):
        list(read_records(tmp_path / name, id="id"))


@pytest.mark.parametrize("row", ['"two,2', '"two"x,2', '2,"two', '"t""wo",3,"'])
def test_a_quote_that_is_not_closed_costs_only_its_own_row(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.csv").write_text(f'text,b\none,1\n{row}\nthree,3\nfour,4\n"fi\nve",5\n')
    records = read_records(tmp_path / "a.csv", text="text", metadata=["b"], collect=True)
    rows = [(record.text, record.metadata["b"], record.line) for record in records]
    assert rows == [("one", 1, 2), ("three", 3, 4), ("four", 4, 5), ("fi\nve", 5, 6)]
    [fault] = records.faults.records()
    assert (fault["count"], fault["line"]) == (1, 3)
    with pytest.raises(DataError, match="begins here") as caught:
        list(read_records(tmp_path / "a.csv", text="text"))
    assert caught.value.line == 3


def test_an_open_quote_at_the_end_and_one_that_is_longer_than_a_row_may_be(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,b\none,1\n"two,2\nthree,3\n')
    for limit in (1 << 20, 12):
        records = read_records(tmp_path / "a.csv", max_bytes=limit, collect=True)
        assert [(record.text, record.line) for record in records] == [("one", 2), ("three", 4)]
        assert records.faults.records()[0]["line"] == 3
    (tmp_path / "b.csv").write_text('"text,b\none,1\n')
    with pytest.raises(DataError, match="begins here"):  # no names
        list(read_records(tmp_path / "b.csv", collect=True))


def test_a_malformed_byte_in_a_line_that_is_read_again_is_a_fault_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,b\n"two,2\nth\xffree,3\nfour,4\n')
    records = read_records(tmp_path / "a.csv", collect=True)
    assert [record.text for record in records] == ["four"]
    assert len(records.faults) == 2


def test_rows_as_spreadsheets_write_them(tmp_path: Path) -> None:
    """Empty rows, and empty fields beyond the last column, say nothing; names of columns may have spaces around."""
    (tmp_path / "a.csv").write_text(",,\r\nid, text ,n,\r\n1,one,3,,\r\n,,,\r\n,,,,\r\n2,two,4,\r\n,,,\r\n", newline="")
    records = list(read_records(tmp_path / "a.csv", id="id", metadata=["n"]))
    assert [(one.id, one.text, one.metadata, one.line) for one in records] == [
        ("1", "one", {"n": 3}, 3),
        ("2", "two", {"n": 4}, 6),
    ]


def test_a_missing_column_below_a_title(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("All questions,,\nid,text,n\n1,one,3\n")
    with pytest.raises(DataError, match=r"There are: All questions\..*remove the rows above them"):
        list(read_records(tmp_path / "a.csv", text="text"))


@pytest.mark.parametrize("encoding", ["utf-16le", "utf-16be"])
def test_utf_16_without_its_mark_is_named_in_the_error(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(f'编号,问题\n1,"{CHINESE}"\n'.encode(encoding))
    with pytest.raises(DataError, match=f"--encoding {encoding} "):
        list(read_records(tmp_path / "a.csv"))
    [record] = read_records(tmp_path / "a.csv", text="问题", encoding=encoding)
    assert record.text == CHINESE
    (tmp_path / "a.csv").write_bytes("text\nplain\n".encode(encoding))
    with pytest.raises(DataError, match="--encoding utf-16le"):
        list(read_records(tmp_path / "a.csv"))


def test_documents_of_a_folder_are_faults_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes((CHINESE * 3).encode("gb18030"))
    (tmp_path / "b.txt").write_bytes("plain é\n".encode())
    (tmp_path / "c.txt").write_bytes(b"caf\xe9 au lait\n")
    records = read_records(tmp_path, collect=True)
    assert [record.id for record in records] == ["a.txt", "b.txt"]
    assert records.faults.records()[0]["path"] == str(tmp_path / "c.txt")
    assert records.files[0].encoding == "gb18030, utf-8"
