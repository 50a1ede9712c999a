"""Where a run is, from its folder and its store: while it runs, stopped, without its store, on far storage."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from run_records import PLAN, RUNNING, line, write_run

from raydd.artifacts.accounting import Accounting
from raydd.artifacts.report import Report, Row
from raydd.cli import main
from raydd.core.storage import Storage
from raydd.runtime import run_status as module
from raydd.runtime.run_status import as_dict, as_lines, run_status

LIVING = {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "started": psutil.Process().create_time(),
    "since": time.time() - 300,
    "beat": time.time(),
}


def put(store: Storage, key: str, name: str, data: bytes = b"{}") -> None:
    store.put(f"units/{key[:2]}/{key}/{name}", data)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def stored(tmp_path: Path) -> Storage:
    """A store in which a unit has a checkpoint, and a unit that the log does not know is there."""
    store = Storage(str(tmp_path / "store"))
    put(store, "d1", "state-000000060.safetensors")
    put(store, "d1", "state-000000075.safetensors")
    put(store, "d1", "step-000050.json")
    put(store, "e0", "final.json")
    return store


@pytest.fixture
def run(tmp_path: Path, stored: Storage) -> Path:
    return Path(write_run(tmp_path / "out", plan={**PLAN, "store": stored.url}))


def stages(url: object) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage for stage in as_dict(run_status(str(url)))["stages"]}


def status(*args: object) -> Result:
    return CliRunner().invoke(main, ["status", *map(str, args)])


def test_checkpoints_and_units_that_the_log_does_not_know_are_found_in_the_store(run: Path) -> None:
    before = content(run.parent)
    found = stages(run)
    match, evaluate = found["distill/Match"], found["evaluate/Evaluate"]
    assert (match["units_done"], match["units_needed"], match["updates_made"]) == (1, 2, 175)
    assert (evaluate["units_done"], evaluate["units_needed"]) == (2, 2)
    assert match["loss"] == 1.0
    assert match["devices"] == {"cpu": 1}
    assert content(run.parent) == before, "nothing is written"


def test_while_it_runs_only_units_that_have_begun_are_looked_for(run: Path) -> None:
    (run / "lock.json").write_text(json.dumps(LIVING))
    found = run_status(str(run))
    assert (found.state, found.code) == ("running", 4)
    values = as_dict(found)
    by_name = {stage["stage"]: stage for stage in values["stages"]}
    assert by_name["evaluate/Evaluate"]["units_done"] == 1
    assert by_name["distill/Match"]["updates_made"] == 175
    assert values["lock"]["pid"] == os.getpid()
    lines = as_lines(found)
    assert lines[0].startswith(f"small (distill): running, process {os.getpid()} on ")
    assert "holds the lock since " in lines[0]
    assert "time left: not known yet" in lines
    assert "accuracy after 50 updates: 71.50 ± 2.50 %" in lines


def test_rates_count_up_to_now_while_it_runs_and_to_the_last_line_afterwards(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = stages(run)["distill/Match"]
    assert stopped["updates_per_second"] == pytest.approx(175 / 40, abs=1e-3)
    assert stopped["seconds_left"] == pytest.approx(25 / (175 / 40), abs=1e-2)
    (run / "lock.json").write_text(json.dumps(LIVING))
    begun = run_status(str(run)).standing.stages["distill/Match"].begun
    assert begun is not None
    monkeypatch.setattr(module.time, "time", lambda: begun + 100)
    assert stages(run)["distill/Match"]["updates_per_second"] == pytest.approx(1.75)


def test_labels_that_lie_in_the_set_count_if_they_are_of_the_unit(tmp_path: Path) -> None:
    own, other = tmp_path / "labels", {"key": "another"}
    own.mkdir()
    (own / "a.json").write_text(json.dumps({"key": "d0"}))
    (own / "b.json").write_text(json.dumps(other))
    units = [["a", "d0", 1, []], ["b", "d1", 1, []], ["c", "d2", 1, []]]
    stage = {**PLAN["stages"][1], "units": units, "place": str(own), "outputs": ["final"]}
    plan = {**PLAN, "stages": [stage], "asked": [0, 1, 2], "store": str(tmp_path)}
    url = write_run(tmp_path / "out", [], plan=plan)
    standing = run_status(url).standing
    assert [unit.done for unit in standing.units] == [True, False, False]


def test_a_store_of_another_machine_leaves_what_the_log_says(tmp_path: Path) -> None:
    url = write_run(tmp_path / "out")
    found = run_status(url)
    assert found.notes == (
        "the store /nowhere/store is not on this machine: units are as the log has them",
    )
    assert stages(url)["distill/Match"]["updates_made"] == 160
    assert any(text.startswith("note: the store /nowhere/store") for text in as_lines(found))
    bad = write_run(tmp_path / "bad", plan={**PLAN, "store": "s4://bucket"})
    assert "the store cannot be read" in run_status(bad).notes[0]


def test_a_store_far_away_is_asked_for_few_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Storage(f"memory://status-{tmp_path.name}/store")
    units = [[f"u{i}", f"d{i:03d}", 10, []] for i in range(100)]
    plan = {**PLAN, "stages": [{**PLAN["stages"][1], "units": units}], "store": store.url}
    url = f"memory://status-{tmp_path.name}/out"
    log = [line(0, "run"), *(line(i, "start", f"d{i:03d}", t=0) for i in range(5))]
    for path in Path(write_run(tmp_path, log, plan={**plan, "asked": list(range(100))})).iterdir():
        Storage(url).put(path.name, path.read_bytes())
    for i in range(100):
        put(store, f"d{i:03d}", "state-000000004.safetensors")
    asked = []
    before = Storage.files

    def files(self: Storage, prefix: str = "") -> list[str]:
        asked.append(prefix)
        return before(self, prefix)

    monkeypatch.setattr(Storage, "files", files)
    found = run_status(url)
    assert len(asked) == module.FAR_LOOKS
    assert {f"units/d0/d{i:03d}" for i in range(5)} <= set(asked), "those that have begun first"
    assert found.notes == ("the store was not asked for 68 more units, which may be there",)
    assert found.standing.stages["distill/Match"].made == 4 * module.FAR_LOOKS


def test_a_run_whose_plan_is_gone_tells_what_it_logged(tmp_path: Path) -> None:
    found = run_status(write_run(tmp_path, plan=None))
    assert found.notes == ("there is no plan.json: units that have not begun are not known",)
    values = as_dict(found)
    assert values["units"] == {"done": 2, "needed": 3, "planned": None}
    assert values["seconds_left"] is None
    assert any("1/?" in text for text in as_lines(found))


REPORT = Report(
    dataset="digits",
    ipc=1,
    split="test",
    rows=(
        Row(
            set="dm", protocol="dm", network="mlp", accuracy_mean=91.25, accuracy_std=0.5,
            seeds=1, networks=5, image_bytes=1, label_bytes=1, account=Accounting.of(2, 64, 10),
        ),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ({"status": "FINISHED"}, 0, "dm: 91.25 ± 0.50 % (dm, mlp)"),
        ({"status": "FAILED", "text": "x is NaN"}, 1, "small (distill): failed at "),
        ({"status": "KILLED", "text": "asked"}, 3, ": asked"),
        (None, 3, "unfinished, and no process works on it"),
    ],
)
def test_the_exit_code_says_how_it_stands(
    tmp_path: Path, end: dict[str, str] | None, code: int, said: str
) -> None:
    log = [*RUNNING, *([] if end is None else [line(50, "end", **end)])]
    url = write_run(tmp_path, log, report=REPORT.to_dict())
    result = status(url)
    assert (result.exit_code, said in result.output) == (code, True), result.output
    assert str(status(url, "--json").exit_code) == str(code)


def test_json_is_one_line_for_each_look_and_a_watch_ends_with_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "lock.json").write_text(json.dumps(LIVING))
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            (run / "lock.json").unlink()

    monkeypatch.setattr("raydd.status.time.sleep", sleep)
    result = status(run, "--json", "--watch", "5")
    assert result.exit_code == 3, result.output
    states = [json.loads(text)["state"] for text in result.output.splitlines()]
    assert states == ["running", "running", "unfinished"]
    assert pauses == [5, 5]


def test_other_places_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    result = status(tmp_path / "rum")
    assert (result.exit_code, "did you mean 'run'?" in result.output) == (2, True), result.output
    assert status(tmp_path / "run", "--watch", "0").exit_code == 2
