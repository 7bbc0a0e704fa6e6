"""Scores of triples, against arithmetic on sets."""

import pytest
from hypothesis import given, strategies as st

from kexue.extract import Triple, triple_f1

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
