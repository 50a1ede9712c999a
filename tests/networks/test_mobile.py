"""DWA's and INFER's networks for small images: sizes, forward passes written out anew, layers that never run, files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.core.errors import ConfigError
from raydd.core.units import Numerics
from raydd.data.catalog import entry
from raydd.networks import (
    Network,
    create_network,
    fast_embed,
    flops,
    is_per_sample,
    list_networks,
    normalise_name,
    parameter_count,
    reinitialise_,
    strip_batchnorm,
)
from raydd.networks.names import spellings
from raydd.networks.released import published_name
from raydd.networks.taps import StatTap
from raydd.training.precision import cancelled_biases
from raydd.training.students import stackable
from raydd.training.teacher_config import TeacherConfig
from raydd.training.weights import Weights

MOBILE, EFFICIENT, SHUFFLE = "mobilenetv2x1_cifar", "efficientnetb0_cifar", "shufflenetg2_cifar"
NETWORKS = {"mobilenetV2": MOBILE, "efficientnet": EFFICIENT, "shufflenet": SHUFFLE}
"""By the names of their folders of weights."""
State = dict[str, Tensor]


def make(
    name: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, seed: int = 0
) -> Network:
    return create_network(name, shape, classes, torch.Generator().manual_seed(seed))


def images(count: int = 2, *shape: int) -> Tensor:
    shape = shape or (3, 32, 32)
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "parameters", "norms", "channels", "gmac"),
    [
        (MOBILE, (2_296_922, 2_412_212), 57, 17544, "0.0913"),
        (EFFICIENT, (3_599_686, 3_628_576), 49, 19760, "0.0304"),
        (SHUFFLE, (887_582, 959_672), 49, 9888, "0.0397"),
    ],
)
def test_published_sizes(
    name: str, parameters: tuple[int, int], norms: int, channels: int, gmac: str
) -> None:
    for expected, classes in zip(parameters, (10, 100), strict=True):
        net = make(name, classes=classes)
        assert parameter_count(net) == expected
    found = [m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (len(found), sum(found)) == (norms, channels)
    assert f"{flops(net, (3, 32, 32)) / 2e9:.4f}" == gmac


# The originals' forward passes on state dicts of theirs, written out
# (docs/methods/networks.md, "Networks of DWA and INFER").


def conv(x: Tensor, s: State, name: str, **options: int) -> Tensor:
    weight = s[f"{name}.weight"]
    return F.conv2d(
        x, weight, s.get(f"{name}.bias"), padding=(weight.shape[-1] - 1) // 2, **options
    )


def norm(x: Tensor, s: State, name: str) -> Tensor:
    weight, bias, mean, var = (
        s[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    column = (1, -1, 1, 1)
    centred = (x - mean.view(column)) / (var.view(column) + 1e-5).sqrt()
    return centred * weight.view(column) + bias.view(column)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def linear(x: Tensor, s: State) -> Tensor:
    return x @ s["linear.weight"].T + s["linear.bias"]


def mobilenet(x: Tensor, s: State) -> Tensor:
    x = F.relu(norm(conv(x, s, "conv1"), s, "bn1"))
    strides = [1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    outs = [16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320]
    for i, (stride, out) in enumerate(zip(strides, outs, strict=True)):
        path, wide = f"layers.{i}", x.shape[1] * (6 if i else 1)
        y = F.relu(norm(conv(x, s, f"{path}.conv1"), s, f"{path}.bn1"))
        y = F.relu(norm(conv(y, s, f"{path}.conv2", stride=stride, groups=wide), s, f"{path}.bn2"))
        y = norm(conv(y, s, f"{path}.conv3"), s, f"{path}.bn3")
        if stride == 1 and x.shape[1] != out:
            y = y + norm(conv(x, s, f"{path}.shortcut.0"), s, f"{path}.shortcut.1")
        elif stride == 1:
            y = y + x
        x = y
    x = F.avg_pool2d(F.relu(norm(conv(x, s, "conv2"), s, "bn2")), 4)
    return linear(x.flatten(1), s)


def efficientnet(x: Tensor, s: State) -> Tensor:
    x = swish(norm(conv(x, s, "conv1"), s, "bn1"))
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for i, stride in enumerate(strides):
        path, y = f"layers.{i}", x
        if i:
            y = swish(norm(conv(y, s, f"{path}.conv1"), s, f"{path}.bn1"))
        y = conv(y, s, f"{path}.conv2", stride=stride, groups=y.shape[1])
        y = swish(norm(y, s, f"{path}.bn2"))
        gate = swish(conv(F.adaptive_avg_pool2d(y, 1), s, f"{path}.se.se1"))
        y = y * torch.sigmoid(conv(gate, s, f"{path}.se.se2"))
        y = norm(conv(y, s, f"{path}.conv3"), s, f"{path}.bn3")
        x = y + x if stride == 1 and y.shape == x.shape else y
    return linear(F.adaptive_avg_pool2d(x, 1).flatten(1), s)


def shufflenet(x: Tensor, s: State) -> Tensor:
    x = F.relu(norm(conv(x, s, "conv1"), s, "bn1"))
    for stage, blocks in ((1, 4), (2, 8), (3, 4)):
        for block in range(blocks):
            path, stride, groups = (
                f"layer{stage}.{block}",
                1 if block else 2,
                1 if x.shape[1] == 24 else 2,
            )
            y = F.relu(norm(conv(x, s, f"{path}.conv1", groups=groups), s, f"{path}.bn1"))
            count, channels, height, width = y.shape
            y = y.view(count, groups, channels // groups, height, width)
            y = y.permute(0, 2, 1, 3, 4).reshape(count, channels, height, width)
            y = conv(y, s, f"{path}.conv2", stride=stride, groups=channels)
            y = conv(F.relu(norm(y, s, f"{path}.bn2")), s, f"{path}.conv3", groups=2)
            y = norm(y, s, f"{path}.bn3")
            past = x if block else F.avg_pool2d(x, 3, stride=2, padding=1)
            x = F.relu(y + x) if block else F.relu(torch.cat([y, past], 1))
    return linear(F.avg_pool2d(x, 4).flatten(1), s)


def names_of(name: str) -> Iterator[str]:
    """Yield the originals' names of convolutions and norms, as they register them."""
    yield from ("conv1", "bn1")
    if name == SHUFFLE:
        paths = [f"layer{k}.{b}" for k, n in ((1, 4), (2, 8), (3, 4)) for b in range(n)]
    else:
        paths = [f"layers.{i}" for i in range(17 if name == MOBILE else 16)]
    for path in paths:
        yield from (f"{path}.{kind}{i}" for i in (1, 2) for kind in ("conv", "bn"))
        if name == EFFICIENT:
            yield from (f"{path}.se.se1", f"{path}.se.se2")
        yield from (f"{path}.conv3", f"{path}.bn3")
        if name == MOBILE and path.partition(".")[2] in ("0", "1", "10", "16"):
            yield from (f"{path}.shortcut.0", f"{path}.shortcut.1")
    if name == MOBILE:
        yield from ("conv2", "bn2")


