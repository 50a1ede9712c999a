"""A batch in parts gives the gradients, statistics and losses of the batch in one piece."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from recovering import MicroNet, det, micro_stage, micro_teacher, recovered
from torch import Tensor

from raydd.augment.crop import Box, Crops
from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors, digest
from raydd.core.typed_tree import build
from raydd.core.units import Numerics
from raydd.data.catalog import entry
from raydd.methods import METHODS, Problem
from raydd.methods.recovery.displaced import climb
from raydd.methods.recovery.recover_config import Matching, Priors
from raydd.methods.recovery.recover_groups import Grouping
from raydd.methods.recovery.recover_objective import ObservedTeacher
from raydd.methods.recovery.recover_parts import parts_of
from raydd.methods.recovery.recover_update import Update
from raydd.networks.taps import StatTap
from raydd.training.training_cost import network_facts

ALL_PRIORS = Priors(tv=1e-3, l2=1e-3, dd_weight=0.1, flatness_weight=1.0, flatness_alpha=0.9)
EVERYTHING = Matching(
    patch=4, r_loss=0.3, momentum=0.8, class_weight=0.5, ema_init="first", variance_weight=3.0
)
PLAIN = Matching(kinds=("bn",), patch=1, r_loss=1.0)
GROUPS, SIZE = 2, 5


def teacher(matching: Matching) -> tuple[ObservedTeacher, list[int]]:
    """Return net 0 of the micro recovery in float64, and a list that gains the size of every batch it sees."""
    network, sizes = MicroNet(0).double(), []
    tap = StatTap(network, matching.patch, matching.kinds, (3, 32, 32))
    network.c2.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    if matching is PLAIN:
        return ObservedTeacher(tap, tap.running().double(), None), sizes
    known = micro_teacher(0)
    assert known.overall is not None
    assert known.table is not None
    return ObservedTeacher(tap, known.overall.double(), known.table.double()), sizes


def updated(
    matching: Matching, priors: Priors, parts: int, leaking: bool
) -> tuple[Tensors, list[int]]:
    """Return what an update of two groups finds, and the sizes of the batches that the network saw."""
    observed, sizes = teacher(matching)
    observed.tap.network.requires_grad_(leaking)
    classes = [(0, 0, 1, 1, 2), (3, 3, 3, 4, 4)]
    images = det((GROUPS * SIZE, 3, 32, 32), 0.37, 0.2, 0.6).double()
    crops = Crops.of([Box(2, 3, 20, 24), Box(0, 5, 32, 16)], [True, False], (32, 32))
    given = {
        "images": images,
        "first": torch.zeros_like(images),
        "second": torch.zeros_like(images),
        "labels": torch.tensor(classes),
        "rows": crops.rows,
        "columns": crops.columns,
        "rate": torch.tensor(0.05, dtype=torch.float64),
        "root": torch.tensor(0.1, dtype=torch.float64),
    }
    if matching.momentum:
        given["running"] = torch.zeros(GROUPS, 2, observed.width, dtype=torch.float64)
        given["used"] = torch.zeros(GROUPS, len(observed.tap.layout.layers), dtype=torch.bool)
        given["kept"] = torch.tensor([[True, True, False], [True, True, True]])
    if priors.flatness_weight:
        given["average"] = 0.9 * images
    if leaking:
        count = sum(p.numel() for p in observed.tap.network.parameters())
        given["leaked"] = torch.zeros(count, dtype=torch.float64)

    def same(x: Tensor) -> Tensor:
        return x

    update = Update(
        teacher=observed,
        matching=matching,
        priors=priors,
        betas=(0.5, 0.9),
        classes=classes,
        render=same,
        project=same,
        parts=parts,
    )
    sizes.clear()
    return update(given), sizes


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize(
    ("matching", "priors", "leaking"),
    [(PLAIN, Priors(), False), (PLAIN, Priors(), True), (EVERYTHING, ALL_PRIORS, False)],
    ids=["batch norms", "with weights", "everything"],
)
def test_parts_give_the_gradients_of_the_whole(
    matching: Matching, priors: Priors, leaking: bool, parts: int
) -> None:
    (whole, _), (found, sizes) = (updated(matching, priors, n, leaking) for n in (1, parts))
    largest = -(-SIZE // parts)
    assert max(sizes) == GROUPS * largest
    if not priors.flatness_weight:
        assert sum(sizes) == GROUPS * (2 * SIZE - largest), "the last part goes through it once"
    assert set(found) == set(whole)
    assert whole["first"].norm() > 1e-3
    for name, value in whole.items():
        if name != "used":
            difference = (found[name] - value).norm()
            assert difference <= 1e-12 * value.norm(), (name, float(difference / value.norm()))
    assert ("used" in whole) == bool(matching.momentum)


def test_parts_are_as_equal_as_can_be_and_hold_every_image_once() -> None:
    assert [(share, at.start, at.stop) for share, at in parts_of(5, 2)] == [
        (0.4, 0, 2),
        (0.6, 2, 5),
    ]
    assert [at.stop - at.start for _, at in parts_of(3, 5)] == [1, 1, 1]


@pytest.mark.parametrize("parts", [2, 4])
def test_an_ascent_in_parts_is_that_of_the_whole(parts: int) -> None:
    found = []
    for n in (1, parts):
        network, sizes = MicroNet(0).double().requires_grad_(), []
        network.register_forward_pre_hook(lambda _, inputs, kept=sizes: kept.append(len(inputs[0])))
        images, labels = det((10, 3, 32, 32)).double(), torch.arange(10) % 5
        own = climb(network, images, labels, rho=0.1, steps=3, see=lambda x: x, parts=n)
        assert max(sizes) == -(-10 // n)
        found.append([own, *network.parameters()])
    for whole, part in zip(*found, strict=True):
        assert (whole - part).norm() <= 1e-12 * whole.norm()


def test_parts_change_rounding_alone_and_one_part_nothing() -> None:
    common: dict[str, Any] = {"grouping": Grouping(group_size=6, groups_per_unit=2), "ipc": 3}
    stage = micro_stage(**common)
    whole, _ = recovered(stage, upto=2)
    assert digest(recovered(replace(stage, parts=1), upto=2)[0]) == digest(whole)
    parts, _ = recovered(replace(stage, parts=4), upto=2)
    assert torch.allclose(parts["images"], whole["images"], rtol=1e-4, atol=1e-4)


def test_a_thousand_images_of_224_pixels_are_planned_within_16_gb_in_eight_parts() -> None:
    info = replace(entry("imagenet").info, classes=1000, train_counts=(1300,) * 1000)
    problem = Problem(dataset=info, ipc=10, seed=0, numerics=Numerics())
    whole, parts = (
        build(
            METHODS.get("dwa"),
            {"group_size": 1000, "parts": n, "teachers": {"weights": "train"}},
            "",
        ).plan(problem)[-1]
        for n in (1, 8)
    )
    unit = parts.units()[0]
    assert parts.cost(unit).peak_bytes < 16e9 < whole.cost(unit).peak_bytes


def test_costs_follow_the_part_and_too_many_are_refused() -> None:
    info = replace(entry("cifar10").info, train_counts=(5000,) * 10)
    problem = Problem(dataset=info, ipc=2, seed=0, numerics=Numerics())
    fields = {"networks": ("resnet18_cifar_batchnorm",), "group_size": 10, "jitter": (0, 4)}

    def stage(parts: int) -> Any:
        method = build(
            METHODS.get("sre2l"),
            {**fields, "teachers": {"weights": "train"}, "parts": parts},
            "test",
        )
        return method.plan(problem)[-1]

    one, five = (stage(parts).cost(stage(parts).units()[0]) for parts in (1, 5))
    assert five.flop == pytest.approx((2 + 4 / 5) / 2 * one.flop)
    facts = network_facts("resnet18_cifar_batchnorm", info.shape, info.classes)
    assert one.peak_bytes - five.peak_bytes == 11 * (10 - 2) * facts.activations // 2
    with pytest.raises(ConfigError, match="parts=11: a group has 10 images"):
        stage(11)
