"""Labels of several kinds, and data sets in turn."""

import numpy as np
import pytest

from kexue.similarity import PairDataset
from kexue.text import harmonize_pairs, interleave
from kexue.text.training.labels import find_kind, to_number


def test_grades_above_the_threshold_are_similar():
    pairs = PairDataset("stsb", "", ["a"] * 4, ["b"] * 4, np.array([0.0, 2.5, 2.6, 5.0]))
    assert [(one.label, one.task) for one in harmonize_pairs(pairs, "graded")] == [
        (label, "binary") for label in (0, 0, 1, 1)
    ]
    assert [one.label for one in harmonize_pairs(pairs, "graded", threshold=4)] == [0, 0, 0, 1]


def test_yes_no_pairs_stay():
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (1, 0)]
    assert [tuple(one) for one in harmonize_pairs(rows, "binary")] == [("a", "b", 1, "binary"), ("a", "b", 0, "binary")]


def test_inference_in_the_order_of_the_head_and_without_other_words():
    rows = [("a", "b", word) for word in ("entailment", "Neutral", "-", "contradiction", "hidden")]
    assert [(one.label, one.task) for one in harmonize_pairs(rows, "nli")] == [(1, "nli"), (2, "nli"), (0, "nli")]


@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        (2, "nli", "row 0: an inference label is one of the words contradiction, entailment, neutral, got 2"),
        (0.5, "binary", "row 0: a yes/no label is 0 or 1, got 0.5"),
        (1, "stars", "kind must be one of binary, graded, nli, got 'stars'"),
    ],
)
def test_labels_that_a_kind_does_not_have(label, kind, message):
    with pytest.raises(ValueError, match=r"kind|label") as caught:
        harmonize_pairs([("a", "b", label)], kind)
    assert message in str(caught.value)


def test_rows_without_the_columns():
    with pytest.raises(ValueError, match="row 0 has the columns a, expected text_a"):
        harmonize_pairs([{"a": 1}], "binary")


def test_the_kind_is_found_from_the_labels():
    assert find_kind([0.0, 1.0]) == find_kind([1.0]) == "binary"
    assert find_kind([0.0, 1.0, 0.5]) == find_kind([1.0, 5.0]) == "graded"
    assert find_kind(["neutral"]) == "nli"


@pytest.mark.parametrize(
    ("loss", "numbers"),
    [("cosent", [0, 2, 1]), ("classify", [0, 1, 2]), ("mse", [0, 1, None]), ("hinge", [0, 1, None])],
)
def test_the_number_of_an_inference_label_for_each_loss(loss, numbers):
    words = ("contradiction", "entailment", "neutral")
    assert [to_number(word, "nli", 2.5, loss) for word in words] == numbers
    assert to_number("-", "nli", 2.5, loss) is None


def test_the_number_of_a_grade_for_each_loss():
    assert [to_number(3.2, "graded", 2.5, loss) for loss in ("cosent", "classify", "mse", "hinge")] == [3.2, 1, 1, 1]


@pytest.mark.parametrize(
    ("a", "b", "ratio", "wanted"),
    [
        ("abcd", "xy", 1, "axbycxdy"),
        ("ab", "xyz", 1, "axbyaz"),
        ("abcd", "xy", 2, "abxcdy"),
        ("abc", "x", 2, "abxcax"),
        ("", "xy", 1, "xy"),
        ("ab", "", 3, "ab"),
    ],
)
def test_elements_in_turn(a, b, ratio, wanted):
    assert "".join(interleave(a, b, ratio)) == wanted


def test_a_ratio_below_one():
    with pytest.raises(ValueError, match="ratio must be a whole number >= 1, got 0"):
        list(interleave("a", "b", 0))
