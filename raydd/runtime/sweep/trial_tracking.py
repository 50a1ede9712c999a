"""Where the runs of trials are tracked, whose processes have folders and environments of their own."""

from __future__ import annotations

import os
from dataclasses import replace

from raydd.runtime.sweep.sweep_plan import Sweep
from raydd.runtime.tracking.tracking_uri import resolve_uri, sqlite_path

PREFIX, URI = "MLFLOW_TRACKING_", "MLFLOW_TRACKING_URI"


def tracked_here(sweep: Sweep) -> Sweep:
    """Return a sweep whose trials are tracked where this process would, wherever they run."""
    job, uri = sweep.job, sweep.job.tracking.uri
    if uri == "none":
        return sweep
    found = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    if uri is None:
        found[URI] = resolve_uri(None)
    elif sqlite_path(uri) is not None:
        job = replace(job, tracking=replace(job.tracking, uri=resolve_uri(uri)))
    return replace(sweep, job=job, environment=found)


def tracked_on(sweep: Sweep, machines: int) -> tuple[Sweep, str]:
    """Return a sweep whose trials have runs of their own only where they can write them, and a line for a person:
    a database is a file of one machine, and trials run on all of them.
    """
    uri = sweep.job.tracking.uri
    database = None if uri == "none" else sqlite_path(resolve_uri(uri))
    if machines < 2 or database is None:
        return sweep, ""
    line = (
        f"tracking: {database} is a file of this machine, and trials run on {machines}: the sweep has its run there,"
        " trials have none. A server (tracking.uri=http://…) would have them"
    )
    return replace(sweep, tracked=False), line
