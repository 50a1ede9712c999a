"""What holds for every registered method, on real digits: a new method is tested here without a line being added."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import run_group
from small import all_keys, changed, small_method, small_overrides

from raydd import load
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.published_folder import publish
from raydd.config import load_job
from raydd.core.events import Event
from raydd.core.store import Store
from raydd.core.tensors import digest
from raydd.core.units import Data, Numerics, Ref
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.datasets import with_digests
from raydd.methods import METHODS, Method, Problem
from raydd.runtime.estimate import costs, stages_of
from raydd.runtime.planning import make_plan
from raydd.runtime.runner import LocalRunner

IPC = 2
every_method = pytest.mark.parametrize("name", METHODS.names())
FIELDS = [
    (name, field) for name in METHODS.names() for field in dataclasses.fields(METHODS.get(name))
]
every_field = pytest.mark.parametrize(
    ("name", "field"), [(name, f.name) for name, f in FIELDS if f.metadata.get("key", True)]
)


class Killed(BaseException):
    """Stands for SIGKILL: nothing below the runner may catch it."""


class Beats:
    """Counts the updates and events of a run, and kills it at one of them."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.count, self.kill_at = 0, kill_at
        self.computed: list[Event] = []

    def beat(self, *_: Any) -> None:
        self.count += 1
        if self.count == self.kill_at:
            raise Killed

    def on_event(self, event: Event) -> None:
        if event.kind == "output" and not event.cached:
            self.computed.append(event)
        self.beat()


@pytest.fixture(scope="module")
def info(digits: Mapping[str, Data]) -> DatasetInfo:
    return with_digests(entry("digits").info, digits)


@pytest.fixture(scope="module")
def problem(info: DatasetInfo) -> Problem:
    return Problem(dataset=info, ipc=IPC, seed=3, numerics=Numerics())


def run(
    refs: list[Ref],
    store: Store,
    data: Mapping[str, Data],
    beats: Beats | None = None,
    checkpoint_every: float = 0.0,
) -> Beats:
    beats = beats or Beats()
    runner = LocalRunner(
        lambda: data,
        device=torch.device("cpu"),
        fault=beats.beat,
        checkpoint_every=checkpoint_every,
    )
    runner.run(refs, store, beats.on_event)
    return beats


def contents(refs: list[Ref], store: Store) -> dict[str, str]:
    """Return the digest of every final output behind ``refs``, intermediate stages included."""
    behind = [Ref(stage, unit) for stage, units, _ in stages_of(refs) for unit in units]
    return {ref.key: digest(store.load(ref)) for ref in behind}


def assembled(method: Method, problem: Problem, store: Store) -> DistilledSet:
    return method.assemble(
        problem, {name: store.load(ref) for name, ref in method.targets(problem).items()}
    )


@pytest.fixture(scope="module")
def undisturbed(
    digits: Mapping[str, Data], problem: Problem, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[dict[str, str], Beats, Store]]:
    """A method's name → what an undisturbed run of it computed, how many beats it had, and its store."""
    known: dict[str, tuple[dict[str, str], Beats, Store]] = {}

    def get(name: str) -> tuple[dict[str, str], Beats, Store]:
        if name not in known:
            refs, store = (
                list(small_method(name).targets(problem).values()),
                Store(str(tmp_path_factory.mktemp(name))),
            )
            beats = run(refs, store, digits)
            known[name] = (contents(refs, store), beats, store)
        return known[name]

    return get


@pytest.mark.slow
@every_method
def test_a_set_of_the_right_shape_that_can_be_looked_at_published_and_loaded(
    name: str, undisturbed: Any, problem: Problem, tmp_path: Path
) -> None:
    distilled = assembled(small_method(name), problem, undisturbed(name)[2])
    pictures = distilled.to_rgb()
    assert distilled.info.classes == 10
    assert distilled.size == small_method(name).size(problem), (
        "a method says how large its sets are"
    )
    assert distilled.shape == problem.dataset.shape
    assert distilled.take(torch.tensor([distilled.seen - 1])).shape == (1, *problem.dataset.shape)
    assert set(distilled.labels_of().tolist()) == set(range(10)), "every class is there"
    assert len(pictures) == len(distilled.pictures())
    assert pictures.dtype == torch.float32
    assert 0.0 <= float(pictures.min()) < float(pictures.max()) <= 1.0
    publish(distilled, str(tmp_path / "set"))
    loaded = load(str(tmp_path / "set"))
    images, labels = distilled.tensors()
    assert torch.equal(loaded.tensors()[0], images)
    assert torch.equal(loaded.tensors()[1], labels)
    assert torch.equal(loaded[1][0], images[1])


