"""One optimiser step per class, all at once: against the loop, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raydd.methods.matching.class_steps import ClassSteps

Gradient = Callable[[Tensor, int], Tensor]


def in_turns(
    images: Tensor, classes: int, iterations: int, rate: float, beta: float, gradient: Gradient
) -> tuple[Tensor, Tensor | None]:
    """Play the published loop: an optimiser of all images, which steps after each class's gradient."""
    images = images.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([images], lr=rate, momentum=beta)
    own = len(images) // classes
    for _ in range(iterations):
        for c in range(classes):
            optimizer.zero_grad()
            images.grad = torch.zeros_like(images)
            place = slice(c * own, (c + 1) * own)
            images.grad[place] = gradient(images.detach()[place], c)
            optimizer.step()
    return images.detach(), optimizer.state[images].get("momentum_buffer")


def at_once(
    images: Tensor,
    places: list[int],
    classes: int,
    iterations: int,
    rate: float,
    beta: float,
    gradient: Gradient,
) -> tuple[Tensor, Tensor]:
    """Make the same moves of a block of classes."""
    own = len(images) // len(places)
    steps = ClassSteps.of(places, classes, beta, own)
    momentum = torch.zeros_like(images)
    for _ in range(iterations):
        images, momentum = steps.before(images, momentum, rate)
        found = torch.cat([gradient(images[k * own :][:own], c) for k, c in enumerate(places)])
        momentum = beta * momentum + found
        images, momentum = steps.after(images - rate * momentum, momentum, rate)
    return images, momentum


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("blocks", [[[0, 1, 2, 3, 4]], [[0, 1], [2, 3], [4]], [[3]]])
def test_closed_form_of_any_block_is_the_loop(beta: float, blocks: list[list[int]]) -> None:
    start = torch.randn(5 * 2, 1, 3, 3, generator=torch.Generator().manual_seed(1)).double()

    def gradient(images: Tensor, c: int) -> Tensor:
        return torch.sin(images * (c + 1)) + 0.1 * images  # depends on where the class stands now

    images, momentum = in_turns(start, 5, 6, 0.2, beta, gradient)
    for block in blocks:
        rows = torch.tensor([2 * c + i for c in block for i in range(2)])
        found, kept = at_once(start[rows], block, 5, 6, 0.2, beta, gradient)
        torch.testing.assert_close(found, images[rows], rtol=0, atol=1e-12)
        if momentum is not None:
            torch.testing.assert_close(kept, momentum[rows], rtol=0, atol=1e-12)


def test_a_constant_gradient_by_hand() -> None:
    """Three classes, rate 0.2, momentum 0.5, gradient 1: positions and momentum worked out by hand."""
    start = torch.zeros(3, 1, 1, 1, dtype=torch.float64)
    golden = [
        ([-0.35, -0.30, -0.20], [0.25, 0.5, 1.0]),
        ([-0.74375, -0.6875, -0.575], [0.28125, 0.5625, 1.125]),
    ]
    for iterations, (images, momentum) in enumerate(golden, 1):
        found, kept = at_once(
            start, [0, 1, 2], 3, iterations, 0.2, 0.5, lambda x, c: torch.ones_like(x)
        )
        assert found.flatten().tolist() == pytest.approx(images, abs=1e-15)
        assert kept.flatten().tolist() == pytest.approx(momentum, abs=1e-15)


def test_float32_images_stay_float32() -> None:
    images = torch.ones(4, 1, 2, 2)
    steps = ClassSteps.of([1, 2], 3, 0.5, 2)
    moved, momentum = steps.before(images, images, 0.1)
    assert moved.dtype == momentum.dtype == torch.float32
