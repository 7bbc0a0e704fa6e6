import pytest
from hypothesis import given, strategies as st

from kexue.home import ir_plan


def test_the_articles_scheme():
    plan = ir_plan()
    assert [wire.target for wire in plan.wiring].count("projector") == 2  # a keyboard and the mains
    keys = {key.remote: key for key in plan.keys}
    assert keys["power"].usage == "07:66"
    assert keys["voice"].usage == ""
    on, off = plan.scenes
    assert on.steps[:3] == ("plug off", "wait 10 s", "plug on")
    assert "infrared power" in off.steps


def test_a_remote_with_fewer_keys():
    assert [key.remote for key in ir_plan(["mute", "power"]).keys] == ["mute", "power"]
    with pytest.raises(ValueError, match="power key"):
        ir_plan(["mute"])
    with pytest.raises(ValueError, match="unknown keys"):
        ir_plan(["power", "rocket"])


def test_what_the_chain_cannot_do():
    plan = ir_plan()
    steps = plan.simulate(["power", "on", "on", "voice", "off", "off"])
    assert [step.on for step in steps] == [False, True, True, True, False, False]
    told = [bool(step.warning) for step in steps]
    assert told == [True, False, True, True, False, True]  # a keyboard starts nothing; a blind scene cuts the power
    with pytest.raises(ValueError, match="neither on, off"):
        plan.simulate(["louder"])


@given(st.lists(st.sampled_from(["on", "off", "power", "volumeup", "voice"])), st.booleans())
def test_only_the_plug_starts_and_only_power_stops(said, on):
    for step in ir_plan().simulate(said, on=on):
        expected = True if step.said == "on" else on and step.said not in ("off", "power")
        assert step.on == expected
        assert bool(step.warning) == (step.said == "voice" or (step.said == "on") == on)
        on = step.on
