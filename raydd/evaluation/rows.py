"""Rows of an evaluation's report as they are planned: students of one network on one set, keyed by one seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raydd.core.errors import ConfigError
from raydd.core.rng import derive_seed
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.protocols import PROTOCOLS
from raydd.evaluation.set_sources import AssembledSet, SetSource
from raydd.evaluation.spaces import fit_of
from raydd.evaluation.stages import Evaluate, EvaluateNetworks
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_sources import Labels, LabelSource
from raydd.methods.method import Method, Problem
from raydd.training.batches import check_batches
from raydd.training.training_cost import network_facts


@dataclass(frozen=True)
class Coded:
    """What the rows of a coded set are told by; see :class:`raydd.artifacts.accounting.Coding`."""

    series: str
    budget: int | None = None
    fills: str = ""


@dataclass(frozen=True)
class Planned:
    """One group of students: the set's name, the protocol's printed name, the network, which seed
    or draw, which snapshot; ``coding``: of a set that is coded.
    """

    set: str
    protocol: str
    network: str
    draw: int
    step: int | None
    stage: Evaluate | EvaluateNetworks
    coding: Coded | None = None


def settle(
    config: EvaluationConfig, problem: Problem, own: str, labels: LabelConfig | None = None
) -> tuple[EvaluationConfig, tuple[str, ...]]:
    """Return an evaluation with what it leaves to the set, and the networks to train, ``own`` where it names none.

    Students of soft ``labels`` are trained in batches and for epochs as these have them.
    ``ConfigError``, before anything is distilled, for a split that the data lack and a network that
    cannot read their images.
    """
    splits = [split for split, _ in problem.dataset.digests]
    tested = [split for split in splits if split != "train"]
    if splits and config.split not in tested:
        hint = "; set dataset.holdout" if config.split == "holdout" else ""
        raise ConfigError(
            f"evaluation.split: the data set has no '{config.split}' split{hint}; it has: {', '.join(tested)}"
        )
    if labels is not None and config.resolve().learns_logits:
        # Else the protocol's, which nothing limits.
        limited = labels.stored or labels.epochs != LabelConfig.epochs
        epochs = labels.epochs if config.epochs is None and limited else config.epochs
        batch = labels.batch if config.batch is None else config.batch
        config = replace(config, batch=batch, epochs=epochs)
    networks = config.architectures(own)
    epochs = min(config.resolve().recipe(problem.dataset, name).epochs for name in networks)
    late = [epoch for epoch in config.after if epoch >= epochs]
    if late:
        raise ConfigError(
            f"evaluation.after={late[0]}: students are trained for {epochs} epochs, after which they are tested anyway"
        )
    for network in networks:
        network_facts(network, problem.dataset.shape, problem.dataset.classes)
    return config, networks


def labels_of(
    method: Method,
    problem: Problem,
    source: SetSource | None = None,
    batch: int | None = None,
    own: bool = False,
) -> Labels | None:
    """Return the soft labels of a method's set, or, given the ``source`` of another set, the same
    teachers' labels of that one; ``own``: it is the method's set, coded.

    The latter are computed while students train; of static labels by each worker, before.
    ``batch``: of the labels, where it is not the method's. ``None`` for methods with hard labels.
    """
    config = method.label_config
    teachers = method.label_teachers(problem)
    if config is None or not teachers:
        return None
    own = own or source is None
    kept = own or not config.static
    if not own and config.stored and not config.static:
        config = replace(config, codec="recipe", top=None, tail="mean")
    if batch is not None:
        config = replace(config, batch=batch)
    source = source or AssembledSet(method=method, problem=problem)
    return Labels(
        source=source,
        teachers=teachers,
        config=config,
        seed=problem.seed,
        numerics=problem.numerics.plain,
        kept=kept,
    )


def student_seed(problem: Problem, config: EvaluationConfig) -> int:
    """Return the seed of a set's students: the problem's, or one of the evaluation's own for each problem."""
    if config.seed is None:
        return problem.seed
    return derive_seed(config.seed, "students", problem.seed) % 2**31


LabelledSource = tuple[SetSource, Problem, LabelSource | None]
"""A set, the problem whose seed keys its students, and the set's soft labels."""


def rows(
    name: str,
    sources: Sequence[LabelledSource],
    network: str,
    config: EvaluationConfig,
    step: int | None = None,
) -> list[Planned]:
    """Plan students of one network on every draw of a set; ``step``: on its snapshot, whose students are fewer."""
    label = config.resolve().label
    repeats = config.repeats if step is None else config.snapshot_repeats
    return [
        Planned(name, label, network, draw, step, _students(*source, network, config, repeats))
        for draw, source in enumerate(sources)
    ]


def _students(
    source: SetSource,
    problem: Problem,
    labels: LabelSource | None,
    network: str,
    config: EvaluationConfig,
    repeats: int,
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
        space=fit_of(protocol, problem.dataset),
    )
