"""IDM's and BACON's terms: golden values of the published functions, gradients by hand, and where those break."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from waves import wave

from raydd.losses import (
    classes_cross_entropy,
    distribution_matching_loss,
    gaussian_likelihood_loss,
    total_variation_distance,
)

X, Y = wave((7, 12), 0.37, 0.1), wave((9, 12), 0.53, 0.2, 1.3)


def terms(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the terms of one class's synthetic features ``x`` and real ones ``y``."""
    mean, std = y.mean(0)[None], y.std(0)[None]
    return {
        "likelihood": gaussian_likelihood_loss(mean, std, x.mean(0)[None]),
        "variation": total_variation_distance(mean, x.mean(0)[None]),
        "distance": distribution_matching_loss(mean, x[None]),
    }


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-11), (torch.float32, 2e-6)])
def test_golden_values(dtype: torch.dtype, rel: float) -> None:
    found = terms(X.to(dtype), Y.to(dtype))
    golden = {
        "likelihood": 16.823098617639,
        "variation": 4.678629751071,
        "distance": 9.244248027925,
    }
    for name, value in golden.items():
        assert float(found[name]) == pytest.approx(value, rel=rel)
    total = found["likelihood"] + 0.8 * found["variation"]
    assert float(total) == pytest.approx(
        20.566002419868, abs=2e-9 if dtype == torch.float64 else 1e-4
    )


@pytest.mark.parametrize(
    ("name", "total", "first"),
    [
        ("likelihood", 7.2345576386, -0.053099964367),
        ("variation", 6.0, -1 / 14),
        ("distance", 18.7145190043, None),
    ],
)
def test_golden_gradients(name: str, total: float, first: float | None) -> None:
    x = X.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(terms(x, Y)[name], x)
    assert float(gradient.abs().sum()) == pytest.approx(total, abs=1e-8)
    if first is not None:
        assert float(gradient[0, 0]) == pytest.approx(first, abs=1e-8)


def test_gradients_are_those_by_hand() -> None:
    x = X.clone().requires_grad_(True)
    gap, std = X.mean(0) - Y.mean(0), Y.std(0)
    by_hand = {
        "likelihood": gap * torch.exp(-2 * std),
        "variation": 0.5 * torch.sign(gap),
        "distance": 2 * gap,
    }
    for name, expected in by_hand.items():
        (gradient,) = torch.autograd.grad(terms(x, Y)[name], x)
        torch.testing.assert_close(gradient, (expected / 7).expand(7, 12), rtol=1e-12, atol=1e-14)


def test_the_clip_term_that_is_left_out_is_zero() -> None:
    """Published: the squared distance to [0, 1] of a standardised difference of two means of
    probabilities over all features; both are one over their number.
    """
    x = wave((7, 2048), 0.37, 0.1).requires_grad_(True)
    a, b = x.mean(0).softmax(0), wave((9, 2048), 0.53, 0.2, 1.3).mean(0).softmax(0)
    u = (a.mean() - b.mean()) / b.std()
    clip = (u - u.clamp(0, 1)).square()
    (gradient,) = torch.autograd.grad(clip, x)
    assert float(clip.detach()) < 1e-13
    assert float(gradient.abs().sum()) < 1e-13


@pytest.mark.parametrize("z", [12.0, 13.0, 15.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_means_keep_a_finite_likelihood(z: float, dtype: torch.dtype) -> None:
    x = torch.tensor([[z]], dtype=dtype, requires_grad=True)
    real = torch.zeros(2, 1, dtype=dtype)
    loss = gaussian_likelihood_loss(real.mean(0)[None], real.std(0)[None], x)
    (gradient,) = torch.autograd.grad(loss, x)
    assert float(loss.detach()) == pytest.approx(0.918938533 + z * z / 2, rel=1e-6)
    assert float(gradient) == pytest.approx(z, rel=1e-6)


def test_classes_add_up() -> None:
    stacked = {
        "likelihood": gaussian_likelihood_loss(
            torch.stack([Y.mean(0), X.mean(0)]),
            torch.stack([Y.std(0), X.std(0)]),
            torch.stack([X.mean(0), Y.mean(0)]),
        ),
        "variation": total_variation_distance(
            torch.stack([Y.mean(0), X.mean(0)]), torch.stack([X.mean(0), Y.mean(0)])
        ),
    }
    one, two = terms(X, Y), terms(Y, X)
    for name, value in stacked.items():
        assert float(value) == pytest.approx(float(one[name] + two[name]), rel=1e-12)


def test_cross_entropy_is_a_mean_for_each_class() -> None:
    logits, labels = wave((3, 4, 5), 0.7, 0.3, 2.0), torch.tensor([4, 0, 2])
    by_hand = sum(
        -math.log(float(logits[k, i].softmax(0)[labels[k]])) / 4 for k in range(3) for i in range(4)
    )
    assert float(classes_cross_entropy(logits, labels)) == pytest.approx(by_hand, rel=1e-12)
    whole = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(4))
    assert float(classes_cross_entropy(logits, labels)) == pytest.approx(3 * float(whole))
