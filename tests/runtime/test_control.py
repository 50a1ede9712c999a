"""A run as a library call: what its caller hears, how it stops it, and units shared with other runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Walk

from raydd.artifacts.report import Point
from raydd.config import Job, parse_job
from raydd.core.events import Event
from raydd.core.numerics import pick_device
from raydd.core.store import Store
from raydd.core.units import Numerics, Ref
from raydd.runtime.control import Control
from raydd.runtime.pipeline import run_job
from raydd.runtime.runner import LocalRunner
from raydd.runtime.session import Interrupted

torch.set_num_threads(1)


def job(folder: Path, name: str = "run", **method: Any) -> Job:
    return parse_job(
        {
            "dataset": {"name": "digits"},
            "ipc": 1,
            "method": {
                "name": "dm",
                "network": "convnet1_w8",
                "iterations": 6,
                "batch_real": 8,
                **method,
            },
            "evaluation": {"epochs": 2, "repeats": 2, "every": 2, "baselines": []},
            "output": str(folder / name),
            "store": str(folder / "store"),
            "compute": {"workers": 0},
            "tracking": {"uri": "none"},
        }
    )


def quiet(line: str) -> None: ...


def test_a_caller_hears_accuracies_of_snapshots_before_the_next_update(tmp_path: Path) -> None:
    heard: list[tuple[str, int]] = []

    def on_event(event: Event) -> None:
        if event.kind == "output" and event.stage.startswith("distill"):
            heard.append(("images", event.t))

    def on_point(point: Point) -> None:
        heard.append(("accuracy", point.step))
        assert 0 <= point.accuracy_mean <= 100
        assert point.networks == 1

    outcome = run_job(job(tmp_path), quiet, Control(on_event=on_event, on_point=on_point))
    assert [step for kind, step in heard if kind == "accuracy"] == [0, 2, 4]
    for step in (2, 4):
        after = [t for kind, t in heard[: heard.index(("accuracy", step))] if kind == "images"]
        assert max(after) == step
    curve = {point.step for point in outcome.report.curve}
    assert curve == {0, 2, 4, 6}


def test_points_are_those_of_the_report(tmp_path: Path) -> None:
    heard: list[Point] = []
    outcome = run_job(job(tmp_path), quiet, Control(on_point=heard.append))
    assert [(p.step, p.accuracy_mean) for p in heard] == [
        (p.step, p.accuracy_mean) for p in outcome.report.curve[:-1]
    ]
    again: list[Point] = []
    run_job(job(tmp_path), quiet, Control(on_point=again.append))
    assert again == heard  # found in the store, told all the same


def test_a_caller_stops_a_run_which_then_goes_on(tmp_path: Path) -> None:
    def on_point(point: Point) -> None:
        if point.step == 2:
            control.stop()

    control = Control(on_point=on_point)
    with pytest.raises(Interrupted):
        run_job(job(tmp_path), quiet, control)
    made: list[Event] = []
    run_job(job(tmp_path), quiet, Control(on_event=made.append))
    whole: list[Event] = []
    run_job(job(tmp_path / "whole"), quiet, Control(on_event=whole.append))
    count = [sum(e.kind == "output" and not e.cached for e in events) for events in (made, whole)]
    assert 0 < count[0] < count[1]


def test_a_run_that_was_stopped_before_it_began_does_not_begin(tmp_path: Path) -> None:
    control, made = Control(), []
    control.on_event = made.append
    control.stop()
    with pytest.raises(Interrupted):
        run_job(job(tmp_path), quiet, control)
    assert not [event for event in made if event.kind == "output"]


class Shared:
    """Claims of several runs in one process."""

    def __init__(self) -> None:
        self.lock, self.held = threading.Lock(), {}
        self.refused = 0

    def of(self, name: str) -> Any:
        shared = self

        class Mine:
            def take(self, key: str) -> bool:
                with shared.lock:
                    mine = shared.held.setdefault(key, name) == name
                    shared.refused += not mine
                    return mine

            def free(self, key: str) -> None:
                with shared.lock:
                    shared.held.pop(key, None)

        return Mine()


def together(store: Store, refs: list[Ref], claims: list[Any]) -> list[list[Event]]:
    """Run the same targets in threads, none of which computes before all have begun a unit."""
    events: list[list[Event]] = [[] for _ in claims]
    begun = threading.Barrier(len(claims), timeout=120)

    def run(place: int) -> None:
        def on_event(event: Event) -> None:
            first = event.kind == "start" and not any(e.kind == "start" for e in events[place])
            events[place].append(event)
            if first:
                begun.wait()

        LocalRunner(dict, device=pick_device(), claims=claims[place]).run(refs, store, on_event)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(claims))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    return events


def made(events: list[list[Event]]) -> list[str]:
    return sorted(e.key for of in events for e in of if e.kind == "output" and not e.cached)


def test_runs_at_the_same_time_compute_a_unit_once(tmp_path: Path) -> None:
    stage = Walk(seed=0, numerics=Numerics(), count=3, updates=8)
    refs, shared = [Ref(stage, unit) for unit in stage.units()], Shared()
    events = together(Store(str(tmp_path)), refs, [shared.of("a"), shared.of("b")])
    assert made(events) == sorted(ref.key for ref in refs)
    for of in events:
        assert {e.key for e in of if e.kind == "output"} == {ref.key for ref in refs}
    assert shared.refused > 0
    assert not shared.held


def test_without_claims_both_compute_it(tmp_path: Path) -> None:
    stage = Walk(seed=0, numerics=Numerics(), count=1, updates=8)
    refs = [Ref(stage, unit) for unit in stage.units()]
    assert len(made(together(Store(str(tmp_path)), refs, [None, None]))) == 2
