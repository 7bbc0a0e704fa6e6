import numpy as np
import pytest

from kexue.experiments import roformer_sim as module, run_experiment


@pytest.mark.slow
def test_runs_at_small_size(tmp_path):
    report = run_experiment("roformer-sim", budget="smoke", out=tmp_path)
    figures = report.figures
    assert report.claims[0].verdict == "reproduced"  # the mask needs no training
    assert len(report.claims) == 6  # without the one on what a model that cannot write yet would lose
    assert "whether distillation keeps the ability to write" in report.notes[-1]
    assert figures["vector_gap"].value < 1e-6 < figures["vector_gap_without_mask"].value
    assert figures["valid_untrained"].value == 0.0
    assert (tmp_path / "figure.png").exists()


@pytest.mark.parametrize(
    ("noisy", "distilled", "verdict"),
    [
        ([0.8, 0.9], [0.8, 0.9], "reproduced"),
        ([0.8, 0.9], [0.6, 0.7], "not reproduced"),
        ([0.4, 0.9], [0.4, 0.9], None),
    ],
)
def test_loss_of_writing_is_judged_only_where_there_is_writing_to_lose(noisy, distilled, verdict):
    names = [f"{measure}_{model}" for measure in ("map", "recall1") for model in (*module._MODELS, "characters")]
    names += [f"{measure}_{model}" for measure in ("valid", "agreement") for model in module._MODELS]
    values = {name: np.array([0.5, 0.6]) for name in [*names, "vector_gap", "vector_gap_without_mask"]}
    values |= {"valid_noisy": np.array(noisy), "valid_distilled": np.array(distilled)}
    verdicts = [claim.verdict for claim in module._claims(values) if "ability to write" in claim.text]
    assert verdicts == ([] if verdict is None else [verdict])


def test_groups_do_not_share_sentences_and_mean_one_thing():
    groups = module._write_groups()
    texts = [text for group in groups for text in group]
    assert len(texts) == len(set(texts)) == 5 * 8 * 12 * 8
    for group in groups:
        assert sum(all(thing in text for text in group) for thing in module._THINGS) == 1


def test_words_of_a_sentence_are_the_verb_the_thing_and_single_characters():
    assert module._split_words("怎么修改信用卡") == ["怎", "么", "修改", "信用卡"]
    assert all("".join(module._split_words(text)) == text for group in module._write_groups() for text in group)


def test_counts_of_characters_ignore_their_order():
    counts = module._count_characters(["甲乙甲", "乙甲甲", "丙"])
    np.testing.assert_array_equal(counts[0], counts[1])
    assert counts.sum(1).tolist() == [3, 3, 1]


def test_samples_are_counted_as_valid_only_in_the_group_of_their_input(monkeypatch):
    generation = pytest.importorskip("kexue.text.roformer_sim.generation")
    model = module._build(0)
    groups = module._write_groups()[:2]
    answers = [[groups[0][0], groups[0][1]], [groups[0][0], groups[1][2]]]

    def write(network, prefixes, marks, *, n, max_length, generator):
        tokens = model.tokenizer.encode([text for rows in answers for text in rows])
        ids = [tokens.ids[a + 1 : b - 1].tolist() for a, b in zip(tokens.starts, tokens.starts[1:], strict=False)]
        return [ids[:2], ids[2:]]

    monkeypatch.setattr(generation, "write_sentences", write)
    assert module._measure_writing(model, groups, 2, 0) == {"valid": 0.75, "copied": 0.25}
