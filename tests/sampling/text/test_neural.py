"""Neural models as targets and proposals: what is cached agrees with what is computed anew; the law is kept."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from kexue.errors import CheckpointError, ModelNotFoundError
from kexue.nn.attention import unilm_mask
from kexue.sampling import ProductTarget, metropolis_hastings, transition_matrix
from kexue.sampling.text import (
    BlockMove,
    CausalLM,
    DeleteMove,
    InsertMove,
    Length,
    LMTarget,
    MaskedLMProposal,
    MixtureProposal,
    ReplaceMove,
    SwapMove,
    pseudo_gibbs,
    write_keywords,
)
from kexue.text import RoFormerSim, RoFormerSimConfig
from kexue.text.roformer_sim.characters import write_tokenizer
from kexue.text.tokenizer import TextTokenizer

LETTERS = "ab广州美食"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<u>", "cls_token": "<c>", "sep_token": "<e>",
           "mask_token": "<m>", "pad_token": "<p>"}  # fmt: skip


def save_tokenizer(folder):
    names = [*SPECIAL.values(), *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<u>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.BertProcessing(("<e>", 4), ("<c>", 3))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)
    return len(names)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """Folder of a small GPT-2 with random weights."""
    folder = tmp_path_factory.mktemp("gpt")
    size = save_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.5)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Folder of a small BERT with random weights."""
    folder = tmp_path_factory.mktemp("bert")
    size = save_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                            intermediate_size=32, max_position_embeddings=32, initializer_range=0.5)  # fmt: skip
        BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def similar(tmp_path_factory):
    """A small RoFormer-Sim with random weights."""
    folder = tmp_path_factory.mktemp("similar")
    write_tokenizer(folder, list(LETTERS))
    tokenizer = TextTokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = RoFormerSimConfig(tokenizer.vocabulary_size, hidden_size=16, num_layers=2, num_heads=2, max_length=24)
        model = RoFormerSim(config, tokenizer).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def score_gpt(folder, lm, text):
    """log p of a text by one plain pass."""
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = torch.tensor([[0, *lm.encode(text), 1]])
    with torch.no_grad():
        scores = model(ids).logits.log_softmax(-1)[0]
    return float(scores[:-1].gather(-1, ids[0, 1:, None]).sum())


def score_similar(model, lm, prompt, text):
    """log p of a text after a prompt by one pass of the whole row under the UniLM mask."""
    tokenizer = model.tokenizer
    first = [tokenizer.cls_id, *lm.encode(prompt), tokenizer.sep_id]
    second = [*lm.encode(text), tokenizer.sep_id]
    ids = torch.tensor([[*first, *second]])
    segments = torch.tensor([[0] * len(first) + [1] * len(second)])
    with torch.no_grad():
        states = model.transformer(ids, mask=unilm_mask(segments), segment_ids=segments).last_hidden_state
        scores = model.score_tokens(states).log_softmax(-1)[0]
    places = range(len(first) - 1, ids.shape[1] - 1)
    return sum(float(scores[i, ids[0, i + 1]]) for i in places)


TEXTS = ["广州美食", "广州", "广美美食", "a", "广州美食广州美食", "广州美b"]


def test_scores_with_cached_prefixes_are_those_of_whole_passes(gpt):
    lm = CausalLM(gpt)
    scores = lm.log_rho([lm.encode(text) for text in TEXTS])
    assert scores == pytest.approx([score_gpt(gpt, lm, text) for text in TEXTS], abs=1e-4)  # float32


@pytest.mark.parametrize("prompt", ["", "美食a"])
def test_scores_of_roformer_sim_are_those_of_whole_rows(similar, prompt):
    lm = CausalLM(similar, prompt=prompt)
    scores = lm.log_rho([lm.encode(text) for text in TEXTS])
    assert scores == pytest.approx([score_similar(similar, lm, prompt, text) for text in TEXTS], abs=1e-4)


@pytest.mark.parametrize("kind", ["gpt", "similar"])
def test_law_is_that_of_whole_texts(request, kind):
    lm, fresh = (CausalLM(request.getfixturevalue(kind)) for _ in range(2))
    left, right = lm.encode("广州"), lm.encode("食")
    law = lm.law(left, right, 4)
    likeliest = sorted(lm.writable, key=lambda w: -fresh.next_log_probs(left)[w])[:4]
    assert sorted(law.tokens) == sorted(likeliest)
    whole = np.exp(fresh.log_rho([(*left, w, *right) for w in law.tokens]))
    assert [law.probability(w) for w in law.tokens] == pytest.approx(whole / whole.sum(), abs=1e-5)
    assert lm.log_rho([(*left, w, *right) for w in law.tokens]) == pytest.approx(np.log(whole), abs=1e-4)
    assert np.exp(lm.next_log_probs(left)).sum() == pytest.approx(1, abs=1e-5)
    other = lm.law(left, None, None)
    assert len(other.tokens) == len(lm.writable)


