"""The recovery engine: golden loop (G17, G13 of docs/methods/parity.md), packing, running means, resume, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from recovering import (
    MicroRecovery,
    det,
    group_images,
    micro_info,
    micro_stage,
    micro_teacher,
    recovered,
)
from stage_context import StageContext
from torch import Tensor

from raydd.core.errors import ConfigError
from raydd.core.tensors import digest, dump_tensors, load_tensors
from raydd.losses.statistics_matching import layer_distances, matching_loss
from raydd.methods.recovery.recover_config import Matching, Priors
from raydd.methods.recovery.recover_groups import Grouping
from raydd.methods.recovery.recover_objective import batch_statistics, tap_layout
from raydd.methods.recovery.recover_update import cosine_rate
from raydd.methods.recovery.recover_views import Views
from raydd.networks import create_network
from raydd.networks.taps import StatTap
from raydd.training.statistics_tables import observe

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_edc.json").read_text())[
    "G17_micro_recover"
]
AUGMENTED = Views(crop=(0.3, 1.0), flip=True, jitter=(-2, 3))
ALL_PRIORS = Priors(tv=1e-3, l2=1e-3, dd_weight=0.1, flatness_weight=1.0, flatness_alpha=0.9)


def test_golden_micro_recovery() -> None:
    stage = micro_stage(golden_start=True, dataset=micro_info(2))
    state, ctx = recovered(stage)
    for row, want in zip(ctx.rows, GOLDEN["steps"], strict=True):
        assert row["ce"] == pytest.approx(want["ce"], rel=1e-4)
        assert row["match"] == pytest.approx(want["r"], rel=1e-4)
        assert row["loss"] == pytest.approx(want["loss"], rel=1e-4)
    images = state["images"]
    assert images.sum().item() == pytest.approx(GOLDEN["final_sum"], abs=0.05)
    assert images.norm().item() == pytest.approx(GOLDEN["final_norm"], rel=1e-5)
    assert torch.allclose(images.flatten()[:8], torch.tensor(GOLDEN["head"]), atol=1e-3)
    pixels = stage.finish(stage.units()[0], state, ctx)["images"]
    assert pixels.long().sum().item() == pytest.approx(GOLDEN["uint8_sum"], rel=1e-4)
    assert pixels.flatten()[:8].tolist() == GOLDEN["uint8_head"]


def test_golden_gradients_of_the_micro_recovery() -> None:
    """What Adam's first moment gained in each update is the gradient."""
    stage = micro_stage(golden_start=True, dataset=micro_info(2))
    before = torch.tensor(0.0)
    for t, want in enumerate(GOLDEN["steps"]):
        after = recovered(stage, upto=t + 1)[0]["first"]
        gradient = (after - stage.betas[0] * before) / (1 - stage.betas[0])
        assert gradient.norm().item() == pytest.approx(want["grad_norm"], rel=1e-3)
        before = after


def test_golden_rates() -> None:
    assert [cosine_rate(0.05, t, 1000) for t in (0, 500)] == pytest.approx([0.05, 0.025])
    assert cosine_rate(0.05, 999, 1000) == pytest.approx(1.2337e-7, rel=1e-4)
    assert [cosine_rate(0.05, t, 6) for t in range(6)] == pytest.approx(
        [row["lr"] for row in GOLDEN["steps"]]
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"views": AUGMENTED, "matching": {"drop_rate": 0.4}, "priors": ALL_PRIORS},
        {
            "views": Views(pad=3, flip=True),
            "matching": {"kinds": ("bn",), "momentum": 0.0, "class_weight": 0.0},
        },
        {"matching": {"ema_init": "first", "drop_rate": 0.6}},
    ],
)
def test_packed_groups_are_those_computed_alone(fields: dict[str, Any]) -> None:
    """5 classes x 4 images in groups of 4, the micro nets in turn; the last group is smaller."""
    common: dict[str, Any] = {"dataset": micro_info(5), "ipc": 3, "iterations": 4, **fields}
    alone = group_images(micro_stage(grouping=Grouping(group_size=6), **common))
    packed = group_images(micro_stage(grouping=Grouping(group_size=6, groups_per_unit=3), **common))
    assert set(alone) == set(packed) == {0, 1, 2}
    for index in alone:
        assert torch.allclose(alone[index], packed[index], rtol=1e-5, atol=2e-5), index


