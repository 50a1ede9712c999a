"""Methods and students on a GPU: the CPU's results, the same bytes twice, recorded or not, interrupted or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from stage_context import StageContext
from test_gradient_matching import Made, make
from torch import Tensor

from raydd.core import captured
from raydd.core.numerics import apply_numerics
from raydd.core.rng import generator
from raydd.core.tensors import Tensors, digest
from raydd.core.units import Numerics
from raydd.data.catalog import DatasetInfo
from raydd.methods import Method, Problem
from raydd.methods.bacon import Bacon
from raydd.methods.dc import Dc
from raydd.methods.dm import Dm
from raydd.methods.dsa import Dsa
from raydd.methods.idm import Idm
from raydd.networks import create_network
from raydd.networks.flat import flatten
from raydd.training.network_queue import QueueConfig
from raydd.training.recipe import Recipe
from raydd.training.students import ResidentSet, StudentTraining

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
LOOPS: dict[str, Any] = {"outer_loop": 2, "inner_loop": 2, "batch_real": 6, "iterations": 50}
QUEUE: dict[str, Any] = {"iterations": 50, "batch_real": 6, "classes_per_unit": 3}
METHODS = {
    "idm": Idm(network="convnet2_w16", **QUEUE),
    "bacon": Bacon(network="convnet2_w16", **QUEUE),
    "dm": Dm(network="convnet2_w16", iterations=50, batch_real=6, classes_per_unit=3),
    "dm batchnorm": Dm(network="convnet2_w16_batchnorm", iterations=50, batch_real=6),
    "dm resnet": Dm(network="resnet18", iterations=50, batch_real=6, dsa="none"),
    "dc": Dc(network="convnet2_w16", classes_per_unit=3, **LOOPS),
    "dsa": Dsa(network="convnet2_w16", classes_per_unit=3, **LOOPS),
    "dsa mse": Dsa(network="convnet2_w16", distance="mse", **LOOPS),
    "dsa batchnorm": Dsa(network="convnet2_w16_batchnorm", **LOOPS),
}


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@contextmanager
def eager() -> Iterator[None]:
    """Call what would be recorded."""

    def call(self: captured.Captured, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(*(x.to(self.device) for x in tensors)))

    with mock.patch.object(captured.Captured, "__call__", call):
        yield


def row_of_a_queue(info: DatasetInfo, name: str, rows: slice) -> Tensors:
    """Return a row of a queue that nobody trained: new weights, half of the answers right."""
    draws = generator(0, name, rows.start)
    network = create_network("convnet2_w16", info.shape, info.classes, draws)
    known = QueueConfig().model_train_steps * 30  # of batches of all 60 images
    return {
        "weights": flatten(network.parameters())[None],
        "correct": torch.full((1, 200), known, dtype=torch.int32),
    }


def run(method: Method, made: Made, device: torch.device, steps: int = 4, **given: Any) -> Tensors:
    """Return the state after some updates, in float32; ``state`` and ``first`` say where it begins."""
    data, info = made
    numerics = Numerics(precision=given.get("precision", "fp32_strict"))
    *_, stage = method.plan(Problem(dataset=info, ipc=2, seed=7, numerics=numerics))
    apply_numerics(numerics, device)
    ctx: Any = StageContext(stage, data, device=device)
    ctx.load = partial(row_of_a_queue, info)
    unit = stage.units()[0]
    state = given.get("state") or stage.init(unit, ctx)
    state = {name: value.to(device) for name, value in state.items()}
    for t in range(given.get("first", 0), steps):
        state = stage.step(unit, state, t, ctx)
    assert all(bool(torch.isfinite(x).all()) for x in state.values())
    assert ctx.rows or steps == given.get("first", 0)
    return {name: value.cpu() for name, value in state.items()}


@pytest.mark.parametrize("name", METHODS)
def test_an_update_is_near_that_of_a_cpu(name: str) -> None:
    made = make(channels=3, size=(16, 16))
    ours, theirs = (
        run(METHODS[name], made, device, steps=1)["images"] for device in (GPU, torch.device("cpu"))
    )
    start = run(METHODS[name], made, torch.device("cpu"), steps=0)["images"]
    moved = (theirs - start).norm()
    assert moved > 0
    assert (
        ours - theirs
    ).norm() / moved < 2e-2  # of a float32 gradient: kinks, and 1e-6 beside small norms


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_the_same_bytes_twice_recorded_or_not_interrupted_or_not(name: str, precision: str) -> None:
    made = make(channels=1, size=(16, 16))
    once = run(METHODS[name], made, GPU, precision=precision)
    assert digest(run(METHODS[name], made, GPU, precision=precision)) == digest(once)
    with eager():
        assert digest(run(METHODS[name], made, GPU, precision=precision)) == digest(once)
    half = run(METHODS[name], made, GPU, steps=3, precision=precision)
    assert digest(
        run(METHODS[name], made, GPU, precision=precision, state=half, first=3)
    ) == digest(once)


def train(
    repeats: list[int], device: torch.device, epochs: int = 3, **given: Any
) -> tuple[Tensors, Tensor]:
    """Return students' states after some epochs, and their last losses."""
    numerics = Numerics(precision=given.get("precision", "fp32_strict"))
    apply_numerics(numerics, device)
    labels = torch.arange(20) % 3
    images = (
        torch.randn(20, 1, 16, 16, generator=generator(5, "data")) * 0.3
        + labels.view(-1, 1, 1, 1)
        - 1
    )
    training = StudentTraining(
        network=given.get("network", "convnet2_w16"),
        shape=(1, 16, 16),
        classes=3,
        recipe=Recipe(
            epochs=9, batch=16, augmentation="dsa", strategy="color_crop_cutout_flip_scale_rotate"
        ),
        numerics=numerics,
        repeats=repeats,
        rng=partial(generator, 7),
        device=device,
        stacked=given.get("stacked"),
    )
    state = given.get("state") or training.init()
    data = ResidentSet(images.to(device), labels.to(device))
    loss = torch.zeros(len(repeats))
    for epoch in range(given.get("first", 0), epochs):
        state, loss, _ = training.epoch(state, epoch, data)
    return state, loss


@pytest.mark.parametrize("network", ["convnet2_w16", "convnet2_w16_batchnorm"])
def test_students_are_near_those_of_a_cpu_and_do_not_depend_on_their_company(network: str) -> None:
    _, loss = train([0, 1, 2, 3, 4], GPU, network=network)
    _, wanted = train([0, 1, 2, 3, 4], torch.device("cpu"), network=network)
    torch.testing.assert_close(loss.cpu(), wanted, rtol=5e-3, atol=5e-3)
    state, _ = train([0, 1, 2], GPU, network=network)
    alone, _ = train([1], GPU, network=network)
    for name, value in alone.items():
        torch.testing.assert_close(state[name][1], value[0], rtol=1e-3, atol=1e-4)


def test_students_have_the_same_bytes_twice_recorded_or_not_resumed_or_not() -> None:
    once, _ = train([0, 1, 2, 3, 4], GPU, precision="bf16")
    assert digest(train([0, 1, 2, 3, 4], GPU, precision="bf16")[0]) == digest(once)
    with eager():
        assert digest(train([0, 1, 2, 3, 4], GPU, precision="bf16")[0]) == digest(once)
    half, _ = train([0, 1, 2, 3, 4], GPU, epochs=2, precision="bf16")
    assert digest(train([0, 1, 2, 3, 4], GPU, precision="bf16", state=half, first=2)[0]) == digest(
        once
    )
