"""DSA's operations against numbers of the code that IDM and BACON run.

See docs/methods/parity.md, "Tensors of IDM and BACON".
"""

from __future__ import annotations

import pytest
import torch
from waves import wave

from raydd.augment.dsa import DEFAULT_STRATEGY, reference_cpu_draw

OPERATIONS = {
    0: "cutout",
    1: "crop",
    2: "color",
    3: "scale",
    4: "scale",
    5: "rotate",
    6: "cutout",
    7: "flip",
    8: "flip",
    9: "scale",
    10: "rotate",
    11: "flip",
    15: "color",
    16: "crop",
}
COLOUR_32 = {
    2: (9208.5317, -21.83819),
    15: (5474.9631, -15.11427),
    1: (5132.9565, -0.22212),
    16: (5500.5963, 1.16286),
    0: (4857.3167, 1.64195),
    6: (4857.8423, 0.01297),
    7: (5866.5951, 1.64157),
    3: (4665.8651, -0.75385),
    4: (4634.5622, 0.42357),
    5: (5430.5819, 4.56853),
    10: (5123.7901, -12.03758),
}
GREY_28 = {1: 855.5324, 0: 802.8049, 2: 1419.6087, 3: 544.9939, 5: 641.8383}
COLOUR_64 = {1: 12192.5673, 0: 11734.3816, 2: 23963.7406, 3: 10906.0434, 5: 12945.5363}


def transformed(shape: tuple[int, int, int, int], seed: int) -> torch.Tensor:
    x = wave(shape, 0.37, 0.1, dtype=torch.float32)
    return reference_cpu_draw(DEFAULT_STRATEGY, seed, size=shape[2:])(x).double()


@pytest.mark.parametrize("seed", list(OPERATIONS))
def test_seeds_choose_the_published_operations(seed: int) -> None:
    assert reference_cpu_draw(DEFAULT_STRATEGY, seed, size=(32, 32)).operations == (
        OPERATIONS[seed],
    )


@pytest.mark.parametrize("seed", list(COLOUR_32))
def test_golden_sums_of_colour_images(seed: int) -> None:
    out = transformed((3, 3, 32, 32), seed)
    weighted = float((out * wave(out.shape, 0.011, 0.3, dtype=torch.float32)).sum())
    assert (float(out.abs().sum()), weighted) == pytest.approx(COLOUR_32[seed], abs=1e-3)


@pytest.mark.parametrize("seed", list(GREY_28))
def test_golden_sums_of_other_sizes(seed: int) -> None:
    grey, large = transformed((2, 1, 28, 28), seed), transformed((2, 3, 64, 64), seed)
    assert float(grey.abs().sum()) == pytest.approx(GREY_28[seed], abs=1e-3)
    assert float(large.abs().sum()) == pytest.approx(COLOUR_64[seed], abs=2e-3)


def test_one_of_the_seeds_mirrors() -> None:
    x = wave((3, 3, 32, 32), 0.37, 0.1, dtype=torch.float32)
    assert torch.equal(reference_cpu_draw(DEFAULT_STRATEGY, 11, size=(32, 32))(x), x.flip(3))
