"""Random resized crops, flips and CutMix boxes with explicit draws; crops are two matrix products,
so no kernel needs atomics.

The rules are torchvision's ``RandomResizedCrop`` and the CutMix of FKD
(docs/methods/recovery.md, "The update"; docs/methods/soft_labels.md, "CutMix").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Range = tuple[float, float]
RATIO: Range = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Box:
    """A crop in pixels: first row, first column, height, width."""

    top: int
    left: int
    height: int
    width: int


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def draw_resized_crop(
    generator: torch.Generator, height: int, width: int, scale: Range, ratio: Range = RATIO
) -> Box:
    """Draw a crop of ``scale`` of the area (a range within [0, 1]) and an aspect ratio uniform in its logarithm.

    After ten misfits: the largest crop in the middle whose ratio is allowed.
    """
    area, logs = height * width, (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        target = area * _uniform(generator, *scale)
        aspect = math.exp(_uniform(generator, *logs))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (), generator=generator))
            left = int(torch.randint(0, width - w + 1, (), generator=generator))
            return Box(top, left, h, w)
    whole = width / height
    if whole < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif whole > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return Box((height - h) // 2, (width - w) // 2, h, w)


def draw_flip(generator: torch.Generator) -> bool:
    """Draw whether an image is mirrored, with probability one half."""
    return bool(torch.rand((), generator=generator) < 0.5)


def _read(start: Tensor, length: Tensor, out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels that each of ``out`` reads, and the second's weight ``[N, out]``
    (bilinear, corners not aligned).
    """
    centres = torch.arange(out, dtype=torch.float64, device=start.device) + 0.5
    place = (centres * (length.double() / out).unsqueeze(1) - 0.5).clamp_min(0)
    low = place.floor().long()
    high = torch.minimum(low + 1, (length - 1).unsqueeze(1))
    return low + start.unsqueeze(1), high + start.unsqueeze(1), place - low


def _matrices(
    starts: Sequence[int],
    lengths: Sequence[int],
    size: int,
    out: int,
    mirrored: Sequence[bool] | None,
) -> Tensor:
    """Return ``[N, out, size]``: bilinear interpolation of ``length`` pixels from ``start`` to
    ``out`` (corners not aligned).
    """
    start, length = (
        torch.as_tensor(starts, dtype=torch.int64),
        torch.as_tensor(lengths, dtype=torch.int64),
    )
    low, high, weight = _read(start, length, out)
    made = torch.zeros(len(start), out, size, dtype=torch.float64)
    made.scatter_add_(2, low.unsqueeze(2), (1 - weight).unsqueeze(2))
    made.scatter_add_(2, high.unsqueeze(2), weight.unsqueeze(2))
    if mirrored is not None:
        made = torch.where(torch.as_tensor(mirrored).view(-1, 1, 1), made.flip(1), made)
    return made


def _compared(
    start: Tensor, length: Tensor, size: int, mirrored: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return the matrices ``[N, size, size]`` on the device of ``start``: by comparing places,
    since adding to them takes atomics.
    """
    low, high, weight = _read(start, length, size)
    if mirrored is not None:
        low, high, weight = (
            torch.where(mirrored.unsqueeze(1), part.flip(1), part) for part in (low, high, weight)
        )
    places, first = torch.arange(size, device=start.device), (1 - weight).to(dtype)
    return (low.unsqueeze(2) == places) * first.unsqueeze(2) + (
        high.unsqueeze(2) == places
    ) * weight.to(dtype).unsqueeze(2)


@dataclass(frozen=True)
class Crops:
    """``N`` crops as matrices: ``rows [N, S, H]``, ``columns [N, S, W]`` (mirrored where an image is flipped)."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(
        cls,
        boxes: Sequence[Box],
        flips: Sequence[bool],
        size: tuple[int, int],
        out: int | None = None,
    ) -> Crops:
        """Return the crops of images of ``size`` ``(H, W)``, each brought to ``out`` x ``out``
        pixels (default: to ``size``).
        """
        height, width = size
        rows = _matrices(
            [b.top for b in boxes], [b.height for b in boxes], height, out or height, None
        )
        columns = _matrices(
            [b.left for b in boxes], [b.width for b in boxes], width, out or width, list(flips)
        )
        return cls(rows, columns)

    @classmethod
    def read(cls, numbers: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Crops:
        """Return crops to ``size`` from rows of ``top, left, height, width, mirrored`` (integers
        ``[N, 5]``), made where these are.
        """
        top, left, height, width, mirrored = numbers.unbind(1)
        return cls(
            _compared(top, height, size[0], None, dtype),
            _compared(left, width, size[1], mirrored > 0, dtype),
        )

    def apply(self, images: Tensor) -> Tensor:
        """Return the crops of float images ``[N * k, C, H, W]``: ``k`` consecutive images share a
        crop; differentiable.
        """
        rows, columns = self.rows.to(images), self.columns.to(images)
        count, each = len(rows), len(images) // len(rows)
        grouped = images.reshape(count, each * images.shape[1], *images.shape[2:])
        out = rows.unsqueeze(1) @ grouped @ columns.transpose(1, 2).unsqueeze(1)
        return out.reshape(len(images), images.shape[1], *out.shape[2:])


def cutmix_box(
    lam: float, row: int, column: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return ``(x1, y1, x2, y2)`` of FKD's CutMix around a centre: rows x1 to x2, columns y1 to y2,
    cut at the edges.
    """
    height, width = size
    side = math.sqrt(1 - lam)
    half_h, half_w = int(height * side) // 2, int(width * side) // 2
    x1, x2 = max(row - half_h, 0), min(row + half_h, height)
    y1, y2 = max(column - half_w, 0), min(column + half_w, width)
    return x1, y1, x2, y2


def draw_beta(generator: torch.Generator, alpha: float) -> float:
    """Draw from the Beta distribution with both parameters ``alpha``."""
    a, b = torch._standard_gamma(
        torch.full((2,), alpha, dtype=torch.float64), generator=generator
    ).tolist()
    return a / (a + b)
