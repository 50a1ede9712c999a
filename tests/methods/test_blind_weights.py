"""Weights without gradient: seen when a job is planned, mended where a library starts scales at
zero, refused where a head is zero.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.units import Numerics, stage_digest
from raydd.data.catalog import DatasetInfo
from raydd.methods import METHODS, Problem
from raydd.methods.matching import blind_weights
from raydd.methods.matching.blind_weights import blind_share, check_blindness
from raydd.methods.matching.gradient_matching import MatchGradients
from raydd.networks import create_network
from raydd.networks.initialise import scales_at_one_, zero_scales

INFO = DatasetInfo(
    name="toy",
    classes=4,
    channels=3,
    height=32,
    width=32,
    mean=(0.5,) * 3,
    std=(0.2,) * 3,
    train_counts=(20,) * 4,
    test_count=8,
)
PROBLEM = Problem(dataset=INFO, ipc=1, seed=0, numerics=Numerics())
RESNET, VIT = "timm/test_resnet", "torchvision/vit_b_16"


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.set_num_threads(1)
    check_blindness.cache_clear()


def test_scales_of_zero_hide_nearly_all_weights_and_ones_open_them() -> None:
    share, whole, _ = blind_share(RESNET, INFO.shape, 4, "ours")
    assert share > 0.9
    assert whole > 0.85
    opened, whole, _ = blind_share(RESNET, INFO.shape, 4, "ours", "ones")
    assert opened < 0.7  # most of a 3x3 kernel sees the padding of maps of one pixel
    assert whole == 0
    with pytest.raises(
        ConfigError,
        match=r"method\.network=timm/test_resnet: of the weights whose gradients are matched, 9\d% have none",
    ):
        check_blindness(RESNET, INFO.shape, 4, "ours")


def test_scales_are_those_of_the_library_without_its_zeros() -> None:
    import timm

    network = create_network(RESNET, INFO.shape, 4, generator(0, "x"))
    assert len(zero_scales(network)) == 4
    before = {name: value.clone() for name, value in network.named_parameters()}
    scales_at_one_(network)
    changed = {
        name for name, value in network.named_parameters() if not torch.equal(value, before[name])
    }
    with torch.random.fork_rng():
        theirs = timm.create_model("test_resnet", zero_init_last=False)
        zeros = {
            name
            for name, value in timm.create_model("test_resnet").named_parameters()
            if value.dim() == 1 and name.endswith("weight")
        }
    ones = {name for name in zeros if bool((theirs.get_parameter(name) == 1).all())}
    assert changed <= {f"body.{name}" for name in ones}
    assert len(changed) == 4
    assert zero_scales(network) == []


@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_only_jobs_of_such_networks_have_another_key(method: str) -> None:
    (stage,) = METHODS.get(method)(network=RESNET).plan(PROBLEM)
    assert isinstance(stage, MatchGradients)
    assert stage.zero_scales == "ones"
    assert stage_digest(stage) != stage_digest(replace(stage, zero_scales="kept"))
    for network in ("convnet1_w8", "resnet18_cifar", "torchvision/shufflenet_v2_x0_5"):
        (other,) = METHODS.get(method)(network=network).plan(PROBLEM)
        assert other.zero_scales == "kept"  # type: ignore[attr-defined]


def test_only_cos_has_another_version() -> None:
    assert [
        METHODS.get("dc")(network="convnet1_w8", distance=d).plan(PROBLEM)[0].version
        for d in ("ours", "mse", "cos")
    ] == [1, 1, 2]


def test_a_head_of_zeros_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = blind_weights.create_network

    def with_zero_head(*args: object) -> object:  # as torchvision's transformers start, and small
        network = made(*args)  # type: ignore[arg-type]
        torch.nn.init.zeros_(network.classifier.weight)  # type: ignore[union-attr, arg-type]
        return network

    monkeypatch.setattr(blind_weights, "create_network", with_zero_head)
    blind_share.cache_clear()
    try:
        with pytest.raises(
            ConfigError,
            match=r"of the weights .* 100% have none .* use a network that starts otherwise, such as convnet3",
        ):
            METHODS.get("dc")(network="timm/test_vit").plan(PROBLEM)
    finally:
        monkeypatch.undo()
        blind_share.cache_clear()
    METHODS.get("dc")(network="timm/test_vit").plan(PROBLEM)


def test_torchvisions_transformers_start_so() -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    assert not VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=4).heads.head.weight.any()


def test_many_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            check_blindness("lenet", INFO.shape, 4, "ours")
        check_blindness("convnet1_w8", INFO.shape, 4, "ours")
    (record,) = caplog.records
    assert (
        "method.network=lenet: of the weights whose gradients are matched, " in record.getMessage()
    )
