"""The main job on text that every machine has: index, evaluate, answer, report."""

from kexue.demo.docstrings import Entry, standard_library
from kexue.demo.run import DemoReport, known_item_queries, run_demo

__all__ = ["DemoReport", "Entry", "known_item_queries", "run_demo", "standard_library"]
