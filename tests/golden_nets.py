"""The networks and images of docs/methods/parity.md, "Tensors of DWA"."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GoldenNet(nn.Module):
    """Two convolutions with batch norms and a linear layer; ``off`` moves all weights."""

    def __init__(self, off: int = 0) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.b1 = nn.BatchNorm2d(4)
        self.c2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.b2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 10)
        named = [(n, v) for n, v in self.state_dict().items() if v.is_floating_point()]
        for k, (name, tensor) in enumerate(named):
            s = torch.sin(
                0.37 * torch.arange(tensor.numel(), dtype=torch.float64) + 1.1 * (k + off)
            )
            layer, kind = name.split(".")
            if layer.startswith("c"):
                s = s * math.sqrt(2 / (9 * tensor.shape[1]))
            elif (layer, kind) == ("fc", "weight"):
                s = 4 * s * math.sqrt(1 / 6)
            elif kind in ("weight", "running_var"):
                s = 1 + (0.1 if kind == "weight" else 0.2) * s
            else:
                s = 0.1 * s
            tensor.copy_(s.view(tensor.shape))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b1(self.c1(x)))
        return self.fc(torch.relu(self.b2(self.c2(x))).mean((2, 3)))


def golden_images(count: int, side: int) -> Tensor:
    """Return ``[count, 3, side, side]`` in float64."""
    n = torch.arange(count * 3 * side * side, dtype=torch.float64)
    return (2 * torch.sin(0.013 * n) + 0.6 * torch.sin(0.0007 * n**2)).view(count, 3, side, side)
