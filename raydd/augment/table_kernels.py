"""The weighted gather of :mod:`raydd.augment.table` as one Triton kernel for CUDA: each image is
read and written once, with no atomics.
"""

# Arguments of kernels have no types: they are addresses and numbers.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _PIXELS = 8, 256
"""Maps and pixels of a program; what a pixel reads is loaded once for all its maps."""


@triton.jit(do_not_specialize=("maps", "size", "parts", "pieces"))
def _gather(
    x,
    pixels,
    weights,
    out,
    maps,
    size,
    parts,
    pieces,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Write ``PIXELS`` pixels of ``ROWS`` maps of a group."""
    program = tl.program_id(0)
    group = (program // (parts * pieces)).to(tl.int64)
    row = (program // pieces) % parts * ROWS + tl.arange(0, ROWS)
    pixel = program % pieces * PIXELS + tl.arange(0, PIXELS)
    inside = (row < maps)[:, None] & (pixel < size)[None, :]
    start = (group * maps + row)[:, None] * size
    total = tl.zeros([ROWS, PIXELS], x.dtype.element_ty)
    for t in tl.static_range(TAPS):
        place = (group * TAPS + t) * size + pixel
        read = tl.load(pixels + place, mask=pixel < size, other=0)
        weight = tl.load(weights + place, mask=pixel < size, other=0.0)
        total += tl.load(x + start + read[None, :], mask=inside, other=0.0) * weight[None, :]
    tl.store(out + start + pixel[None, :], total, mask=inside)


def gather(x: Tensor, pixels: Tensor, weights: Tensor) -> Tensor:
    """Return ``out[g, m, q] = sum_t weights[g, t, q] x[g, m, pixels[g, t, q]]``: ``x [G, M, Q]``,
    the others ``[G, T, Q]``.
    """
    groups, maps, size = x.shape
    out = torch.empty(groups, maps, size, dtype=x.dtype, device=x.device)
    rows = min(_ROWS, triton.next_power_of_2(maps))
    parts, pieces = triton.cdiv(maps, rows), triton.cdiv(size, _PIXELS)
    _gather[(groups * parts * pieces,)](
        x.contiguous(), pixels.contiguous(), weights.contiguous(), out, maps, size, parts, pieces,
        TAPS=pixels.shape[1], ROWS=rows, PIXELS=_PIXELS,
    )  # fmt: skip
    return out
