"""Docstrings of Python's standard library: real text that every machine has."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_EXCLUDED = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages"}


@dataclass(frozen=True)
class Entry:
    """Documented object: text to index, and a later sentence of its docstring that is held out.

    Attributes:
        name: dotted name, unique.
        kind: ``"module"``, ``"class"`` or ``"function"``.
        text: name, signature and first paragraph.
        held_out: first full sentence after the first paragraph; None where there is none.
    """

    name: str
    kind: str
    text: str
    held_out: str | None


def standard_library() -> list[Entry]:
    """Return every documented module, class and function of the standard library, sorted by name.

    Sources are parsed, not imported, so that none of their code runs; only built-in modules are imported.
    """
    entries = {entry.name: entry for entry in [*_from_builtins(), *_from_sources()]}
    return [entries[name] for name in sorted(entries)]


def _from_sources() -> Iterator[Entry]:
    """Yield entries of all modules that have a source."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if _EXCLUDED.intersection(relative.parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # samples of broken code
            continue
        parts = relative.with_suffix("").parts
        yield from _walk(tree, ".".join(parts[:-1] if parts[-1] == "__init__" else parts))


def _walk(node: ast.AST, name: str) -> Iterator[Entry]:
    """Yield entries of a syntax tree."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring and name:
            kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
            arguments = f"({ast.unparse(node.args)})" if hasattr(node, "args") else ""
            yield from _entry(name, kind, arguments, docstring)
        for child in node.body:
            yield from _walk(child, f"{name}.{getattr(child, 'name', '')}")


def _from_builtins() -> Iterator[Entry]:
    """Yield entries of the built-in modules."""
    for module_name in sys.builtin_module_names:
        if module_name.startswith("_"):
            continue
        for name, member in list(vars(importlib.import_module(module_name)).items()):
            if name.startswith("_") or not (inspect.isbuiltin(member) or inspect.isclass(member)):
                continue
            yield from _from_object(f"{module_name}.{name}", member)
            if inspect.isclass(member):
                for inner, method in list(vars(member).items()):
                    if not inner.startswith("_") and inspect.ismethoddescriptor(method):
                        yield from _from_object(f"{module_name}.{name}.{inner}", method)


def _from_object(name: str, member: object) -> Iterator[Entry]:
    """Yield the entry of an object, if it is documented."""
    docstring = inspect.getdoc(member)
    if docstring:
        try:
            arguments = str(inspect.signature(member))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            arguments = ""
        yield from _entry(name, "class" if inspect.isclass(member) else "function", arguments, docstring)


def _entry(name: str, kind: str, arguments: str, docstring: str) -> Iterator[Entry]:
    """Yield the entry of a docstring, unless it is blank."""
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", docstring.strip()) if p.strip()]
    if paragraphs:
        held_out = next(filter(None, map(_first_sentence, paragraphs[1:])), None)
        signature = textwrap.shorten(arguments, 120, placeholder=" ...)")
        yield Entry(name, kind, f"{name}{signature}: {paragraphs[0]}", held_out)


def _first_sentence(paragraph: str) -> str | None:
    """Return the first sentence of a paragraph if it is prose of six words or more."""
    match = re.match(r"[A-Z][^.!?]*[a-z)][.!?](?=\s|$)", paragraph)
    if match is None or len(match[0].split()) < 6 or re.search(r">>>|[=|{}<>_]", match[0]):
        return None
    return match[0]
