"""The jobs that a sweep ends with: the winner's on the test set, and the winner anew, of all data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raydd.artifacts.report import Report
from raydd.config import Job, parse_job
from raydd.core.dotted_keys import with_values
from raydd.core.storage import join
from raydd.runtime.sweep.sweep_plan import Sweep
from raydd.search.results import SweepReport, Tested, place_of_test
from raydd.search.trials import Trial, number

FRESH = 1_000_003
"""Seed of the students that test finished sets: no trial's."""


_BEST = "# Its set was distilled without the holdout, and is tested here: all of it is in the store already.\n"
_REFIT = (
    "# The job as it was given, with the winner's values: distils anew, of all training images.\n"
)


def final_job(sweep: Sweep, trial: Trial) -> Job:
    """Return a trial's job with the job's own evaluation on the test set, by fresh students."""
    output = join(sweep.output, place_of_test(trial.number))
    made, whole = sweep.trial(trial.number, trial.values), sweep.complete(trial.values, output)
    tree = with_values(
        made.resolved(),
        {"evaluation": whole.resolved()["evaluation"], **sweep.space.file.final},
    )
    fixed = {
        "name": f"{made.name}-test",
        "output": output,
        "evaluation.split": "test",
        "evaluation.every": None,
        "evaluation.seed": FRESH + sweep.job.seeds[0],
        "compute": sweep.job.resolved()["compute"],
        "tracking": sweep.job.resolved()["tracking"],
    }
    baselines = tree["evaluation"]["baselines"]
    if "random" not in baselines:
        fixed["evaluation.baselines"] = ["random", *baselines]
    return parse_job(with_values(tree, fixed), "test")


def final_jobs(sweep: Sweep, report: SweepReport) -> dict[tuple[str, int], Job]:
    """Return the jobs that a sweep with a winner is tested by, by what is tested and its trial."""
    assert report.winner is not None
    named = {("best", report.winner): report.trials[report.winner]}
    own = report.trials[0]
    if report.winner != 0 and own.state == "finished":
        named["job", 0] = own
    return {key: final_job(sweep, trial) for key, trial in named.items()}


def refit_job(sweep: Sweep, trial: Trial) -> Job:
    """Return the job as it was given, with a trial's values."""
    return sweep.complete(trial.values, join(sweep.output, f"refit/{trial.number:04d}"))


def tested(name: str, trial: int, report: Report, method: str) -> list[Tested]:
    rows = [row for row in report.rows if row.set in (method, "random")]
    return [
        Tested(
            set="random" if row.set != method else name,
            beside=name if row.set != method else "",
            trial=None if row.set != method else trial,
            protocol=row.protocol,
            network=row.network,
            accuracy_mean=row.accuracy_mean,
            accuracy_std=row.accuracy_std,
            students=row.seeds * row.networks,
        )
        for row in rows
    ]


def unlike(found: Sequence[Tested]) -> list[Tested]:
    """Return tests without random images that stand beside two sets alike."""
    seen: set[Tested] = set()
    kept = []
    for one in found:
        alike = replace(one, beside="")
        if not one.beside or alike not in seen:
            kept.append(one)
            seen.add(alike)
    return kept


def job_files(sweep: Sweep, report: SweepReport, best: Trial) -> dict[str, bytes]:
    """Return ``best.yaml`` and ``refit.yaml``, complete jobs."""
    says = (
        f"# The best of {len(report.trials)} trials (trial {best.number}: {report.metric} {number(best)} on"
        f" {report.split}).\n"
    )
    made = {
        "best.yaml": _BEST + final_job(sweep, best).to_yaml(),
        "refit.yaml": _REFIT + refit_job(sweep, best).to_yaml(),
    }
    return {name: (says + text).encode() for name, text in made.items()}
