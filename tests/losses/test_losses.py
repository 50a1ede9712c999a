"""DM's and DC's losses against golden numbers (T2, T3 of docs/methods/parity.md) and explicit loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from raydd.core.errors import ConfigError
from raydd.losses import cross_entropy, distribution_matching_loss, gradient_distance, is_matched
from raydd.networks import Network, create_network

FILE = json.loads((Path(__file__).parents[1] / "golden" / "golden_dc_dsa_dm.json").read_text())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def filled(name: str) -> Network:
    """Return a network in fp64 with the weights of docs/methods/parity.md, "Weights and images of DC, DSA and DM"."""
    net = create_network(name, (3, 32, 32), 10, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for k, (path, parameter) in enumerate(net.named_parameters()):
            z = normal(1000 + k, *parameter.shape)
            if parameter.dim() in (2, 4):
                z = z * (2 / parameter[0].numel()) ** 0.5
            else:
                z = 0.1 * z if path.endswith("bias") else 1 + 0.1 * z
            parameter.copy_(z)
    return net


def check(tensor: Tensor, golden: dict[str, float], rel: float) -> None:
    assert float(tensor.square().sum()) == pytest.approx(golden["sq"], rel=rel)
    assert float(tensor.abs().sum()) == pytest.approx(golden["abssum"], rel=rel)
    assert float(tensor.sum()) == pytest.approx(golden["sum"], abs=rel * golden["abssum"])
    assert tensor.flatten()[:4].tolist() == pytest.approx(golden["first"], abs=1e-11)


def freeze(net: Network) -> None:
    net.train()
    net(torch.cat([normal(300 + c, 4, 3, 32, 32) for c in range(2)]))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def gradients(net: Network, images: Tensor, label: int, create_graph: bool) -> tuple[Tensor, ...]:
    loss = F.cross_entropy(net(images), torch.full((len(images),), label))
    return torch.autograd.grad(loss, list(net.parameters()), create_graph=create_graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILE["gradient_matching"])
def test_golden_t2_gradient_matching(name: str) -> None:
    golden = FILE["gradient_matching"][name]
    net = filled(name)
    if "bn1_running_mean" in golden:
        freeze(net)
        norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        check(norm.running_mean, golden["bn1_running_mean"], 1e-9)
        check(norm.running_var, golden["bn1_running_var"], 1e-9)
    synthetic = torch.stack([normal(200 + c, 2, 3, 32, 32) for c in range(2)]).requires_grad_()
    real = [
        torch.stack(g)
        for g in zip(
            *(gradients(net, normal(100 + c, 6, 3, 32, 32), c, False) for c in range(2)),
            strict=True,
        )
    ]
    ours = [
        torch.stack(g)
        for g in zip(*(gradients(net, synthetic[c], c, True) for c in range(2)), strict=True)
    ]
    for distance in ("ours", "mse", "cos"):
        values = gradient_distance(ours, real, distance)
        assert values.tolist() == pytest.approx(golden[distance]["per_class"], rel=1e-9)
        (grad,) = torch.autograd.grad(values.sum(), synthetic, retain_graph=True)
        check(grad, golden[distance]["grad"], 1e-8)


@pytest.mark.parametrize("name", ["ConvNetLN", "ConvNetGN", "ConvNetBN", "LeNet"])
def test_classes_at_once_equal_class_by_class(name: str) -> None:
    net = filled(name)
    if name == "ConvNetBN":
        freeze(net)
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    parameters = {n: p.detach() for n, p in net.named_parameters()}
    images = torch.stack([normal(200 + c, 2, 3, 32, 32) for c in range(2)])
    real = [
        torch.stack(g)
        for g in zip(
            *(gradients(net, normal(100 + c, 3, 3, 32, 32), c, False) for c in range(2)),
            strict=True,
        )
    ]
    labels = torch.arange(2).unsqueeze(1).expand(2, 2)

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, {**state, **weights}, (x,)), y)

    results = []
    for at_once in (True, False):
        x = images.clone().requires_grad_()
        if at_once:
            found = list(
                torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
                    parameters, x, labels
                ).values()
            )
        else:
            found = [
                torch.stack(g)
                for g in zip(*(gradients(net, x[c], c, True) for c in range(2)), strict=True)
            ]
        (grad,) = torch.autograd.grad(gradient_distance(found, real, "ours").sum(), x)
        results.append(grad)
    assert (results[0] - results[1]).norm() <= 1e-12 * results[1].norm()


def test_ours_equals_a_loop_over_rows_and_ignores_vectors() -> None:
    shapes = [(4, 3, 3, 3), (4,), (5, 2, 2), (6, 7)]
    a = [normal(i, 2, *shape) for i, shape in enumerate(shapes)]
    b = [normal(10 + i, 2, *shape) for i, shape in enumerate(shapes)]
    expected = np.zeros(2)
    for c in range(2):
        for x, y in zip(a, b, strict=True):
            if x.dim() > 2:
                for row in range(x.shape[1]):
                    u, v = x[c, row].numpy().ravel(), y[c, row].numpy().ravel()
                    expected[c] += 1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v) + 1e-6)
    np.testing.assert_allclose(gradient_distance(a, b, "ours").numpy(), expected, rtol=1e-12)
    assert [is_matched(x[0], "ours") for x in a] == [True, False, True, True]
    assert is_matched(a[1][0], "mse")


@pytest.mark.parametrize("size", [0.0, 1e-4, 1e-3, 1e-2, 1.0])
def test_small_gradients_are_damped(size: float) -> None:
    rows = F.normalize(normal(1, 1, 5, 8), dim=2) * size
    value = float(gradient_distance([rows], [rows]))
    assert value == pytest.approx(5 * (1 - size**2 / (size**2 + 1e-6)), abs=1e-9)


def test_rows_of_zeros_cost_one_and_have_no_derivative() -> None:
    zeros = torch.zeros(1, 3, 4, dtype=torch.float64, requires_grad=True)
    value = gradient_distance([zeros], [normal(1, 1, 3, 4)])
    (grad,) = torch.autograd.grad(value.sum(), zeros, retain_graph=True)
    assert float(value.detach()) == 3
    assert torch.isfinite(grad).all()
    (same,) = torch.autograd.grad(
        gradient_distance([zeros], [torch.zeros_like(zeros)]).sum(), zeros
    )
    assert torch.equal(same, torch.zeros_like(zeros))


@pytest.mark.parametrize("distance", ["ours", "mse", "cos"])
def test_derivative_equals_finite_differences(distance: str) -> None:
    b = [normal(5, 2, 3, 4), normal(6, 2, 3)]
    assert torch.autograd.gradcheck(
        lambda x, y: gradient_distance([x, y], b, distance),
        (normal(1, 2, 3, 4).requires_grad_(), normal(2, 2, 3).requires_grad_()),
    )


@pytest.mark.parametrize("name", FILE["dm"])
def test_golden_t3_distribution_matching(name: str) -> None:
    golden = FILE["dm"][name]
    net = filled(name)
    real = torch.stack([normal(400 + c, 5, 3, 32, 32) for c in range(3)])
    synthetic = torch.stack([normal(500 + c, 2, 3, 32, 32) for c in range(3)]).requires_grad_()
    mean = net.embed(real.flatten(0, 1)).view(3, 5, -1).mean(1).detach()
    loss = distribution_matching_loss(mean, net.embed(synthetic.flatten(0, 1)).view(3, 2, -1))
    assert float(loss.detach()) == pytest.approx(golden["loss"], rel=1e-9)
    check(torch.autograd.grad(loss, synthetic)[0], golden["grad"], 1e-9)


def test_cross_entropy_of_many_networks_equals_one_by_one() -> None:
    logits, hard = normal(1, 3, 5, 4), torch.arange(15).view(3, 5) % 4
    expected = torch.stack([F.cross_entropy(x, y) for x, y in zip(logits, hard, strict=True)])
    assert torch.allclose(cross_entropy(logits, hard), expected, rtol=1e-12)
    soft = normal(2, 3, 5, 4).softmax(-1)
    expected = torch.stack([F.cross_entropy(x, y) for x, y in zip(logits, soft, strict=True)])
    assert torch.allclose(cross_entropy(logits, soft), expected, rtol=1e-12)


def test_bad_input_is_named() -> None:
    x = normal(1, 2, 3, 4)
    with pytest.raises(ConfigError, match="did you mean 'cos'"):
        gradient_distance([x], [x], "cosine")
    with pytest.raises(ConfigError, match="same parameters"):
        gradient_distance([x], [x[:1]])
    with pytest.raises(ConfigError, match=r"\[K, d\]"):
        distribution_matching_loss(x, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet3", "resnet18_cifar"])
def test_the_cosine_of_whole_gradients_is_exact_in_fp32(name: str) -> None:
    """One norm over eleven million squares was 7e-4 off (ResNet-18)."""
    g = torch.Generator().manual_seed(0)
    shapes = [
        p.shape
        for p in create_network(
            name, (3, 32, 32), 10, torch.Generator().manual_seed(0)
        ).parameters()
    ]
    real = [0.01 * torch.randn(2, *shape, generator=g) for shape in shapes]
    synthetic = [0.9 * a + 0.003 * torch.randn(a.shape, generator=g) for a in real]
    exact = gradient_distance([a.double() for a in synthetic], [b.double() for b in real], "cos")
    torch.testing.assert_close(
        gradient_distance(synthetic, real, "cos").double(), exact, rtol=0, atol=2e-6
    )


def test_the_derivative_at_rows_of_zeros() -> None:
    real = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]], dtype=torch.float64)
    synthetic = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(gradient_distance([synthetic], [real], "ours").sum(), synthetic)
    torch.testing.assert_close(found[0, 0], -real[0, 0] / 1e-6)
