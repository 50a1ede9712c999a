"""Sizes of units that suit a device: what ``--dry-run --device`` advises to change in a job."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from raydd.artifacts.rendering import format_bytes
from raydd.config import Job
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.units import Stage
from raydd.evaluation.plan import EvaluationPlan
from raydd.evaluation.stages import Evaluate
from raydd.methods import Method
from raydd.methods.matching.class_matching import ClassMatching
from raydd.methods.method import Problem
from raydd.methods.recovery.recover import MatchStatistics
from raydd.networks import create_network
from raydd.runtime.hardware import Hardware
from raydd.training.students import stackable
from raydd.training.training_cost import network_facts

BUSY_SECONDS = 0.02
"""Arithmetic of an update below which a GPU's time goes to launches. Measured on one H100: a DM
update was 41 ms for 1 ms of arithmetic, and one block of ten classes 1.2 to 2 times as fast as two
of five.
"""
MEMORY_SHARE = 0.8
"""Of a device's memory, what units may take: costs are estimates, and allocators keep some."""


@dataclass(frozen=True)
class Load:
    """What one size of units comes to: FLOP of one update, bytes at peak."""

    flop: float
    peak: float


@dataclass(frozen=True)
class _Size:
    """A key of a job that sizes units: its value, the largest that means anything, and how many
    ``things`` all workers share.

    ``load`` returns what a value comes to, ``accepted`` whether the job could have it and it has an effect.
    """

    key: str
    now: int
    largest: int
    total: int
    things: str
    load: Callable[[int], Load]
    accepted: Callable[[int], bool] = lambda value: True


@dataclass(frozen=True)
class _Place:
    """The device of each of ``workers``; ``rate``: FLOP/s, ``memory``: bytes, of a GPU alone."""

    gpu: Hardware | None
    workers: int
    rate: float
    memory: float

    def fits(self, load: Load) -> bool:
        """Return whether a unit fits the memory."""
        return self.gpu is None or load.peak <= MEMORY_SHARE * self.memory

    def busy(self, load: Load) -> bool:
        """Return whether an update keeps the device busy; a CPU is by any."""
        return self.gpu is None or load.flop / self.rate >= BUSY_SECONDS


def advice(
    job: Job, problem: Problem, evaluation: EvaluationPlan, gpu: Hardware | None, workers: int
) -> list[str]:
    """Return the lines that advise on a job for a GPU (``None``: CPUs) with so many workers; each
    names a key, a value and why.
    """
    share = job.compute.gpus_per_worker if 0 < job.compute.gpus_per_worker < 1 else 1.0
    place = _Place(
        gpu,
        workers,
        share * gpu.rate(job.numerics) if gpu else 0.0,
        share * gpu.memory if gpu else 0.0,
    )
    sizes = [*_of_method(job.method, problem, len(job.seeds)), *_of_students(evaluation)]
    lines = [line for line in (_sized(size, place) for size in sizes) if line]
    if gpu and job.compute.workers and not job.compute.gpus_per_worker:
        lines.append(
            "compute.gpus_per_worker=1 (0 now): a worker sees no GPU that it does not ask for; 0.5 lets two share one"
        )
    where = f"advice for {workers} worker{'s' * (workers > 1)} on {f'an {gpu}' if gpu else 'CPUs'}"
    if not lines:
        return [f"{where}: nothing to change"]
    return [
        f"{where}:",
        *(f"  - {line}" for line in lines),
        "  (other units are other keys; results are the same but for rounding)",
    ]


