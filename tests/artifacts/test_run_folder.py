"""The output folder of a run is read, torn files are named, other places are refused with what may be meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from run_records import JOB, RUNNING, write_run

from raydd.artifacts.report import Report
from raydd.artifacts.run_folder import read_run
from raydd.core.errors import ConfigError


def test_what_a_run_left_is_read(tmp_path: Path, report: Report) -> None:
    run = read_run(write_run(tmp_path / "out", report=report.to_dict()))
    assert (run.name, run.verb, run.notes) == ("small", "distill", ())
    assert list(run.log) == RUNNING
    assert run.report == report
    assert run.plan is not None
    assert run.plan["dataset"] == "digits"


def test_a_run_that_has_only_begun_is_one(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("set: 01ab\nevaluation: {protocol: dm}\n")
    run = read_run(str(tmp_path))
    assert (run.name, run.verb) == (tmp_path.name, "evaluate")
    assert (run.plan, run.log, run.report) == (None, (), None)


def test_what_is_torn_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    write_run(tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('[1]\n{"kind": 3}\n{"kind": "lo')
    (tmp_path / "plan.json").write_text('{"stages": [')
    (tmp_path / "report.json").write_text('{"rows": 5}')
    run = read_run(str(tmp_path))
    assert list(run.log) == RUNNING
    assert (run.plan, run.report) == (None, None)
    assert [note.split(" cannot")[0] for note in run.notes] == [
        "plan.json",
        "3 lines of log.jsonl",
        "report.json",
    ]


def nothing(folder: Path) -> str:
    write_run(folder / "quickstart")
    return str(folder / "quikstart")


def runs_inside(folder: Path) -> str:
    write_run(folder / "runs" / "one")
    (folder / "runs" / "store").mkdir()
    return str(folder / "runs")


def a_set(folder: Path) -> str:
    (folder / "manifest.json").write_text("{}")
    return str(folder)


def no_run(folder: Path) -> str:
    (folder / "notes.txt").write_text("mine")
    return str(folder)


def another_job(folder: Path) -> str:
    return write_run(folder, job={"jobs": [JOB]})


def a_torn_job(folder: Path) -> str:
    (folder / "job.yaml").write_text("{a: [")
    return str(folder)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (nothing, ["nothing is at", "did you mean 'quickstart'?"]),
        (runs_inside, ["is no run, but holds runs: one"]),
        (a_set, ["is a distilled set, not the output of a run"]),
        (no_run, ["is not the output of a run: it has no job.yaml"]),
        (another_job, ["job.yaml is not the file of a run"]),
        (a_torn_job, ["job.yaml cannot be read"]),
        (lambda folder: "s3:/bucket/run", ["did you mean 's3://bucket/run'?"]),
    ],
)
def test_other_places_are_refused_with_what_may_be_meant(
    tmp_path: Path, place: Callable[[Path], str], expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_run(place(tmp_path))
    for part in expected:
        assert part in str(caught.value)
