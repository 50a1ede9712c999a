"""Sums over what a layer reads and their gradient as Triton kernels for CUDA: each reads a map
once, and nothing is added atomically.

Maps ``[B, K, H, W]`` are taken as ``[G, n, K, M]`` with ``M = H * W`` pixels, whatever the order in
memory (channels first or last). A program takes a tile of channels by pixels through some images of
a group; what the programs found lies side by side and is added up in a fixed order, so that results
are the same bytes every time. Sums are those of :class:`raydd.networks.tap_grid.Grid`.
"""

# Arguments of kernels have no types: they are addresses and numbers.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from raydd.networks.tap_grid import Grid

_TILE = 1024
"""Channels by pixels of a tile: sums, squares and four products of each are kept in registers."""

_NOT_COMPILED = ("groups", "each", "chunk", "pieces", "shift_0", "shift_1", "shift_2", "shift_3")
"""Numbers that a kernel is not compiled anew for."""

_ENOUGH = 1024
"""Programs that keep every processor of a large GPU busy."""


@triton.jit(do_not_specialize=_NOT_COMPILED)
def _sum_tiles(
    x, of_channels, of_pixels, channels, pixels, groups, each, chunk, pieces, of_image, of_channel, of_pixel,
    shift_0, shift_1, shift_2, shift_3,
    CELLS: tl.constexpr, SHIFTS: tl.constexpr, KINDS: tl.constexpr, LINES: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Write a tile's sums over images: of values and squares per channel; of these and products
    with neighbours per pixel.
    """
    part_m, part_k = tl.program_id(0), tl.program_id(1)
    group, piece = tl.program_id(2) // pieces, tl.program_id(2) % pieces
    k, m = part_k * KINDS + tl.arange(0, KINDS), part_m * LINES + tl.arange(0, LINES)
    in_k, in_m = k < channels, m < pixels
    inside = in_k[:, None] & in_m[None, :]
    place = k[:, None] * of_channel + m[None, :] * of_pixel
    values, squares = tl.zeros([KINDS, LINES], TYPE), tl.zeros([KINDS, LINES], TYPE)
    near_0, near_1 = tl.zeros([KINDS, LINES], TYPE), tl.zeros([KINDS, LINES], TYPE)
    near_2, near_3 = tl.zeros([KINDS, LINES], TYPE), tl.zeros([KINDS, LINES], TYPE)
    for i in range(piece * chunk, tl.minimum(each, (piece + 1) * chunk)):
        at = x + (group * each + i).to(tl.int64) * of_image + place
        value = tl.load(at, mask=inside, other=0.0)
        values += value
        squares += value * value
        if SHIFTS > 0:
            near_0 += value * tl.load(
                at + shift_0 * of_pixel, mask=inside & (m + shift_0 < pixels)[None, :], other=0.0
            )
        if SHIFTS > 1:
            near_1 += value * tl.load(
                at + shift_1 * of_pixel, mask=inside & (m + shift_1 < pixels)[None, :], other=0.0
            )
        if SHIFTS > 2:
            near_2 += value * tl.load(
                at + shift_2 * of_pixel, mask=inside & (m + shift_2 < pixels)[None, :], other=0.0
            )
        if SHIFTS > 3:
            near_3 += value * tl.load(
                at + shift_3 * of_pixel, mask=inside & (m + shift_3 < pixels)[None, :], other=0.0
            )
    out = of_channels + ((piece * tl.num_programs(0) + part_m) * groups + group) * 2 * channels + k
    tl.store(out, tl.sum(values, 1), mask=in_k)
    tl.store(out + channels, tl.sum(squares, 1), mask=in_k)
    if CELLS:
        of_map = groups * pixels
        out = (
            of_pixels
            + ((piece * tl.num_programs(1) + part_k) * (2 + SHIFTS) * groups + group) * pixels
            + m
        )
        tl.store(out, tl.sum(values, 0), mask=in_m)
        tl.store(out + of_map, tl.sum(squares, 0), mask=in_m)
        if SHIFTS > 0:
            tl.store(out + 2 * of_map, tl.sum(near_0, 0), mask=in_m)
        if SHIFTS > 1:
            tl.store(out + 3 * of_map, tl.sum(near_1, 0), mask=in_m)
        if SHIFTS > 2:
            tl.store(out + 4 * of_map, tl.sum(near_2, 0), mask=in_m)
        if SHIFTS > 3:
            tl.store(out + 5 * of_map, tl.sum(near_3, 0), mask=in_m)


@triton.jit(
    do_not_specialize=("parts", "channels", "height", "width", "down", "across", "groups", "blocks")
)
def _fold(
    of_channels, of_pixels, rows, columns, windows, out, parts, channels, height, width, down, across, groups, blocks,
    MAPS: tl.constexpr, KINDS: tl.constexpr, MANY: tl.constexpr, LINES: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Add up what tiles found of some channels, or what pixels count in one cell: sums and sums of
    squares of a group.
    """
    block, group = tl.program_id(0), tl.program_id(1)
    row = out + group * 2 * (channels + down * across)
    if block < blocks:
        k = block * KINDS + tl.arange(0, KINDS)
        values, squares = tl.zeros([MANY, KINDS], TYPE), tl.zeros([MANY, KINDS], TYPE)
        for start in range(0, parts, MANY):
            part = start + tl.arange(0, MANY)
            inside = (part < parts)[:, None] & (k < channels)[None, :]
            at = of_channels + (part[:, None] * groups + group) * 2 * channels + k[None, :]
            values += tl.load(at, mask=inside, other=0.0)
            squares += tl.load(at + channels, mask=inside, other=0.0)
        tl.store(row + k, tl.sum(values, 0), mask=k < channels)
        tl.store(row + channels + down * across + k, tl.sum(squares, 0), mask=k < channels)
    else:
        cell = block - blocks
        r, c = cell // across, cell % across
        top, bottom = tl.load(windows + 2 * r), tl.load(windows + 2 * r + 1)
        left, right = tl.load(windows + 2 * (down + c)), tl.load(windows + 2 * (down + c) + 1)
        wide = right - left
        of_cell, of_squares = tl.zeros([LINES], TYPE), tl.zeros([LINES], TYPE)
        for first in range(0, (bottom - top) * wide, LINES):
            place = first + tl.arange(0, LINES)
            h, w = top + place // wide, left + place % wide
            counted = h < bottom
            for i in tl.static_range(MAPS):
                weight = tl.load(rows + (i * down + r) * height + h, mask=counted, other=0.0)
                weight *= tl.load(columns + (i * width + w) * across + c, mask=counted, other=0.0)
                found = weight * tl.load(
                    of_pixels + ((i * groups + group) * height + h) * width + w,
                    mask=counted,
                    other=0.0,
                )
                if i == 0:
                    of_cell += found
                else:
                    of_squares += found
        tl.store(row + channels + cell, tl.sum(of_cell, 0))
        tl.store(row + channels + down * across + channels + cell, tl.sum(of_squares, 0))


@triton.jit(
    do_not_specialize=(
        "channels",
        "height",
        "width",
        "down",
        "across",
        "groups",
        "of_group",
        "of_statistic",
    )
)
def _spread(
    of_sums, rows, columns, cells, out, channels, height, width, down, across, groups, of_group, of_statistic,
    of_column,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, LINES: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Write what each pixel gets from the gradients of the cells it counts in, for one map of one group."""
    kind, group = tl.program_id(1), tl.program_id(2)
    m = tl.program_id(0) * LINES + tl.arange(0, LINES)
    inside = m < height * width
    h, w = m // width, m % width
    r, c = (
        tl.load(cells + h, mask=inside, other=0),
        tl.load(cells + height + w, mask=inside, other=0),
    )
    given = of_sums + group * of_group + tl.minimum(kind, 1) * of_statistic + channels * of_column
    found = tl.zeros([LINES], TYPE)
    for i in tl.static_range(DOWN):
        of_row = tl.zeros([LINES], TYPE)
        for j in tl.static_range(ACROSS):
            there = inside & (r + i < down) & (c + j < across)
            weight = tl.load(columns + (kind * width + w) * across + c + j, mask=there, other=0.0)
            of_row += weight * tl.load(
                given + ((r + i) * across + c + j) * of_column, mask=there, other=0.0
            )
        found += of_row * tl.load(
            rows + (kind * down + r + i) * height + h, mask=inside & (r + i < down), other=0.0
        )
    tl.store(out + (kind * groups + group) * height * width + m, found, mask=inside)


@triton.jit
def _neighbours(found, at, weights, m, pixels, shift, of_pixel, inside):
    """Add the pixels ``shift`` behind and before, each with the weight of the pair."""
    behind, before = (m + shift < pixels) & (m < pixels), (m >= shift) & (m < pixels)
    weight = tl.load(weights + m, mask=behind, other=0.0)[None, :]
    found += weight * tl.load(at + shift * of_pixel, mask=inside & behind[None, :], other=0.0)
    weight = tl.load(weights + m - shift, mask=before, other=0.0)[None, :]
    return found + weight * tl.load(at - shift * of_pixel, mask=inside & before[None, :], other=0.0)


@triton.jit(do_not_specialize=_NOT_COMPILED)
def _add_tiles(
    gradient, x, out, of_sums, of_pixels, scale, channels, pixels, groups, each, chunk, pieces,
    of_image, of_channel, of_pixel, from_image, from_channel, from_pixel, to_image, to_channel, to_pixel,
    of_group, of_statistic, of_column, shift_0, shift_1, shift_2, shift_3,
    SCALED: tl.constexpr, CELLS: tl.constexpr, SHIFTS: tl.constexpr, KINDS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Write a tile of ``gradient * scale + constant + slope * x``, and of the neighbours' parts,
    for some images of a group.
    """
    part_m, part_k = tl.program_id(0), tl.program_id(1)
    group, piece = tl.program_id(2) // pieces, tl.program_id(2) % pieces
    k, m = part_k * KINDS + tl.arange(0, KINDS), part_m * LINES + tl.arange(0, LINES)
    in_k, in_m = k < channels, m < pixels
    inside = in_k[:, None] & in_m[None, :]
    given = of_sums + group * of_group + k * of_column
    constant = tl.load(given, mask=in_k, other=0.0)[:, None]
    slope = 2 * tl.load(given + of_statistic, mask=in_k, other=0.0)[:, None]
    of_map, maps = groups * pixels, of_pixels + group * pixels
    if CELLS:
        constant += tl.load(maps + m, mask=in_m, other=0.0)[None, :]
        slope += 2 * tl.load(maps + of_map + m, mask=in_m, other=0.0)[None, :]
    if SCALED:
        factor = tl.load(scale + k, mask=in_k, other=0.0)[:, None]
    for i in range(piece * chunk, tl.minimum(each, (piece + 1) * chunk)):
        image = (group * each + i).to(tl.int64)
        at = x + image * of_image + k[:, None] * of_channel + m[None, :] * of_pixel
        found = tl.load(
            gradient + image * from_image + k[:, None] * from_channel + m[None, :] * from_pixel,
            mask=inside,
            other=0.0,
        )
        if SCALED:
            found *= factor
        found += constant + slope * tl.load(at, mask=inside, other=0.0)
        if SHIFTS > 0:
            found = _neighbours(found, at, maps + 2 * of_map, m, pixels, shift_0, of_pixel, inside)
        if SHIFTS > 1:
            found = _neighbours(found, at, maps + 3 * of_map, m, pixels, shift_1, of_pixel, inside)
        if SHIFTS > 2:
            found = _neighbours(found, at, maps + 4 * of_map, m, pixels, shift_2, of_pixel, inside)
        if SHIFTS > 3:
            found = _neighbours(found, at, maps + 5 * of_map, m, pixels, shift_3, of_pixel, inside)
        tl.store(
            out + image * to_image + k[:, None] * to_channel + m[None, :] * to_pixel,
            found,
            mask=inside,
        )


def launch(kernel: Any, programs: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel, which is one operation of the device."""
    kernel[programs](*arguments, **constants)


def _flat(x: Tensor) -> Tensor:
    """Return ``x [B, K, H, W]`` with rows of pixels that follow one another at one distance, a copy
    only where they do not.
    """
    return x if 1 in x.shape[2:] or x.stride(2) == x.shape[3] * x.stride(3) else x.contiguous()


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Return how far images, channels and pixels lie apart."""
    return x.stride(0), x.stride(1), x.stride(3) if x.shape[3] > 1 else x.stride(2)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


class _Tiles:
    """How maps ``[B, K, H, W]`` of some groups are cut: tiles, and runs of images where tiles alone are too few."""

    def __init__(self, x: Tensor, groups: int, size: int = _TILE) -> None:
        images, channels, height, width = x.shape
        self.pixels, self.each = height * width, images // groups
        # The long side lies along memory.
        across, along = (
            (self.pixels, channels)
            if _strides(x)[1] == 1 and channels > 1
            else (channels, self.pixels)
        )
        long = min(_power(along), 64 if across > 8 else size // 4)
        short = min(_power(across), size // long)
        long = min(_power(along), size // short)
        self.kinds, self.lines = (
            (short, long) if across == channels and along == self.pixels else (long, short)
        )
        self.of_channels, self.of_pixels = -(-channels // self.kinds), -(-self.pixels // self.lines)
        tiles = self.of_channels * self.of_pixels * groups
        self.chunk = -(-self.each // min(-(-_ENOUGH // tiles), -(-self.each // 4)))
        self.pieces = -(-self.each // self.chunk)
        self.programs = (self.of_pixels, self.of_channels, groups * self.pieces)


def _shifts(grid: Grid | None) -> tuple[int, ...]:
    shifts = grid.shifts if grid is not None else ()
    return (*shifts, *[0] * (4 - len(shifts)))


def _type(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def sums(x: Tensor, groups: int, grid: Grid | None) -> Tensor:
    """Return ``[G, 2, K + P]``: sums and sums of squares of ``x [B, K, H, W]``, float32 or float64,
    per channel and per cell.

    ``grid``: the map's patches, ``None`` for channels alone. Three kernels, two without patches.
    """
    x, channels = _flat(x), x.shape[1]
    tiles, maps = _Tiles(x, groups), 2 + len(grid.shifts) if grid is not None else 0
    of_channels = x.new_empty(tiles.pieces * tiles.of_pixels, groups, 2, channels)
    of_pixels = x.new_empty(tiles.pieces * tiles.of_channels, maps, groups, tiles.pixels)
    launch(
        _sum_tiles, tiles.programs, x, of_channels, of_pixels,
        channels, tiles.pixels, groups, tiles.each, tiles.chunk, tiles.pieces, *_strides(x), *_shifts(grid),
        CELLS=grid is not None, SHIFTS=max(maps - 2, 0), KINDS=tiles.kinds, LINES=tiles.lines, TYPE=_type(x),
    )  # fmt: skip
    if grid is None:
        return of_channels.sum(0)
    down, across, kinds = grid.rows.shape[1], grid.columns.shape[2], min(_power(channels), 64)
    out, blocks = x.new_empty(groups, 2, channels + down * across), -(-channels // kinds)
    launch(
        _fold, (blocks + down * across, groups), of_channels, of_pixels.sum(0), grid.rows, grid.columns,
        grid.windows, out,
        len(of_channels), channels, x.shape[2], x.shape[3], down, across, groups, blocks,
        MAPS=maps, KINDS=kinds, MANY=16, LINES=128, TYPE=_type(x),
    )  # fmt: skip
    return out


def gradient_of_sums(
    gradient: Tensor, x: Tensor, of_sums: Tensor, scale: Tensor | None, grid: Grid | None
) -> Tensor:
    """Return the gradient of ``x [B, K, H, W]``: ``gradient`` times ``scale [K]`` (``None``: 1) and
    what ``of_sums [G, 2, K + P]`` adds.

    One kernel, two with patches. The result lies in memory as ``x`` does.
    """
    gradient, x, groups, channels = _flat(gradient), _flat(x), len(of_sums), x.shape[1]
    out = torch.empty_like(x)
    out = out if _flat(out) is out else torch.empty_like(x, memory_format=torch.contiguous_format)
    tiles, shifts, of_pixels = _Tiles(x, groups), grid.shifts if grid is not None else (), of_sums
    if grid is not None:
        of_pixels = x.new_empty(2 + len(shifts), groups, tiles.pixels)
        down, across, lines = grid.rows.shape[1], grid.columns.shape[2], 128
        launch(
            _spread, (-(-tiles.pixels // lines), len(of_pixels), groups), of_sums, grid.rows, grid.columns,
            grid.cells, of_pixels,
            channels, x.shape[2], x.shape[3], down, across, groups, *of_sums.stride(),
            DOWN=grid.reach[0], ACROSS=grid.reach[1], LINES=lines, TYPE=_type(x),
        )  # fmt: skip
    launch(
        _add_tiles, tiles.programs, gradient, x, out, of_sums, of_pixels, x if scale is None else scale,
        channels, tiles.pixels, groups, tiles.each, tiles.chunk, tiles.pieces,
        *_strides(x), *_strides(gradient), *_strides(out), *of_sums.stride(), *_shifts(grid),
        SCALED=scale is not None, CELLS=grid is not None, SHIFTS=len(shifts), KINDS=tiles.kinds, LINES=tiles.lines,
    )  # fmt: skip
    return out
