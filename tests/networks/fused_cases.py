"""Cases of the fused blocks, against float64: on CUDA, or by Triton's interpreter
(:mod:`test_fused` runs this file both ways).
"""

from __future__ import annotations

import itertools
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.core.units import Numerics
from raydd.networks import Network, create_network
from raydd.networks.fused import fused_call, fused_embed, fused_forward
from raydd.networks.fused_ops import Tail, first_block, patch_moments, tail
from raydd.networks.segments import Segmented

CUDA = os.environ.get("TRITON_INTERPRET") != "1"
DEVICE = torch.device("cuda" if CUDA else "cpu")
TF32 = Numerics()


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 1.5 + 0.5).to(DEVICE)


def reference(x: Tensor, weight: Tensor, bias: Tensor, what: Tail) -> Tensor:
    y = F.leaky_relu(F.group_norm(x, x.shape[1], weight, bias, what.eps), what.slope)
    if what.pooling == "nopool":
        return y
    return F.avg_pool2d(y, 2) if what.pooling == "avgpool" else F.max_pool2d(y, 2)


def distance(ours: Tensor, exact: Tensor) -> float:
    assert ours.shape == exact.shape
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


def check(ours: Tensor, leaves: list[Tensor], exact: Tensor, doubles: list[Tensor]) -> None:
    grad = draw(*exact.shape, seed=5)
    assert distance(ours, exact) < 1e-6
    found = torch.autograd.grad(ours, leaves, grad)
    for one, other in zip(found, torch.autograd.grad(exact, doubles, grad.double()), strict=True):
        assert distance(one, other) < 1e-5


def leaves_of(*tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    return [t.clone().requires_grad_() for t in tensors], [
        t.double().requires_grad_() for t in tensors
    ]


TAILS = [
    ((2, 16, 8, 8), Tail(), False),
    ((2, 10, 7, 9), Tail(slope=0.01, pooling="maxpool"), True),
    ((1, 130, 5, 4), Tail(pooling="nopool"), False),
    ((1, 20, 36, 34), Tail(eps=0.1), True),
    ((1, 9, 33, 36), Tail(pooling="maxpool"), False),
    ((1, 3, 35, 33), Tail(pooling="nopool"), True),
]


@pytest.mark.parametrize(("shape", "what", "flat"), TAILS)
def test_tail_and_its_gradients(shape: tuple[int, ...], what: Tail, flat: bool) -> None:
    # Coarse values, so that maxima have equals.
    leaves, doubles = leaves_of(
        draw(*shape).mul(2).round() / 2, draw(shape[1], seed=1), draw(shape[1], seed=2)
    )
    ours, exact = tail(*leaves, what, flat=flat), reference(*doubles, what)
    assert ours.is_contiguous(
        memory_format=torch.contiguous_format if flat else torch.channels_last
    )
    check(ours, leaves, exact, doubles)
    with torch.no_grad():
        assert torch.equal(tail(*leaves, what, flat=flat), ours)


def test_tail_reads_and_writes_bf16() -> None:
    x, weight, bias = (
        draw(2, 16, 6, 6).bfloat16().requires_grad_(),
        draw(16, seed=1),
        draw(16, seed=2),
    )
    double = x.detach().double().requires_grad_()
    exact = reference(double, weight.double(), bias.double(), Tail())
    assert distance(tail(x, weight, bias, Tail(), torch.float32), exact) < 1e-6
    ours = tail(x, weight, bias, Tail())
    assert ours.dtype == torch.bfloat16
    assert 1e-4 < distance(ours, exact) < 4e-3
    grad = draw(*exact.shape, seed=5).bfloat16()
    (found,), (right,) = (
        torch.autograd.grad(ours, x, grad),
        torch.autograd.grad(exact, double, grad.double()),
    )
    assert found.dtype == torch.bfloat16
    assert distance(found, right) < 4e-3


@pytest.mark.parametrize("shape", [(2, 1, 10, 12), (1, 3, 12, 5)])
def test_moments_of_patches_far_from_zero(shape: tuple[int, ...]) -> None:
    x = draw(*shape) + 100
    taps = F.unfold(x.double(), 3)
    away = taps - taps.mean(2, keepdim=True)
    mean, covariance = patch_moments(x)
    assert distance(mean, taps.mean(2)) < 1e-6
    assert distance(covariance, away @ away.mT / taps.shape[2]) < 1e-6


FIRSTS = [
    ((2, 1, 8, 8), 16, (1, 1), Tail(), False),
    ((2, 3, 7, 9), 10, (1, 1), Tail(slope=0.01, pooling="maxpool"), True),
    ((1, 1, 5, 4), 130, (1, 1), Tail(pooling="nopool"), False),
    ((1, 1, 28, 28), 16, (3, 3), Tail(), False),
    ((1, 3, 28, 10), 8, (3, 1), Tail(), True),
]


@pytest.mark.parametrize(("shape", "channels", "padding", "what", "flat"), FIRSTS)
def test_first_block_and_its_gradients(
    shape: tuple[int, ...], channels: int, padding: tuple[int, int], what: Tail, flat: bool
) -> None:
    x = draw(*shape)
    leaves, doubles = leaves_of(
        draw(channels, shape[1], 3, 3, seed=1), draw(channels, seed=2), draw(channels, seed=3)
    )
    ours = first_block(x, *leaves, padding, what, torch.float32, flat=flat)
    exact = reference(
        F.conv2d(x.double(), doubles[0], padding=padding), doubles[1], doubles[2], what
    )
    assert ours.is_contiguous(
        memory_format=torch.contiguous_format if flat else torch.channels_last
    )
    check(ours, leaves, exact, doubles)
    with torch.no_grad():
        assert torch.equal(first_block(x, *leaves, padding, what, torch.float32, flat=flat), ours)


@pytest.mark.parametrize("planes", [1, 3])
def test_gradients_of_segments_by_the_first_block(planes: int) -> None:
    x, norm = draw(4, planes, 4, 6), (draw(8, seed=2), draw(8, seed=3))
    leaves, doubles = leaves_of(draw(8, planes, 3, 3, seed=1).expand(2, -1, -1, -1, -1), *norm)
    convolved = torch.cat(
        [
            F.conv2d(part, kernel, padding=1)
            for part, kernel in zip(x.double().chunk(2), doubles[0], strict=True)
        ]
    )
    exact = reference(convolved, doubles[1], doubles[2], Tail())
    check(first_block(x, *leaves, (1, 1), Tail(), torch.float32), leaves, exact, doubles)


def test_gradients_of_segments_of_a_network() -> None:
    net, double = make("convnet2_w8", (1, 8, 8))
    segmented, x, labels = (
        Segmented(net, "fp32"),
        draw(4, 1, 8, 8, seed=8),
        torch.tensor([0, 0, 2, 2], device=DEVICE),
    )
    segmented.fused = True
    logits, weights = segmented(x, 2)
    found = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), weights)
    for k, part in enumerate((slice(0, 2), slice(2, 4))):
        wide = [p for p in double.parameters() if p.dim() > 1]
        right = torch.autograd.grad(
            F.cross_entropy(double(x[part].double()), labels[part], reduction="sum"), wide
        )
        for one, other in zip(found, right, strict=True):
            assert distance(one[k], other) < 1e-5


