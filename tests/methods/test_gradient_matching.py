"""DC and DSA: golden gradients, the published loop written out, lanes, kills, workers, batch norm, and their limits."""

from __future__ import annotations

import itertools
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from groups import run_group
from recording import recorded
from stage_context import StageContext
from torch import Tensor, nn

from raydd.augment.dsa import draw
from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import digest
from raydd.core.units import Numerics
from raydd.data.arrays import ArrayData
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.data.memory import ClassMemory, normalise
from raydd.methods import Method, Problem
from raydd.methods.dc import Dc
from raydd.methods.dsa import Dsa
from raydd.methods.matching import gradient_matching, gradient_method
from raydd.methods.matching.gradient_matching import MatchGradients
from raydd.methods.matching.gradient_method import published_loops
from raydd.methods.matching.parameter_gradients import (
    class_gradient,
    freeze_batchnorm_,
    match,
    matched_parameters,
    prepare_,
)
from raydd.networks import Network, create_network, reinitialise_
from raydd.runtime.runner import LocalRunner

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_dc_dsa_dm.json").read_text())[
    "gradient_matching"
]
Made = tuple[dict[str, ArrayData], DatasetInfo]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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
    mean, std = (0.4,) * channels, (0.2,) * channels
    info = DatasetInfo(
        name="made",
        classes=classes,
        channels=channels,
        height=size[0],
        width=size[1],
        mean=mean,
        std=std,
    )
    return data, with_digests(info, data)


def problem(info: DatasetInfo, ipc: int = 2, seed: int = 7) -> Problem:
    return Problem(dataset=info, ipc=ipc, seed=seed, numerics=Numerics())


SMALL: dict[str, Any] = {
    "network": "convnet2_w8",
    "iterations": 2,
    "outer_loop": 3,
    "inner_loop": 2,
    "batch_real": 6,
}


def stage_of(method: Method, given: Problem) -> MatchGradients:
    (stage,) = method.plan(given)
    assert isinstance(stage, MatchGradients)
    return stage


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def filled(name: str) -> Network:
    """Return a network in fp64 with the weights of docs/methods/parity.md, "Weights and images of DC, DSA and DM"."""
    net = create_network(name, (3, 32, 32), 10, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for k, (path, parameter) in enumerate(net.named_parameters()):
            z = normal(1000 + k, *parameter.shape)
            bias = path.endswith("bias")
            parameter.copy_(
                z * (2 / parameter[0].numel()) ** 0.5
                if parameter.dim() in (2, 4)
                else 0.1 * z
                if bias
                else 1 + 0.1 * z
            )
    return net


AT_ONCE = ("ConvNetW32", "ConvNetLN", "ConvNetBN", "LeNet")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at_once"), [*((name, False) for name in GOLDEN), *((name, True) for name in AT_ONCE)]
)
def test_golden_distances_and_derivatives(name: str, at_once: bool) -> None:
    golden, net = GOLDEN[name], filled(name)
    prepare_(net, "mse")
    if "bn1_running_mean" in golden:
        freeze_batchnorm_(net, torch.cat([normal(300 + c, 4, 3, 32, 32) for c in range(2)]))
    rows = [class_gradient(net, net, normal(100 + c, 6, 3, 32, 32), c, "mse") for c in range(2)]
    every = {
        path: torch.stack(of)
        for (path, _), of in zip(net.named_parameters(), zip(*rows, strict=True), strict=True)
    }
    synthetic = torch.stack([normal(200 + c, 2, 3, 32, 32) for c in range(2)])
    for distance in ("ours", "mse", "cos"):
        prepare_(net, distance)
        real = [every[path] for path in matched_parameters(net, distance)]
        values, found = match(net, synthetic, range(2), real, distance, at_once=at_once)
        assert values.tolist() == pytest.approx(golden[distance]["per_class"], rel=1e-9)
        wanted = golden[distance]["grad"]
        assert float(found.square().sum()) == pytest.approx(wanted["sq"], rel=1e-8)
        assert float(found.abs().sum()) == pytest.approx(wanted["abssum"], rel=1e-8)
        assert found.flatten()[:4].tolist() == pytest.approx(wanted["first"], abs=1e-11)
    assert not any(p.grad is not None for p in net.parameters()), "weights gather nothing"


