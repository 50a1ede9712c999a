"""Every method's job killed in every stage, while its set is published and its report written, and started again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from dying import (
    EVERY,
    Killed,
    Life,
    Point,
    bury,
    litter,
    outputs,
    places_of,
    plan_of,
    published,
    run_once,
    small_job,
)
from fault_rows import Row, Tally

from raydd.methods import METHODS
from raydd.runtime.estimate import stages_of

SAME = (
    f"Killed there and started again: the same bytes of every output and of the set, the same accuracies; nothing that"
    f" had its marker is computed again, and no update but those since the last checkpoint (here at most {EVERY}); no"
    " lock, no half-written file, no checkpoint is left"
)
FAULTS = {
    "before a unit": Point("before a unit"),
    "between checkpoints": Point("step", t=1),
    "checkpoint put": Point("checkpoint"),
    "output put, no marker": Point("output"),
    "marker put, no line in the log": Point("marker"),
}
ENDS = {
    "set half published": Point("has been put", end="/out/distilled/data.safetensors"),
    "set without manifest": Point("put", end="/out/distilled/manifest.json"),
    "before the report": Point("put", end="/out/report.json"),
    "report put": Point("has been put", end="/out/report.json"),
}


def rows_of(name: str) -> Iterator[Row]:
    """Yield what is done to a method's job, in the order in which it happens; ``data``: the point."""
    stages: dict[str, tuple[int, bool]] = {}
    for stage, units, wanted in stages_of(plan_of(name).targets):
        steps, snapshots = stages.get(stage.name, (0, False))
        most = max(stage.steps(unit) for unit in units)
        stages[stage.name] = max(steps, most), snapshots or any(o != "final" for o in wanted)
    for stage_name, (steps, snapshots) in stages.items():
        lacking = {"between checkpoints": steps < 2, "checkpoint put": steps < 3 and not snapshots}
        for fault, point in FAULTS.items():
            if not lacking.get(fault):
                at = Point(point.kind, stage_name, point.end, point.t)
                yield Row("methods", f"{name}, {stage_name}", fault, SAME, CHECKED, "killed", at)
    for fault, point in ENDS.items():
        yield Row("methods", f"{name}, end", fault, SAME, CHECKED, "killed", point)


CHECKED = "test_killed_and_started_again"
BY_METHOD = {name: list(rows_of(name)) for name in METHODS.names()}
REAL = Row(
    "methods",
    "dm, every stage",
    "SIGKILL of a child process at the same points",
    "what lies on the disk is what the death that the other rows inject leaves: equal files and bytes",
    "test_sigkill_leaves_what_an_injected_death_leaves",
)
ROWS = [*(row for rows in BY_METHOD.values() for row in rows), REAL]


@dataclass
class Whole:
    """What an undisturbed run left: outputs, set, and what it did."""

    outputs: dict[str, str]
    set: dict[str, str]
    life: Life

    def at(self, row: Row) -> int:
        """Return the place of a row's point among the run's events."""
        return next(i for i, event in enumerate(self.life.trace) if row.data.met(*event))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """A method's name → what its undisturbed run left."""

    @cache
    def get(name: str) -> Whole:
        folder = tmp_path_factory.mktemp(f"whole-{name}")
        life = Life(places_of(plan_of(name, folder)))
        run_once(small_job(name, folder), life)
        assert not litter(folder)
        return Whole(outputs(folder), published(folder), life)

    return get


def markers_of(life: Life) -> int:
    """Return how many outputs a life finished."""
    return sum(kind == "marker" for kind, *_ in life.trace)


def killed_at_each(name: str, rows: list[Row], whole: Whole, folder: Path, tally: Tally) -> None:
    """Run a job in as many lives as there are rows, and one more."""
    places, job = places_of(plan_of(name, folder)), small_job(name, folder)
    steps = markers = lost = 0
    done: set[str] = set()
    for row in [*sorted(rows, key=whole.at), None]:
        life = Life(places, row.data if row else None)
        if row is not None:
            with pytest.raises(Killed):
                run_once(job, life)
            bury(folder)
            assert life.lost <= EVERY, row
            lost += life.lost
        else:
            run_once(job, life)
        assert not done & {key for key, _ in life.steps}, "a finished unit was computed again"
        steps += life.steps.total()
        markers += markers_of(life)
        done |= life.done
    assert outputs(folder) == whole.outputs
    assert published(folder) == whole.set
    assert steps == whole.life.steps.total() + lost, "only what was lost is computed again"
    assert markers == markers_of(whole.life), "no output is written twice"
    assert litter(folder) == []
    for row in rows:
        tally(row, 1)


def bounded(name: str) -> list[Row]:
    """Return the rows of the check: a fault of each stage, and one at the end, in turn."""
    by_what: dict[str, list[Row]] = {}
    for row in BY_METHOD[name]:
        by_what.setdefault(row.what, []).append(row)
    turn = METHODS.names().index(name)
    return [rows[(turn + i) % len(rows)] for i, rows in enumerate(by_what.values())]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS.names())
def test_killed_and_started_again(
    name: str, undisturbed: Callable[[str], Whole], tmp_path: Path, tally: Tally
) -> None:
    killed_at_each(name, bounded(name), undisturbed(name), tmp_path, tally)


@pytest.mark.nightly
@pytest.mark.parametrize("name", METHODS.names())
def test_killed_at_every_point(
    name: str, undisturbed: Callable[[str], Whole], tmp_path: Path, tally: Tally
) -> None:
    killed_at_each(name, BY_METHOD[name], undisturbed(name), tmp_path, tally)


def left_by(folder: Path) -> dict[str, str]:
    """Return the files below a folder; of those whose bytes hold times, names alone (a run is named by its place)."""
    return outputs(folder) | {
        str(path.relative_to(folder)): ""
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "runs"
    }


@pytest.mark.slow
def test_sigkill_leaves_what_an_injected_death_leaves(tmp_path: Path, tally: Tally) -> None:
    rows = [row for row in BY_METHOD["dm"] if row.what != "dm, evaluate/Evaluate"]
    for number, row in enumerate(rows):
        modelled, real = tmp_path / f"modelled-{number}", tmp_path / f"real-{number}"
        life = Life(places_of(plan_of("dm", modelled)), row.data)
        with pytest.raises(Killed):
            run_once(small_job("dm", modelled), life)
        child = os.fork()
        if child == 0:
            die = Life(
                places_of(plan_of("dm", real)),
                row.data,
                lambda: os.kill(os.getpid(), signal.SIGKILL),
            )
            try:
                run_once(small_job("dm", real), die)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert left_by(real) == left_by(modelled), row
    tally(REAL, len(rows))
