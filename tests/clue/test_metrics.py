"""Scores against plain implementations of their definitions."""

import itertools
import math
import random

import numpy as np
import pytest

from kexue.clue import get_task, metrics
from kexue.clue.catalogue import ENTITY_TYPES
from kexue.clue.metrics import accuracy, assign_idioms, cluener_scores, cmrc_scores
from kexue.clue.words import split_words

# The punctuation that the definition deletes, and marks and words at its edges.
DELETED = ["-", ":", "_", "*", "^", "/", "\\", "~", "`", "+", "=", "，", "。", "：", "？", "！", "“", "”", "；", "’"]
DELETED += ["《", "》", "……", "·", "、", "「", "」", "（", "）", "－", "～", "『", "』"]
KEPT = [",", ".", "'", '"', "‘", "…", "(", ")", "%", "$", ";", "!", "?", "&", "#", "@", "<", "[", "«", "—", "–", " "]
WORDS = ["can't", "he's", "cannot", "3.5%", "a, b", "U.S.", "end.", "don't", "'tis", "gonna", "12:30", "3,36", "GPS"]
WORDS += [
    "wanna ",
    "''",
    "--",
    "...",
    "we'll",
    "I'm",
    "i’m",
    "d'ye",
    "more'n",
    "\u3000",
    "\t",
    "é",
    "龥",
    "龦",
    "ſ",
    "İ",
]
CHINESE = list("天地人大小山水火中国年一二")


def random_text(rng, most=8):
    pool = rng.choice([CHINESE, CHINESE + DELETED, CHINESE + KEPT, WORDS + KEPT, WORDS + KEPT + DELETED + CHINESE])
    return "".join(rng.choice(pool) for _ in range(rng.randrange(most)))


def plain_clean(text):
    text = text.lower().strip()
    out = ""
    for char in text:
        if char not in DELETED:  # "……" is two characters and equals none
            out += char
    return out


def plain_tokens(text, tokenize):
    tokens, run = [], ""
    for char in plain_clean(text):
        if 0x4E00 <= ord(char) <= 0x9FA5:
            if run:
                tokens += tokenize(run)
            run = ""
            tokens.append(char)
        else:
            run += char
    return tokens + (tokenize(run) if run else [])


def plain_f1(prediction, gold, tokenize):
    a, b = plain_tokens(prediction, tokenize), plain_tokens(gold, tokenize)
    best = 0
    for i in range(len(a)):
        for j in range(len(b)):
            n = 0
            while i + n < len(a) and j + n < len(b) and a[i + n] == b[j + n]:
                n += 1
            best = max(best, n)
    if best == 0:
        return 0.0
    precision, recall = best / len(a), best / len(b)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.slow  # loading NLTK takes seconds
def test_words_are_those_of_nltk():
    nltk = pytest.importorskip("nltk.tokenize")
    tokenize = nltk.NLTKWordTokenizer().tokenize
    rng = random.Random(0)
    for _ in range(10_000):
        text = "".join(rng.choice(WORDS + KEPT + DELETED + list("ab .,'\"`")) for _ in range(rng.randrange(12)))
        assert split_words(text) == tokenize(text), repr(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3.5%", ["3.5", "%"]),
        ("a, b", ["a", ",", "b"]),
        ("", []),
        ("   ", []),
        ("at 12:30, u.s. time.", ["at", "12:30", ",", "u.s.", "time", "."]),
        ('he said: "i can\'t."', ["he", "said", ":", "``", "i", "ca", "n't", ".", "''"]),
        ("(cannot--go)", ["(", "can", "not", "--", "go", ")"]),
    ],
)
def test_words_of_single_sentences(text, words):
    assert split_words(text) == words


@pytest.mark.slow  # loading NLTK takes seconds
def test_cmrc_scores_are_those_of_the_definition():
    nltk = pytest.importorskip("nltk.tokenize")
    tokenize = nltk.NLTKWordTokenizer().tokenize
    rng = random.Random(1)
    for _ in range(1_000):
        golds = {f"q{i}": [random_text(rng) for _ in range(rng.randint(1, 3))] for i in range(10)}
        predictions = {}
        for id_, answers in golds.items():
            kind = rng.random()
            if kind < 0.2:
                continue  # missing
            answer = rng.choice(answers)
            cut = rng.randrange(len(answer) + 1)
            predictions[id_] = rng.choice([answer, answer.upper(), answer[:cut], answer[cut:], random_text(rng)])
        em = f1 = 0.0
        for id_, answers in golds.items():
            if id_ in predictions:
                em += any(plain_clean(predictions[id_]) == plain_clean(answer) for answer in answers)
                f1 += max(plain_f1(predictions[id_], answer, tokenize) for answer in answers)
        scores = cmrc_scores(predictions, golds)
        assert scores["em"] == em / 10
        assert scores["f1"] == pytest.approx(f1 / 10, abs=1e-12)  # a sum in another order
        assert scores["n"] == 10


