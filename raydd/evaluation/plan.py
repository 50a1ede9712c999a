"""The evaluation of a job: which students are trained on what (:mod:`raydd.evaluation.summary` makes the report)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from raydd.core.errors import ConfigError
from raydd.core.rng import derive_seed
from raydd.core.units import Ref, Stage, snapshot
from raydd.evaluation.evaluate import Evaluate, EvaluateNetworks
from raydd.evaluation.protocols import OVERRIDES, PROTOCOLS, Protocol
from raydd.labels.config import LabelConfig
from raydd.labels.fkd import FkdLabels
from raydd.labels.published import PublishedLabels
from raydd.labels.sets import Labels, LabelSource
from raydd.methods.base import METHODS, Method, Problem
from raydd.methods.sources import AssembledSet, StoredSet
from raydd.networks import normalise_name, pool
from raydd.networks.names import POOLS
from raydd.training.recipe import Decay, Loss, Optimizer
from raydd.training.schedules import Schedule
from raydd.training.teachers import TrainNetwork

DEFAULT_NETWORK = "ConvNet"
Baseline = Literal["random", "herding", "kcenter", "whole"]
_DRAWS: dict[str, Callable[[EvaluationConfig], int]] = {
    "random": lambda config: config.random_draws,
    "herding": lambda config: 1,
    "kcenter": lambda config: 1,
}


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a job judges its set; the fields are the YAML keys under ``evaluation:``.

    ``protocol``: a published one by name; ``epochs`` to ``strategy``: changes to it, which its printed name then shows; see
    :class:`raydd.evaluation.protocols.Protocol` (``ema: 0`` tests the live weights).

    ``networks``: architectures, or letters of published pools (empty: the method's own network). ``repeats``: students per set
    and architecture; ``repeats_per_unit``: of them trained together. ``test_every``: also test after every so many epochs, for
    the best epoch's accuracy (0: the last epoch alone). ``split``: what accuracies are of.
    ``baselines``: sets of the same size under the same protocol, and ``whole``, students of all real images trained for
    ``whole_epochs``. ``random_draws``: random subsets, at least 3. ``every``: evaluate snapshots each so many updates, with
    ``snapshot_repeats`` students of the first architecture (null: the end only).
    """

    protocol: str = "dm"
    epochs: Annotated[int, Ge(1)] | None = None
    batch: Annotated[int, Ge(1)] | None = None
    lr: Annotated[float, Gt(0)] | None = None
    optimizer: Optimizer | None = None
    momentum: Annotated[float, Ge(0), Lt(1)] | None = None
    weight_decay: Annotated[float, Ge(0)] | None = None
    decay: Decay | None = None
    schedule: Schedule | None = None
    st: Annotated[float, Ge(1)] | None = None
    milestones: tuple[Annotated[int, Ge(1)], ...] | None = None
    drop_factor: Annotated[float, Gt(0), Lt(1)] | None = None
    loss: Loss | None = None
    ce_weight: Annotated[float, Ge(0)] | None = None
    temperature: Annotated[float, Gt(0)] | None = None
    ema: Annotated[float, Ge(0), Lt(1)] | None = None
    double_norm: bool | None = None
    strategy: str | None = None
    networks: tuple[str, ...] = ()
    repeats: Annotated[int, Ge(1)] = 5
    repeats_per_unit: Annotated[int, Ge(1)] = 5
    test_every: Annotated[int, Ge(0)] = 0
    split: Literal["test", "holdout"] = "test"
    baselines: tuple[Baseline, ...] = ("random",)
    random_draws: Annotated[int, Ge(3)] = 3
    whole_epochs: Annotated[int, Ge(1)] = 60
    every: Annotated[int, Ge(1)] | None = None
    snapshot_repeats: Annotated[int, Ge(1)] = 1

    def resolve(self) -> Protocol:
        """Return the protocol with its changes; ``ConfigError`` for an unknown name or a change without effect."""
        fields = {name: getattr(self, name) for name in OVERRIDES}
        return PROTOCOLS.get(self.protocol).override(**{name: value for name, value in fields.items() if value is not None})

    def architectures(self, own: str) -> tuple[str, ...]:
        """Return the canonical names of the networks to train, pools spelt out; ``own`` is the method's network."""
        names = [name for entry in self.networks or (own,) for name in (pool(entry, own) if entry in POOLS else (normalise_name(entry),))]
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Planned:
    """One group of students: the set's name, the protocol's printed name, the network, which seed or draw, which snapshot."""

    set: str
    protocol: str
    network: str
    draw: int
    step: int | None
    stage: Evaluate | EvaluateNetworks


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated, in the order of the report."""

    name: str
    problem: Problem
    config: EvaluationConfig
    entries: tuple[Planned, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The evaluation's stages, without those that make the sets."""
        return tuple(dict.fromkeys(entry.stage for entry in self.entries))

    def targets(self) -> list[Ref]:
        """Return the outputs that ``summarise`` needs."""
        return list(dict.fromkeys(ref for entry in self.entries for ref in entry.stage.refs()))


