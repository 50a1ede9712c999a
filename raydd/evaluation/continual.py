"""Continual learning from a growing memory: DM's class-incremental experiment.

Worked out in docs/methods/evaluation.md, "Continual learning".

Classes come in steps of equally many, in an order that a seed fixes. What is kept of each step is
the set's images of its classes; after every step fresh students are trained on all that is kept,
and tested on all test images of the classes seen so far. The classifier has all outputs from the
start. Published (CIFAR-100, 20 images per class, 5 or 10 steps, orders 0 to 4, three ConvNets each,
1,000 epochs with DSA augmentation for every method): figures of random, herding, DSA and DM as
curves.

The classes of a step are distilled alone, as if no others were known. Where a method's classes
never talk (DM; DC and DSA at one image per class; all without batch norm) that equals cutting the
set of all classes, which is what is done; elsewhere every step of every order has a distillation of
its own. What is chosen by a network trained on all classes (herding, k-center) is cut, and so is a
published or foreign set, whatever its maker had seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from raydd.artifacts.decoding import SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import derive_seed
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Numerics, Ref, Stage, stage_digest, unkeyed
from raydd.data.catalog import DatasetInfo
from raydd.evaluation.memories import Memory, in_order
from raydd.evaluation.set_sources import AssembledSet
from raydd.evaluation.sets_in_turn import SetsInTurn
from raydd.evaluation.stages import accuracies, into_space, logged, repeat_blocks, repeats_of
from raydd.methods.method import Method, Problem, check_counts
from raydd.methods.random_selection import RandomSelection, SelectImages, assemble_images
from raydd.training.accuracy import TEST_BATCH, Batch, resident
from raydd.training.sgd import Recipe
from raydd.training.students import StudentTraining, training_of
from raydd.training.training_cost import training_cost


def class_order(classes: int, seed: int) -> tuple[int, ...]:
    """Return the order in which classes come: numpy's legacy permutation of a seed, whose stream is frozen."""
    return tuple(int(c) for c in np.random.RandomState(seed).permutation(classes))


@dataclass(frozen=True, kw_only=True)
class DrawInOrder(SelectImages):
    """Random images as the published experiment draws them: by the generator of the class order,
    class after class in that order.

    ``seed`` is that of the order. One unit; output as of :class:`SelectImages`.
    """

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the drawn images and their ids, in the order of labels."""
        data, draws, chosen = ctx.data["train"], np.random.RandomState(self.seed), {}
        for c in draws.permutation(self.dataset.classes).tolist():
            members = (data.labels == c).nonzero().reshape(-1)
            if len(members) < self.ipc:
                raise DataError(
                    f"ipc={self.ipc}: class {c} has only {len(members)} training images to choose from"
                )
            chosen[c] = members[torch.from_numpy(draws.permutation(len(members))[: self.ipc])]
        ids = torch.cat([chosen[c] for c in range(self.dataset.classes)])
        return {"images": data.take(ids), "ids": ids}


@dataclass(frozen=True, kw_only=True)
class OrderDraw:
    """A source of a set: the random images of one class order."""

    dataset: DatasetInfo
    ipc: int
    order: int

    def __post_init__(self) -> None:
        check_counts(self.dataset, self.ipc)

    @property
    def _ref(self) -> Ref:
        stage = DrawInOrder(
            seed=self.order,
            dataset=self.dataset,
            ipc=self.ipc,
            classes_per_unit=self.dataset.classes,
        )
        return stage.refs()[0]

    def inputs(self) -> Mapping[str, Ref]:
        """Return the draw."""
        return {"random": self._ref}

    def load(self, ctx: Context) -> DistilledSet:
        """Return the set."""
        problem = Problem(dataset=self.dataset, ipc=self.ipc, seed=self.order, numerics=Numerics())
        return assemble_images(problem, {"random": ctx.load("random")})

    @property
    def images(self) -> int:
        """Number of images: ``ipc`` of each class."""
        return self.size.seen

    @property
    def size(self) -> SetSize:
        """That of random images."""
        problem = Problem(dataset=self.dataset, ipc=self.ipc, seed=self.order, numerics=Numerics())
        return RandomSelection().size(problem)


@dataclass(frozen=True, kw_only=True)
class StepSets:
    """A source of a set: what a method makes of the classes of each step, one set after the other."""

    sets: tuple[AssembledSet, ...]

    @classmethod
    def plan(cls, method: Method, problem: Problem, order: int, parts: int) -> StepSets:
        """Plan a distillation for each of ``parts`` steps of equally many classes, in the order of seed ``order``."""
        check_steps(problem.dataset.classes, parts)
        classes, size = (
            class_order(problem.dataset.classes, order),
            problem.dataset.classes // parts,
        )
        steps = [
            tuple(sorted(classes[first : first + size])) for first in range(0, len(classes), size)
        ]
        return cls(
            sets=tuple(
                AssembledSet(method=method, problem=replace(problem, classes=step))
                for step in steps
            )
        )

    def first(self, steps: int) -> StepSets:
        """Return the sets of the first ``steps`` alone."""
        return StepSets(sets=self.sets[:steps])

    def inputs(self) -> Mapping[str, Ref]:
        """Return the targets of every step's set, ``0/all``."""
        return {
            f"{step}/{name}": ref
            for step, made in enumerate(self.sets)
            for name, ref in made.inputs().items()
        }

    def load(self, ctx: Context) -> SetsInTurn:
        """Return the steps' sets as one."""
        return SetsInTurn(
            tuple(
                one.assembled({name: ctx.load(f"{step}/{name}") for name in one.inputs()})
                for step, one in enumerate(self.sets)
            )
        )

    @property
    def images(self) -> int:
        """Number of images of all steps."""
        return self.size.seen

    @property
    def size(self) -> SetSize:
        """Those of all steps together."""
        return sum((one.size for one in self.sets), SetSize(0, 0, 0))


