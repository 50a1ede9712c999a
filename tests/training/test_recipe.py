"""Recipes and schedules: published rates, and fields that would have no effect."""

from __future__ import annotations

import math

import pytest
import torch

from raydd.core.errors import ConfigError
from raydd.training.recipe import Recipe
from raydd.training.schedules import alrs_factor, rate


def _factors(name, epochs, at, **numbers):
    recipe = Recipe(epochs=epochs, lr=1e-3, schedule=name, **numbers)
    return [recipe.rate(epoch) / 1e-3 for epoch in at]


def test_rates_follow_the_drops():
    recipe = Recipe(epochs=10, lr=0.01, drops=(5, 8), drop_factor=0.1)
    assert [recipe.rate(t) for t in (0, 4, 5, 7, 8)] == pytest.approx(
        [0.01, 0.01, 0.001, 0.001, 0.0001]
    )


def test_edc_trains_with_a_line():
    recipe = Recipe(epochs=300, lr=1e-3, schedule="linear_st", st=2)
    assert [recipe.rate(e) for e in (0, 150, 299)] == pytest.approx(
        [1e-3, 7.5e-4, 5.017e-4], rel=1e-4
    )


def test_the_cosines_are_the_published_ones():
    assert _factors("cos_st", 300, (0, 150, 299), st=2) == pytest.approx(
        [1, 0.8536, 0.5026], abs=5e-5
    )
    found = _factors("cos2_st", 300, (0, 150, 250, 251, 299), st=2)
    assert found == pytest.approx([1, 0.8536, 0.6294, 0.1028, 0.0021], abs=5e-5)
    assert _factors("cosine", 50, (0, 25, 40)) == pytest.approx([1, 0.5, 0.0955], abs=5e-5)
    # Twenty epochs of a cosine that would end after sixty: ImageNet-10's teachers
    # (docs/methods/recovery.md, "Teachers").
    assert _factors("cos_st", 20, (0, 10, 19), st=3) == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * e / 60)) for e in (0, 10, 19)]
    )
    assert _factors("constant", 20, (0, 19)) == [1, 1]


def test_a_warm_up_rises_to_the_rate_before_the_schedule_begins():
    recipe = Recipe(epochs=200, lr=0.2, schedule="cosine", warmup=5)
    rising = [0.002, 0.0416, 0.0812, 0.1208, 0.1604]
    assert [recipe.rate(epoch) for epoch in range(5)] == pytest.approx(rising)
    assert [recipe.rate(e) for e in (5, 6, 99)] == pytest.approx(
        [0.2, 0.199987, 0.105636], abs=5e-7
    )
    assert recipe.rate(199) == pytest.approx(1.298e-5, rel=1e-3)
    assert recipe.effective((32, 32))["warmup"] == 5
    assert "warmup" not in Recipe(epochs=2, schedule="cosine").effective((32, 32))
    with pytest.raises(ConfigError, match="warmup=5 must be below the 5 epochs"):
        Recipe(epochs=5, schedule="cosine", warmup=5)
    with pytest.raises(ConfigError, match="warmup=5 has no effect with schedule 'steps'"):
        Recipe(epochs=10, warmup=5)


@pytest.mark.parametrize("name", ["cosine", "multistep"])
def test_schedules_are_those_of_torch(name):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs, numbers = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 12), {}
    if name == "multistep":
        numbers = {"milestones": (3, 7, 8), "drop_factor": 0.5}
        theirs = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 7, 8], 0.5)
    recipe = Recipe(epochs=12, lr=0.1, schedule=name, **numbers)
    for epoch in range(12):
        assert recipe.rate(epoch) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimiser.step()
        theirs.step()


def test_rates_never_rise_and_stay_above_zero():
    numbers = {
        "linear_st": {"st": 1},
        "cos_st": {"st": 1.5},
        "cos2_st": {"st": 3},
        "multistep": {"milestones": (4,)},
    }
    for name in (
        "steps",
        "constant",
        "cosine",
        "linear_st",
        "cos_st",
        "cos2_st",
        "multistep",
        "alrs",
    ):
        rates = _factors(name, 11, range(11), **numbers.get(name, {}))
        assert rates == sorted(rates, reverse=True)
        assert min(rates) > 0


