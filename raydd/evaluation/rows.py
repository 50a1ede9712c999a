"""Rows of an evaluation's report as they are planned: students of one network on one set, keyed by one seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raydd.core.errors import ConfigError
from raydd.core.rng import derive_seed
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.protocols import PROTOCOLS
from raydd.evaluation.set_sources import AssembledSet, SetSource
from raydd.evaluation.stages import Evaluate, EvaluateNetworks
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_sources import Labels, LabelSource
from raydd.methods.method import Method, Problem
from raydd.training.batches import check_batches
from raydd.training.training_cost import network_facts


@dataclass(frozen=True)
class Planned:
    """One group of students: the set's name, the protocol's printed name, the network, which seed
    or draw, which snapshot.
    """

    set: str
    protocol: str
    network: str
    draw: int
    step: int | None
    stage: Evaluate | EvaluateNetworks


def check_split(problem: Problem, config: EvaluationConfig) -> None:
    splits = [split for split, _ in problem.dataset.digests]
    tested = [split for split in splits if split != "train"]
    if splits and config.split not in tested:
        hint = "; set dataset.holdout" if config.split == "holdout" else ""
        raise ConfigError(
            f"evaluation.split: the data set has no '{config.split}' split{hint}; it has: {', '.join(tested)}"
        )


def architectures(config: EvaluationConfig, own: str, problem: Problem) -> tuple[str, ...]:
    """Return the networks to train; ``ConfigError`` for one that cannot read the data set's images,
    before anything is distilled.
    """
    networks = config.architectures(own)
    for network in networks:
        network_facts(network, problem.dataset.shape, problem.dataset.classes)
    return networks


def labels_of(method: Method, problem: Problem, source: SetSource | None = None) -> Labels | None:
    """Return the soft labels of a method's set, or, given the ``source`` of another set, the same
    teachers' labels of that one.

    The latter are computed while students train. ``None`` for methods with hard labels.
    """
    config = method.label_config
    teachers = method.label_teachers(problem)
    if config is None or not teachers:
        return None
    if source is not None and config.stored:
        config = replace(config, codec="recipe", top=None, tail="mean")
    source = source or AssembledSet(method=method, problem=problem)
    return Labels(
        source=source,
        teachers=teachers,
        config=config,
        seed=problem.seed,
        numerics=problem.numerics.plain,
    )


def with_labels(config: EvaluationConfig, labels: LabelConfig | None) -> EvaluationConfig:
    """Return the evaluation with the batch size and the epochs of the set's soft labels, unless the
    job names its own.
    """
    if labels is None or not config.resolve().learns_logits:
        return config
    named = (
        labels.stored or labels.epochs != LabelConfig.epochs
    )  # else the protocol's, which nothing limits
    epochs = labels.epochs if config.epochs is None and named else config.epochs
    return replace(
        config, batch=labels.batch if config.batch is None else config.batch, epochs=epochs
    )


def student_seed(problem: Problem, config: EvaluationConfig) -> int:
    """Return the seed of a set's students: the problem's, or one of the evaluation's own for each problem."""
    if config.seed is None:
        return problem.seed
    return derive_seed(config.seed, "students", problem.seed) % 2**31


def evaluate_stage(
    source: SetSource,
    problem: Problem,
    network: str,
    config: EvaluationConfig,
    repeats: int,
    labels: LabelSource | None,
) -> Evaluate:
    protocol = config.resolve()
    if protocol.learns_logits and labels is None:
        hard = ", ".join(
            name for name in PROTOCOLS.names() if not PROTOCOLS.get(name).learns_logits
        )
        raise ConfigError(
            f"evaluation.protocol: '{protocol.name}' teaches soft labels, and this set has none; "
            f"protocols for hard labels: {hard}"
        )
    recipe = protocol.recipe(problem.dataset, network)
    if labels is not None and protocol.learns_logits:
        labels.config.check_loss(recipe.loss)
    key = "method.labels.batch" if protocol.learns_logits else "evaluation.batch"
    check_batches(
        network,
        problem.dataset.shape,
        problem.dataset.classes,
        [source.images],
        recipe,
        key,
        "evaluation.networks",
    )
    return Evaluate(
        seed=student_seed(problem, config),
        numerics=problem.numerics,
        source=source,
        labels=labels if protocol.learns_logits else None,
        dataset=problem.dataset.only(config.split),
        split=config.split,
        recipe=recipe,
        network=network,
        test_every=config.test_every,
        repeats=repeats,
        repeats_per_unit=config.repeats_per_unit,
    )


LabelledSource = tuple[SetSource, Problem, LabelSource | None]


def rows(
    name: str, sources: Sequence[LabelledSource], network: str, config: EvaluationConfig
) -> list[Planned]:
    label = config.resolve().label
    stages = [
        evaluate_stage(source, problem, network, config, config.repeats, labels)
        for source, problem, labels in sources
    ]
    return [Planned(name, label, network, draw, None, stage) for draw, stage in enumerate(stages)]
