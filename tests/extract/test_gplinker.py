"""GPLinker: labels against the spans they stand for, decoding against a search, batches, folders."""

import copy

import numpy as np
import pytest
import torch

from kexue.errors import CheckpointError
from kexue.extract import (
    DGCNNExtractor,
    GPLinkerExtractor,
    TripleExample,
    TripleSchema,
    open_extractor,
    read_triples,
)
from kexue.extract.token_rows import TokenRows, count_split, encode_tokens, find_tokens
from kexue.extract.triples import annotate

EXAMPLES = read_triples("sample")
SCHEMA = TripleSchema.of(EXAMPLES)
TEXTS = [example.text for example in EXAMPLES]


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPLinkerExtractor("roformer-sim-tiny-zh", SCHEMA, max_length=48).eval()


def label_scores(model, batch):
    """Scores of 5 where a label is, and of -5 elsewhere, as numpy arrays (B, kinds, T, T)."""
    t = batch.token_ids.shape[1]
    scores = []
    for labels in (batch.entities, batch.firsts, batch.lasts):
        flat = torch.full((*labels.shape[:2], t * t + 1), -5.0)
        flat.scatter_(2, torch.where(labels < 0, t * t, labels), 5.0)
        scores.append(flat[..., :-1].unflatten(2, (t, t)))
    return scores


def test_labels_decode_to_the_triples(model, monkeypatch):
    batch = TokenRows(EXAMPLES, model.tokenizer, SCHEMA).__getitems__(list(range(len(EXAMPLES))))
    monkeypatch.setattr(GPLinkerExtractor, "score", lambda self, states, mask: label_scores(self, batch))
    for found, example in zip(model.prepare(TEXTS)(0.5, 0.5), EXAMPLES, strict=True):
        assert {triple[:5] for triple in found.triples} == {triple[:5] for triple in example.triples}
        assert all(triple.score == pytest.approx(1 / (1 + np.exp(-5))) for triple in found.triples)


def brute(scores, offsets, head, tail):
    """All triples by definition, from probabilities of one text."""
    entities, firsts, lasts = scores
    for a in offsets:
        for b in offsets:
            for c in offsets:
                for d in offsets:
                    if entities[0, a, b] > head and entities[1, c, d] > head:
                        for p in range(len(firsts)):
                            if firsts[p, a, c] > head and lasts[p, b, d] > tail:
                                yield (offsets[a][0], offsets[b][1]), p, (offsets[c][0], offsets[d][1])


def test_decoding_is_a_search_of_all_pairs(model):
    text, random = "李白写诗", np.random.default_rng(0)
    coded = encode_tokens(model.tokenizer, [text])
    t, p = coded.mask.shape[1], len(SCHEMA.predicates)
    scores = [random.random((n, t, t)) for n in (2, p, p)]
    scores[0] = np.where(np.triu(np.ones((t, t))), scores[0], 1e-9)
    found = model._decode(text, coded.offsets[0], [np.log(x / (1 - x)) for x in scores], 0.6, 0.7)
    assert {(s.subject_span, SCHEMA.number(s.predicate), s.object_span) for s in found.triples} == set(
        brute(scores, coded.offsets[0], 0.6, 0.7)
    )
    assert found.triples


def test_the_scores_do_not_depend_on_the_batch(model):
    coded = encode_tokens(model.tokenizer, TEXTS[:4])
    with torch.inference_mode():
        together = model(coded.token_ids, coded.mask)
        for i, text in enumerate(TEXTS[:4]):
            alone = encode_tokens(model.tokenizer, [text])
            t = alone.mask.shape[1]
            for a, b in zip(together, model(alone.token_ids, alone.mask), strict=True):
                assert torch.allclose(a[i, :, :t, :t], b[0], atol=1e-4)


def test_loss_falls_and_all_weights_learn(model):
    model = copy.deepcopy(model)
    batch = TokenRows(EXAMPLES[:4], model.tokenizer, SCHEMA).__getitems__([0, 1, 2, 3])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        loss = model.training_step(batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert not {name for name in unused if not name.startswith("encoder.")}


def test_save_and_open(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    again = open_extractor(tmp_path / "m")
    assert isinstance(again, GPLinkerExtractor)
    assert again.max_length == 48
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(CheckpointError, match="cannot be used"):
        DGCNNExtractor.from_pretrained(tmp_path / "m")


def test_tokens_of_a_span():
    offsets = {1: (0, 2), 2: (3, 5), 3: (6, 7)}  # of a text whose characters 2 and 5 are in no token
    tokens = {span: find_tokens(offsets, span) for span in ((0, 2), (1, 2), (0, 3), (1, 4), (2, 3), (3, 7), (6, 8))}
    assert tokens == {
        (0, 2): (1, 1), (1, 2): (1, 1), (0, 3): (1, 1), (1, 4): (1, 2), (2, 3): None, (3, 7): (2, 3), (6, 8): None
    }  # fmt: skip
    assert find_tokens(offsets, None) is None
    assert find_tokens({}, (0, 1)) is None


def test_names_that_split_a_token_are_counted(model):
    text = "A是👨\u200d👩人"  # the three emoji are one token
    names = [("A", "👨"), ("是", "👨\u200d👩"), ("人", "👩")]
    example = TripleExample(text, tuple(annotate(text, subject, "是", object) for subject, object in names))
    assert count_split(model.tokenizer, [example, *EXAMPLES]) == 2


def test_long_texts_and_wrong_limits(model):
    with pytest.warns(UserWarning, match="1 text longer than 48"):
        model.extract(["长" * 47, "长" * 46], head_threshold=0.9999)
    assert model.extract(["", " "]) == [[], []]
    with pytest.raises(ValueError, match="max_length must be at most"):
        GPLinkerExtractor("roformer-sim-tiny-zh", SCHEMA, max_length=10**6)
