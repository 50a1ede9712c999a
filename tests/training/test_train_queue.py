"""Networks of a queue: trained as published, resumed to the same bytes, shared, and read by row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from waves import filled, wave

from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import Tensors, digest
from raydd.core.units import Ref, unit_key
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.data.memory import draw_distinct, normalise
from raydd.networks import create_network
from raydd.runtime.runner import LocalRunner
from raydd.training.network_queue import QueueConfig
from raydd.training.sgd import TrainingStep, fresh_state, part
from raydd.training.train_queue import TrainQueue, network_unit

QUEUE = QueueConfig(
    seed=5, net_num=4, net_generate_interval=3, model_train_steps=2, trained_bs=32, lr_net=0.05
)


@pytest.fixture(scope="module")
def digits() -> Any:
    data = open_data(DatasetConfig(name="digits"))
    return data, with_digests(entry("digits").info, data)


def stage(info: Any, **queue: Any) -> TrainQueue:
    config = replace(QUEUE, **queue)
    return TrainQueue(
        seed=config.seed,
        dataset=info.only("train"),
        network="convnet2_w4",
        queue=config,
        count=6,
    )


def outputs(
    made: TrainQueue, data: Any, folder: Path, units: list[str], **options: Any
) -> list[Tensors]:
    store, refs = Store(str(folder)), [Ref(made, unit) for unit in units]
    LocalRunner(lambda: data, device=torch.device("cpu"), **options).run(
        refs, store, lambda event: None
    )
    return [store.load(ref) for ref in refs]


def test_training_is_the_published_one() -> None:
    """Losses of the original code: batch of 8, momentum 0.9, weight decay 5e-4, rate 0.01."""
    network = filled(create_network("convnet3", (3, 32, 32), 10, generator(0, "any")))
    step = TrainingStep(network, stage(entry("cifar10").info).numerics, QueueConfig().recipe)
    images, labels = wave((8, 3, 32, 32), 0.41, 0.2), torch.arange(8)
    state, losses = fresh_state(network), []
    for _ in range(4):
        state, loss, _ = step(state, images, labels, torch.tensor(0.01, dtype=torch.float64))
        losses.append(float(loss) / 8)
        if len(losses) == 3:
            total = sum(float(p.sum()) for p in part(state, "params").values())
    assert losses == pytest.approx(
        [2.3072853839, 2.1022764165, 2.0497885435, 1.9254937737], abs=1e-9
    )
    assert total == pytest.approx(385.0003861248, abs=1e-7)


@pytest.mark.parametrize("net_decay", [True, False])
def test_rows_are_the_weights_and_accuracies_of_a_plain_training(
    digits: Any, net_decay: bool, tmp_path: Path
) -> None:
    data, info = digits
    made = stage(info, net_decay=net_decay)
    for number in (0, 2, 4):
        unit = network_unit(number)
        (found,) = outputs(made, data, tmp_path, [unit])
        life = made.life(unit)
        network = create_network(
            "convnet2_w4", info.shape, 10, generator(5, "student/init", number)
        )
        options = {"momentum": 0.9, "weight_decay": 5e-4} if net_decay else {}
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, **options)
        ages, known = {}, [0] * len(life.trained)
        for age in range(len(life.trained) + 1):
            flat = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
            ages[age] = (flat, list(known))
            if age == len(life.trained):
                break
            draws = generator(5, "student/batches", number, age)
            for _ in range(2):
                ids = draw_distinct(len(data["train"]), 32, draws)
                assert len(set(ids.tolist())) == 32
                logits = network(normalise(data["train"].take(ids), info.mean, info.std))
                labels = data["train"].labels[ids]
                known[age] += int((logits.argmax(1) == labels).sum())
                optimizer.zero_grad()
                F.cross_entropy(logits, labels).backward()
                optimizer.step()
        assert len(life.ages) == len(found["weights"]) == len(found["correct"])
        for row, age in enumerate(life.ages):
            torch.testing.assert_close(found["weights"][row], ages[age][0], rtol=1e-4, atol=1e-5)
            assert found["correct"][row].tolist() == ages[age][1]


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("at", [1, 4])
def test_a_life_that_is_killed_goes_on_to_the_same_bytes(
    digits: Any, at: int, tmp_path: Path
) -> None:
    data, info = digits
    made, unit = stage(info), network_unit(3)
    assert made.steps(unit) > 4
    (whole,) = outputs(made, data, tmp_path / "whole", [unit])

    def fault(name: str, unit: str, t: int) -> None:
        if t == at:
            raise Killed

    with pytest.raises(Killed):
        outputs(made, data, tmp_path / "killed", [unit], fault=fault, checkpoint_every=0.0)
    seen: list[int] = []
    (found,) = outputs(
        made,
        data,
        tmp_path / "killed",
        [unit],
        fault=lambda name, unit, t: seen.append(t),
    )
    assert seen[0] == at
    assert digest(found) == digest(whole)


def test_bf16_keeps_rounded_weights_of_the_same_training(digits: Any, tmp_path: Path) -> None:
    data, info = digits
    units = [network_unit(3)]
    (wide,), (narrow,) = (
        outputs(stage(info, storage=kind), data, tmp_path, units) for kind in ("fp32", "bf16")
    )
    assert narrow["weights"].dtype == torch.bfloat16
    assert torch.equal(narrow["weights"], wide["weights"].bfloat16())
    assert torch.equal(narrow["correct"], wide["correct"])


def test_networks_are_those_of_the_settings_and_the_queues_seed(digits: Any) -> None:
    _, info = digits
    unit = network_unit(2)
    key = unit_key(stage(info), unit)
    assert unit_key(replace(stage(info), count=900), unit) == key
    others: dict[str, Any] = {
        "seed": 6,
        "net_num": 5,
        "net_generate_interval": 4,
        "fetch_net_num": 1,
        "model_train_steps": 3,
        "trained_bs": 33,
        "lr_net": 0.06,
        "net_decay": False,
        "storage": "bf16",
    }
    assert set(others) == set(QueueConfig.__dataclass_fields__)
    keys = {unit_key(stage(info, **{name: value}), unit) for name, value in others.items()}
    assert len(keys | {key}) == len(others) + 1
    with pytest.raises(ConfigError, match="the queue's seed is 5, not 1"):
        replace(stage(info), seed=1)


def test_the_cost_of_a_published_queue_is_that_of_its_rows() -> None:
    """13,489 states of about 670 networks were counted for CIFAR-10 at ten images per class, 17.3 GB."""
    config = QueueConfig()
    needed = config.plan.needed(20_000)
    made = TrainQueue(
        seed=0, dataset=entry("cifar10").info, network="convnet3", queue=config, count=len(needed)
    )
    size = sum(made.cost(network_unit(n)).output_bytes for n in needed)
    rows = sum(len(made.life(network_unit(n)).ages) for n in needed)
    assert 640 < len(needed) < 680
    assert size == pytest.approx(rows * 4 * 320_010, rel=1e-3)
    assert 16e9 < size < 20e9
