"""What a job comes to: the values that it leaves open, and its protocols', as dry runs, recipes and
trackers show them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raydd.artifacts.protocol import recipe_text
from raydd.artifacts.report import PROTOCOLS
from raydd.config import Job
from raydd.core.dotted_keys import flatten
from raydd.core.typed_tree import plain
from raydd.core.units import Stage, key_name
from raydd.evaluation.plan import EvaluationPlan
from raydd.evaluation.trainings import trainings
from raydd.methods.method import Method, Problem
from raydd.training.recipe import Recipe

_PLAIN = (bool, int, float, str)
_OPEN = "What the job leaves open comes to:"


def settled(method: Method, problem: Problem) -> dict[str, dict[str, Any]]:
    """Return the values of a method's stages that its job does not state, by stage; of trainings the whole recipe.

    ``dataset``: the images' shape and normalisation. Networks that differ in nothing else share an entry.
    """
    given = [(key.rsplit(".", 1)[-1], value) for key, value in flatten(plain(method)).items()]
    left_open = {name for name, value in given if value is None}
    known = {(name, repr(value)) for name, value in given if name not in left_open}
    info = problem.dataset
    found: dict[str, dict[str, Any]] = {
        "dataset": {"shape": list(info.shape), "mean": list(info.mean), "std": list(info.std)}
    }
    for stage in method.plan(problem):
        values = {name: value for name, value in _values(stage) if (name, repr(value)) not in known}
        recipe = getattr(stage, "recipe", None)
        if isinstance(recipe, Recipe):
            values |= recipe.effective(info.shape[1:])
        if values:
            found.setdefault(key_name(type(stage)), values)
    return found | method.settled(problem)


_SAID = ("seed", "ipc", "network", "networks", "count", "_hash")
"""What a job says of itself, and what is nobody's setting."""


def _values(stage: Stage) -> Iterator[tuple[str, Any]]:
    """Yield the plain fields of a stage that hold something."""
    for name, value in vars(stage).items():
        if isinstance(value, tuple) and all(isinstance(item, _PLAIN) for item in value):
            value = list(value)
        if name not in _SAID and isinstance(value, (*_PLAIN, list)) and value not in ("", []):
            yield name, value


def protocol_params(plan: EvaluationPlan) -> dict[str, Any]:
    """Return the recipe of the evaluated set's own students as flat parameters, ``protocol.lr``; by
    network where these differ.
    """
    own = [training for training in trainings(plan) if plan.own & set(training.sets)]
    params: dict[str, Any] = {"protocol.name": own[0].protocol}
    for name in dict.fromkeys(name for training in own for name in training.recipe):
        values = {
            network: training.recipe[name]
            for training in own
            if name in training.recipe
            for network in training.networks
        }
        if len(set(map(repr, values.values()))) == 1:
            params[f"protocol.{name}"] = next(iter(values.values()))
        else:
            params |= {f"protocol.{name}.{network}": value for network, value in values.items()}
    return params


def describe(evaluation: EvaluationPlan, left_open: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of a dry run: the protocols, then what the job leaves open (:func:`settled`)."""
    lines = [PROTOCOLS, *(f"  {training.text()}" for training in trainings(evaluation))]
    if left_open:
        lines += ["", _OPEN, *(f"  {name}: {_text(values)}" for name, values in left_open.items())]
    return lines


def _text(values: Mapping[str, Any]) -> str:
    if {"optimizer", "epochs"} <= values.keys():
        return recipe_text(values)
    return ", ".join(f"{name} {value}" for name, value in values.items())


def job_params(job: Job, problem: Problem, evaluation: EvaluationPlan) -> dict[str, Any]:
    """Return what a tracker is told of a run: the job, its protocol, and what the job leaves open."""
    left_open = {"settled": settled(job.method, problem)}
    return {**flatten(job.stated()), **protocol_params(evaluation), **flatten(left_open)}