def test_the_bytes_of_a_group_depend_on_nothing_computed_before() -> None:
    """One context for all units in any order, or one for each."""
    stage = micro_stage(
        ipc=4, grouping=Grouping(group_size=4, groups_per_unit=2), views=AUGMENTED, iterations=3
    )
    ctx, shared = StageContext(stage), {}
    for unit in reversed(stage.units()):
        state = stage.init(unit, ctx)
        for t in range(stage.steps(unit)):
            state = stage.step(unit, state, t, ctx)
        shared[unit] = digest(state)
    assert shared == {unit: digest(recovered(stage, unit)[0]) for unit in stage.units()}


@pytest.mark.parametrize(
    "matching",
    [
        {},
        {"ema_init": "first", "drop_rate": 0.5},
        {"ema_carry": "chain"},
        {"ema_carry": "chain", "ema_init": "first"},
    ],
)
def test_a_unit_goes_on_from_any_step_with_equal_bytes(matching: dict[str, Any]) -> None:
    grouping = Grouping(group_size=6, groups_per_unit=2)
    stage = micro_stage(
        ipc=3,
        grouping=grouping,
        views=AUGMENTED,
        matching=matching,
        priors=ALL_PRIORS,
        iterations=3,
    )
    unit = stage.units()[0]
    whole = digest(recovered(stage, unit)[0])
    for stop in range(1, stage.steps(unit)):
        state = load_tensors(dump_tensors(recovered(stage, unit, stop)[0]))
        ctx = StageContext(stage)
        for t in range(stop, stage.steps(unit)):
            state = stage.step(unit, state, t, ctx)
        assert digest(state) == whole, stop


def test_no_update_changes_the_state_it_was_given() -> None:
    stage = micro_stage(
        matching={"ema_carry": "chain"},
        grouping=Grouping(group_size=4, groups_per_unit=2),
        priors=ALL_PRIORS,
    )
    unit, ctx = stage.units()[0], StageContext(stage)
    state = stage.init(unit, ctx)
    before = digest(state)
    stage.step(unit, state, 0, ctx)
    assert digest(state) == before


def test_dropping_every_convolution_leaves_them_out_and_their_running_statistics_alone() -> None:
    stage, teacher = micro_stage(matching={"drop_rate": 1.0}), micro_teacher(0)
    state, ctx = recovered(stage)
    layout = teacher.tap.layout
    for k in range(2):
        running = state[f"running.{k}"]
        assert not running[..., layout.columns(kind="conv")].any()
        assert running[..., layout.columns(kind="bn")].abs().min() > 0
    smoothed = 0.2 * teacher.tap(recovered(stage, upto=0)[0]["images"])[1]
    assert teacher.overall is not None
    assert teacher.table is not None
    targets = teacher.table[[0, 0, 1, 1]].mean(0)
    of_layers = (
        0.5
        * (
            layer_distances(smoothed, teacher.overall, layout)
            + layer_distances(smoothed, targets, layout)
        )[0]
    )
    assert [layer.kind for layer in layout.layers] == ["conv", "bn", "conv"]
    assert ctx.rows[0]["match"] == pytest.approx(of_layers[1].item(), rel=1e-5)


def test_running_statistics_that_start_at_the_first_batch_are_its_own() -> None:
    without, first = (
        recovered(micro_stage(matching=m), upto=1)
        for m in ({"momentum": 0.0}, {"ema_init": "first"})
    )
    assert first[1].rows[0]["match"] == pytest.approx(without[1].rows[0]["match"], rel=1e-6)
    assert first[0]["used.0"].all()
    assert not first[0]["used.1"].any()
    zero = recovered(micro_stage(), upto=1)[0]
    assert torch.allclose(zero["running.0"], 0.2 * first[0]["running.0"], rtol=1e-5, atol=1e-7)