def evaluation_stages(method: Method, problems: Problem | Sequence[Problem], config: EvaluationConfig) -> EvaluationPlan:
    """Plan the evaluation of what a method makes of a problem (or of its repetitions with other seeds) and of its baselines.

    Every repetition's students, and those of its baselines, are keyed by its own seed: they start alike. Raises
    ``ConfigError`` for a name that does not exist or what cannot be planned.
    """
    problems = [problems] if isinstance(problems, Problem) else list(problems)
    _check_split(problems[0], config)
    config = _with_labels(config, getattr(method, "labels", None))
    own = getattr(method, "network", DEFAULT_NETWORK)
    networks = config.architectures(own if isinstance(own, str) else DEFAULT_NETWORK)
    entries = []
    for network in networks:
        sources = [(AssembledSet(method=method, problem=problem), problem, labels_of(method, problem)) for problem in problems]
        entries += _rows(method.name, sources, network, config)
        entries += _baselines(method.name, problems, network, config, method)
    if config.every is not None:
        entries += _snapshots(method, problems, networks[0], config)
    return EvaluationPlan(method.name, problems[0], config, tuple(entries))


def stored_evaluation(
    stored: StoredSet, name: str, problem: Problem, config: EvaluationConfig, labels: PublishedLabels | FkdLabels | None = None
) -> EvaluationPlan:
    """Plan the evaluation of a published or foreign set called ``name``, and of the baselines of ``problem``'s size.

    ``labels``: the soft labels that lie beside it, if any do.
    """
    _check_split(problem, config)
    if config.every is not None:
        raise ConfigError("evaluation.every: a stored set has no snapshots")
    name = f"stored {name}" if name in config.baselines else name
    config, entries = _with_labels(config, None if labels is None else labels.config), []
    if labels is not None and config.resolve().learns_logits and config.baselines:
        raise ConfigError(
            "evaluation.baselines: the teachers of a published set are not published with it, so no other set can get the same soft "
            "labels; evaluate it with evaluation.baselines=[], or run its job"
        )
    for network in config.architectures(DEFAULT_NETWORK):
        entries += _rows(name, [(stored, problem, labels)], network, config) + _baselines(name, [problem], network, config, None)
    return EvaluationPlan(name, problem, config, tuple(entries))


def _check_split(problem: Problem, config: EvaluationConfig) -> None:
    splits = [split for split, _ in problem.dataset.digests]
    if splits and config.split not in splits:
        hint = "; set dataset.holdout" if config.split == "holdout" else ""
        raise ConfigError(f"evaluation.split: the data set has no '{config.split}' split{hint}; it has: {', '.join(splits)}")


def labels_of(method: Method, problem: Problem, source: AssembledSet | None = None) -> Labels | None:
    """Return the soft labels of a method's set, or, given the ``source`` of another set, the same teachers' labels of that one.

    The latter are computed while students train. ``None`` for methods with hard labels.
    """
    config = getattr(method, "labels", None)
    teachers = method.label_teachers(problem)
    if config is None or not teachers:
        return None
    if source is not None and config.stored:
        config = replace(config, codec="recipe", top=None, tail="mean")
    source = source or AssembledSet(method=method, problem=problem)
    return Labels(source=source, teachers=teachers, config=config, seed=problem.seed, numerics=problem.numerics.plain)


