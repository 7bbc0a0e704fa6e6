"""Files for the site: what is written is accepted, and every fault is told."""

import gzip
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from kexue.clue import (
    TASKS,
    EntityExample,
    TextExample,
    bundle_submission,
    check_submission,
    get_task,
    list_tasks,
)
from kexue.clue.submission import read_predictions
from kexue.errors import DataError

SAMPLES = Path(__file__).parents[2] / "src/kexue/clue/samples"


def answers(examples):
    """The gold answers of samples, as predictions."""
    return [
        example.label if hasattr(example, "label") else example.mentions if isinstance(example, EntityExample)
        else example.answer if hasattr(example, "answer") else example.answers[0].text
        for example in examples
    ]  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    """A folder of predictions of every task, and one with the test files, which are the samples."""
    out, data = tmp_path / "out", tmp_path / "data"
    out.mkdir()
    for info in list_tasks():
        examples = get_task(info.name).sample()
        for submission in info.submissions:
            get_task(info.name).write_submission(answers(examples), out / submission, examples)
        folder = data / (info.name if info.framing == "text" else f"{info.name}_public")
        folder.mkdir(parents=True)
        tests = ("test1.0.json", "test1.1.json") if len(info.submissions) == 2 else ("test.json",)
        for name in tests:
            shutil.copy(SAMPLES / f"{info.name}.json", folder / name)
    return out, data


def rewrite(path, change):
    """Change the records of a file of JSON Lines, or its object."""
    if path.name.startswith(("cmrc", "chid")):
        path.write_text(json.dumps(change(json.loads(path.read_text()))), encoding="utf-8")
        return
    records = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")


def with_field(number, **fields):
    """A change of one record of JSON Lines."""
    return lambda records: [one | fields if i == number else one for i, one in enumerate(records)]


def test_what_is_written_is_accepted(folders):
    out, data = folders
    for report in (check_submission(out), check_submission(out, data=data)):
        assert report.ok
        assert report.problems == ()
        assert [file.name for file in report.files] == sorted(n for info in list_tasks() for n in info.submissions)
        assert all(file.ok and file.lines == 20 for file in report.files)


def test_what_is_written_is_read_again(folders):
    out, _ = folders
    for info in list_tasks():
        examples = get_task(info.name).sample()
        assert read_predictions(info, out / info.submissions[0], examples) == answers(examples)


def test_files_look_as_the_site_wants_them(folders):
    out, _ = folders
    assert (out / "afqmc_predict.json").read_text().splitlines()[0] == '{"id": "0", "label": "1"}'
    assert json.loads((out / "c310_predict.json").read_text().splitlines()[0]) == {"id": "0", "label": "3"}
    assert json.loads((out / "chid11_predict.json").read_text())["#idiom000000#"] == 8
    assert json.loads((out / "cmrc2018_predict.json").read_text())["SAMPLE_0_QUERY_0"] == "一七六二年"
    first = json.loads((out / "cluener_predict.json").read_text().splitlines()[0])
    assert first["id"] == 0
    assert first["text"].startswith("沈若兰")
    assert first["label"] == {"name": {"沈若兰": [[0, 2]]}, "address": {"苏州": [[4, 5]]}}


def test_predictions_without_examples(tmp_path):
    path = tmp_path / "tnews10_predict.json"
    get_task("tnews").write_submission(["100", "101"], path)
    assert path.read_text() == '{"id": "0", "label": "100"}\n{"id": "1", "label": "101"}\n'
    get_task("tnews").write_submission({"7": "100"}, path)
    assert path.read_text() == '{"id": "7", "label": "100"}\n'
    get_task("cmrc2018").write_submission({"Q": "答"}, path)
    assert json.loads(path.read_text()) == {"Q": "答"}


