"""What IDM and BACON share: networks of a queue, stored images that hold several, an accuracy-weighted cross entropy,
and an optimiser that steps once per class (docs/methods/idm_bacon.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from raydd.artifacts.decoding import Partition
from raydd.core.errors import DataError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Ref
from raydd.data.memory import normalise
from raydd.losses import classes_cross_entropy, distribution_matching_loss
from raydd.methods.matching.class_steps import ClassSteps
from raydd.methods.matching.embedding_matching import EmbeddingMatching, Known, Moments, Side
from raydd.training.train_queue import TrainQueue, network_unit


class BlockFacts(NamedTuple):
    """A block's class ids ``[K]``, and its steps."""

    labels: Tensor
    steps: ClassSteps


@dataclass(frozen=True, kw_only=True)
class MatchUnderQueue(EmbeddingMatching):
    """IDM's loop.

    ``queue``: the stage whose networks are matched. ``factor``: a stored image is so many rows and
    columns of images. ``init_tiling``: real images at the start, each a tile (``collage``) or cut
    into tiles (``full``). ``ce_weight``: of the cross entropy, times an accuracy in per cent;
    ``meter_reset_period``: iterations after which accuracies are forgotten (null: never).
    """

    real_chunk: ClassVar[int | None] = 500  # of 5,000 per class at one image per class

    queue: TrainQueue
    factor: int
    init_tiling: str
    ce_weight: float
    meter_reset_period: int | None

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the networks that are matched."""
        return _lives(self.queue, self.iterations)

    def networks(self, ctx: Context) -> Callable[[int], Known]:
        """Return the network of the queue that an update matches, and the weight of its cross
        entropy, float32 ``[]``.
        """
        plan = self.queue.queue.plan
        settings = self.queue.queue

        def read(t: int) -> Known:
            network, _, row = plan.reading(t)
            found = ctx.load(network_unit(network), slice(row, row + 1))
            seen = settings.model_train_steps * min(settings.trained_bs, len(ctx.data["train"]))
            percent = plan.percent(t, self.meter_reset_period, found["correct"][0], seen)
            return found["weights"][0].float(), torch.tensor(self.ce_weight * percent)

        return read

    @property
    def expansion(self) -> int:
        """Images that a stored one holds."""
        return self.factor**2

    def images_of(self, images: Tensor) -> Tensor:
        """Return the tiles of each class's images, enlarged: all first tiles, all second ones, ..."""
        count, ipc = images.shape[:2]
        seen = Partition(factor=self.factor).take({"images": images.flatten(0, 1)})
        return seen.unflatten(0, (self.expansion, count, ipc)).transpose(0, 1).flatten(1, 2)

    def objective(self, features: Tensor, real: Moments, side: Side) -> Tensor:
        """Return the squared distance of mean features, and the weighted cross entropy."""
        return distribution_matching_loss(real[0], features) + self.weighted_entropy(features, side)

    def weighted_entropy(self, features: Tensor, side: Side) -> Tensor:
        """Return the cross entropy of what is seen, by the network's own last layer, weighted."""
        logits = side.network.classifier(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        entropy = classes_cross_entropy(logits, side.facts.labels)
        return side.known[0].to(entropy) * entropy

    def facts(self, unit: str, device: torch.device) -> BlockFacts:
        """Return a block's labels and steps."""
        block, present = self.blocks[unit], list(self.present)
        places = [present.index(c) for c in block]
        steps = ClassSteps.of(places, len(present), self.momentum, self.ipc, device)
        return BlockFacts(torch.tensor(block, device=device), steps)

    def ready(self, state: Tensors, facts: BlockFacts) -> Tensors:
        """Return the state when each class has its turn: those before it made their steps."""
        images, momentum = facts.steps.before(state["images"], state["momentum"], self.lr_img)
        return {"images": images, "momentum": momentum}

    def move(self, state: Tensors, gradient: Tensor, facts: BlockFacts) -> Tensors:
        """Return the state after the classes' own steps and those of the classes behind them."""
        own = super().move(state, gradient, facts)
        images, momentum = facts.steps.after(own["images"], own["momentum"], self.lr_img)
        return {"images": images, "momentum": momentum}

    def start(self, block: Sequence[int], ctx: Context) -> Tensor:
        """Return a block's first images ``[K * ipc, C, H, W]``: collages of real ones, drawn for
        each tile anew, whole real ones, or normal noise.
        """
        if self.init_from == "noise" or self.init_tiling == "full" or self.factor == 1:
            return super().start(block, ctx)
        return torch.cat([self._collages(self.memory(block, ctx).of(c), c, ctx) for c in block])

    def _collages(self, of_class: Tensor, c: int, ctx: Context) -> Tensor:
        """Return images ``[ipc, C, H, W]`` of ``factor²`` draws of ``ipc`` real images of a class each, made small."""
        if len(of_class) < self.ipc:
            raise DataError(
                f"class {c} has {len(of_class)} training images; init=real needs ipc={self.ipc}"
            )
        draws, tiles = ctx.rng("init", c), []
        height, width = (side // self.factor for side in self.dataset.shape[1:])
        for _ in range(self.expansion):
            chosen = torch.randperm(len(of_class), generator=draws)[: self.ipc]
            whole = normalise(
                of_class[chosen.to(of_class.device)], self.dataset.mean, self.dataset.std
            )
            tiles.append(
                F.interpolate(whole, (height, width), mode="bilinear", align_corners=False)
            )
        return Partition(factor=self.factor).pack(torch.cat(tiles))


@lru_cache(maxsize=64)
def _lives(queue: TrainQueue, iterations: int) -> Mapping[str, Ref]:
    names = map(network_unit, queue.queue.plan.needed(iterations))
    return {name: Ref(queue, name) for name in names}
