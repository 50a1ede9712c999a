"""PoDD: the meta-gradient of a poster and its label map as published, batches of windows, the set, what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import run_group
from small import small_method, small_overrides
from unrolls import TinyPoster, outer_of, tiny_plan, tiny_unroller

from raydd.artifacts.decoding import SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.poster_geometry import WindowGrid, pooled_labels
from raydd.config import load_job
from raydd.core.errors import ConfigError
from raydd.core.events import Event
from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import digest
from raydd.core.units import Data, Numerics
from raydd.data.catalog import entry
from raydd.data.datasets import with_digests
from raydd.evaluation.set_sources import AssembledSet
from raydd.methods.method import Problem
from raydd.methods.podd import Podd
from raydd.methods.posters.poster_batches import PosterBatches
from raydd.methods.posters.poster_config import LabelMapConfig, PosterConfig
from raydd.methods.posters.poster_layout import PosterLayout
from raydd.methods.unroll.distilled_batches import LABELS, PIXELS
from raydd.methods.unroll.engines import Engine
from raydd.methods.unroll.inner_steps import InnerAdam
from raydd.methods.unroll.unroll_stage import meta_gradient
from raydd.runtime.resolved import settled
from raydd.runtime.runner import LocalRunner

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_podd.json").read_text())
TINY = PosterLayout(
    height=12,
    width=16,
    windows=WindowGrid(height=8, width=8, columns=3, rows=2),
    class_areas=WindowGrid(height=8, width=8, columns=3, rows=1),
    order=(0, 1, 2),
)


def tiny_batches(**fields: Any) -> PosterBatches:
    values = {"shape": (3, 8, 8), "classes": 3, "learn_labels": True, "layout": TINY}
    return PosterBatches(**{**values, "batch_windows": 4, "cells": (3, 4), **fields})


@pytest.mark.parametrize("engine", ["graph", "adjoint"])
@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("name", ["higher", "double"])
def test_the_meta_gradient_of_a_poster_and_its_labels_is_that_of_published_code(
    engine: Engine, warmup: int, name: str
) -> None:
    unroller = tiny_unroller(
        InnerAdam(lr=1e-3, bias_correction="float32" if name == "higher" else "float64")
    )
    start = TinyPoster(shape=(3, 8, 8), classes=3, learn_labels=True).start(
        lambda *_: generator(0, "start")
    )
    parameters = {PIXELS: start[PIXELS].unsqueeze(0), LABELS: start[LABELS]}
    found, gradients = meta_gradient(
        unroller,
        engine,
        tiny_batches(),
        parameters,
        tiny_plan(unroller, warmup, 5),
        outer_of(unroller),
    )
    golden = GOLDEN["meta"][f"warm{warmup}_win5"]
    assert float(found.loss) == pytest.approx(golden[f"L_{name}"], rel=1e-9)
    for key, wanted in ((PIXELS, f"gX_{name}"), (LABELS, f"gA_{name}")):
        expected = torch.tensor(golden[wanted], dtype=torch.float64)
        error = (gradients[key].view_as(expected) - expected).norm() / expected.norm()
        assert float(error) < 1e-9


def test_windows_of_a_batch_are_drawn_once_and_ascending() -> None:
    batches, draws = tiny_batches(), generator(0, "draws")
    counts = torch.zeros(6)
    for _ in range(300):
        ids = batches.sample(draws)
        assert ids.tolist() == sorted(set(ids.tolist()))
        assert len(ids) == batches.batch == 4
        counts[ids] += 1
    assert float((counts / 200 - 1).abs().max()) < 0.2
    for size in (6, 7):
        whole = tiny_batches(batch_windows=size)
        assert whole.batch == 6
        assert whole.sample(draws).tolist() == list(range(6))


def test_labels_that_are_not_learnt_are_kept_with_the_poster() -> None:
    batches = tiny_batches(learn_labels=False, cells=())
    start = batches.start(lambda *_: generator(3, "start"))
    assert list(start) == [PIXELS]
    _, targets = batches.materialise(start)
    assert torch.equal(targets, batches.kept()["soft_labels"])
    # What is put together elsewhere takes the labels that were kept, whatever the classes' order is there.
    turned = replace(batches, layout=replace(TINY, order=(2, 1, 0)))
    stored = turned.stored(start | batches.kept())
    assert torch.equal(stored["soft_labels"], targets)
    assert torch.equal(stored["labels"], targets.argmax(1))


def test_a_learnt_label_map_starts_with_the_areas_classes_and_stays_at_least_zero() -> None:
    batches = tiny_batches(cells=(1, 3))
    start = batches.start(lambda *_: generator(3, "start"))
    assert torch.equal(start[LABELS], torch.eye(3).unsqueeze(1))
    moved = batches.project({PIXELS: start[PIXELS], LABELS: start[LABELS] - 0.5})
    assert torch.equal(moved[LABELS], start[LABELS] * 0.5)
    stored = batches.stored(moved)
    assert torch.equal(stored["label_map"], moved[LABELS])
    assert stored["labels"].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.fixture(scope="module")
def problem(digits: Mapping[str, Data]) -> Problem:
    info = with_digests(entry("digits").info, digits)
    return Problem(dataset=info, ipc=0.5, seed=3, numerics=Numerics())


def run(
    method: Podd, problem: Problem, data: Mapping[str, Data], place: Path
) -> tuple[DistilledSet, list[float]]:
    """Return a method's set, and the losses that it logged."""
    refs, store, losses = method.targets(problem), Store(str(place)), dict[int, float]()

    def heard(event: Event) -> None:
        losses.update({t: values["loss"] for t, values in event.rows if "loss" in values})

    LocalRunner(lambda: data, device=torch.device("cpu")).run(list(refs.values()), store, heard)
    outputs = {name: store.load(ref) for name, ref in refs.items()}
    return AssembledSet(method=method, problem=problem).assembled(outputs), [
        losses[t] for t in sorted(losses)
    ]


