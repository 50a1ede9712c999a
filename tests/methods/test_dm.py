"""DM: its step against the formula written out, momentum, blocks of classes, shapes, and its limits."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from recording import recorded
from stage_context import StageContext
from torch import Tensor
from tracing import traced_gradients

from raydd.augment.dsa import draw
from raydd.core import captured
from raydd.core.errors import ConfigError, RunFailed
from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import Tensors
from raydd.core.units import Numerics
from raydd.data.arrays import ArrayData
from raydd.data.catalog import DatasetInfo
from raydd.data.datasets import with_digests
from raydd.data.memory import ClassMemory
from raydd.methods import Problem, dm
from raydd.methods.dm import Dm, MatchDistributions
from raydd.methods.matching import embedding_matching
from raydd.networks import create_network, reinitialise_
from raydd.runtime.runner import LocalRunner

Made = tuple[dict[str, ArrayData], DatasetInfo]


def make(
    channels: int = 1, size: tuple[int, int] = (8, 8), classes: int = 3, per_class: int = 20
) -> Made:
    """Return random images, a darker pattern per class, and their facts."""
    g = torch.Generator().manual_seed(5)
    labels = torch.arange(classes).repeat(per_class)
    level = (labels * 60).view(-1, 1, 1, 1)
    images = (
        (torch.randint(0, 120, (len(labels), channels, *size), generator=g) + level)
        .clamp(max=255)
        .to(torch.uint8)
    )
    data = {"train": ArrayData(images, labels), "test": ArrayData(images[:6], labels[:6])}
    info = DatasetInfo(
        name="made",
        classes=classes,
        channels=channels,
        height=size[0],
        width=size[1],
        mean=(0.4,) * channels,
        std=(0.2,) * channels,
    )
    return data, with_digests(info, data)


def problem(info: DatasetInfo, ipc: int = 2, seed: int = 7) -> Problem:
    return Problem(dataset=info, ipc=ipc, seed=seed, numerics=Numerics())


def method(**fields: Any) -> Dm:
    return Dm(
        **({"network": "convnet2_w8", "iterations": 3, "batch_real": 6, "lr_img": 0.5} | fields)
    )


def run(chosen: Dm, given: Problem, data: dict[str, ArrayData], folder: Path) -> Tensor:
    """Return the images of a distillation."""
    store, targets = Store(str(folder)), chosen.targets(given)
    LocalRunner(lambda: data, device=torch.device("cpu")).run(
        list(targets.values()), store, lambda event: None
    )
    return chosen.assemble(given, {name: store.load(ref) for name, ref in targets.items()}).images


def formula(
    stage: MatchDistributions, images: Tensor, t: int, data: dict[str, ArrayData]
) -> tuple[float, Tensor]:
    """Return loss and gradient of update ``t`` as the paper writes them, class by class, in float64."""
    info, seed = stage.dataset, stage.seed
    net = create_network(stage.network, info.shape, info.classes, generator(seed, "network"))
    reinitialise_(net, generator(seed, "network", t))
    net = net.double().requires_grad_(False).train()
    memory = ClassMemory.load(data["train"])
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (info.mean, info.std)
    )
    synthetic = images.double().requires_grad_(True)
    sides: list[list[Tensor]] = [[], []]
    classes = stage.classes or range(info.classes)
    for k, c in enumerate(classes):
        rows = memory.draw(c, stage.batch_real, generator(seed, "real", t, c))
        real = (memory.gather(rows)[0].double() / 255 - mean) / std
        transform = draw(stage.dsa, generator(seed, "dsa", t, c), size=info.shape[1:])
        sides[0].append(transform(real))
        sides[1].append(transform(synthetic[k * stage.ipc : (k + 1) * stage.ipc]))
    # One batch of all classes: what batch norm sees; the same as class by class for every other norm.
    real_features, features = (net.embed(torch.cat(side)) for side in sides)
    loss = torch.zeros((), dtype=torch.float64)
    for k in range(len(classes)):
        own = real_features[k * stage.batch_real : (k + 1) * stage.batch_real].mean(0)
        loss = loss + ((own - features[k * stage.ipc : (k + 1) * stage.ipc].mean(0)) ** 2).sum()
    return float(loss.detach()), torch.autograd.grad(loss, synthetic)[0]


@pytest.mark.parametrize("network", ["convnet2_w8", "convnet2_w8_batchnorm"])
@pytest.mark.parametrize("dsa", ["none", "color_crop_cutout_flip_scale_rotate"])
@pytest.mark.parametrize(("channels", "classes"), [(1, None), (3, None), (3, (0, 2))])
def test_a_step_is_that_of_the_formula(
    network: str, dsa: str, channels: int, classes: tuple[int, ...] | None
) -> None:
    data, info = make(channels)
    (stage,) = method(network=network, dsa=dsa, classes_per_unit=3).plan(
        replace(problem(info), classes=classes)
    )
    assert isinstance(stage, MatchDistributions)
    (unit,) = stage.units()
    ctx = StageContext(stage, data)
    state = stage.init(unit, ctx)
    for t in range(4):
        loss, gradient = formula(stage, state["images"], t, data)
        after = stage.step(unit, state, t, ctx)
        found = after["momentum"] - 0.5 * state["momentum"]
        assert ctx.rows[-1]["loss"] == pytest.approx(
            loss / len(classes or range(info.classes)), rel=1e-4
        )
        assert float((found - gradient).norm() / gradient.norm()) < 1e-4
        assert torch.allclose(after["images"], state["images"] - 0.5 * after["momentum"])
        state = after


def test_a_constant_gradient_moves_images_by_1_then_2_5_then_4_25(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, info = make()
    (stage,) = method(dsa="none", lr_img=1.0, classes_per_unit=3).plan(problem(info))
    # With pixels as features and their sum as the loss the gradient is 1 everywhere.
    monkeypatch.setattr(
        embedding_matching, "fast_embed", lambda network, numerics, *args: lambda x: x.flatten(1)
    )
    monkeypatch.setattr(dm, "distribution_matching_loss", lambda real, features: features.sum())
    ctx = StageContext(stage, data)
    (unit,) = stage.units()
    state: Tensors = stage.init(unit, ctx)
    start, moved = state["images"], []
    for t in range(3):
        state = stage.step(unit, state, t, ctx)
        moved.append(start - state["images"])
    for displacement, expected in zip(moved, (1.0, 2.5, 4.25), strict=True):
        assert torch.allclose(displacement, torch.full_like(displacement, expected), atol=1e-5)


def test_batch_norm_puts_all_classes_into_one_unit() -> None:
    _, info = make(classes=7)
    plain, normed = (
        method(network=name, classes_per_unit=2).plan(problem(info))[0]
        for name in ("convnet2_w8", "convnet2_w8_batchnorm")
    )
    assert plain.units() == (
        "classes-0000-0001",
        "classes-0002-0003",
        "classes-0004-0005",
        "classes-0006-0006",
    )
    assert normed.units() == ("classes-0000-0006",)
    joint = [
        method(network=name).joint(problem(info))
        for name in ("convnet2_w8", "convnet2_w8_batchnorm")
    ]
    assert joint == [False, True], "in continual learning, steps are distilled apart"


@pytest.mark.parametrize("init", ["real", "noise"])
def test_the_size_of_a_block_changes_no_byte(init: str, tmp_path: Path) -> None:
    data, info = make(classes=5, size=(12, 12))
    sets = [
        run(method(init=init, classes_per_unit=size), problem(info), data, tmp_path / str(size))
        for size in (1, 2, 5)
    ]
    assert torch.equal(sets[0], sets[1])
    assert torch.equal(sets[0], sets[2])


@pytest.mark.parametrize("ipc", [1, 2, 7])
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (8, 8)), (3, (8, 8)), (3, (8, 12)), (1, (13, 9))]
)
def test_any_number_of_images_of_any_shape(
    ipc: int, channels: int, size: tuple[int, int], tmp_path: Path
) -> None:
    data, info = make(channels, size)
    images = run(method(), problem(info, ipc), data, tmp_path)
    assert images.shape == (3 * ipc, channels, *size)
    assert torch.isfinite(images).all()
    assert len({bytes(image.numpy()) for image in images}) == 3 * ipc, "no two images are alike"


def test_real_init_takes_distinct_images_of_the_class_and_noise_is_normal() -> None:
    data, info = make(per_class=40)
    given = problem(info, ipc=40)
    (real,), (noise,) = (
        method(classes_per_unit=3).plan(given),
        method(init="noise", classes_per_unit=3).plan(given),
    )
    images = real.init(real.units()[0], StageContext(real, data))["images"]
    pixels = (images * 0.2 + 0.4).mul(255).round().to(torch.uint8)
    for c in range(3):
        own = data["train"].images[data["train"].labels == c]
        assert {bytes(x.numpy()) for x in pixels[c * 40 : (c + 1) * 40]} == {
            bytes(x.numpy()) for x in own
        }
    drawn = noise.init(noise.units()[0], StageContext(noise, data))["images"]
    assert abs(float(drawn.mean())) < 0.05
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.05)


def test_more_images_than_a_class_has_need_noise(tmp_path: Path) -> None:
    data, info = make(per_class=4)
    with pytest.raises(
        ConfigError,
        match=r"ipc=5: class 0 has only 4 training images.*at most ipc=4.*, or method\.init=noise with",
    ):
        method().plan(problem(info, ipc=5))
    with pytest.raises(RunFailed, match="class 0 has 4 training images; init=real needs ipc=5"):
        run(method(), problem(replace(info, train_counts=()), ipc=5), data, tmp_path / "blind")
    assert run(method(init="noise"), problem(info, ipc=5), data, tmp_path / "noise").shape[0] == 15


def test_distilling_brings_the_features_nearer(tmp_path: Path) -> None:
    data, info = make(size=(12, 12), per_class=60)
    chosen = method(
        iterations=120, batch_real=60, lr_img=1.0, dsa="none", init="noise", classes_per_unit=3
    )
    store, targets = Store(str(tmp_path)), chosen.targets(problem(info))
    LocalRunner(lambda: data, device=torch.device("cpu")).run(
        list(targets.values()), store, lambda event: None
    )
    losses = [values["loss"] for _, values in store.marker(next(iter(targets.values())))["log"]]
    assert len(losses) == 120
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_what_cannot_be_is_refused_when_planned() -> None:
    _, info = make()
    with pytest.raises(ConfigError, match=r"unknown DSA operation 'colour'.*did you mean 'color'"):
        method(dsa="colour_crop").plan(problem(info))
    with pytest.raises(ConfigError, match=r"convnet9|convnet2_w8x"):
        method(network="convnet2_w8x").plan(problem(info))


def two_ways(
    chosen: Dm, data: dict[str, ArrayData], info: DatasetInfo
) -> tuple[list[Tensors], int]:
    """Return the states after three updates in float64, class by class and as a recorded step; and
    the operators of the latter.
    """
    (stage,) = chosen.plan(problem(info))
    found = []
    for whole in (False, True):
        ctx = StageContext(stage, data)
        state = {name: value.double() for name, value in stage.init(stage.units()[0], ctx).items()}
        shape = (stage.network, info.shape, info.classes)
        ctx.cached(
            ("matched network", *shape),
            lambda shape=shape: create_network(*shape, generator(7, "network")).double().train(),
        )
        with recorded() if whole else nullcontext([]) as calls:
            for t in range(3):
                state = stage.step(stage.units()[0], state, t, ctx)
        found.append(state)
    assert len(calls) == 3
    return found, len(calls[0][1])


@pytest.mark.parametrize(
    "dsa", ["color", "crop", "cutout", "flip", "scale", "rotate", "none", None]
)
def test_an_update_in_one_piece_is_that_of_class_after_class(dsa: str | None) -> None:
    data, info = make(channels=3)
    (apart, whole), _ = two_ways(method(dsa=dsa, classes_per_unit=3, iterations=9), data, info)
    for name in apart:
        torch.testing.assert_close(whole[name], apart[name], rtol=1e-12, atol=1e-12)
    assert not torch.equal(whole["images"], whole["images"].mean().expand_as(whole["images"]))


def test_the_operators_of_an_update_do_not_grow_with_the_classes() -> None:
    counts = {}
    for classes in (3, 10):
        data, info = make(classes=classes)
        counts[classes] = two_ways(
            method(network="convnet3_w8", classes_per_unit=classes), *((data, info))
        )[1]
    assert counts[10] == counts[3]
    assert counts[10] <= 150


@pytest.mark.slow
def test_an_update_in_one_piece_compiles_as_one_graph() -> None:
    data, info = make()
    (stage,) = method(classes_per_unit=3).plan(problem(info))
    ctx, unit = StageContext(stage, data), stage.units()[0]
    state, given = stage.init(unit, ctx), list[tuple[Tensor, ...]]()

    def call(self: captured.Captured, *tensors: Tensor) -> tuple[Tensor, ...]:
        given.append(tensors)
        return tuple(self.function(*tensors))

    with recorded(), mock.patch.object(captured.Captured, "__call__", call):
        stage.step(unit, state, 0, ctx)
        update = stage.update(unit, stage.facts(unit, ctx.device), ctx)
        compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
        with traced_gradients():
            for ours, eager in zip(compiled(*given[0]), update(*given[0]), strict=True):
                torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-6)
