"""Sentences that mean the same: each once, never the text itself, in the order of their cosines."""

import numpy as np
import pytest
import torch

from kexue.text import RoFormerSim, RoFormerSimConfig
from kexue.text.roformer_sim.generation import read_text, write_sentences
from kexue.text.roformer_sim.similar import fold_text, rank_similar

ANGLES = {"怎么退货": 0.0, "如何退货": 0.3, "退货流程": 0.9, "今天天气": 2.0, "退款": 0.3}


def encode(texts):
    """Vectors of length 1 at known angles; a text that is not in the table is an error."""
    return np.array([[np.cos(ANGLES[text]), np.sin(ANGLES[text])] for text in texts], dtype=np.float32)


def test_candidates_are_in_the_order_of_their_cosines_ties_as_written():
    written = ["今天天气", "退款", "如何退货", "退货流程"]
    ranked = rank_similar(encode, "怎么退货", written)
    assert [result.text for result in ranked.results] == ["退款", "如何退货", "退货流程", "今天天气"]
    assert [result.score for result in ranked.results] == pytest.approx(np.cos([0.3, 0.3, 0.9, 2.0]))
    assert (ranked.samples, ranked.duplicates) == (4, 0)
    chosen = rank_similar(encode, "怎么退货", written, k=1, min_score=0.0, max_score=0.9)
    assert [result.text for result in chosen.results] == ["退货流程"]


def test_the_text_and_what_is_alike_are_left_out_and_counted():
    written = ["怎么退货?", "退货流程", "退货 流程。", "", "怎 么 退 货", "退货流程", "如何退货"]
    ranked = rank_similar(encode, "怎么退货", written)
    assert [result.text for result in ranked.results] == ["如何退货", "退货流程"]
    assert (ranked.samples, ranked.duplicates) == (7, 5)
    assert rank_similar(encode, "怎么退货", ["怎么退货!"] * 3).results == []


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("退货？", "退货"),
        ("ＡＢＣ", "abc"),
        ("Straße", "STRASSE"),
        ("买 iPhone", "买iphone~"),
        ("“好”", "好"),
        ("①", "1"),
    ],
)
def test_texts_that_are_alike(a, b):
    assert fold_text(a) == fold_text(b)


@pytest.mark.parametrize(("a", "b"), [("1+1", "11"), ("退货", "退款"), ("?", "!"), ("café", "cafe"), ("3℃", "3℉")])
def test_texts_that_differ(a, b):
    assert fold_text(a) != fold_text(b)


@pytest.mark.parametrize(
    "wrong",
    [{"k": 0}, {"k": 2.5}, {"min_score": 0.8, "max_score": 0.2}, {"min_score": -2}, {"max_score": float("nan")}],
)
def test_wrong_bounds_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be"):
        rank_similar(encode, "怎么退货", [], **wrong)


def test_generate_is_the_writing_of_the_ids_of_the_text(model):
    ids, marks = read_text(model.tokenizer, "怎么退货")
    expected = write_sentences(model, [ids], marks, n=6, max_length=9, generator=3)[0]
    assert model.generate("怎么退货", n=6, max_length=9, generator=3) == [
        model.tokenizer.decode(one) for one in expected
    ]
    masked, _ = read_text(model.tokenizer, "怎么退货", [2, 3])
    assert masked == [*ids[:3], *[model.tokenizer.mask_id] * 2, model.tokenizer.sep_id]
    hidden = model.generate("怎么退货", n=6, mask_positions=[2, 3], generator=3)
    for places in (np.array([2, 3]), iter([2, 3])):
        assert model.generate("怎么退货", n=6, mask_positions=places, generator=3) == hidden
    assert hidden == model.generate("怎么好多", n=6, mask_positions=(2, 3), generator=3)
    assert len(set(model.generate("怎么退货", n=5, temperature=0))) == 1


def test_similar_ranks_what_generate_writes(model):
    results = model.similar("怎么退货", n=20, k=5, generator=0)
    assert len(results) == 5
    vectors = model.encode(["怎么退货", *(result.text for result in results)])
    assert [result.score for result in results] == pytest.approx(vectors[1:] @ vectors[0], abs=1e-6)
    assert results == sorted(results, key=lambda result: -result.score)
    assert {result.text for result in results} <= set(model.generate("怎么退货", n=20, generator=0))
    assert model.similar("怎么退货", n=20, k=5, generator=0) == results
    low = results[2].score
    assert model.similar("怎么退货", n=20, k=5, min_score=low, generator=0) == results[:3]


def test_wrong_texts_and_models_are_refused(model):
    for blank in ("", " \n", "\u200b", "\ufeff\x00"):  # without any token
        with pytest.raises(ValueError, match=r"the text '.*' is blank"):
            model.generate(blank)
    with pytest.raises(TypeError, match="must be a string, got int"):
        model.similar(5)
    with pytest.raises(ValueError, match=r"mask_positions: got 4, expected .* 0 to 3"):
        model.generate("怎么退货", mask_positions=[4])
    with pytest.raises(ValueError, match="has no tokenizer"):
        RoFormerSim(RoFormerSimConfig(10, hidden_size=8, num_layers=1, num_heads=2)).generate("退货")


def test_a_text_past_the_limit_is_cut_and_unknown_characters_are_read_as_unk(model):
    assert len(read_text(model.tokenizer, "货" * 60)[0]) == 24
    assert model.generate("货" * 60, n=2, generator=0) == model.generate("货" * 22, n=2, generator=0)
    assert model.generate("龘货", n=2, generator=0) == model.generate("靐货", n=2, generator=0)
    assert all(isinstance(one, str) and "[UNK]" not in one for one in model.generate("龘", n=20, generator=0))


def test_rows_without_a_token_are_never_written(make_model):
    model = make_model()
    larger = make_model(vocab_size=model.config.vocab_size + 7)
    with torch.no_grad():
        larger.head_bias[-7:] += 50.0
    assert all(len(one) for one in larger.generate("怎么退货", n=20, generator=0))
    with torch.no_grad():
        larger.head_bias[-7:] -= 1e4
    expected = larger.generate("怎么退货", n=20, generator=0)
    with torch.no_grad():
        larger.head_bias[-7:] += 2e4
    assert larger.generate("怎么退货", n=20, generator=0) == expected


def test_no_sentence_begins_inside_a_word(make_model):
    model = make_model()
    inside = [i for i, token in enumerate(model.tokenizer.tokens) if token.startswith("##")]
    with torch.no_grad():
        model.head_bias[inside] += 50.0
    for sentence in model.generate("怎么退货", n=20, max_length=5, generator=0):
        assert "#" not in sentence
        assert len(sentence) > 1


def test_learned_positions_leave_as_much_room_as_there_is(make_model):
    model = make_model(position="learned")  # 24 positions
    for size in (2, 14, 21):
        text = "货" * size
        results = model.similar(text, n=30, k=30, generator=0)
        written = model.generate(text, n=30, max_length=22 - size, generator=0)
        assert {one.text for one in results} <= set(written)
        assert results
    with pytest.raises(ValueError, match="leaves room for 0 tokens"):
        model.similar("货" * 22, n=2)


def test_the_generator_of_torch_is_not_touched(model):
    before = torch.get_rng_state()
    model.similar("怎么退货", n=3, generator=0)
    assert torch.equal(torch.get_rng_state(), before)
