"""Features of ConvNets without a gradient, for CPUs: less memory traffic and, if wished, fewer multiplications.

Same function as ``ConvNet.embed``, up to rounding, with three differences. Maps are channels-last
all through, so that no convolution reorders them. The first block, whose convolution has one or
three input channels, never writes its largest map: the convolution is linear, so mean and variance
of its outputs follow from those of the 3x3 patches of the image, the norm goes into the kernels (of
each image), and convolution, norm, activation and pooling become one loop. Images go through in
chunks, whose maps stay in the cache; a last chunk is filled up, so that few shapes are compiled for
all batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.networks import winograd
from raydd.networks.compiling import allow_many_shapes
from raydd.networks.convnet import ConvBlock, ConvNet
from raydd.networks.network import Network

CHUNK = 64
"""Images that go through the network together: enough that calls and the reordering of kernels cost little."""

_PART = 16
"""A last chunk is filled up to a multiple of these."""

_FEW_TAPS = 27
"""Up to three input channels a convolution is quicker as multiply-adds inside a fused loop than as a matrix product."""


def can_be_lean(net: Network) -> bool:
    """Return whether :func:`lean_embed` knows the network: a ConvNet with instance norm, on a CPU,
    in float32 or float64.
    """
    if type(net) is not ConvNet:
        return False
    blocks = [block for block in net.features if isinstance(block, ConvBlock)]
    normed = all(
        isinstance(b.norm, nn.GroupNorm) and b.norm.num_groups == b.norm.num_channels
        for b in blocks
    )
    plain = all(
        p.device.type == "cpu" and p.dtype in (torch.float32, torch.float64)
        for p in net.parameters()
    )
    return normed and plain and len(blocks) == len(net.features)


def lean_embed(net: Network, *, compile: bool, fewer_products: bool) -> Callable[[Tensor], Tensor]:
    """Return a function equal to ``net.embed`` for images that need no gradient (see :func:`can_be_lean`).

    ``fewer_products``: :mod:`raydd.networks.winograd` for the convolutions that it suits. The
    weights are read at each call.
    """
    blocks = [block for block in cast(ConvNet, net).features if isinstance(block, ConvBlock)]
    loops = _Loops(compile)

    @torch.no_grad()
    def embed(x: Tensor) -> Tensor:
        kernels = [_kernel(block.conv, fewer_products) for block in blocks]
        count = len(x)
        parts = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -count % _PART)).split(CHUNK)
        return torch.cat([_features(loops, blocks, kernels, part) for part in parts])[:count]

    return embed


class _Loops:
    """The loops between matrix products, each compiled by itself: as one graph they are cut and
    written out elsewhere.
    """

    def __init__(self, compile: bool) -> None:
        def fused(function: Callable[..., Any], *, whole: bool) -> Callable[..., Any]:
            return _compiled(function, whole) if compile else function

        self.fold_norm = fused(_fold_norm, whole=False)
        self.first_map = fused(_first_map, whole=True)
        self.to_points = fused(winograd.to_points, whole=True)
        self.from_points = fused(winograd.from_points, whole=True)
        self.tail = fused(_tail, whole=False)


@lru_cache(maxsize=8)
def _compiled(function: Callable[..., Any], whole: bool) -> Callable[..., Any]:
    allow_many_shapes()
    return torch.compile(
        function, fullgraph=True, dynamic=False, options=winograd.OPTIONS if whole else None
    )


def _kernel(conv: nn.Conv2d, fewer_products: bool) -> Tensor:
    """Return a convolution's kernel as its method wants it: Winograd's points ``[36, C, O]``, or channels-last."""
    suited = fewer_products and winograd.suits(conv)
    return (
        winograd.transform_kernel(conv.weight)
        if suited
        else conv.weight.contiguous(memory_format=torch.channels_last)
    )


def _features(loops: _Loops, blocks: list[ConvBlock], kernels: list[Tensor], x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    for block, kernel in zip(blocks, kernels, strict=True):
        conv, norm, padding = (
            block.conv,
            block.norm,
            (int(block.conv.padding[0]), int(block.conv.padding[1])),
        )
        if kernel.dim() == 4 and 9 * conv.in_channels <= _FEW_TAPS:
            framed, folded, offset = loops.fold_norm(
                x, conv.weight, norm.weight, norm.bias, norm.eps, padding
            )
            x = loops.first_map(framed, folded, offset, block.activation, block.pooling)
            continue
        # Without its bias, which the norm takes away again.
        if kernel.dim() == 3:
            x = winograd.convolve(x, kernel, padding, loops.to_points, loops.from_points)
        else:
            x = F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=padding).permute(0, 2, 3, 1)
        x = loops.tail(x, norm.weight, norm.bias, norm.eps, block.activation, block.pooling)
    return x.permute(0, 3, 1, 2).flatten(1)


def _tail(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, activation: nn.Module, pooling: nn.Module
) -> Tensor:
    """Return norm, activation and pooling of ``x [N, H, W, C]``."""
    centred = x - x.mean((1, 2), keepdim=True)
    scale = torch.rsqrt((centred * centred).mean((1, 2), keepdim=True) + eps) * weight
    x = activation(centred * scale + bias)
    if isinstance(pooling, nn.Identity):
        return x
    down, across = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return _merge(pooling, [x[:, i:down:2, j:across:2] for i in range(2) for j in range(2)])


def _merge(pooling: nn.Module, four: list[Tensor]) -> Tensor:
    if isinstance(pooling, nn.MaxPool2d):
        return torch.maximum(torch.maximum(four[0], four[1]), torch.maximum(four[2], four[3]))
    return (four[0] + four[1] + four[2] + four[3]) * 0.25


def _taps(channels: int) -> list[tuple[int, int, int]]:
    return [(c, i, j) for c in range(channels) for i in range(3) for j in range(3)]


def _fold_norm(
    x: Tensor, weight: Tensor, gain: Tensor, bias: Tensor, eps: float, padding: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x [N, H, W, C]`` in its frame, and each image's kernels ``[N, taps, O]`` and offsets
    ``[N, O]``, norm included.
    """
    x = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    height, width = x.shape[1] - 2, x.shape[2] - 2
    patches = torch.stack(
        [x[:, i : i + height, j : j + width, c].flatten(1) for c, i, j in _taps(x.shape[3])], 1
    )
    mean = patches.mean(2, keepdim=True)
    centred = patches - mean
    covariance = torch.bmm(centred, centred.transpose(1, 2)) / centred.shape[2]
    flat = weight.flatten(1)
    # The convolution's own bias cancels: it is part of the mean.
    scale = torch.rsqrt((torch.matmul(flat, covariance) * flat).sum(2) + eps) * gain
    # Channels last, which is how the loop reads them.
    return (
        x,
        (flat.t() * scale.unsqueeze(1)).contiguous(),
        bias - torch.matmul(mean.squeeze(2), flat.t()) * scale,
    )


def _first_map(
    x: Tensor, kernels: Tensor, offset: Tensor, activation: nn.Module, pooling: nn.Module
) -> Tensor:
    """Return convolution, activation and pooling of a framed ``x [N, H + 2, W + 2, C]`` with kernels for each image."""
    taps, (height, width) = _taps(x.shape[3]), (x.shape[1] - 2, x.shape[2] - 2)

    def at(top: int, left: int, step: int) -> Tensor:
        total = offset[:, None, None, :]
        for k, (c, i, j) in enumerate(taps):
            rows, columns = (
                top + i + height // step * step - top,
                left + j + width // step * step - left,
            )
            total = (
                total
                + x[:, top + i : rows : step, left + j : columns : step, c, None]
                * kernels[:, k, None, None, :]
            )
        return cast(Tensor, activation(total))

    if isinstance(pooling, nn.Identity):
        return at(0, 0, 1)
    return _merge(pooling, [at(i, j, 2) for i in range(2) for j in range(2)])
