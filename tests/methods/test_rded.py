"""RDED as a method: its plan, its batch rule, its defaults; what all methods share is in test_every_method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import small_method

from raydd.artifacts.codec import jpeg_round_trip
from raydd.config import load_job
from raydd.core.errors import ConfigError
from raydd.core.store import Store
from raydd.core.typed_tree import build
from raydd.core.units import Numerics
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.methods import Problem
from raydd.methods.pools.patches import RdedPool
from raydd.methods.rded import Rded
from raydd.runtime.runner import LocalRunner
from raydd.training.train_network import TrainNetwork


@pytest.fixture(scope="module")
def digits():
    data = open_data(DatasetConfig(name="digits"))
    return data, with_digests(entry("digits").info, data)


@pytest.fixture(scope="module")
def problem(digits) -> Problem:
    return Problem(dataset=digits[1], ipc=2, seed=1, numerics=Numerics())


def test_its_defaults_are_those_of_imagenet() -> None:
    for method in (Rded(), build(Rded, {}, "job"), build(Rded, {"labels": {"batch": 200}}, "job")):
        assert (method.teacher, method.network, method.teachers.weights) == (
            "resnet18",
            "resnet18",
            "torchvision",
        )
        assert (method.factor, method.candidates, method.num_crop, method.image_format) == (
            2,
            300,
            5,
            "jpeg75",
        )
        labels = method.labels
        assert labels.online
        assert (labels.shuffle, labels.crop, labels.mix, labels.alpha, labels.epochs) == (
            2,
            (0.5, 1.0),
            "cutmix",
            1.0,
            300,
        )


def test_a_job_can_name_all_of_it() -> None:
    job = load_job(
        None,
        [
            "dataset.name=digits",
            "method.name=rded",
            "method.labels.batch=20",
            "method.teachers.weights=train",
        ],
    )
    assert isinstance(job.method, Rded)
    assert job.method.labels.batch == 20
    assert job.resolved()["method"]["labels"]["codec"] == "online"


def test_the_plan_trains_the_teacher_once_and_chooses_crops_last(problem: Problem) -> None:
    method = small_method("rded")
    stages = method.plan(problem)
    assert [type(stage) for stage in stages] == [TrainNetwork, RdedPool]
    (teacher,) = method.label_teachers(problem)
    assert teacher.training == stages[0]
    assert isinstance(stages[1], RdedPool)
    assert stages[1].backbones == (teacher,)
    assert list(stages[1].inputs(stages[1].units()[0]).values()) == list(
        teacher.inputs("x").values()
    )


def test_labels_and_students_do_not_change_the_images(problem: Problem) -> None:
    method = small_method("rded")
    other = replace(method, network="convnet3", labels=replace(method.labels, batch=7))  # type: ignore[attr-defined]
    assert [ref.key for ref in method.targets(problem).values()] == [
        ref.key for ref in other.targets(problem).values()
    ]


def test_crops_are_chosen_in_fp32_whatever_students_are_trained_in(
    problem: Problem, tmp_path: Path
) -> None:
    method = small_method("rded", teachers={"weights": str(tmp_path)})
    fast = replace(problem, numerics=Numerics(precision="bf16", compile=True))
    assert method.plan(problem) == method.plan(fast), "compiling students chooses no crop anew"


def test_too_few_candidates_are_refused(problem: Problem) -> None:
    with pytest.raises(
        ConfigError, match=r"candidates=20 give as many crops per class; 6 images of 2x2 need 24"
    ):
        small_method("rded").plan(replace(problem, ipc=6))
    with pytest.raises(ConfigError, match="factor=3 does not divide images of 8 x 8"):
        small_method("rded", factor=3).plan(problem)


def test_weights_that_are_not_there_are_named(problem: Problem, tmp_path: Path) -> None:
    method = small_method("rded", teachers={"weights": str(tmp_path / "absent")})
    (line,) = method.missing(problem)
    assert str(tmp_path / "absent") in line
    assert small_method("rded").missing(problem) == []


def test_images_went_through_jpeg_unless_png_is_asked_for(
    digits, problem: Problem, tmp_path: Path
) -> None:
    made = {}
    for kind in ("jpeg75", "png"):
        method = small_method("rded", image_format=kind)
        store, targets = Store(str(tmp_path)), method.targets(problem)
        LocalRunner(lambda: digits[0], device=torch.device("cpu")).run(
            list(targets.values()), store, lambda event: None
        )
        made[kind] = method.assemble(
            problem, {name: store.load(ref) for name, ref in targets.items()}
        )
    assert torch.equal(made["jpeg75"].images, jpeg_round_trip(made["png"].images))
    assert not torch.equal(made["jpeg75"].images, made["png"].images)
    assert made["png"].labels.tolist() == [c for c in range(10) for _ in range(2)]
