"""The evaluation of a job: which students are trained on what (:mod:`raydd.evaluation.summary` makes the report)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from raydd.core.errors import ConfigError
from raydd.core.rng import derive_seed
from raydd.core.units import Ref, Stage, snapshot
from raydd.evaluation.evaluate import Evaluate, EvaluateNetworks
from raydd.methods.sources import AssembledSet, StoredSet
from raydd.evaluation.protocols import PROTOCOLS, Protocol
from raydd.methods.base import METHODS, Method, Problem
from raydd.networks import normalise_name, pool
from raydd.networks.names import POOLS
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

    ``protocol``: a published one by name; ``epochs``, ``batch``, ``lr``, ``strategy``: changes to it, which its printed name
    then shows. ``networks``: architectures, or letters of published pools (empty: the method's own network). ``repeats``:
    students per set and architecture; ``repeats_per_unit``: of them trained together. ``test_every``: also test after every
    so many epochs, for the best epoch's accuracy (0: the last epoch alone). ``split``: what accuracies are of.
    ``baselines``: sets of the same size under the same protocol, and ``whole``, students of all real images trained for
    ``whole_epochs``. ``random_draws``: random subsets, at least 3. ``every``: evaluate snapshots each so many updates, with
    ``snapshot_repeats`` students of the first architecture (null: the end only).
    """

    protocol: str = "dm"
    epochs: Annotated[int, Ge(1)] | None = None
    batch: Annotated[int, Ge(1)] | None = None
    lr: Annotated[float, Gt(0)] | None = None
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
        fields = {name: getattr(self, name) for name in ("epochs", "batch", "lr", "strategy")}
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
    own = getattr(method, "network", DEFAULT_NETWORK)
    networks = config.architectures(own if isinstance(own, str) else DEFAULT_NETWORK)
    entries = []
    for network in networks:
        sources = [(AssembledSet(method=method, problem=problem), problem) for problem in problems]
        entries += _rows(method.name, sources, network, config)
        entries += _baselines(method.name, problems, network, config)
    if config.every is not None:
        entries += _snapshots(method, problems, networks[0], config)
    return EvaluationPlan(method.name, problems[0], config, tuple(entries))


def stored_evaluation(stored: StoredSet, name: str, problem: Problem, config: EvaluationConfig) -> EvaluationPlan:
    """Plan the evaluation of a published or foreign set called ``name``, and of the baselines of ``problem``'s size."""
    _check_split(problem, config)
    if config.every is not None:
        raise ConfigError("evaluation.every: a stored set has no snapshots")
    name = f"stored {name}" if name in config.baselines else name
    entries = []
    for network in config.architectures(DEFAULT_NETWORK):
        entries += _rows(name, [(stored, problem)], network, config) + _baselines(name, [problem], network, config)
    return EvaluationPlan(name, problem, config, tuple(entries))


def _check_split(problem: Problem, config: EvaluationConfig) -> None:
    splits = [split for split, _ in problem.dataset.digests]
    if splits and config.split not in splits:
        hint = "; set dataset.holdout" if config.split == "holdout" else ""
        raise ConfigError(f"evaluation.split: the data set has no '{config.split}' split{hint}; it has: {', '.join(splits)}")


def _stage(source: AssembledSet | StoredSet, problem: Problem, network: str, config: EvaluationConfig, repeats: int) -> Evaluate:
    return Evaluate(
        seed=problem.seed,
        numerics=problem.numerics,
        source=source,
        dataset=problem.dataset.only(config.split),
        split=config.split,
        recipe=config.resolve().recipe(problem.dataset, network),
        network=network,
        test_every=config.test_every,
        repeats=repeats,
        repeats_per_unit=config.repeats_per_unit,
    )


def _rows(
    name: str, sources: Sequence[tuple[AssembledSet | StoredSet, Problem]], network: str, config: EvaluationConfig
) -> list[Planned]:
    label = config.resolve().label
    stages = [_stage(source, problem, network, config, config.repeats) for source, problem in sources]
    return [Planned(name, label, network, draw, None, stage) for draw, stage in enumerate(stages)]


def _baselines(name: str, problems: Sequence[Problem], network: str, config: EvaluationConfig) -> list[Planned]:
    entries = []
    for baseline in dict.fromkeys(config.baselines):
        if baseline == "whole":
            entries += _whole(problems[0], network, config)
            continue
        method = METHODS.get(baseline)()
        drawn = _draws(problems, _DRAWS[baseline](config))
        if method.name == name:  # the set itself is the first draw, and counted once
            drawn = drawn[len(problems) :]
        entries += _rows(baseline, [(AssembledSet(method=method, problem=draw), problem) for draw, problem in drawn], network, config)
    return entries


def _draws(problems: Sequence[Problem], count: int) -> list[tuple[Problem, Problem]]:
    """Return ``(problem that keys the draw, problem whose seed keys the students)``, evenly over the repetitions."""
    per_problem = math.ceil(count / len(problems))
    pairs = [(problem, problem) for problem in problems]
    for k in range(1, per_problem):
        pairs += [(replace(problem, seed=derive_seed(problem.seed, "random/draw", k)), problem) for problem in problems]
    return pairs


def _whole(problem: Problem, network: str, config: EvaluationConfig) -> list[Planned]:
    protocol = config.resolve().override(epochs=config.whole_epochs)
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
            stage = _stage(source, problem, network, config, config.snapshot_repeats)
            entries.append(Planned(method.name, label, network, draw, step, stage))
    return entries
