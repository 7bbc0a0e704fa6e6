"""Examples are the same from every kind of file; what cannot be used is told."""

import gzip
import json
import logging

import pytest

from kexue.errors import DataError
from kexue.text.training.sources import Example, read_examples

ROWS = [("怎么退货", "如何退货", 1.0), ('他说"好"', "他同意", 0.0)]
EXAMPLES = [Example((a, b), label, 0) for a, b, label in ROWS]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_lines_are_single_texts(tmp_path):
    path = write(tmp_path / "a.txt", "你好\n\n怎么\t退货\r\n")
    assert list(read_examples([path])) == [Example(("你好",), None, 0), Example(("怎么\t退货",), None, 0)]


@pytest.mark.parametrize("header", ["", "text_a\ttext_b\tlabel\n", "sentence1\tsentence2\tscore\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_tsv_file_has_no_quoting(tmp_path, header, encoding):
    text = header + "".join(f"{a}\t{b}\t{label}\n" for a, b, label in ROWS)
    assert list(read_examples([write(tmp_path / "a.tsv", text, encoding)])) == EXAMPLES


def test_a_header_may_have_other_columns_too(tmp_path):
    text = "nr\tlabel\ttext_b\ttext_a\n1\t1\t如何退货\t怎么退货\n"
    assert list(read_examples([write(tmp_path / "a.tsv", text)])) == EXAMPLES[:1]


def test_csv_has_quoting(tmp_path):
    text = 'text_a,text_b,label\n怎么退货,如何退货,1\n"他说""好""",他同意,0\n'
    assert list(read_examples([write(tmp_path / "a.csv", text)])) == EXAMPLES


def test_json_lines_also_compressed(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = [json.dumps({"text_a": a, "text_b": b, "label": label}) for a, b, label in ROWS]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert list(read_examples([path])) == EXAMPLES


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    a, b, labels = zip(*ROWS, strict=True)
    parquet.write_table(pyarrow.table({"text_a": a, "text_b": b, "label": labels}), tmp_path / "a.parquet")
    assert list(read_examples([tmp_path / "a.parquet"])) == EXAMPLES


def test_a_workbook(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [("text_a", "text_b", "label"), *ROWS]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert list(read_examples([tmp_path / "a.xlsx"])) == EXAMPLES


def test_mappings_and_a_data_set(tmp_path):
    rows = [{"sentence1": a, "sentence2": b, "label": label} for a, b, label in ROWS]
    assert list(read_examples([rows])) == EXAMPLES
    datasets = pytest.importorskip("datasets")
    assert list(read_examples([datasets.Dataset.from_list(rows)])) == EXAMPLES


def test_groups_and_the_number_of_the_source(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"texts": ["甲", "乙", "丙"]}) + "\n")
    assert [(one.texts, one.source) for one in read_examples([[{"text": "丁"}], path])] == [
        (("丁",), 0),
        (("甲", "乙", "丙"), 1),
    ]


def test_inference_labels_are_words():
    rows = [{"text_a": "甲", "text_b": "乙", "label": word} for word in ("Entailment", "neutral", "-", "")]
    assert [one.label for one in read_examples([rows])] == ["entailment", "neutral", "-", None]


def test_rows_without_text_are_left_out_and_counted(tmp_path, caplog):
    path = write(tmp_path / "a.tsv", "text_a\ttext_b\n甲\t乙\n\t丙\n丁\t \n")
    with caplog.at_level(logging.WARNING):
        assert [one.texts for one in read_examples([path])] == [("甲", "乙")]
    assert "2 rows without text left out, the first in line 3" in caplog.text


def test_rows_of_another_width_are_left_out_and_counted(tmp_path, caplog):
    path = write(tmp_path / "a.tsv", "甲\t乙\n甲\t乙\t丙\n丁\n戊\t己\n")
    with caplog.at_level(logging.WARNING):
        assert len(list(read_examples([path]))) == 2
    assert "2 rows left out that have not 2 fields, the first in line 2" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message", "line"),
    [
        ("a.tsv", "text_a\ttext_b\tlabel\n甲\t乙\t好\n", "expected a number or one of contradiction", 2),
        ("a.csv", "a,b,c,d\n1,2,3,4\n", "which columns hold the texts? There are: a, b, c, d", 1),
        ("a.jsonl", '{"texts": "甲"}\n', "expected a list of texts, got '甲'", 1),
        ("a.jsonl", '{"text_a": "甲", "text_b": 3}\n', "expected a text, got 3", 1),
        ("a.doc", "甲\n", "unknown file extension '.doc'", None),
        ("a.txt", "\n \n", "there is no text", None),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, text, message, line):
    with pytest.raises(DataError) as caught:
        list(read_examples([write(tmp_path / name, text)]))
    assert message in str(caught.value)
    assert caught.value.line == line


def test_a_list_of_texts_is_not_a_data_set():
    with pytest.raises(DataError, match="expected mappings with columns, got str in row 1"):
        list(read_examples([["甲", "乙"]]))
