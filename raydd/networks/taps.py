"""Means and variances of what enters the convolutions and batch norms of a network (specification edc_sre2l_gvbsm_rded, 1.4).

Hooks look at a layer's input ``X [B, K, H, W]``. Channels: mean and variance over images and pixels. Convolutions also have
patches: ``X`` is brought to a multiple of ``patch`` pixels (bilinear), cut into a grid of cells, and each cell has one mean and
one variance over images, channels and pixels. A batch may hold several groups, each with statistics of its own.

Every layer costs one pass of sums in the forward (the sums over images are shared by channels and patches) and one multiply-add
per value in the backward; no copy of the input is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn

from raydd.core.errors import ConfigError, unknown
from raydd.losses.statistics import Layer, Layout
from raydd.networks.base import Shape

KINDS: dict[str, type[nn.Module]] = {"bn": nn.BatchNorm2d, "conv": nn.Conv2d}


@dataclass(frozen=True)
class _Axis:
    """One side of the patch grid.

    ``factor [q, n]``: resizing, or a smaller matrix of equal Gram matrix where there is one cell; ``None`` where nothing is
    resized. ``weights [cells, n]``: how often each line counts in each cell.
    """

    cells: int
    factor: Tensor | None
    weights: Tensor


@lru_cache(maxsize=256)
def _axis(length: int, patch: int, device: torch.device, dtype: torch.dtype) -> _Axis:
    cells = -(-length // patch)
    if cells * patch == length:
        return _Axis(cells, None, torch.eye(cells, dtype=dtype, device=device).repeat_interleave(patch, 1))
    size = cells * patch
    place = ((torch.arange(size, dtype=torch.float64) + 0.5) * (length / size) - 0.5).clamp_min(0)
    low = place.floor().long()
    resize = torch.zeros(size, length, dtype=torch.float64)
    lines = torch.arange(size)
    resize[lines, low] += 1 - (place - low)
    resize[lines, (low + 1).clamp_max(length - 1)] += place - low
    factor = torch.linalg.cholesky(resize.T @ resize).T.contiguous() if cells == 1 else resize
    return _Axis(cells, factor.to(device, dtype), resize.view(cells, patch, length).sum(1).to(device, dtype))


_SMALL = 64
"""Up to how many pixels a map of one cell is resized as one vector: batched products of such small matrices are slow."""


@lru_cache(maxsize=256)
def _as_one(height: int, width: int, patch: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Return ``(matrix [H W, H W], matrix @ matrix.T)`` that resizes flattened small maps of one cell, else ``None``."""
    rows, columns = (_axis(side, patch, torch.device("cpu"), torch.float64) for side in (height, width))
    if rows.cells * columns.cells > 1 or height * width > _SMALL:
        return None
    factors = [torch.eye(patch, dtype=torch.float64) if axis.factor is None else axis.factor for axis in (rows, columns)]
    matrix = torch.kron(*factors).T
    return matrix.to(device, dtype).contiguous(), (matrix @ matrix.T).to(device, dtype)


def _resized(x: Tensor, rows: _Axis, columns: _Axis, back: bool = False) -> Tensor:
    """Apply both axes' factors, or their transposes, to the last two dimensions."""
    if rows.factor is not None:
        x = (rows.factor.T if back else rows.factor) @ x
    if columns.factor is not None:
        x = x @ (columns.factor if back else columns.factor.T)
    return x