@pytest.mark.parametrize("kind", ["gpt", "similar"])
def test_moves_by_a_neural_model_keep_its_law(request, kind):
    lm = CausalLM(request.getfixturevalue(kind))
    lm.writable = lm.encode("广州")  # two letters, so that states can be listed
    lm._writable = np.array(lm.writable)
    a, b = lm.writable
    states = [(), (a,), (b,), (a, a), (a, b), (b, a), (b, b)]
    target = ProductTarget(Length(0, 2), LMTarget(lm))
    weights = np.exp(target.log_rho(states))
    moves = [InsertMove(lm, top=1), DeleteMove(), ReplaceMove(lm), SwapMove(), BlockMove(lm)]
    matrix = transition_matrix(target, MixtureProposal(moves), states)
    flow = (weights / weights.sum())[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-6)  # float32


def test_sentences_are_written(similar):
    lm = CausalLM(similar)
    written = write_keywords(["广州", "食"], lm, steps=5, chains=2, max_length=10, generator=0)
    assert all("广州" in text and "食" in text and len(text) <= 10 for text in written.sentences)


def test_masked_models_give_candidates(bert):
    model = MaskedLMProposal(bert)
    left, right = model.encode("广州"), model.encode("食")
    ids = torch.tensor([[3, *left, model.mask, *right, 4]])
    with torch.no_grad():
        logits = BertForMaskedLM.from_pretrained(bert).eval()(ids).logits[0, 3].double()
    weights = logits[model.writable].softmax(-1)
    law = model.law(left, right, None)
    assert [law.probability(w) for w in model.writable] == pytest.approx(weights.tolist(), abs=1e-6)
    # as a proposal it keeps the law of any target
    a, b = model.encode("ab")
    model.writable, model._writable = (a, b), np.array([a, b])
    states = [(x, y) for x in (a, b) for y in (a, b)]
    target = ProductTarget(lambda text: 0.7 * text.count(a) - (text[0] == b), Length(2, 2))
    p = np.exp(target.log_rho(states)) / np.exp(target.log_rho(states)).sum()
    matrix = transition_matrix(target, MixtureProposal([ReplaceMove(model, top=1), BlockMove(model)]), states)
    np.testing.assert_allclose(p[:, None] * matrix, (p[:, None] * matrix).T, atol=1e-12)


def test_pseudo_gibbs_draws_from_the_conditionals(bert):
    """Of one token, all draws are from the model's law of a lone [MASK]; of two, from a chain with no stated law."""
    model = MaskedLMProposal(bert)
    result = pseudo_gibbs(model, [model.mask], steps=4000, generator=0)
    counts, law = Counter(state[0] for state in result.states[0]), model.law((), (), None)
    shares = np.array([counts[w] / 4000 for w in model.writable])
    assert 0.5 * np.abs(shares - [law.probability(w) for w in model.writable]).sum() < 0.03
    assert np.isnan(result.log_rho).all()
    result = pseudo_gibbs(model, "广州美食", steps=20, chains=2, generator=1)
    assert {len(state) for chain in result.states for state in chain} == {4}
    assert result.states == pseudo_gibbs(model, "广州美食", steps=20, chains=2, generator=1).states


def test_bad_models_and_words_are_refused(gpt, bert, similar, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        CausalLM(tmp_path / "no such folder")
    (tmp_path / "config.json").write_text("{}")
    for kind in (CausalLM, MaskedLMProposal):
        with pytest.raises(CheckpointError, match="cannot be read as AutoModelFor"):
            kind(tmp_path)
    for model in (CausalLM(gpt), CausalLM(similar), MaskedLMProposal(bert)):
        with pytest.raises(ValueError, match="becomes"):
            model.encode("京")
    with pytest.raises(ValueError, match="inner tokens"):
        CausalLM(similar).encode("ab")
    with pytest.raises(ValueError, match="no tokenizer"):
        CausalLM(RoFormerSim(similar.config))
    with pytest.raises(ValueError, match="at least one coordinate"):
        pseudo_gibbs(MaskedLMProposal(bert), [], steps=3)
    causal, masked, token = CausalLM(gpt), MaskedLMProposal(bert), CausalLM(gpt).writable[0]
    assert math.isfinite(causal.log_rho([(token,) * 31])[0])  # 32 with the beginning
    for call in (
        lambda: causal.log_rho([(token,) * 32]),
        lambda: causal.law((token,) * 10, (token,) * 21, 3),
        lambda: write_keywords(["a"], causal, min_length=40, steps=5),
        lambda: masked.law((token,) * 15, (token,) * 15, 3),  # 33 with the mask and both ends
    ):
        with pytest.raises(ValueError, match="at most 32 tokens"):
            call()
    for foreign in (-1, 99):
        with pytest.raises(ValueError, match=f"tokens .*{foreign}.* are not of this model"):
            causal.log_rho([(foreign,)])
        with pytest.raises(ValueError, match=f"tokens .*{foreign}.* are not of this model"):
            masked.law((foreign,), (), 3)


def test_weights_of_nan_are_refused(gpt, tmp_path):
    model = GPT2LMHeadModel.from_pretrained(gpt)
    with torch.no_grad():
        model.transformer.wte.weight.fill_(math.nan)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    lm = CausalLM(tmp_path)
    with pytest.raises(ValueError, match="NaN"):
        lm.law((), (), 3)
    with pytest.raises(ValueError, match="got nan for state"):
        metropolis_hastings(LMTarget(lm), MixtureProposal([SwapMove()]), lm.encode("ab"), steps=1)
