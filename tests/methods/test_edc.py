"""SRe2L, G-VBSM and EDC as methods: published defaults, plans, estimates, what is refused
(docs/methods/edc.md, docs/methods/gvbsm.md and docs/methods/sre2l.md, "Published settings").
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raydd.core.errors import ConfigError
from raydd.core.typed_tree import build
from raydd.core.units import Numerics
from raydd.data.catalog import DatasetInfo, entry
from raydd.methods import METHODS, Method, Problem
from raydd.methods.recovery.recover import MatchStatistics
from raydd.training.statistics import CollectStatistics, Statistics

OWN = {"weights": "train", "epochs": 1}
SMALL = {"teachers": OWN, "networks": ["convnet1_w8_batchnorm"]}
NOISE = {"init": {"kind": "noise"}}


def method(name: str, **fields: Any) -> Method:
    return build(METHODS.get(name), fields, "test")


def problem(name: str = "digits", ipc: int = 2, **facts: Any) -> Problem:
    info = entry(name).info
    counts = info.train_counts or (100,) * info.classes
    facts = {"train_counts": counts, "digests": (("train", "0"),), **facts}
    return Problem(dataset=replace(info, **facts), ipc=ipc, seed=0, numerics=Numerics())


def recovery(made: Method, of: Problem) -> MatchStatistics:
    last = made.plan(of)[-1]
    assert isinstance(last, MatchStatistics)
    return last


@pytest.fixture(scope="module")
def imagenet() -> Problem:
    return problem("imagenet", 10, train_counts=(1281,) * 1000)


@pytest.mark.slow
def test_defaults_are_the_published_settings_of_imagenet(imagenet: Problem) -> None:
    edc = method("edc", init={"kind": "noise"})
    stage = recovery(edc, imagenet)
    assert [b.network for b in stage.backbones] == [
        f"torchvision/{n}"
        for n in ("resnet18", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5", "alexnet")
    ]
    assert (stage.iterations, stage.lr_img, stage.betas, stage.image_format) == (
        1000,
        0.05,
        (0.5, 0.9),
        "jpeg75",
    )
    assert (stage.views.crop, stage.views.flip, stage.views.jitter, stage.views.pad) == (
        (0.5, 1.0),
        True,
        (0, 0),
        0,
    )
    assert (stage.grouping.order, stage.grouping.group_size) == ("class_major", 20)
    matching = stage.matching
    assert (matching.r_loss, matching.first_multiplier, matching.momentum, matching.drop_rate) == (
        0.1,
        10.0,
        0.8,
        0.0,
    )
    assert (
        matching.class_weight,
        matching.patch,
        matching.swap_class_patch_stats,
        matching.ema_init,
    ) == (0.5, 16, True, "zero")
    assert [b.network for b in edc.label_teachers(imagenet)] == [
        f"torchvision/{n}" for n in ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "alexnet")
    ]
    stage = recovery(method("sre2l"), imagenet)
    assert (stage.iterations, stage.lr_img, stage.matching.r_loss, stage.views.jitter) == (
        4000,
        0.25,
        0.01,
        (0, 32),
    )
    assert (stage.matching.kinds, stage.matching.momentum, stage.views.crop) == (
        ("bn",),
        0.0,
        (0.08, 1.0),
    )
    assert (stage.grouping.order, stage.grouping.group_size, len(stage.groups_of)) == (
        "ipc_major",
        100,
        100,
    )
    stage = recovery(method("gvbsm"), imagenet)
    assert (stage.iterations, stage.lr_img, stage.matching.r_loss, stage.priors.dd_weight) == (
        4000,
        0.1,
        0.01,
        1.0,
    )
    assert (stage.matching.momentum, stage.matching.class_weight, len(stage.backbones)) == (
        0.4,
        0.0,
        4,
    )


def test_the_peak_is_that_of_the_largest_network(imagenet: Problem) -> None:
    """Without the original's hooks 88 MB per image; a pack of 80 images, tables of 0.81 GB."""
    stage = recovery(method("edc", **NOISE), imagenet)
    cost = stage.cost(stage.units()[0])
    assert 80 * 80e6 < cost.peak_bytes < 80 * 194e6 + 2e9
    images = 80 * 3 * 224 * 224
    assert 3 * 4 * images < cost.state_bytes < 3 * 4 * images + 10e6
    assert cost.output_bytes == images + 80 * 16
    assert cost.flop == pytest.approx(1000 * 80 * 2 * 2 * 0.651e9, rel=0.01)
    alone = recovery(method("edc", **NOISE, groups_per_unit=1), imagenet)
    assert alone.cost(alone.units()[0]).flop == pytest.approx(cost.flop / 4)


