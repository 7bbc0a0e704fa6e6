import itertools
import math

import numpy as np
import pytest

from kexue.experiments import Report, run_experiment
from kexue.experiments._sampling_texts import distinct_pairs, perplexity, search_beams
from kexue.experiments._sampling_toys import SpinGlass, Words, variation
from kexue.sampling.text import Keywords, NGramLM


@pytest.mark.slow
def test_the_claims_of_search_sampling(tmp_path):
    report = run_experiment("search-sampling", budget="smoke", out=tmp_path)
    value = {name: figure.value for name, figure in report.figures.items()}
    assert [claim.verdict for claim in report.claims[:4]] == ["reproduced"] * 4  # the toys
    assert value["largest_mass_without_positions"] == pytest.approx(1 / 4)
    assert value["smallest_mass_without_positions"] == pytest.approx(1 / 16)
    assert value["length_without_positions"] == pytest.approx(2.5, abs=0.1)  # lengths 1 to 4, all alike
    assert value["variation_single_edits"] == pytest.approx(2 / 3, abs=0.02)
    assert value["annealing_minus_climbing"] == pytest.approx(value["maximum_annealing"] - value["maximum_climbing"])
    assert value["rejection_1_words"] > value["rejection_2_words"] > value["rejection_4_words"]
    assert value["constraints_kept"] == 1
    assert value["length_gamma_0.6"] > value["length_gamma_1.2"]
    assert value["perplexity_samples"] > value["perplexity_beams"]
    assert (tmp_path / "figure.png").exists()
    assert Report.load(tmp_path).verdict == report.verdict


def test_wide_beams_find_the_most_probable_sentences():
    lm = NGramLM(3).fit(["ab", "aab", "ba", "bab", "abb", "b"])
    words = [lm.encode("ba")]
    letters = [lm.encode(letter)[0] for letter in "ab"]
    having = [
        text
        for n in range(1, 9)
        for text in itertools.product(letters, repeat=n)
        if Keywords(words).log_rho([text]) == [0.0]
    ]
    best = sorted(((lm.log_prob(text), text) for text in having), reverse=True)[:4]
    beams = search_beams(lm, words, 64)[:4]
    assert [text for _, text in beams] == [text for _, text in best]
    assert [log_p for log_p, _ in beams] == pytest.approx([log_p for log_p, _ in best])
    both = search_beams(lm, [lm.encode("ba"), lm.encode("ab")], 8)
    assert all("ab" in lm.decode(text) and "ba" in lm.decode(text) for _, text in both)


def test_measures_of_sentences_by_hand():
    lm = NGramLM(2).fit(["ab", "ba"])
    texts = [lm.encode("ab"), lm.encode("aba")]
    assert perplexity(lm, texts) == pytest.approx(math.exp(-(lm.log_prob(texts[0]) + lm.log_prob(texts[1])) / 7))
    assert distinct_pairs(texts) == 2 / 3  # ab, ab, ba


def test_a_spin_glass_is_the_sum_over_its_pairs():
    glass = SpinGlass(5, np.random.default_rng(0))
    J = np.triu(np.random.default_rng(0).normal(size=(5, 5)), 1)
    x = np.array([1.0, -1, 1, 1, -1])
    pairs = sum(J[i, j] * x[i] * x[j] for i in range(5) for j in range(i + 1, 5))
    assert glass.log_rho([x, -x]) == pytest.approx([pairs / 5**1.5] * 2)


def test_variation_and_words_of_the_toys():
    assert variation(["a", "a", "b", "c"], lambda x: 0.0, ["a", "b", "c", "d"]) == pytest.approx(0.25)
    states = ["".join(letters) for n in range(4) for letters in itertools.product("ab", repeat=n)]
    assert sum(np.exp(Words().log_prob(states))) == pytest.approx(1)
    drawn = Words().sample(50_000, generator=np.random.default_rng(0))
    assert variation(drawn, lambda x: Words().log_prob([x])[0], states) < 0.02
