"""Grids of patches: how the pixels of a map count in the cells that it is cut into once it is
brought to whole patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The patch grid of maps of one size: how much what is summed over images and channels counts in each cell.

    A resized pixel is a mean of neighbours, so the sum of squares over a cell is one of products of
    pixels with themselves and, where something is resized, with their neighbours on the right,
    below, and on both diagonals: pixels which are ``shifts`` apart in a flattened map.
    ``rows [2 + S, R, H]`` by ``columns [2 + S, W, C]``: the weights of pixels, squares, and the
    products. ``windows [R + C, 2]``, int32: the first line that counts in each row and column of
    cells, and the one behind the last. ``cells [H + W]``, int32: the first row of cells that each
    line counts in, and the first column; ``reach``: in how many, at most.
    """

    shifts: tuple[int, ...]
    rows: Tensor
    columns: Tensor
    windows: Tensor
    cells: Tensor
    reach: tuple[int, int]

    def into_cells(self, maps: Tensor) -> Tensor:
        """Return sums and sums of squares ``[G, 2, R * C]`` of ``maps [2 + S, G, H * W]``."""
        found = (
            self.rows.unsqueeze(1)
            @ maps.unflatten(2, (self.rows.shape[2], -1))
            @ self.columns.unsqueeze(1)
        )
        return torch.stack([found[0], found[1:].sum(0)], 1).flatten(2)

    def over_pixels(self, cells: Tensor) -> Tensor:
        """Return ``[2 + S, G, H * W]`` of values of ``cells [G, 2, R * C]``: the transpose of :meth:`into_cells`."""
        of_sums, of_squares = cells.unflatten(2, (self.rows.shape[1], -1)).unbind(1)
        of_maps = torch.stack([of_sums] + [of_squares] * (1 + len(self.shifts)))
        return (self.rows.mT.unsqueeze(1) @ of_maps @ self.columns.mT.unsqueeze(1)).flatten(2)


def _axis(length: int, patch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return, each ``[cells, length]``: weights of lines in the sum over a cell; of their squares;
    of products with the next line.
    """
    cells = -(-length // patch)
    size = cells * patch
    place = ((torch.arange(size, dtype=torch.float64) + 0.5) * (length / size) - 0.5).clamp_min(0)
    low = place.floor().long()
    resize, lines = torch.zeros(size, length, dtype=torch.float64), torch.arange(size)
    resize[lines, low] += 1 - (place - low)
    resize[lines, (low + 1).clamp_max(length - 1)] += place - low
    of_cells = resize.view(cells, patch, length)
    gram = of_cells.transpose(1, 2) @ of_cells
    return of_cells.sum(1), gram.diagonal(0, 1, 2), F.pad(2 * gram.diagonal(1, 1, 2), (0, 1))


@lru_cache(maxsize=256)
def grid_of(height: int, width: int, patch: int, device: torch.device, dtype: torch.dtype) -> Grid:
    """Return the grid of maps of ``height x width`` in patches of ``patch`` pixels."""
    rows, own_rows, next_rows = _axis(height, patch)
    columns, own_columns, next_columns = _axis(width, patch)
    previous = next_columns.roll(1, 1)  # the last line has no next one: what comes round is zero
    products = [
        (1, own_rows, next_columns),
        (width, next_rows, own_columns),
        (width + 1, next_rows, next_columns / 2),
        (width - 1, next_rows, previous / 2),
    ]
    products = [found for found in products if found[1].any() and found[2].any()]
    factors = [
        (rows, columns),
        (own_rows, own_columns),
        *((found[1], found[2]) for found in products),
    ]
    down, across = (
        torch.stack([found for found, _ in factors]),
        torch.stack([found for _, found in factors]),
    )
    cells = [_span(found.any(0).T) for found in (down, across)]
    return Grid(
        tuple(shift for shift, *_ in products),
        down.to(device, dtype),
        across.mT.to(device, dtype).contiguous(),
        torch.cat([_span(down.any(0)), _span(across.any(0))]).to(device),
        torch.cat([found[:, 0] for found in cells]).to(device),
        (int(cells[0].diff().max()), int(cells[1].diff().max())),
    )


def _span(counted: Tensor) -> Tensor:
    """Return, int32 ``[n, 2]``, the first true entry of each row of ``counted [n, m]``, and the
    place behind the last one.
    """
    places = torch.arange(counted.shape[1])
    first = torch.where(counted, places, counted.shape[1]).amin(1)
    return torch.stack([first, torch.where(counted, places + 1, 0).amax(1)], 1).int()
