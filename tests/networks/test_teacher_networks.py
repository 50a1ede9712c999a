"""EDC's teachers for small images: sizes, order of layers, initialisation, and files under the originals' names."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.core.errors import ConfigError
from raydd.core.units import Numerics
from raydd.networks import (
    Network,
    create_network,
    fast_embed,
    list_networks,
    normalise_name,
    parameter_count,
    reinitialise_,
    strip_batchnorm,
)
from raydd.networks.fitting import load_published_
from raydd.networks.names import EDC_RESNET18, spellings
from raydd.networks.released import published_name
from raydd.training.precision import cancelled_biases

TEACHERS = [EDC_RESNET18, "mobilenetv2_cifar", "wrn_16_2", "shufflenetv2_cifar"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make(
    name: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, seed: int = 0
) -> Network:
    return create_network(name, shape, classes, torch.Generator().manual_seed(seed))


def layers(net: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, m) for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))
    ]


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions", "norms"),
    [
        (EDC_RESNET18, (11_173_962, 11_220_132, 11_271_432), 20, 20),
        ("MobileNetV2", (697_546, 812_836, 940_936), 53, 53),
        ("WRN_16_2", (691_674, 703_284, 716_184), 16, 13),
        ("ShuffleNetV2_0_5", (351_466, 443_716, 546_216), 56, 56),
    ],
)
def test_published_sizes(
    name: str, parameters: tuple[int, ...], convolutions: int, norms: int
) -> None:
    for expected, (classes, side) in zip(parameters, ((10, 32), (100, 32), (200, 64)), strict=True):
        net = make(name, (3, side, side), classes)
        assert parameter_count(net) == expected
    kinds = [type(m) for _, m in layers(net)]
    assert kinds.count(nn.BatchNorm2d) == norms
    assert len(kinds) - norms == convolutions
    assert isinstance(layers(net)[0][1], nn.Conv2d)
    assert all(m.bias is None for m in net.modules() if isinstance(m, nn.Conv2d))


# The originals' registration order, written out (docs/methods/networks.md, "Teachers for small images").


def resnet_order() -> Iterator[str]:
    yield from ("conv1", "bn1")
    for stage in range(1, 5):
        for block in range(2):
            yield from (f"layer{stage}.{block}.{x}" for x in ("conv1", "bn1", "conv2", "bn2"))
            if stage > 1 and block == 0:
                yield from (f"layer{stage}.0.shortcut.{i}" for i in (0, 1))


def wrn_order() -> Iterator[str]:
    yield "conv1"
    for stage in range(1, 4):
        for block in range(2):
            yield from (f"block{stage}.layer.{block}.{x}" for x in ("bn1", "conv1", "bn2", "conv2"))
            if block == 0:
                yield f"block{stage}.layer.0.convShortcut"
    yield "bn1"


def mobilenet_order() -> Iterator[str]:
    yield from ("conv1.0", "conv1.1")
    for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in range(blocks):
            yield from (f"blocks.{stage}.{block}.conv.{i}" for i in (0, 1, 3, 4, 6, 7))
    yield from ("conv2.0", "conv2.1")


def shufflenet_order() -> Iterator[str]:
    yield from ("conv1", "bn1")
    for stage, blocks in enumerate((3, 7, 3), start=1):
        for block in range(blocks + 1):
            for i in range(1, 6 if block == 0 else 4):
                yield from (f"layer{stage}.{block}.conv{i}", f"layer{stage}.{block}.bn{i}")
    yield from ("conv2", "bn2")


ORDERS = {
    EDC_RESNET18: (resnet_order, "linear"),
    "wrn_16_2": (wrn_order, "fc"),
    "mobilenetv2_cifar": (mobilenet_order, "classifier.0"),
    "shufflenetv2_cifar": (shufflenet_order, "linear"),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_layers_stand_in_the_originals_order_under_names_that_map_to_theirs(name: str) -> None:
    net = make(name)
    order, head = ORDERS[name]
    assert [published_name(net, layer) for layer, _ in layers(net)] == list(order())
    assert published_name(net, "classifier.weight") == f"{head}.weight"
    names = [published_name(net, key) for key in net.state_dict()]
    assert len(set(names)) == len(names)


@torch.no_grad()
@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 8, 8), (4, 33, 20)])
def test_any_images_and_classes(name: str, shape: tuple[int, int, int]) -> None:
    net = make(name, shape, 7).eval()
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    features = net.embed(x)
    assert features.shape == (2, net.embed_dim)
    assert torch.equal(net(x), net.classifier(features))
    assert net(x).shape == (2, 7)


@pytest.mark.parametrize("name", TEACHERS)
def test_initialisation_is_the_generators_alone(name: str) -> None:
    before = torch.get_rng_state()
    one, two, other = make(name, seed=1), make(name, seed=1), make(name, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )
    assert not torch.equal(one.classifier.weight, other.classifier.weight)  # type: ignore[arg-type]
    reinitialise_(one, torch.Generator().manual_seed(2))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    double = copy.deepcopy(two).double()
    reinitialise_(double, torch.Generator().manual_seed(2))
    assert all(
        torch.equal(v.float(), other.state_dict()[k].float())
        for k, v in double.state_dict().items()
    )


def test_initialisation_follows_fan_out() -> None:
    for name in TEACHERS[:3]:
        for module in make(name).modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 3000:
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                assert float(module.weight.detach().std()) == pytest.approx(
                    (2 / fan_out) ** 0.5, rel=0.08
                )
    plain = make("resnet18_cifar_batchnorm").stages[0][0].conv1.weight  # type: ignore[index, union-attr]
    assert float(plain.detach().abs().max()) <= (9 * 64) ** -0.5  # type: ignore[operator, union-attr]
    mobile, wide = make("MobileNetV2").classifier, make("WRN_16_2").classifier
    assert isinstance(mobile, nn.Linear)
    assert isinstance(wide, nn.Linear)
    assert float(mobile.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not mobile.bias.any()
    assert not wide.bias.any()
    assert 0.9 * 128**-0.5 < float(wide.weight.detach().abs().max()) <= 128**-0.5


def conv(x: Tensor, state: dict[str, Tensor], name: str, **options: int) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2, **options)


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    weight, bias, mean, var = (
        state[f"{name}.{x}"] for x in ("weight", "bias", "running_mean", "running_var")
    )
    return F.batch_norm(x, mean, var, weight, bias)


def published_state(net: Network, seed: int = 5) -> dict[str, Tensor]:
    """Return a state dict under the originals' names, with lively norms."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in net.state_dict().items():
        drawn = torch.rand(tensor.shape, generator=generator)
        new = (
            tensor.clone()
            if tensor.dim() != 1
            else 0.5 + drawn
            if name.endswith(("weight", "running_var"))
            else drawn - 0.5
        )
        state[published_name(net, name)] = new
    return state


