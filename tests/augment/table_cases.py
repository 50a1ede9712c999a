"""Tells how far the kernel of a table is from plain operators, in float64 and float32, by Triton's interpreter."""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from raydd.augment.table_kernels import gather


def difference(groups: int, maps: int, size: int, taps: int, dtype: torch.dtype) -> float:
    """Return the largest difference, relative to the values, for random pixels and weights."""
    g = torch.Generator().manual_seed(groups + maps)
    x = torch.randn(groups, size, maps, generator=g, dtype=dtype).transpose(1, 2)
    pixels = torch.randint(0, size, (groups, taps, size), generator=g)
    weights = torch.rand(groups, taps, size, generator=g, dtype=dtype)
    index = pixels.flatten(1).unsqueeze(1).expand(-1, maps, -1)
    want = (x.gather(2, index).unflatten(2, (taps, size)) * weights.unsqueeze(1)).sum(2)
    return float((gather(x, pixels, weights) - want).abs().max())


if __name__ == "__main__":
    wide = [
        difference(*case, torch.float64)
        for case in ((3, 11, 300, 4), (2, 1, 20, 9), (5, 3, 257, 9), (1, 8, 256, 4))
    ]
    sys.stdout.write(f"{max(wide)} {difference(2, 5, 70, 4, torch.float32)}")
