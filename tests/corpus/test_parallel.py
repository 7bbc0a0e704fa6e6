"""Work in parallel with results in order, against the loop that does it one by one."""

import threading

import pytest

from kexue.corpus.shuffle.parallel import run_ordered

N = 200


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_are_used_in_order_by_the_thread_that_made_them(workers):
    drawn, used = [], []

    def items():
        for i in range(N):
            assert len(drawn) - len(used) <= workers + 1, "too many items are in progress"
            drawn.append(i)
            yield i

    def process(i):
        sum(range(1000 * (i % 7)))  # so that later items are often ready first
        return i * i, threading.get_ident()

    def use(result):
        value, thread = result
        assert thread == threading.get_ident()
        used.append(value)

    run_ordered(process, items(), use, workers)
    assert used == [i * i for i in range(N)]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("place", ["draw", "process", "use"])
def test_the_first_error_is_raised_and_nothing_after_it_is_used(workers, place):
    used = []

    def fail(where, i):
        if where == place and i >= 50:
            raise ZeroDivisionError(i)
        return i

    def use(i):
        used.append(fail("use", i))

    with pytest.raises(ZeroDivisionError, match=r"^50$"):
        run_ordered(lambda i: fail("process", i), (fail("draw", i) for i in range(N)), use, workers)
    assert used == list(range(50))
