"""Files of every task, in the original form, and what is wrong with files that cannot be used."""

import gzip
import json
import logging
import random

import pytest

from kexue.clue import (
    TASKS,
    Answer,
    Entity,
    IdiomExample,
    SpanExample,
    TextExample,
    check_submission,
    get_task,
    list_tasks,
)
from kexue.clue.readers.guess import guess_tasks
from kexue.errors import DataError

SOUND = {
    "afqmc": {"sentence1": "怎么还款", "sentence2": "如何还钱", "label": "1"},
    "tnews": {"label": "102", "label_desc": "news_entertainment", "sentence": "新片上映", "keywords": ""},
    "iflytek": {"label": "17", "label_des": "休闲益智", "sentence": "消除方块的小游戏"},
    "cmnli": {"sentence1": "下雨了", "sentence2": "天气不好", "label": "neutral"},
    "ocnli": {"sentence1": "下雨了", "sentence2": "没下雨", "label": "contradiction", "genre": "tv", "id": 3},
    "cluewsc2020": {
        "target": {"span1_text": "小猫", "span1_index": 0, "span2_text": "它", "span2_index": 5},
        "idx": 7, "label": "true", "text": "小猫饿了，它在叫。",
    },
    "csl": {"id": 1, "abst": "研究了土壤的温度。", "keyword": ["土壤", "温度"], "label": "1"},
    "cmrc2018": {"context": "桥建于唐代。", "qas": [
        {"id": "Q0", "question": "桥建于何时？", "answers": [{"text": "唐代", "answer_start": 3}]}]},
    "c3": [["男：几点了？", "女：八点。"], [{"question": "几点", "choice": ["七点", "八点"], "answer": "八点"}], "1"],
    "chid": {"content": ["他#idiom000001#地走了。"], "candidates": ["垂头丧气", "一举两得"]},
    "cluener": {"text": "王芳在北京", "label": {"name": {"王芳": [[0, 1]]}, "address": {"北京": [[3, 4]]}}},
}  # fmt: skip


def write(path, *records):
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


def changed(task, **fields):
    return {**SOUND[task], **fields}


def without(task, field):
    return {key: value for key, value in SOUND[task].items() if key != field}


def test_every_task_has_about_twenty_samples_with_answers():
    for info in list_tasks():
        task = get_task(info.name)
        examples = task.sample()
        assert len(examples) == 20
        assert len({example.id for example in examples}) == 20
        if info.framing == "entity":
            predictions = [example.mentions for example in examples]
            assert {entity.type for example in examples for entity in example.entities} == set(info.labels)
        elif info.framing == "span":
            predictions = [example.answers[0].text for example in examples]
        else:
            predictions = [example.label if info.framing == "text" else example.answer for example in examples]
        assert task.metric(predictions, examples)[info.metric] == 1


def test_tasks_by_name():
    assert list(TASKS) == [info.name for info in list_tasks()]
    assert repr(get_task("c3")) == "Task('c3')"
    with pytest.raises(ValueError, match=r"'tnew'.*tnews"):
        get_task("tnew")
    assert {"105", "111"}.isdisjoint(TASKS["tnews"].labels)
    assert len(TASKS["tnews"].labels) == 15
    assert len(TASKS["iflytek"].labels) == 119


def test_pairs_and_texts(tmp_path):
    file = write(tmp_path / "dev.json", changed("afqmc", id=5), changed("afqmc", id="x7", label=0), SOUND["afqmc"])
    read = get_task("afqmc").read(file)
    assert [one.id for one in read] == ["5", "x7", "2"]  # the place where there is no id
    assert [one.label for one in read] == ["1", "0", "1"]
    assert read[0] == TextExample("5", "怎么还款", "如何还钱", "1")
    file = write(tmp_path / "csl.json", SOUND["csl"])
    assert get_task("csl").read(file) == [TextExample("1", "土壤；温度", "研究了土壤的温度。", "1")]


def test_a_compressed_file_with_a_byte_order_mark_and_blank_lines(tmp_path):
    line = json.dumps(SOUND["tnews"], ensure_ascii=False)
    path = tmp_path / "dev.json.gz"
    path.write_bytes(gzip.compress(f"\ufeff{line}\r\n\r\n{line}\r\n".encode()))
    assert [one.label for one in get_task("tnews").read(path)] == ["102", "102"]


