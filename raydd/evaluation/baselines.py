"""The sets beside the evaluated one: other methods' of the same size, random draws, and all real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from raydd.artifacts.decoding import SetSize
from raydd.core.errors import ConfigError, TooFew
from raydd.core.rng import derive_seed
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.packed_set import PackedSet
from raydd.evaluation.rivals import Rival
from raydd.evaluation.rows import LabelledSource, Planned, rows, student_seed
from raydd.evaluation.set_sources import SetSource
from raydd.evaluation.spaces import check_space, fit_of
from raydd.evaluation.stages import EvaluateNetworks
from raydd.labels.label_sources import Labels
from raydd.methods.method import Problem
from raydd.training.batches import check_batches
from raydd.training.train_network import TrainNetwork


def baseline_rows(
    name: str,
    problems: Sequence[Problem],
    network: str,
    config: EvaluationConfig,
    others: Mapping[str, Rival],
    labels: Callable[[Problem, SetSource], Labels | None],
    own: SetSize,
) -> list[Planned]:
    """Plan the baselines; ``labels`` returns those of another set, where the set's students learn soft labels.

    ``own``: the size of the judged set, its stored labels included.
    """
    entries: list[Planned] = []
    for baseline, rival in others.items():
        drawn = draws_of(problems, config.random_draws if rival.method.drawn_at_random else 1)
        if baseline == name:  # the set itself is the first draw, and counted once
            drawn = drawn[len(problems) :]
        sources: list[LabelledSource] = []
        for draw, problem in drawn:
            try:
                source = rival.source(draw, own)
                check_space(rival.method.made_in, config.resolve(), f"'{baseline}'")
                given = labels(problem, source) if config.resolve().learns_logits else None
                check_views(rival, source, given)
            except TooFew as error:
                raise ConfigError(
                    f"evaluation.baselines: {baseline}: {error.found}; {error.most}, or leave it out"
                ) from error
            except ConfigError as error:
                raise ConfigError(f"evaluation.baselines: {baseline}: {error}") from error
            sources.append((source, problem, given))
        images = own.seen if not sources else sources[0][0].images
        students = config
        if rival.keys.equal == "updates":
            students = rival.students(config, own.seen, images, problems[0].dataset, network)
        entries += rows(baseline, sources, network, students)
    return entries + (
        whole_rows(problems[0], network, config) if "whole" in config.baselines else []
    )


def check_views(rival: Rival, source: SetSource, labels: Labels | None) -> None:
    """Raise ``ConfigError`` for labels of views that are changed in 8 bits, of images that students see in others."""
    floats = isinstance(source, PackedSet) or rival.method.value_bytes != 1
    if labels is not None and labels.config.randaugment and floats:
        raise ConfigError(
            "labels.randaugment changes pixels in 8 bits, and students see these images in floats; leave them out, or"
            " set method.labels.randaugment=false"
        )


def draws_of(problems: Sequence[Problem], count: int) -> list[tuple[Problem, Problem]]:
    """Return ``(problem that keys the draw, problem whose seed keys the students)``, evenly over the repetitions."""
    per_problem = math.ceil(count / len(problems))
    pairs = [(problem, problem) for problem in problems]
    for k in range(1, per_problem):
        pairs += [
            (replace(problem, seed=derive_seed(problem.seed, "random/draw", k)), problem)
            for problem in problems
        ]
    return pairs


def whole_rows(problem: Problem, network: str, config: EvaluationConfig) -> list[Planned]:
    """Plan students of all real images."""
    if (
        config.resolve().learns_logits
    ):  # the batch of the labels, ten images perhaps, is none for all real images
        config = replace(config, batch=None)
    protocol = config.resolve().override(epochs=config.whole_epochs, draw="epochs")
    protocol = protocol.with_hard_labels()
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
    seed = student_seed(problem, config)
    teacher = TrainNetwork(
        seed=seed,
        numerics=problem.numerics,
        dataset=problem.dataset.only("train"),
        network=network,
        recipe=recipe,
        count=config.repeats,
        space=fit_of(protocol, info),
    )
    stage = EvaluateNetworks(
        seed=seed,
        numerics=problem.numerics,
        teacher=teacher,
        dataset=problem.dataset.only(config.split),
        split=config.split,
    )
    return [Planned("whole", protocol.label, network, 0, None, stage)]
