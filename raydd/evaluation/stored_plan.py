"""The evaluation of a published or foreign set."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from raydd.artifacts.report import Published
from raydd.core.errors import ConfigError, Missing
from raydd.evaluation.baselines import baseline_rows, whole_rows
from raydd.evaluation.coded_rows import check_beside, coded_rows
from raydd.evaluation.continual_plan import PlannedMemory, memories_of
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.images_config import ImagesConfig
from raydd.evaluation.plan import EvaluationPlan, shrunk
from raydd.evaluation.rivals import rivals
from raydd.evaluation.rows import labels_of, rows, settle
from raydd.evaluation.set_sources import SetSource, StoredSet
from raydd.labels.fkd import FkdLabels
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_sources import Labels, LabelSource
from raydd.labels.published import PublishedLabels
from raydd.methods.method import DEFAULT_NETWORK, Method, Problem
from raydd.networks import normalise_name


@dataclass(frozen=True)
class Maker:
    """What a stored set was made by: a method with teachers, and the problem that keys these."""

    method: Method
    problem: Problem

    @property
    def config(self) -> LabelConfig:
        """How the set's labels were made."""
        config = self.method.label_config
        if config is None:
            raise TypeError(f"{self.method.name}: its sets have hard labels")
        return config


def _need_teachers(maker: Maker | None, why: str) -> None:
    """Raise ``ConfigError`` if a set's maker is not known, ``Missing`` if its teachers' files are not there."""
    way = "evaluate the set with evaluation.baselines=[], or run its job"
    if maker is None:
        raise ConfigError(f"{why}, and it is not known which they are; {way}")
    absent = maker.method.missing_teachers(maker.problem)
    if absent:
        raise Missing("\n  ".join([f"{why} by teachers that are missing; {way}:", *absent]))


def _labels_by(
    maker: Maker | None, batch: int | None, problem: Problem, source: SetSource
) -> Labels | None:
    """Return the labels that a stored set's teachers give to the set of a rival."""
    return None if maker is None else labels_of(maker.method, maker.problem, source, batch)


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
    images: ImagesConfig | None = None,
    kept: bool = False,
) -> EvaluationPlan:
    """Plan the evaluation of a published or foreign set called ``name``, and of the baselines of ``problem``'s size.

    ``stored``: the set, or the experiments of a file, whose students are pooled as those of
    repetitions are. ``labels``: the soft labels that lie beside it, if any do. ``own``: the network
    that made it. ``maker``: what made it, if that is known and has teachers: they label the other
    sets, and this one if its labels are not stored or it is a part of a larger one. ``size``: what the
    set holds, where that is not ``problem.ipc`` images of each class. ``published``: accuracies in
    percent by network, as its file has them. ``images``: how the set is coded before students see it,
    if it is; ``kept``: as its own file has it, of which soft labels beside it are.
    """
    check_beside(config, images)
    if config.every is not None:
        raise ConfigError("evaluation.every: a stored set has no snapshots")
    others = rivals(config)
    name = f"stored {name}" if name in others else name
    sets = [stored] if isinstance(stored, StoredSet) else list(stored)
    found: LabelSource | None = labels
    reduced, batch = sets[0].reading.ipc is not None, None
    if reduced and maker is not None:
        batch = min(maker.config.batch, sets[0].images)
    if (
        found is None
        and maker is not None
        and len(sets) == 1
        and (reduced or not maker.config.stored)
        and config.resolve().learns_logits
    ):
        protocol, codec = config.resolve().name, maker.config.codec
        why = f"evaluation.protocol: '{protocol}' needs the set's soft labels, computed ({codec})"
        _need_teachers(maker, why)
        found = labels_of(maker.method, maker.problem, sets[0], batch)
    config, networks = settle(config, problem, own, None if found is None else found.config)
    beside = bool(config.baselines) or images is not None
    if found is not None and config.resolve().learns_logits and beside:
        _need_teachers(
            maker, "evaluation.baselines: other sets need soft labels of the same teachers"
        )
    entries, size_of = [], sets[0].size
    if found is not None and found.config.stored:
        size_of = replace(size_of, bytes=size_of.bytes + found.bytes)
    for network in networks:
        if images is not None:
            given = [(one, problem) for one in sets]
            by = partial(_labels_by, maker, batch)
            own_labels = (lambda problem, source: found) if kept and found is not None else by
            entries += coded_rows(name, given, network, config, images, by, own_labels)
            entries += whole_rows(problem, network, config) if "whole" in config.baselines else []
            continue
        entries += rows(name, [(one, problem, found) for one in sets], network, config)
        entries += baseline_rows(
            name, [problem], network, config, others, partial(_labels_by, maker, batch), size_of
        )
    memories: tuple[PlannedMemory, ...] = ()
    if config.continual is not None:
        made = [(one, problem) for one in sets]
        memories = memories_of(name, made, networks[0], config, config.continual, others)
    notes = [
        f"Continual learning: the stored set ({name}) is cut by class; whatever made it may have seen all classes."
    ] * bool(memories)
    notes += shrunk(entries)
    if config.baselines and size and images is None:
        notes.append(f"{name} has {size}, the other sets {problem.ipc:g} of each class.")
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
