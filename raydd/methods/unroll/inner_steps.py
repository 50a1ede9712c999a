"""Inner optimisers of an unroll: an update as a pure function, and its adjoint, on all weights as one vector.

Worked out in docs/methods/rat_bptt_podd.md, "The inner optimiser" and "The adjoint".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Moments = tuple[Tensor, ...]
"""What an optimiser remembers, each ``[P]``."""

WindowEps = Literal["higher", "torch"]
BiasCorrection = Literal["float64", "float32"]


@dataclass(frozen=True)
class StepNumber:
    """Which inner step is made: ``t`` from 1, counted from the fresh network; whether it is in the
    ``window``, where steps are differentiated; whether any step was made before the window, ``warmed``.
    """

    t: int
    window: bool
    warmed: bool


@dataclass(frozen=True, kw_only=True)
class InnerOptimizer(ABC):
    """How a network's weights ``[P]`` are moved by the gradient of an inner loss."""

    moments: ClassVar[int]
    """How many vectors ``[P]`` are remembered beside the weights."""

    lr: float

    def fresh(self, weights: Tensor) -> Moments:
        """Return the memory before the first step."""
        return tuple(torch.zeros_like(weights) for _ in range(self.moments))

    @abstractmethod
    def update(
        self, weights: Tensor, moments: Moments, gradient: Tensor, number: StepNumber
    ) -> tuple[Tensor, Moments]:
        """Return weights and memory after a step; differentiable in all tensors."""

    @abstractmethod
    def pull(
        self,
        of_weights: Tensor,
        of_moments: Moments,
        after: Moments,
        gradient: Tensor,
        number: StepNumber,
    ) -> tuple[Tensor, Tensor, Moments]:
        """Return the cotangents of a step's gradient, and of weights and memory before it, the
        gradient taken as independent of the weights.

        ``of_weights``, ``of_moments``: cotangents of what the step returned; ``after``: the memory
        that it returned; ``gradient``: what it was given.
        """


@dataclass(frozen=True, kw_only=True)
class InnerAdam(InnerOptimizer):
    """Adam without weight decay.

    ``window_eps``: where ``eps`` stands in the steps that are differentiated: ``higher``, as the
    differentiable optimiser of the published code has it, ``lr sqrt(1-b2^t)/(1-b1^t) m/(sqrt(v)+eps)``,
    or ``torch``, as everywhere else, ``lr/(1-b1^t) m/(sqrt(v)/sqrt(1-b2^t)+eps)``.
    ``bias_correction``: ``float32`` rounds the corrections of the window's steps as the published
    code does whenever steps were made before it. Where ``v`` is zero no gradient flows into it.
    """

    moments: ClassVar[int] = 2

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    window_eps: WindowEps = "higher"
    bias_correction: BiasCorrection = "float64"

    def _factors(self, number: StepNumber) -> tuple[float, float]:
        """Return ``(a, c)`` of the step ``a m / (c sqrt(v) + eps)``."""
        first, second = (1 - beta**number.t for beta in self.betas)
        if not (number.window and self.window_eps == "higher"):
            return self.lr / first, 1 / math.sqrt(second)
        if number.warmed and self.bias_correction == "float32":
            t = torch.tensor(float(number.t), dtype=torch.float32)
            rounded = [1 - beta**t for beta in self.betas]
            return float(self.lr * math.sqrt(float(rounded[1])) / rounded[0]), 1.0
        return self.lr * math.sqrt(second) / first, 1.0

    def update(
        self, weights: Tensor, moments: Moments, gradient: Tensor, number: StepNumber
    ) -> tuple[Tensor, Moments]:
        """Return weights and both moments after a step."""
        (b1, b2), (a, c) = self.betas, self._factors(number)
        first = b1 * moments[0] + (1 - b1) * gradient
        second = b2 * moments[1] + (1 - b2) * gradient * gradient
        none = second == 0
        root = torch.where(none, 0.0, torch.where(none, 1.0, second).sqrt())
        return weights - a * first / (c * root + self.eps), (first, second)

    def pull(
        self,
        of_weights: Tensor,
        of_moments: Moments,
        after: Moments,
        gradient: Tensor,
        number: StepNumber,
    ) -> tuple[Tensor, Tensor, Moments]:
        """Return the cotangents of the gradient, the weights, and both moments."""
        (b1, b2), (a, c), (first, second) = self.betas, self._factors(number), after
        root = second.sqrt()
        size = c * root + self.eps
        step = a * of_weights / size
        mu = of_moments[0] - step
        bent = step * first * (c / 2) / (root * size)
        nu = of_moments[1] + torch.where(second == 0, 0.0, bent)
        of_gradient = (1 - b1) * mu + (2 - 2 * b2) * gradient * nu
        return of_gradient, of_weights, (b1 * mu, b2 * nu)


@dataclass(frozen=True, kw_only=True)
class InnerSgd(InnerOptimizer):
    """SGD with ``momentum`` and ``weight_decay`` (in the gradient)."""

    moments: ClassVar[int] = 1

    momentum: float = 0.9
    weight_decay: float = 5e-4

    def update(
        self, weights: Tensor, moments: Moments, gradient: Tensor, number: StepNumber
    ) -> tuple[Tensor, Moments]:
        """Return weights and momentum after a step."""
        direction = self.momentum * moments[0] + gradient + self.weight_decay * weights
        return weights - self.lr * direction, (direction,)

    def pull(
        self,
        of_weights: Tensor,
        of_moments: Moments,
        after: Moments,
        gradient: Tensor,
        number: StepNumber,
    ) -> tuple[Tensor, Tensor, Moments]:
        """Return the cotangents of the gradient, the weights, and the momentum."""
        of_direction = of_moments[0] - self.lr * of_weights
        back = of_weights + self.weight_decay * of_direction
        return of_direction, back, (self.momentum * of_direction,)
