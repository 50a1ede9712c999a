"""Layers that start empty (:mod:`raydd.networks.initialise` fills them) and whose derivatives hold
under ``torch.func``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = ("relu", "sigmoid", "leakyrelu", "swish")
NORMS = ("instancenorm", "batchnorm", "layernorm", "groupnorm", "nonorm")
POOLINGS = ("avgpool", "maxpool", "nopool")


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` without its draw from the global generator."""

    def reset_parameters(self) -> None:
        """Leave the weights empty."""


class Linear(nn.Linear):
    """``nn.Linear`` without its draw from the global generator."""

    def reset_parameters(self) -> None:
        """Leave the weights empty."""


class LayerNorm(nn.Module):
    """Normalise each sample over all its values ``[C, H, W]``, with a weight and a bias of that shape.

    Written from primitives: the fused kernel's second derivative is wrong under ``vmap``
    (docs/methods/dc_dsa.md, "Second derivatives").
    """

    def __init__(self, shape: tuple[int, int, int], eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def reset_parameters(self) -> None:
        """Set the weight to one and the bias to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x [B, C, H, W]`` normalised, with the biased variance."""
        centred = x - x.mean((1, 2, 3), keepdim=True)
        variance = (centred * centred).mean((1, 2, 3), keepdim=True)
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class Activation(nn.Module):
    """One of ``relu``, ``sigmoid``, ``leakyrelu`` (slope 0.01), ``swish``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of ``x``, element by element."""
        if self.kind == "relu":
            return F.relu(x)
        if self.kind == "sigmoid":
            return torch.sigmoid(x)
        if self.kind == "leakyrelu":
            return F.leaky_relu(x, 0.01)
        return x * torch.sigmoid(x)


def make_norm(kind: str, channels: int, height: int, width: int) -> nn.Module:
    """Return the norm called ``kind`` for maps ``[channels, height, width]``; instance norm is one
    group per channel, affine.
    """
    if kind == "instancenorm":
        return nn.GroupNorm(channels, channels)
    if kind == "groupnorm":
        return nn.GroupNorm(4, channels)
    if kind == "batchnorm":
        return nn.BatchNorm2d(channels)
    if kind == "layernorm":
        return LayerNorm((channels, height, width))
    return nn.Identity()


def make_pooling(kind: str) -> nn.Module:
    """Return a pooling that halves both sides (``avgpool``, ``maxpool``), or the identity."""
    if kind == "avgpool":
        return nn.AvgPool2d(2, 2)
    if kind == "maxpool":
        return nn.MaxPool2d(2, 2)
    return nn.Identity()


def first_padding(padding: int, height: int, width: int) -> tuple[int, int]:
    """Return the first convolution's padding: two pixels more along a side of 28, which then works as one of 32.

    This is the published geometry of 1x28x28 networks, as one rule for any channel count and for non-square images.
    """
    return padding + 2 * (height == 28), padding + 2 * (width == 28)
