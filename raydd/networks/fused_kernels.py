"""Triton kernels of a ConvNet's blocks on CUDA: a norm's tail in one pass, and a first block that writes no full map.

Maps are channels-last; all arithmetic is in float32. No kernel adds atomically or is tuned at run
time: the same input gives the same bytes. Imported only where the tensors are on CUDA (or by
Triton's interpreter).

Where a convolution's outputs are pooled, a *position* is a pixel of the pooled map and its
*corners* are the 2x2 outputs below it; with ``POOL == 0`` a position of the first block has one
corner.
"""

# mypy: disallow_untyped_defs=False, disallow_untyped_decorators=False
# mypy: disallow_incomplete_defs=False, disable-error-code="assignment"
# ruff: noqa: RUF005
# Arguments of kernels are pointers and blocks, which have no types in Python; Triton's tuples grow by addition alone.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(y, SLOPE: tl.constexpr):
    """Return relu (``SLOPE`` 0) or leaky relu; NaN stays NaN."""
    if SLOPE == 0:
        return tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(y < 0, y * SLOPE, y)


@triton.jit
def inactivate(y, grad, SLOPE: tl.constexpr):
    """Return the gradient before the activation of ``y``, from that behind it."""
    if SLOPE == 0:
        return tl.where(y > 0, grad, 0.0)
    return tl.where(y > 0, grad, grad * SLOPE)


