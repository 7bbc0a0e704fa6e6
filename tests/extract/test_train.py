"""Training of extractors: two stages, exact resume, the folder at the end, and what a small network learns."""

import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kexue.errors import CheckpointError, DataError
from kexue.extract import (
    ExtractConfig,
    Triple,
    TripleExample,
    open_extractor,
    read_triples,
    train as training,
    train_extractor,
    triple_f1,
    tune_thresholds,
)
from kexue.extract.triples import annotate

SMALL = {"dim": 16, "num_layers": 2, "max_length": 48, "batch_size": 8, "epochs": 2, "fine_epochs": 1, "device": "cpu"}
EXAMPLES = read_triples("sample")
TRAIN, DEV = EXAMPLES[:24], EXAMPLES[24:]


def run(out, **settings):
    return train_extractor(ExtractConfig(TRAIN, DEV, out, **{**SMALL, **settings}))


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def test_a_run_gives_a_model(tmp_path):
    result = run(tmp_path)
    assert (result.run, result.steps, result.metric, result.interrupted) == (str(tmp_path), 9, "f1", False)
    model = open_extractor(tmp_path)
    score = triple_f1(model.extract([one.text for one in DEV]), [one.triples for one in DEV])
    assert score.f1 == result.value
    best = load_file(os.path.join(result.checkpoint, "ema.safetensors"))
    assert all(torch.equal(best[name], value) for name, value in model.state_dict().items() if value.numel())


@pytest.mark.parametrize("stops", [(4,), (None, 2)], ids=["first stage", "second stage"])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, monkeypatch, stops):
    def reporting(_progress):
        stop = next(steps)
        return lambda trainer, _: os.kill(os.getpid(), signal.SIGTERM) if trainer.place.step == stop else None

    run(tmp_path / "whole")
    steps = iter(stops)
    with monkeypatch.context() as patch:
        patch.setattr(training, "reporting", reporting)
        assert run(tmp_path / "cut").interrupted
    assert not run(tmp_path / "cut").interrupted
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_patience_counts_from_the_first_right_triple(tmp_path):
    result = run(tmp_path / "none", lr=1e-9, epochs=4, patience=1, fine_epochs=0)
    assert (result.steps, result.value) == (12, 0)  # all four epochs
    copy = {"dim": 64, "num_layers": 3, "lr": 1e-2, "epochs": 60, "fine_epochs": 0, "augmentation": 0.0}
    config = ExtractConfig(TRAIN, TRAIN, tmp_path / "some", **{**SMALL, **copy, "patience": 2})
    with pytest.warns(UserWarning, match="are in train"):
        result = train_extractor(config)
    assert result.value > 0
    assert result.best_step + 2 * 3 == result.steps < 180