@every_method
def test_its_cost_is_estimated_and_its_stages_are_in_order(name: str, problem: Problem) -> None:
    method = small_method(name)
    refs = list(method.targets(problem).values())
    rows = costs(refs)
    assert {ref.stage for ref in refs} <= set(method.plan(problem))
    size = method.size(problem)
    assert sum(row.output_bytes for row in rows) >= size.bytes - 8 * size.seen, "the set is kept"
    assert all(row.flop >= 0 and row.peak_bytes > 0 for row in rows)
    assert sum(row.units for row in rows) == len(all_keys(refs))


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("part", [0.0, 0.35, 0.7, 0.95])
def test_killed_and_started_again_gives_the_same_bytes(
    name: str,
    part: float,
    undisturbed: Any,
    digits: Mapping[str, Data],
    problem: Problem,
    tmp_path: Path,
) -> None:
    refs, store = list(small_method(name).targets(problem).values()), Store(str(tmp_path))
    expected, whole, _ = undisturbed(name)
    beats = Beats(kill_at=1 + int(part * (whole.count - 1)))
    with pytest.raises(Killed):
        run(refs, store, digits, beats)
    again = run(refs, store, digits)
    assert contents(refs, store) == expected
    assert len(beats.computed) + len(again.computed) <= len(whole.computed) + 1, (
        "what was finished is not computed again"
    )


@pytest.mark.slow
@every_method
def test_a_resumed_run_goes_on_from_the_last_checkpoint(
    name: str, undisturbed: Any, digits: Mapping[str, Data], problem: Problem, tmp_path: Path
) -> None:
    refs, store = list(small_method(name).targets(problem).values()), Store(str(tmp_path))
    _, whole, _ = undisturbed(name)
    first = Beats(kill_at=whole.count * 2 // 3)
    with pytest.raises(Killed):
        run(refs, store, digits, first)
    second = run(refs, store, digits)
    assert second.count < whole.count, "two thirds were done and are not done again"


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    name: str,
    world: int,
    undisturbed: Any,
    digits: Mapping[str, Data],
    problem: Problem,
    tmp_path: Path,
) -> None:
    refs, store = list(small_method(name).targets(problem).values()), Store(str(tmp_path))
    events = run_group(refs, store, world, lambda: digits)
    assert not any(event.cached for event in events), "an empty store, or nothing is proven"
    assert contents(refs, store) == undisturbed(name)[0]


@every_method
def test_a_second_run_computes_nothing(
    name: str, undisturbed: Any, digits: Mapping[str, Data], problem: Problem
) -> None:
    refs = list(small_method(name).targets(problem).values())
    assert run(refs, undisturbed(name)[2], digits).computed == []


@every_method
def test_where_it_runs_and_what_it_is_called_is_in_no_key(
    name: str, info: DatasetInfo, tmp_path: Path
) -> None:
    places = ["name=here", f"output={tmp_path}/a", f"store={tmp_path}/sa", "tracking.uri=none"]
    here = ["compute.workers=0", "compute.checkpoint_every=5", *places]
    there = [
        "compute.workers=[2,7]",
        "compute.evaluators=2",
        "compute.gpus_per_worker=0.5",
        "compute.cpus_per_worker=2",
        "output=s3://bucket/b",
        "store=s3://bucket/sb",
        "name=there",
        "tracking.uri=http://tracking:5000",
        "tracking.experiment=other",
    ]
    jobs = [
        load_job(None, ["dataset.name=digits", "ipc=2", *small_overrides(name), *places])
        for places in (here, there)
    ]
    one, other = (all_keys(make_plan(job, info).targets) for job in jobs)
    assert one == other
    assert len(one) > 3


@every_field
def test_every_field_is_in_the_keys(name: str, field: str, problem: Problem) -> None:
    method = small_method(name)
    other = changed(method, field)
    held = (*problem.dataset.digests, ("holdout", "0" * 64))
    problem = dataclasses.replace(
        problem, dataset=dataclasses.replace(problem.dataset, digests=held)
    )
    one, two = ({ref.key for ref in m.targets(problem).values()} for m in (method, other))
    shared = one == two if len(method.last(problem)) > 1 else not one.isdisjoint(two)
    assert not shared, (
        f"{field}: {getattr(method, field)!r} and {getattr(other, field)!r} share a key"
    )


@every_method
def test_seed_data_and_size_are_in_the_keys(name: str, problem: Problem) -> None:
    method = small_method(name)
    elsewhere = dataclasses.replace(
        problem.dataset, digests=tuple((split, "0" * 64) for split, _ in problem.dataset.digests)
    )
    others = [{"seed": 4}, {"ipc": IPC + 1}, {"dataset": elsewhere}]
    keys = [
        {ref.key for ref in method.targets(dataclasses.replace(problem, **other)).values()}
        for other in [{}, *others]
    ]
    if len(method.last(problem)) == 1:
        assert len(set.union(*keys)) == sum(map(len, keys))
    assert len(set(map(frozenset, keys))) == len(keys)