def _cell_sums(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return ``[..., rows * columns]``: sums over the cells of ``[..., H, W]``."""
    *leading, height, width = x.shape
    return x.reshape(*leading, rows, height // rows, columns, width // columns).sum((-3, -1)).flatten(-2)


def _over_cells(values: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """Return ``[..., height, width]``: each of the values ``[..., rows * columns]`` over its cell."""
    grid = values.unflatten(-1, (rows, columns))
    return grid.repeat_interleave(height // rows, -2).repeat_interleave(width // columns, -1)


def _sums_of_squares(x: Tensor) -> Tensor:
    """Return the sums of squares over dimension 1; which way is fast depends on the device."""
    return torch.linalg.vector_norm(x, dim=1).square_() if x.is_cuda else (x * x).sum(1)


class _Sums(torch.autograd.Function):
    """Sums and sums of squares ``[G, 2, K + P]`` of ``x [B, K, H, W]`` per group and channel, and per group and cell."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, patch: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.groups, ctx.patch = groups, patch
        _, channels, height, width = x.shape
        grouped = x.reshape(groups, -1, channels, height, width)
        maps = torch.stack([grouped.sum(1), _sums_of_squares(grouped)], 1)  # [G, 2, K, H, W]
        per_channel = maps.sum((-2, -1))
        if not patch:
            return per_channel
        rows, columns = (_axis(side, patch, x.device, x.dtype) for side in (height, width))
        over_channels = maps.sum(2)  # [G, 2, H, W]
        if rows.factor is None and columns.factor is None:
            return torch.cat([per_channel, _cell_sums(over_channels, rows.cells, columns.cells)], -1)
        first = (rows.weights @ over_channels[:, 0] @ columns.weights.T).flatten(1)
        small = _as_one(height, width, patch, x.device, x.dtype)
        if small is not None:
            second = _sums_of_squares((grouped.flatten(-2) @ small[0]).flatten(2)).sum(1, keepdim=True)
        else:
            second = _cell_sums(_sums_of_squares(_resized(grouped, rows, columns)).sum(1), rows.cells, columns.cells)
        return torch.cat([per_channel, torch.stack([first, second], 1)], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        groups, patch = ctx.groups, ctx.patch
        _, channels, height, width = x.shape
        grouped = x.reshape(groups, -1, channels, height, width)
        shift, slope = gradient[:, 0, :channels, None, None], 2 * gradient[:, 1, :channels, None, None]
        larger, small, slopes = None, None, gradient[:, 1, channels:]
        if patch:
            rows, columns = (_axis(side, patch, x.device, x.dtype) for side in (height, width))
            of_cells = gradient[:, :, channels:]
            if rows.factor is None and columns.factor is None:
                of_maps = _over_cells(of_cells, rows.cells, columns.cells, height, width).unsqueeze(2)
                shift, slope = shift + of_maps[:, 0], slope + 2 * of_maps[:, 1]
            else:
                grid = of_cells[:, 0].unflatten(-1, (rows.cells, columns.cells))
                shift = shift + (rows.weights.T @ grid @ columns.weights).unsqueeze(1)
                small = _as_one(height, width, patch, x.device, x.dtype)
                if small is None:
                    larger = _resized(grouped, rows, columns)
                    scale = _over_cells(2 * slopes, rows.cells, columns.cells, *larger.shape[-2:])
                    larger = _resized(larger.mul_(scale[:, None, None]), rows, columns, back=True)
        whole = (groups, channels, height, width)
        out = torch.addcmul(shift.expand(whole).contiguous().unsqueeze(1), grouped, slope.expand(whole).contiguous().unsqueeze(1))
        if larger is not None:
            out += larger
        elif small is not None:
            flat = (groups, -1, height * width)
            out.view(flat).baddbmm_(grouped.reshape(flat), 2 * slopes.unsqueeze(2) * small[1])
        return out.view(x.shape), None, None


class StatTap:
    """Observe a network: ``logits, statistics = tap(images, groups)``, the statistics ``[groups, 2, W]`` with gradient.

    ``patch``: side of the patches in pixels. ``kinds``: ``bn``, ``conv`` or both; layers stand in ``named_modules()`` order.
    ``layout``: which columns are whose. The network is called as it is (put it in eval mode); calling it directly observes
    nothing. :meth:`close`, or leaving a ``with`` block, removes the hooks. ``ConfigError`` if no layer is of these kinds, or
    one of them does not run exactly once.
    """

    def __init__(self, network: nn.Module, patch: int, kinds: Sequence[str] = ("bn", "conv"), shape: Shape | None = None) -> None:
        for kind in kinds:
            if kind not in KINDS:
                raise unknown("kind of layer", kind, KINDS)
        if patch < 1:
            raise ConfigError(f"patch={patch}: patches need a side of at least 1 pixel")
        types = tuple(KINDS[kind] for kind in kinds)
        self.network, self.patch = network, patch
        self._modules = [(name, module) for name, module in network.named_modules() if isinstance(module, types)]
        title = getattr(network, "name", type(network).__name__)
        if not self._modules:
            raise ConfigError(f"network '{title}' has no layer of the kinds {', '.join(kinds)}")
        self._groups = 0  # 0: not observing
        self._found: list[list[Tensor]] = []
        self._seen: list[tuple[weakref.ref[Tensor], int, Tensor]] = []
        self._sizes: list[tuple[int, ...]] = [()] * len(self._modules)
        self._inverse = torch.empty(0)  # 1 / values per image of each column
        self._hooks = [module.register_forward_pre_hook(partial(self._look, i)) for i, (_, module) in enumerate(self._modules)]
        self.layout = self._probe(title, shape if shape is not None else cast(Shape, network.shape))

    def __call__(self, images: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, classes]`` and statistics ``[groups, 2, W]`` of groups of equal size, consecutive in ``images``."""
        if groups < 1 or len(images) % groups:
            raise ConfigError(f"{len(images)} images cannot be cut into {groups} groups of equal size")
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _observe(self, images: Tensor, groups: int) -> Tensor:
        self._found = [[] for _ in self._modules]
        self._groups = groups
        try:
            return cast(Tensor, self.network(images))
        finally:
            self._groups = 0

    def _look(self, index: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self._groups:
            return
        x: Tensor = inputs[0]
        self._sizes[index] = tuple(x.shape)
        patch = self.patch if isinstance(module, nn.Conv2d) else 0
        # A shortcut's convolution reads what the block's first one read.
        for tensor, its_patch, known in self._seen:
            if tensor() is x and its_patch == patch:
                self._found[index].append(known)
                return
        raw: Tensor = _Sums.apply(x, self._groups, patch)
        self._found[index].append(raw)
        self._seen = [entry for entry in self._seen if entry[0]() is not None] + [(weakref.ref(x), patch, raw)]

    def _probe(self, title: str, shape: Shape) -> Layout:
        """Learn the layers' widths from one image; the network's statistics stay as they are."""
        parameter = next(self.network.parameters())
        modes = {module: module.training for module in self.network.modules()}
        try:
            self.network.eval()
            with torch.no_grad():
                self._observe(torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device), 1)
            found = self._found
        finally:
            for module, mode in modes.items():
                module.training = mode
            self._found, self._seen = [], []
        layers, counts = [], []
        for (name, module), times, size in zip(self._modules, found, self._sizes, strict=True):
            if len(times) != 1:
                raise ConfigError(f"layer '{name}' of network '{title}' runs {len(times)} times in a forward pass; it must run once")
            _, channels, height, width = size
            kind = "conv" if isinstance(module, nn.Conv2d) else "bn"
            cells = -(-height // self.patch) * -(-width // self.patch) if kind == "conv" else 0
            layers.append(Layer(name, kind, channels, cells))
            counts += [height * width] * channels + [channels * self.patch**2] * cells
        self._inverse = 1 / torch.tensor(counts, dtype=torch.float64)
        return Layout(tuple(layers))