def test_alrs_shrinks_where_the_loss_stands_still():
    last = torch.tensor([torch.inf, 1.0, 1.0, 0.5, 0.5, 5.0])
    loss = torch.tensor([1.0, 0.99, 0.97, 0.495, 0.515, 4.95])
    found = alrs_factor(torch.full((6,), 0.5), last, loss)
    assert found.tolist() == pytest.approx([0.5, 0.5 * 0.9975, 0.5, 0.5 * 0.9975, 0.5, 0.5])
    assert rate("alrs", 0.1, 7, 10) == 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, not 0"),
        ({"augmentation": "dsa"}, "needs a strategy"),
        (
            {"strategy": "crop"},
            r"strategy=crop has no effect with augmentation 'none'; it needs augmentation dsa or dc",
        ),
        ({"ce_weight": 0.1}, r"ce_weight=0.1 has no effect with loss 'ce'; it needs loss mse_gt"),
        (
            {"loss": "kl", "temperature": 4.0, "ce_weight": 0.1},
            "ce_weight=0.1 has no effect with loss 'kl'",
        ),
        ({"loss": "mse_gt"}, "loss 'mse_gt' needs a ce_weight"),
        ({"loss": "kl"}, "loss 'kl' needs a temperature"),
        ({"loss": "kd"}, r"unknown loss 'kd'"),
        ({"schedule": "cos_st"}, "schedule 'cos_st' needs st"),
        (
            {"schedule": "cosine", "st": 2.0},
            "st=2.0 has no effect with schedule 'cosine'; it needs schedule linear_st or cos_st",
        ),
        ({"schedule": "cos_st", "st": 0.5}, "st must be at least 1, not 0.5"),
        ({"schedule": "cosinus"}, "did you mean 'cosine'"),
        ({"schedule": "cosine", "drops": (1,)}, r"drops=\(1,\) has no effect"),
        ({"schedule": "cosine", "drop_factor": 0.5}, "drop_factor=0.5 has no effect"),
        ({"schedule": "multistep"}, "needs milestones"),
        (
            {"draw": "images", "drop_last": True},
            "drop_last=True has no effect with draw 'images'; it needs draw epochs",
        ),
        (
            {"optimizer": "adamw", "momentum": 0.8},
            "momentum=0.8 has no effect with optimizer 'adamw'",
        ),
        ({"betas": (0.5, 0.9)}, "betas=.* has no effect with optimizer 'sgd'"),
        ({"ema": 1.0}, "ema must be between 0 and 1, not 1.0"),
        ({"pad": 4}, "pad=4 has no effect"),
        ({"augmentation": "resized_crop_flip", "scale": (0.5, 0.2)}, "scale must be a range"),
    ],
)
def test_recipes_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(epochs=3, **fields)


def test_trainings_that_differ_in_rate_and_length_share_a_step():
    one = Recipe(
        epochs=3,
        optimizer="adamw",
        loss="kl",
        temperature=20.0,
        ema=0.9,
        schedule="cosine",
        lr=0.1,
        batch=7,
    )
    other = Recipe(
        epochs=9,
        optimizer="adamw",
        loss="kl",
        temperature=20.0,
        ema=0.9,
        augmentation="dsa",
        strategy="crop",
    )
    assert one.of_step() == other.of_step()
    assert (
        one.of_step()
        != Recipe(epochs=3, optimizer="adamw", loss="kl", temperature=4.0, ema=0.9).of_step()
    )
    assert (Recipe(epochs=1).copies, one.copies) == (2, 4)


def test_a_last_smaller_batch_is_left_out_where_there_is_a_whole_one() -> None:
    kept, left_out = Recipe(epochs=1, batch=256), Recipe(epochs=1, batch=256, drop_last=True)
    counts = (100, 256, 257, 512, 50_000)
    assert [kept.updates(count) for count in counts] == [1, 1, 2, 2, 196]
    assert [left_out.updates(count) for count in counts] == [1, 1, 1, 2, 195]
    assert [left_out.seen(count) for count in counts] == [100, 256, 256, 512, 49_920]
    drawn = Recipe(epochs=1, batch=256, draw="images")
    assert (drawn.seen(1000), drawn.updates(1000)) == (256, 1)


def test_what_counts_of_a_recipe_is_told_alone() -> None:
    plain = Recipe(epochs=4, drops=(3,)).effective((28, 28))
    assert plain == {
        "epochs": 4,
        "batch": 256,
        "lr": 0.01,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "decay": "all",
        "schedule": "steps",
        "drops": [3],
        "drop_factor": 0.1,
        "loss": "ce",
        "augmentation": "none",
    }
    adam = Recipe(
        epochs=4,
        optimizer="adamw",
        schedule="linear_st",
        st=2.0,
        loss="mse_gt",
        ce_weight=0.1,
        ema=0.9,
        accumulate=2,
        augmentation="pad_crop_flip",
    ).effective((28, 20))
    assert adam.keys() - plain.keys() == {"betas", "st", "ce_weight", "ema", "accumulate", "pad"}
    assert plain.keys() - adam.keys() == {"momentum", "drops", "drop_factor"}
    assert adam["pad"] == 2, "an eighth of the shorter side, as images are padded"
    assert Recipe(epochs=1, augmentation="resized_crop_flip").effective((8, 8))["scale"] == [
        0.08,
        1.0,
    ]
    assert "drop_factor" not in Recipe(epochs=4).effective((8, 8)), "of a schedule that never falls"
