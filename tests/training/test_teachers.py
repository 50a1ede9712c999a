"""Networks trained on whole splits: resident and streamed data, resume, and what the weights are good for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.tensors import digest
from raydd.core.units import Numerics, unit_key
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.networks import create_network
from raydd.training import accuracy
from raydd.training.accuracy import evaluate_accuracy, real_batches
from raydd.training.sgd import Recipe
from raydd.training.train_network import TrainNetwork, WholeSplit, features_of, restore_network
from raydd.training.training_cost import network_facts


class _Context:
    """A context in memory."""

    def __init__(self, data):
        self.device, self.data, self.rows, self._cache = torch.device("cpu"), data, [], {}

    def rng(self, stream, *ids):
        return generator(0, stream, *ids)

    def cached(self, key, make):
        return self._cache.setdefault(key, make()) if key not in self._cache else self._cache[key]

    def log(self, t, **scalars):
        self.rows.append((t, {name: float(value) for name, value in scalars.items()}))


@pytest.fixture(scope="module")
def digits():
    data = open_data(DatasetConfig(name="digits"))
    return data, with_digests(entry("digits").info, data)


def _stage(info, **options):
    recipe = Recipe(epochs=3, batch=128, lr=0.05, augmentation="dsa", strategy="crop_scale")
    return TrainNetwork(
        seed=0,
        dataset=info.only("train"),
        network="convnet2_w8_batchnorm",
        **({"recipe": recipe} | options),
    )


def test_a_network_learns_and_is_restored(digits):
    data, info = digits
    stage, ctx = _stage(info), _Context(data)
    state = stage.init("network-000", ctx)
    for t in range(stage.steps("network-000")):
        state = stage.step("network-000", state, t, ctx)
    assert [t for t, _ in ctx.rows] == [0, 1, 2]
    assert ctx.rows[-1][1]["loss"] < ctx.rows[0][1]["loss"]
    output = stage.finish("network-000", state, ctx)
    assert not [name for name in output if name.startswith("momentum.")]
    network = restore_network(stage.network, info, output, ctx.device)
    space = WholeSplit(data["test"], info, ctx)
    batches = list(space.batches(0, 128, partial(generator, 1)))
    assert evaluate_accuracy(network, batches, lambda images: images) > 0.6
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_network_resumed_between_epochs_is_the_same(digits):
    data, info = digits
    stage, ctx = _stage(info), _Context(data)
    state = stage.init("network-000", ctx)
    for t in range(2):
        state = stage.step("network-000", state, t, ctx)
    whole = stage.step("network-000", state, 2, ctx)
    resumed = stage.step(
        "network-000", {name: value.clone() for name, value in state.items()}, 2, _Context(data)
    )
    assert digest(whole) == digest(resumed)


def test_large_splits_are_streamed(digits, monkeypatch):
    data, info = digits
    rng = partial(generator, 3)
    resident = list(WholeSplit(data["train"], info, _Context(data)).batches(0, 256, rng))
    monkeypatch.setattr(accuracy, "RESIDENT_BYTES", 1000)
    split = WholeSplit(data["train"], info, _Context(data))
    assert split.kept is None
    streamed, again = list(split.batches(0, 256, rng)), list(split.batches(0, 256, rng))
    other = list(split.batches(1, 256, rng))
    for batches in (resident, streamed):
        assert sum(len(labels) for _, labels in batches) == len(data["train"])
        assert sum(float(images.double().sum()) for images, _ in batches) == pytest.approx(
            sum(float(images.double().sum()) for images, _ in other), rel=1e-6
        )
    assert all(torch.equal(a[0], b[0]) for a, b in zip(streamed, again))
    assert not torch.equal(streamed[0][0], other[0][0])
    tests = list(real_batches(data["test"], _Context(data), 100))
    assert torch.equal(
        torch.cat([images for images, _ in tests]),
        data["test"].take(torch.arange(len(data["test"]))),
    )


def test_features_are_those_before_the_last_layer(digits):
    data, info = digits
    network = create_network("convnet2_w8", info.shape, 10, generator(0, "n")).eval()
    images = data["train"].take(torch.arange(7))
    features = features_of(network, images, info, Numerics(), batch=3)
    assert features.shape == (7, network.embed_dim)
    prepared = (images.float() / 255 - info.mean[0]) / info.std[0]
    torch.testing.assert_close(
        network.classifier(features), network(prepared), rtol=1e-4, atol=1e-5
    )
    with torch.no_grad():
        network.features[0].conv.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="diverged"):
        features_of(network, images, info, Numerics())


def test_facts_of_a_network():
    facts = network_facts("mlp", (1, 8, 8), 10)
    assert facts.flop == 2 * (64 * 128 + 128 * 128 + 128 * 10)
    assert facts.parameters == 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    assert facts.features == 128
    assert facts.activations >= 128 + 128 + 10


def _run(stage, data):
    ctx = _Context(data)
    state = stage.init("network-000", ctx)
    for t in range(stage.steps("network-000")):
        state = stage.step("network-000", state, t, ctx)
    return stage.finish("network-000", state, ctx)


def test_an_earlier_epoch_is_that_of_the_whole_schedule(digits):
    data, info = digits
    recipe = Recipe(epochs=4, batch=256, lr=0.05, schedule="cosine", augmentation="pad_crop_flip")
    early = _stage(info, recipe=recipe, save_epoch=1)
    assert early.steps("network-000") == 2
    assert (
        early.cost("network-000").flop == _stage(info, recipe=recipe).cost("network-000").flop / 2
    )
    whole, ctx = _stage(info, recipe=recipe), _Context(data)
    state = whole.init("network-000", ctx)
    for t in range(2):
        state = whole.step("network-000", state, t, ctx)
    assert digest(_run(early, data)) == digest(whole.finish("network-000", state, ctx))
    with pytest.raises(ConfigError, match="save_epoch must be from 0 to 3, of 4 epochs, not 4"):
        _stage(info, recipe=recipe, save_epoch=4)


@dataclass(frozen=True)
class _Given:
    """Weights of a network drawn with a seed, but for the last layer."""

    seed: int

    def fill(self, network):
        other = create_network(
            network.name, network.shape, network.classes, generator(self.seed, "given")
        )
        network.load_state_dict(
            other.state_dict()
            | {k: v for k, v in network.state_dict().items() if k.startswith("classifier.")}
        )


def test_a_training_starts_from_given_weights_and_is_keyed_by_them(digits):
    data, info = digits
    untrained = Recipe(epochs=0)
    fresh, given = (
        _run(_stage(info, recipe=untrained, start=start), data) for start in (None, _Given(5))
    )
    theirs = create_network("convnet2_w8_batchnorm", info.shape, 10, generator(5, "given"))
    for name, value in theirs.named_parameters():
        source = fresh[f"params.{name}"] if name.startswith("classifier.") else value
        assert torch.equal(given[f"params.{name}"], source)
    keys = {
        unit_key(_stage(info, start=start), "network-000") for start in (None, _Given(5), _Given(6))
    }
    assert len(keys) == 3
    trained = _run(_stage(info, recipe=Recipe(epochs=1, batch=256, lr=0.01), start=_Given(5)), data)
    assert not torch.equal(
        trained["params.features.0.conv.weight"], given["params.features.0.conv.weight"]
    )


def test_a_teacher_with_an_average_is_its_average(digits):
    data, info = digits
    stage, ctx = (
        _stage(info, recipe=Recipe(epochs=1, batch=256, lr=0.05, optimizer="adamw", ema=0.9)),
        _Context(data),
    )
    state = stage.step("network-000", stage.init("network-000", ctx), 0, ctx)
    output = stage.finish("network-000", state, ctx)
    assert torch.equal(output["params.classifier.weight"], state["ema.classifier.weight"][0])
    assert all(
        name.startswith(("params.", "buffers.")) or name in ("train_accuracy", "images")
        for name in output
    )
    assert 2 * _stage(info).cost("network-000").state_bytes == stage.cost("network-000").state_bytes


def test_padded_crops_are_filled_with_black(digits):
    data, info = digits
    stage = _stage(info, recipe=Recipe(epochs=1, augmentation="pad_crop_flip"))
    augment = stage._training("network-000", _Context(data)).augment
    out = augment(torch.zeros(1, 64, *info.shape), [generator(0, "draw")])
    black = -info.mean[0] / info.std[0]
    assert sorted(set(out.flatten().tolist())) == pytest.approx([black, 0.0])
