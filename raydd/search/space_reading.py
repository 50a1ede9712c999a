"""Reading of space files: their keys, checked against those of the job."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from raydd.config import Job, JobFile
from raydd.core.dotted_keys import flatten, has_key, is_empty, value_at
from raydd.core.errors import ConfigError, nearest
from raydd.core.typed_tree import build, plain
from raydd.core.yaml_tree import apply_override, read_tree, settled
from raydd.evaluation.protocols import OVERRIDES
from raydd.search.domains import Choice, domain, label
from raydd.search.metrics import lower_is_better
from raydd.search.space import CLOSED, OWN, Asha, Key, Space, SpaceFile
from raydd.search.whole_settings import check_jobs


def load_space(path: str, job: JobFile, overrides: Sequence[str] = ()) -> Space:
    """Return the space of a YAML file for a job; ``ConfigError`` listing all that is wrong.

    Every end of a range and every choice is tried on the job, beside such values of other keys as
    go with it. ``overrides``: ``key.sub=value`` of the space file itself.
    """
    given = read_tree(path)
    for override in overrides:
        apply_override(given, override)
    return parse_space(settled(given), job, path)


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
    if job.ipc == "auto":
        raise ConfigError(f"{where}: job: ipc: auto has no place in a sweep; set ipc to a number")
    own = {key.name: _own(key.name, whole, job) for key in keys}
    mode = file.mode or ("min" if lower_is_better(file.metric) else "max")
    stem = os.path.splitext(os.path.basename(where))[0]
    space = Space(stem, file, tuple(keys), of, own, job.ipc, mode, where, {job.ipc: whole})
    space = dataclasses.replace(space, own=space.without_idle(own))
    check_jobs(space)
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
