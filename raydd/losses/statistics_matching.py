"""What SRe2L, G-VBSM and EDC minimise: distances between the layers' statistics and those of real images.

Statistics of all observed layers of a network stand side by side in one tensor ``[..., 2, W]``: row
0 holds means, row 1 variances; a :class:`Layout` says which columns are whose. Every norm is a
plain Euclidean one, every variance is divided by n (docs/methods/recovery.md, "Statistics" and
"Running statistics").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from raydd.core.errors import ConfigError, DataError

NAMES = (("mu", "var"), ("pmu", "pvar"))
"""What files call the mean and the variance of channels, and of patches."""

_BLOCK = 64
"""Columns that are summed at once: long and short sums take the same few kernels, in a fixed order
and without atomics.
"""


@dataclass(frozen=True)
class Layer:
    """An observed layer: ``kind`` ``bn`` or ``conv``, ``channels`` of its input, ``cells`` of its
    patch grid (0: no patches).
    """

    name: str
    kind: str
    channels: int
    cells: int = 0

    @property
    def width(self) -> int:
        """Columns of the layer: its channels, then its cells."""
        return self.channels + self.cells


class _Sums(NamedTuple):
    """How columns are added up, as indices on one device.

    ``blocks [blocks, 64]``: columns, ``W`` standing for a zero. ``norms [L, 2, most]``: the blocks
    of each layer's channels and cells, the number of blocks standing for a zero. ``owners [W]``:
    ``2 * layer`` for a channel, one more for a cell.
    """

    blocks: Tensor
    norms: Tensor
    owners: Tensor


@dataclass(frozen=True)
class Layout:
    """Which columns of a tensor ``[..., 2, W]`` belong to which layer, in the order of the network's modules."""

    layers: tuple[Layer, ...]
    _on: dict[torch.device, _Sums] = field(
        default_factory=dict, init=False, repr=False, compare=False, hash=False
    )

    @cached_property
    def width(self) -> int:
        """Number of columns."""
        return sum(layer.width for layer in self.layers)

    @cached_property
    def spans(self) -> tuple[tuple[Layer, slice, slice], ...]:
        """For each layer the columns of its channels and of its cells."""
        found, start = [], 0
        for layer in self.layers:
            middle, stop = start + layer.channels, start + layer.width
            found.append((layer, slice(start, middle), slice(middle, stop)))
            start = stop
        return tuple(found)

    def columns(self, *, kind: str | None = None, patches: bool | None = None) -> Tensor:
        """Return a mask ``[W]``: the columns of layers of one kind, and of cells alone or channels alone."""
        mask = torch.zeros(self.width, dtype=torch.bool)
        for layer, channels, cells in self.spans:
            if kind in (None, layer.kind):
                mask[channels] = patches is not True
                mask[cells] = patches is not False
        return mask

    def layer_of(self, device: torch.device) -> Tensor:
        """Return the place ``[W]`` of the layer that each column belongs to."""
        return self.sums(device).owners // 2

    def sums(self, device: torch.device) -> _Sums:
        """Return how columns are added up to norms, kept for each device."""
        if device not in self._on:
            spans = [
                (2 * i + k, span)
                for i, (_, *both) in enumerate(self.spans)
                for k, span in enumerate(both)
            ]
            cut = [
                (owner, range(at, min(at + _BLOCK, s.stop)))
                for owner, s in spans
                for at in range(s.start, s.stop, _BLOCK)
            ]
            members: dict[int, list[int]] = {owner: [] for owner, _ in spans}
            blocks, owners = (
                torch.full((len(cut), _BLOCK), self.width),
                torch.empty(self.width, dtype=torch.int64),
            )
            for row, (owner, columns) in enumerate(cut):
                members[owner].append(row)
                blocks[row, : len(columns)] = torch.tensor(columns)
                owners[columns.start : columns.stop] = owner
            norms = torch.full((len(spans), max(map(len, members.values()))), len(cut))
            for owner, rows in members.items():
                norms[owner, : len(rows)] = torch.tensor(rows)
            self._on[device] = _Sums(
                blocks.to(device), norms.unflatten(0, (-1, 2)).to(device), owners.to(device)
            )
        return self._on[device]

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Return ``<layer>/mu``, ``var`` ``[..., channels]`` and, for layers with patches, ``pmu``,
        ``pvar`` ``[..., cells]`` (views).
        """
        parts = {}
        for layer, channels, cells in self.spans:
            for columns, names in zip(
                (channels, cells) if layer.cells else (channels,), NAMES, strict=False
            ):
                for row, name in enumerate(names):
                    parts[f"{layer.name}/{name}"] = values[..., row, columns]
        return parts

    def join(
        self,
        parts: Mapping[str, Tensor],
        *,
        what: str = "the statistics",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return ``[..., 2, W]`` of what :meth:`split` returns; layers without an entry stay zero.

        ``DataError`` naming ``what`` for a layer whose entries are not all there or not of its
        width, or if no layer has any.
        """
        leading: tuple[int, ...] | None = None
        out = torch.empty(0)
        for layer, channels, cells in self.spans:
            named = [
                (n, row, columns)
                for columns, pair in zip((channels, cells), NAMES, strict=True)
                for row, n in enumerate(pair)
            ]
            named = named if layer.cells else named[:2]
            present = [f"{layer.name}/{n}" in parts for n, _, _ in named]
            if not any(present):
                continue
            if not all(present):
                missing = [n for (n, _, _), there in zip(named, present, strict=True) if not there]
                raise DataError(f"{what}: layer '{layer.name}' lacks {', '.join(missing)}")
            for name, row, columns in named:
                part = parts[f"{layer.name}/{name}"]
                if leading is None:
                    leading = tuple(part.shape[:-1])
                    out = torch.zeros((*leading, 2, self.width), dtype=dtype, device=part.device)
                need = (*leading, columns.stop - columns.start)
                if tuple(part.shape) != need:
                    raise DataError(
                        f"{what}: '{layer.name}/{name}' is {list(part.shape)}, this network needs {list(need)}"
                    )
                out[..., row, columns] = part
        if leading is None:
            raise DataError(
                f"{what} hold none of the layers {', '.join(layer.name for layer in self.layers[:4])}, …"
            )
        return out


