"""Evaluation as units of work: students trained from scratch on a distilled set, then tested on real images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.seen import Seen
from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Ref, Stage, added, canonical, stage_digest, unkeyed
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import normalise
from raydd.evaluation.coded_set import CodedSet, coded_sizes
from raydd.evaluation.set_sources import StoredSet
from raydd.evaluation.spaces import JudgedSpace, as_they_are, inputs_of, whitened_batches
from raydd.training.accuracy import Batch, Examiner, real_batches
from raydd.training.fit_whitening import FitWhitening
from raydd.training.sgd import Recipe, unstack_state
from raydd.training.students import StudentTraining, TrainingSet, training_of
from raydd.training.train_network import TrainNetwork
from raydd.training.training_cost import training_cost

CURVE_POINTS = 50
"""How many epochs of a training are recorded in the log, evenly spread."""


def repeat_blocks(repeats: int, per_unit: int) -> dict[str, range]:
    """Return the units of a stage of repeats, ``repeats-000-004``, and the repeats that each holds."""
    starts = range(0, repeats, per_unit)
    return {
        f"repeats-{s:03d}-{min(s + per_unit, repeats) - 1:03d}": range(
            s, min(s + per_unit, repeats)
        )
        for s in starts
    }


def repeats_of(unit: str) -> range:
    """Return the repeats that a unit's name stands for."""
    first, last = unit.removeprefix("repeats-").split("-")
    return range(int(first), int(last) + 1)


