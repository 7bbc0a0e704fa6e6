import json
import random
from dataclasses import asdict

import numpy as np
import pytest

from kexue.experiments import Figure, run_experiment
from kexue.experiments._clue_parity import measure_parity
from kexue.experiments._clue_real import _decide as _decide_real, _look_up, measure_real
from kexue.experiments._clue_runs import CHINESE, ClueRun, _folder, _rate, find_course
from kexue.experiments._clue_toys import draw_pairs, draw_questions, draw_sentences
from kexue.experiments.clue import (
    _chance_of_largest,
    _decide,
    _idiom_figures,
    _measure_idioms,
    _measure_windows,
)


@pytest.mark.slow
def test_clue_smoke(tmp_path, monkeypatch):
    monkeypatch.delenv("KEXUE_DATA", raising=False)
    report = run_experiment("clue", budget="smoke", out=tmp_path)
    assert report.claims[1].verdict == report.claims[-1].verdict == "reproduced"
    assert "cmrc_windows" not in report.figures
    assert (tmp_path / "figure.png").exists()


def test_the_best_idiom_of_each_blank_is_right_as_often_as_computed():
    assert _chance_of_largest(0) == pytest.approx(0.1)
    for margin, rounded in ((1.0, 0.340), (1.5, 0.506), (2.0, 0.673)):
        figures = _idiom_figures(margin, _measure_idioms(margin, 500, seed=1))
        assert figures[f"argmax_{margin:g}"].expected == pytest.approx(rounded, abs=0.003)
        assert figures[f"argmax_{margin:g}"].value == pytest.approx(figures[f"argmax_{margin:g}"].expected, abs=0.04)
        assert figures[f"assigned_repeats_{margin:g}"].value == 0
        assert figures[f"gain_{margin:g}"].value == pytest.approx(
            figures[f"assigned_{margin:g}"].value - figures[f"argmax_{margin:g}"].value
        )
    idioms = _measure_idioms(6.0, 50, seed=1)  # noise does not matter
    assert np.array_equal(idioms["argmax"], idioms["blanks"])


def test_windows_keep_what_truncation_loses():
    figures = _measure_windows()
    assert figures["kept_windows"].value == 1
    assert figures["kept_truncated"].value == pytest.approx(figures["kept_truncated"].expected)
    assert 0.2 < figures["kept_truncated"].value < 494 / 1500
    assert 0.5 < figures["kept_windows_long"].value < 1


@pytest.mark.slow  # loading NLTK takes seconds
def test_the_scorer_is_compared_in_every_case():
    figures = measure_parity(random.Random(0), 200)
    assert figures["parity_answers"] == Figure(1.0, n=200)
    assert figures["parity_assignments"] == Figure(1.0, n=20)


def test_questions_have_two_answers_apart():
    ids, spans = draw_questions(np.random.default_rng(0), 200)
    for row, answers in zip(ids, spans, strict=True):
        key = row[0] - 4
        inside = {place for start, end in answers for place in range(start, end + 1)}
        words = {place for place, word in enumerate(row) if 12 + 3 * key <= word < 15 + 3 * key and place}
        assert words == inside
        assert answers[0, 1] + 1 < answers[1, 0]  # another word between them