def _with_labels(config: EvaluationConfig, labels: LabelConfig | None) -> EvaluationConfig:
    """Return the evaluation with the batch size and the epochs of the set's soft labels, unless the job names its own."""
    if labels is None or not config.resolve().learns_logits:
        return config
    epochs = labels.epochs if config.epochs is None and labels.stored else config.epochs
    return replace(config, batch=labels.batch if config.batch is None else config.batch, epochs=epochs)


def _stage(
    source: AssembledSet | StoredSet, problem: Problem, network: str, config: EvaluationConfig, repeats: int, labels: LabelSource | None
) -> Evaluate:
    protocol = config.resolve()
    if protocol.learns_logits and labels is None:
        hard = ", ".join(name for name in PROTOCOLS.names() if not PROTOCOLS.get(name).learns_logits)
        raise ConfigError(
            f"evaluation.protocol: '{config.protocol}' teaches soft labels, and this set has none; "
            f"protocols for hard labels: {hard}"
        )
    return Evaluate(
        seed=problem.seed,
        numerics=problem.numerics,
        source=source,
        labels=labels if protocol.learns_logits else None,
        dataset=problem.dataset.only(config.split),
        split=config.split,
        recipe=protocol.recipe(problem.dataset, network),
        network=network,
        test_every=config.test_every,
        repeats=repeats,
        repeats_per_unit=config.repeats_per_unit,
    )


_Labelled = tuple[AssembledSet | StoredSet, Problem, LabelSource | None]


def _rows(name: str, sources: Sequence[_Labelled], network: str, config: EvaluationConfig) -> list[Planned]:
    label = config.resolve().label
    stages = [_stage(source, problem, network, config, config.repeats, labels) for source, problem, labels in sources]
    return [Planned(name, label, network, draw, None, stage) for draw, stage in enumerate(stages)]


def _baselines(
    name: str, problems: Sequence[Problem], network: str, config: EvaluationConfig, method: Method | None
) -> list[Planned]:
    """Plan the baselines; where the set's students learn soft labels, ``method``'s teachers label the others as well."""
    entries = []
    for baseline in dict.fromkeys(config.baselines):
        if baseline == "whole":
            entries += _whole(problems[0], network, config)
            continue
        selection = METHODS.get(baseline)()
        drawn = _draws(problems, _DRAWS[baseline](config))
        if selection.name == name:  # the set itself is the first draw, and counted once
            drawn = drawn[len(problems) :]
        sources: list[_Labelled] = []
        for draw, problem in drawn:
            source = AssembledSet(method=selection, problem=draw)
            sources.append((source, problem, labels_of(method, problem, source) if method is not None else None))
        entries += _rows(baseline, sources, network, config)
    return entries


def _draws(problems: Sequence[Problem], count: int) -> list[tuple[Problem, Problem]]:
    """Return ``(problem that keys the draw, problem whose seed keys the students)``, evenly over the repetitions."""
    per_problem = math.ceil(count / len(problems))
    pairs = [(problem, problem) for problem in problems]
    for k in range(1, per_problem):
        pairs += [(replace(problem, seed=derive_seed(problem.seed, "random/draw", k)), problem) for problem in problems]
    return pairs


def _whole(problem: Problem, network: str, config: EvaluationConfig) -> list[Planned]:
    protocol = config.resolve().override(epochs=config.whole_epochs).with_hard_labels()
    teacher = TrainNetwork(
        seed=problem.seed,
        numerics=problem.numerics,
        dataset=problem.dataset.only("train"),
        network=network,
        recipe=protocol.recipe(problem.dataset, network),
        count=config.repeats,
    )
    stage = EvaluateNetworks(
        seed=problem.seed,
        numerics=problem.numerics,
        teacher=teacher,
        dataset=problem.dataset.only(config.split),
        split=config.split,
    )
    return [Planned("whole", protocol.label, network, 0, None, stage)]


def _snapshots(method: Method, problems: Sequence[Problem], network: str, config: EvaluationConfig) -> list[Planned]:
    entries, label = [], config.resolve().label
    for draw, problem in enumerate(problems):
        last = method.plan(problem)[-1]
        total = min(last.steps(unit) for unit in last.units())
        for step in range(0, total, config.every or total):
            source = AssembledSet(method=method, problem=problem, output=snapshot(step))
            labels = labels_of(method, problem, source)
            stage = _stage(source, problem, network, config, config.snapshot_repeats, labels)
            entries.append(Planned(method.name, label, network, draw, step, stage))
    return entries
