"""N-grams with Kneser-Ney smoothing, against a slow model written from the definition."""

import gzip
import math
import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kexue.errors import CheckpointError, DataError, NotFittedError
from kexue.sampling import Proposed
from kexue.sampling.text import NGramLM, load_lm
from kexue.sampling.text.follower import Change
from kexue.sampling.text.trie import BEGIN, END, UNKNOWN

TEXTS = ["我爱北京", "我爱广州", "广州美食", "美食在广州", "北京北京", "爱", "我我我爱爱广州"]


class SlowKneserNey:
    """Interpolated Kneser-Ney by dictionaries, as Chen and Goodman write it."""

    def __init__(self, texts, order, vocabulary, min_count=1):
        self.order, self.predicted = order, vocabulary - 1
        raw = defaultdict(int)
        for text in ((BEGIN, *text, END) for text in texts):
            for n in range(1, order + 1):
                for i in range(len(text) - n + 1):
                    raw[text[i : i + n]] += 1
        before = defaultdict(set)
        for gram in raw:
            before[gram[1:]].add(gram[0])
        self.count = {g: c if len(g) == order or g[0] == BEGIN else len(before[g]) for g, c in raw.items()}
        self.count[BEGIN,] = 0
        self.kept = {gram for gram, c in raw.items() if len(gram) < 3 or c >= min_count}
        self.total = defaultdict(int)
        for gram, c in self.count.items():
            self.total[gram[:-1]] += c
        self.discount = []
        for n in range(1, order + 1):
            ones, twos = (sum(len(g) == n and c == k for g, c in self.count.items()) for k in (1, 2))
            self.discount.append(min(max(ones / (ones + 2 * twos) if ones else 0, 0.1), 0.9))

    def explicit(self, gram):
        if gram not in self.kept:
            return 0.0
        return max(self.count[gram] - self.discount[len(gram) - 1], 0) / self.total[gram[:-1]]

    def probability(self, token, context):
        context = context[len(context) + 1 - self.order :] if len(context) >= self.order else context
        shorter = self.probability(token, context[1:]) if context else 1 / self.predicted
        if not self.total[context]:
            return shorter
        rest = 1 - sum(self.explicit(gram) for gram in self.kept if gram[:-1] == context)
        return self.explicit((*context, token)) + rest * shorter

    def log_prob(self, text):
        text = (BEGIN, *text, END)
        return sum(math.log(self.probability(text[i], text[:i])) for i in range(1, len(text)))


@pytest.mark.parametrize("min_count", [1, 2])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_agrees_with_the_definition(order, min_count):
    lm = NGramLM(order, min_count=min_count).fit(TEXTS)
    slow = SlowKneserNey([lm.encode(text) for text in TEXTS], order, len(lm.vocabulary), min_count)
    for text in ["我爱北京", "食美州广", "", "京" * 7, *TEXTS]:
        assert lm.log_prob(lm.encode(text)) == pytest.approx(slow.log_prob(lm.encode(text)), abs=1e-9)
    unknown = (*lm.encode("我爱"), UNKNOWN)
    assert lm.log_prob(unknown) == pytest.approx(slow.log_prob(unknown), abs=1e-9)
    assert lm.next_log_probs(lm.encode("广"))[UNKNOWN] == pytest.approx(
        math.log(slow.probability(UNKNOWN, (BEGIN, *lm.encode("广")))), abs=1e-9
    )


