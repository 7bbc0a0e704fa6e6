"""Terms of texts: compared with a plain implementation on strings."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kexue.search import lexical
from kexue.search.lexical import query_terms, read_terms


def is_paired(character: str) -> bool:
    inside = any(first <= ord(character) <= last for first, last in lexical._PAIRED_BLOCKS)
    return inside and unicodedata.category(character)[0] in "LMN"


def is_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" and not is_paired(character)


def plain_terms(text: str, *, query: bool = False) -> set[str]:
    """Return the terms as strings; pairs and single characters marked, so that they differ from words."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kinds = "".join("w" if is_word(c) else "p" if is_paired(c) else c if c in JOINERS else " " for c in text)
    found = {text[m.start() : m.end()] for m in re.finditer("w+", kinds)}
    for match in re.finditer(f"w+(?:[{re.escape(JOINERS)}]w+)+", kinds):
        found.add("".join(c for c in text[match.start() : match.end()] if c not in lexical._HYPHENS))
    for match in re.finditer("p+", kinds):
        run = text[match.start() : match.end()]
        found |= {f"pair {a}{b}" for a, b in pairwise(run)}
        if not query or len(run) == 1:
            found |= {f"one {c}" for c in run}
    return found


JOINERS = lexical._JOINERS + lexical._HYPHENS
ALPHABET = "abAB12İßéﬁ①Ａ-_.@/’ \n,订单号カなกำ한글हि\U00020000\u0301\ud800"


@given(st.lists(st.text(ALPHABET, max_size=12), max_size=5))
def test_texts_share_the_terms_that_they_share_by_the_plain_rules(texts: list[str]) -> None:
    found = read_terms(texts)
    assert found.lengths.shape == (len(texts),)
    hashes = [set(found.terms[found.texts == place].tolist()) for place in range(len(texts))]
    words = [plain_terms(text) for text in texts]
    for i in range(len(texts)):
        for j in range(len(texts)):
            assert len(hashes[i] & hashes[j]) == len(words[i] & words[j])


@given(st.text(ALPHABET, max_size=20))
def test_a_query_has_the_terms_of_a_document_but_single_characters_only_alone(text: str) -> None:
    terms = query_terms(text)
    assert np.isin(terms, read_terms([text]).terms).all()
    assert len(terms) == len(plain_terms(text, query=True))
    assert (np.diff(terms.astype(object)) > 0).all()


@given(st.lists(st.text(ALPHABET, max_size=10), max_size=6))
def test_texts_read_together_are_those_read_alone(texts: list[str]) -> None:
    together = read_terms(texts)
    for place, text in enumerate(texts):
        alone = read_terms([text])
        assert sorted(together.terms[together.texts == place].tolist()) == sorted(alone.terms.tolist())
        assert together.lengths[place] == alone.lengths[0]


@pytest.mark.parametrize(
    ("document", "query"),
    [
        ("order AB-1234 sent", "ab1234"),
        ("order AB-1234 sent", "AB-1234"),
        ("order AB-1234 sent", "1234"),
        ("costs 3.10 euros", "3.10"),
        ("write to Joe@Example.org.", "joe@example.org"),
        ("write to Joe@Example.org.", "example"),
        ("ＡＢ－１２３４", "AB-1234"),  # wide forms
        ("Straße", "STRASSE"),
        ("退货要多久", "货"),
        ("退货要多久", "退货"),
        ("read_csv(path)", "csv"),
        ("the user's e-mail", "email"),
        ("हिन्दी में", "हिन्दी"),
    ],
)
def test_a_document_is_found_by(document: str, query: str) -> None:
    assert np.isin(query_terms(query), read_terms([document]).terms).all()
    assert len(query_terms(query))


@pytest.mark.parametrize(
    ("document", "query"), [("3.10", "310"), ("v1.2", "v12"), ("ab 12", "ab12"), ("订 单", "订单")]
)
def test_a_document_is_not_found_by(document: str, query: str) -> None:
    assert not np.isin(query_terms(query), read_terms([document]).terms).any()


def test_a_code_written_without_its_hyphen_is_found_by_the_whole() -> None:
    assert np.isin(query_terms("ab-1234"), read_terms(["订单AB1234已发货"]).terms).sum() == 1


def test_lengths_count_words_and_paired_characters() -> None:
    assert read_terms(["AB-1234 x", "退货要", "", "..."]).lengths.tolist() == [3, 3, 0, 0]


def test_hashes_do_not_collide_on_many_short_words() -> None:
    words = [f"{a}{b}" for a in "abcdefghijklmnopqrstuvwxyz0123456789" for b in range(1000)]
    assert len(np.unique(read_terms(words).terms)) == len(words)


@given(st.text(ALPHABET, max_size=20))
def test_a_query_tells_words_codes_and_pairs(text: str) -> None:
    found = lexical.read_query(text)
    plain = plain_terms(text, query=True)
    pairs = sum(term.startswith(("pair ", "one ")) for term in plain)
    codes = sum(bool(re.search("[0-9]", term)) for term in plain)
    assert np.bincount(found.kinds, minlength=3).tolist() == [len(plain) - pairs - codes, codes, pairs]
    assert found.terms.tolist() == sorted(query_terms(text).tolist())
