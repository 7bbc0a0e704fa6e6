"""Which examples are trained on, and which are scored."""

import os
from pathlib import Path

import pytest

from kexue.experiments._clue_runs import find_course, has_data, read_examples


@pytest.mark.data
@pytest.mark.parametrize("task", ["cluener", "tnews", "c3"])
def test_the_parts_are_apart_and_mixed(task):
    data = Path(os.environ["KEXUE_DATA"])
    train, held, scored = read_examples(task, "small", data)
    assert has_data(task, data)
    course = find_course(task, "small")
    assert course.examples is None or len(train) + len(held) == course.examples
    assert not {id(one) for one in train} & {id(one) for one in held}
    if task == "tnews":  # its files are sorted by label
        for part in (train[:200], held, scored[:200]):
            assert len({one.label for one in part}) == 15


def test_the_full_budget_has_all_examples_and_smoke_few():
    assert find_course("cluener", "full").examples is None
    assert find_course("cluener", "smoke").examples < find_course("cluener", "small").examples
