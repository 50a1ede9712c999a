"""Differentiable siamese augmentation (arXiv 2102.08259; docs/methods/dc_dsa.md, "Siamese augmentation").

A transform is drawn once (:func:`draw`) and is then a pure function of the images, so that real and
synthetic images of a class go through the same one. Drawing is on the CPU; a transform holds a few
numbers.

    transform = draw("color_crop_cutout_flip_scale_rotate", rng, size=(28, 28))
    real, synthetic = transform(real), transform(synthetic)
    batches = apply_classes([draw(strategy, rng_of(c), size=(28, 28)) for c in classes], batches)    # [K, B, C, H, W]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raydd.augment.operations import OPERATIONS, apply_operation
from raydd.core.errors import ConfigError, nearest

DEFAULT_STRATEGY = "color_crop_cutout_flip_scale_rotate"


Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DsaRanges:
    """How far each operation may go.

    ``brightness``, ``saturation``, ``contrast``: widths of their ranges. ``crop``, ``cutout``:
    parts of a side. ``flip``: probability. ``scale``: largest factor, its inverse the smallest.
    ``rotate``: degrees to either side.
    """

    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    crop: float = 0.125
    cutout: float = 0.5
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0


@dataclass(frozen=True)
class DsaTransform:
    """Operations with their numbers: a pure, differentiable function of images ``[B, C, H, W]``.

    ``values``: for each operation, in order, float64 ``[P, k]`` on the CPU; P is 1 (siamese: all
    images share them) or B.
    """

    size: tuple[int, int]
    operations: tuple[str, ...] = ()
    values: tuple[Tensor, ...] = ()

    @property
    def count(self) -> int:
        """How many images have numbers of their own: 1 for a siamese transform, which takes any batch."""
        return self.values[0].shape[0] if self.values else 1

    def __call__(self, x: Tensor) -> Tensor:
        """Return the transformed images."""
        if not self.operations:
            return x
        return apply_classes((self,), x.unsqueeze(0)).squeeze(0)


def parse_strategy(strategy: str | None) -> tuple[str, ...]:
    """Return the operations of ``"color_crop_flip"``; none for ``None``, ``""`` or ``"none"``.

    Raises ``ConfigError`` for an unknown operation (with the nearest match) or one that comes twice.
    """
    if strategy is None or strategy.lower() in ("", "none"):
        return ()
    operations = tuple(strategy.split("_"))
    for operation in operations:
        if operation not in OPERATIONS:
            hint = nearest(operation, OPERATIONS)
            allowed = ", ".join(OPERATIONS)
            raise ConfigError(
                f"unknown DSA operation '{operation}' in '{strategy}'{hint}; allowed, joined with '_': {allowed}, or"
                " none"
            )
    if len(set(operations)) < len(operations):
        raise ConfigError(f"DSA strategy '{strategy}' names an operation twice")
    return operations


def draw(
    strategy: str | None,
    generator: torch.Generator,
    *,
    size: tuple[int, int],
    siamese: bool = True,
    count: int = 1,
    mode: str = "S",
    ranges: DsaRanges | None = None,
) -> DsaTransform:
    """Draw a transform for images of ``size`` ``(H, W)`` from a CPU generator.

    Mode ``S`` picks one operation for the call, ``M`` takes all in order. Siamese: one set of
    numbers, whatever the batch; otherwise ``count`` sets, one per image, of the same operation.
    """
    return _draw(
        strategy, lambda: generator, size, 1 if siamese else count, mode, ranges or DsaRanges()
    )


def reference_cpu_draw(
    strategy: str | None,
    seed: int,
    *,
    size: tuple[int, int],
    siamese: bool = True,
    count: int = 1,
    mode: str = "S",
    ranges: DsaRanges | None = None,
) -> DsaTransform:
    """Draw the transform that the original code draws for images on a CPU.

    Siamese: each draw comes from a generator seeded anew with ``seed``, ``seed + 1``, …; otherwise
    all come from one, seeded with ``seed``. For parity with published numbers; jobs use
    :func:`draw` (docs/methods/dc_dsa.md, "Siamese augmentation").
    """
    if not siamese:
        return draw(
            strategy,
            torch.Generator().manual_seed(seed),
            size=size,
            siamese=False,
            count=count,
            mode=mode,
            ranges=ranges,
        )
    seeds = iter(range(seed, seed + 64))
    return _draw(
        strategy,
        lambda: torch.Generator().manual_seed(next(seeds)),
        size,
        1,
        mode,
        ranges or DsaRanges(),
    )


def _draw(
    strategy: str | None,
    source: Callable[[], torch.Generator],
    size: tuple[int, int],
    count: int,
    mode: str,
    ranges: DsaRanges,
) -> DsaTransform:
    operations = parse_strategy(strategy)
    if mode not in ("S", "M"):
        raise ConfigError(
            f"DSA mode must be 'S' (one operation per call) or 'M' (all), got '{mode}'"
        )
    if operations and mode == "S":
        operations = (operations[int(torch.randint(0, len(operations), (1,), generator=source()))],)
    return DsaTransform(
        size, operations, tuple(_draw_values(op, source, size, count, ranges) for op in operations)
    )


def _draw_values(
    operation: str,
    source: Callable[[], torch.Generator],
    size: tuple[int, int],
    count: int,
    r: DsaRanges,
) -> Tensor:
    """Return the numbers ``[count, k]`` that :mod:`raydd.augment.operations` reads, drawn in the original's order."""

    # Few numbers each time: numpy's operators cost a tenth of torch's, and give the same float64 values.
    def uniform() -> Numbers:
        return torch.rand(count, generator=source()).numpy().astype(np.float64)

    def integer(low: int, high: int) -> Numbers:
        return torch.randint(low, high + 1, (count,), generator=source()).numpy().astype(np.float64)

    return torch.from_numpy(np.stack(_columns(operation, uniform, integer, size, r), 1))