@pytest.mark.parametrize("at_once", [False, True])
def test_golden_distances_and_derivatives_in_single_precision(at_once: bool) -> None:
    golden, net = GOLDEN["ConvNetW32"]["ours"], filled("ConvNetW32").float()
    prepare_(net, "ours")
    rows = [
        class_gradient(net, net, normal(100 + c, 6, 3, 32, 32).float(), c, "ours") for c in range(2)
    ]
    real = [torch.stack(of) for of in zip(*rows, strict=True)]
    synthetic = torch.stack([normal(200 + c, 2, 3, 32, 32) for c in range(2)]).float()
    values, found = match(net, synthetic, range(2), real, "ours", at_once=at_once)
    assert values.tolist() == pytest.approx(golden["per_class"], rel=1e-4)
    assert float(found.square().sum()) == pytest.approx(golden["grad"]["sq"], rel=1e-4)


def test_fused_layer_norms_have_the_right_second_derivative_at_once() -> None:
    """Ordinary backward through ``vmap(grad)`` of torch's own layer norm is wrong."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.LayerNorm((4, 6, 6)), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ).double()
    prepare_(net, "ours")
    real = [torch.randn(3, *p.shape, dtype=torch.float64) for p in net.parameters() if p.dim() > 1]
    images = torch.randn(3, 2, 1, 8, 8, dtype=torch.float64)
    (a, x), (b, y) = (
        match(net, images, range(3), real, "ours", at_once=at_once) for at_once in (True, False)
    )
    assert torch.allclose(a, b, rtol=1e-12)
    assert float((x - y).norm() / y.norm()) < 1e-12


@pytest.mark.parametrize("at_once", [False, True])
def test_attention_has_its_second_derivative(at_once: bool) -> None:
    net = create_network("timm/test_vit3", (3, 32, 32), 2, generator(0, "net")).double()
    prepare_(net, "mse")
    rows = [class_gradient(net, net, normal(100 + c, 4, 3, 32, 32), c, "mse") for c in range(2)]
    real = [torch.stack(of) for of in zip(*rows, strict=True)]
    images, step = (
        torch.stack([normal(200 + c, 2, 3, 32, 32) for c in range(2)]),
        1e-5 * normal(1, 2, 2, 3, 32, 32),
    )
    _, found = match(net, images, range(2), real, "mse", at_once=at_once)
    after, before = (
        match(net, images + sign * step, range(2), real, "mse", at_once=at_once)[0].sum()
        for sign in (1, -1)
    )
    assert float((found * step).sum()) == pytest.approx(float(after - before) / 2, rel=1e-5)


def test_frozen_batch_norms_have_moved_a_tenth_of_the_way() -> None:
    net = create_network("convnet2_w8_batchnorm", (1, 8, 8), 3, generator(0, "net")).double()
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    images = normal(1, 12, 1, 8, 8)
    seen: list[Tensor] = []
    hook = norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    freeze_batchnorm_(net, images)
    hook.remove()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean, 0.1 * seen[0].mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(
        norm.running_var, 0.9 + 0.1 * seen[0].transpose(0, 1).flatten(1).var(1), rtol=1e-6
    )
    assert net.training
    assert not norm.training


def sides(
    stage: MatchGradients, images: Tensor, t: int, c: int, memory: ClassMemory
) -> tuple[Tensor, Tensor]:
    """Return the real and the synthetic images of a class as they go into the network."""
    info = stage.dataset
    rows = memory.draw(c, stage.batch_real, generator(stage.seed, "real", t, c))
    real = normalise(memory.gather(rows)[0], info.mean, info.std, torch.float64)
    transform = draw(stage.dsa, generator(stage.seed, "dsa", t, c), size=info.shape[1:])
    place = stage.ipc * list(stage.classes or range(info.classes)).index(c)
    return transform(real), transform(images[place : place + stage.ipc])


def published_run(
    stage: MatchGradients, start: Tensor, data: dict[str, ArrayData]
) -> list[tuple[float, Tensor]]:
    """Return loss and images after every update of the loop as the papers write it: one joint
    backward, torch's optimisers.
    """
    info, seed, classes = stage.dataset, stage.seed, stage.classes or range(stage.dataset.classes)
    memory, images, found = ClassMemory.load(data["train"]), start.clone().requires_grad_(), []
    image_optimizer = torch.optim.SGD([images], lr=stage.lr_img, momentum=stage.momentum)
    labels = torch.tensor(classes).repeat_interleave(stage.ipc)
    for t in range(stage.iterations * stage.outer_loop):
        if t % stage.outer_loop == 0:
            net = create_network(
                stage.network, info.shape, info.classes, generator(seed, "network")
            )
            reinitialise_(net, generator(seed, "network", t // stage.outer_loop))
            net = net.double().train()
            optimizer = torch.optim.SGD(
                net.parameters(), lr=stage.lr_net, momentum=stage.inner_momentum
            )
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        if norms:
            rows = memory.draw(
                list(classes), 16, [generator(seed, "freeze", t, c) for c in classes]
            )
            net.train()(
                normalise(memory.gather(rows).flatten(0, 1), info.mean, info.std, torch.float64)
            )
            for norm in norms:
                norm.eval()
        loss = torch.zeros((), dtype=torch.float64)
        for c in classes:
            real, synthetic = sides(stage, images, t, c, memory)
            mine, theirs = (
                torch.autograd.grad(
                    F.cross_entropy(net(x), torch.full((len(x),), c)),
                    list(net.parameters()),
                    create_graph=True,
                )
                for x in (synthetic, real)
            )
            for a, b in zip(mine, theirs, strict=True):
                if a.dim() > 1:
                    u, v = a.flatten(1), b.detach().flatten(1)
                    loss = (
                        loss + (1 - (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1) + 1e-6)).sum()
                    )
        image_optimizer.zero_grad()
        loss.backward()
        image_optimizer.step()
        found.append((float(loss.detach()) / len(classes), images.detach().clone()))
        if (t + 1) % stage.outer_loop == 0:
            continue
        net.train()
        for epoch in range(stage.inner_loop):
            order = torch.randperm(
                len(labels), generator=generator(seed, "inner/batches", t, epoch)
            )
            whole = len(labels) <= stage.batch_train
            draws = generator(seed, "inner/augment", t, epoch)
            for ids in [torch.arange(len(labels))] if whole else order.split(stage.batch_train):
                transform = draw(
                    stage.dsa, draws, size=info.shape[1:], siamese=False, count=len(ids)
                )
                optimizer.zero_grad()
                F.cross_entropy(net(transform(images.detach()[ids])), labels[ids]).backward()
                optimizer.step()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("batch_train", [256, 4])
@pytest.mark.parametrize("network", ["convnet2_w8", "convnet2_w8_batchnorm"])
@pytest.mark.parametrize(
    "method", [Dc(**SMALL), Dsa(**SMALL, inner_momentum=0.5)], ids=["dc", "dsa"]
)
@pytest.mark.parametrize("whole", [False, True], ids=["in parts", "recorded"])
def test_the_loop_is_the_published_one_in_float64(
    method: Method, network: str, batch_train: int, whole: bool
) -> None:
    with recorded() if whole else nullcontext():
        # The places that the networks' own DSA reads are float32 in a recorded step.
        check_the_loop(
            method, network, batch_train, 1e-6 if whole and isinstance(method, Dsa) else 1e-9
        )


def check_the_loop(method: Method, network: str, batch_train: int, near: float) -> None:
    """Compare six updates with the published loop."""
    data, info = make(3 if batch_train == 4 else 1)
    chosen = replace(method, network=network, batch_train=batch_train, classes_per_unit=2)  # type: ignore[call-arg]
    stage = stage_of(chosen, problem(info))
    ctx = StageContext(stage, data)
    assert (stage.units(), stage.lanes, stage.steps("all")) == (("all",), 2, 6)
    state = {name: value.double() for name, value in stage.init("all", ctx).items()}
    for t, (loss, images) in enumerate(published_run(stage, state["images"], data)):
        state = stage.step("all", state, t, ctx)
        assert ctx.rows[-1]["loss"] == pytest.approx(loss, rel=near)
        assert float((state["images"] - images).norm() / images.norm()) < near, t
        assert any(name.startswith("network.") for name in state) == (t % 3 < 2)


@pytest.mark.parametrize("distance", ["ours", "mse"])
def test_the_operators_of_an_update_are_few(distance: str) -> None:
    data, info = make(classes=10)
    chosen = Dsa(
        **SMALL | {"outer_loop": 1, "network": "convnet3_w8", "distance": distance},
        classes_per_unit=10,
    )
    stage = stage_of(chosen, problem(info, ipc=1))
    ctx, unit = StageContext(stage, data), stage.units()[0]
    state = stage.init(unit, ctx)
    with recorded() as calls:
        for t in range(2):
            state = stage.step(unit, state, t, ctx)
    assert [name for name, _ in calls] == ["MatchGradients._matched.<locals>.matched"] * 2
    assert len(calls[0][1]) <= (500 if distance == "ours" else 1000)


@pytest.mark.parametrize("network", ["convnet2_w8", "convnet2_w8_batchnorm"])
@pytest.mark.parametrize("method", [Dc(**SMALL), Dsa(**SMALL)], ids=["dc", "dsa"])
def test_chosen_classes_are_distilled_as_if_there_were_no_others(
    method: Method, network: str, tmp_path: Path
) -> None:
    data, info = make(classes=5)
    chosen = replace(method, network=network, classes_per_unit=2)  # type: ignore[call-arg]
    given = replace(problem(info), classes=(0, 3, 4))
    stage = stage_of(chosen, given)
    assert (stage.units(), stage.lanes, chosen.joint(given)) == (("all",), 2, True)
    ctx = StageContext(stage, data)
    state = {name: value.double() for name, value in stage.init("all", ctx).items()}
    for t, (loss, images) in enumerate(published_run(stage, state["images"], data)):
        state = stage.step("all", state, t, ctx)
        assert ctx.rows[-1]["loss"] == pytest.approx(loss, rel=1e-9)
        assert float((state["images"] - images).norm() / images.norm()) < 1e-9, t
    seen = {
        block
        for name, _, block in (
            key for key in ctx._cache if isinstance(key, tuple) and key[0] == "images of classes"
        )
    }
    assert {c for block in seen for c in block} == {0, 3, 4}, "no image of another class is read"
    distilled = chosen.assemble(
        given, {"all": stage.finish("all", {"images": state["images"].float()}, ctx)}
    )
    assert distilled.labels.tolist() == [0, 0, 3, 3, 4, 4], "labels stay those of all classes"


def test_where_classes_never_talk_chosen_ones_are_those_of_the_whole_set(tmp_path: Path) -> None:
    data, info = make(classes=5)
    method, given = (
        Dsa(**SMALL | {"outer_loop": None, "inner_loop": None, "classes_per_unit": 2}),
        problem(info, 1),
    )
    assert not method.joint(given)
    assert replace(method, outer_loop=3).joint(given)
    assert replace(method, network="convnet2_w8_batchnorm").joint(given), (
        "batch norms see images of all classes"
    )
    sets = []
    for problem_ in (given, replace(given, classes=(0, 3, 4))):
        refs, store = method.targets(problem_), Store(str(tmp_path))
        LocalRunner(lambda: data, device=torch.device("cpu")).run(
            list(refs.values()), store, lambda event: None
        )
        sets.append(
            method.assemble(problem_, {name: store.load(ref) for name, ref in refs.items()})
        )
    assert torch.equal(sets[1].images, sets[0].images[[0, 3, 4]])
    assert sets[1].labels.tolist() == [0, 3, 4]


@pytest.mark.parametrize("method", [Dc(**SMALL), Dsa(**SMALL)], ids=["dc", "dsa"])
def test_lanes_equal_one_joint_backward_in_float64(method: Method) -> None:
    data, info = make(classes=5)
    states = []
    for size in (1, 2, 5):
        stage = stage_of(replace(method, classes_per_unit=size), problem(info))  # type: ignore[call-arg]
        assert stage.lanes == {1: 5, 2: 3, 5: 0}[size]
        ctx = StageContext(stage, data)
        start = {name: value.double() for name, value in stage.init("all", ctx).items()}
        states.append(stage.step("all", start, 0, ctx)["momentum"])
    ((_, images),) = published_run(
        replace(stage, iterations=1, outer_loop=1), start["images"], data
    )
    joint = (start["images"] - images) / stage.lr_img
    for found in states:
        assert float((found - joint).norm() / joint.norm()) < 1e-12


def contents(method: Method, given: Problem, store: Store) -> str:
    return digest({name: store.load(ref)["images"] for name, ref in method.targets(given).items()})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "ipc", "lanes"),
    [
        (Dc(**SMALL | {"outer_loop": None, "inner_loop": None, "iterations": 3}), 1, 0),
        (
            Dsa(
                **SMALL
                | {
                    "outer_loop": None,
                    "inner_loop": 2,
                    "network": "convnet2_w8_batchnorm",
                    "iterations": 3,
                }
            ),
            1,
            0,
        ),
        (Dc(**SMALL | {"outer_loop": None, "inner_loop": 3, "iterations": 1}), 10, 3),
        (Dsa(**SMALL | {"network": "convnet2_w8_batchnorm"}), 10, 3),
    ],
    ids=["dc-1", "dsa-1-batchnorm", "dc-10", "dsa-10-batchnorm"],
)
def test_any_number_of_workers_gives_the_same_bytes(
    method: Method, ipc: int, lanes: int, tmp_path: Path
) -> None:
    data, info = make(classes=5)
    method, given, found = replace(method, classes_per_unit=2), problem(info, ipc), set()  # type: ignore[call-arg]
    stage = stage_of(method, given)
    assert stage.lanes == lanes
    assert len(stage.units()) == (1 if lanes else 3)
    for world in (1, 2, 3):
        store = Store(str(tmp_path / str(world)))
        events = run_group(
            list(method.targets(given).values()), store, world, lambda: data, checkpoint_every=0.0
        )
        assert not any(event.cached for event in events)
        found.add(contents(method, given, store))
    assert len(found) == 1


class Killed(BaseException):
    """Stands for SIGKILL."""


KILLED = [Dc(**SMALL, inner_momentum=0.5), Dsa(**SMALL | {"network": "convnet2_w8_batchnorm"})]


@pytest.mark.slow
@pytest.mark.parametrize("method", KILLED, ids=["dc", "dsa"])
@pytest.mark.parametrize("at", [1, 4, 7])
def test_killed_in_the_inner_loop_it_resumes_with_the_same_bytes(
    method: Method, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, info = make()
    given, real = problem(info), gradient_matching.train_step_
    refs = list(method.targets(given).values())
    calls = itertools.count(1)
    limit = 10**9

    def counted(*args: Any) -> None:
        if next(calls) == limit:
            raise Killed
        real(*args)

    monkeypatch.setattr(gradient_matching, "train_step_", counted)

    def run(folder: str) -> tuple[str, int]:
        nonlocal calls
        calls, store = itertools.count(1), Store(str(tmp_path / folder))
        LocalRunner(lambda: data, device=torch.device("cpu"), checkpoint_every=0.0).run(
            refs, store, lambda event: None
        )
        return contents(method, given, store), next(calls) - 1

    undisturbed, whole = run("whole")
    assert whole == 8, "two iterations, two trainings of two epochs in each"
    limit = at
    with pytest.raises(Killed):
        run("killed")
    limit = 10**9
    again, left = run("killed")
    assert again == undisturbed
    assert left == whole - (at - 1) // 2 * 2, "what was finished is not done again"


def test_the_network_is_in_the_state_only_while_it_is_needed() -> None:
    data, info = make()
    stage = stage_of(
        Dc(**SMALL | {"network": "convnet2_w8_batchnorm"}, inner_momentum=0.5), problem(info)
    )
    ctx, states = StageContext(stage, data), []
    state = stage.init("all", ctx)
    for t in range(6):
        state = stage.step("all", state, t, ctx)
        states.append({name for name in state if name.startswith("network.")})
    assert [bool(names) for names in states] == [True, True, False, True, True, False]
    assert {name.split(".")[1] for name in states[0]} == {"params", "momentum", "buffers"}
    assert sorted(stage.finish("all", state, ctx)) == ["images"]


def test_buffers_that_a_network_does_not_save_are_not_in_the_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, info = make()

    def with_table(*args: Any) -> Network:
        net = create_network(*args)
        net.register_buffer("table", torch.arange(3), persistent=False)
        return net

    monkeypatch.setattr(gradient_matching, "create_network", with_table)
    stage = stage_of(Dc(**SMALL), problem(info))
    ctx = StageContext(stage, data)
    state = stage.step("all", stage.init("all", ctx), 0, ctx)
    assert "network.buffers.table" not in state
    assert torch.isfinite(stage.step("all", state, 1, ctx)["images"]).all()


def test_published_loops_and_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    assert {ipc: published_loops(ipc) for ipc in loops} == loops
    assert [published_loops(ipc) for ipc in (2, 5, 6, 15, 100)] == [
        loops[1],
        loops[1],
        loops[10],
        loops[10],
        loops[50],
    ]
    data, info = make(classes=10, per_class=50)
    calls = 0

    def step(*_: Any) -> None:
        nonlocal calls
        calls += 1

    monkeypatch.setattr(gradient_matching, "train_step_", step)
    monkeypatch.setattr(
        MatchGradients,
        "_match",
        lambda self, block, x, *_: {"gradient": x * 0, "distance": x[:1, 0, 0, 0]},
    )
    for ipc, wanted in ((1, 0), (10, 450), (30, 1160), (50, 980)):
        stage = stage_of(Dc(network="convnet1_w4", iterations=1), problem(info, ipc))
        assert stage.steps(stage.units()[0]) == loops[ipc][0]
        ctx, calls = StageContext(stage, data), 0
        for unit in stage.units():
            state = stage.init(unit, ctx)
            for t in range(stage.steps(unit)):
                state = stage.step(unit, state, t, ctx)
        assert calls == wanted


def test_a_constant_gradient_moves_images_by_1_then_2_5_then_4_25(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, info = make()

    def constant(network: Any, images: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros(3), torch.ones_like(images)

    monkeypatch.setattr(gradient_matching, "match", constant)
    stage = stage_of(Dc(**SMALL | {"lr_img": 1.0}), problem(info))
    ctx = StageContext(stage, data)
    state = stage.init("all", ctx)
    start = state["images"]
    for t, moved in enumerate((1.0, 2.5, 4.25)):
        state = stage.step("all", state, t, ctx)
        assert torch.allclose(start - state["images"], torch.full_like(start, moved), atol=1e-5)


def test_real_gradients_in_bf16_stay_near_those_in_fp32() -> None:
    data, info = make(size=(12, 12))
    found = []
    for numerics in (Numerics(), Numerics(precision="bf16")):
        stage = stage_of(Dsa(**SMALL), replace(problem(info), numerics=numerics))
        ctx = StageContext(stage, data)
        found.append(stage.step("all", stage.init("all", ctx), 0, ctx)["momentum"].flatten())
    assert not torch.equal(found[0], found[1]), "the setting has an effect"
    assert float(F.cosine_similarity(found[0], found[1], 0)) > 0.99


def test_winograd_which_has_no_effect_is_in_no_key() -> None:
    _, info = make()
    plain, other = (
        Dc(**SMALL).targets(replace(problem(info), numerics=Numerics(convolution=c)))
        for c in ("direct", "winograd")
    )
    assert {ref.key for ref in plain.values()} == {ref.key for ref in other.values()}


def test_a_small_class_bounds_the_batches_of_all() -> None:
    data, info = make()
    labels = data["train"].labels
    keep = (labels != 1) | (torch.arange(len(labels)) < 12)
    few = {"train": ArrayData(data["train"].images[keep], labels[keep]), "test": data["test"]}
    assert int((few["train"].labels == 1).sum()) == 4
    images = []
    for batch in (4, 256):
        stage = stage_of(Dc(**SMALL | {"batch_real": batch}), problem(with_digests(info, few)))
        ctx = StageContext(stage, few)
        images.append(stage.step("all", stage.init("all", ctx), 0, ctx)["images"])
    assert torch.equal(images[0], images[1])


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data, info = make(per_class=4)
    with pytest.raises(
        ConfigError,
        match=r"ipc=5: class 0 has only 4 training images.*, or method\.init=noise with",
    ):
        Dsa(**SMALL).plan(problem(info, 5))
    with pytest.raises(ConfigError, match="ipc=0: at least 1"):
        Dc(**SMALL).plan(problem(info, 0))
    with pytest.raises(ConfigError, match=r"unknown DSA operation 'colour'.*did you mean 'color'"):
        Dsa(dsa="colour_crop").plan(problem(info))
    blind = stage_of(Dsa(**SMALL), problem(replace(info, train_counts=()), 5))
    with pytest.raises(DataError, match="class 0 has 4 training images; init=real needs ipc=5"):
        blind.init("all", StageContext(blind, data))

    class Vectors(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), *layers, nn.BatchNorm1d(64))

    monkeypatch.setattr(gradient_method, "create_network", lambda *_: Vectors())
    with pytest.raises(
        ConfigError, match=r"convnet2_w8 has no parameter of 2 or more dimensions.*mse or cos"
    ):
        Dc(**SMALL).plan(problem(info))
    assert Dc(**SMALL, distance="mse").plan(problem(info))
    monkeypatch.setattr(
        gradient_method, "create_network", lambda *_: Vectors(nn.Linear(64, 64), nn.Dropout(0.5))
    )
    with pytest.raises(ConfigError, match="dropout"):
        Dc(**SMALL).plan(problem(info))


@pytest.mark.parametrize("distance", ["ours", "mse", "cos"])
@pytest.mark.parametrize(("channels", "size", "ipc"), [(3, (8, 12), 1), (1, (13, 9), 3)])
def test_any_images_and_distance(
    channels: int, size: tuple[int, int], ipc: int, distance: str, tmp_path: Path
) -> None:
    data, info = make(channels, size)
    method, given = Dsa(**SMALL, distance=distance), problem(info, ipc)
    store = Store(str(tmp_path))
    LocalRunner(lambda: data, device=torch.device("cpu")).run(
        list(method.targets(given).values()), store, lambda event: None
    )
    made = method.assemble(
        given, {name: store.load(ref) for name, ref in method.targets(given).items()}
    )
    assert made.images.shape == (3 * ipc, channels, *size)
    assert made.labels.tolist() == [c for c in range(3) for _ in range(ipc)]
    assert torch.isfinite(made.images).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_students_of_distilled_digits_know_them(method: str, tmp_path: Path) -> None:
    """Without real images to start from; noise teaches nothing, 30 updates of one image per class do."""
    data = open_data(DatasetConfig(name="digits"))
    info = with_digests(entry("digits").info, data)
    common: dict[str, Any] = {
        "network": "convnet2_w8",
        "iterations": 30,
        "batch_real": 32,
        "lr_img": 0.3,
        "classes_per_unit": 10,
    }
    chosen = Dc(**common) if method == "dc" else Dsa(**common, init="noise")
    given, store = problem(info, 1), Store(str(tmp_path))
    (ref,) = chosen.targets(given).values()
    LocalRunner(lambda: data, device=torch.device("cpu")).run([ref], store, lambda event: None)
    losses = [values["loss"] for _, values in store.marker(ref)["log"]]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    test = normalise(data["test"].take(torch.arange(len(data["test"]))), info.mean, info.std)
    accuracy = {}
    for name, images in (
        ("noise", chosen.plan(given)[0].init(ref.unit, StageContext(ref.stage, data))),
        ("distilled", store.load(ref)),
    ):  # type: ignore[arg-type]
        net = create_network("convnet2_w8", info.shape, 10, generator(1, "student")).train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(net(images["images"]), torch.arange(10)).backward()
            optimizer.step()
        accuracy[name] = float((net(test).argmax(1) == data["test"].labels).float().mean())
    assert accuracy["distilled"] > max(0.5, 2 * accuracy["noise"]), accuracy
