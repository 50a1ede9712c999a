"""The Ray runner on one cluster: equality with the in-process runner, lanes, evaluators, killed workers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from toys import Choir, Total, Walk

from raydd.core.errors import ConfigError, RunFailed
from raydd.core.events import Event
from raydd.core.sealed import seal, unseal
from raydd.core.store import Store
from raydd.core.tensors import digest
from raydd.core.units import Ref, snapshot
from raydd.runtime.ray.ray_runner import RayRunner
from raydd.runtime.ray.ray_session import ray_session
from raydd.runtime.runner import LocalRunner

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_session(cpus=4):
        yield


@pytest.mark.parametrize(
    ("gpus", "workers", "evaluators", "each", "places"),
    [
        (0, 1, 0, 0.5, 0),
        (1, 2, 0, 1, 1),
        (1, 1, 1, 1, 1),
        (1, 3, 0, 0.5, 2),
        (2, 3, 0, 0.6, 2),  # two workers of 0.6 do not share a GPU
        (3, (2, 8), 0, 2, 1),
        (1, (1, 8), 0, 1, None),
        (1, 2, 1, 0.25, None),
        (4, 1, 1, 2, None),
        (0, 9, 9, 0, None),
    ],
)
def test_workers_that_this_machine_cannot_place_are_refused_before_ray_starts(
    gpus: int,
    workers: int | tuple[int, int],
    evaluators: int,
    each: float,
    places: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: None,  # Ray reads its environment when it is imported: the session comes first
) -> None:
    def init(**settings: Any) -> None:
        raise Exception("it was")  # as bare as Ray's own

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    runner = RayRunner(dict, workers=workers, evaluators=evaluators, gpus_per_worker=each)
    refused = places is not None
    wanted = (
        rf"gpus_per_worker={each:g}: this machine has {gpus} GPUs, enough for {places} of at least"
        if refused
        else "^Ray could not be started on this machine: it was. A busy machine .* or compute here"
    )
    with pytest.raises(ConfigError if refused else RunFailed, match=wanted):
        runner.run(plan(), Store(str(tmp_path)), lambda event: None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # it may scale up
    with pytest.raises(ConfigError, match="no cluster there"):
        runner.run(plan(), Store(str(tmp_path)), lambda event: None)


def plan(pause: float = 0.0, updates: int = 12) -> list[Ref]:
    walk, choir = (
        Walk(seed=1, pause=pause, updates=updates),
        Choir(seed=2, pause=pause, updates=updates),
    )
    early = Ref(Total(seed=0, walk=walk, output=snapshot(4)), "all")
    return [early, Ref(Total(seed=0, walk=walk, choir=choir), "all")]


def outputs_of(refs: list[Ref]) -> list[Ref]:
    found: dict[tuple[str, str], Ref] = {}
    frontier = list(refs)
    while frontier:
        ref = frontier.pop()
        found[(ref.key, ref.output)] = ref
        frontier += ref.stage.inputs(ref.unit).values()
    return [found[key] for key in sorted(found)]


def digests(refs: list[Ref], store: Store) -> list[str]:
    return [digest(store.load(ref)) for ref in outputs_of(refs)]


def local(tmp_path: Path, refs: list[Ref]) -> list[str]:
    store = Store(str(tmp_path / "local"))
    LocalRunner(dict).run(refs, store, lambda event: None)
    return digests(refs, store)


def run(refs: list[Ref], store: Store, on_event: Any = None, **options: Any) -> list[Event]:
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if on_event is not None:
            on_event(event)

    RayRunner(dict, checkpoint_every=options.pop("checkpoint_every", 0.2), **options).run(
        refs, store, note
    )
    return events


def train_workers() -> list[psutil.Process]:
    """Return the Train workers below this process: never those of another cluster on the machine."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("workers", "evaluators"), [(1, 0), (2, 1)])
def test_equals_the_run_in_process(tmp_path: Path, workers: int, evaluators: int) -> None:
    refs = plan()
    store = Store(str(tmp_path / "ray"))
    events = run(refs, store, workers=workers, evaluators=evaluators)
    assert digests(refs, store) == local(tmp_path, refs)
    starts = [e.worker for e in events if e.kind == "start"]
    assert ("group" in starts) == (workers > 1)
    assert not [p for p in store.storage.list() if p.startswith("ray/")], (
        "Ray Train's own files are gone"
    )


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_costs_no_finished_unit_and_no_byte(tmp_path: Path) -> None:
    refs = plan(pause=0.15, updates=30)
    store = Store(str(tmp_path / "ray"))
    killed = threading.Event()

    def kill_one(event: Event) -> None:
        if event.kind == "output" and event.stage == "distill/Walk" and not killed.is_set():
            victims = train_workers()
            assert victims, "the workers' processes must be found, or nothing is tested"
            os.kill(victims[0].pid, signal.SIGKILL)
            killed.set()

    events = run(refs, store, kill_one, workers=2)
    assert killed.is_set()
    assert digests(refs, store) == local(tmp_path, refs)
    finished = [(e.key, e.output) for e in events if e.kind == "output"]
    assert len(finished) == len(set(finished)), "an output was computed twice"


@pytest.mark.usefixtures("cluster")
def test_a_stage_that_cannot_be_found_on_the_cluster_is_an_error_not_a_hang(tmp_path: Path) -> None:
    from raydd.core.units import Stage

    class Local(Stage):
        phase = "distill"

        def __reduce__(self) -> Any:
            return (_missing_on_workers, ())

    started = time.monotonic()
    with pytest.raises(RunFailed):
        run([Ref(Local(seed=0), "all")], Store(str(tmp_path)), workers=1)
    assert time.monotonic() - started < 120


def _missing_on_workers() -> None:
    raise ImportError("no such module on this node")


def test_workers_say_which_outputs_are_of_their_kind_of_device(
    tmp_path: Path, cluster: None
) -> None:
    store, refs = Store(str(tmp_path)), Walk(seed=1, count=2, updates=3).refs()
    LocalRunner(dict).run(refs, store, lambda event: None)
    path = f"{store.place(refs[0])[1]}.json"
    marker = json.dumps(unseal(store.storage.get(path), path)).replace('"cpu"', '"NVIDIA L4"')
    store.storage.put(path, seal(marker.encode()))
    events: list[Event] = []
    RayRunner(dict, workers=1, same_device=True).run(refs, store, events.append)
    assert [event.text for event in events if "L4" in event.text] == [
        "1 unit was computed on an NVIDIA L4; it is made anew on a CPU"
    ]
    assert [store.marker(ref)["device"] for ref in refs] == ["cpu", "cpu"]