def test_pairs_are_of_one_topic_where_the_label_says_so():
    sentences = draw_sentences(np.random.default_rng(0), np.full(500, 7))
    assert ((sentences[:, 1:-1] - 4) // 10 == 7).mean() == pytest.approx(0.7 + 0.3 / 20, abs=0.02)
    ids, labels = draw_pairs(np.random.default_rng(0), 500)
    assert ids.shape == (500, 19)
    topics = (ids - 4) // 10
    shared = [
        len({*first.tolist()} & {*second.tolist()}) / len({*first.tolist(), *second.tolist()})
        for first, second in zip(topics[:, 1:9], topics[:, 10:18], strict=True)
    ]
    assert np.mean(shared, where=labels.numpy() == 1) > 1.5 * np.mean(shared, where=labels.numpy() == 0)


# ---- claims ---------------------------------------------------------------------------------------------------------

MARGINS = ("1", "1.5", "2")
FIGURES = {  # numbers with which every claim holds: value, and low where it counts
    **{f"gain_{m}": (0.02, 0.01) for m in MARGINS},
    **{f"argmax_repeats_{m}": (0.1, 0.1) for m in MARGINS},
    **{f"assigned_repeats_{m}": (0, 0) for m in MARGINS},
    "kept_windows": (1, 1), "kept_truncated": (0.3, 0), "kept_windows_long": (0.9, 0),
    "illegal_heads": (0.1, 0), "illegal_joint": (0, 0),
    "em_heads": (0.5, 0), "em_legal": (0.7, 0), "em_joint": (0.9, 0),
    "zeros": (0.8, 0), "ones": (0.8, 0), "zeros_minus_ones": (0, -0.005),
    "parity_answers": (1, 1), "parity_assignments": (1, 1),
}  # fmt: skip
RUN = {"illegal_heads": 0.1, "illegal_joint": 0.0, "em_legal": 0.7, "em_joint": 0.9}


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, {}),
        ({"gain_1.5": (0.02, -0.01)}, {0: "partly"}),
        ({"assigned_repeats_2": (0.001, 0)}, {0: "partly"}),
        ({"kept_windows": (0.999, 0)}, {1: "not reproduced"}),
        ({"kept_truncated": (0.6, 0)}, {1: "not reproduced"}),
        ({"run": {"illegal_heads": 0.0}}, {2: "not reproduced"}),
        ({"run": {"illegal_joint": 0.01}}, {2: "not reproduced"}),
        ({"run": {"em_joint": 0.5}}, {3: "not reproduced"}),
        ({"zeros_minus_ones": (0, -0.02)}, {4: "not reproduced"}),
        ({"parity_answers": (0.999, 0)}, {5: "not reproduced"}),
        ({"parity_assignments": (0.999, 0)}, {5: "not reproduced"}),
    ],
)
def test_a_claim_fails_with_what_is_against_it(changes, verdicts):
    entries = FIGURES | {name: change for name, change in changes.items() if name != "run"}
    figures = {name: Figure(value, low=low) for name, (value, low) in entries.items()}
    claims = _decide(figures, [RUN, RUN | changes.get("run", {}), RUN | {"em_joint": 0.91}])
    assert {i: claim.verdict for i, claim in enumerate(claims) if claim.verdict != "reproduced"} == verdicts


@pytest.mark.parametrize(
    ("cluener", "verdict"), [([0.5, 0.6, 0.7], "reproduced"), ([0.5, 0.3, 0.7], "partly"), ([0.4, 0.4, 0.4], "partly")]
)
def test_every_run_has_to_beat_answers_without_a_model(cluener, verdict):
    measured = {"tnews": [0.5, 0.5, 0.5], "cluener": cluener}
    plain = {"tnews_plain": Figure(0.1), "cluener_plain": Figure(0.4)}
    (claim,) = _decide_real(measured, plain)
    assert claim.verdict == verdict
    assert claim.figures == ("tnews_plain", "cluener_plain")
    assert _decide_real({}, {}) == []


def test_names_are_looked_up_from_left_to_right_the_longest_first():
    type_of = {"北京": "address", "北京大学": "organization", "大学生": "position"}
    assert _look_up("在北京大学生活", type_of) == {"organization": {"北京大学": [[1, 4]]}}
    assert _look_up("大学生去北京", type_of) == {"position": {"大学生": [[0, 2]]}, "address": {"北京": [[4, 5]]}}
    assert _look_up("", type_of) == {}


@pytest.mark.data
def test_trainings_are_read_and_not_made(data_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KEXUE_CACHE", str(tmp_path))
    notes = []
    assert measure_real("small", 0, data_folder, notes) == ({}, [], ())
    assert len(notes) == 3
    run = ClueRun({"accuracy": 0.5}, 1, 1.0, 1067, 1363)
    for seed in range(3):
        folder = _folder("tnews", CHINESE, "full", seed, "small")
        folder.mkdir(parents=True)
        settings = {**asdict(find_course("tnews", "small")), "rate": _rate("tnews", CHINESE, "full")}
        (folder / "measured.json").write_text(json.dumps({"settings": settings, "run": asdict(run)}))
    figures, claims, used = measure_real("small", 0, data_folder, notes)
    assert figures["tnews_accuracy"].value == 0.5
    assert figures["tnews_plain"].value == pytest.approx(0.0646, abs=0.0001)
    assert claims[0].verdict == "reproduced"
    assert used == ({"name": "tnews", "split": "not trained on", "n": 1363},)