def logged(epoch: int, epochs: int) -> bool:
    """Return whether an epoch is among the :data:`CURVE_POINTS` that are recorded; the first and the last are."""
    return epoch == epochs - 1 or epoch % max(1, epochs // CURVE_POINTS) == 0


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Train ``repeats`` students of one architecture on a set and test them; a unit is a block of
    repeats, a step an epoch.

    ``labels``: where soft labels come from (:class:`raydd.labels.label_sources.LabelSource`), where the
    recipe's loss needs them. ``dataset``: narrowed to ``split`` (``test`` or ``holdout``).
    ``space``: the whitening that students and tests see (``None``: the set's own space, if any).
    ``test_every``: also test after every so many epochs (0: at the end only). A student's draws are
    keyed by ``(seed, "student/...", repeat)`` and not by the set: students of different sets start
    alike. Output of a unit of R repeats: ``accuracy`` ``[R]`` (last epoch) and ``train_accuracy``
    ``[R]``, float64 fractions; ``best_accuracy`` ``[R]`` with ``test_every``; ``image_bytes``,
    ``label_bytes``, and ``further_bytes`` where a method's set stores more; of a coded set what
    :func:`raydd.evaluation.coded_set.coded_sizes` says; whether the set has ``soft_labels``.
    """

    phase: ClassVar[str] = "evaluate"

    source: Any
    labels: Any = None
    dataset: DatasetInfo
    split: str = "test"
    recipe: Recipe
    network: str
    test_every: int = 0
    repeats: int = unkeyed(default=5)
    repeats_per_unit: int = unkeyed(default=5)
    space: FitWhitening | None = added(None)

    def __post_init__(self) -> None:
        if self.recipe.epochs < 1:
            raise ConfigError(f"an evaluation needs at least 1 epoch, not {self.recipe.epochs}")
        if (self.labels is not None) != (self.recipe.loss != "ce"):
            raise ConfigError(
                f"the loss '{self.recipe.loss}' {'needs' if self.labels is None else 'does not read'} soft labels"
            )
        if self.labels is not None and (self.space is not None or self.recipe.draw != "epochs"):
            raise ConfigError(
                "soft labels of views are of normalised images and whole epochs; evaluation.space and evaluation.draw"
                " have no place beside them"
            )
        if self.labels is not None:
            self.labels.fits(self.recipe.batch, self.recipe.epochs, self.recipe.augmentation)

    def units(self) -> Sequence[str]:
        """Return the names of the blocks of repeats."""
        return tuple(repeat_blocks(self.repeats, self.repeats_per_unit))

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return what the set is made of, its soft labels, and the whitening."""
        labels = self.labels.inputs() if self.labels is not None else {}
        return {**self.source.inputs(), **labels, **inputs_of(self.space)}

    def cost(self, unit: str) -> Cost:
        """Return the cost of training and testing a block."""
        info, count = self.dataset, len(repeats_of(unit))
        tests = 1 + (self.recipe.epochs // self.test_every if self.test_every else 0)
        cost = training_cost(
            self.network,
            info.shape,
            info.classes,
            networks=count,
            images=self.recipe.seen(self.source.images),
            epochs=self.recipe.epochs,
            batch=self.recipe.slice,
            tested=tests * info.test_count,
            at_once=count,
            copies=self.recipe.copies,
        )
        extra = 0.0 if self.labels is None else self.labels.flop(self.recipe.epochs, count)
        return replace(cost, flop=cost.flop + extra)

    def steps(self, unit: str) -> int:
        """Return the number of epochs."""
        return self.recipe.epochs

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return fresh students."""
        nothing = torch.zeros(len(repeats_of(unit)), dtype=torch.float64, device=ctx.device)
        extra = {"train_accuracy": nothing} | (
            {"best_accuracy": nothing.clone()} if self.test_every else {}
        )
        return self._training(unit, ctx).init() | extra

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the students after epoch ``t``."""
        training = self._training(unit, ctx)
        _, data = self._set(ctx)
        new, loss, accuracy = training.epoch(state, t, data)
        new["train_accuracy"] = accuracy.double()
        scalars: dict[str, Tensor] = {}
        if self.test_every:
            new["best_accuracy"] = state["best_accuracy"]
            if (t + 1) % self.test_every == 0:
                tested = self._test(unit, new, ctx)
                new["best_accuracy"] = torch.maximum(tested.to(ctx.device), state["best_accuracy"])
                scalars["accuracy"] = tested.mean()
        if scalars or logged(t, self.recipe.epochs):
            ctx.log(t, loss=loss.mean(), train_accuracy=accuracy.double().mean(), **scalars)
        return new

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the accuracies of the students as they are."""
        distilled, _ = self._set(ctx)
        accuracy = self._test(unit, state, ctx)
        output = {"accuracy": accuracy, "train_accuracy": state["train_accuracy"]}
        if self.test_every:
            output["best_accuracy"] = torch.maximum(accuracy.to(ctx.device), state["best_accuracy"])
        stored = 0 if self.labels is None else self.labels.bytes
        sizes = {
            "image_bytes": distilled.image_bytes,
            "label_bytes": distilled.label_bytes + stored,
        }
        further = distilled.size.bytes - distilled.image_bytes - distilled.label_bytes
        if isinstance(self.source, CodedSet):
            sizes |= coded_sizes(self.source.facts(ctx)) | {"seen": distilled.seen}
        elif further and not isinstance(self.source, StoredSet):  # whose source knows
            sizes["further_bytes"] = further
        soft = {"soft_labels": torch.tensor(distilled.soft or self.labels is not None)}
        return output | {name: torch.tensor(size) for name, size in sizes.items()} | soft

    def _test(self, unit: str, state: Tensors, ctx: Context) -> Tensor:
        data, space = ctx.data[self.split], self.space

        def batches() -> Iterable[Batch]:
            if space is None:
                return real_batches(data, ctx)
            return whitened_batches(data, self.dataset, space, ctx)

        prepare = into_space(self._set(ctx)[0], ctx.device) if space is None else as_they_are
        return accuracies(self, self._training(unit, ctx), state, batches, prepare, ctx)

    def _set(self, ctx: Context) -> tuple[DistilledSet, TrainingSet]:
        def load() -> tuple[DistilledSet, TrainingSet]:
            distilled = self.source.load(ctx)
            if self.labels is not None:
                return distilled, self.labels.open(distilled, ctx)
            space = JudgedSpace.of(self.space, self.dataset, ctx)
            return distilled, space.training_set(distilled, self.recipe)

        inputs = sorted((name, ref.key, ref.output) for name, ref in self.source.inputs().items())
        which = json.dumps(
            [canonical(part) for part in (self.source, self.labels, self.space, self.recipe.draw)]
        )
        return ctx.cached(("distilled", which, tuple(inputs)), load)

    def _training(self, unit: str, ctx: Context) -> StudentTraining:
        return training_of(
            self,
            unit,
            ctx,
            network=self.network,
            dataset=self.dataset,
            recipe=self.recipe,
            repeats=repeats_of(unit),
        )


def accuracies(
    stage: Stage,
    training: StudentTraining,
    state: Tensors,
    batches: Callable[[], Iterable[Batch]],
    prepare: Callable[[Tensor], Tensor],
    ctx: Context,
) -> Tensor:
    """Return the accuracy in [0, 1] of each of a stage's students, ``[repeats]`` in float64.

    ``batches`` yields the real images of one pass, ``prepare`` brings them into the students' space.
    """
    examiner = ctx.cached(
        ("examiner", stage_digest(stage)), lambda: Examiner(training.network, training.numerics)
    )
    found = [
        examiner.accuracy(unstack_state(state, i), batches(), prepare)
        for i in range(len(training.repeats))
    ]
    return torch.tensor(found, dtype=torch.float64)


def into_space(distilled: Seen, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what brings uint8 test images into the space that a set's students were trained in."""
    if distilled.whitening is None:
        return lambda images: normalise(images, distilled.mean, distilled.std)
    return lambda images: distilled.normalised(images.cpu()).to(device)


@dataclass(frozen=True, kw_only=True)
class EvaluateNetworks(Stage):
    """Test networks trained on the whole training set; a unit is one of them, the output that of :class:`Evaluate`."""

    phase: ClassVar[str] = "evaluate"

    teacher: TrainNetwork
    dataset: DatasetInfo
    split: str = "test"

    def units(self) -> Sequence[str]:
        """Return the units of the training."""
        return self.teacher.units()

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the trained network, and the whitening of its images."""
        return {"network": Ref(self.teacher, unit), **inputs_of(self.teacher.space)}

    def cost(self, unit: str) -> Cost:
        """Return the cost of one pass over the split."""
        info = self.dataset
        return training_cost(
            self.teacher.network,
            info.shape,
            info.classes,
            networks=1,
            images=0,
            epochs=0,
            batch=256,
            tested=info.test_count,
        )

    def steps(self, unit: str) -> int:
        """Return 0: the networks are ready."""
        return 0

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return ``accuracy [1]``, ``train_accuracy [1]`` and the bytes of the images it was trained on."""
        from raydd.training.train_network import restore_network

        weights, info = ctx.load("network"), self.dataset
        data, space = ctx.data[self.split], self.teacher.space
        network = restore_network(self.teacher.network, info, weights, ctx.device)
        examiner = Examiner(network, self.numerics)
        found = examiner.accuracy(
            weights,
            real_batches(data, ctx) if space is None else whitened_batches(data, info, space, ctx),
            as_they_are if space is not None else lambda x: normalise(x, info.mean, info.std),
        )
        pixels, count = info.channels * info.height * info.width, int(weights["images"])
        return {
            "accuracy": torch.tensor([found], dtype=torch.float64),
            "train_accuracy": weights["train_accuracy"].reshape(1).double(),
            "image_bytes": torch.tensor(count * pixels),
            "label_bytes": torch.tensor(8 * count),
            "soft_labels": torch.tensor(False),
        }
