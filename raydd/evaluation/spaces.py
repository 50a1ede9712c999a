"""The space that a protocol trains and tests students in, the same for every set (docs/methods/evaluation.md,
"Whitened protocols").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.artifacts.distilled_set import DistilledSet, Whitening
from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import KeyedRng
from raydd.core.units import Context, Data, Ref
from raydd.data.catalog import DatasetInfo
from raydd.evaluation.protocols import Protocol
from raydd.training.accuracy import RESIDENT_BYTES, TEST_BATCH, Batch, real_batches
from raydd.training.drawn_batches import DrawnBatches
from raydd.training.fit_whitening import FitWhitening, network_space
from raydd.training.recipe import Recipe
from raydd.training.students import ResidentSet, TrainingSet

INPUT = "space"
"""What stages call the whitening among their inputs."""


def fit_of(protocol: Protocol, dataset: DatasetInfo) -> FitWhitening | None:
    """Return what fits a protocol's whitening on a data set; ``None`` if it has none."""
    if protocol.space == "normalised":
        return None
    return FitWhitening(seed=0, dataset=dataset.only("train"), space=protocol.space)


def check_space(made_in: str, protocol: Protocol, what: str) -> None:
    """Raise ``ConfigError`` if a set that is made in a whitened space would be judged in another.

    ``what``: the set, as a job has it.
    """
    if made_in not in ("normalised", protocol.space):
        raise ConfigError(
            f"{what} is made in the space '{made_in}', and protocol '{protocol.name}' judges in '{protocol.space}';"
            f" set evaluation.space={made_in}"
        )


def inputs_of(fit: FitWhitening | None) -> dict[str, Ref]:
    """Return the inputs that a stage of this space has for it."""
    return {} if fit is None else {INPUT: fit.refs()[0]}


@dataclass(frozen=True)
class JudgedSpace:
    """The space of one evaluation on one worker: ``whitening``, or ``None`` for the set's own space."""

    info: DatasetInfo
    whitening: Whitening | None
    device: torch.device

    @classmethod
    def of(cls, fit: FitWhitening | None, info: DatasetInfo, ctx: Context) -> JudgedSpace:
        """Return the space of a stage whose inputs are :func:`inputs_of`."""
        whitening = None if fit is None else fit.whitening(ctx.load(INPUT))
        return cls(info, whitening, ctx.device)

    def moved(self, distilled: DistilledSet) -> Callable[[Tensor], Tensor]:
        """Return what brings images ``[B, C, H, W]`` of a set's own network space into this one.

        ``DataError`` for a set that was made in another whitened space.
        """
        own, whitening = distilled.whitening, self.whitening
        if whitening is None:
            return as_they_are
        if own is not None:
            if own.per_image != whitening.per_image or own.matrix.shape != whitening.matrix.shape:
                raise DataError("the set was made in another whitened space than its protocol's")
            return as_they_are
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (distilled.mean, distilled.std)
        )
        return lambda images: whitening.apply(images.cpu() * std + mean).to(images.device)

    def training_set(self, distilled: DistilledSet, recipe: Recipe) -> TrainingSet:
        """Return the set as students see it in this space, on the device where it is small enough."""
        moved = self.moved(distilled)
        if 4 * distilled.seen * math.prod(distilled.shape) > RESIDENT_BYTES:
            whole: TrainingSet = distilled if moved is as_they_are else MovedSet(distilled, moved)

            def take(ids: Tensor) -> Batch:
                return moved(distilled.normalised(distilled.take(ids))), distilled.targets_of(ids)
        else:
            images, labels = distilled.tensors()
            whole = kept = ResidentSet(moved(images).to(self.device), labels.to(self.device))

            def take(ids: Tensor) -> Batch:
                here = ids.to(self.device)
                return kept.images[here], kept.labels[here]

        if recipe.draw == "epochs":
            return whole
        return DrawnBatches(distilled.labels_of(), take, by_class=recipe.draw == "classes")


@dataclass(frozen=True)
class MovedSet:
    """A set whose images are brought into another space as they are asked for: a training set."""

    distilled: DistilledSet
    moved: Callable[[Tensor], Tensor]

    def batches(self, epoch: int, size: int, rng: KeyedRng) -> Iterator[Batch]:
        """Yield an epoch, see :meth:`DistilledSet.batches`."""
        for images, labels in self.distilled.batches(epoch, size, rng):
            yield self.moved(images), labels


def whitened_batches(
    data: Data, info: DatasetInfo, fit: FitWhitening, ctx: Context
) -> Iterator[Batch]:
    """Yield a split's whitened images, float32, and labels in its own order, on the worker's device.

    Where they are few enough they are whitened once on each worker, and stay.
    """
    prepare = network_space(info, fit.whitening(ctx.load(INPUT)), ctx.device)
    if 4 * len(data) * math.prod(info.shape) > RESIDENT_BYTES:
        for images, labels in real_batches(data, ctx):
            yield prepare(images), labels
        return

    def whole() -> Tensor:
        ids = torch.arange(len(data)).split(TEST_BATCH)
        return torch.cat([prepare(data.take(part).to(ctx.device)) for part in ids])

    images = ctx.cached(("whitened", data.digest, fit.refs()[0].key), whole)
    labels = data.labels.to(ctx.device)
    yield from zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True)


def as_they_are(images: Tensor) -> Tensor:
    """Return images that are in network space already."""
    return images
