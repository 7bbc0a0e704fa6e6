"""Sentences around words, paraphrases, shorter texts: constraints hold, seeds reproduce, bad input is refused."""

import math

import numpy as np
import pytest

from kexue.errors import CheckpointError, DataError, InfeasibleError
from kexue.sampling import ProductTarget, metropolis_hastings
from kexue.sampling.text import (
    Keywords,
    Length,
    LMTarget,
    NGramLM,
    SimilarityTarget,
    load_lm,
    paraphrase,
    shorten,
    write_keywords,
)
from kexue.sampling.text.runs import read_run, write_run


class Letters:
    """An encoder: how often each letter occurs."""

    def encode(self, texts):
        return np.array([[0.1 + text.count(letter) for letter in "abcdefgh"] for text in texts])


@pytest.fixture(scope="module")
def chinese():
    return load_lm()


@pytest.fixture(scope="module")
def letters():
    return NGramLM(3).fit(["abc def", "fed cba", "abcdefgh", "hgf", "a b c d", "bad cafe", "head"])


@pytest.mark.parametrize("words", [["广州", "美食"], ["咖啡"], ["孩子", "故宫", "门票"], ["电影", "影"], ["好", "好"]])
def test_every_state_and_sentence_meets_the_constraints(chinese, words):
    written = write_keywords(words, chinese, steps=60, chains=4, min_length=9, max_length=14, generator=0)
    assert 1 <= len(written.sentences) <= 4
    assert written.log_rho == sorted(written.log_rho, reverse=True)
    for text in (*written.sentences, *(chinese.decode(s) for chain in written.result.states for s in chain)):
        assert all(word in text for word in words)
        assert 9 <= len(text) <= 14


def test_scores_are_those_of_the_law(chinese):
    written = write_keywords(["咖啡"], chinese, steps=40, chains=2, gamma=1.5, generator=0)
    for text, score in zip(written.sentences, written.log_rho, strict=True):
        assert score == pytest.approx(1.5 * chinese.log_prob(chinese.encode(text)), abs=1e-9)


def test_a_seed_gives_the_same_sentences_and_steps_are_watched(chinese):
    seen = []
    shares = [0.4 + 0.06 * stage for stage in range(10) for _ in range(2)] + [1.0] * 20
    first = write_keywords(["周末"], chinese, steps=20, chains=2, generator=3, watch=seen.append)
    assert [now[:2] for now in seen] == [(i, 40) for i in range(1, 41)]
    assert [now.gamma for now in seen] == pytest.approx([2 * share for share in shares])
    assert [now.states for now in seen[20:]] == list(zip(*first.result.states, strict=True))
    assert [now.log_rho for now in seen[20:]] == list(map(tuple, first.result.log_rho.T))
    assert [now.accepted for now in seen[20:]] == list(map(tuple, first.result.accepted.T))
    assert write_keywords(["周末"], chinese, steps=20, chains=2, generator=3).sentences == first.sentences
    assert first.result.log_rho.shape == (2, 20)


def test_sentences_are_likelier_than_drawn_ones(chinese):
    """Chains find sentences far likelier than the words with tokens around them that they start from."""
    written = write_keywords(["孩子", "故宫"], chinese, chains=4, generator=0)
    early = write_keywords(["孩子", "故宫"], chinese, steps=1, chains=4, generator=0)
    assert max(written.log_rho) > max(early.log_rho) + 10


@pytest.mark.parametrize(
    ("words", "options", "error", "message"),
    [
        ([], {}, ValueError, "got none"),
        ("广州", {}, TypeError, "list of strings"),
        (["广州", " "], {}, ValueError, r"words\[1\] is blank"),
        (["广州", 3], {}, TypeError, r"words\[1\] must be a string"),
        (["龘"], {}, ValueError, "never seen the character '龘'"),
        (["广州", "美食"], {"max_length": 3}, InfeasibleError, "4 tokens, and max_length is 3"),
        (["广州"], {"min_length": 9, "max_length": 8}, InfeasibleError, "9 tokens or more and 8 or fewer"),
        (["广州"], {"min_length": -1}, ValueError, "min_length"),
        (["广州"], {"steps": 0}, ValueError, "steps"),
        (["广州"], {"chains": 0}, ValueError, "chains"),
        (["广州"], {"gamma": -1.0}, ValueError, r"gamma must be > 0 and finite, got -1\.0"),
        (["广州"], {"gamma": math.nan}, ValueError, "gamma"),
    ],
)
def test_bad_words_and_numbers_are_refused(chinese, words, options, error, message):
    with pytest.raises(error, match=message):
        write_keywords(words, chinese, **options)