def _columns(
    operation: str,
    uniform: Callable[[], Numbers],
    integer: Callable[[int, int], Numbers],
    size: tuple[int, int],
    r: DsaRanges,
) -> list[Numbers]:
    if operation == "color":
        return [(uniform() - 0.5) * r.brightness, uniform() * r.saturation, uniform() + r.contrast]
    if operation == "crop":
        limits = [int(side * r.crop + 0.5) for side in size]
        return [integer(-limit, limit) for limit in limits]
    if operation == "cutout":
        holes = [int(side * r.cutout + 0.5) for side in size]
        centres = [integer(0, side - hole % 2) for side, hole in zip(size, holes, strict=True)]
        first = [centre - hole // 2 for centre, hole in zip(centres, holes, strict=True)]
        # Rows first..last inclusive; clamping keeps at least one.
        return [
            edge.clip(0, side - 1)
            for f, hole, side in zip(first, holes, size, strict=True)
            for edge in (f, f + hole - 1)
        ]
    if operation == "flip":
        return [(uniform() < r.flip).astype(np.float64)]
    if operation == "scale":
        return [uniform() * (r.scale - 1 / r.scale) + 1 / r.scale for _ in range(2)]
    return [(uniform() - 0.5) * 2 * r.rotate / 180 * math.pi]


def apply_classes(transforms: Sequence[DsaTransform], x: Tensor) -> Tensor:
    """Apply one transform to each class's images (or each network's batch): ``x [K, B, C, H, W]``.

    Classes with equal operations go through one kernel together; no class goes through an operation
    that is not its own. Raises ``ConfigError`` if counts or sizes do not fit.
    """
    _check(transforms, x)
    plans = [t.operations for t in transforms]
    distinct = list(dict.fromkeys(plans))
    if len(distinct) == 1:
        return _apply_alike(transforms, x)
    members = [[k for k, plan in enumerate(plans) if plan == wanted] for wanted in distinct]
    # Slices and concatenation, not index_put: their derivatives need no atomics.
    done = [
        _apply_alike([transforms[k] for k in ks], torch.stack([x[k] for k in ks])) for ks in members
    ]
    by_class = {
        k: images[i] for ks, images in zip(members, done, strict=True) for i, k in enumerate(ks)
    }
    return torch.stack([by_class[k] for k in range(len(plans))])


def _check(transforms: Sequence[DsaTransform], x: Tensor) -> None:
    if x.dim() != 5 or x.shape[0] != len(transforms):
        raise ConfigError(
            f"{len(transforms)} transforms need images [{len(transforms)}, B, C, H, W], got {list(x.shape)}"
        )
    for t in transforms:
        if t.size != tuple(x.shape[3:]):
            raise ConfigError(
                f"a transform drawn for {t.size[0]}x{t.size[1]} images got {x.shape[3]}x{x.shape[4]}"
            )
        if t.count not in (1, x.shape[1]):
            raise ConfigError(f"a transform with numbers for {t.count} images got {x.shape[1]}")


def _apply_alike(transforms: Sequence[DsaTransform], x: Tensor) -> Tensor:
    """Apply transforms with equal operations, in groups ``[G, n]`` of images that share their numbers."""
    shape = x.shape
    shared = all(t.count == 1 for t in transforms)
    if not shared:
        x = x.reshape(shape[0] * shape[1], 1, *shape[2:])
    for i, operation in enumerate(transforms[0].operations):
        values = torch.cat(
            [t.values[i] if shared else t.values[i].expand(shape[1], -1) for t in transforms]
        )
        x = apply_operation(operation, x, values)
    return x.reshape(shape)
