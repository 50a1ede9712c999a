"""The evaluation of a job: which students are trained on what (:mod:`raydd.evaluation.summary` makes the report)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from raydd.artifacts.coded_facts import ImageCodec
from raydd.artifacts.report import Published
from raydd.core.errors import ConfigError
from raydd.core.units import Ref, Stage, snapshot
from raydd.evaluation.baselines import baseline_rows
from raydd.evaluation.coded_set import CodedSet, coded
from raydd.evaluation.continual_plan import PlannedMemory, memories_of
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.packed_set import PackedSet
from raydd.evaluation.rivals import Rival, rivals
from raydd.evaluation.rows import (
    Planned,
    labels_of,
    rows,
    settle,
)
from raydd.evaluation.set_sources import AssembledSet
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
    codec: ImageCodec | None = None,
) -> EvaluationPlan:
    """Plan the evaluation of what a method makes of a problem (or of its repetitions with other
    seeds) and of its baselines.

    ``codec``: how the images of the set and of its baselines are coded (``None``: they are not).
    Every repetition's students, and those of its baselines, are keyed by its own seed: they start alike. Raises
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
    sets = [(_made(method, problem, codec), problem) for problem in problems]
    entries, own = [], sets[0][0].size
    stored = own_labels(method, problems[0], codec)
    if stored is not None and stored.config.stored:
        own = replace(own, bytes=own.bytes + stored.bytes)
    for network in networks:
        sources = [(one, problem, own_labels(method, problem, codec)) for one, problem in sets]
        entries += rows(method.name, sources, network, config)
        entries += baseline_rows(
            method.name, problems, network, config, others, partial(labels_of, method), own, codec
        )
    if config.every is not None:
        entries += _snapshots(method, problems, networks[0], config, codec)
    memories: tuple[PlannedMemory, ...] = ()
    if config.continual is not None:
        if codec is not None:
            raise ConfigError(
                "evaluation.continual: sets of single steps are not coded; leave out images, or judge the published"
                " set: raydd evaluate URL --continual STEPS"
            )
        memories = memories_of(method.name, sets, networks[0], config, config.continual, others)
    return EvaluationPlan(
        method.name,
        problems[0],
        config,
        tuple(entries),
        memories,
        shrunk(entries),
    )


def _made(
    method: Method, problem: Problem, codec: ImageCodec | None, output: str = "final"
) -> AssembledSet | PackedSet | CodedSet:
    """Return the source of a method's set, behind the codec if there is one."""
    return coded(AssembledSet(method=method, problem=problem, output=output), codec)


def own_labels(
    method: Method, problem: Problem, codec: ImageCodec | None, output: str = "final"
) -> Labels | None:
    """Return the soft labels of a method's set as students see it, of coded images where they are coded."""
    source = None if codec is None and output == "final" else _made(method, problem, codec, output)
    return labels_of(method, problem, source, own=output == "final")


def shrunk(entries: Sequence[Planned]) -> tuple[str, ...]:
    """Return a note for each set of a plan whose images are smaller than the data set's."""
    sources = ((entry.set, getattr(entry.stage, "source", None)) for entry in entries)
    said = (
        f"{name}: {of.note}."
        for name, of in sources
        if isinstance(of, (PackedSet, CodedSet)) and of.note
    )
    return tuple(dict.fromkeys(said))


def _snapshots(
    method: Method,
    problems: Sequence[Problem],
    network: str,
    config: EvaluationConfig,
    codec: ImageCodec | None,
) -> list[Planned]:
    entries: list[Planned] = []
    total = method.updates(problems[0])
    for step in range(0, total, config.every or total):
        at = snapshot(step)
        sources = [
            (_made(method, one, codec, at), one, own_labels(method, one, codec, at))
            for one in problems
        ]
        entries += rows(method.name, sources, network, config, step)
    return sorted(entries, key=lambda entry: entry.draw)
