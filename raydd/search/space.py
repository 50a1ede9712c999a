"""A space file: which keys of a job are searched, by whom, and what a trial is judged by."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from raydd.config import Job, JobFile, parse_job
from raydd.core.dotted_keys import flatten, has_key, is_empty, value_at, with_values
from raydd.core.errors import ConfigError, nearest
from raydd.core.typed_tree import build, plain
from raydd.core.yaml_tree import apply_override, read_tree
from raydd.evaluation.protocols import OVERRIDES
from raydd.search.domains import Choice, Domain, domain, label
from raydd.search.metrics import check_metric, lower_is_better

Values = Mapping[str, Any]
"""What a trial sets: values by dotted key of the job."""

CLOSED = ("name", "seed", "seeds", "output", "store", "compute", "tracking")
"""Keys of a job that change nothing of a set, or are the sweep's own."""
OWN = ("dataset.holdout", "evaluation.split", "evaluation.baselines")
"""Keys that the sweep sets for its trials."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When no further trial begins: after ``trials`` of them, ``device_seconds`` of computing, or
    ``seconds`` by the clock.
    """

    trials: Annotated[int, Ge(1)] | None = None
    device_seconds: Annotated[float, Gt(0)] | None = None
    seconds: Annotated[float, Gt(0)] | None = None


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Early stopping. ``grace``: updates that every trial makes; ``reduction``: of trials that
    reach a rung, one in so many goes on (ASHA).
    """

    grace: Annotated[int, Ge(1)] | None = None
    reduction: Annotated[float, Gt(1)] = 3.0


@dataclass(frozen=True, kw_only=True)
class SpaceFile:
    """A space file's keys.

    ``keys``: what is searched, dotted keys of the job with one of ``choice``, ``grid``,
    ``uniform``, ``loguniform``, ``quniform`` (low, high, step), ``randint`` (both ends included),
    and ``when``: values of other keys under which the key has an effect. ``search``: ``grid`` (all
    combinations), ``random``, ``tpe`` (Optuna). ``startup``: random trials before TPE begins.
    ``metric``, ``mode``: what trials are ranked by. ``scheduler`` and ``stopping``: who stops
    trials early, on accuracies of snapshots. ``budget``: when no further trial begins. ``points``:
    values that are tried first, after the job's own. ``seed``: of what is drawn; ``seeds``:
    distillations of each trial. ``holdout``: share or count of every class's training images that
    trials are judged on. ``trial``: keys of the job as trials have them (shorter, say); ``final``:
    as the test of the winner has them. ``workers_per_trial``: Ray Train workers of each trial; 0:
    it computes in one process. ``winner: false``: a table of all, each judged on the test set;
    nothing is selected.
    ``give_up``: the sweep stops if its first so many trials all fail.
    """

    keys: dict[str, dict[str, Any]]
    search: Literal["grid", "random", "tpe"] = "tpe"
    startup: Annotated[int, Ge(1)] = 4
    metric: str = "accuracy"
    mode: Literal["max", "min"] | None = None
    scheduler: Literal["none", "asha", "median"] = "none"
    stopping: Asha = field(default_factory=Asha)
    budget: Budget = field(default_factory=Budget)
    points: tuple[dict[str, Any], ...] = ()
    seed: Annotated[int, Ge(0)] = 0
    seeds: Annotated[int, Ge(1)] = 1
    holdout: Annotated[int, Ge(1)] | Annotated[float, Gt(0), Lt(1)] = 0.1
    trial: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    workers_per_trial: Annotated[int, Ge(0)] = 0
    winner: bool = True
    give_up: Annotated[int, Ge(1)] = 3


@dataclass(frozen=True)
class Key:
    """A searched key: its values, and the values of other keys under which it has an effect."""

    name: str
    domain: Domain
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """A checked space: the file, its keys in their order, and the job that they are keys of.

    ``own``: the job's values of the keys; ``ipc``: its images per class. ``trees``: the job as a
    plain tree, with all defaults, by number of images per class, made when they are asked for.
    """

    name: str
    file: SpaceFile
    keys: tuple[Key, ...]
    job: JobFile
    own: Values
    ipc: float
    mode: str
    trees: dict[float | None, Any] = field(default_factory=dict, compare=False, repr=False)

    def tree(self, values: Values) -> Mapping[str, Any]:
        """Return the job in which values are set: as its file has it for their images per class."""
        ipc = self.ipc_of(values)
        known = isinstance(ipc, (int, float)) and (ipc in self.job.by_ipc or ipc == self.ipc)
        place = self.ipc if not self.job.by_ipc else ipc if known else None
        if place not in self.trees:
            self.trees[place] = plain(self.job.job(ipc))
        return self.trees[place]

    def ipc_of(self, values: Values) -> Any:
        """Return the images per class of a trial that sets these values."""
        return {"ipc": self.ipc, **self.file.trial, **values}["ipc"]

    def by_ipc(self) -> dict[str, dict[str, Any]]:
        """Return what trials have for their images per class and the job has not, unless all set it: keys, by ipc."""
        own = flatten(self.tree({"ipc": self.ipc}))
        theirs = {"ipc", *self.file.trial, *(key.name for key in self.keys if not key.when)}
        found: dict[str, dict[str, Any]] = {}
        for values in [*self.corners(), *self.file.points]:
            found[label(self.ipc_of(values))] = {
                key: value
                for key, value in flatten(self.tree(values)).items()
                if not (key in theirs or key.split(".")[0] in CLOSED)
                and (key not in own or own[key] != value)
            }
        return {ipc: settings for ipc, settings in found.items() if settings}

    def active(self, key: Key, values: Values) -> bool:
        """Return whether a key has an effect beside these values of the keys before it."""
        given = {**self.file.trial, **values}
        return all(
            label(given[other] if other in given else value_at(self.tree(values), other))
            in map(label, allowed)
            for other, allowed in key.when.items()
        )

    def without_idle(self, values: Values) -> dict[str, Any]:
        """Return values without those that have no effect."""
        kept: dict[str, Any] = {}
        for key in self.keys:
            if key.name in values and self.active(key, kept):
                kept[key.name] = values[key.name]
        return kept

    def grid(self) -> list[dict[str, Any]]:
        """Return all combinations, the last key's values changing fastest; keys without effect left out."""
        names = [key.name for key in self.keys]
        every = itertools.product(*(key.domain.corners() for key in self.keys))
        found = [self.without_idle(dict(zip(names, values, strict=True))) for values in every]
        return list({signature(values): values for values in found}.values())

    def corners(self) -> list[dict[str, Any]]:
        """Return the job's own values, and these with each key at its ends and between: what is checked and planned.

        A key that never has an effect, whatever else is searched, has none.
        """
        found, searched = [dict(self.own)], {key.name for key in self.keys}
        for key in self.keys:
            beside = {name: values[0] for name, values in key.when.items() if name in searched}
            if self.active(key, beside):
                found += [{**self.own, **beside, key.name: one} for one in self._tried(key)]
        return list({signature(values): values for values in found}.values())

    def _tried(self, key: Key) -> list[Any]:
        own_settings = [
            ipc for ipc in self.job.by_ipc if key.name == "ipc" and key.domain.holds(ipc)
        ]
        return [*key.domain.tried(), *own_settings]

    def better(self, one: float, two: float) -> bool:
        """Return whether a trial's value is better than another's."""
        return one > two if self.mode == "max" else one < two