FORWARDS = {MOBILE: mobilenet, EFFICIENT: efficientnet, SHUFFLE: shufflenet}


def released(name: str, classes: int = 10, seed: int = 5) -> State:
    """Return a state dict as the originals' training leaves it, with lively norms."""
    net, generator, state = make(name, classes=classes), torch.Generator().manual_seed(seed), {}
    shapes = {
        published_name(net, layer): module
        for layer, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
    }
    for layer in names_of(name):
        module = shapes[layer]
        for part, tensor in module.state_dict().items():
            drawn = torch.rand(tensor.shape, generator=generator)
            if part == "num_batches_tracked":
                state[f"{layer}.{part}"] = torch.tensor(78200)
            elif tensor.dim() == 4:
                fan = tensor[0].numel()
                state[f"{layer}.{part}"] = (drawn - 0.5) * 4 / fan**0.5
            else:
                lively = 0.5 + drawn if part in ("weight", "running_var") else drawn - 0.5
                state[f"{layer}.{part}"] = lively
    head = torch.rand(classes, net.embed_dim + 1, generator=generator) - 0.5
    return state | {"linear.weight": head[:, 1:], "linear.bias": head[:, 0]}


def wrapped(state: State) -> dict[str, Any]:
    """Return what the published trainings save."""
    return {
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "acc": 78.4,
        "epoch": 199,
    }


def read(folder: Path, name: str, classes: int = 10) -> Network:
    info = entry("cifar10" if classes == 10 else "cifar100").info
    problem = SimpleNamespace(dataset=info, seed=0, numerics=Numerics())
    config = TeacherConfig(weights=str(folder / "{network}_E200" / "ckpt.pth"))
    assert config.missing([name], info) == []
    (backbone,) = config.backbones([name], problem)
    context = SimpleNamespace(device=torch.device("cpu"), cached=lambda key, make: make())
    return backbone.load(context, "x")  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("folder", NETWORKS)
@pytest.mark.parametrize("wrap", [dict, wrapped], ids=["bare", "wrapped"])
def test_released_weights_give_the_originals_logits(
    tmp_path: Path, folder: str, wrap: Callable[[State], dict[str, Any]]
) -> None:
    name = NETWORKS[folder]
    state = released(name)
    (tmp_path / f"{folder}_E200").mkdir()
    torch.save(wrap(state), tmp_path / f"{folder}_E200" / "ckpt.pth")
    net, x = read(tmp_path, name).double(), images(3).double()
    wanted = FORWARDS[name](x, {key: value.double() for key, value in state.items()})
    assert float(wanted.std()) > 1e-3
    torch.testing.assert_close(net(x), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FORWARDS)
