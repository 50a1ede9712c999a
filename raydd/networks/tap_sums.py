"""Sums over the maps that layers read, and their gradients: what :mod:`raydd.networks.taps` observes with."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.core.kernels import kernels_run
from raydd.networks.tap_grid import Grid

_EPS = 2.0**-10
IN_TURN = 1 << 16
"""From how many values per image a CPU takes one image after the other, which then stays in its cache."""
_SMALL = 16
"""Up to how many pixels of a map the products of all its pixels, as one matrix, cost less than those of neighbours."""


def _by_kernels(x: Tensor) -> bool:
    """Whether sums over ``x`` and their gradient are taken by kernels made for it, in one pass each."""
    return x.is_cuda and x.dtype in (torch.float32, torch.float64) and kernels_run()


def _kernels() -> ModuleType:
    """Return the kernels, which need what machines without a GPU may lack."""
    from raydd.networks import tap_kernels

    return tap_kernels


def _in_turn(grouped: Tensor) -> bool:
    return grouped.device.type == "cpu" and grouped[0, 0].numel() >= IN_TURN


def _summed(grouped: Tensor, shifts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return ``[G, 2, K, M]``, sums and sums of squares over the images of
    ``grouped [G, n, K, M]``; and for each shift ``[S, G, M]``.

    The latter are sums, over images and channels, of products of a pixel with the one ``shift`` behind it.
    """
    groups, _, channels, pixels = grouped.shape
    if not _in_turn(grouped):
        squares = (
            torch.linalg.vector_norm(grouped, dim=1).square_()
            if grouped.is_cuda
            else (grouped * grouped).sum(1)
        )
        products = grouped.new_zeros(len(shifts), groups, pixels)
        of_all = (
            grouped.flatten(1, 2).mT @ grouped.flatten(1, 2)
            if shifts and pixels <= _SMALL
            else None
        )
        for s, found in zip(shifts, products, strict=True):
            near = (
                (grouped[..., :-s] * grouped[..., s:]).sum((1, 2))
                if of_all is None
                else of_all.diagonal(s, 1, 2)
            )
            found[:, :-s] = near
        return torch.stack([grouped.sum(1), squares], 1), products
    maps, per_channel = (
        grouped.new_zeros(groups, 2, channels, pixels),
        grouped.new_zeros(len(shifts), groups, channels, pixels),
    )
    for g, images in enumerate(grouped):
        for x in images:
            maps[g, 0].add_(x)
            maps[g, 1].addcmul_(x, x)
            for s, found in zip(shifts, per_channel, strict=True):
                found[g, :, :-s].addcmul_(x[:, :-s], x[:, s:])
    return maps, per_channel.sum(2)


def _add(
    out: Tensor,
    gradient: Tensor,
    x: Tensor,
    constant: Tensor,
    slope: Tensor,
    neighbours: Sequence[tuple[int, Tensor]],
) -> None:
    """Fill ``out`` with ``gradient + constant + slope * x`` and, for each shift, weights times the
    pixels before and behind.
    """
    torch.addcmul(gradient, slope, x, out=out).add_(constant)
    for s, weights in neighbours:
        out[..., :-s].addcmul_(weights[..., :-s], x[..., s:])
        out[..., s:].addcmul_(weights[..., :-s], x[..., :-s])


_LONG = 64
"""From how many pixels on a CPU sums within the maps first; smaller ones are summed over images first."""


def _of_channels(grouped: Tensor) -> Tensor:
    """Return ``[G, 2, K]``: sums and sums of squares of ``grouped [G, n, K, M]`` over images and pixels."""
    if grouped.is_cuda or grouped.shape[3] >= _LONG:
        sums, squares = grouped.sum(3), torch.linalg.vector_norm(grouped, dim=3).square_()
    else:
        sums, squares = grouped.sum(1).transpose(1, 2), (grouped * grouped).sum(1).transpose(1, 2)
    return torch.stack([sums.sum(1), squares.sum(1)], 1)


