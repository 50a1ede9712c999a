"""Every network against the golden forward passes (T1 of docs/methods/parity.md), and at sizes nobody published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.core.errors import ConfigError
from raydd.networks import (
    Network,
    create_network,
    flops,
    has_batchnorm,
    is_per_sample,
    parameter_count,
    reinitialise_,
)
from raydd.networks.layers import LayerNorm
from raydd.networks.names import zoo_names

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_dc_dsa_dm.json").read_text())[
    "networks"
]
GREY, COLOUR = (1, 28, 28), (3, 32, 32)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def make(name: str, shape: tuple[int, int, int], classes: int = 10, seed: int = 0) -> Network:
    return create_network(name, shape, classes, torch.Generator().manual_seed(seed))


def fill_(net: Network) -> None:
    """Give a network the weights of docs/methods/parity.md, "Weights and images of DC, DSA and DM", in fp64."""
    net.double()
    with torch.no_grad():
        for k, (path, parameter) in enumerate(net.named_parameters()):
            z = normal(1000 + k, *parameter.shape)
            if parameter.dim() in (2, 4):
                z = z * (2 / parameter[0].numel()) ** 0.5
            else:
                z = 0.1 * z if path.endswith("bias") else 1 + 0.1 * z
            parameter.copy_(z)


def check(tensor: Tensor, golden: dict[str, float]) -> None:
    assert float(tensor.square().sum()) == pytest.approx(golden["sq"], rel=1e-9)
    assert float(tensor.abs().sum()) == pytest.approx(golden["abssum"], rel=1e-9)
    assert float(tensor.sum()) == pytest.approx(golden["sum"], abs=1e-9 * golden["abssum"])
    assert tensor.flatten()[:4].tolist() == pytest.approx(golden["first"], abs=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("key", GOLDEN)
def test_golden_t1_forward(key: str) -> None:
    geometry, name = key.split("/")
    shape = (int(geometry[1]), int(geometry[3:]), int(geometry[3:]))
    golden, net = GOLDEN[key], make(name, shape)
    fill_(net)
    x = normal(7, 2, *shape)
    if "train" in golden:
        assert net(x)[0, :3].tolist() == pytest.approx(golden["train"]["logits0"], abs=1e-9)
    net.eval()
    logits, features = net(x), net.embed(x)
    check(logits, golden["eval"]["logits"])
    if "embed" in golden["eval"]:
        check(features, golden["eval"]["embed"])
    assert features.shape == (2, net.embed_dim)
    assert torch.equal(net.classifier(features), logits)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters", "embed", "macs"),
    [
        ("MLP", GREY, 10, 118_282, 128, "0.12"),
        ("MLP", COLOUR, 100, 422_756, 128, None),
        ("LeNet", GREY, 10, 61_706, 84, "0.42"),
        ("LeNet", COLOUR, 100, 69_656, 84, None),
        ("AlexNet", GREY, 10, 1_865_802, 3072, "238.5"),
        ("AlexNetBN", COLOUR, 10, 1_874_122, 3072, "245.0"),
        ("VGG11", GREY, 10, 9_229_962, 512, "151.6"),
        ("VGG11BN", COLOUR, 10, 9_231_114, 512, "152.8"),
        ("ResNet18", GREY, 10, 11_172_810, 512, "455.8"),
        ("ResNet18BN", COLOUR, 100, 11_220_132, 512, None),
        ("ResNet18BN_AP", GREY, 10, 11_213_770, 4608, "545.9"),
        ("ResNet18BN_AP", COLOUR, 10, 11_250_762, 8192, "744.2"),
        ("ConvNet", GREY, 10, 317_706, 2048, "48.39"),
        ("ConvNet", COLOUR, 10, 320_010, 2048, "50.75"),
        ("ConvNet", (3, 64, 64), 200, 1_938_120, 8192, "204.5"),
        ("ConvNetD4", (3, 64, 64), 200, 857_160, 2048, "212.8"),
        ("ConvNetD1", COLOUR, 10, 331_530, 32768, "3.9"),
        ("ConvNetD2", COLOUR, 10, 233_610, 8192, "41.4"),
        ("ConvNetW32", COLOUR, 10, 24_714, 512, "3.8"),
        ("ConvNetW256", COLOUR, 10, 1_229_834, 4096, "195.9"),
        ("ConvNetLN", GREY, 10, 661_002, 2048, None),
        ("ConvNetNN", COLOUR, 100, 503_652, 2048, None),
        ("ConvNetNP", COLOUR, 10, 1_610_250, 131072, "306.8"),
    ],
)
def test_published_sizes(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    parameters: int,
    embed: int,
    macs: str | None,
) -> None:
    net = make(name, shape, classes)
    assert parameter_count(net) == parameters
    assert net.embed_dim == embed
    if macs is not None:
        # The table cuts some numbers off and rounds others.
        assert flops(net, shape) / 2e6 == pytest.approx(
            float(macs), abs=10.0 ** -len(macs.partition(".")[2])
        )


def test_flops_computes_nothing_and_keeps_statistics() -> None:
    net = make("ConvNetBN", COLOUR)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert flops(net, COLOUR) == flops(make("ConvNet", COLOUR), COLOUR)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "shape",
    [(1, 8, 8), (1, 28, 28), (3, 28, 28), (1, 32, 32), (3, 28, 32), (4, 20, 33), (3, 64, 48)],
)
@pytest.mark.parametrize(
    "name",
    [
        n
        for n in zoo_names()
        if "w256" not in n and n[:8] not in ("resnet34", "resnet10", "resnet15")
    ],
)
def test_any_size_works_or_is_refused(name: str, shape: tuple[int, int, int]) -> None:
    side = 9 if name.startswith("resnet") and "batchnorm" not in name else 8
    smallest = {
        "convnet4": 16,
        "lenet": 16,
        "vgg11": 28,
        "vgg13": 28,
        "vgg16": 28,
        "vgg19": 28,
    }.get(name.split("_")[0], side)
    if min(shape[1:]) < smallest:
        with pytest.raises(
            ConfigError, match=f"'{name}' cannot read {shape[0]}x{shape[1]}x{shape[2]} images"
        ):
            make(name, shape, 7)
        return
    net = make(name, shape, 7).eval()
    x = torch.zeros(1, *shape)
    features = net.embed(x)
    assert features.shape == (1, net.embed_dim)
    assert net.classifier(features).shape == (1, 7)


def test_a_side_of_28_is_padded_to_32_alone() -> None:
    net = make("ConvNet", (3, 28, 40))
    assert net.features[0].conv(torch.zeros(1, 3, 28, 40)).shape == (1, 128, 32, 40)  # type: ignore[index, union-attr]


def test_equal_generators_give_equal_weights_and_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    for name in ("ConvNetBN", "ConvNetLN", "ResNet18", "MLP", "LeNet"):
        one, two, other = (
            make(name, COLOUR, seed=3),
            make(name, COLOUR, seed=3),
            make(name, COLOUR, seed=4),
        )
        assert all(
            torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)
        )
        assert not torch.equal(one.classifier.weight, other.classifier.weight)  # type: ignore[union-attr]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["ConvNetBN", "ResNet18BN", "ConvNetLN", "AlexNet"])
def test_weights_have_the_default_distribution(name: str) -> None:
    for module in make(name, COLOUR).modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = module.weight[0].numel() ** -0.5
            assert module.weight.abs().max() <= bound
            if module.weight.numel() > 3000:
                assert float(module.weight.detach().std()) == pytest.approx(
                    bound / 3**0.5, rel=0.05
                )
                assert float(module.weight.detach().mean()) == pytest.approx(0, abs=0.05 * bound)
            if module.bias is not None:
                assert 0 < module.bias.abs().max() <= bound
        elif isinstance(module, (nn.GroupNorm, nn.BatchNorm2d, LayerNorm)):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize("name", ["ConvNetBN", "ConvNetLN", "ResNet18", "timm/test_resnet"])
def test_reinitialising_in_place_equals_a_new_network(name: str) -> None:
    net, fresh = make(name, COLOUR, seed=1), make(name, COLOUR, seed=2)
    addresses = [p.data_ptr() for p in net.parameters()]
    with torch.no_grad():
        net(torch.randn(4, *COLOUR, generator=torch.Generator().manual_seed(0)))
        for parameter in net.parameters():
            parameter.add_(1)
    reinitialise_(net, torch.Generator().manual_seed(2))
    assert [p.data_ptr() for p in net.parameters()] == addresses
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in net.state_dict().items())


def test_a_double_network_takes_the_same_weights() -> None:
    net = make("ConvNet", COLOUR).double()
    reinitialise_(net, torch.Generator().manual_seed(5))
    single = make("ConvNet", COLOUR, seed=5)
    assert all(
        torch.equal(a.float(), b)
        for a, b in zip(net.parameters(), single.parameters(), strict=True)
    )


def test_per_sample_networks_are_known() -> None:
    for name in (
        "ConvNet",
        "ConvNetGN",
        "ConvNetLN",
        "ConvNetNN",
        "MLP",
        "LeNet",
        "AlexNet",
        "VGG11",
        "ResNet18",
    ):
        net = make(name, COLOUR)
        assert is_per_sample(net)
        assert not has_batchnorm(net)
    net = make("ConvNetBN", COLOUR)
    assert has_batchnorm(net)
    assert not is_per_sample(net)
    assert is_per_sample(net.eval())
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert is_per_sample(net)
    assert not is_per_sample(nn.Sequential(nn.Dropout(0.1)))
    assert is_per_sample(nn.Sequential(nn.Dropout(0.1)).eval())


@torch.no_grad()
@pytest.mark.parametrize("name", ["ConvNet", "ConvNetLN", "AlexNet", "ResNet18"])
def test_per_sample_means_per_sample(name: str) -> None:
    net = make(name, COLOUR).double()
    x = normal(1, 4, *COLOUR)
    assert torch.allclose(net(x)[:1], net(x[:1]), rtol=1e-12, atol=1e-12)


def test_instance_norm_is_one_group_per_channel() -> None:
    net = make("ConvNet", COLOUR).double()
    norm = net.features[0].norm  # type: ignore[index, union-attr]
    x = normal(1, 2, 128, 8, 8)
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
    assert (norm(x) - (x - mean) / (variance + 1e-5).sqrt()).abs().max() < 1e-10  # type: ignore[operator]


def test_layer_norm_has_the_right_second_derivative_under_vmap() -> None:
    shape = (3, 4, 4)
    weight, bias, head = normal(1, *shape), normal(2, *shape), normal(3, *shape)
    ours = LayerNorm(shape).double()

    def gradient(norm: object, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        def loss(w: Tensor, b: Tensor) -> Tensor:
            y = (
                torch.func.functional_call(ours, {"weight": w, "bias": b}, (x,))
                if norm is ours
                else F.layer_norm(x, shape, w, b)
            )
            return (y * head).tanh().square().sum()

        return torch.cat([g.flatten() for g in torch.func.grad(loss, argnums=(0, 1))(weight, bias)])

    images = normal(4, 2, 5, *shape)
    stacked = images.clone().requires_grad_()
    out = torch.vmap(lambda x: gradient(ours, weight, bias, x))(stacked)
    (under_vmap,) = torch.autograd.grad(out.sin().sum(), stacked)
    # Eager double backward through the library's layer norm is right.
    plain = images.clone().requires_grad_()
    rows = []
    for x in plain:
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        loss = (F.layer_norm(x, shape, w, b) * head).tanh().square().sum()
        rows.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, (w, b), create_graph=True)])
        )
    (eager,) = torch.autograd.grad(torch.stack(rows).sin().sum(), plain)
    assert (under_vmap - eager).norm() <= 1e-10 * eager.norm()


def test_frozen_batch_norm_statistics() -> None:
    net = make("ConvNetBN", COLOUR).double()
    block = net.features[0]  # type: ignore[index]
    x = normal(1, 6, *COLOUR)
    with torch.no_grad():
        net(x)
        y = block.conv(x)  # type: ignore[operator, union-attr]
    assert torch.allclose(block.norm.running_mean, 0.1 * y.mean((0, 2, 3)), rtol=1e-9)  # type: ignore[union-attr, arg-type]
    assert torch.allclose(block.norm.running_var, 0.9 + 0.1 * y.var((0, 2, 3)), rtol=1e-9)  # type: ignore[union-attr, arg-type]


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        make("ConvNet", (0, 8, 8))
    for name in ("convnet5", "convnet5_maxpool", "convnet6_batchnorm"):
        with pytest.raises(ConfigError, match="use a smaller depth"):
            make(name, (1, 16, 16))
