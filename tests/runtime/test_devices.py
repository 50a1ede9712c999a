"""Outputs of other kinds of devices: used and named, or made anew; two kinds that this machine does not have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small import small_fields
from test_local_runner import Killed, run
from toys import Total, Walk

from raydd.config import parse_job
from raydd.core.events import Event
from raydd.core.storage import Storage
from raydd.core.store import Store
from raydd.core.units import Numerics, Ref
from raydd.runtime import devices, ledger, pipeline, planning, runner, worker
from raydd.runtime.ledger import Ledger

H100 = "NVIDIA H100 80GB HBM3"
WALK = Walk(seed=1, count=3, updates=4, numerics=Numerics(precision="fp32_strict"))
WALKS = WALK.refs()
On = Callable[[str], None]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> On:
    """Return what makes this process take its device for one of a kind."""

    def be(kind: str) -> None:
        for module in (
            "raydd.core.store",
            *(module.__name__ for module in (worker, runner, devices, planning)),
        ):
            monkeypatch.setattr(f"{module}.device_kind", lambda device: kind)

    return be


def kinds(store: Store, refs: list[Ref]) -> list[str]:
    return [store.marker(ref)["device"] for ref in refs]


def messages(events: list[Event]) -> list[str]:
    return [event.text for event in events if event.kind == "message"]


def started(events: list[Event]) -> int:
    return sum(event.kind == "start" for event in events)


def rewrite(store: Store, ref: Ref, *gone: str) -> None:
    """Leave facts out of a marker, as earlier versions did."""
    marker = {name: value for name, value in store.marker(ref).items() if name not in gone}
    store.storage.put(f"{store.place(ref)[1]}.json", json.dumps(marker).encode())


def test_a_report_reads_a_marker_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = Store(str(tmp_path)), list[str]()
    run(WALKS, store)
    real = Storage.get
    monkeypatch.setattr(
        Storage, "get", lambda self, path, *part: read.append(path) or real(self, path, *part)
    )
    markers = devices.Markers(store)
    assert markers.kinds(WALKS) == {"cpu": 3}
    assert all(markers.seconds(ref) >= 0 for ref in WALKS)
    found = [markers.load(ref) for ref in WALKS]
    assert len(read) == len(set(read)) == 2 * len(WALKS)
    assert [f.keys() for f in found] == [store.load(ref).keys() for ref in WALKS]


def test_a_marker_keeps_device_and_precision(tmp_path: Path, on: On) -> None:
    on(H100)
    store = Store(str(tmp_path))
    run(WALKS, store)
    marker = store.marker(WALKS[0])
    assert (marker["device"], marker["precision"]) == (H100, "fp32_strict")


def test_what_another_device_made_is_used_and_named_once(tmp_path: Path, on: On) -> None:
    store = Store(str(tmp_path))
    on(H100)
    assert messages(run(WALKS, store)) == []
    on("cpu")
    told = [
        f"3 units were computed on an {H100}; they are used as they are (compute.same_device=true makes them anew) on"
        " a CPU"
    ]
    total = Ref(Total(seed=0, walk=WALK), "all")
    events = run([total], store)
    assert messages(events) == told
    assert started(events) == 1, "the walks are used"
    assert kinds(store, [*WALKS, total]) == [H100, H100, H100, "cpu"]
    assert messages(run([*WALKS, total], store)) == told, "also where nothing is computed"


def test_a_run_of_one_device_makes_the_rest_anew(tmp_path: Path, on: On) -> None:
    store = Store(str(tmp_path))
    on(H100)
    run(WALKS, store)
    before = [store.load(ref)["x"] for ref in WALKS]
    on("cpu")
    run(WALKS[:1], store, same_device=True)
    assert kinds(store, WALKS) == ["cpu", H100, H100]
    total = Ref(Total(seed=0, walk=WALK), "all")
    events = run([total], store, same_device=True)
    assert messages(events) == [f"2 units were computed on an {H100}; they are made anew on a CPU"]
    assert kinds(store, [*WALKS, total]) == ["cpu"] * 4
    assert all(store.load(ref)["x"].equal(x) for ref, x in zip(WALKS, before, strict=True))
    again = run([*WALKS, total], store, same_device=True)
    assert (messages(again), started(again)) == ([], 0)


def test_markers_of_earlier_versions_are_read(tmp_path: Path, on: On) -> None:
    store = Store(str(tmp_path))
    run(WALKS, store)
    rewrite(store, WALKS[0], "precision")
    rewrite(store, WALKS[1], "precision", "device")
    events = run(WALKS, store)
    assert (messages(events), started(events)) == ([], 0)
    on(H100)
    assert messages(run(WALKS, store)) == [
        "2 units were computed on a CPU; they are used as they are (compute.same_device=true makes them anew) on an"
        f" {H100}"
    ]
    assert started(run(WALKS, store, same_device=True)) == 3, (
        "what does not say its device counts as another's"
    )


@pytest.mark.parametrize("same_device", [False, True])
def test_a_checkpoint_of_another_device_is_gone_on_from_unless_one_device_is_asked_for(
    tmp_path: Path, on: On, same_device: bool
) -> None:
    store, ref = Store(str(tmp_path)), Ref(Walk(seed=3, updates=8), "walk-01")

    def die(stage: str, unit: str, t: int) -> None:
        if t == 5:
            raise Killed

    on(H100)
    with pytest.raises(Killed):
        run([ref], store, fault=die, checkpoint_every=0.0)
    on("cpu")
    steps: list[int] = []
    run([ref], store, fault=lambda stage, unit, t: steps.append(t), same_device=same_device)
    assert steps == list(range(0 if same_device else 5, 8))


def test_a_worker_of_another_kind_is_refused_where_one_device_is_asked_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    mixed = Ledger(WALKS, store)
    assert [
        mixed.lease(f"rank-{i}", [], device=kind).kind for i, kind in enumerate(("cpu", H100))
    ] == ["run", "run"]
    same = Ledger(WALKS, store, device="cpu")
    assert [
        same.lease(f"rank-{i}", [], device=kind).kind for i, kind in enumerate(("cpu", H100))
    ] == ["run", "stop"]
    assert same.failure == f"compute.same_device: one worker is on a CPU, another on an {H100}"


def test_the_lines_that_reports_say() -> None:
    assert devices.mixed_line({}) == []
    assert devices.mixed_line({"cpu": 5}) == []
    said = devices.mixed_line({"cpu": 5, H100: 2, "Tesla T4": 1})
    assert said == [
        f"2 units were computed on an {H100}, 1 unit was computed on a Tesla T4, the other 5 on a CPU."
    ]
    assert devices.main_kind({"cpu": 5, H100: 2}) == "cpu"
    assert ledger.named("AMD Instinct MI300X") == "an AMD Instinct MI300X"


def test_a_report_names_the_devices_of_what_it_is_about(
    tmp_path: Path, on: On, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluation = {"protocol": "dm", "networks": ["convnet1_w4"], "epochs": 1, "baselines": []}
    tree = {
        "dataset": {"name": "digits"},
        "ipc": 1,
        "method": {"name": "dm", **small_fields("dm")},
        "compute": {"workers": 0},
        "tracking": {"uri": "none"},
    }
    for kind, repeats, network in ((H100, 1, "convnet1_w4"), ("cpu", 2, "convnet1_w8")):
        on(kind)
        more = {**evaluation, "repeats": repeats, "networks": [network]}
        job = parse_job({**tree, "evaluation": more, "output": f"runs/{repeats}", "store": "store"})
        report = pipeline.run_job(job, lambda line: None).report
        if kind == H100:
            assert report.device == H100
            assert report.notes == ()
            assert "in the store" not in planning.dry_run(job)[0]
    assert report.notes == (f"1 unit was computed on a CPU, the other 3 on an {H100}.",)
    assert report.device == H100
    assert yaml.safe_load((tmp_path / "runs/2/distilled/recipe.json").read_text())["device"] == H100
    planned, _ = planning.dry_run(job)
    then = "they are used as they are (compute.same_device=true makes them anew) on a CPU"
    assert (
        planned.splitlines().count(f"in the store: 3 units were computed on an {H100}; {then}") == 1
    )
