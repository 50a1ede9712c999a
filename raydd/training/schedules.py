"""Learning rates by epoch (docs/methods/evaluation.md, "Students of soft labels")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal[
    "steps", "constant", "cosine", "linear_st", "cos_st", "cos2_st", "multistep", "alrs"
]

WARMUP_START = 0.01
"""Share of the rate that a warm-up begins with."""

ALRS_FACTOR, ALRS_CHANGE = 0.9975, 0.02


def rate(
    name: Schedule,
    lr: float,
    epoch: int,
    epochs: int,
    st: float | None = None,
    milestones: Sequence[int] = (),
    factor: float = 0.1,
) -> float:
    """Return the learning rate of ``epoch`` (from 0) out of ``epochs`` E, starting at ``lr``.

    ``cosine``: to zero after E. ``cos_st``, ``linear_st``: half a cosine, or a line, that would be
    at zero after ``st`` E. ``cos2_st``: ``cos_st`` for 5/6 of the epochs, then a line to zero
    (which starts with a jump; so published). ``multistep``, ``steps``: times ``factor`` from each
    milestone on. ``constant``, ``alrs``: ``lr`` (see :func:`alrs_factor`).
    """
    if name in ("steps", "multistep"):
        return lr * factor ** sum(epoch >= milestone for milestone in milestones)
    if name in ("constant", "alrs"):
        return lr
    part, stretch = epoch / epochs, 1.0 if st is None else st
    if name == "linear_st":
        return lr * (1 - part / stretch)
    if name == "cos2_st" and 6 * epoch > 5 * epochs:
        return lr * 0.5 * (1 + math.cos(5 * math.pi / (6 * stretch))) * (1 - part)
    return lr * 0.5 * (1 + math.cos(math.pi * part / stretch))


def warmed_up(lr: float, epoch: int, warmup: int) -> float:
    """Return the rate of an ``epoch`` (from 0) below ``warmup``: a line from 0.01 ``lr`` that would
    reach ``lr`` at ``warmup``.
    """
    return lr * (WARMUP_START + (1 - WARMUP_START) * epoch / warmup)


def alrs_factor(factor: Tensor, last: Tensor, loss: Tensor) -> Tensor:
    """Return what ``alrs`` multiplies the rate of decayed parameters with in the next epoch, elementwise.

    ``factor``: what it was; ``last``, ``loss``: mean losses of the epoch before and of this one
    (``last`` infinite at the start). It shrinks by 0.9975 where the loss changed by less than 0.02,
    absolutely and relatively.
    """
    change = (loss - last).abs()
    still = (change < ALRS_CHANGE) & (change < ALRS_CHANGE * last.abs())
    return torch.where(still, ALRS_FACTOR * factor, factor)