SETTINGS: dict[str, Any] = {
    "space": "normalised",
    "network": "convnet2_w16",
    "window": 8,
    "totwindow": 12,
    "resample": "step",
    "inner_lr": 5e-3,
    "lr_img": 0.05,
    "batch_real": 128,
    "syn_strategy": "rotate",
    "real_strategy": "none",
    "batch_windows": 20,
    "poster": {"windows": (10, 4)},
}


@pytest.mark.slow
@pytest.mark.parametrize("learnt", [False, True], ids=["fixed", "learnt"])
def test_a_poster_of_half_an_image_per_class_is_moved_down_the_real_loss(
    problem: Problem, digits: Mapping[str, Data], tmp_path: Path, learnt: bool
) -> None:
    method = small_method("podd", **SETTINGS, iterations=60, learn_labels=learnt)
    assert isinstance(method, Podd)
    distilled, losses = run(method, problem, digits, tmp_path)
    assert distilled.size == method.size(problem)
    assert distilled.images.shape == (1, 1, 11, 29)
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    if learnt:
        grid = method.poster.layout(problem.dataset, 0.5).windows
        label_map = distilled.extra["label_map"]
        assert torch.equal(distilled.targets, pooled_labels(label_map, grid, (11, 29)))
        assert float(label_map.min()) >= 0
        assert not torch.equal(label_map, label_map.round()), "labels were moved"
    else:
        assert torch.equal(distilled.targets.argmax(1), distilled.labels)


@pytest.mark.slow
def test_four_unrolls_of_a_poster_give_the_same_bytes_on_any_number_of_workers(
    problem: Problem, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    fields = {**SETTINGS, "space": "zca_per_image", "network": "convnet1_w8", "learn_labels": True}
    method = small_method("podd", **fields, iterations=3, unrolls=4)
    refs, found = list(method.targets(problem).values()), []
    for world in (1, 2, 3):
        store = Store(str(tmp_path / str(world)))
        run_group(refs, store, world, lambda: digits)
        found.append([digest(store.load(ref)) for ref in refs])
    assert found[0] == found[1] == found[2]


def test_how_large_its_sets_are(problem: Problem) -> None:
    fixed = small_method("podd", **SETTINGS)
    assert fixed.size(problem) == SetSize(1, 40, 4 * 11 * 29 + 8 * 40 + 4 * 40 * 10)
    learnt = small_method("podd", **SETTINGS, learn_labels=True)
    assert learnt.size(problem) == SetSize(1, 40, 4 * 11 * 29 + 8 * 40 + 4 * 10 * 10)
    white = small_method("podd", **{**SETTINGS, "space": "zca_per_image"})
    further = white.size(problem).bytes - fixed.size(problem).bytes
    assert further >= 4 * 64 * 64, "the whitening is kept, too"


def test_what_the_poster_comes_to_is_told(problem: Problem) -> None:
    method = small_method("podd", **SETTINGS)
    told = settled(method, problem)["poster"]
    assert told == {
        "width": 29,
        "height": 11,
        "class_order": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]],
        "class_order_from": "label order",
        "windows": 40,
        "batch_windows": 20,
    }
    more = small_method("podd", **{**SETTINGS, "batch_windows": 96})
    assert settled(more, problem)["poster"]["batch_windows"] == 40, "a batch of all there are"
    every = small_method("podd", **{**SETTINGS, "batch_windows": 40})
    assert more.plan(problem)[-1].refs()[0].key == every.plan(problem)[-1].refs()[0].key


