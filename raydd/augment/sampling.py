"""Bilinear rotation and whole-pixel shifts as linear maps whose derivative is again a gather.

The usual backward pass of bilinear sampling adds into pixels with atomics, in no fixed order, on
GPUs. Here each map is a table "which pixels, with which weights, an output pixel reads", beside the
table of its transpose; either pass only reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LinearMap(NamedTuple):
    """A sparse linear map of images with ``HW`` pixels: ``pixels`` and ``weights`` are ``[G, T,
    HW]``, T pixels per output pixel.
    """

    pixels: Tensor
    weights: Tensor


class _Apply(torch.autograd.Function):
    """``out[g, m, q] = sum_t weight[g, t, q] * x[g, m, index[g, t, q]]`` for ``x [G, m, HW]``; the
    derivative uses the transpose.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, index: Tensor, weight: Tensor, back_index: Tensor, back_weight: Tensor
    ) -> Tensor:
        out: Tensor | None = None
        for t in range(index.shape[1]):
            part = (
                x.gather(2, index[:, t : t + 1].expand(-1, x.shape[1], -1)) * weight[:, t : t + 1]
            )
            out = part if out is None else out + part
        return x if out is None else out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        index, weight, back_index, back_weight = ctx.saved_tensors
        return _Apply.apply(grad, back_index, back_weight, index, weight), None, None, None, None


def apply_tables(x: Tensor, forward: LinearMap, transpose: LinearMap) -> Tensor:
    """Return the map of ``x [G, n, C, H, W]``, group by group."""
    flat = x.reshape(x.shape[0], -1, x.shape[3] * x.shape[4])
    weights = (forward.weights.to(x.dtype), transpose.weights.to(x.dtype))
    return _Apply.apply(flat, forward.pixels, weights[0], transpose.pixels, weights[1]).reshape(
        x.shape
    )


def shift(x: Tensor, by: Tensor) -> Tensor:
    """Return ``out[g, …, i, j] = x[g, …, i + by[g, 0], j + by[g, 1]]``, 0 outside; ``by`` int64 ``[G, 2]``."""
    height, width = x.shape[3:]
    return apply_tables(x, _shift_table(by, height, width), _shift_table(-by, height, width))


def _shift_table(by: Tensor, height: int, width: int) -> LinearMap:
    rows = torch.arange(height, device=by.device).view(1, -1, 1) + by[:, 0].view(-1, 1, 1)
    columns = torch.arange(width, device=by.device).view(1, 1, -1) + by[:, 1].view(-1, 1, 1)
    return _table(rows, columns, torch.ones((), device=by.device), height, width)


def _table(rows: Tensor, columns: Tensor, weight: Tensor, height: int, width: int) -> LinearMap:
    """Return a table with one pixel per output pixel; pixels outside the image weigh nothing."""
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return LinearMap(index.flatten(1).unsqueeze(1), (weight * inside).flatten(1).unsqueeze(1))


def rotate(x: Tensor, angles: Tensor, deterministic: bool) -> Tensor:
    """Return the groups' images, each turned about its centre by its angle (radians, ``[G]``), bilinearly, 0 outside.

    ``out[i, j] = x[cy + sin (j - cx) + cos (i - cy), cx + cos (j - cx) - sin (i - cy)]``. On CPUs, whose kernels use no
    atomics, and where ``deterministic`` is off, the library's sampler does it.
    """
    groups, n, channels, height, width = x.shape
    if deterministic and x.device.type != "cpu":
        angles = angles.to(x.device)
        return apply_tables(
            x, _rotation_table(angles, height, width), _rotation_transpose(angles, height, width)
        )
    # The sampler's coordinates are -1 and 1 at the outer edges of the outer pixels (align_corners=False).
    rows, columns = _turned(angles, height, width)
    grid = torch.stack(
        [columns.mul_(2 / width).add_(1 / width - 1), rows.mul_(2 / height).add_(1 / height - 1)],
        -1,
    )
    grid = grid.to(x.device, x.dtype)
    if x.device.type == "cpu":
        # A group's images as channels of one: the weights are computed once.
        return F.grid_sample(
            x.reshape(groups, n * channels, height, width), grid, align_corners=False
        ).view(x.shape)
    grid = grid.unsqueeze(1).expand(-1, n, -1, -1, -1).reshape(groups * n, height, width, 2)
    return F.grid_sample(
        x.reshape(groups * n, channels, height, width), grid, align_corners=False
    ).view(x.shape)


def _turned(angles: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return where each output pixel reads: rows and columns ``[G, H, W]``."""
    i = (
        torch.arange(height, device=angles.device, dtype=angles.dtype).view(1, -1, 1)
        - (height - 1) / 2
    )
    j = (
        torch.arange(width, device=angles.device, dtype=angles.dtype).view(1, 1, -1)
        - (width - 1) / 2
    )
    sin, cos = torch.sin(angles).view(-1, 1, 1), torch.cos(angles).view(-1, 1, 1)
    return (height - 1) / 2 + sin * j + cos * i, (width - 1) / 2 + cos * j - sin * i


def _join(tables: list[LinearMap]) -> LinearMap:
    return LinearMap(
        torch.cat([t.pixels for t in tables], 1), torch.cat([t.weights for t in tables], 1)
    )


def _rotation_table(angles: Tensor, height: int, width: int) -> LinearMap:
    rows, columns = _turned(angles, height, width)
    top, left = rows.floor(), columns.floor()
    tables = []
    for r, c in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        weight = (1 - (rows - r).abs()) * (1 - (columns - c).abs())
        tables.append(_table(r.long(), c.long(), weight, height, width))
    return _join(tables)


def _rotation_transpose(angles: Tensor, height: int, width: int) -> LinearMap:
    """Return which output pixels read a given pixel: those in a 3x3 window, since the image of a
    unit square is less than 3 wide.
    """
    rows, columns = _turned(-angles, height, width)
    reach = (torch.sin(angles).abs() + torch.cos(angles).abs()).view(-1, 1, 1)
    first_row, first_column = (rows - reach).ceil(), (columns - reach).ceil()
    i = torch.arange(height, device=angles.device, dtype=angles.dtype).view(1, -1, 1)
    j = torch.arange(width, device=angles.device, dtype=angles.dtype).view(1, 1, -1)
    sin, cos = torch.sin(angles).view(-1, 1, 1), torch.cos(angles).view(-1, 1, 1)
    tables = []
    for dr in range(3):
        for dc in range(3):
            r, c = first_row + dr, first_column + dc
            y, z = r - (height - 1) / 2, c - (width - 1) / 2
            from_row = (height - 1) / 2 + sin * z + cos * y
            from_column = (width - 1) / 2 + cos * z - sin * y
            weight = (1 - (from_row - i).abs()).clamp(min=0) * (1 - (from_column - j).abs()).clamp(
                min=0
            )
            tables.append(_table(r.long(), c.long(), weight, height, width))
    return _join(tables)
