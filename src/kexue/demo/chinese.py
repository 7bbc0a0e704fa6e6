"""A question in Chinese about the English docstrings, answered by an index of the multilingual model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kexue.demo.docstrings import Entry
from kexue.search import Hit, Index
from kexue.text import Encoder

QUESTION = "怎样比较两段文本并显示差异?"  # How do I compare two texts and show the differences?
MODULES = (  # enough for the question, few enough for some seconds
    "csv", "datetime", "difflib", "fileinput", "glob", "heapq", "itertools", "json", "linecache", "pathlib", "posix",
    "random", "re", "shutil", "statistics", "tempfile", "textwrap", "time", "zipfile",
)  # fmt: skip


def answer_in_chinese(path: Path, encoder: Encoder, entries: Sequence[Entry], *, k: int = 3) -> list[Hit]:
    """Index the entries of some modules with a multilingual encoder, and return the hits of a question in Chinese.

    Args:
        path: the index to make.
        encoder: reads Chinese and English.
        entries: of the standard library; those of other modules than `MODULES` are left out.
        k: number of hits.
    """
    chosen = [entry for entry in entries if entry.name.partition(".")[0] in MODULES]
    with Index.create(path, encoder, overwrite=True) as index:
        if not chosen:
            return []
        index.add([entry.text for entry in chosen], ids=[entry.name for entry in chosen])
        return index.search(QUESTION, k=k)[0]
