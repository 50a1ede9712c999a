"""A tiny unroll in float64, made as docs/methods/parity.md, "RaT-BPTT and PoDD" says, and its like of other sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.core.rng import KeyedRng, generator
from raydd.core.tensors import Tensors
from raydd.methods.unroll.distilled_batches import LABELS, PIXELS, DistilledBatches
from raydd.methods.unroll.engines import InnerBatch, Unroller, UnrollPlan
from raydd.methods.unroll.inner_steps import InnerOptimizer
from raydd.methods.unroll.weight_vector import WeightVector
from raydd.networks import create_network

REAL = 5


def grid(*sides: int) -> tuple[Tensor, ...]:
    """Return the indices of an array's places along each axis, in float64."""
    axes = [torch.arange(side, dtype=torch.float64) for side in sides]
    return torch.meshgrid(*axes, indexing="ij")


@dataclass(frozen=True, kw_only=True)
class TinyPoster(DistilledBatches):
    """Six windows of 8x8 pixels of a poster of 12x16, labels pooled from 2x2 cells of a map of 3x4."""

    @property
    def count(self) -> int:
        return 6

    @property
    def batch(self) -> int:
        return 4

    def start(self, rng: KeyedRng) -> Tensors:
        c, i, j = grid(3, 12, 16)
        poster = torch.sin(0.31 * c + 0.17 * i + 0.23 * j + 0.05 * i * j)
        c, i, j = grid(3, 3, 4)
        labels = 0.2 + (((12 * c + 4 * i + j) * 5) % 7) / 7
        return {PIXELS: poster, LABELS: labels}

    def materialise(self, parameters: Tensors) -> tuple[Tensor, Tensor]:
        poster, labels = parameters[PIXELS], parameters[LABELS]
        places = [(x, y) for x in range(3) for y in range(2)]
        images = [poster[:, 4 * y : 4 * y + 8, 4 * x : 4 * x + 8] for x, y in places]
        pooled = [labels[:, y : y + 2, x : x + 2].sum((1, 2)) for x, y in places]
        return torch.stack(images), torch.stack([u / u.sum() for u in pooled])

    def sample(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(6, generator=generator)[:4].sort().values

    def stored(self, parameters: Tensors) -> Tensors:
        return dict(parameters)


def same(images: Tensor) -> Tensor:
    return images


def tiny_unroller(optimizer: InnerOptimizer, *, compile: bool = False) -> Unroller:
    """Return an unroller of a ConvNet of two blocks of four channels for 8x8 images of three classes, in float64."""
    network = create_network("convnet2_w4", (3, 8, 8), 3, generator(0, "tiny")).double()
    with torch.no_grad():
        for q, (name, p) in enumerate(network.named_parameters()):
            s = torch.sin(1.3 * torch.arange(p.numel()).double() + 0.7 * q + 0.1).view(p.shape)
            scale = 0.3 if p.dim() > 1 else 0.1
            p.copy_(1 + 0.1 * s if "norm.weight" in name else scale * s)
    return Unroller(WeightVector(network, compile=compile), optimizer, compile=compile)


def weights_of(unroller: Unroller) -> Tensor:
    """Return the network's weights as they are now."""
    named = dict(unroller.network.network.named_parameters())
    return torch.cat([named[name].detach().flatten() for name in unroller.network.names])


def tiny_plan(unroller: Unroller, warmup: int, window: int) -> UnrollPlan:
    """Return the plan whose step t sees the images t, t + 2, t + 3 and t + 5 modulo 6."""
    ids = [sorted((t + d) % 6 for d in (0, 2, 3, 5)) for t in range(warmup + window)]
    return UnrollPlan(
        weights_of(unroller), [InnerBatch(torch.tensor(i), same) for i in ids], warmup
    )


def real_batch() -> tuple[Tensor, Tensor]:
    n, c, i, j = grid(REAL, 3, 8, 8)
    images = torch.cos(0.4 * n + 0.9 * c + 0.21 * i - 0.13 * j + 0.02 * i * j)
    return images, torch.arange(REAL) % 3


def outer_of(unroller: Unroller, chunk: int = REAL):  # type: ignore[no-untyped-def]
    images, labels = real_batch()
    return lambda theta: unroller.loss_and_gradient(theta, images, labels, chunk)


def separate_plan(unroller: Unroller, warmup: int, window: int, each: int = 2) -> UnrollPlan:
    """Return a plan in which every step sees images of its own, ``each`` of them."""
    ids = torch.arange((warmup + window) * each).split(each)
    return UnrollPlan(weights_of(unroller), [InnerBatch(i, same) for i in ids], warmup)


def separate_images(count: int, *, soft: bool) -> tuple[Tensor, Tensor]:
    """Return ``count`` images of 8x8 pixels in float64, and classes or soft targets."""
    draws = generator(5, "images")
    images = torch.randn((count, 3, 8, 8), generator=draws, dtype=torch.float64)
    targets = torch.rand((count, 3), generator=draws, dtype=torch.float64)
    return images, targets if soft else torch.arange(count) % 3


def rows(steps: Sequence[int], each: int = 2) -> Tensor:
    """Return the rows that some steps of :func:`separate_plan` see."""
    return torch.cat([torch.arange(s * each, (s + 1) * each) for s in steps])
