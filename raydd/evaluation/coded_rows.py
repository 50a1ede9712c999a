"""Rows of coded sets: each way in which a set is coded, and beside each random images that fill the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from raydd.artifacts.coded_facts import ImageCodec
from raydd.core.errors import ConfigError
from raydd.evaluation.baselines import draws_of
from raydd.evaluation.coded_set import CodedSet, EncodeSet, FillBytes
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.images_config import ImagesConfig
from raydd.evaluation.rows import Coded, Planned, rows
from raydd.evaluation.set_sources import SetSource
from raydd.labels.label_sources import LabelSource
from raydd.methods.method import Method, Problem

LabelsOf = Callable[[Problem, SetSource], LabelSource | None]
"""Returns the soft labels of a set's images, by the teachers of the judged set; ``None`` for hard labels."""


def check_beside(config: EvaluationConfig, images: ImagesConfig | None) -> None:
    """Raise ``ConfigError`` for what cannot stand beside coded sets."""
    if images is None:
        return
    others = [one for one in config.baselines if one not in ("random", "whole")]
    if others:
        raise ConfigError(
            "evaluation.baselines: beside coded images stand random ones that fill the same bytes; of others only"
            " 'whole' is allowed"
        )
    if config.continual is not None:
        raise ConfigError(
            "evaluation.continual: sets of single steps are not coded; leave out images, or judge the published"
            " set: raydd evaluate URL --continual STEPS"
        )
    if config.every is not None and images.ladder:
        raise ConfigError(
            f"evaluation.every={config.every}: images has several files of a set; snapshots are judged by one"
        )


def check_codable(method: Method) -> None:
    """Raise ``ConfigError`` for a method whose sets cannot be coded."""
    if method.made_in != "normalised":
        raise ConfigError(
            f"images: the sets of '{method.name}' are whitened ('{method.made_in}'), and whitened values are no"
            " pixels; leave out images, or set the method's space to normalised"
        )
    if not method.stores_pixels:
        raise ConfigError(
            f"images: the sets of '{method.name}' store what images are made of, and no pixels; leave out images"
        )


def coded_rows(
    name: str,
    sources: Sequence[tuple[SetSource, Problem]],
    network: str,
    config: EvaluationConfig,
    images: ImagesConfig,
    labels: LabelsOf,
    own_labels: LabelsOf,
) -> list[Planned]:
    """Plan, for each way in which a set is coded, its students and those of random images that fill its bytes.

    ``labels``: of random images; ``own_labels``: of the set's own.
    """
    entries: list[Planned] = []
    for rung in images.rungs():
        stages = [
            (EncodeSet(source=source, rule=rung.rule), problem) for source, problem in sources
        ]
        own = [
            (CodedSet(made=stage, dataset=problem.dataset.only()), problem)
            for stage, problem in stages
        ]
        made: dict[Problem, EncodeSet] = {}
        for stage, problem in stages:
            made.setdefault(problem, stage)
        coded = Coded(series=name, budget=rung.rule.budget)
        entries += _coded(rung.of(name), own, network, config, own_labels, coded)
        if name != "random":
            beside = replace(coded, series="random, coded alike", fills=rung.of(name))
            filled = _filled(made, config)
            entries += _coded(rung.of("random"), filled, network, config, labels, beside)
        further = images.random_rule(rung)
        if further is not None:
            text = further.codec.text
            beside = replace(coded, series=f"random at {text}", fills=rung.of(name))
            filled = _filled(made, config, further.codec)
            called = f"random at {text} for {rung.of(name)}"
            entries += _coded(called, filled, network, config, labels, beside)
    return entries


def _filled(
    made: Mapping[Problem, EncodeSet], config: EvaluationConfig, codec: ImageCodec | None = None
) -> list[tuple[CodedSet, Problem]]:
    """Return random images that fill the files of a set's repetitions, so many draws as the plain baseline has."""
    found = []
    for draw, problem in draws_of(list(made), config.random_draws):
        stage = FillBytes(
            seed=draw.seed,
            beside=made[problem],
            dataset=problem.dataset.only("train"),
            codec=codec,
        )
        found.append((CodedSet(made=stage, dataset=problem.dataset.only()), problem))
    return found


def _coded(
    name: str,
    sources: Sequence[tuple[CodedSet, Problem]],
    network: str,
    config: EvaluationConfig,
    labels: LabelsOf,
    coding: Coded,
) -> list[Planned]:
    logits = config.resolve().learns_logits
    given = [
        (source, problem, labels(problem, source) if logits else None)
        for source, problem in sources
    ]
    return [replace(entry, coding=coding) for entry in rows(name, given, network, config)]
