"""Training of one or several networks on a set of labelled images, epoch by epoch.

The state of ``R`` networks is one ``dict[str, Tensor]`` whose tensors have a first dimension ``R``.
Every draw is keyed by the network's number (its *repeat*) and the epoch, so that a network does not
depend on those trained beside it, and a training resumed between two epochs returns the same bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from threading import get_ident
from typing import Protocol

import torch
from torch import Tensor, nn

from raydd.core.captured import recordable
from raydd.core.rng import KeyedRng, generator
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Numerics, Stage, stage_digest
from raydd.data.catalog import DatasetInfo
from raydd.losses.soft import SoftTargets
from raydd.networks import create_network, is_per_sample
from raydd.networks.network import Network, Shape
from raydd.training.augmentation import Augment, DrawnAugmentation, make_augmentation
from raydd.training.precision import warn_of_slow_bf16
from raydd.training.recorded import RecordedStep
from raydd.training.schedules import alrs_factor
from raydd.training.sgd import (
    Labels,
    Recipe,
    TrainingStep,
    forget_momentum,
    fresh_state,
    stack_states,
    unstack_state,
)

Batch = tuple[Tensor, Labels]


class TrainingSet(Protocol):
    """What students learn from; ``DistilledSet`` is one."""

    def batches(self, epoch: int, size: int, rng: KeyedRng) -> Iterator[Batch]:
        """Yield an epoch of float images ``[B, C, H, W]`` in network space and labels, in an order drawn from ``rng``.

        Labels: int64 ``[B]``, probabilities ``[B, classes]``, or :class:`SoftTargets` for a loss that learns logits.
        """
        ...


class ResidentSet:
    """Images and labels that stay on a device, in the order (and with the draws) of ``DistilledSet.batches``."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, epoch: int, size: int, rng: KeyedRng) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of at most ``size``; what fits one batch comes whole and in its own order."""
        if len(self.images) <= size:
            yield self.images, self.labels
            return
        order = torch.randperm(len(self.images), generator=rng("batches", epoch)).to(
            self.images.device
        )
        for ids in order.split(size):
            yield self.images[ids], self.labels[ids]


def of_repeat(rng: KeyedRng, repeat: int) -> KeyedRng:
    """Return the draws of one student: streams ``student/...`` keyed by its repeat."""

    def keyed(stream: str, *ids: int) -> torch.Generator:
        return rng(f"student/{stream}", repeat, *ids)

    return keyed


def stackable(network: nn.Module) -> bool:
    """Return whether networks of this kind can be trained as a stack: nothing in it (dropout) draws while it trains."""
    probe = copy.deepcopy(network).train()
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return is_per_sample(probe)


@contextmanager
def global_draws(generator: torch.Generator) -> Iterator[None]:
    """Seed torch's global generators for layers that draw from them (dropout); put the CPU's back at the end."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@lru_cache(maxsize=32)
def _made_once(
    network: str,
    shape: Shape,
    classes: int,
    recipe: Recipe,
    numerics: Numerics,
    device: str,
    dtype: torch.dtype,
    stacked: bool,
    thread: int,
) -> tuple[Network, TrainingStep, bool]:
    """Return a network (for its structure), its step, and whether that is stacked: compiled once
    per process, not per unit.

    A step puts weights into the network for as long as it runs, so each ``thread`` has its own.
    """
    if numerics.precision == "bf16":
        warn_of_slow_bf16(torch.device(device))
    made = create_network(network, shape, classes, generator(0, "structure")).to(device, dtype)
    stacked = stacked and stackable(made)
    return made, TrainingStep(made, numerics, recipe, stacked=stacked), stacked


@lru_cache(maxsize=8)
def _recorded_once(
    step: TrainingStep, recipe: Recipe, size: tuple[int, int], black: tuple[float, ...], device: str
) -> RecordedStep | None:
    """Return the step with the recipe's augmentation as one recorded piece; ``None`` where that
    cannot be: layers or images that draw.
    """
    augmentation = make_augmentation(recipe, size, black or None)
    if not isinstance(augmentation, DrawnAugmentation) or not stackable(step.network):
        return None
    return RecordedStep(step, augmentation, torch.device(device))


def stack_labels(labels: Sequence[Labels]) -> Labels:
    """Stack the labels of several networks' batches, of one kind; soft targets field by field."""
    soft = [found for found in labels if isinstance(found, SoftTargets)]
    if soft:
        return SoftTargets(*(torch.stack(field) for field in zip(*soft, strict=True)))
    return torch.stack([found for found in labels if isinstance(found, Tensor)])


