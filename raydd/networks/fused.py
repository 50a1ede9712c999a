"""ConvNets with instance norm on CUDA: three kernels a block, channels-last, and a first block that writes no full map.

Same function as the plain network, up to rounding. Between convolutions, which cuDNN runs without
their bias (the norm takes it away), one kernel reads a map once and writes it normalised, activated
and pooled. Convolutions of one or three channels are part of such a kernel. Differentiable once, in
images and weights; of the convolutions' biases the gradient is exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.core.kernels import kernels_run
from raydd.core.units import Numerics
from raydd.networks.convnet import ConvBlock, ConvNet
from raydd.networks.fused_ops import Tail, first_block, tail
from raydd.networks.layers import Activation, Linear
from raydd.networks.network import Network

_SLOPES = {"relu": 0.0, "leakyrelu": 0.01}
_POOLINGS: dict[type[nn.Module], str] = {
    nn.AvgPool2d: "avgpool",
    nn.MaxPool2d: "maxpool",
    nn.Identity: "nopool",
}

Convolve = Callable[..., Tensor]

_FEW_CHANNELS = (1, 3)
"""Input channels of a first convolution that is computed together with its norm."""


def can_be_fused(net: nn.Module) -> bool:
    """Return whether the functions here know the network: a ConvNet with instance norm and (leaky)
    relu, on CUDA, in float32.
    """
    suited = has_fused_form(net) and all(
        p.is_cuda and p.dtype == torch.float32 for p in net.parameters()
    )
    return suited and kernels_run()


def has_fused_form(net: nn.Module) -> bool:
    """Return whether the network's layers are such as :func:`can_be_fused` asks for, wherever its weights are."""
    if type(net) is not ConvNet or type(net.classifier) is not Linear:
        return False
    blocks = [block for block in net.features if isinstance(block, ConvBlock)]
    normed = all(
        isinstance(b.norm, nn.GroupNorm) and b.norm.num_groups == b.norm.num_channels
        for b in blocks
    )
    active = all(
        isinstance(b.activation, Activation) and b.activation.kind in _SLOPES for b in blocks
    )
    return normed and active and len(blocks) == len(net.features)


def fused_embed(net: Network, numerics: Numerics) -> Callable[[Tensor], Tensor]:
    """Return a function equal to ``net.embed`` (see :func:`can_be_fused`): features float32 ``[N, embed_dim]``.

    Convolutions but the first (of 1 or 3 channels; exact) are in bf16 where ``numerics.precision``
    says so, else in float32 or TF32 as cuDNN is set. Weights are read at each call.
    """
    structure = _structure(net)
    return lambda x: _features(structure, dict(net.named_parameters()), x, numerics.precision)


def fused_forward(net: Network, numerics: Numerics) -> Callable[[Tensor], Tensor]:
    """Return a function equal to ``net.forward``: logits float32 ``[N, classes]``; see :func:`fused_embed`."""
    embed = fused_embed(net, numerics)
    return lambda x: net.classifier(embed(x))


def fused_call(net: nn.Module, params: Mapping[str, Tensor], x: Tensor, precision: str) -> Tensor:
    """Return logits float32 ``[N, classes]`` of images ``x`` with the parameters ``params`` in
    place of the network's own.

    ``params``: by the names of ``net.named_parameters()``; the convolutions' biases, which have no
    effect, may be left out. ``precision``: as of ``Numerics``.
    """
    features = _features(_structure(net), params, x, precision)
    return F.linear(features, params["classifier.weight"], params["classifier.bias"])


@dataclass(frozen=True)
class _Block:
    """A block's name among the parameters, its convolution's padding (lines, columns), and what follows."""

    name: str
    padding: tuple[int, int]
    tail: Tail


def _structure(net: nn.Module) -> list[_Block]:
    found = []
    for i, block in enumerate(cast(ConvNet, net).features):
        block = cast(ConvBlock, block)
        padding = (int(block.conv.padding[0]), int(block.conv.padding[1]))
        kinds = _SLOPES[block.activation.kind], _POOLINGS[type(block.pooling)]
        found.append(
            _Block(f"features.{i}", padding, Tail(cast(nn.GroupNorm, block.norm).eps, *kinds))
        )
    return found


def fused_features(
    net: nn.Module,
    params: Mapping[str, Tensor],
    x: Tensor,
    precision: str,
    convolve: Convolve = F.conv2d,
) -> Tensor:
    """Return features float32 ``[N, embed_dim]`` of images ``x``; see :func:`fused_call`.

    Kernels may be ``K`` equal ones each, ``[K, O, I, 3, 3]``, that have the gradients of ``K``
    equal parts of ``x``: a first block that is one kernel knows them, and
    ``convolve(x, kernel, padding=...)``, which runs the other convolutions, has to.
    """
    return _features(_structure(net), params, x, precision, convolve)


def _features(
    structure: list[_Block],
    params: Mapping[str, Tensor],
    x: Tensor,
    precision: str,
    convolve: Convolve = F.conv2d,
) -> Tensor:
    low = torch.bfloat16 if precision == "bf16" else torch.float32
    for i, block in enumerate(structure):
        kernel, bias = params[f"{block.name}.conv.weight"], params.get(f"{block.name}.conv.bias")
        norm = params[f"{block.name}.norm.weight"], params[f"{block.name}.norm.bias"]
        last = i == len(structure) - 1
        dtype = torch.float32 if last else low
        if i == 0 and _is_one_kernel(x):
            x = first_block(
                x, kernel, *norm, block.padding, block.tail, dtype, flat=last, cancelled=bias
            )
            continue
        # cuDNN's results have its arguments' order. Few channels it convolves in the plain one (as a matrix product).
        order = torch.contiguous_format if x.shape[1] in _FEW_CHANNELS else torch.channels_last
        kernel = kernel.to(low, memory_format=order) if kernel.dim() == 4 else kernel.to(low)
        x = convolve(x.to(low, memory_format=order), kernel, padding=block.padding)
        x = tail(x, *norm, block.tail, dtype, flat=last, cancelled=bias)
    return x.flatten(1)


def _is_one_kernel(x: Tensor) -> bool:
    """Return whether the first block is to be one kernel: few channels, and no gradient in the images."""
    return x.shape[1] in _FEW_CHANNELS and not (torch.is_grad_enabled() and x.requires_grad)
