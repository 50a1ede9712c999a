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
from collections.abc import Collection, Sequence
from functools import partial
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn

from raydd.core.errors import ConfigError, unknown
from raydd.losses.statistics_matching import Layer, Layout
from raydd.networks.network import Shape
from raydd.networks.tap_grid import Grid, grid_of
from raydd.networks.tap_sums import Normalised, Sums

KINDS: dict[str, type[nn.Module]] = {"bn": nn.BatchNorm2d, "conv": nn.Conv2d}
_PROBED = 2
"""Images that tell what layers read: of two, one cannot be taken for all of them."""


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


class StatTap:
    """Observe a network: ``logits, statistics = tap(images, groups)``, the statistics ``[groups, 2, W]`` with gradient.

    ``patch``: side of the patches in pixels. ``kinds``: ``bn``, ``conv`` or both; layers stand in
    ``named_modules()`` order. ``layout``: which columns are whose. The network is called as it is
    (put it in eval mode); calling it directly observes nothing. :meth:`close`, or leaving a
    ``with`` block, removes the hooks. ``skip_silent``: names of layers that never run and are left
    out, beside those that the network says itself (``silent``; names that it lacks do no harm).
    ``ConfigError`` if no layer is of these kinds, one of them does not run exactly once or does not
    read one map of every image, or one that is left out does run.
    """

    def __init__(
        self,
        network: nn.Module,
        patch: int,
        kinds: Sequence[str] = ("bn", "conv"),
        shape: Shape | None = None,
        skip_silent: Collection[str] = (),
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
        self._skip_silent = {*skip_silent, *getattr(network, "silent", ())}
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
            raw = torch.cat([found[0] for found in self._found if found], -1)
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
        through, raw = Sums.apply(x, self._groups, self._grid(x) if patch else None)
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
        normalised, raw = Normalised.apply(x, output, scale, self._groups)
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
            if name in self._skip_silent:
                if times:
                    raise ConfigError(
                        f"layer '{name}' of network '{title}' runs; skip_silent is for layers that never do"
                    )
                continue
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