def test_test_files_have_no_answers(tmp_path):
    for name in ("afqmc", "tnews", "iflytek", "cmnli", "ocnli", "cluewsc2020", "csl"):
        (example,) = get_task(name).read(write(tmp_path / "test.json", without(name, "label")))
        assert example.label is None
    (example,) = get_task("cluener").read(write(tmp_path / "test.json", {"id": 4, "text": "王芳在北京"}))
    assert (example.id, example.entities, example.mentions) == ("4", None, None)
    passage, (question,), id_ = SOUND["c3"]
    unanswered = [passage, [{**question, "id": 9}], id_]
    del unanswered[1][0]["answer"]
    (example,) = get_task("c3").read(write(tmp_path / "test.json", unanswered))
    assert (example.id, example.answer) == ("9", None)
    with pytest.raises(ValueError, match="no gold answer"):
        get_task("c3").metric([0], [example])


@pytest.mark.parametrize(("noun", "pronoun"), [((0, "小猫"), (5, "它")), ((5, "它在"), (0, "小"))])
def test_spans_of_the_pronoun_task_in_both_orders(tmp_path, noun, pronoun):
    target = {"span1_index": noun[0], "span1_text": noun[1], "span2_index": pronoun[0], "span2_text": pronoun[1]}
    (example,) = get_task("cluewsc2020").read(write(tmp_path / "a.json", changed("cluewsc2020", target=target)))
    assert example.id == "7"
    assert f"_{noun[1]}_" in example.first
    assert f"[{pronoun[1]}]" in example.first
    assert example.first.translate({ord(mark): None for mark in "_[]"}) == SOUND["cluewsc2020"]["text"]


def test_spans_that_touch_or_overlap(tmp_path):
    target = {"span1_index": 0, "span1_text": "小猫", "span2_index": 2, "span2_text": "饿"}
    (example,) = get_task("cluewsc2020").read(write(tmp_path / "a.json", changed("cluewsc2020", target=target)))
    assert example.first == "_小猫_[饿]了，它在叫。"
    target |= {"span2_index": 1, "span2_text": "猫"}
    (example,) = get_task("cluewsc2020").read(write(tmp_path / "a.json", changed("cluewsc2020", target=target)))
    assert example.first.count("_") == 2


def test_undecided_pairs_are_left_out_and_counted(tmp_path, caplog):
    file = write(tmp_path / "dev.json", changed("ocnli", label="-"), SOUND["ocnli"], changed("ocnli", label="-"))
    with caplog.at_level(logging.WARNING):
        assert len(get_task("ocnli").read(file)) == 1
    assert "left out 2 of 3 pairs" in caplog.text


def test_c3_as_array_and_as_lines(tmp_path):
    records = [SOUND["c3"], SOUND["c3"]]
    array = tmp_path / "m-dev.json"
    for indent in (None, 2):
        array.write_text(json.dumps(records, ensure_ascii=False, indent=indent), encoding="utf-8")
        as_array = get_task("c3").read(array)
        assert as_array == get_task("c3").read(write(tmp_path / "lines.json", *records))
        assert (as_array[1].id, as_array[1].passage, as_array[1].answer) == ("1", "男：几点了？||女：八点。", 1)
    assert len(get_task("c3").read(write(tmp_path / "one.json", SOUND["c3"]))) == 1


def test_squad_as_one_object_and_as_lines_of_paragraphs(tmp_path):
    whole = {"version": "v1.0", "data": [{"paragraphs": [SOUND["cmrc2018"]]}, {"paragraphs": [SOUND["cmrc2018"]]}]}
    squad = tmp_path / "dev.json"
    squad.write_text(json.dumps(whole, ensure_ascii=False, indent=1), encoding="utf-8")
    lines = write(tmp_path / "lines.json", SOUND["cmrc2018"], SOUND["cmrc2018"])
    expected = SpanExample("Q0", "桥建于唐代。", "桥建于何时？", (Answer("唐代", 3),))
    assert get_task("cmrc2018").read(squad) == get_task("cmrc2018").read(lines) == [expected, expected]


def squad_file(path, *answers):
    qas = [{"id": f"Q{i}", "question": "？", "answers": list(some)} for i, some in enumerate(answers)]
    return write(path, {"context": "桥建于唐代，唐代多桥。", "qas": qas})