def _sized(size: _Size, place: _Place) -> str | None:
    """Return the line that advises on a size, if another is better."""
    now, most = size.load(size.now), min(size.largest, -(-size.total // place.workers))
    if size.now > most:
        why = f"{place.workers} workers share {size.total} {size.things}, and have one unit each"
    elif not place.fits(now):
        why = f"{size.now} {size.things} take about {format_bytes(int(now.peak))} of {format_bytes(int(place.memory))}"
    elif place.busy(now):
        return None
    else:
        short = f"{1e3 * now.flop / place.rate:.2g} ms of arithmetic"
        why = (
            f"an update of {size.now} {size.things} is about {short} there; "
            "of few small units a GPU waits for launches"
        )
    best = _best(size, most, place)
    return (
        f"{size.key}={best} ({size.now} now): {why}"
        if best not in (0, size.now) and size.accepted(best)
        else None
    )


def _best(size: _Size, most: int, place: _Place) -> int:
    """Return the smallest size that keeps the device busy, else the largest of at most ``most``
    that fits; 0 if none fits.
    """
    largest = _last(lambda value: place.fits(size.load(value)), most)
    if size.now > most or place.gpu is None:
        return largest
    return min(largest, 1 + _last(lambda value: not place.busy(size.load(value)), largest))


def _last(holds: Callable[[int], bool], most: int) -> int:
    """Return the last of 1 to ``most`` up to which something holds; 0 for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _of_method(method: Method, problem: Problem, seeds: int) -> Iterator[_Size]:
    """Yield what sizes the units of a method's own loop, of which each seed has as many."""
    stage = max(method.last(problem), key=lambda stage: _load(stage).flop)
    if isinstance(stage, ClassMatching):
        yield _of_classes(method, problem, stage, seeds)
    if isinstance(stage, MatchStatistics) and not stage.matching.chained:
        yield _of_groups(method, problem, stage, seeds)


def _replanned(method: Method, problem: Problem, key: str, value: int) -> Any:
    """Return the largest last stage of the method with another value of a field; ``None`` if that is refused."""
    try:
        last = dataclasses.replace(method, **{key: value}).last(problem)
        return max(last, key=lambda stage: _load(stage).flop)
    except (ConfigError, TypeError):
        return None


def _of_classes(method: Method, problem: Problem, stage: ClassMatching, seeds: int) -> _Size:
    name, classes = "classes_per_unit", len(stage.present)
    alive = network_facts(
        str(getattr(stage, "network", "")), stage.dataset.shape, stage.dataset.classes
    ).alive

    def load(value: int) -> Load:
        sized = dataclasses.replace(stage, classes_per_unit=value)
        whole = _load(sized)
        # A GPU embeds the real images of all classes of a block at once; where blocks are lanes,
        # each is a share of an update.
        return Load(
            whole.flop / max(1, sized.lanes), whole.peak + 4 * alive * value * stage.batch_real
        )

    def accepted(value: int) -> bool:
        return (
            getattr(_replanned(method, problem, name, value), name, 0) == value
        )  # one unit holds all, where batch norms see all

    return _Size(
        f"method.{name}",
        stage.classes_per_unit,
        classes,
        classes * seeds,
        "classes",
        load,
        accepted,
    )


def _of_groups(method: Method, problem: Problem, stage: MatchStatistics, seeds: int) -> _Size:
    name, groups = "groups_per_unit", len(stage.grouping.groups(stage.dataset.classes, stage.ipc))

    def load(value: int) -> Load:
        return _load(
            dataclasses.replace(
                stage, grouping=dataclasses.replace(stage.grouping, groups_per_unit=value)
            )
        )

    def accepted(value: int) -> bool:
        return _replanned(method, problem, name, value) is not None

    now = min(stage.grouping.groups_per_unit, groups)
    return _Size(f"method.{name}", now, groups, groups * seeds, "groups", load, accepted)


def _of_students(evaluation: EvaluationPlan) -> Iterator[_Size]:
    """Yield what sizes the units of students; none where a layer of theirs draws while it trains,
    as those are never stacked.
    """
    stages = [
        entry.stage
        for entry in evaluation.entries
        if entry.step is None and isinstance(entry.stage, Evaluate)
    ]
    if not stages:
        return
    stage = max(stages, key=lambda stage: stage.cost(stage.units()[0]).peak_bytes)
    info, batches = stage.dataset, stage.recipe.updates(stage.source.images)
    if not stackable(
        create_network(stage.network, info.shape, info.classes, generator(0, "structure"))
    ):
        return

    def load(value: int) -> Load:
        whole = _load(dataclasses.replace(stage, repeats_per_unit=value))
        return Load(whole.flop / batches, whole.peak)

    total = stage.repeats * len(dict.fromkeys(stages))
    now = min(stage.repeats_per_unit, stage.repeats)
    yield _Size("evaluation.repeats_per_unit", now, stage.repeats, total, "students", load)


def _load(stage: Stage) -> Load:
    """Return what the first unit of a stage, which none is larger than, comes to."""
    unit = stage.units()[0]
    cost = stage.cost(unit)
    return Load(cost.flop / max(1, stage.steps(unit)), cost.peak_bytes)
