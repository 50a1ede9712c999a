"""Adam (arXiv 1412.6980) as a function of tensors, element by element."""

from __future__ import annotations

from torch import Tensor

from raydd.core.tensors import Tensors

BETAS, EPS = (0.9, 0.999), 1e-8


def fresh(latents: Tensor) -> Tensors:
    """Return a state of latents ``z`` and Adam's moments ``m`` and ``v``, zero at first."""
    return {
        "z": latents,
        "m": latents.new_zeros(latents.shape),
        "v": latents.new_zeros(latents.shape),
    }


def stepped(state: Tensors, gradient: Tensor, lr: float, count: int) -> Tensors:
    """Return the state after update number ``count``, from 1."""
    m = state["m"].lerp(gradient, 1 - BETAS[0])
    v = BETAS[1] * state["v"] + (1 - BETAS[1]) * gradient.square()
    scale = (v / (1 - BETAS[1] ** count)).sqrt_().add_(EPS)
    return {"z": state["z"] - lr / (1 - BETAS[0] ** count) * m / scale, "m": m, "v": v}
