"""A batch of one image where batch norms see one pixel: foretold exactly, and refused wherever networks are trained."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError
from raydd.core.units import Numerics
from raydd.data.catalog import DatasetInfo
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.kept import kept_images
from raydd.evaluation.plan import evaluation_stages
from raydd.evaluation.set_sources import StoredSet
from raydd.methods import METHODS, Problem
from raydd.networks import create_network
from raydd.training.batches import check_batches, sizes
from raydd.training.recipe import Recipe
from raydd.training.teacher_config import TeacherConfig
from raydd.training.training_cost import network_facts

SINGLE = "wrn_10_1"
INFO = DatasetInfo(
    name="toy",
    classes=5,
    channels=3,
    height=4,
    width=4,
    mean=(0.5,) * 3,
    std=(0.2,) * 3,
    train_counts=(20, 20, 20, 20, 21),
    test_count=10,
    digests=(("train", "a"), ("test", "b")),
)
PROBLEM = Problem(dataset=INFO, ipc=2, seed=0, numerics=Numerics())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("images", "batch", "piece", "expected"),
    [
        (257, 256, None, {256, 1}),
        (256, 256, None, {256}),
        (9, 256, None, {9}),
        (1, 256, None, {1}),
        (10, 9, None, {9, 1}),
        (10, 1, None, {1}),
        (10, 5, 3, {3, 2}),
        (9, 3, 2, {2, 1}),
        (11, 10, 5, {5, 1}),
    ],
)
def test_sizes_of_an_epochs_batches(
    images: int, batch: int, piece: int | None, expected: set[int]
) -> None:
    assert sizes(images, batch, piece) == expected
    parts = [
        part for whole in torch.arange(images).split(batch) for part in whole.split(piece or batch)
    ]
    assert {len(part) for part in parts} == expected


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (SINGLE, (3, 4, 4)),
        (SINGLE, (3, 8, 8)),
        ("convnet3_w8_batchnorm", (3, 8, 8)),
        ("alexnet_cifar_batchnorm", (1, 16, 16)),
        ("mobilenetv2_cifar", (3, 16, 16)),
        ("shufflenetv2_cifar", (3, 16, 16)),
        ("timm/test_resnet", (3, 16, 16)),
        ("timm/test_resnet", (3, 64, 64)),
        ("torchvision/shufflenet_v2_x0_5", (3, 32, 32)),
        ("mlp", (3, 8, 8)),
    ],
)
def test_torch_refuses_one_image_where_it_is_foretold(
    network: str, shape: tuple[int, int, int]
) -> None:
    made = create_network(network, shape, 3, torch.Generator().manual_seed(0)).train()
    one = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    try:
        made(one)
        refused = False
    except ValueError as error:
        refused = "more than 1 value per channel" in str(error)
    assert network_facts(network, shape, 3).single == refused
    made(torch.cat([one, one]))


def check(images: Any, key: str = "evaluation.batch", **recipe: Any) -> None:
    check_batches(SINGLE, INFO.shape, 5, images, Recipe(epochs=1, **recipe), key)


def test_the_remedy_works() -> None:
    for images, recipe in (
        ([10], {"batch": 9}),
        ([4, 6, 10], {"batch": 3}),
        ([9], {"batch": 3, "accumulate": 2}),
        ([257], {}),
        ([7], {"batch": 1}),
    ):
        with pytest.raises(
            ConfigError,
            match=r"batch norm over one pixel of 4x4 images .*set evaluation\.batch=\d+, or use another",
        ) as error:
            check(images, **recipe)
        check(images, **{**recipe, "batch": int(re.findall(r"batch=(\d+)", str(error.value))[0])})
    for images in ([1], [1, 5]):
        with pytest.raises(
            ConfigError,
            match="which is what the only image would come to; use more images, or another network",
        ):
            check(images)
    check([0], batch=1)  # not known
    check_batches(
        "convnet1_w8_batchnorm", INFO.shape, 5, [10], Recipe(epochs=1, batch=9), "evaluation.batch"
    )


REFUSED: dict[str, tuple[Any, str]] = {
    "students": (
        {"batch": 9},
        (
            r"^evaluation\.networks: network 'wrn_10_1' .* 10 images in batches of 9 would come to; set"
            r" evaluation\.batch=8"
        ),
    ),
    "whole": (
        {"batch": 50, "baselines": ("whole",)},
        r"^evaluation\.baselines: whole: .* 101 images in batches of 50.* set evaluation\.batch=49",
    ),
    "a rival's network": (
        {"baselines": (METHODS.get("herding")(network=SINGLE, batch=100),)},
        r"^evaluation\.baselines: herding: method\.network: .* set method\.batch=99",
    ),
    "steps": (
        {"continual": 5, "batch": 3},
        r"^evaluation\.(networks|continual): .* 4 images in batches of 3|10 images in batches of 3",
    ),
}


@pytest.mark.parametrize("title", REFUSED)
def test_students_are_refused_when_they_are_planned(title: str) -> None:
    fields, message = REFUSED[title]
    config = EvaluationConfig(
        **{"epochs": 1, "networks": (SINGLE,), "repeats": 1, "baselines": (), **fields}
    )
    with pytest.raises(ConfigError, match=message):
        evaluation_stages(METHODS.get("random")(), PROBLEM, config)
    evaluation_stages(
        METHODS.get("random")(),
        PROBLEM,
        replace(config, networks=("convnet1_w8_batchnorm",), baselines=()),
    )


def test_steps_of_one_class_and_one_image_have_no_remedy_but_another_network() -> None:
    config = EvaluationConfig(epochs=1, networks=(SINGLE,), repeats=1, baselines=(), continual=5)
    with pytest.raises(
        ConfigError,
        match=r"^evaluation\.continual: .* the only image would come to; use more images",
    ):
        evaluation_stages(METHODS.get("random")(), replace(PROBLEM, ipc=1), config)


def test_a_stored_sets_memory_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 3, 4, 4])
    found = DistilledSet(images=torch.zeros(8, 3, 4, 4), labels=labels, info=INFO)
    monkeypatch.setattr(StoredSet, "read", lambda self: found)
    kept = list(kept_images(StoredSet(url="x", digest="y", dataset=INFO, count=8), 5, 0, 5))
    order = [2, 0, 1, 3, 4]  # numpy's permutation of seed 0
    assert kept == [sum(int((labels == c).sum()) for c in order[: seen + 1]) for seen in range(5)]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"name": "dc", "outer_loop": 2, "batch_train": 3},
            r"^method\.network: .* 10 images in batches of 3 .* set method\.batch_train=2",
        ),
        (
            {"name": "herding", "batch": 10},
            r"^method\.network: .* 101 images in batches of 10 .* set method\.batch=9",
        ),
    ],
)
def test_methods_train_no_batch_of_one(method: dict[str, Any], message: str) -> None:
    fields = {key: value for key, value in method.items() if key != "name"}
    with pytest.raises(ConfigError, match=message):
        METHODS.get(method["name"])(network=SINGLE, **fields).plan(PROBLEM)
    METHODS.get(method["name"])(network="convnet1_w8_batchnorm", **fields).plan(PROBLEM)


def test_dm_of_one_image_is_refused() -> None:
    dm = METHODS.get("dm")(network=SINGLE)
    alone = replace(PROBLEM, ipc=1, classes=(2,))
    with pytest.raises(ConfigError, match="the only image would come to"):
        dm.plan(alone)
    dm.plan(replace(alone, classes=(2, 3)))


def test_teachers_train_no_batch_of_one() -> None:
    with pytest.raises(
        ConfigError, match=r"101 images in batches of 20 .* set method\.teachers\.batch=19"
    ):
        TeacherConfig(batch=20).backbones([SINGLE], PROBLEM)
    TeacherConfig(batch=19).backbones([SINGLE], PROBLEM)
    unknown = replace(PROBLEM, dataset=replace(INFO, digests=()))  # counts are estimates
    TeacherConfig(batch=20).backbones([SINGLE], unknown)
