"""Instance norms for second derivatives: a few passes over the maps in place of the library's hundred small operators.

With ``h = (x - mean) r``, ``r = 1 / sqrt(var + eps)`` and means over a map of ``n`` values, the
derivative is the self-adjoint map

    D(g) = r (g - mean(g) - h mean(g h)),

and that of ``<u, D(g)>`` is ``D(u)`` in g, ``-r (u mean(g h) + g mean(u h))`` in h, and
``<u, D(g)> / r`` in r, of which h and r depend on x by D itself and by ``-h r^2 / n``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class _Back(torch.autograd.Function):
    """``D(g)`` of maps ``g [..., n]``, for ``h`` of that shape and ``r [..., 1]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, h: Tensor, r: Tensor) -> Tensor:
        return torch.addcmul(
            g - g.mean(-1, keepdim=True), h, (g * h).mean(-1, keepdim=True), value=-1
        ).mul_(r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g, h, r, out = ctx.saved_tensors
        of_g, of_u = (g * h).mean(-1, keepdim=True), (u * h).mean(-1, keepdim=True)
        of_h = torch.addcmul(u * of_g, g, of_u) * -r
        return _Back.apply(u, h, r), of_h, (u * out).sum(-1, keepdim=True) / r


class _Norm(torch.autograd.Function):
    """``h`` and ``r`` of maps ``x [..., n]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        centred = x - x.mean(-1, keepdim=True)
        r = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
        return centred.mul_(r), r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, of_h: Tensor, of_r: Tensor | None) -> tuple[Tensor, None]:
        h, r = ctx.saved_tensors
        if of_r is None:
            return _Back.apply(of_h, h, r), None
        return torch.addcmul(_Back.apply(of_h, h, r), h, of_r * r * r / -h.shape[-1]), None


class _InstanceNorm(nn.GroupNorm):
    """``nn.GroupNorm`` with a group for each channel."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised maps of ``input [B, C, H, W]``."""
        h, _ = _Norm.apply(input.flatten(2), self.eps)
        if self.weight is not None:
            h = torch.addcmul(self.bias[:, None], h, self.weight[:, None])
        return h.view(input.shape)


def twice_differentiable(network: nn.Module) -> nn.Module:
    """Return a copy of the modules that shares weights and buffers with ``network``, with instance norms as above."""
    shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)
    for module in twin.modules():
        if type(module) is nn.GroupNorm and module.num_groups == module.num_channels:
            module.__class__ = _InstanceNorm
    return twin
