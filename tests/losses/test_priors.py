"""Priors on images against golden numbers (G5, G6, G8 of docs/methods/parity.md) and plain formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raydd.losses.priors import density, flatness, image_norm, spectrum, total_variation

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_edc.json").read_text())


def det(
    shape: tuple[int, ...], a: float = 0.37, b: float = 0.11, scale: float = 1.0, shift: float = 0.0
) -> Tensor:
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * (torch.sin(a * i + b) + 0.5 * torch.cos(0.013 * i)) + shift).float().view(shape)


def test_golden_total_variation() -> None:
    images = det((2, 3, 16, 16), 0.37, 0.2, 0.5)
    assert float(total_variation(images[None], order=1)) == pytest.approx(0.498459, rel=2e-5)
    assert float(total_variation(images[None])) == pytest.approx(20.810261, rel=2e-5)


def test_golden_densification_and_its_saturation() -> None:
    images = det((6, 3, 32, 32), 0.37, 0.2, 0.05).requires_grad_()
    loss = density(images, [0, 0, 0, 1, 1, 1], 4.0)
    (gradient,) = torch.autograd.grad(loss, images)
    assert loss.item() == pytest.approx(GOLDEN["G6_gvbsm_dd"]["loss"], rel=2e-5)
    assert gradient.norm().item() == pytest.approx(GOLDEN["G6_gvbsm_dd"]["grad_norm"], rel=1e-4)
    values = torch.tensor([[1.72351, 3.74206, 8.95125], [1.70267, 3.74905, 8.95568]])
    torch.testing.assert_close(
        spectrum(images.detach().view(2, 3, 3, 32, 32)), values, rtol=2e-5, atol=0
    )
    wide = det((6, 3, 32, 32), 0.37, 0.2, 0.5).requires_grad_()
    loss = density(wide, [0, 0, 0, 1, 1, 1], 4.0)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, wide)[0].any()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 20), (64, 64), (48, 80)])
def test_densification_pools_any_size_as_adaptive_pooling_does(height: int, width: int) -> None:
    images = det((4, 2, height, width), 0.37, 0.2, 0.05)
    pooled = torch.nn.functional.adaptive_avg_pool2d(images, 32)
    assert density(images, [0, 1, 0, 1], 4.0).item() == pytest.approx(
        density(pooled, [0, 1, 0, 1], 4.0).item(), rel=1e-4
    )


def test_densification_adds_up_over_classes_of_any_sizes() -> None:
    images = det((7, 3, 16, 16), 0.37, 0.2, 0.05)
    labels = [5, 2, 5, 2, 5, 9, 5]
    alone = [
        density(images[[i for i, c in enumerate(labels) if c == k]], [k] * labels.count(k), 4.0)
        for k in (2, 5, 9)
    ]
    assert density(images, labels, 4.0).item() == pytest.approx(sum(alone).item(), rel=1e-5)
    assert alone[2].item() == 0


def test_golden_flatness() -> None:
    logits, averaged = det((4, 10), 0.3, 0.2, 2), det((4, 10), 0.41, 0.3, 3)
    assert flatness(logits[None], averaged[None], 4.0).item() == pytest.approx(
        GOLDEN["G4_losses"]["flatness_kl_mean_tau4"], rel=2e-5
    )
    past = averaged.clone().requires_grad_()
    assert not flatness(logits[None], past[None], 4.0).requires_grad


def test_groups_keep_their_own_values() -> None:
    images = det((6, 3, 8, 8))
    logits, averaged = det((6, 5)), det((6, 5), 0.41)
    for function in (total_variation, image_norm):
        both = function(images.view(2, 3, 3, 8, 8))
        assert torch.equal(both, torch.cat([function(part[None]) for part in images.split(3)]))
    both = flatness(logits.view(2, 3, 5), averaged.view(2, 3, 5), 4.0)
    assert torch.allclose(
        both,
        torch.cat(
            [flatness(z[None], e[None], 4.0) for z, e in zip(logits.split(3), averaged.split(3))]
        ),
    )
    assert image_norm(images[None]).item() == pytest.approx(
        images.flatten(1).norm(dim=1).mean().item()
    )
