"""Measures, figures and claims that experiments share."""

import numpy as np
import pytest
from scipy import stats

from kexue.errors import DataError, MissingDependencyError
from kexue.experiments import Claim, Figure, _measures
from kexue.experiments._data import CharacterVectors, attempt, draw_planted_pairs, load_sentence_pairs, read_lines
from kexue.experiments._measures import count_multiplications, student_interval


def test_figure_over_runs():
    figure = Figure.over_runs([1.0, 4.0, 1.0], unit="nats", expected=2.0, source="paper")
    assert figure == Figure(2.0, "nats", 1.0, 4.0, 3, 2.0, "paper")


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [([True, True], "reproduced"), ([True, False], "partly"), ([False, False], "not reproduced")],
)
def test_claim_of_several_parts(parts, verdict):
    assert Claim.check_parts("text", iter(parts), rule="rule", figures=["x"]) == Claim("text", verdict, "rule", ("x",))


def test_student_interval_is_that_of_a_t_test():
    values = np.random.default_rng(0).normal(1, 2, 9)
    mean, low, high = student_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((values.mean(), expected.low, expected.high))


def test_multiplications_of_a_matrix_product_and_its_gradient():
    torch = pytest.importorskip("torch")
    a, b = torch.ones(2, 3, requires_grad=True), torch.ones(3, 5, requires_grad=True)
    assert count_multiplications(lambda: a @ b) == 2 * 3 * 5
    assert count_multiplications(lambda: (a @ b).sum().backward()) == 3 * 2 * 3 * 5


def test_calls_are_timed_alternately(monkeypatch):
    clock, order = iter(range(100)), []
    monkeypatch.setattr(_measures.time, "perf_counter", lambda: next(clock))

    def prepare(name, ticks):
        def call():
            order.append(name)
            for _ in range(ticks):
                next(clock)

        return lambda: order.append(f"prepare {name}") or call

    assert _measures.time_in_turns({"a": prepare("a", 2), "b": prepare("b", 0)}, 2) == {"a": [3, 3], "b": [1, 1]}
    assert order == ["prepare a", "a", "prepare b", "b"] * 2


def test_what_is_missing_is_a_note_and_any_other_error_is_not_hidden():
    notes = []

    def miss():
        raise MissingDependencyError("sklearn", "bench")

    def fail():
        raise DataError("damaged.")

    assert attempt(lambda: 3, "three", notes) == 3
    assert attempt(miss, "digits", notes) is None
    assert len(notes) == 1
    assert "digits" in notes[0]
    assert "sklearn" in notes[0]
    with pytest.raises(DataError):
        attempt(fail, "digits", notes)


def test_planted_pairs_have_the_similarity_of_their_labels():
    pairs = draw_planted_pairs(np.random.default_rng(0), pairs=500)
    assert pairs.table.shape == (1000, 64)
    assert np.array_equal(pairs.encode(pairs.pairs.texts_a), pairs.table[:500])
    assert 0 <= pairs.labels.min() < pairs.labels.max() <= 1


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_character_vectors(tmp_path, ending):
    import gzip

    text = "2 2\n早 1 0\n餐 0 3\n"
    path = tmp_path / f"vectors.txt{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending else text.encode())
    assert list(read_lines(path)) == text.splitlines()
    characters = CharacterVectors(path)
    assert characters.split("早x餐") == ["早", "餐"]
    assert np.array_equal(characters.stack(["餐", "早"]), [[0, 3], [1, 0]])
    assert characters.stack([]).shape == (0, 2)
    assert np.array_equal(characters.encode(["早餐", "x"]), [[0.5, 1.5], [0, 0]])


def test_sets_that_are_absent_are_named():
    assert load_sentence_pairs(["atec", "bq"], None, "small", np.random.default_rng(0)) == ([], ["atec", "bq"])
