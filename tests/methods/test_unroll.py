"""Meta-gradients: those of published code, of finite differences, of both engines (docs/methods/rat_bptt_podd.md)."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from unrolls import (
    TinyPoster,
    grid,
    outer_of,
    rows,
    separate_images,
    separate_plan,
    tiny_plan,
    tiny_unroller,
)

from raydd.augment.dsa import DsaTransform, draw
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.methods.unroll.distilled_batches import LABELS, PIXELS, ImageTable
from raydd.methods.unroll.engines import Engine, MetaGradient, Unroller
from raydd.methods.unroll.inner_steps import InnerAdam, InnerOptimizer, InnerSgd, StepNumber
from raydd.methods.unroll.outer import OuterAdam, averaged_norm, finite_mean
from raydd.methods.unroll.placement import Placement, Plateau, Window
from raydd.methods.unroll.unroll_stage import meta_gradient
from raydd.methods.unroll.weight_vector import WeightVector
from raydd.networks import create_network, parameter_count

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "golden_podd.json").read_text(encoding="utf-8")
)
ENGINES: list[Engine] = ["graph", "adjoint"]
engines = pytest.mark.parametrize("engine", ENGINES)
OPTIMIZERS: list[InnerOptimizer] = [
    InnerAdam(lr=1e-3),
    InnerAdam(lr=1e-3, window_eps="torch"),
    InnerAdam(lr=1e-3, bias_correction="float32"),
    InnerSgd(lr=0.05),
]
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@engines
@pytest.mark.parametrize(
    ("warmup", "rounding", "name"),
    [(0, "float64", "higher"), (0, "float32", "higher"), (3, "float64", "double"), (3, "float32", "higher")],
)  # fmt: skip
def test_the_meta_gradient_is_that_of_published_code(
    engine: Engine, warmup: int, rounding: Any, name: str
) -> None:
    unroller = tiny_unroller(InnerAdam(lr=1e-3, bias_correction=rounding))
    poster = TinyPoster(shape=(3, 8, 8), classes=3, learn_labels=True)
    parameters = poster.start(lambda *_: generator(0, ""))
    found, derivatives = meta_gradient(
        unroller, engine, poster, parameters, tiny_plan(unroller, warmup, 5), outer_of(unroller, 2)
    )
    golden = GOLDEN["meta"][f"warm{warmup}_win5"]
    assert float(found.loss) == pytest.approx(golden[f"L_{name}"], rel=1e-12)
    for wanted, parameter in ((f"gX_{name}", PIXELS), (f"gA_{name}", LABELS)):
        expected = torch.tensor(golden[wanted], dtype=torch.float64)
        assert distance(derivatives[parameter], expected) < 1e-9
    if name == "higher":
        assert found.inner.tolist() == pytest.approx(golden["inner_losses"], rel=1e-11)


def separate(
    unroller: Unroller, engine: Engine, warmup: int, window: int, *, soft: bool
) -> MetaGradient:
    images, targets = separate_images(2 * (warmup + window), soft=soft)
    plan = separate_plan(unroller, warmup, window)
    return unroller.gradient(engine, plan, images, targets, outer_of(unroller))


@optimizers
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("warmup", [0, 3])
def test_both_engines_agree_at_every_inner_step(
    optimizer: InnerOptimizer, soft: bool, warmup: int
) -> None:
    unroller = tiny_unroller(optimizer)
    graph, adjoint = (separate(unroller, e, warmup, 6, soft=soft) for e in ENGINES)
    assert float(adjoint.loss) == pytest.approx(float(graph.loss), rel=1e-13)
    assert adjoint.inner.tolist() == pytest.approx(graph.inner.tolist(), rel=1e-13)
    for step in range(warmup, warmup + 6):
        seen = rows([step])
        assert float(graph.of_images[seen].norm()) > 0
        assert distance(adjoint.of_images[seen], graph.of_images[seen]) < 1e-9
        if soft:
            assert graph.of_targets is not None
            assert adjoint.of_targets is not None
            assert distance(adjoint.of_targets[seen], graph.of_targets[seen]) < 1e-9
    assert distance(adjoint.of_images, graph.of_images) < 1e-11


@engines
@pytest.mark.parametrize("place", [0, 5], ids=["first", "last"])
@pytest.mark.parametrize("optimizer", [OPTIMIZERS[0], OPTIMIZERS[3]], ids=["adam", "sgd"])
def test_finite_differences_agree_at_the_first_and_the_last_inner_step(
    engine: Engine, place: int, optimizer: InnerOptimizer
) -> None:
    unroller = tiny_unroller(optimizer)
    images, targets = separate_images(18, soft=True)
    plan, outer, seen = separate_plan(unroller, 3, 6), outer_of(unroller), rows([3 + place])
    found = unroller.gradient(engine, plan, images, targets, outer)
    assert found.of_targets is not None
    errors = []
    for n in range(4):
        draws = generator(n, "direction")
        for of, values in ((found.of_images, images), (found.of_targets, targets)):
            along = torch.zeros_like(values)
            along[seen] = torch.randn(along[seen].shape, generator=draws, dtype=torch.float64)
            along /= along.norm()
            ends = []
            for sign in (1, -1):
                moved = [
                    value + sign * 1e-5 * along if value is values else value
                    for value in (images, targets)
                ]
                ends.append(unroller.gradient(engine, plan, moved[0], moved[1], outer).loss)
            slope = (ends[0] - ends[1]) / 2e-5
            errors.append(abs(float(slope / (of * along).sum()) - 1))
    assert sorted(errors)[5] < 1e-4, "a ReLU may turn over between two of eight"


@engines
def test_steps_before_the_window_have_no_part_in_it(engine: Engine) -> None:
    found = separate(tiny_unroller(InnerAdam(lr=1e-3)), engine, 4, 3, soft=True)
    assert found.of_targets is not None
    for of in (found.of_images, found.of_targets):
        assert not of[rows(range(4))].any()
        assert of[rows(range(4, 7))].flatten(1).any(1).all()


@engines
def test_weights_without_gradient_do_no_harm(engine: Engine) -> None:
    unroller = tiny_unroller(InnerAdam(lr=1e-3))
    images, targets = separate_images(10, soft=False)
    images[:, 1] = 0
    found = unroller.gradient(
        engine, separate_plan(unroller, 0, 5), images, targets, outer_of(unroller)
    )
    gradient, _ = unroller._inner_gradient(
        separate_plan(unroller, 0, 5).weights, images[:2], targets[:2]
    )
    assert int((gradient == 0).sum()) >= 4 * 9, "the kernels of a channel that is zero"
    assert torch.isfinite(found.of_images).all()
    assert float(found.of_images.norm()) > 0


def test_the_order_of_a_batch_does_not_matter() -> None:
    unroller = tiny_unroller(InnerAdam(lr=1e-3))
    images, targets = separate_images(12, soft=True)
    plan, turned = separate_plan(unroller, 0, 4, each=3), separate_plan(unroller, 0, 4, each=3)
    for batch in turned.batches:
        batch.ids.copy_(batch.ids.flip(0))
    one, other = (
        unroller.gradient("adjoint", p, images, targets, outer_of(unroller)) for p in (plan, turned)
    )
    assert distance(one.of_images, other.of_images) < 1e-10


def test_augmentations_are_differentiated_too() -> None:
    unroller = tiny_unroller(InnerAdam(lr=1e-3))
    images, targets = separate_images(8, soft=False)
    plan = separate_plan(unroller, 1, 3)
    batches = [
        type(batch)(batch.ids, draw("rotate", generator(n, "turn"), size=(8, 8), siamese=False, count=2))
        for n, batch in enumerate(plan.batches)
    ]  # fmt: skip
    turned = type(plan)(plan.weights, batches, plan.warmup)
    one, other = (
        unroller.gradient(engine, turned, images, targets, outer_of(unroller)) for engine in ENGINES
    )
    assert distance(one.of_images, other.of_images) < 1e-11
    plain = unroller.gradient("graph", plan, images, targets, outer_of(unroller))
    assert distance(plain.of_images, other.of_images) > 0.01


@pytest.mark.nightly
def test_compiled_pieces_give_the_same_meta_gradient() -> None:
    plain, fused = (tiny_unroller(InnerAdam(lr=1e-3), compile=c) for c in (False, True))
    expected = separate(plain, "graph", 1, 3, soft=True)
    found = separate(fused, "adjoint", 1, 3, soft=True)
    assert expected.of_targets is not None
    assert found.of_targets is not None
    assert distance(found.of_images, expected.of_images) < 1e-9
    assert distance(found.of_targets, expected.of_targets) < 1e-9


# -- Adam ------------------------------------------------------------------------------------------


def test_adam_of_the_warm_up_is_torchs() -> None:
    values = torch.linspace(-1, 1, 7, dtype=torch.float64)
    parameter = torch.nn.Parameter(values.clone())
    theirs, ours = torch.optim.Adam([parameter], lr=0.01), InnerAdam(lr=0.01)
    moments = ours.fresh(values)
    for t in range(1, 5):
        gradient = torch.sin(values * t)
        parameter.grad = gradient.clone()
        theirs.step()
        values, moments = ours.update(values, moments, gradient, StepNumber(t, False, True))
        assert torch.allclose(values, parameter, rtol=1e-14, atol=0)
    other, _ = ours.update(
        values, moments, torch.full_like(values, 1e-9), StepNumber(5, True, True)
    )
    same, _ = ours.update(
        values, moments, torch.full_like(values, 1e-9), StepNumber(5, False, True)
    )
    assert not torch.equal(other, same), "epsilon stands elsewhere in the window"


def test_where_epsilon_stands_in_the_window() -> None:
    ours, gradient = InnerAdam(lr=0.01), torch.full((1,), 1e-8, dtype=torch.float64)
    start = torch.zeros_like(gradient)
    for step, window_eps, effective in ((1, "torch", 1e-8), (1, "higher", 1e-8 / 0.001**0.5)):
        optimizer = InnerAdam(lr=0.01, window_eps=window_eps)  # type: ignore[arg-type]
        moved, _ = optimizer.update(
            start, ours.fresh(start), gradient, StepNumber(step, True, False)
        )
        assert float(moved) == pytest.approx(-0.01 * 1e-8 / (1e-8 + effective), rel=1e-9)


# -- windows, batches, the outer update ------------------------------------------------------------


def test_windows_are_drawn_as_by_pythons_generator() -> None:
    for last, name in ((140, "curriculum_seed0_0_140"), (200, "curriculum_seed0_0_200")):
        placement = Placement(length=60, total=last + 60)
        draws = random.Random(0)
        drawn = [placement.window(draws.randint, 0) for _ in range(12)]
        assert [window.warmup for window in drawn] == GOLDEN[name]
        assert {window.length for window in drawn} == {60}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("start", Window(0, 20)),
        ("end", Window(30, 20)),
        ("advance", Window(7, 20)),
        ("random", Window(5, 20)),
        ("random_length", Window(0, 20)),
    ],
)
def test_where_windows_of_each_mode_begin(mode: Any, expected: Window) -> None:
    placement = Placement(mode=mode, length=20, first=5, total=50)
    asked: list[tuple[int, int]] = []

    def lowest(low: int, high: int) -> int:
        asked.append((low, high))
        return low

    assert placement.window(lowest, 7) == expected
    assert asked == {"random": [(5, 30)], "random_length": [(20, 50)]}.get(mode, [])


def test_windows_that_do_not_fit_are_refused() -> None:
    for wrong in ({"length": 0}, {"length": 60}, {"first": 31}, {"first": -1}):
        with pytest.raises(ConfigError, match="window"):
            Placement(**{"length": 20, "total": 50, **wrong})


def test_windows_go_further_when_the_loss_has_come_to_rest() -> None:
    placement = Placement(mode="advance", length=20, first=5, total=50)
    state, at, stopped = Plateau(9e9, 0, 5), [], []
    for epoch, loss in enumerate([3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5]):
        state = state.after(placement, loss, epoch, patience=3)
        at.append(state.at)
        stopped.append(state.stopped)
    assert at == [5, 5, 5, 5, 25, 25, 25, 25, 30, 30, 30, 30, 30]
    assert stopped == [False] * 11 + [True] * 2


def test_the_moving_average_of_norms() -> None:
    average, found = torch.zeros((), dtype=torch.float64), []
    for n, norm in enumerate([1.0, 2.0, 0.5, 10.0, 3.0]):
        average = averaged_norm(average, torch.tensor(norm).double(), torch.tensor(n == 0), 0.9)
        found.append(float(average))
    assert found == pytest.approx([1, 1.1, 1.04, 1.936, 2.0424], rel=1e-12)


def test_the_outer_update_clips_pixels_and_slows_labels() -> None:
    ours = OuterAdam(lr=0.1, label_lr_scale=10.0)
    parameters = {PIXELS: torch.ones(1, 1, 1, 1).double(), LABELS: torch.ones(1, 2).double()}
    memory, leaves = (
        ours.fresh(parameters),
        {n: torch.nn.Parameter(v.clone()) for n, v in parameters.items()},
    )
    theirs = torch.optim.Adam(
        [{"params": [leaves[PIXELS]], "lr": 0.1}, {"params": [leaves[LABELS]], "lr": 0.01}]
    )
    scales = [1, 1, 1, 2 * 1.936 / (10 + 1e-6), 1]
    for norm, scale in zip([1.0, 2.0, 0.5, 10.0, 3.0], scales, strict=True):
        of_labels = torch.tensor([[norm, -norm]]).double()
        gradients = {PIXELS: torch.full((1, 1, 1, 1), norm).double(), LABELS: of_labels}
        leaves[PIXELS].grad, leaves[LABELS].grad = gradients[PIXELS] * scale, of_labels
        theirs.step()
        parameters, memory, found = ours.update(parameters, memory, gradients)
        assert float(found) == norm
        for name, value in parameters.items():
            assert torch.allclose(value, leaves[name], rtol=1e-12)


def test_meta_gradients_that_are_not_finite_are_left_out_and_counted() -> None:
    def one(value: float) -> dict[str, torch.Tensor]:
        return {"loss": torch.tensor(1.0), PIXELS: torch.tensor([value, 2.0])}

    mean, skipped = finite_mean([one(1.0), one(float("nan")), one(3.0), one(float("inf"))])
    assert skipped == 2
    assert mean is not None
    assert mean[PIXELS].tolist() == [2.0, 2.0]
    assert finite_mean([one(float("nan"))]) == (None, 1)


def test_batches_of_a_table() -> None:
    table = ImageTable(
        shape=(3, 4, 4), classes=10, present=(1, 4, 7), ipc=5, batch_per_class=2, classes_per_batch=2
    )  # fmt: skip
    seen: Counter[int] = Counter()
    for n in range(300):
        ids = table.sample(generator(n, "batch"))
        assert ids.tolist() == sorted(set(ids.tolist()))
        assert sorted(Counter((ids // 5).tolist()).values()) == [2, 2]
        seen.update(ids.tolist())
    assert sorted(seen) == list(range(15))
    assert max(seen.values()) < 2 * min(seen.values())
    whole = ImageTable(
        shape=(3, 4, 4), classes=10, present=(1, 4, 7), ipc=5, batch_per_class=5, classes_per_batch=3
    )  # fmt: skip
    assert whole.sample(generator(0, "batch")).tolist() == list(range(15))
    start = whole.start(lambda stream, *ids: generator(0, stream, *ids))
    assert start[PIXELS].flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 15)
    assert whole.materialise(start)[1].tolist() == [1] * 5 + [4] * 5 + [7] * 5
    for wrong in ({"batch_per_class": 6}, {"classes_per_batch": 4}):
        with pytest.raises(ConfigError, match="possible"):
            replace(table, **wrong)


def test_learnt_labels_start_one_hot_and_stay_at_least_zero() -> None:
    table = ImageTable(
        shape=(1, 2, 2), classes=4, present=(0, 3), ipc=1, batch_per_class=1, classes_per_batch=2, learn_labels=True
    )  # fmt: skip
    start = table.start(lambda stream, *ids: generator(0, stream, *ids))
    assert start[LABELS].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    moved = table.project(start | {LABELS: start[LABELS] - 0.5})
    assert moved[LABELS].tolist() == [[0.5, 0, 0, 0], [0, 0, 0, 0.5]]
    assert set(table.stored(start)) == {"images", "labels", "soft_labels"}


def test_one_operation_a_batch_and_numbers_for_every_image() -> None:
    drawn: list[DsaTransform] = [
        draw("flip_rotate", generator(n, "augment"), size=(8, 8), siamese=False, count=50)
        for n in range(400)
    ]
    operations = Counter(transform.operations for transform in drawn)
    assert set(operations) == {("flip",), ("rotate",)}
    assert 160 < operations["flip",] < 240
    flips = torch.cat([t.values[0] for t in drawn if t.operations == ("flip",)])
    assert 0.45 < float(flips.mean()) < 0.55
    turns = torch.cat([t.values[0] for t in drawn if t.operations == ("rotate",)]).rad2deg()
    assert -15 <= float(turns.min()) < -14.5
    assert 14.5 < float(turns.max()) <= 15


def test_the_rotation_is_the_published_one() -> None:
    golden = GOLDEN["rotate"]
    n, c, i, j = grid(3, 2, 8, 8)
    images = torch.sin(0.5 * i + 0.3 * j + 0.7 * c + n)
    angles = torch.tensor(golden["degrees"], dtype=torch.float64).deg2rad().unsqueeze(1)
    turned = DsaTransform((8, 8), ("rotate",), (angles,))(images)
    assert torch.allclose(turned, torch.tensor(golden["out"]).double(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "classes", "expected"),
    [
        ("convnet3", 32, 10, 320_010),
        ("convnet3", 32, 100, 504_420),
        ("convnet3", 32, 200, 709_320),
        ("convnet3", 64, 200, 1_938_120),
        ("convnet4", 64, 200, 857_160),
    ],
)
def test_the_published_networks_have_the_published_number_of_weights(
    name: str, size: int, classes: int, expected: int
) -> None:
    network = create_network(name, (3, size, size), classes, generator(0, "count"))
    assert parameter_count(network) == expected
    blocks = int(name.removeprefix("convnet"))
    assert len(WeightVector(network)) == expected - 128 * blocks, "without biases before norms"


def test_networks_that_mix_the_images_of_a_batch_are_refused() -> None:
    network = create_network("convnet3_batchnorm", (3, 32, 32), 10, generator(0, "norm"))
    with pytest.raises(ConfigError, match="convnet3_w128_batchnorm"):
        WeightVector(network)
