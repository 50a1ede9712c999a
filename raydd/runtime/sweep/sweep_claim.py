"""A sweep's output folder: whose it is, and what a sweep does, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydd.config import Job, parse_job
from raydd.core.errors import ConfigError
from raydd.core.ipc_settings import KEY
from raydd.core.storage import Storage
from raydd.core.typed_tree import as_yaml, build, plain
from raydd.runtime.output import check_claim_as, check_place, claim_as
from raydd.runtime.sweep.sweep_plan import Sweep
from raydd.search.searchers import grid_points
from raydd.search.space import SpaceFile

WRITTEN = (
    "journal",
    "trials",
    "labels",
    "tested",
    "refit",
    "sweep.json",
    "trials.csv",
    "best.yaml",
)
"""What a sweep writes into its output, below a ``job.yaml`` that says whose it is."""


def check_claim(sweep: Sweep) -> None:
    """Raise ``ConfigError`` if a local output is a file, or another run's; nothing is written."""
    check_place("output", sweep.output)
    check_claim_as(sweep.output, _asked(sweep), _recorded, WRITTEN)


def _recorded(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        space = build(SpaceFile, tree["sweep"], "job.yaml")
        return _claimed(parse_job(tree["job"]), space, tree.get(KEY, {}))
    except (ConfigError, KeyError, TypeError):
        return tree


def claim_sweep(output: Storage, sweep: Sweep) -> bool:
    """Write what is swept, or compare with what is there; return whether the output is new."""
    return claim_as(output, whole_text(sweep), _asked(sweep), _recorded, WRITTEN)


def whole_text(sweep: Sweep) -> str:
    """Return all that a sweep is asked, as YAML: its space and its job, and what this has for other
    images per class that trials have.
    """
    asked = {"sweep": plain(sweep.space.file), "job": sweep.job.stated()}
    return as_yaml(asked | ({KEY: settings} if (settings := sweep.space.by_ipc()) else {}))


def _asked(sweep: Sweep) -> dict[str, Any]:
    return _claimed(sweep.job, sweep.space.file, sweep.space.by_ipc())


def _claimed(job: Job, file: SpaceFile, by_ipc: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a sweep another one: when it ends or gives up, and where it runs, do not."""
    space = {key: value for key, value in plain(file).items() if key not in ("budget", "give_up")}
    free = ("compute", "tracking", "output", "store")
    return {
        "sweep": space,
        "job": {key: value for key, value in job.resolved().items() if key not in free},
        KEY: by_ipc,
    }


def about(sweep: Sweep) -> str:
    """Return what a sweep does, as a line."""
    file = sweep.space.file
    return f"{count_text(sweep)} over {', '.join(file.keys)} ({file.search}, {file.metric})"


def count_text(sweep: Sweep) -> str:
    """Return how many trials a sweep makes, as a text."""
    budget, file = sweep.space.file.budget, sweep.space.file
    limits = []
    if file.search == "grid":
        whole = 1 + len(file.points) + len(grid_points(sweep.space))
        limits.append(f"{min(whole, budget.trials or whole)} trials")
    elif budget.trials is not None:
        limits.append(f"{budget.trials} trials")
    if budget.device_seconds is not None:
        limits.append(f"{budget.device_seconds:g} device-seconds")
    if budget.seconds is not None:
        limits.append(f"{budget.seconds:g} s")
    return " or ".join(limits)
