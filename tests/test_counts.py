"""Whole numbers that callers give."""

import numpy as np
import pytest

from kexue._counts import check_count, check_counts, is_whole


def test_whole_numbers_are_those_of_python_and_numpy() -> None:
    assert all(is_whole(number) for number in (0, -3, np.int64(2), np.uint8(1)))
    assert not any(is_whole(number) for number in (True, np.True_, 2.0, np.float64(1), "1", None))


def test_counts_below_the_least_are_named() -> None:
    check_counts(n=1, k=np.int32(7))
    assert type(check_count(np.int64(0), "n")) is int
    for least, value in ((1, 0), (2, 1), (0, -1), (1, 1.0), (1, True), (1, "2"), (1, float("nan"))):
        with pytest.raises(ValueError, match=f"n must be a whole number >= {least}, got "):
            check_counts(least, n=value)