def test_a_chain_hands_on_running_statistics_and_the_place_in_the_round() -> None:
    chained = micro_stage(
        matching={"ema_carry": "chain"},
        grouping=Grouping(group_size=4, groups_per_unit=2),
        iterations=3,
    )
    unit = chained.units()[0]
    half, ctx = recovered(chained, unit, 3)
    alone = micro_stage(grouping=Grouping(group_size=4), iterations=3)
    assert torch.equal(half["images"][:4], recovered(alone, alone.units()[0])[0]["images"])
    assert torch.equal(half["images"][4:], chained.init(unit, ctx)["images"][4:]), (
        "the second group has not begun"
    )
    after = chained.step(unit, half, 3, ctx)
    assert torch.equal(after["images"][:4], half["images"][:4])
    teacher = micro_teacher(1)  # the round goes on: updates 0, 1, 2 used nets 0, 1, 0
    images = half["images"][4:].clone().requires_grad_()
    values = teacher.tap(images)[1]
    targets = teacher.table[[2, 2, 3, 3]].mean(0, keepdim=True)  # type: ignore[index]
    matched, running = matching_loss(
        values,
        half["running.1"],
        teacher.tap.layout,
        overall=teacher.overall,
        classes=targets,
        momentum=0.8,
        first_multiplier=10.0,
    )
    assert ctx.rows[3]["match"] == pytest.approx(matched.item(), rel=1e-6)
    assert torch.allclose(after["running.1"], running)
    moved = (after["images"][4:] - half["images"][4:]).abs()
    assert moved.median().item() == pytest.approx(0.05, rel=1e-3), (
        "Adam's first step is the whole rate: both begin anew"
    )


def test_images_stay_within_black_and_white() -> None:
    images = recovered(micro_stage(lr_img=5.0))[0]["images"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (micro_info().mean, micro_info().std))
    pixels = images * std + mean
    assert pixels.min().item() == pytest.approx(0, abs=1e-6)
    assert pixels.max().item() == pytest.approx(1, abs=1e-6)


def test_the_average_of_past_images_lags_by_one_update() -> None:
    stage = micro_stage(priors=Priors(flatness_weight=1.0, flatness_alpha=0.9))
    states = [recovered(stage, upto=t)[0] for t in range(4)]
    assert torch.equal(states[0]["average"], states[0]["images"])
    for before, after in pairwise(states):
        assert torch.allclose(after["average"], 0.9 * before["average"] + 0.1 * before["images"])
    rows = recovered(stage)[1].rows
    assert rows[0]["flatness"] == pytest.approx(0, abs=1e-7)
    assert rows[1]["flatness"] > 1e-5, "the average is still the start"


def test_real_images_of_a_group_take_the_place_of_class_tables() -> None:
    info = replace(micro_info(2), train_counts=(6, 6))
    split = _Split(
        torch.randint(
            0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        )
    )
    matching = {"category_aware": "local", "local_images": 13, "class_weight": 1.0}
    stage = micro_stage(
        dataset=info, grouping=Grouping(group_size=2, groups_per_unit=2), matching=matching
    )
    ctx = StageContext(stage, data={"train": split})
    unit = stage.units()[0]
    state = stage.init(unit, ctx)
    assert state["local.0"].shape == (2, 2, micro_teacher(0).width)
    assert not torch.equal(state["local.0"][0], state["local.0"][1]), "a group per class"
    assert digest(stage.init(unit, StageContext(stage, data={"train": split}))) == digest(state)
    assert len(split.taken) == 2 * 12, "13 images for 4 are 3 for each"
    assert all(index < 6 for index in split.taken[:6])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (info.mean, info.std))
    seen = (split.images[split.taken[:6]] / 255 - mean) / std
    assert torch.allclose(
        state["local.0"][0], micro_teacher(0).tap(seen)[1][0], rtol=1e-4, atol=1e-5
    )
    stage.step(unit, state, 0, ctx)


def test_statistics_of_a_batch_in_parts_are_those_of_the_whole() -> None:
    taps, images = [micro_teacher(k).tap for k in range(2)], det((7, 3, 32, 32))
    for tap, values in zip(taps, batch_statistics(taps, images.split(3))):
        assert torch.allclose(values, tap(images)[1][0], rtol=1e-4, atol=1e-5)


