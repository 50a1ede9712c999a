"""Disks that are full, read-only or broken, drivers that meet on one place, and clocks that jump."""

from __future__ import annotations

import builtins
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from fault_rows import Row, Tally
from scenes import COMMON, CONFIG, command, essence, finished
from toys import Total, Walk

from raydd.core import retries, storage
from raydd.core.errors import LockedError, RunFailed, StorageError
from raydd.core.sealed import seal
from raydd.core.storage import Storage
from raydd.core.store import Store
from raydd.core.units import Ref
from raydd.runtime import lock as locks
from raydd.runtime.lock import LOCK, Lock, alive
from raydd.runtime.runner import LocalRunner

FINAL = {
    "ENOSPC": "disk full",
    "EDQUOT": "quota used up",
    "EACCES": "permission denied",
    "EROFS": "read-only",
    "EFBIG": "file too large",
}


def row_of(what: str, fault: str, outcome: str, test: str, data: str = "") -> Row:
    return Row("storage", what, fault, outcome, test, data=data)


WRITES = "each write of a run on a disk"
REFUSED = "Refused at once with path and error, nothing half written; the same command then gives the same bytes"
DISKS = [
    row_of(WRITES, title, REFUSED, "test_each_write_of_a_run", name)
    for name, title in FINAL.items()
]
PASSING = row_of(
    WRITES, "an error that passes (EIO)", "Tried again; the same bytes", "test_an_error_that_passes"
)
RACE = row_of(
    "an output",
    "eight drivers at the same moment",
    "One writes, the others are refused",
    "test_drivers_at_the_same_moment",
)
TWO = row_of(
    "a store",
    "two drivers at the same time",
    "Both end with the same bytes",
    "test_two_drivers_on_one_store",
)
HELD = row_of(
    "an output",
    "a second job or a sweep while one runs",
    "Refused: who writes it",
    "test_a_place_that_is_held",
)
TAKEN = row_of(
    "an output",
    "taken over while its driver was suspended",
    "The first driver stops and is refused",
    "test_a_lock_that_is_taken_over",
)
JUMPS = row_of(
    "the clock",
    "jumps by days at every look, during a job",
    "The same bytes",
    "test_a_job_while_the_clock_jumps",
)
SET = row_of(
    "the clock",
    "is set while a driver holds an output",
    "The driver is known as alive",
    "test_a_holder_is_alive_whatever_the_clock_says",
)
ABROAD = row_of(
    "the clock",
    "of another machine is wrong by days",
    "Its signs of life count by their change",
    "test_signs_of_life_of_another_clock",
)
ROWS = [*DISKS, PASSING, RACE, TWO, HELD, TAKEN, JUMPS, SET, ABROAD]


def targets() -> list[Ref]:
    total = Total(seed=2, walk=Walk(seed=2, count=2, updates=3))
    return [*total.walk.refs(), *total.refs()]


def run(store: Store) -> None:
    LocalRunner(dict, checkpoint_every=1e-6).run(targets(), store, lambda event: None)


def stored(store: Store) -> list[bytes]:
    store.check(targets())
    places = [store.place(ref) for ref in targets()]
    return [where.get(f"{path}.safetensors") for where, path in places]


class _Full:
    """A file of which half is written before the disk's error."""

    def __init__(self, file: Any, number: int) -> None:
        self.file, self.number = file, number

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        raise OSError(self.number, os.strerror(self.number))


class Disk:
    """Stands for ``open`` of raydd's storage: writes ``first`` to ``last`` fail."""

    def __init__(self, number: int, first: int, last: int) -> None:
        self.number, self.first, self.last, self.writes = number, first, last, 0

    def __call__(self, path: str, mode: str = "r", **more: Any) -> Any:
        file = builtins.open(path, mode, **more)  # noqa: SIM115 - closed by who asked
        if "w" not in mode:
            return file
        self.writes += 1
        return _Full(file, self.number) if self.first <= self.writes <= self.last else file


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "wait_random_exponential", lambda **_: lambda _: 0.0)


@pytest.mark.parametrize("row", DISKS, ids=str)
def test_each_write_of_a_run(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    number = getattr(errno, row.data)
    whole, disk = Store(str(tmp_path / "whole")), Disk(0, 0, -1)
    monkeypatch.setattr(storage, "open", disk, raising=False)
    run(whole)
    expected, writes = stored(whole), disk.writes
    assert writes >= 10
    for nth in range(1, writes + 1):
        store = Store(str(tmp_path / f"{nth}"))
        monkeypatch.setattr(storage, "open", Disk(number, nth, 10_000), raising=False)
        with pytest.raises(
            (StorageError, RunFailed), match=f"could not write {store.url}/.*{os.strerror(number)}"
        ):
            run(store)
        assert not list(Path(store.url).rglob("*.tmp")), "something half written was left"
        monkeypatch.setattr(storage, "open", builtins.open, raising=False)
        run(store)
        assert stored(store) == expected, nth
    tally(row, writes)


def test_an_error_that_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, tally: Tally
) -> None:
    whole, disk = Store(str(tmp_path / "whole")), Disk(0, 0, -1)
    monkeypatch.setattr(storage, "open", disk, raising=False)
    run(whole)
    for nth in range(1, disk.writes + 1):
        store = Store(str(tmp_path / f"{nth}"))
        monkeypatch.setattr(storage, "open", Disk(errno.EIO, nth, nth + 2), raising=False)
        run(store)
        assert stored(store) == stored(whole), nth
    tally(PASSING, disk.writes)


