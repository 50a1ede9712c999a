"""A generator trained against a discriminator: one round written out, averages, statistics, settings, resumption."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from stage_context import StageContext

from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.core.units import Data
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.datasets import with_digests
from raydd.networks.biggan import Generator, take_statistics_
from raydd.networks.folded_generator import check_folded, generate
from raydd.training.generator_config import GeneratorConfig
from raydd.training.train_generator import TrainGenerator


def stage(info: DatasetInfo, **changes: Any) -> TrainGenerator:
    sizes = GeneratorConfig(width=8, dim_z=6).sizes(info)
    fields: dict[str, Any] = {
        "seed": 1,
        "dataset": info.only("train"),
        "sizes": sizes,
        "rounds": 4,
        "batch": 16,
        "d_steps": 2,
        "lr": 1e-3,
        "lr_discriminator": 2e-3,
        "ema": 0.9,
        "ema_start": 2,
        "augment": "crop_cutout",
        "flip": False,
        "standing": 3,
    }
    return TrainGenerator(**(fields | changes))


@pytest.fixture
def info(digits: Mapping[str, Data]) -> DatasetInfo:
    return with_digests(entry("digits").info, digits)


def trained(one: TrainGenerator, digits: Mapping[str, Data]) -> tuple[list[Tensors], StageContext]:
    """Return the states before and after each round."""
    ctx = StageContext(one, data=digits)
    states = [one.init("generator", ctx)]
    for t in range(one.rounds):
        states.append(one.step("generator", states[-1], t, ctx))
    return states, ctx


def test_a_round_moves_both_and_averages_the_generator(
    info: DatasetInfo, digits: Mapping[str, Data]
) -> None:
    states, ctx = trained(stage(info), digits)
    for name in ("made.weights", "judge.weights", "made.vectors", "judge.vectors"):
        for before, after in itertools.pairwise(states):
            assert not torch.equal(before[name], after[name]), name
    # Adam without momentum: a first step is the rate in the direction of the gradient's sign.
    first = (states[1]["made.weights"] - states[0]["made.weights"]).abs()
    assert float(first.max()) == pytest.approx(1e-3, rel=1e-3)
    assert torch.equal(states[2]["average"], states[2]["made.weights"]), "copied until ema_start"
    expected = 0.9 * states[2]["average"] + 0.1 * states[3]["made.weights"]
    assert torch.allclose(states[3]["average"], expected, atol=1e-7)
    assert set(ctx.rows[0]) == {"loss", "generator_loss"}
    # Of a discriminator that scores near zero, hinge losses are near two.
    assert ctx.rows[0]["loss"] == pytest.approx(2, abs=0.2)


def test_a_round_depends_on_its_state_and_number_alone(
    info: DatasetInfo, digits: Mapping[str, Data]
) -> None:
    one = stage(info)
    states, ctx = trained(one, digits)
    again = one.step("generator", states[2], 2, StageContext(one, data=digits))
    assert all(torch.equal(again[name], value) for name, value in states[3].items())
    assert set(again) == set(states[3])
    before = {name: value.clone() for name, value in states[4].items()}
    outputs = [one.finish("generator", states[4], ctx) for _ in range(2)]
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[0])
    assert all(torch.equal(before[name], value) for name, value in states[4].items())
    check_folded(outputs[0], one.sizes)


def test_the_discriminator_takes_means_where_asked(
    info: DatasetInfo, digits: Mapping[str, Data]
) -> None:
    of_sums, of_means = (trained(stage(info, pooling=how), digits)[0] for how in ("sum", "mean"))
    assert torch.equal(of_sums[0]["judge.weights"], of_means[0]["judge.weights"])
    assert not torch.equal(of_sums[1]["judge.weights"], of_means[1]["judge.weights"])


def test_the_statistics_are_those_of_made_images(
    info: DatasetInfo, digits: Mapping[str, Data]
) -> None:
    """In eval mode, with fresh latents, activations before the last layer have the statistics of training."""
    one = stage(info, rounds=30, standing=20)
    states, ctx = trained(one, digits)
    folded = one.finish("generator", states[-1], ctx)
    z = torch.randn(2000, 6, generator=ctx.rng("probe"))
    labels = torch.arange(2000) % 10
    images = generate(folded, one.sizes, z, labels)
    made = Generator(one.sizes)
    offset = 0
    for parameter in made.parameters():
        count = parameter.numel()
        parameter.data.copy_(states[-1]["average"][offset : offset + count].view_as(parameter))
        offset += count
    take_statistics_(made, [(z, labels)] * 30)  # the power steps find the singular values meanwhile
    exact = made.eval()(z, labels)
    assert float((images - exact).detach().abs().mean()) < 0.05 * float(exact.detach().std())


def test_real_images_are_mirrored_where_asked(
    info: DatasetInfo, digits: Mapping[str, Data]
) -> None:
    plain, flipped = stage(info), stage(info, flip=True)
    of_plain, of_flipped = (
        one._real(ctx.rng("round", 0), ctx)[0]
        for one, ctx in ((one, StageContext(one, data=digits)) for one in (plain, flipped))
    )
    assert float(of_plain.min()) == -1.0
    assert float(of_plain.max()) <= 1.0
    same = (of_plain == of_flipped).flatten(1).all(1)
    turned = (of_plain.flip(3) == of_flipped).flatten(1).all(1)
    assert bool((same | turned).all())
    assert 0 < int(turned.sum()) < len(turned)


@pytest.mark.parametrize(
    ("side", "bottom", "blocks"), [(8, 2, 2), (28, 7, 2), (32, 4, 3), (64, 4, 4), (48, 6, 3)]
)
def test_sizes_follow_from_the_side(info: DatasetInfo, side: int, bottom: int, blocks: int) -> None:
    of = dataclasses.replace(info, height=side, width=side)
    sizes = GeneratorConfig().sizes(of)
    assert (sizes.bottom, sizes.blocks, sizes.side) == (bottom, blocks, side)
    assert GeneratorConfig(bottom=bottom).sizes(of) == sizes
    assert GeneratorConfig(blocks=blocks).sizes(of) == sizes


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({}, (28, 32), "square images"),
        ({}, (27, 27), "27"),
        ({}, (30, 30), "30"),
        ({"bottom": 3}, (28, 28), "pixels; those of digits have 28"),
        ({"blocks": 3}, (28, 28), "makes images of 24 pixels; those of digits have 28"),
    ],
)
def test_sizes_that_cannot_be(
    info: DatasetInfo, changes: dict[str, Any], shape: tuple[int, int], message: str
) -> None:
    of = dataclasses.replace(info, height=shape[0], width=shape[1])
    with pytest.raises(ConfigError, match=message):
        GeneratorConfig(**changes).sizes(of)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "crop_flp"}, "did you mean 'flip'"),
        ({"rounds": 10, "ema_start": 10}, "below the 10 rounds"),
        ({"weights": "g.pth", "rounds": 5}, "rounds=5 has no effect"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GeneratorConfig(**changes)


def test_what_is_left_open_follows_the_data(info: DatasetInfo) -> None:
    colour = entry("cifar10").info
    assert GeneratorConfig().operations(info) == "crop_cutout"
    assert GeneratorConfig().operations(colour) == "color_crop_cutout"
    assert (GeneratorConfig().mirrors(info), GeneratorConfig().mirrors(colour)) == (False, True)
    assert [GeneratorConfig(rounds=n).averaged_from for n in (30, 900, 100_000)] == [10, 300, 1000]
