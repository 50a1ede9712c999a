"""The in-process runner and the ledger: order, resume, torn files, failures, caching."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from groups import run_group
from toys import Choir, Total, Walk

from raydd.core.checkpoint import Checkpoint
from raydd.core.errors import RunFailed
from raydd.core.events import Event
from raydd.core.store import Store
from raydd.core.tensors import Tensors, digest
from raydd.core.units import Numerics, Ref, Stage, snapshot, stage_digest, unit_key
from raydd.runtime.ledger import Ledger
from raydd.runtime.runner import LocalRunner


class Killed(BaseException):
    """Stands for SIGKILL: nothing below the runner may catch it."""


def targets(**walk: Any) -> list[Ref]:
    w, c = Walk(seed=1, **walk), Choir(seed=2)
    return [
        Ref(Total(seed=0, walk=w, output=snapshot(4)), "all"),
        Ref(Total(seed=0, walk=w, choir=c), "all"),
    ]


def run(refs: list[Ref], store: Store, **options: Any) -> list[Event]:
    events: list[Event] = []
    LocalRunner(dict, **options).run(refs, store, events.append)
    return events


def results(refs: list[Ref], store: Store) -> list[str]:
    return [digest(store.load(ref)) for ref in refs]


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[str]:
    store = Store(str(tmp_path / "undisturbed"))
    run(targets(), store)
    return results(targets(), store)


def test_snapshots_come_before_the_rest(tmp_path: Path) -> None:
    events = run(targets(), Store(str(tmp_path)))
    outputs = [(e.stage, e.output) for e in events if e.kind == "output"]
    first_final = next(
        i for i, (_, o) in enumerate(outputs) if o == "final" and outputs[i][0] == "distill/Walk"
    )
    assert outputs[:4] == [("distill/Walk", "step-000004")] * 4
    assert outputs.index(("evaluate/Total", "final")) < first_final, (
        "the snapshot is evaluated before the walks go on"
    )


@pytest.mark.parametrize(
    "at",
    [
        ("distill/Walk", 0),
        ("distill/Walk", 3),
        ("distill/Walk", 7),
        ("distill/Choir", 5),
        ("evaluate/Total", 0),
    ],
)
def test_killed_anywhere_and_started_again_gives_the_same_bytes(
    tmp_path: Path, undisturbed: list[str], at: tuple[str, int]
) -> None:
    store = Store(str(tmp_path / "killed"))

    def fault(stage: str, unit: str, t: int) -> None:
        if (stage, t) == at:
            raise Killed

    with pytest.raises(Killed):
        run(targets(), store, fault=fault, checkpoint_every=0.0)
    done = {(e.key, e.output) for e in run(targets(), store) if e.kind == "output" and e.cached}
    assert results(targets(), store) == undisturbed
    if at == ("distill/Choir", 5):
        assert done, "finished units must be found, not computed again"


def test_a_resumed_unit_starts_from_its_checkpoint(tmp_path: Path) -> None:
    store, ref = Store(str(tmp_path)), Ref(Walk(seed=3, updates=20), "walk-01")

    def fault(stage: str, unit: str, t: int) -> None:
        if t == 13:
            raise Killed

    with pytest.raises(Killed):
        run([ref], store, fault=fault, checkpoint_every=0.0)
    steps: list[int] = []
    run([ref], store, fault=lambda stage, unit, t: steps.append(t))
    assert steps[0] == 13
    rows = store.marker(ref)["log"]
    assert [t for t, _ in rows] == list(range(20)), "no step is logged twice or lost"


def test_a_second_run_computes_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    run(targets(), store)
    events = run(targets(), store)
    assert {e.kind for e in events} == {"output"}
    assert all(e.cached for e in events)


def test_two_plans_share_a_stage(tmp_path: Path) -> None:
    store, walk = Store(str(tmp_path)), Walk(seed=1)
    run([Ref(Total(seed=0, walk=walk), "all")], store)
    events = run([Ref(Total(seed=5, walk=walk), "all")], store)
    assert [e.stage for e in events if e.kind == "start"] == ["evaluate/Total"]


def test_nothing_but_fields_and_inputs_is_in_a_key() -> None:
    walk = Walk(seed=1)
    assert unit_key(walk, "walk-00") == unit_key(Walk(seed=1), "walk-00")
    others = [
        replace(walk, seed=2),
        replace(walk, updates=11),
        replace(walk, numerics=Numerics(threads=2)),
        Choir(seed=1),
    ]
    keys = {unit_key(stage, "walk-00") for stage in [walk, *others]}
    assert len(keys) == 5
    assert unit_key(walk, "walk-01") not in keys
    assert unit_key(Total(seed=0, walk=walk), "all") != unit_key(
        Total(seed=0, walk=replace(walk, seed=2)), "all"
    )


@pytest.mark.slow
def test_a_stages_hash_is_computed_once_in_each_process() -> None:
    counted: list[int] = []

    class Field(str):
        def __hash__(self) -> int:
            counted.append(1)
            return super().__hash__()

    @dataclass(frozen=True, kw_only=True)
    class Named(Stage):
        title: str

    stage, other = Named(seed=1, title=Field("a")), Named(seed=1, title="a")
    assert hash(stage) == hash(stage) == hash(other)
    assert (len(counted), stage) == (1, other)
    assert hash(replace(stage, seed=2)) != hash(stage)
    walk = Walk(seed=1)
    script = (
        "import pickle, sys; stage = pickle.load(sys.stdin.buffer); "
        "print(type(stage)(seed=1) in {stage: 0}, hash('x'))"
    )
    hash(walk)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    told = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(walk),
        env=env,
        capture_output=True,
        check=True,
    ).stdout
    assert told.split()[0] == b"True", "another process hashes strings in another way"


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_torn_output_is_named_and_computed_again(
    tmp_path: Path, undisturbed: list[str], damage: str
) -> None:
    store = Store(str(tmp_path / "torn"))
    run(targets(), store)
    bad = Ref(Walk(seed=1), "walk-02")
    path = Path(store.url) / Store.folder(bad.key) / "final.safetensors"
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[:-3])
    elif damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.unlink()
    store.discard(targets()[1])
    events = run(targets(), store)
    started = [e.unit for e in events if e.kind == "start" and e.stage == "distill/Walk"]
    assert started == ["walk-02"]
    assert results(targets(), store) == undisturbed
    if damage == "flip":
        assert any("final.safetensors" in e.text for e in events if e.kind == "message")


def test_a_torn_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, key = Store(str(tmp_path)), "ab" * 20
    for t in (3, 6, 9):
        store.save_checkpoint(
            key, Checkpoint(t, {"x": torch.full((4,), float(t))}, [(t, {"loss": 1.0})], 2.0)
        )
    folder = Path(store.url) / Store.folder(key)
    assert len(list(folder.iterdir())) == 2, "only the last two are kept"
    newest = folder / "state-000000009.safetensors"
    for damaged in (newest.read_bytes()[:40], b"", newest.read_bytes()[:-1] + b"\x01"):
        newest.write_bytes(damaged)
        found = store.load_checkpoint(key, 100)
        assert found is not None
        assert found.t == 6
        assert found.state["x"].tolist() == [6.0] * 4
        assert "state-000000009.safetensors" in caplog.text


@dataclass(frozen=True, kw_only=True)
class Explodes(Walk):
    """Becomes infinite, or raises, at some update."""

    phase: ClassVar[str] = "distill"
    at: int = 5
    how: str = "nan"

    def step(self, unit: str, state: Tensors, t: int, ctx: Any) -> Tensors:
        if t == self.at and self.how == "raise":
            raise IndexError("a bug")
        state = super().step(unit, state, t, ctx)
        return {"x": state["x"] * float("nan")} if t == self.at and self.how == "nan" else state


def test_nan_stops_the_run_with_stage_unit_and_step_and_keeps_the_last_good_state(
    tmp_path: Path,
) -> None:
    store, stage = Store(str(tmp_path)), Explodes(seed=1, count=1)
    with pytest.raises(RunFailed, match=r"distill/Explodes unit 'walk-00'.*step \d"):
        run([Ref(stage, "walk-00")], store, checkpoint_every=0.0)
    found = store.load_checkpoint(unit_key(stage, "walk-00"), 100)
    assert found is not None
    assert found.t == 5
    assert torch.isfinite(found.state["x"]).all()


def test_an_exception_is_tried_again_once_and_then_named(tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(RunFailed, match="IndexError: a bug"):
        LocalRunner(dict).run(
            [Ref(Explodes(seed=1, count=1, how="raise"), "walk-00")],
            Store(str(tmp_path)),
            events.append,
        )
    assert sum(e.kind == "start" for e in events) == 2


def test_stop_saves_the_state(tmp_path: Path) -> None:
    store, ref = Store(str(tmp_path)), Ref(Walk(seed=3, updates=400, pause=0.01), "walk-00")
    runner = LocalRunner(dict)
    runner.run([ref], store, lambda event: runner.stop() if event.t >= 20 else None)
    assert store.has([ref]) == [False]
    found = store.load_checkpoint(ref.key, 400)
    assert found is not None
    assert found.t >= 20


@pytest.mark.parametrize("world", [1, 2, 3])
def test_equal_for_any_number_of_workers(
    tmp_path: Path, undisturbed: list[str], world: int
) -> None:
    store = Store(str(tmp_path / "group"))
    events = run_group(targets(), store, world, checkpoint_every=0.0)
    assert results(targets(), store) == undisturbed
    workers = {e.worker for e in events if e.kind == "start"}
    assert ("group" in workers) == (world > 1), "the choir is sung by the whole group"


@pytest.mark.parametrize(
    ("world", "choirs", "shared"),
    [(3, 1, 1), (3, 2, 2), (2, 2, 0), (3, 3, 0), (4, 2, 2), (9, 3, 3), (9, 4, 0)],
)
def test_a_group_shares_lanes_only_where_more_workers_find_work_so(
    tmp_path: Path, world: int, choirs: int, shared: int
) -> None:
    """A choir has four lanes: one after the other by the whole group, or each by one worker."""
    refs = [Ref(Choir(seed=seed, voices=4), "all") for seed in range(choirs)]
    alone, group = Store(str(tmp_path / "alone")), Store(str(tmp_path / "group"))
    run(refs, alone)
    ledger = Ledger(refs, group)
    for rank in range(world):
        ledger.hello(f"rank-{rank}", 1, world)
    leases = [ledger.lease(f"rank-{rank % world}", [], 1, world) for rank in range(2 * world)]
    kinds = [lease.kind for lease in leases]
    assert ("join" in kinds, "run" in kinds) == (shared > 0, shared == 0)
    assert len({lease.ref.key for lease in leases if lease.kind == "run"}) in (
        0,
        min(world, choirs),
    )
    run_group(refs, group, world, checkpoint_every=0.0)
    assert results(refs, group) == results(refs, alone)


def test_markers_say_what_and_where(tmp_path: Path) -> None:
    store, ref = Store(str(tmp_path)), Ref(Walk(seed=1), "walk-00")
    run([ref], store)
    marker = json.loads((Path(store.url) / f"{store.place(ref)[1]}.json").read_text())
    assert marker["unit"] == "walk-00"
    assert marker["device"] == "cpu"
    assert marker["versions"]["torch"] == torch.__version__
    assert not [p for p in store.storage.list() if "state-" in p], (
        "checkpoints of a finished unit are gone"
    )


@pytest.mark.parametrize("world", [1, 2])
def test_a_stage_with_a_place_of_its_own_is_written_there_and_read_from_there(
    tmp_path: Path, undisturbed: list[str], world: int
) -> None:
    walk = Walk(seed=1)
    store = Store(str(tmp_path / "store"), {stage_digest(walk): str(tmp_path / "set/labels")})
    refs = [Ref(Total(seed=0, walk=walk, choir=Choir(seed=2)), "all")]
    run_group(refs, store, world, checkpoint_every=0.0)
    assert results(refs, store) == undisturbed[1:]
    there = sorted(path.name for path in (tmp_path / "set/labels").iterdir())
    assert there == sorted(
        f"walk-{i:02d}.{end}" for i in range(4) for end in ("json", "safetensors")
    )
    assert not [p for p in store.storage.list() if "walk" in p or "state-" in p], (
        "no second copy, no checkpoint is left"
    )
    assert all(store.has(walk.refs()))

    started = [e.stage for e in run_group(refs, store, world) if e.kind == "start"]
    assert not started, "what is done is not done again"
    (tmp_path / "set/labels/walk-02.safetensors").write_bytes(b"torn")
    assert not store.verify(Ref(walk, "walk-02"))
    assert store.has(walk.refs()) == [True, True, False, True]

    other = Walk(seed=7)
    moved = Store(str(tmp_path / "store"), {stage_digest(other): str(tmp_path / "set/labels")})
    assert not any(moved.has(other.refs())), "what lies there is of another stage"
    run([Ref(other, "walk-00")], moved)
    assert not torch.equal(
        moved.load(Ref(other, "walk-00"))["x"], store.load(Ref(walk, "walk-01"))["x"]
    )
    assert not store.has([Ref(walk, "walk-00")])[0], "and was written over"


def test_ten_thousand_units_cost_no_more_each_than_a_hundred(tmp_path: Path) -> None:
    """What a lease costs does not grow with the number of units; each lease once went through all of them."""

    def seconds(count: int) -> float:
        stage = Walk(seed=0, numerics=Numerics(), count=count, updates=1)
        ledger = Ledger([Ref(stage, unit) for unit in stage.units()], Store(str(tmp_path)))
        begun = time.process_time()
        for turn in range(100):
            lease = ledger.lease(f"rank-{turn % 8}", [])
            ledger.wrote(f"rank-{turn % 8}", lease.ref.key, "final", 0.1, [])
        return time.process_time() - begun

    few = min(seconds(100) for _ in range(3))
    many = min(seconds(10_000) for _ in range(2))
    assert many < 10 * few, (few, many)


def test_units_are_leased_most_urgent_first_and_held_ones_before_others(tmp_path: Path) -> None:
    stage = Walk(seed=0, numerics=Numerics(), count=4, updates=10)
    refs = [Ref(stage, unit, snapshot(5)) for unit in stage.units()]
    ledger = Ledger([*refs, *(Ref(stage, unit) for unit in stage.units())], Store(str(tmp_path)))
    first = ledger.lease("rank-0", [])
    assert first.outputs == ("step-000005",)
    assert first.unit == "walk-00"
    ledger.wrote("rank-0", first.ref.key, "step-000005", 0.1, [])
    second = ledger.lease("rank-0", [first.ref.key])
    assert second.unit == "walk-01", "a snapshot comes before the end of a unit that is held"
    for ref in refs[1:]:
        ledger.wrote("rank-0", ref.key, "step-000005", 0.1, [])
    assert ledger.lease("rank-0", [refs[2].key]).unit == "walk-02", "held, and as urgent as others"
    assert ledger.lease("rank-1", []).unit == "walk-00"
    assert ledger.lease("rank-2", []).unit == "walk-01"
    assert ledger.lease("rank-3", []).unit == "walk-03"
    assert ledger.lease("rank-4", []).kind == "wait"
    ledger.stumbled("rank-1", refs[0].key, "ValueError: once")
    assert ledger.lease("rank-4", []).unit == "walk-00", "what was let go is ready again"