def wrn_forward(x: Tensor, s: dict[str, Tensor]) -> Tensor:
    x = conv(x, s, "conv1")
    for stage in range(1, 4):
        for block in range(2):
            path = f"block{stage}.layer.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            active = F.relu(norm(x, s, f"{path}.bn1"))
            y = F.relu(norm(conv(active, s, f"{path}.conv1", stride=stride), s, f"{path}.bn2"))
            shortcut = conv(active, s, f"{path}.convShortcut", stride=stride) if block == 0 else x
            x = conv(y, s, f"{path}.conv2") + shortcut
    x = F.adaptive_avg_pool2d(F.relu(norm(x, s, "bn1")), 1).flatten(1)
    return F.linear(x, s["fc.weight"], s["fc.bias"])


def mobilenet_forward(x: Tensor, s: dict[str, Tensor]) -> Tensor:
    x = F.relu(norm(conv(x, s, "conv1.0", stride=2), s, "conv1.1"))
    channels = 16
    settings = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for stage, (t, c, n, first) in enumerate(settings):
        for block in range(n):
            path, stride, out = (
                f"blocks.{stage}.{block}.conv",
                first if block == 0 else 1,
                int(c * 0.5),
            )
            y = F.relu(norm(conv(x, s, f"{path}.0"), s, f"{path}.1"))
            y = F.relu(
                norm(conv(y, s, f"{path}.3", stride=stride, groups=channels * t), s, f"{path}.4")
            )
            y = norm(conv(y, s, f"{path}.6"), s, f"{path}.7")
            x = x + y if stride == 1 and channels == out else y
            channels = out
    x = F.relu(norm(conv(x, s, "conv2.0"), s, "conv2.1"))
    x = F.avg_pool2d(x, 2, ceil_mode=True).flatten(1)
    return F.linear(x, s["classifier.0.weight"], s["classifier.0.bias"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "forward"), [("wrn_16_2", wrn_forward), ("mobilenetv2_cifar", mobilenet_forward)]
)
def test_published_weights_give_the_logits_of_section_1_2(name: str, forward: object) -> None:
    net = make(name).eval()
    state = published_state(net)
    load_published_(net, state, "file.pth")
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(x), forward(x, state), rtol=1e-4, atol=1e-4)  # type: ignore[operator]


