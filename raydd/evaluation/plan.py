"""The evaluation of a job: which students are trained on what (:mod:`raydd.evaluation.summary` makes the report)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

from raydd.artifacts.report import Published
from raydd.core.errors import ConfigError, Missing, TooFew, unknown
from raydd.core.rng import derive_seed
from raydd.core.units import Ref, Stage, snapshot
from raydd.evaluation.continual import EvaluateMemory, OrderDraw, StepSets
from raydd.evaluation.evaluation_config import EvaluationConfig as EvaluationConfig
from raydd.evaluation.kept import kept_images
from raydd.evaluation.protocols import PROTOCOLS
from raydd.evaluation.set_sources import AssembledSet, SetSource, StoredSet
from raydd.evaluation.stages import Evaluate, EvaluateNetworks
from raydd.labels.fkd import FkdLabels
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_sources import Labels, LabelSource
from raydd.labels.published import PublishedLabels
from raydd.methods.method import METHODS, Method, Problem
from raydd.networks import normalise_name
from raydd.training.batches import check_batches
from raydd.training.train_network import TrainNetwork
from raydd.training.training_cost import network_facts

DEFAULT_NETWORK = "ConvNet"


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


@dataclass(frozen=True)
class PlannedMemory:
    """The students of one class order of the continual experiment: the set's name, the protocol's
    printed name, the network.
    """

    set: str
    protocol: str
    network: str
    stage: EvaluateMemory


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated, in the order of the report. ``notes``: what a reader of the report has to know besides.

    ``size``, ``published``: as of the :class:`raydd.artifacts.report.Report`.
    """

    name: str
    problem: Problem
    config: EvaluationConfig
    entries: tuple[Planned, ...]
    continual: tuple[PlannedMemory, ...] = ()
    notes: tuple[str, ...] = ()
    size: str = ""
    published: tuple[Published, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The evaluation's stages, without those that make the sets."""
        return tuple(
            dict.fromkeys(
                [
                    *(entry.stage for entry in self.entries),
                    *(entry.stage for entry in self.continual),
                ]
            )
        )

    def targets(self) -> list[Ref]:
        """Return the outputs that ``summarise`` needs."""
        return list(dict.fromkeys(ref for stage in self.stages for ref in stage.refs()))


def evaluation_stages(
    method: Method, problems: Problem | Sequence[Problem], config: EvaluationConfig
) -> EvaluationPlan:
    """Plan the evaluation of what a method makes of a problem (or of its repetitions with other
    seeds) and of its baselines.

    Every repetition's students, and those of its baselines, are keyed by its own seed: they start alike. Raises
    ``ConfigError`` for a name that does not exist or what cannot be planned.
    """
    problems = [problems] if isinstance(problems, Problem) else list(problems)
    _check_split(problems[0], config)
    config = _with_labels(config, getattr(method, "labels", None))
    own = getattr(method, "network", DEFAULT_NETWORK)
    networks = _architectures(config, own if isinstance(own, str) else DEFAULT_NETWORK, problems[0])
    others = rivals(config)
    if any(
        isinstance(other, Method) and other.name == method.name and other != method
        for other in config.baselines
    ):
        raise ConfigError(
            f"evaluation.baselines: '{method.name}' is the job's own method; its rows could not be told apart"
        )
    entries = []
    for network in networks:
        sources = [
            (AssembledSet(method=method, problem=problem), problem, labels_of(method, problem))
            for problem in problems
        ]
        entries += _rows(method.name, sources, network, config)
        entries += _baselines(
            method.name, problems, network, config, others, partial(labels_of, method)
        )
    if config.every is not None:
        entries += _snapshots(method, problems, networks[0], config)
    made = [(AssembledSet(method=method, problem=problem), problem) for problem in problems]
    return EvaluationPlan(
        method.name,
        problems[0],
        config,
        tuple(entries),
        _continual(method.name, made, networks[0], config, others),
    )


@dataclass(frozen=True)
class Maker:
    """What a stored set was made by: a method with teachers, and the problem that keys these."""

    method: Method
    problem: Problem

    @property
    def config(self) -> LabelConfig:
        """How the set's labels were made."""
        config: LabelConfig = self.method.labels  # type: ignore[attr-defined]
        return config


def _need_teachers(maker: Maker | None, why: str) -> None:
    """Raise ``ConfigError`` if a set's maker is not known, ``Missing`` if its teachers' files are not there."""
    way = "evaluate the set with evaluation.baselines=[], or run its job"
    if maker is None:
        raise ConfigError(f"{why}, and it is not known which they are; {way}")
    absent = maker.method.missing_teachers(maker.problem)
    if absent:
        raise Missing("\n  ".join([f"{why} by teachers that are missing; {way}:", *absent]))


def _labels_by(maker: Maker | None, problem: Problem, source: AssembledSet) -> Labels | None:
    """Return the labels that a stored set's teachers give to the set of a rival."""
    return None if maker is None else labels_of(maker.method, maker.problem, source)


def stored_evaluation(
    stored: StoredSet | Sequence[StoredSet],
    name: str,
    problem: Problem,
    config: EvaluationConfig,
    labels: PublishedLabels | FkdLabels | None = None,
    own: str = DEFAULT_NETWORK,
    maker: Maker | None = None,
    size: str = "",
    published: Mapping[str, Sequence[float]] | None = None,
) -> EvaluationPlan:
    """Plan the evaluation of a published or foreign set called ``name``, and of the baselines of ``problem``'s size.

    ``stored``: the set, or the experiments of a file, whose students are pooled as those of
    repetitions are. ``labels``: the soft labels that lie beside it, if any do. ``own``: the network
    that made it. ``maker``: what made it, if that is known and has teachers: they label the other
    sets, and this one if its labels are not stored. ``size``: what the set holds, where that is not
    ``problem.ipc`` images of each class. ``published``: accuracies in percent by network, as its
    file has them.
    """
    _check_split(problem, config)
    if config.every is not None:
        raise ConfigError("evaluation.every: a stored set has no snapshots")
    others = rivals(config)
    name = f"stored {name}" if name in others else name
    sets = [stored] if isinstance(stored, StoredSet) else list(stored)
    found: LabelSource | None = labels
    if (
        found is None
        and maker is not None
        and len(sets) == 1
        and not maker.config.stored
        and config.resolve().learns_logits
    ):
        _need_teachers(
            maker,
            f"evaluation.protocol: '{config.protocol}' needs the set's soft labels, computed ({maker.config.codec})",
        )
        found = labels_of(maker.method, maker.problem, sets[0])
    config, entries = _with_labels(config, None if found is None else found.config), []
    if found is not None and config.resolve().learns_logits and config.baselines:
        _need_teachers(
            maker, "evaluation.baselines: other sets need soft labels of the same teachers"
        )
    networks = _architectures(config, own, problem)
    for network in networks:
        entries += _rows(name, [(one, problem, found) for one in sets], network, config)
        entries += _baselines(name, [problem], network, config, others, partial(_labels_by, maker))
    memories = _continual(name, [(one, problem) for one in sets], networks[0], config, others)
    notes = [
        f"Continual learning: the stored set ({name}) is cut by class; whatever made it may have seen all classes."
    ] * bool(memories)
    if config.baselines and size:
        notes.append(f"{name} has {size}, the other sets {problem.ipc} of each class.")
    return EvaluationPlan(
        name,
        problem,
        config,
        tuple(entries),
        memories,
        tuple(notes),
        size,
        _published(published or {}),
    )


def _published(accuracies: Mapping[str, Sequence[float]]) -> tuple[Published, ...]:
    """Return the mean and deviation of published accuracies, under the names that networks have
    here, where these are known.
    """
    found = []
    for name, values in accuracies.items():
        try:
            name = normalise_name(name)
        except ConfigError:
            pass  # a network of their own
        mean, deviation = statistics.fmean(values), statistics.pstdev(values)
        found.append(
            Published(
                network=name, accuracy_mean=mean, accuracy_std=deviation, networks=len(values)
            )
        )
    return tuple(found)


def rivals(config: EvaluationConfig) -> dict[str, Method]:
    """Return the methods whose sets are judged beside, by name; ``ConfigError`` for one that cannot
    be or that is named twice.

    A baseline by name has the settings that its method has by default.
    """
    found: dict[str, Method] = {}
    for baseline in dict.fromkeys(config.baselines):
        if baseline == "whole":
            continue
        if isinstance(baseline, str):
            check_baseline(baseline)
        method = METHODS.get(baseline)() if isinstance(baseline, str) else baseline
        check_baseline(method.name)
        if found.setdefault(method.name, method) != method:
            raise ConfigError(
                f"evaluation.baselines: '{method.name}' stands there twice, with other settings"
            )
    return found


def check_baseline(name: str, key: str = "evaluation.baselines") -> None:
    """Raise ``ConfigError`` that begins with ``key`` for what is no baseline; methods with soft
    labels of their own are none.
    """
    allowed = [
        known
        for known in METHODS.names()
        if not any(field.name == "labels" for field in fields(METHODS.get(known)))
    ] + ["whole"]
    if name not in allowed and name in METHODS:
        raise ConfigError(
            f"{key}: the sets of '{name}' have soft labels of their own; allowed: {', '.join(allowed)}"
        )
    if name not in allowed:
        raise ConfigError(f"{key}: {unknown('baseline', name, allowed)}")


def _check_split(problem: Problem, config: EvaluationConfig) -> None:
    splits = [split for split, _ in problem.dataset.digests]
    tested = [split for split in splits if split != "train"]
    if splits and config.split not in tested:
        hint = "; set dataset.holdout" if config.split == "holdout" else ""
        raise ConfigError(
            f"evaluation.split: the data set has no '{config.split}' split{hint}; it has: {', '.join(tested)}"
        )


def _architectures(config: EvaluationConfig, own: str, problem: Problem) -> tuple[str, ...]:
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
    config = getattr(method, "labels", None)
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


def _with_labels(config: EvaluationConfig, labels: LabelConfig | None) -> EvaluationConfig:
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


def _stage(
    source: AssembledSet | StoredSet,
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
            f"evaluation.protocol: '{config.protocol}' teaches soft labels, and this set has none; "
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
        seed=problem.seed,
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


_Labelled = tuple[AssembledSet | StoredSet, Problem, LabelSource | None]


def _rows(
    name: str, sources: Sequence[_Labelled], network: str, config: EvaluationConfig
) -> list[Planned]:
    label = config.resolve().label
    stages = [
        _stage(source, problem, network, config, config.repeats, labels)
        for source, problem, labels in sources
    ]
    return [Planned(name, label, network, draw, None, stage) for draw, stage in enumerate(stages)]


def _baselines(
    name: str,
    problems: Sequence[Problem],
    network: str,
    config: EvaluationConfig,
    others: Mapping[str, Method],
    labels: Callable[[Problem, AssembledSet], Labels | None],
) -> list[Planned]:
    """Plan the baselines; ``labels`` returns those of another set, where the set's students learn soft labels."""
    entries: list[Planned] = []
    for baseline, rival in others.items():
        drawn = _draws(problems, config.random_draws if baseline == "random" else 1)
        if baseline == name:  # the set itself is the first draw, and counted once
            drawn = drawn[len(problems) :]
        sources: list[_Labelled] = []
        for draw, problem in drawn:
            try:
                source = AssembledSet(method=rival, problem=draw)
            except TooFew as error:
                raise ConfigError(
                    f"evaluation.baselines: {baseline}: {error.found}; {error.most}, or leave it out"
                ) from error
            except ConfigError as error:
                raise ConfigError(f"evaluation.baselines: {baseline}: {error}") from error
            sources.append((source, problem, labels(problem, source)))
        entries += _rows(baseline, sources, network, config)
    return entries + (_whole(problems[0], network, config) if "whole" in config.baselines else [])


def _draws(problems: Sequence[Problem], count: int) -> list[tuple[Problem, Problem]]:
    """Return ``(problem that keys the draw, problem whose seed keys the students)``, evenly over the repetitions."""
    per_problem = math.ceil(count / len(problems))
    pairs = [(problem, problem) for problem in problems]
    for k in range(1, per_problem):
        pairs += [
            (replace(problem, seed=derive_seed(problem.seed, "random/draw", k)), problem)
            for problem in problems
        ]
    return pairs


def _whole(problem: Problem, network: str, config: EvaluationConfig) -> list[Planned]:
    if (
        config.resolve().learns_logits
    ):  # the batch of the labels, ten images perhaps, is none for all real images
        config = replace(config, batch=None)
    protocol = config.resolve().override(epochs=config.whole_epochs).with_hard_labels()
    recipe, info = protocol.recipe(problem.dataset, network), problem.dataset
    if info.digests:  # else the numbers of images are estimates
        where = "evaluation.baselines: whole"
        check_batches(
            network,
            info.shape,
            info.classes,
            [sum(info.train_counts)],
            recipe,
            "evaluation.batch",
            where,
        )
    teacher = TrainNetwork(
        seed=problem.seed,
        numerics=problem.numerics,
        dataset=problem.dataset.only("train"),
        network=network,
        recipe=recipe,
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


def _snapshots(
    method: Method, problems: Sequence[Problem], network: str, config: EvaluationConfig
) -> list[Planned]:
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


def _continual(
    name: str,
    sets: Sequence[tuple[SetSource, Problem]],
    network: str,
    config: EvaluationConfig,
    others: Mapping[str, Method],
) -> tuple[PlannedMemory, ...]:
    """Plan the continual experiment of a set and of its rivals (of the same size); order k is given
    to repetition k, in turn.
    """
    if config.continual is None:
        return ()
    protocol, entries = config.resolve(), []
    for of, order in (
        (of, order)
        for of in dict.fromkeys([name, *others])
        for order in range(config.continual_orders)
    ):
        source, problem = sets[order % len(sets)]
        if of != name:
            source = AssembledSet(method=others[of], problem=problem)
        if isinstance(source, AssembledSet):
            source = _memory_source(source, order, config.continual)
        recipe, info = protocol.recipe(problem.dataset, network), problem.dataset
        kept = kept_images(source, info.classes, order, config.continual)
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
            seed=problem.seed,
            numerics=problem.numerics,
            source=source,
            dataset=info.only(config.split),
            split=config.split,
            recipe=recipe,
            network=network,
            order=order,
            parts=config.continual,
            repeats=config.continual_repeats,
            repeats_per_unit=config.repeats_per_unit,
        )
        entries.append(PlannedMemory(of, protocol.label, network, stage))
    return tuple(entries)


def _memory_source(made: AssembledSet, order: int, parts: int) -> SetSource:
    """Return what the memory of one class order is made of: random images are drawn anew, joint
    methods distil every step alone.
    """
    method, problem = made.method, made.problem
    if method.name == "random":
        return OrderDraw(dataset=problem.dataset.only("train"), ipc=problem.ipc, order=order)
    return StepSets.plan(method, problem, order, parts) if method.joint(problem) else made
