"""What was acknowledged is there after `kill -9`; `python benchmarks/crash.py` does it fifty times."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("faiss")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "crash.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="the benchmarks are not here")
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_nothing_acknowledged_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("crash", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    crash = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "crash", crash)
    spec.loader.exec_module(crash)
    found = crash.run(5, tmp_path, seed=1)
    assert found.failures == []
    assert found.calls > found.kills, "the workers got to work between the kills"
