import math

from kexue.experiments import run_experiment


def test_every_claim_of_urpe_holds(tmp_path):
    report = run_experiment("urpe", budget="smoke", out=tmp_path)
    assert [claim.verdict for claim in report.claims] == ["reproduced"] * 7
    for kind in ("bias", "t5", "rotary", "none", "causal"):
        assert abs(report.figures[f"loss_{kind}"].value - math.log(4)) < 0.01
    for kind in ("urpe", "l2", "markers"):
        assert report.figures[f"accuracy_{kind}"].value == 1
        assert report.figures[f"loss_{kind}"].value < math.log(4) - 0.1
    assert (tmp_path / "figure.png").exists()