def test_drivers_at_the_same_moment(tmp_path: Path, tally: Tally) -> None:
    rounds, drivers = 10, 8
    for number in range(rounds):
        output, barrier = Storage(str(tmp_path / f"{number}")), threading.Barrier(drivers)
        held: list[Lock] = []
        refused: list[str] = []

        def drive(
            output: Storage = output, barrier: threading.Barrier = barrier, held: list[Lock] = held,
            refused: list[str] = refused,
        ) -> None:  # fmt: skip
            one = Lock(output, lambda line: None)
            barrier.wait()
            try:
                held.append(one.__enter__())
            except LockedError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=drive) for _ in range(drivers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(held), len(refused)) == (1, drivers - 1)
        assert all(str(tmp_path) in text and f"process {os.getpid()}" in text for text in refused)
        held[0].__exit__()
        assert output.list() == []
    tally(RACE, rounds * drivers)


def test_two_drivers_on_one_store(tmp_path: Path, tally: Tally) -> None:
    whole = Store(str(tmp_path / "whole"))
    run(whole)
    rounds, failed = 5, []
    for number in range(rounds):
        url = str(tmp_path / f"{number}")

        def drive(url: str = url) -> None:
            try:
                run(Store(url))
            except Exception as error:  # noqa: BLE001 - it is looked at below
                failed.append(error)

        threads = [threading.Thread(target=drive) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert stored(Store(url)) == stored(whole)
    tally(TWO, rounds)


def test_a_place_that_is_held(tmp_path: Path, tally: Tally) -> None:
    keys = {"method.lr_img": {"loguniform": [0.1, 10.0]}}
    space = {"keys": keys, "search": "random", "budget": {"trials": 2}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    words = [*COMMON, "evaluation.every=null", f"output={tmp_path}/out", f"store={tmp_path}/store"]
    with Lock(Storage(str(tmp_path / "out")), lambda line: None):
        for verb, more in (("distill", []), ("sweep", ["--space", str(tmp_path / "space.yaml")])):
            said = command(verb, "--config", CONFIG, *more, *words)
            assert not said.crash, said
            assert said.code == 1, said
            assert f"{tmp_path}/out is being written by process {os.getpid()}" in said.text, said
    tally(HELD, 2)


def test_a_lock_that_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    stopped = threading.Event()
    output = Storage(str(tmp_path))
    first = Lock(output, lambda line: None, stopped.set).__enter__()
    another = {"token": "another", "host": "elsewhere", "pid": 7, "beat": time.time()}
    output.put(LOCK, seal(json.dumps(another).encode()))
    assert stopped.wait(20), "the first driver was to be told"
    with pytest.raises(LockedError, match="was taken over by process 7 on elsewhere"):
        first.__exit__()
    assert "another" in output.get(LOCK).decode(), "the other's lock was to be left alone"
    tally(TAKEN, 1)


class Jumping:
    """A clock that jumps by days at every look."""

    def __init__(self) -> None:
        self.looks, self.real = 0, time.time

    def __call__(self) -> float:
        self.looks += 1
        return self.real() + (-1) ** self.looks * self.looks * 86_400.0


def test_a_job_while_the_clock_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    words = ("method=null", "method.name=random")
    whole, clock = finished("whole", tmp_path / "whole", words), Jumping()
    monkeypatch.setattr(time, "time", clock)
    jumped = finished("jumped", tmp_path / "jumped", words)
    said = command("status", str(tmp_path / "jumped" / "out"))
    assert (said.code, said.crash) == (0, ""), said
    assert jumped.good == whole.good == essence(tmp_path / "whole" / "out")
    assert clock.looks > 2
    tally(JUMPS, 1)


def test_a_holder_is_alive_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    boot, output = psutil._psplatform.boot_time, Storage(str(tmp_path))
    shifts = (-86_400.0, -1.0, 1.0, 3_600.0, 86_400.0)
    with Lock(output, lambda line: None):
        for shift in shifts:
            # Linux says another time of its boot once the clock is set.
            monkeypatch.setattr(psutil._psplatform, "boot_time", lambda shift=shift: boot() + shift)
            with pytest.raises(LockedError, match="is being written by process"):
                Lock(output, lambda line: None).__enter__()
            assert alive(locks.read_lock(output) or {}, time.time() + shift)
    dead = {"host": socket.gethostname(), "pid": os.getpid(), "boot": "another", "after_boot": 1.0}
    assert not alive(dead, time.time()), "a process of another boot has ended"
    tally(SET, len(shifts))


@pytest.mark.parametrize("living", [True, False])
def test_signs_of_life_of_another_clock(
    living: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    tally: Tally = request.getfixturevalue("tally") if living else lambda row, count: None
    monkeypatch.setattr(locks, "STALE_SECONDS", 0.6)
    output, shifts = Storage(str(tmp_path)), (-864_000.0, 864_000.0)
    for shift in shifts:
        lock = {"token": "1", "host": "elsewhere", "pid": 7, "beat": time.time() + shift}
        output.put(LOCK, seal(json.dumps(lock).encode()))
        over = threading.Event()

        def beat(lock: dict[str, Any] = lock, over: threading.Event = over) -> None:
            while not over.wait(0.1):
                lock["beat"] += 0.1
                output.put(LOCK, seal(json.dumps(lock).encode()))

        thread = threading.Thread(target=beat)
        entering: Callable[[], Lock] = Lock(output, lambda line: None).__enter__
        if living:
            thread.start()
            with pytest.raises(LockedError, match="process 7 on elsewhere"):
                entering()
            over.set()
            thread.join()
        else:
            entering().__exit__()
    tally(ABROAD, len(shifts))
