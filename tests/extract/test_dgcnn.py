"""The network and the extractor around it: masks, batches, folders, limits, and gradients."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch

from kexue.errors import CheckpointError, DataError, MissingDependencyError, NotFittedError, NotSupported
from kexue.extract import (
    DGCNNConfig,
    DGCNNExtractor,
    DistantSupervision,
    Triple,
    TripleExample,
    TripleSchema,
    decode_triples,
    open_extractor,
    read_triples,
)
from kexue.extract.extractor import MOST_SUBJECTS, MOST_TRIPLES
from kexue.extract.probabilities import joint_probability
from kexue.extract.reader import TextReader
from kexue.extract.rows import Augmentation, TripleRows, draw_subject
from kexue.extract.triples import annotate
from kexue.extract.words import WordVectors

EXAMPLES = read_triples("sample")
SCHEMA = TripleSchema.of(EXAMPLES)
TEXTS = [example.text for example in EXAMPLES]


def make(seed=0, *, prior=False, loud=True, max_length=64, **settings):
    """A small model with random weights; `loud`: whose probabilities lie around the thresholds."""
    words = WordVectors(("诗人", "首都"), np.eye(2, 3, dtype=np.float32))
    reader = TextReader.of(TEXTS, words, "longest")
    config = DGCNNConfig(
        dim=16, num_layers=3, max_length=max_length, num_predicates=len(SCHEMA.predicates), prior=prior,
        num_characters=reader.num_characters, num_words=2, word_dim=3, num_heads=2, **settings,
    )  # fmt: skip
    known = DistantSupervision([one.triples for one in EXAMPLES], SCHEMA) if prior else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DGCNNExtractor(config, schema=SCHEMA, reader=reader, supervision=known).eval()
        model.words[1:] = torch.from_numpy(words.vectors)
        if loud:
            torch.nn.init.normal_(model.positions.weight)
            for layer in (model.entity_head[2], model.entity_tail[2], model.predicate[2], model.object_any):
                torch.nn.init.constant_(layer.bias, 4.0)
            for layer in (model.subject_ends, model.object_ends):
                torch.nn.init.normal_(layer.weight, std=8.0)
                torch.nn.init.constant_(layer.bias, -1.0)
    return model


def plain(triples):
    return [triple[:5] for triple in triples]


@pytest.mark.parametrize("prior", [False, True])
def test_the_result_does_not_depend_on_the_batch(prior):
    model = make(prior=prior).double()
    alone = [model.extract([text], head_threshold=0.8)[0] for text in TEXTS]
    assert sum(map(len, alone)) > 50
    for size in (2, 5, 64):
        together = model.extract(TEXTS, head_threshold=0.8, batch_size=size)
        assert [plain(one) for one in together] == [plain(one) for one in alone]
        scores = [[t.score for one in found for t in one] for found in (together, alone)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-12)


def test_padding_reaches_no_output():
    model = make()
    short = model.reader.encode_batch(TEXTS[:1], 64)
    padded = model.reader.encode_batch([TEXTS[0], "长" * 60], 64)
    n, places = len(TEXTS[0]), torch.tensor([2])
    for texts in (short, padded):
        texts.words[~texts.mask] = 1  # whatever stands at padding
    results = []
    for texts in (short, padded):
        encoded = model(texts)
        objects = model.score_objects(encoded, torch.tensor([0]), places, places + 2)
        results.append((joint_probability(encoded.subjects)[0, :n], joint_probability(objects)[0, :n]))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_extraction_is_decoding_of_the_probabilities():
    model = make()
    for text in TEXTS[:8]:
        encoded = model(model.reader.encode_batch([text], 64))

        def objects(start, end, encoded=encoded):
            places = torch.tensor([0]), torch.tensor([start]), torch.tensor([end - 1])
            return joint_probability(model.score_objects(encoded, *places))[0].numpy(force=True)

        subjects = joint_probability(encoded.subjects)[0].numpy(force=True)
        wanted = decode_triples(subjects, objects, head_threshold=0.8)
        [found] = model.extract([text], head_threshold=0.8)
        assert [(t.subject_span, SCHEMA.number(t.predicate), t.object_span) for t in found] == wanted
        for triple in found:
            (a, b), (c, d) = triple.subject_span, triple.object_span
            assert (triple.subject, triple.object) == (text[a:b], text[c:d])
            of_object = objects(a, b)[:, SCHEMA.number(triple.predicate)]
            ends = subjects[a, 0] * subjects[b - 1, 1] * of_object[c, 0] * of_object[d - 1, 1]
            assert triple.score == pytest.approx(ends**0.25, rel=1e-5)


def test_spans_are_in_the_original_text():
    model = make()
    texts = ["İ" + text for text in TEXTS]  # its small form has two characters
    found = model.extract(texts, head_threshold=0.8)
    assert any(found)
    for text, triples in zip(texts, found, strict=True):
        for triple in triples:
            assert text[slice(*triple.subject_span)] == triple.subject
            assert text[slice(*triple.object_span)] == triple.object


def test_loss_is_the_cross_entropy_of_the_labels():
    model = make(loud=False).double()
    batch = TripleRows(EXAMPLES, model.reader, SCHEMA, model.config).__getitems__(list(range(6)))
    loss = model.training_step(batch).loss
    encoded = model(batch.texts)
    rows = torch.arange(6)
    terms = []
    for factors, labels in (
        (encoded.subjects, batch.subjects),
        (model.score_objects(encoded, rows, batch.starts, batch.lasts), batch.objects),
    ):
        p = joint_probability(factors)
        cells = torch.where(labels, p.log(), (1 - p).log())
        terms.append(-cells[batch.texts.mask].sum() / batch.texts.mask.sum())
    assert loss.item() == pytest.approx(sum(terms).item(), rel=1e-10)
    model.train().training_step(batch).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not model.words.requires_grad


def test_save_and_open(tmp_path):
    model = make(prior=True)
    model.save_pretrained(tmp_path / "run" / "model")
    wanted = model.extract(TEXTS, head_threshold=0.8)
    for again in (DGCNNExtractor.from_pretrained(tmp_path / "run"), open_extractor(tmp_path / "run" / "model")):
        assert again.extract(TEXTS, head_threshold=0.8) == wanted
    model.save_pretrained(tmp_path / "run" / "model")  # replaces its own folder
    (tmp_path / "run" / "model" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds mine\.txt, not written by kexue"):
        model.save_pretrained(tmp_path / "run" / "model")


def test_damaged_folders(tmp_path):
    with pytest.raises(CheckpointError, match="holds no extractor"):
        open_extractor(tmp_path)
    make().save_pretrained(tmp_path / "m")
    record = json.loads((tmp_path / "m" / "extractor.json").read_text())
    for wrong, message in (
        ({"kind": "crf"}, "unknown kind"),
        ({"version": 9}, "version 9"),
        ({"words": 3}, "cannot be"),
        ({"words": ["诗人"]}, "num_words=2, but the reader has 1"),
        ({"kind": ["dgcnn"]}, "unknown kind"),
        ({"supervision": [[1, 0, 2, [0]]]}, "cannot be used"),
    ):
        (tmp_path / "m" / "extractor.json").write_text(json.dumps({**record, **wrong}))
        with pytest.raises(CheckpointError, match=message):
            open_extractor(tmp_path / "m")
    (tmp_path / "m" / "extractor.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        open_extractor(tmp_path / "m")
    (tmp_path / "m" / "extractor.json").write_text(json.dumps(record))
    (tmp_path / "m" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        open_extractor(tmp_path / "m")


def test_blank_long_and_wrong_texts():
    model = make()
    assert model.extract(["", "  \n"]) == [[], []]
    assert model.extract([]) == []
    with pytest.warns(UserWarning, match="2 texts longer than 64, the rest of which is not read"):
        model.extract(["长" * 65, "长" * 64, "长" * 1000])
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string"):
        model.extract(["a", 1])
    with pytest.raises(ValueError, match="batch_size must be"):
        model.extract(["a"], batch_size=0)
    with pytest.raises(ValueError, match="head_threshold must be in"):
        model.extract(["a"], head_threshold=1.5)


def test_a_bad_model_is_cut_off_with_a_warning():
    model = make()
    with pytest.warns(UserWarning, match=f"1 text with more than {MOST_SUBJECTS} subjects or {MOST_TRIPLES} triples"):
        [found] = model.extract(["长城" * 30], head_threshold=0.0, tail_threshold=0.0)
    assert len(found) == MOST_TRIPLES
    assert len({triple.subject_span for triple in found}) <= MOST_SUBJECTS


def test_a_bare_network_says_so():
    model = DGCNNExtractor(DGCNNConfig(dim=16, num_layers=1, num_heads=2))
    with pytest.raises(NotFittedError, match="bare network"):
        model.extract(["a"])
    with pytest.raises(NotFittedError, match="bare network"):
        model.save_pretrained("x")
    with pytest.raises(ValueError, match="num_predicates=50, but the schema has"):
        DGCNNExtractor(model.config, schema=SCHEMA)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 30}, "multiple of num_heads"),
        ({"num_layers": 13}, "at most 12"),
        ({"num_words": 5}, "give both, or neither"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"subject_sampling": "all"}, "subject_sampling must be"),
        ({"num_predicates": 0}, "num_predicates"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        DGCNNConfig(**settings)


def test_subjects_are_drawn_as_named():
    random = np.random.default_rng(0)
    spans = [(0, 2), (3, 5), (4, 5)]
    gold = {draw_subject(spans, 6, "gold", random) for _ in range(200)}
    assert gold == set(spans)
    mixed = {draw_subject(spans, 6, "mixed", random) for _ in range(400)}
    assert mixed == {(s, e) for s in (0, 3, 4) for e in (2, 5) if e > s}
    assert {draw_subject([], 3, "mixed", random) for _ in range(100)} == {(0, 1), (1, 2), (2, 3)}


def test_labels_are_the_spans_of_the_triples():
    model = make()
    rows = TripleRows(EXAMPLES, model.reader, SCHEMA, model.config)
    batch = rows.__getitems__(list(range(len(EXAMPLES))))
    for i, example in enumerate(EXAMPLES):
        spans = {t.subject_span for t in example.triples}
        assert set(batch.subjects[i, :, 0].nonzero()[:, 0].tolist()) == {start for start, _ in spans}
        assert set((batch.subjects[i, :, 1].nonzero()[:, 0] + 1).tolist()) == {end for _, end in spans}
        chosen = int(batch.starts[i]), int(batch.lasts[i]) + 1
        heads = {(t.object_span[0], SCHEMA.number(t.predicate)) for t in example.triples if t.subject_span == chosen}
        assert {tuple(cell) for cell in batch.objects[i, :, :, 0].nonzero().tolist()} == heads
    rows.set_epoch(1)
    again = rows.__getitems__(list(range(len(EXAMPLES))))
    assert not torch.equal(again.starts, batch.starts)
    rows.set_epoch(0)
    assert torch.equal(rows.__getitems__([3]).starts, batch.starts[3:4])  # whatever else is in the batch


def test_augmentation_replaces_a_triple_everywhere():
    changed = 0
    augment = Augmentation(EXAMPLES, 1.0)
    random = np.random.default_rng(0)
    for example in EXAMPLES:
        other = augment(example, random)
        changed += other.text != example.text
        assert [t.predicate for t in other.triples] == [t.predicate for t in example.triples][: len(other.triples)]
        for triple in other.triples:
            assert other.text[slice(*triple.subject_span)] == triple.subject
            assert other.text[slice(*triple.object_span)] == triple.object
    assert changed > len(EXAMPLES) / 2
    assert Augmentation(EXAMPLES, 0.0)(EXAMPLES[0], random) is EXAMPLES[0]


def test_augmentation_replaces_names_as_the_text_writes_them():
    text = "abc写了xyz"
    example = TripleExample(text, (annotate(text, "ABC", "作者", "XYZ"),))
    [triple] = Augmentation([example], 1.0)(example, np.random.default_rng(0)).triples
    assert triple == Triple("ABC", "作者", "XYZ", (0, 3), (5, 8))


def test_features_of_a_training_sentence_leave_out_its_own_triples():
    model = make(prior=True)
    rows = TripleRows(EXAMPLES, model.reader, SCHEMA, model.config, supervision=model.supervision)
    [place] = [i for i, text in enumerate(TEXTS) if text.startswith("《水浒传》")]  # nobody else has its triple
    batch = rows.__getitems__([place])
    assert batch.subjects.any()
    assert not batch.prior_subjects.any()
    assert not batch.prior_objects.any()
    assert model.supervision.features(TEXTS[place]).subjects.any()


def test_no_warning_on_good_input():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().extract(TEXTS[:2])
    assert Triple("a", "p", "b").score == 1.0


@pytest.mark.slow
def test_onnx_graphs_give_the_same_triples(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    make(max_length=5).export_onnx(tmp_path / "short")
    model = make()
    model.export_onnx(tmp_path / "onnx")  # which compares both graphs with the network
    first, second = (runtime.InferenceSession(tmp_path / "onnx" / f"{n}.onnx") for n in ("subjects", "objects"))
    names = [one.name for one in first.get_outputs()]
    for text in TEXTS[:4]:
        coded = {name: value.numpy() for name, value in model.reader.encode_batch([text], 64)._asdict().items()}
        encoded = dict(zip(names, first.run(None, coded), strict=True))
        inputs = {one.name: {**coded, **encoded}.get(one.name) for one in second.get_inputs()}

        def objects(start, end, inputs=inputs):
            places = {"rows": 0, "starts": start, "lasts": end - 1}
            return second.run(None, inputs | {name: np.array([x]) for name, x in places.items()})[0][0]

        wanted = decode_triples(encoded["probabilities"][0], objects, head_threshold=0.8)
        [found] = model.extract([text], head_threshold=0.8)
        assert [(t.subject_span, SCHEMA.number(t.predicate), t.object_span) for t in found] == wanted


def test_onnx_says_what_it_needs_or_cannot(tmp_path, monkeypatch):
    with pytest.raises(NotSupported, match="prior=True"):
        make(prior=True).export_onnx(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"kexue\[extract\]"):
        make().export_onnx(tmp_path / "a")