def signature(values: Values) -> str:
    """Return a text that two trials share if they set the same."""
    return label({key: values[key] for key in sorted(values)})


def load_space(path: str, job: JobFile, overrides: Sequence[str] = ()) -> Space:
    """Return the space of a YAML file for a job; ``ConfigError`` listing all that is wrong.

    Every end of a range and every choice is tried on the job. ``overrides``: ``key.sub=value`` of
    the space file itself.
    """
    given = read_tree(path)
    for override in overrides:
        apply_override(given, override)
    return parse_space(given, job, path)


def _is_spec(value: Any) -> bool:
    return not value or any(not isinstance(inner, Mapping) for inner in value.values())


def parse_space(given: Mapping[str, Any], of: JobFile, where: str) -> Space:
    """Return the space that a plain tree describes; see :func:`load_space`."""
    given = dict(given)
    for group in ("keys", "trial", "final"):  # nested where overrides have set them
        if isinstance(given.get(group), Mapping):
            leaf = _is_spec if group == "keys" else is_empty
            given[group] = flatten(given[group], leaf)
    file = build(SpaceFile, given, where)
    if not file.keys:
        raise ConfigError(f"{where}: keys: is empty; name at least one key of the job to search")
    job = of.job()
    whole = plain(job)
    mistakes = _without_effect(file, where)
    keys: list[Key] = []
    for name, entry in file.keys.items():
        try:
            _check_key(name, file, whole, f"{where}: keys.{name}")
            if not isinstance(entry, Mapping):
                raise ConfigError(f"{where}: keys.{name}: {entry!r}; write a kind and its values")
            found = Key(name, domain(name, entry, where), _when(name, file, keys, of, whole, where))
            if file.search == "grid" and not isinstance(found.domain, Choice):
                raise ConfigError(
                    f"{where}: keys.{name}: a grid needs choice or grid; for ranges use search: random or tpe"
                )
            keys.append(found)
        except ConfigError as error:
            mistakes.append(str(error))
    for group in ("trial", "final"):
        for name in getattr(file, group):
            _collect(mistakes, lambda n=name, g=group: _check_set(n, g, file, whole, where))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    own = {key.name: _own(key.name, whole, job) for key in keys}
    mode = file.mode or ("min" if lower_is_better(file.metric) else "max")
    stem = os.path.splitext(os.path.basename(where))[0]
    space = Space(stem, file, tuple(keys), of, own, job.ipc, mode, {job.ipc: whole})
    space = dataclasses.replace(space, own=space.without_idle(own))
    _check_jobs(space, where)
    return space


