"""Decoding of heads and tails, against a search of all spans."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kexue.extract import decode_triples


def brute_spans(probabilities, head, tail):
    """(kind, start, end) of all spans of which no shorter one has the same head, by definition."""
    length, kinds, _ = probabilities.shape
    for start in range(length):
        for kind in range(kinds):
            for last in range(start, length):
                if probabilities[start, kind, 0] > head and probabilities[last, kind, 1] > tail:
                    yield kind, start, last + 1
                    break


@given(st.integers(0, 6), st.integers(1, 3), st.integers(0, 2**32 - 1), st.floats(0, 0.99), st.floats(0, 0.99))
def test_brute_force(length, kinds, seed, head, tail):
    random = np.random.default_rng(seed)
    subjects = random.random((length, 2))
    objects = {(s, e): random.random((length, kinds, 2)) for s in range(length) for e in range(s + 1, length + 1)}
    wanted = [
        ((start, end), kind, (begin, stop))
        for _, start, end in brute_spans(subjects[:, None], head, tail)
        for kind, begin, stop in brute_spans(objects[start, end], head, tail)
    ]
    found = decode_triples(subjects, lambda start, end: objects[start, end], head_threshold=head, tail_threshold=tail)
    assert found == wanted


def test_defaults_are_those_of_the_article_and_limits_are_excluded():
    subjects = np.array([[0.5, 0.41], [0.51, 0.4], [0.0, 0.41]])
    objects = np.array([[[0.6, 0.9]], [[0.5, 0.9]], [[0.6, 0.4]]])
    assert decode_triples(subjects, lambda start, end: objects) == [((1, 3), 0, (0, 1))]


def test_bad_input():
    with pytest.raises(ValueError, match="tail_threshold must be in"):
        decode_triples(np.zeros((1, 2)), lambda s, e: np.zeros((1, 1, 2)), tail_threshold=1.0)
    with pytest.raises(ValueError, match=r"subject_probs must be \(T, 2\)"):
        decode_triples(np.zeros((2, 3)), lambda s, e: np.zeros((1, 1, 2)))
    with pytest.raises(ValueError, match="object_probs must return"):
        decode_triples(np.ones((2, 2)), lambda s, e: np.zeros((1, 1, 2)))