def test_answers_that_are_no_span_count_and_misplaced_ones_move(tmp_path, caplog):
    outside, off = {"text": "在唐朝", "answer_start": -1}, {"text": "唐代", "answer_start": 5}
    with caplog.at_level(logging.WARNING):
        (example,) = get_task("cmrc2018").read(squad_file(tmp_path / "a.json", [outside, off]))
    assert example.answers == (Answer("在唐朝", -1), Answer("唐代", 6))  # the nearer one of two places
    assert "moved 1 answers" in caplog.text


def test_squad_tests_have_no_answers(tmp_path):
    unknown = {"text": "FAKE", "answer_start": -1}
    first, second = get_task("cmrc2018").read(squad_file(tmp_path / "a.json", [unknown], []))
    assert first.answers is None
    assert second.answers is None


def test_idioms_with_the_file_of_answers(tmp_path):
    record = {"content": ["他#idiom000010#，又#idiom000011#。", "她#idiom000012#。"], "candidates": list("甲乙丙丁")}
    for ending in ("", ".gz"):
        name = tmp_path / f"dev{ending or '.x'}"
        name.mkdir()
        content = json.dumps(record, ensure_ascii=False).encode()
        answers = json.dumps({f"#idiom00001{i}#": 3 - i for i in range(3)}).encode()
        pack = gzip.compress if ending else bytes
        (name / f"dev.json{ending}").write_bytes(pack(content))
        unanswered = get_task("chid").read(name / f"dev.json{ending}")
        assert [one.answer for one in unanswered] == [None, None, None]
        (name / f"dev_answer.json{ending}").write_bytes(pack(answers))
        read = get_task("chid").read(name / f"dev.json{ending}")
        assert read[1] == IdiomExample("#idiom000011#", "0", "他#idiom000010#，又", "。", tuple("甲乙丙丁"), 2)
        assert [one.answer for one in read] == [3, 2, 1]
        assert {one.group for one in read} == {"0"}


def test_idioms_of_fewclue(tmp_path):
    record = {"id": 24, "candidates": ["一举两得", "垂头丧气"], "content": "真是#idiom#。", "answer": 0}
    (example,) = get_task("chid").read(write(tmp_path / "dev.json", record))
    assert example == IdiomExample("#idiom000024#", "0", "真是", "。", ("一举两得", "垂头丧气"), 0)
    (example,) = get_task("chid").read(write(tmp_path / "dev.json", record | {"id": "x"}))
    assert example.id == "#idiom00000x#"


def test_entities(tmp_path):
    (example,) = get_task("cluener").read(write(tmp_path / "dev.json", SOUND["cluener"]))
    assert example.entities == (Entity("name", 0, 1), Entity("address", 3, 4))
    assert example.mentions == SOUND["cluener"]["label"]


@pytest.mark.parametrize("name", TASKS)
def test_a_file_of_another_task_is_named(name, tmp_path):
    file = write(tmp_path / "dev.json", SOUND[name])
    for other in TASKS:
        compatible = {name, other} == {"cmnli", "ocnli"} and name == "cmnli"  # the same fields and labels
        if other == name or compatible:
            get_task(other).read(file)
        else:
            with pytest.raises(DataError, match=rf"line 1: this is a record of .*{name}.*, not of {other}"):
                get_task(other).read(file)


