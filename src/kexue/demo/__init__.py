"""Demo: index and search the docstrings of Python's standard library, measure the quality, write a page."""

from kexue.demo.docstrings import Entry, standard_library
from kexue.demo.report import DemoReport
from kexue.demo.run import known_item_queries, run_demo

__all__ = ["DemoReport", "Entry", "known_item_queries", "run_demo", "standard_library"]