def _without_effect(file: SpaceFile, where: str) -> list[str]:
    """Return a line for each key of ``stopping`` that the scheduler does not read."""
    idle = {
        "grace": file.stopping.grace is not None and file.scheduler == "none",
        "reduction": file.stopping.reduction != Asha.reduction and file.scheduler != "asha",
    }
    beside = f"scheduler: {file.scheduler}; choose asha, or drop it (stopping: null)"
    return [
        f"{where}: stopping.{key} has no effect with {beside}" for key, bad in idle.items() if bad
    ]


def _own(name: str, whole: Mapping[str, Any], job: Job) -> Any:
    """Return a job's value of a key; of one that it leaves to its protocol, the protocol's."""
    value, (group, _, key) = value_at(whole, name), name.partition(".")
    if value is not None or group != "evaluation" or key not in OVERRIDES:
        return value
    protocol = job.evaluation.resolve()
    published = getattr(protocol, key)
    if published is None:
        return None
    try:
        same = protocol.override(**{key: published}) == protocol
    except ConfigError:  # a number that has no effect with the protocol's loss or schedule
        return None
    return published if same else None


def _collect(mistakes: list[str], check: Any) -> None:
    try:
        check()
    except ConfigError as error:
        mistakes.append(str(error))


def _check_key(name: str, file: SpaceFile, whole: Mapping[str, Any], at: str) -> None:
    top = name.split(".")[0]
    if top in CLOSED or name in OWN:
        why = (
            "is the sweep's own"
            if name in OWN or top in ("name", "seed", "seeds")
            else ("changes nothing of a set")
        )
        raise ConfigError(f"{at}: {top if top in CLOSED else name} {why}, and cannot be searched")
    if name in file.trial:
        raise ConfigError(f"{at}: stands under trial, too; a searched key has no other value")
    known = flatten(whole)
    if not has_key(whole, name):
        raise ConfigError(f"{at}: the job has no such key{nearest(name, known)}")
    if isinstance(value_at(whole, name), Mapping) and name != "method":
        inner = ", ".join(f"{name}.{key}" for key in value_at(whole, name))
        raise ConfigError(f"{at}: is a group of keys; search one of them: {inner}")


