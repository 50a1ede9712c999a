"""Triton kernels of a ConvNet's first block on CUDA, whose convolution's output, the largest map, is never written.

The convolution has few input channels and is linear: mean and variance of its outputs over an image follow from the mean and
the covariance of the image's 3x3 patches. With them the norm goes into the weights, and each pooled pixel is computed from
the 4x4 input pixels under it, forward and backward, in float32 multiply-adds. Images are framed (padded) beforehand.

A *tap* is one of a patch's ``TAPS`` = 9 * channels values; ``T`` is the power of two that holds them. A *position* is a pixel of
the pooled map; under it are ``STEP`` x ``STEP`` outputs (1 without pooling).
"""

# mypy: disallow_untyped_defs=False, disallow_untyped_decorators=False, disallow_incomplete_defs=False, disable-error-code="assignment"
# ruff: noqa: RUF005
# Arguments of kernels are pointers and blocks, which have no types in Python; Triton's tuples grow by addition alone.

from __future__ import annotations

import triton
import triton.language as tl

from raydd.networks.fused_kernels import activate, pooled, tail_backward, tail_forward, unpooled

__all__ = ["first_backward", "first_forward", "first_statistics", "tail_backward", "tail_forward"]


@triton.jit
def first_statistics(
    x, weight, taps_mean, spread, mean_out, rstd_out, eps,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, T: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and 1/std ``[N, C]`` of the convolution of one framed image ``x [TAPS // 9, H + 2, W + 2]`` with ``weight [C, TAPS]``.

    With ``KEEP`` also, for the backward pass, the taps' mean ``[N, T]`` and their covariance with each output, ``[N, T, C]``.
    """
    n = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, T)
    p = tl.arange(0, BLOCK_P)
    x += n * (TAPS // 9) * (H + 2) * (W + 2)
    corner = x + (t // 9 * ((H + 2) * (W + 2)) + t % 9 // 3 * (W + 2) + t % 3)[:, None]
    total = tl.zeros([T], tl.float32)
    for start in range(0, H * W, BLOCK_P):
        q = (start + p)[None, :]
        total += tl.sum(tl.load(corner + q // W * (W + 2) + q % W, mask=(t < TAPS)[:, None] & (q < H * W), other=0.0), 1)
    middle = total / (H * W)
    covariance = tl.zeros([T, T], tl.float32)
    for start in range(0, H * W, BLOCK_P):
        q = (start + p)[None, :]
        here = (t < TAPS)[:, None] & (q < H * W)
        away = tl.where(here, tl.load(corner + q // W * (W + 2) + q % W, mask=here, other=0.0) - middle[:, None], 0.0)
        covariance += tl.dot(away, tl.trans(away), input_precision="ieee")
    covariance = covariance / (H * W)
    if KEEP:
        tl.store(taps_mean + n * T + t, middle)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        w = tl.load(weight + c[None, :] * TAPS + t[:, None], mask=(c < C)[None, :] & (t < TAPS)[:, None], other=0.0)
        along = tl.dot(covariance, w, input_precision="ieee")
        if KEEP:
            tl.store(spread + n * T * C + t[:, None] * C + c[None, :], along, mask=(c < C)[None, :])
        # Rounding may leave less than nothing of a flat image.
        variance = tl.maximum(tl.sum(along * w, 0), 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(mean_out + n * C + c, tl.sum(middle[:, None] * w, 0), mask=c < C)
        tl.store(rstd_out + n * C + c, 1 / tl.sqrt(variance + eps), mask=c < C)


@triton.jit
def load_taps(weight, c, C: tl.constexpr, TAPS: tl.constexpr):
    """Return the weights ``[channels]`` of every tap."""
    found = ()
    for k in tl.static_range(TAPS):
        found = found + (tl.load(weight + c * TAPS + k, mask=c < C, other=0.0),)
    return found


@triton.jit
def load_window(x, p, H: tl.constexpr, W: tl.constexpr, TAPS: tl.constexpr, STEP: tl.constexpr):
    """Return the pixels under positions ``p`` of a framed image: ``STEP + 2`` lines and columns of every channel."""
    corner = x + p // (W // STEP) * (STEP * (W + 2)) + p % (W // STEP) * STEP
    found = ()
    for channel in tl.static_range(TAPS // 9):
        for i in tl.static_range(STEP + 2):
            for j in tl.static_range(STEP + 2):
                found = found + (tl.load(corner + (channel * (H + 2) + i) * (W + 2) + j),)
    return found


@triton.jit
def outputs(pixels, taps, offset, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, TAPS: tl.constexpr, STEP: tl.constexpr):
    """Return the ``STEP ** 2`` outputs ``[positions, channels]`` of the convolution with the norm's weights and offset."""
    found = ()
    for at in tl.static_range(STEP * STEP):
        total = tl.zeros([ROWS, BLOCK_C], tl.float32) + offset[None, :]
        for k in tl.static_range(TAPS):
            pixel = pixels[(k // 9 * (STEP + 2) + k % 9 // 3 + at // STEP) * (STEP + 2) + k % 3 + at % STEP]
            total += pixel[:, None] * taps[k][None, :]
        found = found + (total,)
    return found


@triton.jit
def first_forward(
    x, weight, gain_in, shift_in, mean_in, rstd_in, out, out_stride_n, out_stride_p, out_stride_c,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Convolution, norm, activation and pooling of a part of one framed image and a block of channels."""
    STEP: tl.constexpr = 1 if POOL == 0 else 2
    POSITIONS: tl.constexpr = (H // STEP) * (W // STEP)
    SPAN: tl.constexpr = ((POSITIONS + PARTS - 1) // PARTS + ROWS - 1) // ROWS * ROWS
    n = (tl.program_id(0) // PARTS).to(tl.int64)
    first = tl.program_id(0) % PARTS * SPAN
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += n * (TAPS // 9) * (H + 2) * (W + 2)
    out += n * out_stride_n
    scale = tl.load(rstd_in + n * C + c, mask=c < C, other=0.0) * tl.load(gain_in + c, mask=c < C, other=0.0)
    offset = tl.load(shift_in + c, mask=c < C, other=0.0) - tl.load(mean_in + n * C + c, mask=c < C, other=0.0) * scale
    plain = load_taps(weight, c, C, TAPS)
    taps = ()
    for k in tl.static_range(TAPS):
        taps = taps + (plain[k] * scale,)
    for start in range(first, tl.minimum(first + SPAN, POSITIONS), ROWS):
        p = start + tl.arange(0, ROWS)
        pixels = load_window(x, tl.minimum(p, POSITIONS - 1), H, W, TAPS, STEP)
        y = outputs(pixels, taps, offset, ROWS, BLOCK_C, TAPS, STEP)
        active = ()
        for k in tl.static_range(STEP * STEP):
            active = active + (activate(y[k], SLOPE),)
        mask = (p < POSITIONS)[:, None] & (c < C)[None, :]
        at = out + p[:, None] * out_stride_p + c[None, :] * out_stride_c
        tl.store(at, pooled(active, POOL).to(out.dtype.element_ty), mask=mask)


@triton.jit
def add_products(sums, g, pixels, TAPS: tl.constexpr, STEP: tl.constexpr):
    """Return the sums over an image of ``g`` times each tap, and of ``g`` (the last), with these outputs added."""
    more = ()
    for k in tl.static_range(TAPS):
        total = sums[k]
        for at in tl.static_range(STEP * STEP):
            pixel = pixels[(k // 9 * (STEP + 2) + k % 9 // 3 + at // STEP) * (STEP + 2) + k % 3 + at % STEP]
            total += g[at] * pixel[:, None]
        more = more + (total,)
    total = sums[TAPS]
    for at in tl.static_range(STEP * STEP):
        total += g[at]
    return more + (total,)


@triton.jit
def first_backward(
    x, weight, gain_in, shift_in, mean_in, rstd_in, taps_mean, spread, grad, found, grad_stride_n, grad_stride_p, grad_stride_c,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, T: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One image's part of the gradients in the convolution's weights and the norm's, ``found [N, TAPS + 2, C]``.

    Of the gradient ``g`` of the norm's output only the sums of ``g`` and of ``g`` times each tap are needed: those of ``g`` times
    an output, and of an output times a tap, follow from them, the weights and the covariance.
    """
    STEP: tl.constexpr = 1 if POOL == 0 else 2
    POSITIONS: tl.constexpr = (H // STEP) * (W // STEP)
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < C
    x += n * (TAPS // 9) * (H + 2) * (W + 2)
    grad += n * grad_stride_n
    mean = tl.load(mean_in + n * C + c, mask=here, other=0.0)
    rstd = tl.load(rstd_in + n * C + c, mask=here, other=0.0)
    scale = rstd * tl.load(gain_in + c, mask=here, other=0.0)
    offset = tl.load(shift_in + c, mask=here, other=0.0) - mean * scale
    plain = load_taps(weight, c, C, TAPS)
    taps = ()
    for k in tl.static_range(TAPS):
        taps = taps + (plain[k] * scale,)
    sums = ()
    for _ in tl.static_range(TAPS + 1):
        sums = sums + (tl.zeros([ROWS, BLOCK_C], tl.float32),)
    for start in range(0, POSITIONS, ROWS):
        p = start + tl.arange(0, ROWS)
        pixels = load_window(x, tl.minimum(p, POSITIONS - 1), H, W, TAPS, STEP)
        y = outputs(pixels, taps, offset, ROWS, BLOCK_C, TAPS, STEP)
        at = grad + p[:, None] * grad_stride_p + c[None, :] * grad_stride_c
        g = unpooled(y, tl.load(at, mask=(p < POSITIONS)[:, None] & here[None, :], other=0.0).to(tl.float32), SLOPE, POOL)
        sums = add_products(sums, g, pixels, TAPS, STEP)
    of_shift = tl.sum(sums[TAPS], 0)
    of_gain = -mean * of_shift
    with_taps = ()
    for k in tl.static_range(TAPS):
        with_taps = with_taps + (tl.sum(sums[k], 0),)
        of_gain += tl.load(weight + c * TAPS + k, mask=here, other=0.0) * with_taps[k]
    of_gain *= rstd
    found += n * (TAPS + 2) * C + c
    for k in tl.static_range(TAPS):
        level = of_shift * tl.load(taps_mean + n * T + k)
        along = of_gain * rstd * tl.load(spread + (n * T + k) * C + c, mask=here, other=0.0)
        tl.store(found + k * C, scale * (with_taps[k] - level - along), mask=here)
    tl.store(found + TAPS * C, of_gain, mask=here)
    tl.store(found + (TAPS + 1) * C, of_shift, mask=here)
