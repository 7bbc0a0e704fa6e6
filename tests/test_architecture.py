"""The plan of the house, held against the code: who imports whom, and what importing costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import kexue

PACKAGE = Path(kexue.__file__).parent

# Floors from the ground up. A room may import rooms of lower floors; rooms of one floor do not import each other.
FLOORS = [
    {"errors", "methods", "retry", "algebra", "_optional", "_lazy", "_files", "_text"}
    | {"_progress", "_pauses", "_figures", "_devices", "_tensors", "_arrays", "_version"},
    {"nn", "losses", "optim", "corpus", "sampling"},
    {"similarity"},
    {"train"},
    {"text", "generative"},
    {"extract", "clue", "search", "home"},
    {"cluster", "serve", "demo"},
    {"experiments"},
    {"cli"},
    {"__main__"},
]
GROUND = FLOORS[0]
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imports_of(file: Path) -> set[str]:
    """Rooms of kexue that a file imports, at any depth of nesting, type-checking blocks left out."""
    rooms = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module and node.module.startswith("kexue"):
            parts = node.module.split(".")
            rooms.update([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            rooms.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kexue."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return rooms - {"__version__"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_flow_upwards(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the package's own lazy names
    assert room in FLOOR_OF, f"the room {room!r} has no floor: place it in docs/architecture.md and here"
    for other in imports_of(file) - {room}:
        assert other in FLOOR_OF, f"{file.name} imports kexue.{other}, which is on no floor"
        allowed = FLOOR_OF[other] < FLOOR_OF[room] or (other in GROUND and room in GROUND)
        assert allowed, f"{room} (floor {FLOOR_OF[room]}) must not import {other} (floor {FLOOR_OF[other]})"


def loaded_by(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    ["import kexue", "import kexue.cli", "import kexue.similarity", "import kexue.corpus", "import kexue.text",
     "import kexue.search", "import kexue.train", "import kexue.cluster", "import kexue.home",
     "import kexue.experiments"],
)  # fmt: skip
def test_importing_loads_nothing_heavy(statement):
    heavy = {"torch", "transformers", "faiss", "sklearn", "pyarrow", "matplotlib", "sentence_transformers", "requests",
             "ray", "aiomqtt", "dbus_fast"}  # fmt: skip
    assert not loaded_by(statement) & heavy


def test_importing_kexue_loads_the_standard_library_only():
    assert {name for name in loaded_by("import kexue") if name not in sys.stdlib_module_names} <= {
        "kexue",
        "sitecustomize",
        *(name for name in loaded_by("pass") if name not in sys.stdlib_module_names),
    }


def test_help_loads_no_package_of_numbers():
    numbers = {"numpy", "scipy", "safetensors", "torch", "fastapi", "sympy", "faiss", "pyarrow"}
    assert not loaded_by("from kexue.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass") & numbers


def test_every_public_name_is_importable():
    for room in ("similarity", "text", "search", "corpus", "cluster", "home", "train", "experiments"):
        module = __import__(f"kexue.{room}", fromlist=["__all__"])
        for name in module.__all__:
            assert getattr(module, name) is not None
        files = {path.stem for path in (PACKAGE / room).glob("*.py")}
        functions = {name for name in module.__all__ if callable(getattr(module, name)) and name.islower()}
        assert not files & functions, "a public function would shadow the file of the same name"