def test_what_is_missing_is_said_once_for_every_network(
    imagenet: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lines = method("edc", **NOISE).missing(imagenet)
    assert len(lines) == 5, "four networks label too, and are asked for once"
    for line, name in zip(
        lines,
        ("resnet18", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5", "alexnet"),
        strict=True,
    ):
        assert name in line
    lines = method(
        "edc", **SMALL, **NOISE, statistics={"files": str(tmp_path), "patch": 4}
    ).missing(problem())
    assert len([line for line in lines if "convnet1_w8_batchnorm" in line]) == 1
    assert method("sre2l", **SMALL).missing(problem()) == []


def test_statistics_are_collected_once_for_each_network() -> None:
    made = method(
        "edc",
        **{**SMALL, "networks": ["convnet1_w8_batchnorm", "convnet1_w4_batchnorm"]},
        **NOISE,
        statistics={"patch": 4},
    )
    stages = made.plan(problem())
    assert (
        [type(s) for s in stages].count(CollectStatistics)
        == [type(s) for s in stages].count(Statistics)
        == 2
    )
    assert len(set(stages)) == len(stages)
    first = {s: i for i, s in enumerate(stages)}
    for stage in stages:
        for unit in stage.units():
            assert all(first[ref.stage] < first[stage] for ref in stage.inputs(unit).values()), (
                "inputs stand before"
            )
    sre2l = method("sre2l", **SMALL, jitter=[0, 2]).plan(problem())
    assert not any(isinstance(s, CollectStatistics) for s in sre2l), "batch norms know their own"


@pytest.mark.parametrize(
    ("name", "fields", "ipc", "message"),
    [
        ("gvbsm", {"order": "ten_blocks"}, 15, "multiple of 10, not 15"),
        (
            "gvbsm",
            {"group_size": 5, "groups_per_unit": 2},
            2,
            "class 2 is split between groups of one unit",
        ),
        ("edc", {"category_aware": "local", "class_weight": 0}, 2, "no effect with class_weight=0"),
        ("edc", {"category_aware": "local", "local_images": 19}, 2, "below the set's 20 images"),
        ("edc", {"jitter": [0, 8]}, 2, "larger than the images of 8x8"),
        ("edc", {"pad": 2}, 2, "two ways to crop"),
        ("edc", {"group_size": 0}, 2, "group_size"),
        ("edc", {"momentum": 0, "compat": {"ema_init": "first"}}, 2, "no running statistics"),
        ("edc", {"networks": []}, 2, "at least one network"),
        ("sre2l", {"networks": ["convnet1_w8"]}, 2, "has no layer of the kinds bn"),
        ("sre2l", {"crop": None, "crop_curriculum": "cosine"}, 2, "needs a crop"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_planned(
    name: str, fields: dict[str, Any], ipc: int, message: str
) -> None:
    base: dict[str, Any] = {**SMALL, "jitter": [0, 2], **(NOISE if name == "edc" else {})}
    if name != "sre2l":
        base["statistics"] = {"patch": 4}
    with pytest.raises(ConfigError, match=message):
        method(name, **{**base, **fields}).plan(problem(ipc=ipc))


def test_jpeg_holds_no_images_of_two_channels() -> None:
    odd = problem(channels=2, mean=(0.5, 0.5), std=(0.2, 0.2))
    with pytest.raises(ConfigError, match="not 2 channels; use png"):
        method("sre2l", **SMALL, jitter=[0, 2]).plan(odd)


def test_the_set_is_in_class_order_whatever_the_units() -> None:
    made, of = method("sre2l", **SMALL, jitter=[0, 2], group_size=4), problem(ipc=3)
    stage = recovery(made, of)
    outputs = {}
    for unit, groups in stage.groups_of.items():
        index = torch.tensor([p for group in groups for p in group.positions])
        images = index.view(-1, 1, 1, 1).to(torch.uint8).expand(-1, 1, 8, 8)
        outputs[unit] = {"images": images, "labels": index // 3, "index": index}
    distilled = made.assemble(of, outputs)
    assert distilled.images[:, 0, 0, 0].tolist() == list(range(30))
    assert distilled.labels.tolist() == [c for c in range(10) for _ in range(3)]


def test_swapped_class_tables_are_part_of_the_key_and_only_of_the_matching() -> None:
    fields: dict[str, Any] = {**SMALL, **NOISE, "statistics": {"patch": 4}}
    stages = [
        recovery(method("edc", **fields, compat={"swap_class_patch_stats": swap}), problem())
        for swap in (True, False)
    ]
    assert stages[0] != stages[1]
    assert replace(stages[0], matching=stages[1].matching) == stages[1]


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [("sre2l", 28, 1), ("gvbsm", 28, 1), ("edc", 28, 1), ("edc", 12, 3)],
)
def test_any_size_and_number_of_channels_can_be_planned(
    name: str, size: int, channels: int
) -> None:
    info: dict[str, Any] = {
        "height": size,
        "width": size,
        "channels": channels,
        "mean": (0.3,) * channels,
        "std": (0.3,) * channels,
    }
    fields: dict[str, Any] = {**SMALL, "jitter": [0, 4], **(NOISE if name == "edc" else {})}
    stage = recovery(
        method(name, **fields, **({} if name == "sre2l" else {"statistics": {"patch": 4}})),
        problem(**info),
    )
    assert stage.cost(stage.units()[0]).peak_bytes > 0


def test_data_set_facts_are_those_of_the_problem() -> None:
    stage = recovery(method("sre2l", **SMALL, jitter=[0, 2]), problem())
    assert isinstance(stage.dataset, DatasetInfo)
    assert stage.dataset.digests == (), (
        "images start as noise: the data set's files are in the key of its teacher"
    )
    local = recovery(
        method("edc", **SMALL, **NOISE, statistics={"patch": 4}, category_aware="local"), problem()
    )
    assert local.dataset.digests == (("train", "0"),)
