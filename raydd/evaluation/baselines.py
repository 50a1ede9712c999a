"""The sets beside the evaluated one: other methods' of the same size, random draws, and all real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from raydd.core.errors import ConfigError, TooFew, unknown
from raydd.core.rng import derive_seed
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.rows import LabelledSource, Planned, rows, student_seed
from raydd.evaluation.set_sources import AssembledSet
from raydd.evaluation.stages import EvaluateNetworks
from raydd.labels.label_sources import Labels
from raydd.methods.method import METHODS, Method, Problem
from raydd.training.batches import check_batches
from raydd.training.train_network import TrainNetwork


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
    if name == "whole" or (name in METHODS and not METHODS.get(name).soft_labels):
        return
    allowed = sorted(known for known, method in METHODS.items() if not method.soft_labels)
    allowed.append("whole")
    if name in METHODS:
        raise ConfigError(
            f"{key}: the sets of '{name}' have soft labels of their own; allowed: {', '.join(allowed)}"
        )
    raise ConfigError(f"{key}: {unknown('baseline', name, allowed)}")


def baseline_rows(
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
        drawn = _draws(problems, config.random_draws if rival.drawn_at_random else 1)
        if baseline == name:  # the set itself is the first draw, and counted once
            drawn = drawn[len(problems) :]
        sources: list[LabelledSource] = []
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
        entries += rows(baseline, sources, network, config)
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
    seed = student_seed(problem, config)
    teacher = TrainNetwork(
        seed=seed,
        numerics=problem.numerics,
        dataset=problem.dataset.only("train"),
        network=network,
        recipe=recipe,
        count=config.repeats,
    )
    stage = EvaluateNetworks(
        seed=seed,
        numerics=problem.numerics,
        teacher=teacher,
        dataset=problem.dataset.only(config.split),
        split=config.split,
    )
    return [Planned("whole", protocol.label, network, 0, None, stage)]
