"""Random, herding and k-center selection: against formulas written out, on digits, and at their limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from raydd.core.errors import ConfigError, RunFailed
from raydd.core.store import Store
from raydd.core.units import Numerics, Ref
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.methods import METHODS, Problem
from raydd.methods.herding import Herding, herd
from raydd.methods.kcenter import KCenter, k_center
from raydd.methods.random_selection import RandomSelection
from raydd.runtime.runner import LocalRunner
from raydd.training.train_network import features_of, restore_network


@pytest.fixture(scope="module")
def digits():
    data = open_data(DatasetConfig(name="digits"))
    return data, with_digests(entry("digits").info, data)


def _problem(info, ipc=3, seed=0):
    return Problem(dataset=info, ipc=ipc, seed=seed, numerics=Numerics())


def _make(method, problem, data, folder):
    store = Store(str(folder))
    targets = method.targets(problem)
    LocalRunner(lambda: data, device=torch.device("cpu")).run(
        list(targets.values()), store, lambda event: None
    )
    outputs = {name: store.load(ref) for name, ref in targets.items()}
    return (
        method.assemble(problem, outputs),
        torch.cat([outputs[name]["ids"] for name in sorted(outputs)]),
        store,
    )


def _brute_herding(phi, count):
    chosen = []
    for i in range(1, count + 1):
        costs = [
            np.inf if x in chosen else np.linalg.norm(i * phi.mean(0) - phi[chosen].sum(0) - phi[x])
            for x in range(len(phi))
        ]
        chosen.append(int(np.argmin(costs)))
    return chosen


def _brute_k_center(phi, count):
    chosen = [int(np.argmin([np.linalg.norm(x - phi.mean(0)) for x in phi]))]
    while len(chosen) < count:
        gaps = [
            -1 if i in chosen else min(np.linalg.norm(phi[i] - phi[c]) for c in chosen)
            for i in range(len(phi))
        ]
        chosen.append(int(np.argmax(gaps)))
    return chosen


@pytest.mark.parametrize(("select", "brute"), [(herd, _brute_herding), (k_center, _brute_k_center)])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_selections_are_those_of_the_formulas(select, brute, count):
    phi = np.random.RandomState(count).standard_normal((40, 6))
    phi[5] = phi[4]  # equal images are both taken before the class is used up
    chosen = select(torch.from_numpy(phi), count).tolist()
    assert len(set(chosen)) == count
    if count < 40:
        assert chosen == brute(phi, count)


@pytest.mark.parametrize(
    ("method", "brute"), [(Herding, _brute_herding), (KCenter, _brute_k_center)]
)
def test_features_of_a_trained_network_choose_the_images(method, brute, digits, tmp_path):
    data, info = digits
    chooser = method(network="convnet2_w8", epochs=2, batch=128, lr=0.05, classes_per_unit=4)
    problem = _problem(info)
    distilled, ids, store = _make(chooser, problem, data, tmp_path)
    assert distilled.ipc == (3,) * 10
    assert torch.equal(distilled.images, data["train"].take(ids))
    assert torch.equal(data["train"].labels[ids], distilled.labels)
    teacher = chooser.teacher(problem)
    weights = store.load(Ref(teacher, "network-000"))
    network = restore_network(teacher.network, info, weights, torch.device("cpu"))
    assert float(weights["train_accuracy"]) > 0.3
    for label in (0, 7):
        members = (data["train"].labels == label).nonzero().reshape(-1)
        phi = features_of(network, data["train"].take(members), info, Numerics()).double().numpy()
        assert ids[label * 3 : label * 3 + 3].tolist() == members[brute(phi, 3)].tolist()


def test_an_untrained_network_may_give_the_features(digits, tmp_path):
    data, info = digits
    distilled, ids, _ = _make(
        KCenter(network="convnet2_w8", epochs=0), _problem(info), data, tmp_path / "a"
    )
    _, trained, _ = _make(
        KCenter(network="convnet2_w8", epochs=1, lr=0.1, batch=64),
        _problem(info),
        data,
        tmp_path / "b",
    )
    assert len(set(ids.tolist())) == 30
    assert distilled.images.dtype == torch.uint8
    assert ids.tolist() != trained.tolist()


def test_random_sets_are_nested_and_keyed_by_seed_and_class_alone(digits, tmp_path):
    data, info = digits
    few, ids, _ = _make(RandomSelection(), _problem(info, 2), data, tmp_path)
    _, more, _ = _make(RandomSelection(classes_per_unit=3), _problem(info, 5), data, tmp_path)
    _, other, _ = _make(RandomSelection(), _problem(info, 2, seed=1), data, tmp_path)
    assert more.view(10, 5)[:, :2].reshape(-1).tolist() == ids.tolist()
    assert ids.tolist() != other.tolist()
    assert torch.equal(data["train"].labels[ids], few.labels)
    assert list(few.recipe["source_ids"]) == ids.tolist()


@pytest.mark.parametrize("name", ["random", "herding", "kcenter"])
def test_more_images_than_a_class_has_are_refused_when_planned(name, digits):
    _, info = digits
    with pytest.raises(ConfigError, match=r"ipc=500: class \d has only \d+ training images"):
        METHODS.get(name)().plan(_problem(info, 500))


def test_more_images_than_a_class_has_stop_a_run_planned_without_the_data(digits, tmp_path):
    data, info = digits
    blind = replace(info, train_counts=())
    with pytest.raises(RunFailed, match=r"DataError: ipc=500: class 0 has only"):
        _make(RandomSelection(), _problem(blind, 500), data, tmp_path)


def test_the_teacher_is_shared_between_selections(digits):
    _, info = digits
    problem = _problem(info)
    assert Herding().plan(problem)[0] == KCenter().plan(problem)[0]