@pytest.mark.parametrize(
    ("prediction", "gold", "em", "f1"),
    [
        ("", "", 1, 0),  # two empty answers
        ("。", "", 1, 0),  # nothing remains of it
        ("北京", "北京。", 1, 1),
        (" 北京 ", "北京", 1, 1),
        ("GPS", "gps", 1, 1),
        ("北京", "北京,", 0, 0.8),  # the ASCII comma counts: 2 of 2 tokens and 2 of 3
        ("北京", "北京.", 0, 0.8),
        ("‘北京", "北京", 0, 0.8),  # the left quote counts, the right one does not
        ("’北京", "北京", 1, 1),
        ("北京……", "北京", 0, 0.8),  # the list has the mark of two characters, which equals no character
        ("中国北京", "北京中国", 0, 0.5),  # one piece, not a bag of characters
        ("3.5%", "3.5", 0, 2 / 3),
        ("天地", "山水", 0, 0),
    ],
)
def test_cmrc_edges(prediction, gold, em, f1):
    scores = cmrc_scores({"q": prediction}, {"q": [gold]})
    assert scores["em"] == em
    assert scores["f1"] == pytest.approx(f1)


def test_cmrc_takes_the_best_gold_answer_and_counts_missing_predictions():
    golds = {"a": ["上海", "北京"], "b": ["天津"]}
    assert cmrc_scores({"a": "北京"}, golds) == {"em": 0.5, "f1": 0.5, "n": 2}
    assert cmrc_scores({}, golds) == {"em": 0, "f1": 0, "n": 2}


@pytest.mark.parametrize(
    ("predictions", "golds", "error"),
    [
        ({}, {}, ValueError),
        ({"a": "x"}, {"a": []}, ValueError),
        ({"a": "x"}, {"a": "x"}, ValueError),  # a text instead of a list of texts
        ({"a": 3}, {"a": ["3"]}, TypeError),
    ],
)
def test_cmrc_refuses(predictions, golds, error):
    with pytest.raises(error):
        cmrc_scores(predictions, golds)


def test_accuracy_is_the_share_of_equal_answers():
    rng = random.Random(2)
    for _ in range(1_000):
        golds = [rng.choice("abc") for _ in range(rng.randint(1, 9))]
        predictions = [rng.choice("abc") for _ in golds]
        right = 0
        for prediction, gold in zip(predictions, golds, strict=True):
            if prediction == gold:
                right += 1
        assert accuracy(predictions, golds) == right / len(golds)
    assert accuracy(np.array([1, 2]), [1, 3]) == 0.5


@pytest.mark.parametrize(
    ("predictions", "golds", "error"),
    [([], [], ValueError), (["a"], ["a", "b"], ValueError), ([1], ["1"], TypeError), (["1"], [1], TypeError)],
)
def test_accuracy_refuses(predictions, golds, error):
    with pytest.raises(error):
        accuracy(predictions, golds)


def random_mentions(rng):
    """Entities with spans of a small text, some of them twice."""
    mentions = {}
    for _ in range(rng.randrange(5)):
        start = rng.randrange(4)
        span = [start, start + rng.randrange(2)]
        of_type = mentions.setdefault(rng.choice(ENTITY_TYPES[: rng.choice([2, 10])]), {})
        of_type.setdefault(f"text{span}", []).extend([span] * rng.choice([1, 1, 2]))
    return mentions


def plain_entities(texts, type_):
    found = []
    for number, mentions in enumerate(texts):
        for spans in mentions.get(type_, {}).values():
            for start, end in spans:
                if (number, start, end) not in found:
                    found.append((number, start, end))
    return found


