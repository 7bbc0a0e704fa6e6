"""Scores of triples, against arithmetic on sets."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kexue.extract import Triple, triple_f1
from kexue.extract.scoring import triple_f1_interval

NAMES = st.sampled_from(["甲", "乙", "丙 ", "A", "a", "É", "e\u0301", ""])
SENTENCE = st.lists(st.tuples(NAMES, st.sampled_from(["p", "q", "P"]), NAMES), max_size=5)


@given(st.lists(st.tuples(SENTENCE, SENTENCE), max_size=4))
def test_counts_are_those_of_sets(pairs):
    import unicodedata

    def normal(triple):
        s, p, o = triple
        return unicodedata.normalize("NFC", s).lower().strip(), p, unicodedata.normalize("NFC", o).lower().strip()

    sets = [({normal(t) for t in a}, {normal(t) for t in b}) for a, b in pairs]
    correct = sum(len(a & b) for a, b in sets)
    predicted, annotated = sum(len(a) for a, _ in sets), sum(len(b) for _, b in sets)
    score = triple_f1([a for a, _ in pairs], [b for _, b in pairs])
    assert (score.n_pred, score.n_gold, score.n_correct) == (predicted, annotated, correct)
    if correct:
        p, r = correct / predicted, correct / annotated
        assert (score.precision, score.recall) == (p, r)
        assert score.f1 == pytest.approx(2 * p * r / (p + r))
    else:
        assert score.f1 == 0


@given(st.lists(SENTENCE, min_size=1, max_size=4))
def test_a_sentence_equals_itself_and_order_and_doubles_do_not_matter(golds):
    found = [[*reversed(triples), *triples] for triples in golds]
    score = triple_f1(found, golds)
    assert score.n_pred == score.n_gold == score.n_correct


def test_tokens_are_more_lenient_than_strings():
    found, gold = [[Triple("Café 1", "is", "b c")]], [[("cafe1", "is", "BC")]]
    assert triple_f1(found, gold).f1 == 0
    assert triple_f1(found, gold, match="tokens").f1 == 0  # "cafe 1" has two tokens, "cafe1" one
    assert triple_f1([[("战狼 2", "主演", "吴京")]], [[("战狼2", "主演", "吴 京")]], match="tokens").f1 == 1
    assert triple_f1([[("战狼2", "主演", "吴京")]], [[("战狼3", "主演", "吴京")]], match="tokens").f1 == 0


def test_the_variant_is_named_and_bad_input_refused():
    assert triple_f1([[]], [[]], match="tokens").match == "tokens"
    with pytest.raises(ValueError, match="match must be"):
        triple_f1([[]], [[]], match="words")
    with pytest.raises(ValueError, match="1 predicted sentences, but 2"):
        triple_f1([[]], [[], []])
    for wrong in ("abc", ("a", "b"), ("a", "b", None)):
        with pytest.raises(ValueError, match="a triple must be"):
            triple_f1([[wrong]], [[("a", "b", "c")]])
    assert triple_f1_interval([], []) == (0, 0)


def test_the_interval_of_f1_is_that_of_resampled_sentences():
    golds = [[("a", "is", str(i))] for i in range(300)]
    found = [gold if i % 3 else [] for i, gold in enumerate(golds)]
    low, high = triple_f1_interval(found, golds)
    f1 = [
        triple_f1([found[i] for i in rows], [golds[i] for i in rows]).f1
        for rows in np.random.default_rng(1).integers(0, 300, (400, 300))
    ]
    assert (low, high) == pytest.approx(np.quantile(f1, (0.025, 0.975)), abs=0.01)
    assert triple_f1_interval(golds, golds) == (1, 1)
