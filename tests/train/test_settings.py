"""The settings that a run must keep when it continues."""

import pytest
from toys import rows, run_of

from kexue.errors import CheckpointError, DataError
from kexue.train.settings import check_settings, write_settings


@pytest.fixture
def run(tmp_path):
    write_settings(tmp_path, {"lr": 0.5, "data": "数字", "facts": {"images": 3}})
    run_of(tmp_path).fit(rows())
    return tmp_path


def test_the_same_settings_fit_and_facts_are_not_compared(run):
    check_settings(run, {"lr": 0.5, "data": "数字"}, resume=True)


def test_every_other_setting_is_named(run):
    with pytest.raises(CheckpointError, match=r"lr was 0\.5, is 0\.1; steps was None, is 7") as caught:
        check_settings(run, {"lr": 0.1, "data": "数字", "steps": 7}, resume=True)
    assert "--no-resume" in caught.value.remedy


def test_a_run_that_starts_again_or_has_no_checkpoint_fits_any(run, tmp_path):
    check_settings(run, {"lr": 0.1}, resume=False)
    write_settings(tmp_path / "new", {"lr": 0.5})
    check_settings(tmp_path / "new", {"lr": 0.1}, resume=True)
    check_settings(tmp_path / "absent", {"lr": 0.1}, resume=True)


def test_a_damaged_file(run):
    (run / "settings.json").write_text("[1")
    with pytest.raises(DataError, match=r"settings\.json"):
        check_settings(run, {"lr": 0.5}, resume=True)
