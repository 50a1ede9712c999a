"""Means and variances of what enters the convolutions and batch norms of a network
(docs/methods/recovery.md, "Statistics").

Hooks look at a layer's input ``X [B, K, H, W]``. Channels: mean and variance over images and
pixels. Convolutions also have patches: ``X`` is brought to a multiple of ``patch`` pixels
(bilinear), cut into a grid of cells, and each cell has one mean and one variance over images,
channels and pixels. A batch may hold several groups, each with statistics of its own.

Every layer costs one pass of sums in the forward (the sums over images are shared by channels and
patches) and one multiply-add per value in the backward, five and nine where maps are resized; no
copy of the input is kept, and none is resized. A frozen batch norm is differentiated together with
its statistics, which costs less than its own backward pass does on a CPU. On a GPU kernels of our
own take the sums and their gradient in one pass each (:mod:`raydd.networks.tap_kernels`).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from types import ModuleType, TracebackType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.core.errors import ConfigError, unknown
from raydd.core.kernels import kernels_run
from raydd.losses.statistics_matching import Layer, Layout
from raydd.networks.network import Shape
from raydd.networks.tap_grid import Grid, grid_of

KINDS: dict[str, type[nn.Module]] = {"bn": nn.BatchNorm2d, "conv": nn.Conv2d}

_EPS = 2.0**-10

_PROBED = 2
"""Images that tell what layers read: of two, one cannot be taken for all of them."""


_IN_TURN = 1 << 16
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
    return grouped.device.type == "cpu" and grouped[0, 0].numel() >= _IN_TURN


def _summed(grouped: Tensor, shifts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return ``[G, 2, K, M]``, sums and sums of squares over the images of ``grouped [G, n, K,
    M]``; and for each shift ``[S, G, M]``.

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


class _Normalised(torch.autograd.Function):
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
        out = _by_row(x.reshape(images * channels, -1), slope, constant).view(images, channels, -1)
        return (
            out.addcmul_(gradient.reshape(out.shape), scale[:, None]).view(x.shape),
            None,
            None,
            None,
        )


def _by_row(maps: Tensor, slope: Tensor, constant: Tensor) -> Tensor:
    """Return ``slope * maps + constant``, each row of ``maps [N, M]`` by its own ``[N]``."""
    if maps.device.type != "cpu":
        return torch.addcmul(constant[:, None], slope[:, None], maps)
    # A CPU does this fastest as a batch norm whose channels are the rows. The sum of its variance
    # and eps is 1 without rounding: an eps of zero is not allowed everywhere.
    zeros, rest = torch.zeros_like(slope), torch.full_like(slope, 1 - _EPS)
    return F.batch_norm(maps.unsqueeze(0), zeros, rest, slope, constant, eps=_EPS).squeeze(0)


def _ours(hook: object) -> bool:
    return isinstance(hook, partial) and isinstance(getattr(hook.func, "__self__", None), StatTap)


def _frozen(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return the derivative ``[K]`` of a batch norm with fixed statistics and parameters, ``None``
    for anything else.
    """
    if (
        not isinstance(module, nn.BatchNorm2d)
        or type(module).forward is not nn.BatchNorm2d.forward
        or "forward" in vars(module)
    ):
        return None  # timm's have activations within
    if (
        module.training
        or module.running_mean is None
        or module.running_var is None
        or not x.requires_grad
    ):
        return None
    if module.running_var.dtype != x.dtype or any(
        p.requires_grad for p in module.parameters(recurse=False)
    ):
        return None
    # What a hook of somebody else does to the input or the output has a derivative too.
    if not all(map(_ours, (*module._forward_pre_hooks.values(), *module._forward_hooks.values()))):
        return None
    scale = torch.rsqrt(module.running_var + module.eps)
    return scale if module.weight is None else scale.mul_(module.weight)


class _Sums(torch.autograd.Function):
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


