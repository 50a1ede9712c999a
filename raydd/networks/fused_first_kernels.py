"""Triton kernels of a ConvNet's first block on CUDA, whose convolution's output, the largest map, is never written.

The convolution has few input channels and is linear: mean and variance of its outputs over an image
follow from the mean and the covariance of the image's 3x3 patches. With them the norm goes into the
weights, and each pooled pixel is computed from the 4x4 input pixels under it, forward and backward,
in float32 multiply-adds. Images are framed (padded) beforehand.

A *tap* is one of a patch's ``TAPS`` = 9 * channels values. A *position* is a pixel of the pooled
map (of the whole one for the moments of taps); under it are ``STEP`` x ``STEP`` outputs (1 without
pooling).
"""

# mypy: disallow_untyped_defs=False, disallow_untyped_decorators=False
# mypy: disallow_incomplete_defs=False, disable-error-code="assignment"
# ruff: noqa: RUF005
# Arguments of kernels are pointers and blocks, which have no types in Python; Triton's tuples grow by addition alone.

from __future__ import annotations

import triton
import triton.language as tl

from raydd.networks.fused_kernels import activate, pooled, tail_backward, tail_forward, unpooled

__all__ = [
    "first_backward",
    "first_forward",
    "first_statistics",
    "patch_moments",
    "tail_backward",
    "tail_forward",
]


