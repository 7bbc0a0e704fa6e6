"""The plan of the house, held against the code: who imports whom, and what importing costs."""

import ast
import functools
import graphlib
import importlib
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
    | {"_progress", "_pauses", "_figures", "_devices", "_cores", "_tensors", "_arrays", "_counts", "_version"},
    {"nn", "losses", "optim", "corpus", "sampling"},
    {"similarity"},
    {"train"},
    {"text", "generative"},
    {"extract", "clue", "search", "home", "sampling.text"},
    {"cluster", "serve", "demo", "integrations"},
    {"experiments"},
    {"cli"},
    {"__main__"},
]
GROUND = FLOORS[0]
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
NESTED = {"sampling.text"}  # rooms in the folder of another one, on a floor of their own


FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted({folder.parent.name for folder in PACKAGE.glob("*/__init__.py")} | NESTED)


def module_of(file: Path) -> str:
    """Dotted name of a file's module."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imports_of(file: Path, *, types: bool = False) -> set[str]:
    """Modules and names of kexue that a file imports, at any depth of nesting, as dotted names.

    Args:
        types: whether imports for type checkers alone count. Those of a package's `__init__` never do: they repeat its
            public names.
    """
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types:
            return
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    types = types and file.name != "__init__.py"
    visit(ast.parse(file.read_text(encoding="utf-8")))
    return {name for name in names if name.startswith("kexue.")} - {"kexue.__version__"}


def room_of(name: str) -> str:
    """The room that a dotted name or a module lives in."""
    parts = name.split(".")[1:3]
    return ".".join(parts) if ".".join(parts) in NESTED else [*parts, "__init__"][0]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_flow_downwards(file):
    room = room_of(module_of(file))
    if room == "__init__":
        return  # the package's own lazy names
    assert room in FLOOR_OF, f"the room {room!r} has no floor: place it in docs/architecture.md and here"
    for other in {room_of(name) for name in imports_of(file)} - {room}:
        assert other in FLOOR_OF, f"{file.name} imports kexue.{other}, which is on no floor"
        allowed = FLOOR_OF[other] < FLOOR_OF[room] or (other in GROUND and room in GROUND)
        assert allowed, f"{room} (floor {FLOOR_OF[room]}) must not import {other} (floor {FLOOR_OF[other]})"


def test_no_files_import_each_other_in_a_circle():
    graph = graphlib.TopologicalSorter()
    for module, file in MODULES.items():
        names = imports_of(file, types=True)
        graph.add(module, *({name if name in MODULES else name.rpartition(".")[0] for name in names} - {module}))
    try:
        graph.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


# Names with an underscore that their libraries let others use.
_PUBLIC = {"_asdict", "_fields", "_make", "_replace", "_buffers", "_modules", "_parameters"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_no_room_reads_the_private_names_of_another(file):
    room = room_of(module_of(file))
    for name in imports_of(file, types=True):
        private = any(part.startswith("_") and not part.startswith("__") for part in name.split(".")[2:])
        assert not private or room_of(name) == room, f"{name} is private to {room_of(name)}"
    others = frozenset().union(*(private_names(other) for other in ROOMS if other != room))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Attribute)
            and not node.attr.startswith("__")
            and ast.unparse(node.value) not in {"self", "cls", "super()"}
        ):
            foreign = node.attr in others - private_names(room) - _PUBLIC
            assert not foreign, f"line {node.lineno} reads {ast.unparse(node)}"


@functools.cache
def private_names(room: str) -> frozenset[str]:
    """Private names that the files of a room define: functions, classes, variables and attributes of self or cls."""
    names: set[str] = set()
    for file in FILES:
        if room_of(module_of(file)) != room:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return frozenset(name for name in names if name.startswith("_"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_functions_fit_on_a_screen(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node) is not None
            lines = node.end_lineno - (node.body[0].end_lineno if docstring else node.body[0].lineno - 1)
            assert lines <= 60, f"the body of {node.name} has {lines} lines"


def loaded_by(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    ["import kexue", "import kexue.cli", "import kexue.similarity", "import kexue.corpus", "import kexue.text",
     "import kexue.search", "import kexue.train", "import kexue.cluster", "import kexue.home",
     "import kexue.experiments", "import kexue.integrations", "import kexue.sampling", "import kexue.sampling.text"],
)  # fmt: skip
def test_importing_loads_nothing_heavy(statement):
    heavy = {"torch", "transformers", "faiss", "sklearn", "pyarrow", "matplotlib", "sentence_transformers", "requests",
             "ray", "aiomqtt", "dbus_fast", "mcp", "langchain_core"}  # fmt: skip
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


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_importable(room):
    module = importlib.import_module(f"kexue.{room}")
    for name in module.__all__:
        assert getattr(module, name) is not None
    files = {path.stem for path in PACKAGE.joinpath(*room.split(".")).iterdir()}
    functions = {name for name in module.__all__ if callable(getattr(module, name)) and name.islower()}
    assert not files & functions, "a public function would shadow the file of the same name"