BAD = [
    ("afqmc", without("afqmc", "sentence2"), "'sentence2' is missing"),
    ("afqmc", changed("afqmc", sentence1=" "), "'sentence1' is empty"),
    ("afqmc", changed("afqmc", sentence1=5), "'sentence1' must be a text"),
    ("afqmc", changed("afqmc", label="2"), "label '2' is none of afqmc.* 0, 1"),
    ("afqmc", changed("afqmc", label=None), "'label' must be"),
    ("afqmc", without("afqmc", "label"), "'label' is missing"),
    ("afqmc", changed("afqmc", id=[1]), "'id' must be"),
    ("afqmc", "no object", "expected an object"),
    ("tnews", changed("tnews", label="105"), "'105' is none of tnews.*104, 106"),
    ("tnews", changed("tnews", label=111), "'111' is none of tnews"),
    ("iflytek", changed("iflytek", label="119"), "'119' is none of iflytek.* 0 to 118"),
    ("cmnli", changed("cmnli", label="entails"), "'entails' is none of cmnli"),
    ("csl", changed("csl", keyword=[]), "'keyword' must be a list"),
    ("csl", changed("csl", keyword=["土壤", ""]), "'keyword' must be a list"),
    ("cluewsc2020", changed("cluewsc2020", target={}), "target: the field 'span1_text' is missing"),
    (
        "cluewsc2020",
        changed("cluewsc2020", target={**SOUND["cluewsc2020"]["target"], "span1_index": 1}),
        "span1_text is '小猫', but the text has '猫饿' at span1_index 1",
    ),
    (
        "cluewsc2020",
        changed("cluewsc2020", target={**SOUND["cluewsc2020"]["target"], "span2_index": -5}),
        "span2_text is '它'.*span2_index -5",
    ),
    ("cmrc2018", {"context": "", "qas": []}, "'context' is empty"),
    ("cmrc2018", {"context": "桥"}, "'qas' is missing"),
    (
        "cmrc2018",
        {"context": "桥", "qas": [{"question": "？", "answers": [{"text": "河", "answer_start": 0}]}]},
        "question 1, answer 1: the answer '河' is not in the text",
    ),
    ("c3", [["话"], [{"question": "？", "choice": ["甲", "乙"], "answer": "丙"}], "x"], "'丙' is none of the options"),
    ("c3", [["话"], [{"question": "？", "choice": ["甲"], "answer": "甲"}], "x"], "2 to 4 texts"),
    ("c3", [["话"], [{"question": "", "choice": ["甲", "乙"], "answer": "甲"}], "x"], "'question' is empty"),
    ("c3", [[""], [], "x"], "the passage must be"),
    ("c3", {"question": "？"}, "expected .*lines of the passage"),
    ("chid", {"content": ["没有空"], "candidates": ["甲", "乙"]}, "no blank"),
    ("chid", {"content": ["#idiom000001#"], "candidates": ["甲"]}, "'candidates' must be"),
    ("chid", {"content": "#idiom000001#", "candidates": ["甲", "乙"], "answer": 2}, "must be 0 to 1, got 2"),
    ("chid", {"content": "#idiom#和#idiom#", "candidates": ["甲", "乙"], "id": 7}, "#idiom000007# is there twice"),
    ("cluener", {"text": "王芳", "label": {"person": {"王芳": [[0, 1]]}}}, "'person' is no type"),
    ("cluener", {"text": "王芳", "label": {"name": {"王芳": [[0, 2]]}}}, "no span of a text of 2"),
    ("cluener", {"text": "王芳", "label": {"name": {"王芳": [[1, 0]]}}}, "no span of a text"),
    ("cluener", {"text": "王芳在", "label": {"name": {"王芳": [[1, 2]]}}}, r"the text has '芳在' at \[1, 2\]"),
    ("cluener", {"text": "王芳", "label": {"name": {"王芳": []}}}, "must be a list of"),
    ("cluener", {"text": "王芳", "label": {"name": [[0, 1]]}}, "must be an object of mentions"),
    ("cluener", {"text": "", "label": {}}, "'text' is empty"),
]


@pytest.mark.parametrize(("name", "record", "message"), BAD)
def test_what_is_wrong_is_told_with_its_line(name, record, message, tmp_path):
    file = write(tmp_path / "dev.json", SOUND[name], record)
    with pytest.raises(DataError, match=message) as caught:
        get_task(name).read(file)
    assert caught.value.line == 2
    assert caught.value.path == str(file)


def test_questions_without_an_id_are_numbered(tmp_path):
    question = {"id": None, "question": "？", "choice": ["甲", "乙"], "answer": "甲"}
    file = write(tmp_path / "c3.json", [["话"], [question, question], "x"], [["话"], [question], "y"])
    assert [one.id for one in get_task("c3").read(file)] == ["0", "1", "2"]
    question = {"id": None, "question": "？", "answers": []}
    file = write(tmp_path / "cmrc.json", {"context": "话", "qas": [question, question]})
    assert [one.id for one in get_task("cmrc2018").read(file)] == ["0", "1"]