@pytest.mark.parametrize(
    ("ipc", "override", "message"),
    [
        (0.2, "method.batch_windows=4", "ipc=0.2: the poster would have .* at least ipc=0.2[0-9]"),
        (0, "method.batch_windows=4", "ipc: Input should be greater than 0, not 0$"),
        (0.5, "method.poster.windows=[3,2]", r"method.poster.windows: columns=3: .* do not tile"),
        (0.5, "method.batch_windows=0", r"method.batch_windows: .* greater than or equal to 1"),
        (
            0.5,
            "method.label_map.rule=published",
            r"label_map has no effect without .*learn_labels=true",
        ),
        (0.5, "method.label_map.ipc=0.5", r"label_map.ipc=0.5 has no effect with rule=grid"),
        (
            0.5,
            "method.label_lr_scale=3",
            "label_lr_scale=3.0 has no effect with .*learn_labels=false",
        ),
        (0.5, "method.poster.order=pocco", r"must be labels, poco, or a .json"),
        (0.5, "evaluation.continual=5", r"evaluation.continual: a set of 'podd' is one poster"),
    ],
)
def test_what_cannot_be_is_refused_before_work(
    problem: Problem, ipc: float, override: str, message: str
) -> None:
    from raydd.runtime.planning import make_plan

    overrides = ["dataset.name=digits", f"ipc={ipc}", *small_overrides("podd"), override]
    with pytest.raises(ConfigError, match=message):
        make_plan(load_job(None, overrides), problem.dataset)


def test_continual_learning_on_posters_is_refused(problem: Problem) -> None:
    method = small_method("podd", **SETTINGS)
    assert method.one_image
    with pytest.raises(ConfigError, match="a poster is of all classes"):
        method.plan(replace(problem, classes=(0, 1)))


def test_the_label_map_has_cells_by_its_rule() -> None:
    info = entry("cifar100").info
    problem = Problem(dataset=info, ipc=0.9, seed=0, numerics=Numerics())
    for rule, cells in (("published", (10, 9)), ("grid", (10, 10))):
        method = Podd(
            learn_labels=True,
            label_map=LabelMapConfig(rule=rule),  # type: ignore[arg-type]
            poster=PosterConfig(windows=(20, 20)),
        )
        batches = method.batches(problem)
        assert batches.cells == cells
        assert batches.start(lambda *_: generator(0, "start"))[LABELS].shape == (100, *cells)


JOBS = Path(__file__).parents[2] / "jobs"
EPOCHS = {"cifar10": 10, "cifar100": 25, "cub200": 2, "tiny_imagenet": 200}
"""Outer updates in an epoch of the published runs."""


@pytest.mark.parametrize(
    ("name", "run", "batch", "real", "window", "rate", "learnt"),
    [
        ("cifar10", "cifar10", 96, 5000, (60, 200), 1e-3, False),
        ("cifar100", "cifar100", 50, 2000, (100, 300), 1e-3, True),
        ("cub200", "cub-200", 200, 3000, (60, 200), 1e-3, True),
        ("tiny_imagenet", "tiny-imagenet-200", 30, 500, (100, 300), 5e-4, True),
    ],
)
def test_the_published_jobs_have_the_published_settings(
    name: str,
    run: str,
    batch: int,
    real: int,
    window: tuple[int, int],
    rate: float,
    learnt: bool,
) -> None:
    job, facts = load_job(str(JOBS / f"{name}_podd.yaml")), GOLDEN["geometry"][run]
    method = job.method
    assert isinstance(method, Podd)
    assert job.ipc == 0.9
    assert (method.batch_windows, method.batch_real, method.learn_labels) == (batch, real, learnt)
    assert (method.window, method.totwindow, method.minwindow) == (*window, 0)
    assert method.inner_lr == method.lr_img == rate
    assert method.iterations == 10_000 * EPOCHS[name]
    assert (method.placement, method.resample, method.space) == ("random", "epoch", "zca_per_image")
    problem = Problem(dataset=entry(name).info, ipc=job.ipc, seed=0, numerics=Numerics())
    batches = method.batches(problem)
    layout = batches.layout
    assert (layout.width, layout.height) == (facts["W"], facts["H"])
    assert (layout.windows.columns, layout.windows.rows) == (facts["nx"], facts["ny"])
    assert (layout.class_areas.columns, layout.class_areas.rows) == (facts["cx"], facts["cy"])
    assert layout.class_areas.height == layout.class_areas.width == facts["h"]
    assert batches.cells == (tuple(facts["label_array_hw"]) if learnt else ())
    recipe = job.evaluation.resolve().recipe(problem.dataset, method.network)
    assert (recipe.epochs, recipe.batch, recipe.lr, recipe.draw) == (2000, batch, rate, "images")
    assert job.evaluation.repeats == 8


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_jobs_whose_poster_follows_from_ipc_take_any_from_three_tenths_to_one(name: str) -> None:
    for tenths in range(3, 11):
        job = load_job(str(JOBS / f"{name}_podd.yaml"), [f"ipc={tenths / 10}"])
        assert isinstance(job.method, Podd)
        layout = job.method.poster.layout(entry(name).info, job.ipc)
        assert layout.windows.count == job.method.poster.layout(entry(name).info, 0.9).windows.count
        made = layout.height * layout.width
        asked = job.ipc * math.prod(entry(name).info.shape[1:]) * entry(name).info.classes
        assert 0.95 * asked < made <= asked + 1e-6
