"""Tensors and weights that anyone can write down, for golden numbers of published code (docs/methods/parity.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def wave(
    shape: Sequence[int],
    frequency: float,
    phase: float,
    amplitude: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return ``amplitude * sin(frequency * k + phase)`` over the flat index ``k``, computed in float64."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amplitude * torch.sin(frequency * k + phase)).view(*shape).to(dtype)


@torch.no_grad()
def filled(network: nn.Module) -> nn.Module:
    """Return a network with waves as weights, rounded to float32, then in float64."""
    for p, (name, parameter) in enumerate(network.named_parameters()):
        if name.startswith("classifier"):
            amplitude = 0.02
        elif parameter.dim() == 4:
            amplitude = 1.5 / math.sqrt(9 * parameter.shape[1])
        else:
            amplitude = 0.1
        values = wave(parameter.shape, 0.7310 + 0.013 * p, 0.5 + p, amplitude)
        parameter.copy_(values + float(name.endswith("norm.weight")))
    return network.double()