def check_steps(classes: int, parts: int) -> None:
    """Raise ``ConfigError`` unless ``classes`` come in ``parts``, two or more, of equally many."""
    if classes % parts or parts < 2:
        allowed = ", ".join(str(n) for n in range(2, classes + 1) if classes % n == 0)
        raise ConfigError(
            f"evaluation.continual: {parts} steps do not divide {classes} classes; allowed: {allowed}"
        )


def seen_and_repeats(unit: str) -> tuple[int, range]:
    """Return how many classes have come, and the repeats, that a unit's name stands for."""
    seen, _, block = unit.removeprefix("classes-").partition("-")
    return int(seen), repeats_of(block)


@dataclass(frozen=True, kw_only=True)
class EvaluateMemory(Stage):
    """Train students on what is kept after each step, and test them on the classes seen; a unit is
    a block of students of one step.

    ``source``: of all classes, or a :class:`StepSets`, of which a step needs those up to its own.
    ``order``: seed of the class order. ``parts``: number of steps. Students are keyed by
    ``(seed, order, classes seen, repeat)`` and not by the set or ``parts``: those of different sets
    start alike, and five steps are five of the ten. Output of a unit of R students: ``accuracy``
    ``[R]`` (last epoch) and ``train_accuracy`` ``[R]``, float64 fractions, and how many ``images``
    were kept.
    """

    phase: ClassVar[str] = "evaluate"

    source: Any
    dataset: DatasetInfo
    split: str = "test"
    recipe: Recipe
    network: str
    order: int
    parts: int = unkeyed()
    repeats: int = unkeyed(default=3)
    repeats_per_unit: int = unkeyed(default=3)

    def __post_init__(self) -> None:
        if self.recipe.loss != "ce":
            raise ConfigError(
                f"evaluation.continual: the loss '{self.recipe.loss}' needs soft labels, and these cannot be cut by"
                " class"
            )
        check_steps(self.dataset.classes, self.parts)

    @property
    def seen(self) -> list[int]:
        """How many classes have been seen after each step."""
        size = self.dataset.classes // self.parts
        return [size * (t + 1) for t in range(self.parts)]

    def units_after(self, seen: int) -> list[str]:
        """Return the units of the step after which ``seen`` classes have come, ``classes-0004-repeats-000-002``."""
        return [
            f"classes-{seen:04d}-{block}"
            for block in repeat_blocks(self.repeats, self.repeats_per_unit)
        ]

    def units(self) -> Sequence[str]:
        """Return the blocks of students of every step."""
        return tuple(unit for seen in self.seen for unit in self.units_after(seen))

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return what the set is made of, as far as it is kept by then."""
        return self._source(seen_and_repeats(unit)[0]).inputs()

    def _source(self, seen: int) -> Any:
        """Return the source of what is kept after ``seen`` classes."""
        return (
            self.source.first(self.seen.index(seen) + 1)
            if isinstance(self.source, StepSets)
            else self.source
        )

    def cost(self, unit: str) -> Cost:
        """Return the cost of training and testing a block."""
        info, (seen, repeats) = self.dataset, seen_and_repeats(unit)
        return training_cost(
            self.network,
            info.shape,
            info.classes,
            networks=len(repeats),
            images=self.recipe.seen(self.source.images * seen // info.classes),
            epochs=self.recipe.epochs,
            batch=self.recipe.slice,
            tested=info.test_count * seen // info.classes,
            at_once=len(repeats),
            copies=self.recipe.copies,
        )

    def steps(self, unit: str) -> int:
        """Return the number of epochs."""
        return self.recipe.epochs

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return fresh students: none goes on from an earlier step."""
        nothing = torch.zeros(
            len(seen_and_repeats(unit)[1]), dtype=torch.float64, device=ctx.device
        )
        return self._training(unit, ctx).init() | {"train_accuracy": nothing}

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the students after epoch ``t``."""
        seen = seen_and_repeats(unit)[0]
        memory = self._memory(seen, ctx).of(seen)
        new, loss, accuracy = self._training(unit, ctx).epoch(state, t, memory)
        new["train_accuracy"] = accuracy.double()
        if logged(t, self.recipe.epochs):
            ctx.log(t, loss=loss.mean(), train_accuracy=accuracy.double().mean())
        return new

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the accuracies on the classes seen."""
        seen, training = seen_and_repeats(unit)[0], self._training(unit, ctx)
        memory = self._memory(seen, ctx)
        prepare = into_space(memory.distilled, ctx.device)
        classes = class_order(self.dataset.classes, self.order)[:seen]

        def batches() -> Iterable[Batch]:
            return self._tests(classes, ctx)

        return {
            "accuracy": accuracies(self, training, state, batches, prepare, ctx),
            "train_accuracy": state["train_accuracy"],
            "images": torch.tensor(memory.ends[seen - 1]),
        }

    def _tests(self, classes: Sequence[int], ctx: Context) -> Iterator[Batch]:
        """Yield the real images of some classes, in the split's order, as
        :func:`raydd.training.accuracy.real_batches` does.
        """
        data = ctx.data[self.split]
        kept = resident(data, ctx)
        chosen = torch.isin(data.labels, torch.tensor(classes)).nonzero().reshape(-1)
        for ids in chosen.split(TEST_BATCH):
            rows = ids.to(ctx.device)
            images = data.take(ids).to(ctx.device) if kept is None else kept["images"][rows]
            yield images, data.labels[ids].to(ctx.device)

    def _memory(self, seen: int, ctx: Context) -> Memory:
        """Return all that the source of what is kept by then holds: the whole set where there is only one."""
        source, order = self._source(seen), class_order(self.dataset.classes, self.order)

        def make() -> Memory:
            come = order[:seen] if isinstance(source, StepSets) else order
            return in_order(source.load(ctx), come).on(ctx.device)

        inputs = sorted((name, ref.key, ref.output) for name, ref in source.inputs().items())
        return ctx.cached(("memory", stage_digest(self), tuple(inputs)), make)

    def _training(self, unit: str, ctx: Context) -> StudentTraining:
        seen, repeats = seen_and_repeats(unit)
        return training_of(
            self,
            unit,
            ctx,
            network=self.network,
            dataset=self.dataset,
            recipe=self.recipe,
            repeats=repeats,
            seed=derive_seed(self.seed, "continual", self.order, seen),
        )
