"""The stage that trains networks and keeps them after every epoch, each with its accuracy on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import KeyedRng
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, stage_digest
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import normalise
from raydd.training.accuracy import Examiner, real_batches
from raydd.training.train_network import TrainNetwork

HOLDOUT = "holdout"
TRIES = 2000
"""Draws of a network after which none is thought to be accurate enough."""


def check_holdout(info: DatasetInfo, key: str) -> None:
    """Raise ``ConfigError`` for data without held-out images, which the job's ``key`` needs."""
    if info.digests and HOLDOUT not in dict(info.digests):
        raise ConfigError(
            f"{key}: trained networks are chosen by their accuracy on images that nothing else sees; set"
            " dataset.holdout, such as dataset.holdout=0.1"
        )


@dataclass(frozen=True, kw_only=True)
class TrainPool(TrainNetwork):
    """Train ``count`` networks; a unit is one of them, a step an epoch.

    ``dataset``: narrowed to ``train`` and ``holdout``. Output of a unit, a row for each epoch:
    ``weights [epochs, P]``, in the order of the network's parameters, and ``accuracy [epochs]`` on
    the held-out images, float32 fractions.
    """

    by_row: ClassVar[tuple[str, ...]] = ("weights", "accuracy")

    def cost(self, unit: str) -> Cost:
        """Return the cost of one network's training, its tests left out."""
        from dataclasses import replace

        from raydd.training.training_cost import network_facts

        facts = network_facts(self.network, self.dataset.shape, self.dataset.classes)
        cost, kept = super().cost(unit), 4 * self.steps(unit) * (facts.parameters + 1)
        return replace(
            cost,
            peak_bytes=cost.peak_bytes + 2 * kept,
            state_bytes=cost.state_bytes + kept,
            output_bytes=kept,
        )

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return a new network, and rows that are still to be filled."""
        state, epochs = super().init(unit, ctx), self.steps(unit)
        size = sum(value.numel() for name, value in state.items() if name.startswith("params."))
        return state | {
            "weights": torch.zeros(epochs, size, device=ctx.device),
            "accuracy": torch.zeros(epochs, device=ctx.device),
        }

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after epoch ``t``, with that epoch's row."""
        kept = {name: state[name].clone() for name in self.by_row}
        training = {name: value for name, value in state.items() if name not in kept}
        new, info = super().step(unit, training, t, ctx), self.dataset
        of = self._training(unit, ctx)
        examiner = ctx.cached(
            ("examiner", stage_digest(self)), lambda: Examiner(of.network, of.numerics)
        )
        one = {name: value[0] for name, value in new.items() if value.ndim}
        found = examiner.accuracy(
            one, real_batches(ctx.data[HOLDOUT], ctx), lambda x: normalise(x, info.mean, info.std)
        )
        order = [name for name, _ in of.network.named_parameters()]
        kept["weights"][t] = torch.cat([one[f"params.{name}"].flatten() for name in order])
        kept["accuracy"][t] = found
        ctx.log(t, holdout_accuracy=found)
        return new | kept

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the rows."""
        return {name: state[name] for name in self.by_row}


def draw_network(
    load: Callable[[str, slice], Tensors],
    units: Sequence[str],
    epochs: int,
    window: tuple[float, float],
    draws: torch.Generator,
) -> Tensor:
    """Return the weights ``[P]`` of a network drawn uniformly from those whose accuracy is within ``window``.

    ``load``: gives rows of a unit's output. ``DataError`` if hardly any is.
    """
    seen: list[float] = []
    for _ in range(TRIES):
        unit = units[int(torch.randint(len(units), (), generator=draws))]
        row = int(torch.randint(epochs, (), generator=draws))
        found = load(unit, slice(row, row + 1))
        accuracy = float(found["accuracy"][0])
        if window[0] <= accuracy <= window[1]:
            return found["weights"][0]
        seen.append(accuracy)
    raise DataError(
        f"none of {TRIES} networks drawn has an accuracy from {window[0]:g} to {window[1]:g} on the held-out images;"
        f" theirs are {min(seen):.3f} to {max(seen):.3f}"
    )


def draws_of_network(rng: KeyedRng, t: int, label: int | None) -> torch.Generator:
    """Return the draws of update ``t``'s network, of one class's where each has its own."""
    return rng("network", t) if label is None else rng("network", t, label)
