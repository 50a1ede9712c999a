"""The evaluation of a job: which students are trained on what (:mod:`raydd.evaluation.summary` makes the report)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from raydd.artifacts.report import Published
from raydd.core.errors import ConfigError
from raydd.core.units import Ref, Stage, snapshot
from raydd.evaluation.baselines import baseline_rows, whole_rows
from raydd.evaluation.coded_rows import check_beside, check_codable, coded_rows
from raydd.evaluation.coded_set import CodedSet, coded
from raydd.evaluation.coding_rule import CodingRule
from raydd.evaluation.continual_plan import PlannedMemory, memories_of
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.images_config import ImagesConfig
from raydd.evaluation.packed_set import PackedSet
from raydd.evaluation.rivals import Rival, rivals
from raydd.evaluation.rows import (
    Planned,
    labels_of,
    rows,
    settle,
)
from raydd.evaluation.set_sources import AssembledSet, SetSource
from raydd.evaluation.spaces import check_space
from raydd.evaluation.stages import Evaluate
from raydd.labels.label_sources import Labels
from raydd.methods.method import Method, Problem


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
    def own(self) -> set[str]:
        """What rows of the judged set are called: by its name, or, of several files, by each of them."""
        coded = {e.set for e in self.entries if e.coding is not None and not e.coding.fills}
        return coded or {self.name}

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
        refs = [ref for stage in self.stages for ref in stage.refs()]
        refs += [
            ref
            for entry in self.entries
            for epoch in self.early(entry)
            for ref in entry.stage.refs(snapshot(epoch))
        ]
        return list(dict.fromkeys(refs))

    def early(self, entry: Planned) -> list[int]:
        """Return the epochs before its end after which a finished set's students are reported, too."""
        if entry.step is not None or not isinstance(entry.stage, Evaluate):
            return []
        return [epoch for epoch in self.config.after if epoch < entry.stage.recipe.epochs]


def evaluation_stages(
    method: Method,
    problems: Problem | Sequence[Problem],
    config: EvaluationConfig,
    images: ImagesConfig | None = None,
) -> EvaluationPlan:
    """Plan the evaluation of what a method makes of a problem (or of its repetitions with other
    seeds) and of its baselines.

    Every repetition's students, and those of its baselines, are keyed by its own seed: they start alike.
    ``images``: how the sets are coded before students see them, if they are. Raises
    ``ConfigError`` for a name that does not exist or what cannot be planned.
    """
    problems = [problems] if isinstance(problems, Problem) else list(problems)
    config = replace(config, protocol=config.protocol or method.protocol)
    config, networks = settle(config, problems[0], method.student_network, method.label_config)
    check_space(method.made_in, config.resolve(), f"the set of '{method.name}'")
    others = rivals(config)
    stated = [rival for rival in map(Rival.of, config.baselines) if rival is not None]
    if any(rival.label == method.name and rival.method != method for rival in stated):
        raise ConfigError(
            f"evaluation.baselines: '{method.name}' is the job's own method; its rows could not be told apart: give"
            " them a label"
        )
    check_beside(config, images)
    if images is not None:
        return _coded_plan(method, problems, config, images, networks)
    entries, own = [], method.size(problems[0])
    stored = labels_of(method, problems[0])
    if stored is not None and stored.config.stored:
        own = replace(own, bytes=own.bytes + stored.bytes)
    for network in networks:
        sources = [
            (AssembledSet(method=method, problem=problem), problem, labels_of(method, problem))
            for problem in problems
        ]
        entries += rows(method.name, sources, network, config)
        entries += baseline_rows(
            method.name, problems, network, config, others, partial(labels_of, method), own
        )
    if config.every is not None:
        entries += _snapshots(method, problems, networks[0], config)
    memories: tuple[PlannedMemory, ...] = ()
    notes = shrunk(entries)
    if config.continual is not None:
        if method.soft_labels and not method.joint(problems[0]):
            notes += (
                f"Continual learning: {method.name} sees all classes; its set is cut by class.",
            )
        made = [(AssembledSet(method=method, problem=problem), problem) for problem in problems]
        memories = memories_of(method.name, made, networks[0], config, config.continual, others)
    return EvaluationPlan(
        method.name,
        problems[0],
        config,
        tuple(entries),
        memories,
        notes,
    )


def _coded_plan(
    method: Method,
    problems: Sequence[Problem],
    config: EvaluationConfig,
    images: ImagesConfig,
    networks: Sequence[str],
) -> EvaluationPlan:
    """Plan the evaluation of a method's sets as they come out of their files."""
    check_codable(method)
    entries: list[Planned] = []
    sources = [(AssembledSet(method=method, problem=problem), problem) for problem in problems]

    def own(problem: Problem, source: SetSource) -> Labels | None:
        return labels_of(method, problem, source, own=not images.ladder)

    for network in networks:
        of = partial(labels_of, method)
        entries += coded_rows(method.name, sources, network, config, images, of, own)
        if "whole" in config.baselines:
            entries += whole_rows(problems[0], network, config)
    if config.every is not None:
        entries += _snapshots(method, problems, networks[0], config, images.rule)
    return EvaluationPlan(method.name, problems[0], config, tuple(entries))


def own_labels(method: Method, problem: Problem, rule: CodingRule | None) -> Labels | None:
    """Return the soft labels of a method's set as students see it: of the coded images, where they are coded."""
    if rule is None:
        return labels_of(method, problem)
    return labels_of(method, problem, _made(method, problem, rule), own=True)


def _made(
    method: Method, problem: Problem, rule: CodingRule | None, output: str = "final"
) -> AssembledSet | CodedSet:
    """Return the source of a method's set, as it comes out of its file if there is one."""
    source = AssembledSet(method=method, problem=problem, output=output)
    return source if rule is None else coded(source, rule, problem.dataset)


def shrunk(entries: Sequence[Planned]) -> tuple[str, ...]:
    """Return a note for each set of a plan whose images are smaller than the data set's."""
    sources = ((entry.set, getattr(entry.stage, "source", None)) for entry in entries)
    said = (f"{name}: {of.note}." for name, of in sources if isinstance(of, PackedSet) and of.note)
    return tuple(dict.fromkeys(said))


def _snapshots(
    method: Method,
    problems: Sequence[Problem],
    network: str,
    config: EvaluationConfig,
    rule: CodingRule | None = None,
) -> list[Planned]:
    entries: list[Planned] = []
    total = method.updates(problems[0])
    for step in range(0, total, config.every or total):
        sets = [(_made(method, problem, rule, snapshot(step)), problem) for problem in problems]
        sources = [(one, problem, labels_of(method, problem, one)) for one, problem in sets]
        entries += rows(method.name, sources, network, config, step)
    return sorted(entries, key=lambda entry: entry.draw)
