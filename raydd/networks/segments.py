"""Gradients in a network's weights for several segments of one batch at once.

All images go through every layer together, forward and backward; only the last product, the
gradient in the layer's weight, is taken segment by segment. For networks whose weights of two or
more dimensions are those of plain convolutions and linear layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.networks.fused import can_be_fused, fused_features
from raydd.networks.properties import is_per_sample

Shape = tuple[Any, Any, Any, int]
"""Stride, padding, dilation and groups."""


class _Convolved(torch.autograd.Function):
    """``conv2d(x, weights[0])`` for equal weights ``[K, O, I, h, w]``, whose gradients are those of
    ``K`` equal parts of ``x``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.shape = shape
        return F.conv2d(x, _laid_as(x, weights[0]), bias, *shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, weights = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.shape
        weight, shape = _laid_as(x, weights[0]), (stride, padding, dilation, False, (0, 0), groups)
        derive, of_images = torch.ops.aten.convolution_backward, None
        if ctx.needs_input_grad[0]:
            of_images = derive(gradient, x, weight, None, *shape, (True, False, False))[0]
        parts = zip(gradient.chunk(len(weights)), x.chunk(len(weights)), strict=True)
        of_weights = [
            derive(g, part, weight, None, *shape, (False, True, False))[1] for g, part in parts
        ]
        return of_images, torch.stack([g.contiguous() for g in of_weights]), None, None


def _laid_as(x: Tensor, weight: Tensor) -> Tensor:
    """Return a weight that lies in memory as images do: channels last or first."""
    return (
        weight.contiguous(memory_format=torch.channels_last)
        if x.is_contiguous(memory_format=torch.channels_last)
        else weight
    )


class _Conv(nn.Conv2d):
    weights: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution; the weights' gradients are kept apart."""
        return _Convolved.apply(
            input, self.weights, self.bias, (self.stride, self.padding, self.dilation, self.groups)
        )


class _Linear(nn.Linear):
    weights: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Return the product; the weights' gradients are kept apart."""
        by_segment = input.unflatten(0, (len(self.weights), -1))
        out = torch.matmul(by_segment, self.weights.mT)
        return (out if self.bias is None else out + self.bias).flatten(0, 1)


class Segmented:
    """``logits, weights = segmented(images [K * n, C, H, W], K)``: differentiate in ``weights``,
    ``[K, *shape]`` for each matched one.

    ``network``'s weights are read at each call; they stand in the order of ``network.parameters()``.
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        self.fused, self.precision = can_be_fused(network), precision
        shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
        self.network = copy.deepcopy(network, shared)
        self.layers: list[_Conv | _Linear] = []
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d):
                module.__class__ = _Conv
            elif isinstance(module, nn.Linear):
                module.__class__ = _Linear
            if isinstance(module, _Conv | _Linear):
                self.layers.append(module)

    def __call__(self, images: Tensor, segments: int) -> tuple[Tensor, list[Tensor]]:
        """Return logits ``[K * n, classes]``, and the weights of each segment."""
        for layer in self.layers:
            weight = layer.weight.detach()
            layer.weights = weight.expand(segments, *weight.shape).requires_grad_(True)
        try:
            weights = [layer.weights for layer in self.layers]
            if not self.fused:
                return self.network(images), weights
            wide = dict(
                zip(
                    (name for name, p in self.network.named_parameters() if p.dim() > 1),
                    weights,
                    strict=True,
                )
            )
            params = dict(self.network.named_parameters()) | wide
            features = fused_features(self.network, params, images, self.precision, _convolve)
            return self.layers[-1](features), weights
        finally:
            for layer in self.layers:
                del layer.weights


def _convolve(x: Tensor, weights: Tensor, *, padding: tuple[int, int]) -> Tensor:
    return _Convolved.apply(x, weights, None, ((1, 1), padding, (1, 1), 1))


def segmented_form(network: nn.Module, precision: str = "fp32") -> Segmented | None:
    """Return a network's :class:`Segmented` form for its gradients in weights of two or more
    dimensions; ``None`` if it has none.
    """
    plain = {nn.Conv2d.forward, nn.Linear.forward}
    layers = [
        m
        for m in network.modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and type(m).forward in plain
    ]
    simple = all(
        not isinstance(m, nn.Conv2d)
        or (m.padding_mode == "zeros" and not isinstance(m.padding, str))
        for m in layers
    )
    known = {id(layer.weight) for layer in layers}
    wide = [p for p in network.parameters() if p.dim() >= 2]
    # A weight that two layers share would be counted once per layer.
    return (
        Segmented(network, precision)
        if simple and len(known) == len(wide) == len(layers) and is_per_sample(network)
        else None
    )
