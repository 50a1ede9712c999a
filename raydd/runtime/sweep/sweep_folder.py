"""The output folder of a sweep, read for its page."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from raydd.core.errors import ConfigError, StorageError, TornFileError
from raydd.core.ipc_settings import KEY
from raydd.core.sealed import unseal
from raydd.core.storage import Storage
from raydd.core.yaml_tree import parse_yaml
from raydd.pages.blocks import Shown
from raydd.runtime.lock import alive, read_lock
from raydd.runtime.sweep.sweep_status import REPORT
from raydd.search.results import SweepReport, place_of_test
from raydd.search.sweep_page import SweepFacts, sweep_page
from raydd.search.trials import TrialJournal

PAGE, BEST = "report.html", "best.yaml"


def sweep_page_of(output: Storage) -> tuple[str, str]:
    """Return the page of the sweep whose files lie in ``output``, and its state: ``running``,
    ``failed``, ``finished`` or ``unfinished``. ``KeyError``, ``TypeError`` or ``ValueError`` for files that are
    torn or another version's.
    """
    try:
        found = unseal(output.get(REPORT), REPORT)
    except TornFileError as error:
        raise ValueError(str(error)) from error
    report = SweepReport.from_dict(found)
    if not report.ended:
        report = report.with_trials(TrialJournal(output).read())
    lock = read_lock(output)
    done = report.ended and (bool(report.tested) or not report.select)
    state = "failed" if report.trouble else "finished" if done else "unfinished"
    if lock is not None and alive(lock, time.time()):
        state = "running"
    tree = _job(output)
    sweep = SweepFacts(
        report=report,
        space=tree.get("sweep") or {},
        job=tree.get("job") or {},
        by_ipc=tree.get(KEY) or {},
        output=output.url,
        best_job=_text(output, BEST),
        picture=_best_set(output, report) if report.tested else None,
        made=time.strftime("on %Y-%m-%d at %H:%M UTC", time.gmtime()),
    )
    return sweep_page(sweep), state


def _job(output: Storage) -> Mapping[str, Any]:
    try:
        tree = parse_yaml(_text(output, "job.yaml"))
    except ConfigError:
        return {}
    return tree if isinstance(tree, Mapping) else {}


def _text(output: Storage, name: str) -> str:
    try:
        return output.get(name).decode()
    except (FileNotFoundError, StorageError, UnicodeDecodeError):
        return ""


def _best_set(output: Storage, report: SweepReport) -> Shown | None:
    """Return the picture of the set that was tested as the best; of several the first."""
    best = next((test.trial for test in report.tested if test.set == "best"), None)
    if best is None:
        return None
    folder = f"{place_of_test(best)}/distilled"
    seeds = [f"{name}/" for name in output.folders(folder) if name.startswith("seed-")]
    for place in ("", *seeds[:1]):
        try:
            data = output.get(f"{folder}/{place}grid.png")
        except (FileNotFoundError, StorageError):
            continue
        alt = "Distilled images of the winner, a class per row"
        return Shown(data, "image/png", alt, "The winner's set, as it was tested")
    return None