class StatTap:
    """Observe a network: ``logits, statistics = tap(images, groups)``, the statistics ``[groups, 2, W]`` with gradient.

    ``patch``: side of the patches in pixels. ``kinds``: ``bn``, ``conv`` or both; layers stand in
    ``named_modules()`` order. ``layout``: which columns are whose. The network is called as it is
    (put it in eval mode); calling it directly observes nothing. :meth:`close`, or leaving a
    ``with`` block, removes the hooks. ``ConfigError`` if no layer is of these kinds, or one of them
    does not run exactly once or does not read one map of every image.
    """

    def __init__(
        self,
        network: nn.Module,
        patch: int,
        kinds: Sequence[str] = ("bn", "conv"),
        shape: Shape | None = None,
    ) -> None:
        for kind in kinds:
            if kind not in KINDS:
                raise unknown("kind of layer", kind, KINDS)
        if patch < 1:
            raise ConfigError(f"patch={patch}: patches need a side of at least 1 pixel")
        types = tuple(KINDS[kind] for kind in kinds)
        self.network, self.patch = network, patch
        self._modules = [
            (name, module) for name, module in network.named_modules() if isinstance(module, types)
        ]
        title = getattr(network, "name", type(network).__name__)
        if not self._modules:
            raise ConfigError(f"network '{title}' has no layer of the kinds {', '.join(kinds)}")
        self._groups = 0  # 0: not observing
        self._found: list[list[Tensor]] = []
        self._seen: list[
            tuple[weakref.ref[Tensor], int, int, Tensor]
        ] = []  # inputs, their versions and patches, what was found
        self._sizes: list[tuple[int, ...]] = [()] * len(self._modules)
        self._grids: dict[tuple[int, int, torch.device, torch.dtype], Grid] = {}
        self._inverse = torch.empty(0)  # 1 / values per image of each column
        self._waiting: tuple[Tensor, Tensor] | None = (
            None  # input of the batch norm that runs now, and its derivative
        )
        self._hooks = [
            module.register_forward_pre_hook(partial(self._look, i))
            for i, (_, module) in enumerate(self._modules)
        ]
        norms = [
            (i, module)
            for i, (_, module) in enumerate(self._modules)
            if isinstance(module, nn.BatchNorm2d)
        ]
        self._hooks += [
            module.register_forward_hook(partial(self._look_after, i)) for i, module in norms
        ]
        try:
            self.layout = self._probe(
                title, shape if shape is not None else cast(Shape, network.shape)
            )
        except BaseException:
            self.close()
            raise

    def __call__(self, images: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, classes]`` and statistics ``[groups, 2, W]`` of groups of equal size,
        consecutive in ``images``.
        """
        if groups < 1 or len(images) % groups:
            raise ConfigError(
                f"{len(images)} images cannot be cut into {groups} groups of equal size"
            )
        try:
            logits = self._observe(images, groups)
            raw = torch.cat([found[0] for found in self._found], -1)
        finally:
            self._found, self._seen = [], []
        if self._inverse.device != raw.device or self._inverse.dtype != raw.dtype:
            self._inverse = self._inverse.to(raw)
        scaled = raw * (self._inverse / (len(images) // groups))
        mean = scaled[:, 0]
        # Rounding may leave a constant channel a variance below zero.
        return logits, torch.stack([mean, (scaled[:, 1] - mean * mean).clamp_min(0)], 1)

    def running(self) -> Tensor:
        """Return ``[2, W]``: the running statistics of the batch norms, zero in the columns of convolutions."""
        parts: dict[str, Tensor] = {}
        for name, module in self._modules:
            if isinstance(module, nn.BatchNorm2d):
                if module.running_mean is None or module.running_var is None:
                    raise ConfigError(f"batch norm '{name}' keeps no running statistics")
                parts |= {f"{name}/mu": module.running_mean, f"{name}/var": module.running_var}
        if not parts:
            like = next(self.network.parameters())
            return torch.zeros(2, self.layout.width, dtype=like.dtype, device=like.device)
        return self.layout.join(parts, what="the running statistics")

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> StatTap:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _observe(self, images: Tensor, groups: int) -> Tensor:
        self._found = [[] for _ in self._modules]
        self._groups = groups
        try:
            return cast(Tensor, self.network(images))
        finally:
            self._groups, self._waiting = 0, None

    def _look(
        self, index: int, module: nn.Module, inputs: tuple[Any, ...]
    ) -> tuple[Any, ...] | None:
        if not self._groups:
            return None
        x: Tensor = inputs[0]
        self._sizes[index] = tuple(x.shape)
        patch = self.patch if isinstance(module, nn.Conv2d) else 0
        # A shortcut's convolution reads what the block's first one read, unless it was changed in place meanwhile.
        for tensor, version, its_patch, known in self._seen:
            if tensor() is x and its_patch == patch and version == x._version:
                self._found[index].append(known)
                return None
        scale = _frozen(module, x)
        if scale is not None:
            self._waiting = x, scale
            return (x.detach(), *inputs[1:])
        through, raw = _Sums.apply(x, self._groups, self._grid(x) if patch else None)
        self._keep(index, x, patch, raw)
        return (through, *inputs[1:])

    def _grid(self, x: Tensor) -> Grid:
        """Return the patches of a layer's input; known ones are looked up here, so that what is
        compiled or recorded makes none.
        """
        of = (x.shape[2], x.shape[3], x.device, x.dtype)
        if of not in self._grids:
            self._grids[of] = grid_of(x.shape[2], x.shape[3], self.patch, x.device, x.dtype)
        return self._grids[of]

    def _look_after(
        self, index: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
    ) -> Tensor | None:
        if self._waiting is None:
            return None
        (x, scale), self._waiting = self._waiting, None
        normalised, raw = _Normalised.apply(x, output, scale, self._groups)
        self._keep(index, x, 0, raw)
        return cast(Tensor, normalised)

    def _keep(self, index: int, x: Tensor, patch: int, raw: Tensor) -> None:
        self._found[index].append(raw)
        if torch.compiler.is_compiling() or not x.is_inference():  # whose changes are not counted
            self._seen = [entry for entry in self._seen if entry[0]() is not None] + [
                (weakref.ref(x), x._version, patch, raw)
            ]

    def _probe(self, title: str, shape: Shape) -> Layout:
        """Learn the layers' widths from a few images; the network's statistics stay as they are."""
        parameter = next(self.network.parameters())
        modes = {module: module.training for module in self.network.modules()}
        try:
            self.network.eval()
            with torch.no_grad():
                self._observe(
                    torch.zeros(_PROBED, *shape, dtype=parameter.dtype, device=parameter.device), 1
                )
            found = self._found
        finally:
            for module, mode in modes.items():
                module.training = mode
            self._found, self._seen = [], []
        layers, counts = [], []
        for (name, module), times, size in zip(self._modules, found, self._sizes, strict=True):
            if len(times) != 1:
                raise ConfigError(
                    f"layer '{name}' of network '{title}' runs {len(times)} times in a forward pass; it must run once"
                )
            count, channels, height, width = size
            if count != _PROBED:
                raise ConfigError(
                    f"layer '{name}' of network '{title}' reads {count} maps of {_PROBED} images; it must read one of"
                    " each"
                )
            kind = "conv" if isinstance(module, nn.Conv2d) else "bn"
            cells = -(-height // self.patch) * -(-width // self.patch) if kind == "conv" else 0
            layers.append(Layer(name, kind, channels, cells))
            counts += [height * width] * channels + [channels * self.patch**2] * cells
        self._inverse = 1 / torch.tensor(counts, dtype=torch.float64)
        return Layout(tuple(layers))