def make(name: str, shape: tuple[int, int, int]) -> tuple[Network, Network]:
    nets = [
        create_network(name, shape, 3, torch.Generator().manual_seed(0)).to(DEVICE)
        for _ in range(2)
    ]
    for net in nets:
        for seed, (key, value) in enumerate(net.named_parameters()):
            if ".norm." in key:
                value.data.copy_(draw(*value.shape, seed=seed))
    return nets[0], nets[1].double()


@pytest.mark.parametrize(
    ("name", "shape", "of_images"),
    [
        ("convnet2_w16", (1, 8, 8), False),
        ("convnet2_w16", (1, 8, 8), True),
        ("convnet2_w8", (3, 8, 8), False),
        ("convnet1_w6_leakyrelu_maxpool", (2, 9, 8), True),
    ],
)
def test_networks_and_their_gradients(
    name: str, shape: tuple[int, int, int], of_images: bool
) -> None:
    net, double = make(name, shape)
    x, labels = (
        draw(2, *shape, seed=8).requires_grad_(of_images),
        torch.tensor([0, 2], device=DEVICE),
    )
    x_double = x.detach().double().requires_grad_(of_images)
    named, doubles = dict(net.named_parameters()), dict(double.named_parameters())
    logits, exact = fused_forward(net, TF32)(x), double(x_double)
    assert logits.dtype == torch.float32
    assert distance(logits, exact) < 1e-6
    found = torch.autograd.grad(
        F.cross_entropy(logits, labels), [*named.values(), *[x] * of_images]
    )
    right = torch.autograd.grad(
        F.cross_entropy(exact, labels), [*doubles.values(), *[x_double] * of_images]
    )
    for key, one, other in itertools.zip_longest([*named], found, right, fillvalue="images"):
        if key.endswith("conv.bias"):
            assert not one.any()
        else:
            assert distance(one, other) < 1e-5, key


def test_a_call_with_parameters_of_ones_own() -> None:
    net, _ = make("convnet1_w8", (1, 6, 6))
    structure = create_network("convnet1_w8", (1, 6, 6), 3, torch.Generator())
    params = {key: value for key, value in net.named_parameters() if not key.endswith("conv.bias")}
    x = draw(2, 1, 6, 6)
    assert torch.equal(fused_call(structure, params, x, "fp32"), fused_forward(net, TF32)(x))


def test_bf16_is_near_and_weights_are_read_at_each_call() -> None:
    net, double = make("convnet2_w16", (1, 8, 8))
    embed, x = fused_embed(net, Numerics(precision="bf16")), draw(3, 1, 8, 8)
    with torch.no_grad():
        for other in (net, double):
            other.features[0].conv.weight.mul_(2.5)
            other.features[1].norm.bias.add_(0.5)
        assert 1e-5 < distance(embed(x), double.embed(x.double())) < 0.03


def test_flat_images_and_images_that_are_not_finite() -> None:
    net, double = make("convnet1_w8", (1, 8, 8))
    x = torch.full((1, 1, 8, 8), 0.25, device=DEVICE)
    with torch.no_grad():
        assert distance(fused_embed(net, TF32)(x), double.embed(x.double())) < 1e-5
        assert fused_embed(net, TF32)(x * torch.nan).isnan().all()


def gradients(net: Network, x: Tensor) -> list[Tensor]:
    return [
        *torch.autograd.grad(fused_forward(net, TF32)(x).square().sum(), list(net.parameters()))
    ]


@pytest.mark.skipif(not CUDA, reason="the interpreter is one thread")
def test_the_same_bytes_twice() -> None:
    net, _ = make("convnet3_w128", (1, 28, 28))
    x = draw(50, 1, 28, 28)
    for one, other in zip(gradients(net, x), gradients(net, x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not CUDA, reason="graphs are CUDA's")
def test_a_graph_gives_the_same_bytes() -> None:
    net, _ = make("convnet3_w128", (1, 28, 28))
    x = draw(20, 1, 28, 28)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        eager = gradients(net, x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(net, x)
    graph.replay()
    for one, other in zip(eager, captured, strict=True):
        assert torch.equal(one, other)