def test_few_texts_make_small_batches(tmp_path):
    assert run(tmp_path / "few", batch_size=None, epochs=1, fine_epochs=0).steps == 3
    many = [TripleExample(f"{i}{one.text}", ()) for i in range(60) for one in TRAIN[:-1]] + TRAIN[-1:]
    config = ExtractConfig(many, DEV, tmp_path / "many", **{**SMALL, "batch_size": None, "limit": 1})
    train_extractor(config)
    assert len(training.LengthBatches(many, len(many) // 160, 0)) >= 160


def test_another_seed_gives_other_weights(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", seed=1)
    assert not torch.equal(
        weights(tmp_path / "a")["subject_ends.weight"], weights(tmp_path / "b")["subject_ends.weight"]
    )


def test_other_settings_or_data_are_refused(tmp_path):
    run(tmp_path, limit=1)
    with pytest.raises(CheckpointError, match="dim was 16, is 32"):
        run(tmp_path, dim=32)
    with pytest.raises(CheckpointError, match="data was"):
        train_extractor(ExtractConfig(TRAIN[1:], DEV, tmp_path, **SMALL))
    assert run(tmp_path, dim=32, limit=1, resume=False).steps == 1


def test_word_vectors_and_known_triples(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("诗人 1 0\n首都 0 1\n", encoding="utf-8")
    run(tmp_path / "run", word_vectors=path, segmenter="longest", prior=True, limit=2)
    model = open_extractor(tmp_path / "run")
    assert model.reader.encode("唐代诗人")[1].tolist() == [0, 0, 1, 1]
    assert model.words.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert model.supervision.features("《红楼梦》的作者是曹雪芹").subjects.any()


def test_gplinker(tmp_path):
    config = ExtractConfig(
        TRAIN, DEV, tmp_path, model_type="gplinker", max_length=48, batch_size=12, epochs=1, fine_epochs=0, device="cpu"
    )
    assert train_extractor(config).steps == 2
    assert open_extractor(tmp_path).kind == "gplinker"


def test_bad_data(tmp_path):
    schema = tmp_path / "schema.jsonl"
    schema.write_text('{"predicate": "首都"}', encoding="utf-8")
    with pytest.raises(DataError, match="'作者' is not in the schema"):
        run(tmp_path / "run", schema=schema)
    absent = [TripleExample("甲", (annotate("甲", "乙", "是", "丙"),))]
    with pytest.raises(DataError, match="no triple can be learned"):
        train_extractor(ExtractConfig(absent, DEV, tmp_path / "run", **SMALL))
    with pytest.raises(DataError, match="texts that are not blank"):
        train_extractor(ExtractConfig([TripleExample(" ", ())], DEV, tmp_path / "run", **SMALL))
    with pytest.raises(DataError, match="unknown format"):
        train_extractor(ExtractConfig(__file__, DEV, tmp_path / "run", **SMALL))
    with pytest.warns(UserWarning, match="24 of the 24 texts of dev are in train"):
        train_extractor(ExtractConfig(TRAIN, TRAIN, tmp_path / "leak", **SMALL, limit=1))
    with pytest.raises(DataError, match="dev: no text has a triple"):
        train_extractor(ExtractConfig(TRAIN, [TripleExample("甲", ())], tmp_path / "run", **SMALL))
    model = open_extractor(tmp_path / "leak")
    with pytest.raises(DataError, match="dev: no text has a triple"):
        tune_thresholds(model, [TripleExample("甲", ())])


def test_triples_need_no_spans_and_texts_that_are_too_long_are_told(tmp_path):
    bare = [TripleExample("水" * 60 + e.text, tuple(Triple(*t[:3]) for t in e.triples)) for e in TRAIN]
    with pytest.warns(UserWarning, match="train and dev: 24 texts longer than 48"):
        train_extractor(ExtractConfig(bare, DEV, tmp_path, **SMALL, limit=1))


def test_names_inside_a_token_are_told(tmp_path):
    text = "A是👨\u200d👩人"
    train = [TripleExample(text, (annotate(text, "A", "是", "👨"),))]
    settings = {"model_type": "gplinker", "epochs": 1, "fine_epochs": 0, "device": "cpu", "limit": 1}
    with pytest.warns(UserWarning, match="1 name with an end inside a token"):
        train_extractor(ExtractConfig(train, DEV, tmp_path, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "crf"}, "model_type must be one of"),
        ({"augmentation": 2}, "augmentation must be"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"ema": 1.0}, "ema must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"fine_epochs": -1}, "fine_epochs must be"),
        ({"encoder": "bge"}, "model_type='dgcnn' has no encoder, got 'bge'"),
        ({"model_type": "gplinker", "prior": True}, "'gplinker' has no prior"),
        ({"model_type": "gplinker", "word_vectors": "v.txt"}, "'gplinker' has no word_vectors"),
        ({"segmenter": "jieba"}, "give word_vectors"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ExtractConfig(TRAIN, DEV, "out", **settings)


@pytest.mark.filterwarnings("ignore:24 of the 24 texts of dev")
def test_a_small_network_learns_its_texts_by_heart_and_the_best_thresholds_are_those_of_the_table(tmp_path):
    settings = {**SMALL, "dim": 32, "num_layers": 3, "epochs": 35, "fine_epochs": 0, "patience": 35, "lr": 1e-2}
    assert train_extractor(ExtractConfig(TRAIN, TRAIN, tmp_path, **settings)).value > 0.9
    model = open_extractor(tmp_path)
    best = tune_thresholds(model, EXAMPLES)
    assert len(best.table) == 25
    assert best.f1 == max(row.f1 for row in best.table)
    found = model.extract([one.text for one in EXAMPLES], head_threshold=best.head, tail_threshold=best.tail)
    assert triple_f1(found, [one.triples for one in EXAMPLES]).f1 == best.f1


def make_corpus(n, seed):
    """Sentences of five templates, one for each way in which triples overlap, with invented names."""
    random = np.random.default_rng(seed)
    syllables = list("阿巴卡达埃法加哈伊杰卢马尼奥帕里萨塔维佐")

    def name(k=3):
        return "".join(random.choice(syllables, k))

    examples = []
    for i in range(n):
        a, b, c, d = name(), name(2), name(4), name(3)
        text, triples = [
            (f"{a}和{b}都在{c}", [(a, "位于", c), (b, "位于", c)]),  # several subjects of one object
            (f"{a}写了《{b}》和《{c}》", [(a, "作品", b), (a, "作品", c)]),  # several objects
            (f"{c}的首都也是最大城市{d}", [(c, "首都", d), (c, "最大城市", d)]),  # one pair, two predicates
            (f"{c}大学位于{d}", [(f"{c}大学", "位于", d), (f"{c}大学", "简称", c)]),  # object inside the subject
            (f"{a}之子{b}娶了{d}", [(a, "儿子", b), (b, "妻子", d)]),  # object of one, subject of the next
        ][i % 5]
        examples.append(TripleExample(text, tuple(annotate(text, *triple) for triple in triples)))
    return examples


@pytest.mark.slow
def test_all_ways_to_overlap_are_learned(tmp_path):
    train, dev, unseen = make_corpus(2000, 0), make_corpus(100, 1), make_corpus(300, 2)
    config = ExtractConfig(
        train, dev, tmp_path, dim=64, num_layers=6, epochs=6, fine_epochs=1, batch_size=64, lr=3e-3, device="cpu"
    )
    train_extractor(config)
    found = open_extractor(tmp_path).extract([one.text for one in unseen])
    golds = [one.triples for one in unseen]
    assert triple_f1(found, golds).f1 >= 0.95
    for pattern in range(5):
        assert triple_f1(found[pattern::5], golds[pattern::5]).f1 >= 0.9
