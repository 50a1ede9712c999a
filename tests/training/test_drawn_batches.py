"""Training sets of which every step sees a fresh batch."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch

from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.units import Numerics, canonical
from raydd.training.drawn_batches import DrawnBatches
from raydd.training.recipe import Recipe
from raydd.training.students import StudentTraining

LABELS = torch.tensor([0, 2, 2, 1, 0, 2, 1, 2, 0, 1, 2, 2])
RNG = partial(generator, 3)


def drawn(size: int, epochs: int, *, by_class: bool) -> list[list[int]]:
    """Return the ids of each epoch's only batch."""
    data = DrawnBatches(LABELS, lambda ids: (ids, LABELS[ids]), by_class=by_class)
    batches = [list(data.batches(epoch, size, RNG)) for epoch in range(epochs)]
    assert all(len(of_epoch) == 1 for of_epoch in batches), "an epoch is one step"
    for ((ids, labels),) in batches:
        assert torch.equal(labels, LABELS[ids])
        assert ids.tolist() == sorted(set(ids.tolist()))
    return [of_epoch[0][0].tolist() for of_epoch in batches]


def test_images_are_drawn_whatever_their_class() -> None:
    batches = drawn(4, 300, by_class=False)
    assert {len(ids) for ids in batches} == {4}
    counts = Counter(i for ids in batches for i in ids)
    assert sorted(counts) == list(range(12))
    assert max(counts.values()) < 1.6 * min(counts.values())
    assert batches == drawn(4, 300, by_class=False), "the draws are keyed"


@pytest.mark.parametrize(("size", "each"), [(6, 2), (8, 2), (9, 3)])
def test_as_many_images_of_each_class(size: int, each: int) -> None:
    for ids in drawn(size, 50, by_class=True):
        assert Counter(LABELS[ids].tolist()) == {0: each, 1: each, 2: each}


def test_a_batch_of_fewer_images_than_classes_has_one_each_of_some() -> None:
    batches = drawn(2, 60, by_class=True)
    assert {len({int(LABELS[i]) for i in ids}) for ids in batches} == {2}
    assert {int(LABELS[i]) for ids in batches for i in ids} == {0, 1, 2}


@pytest.mark.parametrize("by_class", [False, True])
def test_what_fits_one_batch_comes_whole(by_class: bool) -> None:
    assert drawn(12, 2, by_class=by_class) == [list(range(12))] * 2
    assert drawn(256, 2, by_class=by_class) == [list(range(12))] * 2


def test_a_recipe_counts_what_an_epoch_goes_through() -> None:
    assert Recipe(epochs=1, batch=4).seen(12) == 12
    assert Recipe(epochs=1, batch=4, draw="images").seen(12) == 4
    assert Recipe(epochs=1, batch=40, draw="classes").seen(12) == 12
    with pytest.raises(ConfigError, match="class"):
        Recipe(epochs=1, draw="class")  # type: ignore[arg-type]
    assert "draw" not in canonical(Recipe(epochs=1)), "what was trained before keeps its key"
    assert canonical(Recipe(epochs=1, draw="images"))["draw"] == "images"


def test_steps_are_those_of_torchs_adam() -> None:
    """Students of a protocol with fresh batches, beside torch's own optimiser on the same batches."""
    images = torch.randn((12, 1, 8, 8), generator=generator(0, "images"), dtype=torch.float64)
    recipe = Recipe(
        epochs=5, batch=6, lr=1e-2, optimizer="adamw", weight_decay=0.0, schedule="constant", draw="classes"
    )  # fmt: skip
    training = StudentTraining(
        network="convnet1_w4", shape=(1, 8, 8), classes=3, recipe=recipe, numerics=Numerics(),
        repeats=[0], rng=RNG, device=torch.device("cpu"), dtype=torch.float64,
    )  # fmt: skip
    data = DrawnBatches(LABELS, lambda ids: (images[ids], LABELS[ids]), by_class=True)
    state = training.init()
    network = training.create(training.rngs[0]("init")).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for epoch in range(5):
        state, _, _ = training.epoch(state, epoch, data)
        ((x, y),) = data.batches(epoch, 6, training.rngs[0])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        if not name.endswith("conv.bias"):  # of no effect before a norm
            assert torch.allclose(state[f"params.{name}"][0], parameter, rtol=1e-9, atol=1e-12)
