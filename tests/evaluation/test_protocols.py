"""Protocols: schedules, names, strategies, and the published loop's own numbers (T6 of docs/methods/parity.md)."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from raydd.config import parse_job
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.typed_tree import build
from raydd.core.units import Numerics
from raydd.data.catalog import DatasetInfo
from raydd.evaluate import main as evaluate
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.protocols import OVERRIDES, PROTOCOLS
from raydd.training.accuracy import Examiner
from raydd.training.recipe import Recipe
from raydd.training.sgd import stack_states, unstack_state
from raydd.training.students import ResidentSet, StudentTraining

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_dc_dsa_dm.json").read_text())[
    "evaluate_synset_6epochs"
]
INFO = DatasetInfo(
    name="rgb", classes=10, channels=3, height=32, width=32, mean=(0.0,) * 3, std=(1.0,) * 3
)


def _normal(seed, shape):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def _fixture_state(state):
    """Fill a student's state with numbers of docs/methods/parity.md, "Weights and images of DC, DSA and DM"."""
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
    values = torch.cat(
        [state[name].flatten().double() for name in state if name.startswith("params.")]
    )
    assert float(values.sum()) == pytest.approx(expected["params"]["sum"], rel=1e-4)
    assert float(values.abs().sum()) == pytest.approx(expected["params"]["abssum"], rel=1e-4)
    assert float((values**2).sum()) == pytest.approx(expected["params"]["sq"], rel=1e-4)
    assert values[:4].tolist() == pytest.approx(expected["params"]["first"], rel=1e-3)
    assert float(accuracy) == pytest.approx(expected["acc_train"])
    test = [(_normal(22, (40, 3, 32, 32)).float(), torch.arange(40) % 10)]
    found = Examiner(training.network, Numerics()).accuracy(
        unstack_state(state, 0), test, lambda images: images
    )
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
    assert PROTOCOLS.get("idm").recipe(info, "ConvNet").strategy == INFO.dsa_strategy, (
        "IDM's commands have all six on every data set"
    )


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
    with pytest.raises(
        ConfigError,
        match=r"unknown protocol 'dms'.*allowed: dc, dm, dsa, dwa, edc, gvbsm, idm, infer, itgan, podd, rat_bptt, rded,"
        r" sre2l",
    ):
        PROTOCOLS.get("dms")


def test_the_command_s_help_names_every_protocol():
    (option,) = (option for option in evaluate.params if option.name == "protocol")
    assert isinstance(option, click.Option)
    listed = str(option.help).split(": ", 1)[1].split(" (")[0]
    assert listed.split(", ") == sorted(PROTOCOLS)


