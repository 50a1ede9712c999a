"""Teachers: trained here or read from files in the exact formats in which others publish theirs."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raydd.core.errors import ConfigError, DataError
from raydd.core.tensors import dump_tensors
from raydd.core.units import Numerics, canonical
from raydd.data.catalog import IMAGENET_MEAN, IMAGENET_STD, DatasetInfo
from raydd.networks import create_network, fast_embed
from raydd.networks.names import EDC_RESNET18
from raydd.networks.released import published_name
from raydd.training import weights as files
from raydd.training.backbones import Backbone, convert_images_, training_stages
from raydd.training.teacher_config import TeacherConfig
from raydd.training.weights import PretrainedStart, Weights

CONVNET = "convnet3_w32"
INFO = DatasetInfo(
    name="toy",
    classes=5,
    channels=3,
    height=16,
    width=16,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    digests=(("train", "a"), ("test", "b")),
)
PROBLEM = SimpleNamespace(dataset=INFO, seed=3, numerics=Numerics())


class _Context:
    """A context in memory."""

    def __init__(self, inputs: dict[str, Any] | None = None) -> None:
        self.device, self.inputs, self.made, self._cache = torch.device("cpu"), inputs or {}, 0, {}

    def load(self, name: str) -> Any:
        return self.inputs[name]

    def cached(self, key: Any, make: Any) -> Any:
        if key not in self._cache:
            self._cache[key], self.made = make(), self.made + 1
        return self._cache[key]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    files.download.cache_clear()

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(files.urllib.request, "urlopen", refuse)


def make(
    name: str = CONVNET, classes: int = 5, seed: int = 1, shape: tuple[int, int, int] = (3, 16, 16)
) -> Any:
    return create_network(name, shape, classes, torch.Generator().manual_seed(seed)).eval()


def published(network: Any) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(
        (published_name(network, name), value) for name, value in network.state_dict().items()
    )


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def read(url: str, network: str = CONVNET, info: DatasetInfo = INFO, **options: Any) -> Any:
    problem = SimpleNamespace(dataset=info, seed=0, numerics=Numerics())
    (backbone,) = TeacherConfig(weights=url, **options).backbones([network], problem)
    assert backbone.inputs("x") == {}
    return backbone.load(_Context(), "x")


def parallel(state: Any) -> Any:
    return OrderedDict((f"module.{key}", value) for key, value in state.items())


@torch.no_grad()
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        dict,
        parallel,
        lambda state: {"net": parallel(state), "acc": 93.1, "epoch": 199},
        lambda state: {
            "state_dict": state,
            "best_acc1": np.float64(61.5),
            "optimizer": {"state": {}, "param_groups": []},
        },
        lambda state: {"model": state, "args": argparse.Namespace(epochs=3, lr=0.1), "epoch": 2},
        lambda state: OrderedDict((f"_orig_mod.{key}", value) for key, value in state.items()),
        lambda state: {
            "state_dict": {f"model.{key}": value for key, value in state.items()},
            "pytorch-lightning_version": "2.4.0",
        },
        lambda state: {"state_dict_ema": state, "arch": "resnet18", "epoch": 3},
    ],
)
@pytest.mark.parametrize("ours", [False, True])
def test_pth_files_are_read_in_every_wrapping(tmp_path: Path, wrap: Any, ours: bool) -> None:
    network = make()
    torch.save(wrap(network.state_dict() if ours else published(network)), tmp_path / "x.pth")
    found = read(str(tmp_path / "x.pth"))
    assert torch.equal(found(images()), network(images()))
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        EDC_RESNET18,
        "mobilenetv2_cifar",
        "wrn_16_2",
        "shufflenetv2_cifar",
        "ConvNetD1",
        "ConvNetW32",
    ],
)
def test_edcs_squeezed_teachers_are_found_and_read(tmp_path: Path, name: str) -> None:
    network = make(name)
    theirs = (
        "ResNet18"
        if name == EDC_RESNET18
        else {"convnet3_w32": "ConvNetW32", "convnet1_w128": "ConvNetD1"}.get(
            network.name,
            {"mobilenetv2_cifar": "MobileNetV2", "wrn_16_2": "WRN_16_2"}.get(
                network.name, "ShuffleNetV2_0_5"
            ),
        )
    )
    (tmp_path / theirs).mkdir()
    torch.save(published(network), tmp_path / theirs / f"squeeze_{theirs}.pth")
    for url in (str(tmp_path), str(tmp_path / "{network}" / "squeeze_{network}.pth")):
        assert TeacherConfig(weights=url).missing([name], INFO) == []
        assert torch.equal(read(url, name)(images()), network(images()))


def test_the_old_format_of_torch_files_is_read(tmp_path: Path) -> None:
    network = make()
    torch.save(published(network), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read(str(tmp_path / "x.pth")).classifier.weight, network.classifier.weight)


def as_network_sees(
    pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize("name", [CONVNET, "wrn_10_1"])
@pytest.mark.parametrize("carried", [True, False])
def test_a_files_own_normalisation_is_converted_to(
    tmp_path: Path, name: str, carried: bool
) -> None:
    network, mean, std = make(name), (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    metadata = {"mean": json.dumps(mean), "std": json.dumps(std), "raydd": "1"} if carried else None
    (tmp_path / "x.safetensors").write_bytes(dump_tensors(network.state_dict(), metadata))
    given: dict[str, Any] = {} if carried else {"mean": mean, "std": std}
    found = read(str(tmp_path / "x.safetensors"), name, **given)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = network(as_network_sees(pixels, mean, std))
    ours = as_network_sees(pixels, INFO.mean, INFO.std)
    assert not torch.allclose(found(ours), network(ours), atol=1e-3)
    for logits in (found(ours), found.classifier(found.embed(ours)), copy.deepcopy(found)(ours)):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    quick = fast_embed(found, Numerics(convolution="winograd"))
    torch.testing.assert_close(quick(ours), found.embed(ours), rtol=1e-3, atol=1e-4)
    # What hooks and statistics go by does not change.
    assert [key for key, _ in found.named_modules()] == [key for key, _ in network.named_modules()]
    assert list(found.state_dict()) == list(network.state_dict())


@torch.no_grad()
def test_an_equal_normalisation_changes_nothing(tmp_path: Path) -> None:
    network = make()
    metadata = {"mean": json.dumps(INFO.mean), "std": json.dumps(INFO.std)}
    (tmp_path / "x.safetensors").write_bytes(dump_tensors(network.state_dict(), metadata))
    found = read(str(tmp_path / "x.safetensors"))
    assert type(found) is type(network)
    assert torch.equal(found(images()), network(images()))
    assert type(convert_images_(make(), INFO, (), ())) is type(network)


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"mean": "0.5"}, DataError, "a JSON list of numbers"),
        ({"mean": "[0.5, 0.5, 0.5]"}, DataError, "as long as each other"),
        (
            {"mean": "[0.5]", "std": "[0.2]"},
            ConfigError,
            "1 means and 1 deviations for images of 3 channels",
        ),
    ],
)
def test_a_bad_normalisation_is_named(
    tmp_path: Path, metadata: dict[str, str], error: type[Exception], message: str
) -> None:
    (tmp_path / "x.safetensors").write_bytes(dump_tensors(make().state_dict(), metadata))
    with pytest.raises(error, match=message):
        read(str(tmp_path / "x.safetensors"))


def test_a_unit_of_the_store_is_a_file_too(tmp_path: Path) -> None:
    network = make("wrn_10_1")
    output = {f"params.{k}": v.detach() for k, v in network.named_parameters()} | {
        f"buffers.{k}": v for k, v in network.named_buffers()
    }
    (tmp_path / "x.safetensors").write_bytes(
        dump_tensors({**output, "train_accuracy": torch.ones(()), "images": torch.tensor(9)})
    )
    found = read(str(tmp_path / "x.safetensors"), "wrn_10_1")
    assert all(
        torch.equal(value, network.state_dict()[key]) for key, value in found.state_dict().items()
    )


def test_files_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    config = TeacherConfig(weights=str(tmp_path))
    torch.save(published(make("wrn_10_1", classes=1000)), tmp_path / "wrn_10_1.pth")
    torch.save({"epoch": 3}, tmp_path / "MobileNetV2.pt")
    (tmp_path / "convnet3_w32.pth").write_bytes(b"torn")
    torch.save(
        {"state_dict": published(make("convnet1_w128")), "code": test_a_bad_normalisation_is_named},
        tmp_path / "ConvNetD1.pth",
    )
    nan = published(make("convnet2_w8"))
    nan["features.0.weight"] = torch.full((8, 3, 3, 3), torch.nan)
    torch.save(nan, tmp_path / "convnet2_w8.pth")
    networks = [
        "wrn_10_1",
        "MobileNetV2",
        "ConvNetW32",
        "ConvNetD1",
        "convnet2_w8",
        "WRN_16_2",
        "WRN_16_2",
    ]
    lines = config.missing(networks, INFO)
    assert len(lines) == 6
    assert (
        "wrn_10_1.pth does not fit: its network 'wrn_10_1' knows 1000 classes, the data set has 5"
        in lines[0]
    )
    assert "holds ['epoch']; a state dict is read" in lines[1]
    assert "torn or not a .pt file" in lines[2]
    assert "nothing else is ever unpickled" in lines[3]
    assert "NaN" in lines[4]
    others = "wrn_16_2.pth, wrn_16_2.pt, WRN_16_2.safetensors"
    assert (
        lines[5]
        == f"network 'wrn_16_2': put its weights at {tmp_path}/wrn_16_2.safetensors (or {others})"
    )
    with pytest.raises(ConfigError, match="knows 1000 classes"):
        read(str(tmp_path), "wrn_10_1")
    with pytest.raises(DataError, match="does not exist"):
        read(str(tmp_path), "wrn_16_2")
    # A pickle of code says what it holds, not how to run it.
    assert "test_a_bad_normalisation_is_named" in lines[3]
    assert "weights_only" not in lines[3]
    # A network that is trained here has no file, but has to fit as well.
    trained = TeacherConfig(weights="train").missing(["convnet2_w8", "convnet9_w8_batchnorm"], INFO)
    assert len(trained) == 1
    assert "network 'convnet9_w8_batchnorm' cannot read" in trained[0]
    # The fault is gone once the file is another one.
    torch.save(published(make("wrn_10_1")), tmp_path / "wrn_10_1.pth")
    assert config.missing(["wrn_10_1"], INFO) == []


def test_the_key_is_what_the_file_holds(tmp_path: Path) -> None:
    def backbone(folder: str, seed: int) -> Backbone:
        (tmp_path / folder).mkdir()
        torch.save(published(make(seed=seed)), tmp_path / folder / "ConvNetW32.pth")
        return TeacherConfig(weights=str(tmp_path / folder)).backbones(["ConvNetW32"], PROBLEM)[0]

    one, same, other = backbone("one", 1), backbone("same", 1), backbone("other", 2)
    assert canonical(one) == canonical(same) != canonical(other)
    assert one.dataset.digests == ()
    assert one.weights is not None
    scaled = dataclasses.replace(
        one, weights=dataclasses.replace(one.weights, mean=(0.0,) * 3, std=(1.0,) * 3)
    )
    assert canonical(scaled) != canonical(one)
    assert canonical(TeacherConfig(weights="a")) == canonical(TeacherConfig(weights="b"))
    torch.save(published(make(seed=3)), tmp_path / "one" / "ConvNetW32.pth")
    with pytest.raises(DataError, match="has changed"):
        one.load(_Context(), "x")
    (absent,) = TeacherConfig(weights=str(tmp_path / "nowhere")).backbones(["ConvNetW32"], PROBLEM)
    assert absent.weights is not None
    assert absent.weights.digest == ""
    torch.save(published(make()), tmp_path / "late.pth")
    with pytest.raises(DataError, match="it was missing when this was planned"):
        Weights(url=str(tmp_path / "late.pth"), digest="").fill(make())


# torchvision's own weights, in torch hub's cache.


def put_in_cache(network: str, seed: int = 0) -> tuple[nn.Module, Path]:
    from torchvision import models

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.get_model(network, weights=None, num_classes=1000).eval()
    path = Path(files.cache_path(files.torchvision_url(network)))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model, path


def test_torchvision_means_v1() -> None:
    urls = {
        name: files.torchvision_url(name)
        for name in ("resnet18", "mobilenet_v2", "wide_resnet50_2", "efficientnet_b0")
    }
    assert [url.rsplit("/", 1)[-1] for url in urls.values()] == [
        "resnet18-f37072fd.pth",
        "mobilenet_v2-b0353104.pth",
        "wide_resnet50_2-95faca4d.pth",
        "efficientnet_b0_rwightman-7f5810bc.pth",
    ]
    for bad in (CONVNET, "timm/resnet18", "torchvision/vit_h_14"):
        with pytest.raises(ConfigError, match="no IMAGENET1K_V1 weights"):
            TeacherConfig(weights="torchvision").backbones([bad], PROBLEM)


@torch.no_grad()
def test_torchvision_weights_are_read_from_the_cache_whatever_hash_their_name_has() -> None:
    info = dataclasses.replace(
        INFO, classes=1000, height=64, width=64, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    config = TeacherConfig(weights="torchvision")
    problem = SimpleNamespace(dataset=info, seed=0, numerics=Numerics())
    (absent,) = config.backbones(["efficientnet_b0"], problem)
    (line,) = config.missing(["efficientnet_b0"], info)
    assert (
        "put https://download.pytorch.org/models/efficientnet_b0_rwightman-7f5810bc.pth at " in line
    )
    assert os.environ["TORCH_HOME"] in line
    with pytest.raises(DataError, match=r"could not be downloaded \(no network here\): put it at"):
        absent.load(_Context(), "x")
    model, path = put_in_cache("efficientnet_b0")
    (backbone,) = config.backbones(["efficientnet_b0"], problem)
    assert config.missing(["efficientnet_b0"], info) == []
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(backbone.load(_Context(), "x")(x), model(x))
    assert str(path) not in str(canonical(backbone))


@torch.no_grad()
def test_torchvision_weights_of_a_data_set_with_another_normalisation() -> None:
    info = dataclasses.replace(INFO, classes=1000, height=32, width=32)
    model, _ = put_in_cache("shufflenet_v2_x0_5")
    found = read("torchvision", "shufflenet_v2_x0_5", info)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = model(as_network_sees(pixels, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(
        found(as_network_sees(pixels, info.mean, info.std)), expected, rtol=1e-4, atol=1e-5
    )


def test_a_thousand_classes_do_not_fit_ten() -> None:
    put_in_cache("shufflenet_v2_x0_5")
    (line,) = TeacherConfig(weights="torchvision").missing(
        ["shufflenet_v2_x0_5"], dataclasses.replace(INFO, height=32, width=32)
    )
    assert "knows 1000 classes, the data set has 5" in line


def test_missing_weights_are_fetched_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = put_in_cache("shufflenet_v2_x0_5")
    moved = path.rename(tmp_path / "served")
    asked = []

    def serve(url: str, timeout: float) -> Any:
        asked.append(url)
        return moved.open("rb")

    monkeypatch.setattr(files.urllib.request, "urlopen", serve)
    info = dataclasses.replace(INFO, classes=1000, height=32, width=32)
    assert len(TeacherConfig(weights="torchvision").missing(["shufflenet_v2_x0_5"], info)) == 1
    assert asked == []
    config = TeacherConfig(weights="torchvision", download=True)
    assert config.missing(["shufflenet_v2_x0_5"], info), "asking what is missing downloads nothing"
    assert not asked
    config.fetch(["shufflenet_v2_x0_5"])
    assert config.missing(["shufflenet_v2_x0_5"], info) == []
    assert asked == ["https://download.pytorch.org/models/shufflenetv2_x0.5-f707e7126e.pth"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# Teachers trained here.


def test_training_passes_what_is_set() -> None:
    backbones = TeacherConfig(epochs=3, lr=0.1).backbones(
        ["WRN_16_2", "ConvNetW32", "wrn_16_2"], PROBLEM
    )
    stages = training_stages(backbones)
    assert [stage.network for stage in stages] == ["wrn_16_2", "convnet3_w32"]
    recipe = stages[0].recipe
    assert (recipe.epochs, recipe.lr, recipe.batch, recipe.momentum, recipe.weight_decay) == (
        3,
        0.1,
        64,
        0.9,
        0.0,
    )
    assert (recipe.schedule, recipe.augmentation, recipe.optimizer) == (
        "constant",
        "pad_crop_flip",
        "sgd",
    )
    assert stages[0].dataset.digests == (("train", "a"),)
    assert (stages[0].seed, stages[0].numerics) == (3, Numerics())
    (ref,) = backbones[0].inputs("teacher-0").values()
    assert (ref.stage, ref.unit) == (stages[0], "network-000")
    assert TeacherConfig().missing(["WRN_16_2"], INFO) == []
    imagenet10 = TeacherConfig(
        init="torchvision",
        epochs=20,
        batch=128,
        lr=0.01,
        schedule="cos_st",
        st=3,
        augmentation="resized_crop_flip",
    )
    assert "torchvision" in str(canonical(imagenet10))
    rates = [imagenet10.recipe().rate(epoch) for epoch in (0, 20)]
    assert rates == pytest.approx([0.01, 0.0075])


def test_a_trained_teacher_is_loaded_once_and_must_be_finite() -> None:
    (backbone,) = TeacherConfig().backbones([CONVNET], PROBLEM)
    network = make()
    output = {f"params.{k}": v.detach() for k, v in network.named_parameters()} | {
        f"buffers.{k}": v for k, v in network.named_buffers()
    }
    ctx = _Context({"teacher-0": output})
    found = backbone.load(ctx, "teacher-0")
    assert torch.equal(found(images()), network(images()))
    assert backbone.load(ctx, "teacher-0") is found
    assert ctx.made == 1
    output["params.classifier.bias"] = torch.full((5,), torch.inf)
    with pytest.raises(DataError, match="training diverged"):
        backbone.load(_Context({"teacher-0": output}), "teacher-0")


def test_a_pretrained_start_has_a_new_head() -> None:
    model, _ = put_in_cache("shufflenet_v2_x0_5")
    info = dataclasses.replace(INFO, height=32, width=32)
    config = TeacherConfig(init="torchvision", epochs=20)
    assert config.missing(["shufflenet_v2_x0_5"], info) == []
    start = PretrainedStart(weights=files.torchvision_weights("shufflenet_v2_x0_5"))
    network = make("torchvision/shufflenet_v2_x0_5", shape=(3, 32, 32))
    head = network.classifier.weight.clone()
    start.fill(network)
    assert torch.equal(network.body.conv1[0].weight, model.conv1[0].weight)
    assert torch.equal(network.classifier.weight, head)
    problem = SimpleNamespace(dataset=info, seed=0, numerics=Numerics())
    (backbone,) = dataclasses.replace(config, save_epoch=4).backbones(
        ["shufflenet_v2_x0_5"], problem
    )
    (training,) = training_stages([backbone])
    assert training.start == start
    assert training.steps("network-000") == 5
    state = training.init("network-000", _Context())
    assert torch.equal(state["params.body.conv1.0.weight"][0], model.conv1[0].weight)
    fresh = dataclasses.replace(training, start=None).init("network-000", _Context())
    assert torch.equal(state["params.classifier.weight"], fresh["params.classifier.weight"])
    assert not torch.equal(state["params.body.conv1.0.weight"], fresh["params.body.conv1.0.weight"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "torchvision", "epochs": 3}, r"teachers\.epochs=3 has no effect"),
        (
            {"weights": "some/folder", "init": "torchvision"},
            r"teachers\.init=torchvision has no effect",
        ),
        ({"mean": (0.5,), "std": (0.5,)}, r"teachers\.mean has no effect"),
        ({"weights": "some/folder", "mean": (0.5,)}, "both are needed"),
        ({"download": True}, r"teachers\.download has no effect"),
        ({"weights": "shell://x"}, r"teachers\.weights: 'shell:(//)?' URLs"),
        ({"epochs": 50, "save_epoch": 50}, "of 50 epochs, 0 to 49 are allowed"),
        ({"schedule": "cos_st"}, "needs st"),
        ({"st": 2.0}, "has no effect"),
    ],
)
def test_combinations_without_effect_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TeacherConfig(**fields)


def test_a_backbone_has_one_origin() -> None:
    with pytest.raises(ConfigError, match="either trained or read"):
        Backbone(network=CONVNET, dataset=INFO)


def test_a_backbone_can_be_told_from_another_by_its_training() -> None:
    one, other = (TeacherConfig(lr=lr).backbones([CONVNET], PROBLEM)[0] for lr in (0.1, 0.2))
    assert canonical(one) != canonical(other)
