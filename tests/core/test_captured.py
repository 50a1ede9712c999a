"""Functions of tensors that a GPU repeats as recorded graphs."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from raydd.core.captured import Captured, pinned

GPU = torch.device("cuda")


def move(x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Return a step down a parabola, and its value."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        value = (leaf * leaf).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
    return x - rate * gradient, value.detach()


def test_a_cpu_calls_the_function() -> None:
    x, rate = torch.arange(3.0), torch.tensor(0.25)
    after, value = Captured(move, torch.device("cpu"))(x, rate)
    assert after.tolist() == [0.0, 0.5, 1.0]
    assert float(value) == 5.0
    assert pinned(x, torch.device("cpu")) is x


@pytest.mark.gpu
def test_a_recording_gives_what_the_function_gives_for_every_shape_and_its_results_stay() -> None:
    captured = Captured(move, GPU)
    for size in (3, 5, 3):
        x, rate = torch.randn(size, device=GPU), torch.tensor(0.25)
        first = captured(x, pinned(rate, GPU))
        want = move(x, rate.to(GPU))
        again = captured(2 * x, rate)
        assert all(torch.equal(a, b) for a, b in zip(first, want, strict=True))
        assert torch.equal(again[0], move(2 * x, rate.to(GPU))[0])
    assert len(captured._recordings) == 2


@pytest.mark.gpu
def test_what_a_function_reads_beside_its_arguments_is_read_at_each_call() -> None:
    weight = torch.ones(4, device=GPU)
    captured = Captured(lambda x: (x * weight,), GPU)
    x = torch.arange(4.0, device=GPU)
    assert torch.equal(captured(x)[0], x)
    weight.fill_(3)
    assert torch.equal(captured(x)[0], 3 * x)


@pytest.mark.gpu
def test_a_function_that_waits_for_the_device_is_called_as_it_is_and_that_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    captured = Captured(lambda x: (x * float(x.sum().item()),), GPU)
    with caplog.at_level(logging.WARNING):
        assert captured(torch.ones(2, device=GPU))[0].tolist() == [2.0, 2.0]
    assert "cannot be recorded" in caplog.text
    assert captured(torch.ones(3, device=GPU))[0].tolist() == [3.0, 3.0, 3.0]