class Normalised(torch.autograd.Function):
    """What a frozen batch norm makes of ``x [B, K, H, W]``, and sums and sums of squares of ``x``, ``[G, 2, K]``.

    ``y`` is what the layer returned, without a graph; ``scale [K]`` is its derivative.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, groups: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, scale)
        ctx.groups = groups
        ctx.mark_dirty(y)
        if _by_kernels(x):
            return y, _kernels().sums(x, groups, None)
        return y, _of_channels(x.reshape(groups, -1, x.shape[1], x[0, 0].numel()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_sums: Tensor) -> tuple[Tensor, None, None, None]:
        x, scale = ctx.saved_tensors
        if _by_kernels(x):
            return _kernels().gradient_of_sums(gradient, x, of_sums, scale, None), None, None, None
        images, channels, *_ = x.shape
        each = of_sums.unsqueeze(2).expand(-1, -1, images // ctx.groups, -1)
        constant, slope = each[:, 0].flatten(), 2 * each[:, 1].flatten()
        out = by_row(x.reshape(images * channels, -1), slope, constant).view(images, channels, -1)
        return (
            out.addcmul_(gradient.reshape(out.shape), scale[:, None]).view(x.shape),
            None,
            None,
            None,
        )


def by_row(maps: Tensor, slope: Tensor, constant: Tensor) -> Tensor:
    """Return ``slope * maps + constant``, each row of ``maps [N, M]`` by its own ``[N]``."""
    if maps.device.type != "cpu":
        return torch.addcmul(constant[:, None], slope[:, None], maps)
    # A CPU does this fastest as a batch norm whose channels are the rows. The sum of its variance
    # and eps is 1 without rounding: an eps of zero is not allowed everywhere.
    zeros, rest = torch.zeros_like(slope), torch.full_like(slope, 1 - _EPS)
    return F.batch_norm(maps.unsqueeze(0), zeros, rest, slope, constant, eps=_EPS).squeeze(0)


class Sums(torch.autograd.Function):
    """``x [B, K, H, W]`` itself, and its sums and sums of squares ``[G, 2, K + P]`` per group and
    channel, and per group and cell.

    The layer reads what is returned, so that its gradient comes through here and both are added in one pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, grid: Grid | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.groups, ctx.grid = groups, grid
        _, channels, height, width = x.shape
        if _by_kernels(x):
            return x.view_as(x), _kernels().sums(x, groups, grid)
        grouped = x.reshape(groups, -1, channels, height * width)
        if grid is None:
            return x.view_as(x), _of_channels(grouped)
        maps, products = _summed(grouped, grid.shifts)
        over_channels = maps.sum(2).transpose(0, 1)
        cells = grid.into_cells(
            torch.cat([over_channels, products]) if grid.shifts else over_channels
        )
        return x.view_as(x), torch.cat([maps.sum(-1), cells], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_sums: Tensor) -> tuple[Tensor, None, None]:
        (x,), grid = ctx.saved_tensors, ctx.grid
        _, channels, height, width = x.shape
        if _by_kernels(x):
            return _kernels().gradient_of_sums(gradient, x, of_sums, None, grid), None, None
        grouped = x.reshape(ctx.groups, -1, channels, height * width)
        constant, slope = of_sums[:, 0, :channels, None], 2 * of_sums[:, 1, :channels, None]
        neighbours: list[tuple[int, Tensor]] = []
        if grid is not None:
            of_pixels, of_squares, *of_products = grid.over_pixels(of_sums[:, :, channels:])
            constant, slope = constant + of_pixels.unsqueeze(1), slope + 2 * of_squares.unsqueeze(1)
            neighbours = list(zip(grid.shifts, of_products, strict=True))
        whole = (ctx.groups, channels, height * width)
        constant, slope = constant.expand(whole).contiguous(), slope.expand(whole).contiguous()
        out, gradient = torch.empty_like(grouped), gradient.reshape(grouped.shape)
        if neighbours and height * width <= _SMALL:
            behind = torch.stack([weights[:, :-s].diag_embed(s) for s, weights in neighbours]).sum(
                0
            )
            gradient = torch.baddbmm(
                gradient.flatten(1, 2), grouped.flatten(1, 2), behind + behind.mT
            ).view(grouped.shape)
            neighbours = []
        if not _in_turn(grouped):
            of_groups = [(s, weights[:, None, None]) for s, weights in neighbours]
            _add(out, gradient, grouped, constant.unsqueeze(1), slope.unsqueeze(1), of_groups)
            return out.view(x.shape), None, None
        for g, images in enumerate(grouped):
            of_group = [(s, weights[g]) for s, weights in neighbours]
            for i, image in enumerate(images):
                _add(out[g, i], gradient[g, i], image, constant[g], slope[g], of_group)
        return out.view(x.shape), None, None
