"""Winograd's 3x3 convolution, F(4x4, 3x3): a quarter of the multiplications (Lavin and Gray, arXiv 1509.09308).

Maps are channels-last, ``[N, H, W, C]``. A map is cut into 6x6 tiles that overlap by two pixels;
tiles and kernels are brought to 36 points by small fixed linear maps, at each point one matrix
product over channels takes the place of nine, and a last linear map gives 4x4 outputs. Written as
plain tensor operations, which ``torch.compile`` fuses to one loop before and one after the
products. Relative error in float32 about 2e-6 (direct: 4e-7), since the transforms multiply by up
to 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4
"""Outputs per side of a tile."""

_LEAST_CHANNELS = 32
"""With fewer channels, in or out, the transforms cost what the products save."""

# Rows: the polynomial of a kernel's three taps at 0, 1, -1, 2, -2 and infinity, with the constant
# factors of all three maps.
_KERNEL = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)


def suits(conv: nn.Module) -> bool:
    """Return whether a layer is a convolution that :func:`convolve` can do, and do faster than directly."""
    if (
        not isinstance(conv, nn.Conv2d)
        or conv.padding_mode != "zeros"
        or isinstance(conv.padding, str)
    ):
        return False
    plain = (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.groups == 1
    )
    return plain and min(conv.in_channels, conv.out_channels) >= _LEAST_CHANNELS


def _kernel_map(like: Tensor) -> Tensor:
    one = torch.tensor(_KERNEL, dtype=torch.float64)
    return torch.kron(one, one).to(like.device, like.dtype)


def transform_kernel(weight: Tensor) -> Tensor:
    """Return ``[36, C, O]`` for kernels ``weight [O, C, 3, 3]``."""
    out_channels, channels = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, channels * out_channels)
    return (_kernel_map(weight) @ taps).view(36, channels, out_channels)


def _points(d: Sequence[Tensor]) -> list[Tensor]:
    """Return the six points of six neighbouring pixels, along one axis."""
    even, odd = d[4] - 4 * d[2], d[3] - 4 * d[1]
    wide_even, wide_odd = d[4] - d[2], 2 * (d[3] - d[1])
    last = 4 * d[1] - 5 * d[3] + d[5]
    return [
        4 * d[0] - 5 * d[2] + d[4],
        even + odd,
        even - odd,
        wide_even + wide_odd,
        wide_even - wide_odd,
        last,
    ]


def _pixels(m: Sequence[Tensor]) -> list[Tensor]:
    """Return the four outputs of six points, along one axis."""
    near, near_odd, far, far_odd = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [
        m[0] + near + far,
        near_odd + 2 * far_odd,
        near + 4 * far,
        near_odd + 8 * far_odd + m[5],
    ]


def convolve(
    x: Tensor,
    kernel: Tensor,
    padding: tuple[int, int] = (1, 1),
    before: Callable[..., Tensor] | None = None,
    after: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Return the stride-1 3x3 convolution ``[N, H', W', O]`` of ``x [N, H, W, C]`` with zeros around it.

    ``kernel``: what :func:`transform_kernel` returned, ``[36, C, O]``. Sides that are no multiple
    of 4 are filled up with zeros. ``before``, ``after``: compiled forms of :func:`to_points` and
    :func:`from_points`.
    """
    count, height, width, channels = x.shape
    high, wide = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    down, across = -(-high // TILE), -(-wide // TILE)
    right, bottom = across * TILE + 2 - width - padding[1], down * TILE + 2 - height - padding[0]
    x = F.pad(x, (0, 0, padding[1], right, padding[0], bottom))
    points = (before or to_points)(x).view(count * down * across, 36, channels).transpose(0, 1)
    products = torch.bmm(points, kernel).view(6, 6, count, down, across, -1)
    return (after or from_points)(products)[:, :high, :wide]


def to_points(x: Tensor) -> Tensor:
    """Return ``[N, down, across, 36, C]`` for ``x [N, 4 * down + 2, 4 * across + 2, C]``.

    A tile's points lie together: 36 places a power of two apart would share one cache set (measured: 1.4 times slower).
    """
    down, across = x.shape[1] // TILE, x.shape[2] // TILE
    ends = (TILE * down - 3, TILE * across - 3)
    pixels = [
        [x[:, i : i + ends[0] : TILE, j : j + ends[1] : TILE] for j in range(6)] for i in range(6)
    ]
    along_rows = [_points(row) for row in pixels]
    both = [_points([row[j] for row in along_rows]) for j in range(6)]
    return torch.stack([both[j][i] for i in range(6) for j in range(6)], 3)


def from_points(products: Tensor) -> Tensor:
    """Return the outputs ``[N, 4 * down, 4 * across, O]`` of products ``[6, 6, N, down, across, O]``."""
    _, _, count, down, across, channels = products.shape
    along_rows = [_pixels(list(products[i])) for i in range(6)]
    both = [_pixels([row[j] for row in along_rows]) for j in range(TILE)]
    rows = [torch.stack([both[j][i] for j in range(TILE)], 3) for i in range(TILE)]
    return torch.stack(rows, 2).view(count, TILE * down, TILE * across, channels)


class WinogradConv2d(nn.Conv2d):
    """A convolution done by :func:`convolve`; parameters, input and output are those of ``nn.Conv2d``."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of ``input [B, C, H, W]``."""
        padding = (int(self.padding[0]), int(self.padding[1]))
        out = convolve(input.permute(0, 2, 3, 1), transform_kernel(self.weight), padding)
        return (out if self.bias is None else out + self.bias).permute(0, 3, 1, 2)


OPTIONS: dict[str, Any] = {
    # A transform's 36 points are one loop: the compiler is not to write out what lies between them,
    # nor to cut the loop.
    "realize_reads_threshold": 100,
    "realize_opcount_threshold": 1000,
    "realize_acc_reads_threshold": 100,
    "max_pointwise_cat_inputs": 0,
    "cpp.max_horizontal_fusion_size": 64,
}
"""What ``torch.compile`` needs to fuse the transforms."""