@torch.no_grad()
def test_shuffling_interleaves_two_halves() -> None:
    net = make("shufflenetv2_cifar").double().eval()
    down = net.stages[0][0]  # type: ignore[index, union-attr]
    x = torch.rand(2, 24, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    left = F.relu(down.norm2(down.conv2(down.norm1(down.conv1(x)))))  # type: ignore[operator, union-attr]
    out = down(x)  # type: ignore[operator]
    assert out.shape == (2, 48, 4, 4)
    torch.testing.assert_close(out[:, 0::2], left)
    block = net.stages[0][1]  # type: ignore[index, union-attr]
    torch.testing.assert_close(block(out)[:, 0::2], out[:, :24])  # type: ignore[operator]


@torch.no_grad()
def test_torchvisions_resnet_without_its_stem_is_the_same_network() -> None:
    from torchvision.models import resnet18

    theirs = resnet18(weights=None, num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    net = make(EDC_RESNET18).eval()
    load_published_(net, theirs.eval().state_dict(), "ckpt.pth")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(x), theirs(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "per_block"), [("ConvNetW32", 4), ("ConvNetNP", 3), ("ConvNetNN", 3)]
)
def test_convnets_are_numbered_through(name: str, per_block: int) -> None:
    net = make(name, (3, 16, 16))
    keys = {published_name(net, key) for key in net.state_dict()}
    assert {key.split(".")[1] for key in keys if key.startswith("features")} == {
        str(per_block * i + j) for i in range(3) for j in range(1 if name == "ConvNetNN" else 2)
    }
    state = {published_name(net, key): value + 1 for key, value in net.state_dict().items()}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    load_published_(net, state, "file.pth")
    assert all(torch.equal(value, before[key] + 1) for key, value in net.state_dict().items())


def test_files_that_do_not_fit_say_why() -> None:
    net = make("wrn_16_2", classes=10)
    with pytest.raises(
        ConfigError,
        match=r"f\.pth does not fit: its network 'wrn_16_2' knows 1000 classes, the data set has 10",
    ):
        load_published_(net, published_state(make("wrn_16_2", classes=1000)), "f.pth")
    with pytest.raises(ConfigError, match="reads images of 1 channels, the data set has 3"):
        load_published_(net, published_state(make("wrn_16_2", (1, 32, 32))), "f.pth")
    with pytest.raises(ConfigError, match="another image size"):
        load_published_(make("ConvNet"), published_state(make("ConvNet", (3, 64, 64))), "f.pth")
    with pytest.raises(
        ConfigError, match=r"not hold the weights of network 'wrn_16_2': it lacks .* and also holds"
    ):
        load_published_(net, published_state(make("MobileNetV2")), "f.pth")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    extra = published_state(net) | {"aux.weight": torch.zeros(3)}
    with pytest.raises(ConfigError, match=r"also holds 'aux\.weight'"):
        load_published_(net, extra, "f.pth")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_new_head_stays_and_old_files_lack_counters() -> None:
    net = make("wrn_16_2", classes=10)
    head = net.classifier.weight.clone()  # type: ignore[operator, union-attr]
    state = published_state(make("wrn_16_2", classes=1000))
    load_published_(
        net,
        {key: value for key, value in state.items() if "num_batches" not in key},
        "f.pth",
        head=False,
    )
    assert torch.equal(net.classifier.weight, head)  # type: ignore[arg-type]
    assert torch.equal(net.conv1.weight, state["conv1.weight"])  # type: ignore[union-attr, arg-type]


def test_names() -> None:
    assert [normalise_name(x) for x in ("MobileNetV2", "WRN_16_2", "ShuffleNetV2_0_5")] == TEACHERS[
        1:2
    ] + TEACHERS[2:]
    assert normalise_name("resnet18_cifar_kaiming_batchnorm") == EDC_RESNET18
    assert normalise_name("ResNet18") == "resnet18_cifar"
    assert normalise_name("mobilenetv2_100") == "timm/mobilenetv2_100"
    assert set(TEACHERS) <= set(list_networks())
    assert [strip_batchnorm(name) for name in TEACHERS] == ["resnet18_cifar_kaiming", *TEACHERS[1:]]
    assert spellings(EDC_RESNET18) == [EDC_RESNET18, "ResNet18", "resnet18"]
    assert spellings("torchvision/resnet18") == ["resnet18"]
    assert (
        parameter_count(make("wrn_10_1"))
        < parameter_count(make("wrn_16_1"))
        < parameter_count(make("wrn_16_2"))
    )
    for bad, message in (
        ("wrn_15_2", "6n \\+ 4"),
        ("wrn_16", "such as wrn_16_2"),
        ("shufflenetv2_cifar_batchnorm", "no options"),
    ):
        with pytest.raises(ConfigError, match=message):
            normalise_name(bad)


@pytest.mark.parametrize("name", TEACHERS[1:])
def test_layers_can_be_traced_vmapped_and_made_quicker(name: str) -> None:
    net = make(name, (3, 16, 16)).eval()
    assert cancelled_biases(net) == ()
    x = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        stacked = torch.vmap(net)(x)
        torch.testing.assert_close(
            stacked.flatten(0, 1), net(x.flatten(0, 1)), rtol=1e-3, atol=1e-4
        )
        quick = fast_embed(net, Numerics(convolution="winograd"))(x[0])
        torch.testing.assert_close(quick, net.embed(x[0]), rtol=1e-3, atol=1e-4)
