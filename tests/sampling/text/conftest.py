"""Toys of text: strings of at most three letters, whose law can be listed."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from kexue.sampling import ProductTarget
from kexue.sampling.text import Keywords, Length, LMTarget, NGramLM


def list_strings(letters, low, high):
    """All texts of these tokens with a length between two bounds."""
    return [text for n in range(low, high + 1) for text in itertools.product(letters, repeat=n)]


class Toy:
    """The law of a model of n-grams on strings of at most three letters that have some words."""

    def __init__(self, lm, *words):
        self.lm, self.words = lm, [lm.encode(word) for word in words]
        self.target = ProductTarget(Length(0, 3), *(Keywords([word]) for word in self.words), LMTarget(lm, 0.8))
        every = list_strings(lm.writable, 0, 3)
        scores = np.asarray(self.target.log_rho(every))
        self.states = [text for text, score in zip(every, scores, strict=True) if score > -np.inf]
        weights = np.exp(scores[scores > -np.inf])
        self.law = weights / weights.sum()


@pytest.fixture(scope="session")
def ab():
    """A model of n-grams over two letters."""
    return NGramLM(3).fit(["ab", "abb", "ba", "aab", "b", "bab", "abab"])


@pytest.fixture
def toys():
    """The toys of this file."""
    return SimpleNamespace(Toy=Toy, list_strings=list_strings)
