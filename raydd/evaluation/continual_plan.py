"""The continual experiment of a set and of its rivals, as it is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raydd.core.errors import ConfigError
from raydd.evaluation.continual import EvaluateMemory, OrderDraw, StepSets
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.kept import kept_images
from raydd.evaluation.rivals import Rival
from raydd.evaluation.rows import student_seed
from raydd.evaluation.set_sources import AssembledSet, SetSource
from raydd.methods.method import Problem
from raydd.training.batches import check_batches


@dataclass(frozen=True)
class PlannedMemory:
    """The students of one class order of the continual experiment: the set's name, the protocol's
    printed name, the network.
    """

    set: str
    protocol: str
    network: str
    stage: EvaluateMemory


def memories_of(
    name: str,
    sets: Sequence[tuple[SetSource, Problem]],
    network: str,
    config: EvaluationConfig,
    steps: int,
    others: Mapping[str, Rival],
) -> tuple[PlannedMemory, ...]:
    """Plan the continual experiment of a set and of its rivals (of the same size); order k is given
    to repetition k, in turn. ``steps``: the experiment's, of equally many classes.
    """
    protocol, entries = config.resolve(), []
    _check_parts(name, sets[0][0])
    if protocol.space != "normalised" or protocol.draw != "epochs":
        raise ConfigError(
            f"evaluation.continual: protocol '{protocol.name}' trains on whitened images, or on a fresh batch in each"
            " step; continual learning needs evaluation.space=normalised and evaluation.draw=epochs"
        )
    # Students of a memory are all trained for as many epochs.
    judged = {label: rival for label, rival in others.items() if rival.keys.equal != "updates"}
    for of, order in (
        (of, order)
        for of in dict.fromkeys([name, *judged])
        for order in range(config.continual_orders)
    ):
        whole, problem = sets[order % len(sets)]
        if of != name:
            whole = judged[of].source(problem, sets[0][0].size)
        _check_parts(of, whole)
        source = _memory_source(whole, order, steps) if isinstance(whole, AssembledSet) else whole
        recipe, info = protocol.recipe(problem.dataset, network), problem.dataset
        kept = kept_images(source, info.classes, order, steps)
        check_batches(
            network,
            info.shape,
            info.classes,
            kept,
            recipe,
            "evaluation.batch",
            "evaluation.continual",
        )
        stage = EvaluateMemory(
            seed=student_seed(problem, config),
            numerics=problem.numerics,
            source=source,
            dataset=info.only(config.split),
            split=config.split,
            recipe=recipe,
            network=network,
            order=order,
            parts=steps,
            repeats=config.continual_repeats,
            repeats_per_unit=config.repeats_per_unit,
        )
        entries.append(PlannedMemory(of, protocol.label, network, stage))
    return tuple(entries)


def _check_parts(of: str, source: SetSource) -> None:
    """Raise ``ConfigError`` for a set that has no parts of single classes."""
    if isinstance(source, AssembledSet) and source.method.one_image:
        raise ConfigError(
            f"evaluation.continual: a set of '{of}' is one poster, whose windows show several classes; it has no part"
            " that belongs to the classes of a step"
        )


def _memory_source(made: AssembledSet, order: int, parts: int) -> SetSource | StepSets:
    """Return what the memory of one class order is made of: random images are drawn anew, joint
    methods distil every step alone.
    """
    method, problem = made.method, made.problem
    if method.drawn_at_random:
        return OrderDraw(dataset=problem.dataset.only("train"), ipc=problem.ipc, order=order)
    return StepSets.plan(method, problem, order, parts) if method.joint(problem) else made
