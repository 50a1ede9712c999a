"""Winograd's convolution and the gradient-free forward of ConvNets: the same functions as the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raydd.core.errors import ConfigError
from raydd.core.units import Numerics
from raydd.networks import (
    Network,
    create_network,
    fast_embed,
    fast_forward,
    reinitialise_,
    winograd,
)
from raydd.networks.lean import CHUNK, can_be_lean, lean_embed


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (14, 14), (5, 10), (1, 3)])
@pytest.mark.parametrize("padding", [(1, 1), (0, 1), (3, 2)])
def test_winograd_is_the_direct_convolution(
    size: tuple[int, int], padding: tuple[int, int]
) -> None:
    if size[0] + 2 * padding[0] < 3:
        size = (3, size[1])
    x, weight = normal(3, 5, *size), normal(4, 5, 3, 3, seed=1)
    found = winograd.convolve(
        x.permute(0, 2, 3, 1), winograd.transform_kernel(weight), padding
    ).permute(0, 3, 1, 2)
    wanted = F.conv2d(x, weight, padding=padding)
    assert found.shape == wanted.shape
    assert difference(found, wanted) < 1e-13


def test_winograd_in_float32_is_near_and_worse_than_direct() -> None:
    x, weight = normal(4, 128, 16, 16).relu(), normal(128, 128, 3, 3, seed=1)
    wanted = F.conv2d(x, weight, padding=1)
    x, weight = x.float(), weight.float()
    found = winograd.convolve(x.permute(0, 2, 3, 1), winograd.transform_kernel(weight)).permute(
        0, 3, 1, 2
    )
    assert (
        1e-7 < difference(F.conv2d(x, weight, padding=1), wanted) < difference(found, wanted) < 5e-6
    )


@pytest.mark.parametrize(
    ("conv", "suited"),
    [
        (nn.Conv2d(64, 64, 3, padding=1), True),
        (nn.Conv2d(32, 64, 3), True),
        (nn.Conv2d(3, 64, 3, padding=1), False),
        (nn.Conv2d(64, 64, 5, padding=2), False),
        (nn.Conv2d(64, 64, 3, stride=2), False),
        (nn.Conv2d(64, 64, 3, dilation=2), False),
        (nn.Conv2d(64, 64, 3, groups=2), False),
        (nn.Conv2d(64, 64, 3, padding="same"), False),
        (nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular"), False),
        (nn.Linear(64, 64), False),
    ],
)
def test_only_plain_wide_convolutions_are_replaced(conv: nn.Module, suited: bool) -> None:
    assert winograd.suits(conv) is suited


NETWORKS = [
    ("convnet3_w32", (1, 28, 28)),
    ("convnet3_w32", (3, 32, 32)),
    ("convnet2_w32_swish_maxpool", (3, 18, 22)),
    ("convnet2_w32_sigmoid_nopool", (2, 9, 7)),
    ("convnet2_w8_leakyrelu", (5, 11, 14)),
]


def make(name: str, shape: tuple[int, int, int]) -> Network:
    net = create_network(name, shape, 3, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.copy_(normal(*module.weight.shape, seed=2))
                module.bias.copy_(normal(*module.bias.shape, seed=3))
    return net


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), NETWORKS)
@pytest.mark.parametrize("fewer", [False, True])
def test_the_lean_forward_is_the_network_s(
    name: str, shape: tuple[int, int, int], fewer: bool
) -> None:
    net, x = make(name, shape), normal(CHUNK + 5, *shape)
    assert can_be_lean(net)
    embed = lean_embed(net, compile=False, fewer_products=fewer)
    for seed in (1, 2):
        assert difference(embed(x), net.embed(x)) < 1e-12
        reinitialise_(net, torch.Generator().manual_seed(seed))


def test_a_whole_chunk_before_it_does_not_change_an_image() -> None:
    net = create_network("convnet3_w32", (1, 28, 28), 3, torch.Generator().manual_seed(0))
    x = normal(2 * CHUNK + 3, 1, 28, 28, dtype=torch.float32)
    for fewer in (False, True):
        embed = lean_embed(net, compile=False, fewer_products=fewer)
        assert torch.equal(embed(x)[CHUNK:], embed(x[CHUNK:]))


@pytest.mark.parametrize(
    "name",
    ["convnet3_w32_batchnorm", "convnet3_w32_nonorm", "convnet3_w32_groupnorm", "resnet18_cifar"],
)
def test_other_networks_are_not_lean(name: str) -> None:
    assert not can_be_lean(create_network(name, (3, 32, 32), 3, torch.Generator().manual_seed(0)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["convnet3_w32", "convnet3_w32_batchnorm", "resnet18_cifar_batchnorm", "vgg11_cifar"]
)
def test_winograd_serves_images_without_gradient_only(name: str) -> None:
    net = create_network(name, (3, 32, 32), 3, torch.Generator().manual_seed(0)).double()
    x = normal(3, 3, 32, 32)
    plain = copy.deepcopy(net)
    for function, wanted in ((fast_embed, plain.embed), (fast_forward, plain)):
        fast = function(net, Numerics(convolution="winograd"))
        assert torch.equal(fast(x), wanted(x))
        with torch.no_grad():
            found = fast(x)
            assert 0 < difference(found, wanted(x)) < 1e-9
    net.eval(), plain.eval()
    with torch.no_grad():
        assert difference(fast(x), plain(x)) < 1e-9


@pytest.mark.slow
def test_compiled_winograd_is_the_network_s() -> None:
    net = create_network("convnet2_w32", (1, 12, 12), 3, torch.Generator().manual_seed(0))
    fast = fast_embed(net, Numerics(compile=True, convolution="winograd"))
    for count in (3, CHUNK + 1):
        x = normal(count, 1, 12, 12, dtype=torch.float32)
        with torch.no_grad():
            assert difference(fast(x), net.double().embed(x.double())) < 2e-5
            net.float()
    reinitialise_(net, torch.Generator().manual_seed(7))
    with torch.no_grad():
        assert difference(fast(x), net.embed(x)) < 2e-5


def test_winograd_beside_bf16_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"convolution=winograd needs numerics\.precision=fp32 or fp32_strict, not bf16",
    ):
        Numerics(precision="bf16", convolution="winograd")
    Numerics(precision="fp32_strict", convolution="winograd")
