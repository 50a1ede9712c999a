"""Protocols: schedules, names, strategies, and the published training loop's own numbers (golden T6)."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.units import Numerics
from raydd.data.catalog import DatasetInfo
from raydd.evaluation.protocols import PROTOCOLS
from raydd.training.accuracy import Examiner
from raydd.training.sgd import stack_states, unstack_state
from raydd.training.students import ResidentSet, StudentTraining

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_dc_dsa_dm.json").read_text())["evaluate_synset_6epochs"]
INFO = DatasetInfo(name="rgb", classes=10, channels=3, height=32, width=32, mean=(0.0,) * 3, std=(1.0,) * 3)


def _normal(seed, shape):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def _fixture_state(state):
    """Fill a student's state with the specification's numbers (section 7.1)."""
    params = [name for name in state if name.startswith("params.")]
    filled = dict(state)
    for k, name in enumerate(params):
        shape = state[name].shape
        z = _normal(1000 + k, shape)
        if len(shape) in (2, 4):
            z = z * (2 / (z.numel() / shape[0])) ** 0.5
        elif name.endswith("bias"):
            z = 0.1 * z
        else:
            z = 1 + 0.1 * z
        filled[name] = z.float()
    return filled


@pytest.mark.parametrize("network", ["ConvNetW32", "ConvNetBN"])
def test_the_published_loop_is_reproduced(network):
    recipe = PROTOCOLS.get("dsa").override(epochs=6, strategy="none").recipe(INFO, network)
    assert (recipe.epochs, recipe.drops, recipe.augmentation) == (7, (5,), "none")
    training = StudentTraining(
        network=network,
        shape=INFO.shape,
        classes=10,
        recipe=recipe,
        numerics=Numerics(),
        repeats=[0],
        rng=partial(generator, 0),
        device=torch.device("cpu"),
    )
    state = stack_states([_fixture_state(unstack_state(training.init(), 0))])
    data = ResidentSet(_normal(21, (20, 3, 32, 32)).float(), torch.arange(20) // 2)
    for epoch in range(recipe.epochs):
        state, _, accuracy = training.epoch(state, epoch, data)
    expected = GOLDEN[network]
    values = torch.cat([state[name].flatten().double() for name in state if name.startswith("params.")])
    assert float(values.sum()) == pytest.approx(expected["params"]["sum"], rel=1e-4)
    assert float(values.abs().sum()) == pytest.approx(expected["params"]["abssum"], rel=1e-4)
    assert float((values**2).sum()) == pytest.approx(expected["params"]["sq"], rel=1e-4)
    assert values[:4].tolist() == pytest.approx(expected["params"]["first"], rel=1e-3)
    assert float(accuracy) == pytest.approx(expected["acc_train"])
    test = [(_normal(22, (40, 3, 32, 32)).float(), torch.arange(40) % 10)]
    found = Examiner(training.network, Numerics()).accuracy(unstack_state(state, 0), test, lambda images: images)
    assert found == pytest.approx(expected["acc_test"])


def test_epochs_and_drops_are_the_published_ones():
    dsa = PROTOCOLS.get("dsa").recipe(INFO, "ConvNet")
    assert (dsa.epochs, dsa.drops, dsa.batch) == (1001, (502,), 256)
    assert (dsa.lr, dsa.momentum, dsa.weight_decay) == (0.01, 0.9, 5e-4)
    assert sum(dsa.rate(epoch) == dsa.lr for epoch in range(dsa.epochs)) == 502
    plain = PROTOCOLS.get("dc").recipe(INFO, "ConvNet")
    assert (plain.epochs, plain.drops, plain.augmentation) == (301, (152,), "none")


def test_dsa_uses_the_data_sets_strategy():
    info = replace(INFO, dsa_strategy="color_crop_cutout_scale_rotate")
    recipe = PROTOCOLS.get("dm").recipe(info, "ConvNet")
    assert (recipe.augmentation, recipe.strategy) == ("dsa", "color_crop_cutout_scale_rotate")


def test_dc_augments_batch_norm_networks_for_longer():
    for name in ("ConvNetBN", "convnet3_batchnorm"):
        recipe = PROTOCOLS.get("dc").recipe(INFO, name)
        assert (recipe.epochs, recipe.augmentation, recipe.strategy) == (1001, "dc", "crop_noise")
    other = PROTOCOLS.get("dc").recipe(INFO, "AlexNetBN")
    assert (other.epochs, other.augmentation) == (301, "none")


def test_a_changed_protocol_says_so():
    assert PROTOCOLS.get("dm").label == "dm"
    assert PROTOCOLS.get("dm").override(epochs=300).label == "dm[epochs=300]"
    assert PROTOCOLS.get("dm").override(epochs=1000).label == "dm"
    assert PROTOCOLS.get("dm").override(lr=0.1, strategy="none").label == "dm[lr=0.1,strategy=none]"
    changed = PROTOCOLS.get("dc").override(epochs=50)
    assert changed.label == "dc[epochs=50]"
    assert changed.recipe(INFO, "ConvNetBN").epochs == 51


def test_overrides_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"epoch.*did you mean 'epochs'"):
        PROTOCOLS.get("dm").override(epoch=3)
    with pytest.raises(ConfigError, match=r"unknown protocol 'dms'.*allowed: dc, dm, dsa"):
        PROTOCOLS.get("dms")
