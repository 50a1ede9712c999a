"""Gradients of segments of a batch taken together, instance norms for second derivatives, weights as one vector."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raydd.networks import create_network
from raydd.networks.flat import FreshWeights, fill_, flatten
from raydd.networks.segments import segmented_form
from raydd.networks.twice import twice_differentiable

SHAPE = (3, 32, 32)


def made(name: str) -> nn.Module:
    """Return a network in float64, its batch norms frozen and its vectors without gradients."""
    net = create_network(name, SHAPE, 10, torch.Generator().manual_seed(0)).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for parameter in net.parameters():
        parameter.requires_grad_(parameter.dim() > 1)
    return net


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["convnet3_w8", "lenet", "mlp", "resnet18", "torchvision/resnet18"]
)
def test_each_segments_gradient_is_that_of_the_segment_alone(name: str) -> None:
    net, images = (
        made(name),
        torch.randn(3, 2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    segmented, labels = segmented_form(net), torch.tensor([4, 0, 7])
    assert segmented is not None
    wide = [p for p in net.parameters() if p.dim() > 1]
    logits, weights = segmented(images.flatten(0, 1), 3)
    found = torch.autograd.grad(
        F.cross_entropy(logits, labels.repeat_interleave(2), reduction="sum") / 2, weights
    )
    for k, (of_segment, label) in enumerate(zip(images, labels, strict=True)):
        wanted = torch.autograd.grad(F.cross_entropy(net(of_segment), label.expand(2)), wide)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a[k], b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "convnet3_w8_layernorm"])
def test_networks_with_other_matrices_have_no_segmented_form(name: str) -> None:
    net = (
        made(name)
        if "convnet" in name
        else create_network(name, (3, 224, 224), 10, torch.Generator().manual_seed(0))
    )
    assert segmented_form(net) is None


def test_the_segments_follow_the_weights() -> None:
    net = made("convnet3_w8")
    segmented = segmented_form(net)
    assert segmented is not None
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    images = torch.randn(2, *SHAPE, dtype=torch.float64)
    assert torch.equal(segmented(images, 1)[0], net(images))


def test_instance_norms_have_three_derivatives() -> None:
    net = nn.Sequential(nn.GroupNorm(2, 2), nn.Flatten(), nn.Linear(12, 3)).double()
    twin = twice_differentiable(net)
    x = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)

    def second(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = network(x).sin().sum()
        gradients = torch.autograd.grad(loss, [x, *network.parameters()], create_graph=True)
        value = torch.stack([g.sin().sum() for g in gradients]).sum()
        return (
            loss,
            *gradients,
            *torch.autograd.grad(value, [x, *network.parameters()], create_graph=True),
        )

    for a, b in zip(second(twin, x), second(net, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda y: twin[0](y), [x])


def test_fresh_weights_are_those_of_a_new_network() -> None:
    def make() -> nn.Module:
        return create_network("convnet3_w8", SHAPE, 10, torch.Generator().manual_seed(9))

    fresh, target = FreshWeights(make), make().double()
    weights = fresh(torch.Generator().manual_seed(3))
    wanted = create_network("convnet3_w8", SHAPE, 10, torch.Generator().manual_seed(3))
    assert torch.equal(weights, flatten(wanted.parameters()))
    fill_(target.parameters(), weights)
    assert all(
        torch.equal(a, b.double())
        for a, b in zip(target.parameters(), wanted.parameters(), strict=True)
    )
    fresh(torch.Generator().manual_seed(4))
    assert torch.equal(weights, flatten(wanted.parameters())), "a copy"
