"""IDM and BACON: golden losses, gradients and updates, the published loop written out, starts, what
is shared, limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import recorded
from stage_context import StageContext
from torch import Tensor, nn
from torch.nn import functional as F
from waves import filled, wave

from raydd.artifacts.decoding import Partition
from raydd.augment.dsa import draw
from raydd.core.errors import ConfigError
from raydd.core.events import Event
from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import Tensors
from raydd.core.units import Numerics, Ref, snapshot
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.data.memory import ClassMemory
from raydd.losses import (
    classes_cross_entropy,
    distribution_matching_loss,
    gaussian_likelihood_loss,
    total_variation_distance,
)
from raydd.methods import Problem
from raydd.methods.bacon import Bacon
from raydd.methods.idm import Idm
from raydd.methods.matching.embedding_matching import Side
from raydd.methods.matching.queue_matching import MatchUnderQueue
from raydd.methods.matching.queue_method import QueueMatching
from raydd.networks import create_network
from raydd.runtime.runner import LocalRunner
from raydd.training.network_queue import QueueConfig
from raydd.training.train_queue import network_unit

METHODS = {"idm": Idm, "bacon": Bacon}
both = pytest.mark.parametrize("name", list(METHODS))
SMALL_QUEUE = QueueConfig(
    seed=2, net_num=4, net_generate_interval=3, model_train_steps=2, trained_bs=32, lr_net=0.05
)


def stage_of(method: QueueMatching, problem: Problem) -> MatchUnderQueue:
    _, stage = method.plan(problem)
    assert isinstance(stage, MatchUnderQueue)
    return stage


def given(info: DatasetInfo, ipc: int, **fields: Any) -> Problem:
    return Problem(dataset=info, ipc=ipc, seed=7, numerics=Numerics(), **fields)


def side_of(stage: MatchUnderQueue, network: Any) -> Side:
    (unit,) = stage.units()
    facts = stage.facts(unit, torch.device("cpu"))
    return Side(network, network.embed, facts, (torch.tensor(0.5 * 37.5),))


# -- golden numbers of the published functions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "classes", "images", "features", "logits"),
    [
        ((3, 32, 32), 10, (2, 3, 32, 32), 6959.55827529, 0.25014333),
        ((1, 28, 28), 10, (2, 1, 28, 28), 6502.09587989, 0.42757129),
        ((3, 64, 64), 200, (1, 3, 64, 64), 14392.97292731, 0.63780800),
    ],
)
def test_golden_features_of_decoded_images(
    shape: tuple[int, int, int],
    classes: int,
    images: tuple[int, ...],
    features: float,
    logits: float,
) -> None:
    network: Any = filled(create_network("convnet3", shape, classes, generator(0, "any")))
    x = wave(images, 0.37, 0.1)
    found = network.embed(Partition(factor=2).take({"images": x})).detach()
    assert float(found.sum()) == pytest.approx(features, rel=1e-8)
    assert float(network.classifier(found).detach().sum()) == pytest.approx(logits, abs=1e-8)


GOLDEN_TERMS = {
    "distance": 279.9141834284,
    "likelihood": 2338.2416688183,
    "variation": 333.6617640187,
    "entropy": 2.3047224601,
}
GOLDEN_CLASS = {
    "idm": (323.1277295559, 8014.0125121957, -179.3951461915, 0.64946636559, -0.83240577441),
    "bacon": (2648.3846261609, 7184.6098328985, -232.7058510451, 0.49239359051, -1.4128326749),
}
GOLDEN_NORMS = {
    "distance": 134.4316,
    "likelihood": 50.1884,
    "variation": 87.8745,
    "entropy": 0.08557,
}


def cifar10_net() -> Any:
    return filled(create_network("convnet3", (3, 32, 32), 10, generator(0, "any")))


def one_class(name: str) -> tuple[MatchUnderQueue, Side]:
    problem = given(entry("cifar10").info, 2, classes=(3,))
    stage = stage_of(METHODS[name](), problem)
    return stage, side_of(stage, cifar10_net())


@both
def test_golden_loss_and_gradient_of_a_class(name: str) -> None:
    stage, side = one_class(name)
    real = stage.moments(side.network.embed(wave((6, 3, 32, 32), 0.29, 0.7, 1.2))[None])
    x = wave((2, 3, 32, 32), 0.37, 0.1).requires_grad_(True)
    features = side.network.embed(stage.images_of(x[None]).flatten(0, 1))[None]
    assert features.shape == (1, 8, 2048)
    loss = stage.objective(features, real, side)
    (gradient,) = torch.autograd.grad(loss, x)
    total, size, signed, first, last = GOLDEN_CLASS[name]
    assert float(loss.detach()) == pytest.approx(total, rel=1e-7)
    assert float(gradient.abs().sum()) == pytest.approx(size, rel=1e-7)
    assert float(gradient.sum()) == pytest.approx(signed, rel=1e-6)
    assert float(gradient[0, 0, 0, 0]) == pytest.approx(first, rel=1e-6)
    assert float(gradient[1, 2, 31, 31]) == pytest.approx(last, rel=1e-6)


@pytest.mark.parametrize("term", list(GOLDEN_TERMS))
def test_golden_terms_and_norms_of_their_gradients(term: str) -> None:
    stage, side = one_class("idm")
    real = side.network.embed(wave((6, 3, 32, 32), 0.29, 0.7, 1.2))[None]
    x = wave((2, 3, 32, 32), 0.37, 0.1).requires_grad_(True)
    features = side.network.embed(stage.images_of(x[None]).flatten(0, 1))[None]
    loss = {
        "distance": lambda: distribution_matching_loss(real.mean(1), features),
        "likelihood": lambda: gaussian_likelihood_loss(real.mean(1), real.std(1), features.mean(1)),
        "variation": lambda: total_variation_distance(real.mean(1), features.mean(1)),
        "entropy": lambda: classes_cross_entropy(
            side.network.classifier(features), side.facts.labels
        ),
    }[term]()
    (gradient,) = torch.autograd.grad(loss, x)
    assert float(loss.detach()) == pytest.approx(GOLDEN_TERMS[term], rel=1e-7)
    assert float(gradient.norm()) == pytest.approx(GOLDEN_NORMS[term], rel=1e-4)


GOLDEN_UPDATES: dict[str, Any] = {
    "idm": {
        "losses": (755.37614099, 732.26949970),
        "sum": 146.54195504,
        "size": 9496.92914473,
        "first": -0.3466686288,
        "last": -0.9068129695,
        "momenta": (283.94654353, 463.92196037, 1000.28213835),
    },
    "bacon": {
        "losses": (7762.87445834, 7493.18035928),
        "sum": 173.02243920,
        "size": 9004.97639931,
        "first": -0.3891086361,
        "last": -0.9593971301,
        "momenta": (265.67456209, 471.39929015, 1081.34239819),
    },
}


@both
@pytest.mark.parametrize("blocks", [[[0, 1, 2]], [[0, 1], [2]], [[0], [1], [2]]])
def test_golden_updates_for_any_blocks(name: str, blocks: list[list[int]]) -> None:
    """Two iterations of three classes, which the original made one after another."""
    golden, network = GOLDEN_UPDATES[name], cifar10_net()
    problem = given(entry("cifar10").info, 1, classes=(0, 1, 2))
    stage = stage_of(METHODS[name](classes_per_unit=len(blocks[0])), problem)
    assert [list(block) for block in stage.blocks.values()] == blocks
    start = wave((3, 3, 32, 32), 0.37, 0.1)
    images, momenta, losses = [], [], torch.zeros(2, dtype=torch.float64)
    for unit, block in stage.blocks.items():
        facts = stage.facts(unit, torch.device("cpu"))
        side = Side(network, network.embed, facts, (torch.tensor(0.5 * 37.5),))
        state: Tensors = {
            "images": start[list(block)],
            "momentum": torch.zeros(len(block), 3, 32, 32),
        }
        state["momentum"] = state["momentum"].double()
        for t in range(2):
            batches = [
                wave((6, 3, 32, 32), 0.29 + 0.01 * c + 0.003 * t, 0.7 + c, 1.2) for c in block
            ]
            features = network.embed(torch.cat(batches)).view(len(block), 6, -1)
            state, loss = stage._moved(state, stage.moments(features), lambda x: x, side)
            losses[t] += loss * len(block)
        images.append(state["images"])
        momenta.append(state["momentum"])
    x, v = torch.cat(images), torch.cat(momenta)
    assert losses.tolist() == pytest.approx(golden["losses"], abs=1e-5)
    assert float(x.sum()) == pytest.approx(golden["sum"], abs=1e-6)
    assert float(x.abs().sum()) == pytest.approx(golden["size"], abs=1e-6)
    assert float(x[0, 0, 0, 0]) == pytest.approx(golden["first"], abs=1e-9)
    assert float(x[2, 2, 31, 31]) == pytest.approx(golden["last"], abs=1e-9)
    assert v.abs().sum((1, 2, 3)).tolist() == pytest.approx(golden["momenta"], abs=1e-6)


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Any:
    data = open_data(DatasetConfig(name="digits"))
    return data, with_digests(entry("digits").info, data)


def small(name: str, **fields: Any) -> QueueMatching:
    settings = {
        "network": "convnet2_w8",
        "iterations": 9,
        "batch_real": 12,
        "meter_reset_period": 5,
        "queue": SMALL_QUEUE,
        "classes_per_unit": 4,
    }
    return METHODS[name](**(settings | fields))


def run(refs: Sequence[Ref], store: Store, data: Any) -> list[Event]:
    events: list[Event] = []
    LocalRunner(lambda: data, device=torch.device("cpu")).run(list(refs), store, events.append)
    return [event for event in events if event.kind == "output" and not event.cached]


def published_loop(stage: MatchUnderQueue, store: Store, data: Any, name: str) -> Tensor:
    """Return the images after all updates, class after class, by an optimiser that steps for each: in float64."""
    info, seed, queue = stage.dataset, stage.seed, stage.queue.queue
    plan, memory = queue.plan, ClassMemory.load(data["train"])
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (info.mean, info.std)
    )
    parts = [store.load(Ref(stage, unit, snapshot(0)))["images"] for unit in stage.units()]
    images = torch.cat(parts).double().requires_grad_(True)
    optimizer = torch.optim.SGD([images], lr=stage.lr_img, momentum=0.5)
    for t in range(stage.iterations):
        network, age, row = plan.reading(t)
        kept = store.load(Ref(stage.queue, network_unit(network)))
        net: Any = create_network(stage.network, info.shape, info.classes, generator(0, "any"))
        nn.utils.vector_to_parameters(kept["weights"][row], net.parameters())
        net = net.double().eval().requires_grad_(False)
        trained = [e for e in plan.life(network).trained if e < t]
        counted = [
            int(kept["correct"][row][i])
            for i, e in enumerate(trained)
            if e >= t - t % (stage.meter_reset_period or 10**9)
        ]
        assert len(trained) == age
        seen = queue.model_train_steps * queue.trained_bs
        percent = 100 * sum(counted) / (seen * len(counted)) if counted else 0.0
        for c in range(info.classes):
            rows = memory.draw(c, stage.batch_real, generator(seed, "real", t, c))
            real = (memory.gather(rows)[0].double() / 255 - mean) / std
            h, w = info.height // 2, info.width // 2
            own = images[c * stage.ipc : (c + 1) * stage.ipc]
            tiles = [own[:, :, :h, :w], own[:, :, h:, :w], own[:, :, :h, w:], own[:, :, h:, w:]]
            decoded = torch.cat(
                [
                    F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
                    for x in tiles
                ]
            )
            transform = draw(stage.dsa, generator(seed, "dsa", t, c), size=info.shape[1:])
            f_real, seen_images = net.embed(transform(real)), transform(decoded)
            f = net.embed(seen_images)
            m_s, m_r, s_r = f.mean(0), f_real.mean(0), f_real.std(0)
            loss = ((m_s - m_r) ** 2).sum()
            if name == "bacon":
                density = torch.distributions.Normal(m_r, s_r.exp()).log_prob(m_s).sum()
                loss = -density + 0.8 * 0.5 * (m_s - m_r).abs().sum()
            labels = torch.full((len(f),), c)
            loss = loss + stage.ce_weight * percent * F.cross_entropy(net(seen_images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return images.detach()


@both
@pytest.mark.parametrize("blocks", [4, 10])
def test_a_run_is_the_published_loop(name: str, blocks: int, digits: Any, tmp_path: Path) -> None:
    data, info = digits
    method, store = small(name, classes_per_unit=blocks), Store(str(tmp_path))
    problem = given(info, 2)
    stage = stage_of(method, problem)
    starts = [Ref(stage, unit, snapshot(0)) for unit in stage.units()]
    targets = method.targets(problem)
    run([*starts, *targets.values()], store, data)
    found = method.assemble(problem, {k: store.load(ref) for k, ref in targets.items()})
    expected = published_loop(stage, store, data, name)
    start = torch.cat([store.load(ref)["images"] for ref in starts])
    moved = float((expected - start).norm())
    assert moved > 1
    assert float((found.images - expected).norm()) < 1e-3 * moved
    assert found.seen == 80
    assert found.labels.tolist() == [c for c in range(10) for _ in range(2)]


@both
def test_an_update_in_one_piece_is_that_of_class_after_class(
    name: str, digits: Any, tmp_path: Path
) -> None:
    data, info = digits
    store, problem = Store(str(tmp_path)), given(info, 2)
    stage = stage_of(small(name, classes_per_unit=10), problem)
    run(list(stage.inputs("").values()), store, data)
    (unit,) = stage.units()
    found = []
    for whole in (False, True):
        ctx = StageContext(stage, data, store=store)
        state = {key: value.double() for key, value in stage.init(unit, ctx).items()}
        shape = (stage.network, info.shape, info.classes)
        ctx.cached(
            ("matched network", *shape),
            lambda shape=shape: create_network(*shape, generator(7, "network")).double(),
        )
        with recorded() if whole else nullcontext([]) as calls:
            for t in range(6):
                state = stage.step(unit, state, t, ctx)
        found.append(state)
    assert len(calls) == 6
    for key in found[0]:
        torch.testing.assert_close(found[1][key], found[0][key], rtol=1e-11, atol=1e-11)


def test_the_cross_entropy_is_weighted_by_per_cent(digits: Any, tmp_path: Path) -> None:
    data, info = digits
    store = Store(str(tmp_path))
    stage = stage_of(small("idm", ce_weight=0.5, meter_reset_period=None), given(info, 1))
    run(list(stage.inputs("").values()), store, data)
    networks, plan = stage.networks(StageContext(stage, data, store=store)), SMALL_QUEUE.plan  # type: ignore[arg-type]
    weights = [float(networks(t)[1]) for t in range(9)]
    assert all(0 <= weight <= 50 for weight in weights)
    assert max(weights) > 5, "digits are learned quickly, in per cent"
    assert [weight == 0 for weight in weights[:1]] == [True]
    for t, weight in enumerate(weights):
        assert (weight > 0) <= (plan.reading(t).age > 0)


@both
def test_real_images_in_chunks_give_the_same_moments(
    name: str, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(small(name), given(digits[1], 1))
    net: Any = create_network("convnet2_w8", digits[1].shape, 10, generator(0, "any"))
    images = wave((2, 50, 1, 8, 8), 0.3, 0.1)
    whole = stage._moments_of(net.double().embed, images)
    monkeypatch.setattr(MatchUnderQueue, "real_chunk", 7)
    sizes: list[int] = []
    parts = stage._moments_of(lambda x: sizes.append(len(x)) or net.embed(x), images)
    assert sizes == [7] * 14 + [2]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


# -- starts -----------------------------------------------------------------------------------------------------------


def first_images(digits: Any, **fields: Any) -> tuple[Tensor, Any]:
    data, info = digits
    stage = stage_of(small("idm", classes_per_unit=10, **fields), given(info, 3))
    ctx = StageContext(stage, data, store=Store("memory://nothing"))
    images = stage.init(stage.units()[0], ctx)["images"]
    pixels = images * torch.tensor(info.std).view(-1, 1, 1) + torch.tensor(info.mean).view(-1, 1, 1)
    return pixels * 255, data["train"]


def test_a_collage_has_a_real_image_made_small_in_each_tile(digits: Any) -> None:
    pixels, train = first_images(digits)
    chosen = []
    for c in range(10):
        own = train.images[train.labels == c].float()
        small_ones = F.avg_pool2d(own, 2)  # bilinear by one half is the mean of two by two
        for tile in (
            pixels[..., :4, :4],
            pixels[..., 4:, :4],
            pixels[..., :4, 4:],
            pixels[..., 4:, 4:],
        ):
            gaps = (tile[3 * c : 3 * c + 3, None] - small_ones).abs().amax((2, 3, 4))
            best, which = gaps.min(1)
            assert float(best.max()) < 1e-3
            assert len(set(which.tolist())) == 3, "no image twice in one draw"
            chosen.append(tuple(which.tolist()))
    assert len(set(chosen)) == 40, "each tile is a draw of its own"


def test_a_full_start_is_whole_real_images_and_noise_is_normal(digits: Any) -> None:
    pixels, train = first_images(digits, init_tiling="full")
    for c in range(10):
        own = train.images[train.labels == c].float()
        gaps = (pixels[3 * c : 3 * c + 3, None] - own).abs().amax((2, 3, 4)).amin(1)
        assert float(gaps.max()) < 1e-3
    data, info = digits
    stage = stage_of(small("idm", init="noise", classes_per_unit=10), given(info, 30))
    noise = stage.init(
        stage.units()[0], StageContext(stage, data, store=Store("memory://nothing"))
    )["images"]  # type: ignore[arg-type]
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)


def test_settings_that_make_no_difference_are_in_no_key(digits: Any) -> None:
    _, info = digits

    def keys(**fields: Any) -> set[str]:
        return {ref.key for ref in small("idm", **fields).targets(given(info, 1)).values()}

    assert keys(init="noise") == keys(init="noise", init_tiling="full")
    assert keys(factor=1) == keys(factor=1, init_tiling="full")
    assert keys() != keys(init_tiling="full")


# -- what is shared ---------------------------------------------------------------------------------------------------


def test_one_queue_serves_both_methods_all_sizes_seeds_and_lengths(
    digits: Any, tmp_path: Path
) -> None:
    data, info = digits
    store, computed = Store(str(tmp_path)), []
    jobs = [
        (small("idm"), given(info, 2)),
        (small("bacon"), given(info, 2)),
        (small("idm"), given(info, 5)),
        (small("idm", ce_weight=0.1, lr_img=1.0, meter_reset_period=None), given(info, 2)),
        (small("bacon", iterations=6), replace(given(info, 2), seed=11)),
    ]
    for method, problem in jobs:
        events = run(list(method.targets(problem).values()), store, data)
        computed.append(sum(event.stage == "squeeze/TrainQueue" for event in events))
    assert computed == [len(SMALL_QUEUE.plan.needed(9)), 0, 0, 0, 0]
    longer = run(list(small("idm", iterations=12).targets(given(info, 2)).values()), store, data)
    new = sum(event.stage == "squeeze/TrainQueue" for event in longer)
    assert new == len(set(SMALL_QUEUE.plan.needed(12)) - set(SMALL_QUEUE.plan.needed(9)))


def test_another_seed_of_the_queue_is_another_queue(digits: Any) -> None:
    _, info = digits
    one, two = (
        stage_of(small("idm", queue=replace(SMALL_QUEUE, seed=seed)), given(info, 2)).queue
        for seed in (2, 3)
    )
    assert {ref.key for ref in one.refs()}.isdisjoint(ref.key for ref in two.refs())


# -- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("idm", {"network": "convnet2_w8_batchnorm"}, "batch norm ties images together"),
        ("idm", {"factor": 3}, r"factor=3 does not divide images of 8×8 pixels"),
        ("idm", {"dsa": "crop_flop"}, r"unknown DSA operation 'flop'.*did you mean 'flip'"),
        (
            "bacon",
            {"batch_real": 1},
            r"method\.batch_real=1: 1 real image per class has no deviation",
        ),
        ("idm", {"network": "convnet2_w8x"}, "convnet2_w8x"),
    ],
)
def test_what_cannot_be_is_refused_when_planned(
    name: str, fields: dict[str, Any], text: str, digits: Any
) -> None:
    with pytest.raises(ConfigError, match=text):
        small(name, **fields).plan(given(digits[1], 2))


def test_more_images_than_a_class_has_need_noise(digits: Any) -> None:
    _, info = digits
    least = min(info.train_counts)
    with pytest.raises(
        ConfigError, match=rf"at most ipc={least} is possible, or method\.init=noise"
    ):
        small("idm").plan(given(info, least + 1))
    assert small("idm", init="noise").size(given(info, least + 1)).seen == 40 * (least + 1)


def test_one_real_image_is_enough_for_idm(digits: Any) -> None:
    _, info = digits
    assert len(small("idm", batch_real=1).plan(given(info, 1))) == 2


def test_likelihood_and_variation_have_weights() -> None:
    """Each term alone, doubled: the loss doubles."""
    stage, side = one_class("bacon")
    real = stage.moments(side.network.embed(wave((6, 3, 32, 32), 0.29, 0.7, 1.2))[None])
    features = side.network.embed(wave((8, 3, 32, 32), 0.37, 0.1))[None]
    plain = Side(side.network, side.embed, side.facts, (torch.tensor(0.0),))

    def loss(**weights: float) -> float:
        return float(replace(stage, **weights).objective(features, real, plain).detach())

    assert loss(likelihood_weight=0.0, tv_weight=2.0) == pytest.approx(
        2 * loss(likelihood_weight=0.0, tv_weight=1.0)
    )
    assert loss(likelihood_weight=3.0, tv_weight=0.0) == pytest.approx(
        3 * loss(likelihood_weight=1.0, tv_weight=0.0)
    )
    assert math.isclose(
        loss(likelihood_weight=1.0, tv_weight=0.8),
        loss(likelihood_weight=1.0, tv_weight=0.0) + loss(likelihood_weight=0.0, tv_weight=0.8),
        rel_tol=1e-12,
    )