def test_scores_of_nan_are_refused(chinese):
    class Broken:
        def log_rho(self, states):
            return [math.nan] * len(states)

    target = ProductTarget(LMTarget(chinese), Broken())
    with pytest.raises(ValueError, match="got nan for state"):
        metropolis_hastings(target, None, chinese.encode("故宫"), steps=1)


def test_a_start_of_density_zero_is_refused(chinese):
    with pytest.raises(InfeasibleError, match="density zero"):
        metropolis_hastings(Keywords([chinese.encode("美食")]), None, chinese.encode("故宫"), steps=1)


def test_paraphrases_keep_the_meaning_and_are_other_texts(letters):
    text = "abcdef"
    written = paraphrase(text, lm=letters, encoder=Letters(), steps=300, chains=4, generator=0)
    assert text not in written.sentences
    similarity = SimilarityTarget(Letters(), text, decode=letters.decode)
    cosines = similarity.cosines([letters.encode(one) for one in written.sentences])
    assert len(cosines) > 1
    assert min(cosines) > 0.8
    pairs = [sum(one[i : i + 2] in text for i in range(len(one) - 1)) / (len(one) - 1) for one in written.sentences]
    same = paraphrase(text, lm=letters, encoder=Letters(), steps=300, chains=4, difference=0, generator=0)
    kept = [sum(one[i : i + 2] in text for i in range(len(one) - 1)) / (len(one) - 1) for one in same.sentences]
    assert np.mean(pairs) < np.mean(kept)  # the reward for other words does something


def test_shorter_texts_are_short_and_near(letters):
    written = shorten("abcdefgh abcdefgh", lm=letters, encoder=Letters(), target_length=8, steps=200, generator=0)
    assert all(1 <= len(text) <= 8 for text in written.sentences)
    best = SimilarityTarget(Letters(), "abcdefgh abcdefgh", decode=letters.decode).cosines(
        [letters.encode(written.sentences[0])]
    )
    assert best[0] > 0.9
    assert all(len(state) <= 8 for chain in written.result.states for state in chain)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda lm: paraphrase(" ", lm=lm, encoder=Letters()), ValueError, "blank"),
        (lambda lm: paraphrase("xyz", lm=lm, encoder=Letters()), ValueError, "never seen"),
        (lambda lm: paraphrase("abc", lm=lm, encoder=Letters(), difference=-1), ValueError, "difference"),
        (lambda lm: shorten("abc", lm=lm, encoder=Letters(), target_length=0), ValueError, "target_length"),
        (lambda lm: shorten("", lm=lm, encoder=Letters(), target_length=2), ValueError, "blank"),
        (lambda lm: shorten("abc", lm=lm, encoder=Against(), target_length=2), InfeasibleError, "no part of 'abc'"),
        (lambda lm: paraphrase("abc", lm=lm, encoder=Letters(), gamma=-1), ValueError, "got -1"),
        (lambda lm: shorten("abc", lm=lm, encoder=Letters(), target_length=2, gamma=-1), ValueError, "got -1"),
    ],
)
def test_bad_texts_are_refused(letters, call, error, message):
    with pytest.raises(error, match=message):
        call(letters)


def test_targets_are_their_definitions(letters):
    a, b, c = letters.encode("abc")
    states = [(a, b, c), (b, a, c), (c, a, b, a, b), ()]
    inf = math.inf
    assert Keywords([(a, b), (c,)]).log_rho(states) == [0, -inf, 0, -inf]
    assert Keywords([(a, b), (c,)], ordered=True).log_rho(states) == [0, -inf, -inf, -inf]
    assert Keywords([(a, b), (a, b)], ordered=True).log_rho(states) == [-inf, -inf, 0, -inf]
    assert Length(3, 3).log_rho(states) == [0, 0, -inf, -inf]
    assert LMTarget(letters, 0.5).log_rho(states[:1])[0] == pytest.approx(letters.log_prob((a, b, c)) / 2)
    target = SimilarityTarget(Letters(), "abc", 2.0, decode=letters.decode)
    x, y = Letters().encode(["abc", "cabab"])
    cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert target.log_rho(states[2:3])[0] == pytest.approx(2 * math.log(cosine))
    assert target.log_rho(states[:1])[0] == pytest.approx(0, abs=1e-12)


