"""Whole runs of INFER, labels and students included: killed in each stage, shared out among workers, the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import run_group
from small import small_overrides
from test_every_method import Killed, contents

from raydd.config import load_job
from raydd.core.events import Event
from raydd.core.store import Store
from raydd.core.units import Data
from raydd.data.catalog import entry
from raydd.data.datasets import with_digests
from raydd.runtime.planning import Plan, make_plan
from raydd.runtime.runner import LocalRunner

pytestmark = pytest.mark.slow
PHASES = ("squeeze", "init", "recover", "relabel", "evaluate")


@pytest.fixture(autouse=True)
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 60 seen images be labelled in four steps, so that a kill can be between them."""
    monkeypatch.setattr("raydd.labels.static.CHUNK", 16)


def planned(folder: Path, digits: Mapping[str, Data]) -> tuple[Plan, Store]:
    overrides = [
        *small_overrides("infer"), "method.labels.codec=static", "dataset.name=digits",
        "ipc=4", "evaluation.epochs=3", "evaluation.repeats=2", "evaluation.networks=[convnet1_w8]",
        "evaluation.repeats_per_unit=1", "evaluation.every=3", "tracking.uri=none", f"output={folder}/out",
        f"store={folder}/store",
    ]  # fmt: skip
    job = load_job(None, overrides)
    plan = make_plan(job, with_digests(entry("digits").info, digits))
    return plan, Store(job.store, plan.places())


class KillIn:
    """Kills a run in a phase: before the second update of a unit, or where one is begun that has none."""

    def __init__(self, phase: str) -> None:
        self.phase, self.outputs, self.killed = f"{phase}/", list[str](), False

    def fault(self, stage: str, unit: str, t: int) -> None:
        if stage.startswith(self.phase) and t == 1:
            self.killed = True
            raise Killed

    def on_event(self, event: Event) -> None:
        if event.kind == "output" and not event.cached:
            self.outputs.append(f"{event.key} {event.output}")
        if self.phase == "init/" and event.kind == "start" and event.stage == "init/RealPool":
            self.killed = True
            raise Killed


def run(plan: Plan, store: Store, digits: Mapping[str, Data], kill: KillIn) -> None:
    runner = LocalRunner(
        lambda: digits, device=torch.device("cpu"), fault=kill.fault, checkpoint_every=0.0
    )
    runner.run(plan.targets, store, kill.on_event)


@pytest.fixture(scope="module")
def undisturbed(digits: Mapping[str, Data], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outputs of a run that nobody killed, and the bytes of its labels."""
    known: list[tuple[dict[str, str], bytes]] = []

    def get() -> tuple[dict[str, str], bytes]:
        if not known:
            folder = tmp_path_factory.mktemp("undisturbed")
            plan, store = planned(folder, digits)
            run(plan, store, digits, KillIn("nowhere"))
            known.append((contents(plan.targets, store), labels(folder)))
        return known[0]

    return get


def labels(folder: Path) -> bytes:
    return (folder / "out" / "distilled" / "labels" / "static.safetensors").read_bytes()


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_a_stage_and_started_again_gives_the_same_bytes(
    phase: str, undisturbed: Any, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    plan, store = planned(tmp_path, digits)
    expected, rows = undisturbed()
    first, second = KillIn(phase), KillIn("nowhere")
    with pytest.raises(Killed):
        run(plan, store, digits, first)
    assert first.killed
    run(plan, store, digits, second)
    assert contents(plan.targets, store) == expected
    assert labels(tmp_path) == rows
    assert not set(first.outputs) & set(second.outputs), "what was finished is not computed again"


@pytest.mark.parametrize("world", [1, 2])
def test_any_number_of_workers_gives_the_same_labels_and_students(
    world: int, undisturbed: Any, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    plan, store = planned(tmp_path, digits)
    events = run_group(plan.targets, store, world, lambda: digits)
    assert not any(event.cached for event in events), "an empty store, or nothing is proven"
    expected, rows = undisturbed()
    assert contents(plan.targets, store) == expected
    assert labels(tmp_path) == rows
