"""Default initialisation, drawn from a given generator alone and written in place."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from raydd.networks.layers import LayerNorm


@torch.no_grad()
def fill_defaults_(net: nn.Module, generator: torch.Generator) -> None:
    """Refill a network of convolutions, linear layers and norms in place, as torch initialises them by default.

    Weights and biases ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)); norms 1 and 0, running statistics fresh. All numbers are
    drawn in float32 on the CPU, so a seed gives the same weights on any device and in any dtype. Specification of DC, section 2.0.
    """
    targets: list[tuple[torch.Tensor, float]] = []
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            bound = 1.0 / math.sqrt(fan_in)
            targets.append((module.weight, bound))
            if module.bias is not None:
                targets.append((module.bias, bound))
        elif isinstance(module, (_NormBase, nn.GroupNorm, LayerNorm)):
            module.reset_parameters()
    if not targets:
        return
    if all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t, _ in targets):
        for tensor, bound in targets:
            tensor.uniform_(-bound, bound, generator=generator)
        return
    flat = torch.empty(sum(t.numel() for t, _ in targets))
    sizes = [t.numel() for t, _ in targets]
    for part, (_, bound) in zip(flat.split(sizes), targets, strict=True):
        part.uniform_(-bound, bound, generator=generator)
    for part, (tensor, _) in zip(flat.to(targets[0][0].device).split(sizes), targets, strict=True):
        tensor.copy_(part.view(tensor.shape))
