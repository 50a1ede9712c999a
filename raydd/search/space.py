"""A space file: which keys of a job are searched, by whom, and what a trial is judged by."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from raydd.config import Job, parse_job
from raydd.core.errors import ConfigError, nearest
from raydd.core.typed_tree import build, plain
from raydd.core.yaml_tree import read_tree
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

    ``tree``: the job as a plain tree, with all defaults; ``own``: its values of the keys.
    """

    name: str
    file: SpaceFile
    keys: tuple[Key, ...]
    tree: Mapping[str, Any]
    own: Values
    mode: str

    def active(self, key: Key, values: Values) -> bool:
        """Return whether a key has an effect beside these values of the keys before it."""
        return all(
            label(_get(self.tree, other) if other not in values else values[other])
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
                found += [{**self.own, **beside, key.name: one} for one in key.domain.tried()]
        return list({signature(values): values for values in found}.values())

    def better(self, one: float, two: float) -> bool:
        """Return whether a trial's value is better than another's."""
        return one > two if self.mode == "max" else one < two


def signature(values: Values) -> str:
    """Return a text that two trials share if they set the same."""
    return label({key: values[key] for key in sorted(values)})


def load_space(path: str, tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> Space:
    """Return the space of a YAML file for a job's plain ``tree``; ``ConfigError`` listing all that is wrong.

    Every end of a range and every choice is tried on the job. ``overrides``: ``key.sub=value`` of
    the space file itself.
    """
    from raydd.core.yaml_tree import apply_override

    given = read_tree(path)
    for override in overrides:
        apply_override(given, override)
    return parse_space(given, tree, path)


def _dotted(tree: Any, leaf: Callable[[Any], bool], prefix: str = "") -> Any:
    """Return nested groups of keys, as overrides make them, as one mapping with dotted keys; what is
    set later holds.
    """
    if not isinstance(tree, Mapping):
        return tree
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and not leaf(value)
        flat |= _dotted(value, leaf, f"{name}.") if nested else {name: value}
    return flat


def _no_leaf(value: Any) -> bool:
    return not value


def _is_spec(value: Any) -> bool:
    return not value or any(not isinstance(inner, Mapping) for inner in value.values())


def parse_space(given: Mapping[str, Any], tree: Mapping[str, Any], where: str) -> Space:
    """Return the space that a plain tree describes; see :func:`load_space`."""
    given = dict(given)
    for group, leaf in (("keys", _is_spec), ("trial", _no_leaf), ("final", _no_leaf)):
        if group in given:
            given[group] = _dotted(given[group], leaf)
    file = build(SpaceFile, given, where)
    if not file.keys:
        raise ConfigError(f"{where}: keys: is empty; name at least one key of the job to search")
    job = parse_job(tree, "job")
    whole = plain(job)
    mistakes: list[str] = []
    keys: list[Key] = []
    for name, entry in (every := file.keys).items():
        try:
            _check_key(name, file, whole, f"{where}: keys.{name}")
            if not isinstance(entry, Mapping):
                raise ConfigError(f"{where}: keys.{name}: {entry!r}; write a kind and its values")
            found = Key(name, domain(name, entry, where), _when(name, every, keys, whole, where))
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
    space = Space(
        os.path.splitext(os.path.basename(where))[0], file, tuple(keys), dict(tree), own, mode
    )
    space = dataclasses.replace(space, own=space.without_idle(own), tree=whole)
    _check_jobs(space, where)
    return space


def _own(name: str, whole: Mapping[str, Any], job: Job) -> Any:
    """Return a job's value of a key; of one that it leaves to its protocol, the protocol's."""
    value, (group, _, key) = _get(whole, name), name.partition(".")
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
    known = list(_flat(whole))
    if not _has(whole, name):
        raise ConfigError(f"{at}: the job has no such key{nearest(name, known)}")
    if isinstance(_get(whole, name), Mapping) and name != "method":
        inner = ", ".join(f"{name}.{key}" for key in _get(whole, name))
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
    if not _has(whole, name):
        raise ConfigError(f"{at}: the job has no such key{nearest(name, list(_flat(whole)))}")


def _when(
    name: str, every: Mapping[str, Any], keys: Sequence[Key], whole: Mapping[str, Any], where: str
) -> dict[str, tuple[Any, ...]]:
    given, at = every[name].get("when", {}), f"{where}: keys.{name}.when"
    if not isinstance(given, Mapping):
        raise ConfigError(f"{at}: {given!r}; write a mapping of keys to values")
    before = {key.name: key for key in keys}
    found: dict[str, tuple[Any, ...]] = {}
    for other, values in given.items():
        allowed = tuple(values) if isinstance(values, (list, tuple)) else (values,)
        if other not in before and (other in every or not _has(whole, other)):
            raise ConfigError(
                f"{at}.{other}: must be a key of the job, searched above this one if it is searched"
                f"{nearest(other, [*before, *_flat(whole)])}"
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
            job = parse_job(with_values(space.tree, {**space.file.trial, **values}), where)
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


def with_values(tree: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """Return a job's tree with values set by dotted key; ``method: null`` before other keys of another method."""
    made: dict[str, Any] = copy.deepcopy(dict(tree))
    for name, value in values.items():
        if value == _get(made, name):
            continue
        parts, at = name.split("."), made
        for part in parts[:-1]:
            if at.get(part) is None:
                at[part] = {}
            at = at[part]
        at[parts[-1]] = value
    return made


_ABSENT = object()


def _get(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree.get(part, _ABSENT) if isinstance(tree, Mapping) else _ABSENT
    return None if tree is _ABSENT else tree


def _has(tree: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, value in tree.items():
        names += (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping) and value
            else [f"{prefix}{key}"]
        )
    return names
