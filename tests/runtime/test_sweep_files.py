"""What a sweep leaves: a page and pictures, whatever state it is in, and its runs in MLflow, one below the other."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from page_tree import check_page
from sweep_reports import report_of, trial
from test_sweeps import LR, quiet, sweep_of
from test_tracking import client, files, runs

from raydd.cli import main
from raydd.core.storage import Storage
from raydd.runtime.session import Interrupted
from raydd.runtime.sweep import sweep_files, sweeping
from raydd.runtime.sweep.schedulers import TuneRule
from raydd.runtime.sweep.sweep_files import write_files
from raydd.runtime.sweep.sweep_plan import Sweep
from raydd.runtime.tracking.tracker import Tracker
from raydd.search.desk import SweepDesk
from raydd.search.results import SweepReport

KEY = "method.lr_img"
KEYS_AT = (1.0, 0.1, 10.0)
pytestmark = pytest.mark.timeout(300)


def found(values: list[float]) -> SweepReport:
    trials = [trial(i, v, {KEY: at}) for i, (v, at) in enumerate(zip(values, KEYS_AT))]
    return report_of(trials, {KEY: "one of 0.1, 1.0, 10.0"})


def tracker_of(folder: Path, place: str) -> Tracker:
    return Tracker(f"sqlite:///{folder}/m.db", "e", place, Storage(str(folder / place)), {}, {})


def untracked(sweep: Sweep) -> Tracker:
    return Tracker("none", "e", "x", Storage(sweep.output), {}, {})


def notes_of(folder: Path) -> list[str]:
    page = check_page((folder / "report.html").read_text())
    return [node.text for node in page.all("p", class_="note")]


def test_a_sweep_leaves_tables_pictures_and_a_page(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR})
    output = Storage(sweep.output)
    places = write_files(sweep, output, found([70.0, 80.0, 75.0]), untracked(sweep))
    names = {"best.yaml", "refit.yaml", "trials.csv", "sweep.json", "pictures", "page"}
    assert set(places) == names
    there = {path.name for path in Path(sweep.output).iterdir()}
    assert there >= {"report.html", "slices.png", "value_over_trials.png", "trials.csv"}
    assert notes_of(Path(sweep.output)) == [
        "The winner is not tested: the sweep has not come to its end."
    ]
    text = (Path(sweep.output) / "report.html").read_text()
    assert "raydd distill --config" in text
    assert "method.lr_img=0.1" in text
    told = CliRunner().invoke(main, ["report", sweep.output, "--to", str(tmp_path / "p.html")])
    assert told.exit_code == 0, told.output
    assert "(unfinished)" in told.output
    assert "best first" in (tmp_path / "p.html").read_text()


def test_what_cannot_be_drawn_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*of: Any) -> Any:
        raise RuntimeError("no font")

    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR})
    monkeypatch.setattr(sweep_files, "sweep_page_of", broken)
    monkeypatch.setattr("raydd.search.figures.pictures", broken)
    with caplog.at_level(logging.WARNING):
        places = write_files(sweep, Storage(sweep.output), found([70.0]), untracked(sweep))
    assert "page" not in places
    assert "pictures" not in places
    assert [r.getMessage() for r in caplog.records] == [
        "no pictures of the sweep: RuntimeError: no font",
        "no page of the sweep: RuntimeError: no font",
    ]
    assert (Path(sweep.output) / "sweep.json").exists()


@pytest.mark.parametrize("text", ["{", "{}", '{"trials": [{}], "tested": []}', "[]"])
def test_a_torn_sweep_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    told = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert told.exit_code == 2
    assert "sweep.json is torn, or of another version" in told.output
    assert "Traceback" not in told.output


@pytest.mark.slow
def test_the_winner_is_marked_in_mlflow_also_when_it_changes(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR})
    uri = f"sqlite:///{tmp_path}/m.db"
    for number in range(2):
        assert tracker_of(tmp_path, f"sweep/trials/000{number}").finish("FINISHED") is None
    for values in ([70.0, 60.0], [70.0, 80.0, 75.0]):
        tracker = tracker_of(tmp_path, "sweep")
        write_files(sweep, Storage(sweep.output), found(values), tracker)
        assert tracker.finish("FINISHED") is None
        by_name = {run.info.run_name: run for run in runs(uri, "e")}
        parent = by_name["sweep"]
        best = values.index(max(values))
        tags = parent.data.tags
        assert (tags["raydd.best_trial"], tags["raydd.best_value"]) == (str(best), str(max(values)))
        marks = [by_name[f"sweep/trials/000{n}"].data.tags.get("raydd.winner") for n in range(2)]
        assert marks == (["true", None] if best == 0 else ["false", "true"])
        assert "raydd.winner" not in tags
        note = tags["mlflow.note.content"].splitlines()
        assert note[0].startswith(f"**{max(values):.4g} ± 0.5** accuracy (holdout) so far")
        assert f"| {best} | {KEYS_AT[best]:.4g} | {max(values):.4g} ± 0.5 |" in note
    names = [f"sweep/{name}" for name in ("report.html", "sweep.json", "trials.csv")]
    assert files(uri, parent, "sweep") == names
    drawn = {(p.split("+")[0], int(p.split("+")[2])) for p in files(uri, parent, "images")}
    assert ("images/sweep~value_over_trials", 2) in drawn
    assert ("images/sweep~slices", 3) in drawn
    kept = Path(client(uri).download_artifacts(parent.info.run_id, "sweep/sweep.json"))
    assert json.loads(kept.read_text())["winner"] == 1


@pytest.mark.slow
def test_a_winner_whose_run_is_gone_does_not_hold_up_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR})
    lost = Path(sweep.output, "trials", "0001", "tracking.json")
    lost.parent.mkdir(parents=True)
    lost.write_text(json.dumps({"run_id": "0" * 32}))
    tracker = tracker_of(tmp_path, "sweep")
    write_files(sweep, Storage(sweep.output), found([70.0, 80.0]), tracker)
    assert tracker.finish("FINISHED") is None
    (run,) = runs(f"sqlite:///{tmp_path}/m.db", "e")
    assert run.data.tags["raydd.best_trial"] == "1"
    assert run.info.status == "FINISHED"
    assert "there is no run 00000" in caplog.text


@pytest.mark.slow
def test_a_sweep_is_one_run_with_its_trials_below_also_after_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(self: TuneRule, number: int, step: int, value: float) -> bool:
        return number == 1 and step > 0

    monkeypatch.setattr(TuneRule, "stops", stops)
    uri = f"sqlite:///{tmp_path}/m.db"
    space = {"search": "grid", "keys": LR, "scheduler": "asha"}
    job = {"evaluation": {"epochs": 2, "repeats": 2, "every": 2}, "name": "small"}
    sweep = sweep_of(tmp_path, space, tracking={"uri": uri, "experiment": "e"}, **job)

    def interrupting(line: str) -> None:
        if "trial 0 " in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        sweeping.run_sweep(sweep, interrupting)
    assert {run.info.run_name: run.info.status for run in runs(uri, "e")} == {
        "small sweep": "KILLED",
        "small-0000": "FINISHED",
    }
    assert notes_of(Path(sweep.output)) == [
        "The winner is not tested: the sweep has not come to its end."
    ]
    report = sweeping.run_sweep(sweep, quiet).report
    by_name = {run.info.run_name: run for run in runs(uri, "e")}
    parent = by_name.pop("small sweep")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in by_name.values()} == {parent.info.run_id}
    states = {"finished": "FINISHED", "pruned": "KILLED"}
    assert {one.state for one in report.trials} == set(states)
    for one in report.trials:
        run = by_name.pop(f"small-000{one.number}")
        assert run.info.status == states[one.state]
        assert run.data.tags["raydd.trial"] == str(one.number)
        assert run.data.tags.get("raydd.winner") == (
            "true" if one.number == report.winner else None
        )
    assert f"small-000{report.winner}-test" in by_name
    assert parent.data.tags["raydd.best_trial"] == str(report.winner)
    assert notes_of(Path(sweep.output)) == []


def test_a_sweep_that_runs_says_where_it_is(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR, "trial": {"evaluation.every": 2}})
    seen: dict[str, Any] = {}
    judged = SweepDesk.judged

    def looking(self: SweepDesk, number: int, step: int, value: float) -> bool:
        stop = judged(self, number, step, value)
        if (number, step) == (1, 2):
            told = CliRunner().invoke(main, ["status", sweep.output, "--json"])
            seen["status"], seen["code"] = json.loads(told.stdout), told.exit_code
            seen["lines"] = CliRunner().invoke(main, ["status", sweep.output]).stdout
            page = CliRunner().invoke(main, ["report", sweep.output, "--to", f"{tmp_path}/p.html"])
            assert page.exit_code == 0, page.output
            seen["page"] = check_page(Path(tmp_path, "p.html").read_text())
        return stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepDesk, "judged", looking)
        report = sweeping.run_sweep(sweep, lambda line: None).report
    status = seen["status"]
    assert (status["verb"], status["state"], seen["code"]) == ("sweep", "running", 4)
    assert status["trials"] == {
        "wanted": "3 trials", "finished": 1, "pruned": 0, "failed": 0, "same": 0, "running": 1,
    }  # fmt: skip
    assert status["best"]["trial"] == 0
    assert [one["trial"] for one in status["running"]] == [1]
    assert status["running"][0]["snapshot"]["updates"] == 2
    assert "running, process" in seen["lines"]
    notes = [node.text for node in seen["page"].all("p", class_="note")]
    assert notes == ["The winner is not tested: the sweep has not come to its end."]
    assert "the best of 1 finished trial" in seen["page"].text
    assert "trials: 1 finished, 1 running; wanted: 3 trials" in seen["lines"]

    told = CliRunner().invoke(main, ["status", sweep.output])
    assert told.exit_code == 0, told.output
    assert "(sweep): finished" in told.stdout
    assert f"best: trial {report.winner}, accuracy (holdout)" in told.stdout
    best = next(one for one in report.tested if one.set == "best")
    assert f"tested: best  {best.accuracy_mean:.2f}" in told.stdout


def test_a_sweep_whose_process_is_gone_is_unfinished(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"search": "grid", "keys": LR})
    write_files(sweep, Storage(sweep.output), found([70.0, 60.0]), untracked(sweep))
    told = CliRunner().invoke(main, ["status", sweep.output])
    assert told.exit_code == 3, told.output
    assert "no process works on it; the same command goes on from here" in told.stdout


@pytest.mark.parametrize("text", ["{", "{}", '{"tested": [], "select": true}', "[]"])
def test_the_status_of_a_torn_sweep_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    told = CliRunner().invoke(main, ["status", str(tmp_path)])
    assert told.exit_code == 2
    assert "sweep.json is torn, or of another version" in told.output
    assert "Traceback" not in told.output