class StudentTraining:
    """Trains the students ``repeats`` of one architecture with one recipe on one device.

    ``stacked``: all of them by one call (default: on a GPU, where small steps wait for kernel launches; on a CPU one
    after another is faster). Results agree between the two up to rounding. Layers that draw
    while they train are never stacked. ``black``: a black pixel in network space, see :func:`make_augmentation`.
    """

    def __init__(
        self,
        *,
        network: str,
        shape: Shape,
        classes: int,
        recipe: Recipe,
        numerics: Numerics,
        repeats: Sequence[int],
        rng: KeyedRng,
        device: torch.device,
        stacked: bool | None = None,
        dtype: torch.dtype = torch.float32,
        black: Sequence[float] | None = None,
    ) -> None:
        self.recipe, self.repeats, self.device, self.dtype = recipe, tuple(repeats), device, dtype
        self.numerics = numerics
        self.rngs = [of_repeat(rng, repeat) for repeat in repeats]
        self.create = lambda draws: create_network(network, shape, classes, draws)
        wanted = len(self.repeats) > 1 and (device.type == "cuda" if stacked is None else stacked)
        known = recipe.of_step()
        self.network, self.step, self.stacked = _made_once(
            network, shape, classes, known, numerics, str(device), dtype, wanted, get_ident()
        )
        self.augment: Augment = make_augmentation(recipe, shape[1:], black)
        drawn = Recipe(
            epochs=0,
            **{
                name: getattr(recipe, name) for name in ("augmentation", "strategy", "pad", "scale")
            },
        )
        facts = (drawn, shape[1:], tuple(black or ()), str(device))
        self.recorded = _recorded_once(self.step, *facts) if recordable(device) else None

    def init(self, fill: Callable[[Network], None] | None = None) -> Tensors:
        """Return the state of freshly initialised students, on the device; ``fill`` may put other
        weights into each first.
        """
        networks = [self.create(rng("init")) for rng in self.rngs]
        if fill is not None:
            for network in networks:
                fill(network)
        return stack_states(
            [fresh_state(network.to(self.device, self.dtype), self.recipe) for network in networks]
        )

    def epoch(
        self, state: Tensors, epoch: int, data: TrainingSet
    ) -> tuple[Tensors, Tensor, Tensor]:
        """Return the state after one epoch, and each student's mean loss and accuracy on its
        (augmented) batches, ``[R]``.
        """
        if epoch in self.recipe.drops:
            state = forget_momentum(state)
        rate = torch.tensor(self.recipe.rate(epoch), dtype=self.dtype, device=self.device)
        if self.stacked:
            state, loss, accuracy = self._lockstep(state, epoch, data, rate)
        else:
            parts = [
                self._alone(unstack_state(state, i), epoch, data, rate, rng)
                for i, rng in enumerate(self.rngs)
            ]
            states, losses, accuracies = zip(*parts, strict=True)
            state, loss, accuracy = (
                stack_states(list(states)),
                torch.stack(losses),
                torch.stack(accuracies),
            )
        if self.recipe.schedule == "alrs":
            state["alrs.factor"] = alrs_factor(state["alrs.factor"], state["alrs.loss"], loss)
            state["alrs.loss"] = loss
        return state, loss, accuracy

    def _batches(self, data: TrainingSet, epoch: int, rng: KeyedRng) -> Iterator[Batch]:
        """Yield the batches of an epoch that are trained on: all, or without a last, smaller one."""
        size = self.recipe.batch
        for number, (images, labels) in enumerate(data.batches(epoch, size, rng)):
            if not (self.recipe.drop_last and number and len(images) < size):
                yield images, labels

    def _to_device(self, images: Tensor, labels: Labels) -> Batch:
        images = images.to(self.device, self.dtype, non_blocking=True)
        if isinstance(labels, SoftTargets):
            logits = labels.logits.to(self.device, non_blocking=True).to(self.dtype)
            return images, SoftTargets(logits, labels.hard.to(self.device, non_blocking=True))
        labels = labels.to(self.device, non_blocking=True)
        return images, labels.to(self.dtype) if labels.is_floating_point() else labels

    def _batch(
        self,
        state: Tensors,
        images: Tensor,
        labels: Labels,
        rate: Tensor,
        draws: Sequence[torch.Generator],
    ) -> tuple[Tensors, Tensor, Tensor]:
        """Return the state after one batch ``[R, B, C, H, W]`` (R is 1 unless students are
        stacked), augmented by its students' draws.
        """
        if self.recorded is not None:
            return self.recorded(state, images if self.stacked else images[0], labels, rate, draws)
        images = self.augment(images, draws)
        return self.step(state, images if self.stacked else images.squeeze(0), labels, rate)

    def _alone(
        self, state: Tensors, epoch: int, data: TrainingSet, rate: Tensor, rng: KeyedRng
    ) -> tuple[Tensors, Tensor, Tensor]:
        draws = rng("augment", epoch)
        seen, losses, hits = 0, [], []
        with global_draws(rng("dropout", epoch)):
            for images, labels in self._batches(data, epoch, rng):
                images, labels = self._to_device(images, labels)
                state, loss, correct = self._batch(
                    state, images.unsqueeze(0), labels, rate, [draws]
                )
                losses.append(loss)
                hits.append(correct)
                seen += len(images)
        return state, torch.stack(losses).sum(0) / seen, torch.stack(hits).sum(0) / seen

    def _lockstep(
        self, state: Tensors, epoch: int, data: TrainingSet, rate: Tensor
    ) -> tuple[Tensors, Tensor, Tensor]:
        draws = [rng("augment", epoch) for rng in self.rngs]
        seen, losses, hits = 0, [], []
        for batches in zip(*(self._batches(data, epoch, rng) for rng in self.rngs), strict=True):
            ready = [self._to_device(images, labels) for images, labels in batches]
            images, labels = (
                torch.stack([images for images, _ in ready]),
                stack_labels([labels for _, labels in ready]),
            )
            state, loss, correct = self._batch(state, images, labels, rate, draws)
            losses.append(loss)
            hits.append(correct)
            seen += images.shape[1]
        return state, torch.stack(losses).sum(0) / seen, torch.stack(hits).sum(0) / seen


def training_of(
    stage: Stage,
    unit: str,
    ctx: Context,
    *,
    network: str,
    dataset: DatasetInfo,
    recipe: Recipe,
    repeats: Sequence[int],
    seed: int | None = None,
    black: Sequence[float] | None = None,
) -> StudentTraining:
    """Return what trains the networks of a stage's unit, made once in a process; draws are keyed by
    ``seed`` (default: the stage's) and the networks' numbers, ``repeats``.
    """

    def make() -> StudentTraining:
        return StudentTraining(
            network=network,
            shape=dataset.shape,
            classes=dataset.classes,
            recipe=recipe,
            numerics=stage.numerics,
            repeats=repeats,
            rng=partial(generator, stage.seed if seed is None else seed),
            device=ctx.device,
            black=black,
        )

    return ctx.cached(("training", stage_digest(stage), unit), make)
