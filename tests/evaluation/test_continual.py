"""Continual learning on digits: class orders, what is kept, who is trained and tested, what results
depend on, resume.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from groups import run_group
from shifting import shifted as shifted

from raydd.artifacts.decoding import Decoding
from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import digest
from raydd.core.units import Numerics, Ref, unit_key
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.evaluation.continual import (
    DrawInOrder,
    EvaluateMemory,
    OrderDraw,
    StepSets,
    class_order,
    seen_and_repeats,
)
from raydd.evaluation.memories import in_order
from raydd.evaluation.set_sources import AssembledSet
from raydd.evaluation.sets_in_turn import SetsInTurn
from raydd.evaluation.stages import Evaluate
from raydd.methods import METHODS, Problem
from raydd.runtime.runner import LocalRunner
from raydd.runtime.worker import Worker
from raydd.training.sgd import Recipe

RECIPE = Recipe(
    epochs=6,
    batch=64,
    lr=0.05,
    drops=(4,),
    augmentation="dsa",
    strategy="color_crop_cutout_scale_rotate",
)


@pytest.fixture(scope="module")
def digits():
    data = open_data(DatasetConfig(name="digits"))
    return data, with_digests(entry("digits").info, data)


def _problem(info):
    return Problem(dataset=info, ipc=10, seed=0, numerics=Numerics())


def _stage(info, **options):
    source = AssembledSet(method=METHODS.get("random")(), problem=_problem(info))
    defaults = {
        "recipe": RECIPE,
        "network": "convnet2_w8",
        "order": 0,
        "parts": 5,
        "repeats": 2,
        "repeats_per_unit": 2,
    }
    return EvaluateMemory(
        **{"seed": 0, "source": source, "dataset": info.only("test"), **defaults, **options}
    )


def _run(refs, data, folder: Path, **options):
    store = Store(str(folder))
    LocalRunner(lambda: data, device=torch.device("cpu"), **options).run(
        refs, store, lambda event: None
    )
    return store


# -- orders, draws, memories -----------------------------------------------------------------------------------------


def test_class_orders_are_those_of_the_published_seeds():
    firsts = [class_order(100, seed)[:6] for seed in range(5)]
    assert firsts == [
        (26, 86, 2, 55, 75, 93),
        (80, 84, 33, 81, 93, 17),
        (83, 30, 56, 24, 16, 23),
        (93, 67, 6, 64, 96, 83),
        (20, 10, 96, 16, 63, 24),
    ]
    assert sorted(class_order(100, 3)) == list(range(100))


def test_random_memories_are_drawn_as_published_by_one_generator(digits, tmp_path):
    data, info = digits
    labels = data["train"].labels.numpy()
    global_state = np.random.get_state()
    try:  # the published loop, on numpy's global generator
        np.random.seed(3)
        expected = {
            int(c): np.random.permutation(np.flatnonzero(labels == c))[:4].tolist()
            for c in np.random.permutation(10)
        }
    finally:
        np.random.set_state(global_state)
    stage = DrawInOrder(seed=3, dataset=info.only("train"), ipc=4, classes_per_unit=10)
    output = _run(stage.refs(), data, tmp_path).load(stage.refs()[0])
    assert output["ids"].view(10, 4).tolist() == [expected[c] for c in range(10)]
    assert torch.equal(output["images"], data["train"].take(output["ids"]))
    with pytest.raises(ConfigError, match="ipc=500"):
        OrderDraw(dataset=info, ipc=500, order=0)


def test_a_memory_grows_class_by_class_and_keeps_what_it_has(digits):
    data, info = digits
    counts = [1 + c % 3 for c in range(10)]  # classes need not be of one size
    ids = torch.cat(
        [(data["train"].labels == c).nonzero().reshape(-1)[:n] for c, n in enumerate(counts)]
    )
    distilled = DistilledSet(
        images=data["train"].take(ids), labels=data["train"].labels[ids], info=info
    )
    order = class_order(10, 1)
    memory = in_order(distilled, order)
    kept = [memory.on(torch.device("cpu")).of(seen) for seen in (2, 4, 6, 8, 10)]
    for before, after in itertools.pairwise(kept):
        assert torch.equal(after.images[: len(before)], before.images)
    for seen, part in zip((2, 4, 6, 8, 10), kept):
        assert len(part) == sum(counts[c] for c in order[:seen])
        assert set(part.labels.tolist()) == set(order[:seen]), "labels stay those of all classes"
    assert torch.equal(
        kept[-1].images[: counts[order[0]]],
        distilled.normalised(distilled.images[distilled.labels == order[0]]),
    )
    draws = partial(generator, 0)
    for seen, resident in zip(
        (2, 10), (kept[0], kept[-1])
    ):  # what does not stay on a device is decoded in batches
        lazily = list(memory.of(seen).batches(1, 5, draws))
        for (images, labels), (expected, targets) in zip(
            lazily, resident.batches(1, 5, draws), strict=True
        ):
            assert torch.equal(images, expected)
            assert torch.equal(labels, targets)


def test_a_memory_of_tiles_holds_those_of_its_classes(digits):
    data, info = digits
    ids = torch.cat([(data["train"].labels == c).nonzero().reshape(-1)[:2] for c in range(10)])
    images, labels = data["train"].take(ids), data["train"].labels[ids]
    distilled = DistilledSet(
        images=images, labels=labels, info=info, decoding=Decoding("partition")
    )
    order, soft = class_order(10, 2), torch.eye(10)[labels]
    for made in (distilled, replace(distilled, soft_labels=soft)):
        memory = in_order(made, order)
        assert memory.ends == tuple(8 * (n + 1) for n in range(10))
        first = memory.on(torch.device("cpu")).of(1)
        assert torch.equal(first.images, distilled.take()[(labels == order[0]).repeat(4)])
        assert set(memory.distilled.labels_of(memory.ids[:8]).tolist()) == {order[0]}


def test_soft_labels_are_cut_with_their_images_and_a_class_without_is_refused(digits):
    data, info = digits
    images, labels = data["train"].take(torch.arange(20)), torch.arange(10).repeat(2)
    soft = torch.rand(20, 10, generator=torch.Generator().manual_seed(0))
    part = (
        in_order(
            DistilledSet(images=images, labels=labels, soft_labels=soft, info=info),
            class_order(10, 0),
        )
        .on(torch.device("cpu"))
        .of(1)
    )
    assert torch.equal(part.labels, soft[labels == class_order(10, 0)[0]])
    with pytest.raises(DataError, match="no image of class 4"):
        in_order(
            DistilledSet(images=images[labels != 4], labels=labels[labels != 4], info=info),
            range(10),
        )


# -- sets of steps ---------------------------------------------------------------------------------------------------


def _dc(**fields):
    options = {
        "network": "convnet1_w8",
        "iterations": 1,
        "outer_loop": 2,
        "inner_loop": 1,
        "batch_real": 4,
        "classes_per_unit": 1,
    }
    return METHODS.get("dc")(**{**options, **fields})


def test_the_set_of_every_step_is_distilled_alone_and_put_together_in_order(digits, tmp_path):
    data, info = digits
    problem, order = replace(_problem(info), ipc=2), class_order(10, 3)
    source = StepSets.plan(_dc(), problem, 3, 5)
    assert source.images == 20
    assert len(source.inputs()) == 5, "one unit, with lanes, for every step"
    store = _run(list(source.inputs().values()), data, tmp_path)
    found = source.load(SimpleNamespace(load=lambda name: store.load(source.inputs()[name])))
    for step in range(5):
        classes = tuple(sorted(order[2 * step : 2 * step + 2]))
        alone = AssembledSet(method=_dc(), problem=replace(problem, classes=classes))
        expected = alone.load(
            SimpleNamespace(load=lambda name, of=alone: store.load(of.inputs()[name]))
        )
        ids = torch.arange(4 * step, 4 * step + 4)
        assert torch.equal(found.take(ids), expected.images)
        assert found.labels_of(ids).tolist() == [classes[0]] * 2 + [classes[1]] * 2
    assert StepSets.plan(_dc(), problem, 3, 2).inputs() != source.inputs(), (
        "five classes together are not two"
    )
    for parts in (3, 11):
        with pytest.raises(ConfigError, match=f"{parts} steps do not divide 10 classes"):
            StepSets.plan(_dc(), problem, 3, parts)


def test_sets_of_steps_are_learned_as_one_whatever_their_decodings(digits, shifted):
    data, info = digits
    order = class_order(10, 4)
    ids = torch.cat([(data["train"].labels == c).nonzero().reshape(-1)[:2] for c in range(10)])
    images, labels = data["train"].take(ids), data["train"].labels[ids]
    own = [torch.isin(labels, torch.tensor(classes)) for classes in (order[:5], order[5:])]
    tiled = DistilledSet(images=images, labels=labels, info=info, decoding=Decoding("partition"))
    parts = [replace(tiled, images=images[here], labels=labels[here]) for here in own]
    whole, joined = (in_order(of, order) for of in (tiled, SetsInTurn(tuple(parts))))
    assert joined.ends == whole.ends
    draws = partial(generator, 0)
    for seen in (1, 5, 7, 10):
        ways = [memory.on(torch.device("cpu")).of(seen) for memory in (whole, joined)]
        ways += [memory.of(seen) for memory in (whole, joined)]
        batches = [list(way.batches(1, 7, draws)) for way in ways]
        for first, *others in zip(*batches, strict=True):
            for other in others:
                assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    more = [
        replace(part, decoding=shifted, extra={"shifts": torch.linspace(0, 1, 2 + step)})
        for step, part in enumerate(parts)
    ]
    memory = in_order(SetsInTurn(tuple(more)), order)
    assert memory.ends == (4, 8, 12, 16, 20, 26, 32, 38, 44, 50)
    kept = memory.on(torch.device("cpu")).of(10)
    seen = more[1].take()[more[1].labels_of() == order[-1]]
    assert torch.equal(kept.images[44:], seen)
    assert kept.labels[44:].tolist() == [order[-1]] * 6
    with pytest.raises(ConfigError, match="of one size, normalised and whitened alike"):
        SetsInTurn((parts[0], replace(parts[1], mean=(0.5,))))


def test_students_wait_for_the_steps_so_far_alone(digits, tmp_path):
    data, info = digits
    source = StepSets.plan(_dc(), replace(_problem(info), ipc=2), 0, 5)
    stage = _stage(info, source=source, recipe=replace(RECIPE, epochs=2, drops=()))
    needed = [set(stage.inputs(unit)) for unit in stage.units()]
    assert [len(names) for names in needed] == [1, 2, 3, 4, 5]
    first, last = stage.refs()[0], stage.refs()[-1]
    store = _run([first], data, tmp_path)
    made = store.has([one.inputs()["all"] for one in source.sets])
    assert made == [True, False, False, False, False], (
        "what a step learns from depends on no later step"
    )
    assert int(store.load(first)["images"]) == 4
    assert int(_run([last], data, tmp_path).load(last)["images"]) == 20


# -- students --------------------------------------------------------------------------------------------------------


def test_units_are_steps_and_blocks_of_students(digits):
    stage = _stage(digits[1], repeats=3)
    assert stage.seen == [2, 4, 6, 8, 10]
    assert stage.units()[:3] == (
        "classes-0002-repeats-000-001",
        "classes-0002-repeats-002-002",
        "classes-0004-repeats-000-001",
    )
    assert len(stage.units()) == 10
    assert seen_and_repeats("classes-0004-repeats-000-001") == (4, range(2))
    costs = [stage.cost(unit).flop for unit in stage.units() if unit.endswith("000-001")]
    assert costs[-1] == pytest.approx(5 * costs[0], rel=0.02), "memory and tests grow alike"


def test_five_steps_are_five_of_the_ten(digits):
    five, ten = _stage(digits[1], parts=5), _stage(digits[1], parts=10)
    keys = [{unit_key(stage, unit) for unit in stage.units()} for stage in (five, ten)]
    assert keys[0] < keys[1]
    assert not keys[0] & {
        unit_key(other, unit) for other in (_stage(digits[1], order=1),) for unit in other.units()
    }
    more = _stage(digits[1], repeats=4)
    assert keys[0] < {unit_key(more, unit) for unit in more.units()}


@pytest.mark.slow
def test_students_learn_and_are_tested_on_the_classes_seen_alone(digits, tmp_path):
    data, info = digits
    stage = _stage(info, recipe=replace(RECIPE, epochs=25, drops=(20,)))
    store = _run(stage.refs(), data, tmp_path)
    outputs = [store.load(ref) for ref in stage.refs()]
    assert [int(output["images"]) for output in outputs] == [20, 40, 60, 80, 100]
    means = [float(output["accuracy"].mean()) for output in outputs]
    assert means[0] > 0.85, "two classes are easy; on all ten no more than a fifth could be right"
    assert means[0] > means[-1] > 0.4
    assert all(
        output["accuracy"].dtype == torch.float64 and output["accuracy"].shape == (2,)
        for output in outputs
    )
    counts = [
        int(torch.isin(data["test"].labels, torch.tensor(class_order(10, 0)[:seen])).sum())
        for seen in stage.seen
    ]
    hits = [float(output["accuracy"][0]) * count for output, count in zip(outputs, counts)]
    assert hits == pytest.approx([round(hit) for hit in hits]), (
        "accuracies are of that many test images"
    )


def test_test_images_are_those_of_the_classes_seen_in_the_splits_order(digits):
    data, info = digits
    ctx = SimpleNamespace(data=data, device=torch.device("cpu"), cached=lambda key, make: make())
    found = torch.cat([labels for _, labels in _stage(info)._tests((3, 7), ctx)])
    labels = data["test"].labels
    assert torch.equal(found, labels[(labels == 3) | (labels == 7)])
    images = torch.cat([images for images, _ in _stage(info)._tests((3, 7), ctx)])
    assert torch.equal(
        images, data["test"].take(((labels == 3) | (labels == 7)).nonzero().reshape(-1))
    )


def test_the_last_memory_is_the_whole_set(digits, tmp_path):
    """In the order of the set, after all classes, students are those of the ordinary evaluation up to their draws."""
    data, info = digits
    recipe = replace(RECIPE, epochs=25, drops=(20,))
    stage = _stage(info, recipe=recipe)
    plain = Evaluate(
        seed=0,
        source=stage.source,
        dataset=info.only("test"),
        recipe=recipe,
        network="convnet2_w8",
        repeats=2,
    )
    last = [ref for ref in stage.refs() if ref.unit.startswith("classes-0010")]
    store = _run([*last, *plain.refs()], data, tmp_path)
    one, other = (
        float(torch.cat([store.load(ref)["accuracy"] for ref in refs]).mean())
        for refs in (last, plain.refs())
    )
    assert one == pytest.approx(other, abs=0.15)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_bytes(digits, tmp_path, monkeypatch, world):
    """Workers are processes; threads in their place take turns, since torch.fx patches modules
    process-wide while it traces.
    """
    turn, run = threading.Lock(), Worker.run

    def alone_at_it(self, lease, lanes):
        with turn:
            run(self, lease, lanes)

    monkeypatch.setattr(Worker, "run", alone_at_it)
    data, info = digits
    stage = _stage(info, recipe=replace(RECIPE, epochs=2, drops=()), repeats_per_unit=1)
    alone, group = _run(stage.refs(), data, tmp_path / "alone"), Store(str(tmp_path / "group"))
    run_group(stage.refs(), group, world, open_data=lambda: data)
    assert [digest(group.load(ref)) for ref in stage.refs()] == [
        digest(alone.load(ref)) for ref in stage.refs()
    ]


def test_students_together_are_those_alone_and_start_alike_for_every_set(digits, tmp_path):
    data, info = digits
    short = replace(RECIPE, epochs=2, drops=())
    together, apart = _stage(info, recipe=short), _stage(info, recipe=short, repeats_per_unit=1)
    store = _run([*together.refs(), *apart.refs()], data, tmp_path)
    for seen in together.seen:
        both, single = (
            [store.load(Ref(stage, unit))["accuracy"] for unit in stage.units_after(seen)]
            for stage in (together, apart)
        )
        assert torch.cat(both).tolist() == torch.cat(single).tolist()
    ctx = SimpleNamespace(device=torch.device("cpu"), cached=lambda key, make: make())
    of_set, of_random = (
        together,
        _stage(info, source=OrderDraw(dataset=info.only("train"), ipc=10, order=0)),
    )
    starts = [
        digest(stage.init(unit, ctx)) for stage in (of_set, of_random) for unit in stage.units()[:2]
    ]
    assert starts[:2] == starts[2:]
    assert starts[0] != starts[1], "those of another step are others"


class _Killed(BaseException):
    pass


def test_a_killed_experiment_resumes_to_the_same_bytes(digits, tmp_path):
    data, info = digits
    stage = _stage(info, recipe=replace(RECIPE, epochs=4, drops=(3,)))
    whole = _run(stage.refs(), data, tmp_path / "whole")
    seen = []

    def fault(name, unit, t):
        seen.append((unit, t))
        if seen.count((stage.units()[2], 2)) == 1 and seen[-1] == (stage.units()[2], 2):
            raise _Killed

    with pytest.raises(_Killed):
        _run(stage.refs(), data, tmp_path / "killed", checkpoint_every=0.0, fault=fault)
    before = len(seen)
    killed = _run(stage.refs(), data, tmp_path / "killed", checkpoint_every=0.0, fault=fault)
    assert seen[before] == (stage.units()[2], 2)
    assert [digest(killed.load(ref)) for ref in stage.refs()] == [
        digest(whole.load(ref)) for ref in stage.refs()
    ]