def test_cluener_scores_are_those_of_the_definition():
    rng = random.Random(3)
    for _ in range(2_000):
        golds = [random_mentions(rng) for _ in range(rng.randint(1, 5))]
        predictions = [gold if rng.random() < 0.3 else random_mentions(rng) for gold in golds]
        scores = cluener_scores(predictions, golds)
        total, f1s = [0, 0, 0], []
        for type_ in ENTITY_TYPES:
            guessed, wanted = plain_entities(predictions, type_), plain_entities(golds, type_)
            right = len([one for one in guessed if one in wanted])
            precision = right / len(guessed) if guessed else 0.0
            recall = right / len(wanted) if wanted else 0.0
            f1s.append(2 * precision * recall / (precision + recall) if right else 0.0)
            row = scores["per_type"][type_]
            assert (row["precision"], row["recall"]) == (precision, recall)
            assert row["f1"] == pytest.approx(f1s[-1])
            assert (row["n_pred"], row["n_gold"]) == (len(guessed), len(wanted))
            total = [a + b for a, b in zip(total, (right, len(guessed), len(wanted)), strict=True)]
        assert scores["macro_f1"] == pytest.approx(sum(f1s) / 10)
        assert scores["micro_f1"] == pytest.approx(2 * total[0] / (total[1] + total[2]) if total[0] else 0)


def test_every_place_of_a_repeated_mention_counts():
    gold = [{"name": {"王芳": [[0, 1], [5, 6]]}}]
    half = [{"name": {"王芳": [[0, 1]]}}]
    assert cluener_scores(half, gold)["micro_f1"] == pytest.approx(2 / 3)
    assert cluener_scores(gold, gold)["macro_f1"] == pytest.approx(0.1)  # one type of ten occurs


@pytest.mark.parametrize(
    ("predictions", "golds"),
    [([], []), ([{}], [{}, {}]), ([{"person": {}}], [{}]), ([{}], [{"person": {}}])],
)
def test_cluener_refuses(predictions, golds):
    with pytest.raises(ValueError):
        cluener_scores(predictions, golds)


@pytest.mark.parametrize(
    "mentions",
    [None, {"name": None}, {"name": {"王芳": [0, 1]}}, {"name": {"王芳": [[0]]}}, {"name": {"王芳": [["0", "1"]]}}],
)
def test_cluener_refuses_entities_of_another_form(mentions):
    for predictions, golds in (([{}, mentions], [{}, {}]), ([{}, {}], [{}, mentions])):
        with pytest.raises(TypeError, match="text 1 needs"):
            cluener_scores(predictions, golds)


@pytest.mark.parametrize(("m", "n"), [(1, 3), (2, 4), (4, 4), (3, 6)])
def test_assignment_has_the_largest_sum(m, n):
    rng = np.random.default_rng(4)
    for _ in range(50):
        scores = rng.normal(size=(m, n))
        chosen = assign_idioms(scores)
        assert len(set(chosen.tolist())) == m
        best = max(itertools.permutations(range(n), m), key=lambda order: sum(scores[range(m), order]))
        assert chosen.tolist() == list(best)


def test_assignment_of_a_tensor():
    torch = pytest.importorskip("torch")
    scores = torch.tensor([[2.0, 1.9], [3.0, 0.0]], requires_grad=True)
    assert assign_idioms(scores).tolist() == [1, 0]  # alone, both would take the first


@pytest.mark.parametrize("scores", [np.zeros((3, 2)), np.zeros(4), [[np.nan, 0]], [[np.inf, 0]], [["a", "b"]]])
def test_assignment_refuses(scores):
    with pytest.raises(ValueError):
        assign_idioms(scores)


def test_deleted_punctuation_is_that_of_the_definition():
    assert {mark for mark in DELETED if len(mark) == 1} == metrics.PUNCTUATION


def test_intervals_are_as_wide_as_the_theory_says():
    """Of a share p of n examples: p +- 1.96 sqrt(p (1 - p) / n), within the error of a thousand resamples."""
    golds = ["0"] * 2000
    predictions = ["0"] * 1400 + ["1"] * 600
    low, high = get_task("afqmc").intervals(predictions, golds)["accuracy"]
    half = 1.96 * math.sqrt(0.7 * 0.3 / 2000)
    assert low == pytest.approx(0.7 - half, abs=0.15 * half)
    assert high == pytest.approx(0.7 + half, abs=0.15 * half)


def test_intervals_of_entities_hold_the_scores_and_narrow_with_more_texts():
    one = {"name": {"王芳": [[0, 1]]}}
    golds = [one, {**one, "scene": {"故宫": [[3, 4]]}}] * 40
    predictions = [one, one, {}, one] * 20
    widths = []
    for times in (1, 4):
        scores = get_task("cluener").metric(predictions * times, golds * times)
        intervals = get_task("cluener").intervals(predictions * times, golds * times)
        for name, (low, high) in intervals.items():
            assert low < scores[name] < high
        widths.append(intervals["micro_f1"][1] - intervals["micro_f1"][0])
    assert widths[0] / widths[1] == pytest.approx(2, abs=0.3)
