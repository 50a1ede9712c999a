"""Norm, activation and pooling in one kernel, differentiable once; the kernels are in
:mod:`raydd.networks.fused_kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_ELEMENTS = 16384
"""Values of a map that one program holds in registers: eight warps with 64 each a thread."""

_POSITIONS = 256
"""Positions (2x2 outputs) of a map that are held at once; larger maps are read in chunks, more than once."""

POOLINGS = {"nopool": 0, "avgpool": 1, "maxpool": 2}


@dataclass(frozen=True)
class Tail:
    """What follows a convolution: an instance norm's ``eps``, an activation's slope below zero, one of ``POOLINGS``."""

    eps: float = 1e-5
    slope: float = 0.0
    pooling: str = "avgpool"

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the pooled map."""
        return (height, width) if self.pooling == "nopool" else (height // 2, width // 2)


def kernels() -> ModuleType:
    """Return the kernels' module; it needs Triton."""
    from raydd.networks import fused_first_kernels

    return fused_first_kernels


def power_of_two(value: int) -> int:
    """Return the least power of two that is not below ``value``, at least 1."""
    return 1 << max(value - 1, 0).bit_length()


def tail(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    what: Tail,
    dtype: torch.dtype | None = None,
    *,
    flat: bool = False,
    cancelled: Tensor | None = None,
) -> Tensor:
    """Return ``what`` of a map ``x [N, C, H, W]``: instance norm with ``weight`` and ``bias [C]``, activation, pooling.

    ``x``: float32 or bfloat16, best channels-last (else it is copied). The result is channels-last
    in ``dtype`` (``x``'s if none is given), or contiguous if ``flat``. Statistics and arithmetic
    are in float32. Differentiable once, in all three, and in ``cancelled``: the bias ``[C]`` that
    the convolution before would add, whose gradient is zero.
    """
    if _has_gradient(x, weight, bias, cancelled):
        return _Tail.apply(x, weight, bias, cancelled, what, dtype or x.dtype, flat)
    return _forward(
        x.contiguous(memory_format=torch.channels_last), weight, bias, what, dtype or x.dtype, flat
    )[0]


def _has_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _strided(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return a map, or a copy, whose pixels, row by row, have one stride, and its strides
    ``(image, pixel, channel)``.
    """
    n, c, row, column = x.stride()
    if x.shape[2] == 1 or row == x.shape[3] * column:
        return x, (n, column, c)
    x = x.contiguous(memory_format=torch.channels_last)
    return x, (x.stride(0), x.shape[1], 1)


def empty_map(
    like: Tensor, channels: int, size: tuple[int, int], dtype: torch.dtype, flat: bool
) -> Tensor:
    """Return an empty map ``[N, channels, *size]``, contiguous if ``flat``, else channels-last."""
    order = torch.contiguous_format if flat else torch.channels_last
    return torch.empty(
        (like.shape[0], channels, *size), dtype=dtype, device=like.device, memory_format=order
    )


def _blocks(x: Tensor, what: Tail, elements: int) -> dict[str, Any]:
    """Return the kernels' constants: shape, kinds, and blocks so that a program holds ``elements`` values or fewer."""
    _, channels, height, width = x.shape
    positions = ((height + 1) // 2) * ((width + 1) // 2)
    block_p = min(power_of_two(positions), _POSITIONS)
    block_c = min(max(elements // (4 * block_p), 8), power_of_two(channels), 128)
    chunks = -(-positions // block_p)
    return {
        "H": height,
        "W": width,
        "C": channels,
        "SLOPE": what.slope,
        "POOL": POOLINGS[what.pooling],
        "CHUNKS": chunks,
        "BLOCK_P": block_p,
        "BLOCK_C": block_c,
        "EXACT": height % 2 == 0
        and width % 2 == 0
        and positions == chunks * block_p
        and channels % block_c == 0,
        "num_warps": min(max(4 * block_p * block_c // 2048, 1), 8),
    }


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, what: Tail, dtype: torch.dtype, flat: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, and mean and 1/std ``[N, C]`` of a channels-last ``x``."""
    count, channels, height, width = x.shape
    out = empty_map(x, channels, what.shape(height, width), dtype, flat)
    mean, rstd = torch.empty((2, count, channels), dtype=torch.float32, device=x.device)
    blocks = _blocks(x, what, _ELEMENTS)
    strides = (out.stride(0), 1, out.stride(1)) if flat else (out.stride(0), channels, 1)
    grid = (count * -(-channels // blocks["BLOCK_C"]),)
    kernels().tail_forward[grid](x, weight, bias, out, mean, rstd, *strides, what.eps, **blocks)
    return out, mean, rstd


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        cancelled: Tensor | None,
        what: Tail,
        dtype: torch.dtype,
        flat: bool,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        out, mean, rstd = _forward(x, weight, bias, what, dtype, flat)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.what = what
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        grad, strides = _strided(grad)
        count, channels, _, _ = x.shape
        grad_x = torch.empty_like(x, memory_format=torch.channels_last)
        parts = torch.empty((2, count, channels), dtype=torch.float32, device=x.device)
        # Values and gradients are held together.
        blocks = _blocks(x, ctx.what, _ELEMENTS // 2)
        grid = (count * -(-channels // blocks["BLOCK_C"]),)
        kernels().tail_backward[grid](
            x, weight, bias, mean, rstd, grad, grad_x, parts[0], parts[1], *strides, **blocks
        )
        of_weight, of_bias = (
            parts.sum(1) if ctx.needs_input_grad[1] or ctx.needs_input_grad[2] else (None, None)
        )
        return (
            grad_x,
            of_weight,
            of_bias,
            torch.zeros_like(bias) if ctx.needs_input_grad[3] else None,
            None,
            None,
            None,
        )


def first_block(
    x: Tensor,
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor,
    padding: tuple[int, int],
    what: Tail,
    dtype: torch.dtype,
    *,
    flat: bool = False,
    cancelled: Tensor | None = None,
) -> Tensor:
    """Return ``what`` of the convolution of images ``x [N, 1 or 3, H, W]`` (float32, no gradient)
    with ``kernel [C, 1 or 3, 3, 3]``.

    ``padding``: lines and columns of zeros on each side. In exact float32; otherwise as
    :func:`tail`, and differentiable once in ``kernel``, ``weight``, ``bias`` and ``cancelled``, the
    bias that the convolution would add. ``kernel`` may be ``K`` equal ones,
    ``[K, C, 1 or 3, 3, 3]``: each has the gradient of its own of ``K`` equal parts of the images,
    in their order.
    """
    framed = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).contiguous()
    if _has_gradient(kernel, weight, bias, cancelled):
        return _First.apply(framed, kernel, weight, bias, cancelled, what, dtype, flat)
    return _first_forward(framed, _one_of(kernel), weight, bias, what, dtype, flat, keep=False)[0]


def _one_of(kernel: Tensor) -> Tensor:
    return (kernel[0] if kernel.dim() == 5 else kernel).contiguous()


def patch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean ``[N, taps]`` and covariance ``[N, taps, taps]`` of the 3x3 patches of framed
    images ``x [N, 1 or 3, H + 2, W + 2]``.
    """
    count, channels, height, width = x.shape
    taps = 9 * channels
    mean, covariance = (
        torch.empty(shape, dtype=torch.float32, device=x.device)
        for shape in ((count, taps), (count, taps, taps))
    )
    constants = {"H": height - 2, "W": width - 2, "TAPS": taps, "MEANS_P": 128, "BLOCK_P": 32}
    kernels().patch_moments[(count, channels * (channels + 1) // 2)](
        x, mean, covariance, **constants, num_warps=1
    )
    return mean, covariance


def _first_shape(x: Tensor, kernel: Tensor) -> dict[str, Any]:
    return {"H": x.shape[2] - 2, "W": x.shape[3] - 2, "C": kernel.shape[0], "TAPS": 9 * x.shape[1]}


def _first_blocks(x: Tensor, kernel: Tensor, what: Tail, most_channels: int) -> dict[str, Any]:
    """Return the constants of the kernels that compute outputs: a warp has one row, and 32 of its
    channels per value a thread.
    """
    block_c = min(power_of_two(kernel.shape[0]), most_channels)
    kinds = {"SLOPE": what.slope, "POOL": POOLINGS[what.pooling]}
    return (
        _first_shape(x, kernel)
        | kinds
        | {"ROWS": 8 * most_channels // block_c, "BLOCK_C": block_c, "num_warps": 8}
    )


def _first_forward(
    x: Tensor,
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor,
    what: Tail,
    dtype: torch.dtype,
    flat: bool,
    *,
    keep: bool,
) -> tuple[Tensor, ...]:
    """Return the result of framed images ``x``, then what the backward pass needs: mean and 1/std
    ``[N, C]`` and, if ``keep``, the taps' mean ``[N, taps]`` and covariance with the outputs
    ``[N, taps, C]``.
    """
    count, channels = x.shape[0], kernel.shape[0]
    shape, module = _first_shape(x, kernel), kernels()
    taps_mean, covariance = patch_moments(x)
    mean, rstd = torch.empty((2, count, channels), dtype=torch.float32, device=x.device)
    spread = torch.empty(
        (count, shape["TAPS"], channels) if keep else (0,), dtype=torch.float32, device=x.device
    )
    block_c = min(power_of_two(channels), 128)
    constants = {"C": channels, "TAPS": shape["TAPS"], "KEEP": keep, "BLOCK_C": block_c}
    grid = (count, -(-channels // block_c))
    module.first_statistics[grid](
        kernel, taps_mean, covariance, spread, mean, rstd, what.eps, **constants, num_warps=4
    )
    out = empty_map(x, channels, what.shape(shape["H"], shape["W"]), dtype, flat)
    strides = (out.stride(0), 1, out.stride(1)) if flat else (out.stride(0), channels, 1)
    blocks = _first_blocks(x, kernel, what, 128)
    # Few images are cut into parts, so that every multiprocessor has work.
    parts = min(max(1024 // max(count, 1), 1), 4)
    grid = (count * parts, -(-channels // blocks["BLOCK_C"]))
    module.first_forward[grid](
        x, kernel, weight, bias, mean, rstd, out, *strides, PARTS=parts, **blocks
    )
    return out, mean, rstd, taps_mean, spread


class _First(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernel: Tensor,
        weight: Tensor,
        bias: Tensor,
        cancelled: Tensor | None,
        what: Tail,
        dtype: torch.dtype,
        flat: bool,
    ) -> Tensor:
        one = _one_of(kernel)
        out, *rest = _first_forward(x, one, weight, bias, what, dtype, flat, keep=True)
        ctx.save_for_backward(x, one, weight, bias, *rest)
        ctx.what, ctx.kernel_shape = what, kernel.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, weight, bias, mean, rstd, taps_mean, spread = ctx.saved_tensors
        grad, strides = _strided(grad)
        channels, taps = kernel.shape[0], 9 * x.shape[1]
        found = torch.empty((len(x), taps + 2, channels), dtype=torch.float32, device=x.device)
        # A sum a tap and channel is kept in registers.
        blocks = _first_blocks(x, kernel, ctx.what, 64 if taps == 9 else 32)
        grid = (len(x), -(-channels // blocks["BLOCK_C"]))
        saved = (mean, rstd, taps_mean, spread)
        kernels().first_backward[grid](
            x, kernel, weight, bias, *saved, grad, found, *strides, **blocks
        )
        segments = ctx.kernel_shape[0] if len(ctx.kernel_shape) == 5 else 1
        parts = found.unflatten(0, (segments, -1)).sum(1)
        of_gain, of_shift = parts[:, taps:].sum(0)
        of_cancelled = torch.zeros_like(bias) if ctx.needs_input_grad[4] else None
        return (
            None,
            parts[:, :taps].mT.reshape(ctx.kernel_shape),
            of_gain,
            of_shift,
            of_cancelled,
            None,
            None,
            None,
        )
