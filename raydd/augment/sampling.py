"""Rotation and whole-pixel shifts of groups of images ``[G, n, C, H, W]``; outside the image is 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift(x: Tensor, by: Tensor) -> Tensor:
    """Return ``out[g, …, i, j] = x[g, …, i + by[g, 0], j + by[g, 1]]``; ``by`` int64 ``[G, 2]``."""
    height, width = x.shape[3:]
    rows = torch.arange(height, device=by.device).view(1, -1, 1) + by[:, 0].view(-1, 1, 1)
    columns = torch.arange(width, device=by.device).view(1, 1, -1) + by[:, 1].view(-1, 1, 1)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    pixels = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    flat = x.reshape(x.shape[0], -1, height * width)
    read = flat.gather(2, pixels.flatten(1).unsqueeze(1).expand(-1, flat.shape[1], -1))
    return (read * inside.flatten(1).unsqueeze(1)).reshape(x.shape)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Return the groups' images, each turned about its centre by its angle (radians, ``[G]``), bilinearly.

    ``out[i, j] = x[cy + sin (j - cx) + cos (i - cy), cx + cos (j - cx) - sin (i - cy)]``. On a GPU
    the derivative adds with atomics; what has to be repeatable there takes
    :mod:`raydd.augment.table`.
    """
    groups, n, channels, height, width = x.shape
    i = _from_centre(height, angles).view(1, -1, 1)
    j = _from_centre(width, angles).view(1, 1, -1)
    sin, cos = torch.sin(angles).view(-1, 1, 1), torch.cos(angles).view(-1, 1, 1)
    rows = (height - 1) / 2 + sin * j + cos * i
    columns = (width - 1) / 2 + cos * j - sin * i
    # The sampler's coordinates are -1 and 1 at the outer edges of the outer pixels (align_corners=False).
    grid = torch.stack(
        [columns.mul_(2 / width).add_(1 / width - 1), rows.mul_(2 / height).add_(1 / height - 1)],
        -1,
    )
    # A group's images as channels of one: the weights are computed once.
    merged = x.reshape(groups, n * channels, height, width)
    return F.grid_sample(merged, grid.to(x.device, x.dtype), align_corners=False).view(x.shape)


def _from_centre(side: int, angles: Tensor) -> Tensor:
    return torch.arange(side, device=angles.device, dtype=angles.dtype) - (side - 1) / 2
