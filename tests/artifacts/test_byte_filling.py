"""As many images as fit a number of bytes, whatever the sizes of their files do."""

from __future__ import annotations

import random

import pytest

from raydd.artifacts.byte_filling import most_that_fit


@pytest.mark.parametrize("seed", range(20))
def test_as_many_images_as_fit_and_not_one_more(seed: int) -> None:
    draws = random.Random(seed)
    sizes = [30]
    while len(sizes) < 300:
        sizes.append(sizes[-1] + draws.randrange(1, 400))  # uneven, ascending
    tried = []

    def code(count: int) -> bytes:
        tried.append(count)
        return bytes(sizes[count])

    budget = draws.randrange(sizes[1], sizes[299])
    found = most_that_fit(code, budget, 299)
    right = max(n for n in range(1, 300) if sizes[n] <= budget)
    assert found is not None
    assert (found[0], len(found[1])) == (right, sizes[right])
    assert len(tried) == len(set(tried)), "no file is made twice"
    assert len(tried) <= 20


def test_files_that_shrink_with_more_images_end_where_one_more_does_not_fit() -> None:
    sizes = [0, 10, 50, 40, 45, 90, 80, 100]
    found = most_that_fit(lambda count: bytes(sizes[count]), 60, 7)
    assert found is not None
    assert sizes[found[0]] <= 60 < sizes[found[0] + 1]


def test_all_images_may_fit_and_none() -> None:
    found = most_that_fit(lambda count: bytes(10 * count), 1000, 7)
    assert found is not None
    assert found[0] == 7
    assert most_that_fit(lambda count: bytes(10 * count), 9, 7) is None
