"""Networks trained on the whole training set: feature extractors, and the reference a distilled set
is measured against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor

from raydd.artifacts.distilled_set import Whitening
from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import KeyedRng, generator
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Data, Numerics, Ref, Stage, added
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import normalise
from raydd.data.split import BaseData
from raydd.networks import create_network
from raydd.networks.fast import fast_embed
from raydd.networks.network import Network
from raydd.training.accuracy import load_state, resident
from raydd.training.fit_whitening import FitWhitening, network_space
from raydd.training.sgd import Recipe, weights_for_test
from raydd.training.students import StudentTraining, training_of
from raydd.training.training_cost import training_cost

Batch = tuple[Tensor, Tensor]


class WholeSplit:
    """A real split as a training set: resident on the device where it fits, else streamed in a shuffled order."""

    def __init__(
        self, data: Data, info: DatasetInfo, ctx: Context, whitening: Whitening | None = None
    ) -> None:
        self.data, self.prepare = data, network_space(info, whitening, ctx.device)
        self.kept = resident(data, ctx)

    def batches(self, epoch: int, size: int, rng: KeyedRng) -> Iterator[Batch]:
        """Yield an epoch of images in network space and labels, shuffled by ``rng("batches", epoch)``."""
        order = rng("batches", epoch)
        for images, labels in self._shuffled(size, order):
            yield self.prepare(images), labels

    def _shuffled(self, size: int, order: torch.Generator) -> Iterator[Batch]:
        if self.kept is None:
            yield from cast(BaseData, self.data).stream(0, 1, batch=size, shuffle=order)
            return
        images, labels = self.kept["images"], self.kept["labels"]
        for ids in torch.randperm(len(labels), generator=order).to(labels.device).split(size):
            yield images[ids], labels[ids]


class Start(Protocol):
    """Weights that a training starts from: a frozen dataclass, part of the stage's key."""

    def fill(self, network: Network) -> None:
        """Write the weights into a fresh network in place; what it leaves (a last layer of other
        classes) stays fresh.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TrainNetwork(Stage):
    """Train ``count`` networks on the training set; each is a unit, each epoch a step.

    ``save_epoch``: the epoch (from 0) after which the training ends, its schedule being that of all the recipe's epochs
    (default: the last). ``start``: weights to start from instead of random ones. ``space``: the
    whitening of the images (``None``: they are normalised).

    Output of a unit: ``params.*`` (their moving average where the recipe has one) and ``buffers.*``
    of the network, ``train_accuracy`` of its last epoch, the number of ``images`` it was trained
    on. A recipe of no epochs gives a network as it started. ``dataset``: narrowed to ``train``.
    """

    phase: ClassVar[str] = "squeeze"

    dataset: DatasetInfo
    network: str
    recipe: Recipe
    count: int = 1
    save_epoch: int | None = None
    start: Start | None = None
    space: FitWhitening | None = added(None)

    def __post_init__(self) -> None:
        if self.save_epoch is not None and not 0 <= self.save_epoch < self.recipe.epochs:
            epochs = self.recipe.epochs
            raise ConfigError(
                f"save_epoch must be from 0 to {epochs - 1}, of {epochs} epochs, not {self.save_epoch}"
            )

    def units(self) -> Sequence[str]:
        """Return one unit per network, ``network-000``."""
        return tuple(f"network-{i:03d}" for i in range(self.count))

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the whitening."""
        return {} if self.space is None else {"space": self.space.refs()[0]}

    def cost(self, unit: str) -> Cost:
        """Return the cost of one network's training."""
        info = self.dataset
        images = sum(info.train_counts)
        return training_cost(
            self.network,
            info.shape,
            info.classes,
            networks=1,
            images=images,
            epochs=self.steps(unit),
            batch=self.recipe.slice,
            copies=self.recipe.copies,
        )

    def steps(self, unit: str) -> int:
        """Return the number of epochs that are run."""
        return self.recipe.epochs if self.save_epoch is None else self.save_epoch + 1

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return the state of a network as it starts."""
        state = self._training(unit, ctx).init(None if self.start is None else self.start.fill)
        return state | {"train_accuracy": torch.zeros(1, dtype=torch.float64, device=ctx.device)}

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after epoch ``t``."""
        space = self.space
        whitening = None if space is None else space.whitening(ctx.load("space"))
        data = WholeSplit(ctx.data["train"], self.dataset, ctx, whitening)
        new, loss, accuracy = self._training(unit, ctx).epoch(state, t, data)
        ctx.log(t, loss=loss[0], train_accuracy=accuracy[0])
        return new | {"train_accuracy": accuracy.double()}

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the network's weights without the optimiser's memory."""
        weights = {name: value[0] for name, value in weights_for_test(state).items()}
        counts = {
            "train_accuracy": state["train_accuracy"][0],
            "images": torch.tensor(len(ctx.data["train"])),
        }
        return weights | counts

    def _training(self, unit: str, ctx: Context) -> StudentTraining:
        info = self.dataset
        return training_of(
            self,
            unit,
            ctx,
            network=self.network,
            dataset=info,
            recipe=self.recipe,
            repeats=[int(unit.removeprefix("network-"))],
            black=[-mean / std for mean, std in zip(info.mean, info.std, strict=True)],
        )


def restore_network(
    name: str, info: DatasetInfo, weights: Mapping[str, Tensor], device: torch.device
) -> Network:
    """Return the network of a :class:`TrainNetwork` output, in eval mode and without gradients."""
    network = create_network(name, info.shape, info.classes, generator(0, "structure")).to(device)
    load_state(network, weights)
    network.eval().requires_grad_(False)
    return network


def features_of(
    network: Network, images: Tensor, info: DatasetInfo, numerics: Numerics, batch: int = 256
) -> Tensor:
    """Return the features ``[N, embed_dim]`` (float32) of uint8 images, ``batch`` at a time;
    ``DataError`` if not finite.
    """
    device = next(network.parameters()).device
    embed = fast_embed(network, numerics)
    with torch.no_grad():
        features = torch.cat(
            [
                embed(normalise(chunk.to(device), info.mean, info.std))
                for chunk in images.split(batch)
            ]
        )
    if not bool(torch.isfinite(features).all()):
        raise DataError(
            f"the features of network '{network.name}' hold NaN or infinity: its training diverged"
        )
    return features
