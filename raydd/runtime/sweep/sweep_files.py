"""What a sweep leaves in its output: tables, the winner's jobs, pictures, a page; and what MLflow gets of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raydd.artifacts.tables import inline
from raydd.core.errors import StorageError
from raydd.core.json_text import parse_json
from raydd.core.sealed import seal
from raydd.core.storage import Storage, join
from raydd.core.store import versions
from raydd.runtime.session import git_commit, to_json
from raydd.runtime.sweep.final_jobs import job_files
from raydd.runtime.sweep.sweep_claim import count_text
from raydd.runtime.sweep.sweep_folder import BEST, PAGE, sweep_page_of
from raydd.runtime.sweep.sweep_plan import Sweep
from raydd.runtime.sweep.sweep_status import REPORT
from raydd.runtime.tracking.note import cut
from raydd.runtime.tracking.tracker import Tracker
from raydd.search.results import SweepReport, importance_of, shared_of, sweep_note, to_csv
from raydd.search.trials import Trial, ranked

log = logging.getLogger(__name__)
TABLE = "trials.csv"


def report_of(
    sweep: Sweep,
    output: Storage,
    trials: Sequence[Trial],
    first: tuple[int, float],
    seconds: float,
    ended: bool,
) -> SweepReport:
    """Return what a sweep has found so far. ``trials``: by number; ``first``: the units (and their
    device-seconds) that were computed for all trials; ``seconds``: by the clock; ``ended``: whether
    no trial is left to run.
    """
    space, file = sweep.space, sweep.space.file
    best = ranked(trials, space.mode)
    left = [trial.number for trial in trials if not trial.ended]
    return SweepReport(
        name=space.name,
        job=sweep.job.name,
        metric=file.metric,
        mode=space.mode,
        search=file.search,
        scheduler=file.scheduler,
        keys={key.name: key.domain.text() for key in space.keys},
        logarithmic=[key.name for key in space.keys if key.domain.logarithmic],
        split="holdout" if file.winner else sweep.job.evaluation.split,
        trials=trials,
        winner=best[0].number if best and file.winner else None,
        select=file.winner,
        shared=shared_of(trials, *first),
        notes=[f"Trials {', '.join(map(str, left))} are not finished."] if left else [],
        importance=importance_of(space, trials) if ended else {},
        seconds=round(seconds, 1),
        environment={"versions": versions(), "git_commit": git_commit()},
        wanted=count_text(sweep),
        ended=ended,
        marked=_marked(output),
    )


def keep_report(output: Storage, report: SweepReport) -> None:
    """Write what is found so far, while trials run, where ``raydd status`` and ``raydd report`` look for it."""
    output.put(REPORT, seal(to_json(replace(report, notes=()).to_dict())))


def write_files(
    sweep: Sweep, output: Storage, report: SweepReport, tracker: Tracker
) -> dict[str, str]:
    """Write all that shows what a sweep found, and track it; return where it is. What cannot be drawn is a warning."""
    before = _marked(output)
    if report.winner is not None and report.select:
        report = replace(report, marked=report.winner)
    drawn = _pictures(report)
    files = {REPORT: seal(to_json(report.to_dict())), TABLE: to_csv(report), **drawn}
    if report.winner is not None and report.select:
        files |= job_files(sweep, report, report.trials[report.winner])
    for name, data in files.items():
        output.put(name, data)
    places = {name: join(output.url, name) for name in (BEST, "refit.yaml", TABLE, REPORT)}
    places = {name: place for name, place in places.items() if name in files}
    if drawn:
        places["pictures"] = join(output.url, "*.png")
    page = _write_page(output)
    if page:
        places["page"] = page
    _track(sweep, output, report, tracker, drawn, before)
    return places


def _pictures(report: SweepReport) -> dict[str, bytes]:
    from raydd.search.figures import pictures

    try:
        return pictures(report)
    except Exception as error:  # noqa: BLE001 - whatever it is, the sweep itself is done
        log.warning("no pictures of the sweep: %s: %s", type(error).__name__, error)
        return {}


def _write_page(output: Storage) -> str:
    """Write the sweep's page; return where it is, empty if it could not be drawn, which is logged as a warning."""
    try:
        text, _ = sweep_page_of(output)
        output.put(PAGE, text.encode())
    except Exception as error:  # noqa: BLE001 - whatever it is, the sweep itself is done
        log.warning("no page of the sweep: %s: %s", type(error).__name__, error)
        return ""
    return join(output.url, PAGE)


# -- MLflow ----------------------------------------------------------------------------------------------------------


def _track(
    sweep: Sweep,
    output: Storage,
    report: SweepReport,
    tracker: Tracker,
    drawn: Mapping[str, bytes],
    before: int | None,
) -> None:
    """Send pictures and small files to the sweep's run, and mark the winner's; ``before``: who won until now."""
    ended = sum(trial.ended for trial in report.trials)
    tracker.tag(
        "mlflow.note.content", cut([inline(line) for line in sweep_note(report)], "sweep.json")
    )
    for name, data in drawn.items():
        tracker.picture(f"sweep/{name.removesuffix('.png')}", ended, data)
    tracker.artifacts(output, "sweep", (REPORT, TABLE, PAGE))
    if report.winner is None or not report.select:
        return
    tracker.tag("raydd.best_trial", str(report.winner))
    tracker.tag("raydd.best_value", str(report.trials[report.winner].value))
    for number, wins in ((before, "false"), (report.winner, "true")):
        run = None if number is None else _run_of(sweep, output, number)
        if run and (wins == "true" or number != report.winner):
            tracker.tag("raydd.winner", wins, run)


def kept(output: Storage, name: str) -> Any:
    """Return what the report of an earlier run of the sweep says under a name, ``None`` if nothing."""
    try:
        return parse_json(output.get(REPORT)).get(name)
    except (FileNotFoundError, StorageError, ValueError, AttributeError):
        return None


def _marked(output: Storage) -> int | None:
    """Return the trial that an earlier run of the sweep has marked as the winner's."""
    found = kept(output, "marked")
    return found if isinstance(found, int) else None


def _run_of(sweep: Sweep, output: Storage, number: int) -> str | None:
    """Return the id of a trial's run, if it is tracked and the server has it."""
    try:
        found = parse_json(output.get(f"{sweep.place(number)}/tracking.json")).get("run_id")
    except (FileNotFoundError, StorageError, ValueError, AttributeError):
        return None
    return str(found) if found else None