def _check_set(
    name: str, group: str, file: SpaceFile, whole: Mapping[str, Any], where: str
) -> None:
    at, top = f"{where}: {group}.{name}", name.split(".")[0]
    allowed = "evaluation." if group == "final" else ""
    if top in CLOSED or name in ("dataset.holdout", "evaluation.split"):
        raise ConfigError(f"{at}: is set by the sweep or changes nothing of a set")
    if allowed and not name.startswith(allowed):
        raise ConfigError(f"{at}: the test of finished sets has keys of evaluation only")
    if not has_key(whole, name):
        raise ConfigError(f"{at}: the job has no such key{nearest(name, flatten(whole))}")


def _when(
    name: str,
    file: SpaceFile,
    keys: Sequence[Key],
    job: JobFile,
    whole: Mapping[str, Any],
    where: str,
) -> dict[str, tuple[Any, ...]]:
    every, at = file.keys, f"{where}: keys.{name}.when"
    given = every[name].get("when", {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"{at}: {given!r}; write a mapping of keys to values")
    before = {key.name: key for key in keys}
    found: dict[str, tuple[Any, ...]] = {}
    for other, values in given.items():
        allowed = tuple(values) if isinstance(values, (list, tuple)) else (values,)
        if other not in before and (other in every or not has_key(whole, other)):
            raise ConfigError(
                f"{at}.{other}: must be a key of the job, searched above this one if it is searched"
                f"{nearest(other, [*before, *flatten(whole)])}"
            )
        if (
            "ipc" in every
            and "ipc" not in before
            and any(other in of for of in job.by_ipc.values())
        ):
            raise ConfigError(
                f"{at}.{other}: {job.where} sets it by ipc: search ipc above this key"
            )
        if other in before:
            for value in allowed:
                if not before[other].domain.holds(value):
                    raise ConfigError(
                        f"{at}.{other}: {label(value)} is none of its values: {before[other].domain.text()}"
                    )
        found[other] = allowed
    return found


def _check_jobs(space: Space, where: str) -> None:
    """Try every end and choice on the job, the points too; ``ConfigError`` with all that is refused."""
    mistakes: dict[str, None] = {}
    jobs: list[Job] = []
    names = {key.name for key in space.keys}
    for place, point in enumerate(space.file.points):
        for name in point:
            if name not in names:
                mistakes[
                    f"{where}: points.{place}.{name}: is not searched{nearest(name, names)}"
                ] = None
        for key in space.keys:
            if key.name in point and not key.domain.holds(point[key.name]):
                text = f"{label(point[key.name])} is outside {key.domain.text()}"
                mistakes[f"{where}: points.{place}.{key.name}: {text}"] = None
    for values in [*space.corners(), *(() if mistakes else space.file.points)]:
        try:
            job = parse_job(with_values(space.tree(values), {**space.file.trial, **values}), where)
            job.evaluation.architectures(job.method.student_network)
            jobs.append(job)
        except ConfigError as error:
            for line in str(error).splitlines():
                mistakes[line] = None
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    for job in jobs:
        check_metric(space.file.metric, job.evaluation, where)
    if space.file.scheduler != "none":
        _check_scheduler(space, jobs, where)


def _check_scheduler(space: Space, jobs: Sequence[Job], where: str) -> None:
    name = space.file.scheduler
    if space.file.metric.partition("/")[0] != "accuracy":
        raise ConfigError(
            f"{where}: scheduler: {name} compares accuracies of snapshots; metric is {space.file.metric}"
        )
    if any(job.evaluation.every is None for job in jobs):
        raise ConfigError(
            f"{where}: scheduler: {name} needs accuracies while a trial runs: set evaluation.every under trial, or in"
            " the job"
        )
