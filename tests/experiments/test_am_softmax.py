import numpy as np
import pytest

from kexue.experiments import run_experiment
from kexue.experiments._measures import score_retrieval


def test_am_softmax_runs_at_small_size(tmp_path):
    report = run_experiment("am-softmax", budget="smoke", out=tmp_path)
    assert report.claims[0].verdict == "reproduced"
    assert len(report.claims) == 4
    assert report.figures["map_digits_0"].value > 0.5
    assert 0 < report.figures["measured_margin"].value <= 10 / 9
    assert (tmp_path / "figure.png").exists()


def test_retrieval_by_hand():
    vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.5]])
    map_, recall = score_retrieval(vectors, np.array([0, 0, 1, 1]))
    assert recall == 0.75  # row 3 is nearer to row 1 and row 0 than to its partner, which comes third
    assert map_ == pytest.approx((1 + 1 + 1 + 1 / 3) / 4)
