"""Pixels as a few levels: Lloyd–Max tables, and images of half the size (docs/per_byte.md, "Levels").

All numbers are float64 until a table is rounded to bytes; what is decoded is made of integers alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDS = 60
"""Updates of a table at most."""
STILL = 1e-6
"""A table is done when none of its values, of pixels in [0, 1], moves by as much."""


def lloyd_max(values: Tensor, count: int) -> Tensor:
    """Return the at most ``count`` values that stand for all others with the least squared error, uint8, ascending.

    ``values``: float64 pixels in [0, 1]. Lloyd's iteration from equally spaced values; a value with
    no pixels stays, and is left out in the end. Pixels of at most ``count`` bytes are these bytes.
    Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28 (1982).
    """
    pixels = np.sort(values.double().numpy(), axis=None)
    distinct = np.unique(np.rint(255 * pixels))
    if len(distinct) <= count:
        return torch.from_numpy(distinct.astype(np.uint8))
    sums = np.concatenate([[0.0], np.cumsum(pixels)])
    table = np.linspace(pixels[0], pixels[-1], count)
    for _ in range(ROUNDS):
        ends = np.searchsorted(pixels, (table[1:] + table[:-1]) / 2, side="right")
        ends = np.concatenate([[0], ends, [len(pixels)]])
        held = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(held, 1)
        moved = np.where(held > 0, means, table)
        done = bool(np.abs(moved - table).max() < STILL)
        table = moved
        if done:
            break
    rounded = torch.from_numpy(np.unique(np.rint(255 * table)).astype(np.uint8))
    used = torch.bincount(levels_of(values, rounded).flatten(), minlength=len(rounded)) > 0
    return rounded[used]


def levels_of(values: Tensor, table: Tensor) -> Tensor:
    """Return which value of a table (uint8, ascending, none twice) each float64 pixel is nearest to, int64.

    It is the number of borders, half-way between two values, that lie below the pixel.
    """
    borders = (table[1:].double() + table[:-1].double()) / 2 / 255
    return torch.bucketize(values.double().contiguous(), borders)


def halved(images: Tensor) -> Tensor:
    """Return the means of blocks of 2×2 pixels ``[N, C, ceil(H/2), ceil(W/2)]``; blocks at odd edges are smaller."""
    return F.avg_pool2d(images, 2, ceil_mode=True, count_include_pad=False)


def doubled(images: Tensor, height: int, width: int) -> Tensor:
    """Return uint8 images of twice the size, bilinear without aligned corners, cut to ``height`` × ``width``.

    Of integers: each pixel is 9, 3, 3 and 1 sixteenths of the four nearest, halves rounded up.
    """
    for axis in (2, 3):
        size = images.shape[axis]
        places = torch.arange(size)
        before, after = (
            images.index_select(axis, (places + step).clamp(0, size - 1)).to(torch.int32)
            for step in (-1, 1)
        )
        own = 3 * images.to(torch.int32)
        images = torch.stack([own + before, own + after], axis + 1).flatten(axis, axis + 1)
    return ((images + 8) // 16).to(torch.uint8)[:, :, :height, :width].contiguous()
