"""IDM's moves: an optimiser that steps once per class on all classes' images, in closed form.

See docs/methods/idm_bacon.md, "One step per class".

In an iteration class after class has its turn: its gradient enters its momentum, and then *all*
images move by their momentum. A class that is not on turn only coasts. ``k`` such steps of momentum
``v`` at rate ``r`` move an image by ``r v (b + b^2 + … + b^k)`` and leave ``b^k v``, so all classes'
turns are taken at once: coast to the turn, one step, coast to the iteration's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Coast(NamedTuple):
    """Steps without a gradient, for each class: ``moved``, by what multiple of momentum and rate,
    and ``kept``, what part of the momentum stays. Float64 ``[N, 1, 1, 1]``, a line per image.
    """

    moved: Tensor
    kept: Tensor

    @classmethod
    def of(cls, steps: Sequence[int], beta: float, images: int, device: torch.device) -> Coast:
        """Return ``steps[c]`` steps of momentum ``beta`` for each of the ``images`` images of each class."""
        powers = [beta**k for k in steps]
        moved = [beta * (1 - power) / (1 - beta) for power in powers]
        return cls(*(_lines(numbers, images, device) for numbers in (moved, powers)))

    def __call__(self, images: Tensor, momentum: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Return images and momentum ``[N, C, H, W]`` after the steps."""
        moved, kept = self.moved.to(images.dtype), self.kept.to(images.dtype)
        return images - rate * moved * momentum, kept * momentum


class ClassSteps(NamedTuple):
    """Where a block's classes stand in the order of all: they coast ``before`` and ``after`` their turns."""

    before: Coast
    after: Coast

    @classmethod
    def of(
        cls,
        places: Sequence[int],
        classes: int,
        beta: float,
        images: int,
        device: torch.device | str = "cpu",
    ) -> ClassSteps:
        """Return the steps of classes at ``places`` (from 0) in the order of ``classes`` classes,
        each with ``images`` images.
        """
        device = torch.device(device)
        return cls(
            Coast.of(places, beta, images, device),
            Coast.of([classes - 1 - place for place in places], beta, images, device),
        )


def _lines(numbers: Sequence[float], images: int, device: torch.device) -> Tensor:
    values = torch.tensor(numbers, dtype=torch.float64, device=device)
    return values.repeat_interleave(images).view(-1, 1, 1, 1)
