"""Sphinx settings."""

import kexue

project = "kexue"
author = "The kexue authors"
copyright = "The kexue authors"  # noqa: A001 - the name Sphinx reads
version = release = kexue.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"kexue {version}"
html_show_sourcelink = False
