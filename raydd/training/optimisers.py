"""One update of a parameter by SGD or AdamW, as pure functions (``torch.optim.SGD``, ``torch.optim.AdamW``)."""

from __future__ import annotations

from torch import Tensor

EPS = 1e-8


def sgd(
    value: Tensor,
    gradient: Tensor | None,
    momentum: Tensor,
    *,
    rate: Tensor,
    beta: float,
    decay: float | None,
) -> tuple[Tensor, Tensor]:
    """Return a parameter and its momentum after a step; ``gradient=None``: it is zero;
    ``decay=None``: no weight decay.
    """
    direction = gradient
    if decay is not None:
        decayed = decay * value
        direction = decayed if gradient is None else gradient + decayed
    new = beta * momentum if direction is None else beta * momentum + direction
    return value - rate * new, new


def adamw(
    value: Tensor,
    gradient: Tensor | None,
    first: Tensor,
    second: Tensor,
    *,
    rate: Tensor,
    corrections: tuple[Tensor, Tensor],
    betas: tuple[float, float],
    decay: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a parameter and its two moments after a step; ``gradient=None``: it is zero;
    ``decay=None``: no weight decay.

    ``corrections``: ``1 - beta ** t`` of both moments in step ``t`` (from 1), scalars.
    """
    kept = value if decay is None else value * (1 - rate * decay)
    if gradient is None:
        return kept, first, second
    first = betas[0] * first + (1 - betas[0]) * gradient
    second = betas[1] * second + (1 - betas[1]) * gradient * gradient
    size = (second / corrections[1].to(value.dtype)).sqrt() + EPS
    return kept - rate / corrections[0].to(value.dtype) * first / size, first, second


def corrections(betas: tuple[float, float], count: Tensor) -> tuple[Tensor, Tensor]:
    """Return AdamW's bias corrections, float64 scalars, for the step after ``count`` steps (int64;
    the same number if several).
    """
    t = count.reshape(-1)[0].double() + 1
    return 1 - betas[0] ** t, 1 - betas[1] ** t