def test_what_is_put_out_is_rounded_down_and_in_its_place() -> None:
    stage = micro_stage(ipc=2, grouping=Grouping(order="ipc_major", group_size=5))
    unit = stage.units()[1]
    state, ctx = recovered(stage, unit, 0)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (micro_info().mean, micro_info().std))
    state["images"] = (torch.full((5, 3, 32, 32), 100.9 / 255) - mean) / std
    out = stage.finish(unit, state, ctx)
    assert set(out["images"].flatten().tolist()) == {100}
    assert out["labels"].tolist() == [0, 1, 2, 3, 4]
    assert out["index"].tolist() == [1, 3, 5, 7, 9]
    noisy = replace(stage, image_format="jpeg75")
    state = recovered(stage, unit, 0)[0]
    assert not torch.equal(
        noisy.finish(unit, state, ctx)["images"], stage.finish(unit, state, ctx)["images"]
    )


@dataclass(frozen=True, kw_only=True)
class SharedOffset(MicroRecovery):
    """One tensor added to all images of a group, as a method built on the engine may have it."""

    def start(self, groups: Any, ctx: Any) -> Tensor:
        return torch.zeros(len(groups), 3, 32, 32)

    def rows(self, unit: str, turn: slice) -> slice:
        return turn

    def renderer(self, unit: str, turn: slice, ctx: Any) -> Callable[[Tensor], Tensor]:
        groups = self.groups_of[unit][turn]
        real = torch.cat([det((len(g.positions), 3, 32, 32), shift=0.1 * g.index) for g in groups])
        size = len(groups[0].positions)
        return lambda parameters: real + parameters.repeat_interleave(size, 0)

    def project(self, parameters: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return parameters


def test_parameters_need_not_be_pixels() -> None:
    plain = micro_stage(grouping=Grouping(group_size=5, groups_per_unit=2))
    stage = SharedOffset(**{f.name: getattr(plain, f.name) for f in fields(plain)})
    unit = stage.units()[0]
    state, ctx = recovered(stage, unit)
    assert state["images"].shape == (2, 3, 32, 32)
    assert ctx.rows[-1]["loss"] < ctx.rows[0]["loss"]
    assert stage.finish(unit, state, ctx)["images"].shape == (10, 3, 32, 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kinds": ("bn",), "drop_rate": 0.4}, "drops convolutions, and none is matched"),
        (
            {"category_aware": "local", "local_images": 100, "class_weight": 0.0},
            "no effect with class_weight=0",
        ),
        ({"category_aware": "local", "class_weight": 0.5}, "needs local_images"),
        ({"ema_init": "first", "momentum": 0.0}, "no running statistics"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Matching(r_loss=0.1, **fields)


def test_classes_split_between_packed_groups_are_refused_where_they_are_compared() -> None:
    units = list(Grouping(group_size=4, groups_per_unit=2).units(4, 3).values())
    with pytest.raises(ConfigError, match="class 1 is split"):
        Priors(dd_weight=1.0).check_units(units, 3)
    Priors().check_units(units, 3)
    Priors(dd_weight=1.0).check_units(
        list(Grouping(group_size=3, groups_per_unit=2).units(4, 3).values()), 3
    )


class _Split:
    """Six images of each of two classes; notes what is taken."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.labels, self.taken = images, torch.tensor([0] * 6 + [1] * 6), list[int]()

    def take(self, ids: Tensor) -> Tensor:
        self.taken += ids.tolist()
        return self.images[ids]


def test_what_is_matched_and_what_tables_hold_is_learnt_of_one_network() -> None:
    name, shape = "timm/test_resnet", (3, 40, 40)
    built = observe.cache_info().misses
    both = tap_layout(name, shape, 5, 8, ("conv", "bn"))
    assert observe(name, shape, 5, 8).layout is both
    assert observe.cache_info().misses == built + 1
    network = create_network(name, shape, 5, torch.Generator().manual_seed(0))
    for kinds in (("conv", "bn"), ("bn", "conv"), ("bn",), ("conv",)):
        with StatTap(network, 8, kinds) as tap:
            assert tap_layout(name, shape, 5, 8, kinds) == tap.layout