@triton.jit
def load_patches(x, p, other, H: tl.constexpr, W: tl.constexpr):
    """Return the nine taps ``[positions]`` of patches of one framed channel; ``other``, a value per
    tap, behind the last position.
    """
    corner = x + p // W * (W + 2) + p % W
    found = ()
    for k in tl.static_range(9):
        found = found + (
            tl.load(corner + (k // 3 * (W + 2) + k % 3), mask=p < H * W, other=other[k]),
        )
    return found


@triton.jit
def patch_means(x, H: tl.constexpr, W: tl.constexpr, BLOCK_P: tl.constexpr):
    """Return the mean of each of a framed channel's nine taps."""
    sums = ()
    nothing = ()
    for _ in tl.static_range(9):
        sums = sums + (tl.zeros([BLOCK_P], tl.float32),)
        nothing = nothing + (0.0,)
    for start in range(0, H * W, BLOCK_P):
        pixels = load_patches(x, start + tl.arange(0, BLOCK_P), nothing, H, W)
        more = ()
        for k in tl.static_range(9):
            more = more + (sums[k] + pixels[k],)
        sums = more
    means = ()
    for k in tl.static_range(9):
        means = means + (tl.sum(sums[k], 0) / (H * W),)
    return means


@triton.jit
def patch_moments(
    x,
    taps_mean,
    covariance,
    H: tl.constexpr,
    W: tl.constexpr,
    TAPS: tl.constexpr,
    MEANS_P: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Mean ``[N, TAPS]`` and covariance ``[N, TAPS, TAPS]`` of taps over one framed image; a
    program has two channels' taps.

    Meant for one warp: it keeps its products' sums a position a lane, and needs no barrier to add them up.
    """
    CHANNELS: tl.constexpr = TAPS // 9
    n = tl.program_id(0).to(tl.int64)
    # Each pair of channels once: (0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0).
    one = tl.program_id(1) % CHANNELS
    other = (one + tl.program_id(1) // CHANNELS) % CHANNELS
    x += n * CHANNELS * (H + 2) * (W + 2)
    x_one = x + one * ((H + 2) * (W + 2))
    x_other = x + other * ((H + 2) * (W + 2))
    means_one = patch_means(x_one, H, W, MEANS_P)
    means_other = means_one
    if CHANNELS > 1:
        means_other = patch_means(x_other, H, W, MEANS_P)
    sums = ()
    for i in tl.static_range(9):
        for _ in tl.static_range(i if CHANNELS == 1 else 0, 9):
            sums = sums + (tl.zeros([BLOCK_P], tl.float32),)
    for start in range(0, H * W, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        pixels = load_patches(x_one, p, means_one, H, W)
        others = pixels
        if CHANNELS > 1:
            others = load_patches(x_other, p, means_other, H, W)
        sums = add_covariances(sums, pixels, means_one, others, means_other, CHANNELS)
    if one == other:
        for k in tl.static_range(9):
            tl.store(taps_mean + n * TAPS + one * 9 + k, means_one[k])
    covariance += n * TAPS * TAPS
    for i in tl.static_range(9):
        for j in tl.static_range(i if CHANNELS == 1 else 0, 9):
            found = tl.sum(
                sums[i * 9 + j - i * (i + 1) // 2 if CHANNELS == 1 else i * 9 + j], 0
            ) / (H * W)
            tl.store(covariance + (one * 9 + i) * TAPS + other * 9 + j, found)
            tl.store(covariance + (other * 9 + j) * TAPS + one * 9 + i, found)


@triton.jit
def add_covariances(sums, x, x_mean, y, y_mean, CHANNELS: tl.constexpr):
    """Return the sums with the products of each tap of ``x`` and each of ``y`` added, of one channel each pair once."""
    away = ()
    for j in tl.static_range(9):
        away = away + (y[j] - y_mean[j],)
    more = ()
    for i in tl.static_range(9):
        centred = away[i] if CHANNELS == 1 else x[i] - x_mean[i]
        for j in tl.static_range(i if CHANNELS == 1 else 0, 9):
            more = more + (
                sums[i * 9 + j - i * (i + 1) // 2 if CHANNELS == 1 else i * 9 + j]
                + centred * away[j],
            )
    return more


@triton.jit
def load_taps(weight, c, C: tl.constexpr, TAPS: tl.constexpr):
    """Return the weights ``[channels]`` of every tap."""
    found = ()
    for k in tl.static_range(TAPS):
        found = found + (tl.load(weight + c * TAPS + k, mask=c < C, other=0.0),)
    return found


@triton.jit
def first_statistics(
    weight, taps_mean, covariance, spread, mean_out, rstd_out, eps,
    C: tl.constexpr, TAPS: tl.constexpr, KEEP: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and 1/std ``[N, C]`` of one image's convolution with ``weight [C, TAPS]``, from its taps' moments.

    With ``KEEP`` also, for the backward pass, each tap's covariance with each output, ``[N, TAPS, C]``.
    """
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here = c < C
    taps = load_taps(weight, c, C, TAPS)
    mean = tl.zeros([BLOCK_C], tl.float32)
    for k in tl.static_range(TAPS):
        mean += tl.load(taps_mean + n * TAPS + k) * taps[k]
    variance = tl.zeros([BLOCK_C], tl.float32)
    for k in range(TAPS):
        along = tl.zeros([BLOCK_C], tl.float32)
        for j in tl.static_range(TAPS):
            along += tl.load(covariance + (n * TAPS + k) * TAPS + j) * taps[j]
        if KEEP:
            tl.store(spread + (n * TAPS + k) * C + c, along, mask=here)
        variance += along * tl.load(weight + c * TAPS + k, mask=here, other=0.0)
    # Rounding may leave less than nothing of a flat image.
    variance = tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(mean_out + n * C + c, mean, mask=here)
    tl.store(rstd_out + n * C + c, 1 / tl.sqrt(variance + eps), mask=here)


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
def outputs(
    pixels,
    taps,
    offset,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TAPS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Return the ``STEP ** 2`` outputs ``[positions, channels]`` of the convolution with the norm's
    weights and offset.
    """
    found = ()
    for at in tl.static_range(STEP * STEP):
        total = tl.zeros([ROWS, BLOCK_C], tl.float32) + offset[None, :]
        for k in tl.static_range(TAPS):
            pixel = pixels[
                (k // 9 * (STEP + 2) + k % 9 // 3 + at // STEP) * (STEP + 2) + k % 3 + at % STEP
            ]
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
    scale = tl.load(rstd_in + n * C + c, mask=c < C, other=0.0) * tl.load(
        gain_in + c, mask=c < C, other=0.0
    )
    offset = (
        tl.load(shift_in + c, mask=c < C, other=0.0)
        - tl.load(mean_in + n * C + c, mask=c < C, other=0.0) * scale
    )
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
            pixel = pixels[
                (k // 9 * (STEP + 2) + k % 9 // 3 + at // STEP) * (STEP + 2) + k % 3 + at % STEP
            ]
            total += g[at] * pixel[:, None]
        more = more + (total,)
    total = sums[TAPS]
    for at in tl.static_range(STEP * STEP):
        total += g[at]
    return more + (total,)


@triton.jit
def first_backward(
    x, weight, gain_in, shift_in, mean_in, rstd_in, taps_mean, spread, grad, found, grad_stride_n,
    grad_stride_p, grad_stride_c,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One image's part of the gradients in the convolution's weights and the norm's, ``found [N, TAPS + 2, C]``.

    Of the gradient ``g`` of the norm's output only the sums of ``g`` and of ``g`` times each tap
    are needed: those of ``g`` times an output, and of an output times a tap, follow from them, the
    weights and the covariance.
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
        g = unpooled(
            y,
            tl.load(at, mask=(p < POSITIONS)[:, None] & here[None, :], other=0.0).to(tl.float32),
            SLOPE,
            POOL,
        )
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
        level = of_shift * tl.load(taps_mean + n * TAPS + k)
        along = of_gain * rstd * tl.load(spread + (n * TAPS + k) * C + c, mask=here, other=0.0)
        tl.store(found + k * C, scale * (with_taps[k] - level - along), mask=here)
    tl.store(found + TAPS * C, of_gain, mask=here)
    tl.store(found + (TAPS + 1) * C, of_shift, mask=here)
