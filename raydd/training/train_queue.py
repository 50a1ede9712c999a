"""The stage that trains a queue's networks, each for its whole life, on real images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raydd.core.errors import ConfigError
from raydd.core.rng import KeyedRng
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Data, Stage, unkeyed
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import draw_distinct, normalise
from raydd.training.accuracy import resident
from raydd.training.network_queue import Life, QueueConfig
from raydd.training.students import StudentTraining, training_of

Batch = tuple[Tensor, Tensor]
_KEPT = ("weights", "correct", "known")
"""What a state holds beside a training's: rows of the output, and ``correct`` of all trainings so far."""


class FreshBatches:
    """Real images as a training set of ``steps`` batches an epoch, each drawn without replacement from all of them."""

    def __init__(self, data: Data, info: DatasetInfo, steps: int, ctx: Context) -> None:
        self.data, self.info, self.steps = data, info, steps
        self.kept = resident(data, ctx)

    def batches(self, epoch: int, size: int, rng: KeyedRng) -> Iterator[Batch]:
        """Yield normalised images and labels, drawn from ``rng("batches", epoch)``."""
        draws = rng("batches", epoch)
        for _ in range(self.steps):
            images, labels = self._taken(draw_distinct(len(self.data), size, draws))
            yield normalise(images, self.info.mean, self.info.std), labels

    def _taken(self, ids: Tensor) -> Batch:
        if self.kept is None:
            return self.data.take(ids), self.data.labels[ids]
        images, labels = self.kept["images"], self.kept["labels"]
        ids = ids.to(labels.device)
        return images[ids], labels[ids]


def network_unit(number: int) -> str:
    """Return the name of a queue network's unit."""
    return f"network-{number:05d}"


@dataclass(frozen=True, kw_only=True)
class TrainQueue(Stage):
    """Trains the networks of a queue on real images, without augmentation; a unit is one network's
    whole life, a step one of its trainings.

    ``count``: networks that are needed. ``dataset``: narrowed to ``train``.

    Output of a unit, a row for each of its ages at which it is matched: ``weights [ages, P]``, in
    the order of the network's parameters, and ``correct [ages, trainings]``, how many images of
    each training up to that age it knew before it learned them (int32; 0 for later ones).
    """

    phase: ClassVar[str] = "squeeze"
    by_row: ClassVar[tuple[str, ...]] = ("weights", "correct")

    dataset: DatasetInfo
    network: str
    queue: QueueConfig
    count: int = unkeyed()

    def __post_init__(self) -> None:
        if self.seed != self.queue.seed:
            raise ConfigError(f"the queue's seed is {self.queue.seed}, not {self.seed}")

    def units(self) -> Sequence[str]:
        """Return one unit per network, ``network-00000``."""
        return tuple(network_unit(i) for i in range(self.count))

    def life(self, unit: str) -> Life:
        """Return a network's time in the queue."""
        return self.queue.plan.life(int(unit.removeprefix("network-")))

    def cost(self, unit: str) -> Cost:
        """Return the cost of a network's life."""
        from raydd.training.training_cost import network_facts

        facts = network_facts(self.network, self.dataset.shape, self.dataset.classes)
        life, batch = self.life(unit), self.queue.trained_bs
        images = len(life.trained) * self.queue.model_train_steps * batch
        training = 4 * self.queue.recipe.copies * facts.parameters
        kept = len(life.ages) * (
            self.queue.dtype.itemsize * facts.parameters + 4 * len(life.trained)
        )
        counts = self.dataset.train_counts
        pixels = self.dataset.channels * self.dataset.height * self.dataset.width
        return Cost(
            flop=3.0 * facts.flop * images,
            peak_bytes=sum(counts) * pixels + 2 * training + kept + 8 * facts.activations * batch,
            state_bytes=training + kept,
            output_bytes=kept,
        )

    def steps(self, unit: str) -> int:
        """Return how often the network is trained."""
        return len(self.life(unit).trained)

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return a new network, with rows that are still to be filled."""
        state, life = self._training(unit, ctx).init(), self.life(unit)
        size = sum(value.numel() for name, value in state.items() if name.startswith("params."))
        events = len(life.trained)
        kept = {
            "weights": torch.zeros(len(life.ages), size, dtype=self.queue.dtype, device=ctx.device),
            "correct": torch.zeros(len(life.ages), events, dtype=torch.int32, device=ctx.device),
            "known": torch.zeros(events, dtype=torch.int32, device=ctx.device),
        }
        return self._kept(unit, state, kept, 0, ctx)

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after the network's training number ``t``."""
        kept = {name: state[name] for name in _KEPT}
        training = {name: value for name, value in state.items() if name not in kept}
        data = FreshBatches(ctx.data["train"], self.dataset, self.queue.model_train_steps, ctx)
        seen = self.queue.model_train_steps * min(self.queue.trained_bs, len(ctx.data["train"]))
        new, loss, accuracy = self._training(unit, ctx).epoch(training, t, data)
        ctx.log(t, loss=loss[0], train_accuracy=accuracy[0])
        known = kept["known"].clone()
        known[t] = (accuracy[0].double() * seen).round().to(torch.int32)
        return self._kept(unit, new, kept | {"known": known}, t + 1, ctx)

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return what is kept of the network's ages."""
        return {name: state[name] for name in ("weights", "correct")}

    def _kept(self, unit: str, state: Tensors, kept: Tensors, age: int, ctx: Context) -> Tensors:
        """Return the whole state, with the row of this age, if some iteration matches it."""
        ages = self.life(unit).ages
        if age in ages:
            row = ages.index(age)
            order = [name for name, _ in self._training(unit, ctx).network.named_parameters()]
            flat = torch.cat([state[f"params.{name}"].flatten() for name in order])
            kept = kept | {name: kept[name].clone() for name in ("weights", "correct")}
            kept["weights"][row] = flat.to(self.queue.dtype)
            kept["correct"][row] = kept["known"]
        return state | kept

    def _training(self, unit: str, ctx: Context) -> StudentTraining:
        return training_of(
            self,
            unit,
            ctx,
            network=self.network,
            dataset=self.dataset,
            recipe=self.queue.recipe,
            repeats=[int(unit.removeprefix("network-"))],
        )
