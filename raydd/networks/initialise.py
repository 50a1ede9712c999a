"""Initialisation of networks, drawn from a given generator alone and written in place.

All numbers are drawn in float32 on the CPU, so a seed gives the same weights on any device and in any dtype.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from raydd.networks.layers import LayerNorm

_Fill = tuple[torch.Tensor, Literal["uniform", "normal"], float]
"""What is drawn: a tensor, the distribution, and its bound or deviation (0: filled with zeros)."""


def fill_defaults_(net: nn.Module, generator: torch.Generator) -> None:
    """Refill a network of convolutions, linear layers and norms in place, as torch initialises them by default.

    Weights and biases ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)); norms 1 and 0, running statistics
    fresh (docs/methods/networks.md, "Initialisation").
    """
    _reset_norms_(net)
    fills: list[_Fill] = []
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fills += _default(module)
    _fill_(fills, generator)


def fill_fan_out_(
    net: nn.Module,
    generator: torch.Generator,
    *,
    linear_std: float | None = None,
    linear_bias: bool = True,
) -> None:
    """Refill a network as :func:`fill_defaults_`, but convolutions ~ N(0, 2 / fan_out) (Kaiming), their biases zero.

    ``linear_std``: linear layers ~ N(0, linear_std^2) with biases of zero; else by default, with
    ``linear_bias=False`` but for biases of zero (docs/methods/networks.md, "Initialisation").
    """
    _reset_norms_(net)
    fills: list[_Fill] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
            fills.append((module.weight, "normal", math.sqrt(2.0 / fan_out)))
            fills += _zero(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            fills += [(module.weight, "normal", linear_std), *_zero(module.bias)]
        elif isinstance(module, nn.Linear):
            fills += _default(module) if linear_bias else [_default(module)[0], *_zero(module.bias)]
    _fill_(fills, generator)


def _reset_norms_(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, (_NormBase, nn.GroupNorm, LayerNorm)):
            module.reset_parameters()


def _default(module: nn.Conv2d | nn.Linear) -> list[_Fill]:
    bound = 1.0 / math.sqrt(module.weight[0].numel())
    return [
        (tensor, "uniform", bound) for tensor in (module.weight, module.bias) if tensor is not None
    ]


def _zero(bias: torch.Tensor | None) -> list[_Fill]:
    return [] if bias is None else [(bias, "uniform", 0.0)]


def _draw_(tensor: torch.Tensor, kind: str, scale: float, generator: torch.Generator) -> None:
    if scale == 0:
        tensor.zero_()
    elif kind == "normal":
        tensor.normal_(0.0, scale, generator=generator)
    else:
        tensor.uniform_(-scale, scale, generator=generator)


@torch.no_grad()
def _fill_(fills: list[_Fill], generator: torch.Generator) -> None:
    if not fills:
        return
    if all(
        t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous()
        for t, _, _ in fills
    ):
        for tensor, kind, scale in fills:
            _draw_(tensor, kind, scale, generator)
        return
    sizes = [t.numel() for t, _, _ in fills]
    flat = torch.empty(sum(sizes))
    for part, (_, kind, scale) in zip(flat.split(sizes), fills, strict=True):
        _draw_(part, kind, scale, generator)
    for part, (tensor, _, _) in zip(flat.to(fills[0][0].device).split(sizes), fills, strict=True):
        tensor.copy_(part.view(tensor.shape))


def zero_scales(net: nn.Module) -> list[nn.Parameter]:
    """Return the scales of norms that are zero throughout, as libraries start those at the ends of residual blocks."""
    norms = (_NormBase, nn.GroupNorm, nn.LayerNorm, LayerNorm)
    scales = [
        module.weight
        for module in net.modules()
        if isinstance(module, norms) and isinstance(module.weight, nn.Parameter)
    ]
    return [scale for scale in scales if not bool(scale.detach().any())]


def scales_at_one_(net: nn.Module) -> None:
    """Set the :func:`zero_scales` of a fresh network to one, so that residual blocks start open."""
    for scale in zero_scales(net):
        nn.init.ones_(scale)
