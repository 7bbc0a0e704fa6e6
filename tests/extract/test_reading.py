"""Readers of annotated triples, of schemas and of word vectors; what is wrong is named with its line and field."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from kexue.errors import DataError, MissingDependencyError
from kexue.extract import Triple, TripleExample, TripleSchema, read_triples, score_files, write_predictions
from kexue.extract.reader import TextReader
from kexue.extract.triples import find_span, lower
from kexue.extract.words import choose_segmenter, number_words, open_segmenter, read_word_vectors

SPO = {"subject": "李白", "predicate": "朝代", "object": "唐代", "subject_type": "人物"}


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


def test_json_lines_and_tables_give_the_same_examples(tmp_path):
    wanted = [
        TripleExample("李白是唐代人", (Triple("李白", "朝代", "唐代", (0, 2), (3, 5)),)),
        TripleExample("天气很好", ()),
    ]
    lines = [{"text": "李白是唐代人", "spo_list": [SPO, SPO], "postag": []}, {"text": "天气很好", "spo_list": []}]
    jsonl = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(jsonl.encode()))
    table = "text,subject,predicate,object\n李白是唐代人,李白,朝代,唐代\n天气很好,,,\n李白是唐代人,李白,朝代,唐代\n"
    for path in (write(tmp_path / "a.jsonl", jsonl), packed, write(tmp_path / "a.csv", table)):
        assert read_triples(path) == wanted
    assert read_triples(write(tmp_path / "a.tsv", table.replace(",", "\t"))) == wanted


def test_spans_are_in_the_original_text():
    assert find_span("İİ ABC", "abc") == (3, 6)  # the small form of İ has two characters
    assert lower("İA") == "İa"
    assert find_span("abc", "") is None
    assert find_span("Give us the US flag", "US") == (12, 14)  # what stands there goes before another letter case
    assert find_span("ΟΔΥΣΣΕΥΣ ΟΔΟΣ", "οδυσ") == (0, 4)  # a sigma is small in two ways


def test_lines_of_one_text_are_one_example_and_spaces_around_names_do_not_count(tmp_path):
    spaced = {**SPO, "subject": "李白 ", "predicate": " 朝代"}
    several = {"subject": "李白", "predicate": "称号", "object": {"@value": "诗仙", "inWork": "x"}, "object_type": {}}
    lines = [{"text": "李白诗仙是唐代人", "spo_list": [one]} for one in (SPO, spaced, several)]
    [example] = read_triples(write(tmp_path / "a.json", "\n".join(json.dumps(line) for line in lines)))
    assert [t[:3] for t in example.triples] == [("李白", "朝代", "唐代"), ("李白", "称号", "诗仙")]


@pytest.mark.parametrize(
    ("content", "line", "field"),
    [
        ('{"text": "a", "spo_list": []}\n{"spo_list": []}', 2, "text"),
        ('{"text": " ", "spo_list": []}', 1, "text"),
        ('{"text": "a"}', 1, "spo_list"),
        ('{"text": "a", "spo_list": [1]}', 1, "spo_list"),
        ('{"text": "a", "spo_list": [{"subject": "a", "predicate": 1, "object": "a"}]}', 1, "predicate"),
        ('{"text": "a", "spo_list": [{"subject": "a", "predicate": "p"}]}', 1, "object"),
        ('\n{"text": "a", "spo_list": [{"subject": "a", "predicate": "p", "object": "a"}]}', 2, "predicate"),
        ('{"text": "a\\ud83d", "spo_list": []}', 1, "text"),
        ('{"text": "a", "spo_list": [{"subject": "a", "predicate": "p", "object": {"inWork": "a"}}]}', 1, "object"),
    ],
)
def test_errors_name_line_and_field(tmp_path, content, line, field):
    with pytest.raises(DataError) as caught:
        read_triples(write(tmp_path / "a.jsonl", content), schema=TripleSchema(("朝代",)))
    assert (caught.value.line, caught.value.column) == (line, field)
    assert "a.jsonl" in str(caught.value)


def test_other_wrong_files(tmp_path):
    with pytest.raises(DataError, match="unknown format"):
        read_triples(write(tmp_path / "a.xml", "<a/>"))
    with pytest.raises(DataError, match="no text"):
        read_triples(write(tmp_path / "a.jsonl", "\n"))
    with pytest.raises(DataError, match="not JSON"):
        read_triples(write(tmp_path / "b.jsonl", "text"))
    with pytest.raises(DataError, match="no column 'subject'"):
        read_triples(write(tmp_path / "a.csv", "text,predicate,object\na,b,c\n"))
    with pytest.raises(DataError, match="object must be a text") as caught:
        read_triples(write(tmp_path / "b.csv", "text,subject,predicate,object\nab,a,p,b\nab,a,p,\n"))
    assert (caught.value.line, caught.value.column) == (3, "object")
    with pytest.raises(DataError, match="no such file"):
        read_triples(tmp_path / "no.jsonl")


def test_a_subject_that_is_not_in_the_text_is_told(tmp_path):
    path = write(tmp_path / "a.csv", "text,subject,predicate,object\nab,a,p,b\ncd,x,p,d\n")
    with pytest.warns(UserWarning, match="1 of the subjects and objects are not in their text, first in line 3"):
        examples = read_triples(path)
    assert examples[1].triples[0].subject_span is None


def test_sample_is_annotated_throughout():
    examples = read_triples("sample")
    assert len(examples) == 32
    for example in examples:
        for triple in example.triples:
            assert example.text[slice(*triple.subject_span)] == triple.subject
            assert example.text[slice(*triple.object_span)] == triple.object


def test_schemas(tmp_path):
    path = write(
        tmp_path / "s.jsonl", '{"predicate": "b", "subject_type": "x"}\n{"predicate": "a"}\n{"predicate": "b"}'
    )
    schema = TripleSchema.load(path)
    assert schema.predicates == ("b", "a")
    assert schema.number("a") == 1
    with pytest.raises(DataError, match="'c' is not in the schema"):
        schema.number("c")
    with pytest.raises(DataError, match="predicate is missing"):
        TripleSchema.load(write(tmp_path / "t.jsonl", "{}"))
    with pytest.raises(DataError, match="no predicate"):
        TripleSchema.load(write(tmp_path / "u.jsonl", ""))
    with pytest.raises(ValueError, match="different names"):
        TripleSchema(("a", "a"))
    with pytest.raises(DataError, match="no example has a triple"):
        TripleSchema.of([TripleExample("a", ())])


def test_word_vectors(tmp_path):
    path = write(tmp_path / "v.txt", "3 2\n我 1 2\nNew York 3 -4e-1\n我 9 9\n")
    words = read_word_vectors(path)
    assert words.words == ("我", "New York")
    assert words.vectors.tolist() == [[1, 2], [3, np.float32(-0.4)]]
    assert read_word_vectors(write(tmp_path / "w.txt", "我 1 2\n")).words == ("我",)
    for wrong, line in (("1 2\n我 1\n", 2), ("我 1 nan\n", 1), ("我 1 2\n你 1 x\n", 2), ("我\n", 1)):
        with pytest.raises(DataError, match="finite numbers") as caught:
            read_word_vectors(write(tmp_path / "x.txt", wrong))
        assert caught.value.line == line
    with pytest.raises(DataError, match="no vector"):
        read_word_vectors(write(tmp_path / "y.txt", "0 2\n"))


def test_words_join_to_the_text():
    numbers = {"我们": 1, "家": 2}
    assert number_words("我们回家", open_segmenter("longest", ("我们", "家")), numbers).tolist() == [1, 1, 0, 2]
    assert number_words("我们", open_segmenter("characters", ()), numbers).tolist() == [0, 0]
    with pytest.raises(DataError, match="join to '我们', another text"):
        number_words("我 们", lambda text: ["我们"], numbers)
    with pytest.raises(ValueError, match="segmenter must be one of"):
        open_segmenter("spaces", ())


def test_words_of_vectors_are_found_in_any_letter_case():
    reader = TextReader("", ("New", "new", "Ab"), "longest")
    assert reader.encode("AB的new york")[1].tolist() == [3, 3, 0] + [1] * 3 + [0] * 5


def test_a_missing_segmenter_names_the_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jieba", None)
    with pytest.raises(MissingDependencyError, match=r"kexue\[extract\]"):
        open_segmenter("jieba", ())


def test_the_file_of_vectors_decides_on_the_segmenter():
    assert choose_segmenter(("我", "你", "我们")) == "longest"


def test_predictions_are_scored_against_their_own_texts(tmp_path):
    gold = write(tmp_path / "g.csv", "text,subject,predicate,object\nab,a,p,b\ncd,c,p,d\n")
    pred = tmp_path / "p.jsonl"
    write_predictions(pred, ["ab", "cd"], [[Triple("a", "p", "b", (0, 1), (1, 2), 0.7)], []])
    assert json.loads(pred.read_text().splitlines()[0])["triples"][0]["object_span"] == [1, 2]
    score, (low, high) = score_files(pred, gold)
    assert low <= score.f1 <= high
    assert (score.precision, score.recall, score.n_gold) == (1.0, 0.5, 2)
    twice = [[], [Triple("a", "p", "b")], [Triple("a", "p", "b")]]
    write_predictions(pred, ["cd", "ab", "ab"], twice)  # in another order, and a text in two rows
    assert score_files(pred, gold)[0] == score
    write_predictions(pred, ["ab", "ef"], [[], []])
    with pytest.raises(DataError, match="does not have the text 'ef'") as caught:
        score_files(pred, gold)
    assert caught.value.line == 2
    write_predictions(pred, ["ab"], [[]])
    with pytest.raises(DataError, match=r"1 of the 2 texts of .* are not there, first 'cd'"):
        score_files(pred, gold)
    with pytest.raises(DataError, match="no text has a triple"):
        score_files(pred, write(tmp_path / "n.csv", "text,subject,predicate,object\nab,,,\n"))
    write(pred, '{"text": "ab"}')
    with pytest.raises(DataError, match="triples must be a list"):
        score_files(pred, gold)


@pytest.mark.data
def test_the_sample_of_ske():
    folder = Path(os.environ["KEXUE_DATA"], "triples_zh", "ske2019_sample")
    schema = TripleSchema.load(folder / "all_50_schemas.jsonl")
    assert len(schema.predicates) == 49  # one of the fifty lines has other types only
    assert len(read_triples(folder / "train.jsonl.gz", schema=schema)) == 2601
    assert len(read_triples(folder / "dev.jsonl.gz", schema=schema)) == 694
