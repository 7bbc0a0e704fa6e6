import numpy as np
import pytest

from kexue.experiments import run_experiment, wmd_wrd


@pytest.mark.usefixtures("no_model")
def test_bounds_and_search_hold_without_data(tmp_path):
    report = run_experiment("wmd-wrd", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims] == ["reproduced"] * 2
    assert report.figures["bounds_largest_violation"].value < 1e-12
    assert report.figures["search_solved"].value < 10
    shares = ("search_solved", "search_pruned_by_centroids", "search_pruned_by_relaxed")
    assert sum(report.figures[name].value for name in shares) == pytest.approx(100)
    assert (tmp_path / "figure.png").exists()


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.delenv("KEXUE_DATA", raising=False)
    monkeypatch.setattr(wmd_wrd._data, "attempt", lambda make, what, notes: notes.append(what))


def test_a_lead_must_be_sure_to_count():
    """Vectors whose direction alone carries the label: WRD wins; lengths that only disturb WMD."""
    from kexue.similarity import PairDataset

    generator = np.random.default_rng(0)
    vectors, labels, texts = {}, [], ([], [])
    for i in range(150):
        angle, turn = generator.uniform(0, 6), generator.uniform(0, 1.5)
        for side, (a, text) in enumerate(((angle, f"a{i}"), (angle + turn, f"b{i}"))):
            vectors[text] = generator.gamma(1, 3) * np.array([[np.cos(a), np.sin(a)]])
            texts[side].append(text)
        labels.append(-turn)
    pairs = PairDataset("made", "", *texts, np.array(labels))
    figures, notes = {}, []

    def tokens(texts):
        return [([text], vectors[text]) for text in texts]

    ranking = wmd_wrd._rank(pairs, tokens, 50, 0, notes)
    first, second = wmd_wrd._ranking_claims("made", [ranking], figures)
    assert first.verdict == "reproduced"
    assert ranking.scores["WRD"] == pytest.approx(100)
    assert second.verdict == "not reproduced"  # one token each: WRD is the cosine of means
    assert figures["made_WRD_over_cosine_of_means"].value == pytest.approx(0, abs=1e-9)
    texts[0][3], vectors[""] = "", np.empty((0, 2))
    wmd_wrd._rank(pairs, tokens, 2, 0, notes)
    assert notes == ["made: 1 pairs without a known token left out"]