IMAGENET = DatasetInfo(
    name="big", classes=1000, channels=3, height=224, width=224, mean=(0.0,) * 3, std=(1.0,) * 3
)
ADAMW = {
    "epochs": 300,
    "optimizer": "adamw",
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "weight_decay": 0.01,
    "decay": "matrices_only",
}
PUBLISHED = {
    "edc": {
        "batch": 100,
        "schedule": "linear_st",
        "st": 2.0,
        "loss": "mse_gt",
        "ce_weight": 0.025,
        "ema": 0.99,
    },
    "sre2l": {
        "batch": 1024,
        "accumulate": 2,
        "schedule": "cosine",
        "loss": "kl",
        "temperature": 20.0,
    },
    "dwa": {"batch": 128, "schedule": "cosine", "loss": "kl", "temperature": 20.0},
    "gvbsm": {"batch": 1024, "schedule": "cosine", "loss": "mse_gt", "ce_weight": 0.1},
    "rded": {
        "batch": 100,
        "schedule": "cos_st",
        "st": 2.0,
        "loss": "kl",
        "temperature": 20.0,
        "double_norm": True,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_imagenet_are_the_published_ones(name):
    """Those of docs/methods/evaluation.md, "Protocols"."""
    protocol = PROTOCOLS.get(name)
    assert protocol.recipe(IMAGENET, "resnet18") == Recipe(**ADAMW, **PUBLISHED[name])
    assert protocol.label == name
    assert protocol.learns_logits


def test_infer_is_judged_as_published_for_cifar():
    protocol = PROTOCOLS.get("infer")
    changes = {"epochs": 400, "decay": "all", "batch": 64, "schedule": "cosine"}
    wanted = Recipe(**{**ADAMW, **changes}, loss="kl", temperature=30.0)
    assert protocol.recipe(IMAGENET, "resnet18_cifar_batchnorm") == wanted
    assert protocol.learns_logits


def test_edc_is_trained_with_a_line_of_rates():
    recipe = PROTOCOLS.get("edc").recipe(IMAGENET, "resnet18")
    assert [recipe.rate(e) for e in (0, 150, 299)] == pytest.approx(
        [1e-3, 7.5e-4, 5.017e-4], rel=1e-4
    )


def test_rded_has_rates_by_network():
    rded = PROTOCOLS.get("rded")
    rates = {
        "resnet50": 1e-3,
        "efficientnet_b0": 2e-3,
        "mobilenet_v2": 2.5e-3,
        "alexnet": 1e-4,
        "vit_b_16": 1e-4,
        "vgg11": 5e-4,
    }
    assert {name: rded.recipe(IMAGENET, name).lr for name in rates} == rates
    changed = rded.override(lr=1e-3)
    assert {changed.recipe(IMAGENET, name).lr for name in rates} == {1e-3}
    assert changed.label == "rded[lr=0.001]"


def test_protocols_of_dc_are_recipes_of_sgd():
    expected = {"batch": 256, "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    for name in ("dc", "dsa", "dm", "idm"):
        recipe = PROTOCOLS.get(name).override(strategy="none", epochs=1000).recipe(INFO, "ConvNet")
        assert recipe == Recipe(epochs=1001, drops=(502,), **expected)
        assert not PROTOCOLS.get(name).learns_logits


JOBS = {
    "cifar100": (
        {"epochs": 1000, "batch": 50, "lr": 0.1, "schedule": "cos2_st", "st": 2.0}
        | {"optimizer": "sgd", "momentum": 0.875, "weight_decay": 5e-4},
        "edc[epochs=1000,batch=50,lr=0.1,optimizer=sgd,momentum=0.875,weight_decay=0.0005,schedule=cos2_st,st=2.0]",
    ),
    "cifar10": (
        {
            "epochs": 1000,
            "batch": 10,
            "schedule": "multistep",
            "milestones": [800, 900, 950],
            "drop_factor": 0.5,
        },
        "edc[epochs=1000,batch=10,schedule=multistep,milestones=800/900/950,drop_factor=0.5]",
    ),
    "the true cosine": ({"schedule": "cos_st"}, "edc[schedule=cos_st,st=2.0]"),
    "hard labels": ({"loss": "ce"}, "edc[loss=ce]"),
    "other labels": ({"loss": "kl", "temperature": 20}, "edc[loss=kl,temperature=20.0]"),
    "no average": ({"ema": 0}, "edc[ema=0.0]"),
    "one norm": (
        {"protocol": "rded", "double_norm": False, "decay": "all"},
        "rded[decay=all,double_norm=False]",
    ),
    "as published": ({"epochs": 300, "ce_weight": 0.025}, "edc"),
}


@pytest.mark.parametrize("job", JOBS)
def test_jobs_change_protocols_and_their_names_say_so(job):
    """EDC's for small data sets (docs/methods/edc.md, "Published settings"), as a job writes them."""
    changes, label = JOBS[job]
    protocol = build(EvaluationConfig, {"protocol": "edc", **changes}, "job").resolve()
    assert protocol.label == label
    recipe = protocol.recipe(INFO, "resnet18")
    for name, value in changes.items():
        if name != "protocol":
            assert getattr(recipe, name) == (
                (tuple(value) if isinstance(value, list) else value)
                or getattr(Recipe(epochs=1), name)
            )


def test_numbers_that_count_no_longer_are_dropped():
    edc = PROTOCOLS.get("edc")
    assert edc.override(schedule="cosine").recipe(IMAGENET, "resnet18").st is None
    assert edc.override(loss="kl", temperature=4.0).recipe(IMAGENET, "resnet18").ce_weight is None
    assert PROTOCOLS.get("edc").with_hard_labels().label == "edc[loss=ce]"
    assert PROTOCOLS.get("dm").with_hard_labels() == PROTOCOLS.get("dm")
    stepped = edc.override(schedule="multistep", milestones=(100,))
    assert (
        stepped.override(epochs=60).recipe(IMAGENET, "resnet18").rate(59) == 1e-3
    )  # a shorter training may miss the drop


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"protocol": "sre2l", "ce_weight": 0.1},
            "protocol 'sre2l': ce_weight=0.1 has no effect with loss 'kl'; it needs loss mse_gt",
        ),
        ({"protocol": "dm", "temperature": 4}, "temperature=4.0 has no effect with loss 'ce'"),
        ({"protocol": "gvbsm", "st": 2}, "st=2.0 has no effect with schedule 'cosine'"),
        (
            {"momentum": 0.8},
            "momentum=0.8 has no effect with optimizer 'adamw'; it needs optimizer sgd",
        ),
        ({"drop_factor": 0.5}, "drop_factor=0.5 has no effect with schedule 'linear_st'"),
        ({"loss": "ce", "ce_weight": 0.1}, "ce_weight=0.1 has no effect with loss 'ce'"),
        ({"loss": "kl"}, "protocol 'edc': loss 'kl' needs a temperature"),
        ({"protocol": "sre2l", "schedule": "cos_st"}, "schedule 'cos_st' needs st"),
        ({"schedule": "multistep"}, "needs milestones"),
        (
            {"schedule": "multistep", "milestones": [400]},
            "milestones=400 has no effect, there are 300 epochs",
        ),
        ({"strategy": "crop"}, "has no augmentation, so strategy 'crop' has no effect"),
        ({"protocol": "dm", "strategy": "color_zoom"}, "unknown DSA operation 'zoom'"),
        ({"protocol": "dc", "strategy": "color"}, "unknown DC operation 'color'"),
    ],
)
def test_changes_without_effect_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(EvaluationConfig, {"protocol": "edc", **changes}, "job").resolve()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schedule", "cosin", "cosine"),
        ("optimizer", "adam", "adamw"),
        ("ema", 1, "less than 1"),
        ("st", 0.5, "greater than or equal to 1"),
    ],
)
def test_a_jobs_wrong_values_are_named(key, value, message):
    with pytest.raises(ConfigError, match=rf"(?s)evaluation\.{key}.*{message}"):
        parse_job(
            {
                "dataset": {"name": "digits"},
                "method": "dm",
                "evaluation": {"protocol": "edc", key: value},
            }
        )


