"""Sentences written with a cache beside the whole row computed anew at every step."""

import pytest
import torch
from scipy import stats

from kexue.text.roformer_sim.generation import Marks, mask_places, write_sentences
from kexue.text.roformer_sim.model import RoFormerSimConfig, SentenceNetwork
from kexue.text.roformer_sim.token_sampler import TokenSampler

PAD, UNK, CLS, SEP, MASK = range(5)
MARKS = Marks(SEP, (PAD, UNK, CLS, MASK))
PREFIXES = [[CLS, 9, 8, 7, SEP], [CLS, 11, SEP], [CLS, 5, 6, 7, 8, 9, 10, 11, SEP]]


def make(position="rotary", vocab=30, **options):
    """A network in float64 whose next tokens are far from equally likely, [SEP] among the likelier ones."""
    torch.manual_seed(3)
    config = RoFormerSimConfig(
        vocab, hidden_size=32, num_layers=2, num_heads=4, position=position, max_length=40, **options
    )
    network = SentenceNetwork(config).double()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
        network.head_bias[SEP] = 1.0
    return network.eval()


@torch.no_grad()
def next_scores(network, prefix, written):
    """Scores of the next token from the whole row under the UniLM mask."""
    ids = torch.tensor([prefix + written])
    segments = torch.tensor([[0] * len(prefix) + [1] * len(written)])
    scores = network.score_tokens(network(ids, segments).states[:, -1])
    scores[:, list(MARKS.never)] = -torch.inf
    if not written:
        scores[:, SEP] = -torch.inf
    return scores


def write_without_cache(network, prefix, n, max_length, sampler, seed):
    """Reference: no cache, no batch; the same random numbers."""
    draws = torch.rand(n, max_length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sentences = []
    for row in draws:
        written = []
        for number in row:
            token = sampler.draw(next_scores(network, prefix, written), number[None]).item()
            if token == SEP:
                break
            written.append(token)
        sentences.append(written)
    return sentences


@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal", "t5", "none"])
@pytest.mark.parametrize("prefixes", [PREFIXES[:1], PREFIXES], ids=["one text", "texts of many lengths"])
@pytest.mark.parametrize("sampler", [TokenSampler(), TokenSampler(top_k=3), TokenSampler(temperature=0)])
def test_with_a_cache_the_tokens_are_those_without(position, prefixes, sampler):
    network = make(position)
    ours = write_sentences(network, prefixes, MARKS, n=12, max_length=10, sampler=sampler, generator=5)
    assert ours == [write_without_cache(network, prefix, 12, 10, sampler, 5) for prefix in prefixes]
    if sampler.temperature:
        lengths = {len(ids) for text in ours for ids in text}
        assert len(lengths) > 2, "sentences must end at different steps for the test to mean something"


def test_the_first_token_has_the_probabilities_of_a_softmax():
    network = make(vocab=12)
    expected = next_scores(network, PREFIXES[0], []).softmax(-1)[0]
    n = 20_000
    sampler = TokenSampler(top_p=1.0)
    written = write_sentences(network, PREFIXES[:1], MARKS, n=n, max_length=1, sampler=sampler, generator=0)[0]
    drawn = torch.tensor([ids[0] for ids in written]).bincount(minlength=12)
    likely = expected > 0
    assert drawn[~likely].sum() == 0
    assert stats.chisquare(drawn[likely].numpy(), n * expected[likely].numpy()).pvalue > 0.01


def test_neither_other_texts_nor_n_nor_the_size_of_the_batch_matter(monkeypatch):
    network = make()
    together = write_sentences(network, PREFIXES, MARKS, n=30, max_length=12, generator=1)
    assert together == [write_sentences(network, [one], MARKS, n=30, max_length=12, generator=1)[0] for one in PREFIXES]
    fewer = write_sentences(network, PREFIXES, MARKS, n=7, max_length=12, generator=1)
    assert fewer == [text[:7] for text in together]
    monkeypatch.setattr("kexue.text.roformer_sim.generation._ROWS", 4)
    assert together == write_sentences(network, PREFIXES, MARKS, n=30, max_length=12, generator=1)


def test_a_generator_goes_on_and_a_seed_begins_anew():
    network = make()
    generator = torch.Generator().manual_seed(1)
    first, second = (write_sentences(network, PREFIXES, MARKS, n=5, generator=generator) for _ in range(2))
    assert first[0] == write_sentences(network, PREFIXES, MARKS, n=5, generator=1)[0]
    assert first != second


def test_special_tokens_are_never_written_and_no_sentence_is_empty_or_too_long():
    network = make()
    with torch.no_grad():
        network.head_bias[:5] = 50.0  # [SEP] as likely as the others
    written = write_sentences(network, PREFIXES, MARKS, n=50, max_length=6, generator=0)
    assert all(len(ids) == 1 and min(ids) > 4 for text in written for ids in text)
    with torch.no_grad():
        network.head_bias[SEP] = -1e9
    assert {len(ids) for text in write_sentences(network, PREFIXES, MARKS, n=5, max_length=6) for ids in text} == {6}


def test_the_network_keeps_its_mode_and_writes_without_dropout():
    network = make(dropout=0.5).train()
    assert write_sentences(network, PREFIXES, MARKS, n=3, generator=0) == write_sentences(
        network.eval(), PREFIXES, MARKS, n=3, generator=0
    )
    network.train()
    write_sentences(network, PREFIXES[:1], MARKS, n=1)
    assert network.training


def test_progress_counts_sentences():
    calls = []
    write_sentences(make(), PREFIXES, MARKS, n=300, max_length=2, progress=lambda *call: calls.append(call))
    assert calls == [(300, 900), (600, 900), (900, 900)]
    assert write_sentences(make(), [], MARKS) == []


def test_masked_places():
    ids = [CLS, 9, 8, 7, SEP]
    assert mask_places(ids, [0, 2], MASK) == [CLS, MASK, 8, MASK, SEP]
    assert ids == [CLS, 9, 8, 7, SEP]
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"mask_positions: got {wrong}, expected .* 3 tokens: 0 to 2"):
            mask_places(ids, [0, wrong], MASK)
    with pytest.raises(ValueError, match="no token"):
        mask_places([CLS, SEP], [0], MASK)
    for wrong in ("1", 1.0, True):
        with pytest.raises(TypeError, match=f"mask_positions must be whole numbers, got {wrong!r}"):
            mask_places(ids, [wrong], MASK)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n": 0}, "n must be a whole number >= 1, got 0"),
        ({"n": 2.5}, "n must be a whole number >= 1, got 2.5"),
        ({"n": True}, "n must be a whole number >= 1, got True"),
        ({"max_length": 0}, "max_length must be a whole number >= 1, got 0"),
        ({"max_length": "9"}, "max_length must be a whole number >= 1, got '9'"),
        ({"prefixes": [[CLS, SEP], []]}, r"prefixes\[1\] is empty"),
        (
            {"max_length": 38},
            r"text 0 takes 3 of the model.s 40 positions, which leaves room for 37 tokens, got max_length=38",
        ),
    ],
)
def test_wrong_requests_are_refused(options, told):
    prefixes = options.pop("prefixes", [[CLS, 9, SEP]])
    with pytest.raises(ValueError, match=told):
        write_sentences(make("learned"), prefixes, MARKS, **options)
    if not told.startswith("learned"):
        with pytest.raises(TypeError, match="generator must be"):
            write_sentences(make("learned"), [[CLS, 9, SEP]], MARKS, generator="1")