def test_layers_stand_in_the_originals_order(name: str) -> None:
    net = make(name)
    layers = [key for key, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    assert [published_name(net, layer) for layer in layers] == list(names_of(name))
    assert published_name(net, "classifier.weight") == "linear.weight"


@torch.no_grad()
def test_released_resnets_are_found_beside_them(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    theirs = resnet18(weights=None, num_classes=100)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    (tmp_path / "resnet18_E200").mkdir()
    torch.save(wrapped(theirs.state_dict()), tmp_path / "resnet18_E200" / "ckpt.pth")
    net, x = read(tmp_path, "resnet18_cifar_batchnorm", 100), images()
    torch.testing.assert_close(net(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_files_of_others_say_why(tmp_path: Path) -> None:
    url = str(tmp_path / "ckpt.pth")

    def message(state: State, name: str) -> str:
        torch.save(wrapped(state), url)
        with pytest.raises(ConfigError) as error:
            Weights.at(url).fill(make(name))
        return str(error.value)

    assert "knows 100 classes, the data set has 10" in message(released(EFFICIENT, 100), EFFICIENT)
    assert "does not hold the weights of network 'shufflenetg2_cifar'" in message(
        released(MOBILE), SHUFFLE
    )
    lacking = {k: v for k, v in released(EFFICIENT).items() if not k.startswith("layers.0.bn1")}
    assert "lacks 'layers.0.bn1.weight'" in message(lacking, EFFICIENT)


def test_the_norm_that_never_runs_is_no_statistic() -> None:
    net = make(EFFICIENT).eval()
    silent = {name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    runs: set[str] = set()
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *_, name=name: runs.add(name))
    net(images())
    assert silent - runs == {"blocks.0.norm1"}
    assert {n for n, _ in net.named_modules()} - runs == set(net.silent)
    with StatTap(net, 1, ("bn",)) as tap:
        assert len(tap.layout.layers) == 48
        assert [layer.name for layer in tap.layout.layers[:2]] == ["norm1", "blocks.0.norm2"]
        assert tap.running().shape == (2, 19760 - 32)
        given = images(4)
        _, found = tap(given, 2)
        entering = net.conv1(given[:2])  # type: ignore[operator]
        torch.testing.assert_close(found[0, 0, :32], entering.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    with StatTap(net, 4) as tap:
        assert not {"blocks.0.conv1", "blocks.0.norm1"} & {x.name for x in tap.layout.layers}


@torch.no_grad()
@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (1, 8, 8), (4, 33, 20)])
def test_any_images_and_classes(name: str, shape: tuple[int, int, int]) -> None:
    net, x = make(name, shape, 7).eval(), images(2, *shape)
    features = net.embed(x)
    assert features.shape == (2, net.embed_dim)
    assert torch.equal(net(x), net.classifier(features))


@pytest.mark.parametrize("name", FORWARDS)
def test_initialisation_is_torchs_and_the_generators_alone(name: str) -> None:
    before = torch.get_rng_state()
    one, other = make(name, seed=1), make(name, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    reinitialise_(one, torch.Generator().manual_seed(2))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    for module in one.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = module.weight[0].numel() ** -0.5
            assert 0.5 * bound < float(module.weight.detach().abs().max()) <= bound


def test_dropout_is_of_training_alone() -> None:
    net, x = make(EFFICIENT).eval(), images()
    assert torch.equal(net(x), net(x))
    assert is_per_sample(net)
    assert not stackable(make(EFFICIENT))
    assert stackable(make(MOBILE))
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    features = net.embed(x)
    torch.testing.assert_close(
        features, torch.where(features == 0, 0, net.eval().embed(x) / 0.8), rtol=1e-4, atol=1e-6
    )
    assert 0.1 < float((features == 0).float().mean()) < 0.3


def test_names() -> None:
    assert {name: normalise_name(name) for name in NETWORKS} == NETWORKS
    assert normalise_name("EfficientNetB0") == EFFICIENT
    assert normalise_name("ShuffleNetG2") == SHUFFLE
    assert normalise_name("MobileNetV2") == "mobilenetv2_cifar"
    assert normalise_name("efficientnet_b0") == "torchvision/efficientnet_b0"
    assert set(FORWARDS) <= set(list_networks())
    assert [strip_batchnorm(name) for name in FORWARDS] == list(FORWARDS)
    assert spellings("mobilenetV2") == [MOBILE, "mobilenetV2"]
    assert spellings("resnet50_cifar_batchnorm") == ["resnet50_cifar_batchnorm", "resnet50"]
    with pytest.raises(ConfigError, match="no options"):
        normalise_name("efficientnetb0_cifar_batchnorm")


@pytest.mark.parametrize("name", FORWARDS)
def test_layers_can_be_vmapped_copied_and_made_quicker(name: str) -> None:
    net = make(name, (3, 16, 16)).eval()
    assert cancelled_biases(net) == ()
    x = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        stacked = torch.vmap(net)(x)
        torch.testing.assert_close(
            stacked.flatten(0, 1), net(x.flatten(0, 1)), rtol=1e-3, atol=1e-4
        )
        quick = fast_embed(copy.deepcopy(net), Numerics(convolution="winograd"))(x[0])
        torch.testing.assert_close(quick, net.embed(x[0]), rtol=1e-3, atol=1e-4)