def test_drops_may_be_fixed():
    """201 epochs, a new optimiser at the one of index 100, a last partial batch left out."""
    fixed = PROTOCOLS.get("dm").override(epochs=200, drops=(100,), drop_last=True)
    recipe = fixed.recipe(INFO, "ConvNet")
    assert (recipe.epochs, recipe.drops, recipe.drop_last) == (201, (100,), True)
    assert [recipe.rate(epoch) for epoch in (0, 99, 100, 200)] == pytest.approx(
        [0.01, 0.01, 0.001, 0.001]
    )
    assert fixed.label == "dm[epochs=200,drops=100,drop_last=True]"
    assert PROTOCOLS.get("dm").override(epochs=200).recipe(INFO, "ConvNet").drops == (102,)
    assert fixed.override(schedule="cosine").recipe(INFO, "ConvNet").drops == ()
    assert fixed.override(epochs=50).recipe(INFO, "ConvNet").rate(50) == 0.01
    with pytest.raises(ConfigError, match=r"drops=201 has no effect, there are 201 epochs$"):
        fixed.override(drops=(201,))
    with pytest.raises(ConfigError, match=r"drops=\(1,\) has no effect with schedule 'cosine'"):
        PROTOCOLS.get("sre2l").override(drops=(1,))


def test_every_change_is_a_field_of_protocols_and_of_jobs():
    assert set(OVERRIDES) <= set(EvaluationConfig.__dataclass_fields__)
    assert set(OVERRIDES) <= set(type(PROTOCOLS.get("dm")).__dataclass_fields__)


def test_itgan_drops_at_100_and_leaves_the_last_batch_out():
    """201 epochs of whole batches; a set of less than one batch keeps it."""
    recipe = PROTOCOLS.get("itgan").recipe(INFO, "ConvNet")
    assert (recipe.epochs, recipe.drops, recipe.batch) == (201, (100,), 256)
    assert [recipe.rate(epoch) for epoch in (0, 99, 100, 200)] == pytest.approx(
        [0.01, 0.01, 0.001, 0.001]
    )
    assert recipe.epochs * recipe.updates(50_000) == 201 * 195
    assert [recipe.seen(count) for count in (100, 256, 300, 600)] == [100, 256, 256, 512]
    short = PROTOCOLS.get("itgan").override(epochs=60)
    assert short.recipe(INFO, "ConvNet").drops == (30,), "drops move along"
    assert short.label == "itgan[epochs=60,drops=30]"
    assert PROTOCOLS.get("itgan").override(epochs=60, drops=(50,)).drops == (50,)