class Against:
    """An encoder that finds all other texts opposite."""

    def encode(self, texts):
        return np.array([[1.0 if text == "abc" else -1.0] for text in texts])


class Blind:
    """An encoder that gives all texts but one the same number."""

    def __init__(self, number, seen=""):
        self.number, self.seen = number, seen

    def encode(self, texts):
        return np.array([[1.0 if text == self.seen else self.number] for text in texts])


def test_vectors_without_a_direction_are_refused_or_resemble_nothing(letters):
    with pytest.raises(ValueError, match="'abc' a vector of length nan"):
        SimilarityTarget(Blind(math.nan), "abc", decode=letters.decode)
    with pytest.raises(ValueError, match="'abc' a vector of zeros"):
        SimilarityTarget(Blind(0.0), "abc", decode=letters.decode)
    half = SimilarityTarget(Blind(math.nan, "abc"), "abc", decode=letters.decode)
    with pytest.raises(ValueError, match="'cba' a vector of length nan"):
        half.log_rho([letters.encode("cba")])
    assert SimilarityTarget(Blind(0.0, "abc"), "abc", decode=letters.decode).log_rho([letters.encode("cba")]) == [
        -math.inf
    ]


def test_opposite_meanings_are_forbidden(letters):
    target = SimilarityTarget(Against(), "abc", decode=letters.decode)
    assert target.log_rho([letters.encode("abc"), letters.encode("cba")]) == [0.0, -math.inf]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda lm: Keywords([]), ValueError, "one or more"),
        (lambda lm: Keywords([()]), ValueError, "each with tokens"),
        (lambda lm: Keywords("ab"), TypeError, "lm.encode"),
        (lambda lm: Keywords(["ab"]), TypeError, "lm.encode"),
        (lambda lm: Length(3, 2), InfeasibleError, "3 tokens"),
        (lambda lm: Length(-1, 2), ValueError, "low"),
        (lambda lm: LMTarget(lm, -1), ValueError, "gamma"),
        (lambda lm: SimilarityTarget(Letters(), " ", decode=lm.decode), ValueError, "blank"),
        (lambda lm: SimilarityTarget(Letters(), "a", -1, decode=lm.decode), ValueError, "power"),
        (lambda lm: load_lm("word2vec"), ValueError, "'word2vec'"),
        (lambda lm: load_lm("ngram:"), ValueError, "ngram:FOLDER"),
        (lambda lm: load_lm("ngram:/no/such"), CheckpointError, "holds no model"),
    ],
)
def test_bad_targets_and_models_are_refused(letters, make, error, message):
    with pytest.raises(error, match=message):
        make(letters)


def test_a_run_is_read_as_it_was_written(chinese, tmp_path):
    written = write_keywords(["咖啡"], chinese, steps=10, chains=2, generator=0)
    write_run(tmp_path / "run", written.result, chinese, {"words": ["咖啡"]})
    result, record = read_run(tmp_path / "run")
    assert record == {"words": ["咖啡"]}
    assert result.states == [[chinese.decode(state) for state in chain] for chain in written.result.states]
    assert result.moves == written.result.moves
    np.testing.assert_array_equal(result.log_rho, written.result.log_rho)
    np.testing.assert_array_equal(result.accepted, written.result.accepted)
    with pytest.raises(CheckpointError, match="holds no run"):
        read_run(tmp_path)
    chains = tmp_path / "run" / "chains.safetensors"
    whole = chains.read_bytes()
    chains.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"chains\.safetensors cannot be read"):
        read_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_run(tmp_path / "run")
    (tmp_path / "run" / "mine.txt").write_text("")
    with pytest.raises(DataError, match=r"mine\.txt"):
        write_run(tmp_path / "run", written.result, chinese, {})