def test_labels_of_some_records_only(tmp_path):
    file = write(tmp_path / "dev.json", without("afqmc", "label"), SOUND["afqmc"])
    with pytest.raises(DataError, match="line 2: has a 'label', but the first record has none"):
        get_task("afqmc").read(file)
    file = write(tmp_path / "ner.json", {"text": "王芳"}, SOUND["cluener"])
    with pytest.raises(DataError, match="line 2: has a 'label', but the first record has none"):
        get_task("cluener").read(file)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"sentence1": "a", "sentence2": "b"}\n{"sentence1": \n', 2),
        ('{"sentence1": "a", \n{"sentence1": "a", "sentence2": "b"}\n', 1),
        ('{"sentence1": "a"', 1),
        ('[{"sentence1": "a"},\n {"sentence1": }]', 2),
    ],
)
def test_broken_json_is_told_with_its_line(content, line, tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="not JSON") as caught:
        get_task("afqmc").read(path)
    assert caught.value.line == line


def test_half_a_surrogate_pair_is_told_with_its_line(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text('{"text": "b"}\n{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(DataError, match="line 3: a text holds half a surrogate pair"):
        get_task("cluener").read(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        get_task("afqmc").read(tmp_path / "none.json")
    (tmp_path / "empty.json").write_text("\n\n")
    with pytest.raises(DataError, match="the file is empty"):
        get_task("afqmc").read(tmp_path / "empty.json")
    (tmp_path / "bytes.json").write_bytes(b'{"sentence1": "\xff"}')
    with pytest.raises(DataError, match="not UTF-8"):
        get_task("afqmc").read(tmp_path / "bytes.json")


def test_answers_of_idioms_that_do_not_fit(tmp_path):
    file = write(tmp_path / "dev.json", SOUND["chid"])
    answers = tmp_path / "dev_answer.json"
    for content, message in (
        ("{}", "no answer for #idiom000001#"),
        ('{"#idiom000001#": "1"}', "must be a whole number"),
        ('{"#idiom000001#": 2}', "must be 0 to 1, got 2"),
        ("[]", "expected an object"),
    ):
        answers.write_text(content)
        with pytest.raises(DataError, match=message):
            get_task("chid").read(file)


@pytest.mark.parametrize("value", [None, 3, "text", [], [1, 2], {}, {"x": 1}])
def test_other_values_are_of_no_task(value):
    assert guess_tasks(value) == ()


JUNK = [None, True, 3, -1.5, "", "文", [], ["文"], [[0, 1]], {}, {"text": 1}]


def damage(rng, value):
    """A record of which some parts are missing or of another type."""
    if rng.random() < 0.15:
        return rng.choice(JUNK)
    if isinstance(value, dict):
        return {key: damage(rng, part) for key, part in value.items() if rng.random() < 0.95}
    return [damage(rng, part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", TASKS)
def test_damaged_records_are_read_or_refused_in_words(name, tmp_path):
    rng = random.Random(name)
    refused = accepted = 0
    for _ in range(100):
        file = write(tmp_path / "x.json", damage(rng, SOUND[name]), damage(rng, SOUND[name]))
        submission = tmp_path / TASKS[name].submissions[0]
        submission.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        check_submission(tmp_path)
        try:
            get_task(name).read(file)
        except DataError as error:
            refused += str(file) in str(error)
        else:
            accepted += 1
    assert refused + accepted == 100
    assert refused > 10


@pytest.mark.data
def test_published_files_are_read(data_folder):
    files = {
        "tnews": ["fewclue_tnews/dev_few_all", "fewclue_tnews/unlabeled"], "iflytek": ["fewclue_iflytek/dev_few_all"],
        "cmnli": ["cmnli/dev"], "ocnli": ["ocnli/dev", "fewclue_ocnli/dev_few_all"], "csl": ["fewclue_csl/dev_few_all"],
        "cluewsc2020": ["fewclue_cluewsc/test_public"], "cmrc2018": ["cmrc2018/dev", "cmrc2018/trial"],
        "c3": ["c3/m-dev", "c3/d-dev"], "chid": ["fewclue_chid/dev_few_all", "fewclue_chid/unlabeled"],
        "cluener": ["cluener/dev", "cluener/test_unlabelled"],
    }  # fmt: skip
    rng = random.Random(0)
    for name, stems in files.items():
        for stem in stems:
            examples = get_task(name).read(data_folder / "clue" / f"{stem}.jsonl.gz")
            example = rng.choice(examples)
            if isinstance(example, SpanExample):
                for answer in example.answers:
                    end = answer.start + len(answer.text)
                    assert answer.start == -1 or example.context[answer.start : end] == answer.text
            assert len(examples) > 100
