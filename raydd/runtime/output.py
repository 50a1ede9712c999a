"""A job's output folder: for which job it is, and what it must not hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from raydd.artifacts.run_folder import PAGE, PLAN
from raydd.config import Job, parse_job
from raydd.core.dotted_keys import flatten
from raydd.core.errors import ConfigError
from raydd.core.json_text import parse_json
from raydd.core.sealed import as_stamped, stamp
from raydd.core.storage import Storage
from raydd.core.typed_tree import as_yaml
from raydd.core.yaml_tree import parse_yaml
from raydd.runtime.tracking.tracking_uri import resolve_uri, sqlite_path

Recorded = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Brings what a ``job.yaml`` says to the form of what is asked now."""
_FREE = ("compute", "tracking", "output")
_WRITTEN = ("distilled", "report.json", PAGE, PLAN, "loss.png", "pictures")
"""What a distillation writes into its output, below a ``job.yaml`` that says whose it is."""


def claim(output: Storage, job: Job) -> bool:
    """Write ``job.yaml``, or compare with the one that is there; return whether the folder is new.

    Raises ``ConfigError`` with the difference if the folder belongs to another job or evaluation,
    or holds results without saying whose; ``compute``, ``tracking`` and the folder's own place may differ.
    """
    tree = job.stated()
    return claim_as(output, as_yaml(tree), tree, _recorded, _WRITTEN)


def check_claim(key: str, url: str, job: Job) -> None:
    """As :func:`check_place`, and as :func:`claim` would where the place is local; nothing is written."""
    check_place(key, url)
    check_claim_as(url, job.stated(), _recorded, _WRITTEN)


def check_claim_as(
    url: str, resolved: Mapping[str, Any], recorded: Recorded, written: Collection[str]
) -> None:
    """Raise ``ConfigError`` if :func:`claim_as` would for a local output; a plan of one far away is made without it."""
    output = Storage(url)
    if output.local:
        _is_new(output, resolved, recorded, written)


def claim_as(
    output: Storage,
    text: str,
    resolved: Mapping[str, Any],
    recorded: Recorded,
    written: Collection[str],
) -> bool:
    """As :func:`claim`, for any run: ``text`` is what ``job.yaml`` will say, ``recorded`` brings
    what it says to ``resolved``'s form; ``written``: names of the files and folders that the run
    writes, which nobody else's may have.
    """
    new = _is_new(output, resolved, recorded, written)
    output.put("job.yaml", stamp(text.encode()))
    return new


def _is_new(
    output: Storage, resolved: Mapping[str, Any], recorded: Recorded, written: Collection[str]
) -> bool:
    """Return whether an output says nothing of whose it is; ``ConfigError`` if it is another's."""
    place = f"output: {output.url}/job.yaml is"
    unknown = (
        "whose folder it is cannot be told; choose another output (output=…) with the same store, where all finished"
        " units are, or remove that folder"
    )
    data, old = None, None
    try:
        data = output.get("job.yaml")
        old = parse_yaml(data)
    except FileNotFoundError:
        pass
    except ConfigError as error:
        raise ConfigError(f"{place} torn, or no YAML: {unknown}") from error
    if data is not None and old is None:
        raise ConfigError(f"{place} empty: {unknown}")
    if old is not None and not isinstance(old, dict):
        raise ConfigError(f"{place} not the file of a job; choose another output")
    if old is not None:
        a, b = _compared(recorded(old)), _compared(resolved)
        other = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
        lines = [
            f"  {key}: {a.get(key, 'absent')!r} there, {b.get(key, 'absent')!r} now"
            for key in other
        ]
        if lines:
            shown = "\n".join(lines[:20]) + ("\n  …" if len(lines) > 20 else "")
            advice = "choose another output (output=…) or remove that folder"
            if data is not None and not as_stamped(data):
                advice += f"\n({output.url}/job.yaml is torn, or was changed: its checksum differs)"
            raise ConfigError(
                f"output: {output.url} was made by a different job:\n{shown}\n{advice}"
            )
    held = [] if old is not None else _held(output, written)
    if held:
        what = f"{output.url} holds {', '.join(held)}, not made by this job (there is no job.yaml)"
        raise ConfigError(f"output: {what}; choose another output (output=…)")
    return old is None


def _held(output: Storage, names: Collection[str]) -> list[str]:
    """Return which of ``names`` an output holds; empty folders do not count."""
    found = [(name, folder) for name, folder in output.children(emptied=True) if name in names]
    return [
        f"{name}/" if folder else name for name, folder in found if not folder or output.list(name)
    ]


def check_place(key: str, url: str) -> None:
    """Raise ``ConfigError`` if a local place is a file, or lies below one; nothing is written, as a
    dry run wants it.
    """
    storage = Storage(url)
    place = storage.root if storage.local else ""
    while place and not os.path.lexists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    if place and not os.path.isdir(place):
        raise ConfigError(f"{key}: cannot write to {storage.url}: {place} is not a folder")


def _recorded(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a ``job.yaml`` says, with the defaults of keys that it lacks: an earlier version
    did not know them all.
    """
    try:
        return parse_job(tree).stated()
    except ConfigError:
        return tree


def _compared(tree: Mapping[str, Any]) -> dict[str, Any]:
    return flatten({key: value for key, value in tree.items() if key not in _FREE})


def fleeting(output: str, store: str, uri: str | None) -> str:
    """Return a warning if a job's output, store or tracking database lies in the copy of the working
    directory that Ray made for a submitted job, as relative paths then do; Ray removes it when it
    likes. Empty if none does.
    """
    places = {"output": output, "store": store}
    database = None if uri == "none" else sqlite_path(resolve_uri(uri))
    if database is not None:
        places["tracking.uri"] = str(database)
    try:
        copied = bool(
            parse_json(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))["runtime_env"][
                "working_dir"
            ]
        )
    except (ValueError, KeyError, TypeError):
        copied = False
    lost = [
        key for key, place in places.items() if copied and place.startswith(os.getcwd() + os.sep)
    ]
    if not lost:
        return ""
    where = (
        f"{', '.join(lost)}: below {os.getcwd()}, Ray's temporary copy of the working directory, which may vanish after"
        " the job"
    )
    return f"{where}; give absolute paths or URLs ({lost[0]}=/data/runs/…, {lost[0]}=s3://bucket/…)"