class _Distances(torch.autograd.Function):
    """For ``[G, 2, W]`` the sum of each layer's Euclidean norms, ``[G, L]``, those of variances
    (row 1) times a weight; the derivative of a norm at zero is zero.
    """

    @staticmethod
    def forward(ctx: Any, difference: Tensor, sums: _Sums, variance_weight: float) -> Tensor:
        parts = pad(difference, (0, 1))[..., sums.blocks].double().square_().sum(-1)
        norms = pad(parts, (0, 1))[..., sums.norms].sum(-1).sqrt_()  # [G, 2, L, 2]
        ctx.save_for_backward(difference, norms.to(difference.dtype))
        ctx.owners, ctx.variance_weight = sums.owners, variance_weight
        if variance_weight != 1:
            norms = torch.stack([norms[:, 0], norms[:, 1] * variance_weight], 1)
        return norms.sum((1, 3)).to(difference.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        difference, norms = ctx.saved_tensors
        scale = torch.where(norms > 0, gradient[:, None, :, None] / norms, 0)
        if ctx.variance_weight != 1:
            scale[:, 1] *= ctx.variance_weight
        return difference * scale.flatten(2)[..., ctx.owners], None, None


def layer_distances(
    values: Tensor, reference: Tensor, layout: Layout, variance_weight: float = 1.0
) -> Tensor:
    """Return ``[G, L]``: per layer the sum of ``||reference - values||`` over its statistics (two
    for ``bn``, four with patches), those of variances times ``variance_weight``.

    ``values``: ``[G, 2, W]``. ``reference``: ``[G, 2, W]`` or ``[2, W]``. Differentiable in
    ``values``, with derivative zero where a norm is zero. Summed in float64, in a fixed order and
    without atomics.
    """
    if values.shape[-2:] != (2, layout.width) or reference.shape[-2:] != (2, layout.width):
        raise ConfigError(
            f"statistics must be [G, 2, {layout.width}] for this network, got {list(values.shape)} and"
            f" {list(reference.shape)}"
        )
    distances: Tensor = _Distances.apply(
        values - reference, layout.sums(values.device), variance_weight
    )
    return distances


def smooth(
    values: Tensor, running: Tensor, momentum: float, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the statistics to match, and the running ones after this batch, both ``[G, 2, W]``
    (docs/methods/recovery.md, "Running statistics").

    The running ones become ``momentum * running + (1 - momentum) * values``; what is matched has
    their value and the gradient of ``values``, undamped. ``kept``: ``[G, W]``, false where a
    dropped layer's running statistics stay as they are.
    """
    now = values.detach()
    moved = momentum * running + (1 - momentum) * now
    if kept is not None:
        moved = torch.where(kept.unsqueeze(-2), moved, running)
    return moved + (values - now), moved


def class_targets(table: Tensor, labels: Tensor) -> Tensor:
    """Return ``[G, 2, W]``: the mean of the images' class statistics. ``table``: ``[C, 2, W]``;
    ``labels``: ``[G, s]``.
    """
    return table[labels.to(table.device)].mean(1)


def draw_kept(generator: torch.Generator, layout: Layout, drop_rate: float) -> Tensor:
    """Draw which layers count ``[L]``: each ``conv`` is dropped with probability ``drop_rate``, a ``bn`` never."""
    drawn = torch.rand(len(layout.layers), generator=generator, dtype=torch.float64) < 1 - drop_rate
    return drawn | torch.tensor([layer.kind != "conv" for layer in layout.layers])


def swap_patches(table: Tensor, layout: Layout) -> Tensor:
    """Return a table whose patch means and patch variances are exchanged, as in the published class
    files (docs/methods/recovery.md, "Files of statistics").
    """
    return torch.where(layout.columns(patches=True).to(table.device), table.flip(-2), table)


def matching_loss(
    values: Tensor,
    running: Tensor,
    layout: Layout,
    *,
    overall: Tensor | None,
    classes: Tensor | None = None,
    class_weight: float = 0.5,
    momentum: float = 0.0,
    first_multiplier: float = 10.0,
    kept: Tensor | None = None,
    variance_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum over layers of each group ``[G]``, and the running statistics ``[G, 2, W]`` after it.

    ``values``: of the groups' images, with gradient; ``running``: zeros at the start,
    ``[G, 2, W]``. ``overall``: the whole data set's ``[2, W]`` (BN: the network's own);
    ``classes``: targets ``[G, 2, W]``. A layer costs ``(1 - class_weight)`` of its distance to
    ``overall`` plus ``class_weight`` of that to ``classes``; the whole of the one that is given
    where the other is ``None`` (SRe2L and G-VBSM have no classes; EDC's local mode of ImageNet-1k
    nothing but them). The first layer counts ``first_multiplier`` times. ``kept``: ``[G, L]`` or
    ``[L]``, false for layers that are dropped. ``momentum`` 0: no memory. ``variance_weight``: of
    distances of variances (DWA).
    """
    columns = None
    if kept is not None:
        kept = kept.to(values.device).expand(len(values), len(layout.layers))
        columns = kept[:, layout.layer_of(values.device)]
    matched, moved = smooth(values, running, momentum, columns)
    if overall is None and classes is None:
        raise ConfigError(
            "nothing to match: neither the data set's statistics nor the classes' are given"
        )
    distances = values.new_zeros(())
    for reference, weight in ((overall, 1 - class_weight), (classes, class_weight)):
        share = weight if overall is not None and classes is not None else 1.0
        if reference is not None and share:
            distances = distances + share * layer_distances(
                matched, reference, layout, variance_weight
            )
    if kept is not None:
        distances = distances * kept
    # The plain sum is exact for packed groups; the first layer is one column.
    return distances.sum(-1) + (first_multiplier - 1) * distances[..., 0], moved
