"""DSA's six operations on groups of images that share their numbers (docs/methods/dc_dsa.md, "Operations of DSA").

All take ``x [G, n, C, H, W]`` and ``values [G, k]`` (CPU, float64): group g's n images share row g.
Outside the image is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.augment import sampling

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def apply_operation(operation: str, x: Tensor, values: Tensor) -> Tensor:
    """Return the images after one operation."""
    if operation == "color":
        return color(x, values)
    if operation == "crop":
        return crop(x, values)
    if operation == "cutout":
        return cutout(x, values)
    if operation == "flip":
        return flip(x, values)
    if operation == "scale":
        return scale(x, values)
    return sampling.rotate(x, values[:, 0])


def _column(values: Tensor, i: int, x: Tensor) -> Tensor | float:
    """Return column ``i`` as a number (one group) or as ``[G, 1, 1, 1, 1]`` beside ``x``."""
    if len(values) == 1:
        return float(values[0, i])
    return values[:, i].to(x.device, x.dtype).view(-1, 1, 1, 1, 1)


def color(x: Tensor, values: Tensor) -> Tensor:
    """Brightness (added), saturation (distance from the mean over channels), contrast (from the
    image's mean), in this order.

    Brightness moves both means and saturation neither, so the three are one affine map of the pixel and its two means.
    """
    brightness, saturation, contrast = (_column(values, i, x) for i in range(3))
    offset = x.flatten(2).mean(2).view(*x.shape[:2], 1, 1, 1) * (1 - contrast) + brightness
    if x.shape[2] == 1:
        return _scaled(x, contrast, offset)
    grey = x.mean(2, keepdim=True)
    return _scaled(x, saturation * contrast, _scaled(grey, (1 - saturation) * contrast, offset))


def _scaled(x: Tensor, factor: Tensor | float, offset: Tensor) -> Tensor:
    """Return ``x * factor + offset`` in one pass."""
    return (
        torch.addcmul(offset, x, factor)
        if isinstance(factor, Tensor)
        else torch.add(offset, x, alpha=factor)
    )


def crop(x: Tensor, values: Tensor) -> Tensor:
    """Shift by whole pixels: ``out[i, j] = x[i + ty, j + tx]``."""
    if len(values) == 1:
        return shift_all(x, int(values[0, 0]), int(values[0, 1]))
    if len(values) <= 64 and x.shape[1] > 1:
        return torch.cat(
            [
                shift_all(part, int(v[0]), int(v[1]))
                for part, v in zip(x.split(1), values, strict=True)
            ]
        )
    return sampling.shift(x, values.to(x.device, torch.int64))


def shift_all(x: Tensor, ty: int, tx: int) -> Tensor:
    """Shift all images alike."""
    height, width = x.shape[-2:]
    inside = x[..., max(ty, 0) : height + min(ty, 0), max(tx, 0) : width + min(tx, 0)]
    return F.pad(inside, (max(-tx, 0), max(tx, 0), max(-ty, 0), max(ty, 0)))


def cutout(x: Tensor, values: Tensor) -> Tensor:
    """Set rows ``first..last`` and columns ``first..last`` (inclusive) to zero."""
    if len(values) == 1:
        top, bottom, left, right = (int(edge) for edge in values[0])
        mask = torch.ones(x.shape[3:], dtype=x.dtype)
        mask[top : bottom + 1, left : right + 1] = 0
        return x * mask.to(x.device)
    edges = values.to(x.device, torch.int64).unsqueeze(-1)
    rows = torch.arange(x.shape[3], device=x.device)
    columns = torch.arange(x.shape[4], device=x.device)
    in_rows = (rows >= edges[:, 0]) & (rows <= edges[:, 1])
    in_columns = (columns >= edges[:, 2]) & (columns <= edges[:, 3])
    keep = ~(in_rows.unsqueeze(2) & in_columns.unsqueeze(1))
    return x * keep[:, None, None].to(x.dtype)


def flip(x: Tensor, values: Tensor) -> Tensor:
    """Mirror left to right the groups whose number is 1."""
    if len(values) == 1:
        return x.flip(-1) if values[0, 0] else x
    chosen = values.to(x.device).bool().view(-1, 1, 1, 1, 1)
    return torch.where(chosen, x.flip(-1), x)


def scale(x: Tensor, values: Tensor) -> Tensor:
    """Sample bilinearly at ``centre + s * (pixel - centre)``, s for x and for y: a small matrix
    product along each axis.
    """
    groups, n, channels, height, width = x.shape
    along_x, along_y = _scale_matrices(values.to(x.device), height, width, x.dtype)
    x = torch.bmm(x.reshape(groups, n * channels * height, width), along_x).view(
        groups, n * channels, height, width
    )
    return torch.matmul(along_y.transpose(1, 2).unsqueeze(1), x).view(
        groups, n, channels, height, width
    )


def _scale_matrices(
    factors: Tensor, height: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return ``[G, W, W]`` and ``[G, H, H]``: column j holds the bilinear weights of the pixels
    that output pixel j reads.
    """
    if height == width:
        both = _triangles(factors, width).to(dtype)
        return both[:, 0], both[:, 1]
    return _triangles(factors[:, 0], width).to(dtype), _triangles(factors[:, 1], height).to(dtype)


def _triangles(factors: Tensor, side: int) -> Tensor:
    pixel = torch.arange(side, device=factors.device, dtype=factors.dtype) - (side - 1) / 2
    distance = factors[..., None, None] * pixel - pixel.unsqueeze(1)
    return (1 - distance.abs()).clamp_(min=0)