@triton.jit
def pooled(y, POOL: tl.constexpr):
    """Return the mean (``POOL`` 1) or the maximum (2) of four blocks; the one block itself for 0."""
    # Branches, not early returns: Triton 3.6 compiles what follows a return, and one block has no second.
    if POOL == 0:
        return y[0]
    elif POOL == 1:
        return (y[0] + y[1] + y[2] + y[3]) * 0.25
    else:
        top = tl.maximum(y[0], y[1], propagate_nan=tl.PropagateNan.ALL)
        low = tl.maximum(y[2], y[3], propagate_nan=tl.PropagateNan.ALL)
        return tl.maximum(top, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def unpooled(y, grad, SLOPE: tl.constexpr, POOL: tl.constexpr):
    """Return the gradient of each block of ``y``, before the activation, of what pooling the
    activations to ``grad`` gives.
    """
    if POOL == 2:
        best = pooled(
            (
                activate(y[0], SLOPE),
                activate(y[1], SLOPE),
                activate(y[2], SLOPE),
                activate(y[3], SLOPE),
            ),
            2,
        )
        free = best == best
    found = ()
    for k in tl.static_range(1 if POOL == 0 else 4):
        if POOL == 2:
            # The first of equals has it all, as in torch.
            taken = free & (activate(y[k], SLOPE) == best)
            free = free & (taken == 0)
            share = tl.where(taken, grad, 0.0)
        elif POOL == 1:
            share = grad * 0.25
        else:
            share = grad
        found = found + (inactivate(y[k], share, SLOPE),)
    return found


@triton.jit
def corner_inside(p, k: tl.constexpr, H: tl.constexpr, W: tl.constexpr, EXACT: tl.constexpr):
    """Return where in the map ``[H, W]`` the ``k``-th corner of positions ``p`` is, and whether it is inside."""
    row = p // ((W + 1) // 2) * 2 + k // 2
    column = p % ((W + 1) // 2) * 2 + k % 2
    if EXACT:
        return row * W + column, p >= 0
    return row * W + column, (row < H) & (column < W)


@triton.jit
def corner_mask(
    p, c, k: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, EXACT: tl.constexpr
):
    """Return which values ``[positions, channels]`` of the ``k``-th corners exist."""
    if EXACT:
        return tl.full([p.shape[0], c.shape[0]], True, tl.int1)
    _, inside = corner_inside(p, k, H, W, EXACT)
    return inside[:, None] & (c < C)[None, :]


@triton.jit
def load_corners(x, p, c, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, EXACT: tl.constexpr):
    """Return the four corners ``[positions, channels]`` of an image's map at ``x``, 0 outside."""
    found = ()
    for k in tl.static_range(4):
        pixel, _ = corner_inside(p, k, H, W, EXACT)
        mask = corner_mask(p, c, k, H, W, C, EXACT)
        found = found + (
            tl.load(x + pixel[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32),
        )
    return found


@triton.jit
def centred_squares(
    x, mean, p, c, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, EXACT: tl.constexpr
):
    """Return the sum of squared distances from ``mean [channels]`` of the four corners that exist."""
    total = tl.zeros([p.shape[0], c.shape[0]], tl.float32)
    for k in tl.static_range(4):
        away = tl.where(corner_mask(p, c, k, H, W, C, EXACT), x[k] - mean[None, :], 0.0)
        total += away * away
    return tl.sum(total, 0)


@triton.jit
def store_tail(
    out, x, scale, offset, p, c, stride_p, stride_c,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Write the pooled (or all four) activations of ``x * scale + offset``."""
    y = ()
    for k in tl.static_range(4):
        y = y + (activate(x[k] * scale[None, :] + offset[None, :], SLOPE),)
    at = out + c[None, :] * stride_c
    if POOL == 0:
        for k in tl.static_range(4):
            pixel, _ = corner_inside(p, k, H, W, EXACT)
            mask = corner_mask(p, c, k, H, W, C, EXACT)
            tl.store(at + pixel[:, None] * stride_p, y[k].to(out.dtype.element_ty), mask=mask)
    else:
        # The last corner is inside just where all four are: an odd line at the end is left out.
        mask = corner_mask(p, c, 3, H, W, C, EXACT)
        row, column = p // ((W + 1) // 2), p % ((W + 1) // 2)
        tl.store(
            at + (row * (W // 2) + column)[:, None] * stride_p,
            pooled(y, POOL).to(out.dtype.element_ty),
            mask=mask,
        )


@triton.jit
def tail_forward(
    x, weight, bias, out, mean_out, rstd_out, out_stride_n, out_stride_p, out_stride_c, eps,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr,
    CHUNKS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Norm, activation and pooling of one image's maps ``x [H, W, C]`` and a block of channels;
    mean and 1/std ``[N, C]``.
    """
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    n = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    x += n * H * W * C
    out += n * out_stride_n
    here = c < C
    gain = tl.load(weight + c, mask=here, other=0.0)
    shift = tl.load(bias + c, mask=here, other=0.0)
    if CHUNKS == 1:
        values = load_corners(x, p, c, H, W, C, EXACT)
        mean = tl.sum(values[0] + values[1] + values[2] + values[3], 0) / (H * W)
        squares = centred_squares(values, mean, p, c, H, W, C, EXACT)
    else:
        mean = tl.zeros([BLOCK_C], tl.float32)
        for chunk in range(CHUNKS):
            values = load_corners(x, p + chunk * BLOCK_P, c, H, W, C, EXACT)
            mean += tl.sum(values[0] + values[1] + values[2] + values[3], 0)
        mean = mean / (H * W)
        squares = tl.zeros([BLOCK_C], tl.float32)
        for chunk in range(CHUNKS):
            values = load_corners(x, p + chunk * BLOCK_P, c, H, W, C, EXACT)
            squares += centred_squares(values, mean, p + chunk * BLOCK_P, c, H, W, C, EXACT)
    rstd = 1 / tl.sqrt(squares / (H * W) + eps)
    tl.store(mean_out + n * C + c, mean, mask=here)
    tl.store(rstd_out + n * C + c, rstd, mask=here)
    scale = rstd * gain
    offset = shift - mean * scale
    if CHUNKS == 1:
        store_tail(
            out, values, scale, offset, p, c,
            out_stride_p, out_stride_c, H, W, C, SLOPE, POOL, EXACT,
        )  # fmt: skip
    else:
        for chunk in range(CHUNKS):
            values = load_corners(x, p + chunk * BLOCK_P, c, H, W, C, EXACT)
            store_tail(
                out, values, scale, offset, p + chunk * BLOCK_P, c,
                out_stride_p, out_stride_c, H, W, C, SLOPE, POOL, EXACT,
            )  # fmt: skip


@triton.jit
def tail_gradients(
    x, grad, scale, offset, p, c, stride_p, stride_c,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Return the gradient of the norm's output at each corner, from ``grad``, that of the tail's output."""
    y = ()
    for k in tl.static_range(4):
        y = y + (x[k] * scale[None, :] + offset[None, :],)
    at = grad + c[None, :] * stride_c
    if POOL == 0:
        found = ()
        for k in tl.static_range(4):
            pixel, _ = corner_inside(p, k, H, W, EXACT)
            mask = corner_mask(p, c, k, H, W, C, EXACT)
            g = tl.load(at + pixel[:, None] * stride_p, mask=mask, other=0.0).to(tl.float32)
            found = found + (inactivate(y[k], g, SLOPE),)
        return found
    else:
        row, column = p // ((W + 1) // 2), p % ((W + 1) // 2)
        mask = corner_mask(p, c, 3, H, W, C, EXACT)
        g = tl.load(at + (row * (W // 2) + column)[:, None] * stride_p, mask=mask, other=0.0).to(
            tl.float32
        )
        return unpooled(y, g, SLOPE, POOL)


@triton.jit
def gradient_sums(x, g, mean):
    """Return the sums over positions of the gradients ``g``, and of these times the centred values."""
    with_x = g[0] * (x[0] - mean[None, :])
    for k in tl.static_range(1, 4):
        with_x += g[k] * (x[k] - mean[None, :])
    return tl.sum(g[0] + g[1] + g[2] + g[3], 0), tl.sum(with_x, 0)


@triton.jit
def store_gradients(
    grad_x, x, g, mean, scale, level, slope, p, c,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Write the norm's gradient: what remains of ``g`` beside its mean (``level``) and its share
    along the values (``slope``).
    """
    for k in tl.static_range(4):
        pixel, _ = corner_inside(p, k, H, W, EXACT)
        of_x = scale[None, :] * (g[k] - level[None, :] - (x[k] - mean[None, :]) * slope[None, :])
        mask = corner_mask(p, c, k, H, W, C, EXACT)
        tl.store(
            grad_x + pixel[:, None] * C + c[None, :], of_x.to(grad_x.dtype.element_ty), mask=mask
        )


@triton.jit
def tail_backward(
    x, weight, bias, mean_in, rstd_in, grad, grad_x, grad_weight, grad_bias, grad_stride_n, grad_stride_p,
    grad_stride_c,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, SLOPE: tl.constexpr, POOL: tl.constexpr,
    CHUNKS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Gradient of one image's maps and a block of channels; of weight and bias each image's part, ``[N, C]``."""
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    n = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    x += n * H * W * C
    grad_x += n * H * W * C
    grad += n * grad_stride_n
    here = c < C
    gain = tl.load(weight + c, mask=here, other=0.0)
    shift = tl.load(bias + c, mask=here, other=0.0)
    mean = tl.load(mean_in + n * C + c, mask=here, other=0.0)
    rstd = tl.load(rstd_in + n * C + c, mask=here, other=0.0)
    scale = rstd * gain
    offset = shift - mean * scale
    if CHUNKS == 1:
        values = load_corners(x, p, c, H, W, C, EXACT)
        g = tail_gradients(
            values, grad, scale, offset, p, c,
            grad_stride_p, grad_stride_c, H, W, C, SLOPE, POOL, EXACT,
        )  # fmt: skip
        of_bias, of_weight = gradient_sums(values, g, mean)
    else:
        of_bias = tl.zeros([BLOCK_C], tl.float32)
        of_weight = tl.zeros([BLOCK_C], tl.float32)
        for chunk in range(CHUNKS):
            q = p + chunk * BLOCK_P
            values = load_corners(x, q, c, H, W, C, EXACT)
            g = tail_gradients(
                values, grad, scale, offset, q, c,
                grad_stride_p, grad_stride_c, H, W, C, SLOPE, POOL, EXACT,
            )  # fmt: skip
            more_bias, more_weight = gradient_sums(values, g, mean)
            of_bias += more_bias
            of_weight += more_weight
    of_weight = of_weight * rstd
    tl.store(grad_bias + n * C + c, of_bias, mask=here)
    tl.store(grad_weight + n * C + c, of_weight, mask=here)
    level = of_bias / (H * W)
    slope = of_weight / (H * W) * rstd
    if CHUNKS == 1:
        store_gradients(grad_x, values, g, mean, scale, level, slope, p, c, H, W, C, EXACT)
    else:
        for chunk in range(CHUNKS):
            q = p + chunk * BLOCK_P
            values = load_corners(x, q, c, H, W, C, EXACT)
            g = tail_gradients(
                values, grad, scale, offset, q, c,
                grad_stride_p, grad_stride_c, H, W, C, SLOPE, POOL, EXACT,
            )  # fmt: skip
            store_gradients(grad_x, values, g, mean, scale, level, slope, q, c, H, W, C, EXACT)
