"""The job's log over resumes, torn lines and failing storage; curves over units."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from toys import Total, Walk
from waiting import waited

import raydd.runtime.journal as journal_module
from raydd.artifacts.curves import Curves
from raydd.artifacts.log_lines import checked_line, record_of
from raydd.core.errors import StorageError
from raydd.core.events import Event
from raydd.core.storage import Storage
from raydd.core.store import Store
from raydd.core.units import Ref, unit_key
from raydd.runtime.journal import Journal
from raydd.runtime.plan_record import labelled
from raydd.runtime.runner import LocalRunner

ROWS = ((0, {"loss": 1.5}), (1, {"loss": 1.25}))


def event(kind: Any, **facts: Any) -> Event:
    return Event(
        kind=kind, **{"stage": "distill/Walk", "unit": "walk-00", "key": "k0", "steps": 2, **facts}
    )


def lines(storage: Storage) -> list[dict[str, Any]]:
    return [dict(record_of(line)) for line in storage.get("log.jsonl").splitlines()]


def write_all(journal: Journal) -> None:
    journal.on_event(event("start", worker="rank-0"))
    journal.on_event(event("progress", t=1))
    journal.on_event(event("log", t=2, rows=ROWS))
    journal.on_event(event("output", output="final", t=2, seconds=1.23456, rows=ROWS))


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(
        str(tmp_path / "out") if request.param == "file" else f"memory://journal-{tmp_path.name}"
    )


def test_each_event_becomes_a_line_that_says_what_happened(storage: Storage) -> None:
    journal = Journal(storage)
    write_all(journal)
    journal.on_event(event("failed", t=1, text="x is NaN"))
    journal.on_event(Event(kind="message", text="Ray is ready"))
    journal.close()
    found = lines(storage)
    assert [line["kind"] for line in found] == [
        "start",
        "log",
        "log",
        "output",
        "failed",
        "message",
    ]
    assert [(line["t"], line["values"]) for line in found if line["kind"] == "log"] == [
        (0, {"loss": 1.5}),
        (1, {"loss": 1.25}),
    ]
    output = {name: value for name, value in found[3].items() if name != "time"}
    assert output == {
        "kind": "output", "stage": "distill/Walk", "unit": "walk-00", "key": "k0", "t": 2, "output": "final",
        "seconds": 1.235
    }  # fmt: skip
    assert found[4]["text"] == "x is NaN"
    assert set(found[5]) == {"time", "kind", "text"}
    assert found[0]["time"].startswith("20")
    assert found[0]["time"].endswith("+00:00")


def test_a_resumed_run_writes_nothing_twice(storage: Storage) -> None:
    first = Journal(storage)
    write_all(first)
    first.close()
    second = Journal(storage)
    second.on_event(event("output", output="final", cached=True, rows=ROWS))
    second.on_event(event("log", rows=(*ROWS, (2, {"loss": 1.0}))))
    second.on_event(event("log", key="k1", unit="walk-01", rows=ROWS[:1]))
    second.close()
    found = lines(storage)
    assert [(line["key"], line["t"]) for line in found if line["kind"] == "log"] == [
        ("k0", 0),
        ("k0", 1),
        ("k0", 2),
        ("k1", 0),
    ]
    assert sum(line["kind"] == "output" for line in found) == 1


def test_an_output_says_who_made_it_and_on_what(storage: Storage) -> None:
    journal = Journal(storage)
    journal.on_event(event("output", output="final", t=2, worker="rank-1", device="NVIDIA L4"))
    journal.close()
    (line,) = lines(storage)
    assert (line["worker"], line["device"]) == ("rank-1", "NVIDIA L4")


def test_notes_are_lines_of_their_own_and_an_accuracy_is_written_once(storage: Storage) -> None:
    for mean in (71.5, 72.5):
        journal = Journal(storage)
        journal.note("run", versions={"raydd": "1"})
        journal.accuracy(50, {"accuracy_mean": mean})
        journal.accuracy(100, {"accuracy_mean": 80.0})
        journal.note("end", status="KILLED")
        journal.close()
    found = [{k: v for k, v in line.items() if k != "time"} for line in lines(storage)]
    run, end = {"kind": "run", "versions": {"raydd": "1"}}, {"kind": "end", "status": "KILLED"}
    first, last = (
        {"kind": "accuracy", "t": t, "values": {"accuracy_mean": mean}}
        for t, mean in ((50, 71.5), (100, 80.0))
    )
    assert found == [run, first, last, end, run, end]


def test_a_torn_last_line_is_cut_and_written_again(storage: Storage) -> None:
    first = Journal(storage)
    write_all(first)
    first.close()
    data = storage.get("log.jsonl")
    storage.put("log.jsonl", data[:-20])
    second = Journal(storage)
    write_all(second)
    second.close()
    found = lines(storage)
    assert [line["kind"] for line in found] == [
        "start",
        "log",
        "log",
        "start",
        "output",
    ], "all lines readable, only the torn one again"


def test_a_damaged_line_in_the_middle_does_not_stop_a_run(storage: Storage) -> None:
    storage.put("log.jsonl", b'{"kind": "log", "key": "k0", "t": 0}\n\x00\x00\xff\n[1]\n')
    journal = Journal(storage)
    journal.on_event(event("log", rows=ROWS))
    journal.close()
    assert storage.get("log.jsonl").startswith(
        b'{"kind": "log", "key": "k0", "t": 0}\n\x00\x00\xff\n[1]\n{'
    )
    assert json.loads(storage.get("log.jsonl").splitlines()[-1])["t"] == 1


def test_local_lines_are_there_at_once(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    journal = Journal(storage)
    journal.on_event(event("log", rows=ROWS))
    assert [line["t"] for line in lines(storage)] == [0, 1]
    journal.close()


def test_a_local_folder_that_fails_costs_nothing_once_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.0)
    folder = tmp_path / "out"
    folder.write_text("a file where the output folder should be")
    journal = Journal(Storage(str(folder)))
    with caplog.at_level(logging.WARNING, logger="raydd"):
        write_all(journal)
    folder.unlink()
    assert len([r for r in caplog.records if "log.jsonl cannot be written" in r.message]) <= 1
    journal.on_event(event("message", text="it is back"))
    journal.close()
    assert [line["kind"] for line in lines(Storage(str(folder)))] == [
        "start",
        "log",
        "log",
        "output",
        "message",
    ]


class Away(Storage):
    """A storage whose server does not answer while ``away``."""

    away = False
    puts = 0

    def put(self, path: str, data: bytes) -> None:
        self.puts += 1
        if self.away:
            raise StorageError(f"could not write {self.url}/{path}")
        super().put(path, data)

    def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if self.away:
            raise StorageError(f"could not read {self.url}/{path}")
        return super().get(path, start, end)


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_server_that_is_away_from_the_start_loses_neither_old_nor_new_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "REWRITE_SECONDS", 0.02)
    storage = Away(f"memory://journal-{tmp_path.name}")
    first = Journal(storage)
    first.on_event(event("log", rows=ROWS[:1]))
    first.close()
    storage.away = True
    with caplog.at_level(logging.WARNING, logger="raydd"):
        second = Journal(storage)
        begun = waited()
        second.on_event(event("log", rows=ROWS))
        assert waited() - begun < 0.5, "the driver never waits for storage"
        wait_for(lambda: any("cannot be written for now" in r.message for r in caplog.records))
        time.sleep(0.2)
    assert sum("cannot be written for now" in r.message for r in caplog.records) == 1, (
        "warned once, not each time"
    )
    storage.away = False
    second.close()
    assert [line["t"] for line in lines(storage)] == [0, 1]


def test_a_remote_log_is_written_while_the_job_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "REWRITE_SECONDS", 0.02)
    storage = Away(f"memory://journal-{tmp_path.name}")
    journal = Journal(storage)
    journal.on_event(event("log", rows=ROWS[:1]))
    wait_for(lambda: storage.puts == 1)
    storage.away = True
    journal.on_event(event("log", rows=ROWS))
    wait_for(lambda: storage.puts >= 3)
    storage.away = False
    journal.close()
    assert [line["t"] for line in lines(storage)] == [0, 1], "failed writes leave no double lines"


def test_what_can_never_be_written_is_reported_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Away(f"memory://journal-{tmp_path.name}")
    storage.away = True
    journal = Journal(storage)
    write_all(journal)
    with caplog.at_level(logging.WARNING, logger="raydd"):
        journal.close()
    assert any("4 lines of the log could not be written" in r.message for r in caplog.records)


def test_the_log_of_a_real_run_holds_every_step_once(tmp_path: Path) -> None:
    storage, store = Storage(str(tmp_path / "out")), Store(str(tmp_path / "store"))
    refs = [Ref(Total(seed=0, walk=Walk(seed=1, count=2, updates=6)), "all")]
    for _ in range(2):
        journal = Journal(storage)
        LocalRunner(dict).run(refs, store, journal.on_event)
        journal.close()
    found = lines(storage)
    walk = [(line["unit"], line["t"]) for line in found if line["kind"] == "log"]
    assert sorted(walk) == [(f"walk-{u:02d}", t) for u in range(2) for t in range(6)]
    assert sum(line["kind"] == "output" for line in found) == 3


def row_event(stage: Walk, unit: str, *rows: tuple[int, dict[str, float]]) -> Event:
    return Event(kind="log", stage=stage.name, unit=unit, key=unit_key(stage, unit), rows=rows)


def test_a_step_is_averaged_when_all_units_have_reported_it() -> None:
    walk = Walk(seed=1, count=3)
    curves = Curves(labelled([walk]))
    assert curves.on_event(row_event(walk, "walk-00", (0, {"loss": 1.0}), (1, {"loss": 2.0}))) == []
    assert curves.on_event(row_event(walk, "walk-02", (0, {"loss": 2.0}))) == []
    assert curves.on_event(row_event(walk, "walk-02", (0, {"loss": 9.0}))) == [], (
        "the same unit again counts once"
    )
    done = curves.on_event(row_event(walk, "walk-01", (1, {"loss": 6.0}), (0, {"loss": 6.0})))
    assert done == [("distill/Walk", 0, {"loss": 3.0})]
    assert curves.on_event(row_event(walk, "walk-02", (1, {"loss": 1.0}), (0, {"loss": 2.0}))) == [
        ("distill/Walk", 1, {"loss": 3.0})
    ]
    assert curves.on_event(row_event(walk, "walk-00", (0, {"loss": 1.0}))) == [], (
        "a step is told once"
    )


def test_curves_of_several_seeds_have_names_of_their_own() -> None:
    walks = [Walk(seed=seed, count=1) for seed in (1, 2)]
    curves = Curves(labelled(walks))
    names = [curves.on_event(row_event(walk, "walk-00", (4, {"x": 1.0})))[0][0] for walk in walks]
    assert names == ["distill/Walk/seed-1", "distill/Walk/seed-2"]
    alike = [Walk(seed=1, count=1, updates=n) for n in (5, 6)]
    curves = Curves(labelled(alike))
    assert [
        curves.on_event(row_event(walk, "walk-00", (4, {"x": 1.0})))[0][0] for walk in alike
    ] == [
        "distill/Walk/1",
        "distill/Walk/2",
    ]
    assert curves.on_event(row_event(Walk(seed=9), "walk-00", (4, {"x": 1.0}))) == [], (
        "a stage that is not followed"
    )


def test_a_line_with_another_digit_is_no_record() -> None:
    line = checked_line(b'{"kind": "log", "t": 12}').rstrip()
    assert record_of(line) == {"kind": "log", "t": 12}
    with pytest.raises(ValueError, match="checksum differs"):
        record_of(line.replace(b"12", b"13", 1))
