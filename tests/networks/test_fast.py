"""The quick forwards: equal to the plain ones up to rounding, and never recompiled for new weights or new networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from raydd.core.units import Numerics
from raydd.networks import Network, create_network, reinitialise_
from raydd.networks.fast import fast_embed, fast_forward

SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make(name: str = "convnet2_w8", seed: int = 0) -> Network:
    return create_network(name, SHAPE, 3, torch.Generator().manual_seed(seed))


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(9))


def test_eager_fp32_is_the_network_itself() -> None:
    net, x = make(), images()
    assert torch.equal(fast_embed(net, Numerics())(x), net.embed(x))
    assert torch.equal(fast_forward(net, Numerics())(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet2_w8", "resnet18_cifar_batchnorm", "timm/test_resnet"])
def test_bf16_convolutions_are_near_and_follow_the_weights_and_mode(name: str) -> None:
    net = create_network(name, (3, 32, 32), 3, torch.Generator().manual_seed(0))
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    fast = fast_embed(net, Numerics(precision="bf16"))
    for training in (True, False):
        net.train(training)
        reinitialise_(net, torch.Generator().manual_seed(7))
        plain, quick = net.embed(x), fast(x)
        assert quick.dtype == torch.float32
        assert 0 < (quick - plain).norm() / plain.norm() < 0.03


def test_bf16_gradients_reach_the_network_s_weights() -> None:
    net, x, labels = make("convnet2_w8_swish"), images(16), torch.arange(16) % 3
    F.cross_entropy(fast_forward(net, Numerics(precision="bf16"))(x), labels).backward()
    quick = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    F.cross_entropy(net(x), labels).backward()
    assert len(quick) == len(list(net.parameters()))
    for ours, parameter in zip(quick, net.parameters(), strict=True):
        assert ours.dtype == torch.float32
        # Biases before an instance norm have no gradient but noise.
        if parameter.dim() > 1 and parameter.grad is not None:
            assert F.cosine_similarity(ours.flatten(), parameter.grad.flatten(), 0) > 0.99


@pytest.mark.slow
def test_compiled_follows_new_weights_and_networks_without_recompiling() -> None:
    numerics = Numerics(compile=True)
    net, x = make(), images()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    fast = fast_embed(net, numerics)

    def synthetic() -> torch.Tensor:
        x_syn = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(fast(x_syn).square().sum(), x_syn)
        return grad

    with torch.no_grad():
        fast(x)
    synthetic()
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 2
    for seed in range(3):
        reinitialise_(net, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            assert torch.allclose(fast(x), net.embed(x), rtol=1e-5, atol=1e-6)
        x_syn = x.clone().requires_grad_()
        (plain,) = torch.autograd.grad(net.embed(x_syn).square().sum(), x_syn)
        assert (synthetic() - plain).norm() <= 1e-5 * plain.norm()
    other = make(seed=8)
    for parameter in other.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        assert torch.allclose(fast_embed(other, numerics)(x), other.embed(x), rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == graphs
