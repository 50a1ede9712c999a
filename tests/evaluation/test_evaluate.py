"""Evaluation stages on digits: what is learnt, what results depend on, resume, stored sets, networks of whole data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.published_folder import publish
from raydd.core.errors import ConfigError, RunFailed
from raydd.core.store import Store
from raydd.core.tensors import digest
from raydd.core.units import Numerics, Ref, unit_key
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.evaluation.set_sources import AssembledSet, StoredSet
from raydd.evaluation.stages import Evaluate, EvaluateNetworks, logged, repeat_blocks, repeats_of
from raydd.methods import METHODS, Problem
from raydd.runtime.runner import LocalRunner
from raydd.training.sgd import Recipe
from raydd.training.train_network import TrainNetwork

RECIPE = Recipe(
    epochs=12,
    batch=64,
    lr=0.05,
    drops=(9,),
    augmentation="dsa",
    strategy="color_crop_cutout_scale_rotate",
)


@pytest.fixture(scope="module")
def digits():
    data = open_data(DatasetConfig(name="digits"))
    return data, with_digests(entry("digits").info, data)


def _stage(info, *, ipc=20, recipe=RECIPE, network="convnet2_w8", **options):
    problem = Problem(dataset=info, ipc=ipc, seed=0, numerics=Numerics())
    source = options.pop("source", AssembledSet(method=METHODS.get("random")(), problem=problem))
    options = {"repeats": 2, "repeats_per_unit": 2} | options
    return Evaluate(
        seed=0, source=source, dataset=info.only("test"), recipe=recipe, network=network, **options
    )


def _run(stage, data, folder: Path, **options):
    store, events = Store(str(folder)), []
    LocalRunner(lambda: data, device=torch.device("cpu"), **options).run(
        stage.refs(), store, events.append
    )
    return [store.load(ref) for ref in stage.refs()], store


def test_students_of_random_images_are_clearly_above_chance(digits, tmp_path):
    data, info = digits
    stage = _stage(info)
    (output,), store = _run(stage, data, tmp_path)
    assert output["accuracy"].dtype == torch.float64
    assert output["accuracy"].shape == output["train_accuracy"].shape == (2,)
    assert float(output["accuracy"].min()) > 0.5
    assert float(output["accuracy"][0]) != float(output["accuracy"][1])
    assert int(output["image_bytes"]) == 200 * 64
    assert "best_accuracy" not in output
    rows = store.marker(stage.refs()[0])["log"]
    assert [t for t, _ in rows] == list(range(12))
    assert rows[-1][1]["loss"] < rows[0][1]["loss"]


def test_a_repeat_does_not_depend_on_its_block(digits, tmp_path):
    data, info = digits
    short = replace(RECIPE, epochs=2)
    (together,), _ = _run(_stage(info, recipe=short, repeats=3, repeats_per_unit=3), data, tmp_path)
    apart, _ = _run(_stage(info, recipe=short, repeats=3, repeats_per_unit=2), data, tmp_path)
    assert (
        torch.cat([output["accuracy"] for output in apart]).tolist()
        == together["accuracy"].tolist()
    )


def test_more_repeats_reuse_the_blocks_that_are_done(digits):
    _, info = digits
    few, many = (
        _stage(info, repeats=2, repeats_per_unit=2),
        _stage(info, repeats=4, repeats_per_unit=2),
    )
    assert unit_key(few, "repeats-000-001") == unit_key(many, "repeats-000-001")
    assert many.units() == ("repeats-000-001", "repeats-002-003")
    assert repeat_blocks(5, 2) == {
        "repeats-000-001": range(2),
        "repeats-002-003": range(2, 4),
        "repeats-004-004": range(4, 5),
    }
    assert list(repeats_of("repeats-002-003")) == [2, 3]


def test_students_are_keyed_by_the_test_split_alone(digits):
    _, info = digits
    other_train = replace(
        info, digests=tuple((s, d + "0" if s == "train" else d) for s, d in info.digests)
    )
    other_test = replace(
        info, digests=tuple((s, d + "0" if s == "test" else d) for s, d in info.digests)
    )
    source = _stage(info).source
    key = unit_key(_stage(info), "repeats-000-001")
    assert unit_key(_stage(other_train, source=source), "repeats-000-001") == key
    assert unit_key(_stage(other_test, source=source), "repeats-000-001") != key


class _Killed(BaseException):
    pass


def test_a_killed_evaluation_resumes_between_epochs_to_the_same_bytes(digits, tmp_path):
    data, info = digits
    stage = _stage(
        info,
        recipe=replace(RECIPE, epochs=5, drops=(3,)),
        network="convnet2_w8_batchnorm",
        test_every=2,
    )
    (whole,), _ = _run(stage, data, tmp_path / "whole")
    seen = []

    def fault(name, unit, t):
        seen.append((name, t))
        if name == stage.name and t == 3 and sum(entry == (stage.name, 3) for entry in seen) == 1:
            raise _Killed

    with pytest.raises(_Killed):
        _run(stage, data, tmp_path / "killed", checkpoint_every=0.0, fault=fault)
    before = len(seen)
    (resumed,), _ = _run(stage, data, tmp_path / "killed", checkpoint_every=0.0, fault=fault)
    assert [t for _, t in seen[before:]] == [3, 4]
    assert digest(resumed) == digest(whole)


def test_the_best_epoch_is_at_least_as_good_as_the_last(digits, tmp_path):
    data, info = digits
    (output,), _ = _run(
        _stage(info, recipe=replace(RECIPE, epochs=6, lr=0.2, drops=()), test_every=1),
        data,
        tmp_path,
    )
    assert bool((output["best_accuracy"] >= output["accuracy"]).all())


def test_a_published_set_is_evaluated_from_its_folder(digits, tmp_path):
    data, info = digits
    ids = torch.cat([(data["train"].labels == c).nonzero().reshape(-1)[:5] for c in range(10)])
    distilled = DistilledSet(
        images=data["train"].take(ids), labels=data["train"].labels[ids], info=info
    )
    publish(distilled, str(tmp_path / "set"))
    stored = StoredSet.at(str(tmp_path / "set"), info)
    assert (stored.digest, stored.images) == (distilled.digest, 50)
    short = replace(RECIPE, epochs=2)
    (output,), _ = _run(_stage(info, source=stored, recipe=short), data, tmp_path / "store")
    moved = replace(stored, url=str(tmp_path / "elsewhere"))
    assert unit_key(_stage(info, source=moved), "repeats-000-001") == unit_key(
        _stage(info, source=stored), "repeats-000-001"
    )
    assert int(output["image_bytes"]) == 50 * 64
    stale = replace(stored, digest="0" * 64)
    with pytest.raises(RunFailed, match="has changed"):
        _run(_stage(info, source=stale, recipe=short), data, tmp_path / "other")


def test_networks_of_the_whole_data_are_tested(digits, tmp_path):
    data, info = digits
    teacher = TrainNetwork(
        seed=0,
        dataset=info.only("train"),
        network="convnet2_w8_batchnorm",
        recipe=Recipe(epochs=2, batch=128, lr=0.05),
        count=2,
    )
    stage = EvaluateNetworks(seed=0, teacher=teacher, dataset=info.only("test"))
    outputs, store = _run(stage, data, tmp_path)
    assert [float(output["accuracy"]) > 0.5 for output in outputs] == [True, True]
    assert int(outputs[0]["image_bytes"]) == 64 * len(data["train"])
    assert digest(store.load(Ref(teacher, "network-000"))) != digest(
        store.load(Ref(teacher, "network-001"))
    )


def test_costs_are_those_of_the_arithmetic(digits):
    _, info = digits
    stage = _stage(info, ipc=10, recipe=Recipe(epochs=100), network="mlp", repeats=2)
    flop = 2 * (64 * 128 + 128 * 128 + 128 * 10)
    assert stage.cost("repeats-000-001").flop == 2 * flop * (3 * 100 * 100 + info.test_count)


def test_logs_are_sparse():
    assert sum(logged(t, 1001) for t in range(1001)) <= 52
    assert logged(0, 1001)
    assert logged(1000, 1001)


def test_an_evaluation_without_epochs_is_refused(digits):
    with pytest.raises(ConfigError, match="at least 1 epoch"):
        _stage(digits[1], recipe=Recipe(epochs=0))