@pytest.mark.parametrize(
    ("name", "predictions", "examples", "message"),
    [
        ("cmrc2018", ["答"], None, "needs the examples"),
        ("chid", [1], None, "needs the examples"),
        ("cluener", [{}], None, "needs the examples"),
        ("tnews", ["100"], [], "1 predictions for 0 examples"),
        ("tnews", {}, [TextExample("3", "a")], "no prediction for the example '3'"),
        ("tnews", ["105"], None, "must be one of 100.*'105'"),
        ("tnews", [100], None, "must be one of 100"),
        ("c3", [4], None, "0 to 3"),
        ("c3", ["1"], None, "0 to 3"),
        ("chid", {"#idiom000001#": 10}, None, "0 to 9"),
        ("cmrc2018", {"Q": 3}, None, "a text"),
        ("cluener", [{"name": {"王": [[0, 1]]}}], [EntityExample("0", "王芳在")], "the text has '王芳'"),
    ],
)
def test_what_the_site_would_refuse_is_not_written(name, predictions, examples, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        get_task(name).write_submission(predictions, tmp_path / "file.json", examples)
    assert list(tmp_path.iterdir()) == []


# file, change of its records, message, line; without the test files
FAULTS = [
    ("afqmc_predict.json", with_field(2, label="2"), "one of 0, 1", 3),
    ("tnews10_predict.json", with_field(0, label="105"), "one of 100, 101", 1),
    ("tnews11_predict.json", with_field(0, label=100), "as text", 1),
    ("iflytek_predict.json", with_field(5, label="119"), "0 to 118", 6),
    ("cmnli_predict.json", with_field(5, label="-"), "entailment", 6),
    ("cluewsc10_predict.json", with_field(5, label="True"), "false, true", 6),
    ("csl_predict.json", lambda records: [{"label": "1"}, *records[1:]], "'id' must be", 1),
    ("ocnli_50k_predict.json", lambda records: [{"id": "0"}, *records[1:]], "must be one of entailment", 1),
    ("ocnli_50k_predict.json", lambda records: [3, *records[1:]], "expected an object", 1),
    ("ocnli_50k_predict.json", lambda records: [*records, records[3]], "the id '3' is there twice", 21),
    ("ocnli_50k_predict.json", lambda records: [], "no predictions", None),
    ("c310_predict.json", with_field(1, label="4"), "must be 0 to 3", 2),
    ("c311_predict.json", with_field(1, label=1), "index of an option as text", 2),
    ("cmrc2018_predict.json", lambda found: {**found, "SAMPLE_0_QUERY_0": 3}, "must be a text", None),
    ("chid10_predict.json", lambda found: {**found, "#idiom000003#": 10}, "must be 0 to 9", None),
    ("chid11_predict.json", lambda found: {**found, "#idiom000003#": "1"}, "must be 0 to 9", None),
    ("chid11_predict.json", lambda found: {**found, "#idiom000003#": True}, "must be 0 to 9", None),
    ("cluener_predict.json", with_field(0, label={"name": {"沈若兰": [[0, 3]]}}), "the text has '沈若兰在'", 1),
    ("cluener_predict.json", with_field(0, label={"person": {"沈若兰": [[0, 2]]}}), "no type of entity", 1),
    ("cluener_predict.json", with_field(0, label={"name": {"沈若兰": [[0, 99]]}}), "no span of a text", 1),
    ("cluener_predict.json", with_field(0, label=None), "must be an object", 1),
    ("cluener_predict.json", with_field(0, text=None), "'text' must be", 1),
]


@pytest.mark.parametrize(("name", "change", "message", "line"), FAULTS)
def test_faults_of_a_file(name, change, message, line, folders):
    out, _ = folders
    rewrite(out / name, change)
    report = check_submission(out)
    assert not report.ok
    assert [problem.file for problem in report.problems] == [name]
    assert message in report.problems[0].message
    assert report.problems[0].line == line
    assert [file.name for file in report.files if not file.ok] == [name]


def swap(records):
    return [records[1], records[0], *records[2:]]


COMPARED = [
    ("afqmc_predict.json", lambda records: records[:-1], "19 lines, but the test file has 20"),
    ("tnews10_predict.json", lambda records: [*records, {"id": "20", "label": "100"}], "21 lines"),
    ("cmnli_predict.json", swap, "the id is '1', but the test file has '0' here"),
    ("cluener_predict.json", swap, "the id is '1', but the test file has '0' here"),
    ("iflytek_predict.json", with_field(4, id="x"), "the id is 'x', but the test file has '4' here"),
    ("cluener_predict.json", with_field(19, text="今天没有新闻", label={}), "the text differs"),
    ("cmrc2018_predict.json", lambda found: {k: v for k, v in found.items() if k[7] != "4"}, "4 of 20 ids are missing"),
    ("cmrc2018_predict.json", lambda found: {**found, "OTHER": "x"}, "1 ids are not of the test file"),
    ("chid10_predict.json", lambda found: dict(list(found.items())[1:]), "'#idiom000000#'"),
    ("chid11_predict.json", lambda found: {**found, "#idiom999999#": 1}, "the first is '#idiom999999#'"),
    ("chid11_predict.json", lambda found: {**found, "#idiom000001#": found["#idiom000000#"]}, "have the same idiom"),
]


@pytest.mark.parametrize(("name", "change", "message"), COMPARED)
def test_faults_beside_the_test_file(name, change, message, folders):
    out, data = folders
    rewrite(out / name, change)
    assert check_submission(out).ok  # the file itself is in order
    report = check_submission(out, data=data)
    assert not report.ok
    assert {problem.file for problem in report.problems} == {name}
    assert any(message in problem.message for problem in report.problems)


def test_an_option_that_the_question_does_not_have(folders):
    out, data = folders
    number = [len(example.options) for example in get_task("c3").sample()].index(2)
    rewrite(out / "c311_predict.json", with_field(number, label="2"))
    (problem,) = check_submission(out, data=data).problems
    assert problem.line == number + 1
    assert "option 2 of a question with 2 options" in problem.message


def test_an_id_that_is_there_twice_in_an_object(folders):
    out, _ = folders
    (out / "cmrc2018_predict.json").write_text('{"A": "x", "B": "y", "A": "z"}')
    (problem,) = check_submission(out).problems
    assert problem.message == "'A': the id is there twice"


def test_names_that_the_site_does_not_know(folders):
    out, _ = folders
    (out / "ocnli_50k_predict.json").rename(out / "ocnli_predict.json")
    (out / ".hidden.json").write_text("x")
    (out / "notes.txt").write_text("x")
    (problem,) = check_submission(out).problems
    assert problem.file == "ocnli_predict.json"
    assert "did you mean ocnli_50k_predict.json?" in problem.message


@pytest.mark.parametrize(
    ("name", "content", "message", "line"),
    [
        ("afqmc_predict.json", '{"id": "0", "label": "1"}\n\n', "the line is empty", 2),
        ("afqmc_predict.json", '{"id": "0", "label": "1"}\n{"id"\n', "not JSON", 2),
        ("afqmc_predict.json", '[{"id": "0", "label": "1"}]', "expected an object", 1),
        ("chid10_predict.json", '{"a": 1', "not JSON", 1),
        ("chid10_predict.json", '[{"a": 1}]', "expected an object", None),
        ("chid10_predict.json", '{"a": 1.0}', "'a': the index must be 0 to 9, got 1.0", None),
        ("c310_predict.json", '{"id": "0", "label": "０"}', "the index of an option as text", 1),
        ("c310_predict.json", '{"id": "0", "label": "00"}', "the index of an option as text", 1),
        ("c310_predict.json", '{"id": "0", "label": "' + 5000 * "9" + '"}', "the index of an option as text", 1),
    ],
)
def test_files_of_another_form(name, content, message, line, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    report = check_submission(tmp_path)
    assert not report.ok
    assert report.problems[0].line == line
    assert message in report.problems[0].message


@pytest.mark.parametrize("name", ["cluener_predict.json", "cmrc2018_predict.json"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.encode("utf-8-sig"), "byte order mark"),
        (lambda text: text.encode("gb18030"), "not UTF-8"),
        (lambda text: text.encode("utf-16"), "not UTF-8"),
        (lambda text: gzip.compress(text.encode()), "not UTF-8"),
    ],
)
def test_a_file_in_another_encoding_is_refused(name, change, message, folders, tmp_path):
    out, data = folders
    (out / name).write_bytes(change((out / name).read_text(encoding="utf-8")))
    for report in (check_submission(out), check_submission(out, data=data)):
        assert [problem.file for problem in report.problems] == [name]
        assert message in report.problems[0].message
    with pytest.raises(DataError, match=name):
        bundle_submission(out, tmp_path / "submit.zip")


def test_the_folder_of_one_task_beside_predictions_of_several(folders):
    out, data = folders
    report = check_submission(out, data=data / "afqmc")
    assert [file.name for file in report.files if file.ok] == ["afqmc_predict.json"]
    (problem,) = [problem for problem in report.problems if problem.file == "csl_predict.json"]
    assert "cannot be compared: " in problem.message
    assert "a record of afqmc, not of csl" in problem.message


def test_folders_without_anything_to_check(tmp_path):
    assert "no predictions" in check_submission(tmp_path).problems[0].message
    with pytest.raises(DataError, match="no such folder"):
        check_submission(tmp_path / "none")
    with pytest.raises(DataError, match="no such folder"):
        check_submission(tmp_path, data=tmp_path / "none")


def test_test_files_that_are_absent_or_packed(folders):
    out, data = folders
    (data / "afqmc" / "test.json").rename(data / "afqmc" / "old.json")
    (problem,) = check_submission(out, data=data).problems
    assert "cannot be compared: no test.json of afqmc" in problem.message
    for path in out.iterdir():
        if path.name != "tnews11_predict.json":
            path.unlink()
    assert check_submission(out, data=data / "tnews").ok  # the folder of the task itself


def test_bundle_holds_the_files_and_nothing_else(folders, tmp_path):
    out, _ = folders
    (out / "notes.txt").write_text("x")
    path = bundle_submission(out, tmp_path / "submit.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == sorted(n for info in list_tasks() for n in info.submissions)
        for name in archive.namelist():
            assert archive.read(name) == (out / name).read_bytes()
    again = bundle_submission(out, tmp_path / "again.zip")
    assert again.read_bytes() == path.read_bytes()


def test_bundle_refuses_faults(folders, tmp_path):
    out, _ = folders
    rewrite(out / "afqmc_predict.json", with_field(2, label="2"))
    with pytest.raises(DataError, match=r"afqmc_predict.json, line 3: .*one of 0, 1.*check-submission"):
        bundle_submission(out, tmp_path / "submit.zip")
    assert not (tmp_path / "submit.zip").exists()
    with pytest.raises(ValueError, match=r"\.zip"):
        bundle_submission(out, tmp_path / "submit.tar")


def test_predictions_of_other_examples(folders):
    out, _ = folders
    examples = [TextExample("99", "a", "b", "1")]
    with pytest.raises(DataError, match="no prediction for 1 of 1 examples, the first with the id '99'"):
        read_predictions(TASKS["afqmc"], out / "afqmc_predict.json", examples)
    rewrite(out / "afqmc_predict.json", with_field(2, label="2"))
    with pytest.raises(DataError, match="line 3: the label must be one of"):
        read_predictions(TASKS["afqmc"], out / "afqmc_predict.json", get_task("afqmc").sample())


def test_ids_that_are_there_twice_are_scored_by_place_or_refused(tmp_path):
    task = get_task("afqmc")
    golds = [TextExample("1", "a", "b", "1"), TextExample("1", "c", "d", "0")]
    file = tmp_path / "predictions.json"
    task.write_submission(["1", "0"], file, golds)
    assert read_predictions(task.info, file, golds) == ["1", "0"]
    with pytest.raises(DataError, match="line 2: the id '1' is there twice"):
        read_predictions(task.info, file, golds[:1])
    for name, value in (("cmrc2018", "x"), ("chid", 1)):  # one object holds an id once
        with pytest.raises(ValueError, match="the id '1' is there twice"):
            get_task(name).write_submission([value, value], file, golds)


def test_predictions_without_a_gold_answer_are_told(tmp_path, caplog):
    task, file = get_task("afqmc"), tmp_path / "predictions.json"
    task.write_submission(["1", "0", "1"], file)
    assert read_predictions(task.info, file, [TextExample("1", "a", "b", "1")]) == ["0"]
    assert "2 of 3 predictions are of ids without a gold answer" in caplog.text


def test_entities_of_other_texts_are_not_scored(folders):
    out, _ = folders
    examples = get_task("cluener").sample()
    other = [*examples[:4], EntityExample(examples[4].id, "另一句话", ()), *examples[5:]]
    with pytest.raises(DataError, match="line 5: the text of '4' is "):
        read_predictions(TASKS["cluener"], out / "cluener_predict.json", other)


@pytest.mark.parametrize("id_", ["7", "007", "a", "９"])
def test_the_id_of_a_text_with_entities_is_that_of_its_file(id_, tmp_path):
    task, file = get_task("cluener"), tmp_path / "cluener_predict.json"
    examples = [EntityExample(id_, "王芳在北京")]
    task.write_submission([{}], file, examples)
    assert read_predictions(task.info, file, examples) == [{}]
    assert json.loads(file.read_text(encoding="utf-8"))["id"] == (7 if id_ == "7" else id_)


def test_scores_of_lists_of_examples_and_of_mappings():
    task = get_task("cmrc2018")
    examples = task.sample()
    texts = answers(examples)
    assert task.metric(texts, examples)["em"] == 1
    assert task.metric([None, *texts[1:]], examples) == {"em": 0.95, "f1": 0.95, "n": 20}
    assert task.metric({example.id: "无" for example in examples}, examples)["em"] == 0
    assert task.metric({"Q": "甲"}, {"Q": ["甲"]})["em"] == 1
    assert get_task("tnews").metric(["100"], ["101"]) == {"accuracy": 0}
    assert get_task("tnews").metric({"b": "100", "a": "101"}, {"a": "101", "b": "102"}) == {"accuracy": 0.5}
    for name, gold in (("tnews", "101"), ("c3", 1), ("cluener", {})):
        with pytest.raises(ValueError, match=r"no prediction for example 0 \(id 'a'\)"):
            get_task(name).metric({}, {"a": gold})
    headlines = get_task("tnews").sample()
    assert get_task("tnews").metric({one.id: one.label for one in headlines}, headlines) == {"accuracy": 1}
    with pytest.raises(ValueError, match="1 predictions for 20 gold answers"):
        task.metric(["x"], examples)
