"""Importing costs next to nothing, and a name asked for in the wrong place says where it is."""

import copy
import importlib
import inspect
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kexue
from kexue._lazy import _ROOMS
from kexue._optional import EXTRA_OF

PUBLIC = [
    (room, name) for room in _ROOMS for name in getattr(importlib.import_module(f"kexue.{room}"), "__all__", ())
    if name not in kexue.__all__
]  # fmt: skip


def home_of(name):
    """The first room that has the name, as `from kexue import` reports it."""
    return next(room for room, one in PUBLIC if one == name)


@pytest.mark.parametrize(("room", "name"), PUBLIC, ids=lambda value: value)
def test_every_public_name_says_where_it_lives(room, name):
    if importlib.util.find_spec(f"kexue.{name}") is not None:
        return  # a room of the same name
    said = f"from kexue.{home_of(name)} import {name}"
    with pytest.raises(ImportError, match=f"it is in kexue.{home_of(name)}: {said}$"):
        exec(f"from kexue import {name}")
    with pytest.raises(AttributeError, match=said):
        getattr(kexue, name)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("from kexue import ZLPRLos", "kexue.losses.ZLPRLoss"),
        ("from kexue import zlprloss", "kexue.losses.ZLPRLoss"),
        ("from kexue import Whitning", "kexue.similarity.Whitening"),
        ("from kexue.nn import VectorQuantiser", "kexue.nn.VectorQuantizer"),
        ("from kexue.losses import Lookahead", "from kexue.optim import Lookahead"),
        ("from kexue.optim import Trainer, AdaX", "from kexue.train import Trainer"),
        ("import kexue.search; kexue.search.Indx", "kexue.search.Index"),
        ("from kexue import MissingDependencyError", "from kexue.errors import MissingDependencyError"),
        ("from kexue import get_method", "from kexue.methods import get_method"),
    ],
)
def test_a_misspelt_or_misplaced_name_is_told_its_place(line, meant):
    with pytest.raises((ImportError, AttributeError), match=meant.replace(".", r"\.")):
        exec(line)


def test_a_name_like_none_is_an_import_error_too():
    with pytest.raises(ImportError, match=r"'kexue' has no attribute 'qqqq'$"):
        exec("from kexue import qqqq")


def test_submodules_are_still_imported():
    code = "from kexue import losses, retry, _text; from kexue.similarity import whitening; print(losses.__name__)"
    assert _run(code) == "kexue.losses\n"


def test_asking_for_a_name_that_is_not_there_costs_nothing():
    code = (
        "import sys, kexue; before = set(sys.modules)\n"
        "assert not hasattr(kexue, 'ZLPRLoss') and getattr(kexue, 'x', 3) == 3\n"
        "assert not hasattr(kexue, '__wrapped__')\n"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('kexue') and m != 'kexue._lazy'))\n"
    )
    assert _run(code).startswith("['kexue._optional'") or _run(code) == "[]\n"


def test_saying_where_a_name_is_loads_no_torch():
    code = (
        "import sys\ntry:\n    from kexue import ZLPRLoss\nexcept ImportError as error:\n    print(error)\n"
        "print([m for m in ('torch', 'transformers', 'scipy', 'pandas') if m in sys.modules])\n"
    )
    *_, loaded = _run(code).splitlines()
    assert loaded == "[]"


def test_importing_loads_no_heavy_package():
    code = "import sys, kexue.errors, kexue.methods, kexue.retry; print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    assert _run(code) == "set()\n"


def test_tools_that_look_for_attributes_are_not_disturbed():
    for module in (kexue, importlib.import_module("kexue.losses")):
        assert inspect.getmodule(module) is module
        assert not hasattr(module, "pytest_plugins")
        with pytest.raises(AttributeError) as caught:
            getattr(module, "nothing_like_it")  # noqa: B009
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value)
        assert str(copy.copy(caught.value)) == str(caught.value)


def _run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_extras_name_each_other_and_are_those_that_errors_name() -> None:
    root = Path(__file__).parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {name for needs in extras.values() for need in needs for name in _names(r"^kexue\[([^]]+)\]", need)}
    code = "\n".join(path.read_text(encoding="utf-8") for path in (root / "src").rglob("*.py"))
    named |= _names(r"(?:import_optional\(.*|^    )extra=\"(\w+)\"", code) | _names(r"\bkexue\[([\w,]+)\]", code)
    named |= set(EXTRA_OF.values())
    assert named <= extras.keys()
    rooms = extras.keys() - {"all", "app", "bench", "dev", "oldest"}
    assert rooms <= _names(r"^kexue\[([^]]+)\]", extras["all"][0])


def _names(pattern: str, text: str) -> set[str]:
    """Return the names, apart by commas, that a pattern finds."""
    return {name for found in re.findall(pattern, text, re.MULTILINE) for name in found.split(",")}
