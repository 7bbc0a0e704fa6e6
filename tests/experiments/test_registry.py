import dataclasses
import json
import re
from pathlib import Path

import pytest

from kexue.errors import DataError
from kexue.experiments import Claim, Figure, Report, experiment, registry, run_experiment


def report(*verdicts, **fields):
    claims = tuple(Claim(f"claim {i}", verdict, "a rule", ("x",)) for i, verdict in enumerate(verdicts))
    return Report(
        claims=claims, figures={"x": Figure(1.5, low=1.0, high=2.0, n=3, expected=1.4, source="article")}, **fields
    )


@pytest.mark.parametrize(
    ("verdicts", "overall"),
    [
        (["reproduced", "reproduced"], "reproduced"),
        (["not reproduced"], "not reproduced"),
        (["reproduced", "not reproduced"], "partly"),
        (["partly"], "partly"),
        (["partly", "not reproduced"], "partly"),
    ],
)
def test_overall_verdict(verdicts, overall):
    assert report(*verdicts).verdict == overall


def test_no_testable_claim_is_an_error():
    with pytest.raises(DataError, match="KEXUE_DATA"):
        _ = report().verdict


def test_a_claim_cannot_name_a_figure_that_is_not_there():
    with pytest.raises(ValueError, match="accuracy"):
        Report(claims=(Claim("c", "reproduced", "rule", ("accuracy",)),), figures={})


def test_save_and_load_are_inverse(tmp_path):
    original = report("reproduced", notes=("a note",), seeds=(0, 1), data=({"name": "digits", "n": 3},), slug="zlpr")
    original.save(tmp_path)
    assert Report.load(tmp_path) == original
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "reproduced"


def test_the_picture_is_drawn(tmp_path):
    saved = dataclasses.replace(
        report("reproduced"), draw=lambda figure: figure.add_subplot(xlabel="x", ylabel="y").plot([1, 2])
    ).save(tmp_path)
    assert saved.figure == "figure.png"
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(DataError, match=r"report\.json"):
        Report.load(tmp_path)


def test_run_experiment_fills_in_what_the_experiment_need_not_know(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "get_experiment", lambda slug: registry._REGISTRY[slug])
    monkeypatch.setattr(registry, "_REGISTRY", {})
    seen = {}

    @experiment("zlpr", claim="it works", minutes=0.1)
    def run(budget, seed, data):
        seen.update(budget=budget, seed=seed, data=data)
        return report("reproduced")

    done = run_experiment("zlpr", budget="smoke", seed=7, data=tmp_path, out=tmp_path / "out")
    assert seen == {"budget": "smoke", "seed": 7, "data": tmp_path}
    assert (done.slug, done.archive, done.claim, done.seeds) == ("zlpr", 7359, "it works", (7,))
    assert done.command == "kexue reproduce zlpr --seed 7 --budget smoke"
    assert Report.load(tmp_path / "out") == done


RECORDED = sorted((Path(__file__).parents[2] / "docs" / "results").glob("*/report.json"))
TIMES = {"s", "ms", "us", "microseconds", "seconds", "milliseconds", "minutes"}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_no_verdict_hangs_on_the_speed_of_a_machine(path):
    recorded = Report.load(path)
    for claim in recorded.claims:
        for name in claim.figures:
            unit = recorded.figures[name].unit
            assert not TIMES & set(unit.split()), (claim.text, name)
            assert not any(word in name for word in ("time", "speed", "latency", "seconds")), (claim.text, name)
        assert not re.search(r"\b(fast|faster|slower|within \d+ m?s|seconds|median time)\b", claim.rule), claim.rule


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_the_size_of_the_effect_stands_beside_the_verdict(path):
    recorded = Report.load(path)
    entry = registry.get_experiment(recorded.slug)
    assert recorded.effect == registry.fill_effect(entry.effect, recorded) != ""
    names = registry._NAMES.findall(entry.effect)
    assert names
    assert all(str(recorded.figures[name]) in recorded.effect for name in names)


def test_a_figure_reads_with_its_unit_and_interval():
    assert str(Figure(8.0039, unit="KiB")) == "8.004 KiB"
    assert str(Figure(0.02265, low=0.00886, high=0.0377)) == "0.02265 [0.00886, 0.0377]"


def test_an_effect_leaves_out_what_could_not_be_measured():
    one = report("reproduced")
    assert registry.fill_effect("x went {x}; y went {y}; and {x}", one) == "x went 1.5 [1, 2]; and 1.5 [1, 2]"


def test_a_report_without_an_effect_is_read(tmp_path):
    report("reproduced", slug="zlpr").save(tmp_path)
    record = json.loads((tmp_path / "report.json").read_text())
    del record["effect"]
    (tmp_path / "report.json").write_text(json.dumps(record))
    assert Report.load(tmp_path).effect == ""


def test_a_planned_article_has_no_experiment(monkeypatch):
    planned = dataclasses.replace(registry.get_method("zlpr"), status="planned")
    monkeypatch.setattr(registry, "get_method", lambda slug: planned)
    with pytest.raises(KeyError, match="planned"):
        run_experiment("zlpr")


def test_an_unknown_budget_and_a_seed_out_of_range_are_refused():
    with pytest.raises(ValueError, match="smoke"):
        run_experiment("whitening", budget="huge")
    for seed in (-1, 2**31, 1.5, True):
        with pytest.raises(ValueError, match="seed must be"):
            run_experiment("whitening", seed=seed)
