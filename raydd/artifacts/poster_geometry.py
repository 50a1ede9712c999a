"""Overlapping windows of one large image, a poster: where they lie, how they are cut out and faded
back together, and how their labels are pooled from a label map (PoDD, arXiv 2403.12040).

Windows of a grid of ``columns`` and ``rows`` are counted down the columns: window ``k`` stands in column
``k // rows`` and row ``k % rows``. Worked out in docs/methods/podd.md, "Windows".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.core.errors import ConfigError


def window_starts(length: int, size: int, count: int) -> tuple[int, ...]:
    """Return where ``count`` windows of ``size`` begin on ``length`` pixels, evenly spread, the last at the end.

    ``round(i * ((length - size) / (count - 1)))`` in float64, halves to even: NumPy's
    ``linspace(0, length - size, count).round()``.
    """
    if count == 1:
        return (0,)
    step = (length - size) / (count - 1)
    return (*(round(i * step) for i in range(count - 1)), length - size)


def least_windows(length: int, size: int) -> int:
    """Return how many windows of ``size`` tile a ``length``."""
    least = -(-length // size)
    # Rounded starts may leave a gap of a pixel where the windows would just do.
    while length >= size and _gaps(window_starts(length, size, least), size, length):
        least += 1
    return least


@dataclass(frozen=True, kw_only=True)
class WindowGrid:
    """``columns`` × ``rows`` windows of ``height`` × ``width`` pixels on a poster."""

    height: int
    width: int
    columns: int
    rows: int

    def __post_init__(self) -> None:
        for name in ("height", "width", "columns", "rows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: {value!r} must be a whole number of at least 1")

    @property
    def count(self) -> int:
        """The number of windows."""
        return self.columns * self.rows

    def check(self, height: int, width: int) -> None:
        """Raise ``ConfigError`` for a poster ``height`` × ``width`` that is smaller than a window, or
        of which no window shows some pixels.
        """
        if height < self.height or width < self.width:
            raise ConfigError(
                f"a poster of {width}×{height} pixels (width×height) is smaller than a window of"
                f" {self.width}×{self.height}"
            )
        for name, length, size, count in (
            ("columns", width, self.width, self.columns),
            ("rows", height, self.height, self.rows),
        ):
            starts = window_starts(length, size, count)
            ends = [0, *(start + size for start in starts)]
            lost = [(end, start) for end, start in zip(ends, (*starts, length)) if start > end]
            if lost:
                side = "width" if name == "columns" else "height"
                least = least_windows(length, size)
                raise ConfigError(
                    f"{name}={count}: windows of {size} pixels do not tile a {side} of {length}: none shows pixels"
                    f" {lost[0][0]} to {lost[0][1] - 1}; at least {name}={least} are needed"
                )

    def places(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the top and left of every window on a poster ``height`` × ``width``, in their order."""
        tops = window_starts(height, self.height, self.rows)
        lefts = window_starts(width, self.width, self.columns)
        return [(top, left) for left in lefts for top in tops]

    def cut(self, poster: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return the windows ``ids`` (int64 ``[B]``; ``None``: all) ``[B, C, h, w]`` of a poster ``[C, H, W]``.

        Slices alone, so that the derivative adds them up in a fixed order.
        """
        height, width = poster.shape[1:]
        if ids is not None:
            places = self.places(height, width)
            chosen = [places[k] for k in ids.tolist()]
            cuts = [poster[:, y : y + self.height, x : x + self.width] for y, x in chosen]
            return torch.stack(cuts) if cuts else poster.new_empty(0, *self._sides(poster))
        # All: first whole rows, then their columns, so that the derivative fills a poster for each row and column only.
        tops = window_starts(height, self.height, self.rows)
        lefts = window_starts(width, self.width, self.columns)
        bands = torch.stack([poster[:, y : y + self.height] for y in tops])
        return torch.cat([bands[..., x : x + self.width] for x in lefts])

    def _sides(self, poster: Tensor) -> tuple[int, int, int]:
        return len(poster), self.height, self.width

    def faded(self, windows: Tensor, height: int, width: int) -> Tensor:
        """Return the poster ``[C, height, width]`` of all windows ``[P, C, h, w]``, faded into one another."""
        by_row = windows.unflatten(0, (self.columns, self.rows)).transpose(0, 1).flatten(0, 1)
        return fade(by_row, self.columns, height, width)


def _gaps(starts: Sequence[int], size: int, length: int) -> bool:
    ends = [0, *(start + size for start in starts)]
    return any(start > end for end, start in zip(ends, (*starts, length)))


def fade(areas: Tensor, columns: int, height: int, width: int) -> Tensor:
    """Return one image ``[C, height, width]`` of areas ``[N, C, h, w]`` that overlap, row after row
    (area ``r * columns + q`` in row ``r``, column ``q``), spread evenly.

    Where two areas overlap by ``o`` columns, the left one's weight goes down from 1 to 0,
    ``1 - linspace(0, 1, o)``, and the right one's is the rest; rows likewise, from the top down.
    What no area covers is 0.
    """
    rows = len(areas) // columns
    lefts = window_starts(width, areas.shape[3], columns)
    tops = window_starts(height, areas.shape[2], rows)
    bands = [_faded(list(row), lefts, width, -1) for row in areas.split(columns)]
    return _faded(bands, tops, height, -2)


def _faded(parts: Sequence[Tensor], starts: Sequence[int], length: int, dim: int) -> Tensor:
    """Return parts laid one after the other along ``dim``, each faded into what lies there before it."""
    size = parts[0].shape[dim]
    shape = list(parts[0].shape)
    shape[dim] = length
    whole, edge = parts[0].new_zeros(shape), 0
    for start, part in zip(starts, parts, strict=True):
        overlap = max(0, edge - start)
        if overlap:
            weights = 1 - torch.linspace(0, 1, overlap, dtype=part.dtype, device=part.device)
            weights = weights if dim == -1 else weights.unsqueeze(1)
            before = whole.narrow(dim, start, overlap)
            mixed = before * weights + part.narrow(dim, 0, overlap) * (1 - weights)
            whole.narrow(dim, start, overlap).copy_(mixed)
        rest = size - overlap
        whole.narrow(dim, start + overlap, rest).copy_(part.narrow(dim, overlap, rest))
        edge = start + size
    return whole


def label_windows(grid: WindowGrid, poster: tuple[int, int], cells: tuple[int, int]) -> WindowGrid:
    """Return the windows on a label map of ``cells`` (rows, columns) that stand for those of a
    poster (height, width): as large as the part of it that a window is, at least one cell.
    """
    (height, width), (rows, columns) = poster, cells
    # As the published code computes them, of which the rounding is a part.
    return WindowGrid(
        height=max(1, math.floor(grid.height * (1 / (height / rows)))),
        width=max(1, math.floor(grid.width * (1 / (width / columns)))),
        columns=grid.columns,
        rows=grid.rows,
    )


def pooled_labels(
    label_map: Tensor, grid: WindowGrid, poster: tuple[int, int], ids: Tensor | None = None
) -> Tensor:
    """Return the soft labels ``[B, classes]`` of windows (``None``: of all) of a poster (height, width):
    the sum of a label map ``[classes, rows, columns]`` over each window's cells, divided by its own sum.

    A window over cells of nothing but zeros has a label of zeros (the published code: NaN).
    """
    cells = label_windows(grid, poster, (label_map.shape[1], label_map.shape[2]))
    summed = cells.cut(label_map, ids).sum((2, 3))
    total = summed.sum(1, keepdim=True)
    return summed / torch.where(total == 0, torch.ones_like(total), total)
