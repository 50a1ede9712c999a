"""Quick first-order forwards: compiled (norm, activation and pooling fused), with convolutions in bf16 or Winograd's.

They follow the network's weights: those may be rewritten in place (an optimiser, ``reinitialise_``)
between calls without any recompilation. Compiled code has no second derivative; DC, DSA and
unrolled methods differentiate the plain network.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from raydd.core.units import Numerics
from raydd.networks import winograd
from raydd.networks.compiling import allow_many_shapes
from raydd.networks.fused import can_be_fused, fused_embed, fused_forward
from raydd.networks.lean import can_be_lean, lean_embed
from raydd.networks.network import Network

log = logging.getLogger(__name__)


class _Bf16Conv2d(nn.Conv2d):
    """A convolution that reads and multiplies in bf16, with fp32 weights and results; what
    surrounds it stays in fp32.
    """

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.bfloat16()
        return self._conv_forward(x.bfloat16(), self.weight.bfloat16(), bias).to(x.dtype)


def _with_bf16_convolutions(net: Network) -> Network:
    """Return a copy of the modules that shares all weights and buffers with ``net`` and convolves in bf16."""
    shared = {id(t): t for t in (*net.parameters(), *net.buffers())}
    twin = copy.deepcopy(net, shared)
    for module in twin.modules():
        if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward:
            module.__class__ = _Bf16Conv2d
    return twin


@lru_cache(maxsize=1)
def _warn_without_bf16() -> None:
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")):
        log.warning(
            "this CPU has no bf16 instructions: bf16 convolutions are slower here than fp32 ones"
        )


def _call_embed(net: Network, x: Tensor) -> Tensor:
    return net.embed(x)


def _call_forward(net: Network, x: Tensor) -> Tensor:
    return net(x)


def _with_winograd_convolutions(net: Network) -> Network:
    """Return a copy of the modules that shares all weights and buffers with ``net``, with
    Winograd's convolution where it suits.
    """
    shared = {id(t): t for t in (*net.parameters(), *net.buffers())}
    twin = copy.deepcopy(net, shared)
    for module in twin.modules():
        if winograd.suits(module) and type(module).forward is nn.Conv2d.forward:
            module.__class__ = winograd.WinogradConv2d
    return twin


@lru_cache(maxsize=4)
def _compiled(
    function: Callable[[Network, Tensor], Tensor], with_winograd: bool = False
) -> Callable[[Network, Tensor], Tensor]:
    """Return the compiled function; one for all networks, so that a second network of the same
    structure compiles nothing.
    """
    allow_many_shapes()
    options = winograd.OPTIONS if with_winograd else None
    compiled: Callable[[Network, Tensor], Tensor] = torch.compile(
        function, fullgraph=True, dynamic=False, options=options
    )
    return compiled


class _Twin:
    """A network with other convolutions and the same weights, whose mode follows the first one's."""

    def __init__(
        self, net: Network, twin: Network, run: Callable[[Network, Tensor], Tensor]
    ) -> None:
        self.net, self.twin, self.run = net, twin, run

    def __call__(self, x: Tensor) -> Tensor:
        if self.twin is not self.net and self.twin.training != self.net.training:
            for ours, theirs in zip(self.twin.modules(), self.net.modules(), strict=True):
                ours.training = theirs.training
        return self.run(self.twin, x)


def _fast(
    net: Network, numerics: Numerics, function: Callable[[Network, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    run = _compiled(function) if numerics.compile else function
    if numerics.precision == "bf16":
        if next(net.parameters()).device.type == "cpu":
            _warn_without_bf16()
        return _Twin(net, _with_bf16_convolutions(net), run)
    return _Twin(net, net, run)


def _fast_without_gradient(
    net: Network, numerics: Numerics, function: Callable[[Network, Tensor], Tensor]
) -> Callable[[Tensor], Tensor] | None:
    """Return what serves images that need no gradient better than :func:`_fast` does, if anything."""
    fewer = numerics.convolution == "winograd"
    if numerics.precision == "bf16" or not (fewer or numerics.compile):
        return None
    if can_be_lean(net):
        embed = lean_embed(net, compile=numerics.compile, fewer_products=fewer)
        return embed if function is _call_embed else lambda x: net.classifier(embed(x))
    if not fewer:
        return None
    run = _compiled(function, True) if numerics.compile else function
    return _Twin(net, _with_winograd_convolutions(net), run)


def _either(
    net: Network, numerics: Numerics, function: Callable[[Network, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    if can_be_fused(net):
        return (
            fused_embed(net, numerics) if function is _call_embed else fused_forward(net, numerics)
        )
    exact, still = _fast(net, numerics, function), _fast_without_gradient(net, numerics, function)

    def call(x: Tensor) -> Tensor:
        return exact(x) if still is None or torch.is_grad_enabled() else still(x)

    return call


def fast_embed(net: Network, numerics: Numerics) -> Callable[[Tensor], Tensor]:
    """Return a function equal to ``net.embed``, as fast as ``numerics`` allows.

    ``compile`` fuses the layers between convolutions (results differ from eager by rounding);
    ``precision: bf16`` runs the convolutions, and nothing else, in bf16 (relative error of features
    about 3e-3). Under ``torch.no_grad`` ConvNets on a CPU go through :mod:`raydd.networks.lean`,
    and ``convolution: winograd`` takes effect (relative error of features about 2e-6). On CUDA,
    :mod:`raydd.networks.fused` takes the place of all this for the ConvNets it knows, with or
    without a gradient. Weights and mode are read at each call. Each image shape and batch size is
    compiled once per process.
    """
    return _either(net, numerics, _call_embed)


def fast_forward(net: Network, numerics: Numerics) -> Callable[[Tensor], Tensor]:
    """Return a function equal to ``net.forward``; see :func:`fast_embed`. Differentiable once, in
    images and weights.
    """
    return _either(net, numerics, _call_forward)
