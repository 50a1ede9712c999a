"""The output folder of a run, read: what it was asked, planned, logged and reported. Needs no torch.

Files::

    job.yaml                    what was asked
    plan.json                   stages, units and keys, as the run began (:mod:`raydd.runtime.plan_record`)
    log.jsonl                   what happened (:mod:`raydd.runtime.journal`)
    report.json                 what came out, once it is finished
    report.html                 all of it as a page
    distilled/, pictures/       the set; pictures over the updates, of a poster also as an animation
    lock.json                   who writes here now
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raydd.artifacts.log_lines import record_of
from raydd.artifacts.report import Report
from raydd.core.errors import ConfigError, StorageError, TornFileError, nearest
from raydd.core.plain_types import is_of
from raydd.core.sealed import as_stamped, unseal
from raydd.core.storage import Storage, join
from raydd.core.urls import absolute, check_url

_PLAN: dict[str, Any] = {
    "curves": dict[str, list[str]],
    "charted": list[str],
    "asked": list[int],
    "stages": list[dict[str, Any]],
}
_STAGE: dict[str, Any] = {
    "name": str,
    "outputs": list[str],
    "units": list[tuple[str, str, int, list[int]]],
}
_RECORD: dict[str, Any] = {
    "kind": str,
    "t": int | None,
    "seconds": float | None,
    "values": dict[str, float],
}
"""What readers take for granted of a plan, of each of its stages, and of a line of a log."""
JOB, PLAN, LOG, REPORT, PAGE = "job.yaml", "plan.json", "log.jsonl", "report.json", "report.html"
SEMANTIC, LABEL_MAP_PICTURE = "semantic.png", "label_map.png"
"""Pictures of a poster beside the set's own, in its folder."""
OFFSETS_PICTURE = "offsets.png"
"""The picture of offsets beside that of their images."""
GROWTH = "pictures/growth.png"
"""The animation of a poster over the updates."""


@dataclass(frozen=True)
class RunFolder:
    """What an output folder holds: the job as plain values, plan and report where they are there,
    and the log's lines in order. ``notes``: what could not be read.
    """

    output: Storage
    job: Mapping[str, Any]
    plan: Mapping[str, Any] | None
    log: tuple[Mapping[str, Any], ...]
    report: Report | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the run is called: its job's name, or the set that it evaluates."""
        own = self.job.get("name") or (self.plan or {}).get("name")
        return str(own or self.output.url.rstrip("/").rsplit("/", 1)[-1])

    @property
    def verb(self) -> str:
        """``distill`` or ``evaluate``."""
        return "distill" if "method" in self.job else "evaluate"


def read_run(url: str) -> RunFolder:
    """Return what lies in the output folder of a run; ``ConfigError`` for a place that is none, with
    the nearest that is there.
    """
    check_url(url, "output")
    output = Storage(url)
    try:
        notes: list[str] = []
        job = _job(output, notes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"output: {_what_is_there(output)}") from error
    except StorageError as error:
        raise ConfigError(f"output: {error}") from error
    plan = _mapping(output, PLAN, notes)
    if plan is not None and not _whole(plan):
        notes.append(f"{PLAN} cannot be read: it is not what it should be")
        plan = None
    return RunFolder(output, job, plan, _log(output, notes), _report(output, notes), tuple(notes))


def _job(output: Storage, notes: list[str]) -> Mapping[str, Any]:

    from raydd.core.yaml_tree import parse_yaml  # PyYAML may be absent where sets are made

    text = output.get(JOB)
    try:
        job = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"output: {join(output.url, JOB)} cannot be read: {error}") from error
    if not isinstance(job, Mapping) or not {"method", "evaluation"} & set(job):
        raise ConfigError(f"output: {join(output.url, JOB)} is not the file of a run")
    if not as_stamped(text):
        notes.append(f"{JOB} is torn, or was changed: its checksum differs")
    return {str(key): value for key, value in job.items()}


def _whole(plan: Mapping[str, Any]) -> bool:
    """Return whether the parts of a plan are what they should be; others are not looked at."""
    parts = all(name not in plan or is_of(plan[name], hint) for name, hint in _PLAN.items())
    return (
        parts
        and all(
            all(is_of(stage.get(name), hint) for name, hint in _STAGE.items())
            for stage in plan.get("stages", ())
        )
        and set(plan.get("charted", ())) <= set(plan.get("curves", ()))
    )


def _mapping(output: Storage, name: str, notes: list[str]) -> Mapping[str, Any] | None:
    shape = _check_plan if name == PLAN else None
    try:
        return unseal(output.get(name), name, shape)
    except FileNotFoundError:
        return None
    except TornFileError as error:
        notes.append(f"{name} cannot be read: {error}")
    return None


def _check_plan(plan: dict[str, Any]) -> None:
    """Raise what :func:`unseal` takes for a torn file if a plan lacks what is read of it."""
    for stage in plan["stages"]:
        str(stage["name"]), frozenset(stage["outputs"])
        for name, key, steps, inputs in stage["units"]:
            str(name), str(key), int(steps), [int(index) for index in inputs]
    for label in plan.get("charted", ()):
        list(plan["curves"][label])


def _report(output: Storage, notes: list[str]) -> Report | None:
    values = _mapping(output, REPORT, notes)
    try:
        return None if values is None else Report.from_dict(values)
    except (ConfigError, TypeError, ValueError, KeyError, AttributeError) as error:
        notes.append(f"{REPORT} cannot be read: {error}")
        return None


def _log(output: Storage, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    try:
        data = output.get(LOG)
    except FileNotFoundError:
        return ()
    found: list[Mapping[str, Any]] = []
    damaged = 0
    if not data:
        notes.append(f"{LOG} cannot be read: it is empty")
    for line in data.splitlines():
        try:
            record = record_of(line)
        except ValueError:
            damaged += 1
            continue
        if is_of(record, dict[str, Any]) and all(
            (name not in record and name != "kind") or is_of(record.get(name), hint)
            for name, hint in _RECORD.items()
        ):
            found.append(record)
        else:
            damaged += 1
    if damaged:
        notes.append(f"{damaged} line{'s' * (damaged != 1)} of {LOG} cannot be read")
    return tuple(found)


def _what_is_there(output: Storage) -> str:
    """Return why a place is not the output of a run, and what near it may be meant."""
    children = output.children(emptied=True)
    if not children:
        return f"nothing is at {output.url}{_near(output)}"
    inside = [name for name, folder in children if folder]
    runs = [name for name in inside[:50] if Storage(join(output.url, name)).exists(JOB)]
    if runs:
        return f"{output.url} is no run, but holds runs: {', '.join(runs[:20])}"
    if "manifest.json" in [name for name, _ in children]:
        return f"{output.url} is a distilled set, not the output of a run (that is the folder above it)"
    return f"{output.url} is not the output of a run: it has no {JOB}"


def _near(output: Storage) -> str:
    """Return what lies beside a place that is not there, nearest in name first."""
    above, _, name = output.url.rstrip("/").rpartition("/")
    if not name or not above.rsplit("://", 1)[-1]:
        return ""
    try:
        folders = [
            child for child, folder in Storage(absolute(above)).children(emptied=True) if folder
        ]
    except (ConfigError, StorageError):
        return ""
    if not folders:
        return ""
    shown = ", ".join(folders[:10]) + (", …" if len(folders) > 10 else "")
    return f"{nearest(name, folders)}; in {above} there are: {shown}"