@given(
    st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=8),
    st.integers(1, 5),
    st.integers(1, 3),
    st.text("abc", max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_probabilities_of_the_next_token_sum_to_one(texts, order, min_count, context):
    lm = NGramLM(order, min_count=min_count).fit(texts)
    tokens = lm.vocabulary.lookup(context)  # characters that were never seen among them
    scores = lm.next_log_probs(tokens)
    assert scores[BEGIN] == -np.inf
    assert np.exp(scores).sum() == pytest.approx(1, abs=1e-12)
    # and they are those by which texts are scored
    longer = [lm.log_rho([(*tokens, w)])[0] - lm.next_log_probs((*tokens, w))[END] for w in lm.writable]
    assert longer == pytest.approx([lm.log_rho([tokens])[0] - scores[END] + scores[w] for w in lm.writable], abs=1e-9)


def test_draws_follow_the_probabilities():
    lm = NGramLM(3).fit(["ab", "abb", "ba", "b"])
    generator = np.random.default_rng(0)
    drawn = [lm.sample(generator=generator) for _ in range(20_000)]
    for text in ((), lm.encode("ab"), lm.encode("b"), lm.encode("bab")):
        share = math.exp(lm.log_prob(text))
        assert drawn.count(text) / 20_000 == pytest.approx(share, abs=5 * math.sqrt(share / 20_000))
    assert lm.sample(generator=7) == lm.sample(generator=7)
    assert len(lm.sample(generator=0, max_length=1)) <= 1


def test_law_of_a_place_looks_at_both_sides():
    lm = NGramLM(3).fit(TEXTS)
    left, right = lm.encode("我爱"), lm.encode("州美食")
    law = lm.law(left, right, None)
    scores = lm.next_log_probs(left)
    bigrams = np.array(
        [lm.step(lm.step(0, w)[1], right[0])[0] for w in lm.writable]
    )  # log p(r | w) without a beginning
    weights = np.exp(scores[list(lm.writable)] + bigrams)
    assert [law.probability(w) for w in lm.writable] == pytest.approx(weights / weights.sum(), abs=1e-12)
    assert lm.decode([law.tokens[int(np.argmax([law.probability(w) for w in law.tokens]))]]) == "广"
    few = lm.law(left, right, 2)
    assert sorted(few.tokens) == sorted(sorted(lm.writable, key=law.probability)[-2:])
    assert sum(few.probability(w) for w in lm.writable) == pytest.approx(1)
    assert len(lm.law(left, right, 2, include=[lm.encode("京")[0]]).tokens) == 3
    assert lm.law(left, right, 2) is few


def test_follower_scores_edits_like_whole_texts():
    lm = NGramLM(4).fit(TEXTS)
    draw = random.Random(0)
    letters = list(lm.writable)
    texts = [lm.encode("我爱广州美食"), lm.encode("北京"), ()]
    follower = lm.follow(texts)
    for _ in range(500):
        proposals = []
        for text in texts:
            place = draw.randint(0, len(text))
            removed = draw.randint(0, min(3, len(text) - place))
            inserted = tuple(draw.choices(letters, k=draw.randint(0, 3)))
            new = text[:place] + inserted + text[place + removed :]
            change = Change(place, removed, inserted) if draw.random() < 0.9 else None
            proposals.append(Proposed(new, 0.0, 0.0, "", change))
        fresh = NGramLM(4).fit(TEXTS)  # remembers nothing
        assert follower.score(proposals) == pytest.approx(fresh.log_rho([p.state for p in proposals]), abs=1e-9)
        accepted = [draw.random() < 0.5 for _ in texts]
        follower.move(accepted)
        texts = [p.state if yes else t for p, t, yes in zip(proposals, texts, accepted, strict=True)]
        if max(map(len, texts)) > 20:
            texts = [text[:5] for text in texts]
            follower = lm.follow(texts)


@pytest.mark.parametrize(("level", "texts"), [("char", TEXTS), ("word", ["the cat sat", "the dog sat", "a cat"])])
def test_a_saved_model_is_the_same(tmp_path, level, texts):
    lm = NGramLM(4, level=level, min_count=2).fit(texts)
    lm.save(tmp_path / "lm")
    lm.save(tmp_path / "lm")  # replaces its own folder
    other = NGramLM.load(tmp_path / "lm")
    assert (other.order, other.level, other.min_count, other.tokens_, len(other)) == (4, level, 2, lm.tokens_, len(lm))
    for text in texts:
        assert other.log_prob(other.encode(text)) == lm.log_prob(lm.encode(text))
    np.testing.assert_array_equal(other.next_log_probs(()), lm.next_log_probs(()))


def test_words_are_tokens():
    lm = NGramLM(2, level="word").fit(["the cat sat", "the dog sat"])
    assert lm.decode(lm.encode("the dog")) == "the dog"
    with pytest.raises(ValueError, match=r"'bird'.*lm-train"):
        lm.encode("the bird")
    with pytest.raises(ValueError, match="single spaces"):
        lm.encode("the  cat")


def test_files_are_read(tmp_path):
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    with gzip.open(tmp_path / "texts.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(f'{{"text": "{text}"}}\n' for text in TEXTS)
    lm, plain = NGramLM(3).fit(tmp_path / "texts.jsonl.gz"), NGramLM(3).fit(TEXTS)
    for text in TEXTS:
        assert lm.log_prob(lm.encode(text)) == plain.log_prob(plain.encode(text))
    assert len(NGramLM(3).fit(tmp_path / "texts.txt")) == len(plain)


def test_perplexity_is_that_of_the_tokens():
    lm = NGramLM(3).fit(TEXTS)
    mean = (lm.log_prob(lm.encode("我爱")) + lm.log_prob((*lm.encode("我"), UNKNOWN))) / 6
    assert lm.perplexity(["我爱", "我龘"]) == pytest.approx(math.exp(-mean))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NGramLM(0), ValueError, "order"),
        (lambda: NGramLM(6), ValueError, "at most 5, got 6"),
        (lambda: NGramLM(level="byte"), ValueError, "'byte'"),
        (lambda: NGramLM(min_count=0), ValueError, "min_count"),
        (lambda: NGramLM().fit([]), ValueError, "not blank"),
        (lambda: NGramLM().fit(["", "  \n"]), ValueError, "not blank"),
        (lambda: NGramLM().fit("text"), TypeError, "pathlib.Path"),
        (lambda: NGramLM().fit(["a", 3]), TypeError, r"texts\[1\]"),
        (lambda: NGramLM().fit(["a"]).encode("龘b"), ValueError, "'龘', 'b'"),
        (lambda: NGramLM().fit(["a"]).log_prob([9]), ValueError, "got 9"),
        (lambda: NGramLM().fit(["a"]).log_prob([BEGIN]), ValueError, "got 0"),
        (lambda: NGramLM().fit(["a"]).perplexity([]), ValueError, "texts"),
        (lambda: NGramLM().fit(["a"]).log_rho([(3, 9)]), ValueError, "token 9 is not of this model"),
        (lambda: NGramLM().fit(["a"]).follow([(3, -1)]), ValueError, "token -1 is not of this model"),
        (lambda: NGramLM().fit(["a"]).next_log_probs([9]), ValueError, "token 9 is not of this model"),
        (lambda: NGramLM().fit(["a"]).law((9,), (), 3), ValueError, "token 9 is not of this model"),
        (lambda: NGramLM().follow([()]), NotFittedError, "fit"),
        (lambda: NGramLM().law((), (), 3), NotFittedError, "fit"),
        (lambda: NGramLM().log_prob([3]), NotFittedError, "fit"),
        (lambda: NGramLM().sample(), NotFittedError, "fit"),
        (lambda: NGramLM().save("x"), NotFittedError, "fit"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        NGramLM.load(tmp_path)
    NGramLM(3).fit(TEXTS).save(tmp_path / "lm")
    file = tmp_path / "lm" / "ngram.json"
    whole = file.read_text(encoding="utf-8")
    for damaged in (whole[:40], whole.replace('"order": 3', '"order": 4'), whole.replace('"我", ', "")):
        file.write_text(damaged, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"ngram\.json cannot be read"):
            NGramLM.load(tmp_path / "lm")
    file.unlink()
    NGramLM(3).fit(TEXTS).save(tmp_path / "lm")
    for name in ("ngram.json", "model.safetensors"):
        file = tmp_path / "lm" / name
        written = file.read_bytes()
        for bit in range(7, 8 * len(written), 8 * len(written) // 60):
            flipped = bytearray(written)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
                NGramLM.load(tmp_path / "lm")
        file.write_bytes(written)
    (tmp_path / "lm" / "model.safetensors").rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        NGramLM.load(tmp_path / "lm")
    (tmp_path / "lm" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        NGramLM(3).fit(TEXTS).save(tmp_path / "lm")


@pytest.mark.parametrize("top", [1, 64, 250])
def test_candidates_are_the_best_of_all_tokens(top):
    """Most places are settled by the tokens that were seen and the kept order of the others; all agree with a sort."""
    lm, generator = load_lm(), np.random.default_rng(0)
    texts = [lm.sample(generator=generator) for _ in range(150)]
    places = [(text[:i], text[i + 1 :]) for text in texts if text for i in [int(generator.integers(len(text)))]]
    for left, right in [*places, *((left, None) for left, _ in places[:20]), ((), ())]:
        scores = lm.next_log_probs(left[-4:]).copy()
        if right is not None:
            trie, nodes = lm._trie, np.arange(1, len(scores) + 1)
            children = trie.child(nodes, right[0] if right else END)
            unseen = trie.backoff[nodes] + trie.log_prob[1 + (right[0] if right else END)]
            scores += np.where(children < 0, unseen, trie.log_prob[children])
        law = lm.law(left, right, top)
        chosen = scores[law.tokens]
        assert len(set(law.tokens)) == top
        assert np.sort(chosen) == pytest.approx(np.sort(scores[list(lm.writable)])[-top:], abs=1e-9)
        weights = np.exp(chosen - chosen.max())
        assert [law.probability(token) for token in law.tokens] == pytest.approx(weights / weights.sum(), abs=1e-9)
