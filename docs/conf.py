"""Sphinx settings."""

import re

import kexue

project = "kexue"
author = "The kexue authors"
copyright = "The kexue authors"
version = release = kexue.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
suppress_warnings = ["ref.python"]  # a shape such as (n, d) is no cross-reference

html_theme = "furo"
html_title = f"kexue {version}"
html_show_sourcelink = False


def write_cli_reference(_app: object) -> None:
    """The command line's page, from the command line itself."""
    import subprocess
    import sys
    from pathlib import Path

    page = Path(__file__).parent / "reference" / "generated" / "cli.md"
    page.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "typer", "kexue.cli", "utils", "docs", "--name", "kexue", "--output", str(page)]
    subprocess.run(command, check=True, capture_output=True)
    page.write_text(page.read_text(encoding="utf-8").replace("# `kexue`", "# Command line", 1), encoding="utf-8")


def escape_markup(_app: object, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: what reStructuredText would read into |x|, kernel_ or a * b is escaped."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(``[^`]*``|`[^`]*`)", line)
            parts[::2] = [re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
            lines[number] = "".join(parts)


def skip_field(_app: object, _what: str, _name: str, found: object, _skip: bool, _options: object) -> bool | None:
    """Fields of a named tuple have no text of their own; the tuple's docstring describes them."""
    return True if (getattr(found, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: object) -> None:
    """Sphinx calls this."""
    app.connect("builder-inited", write_cli_reference)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("autodoc-process-docstring", escape_markup, priority=100)  # before napoleon reads the sections
