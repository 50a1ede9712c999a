"""What posters are before the first update: an area of each class, faded into its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raydd.artifacts.poster_geometry import fade
from raydd.methods.posters.poster_layout import PosterLayout


def noise_areas(count: int, shape: tuple[int, int, int], draws: torch.Generator) -> Tensor:
    """Return areas ``[count, C, h, w]`` of norm 1: a normal centre of each class, and one normal
    draw about it, whose deviation is a quarter of the smallest distance between two centres.
    """
    channels, height, width = shape
    centres = torch.randn(count, channels * height * width, generator=draws)
    spread = float(F.pdist(centres).min()) / 4 if count > 1 else 1.0
    flat = centres + spread * torch.randn(centres.shape, generator=draws)
    flat = flat / flat.norm(dim=1, keepdim=True)
    return flat.view(count, channels, height, width)


def poster_of(areas: Tensor, layout: PosterLayout) -> Tensor:
    """Return the poster ``[1, C, H, W]`` of its areas ``[classes, C, h, w]``, row after row; areas of
    another size are brought to theirs.
    """
    grid = layout.class_areas
    if areas.shape[2:] != (grid.height, grid.width):
        areas = F.interpolate(
            areas, (grid.height, grid.width), mode="bilinear", align_corners=False, antialias=True
        )
    return fade(areas, grid.columns, layout.height, layout.width).unsqueeze(0)


def noise_poster(layout: PosterLayout, channels: int, draws: torch.Generator) -> Tensor:
    """Return the poster ``[1, C, H, W]`` that PoDD starts from: :func:`noise_areas`."""
    grid = layout.class_areas
    shape = (channels, grid.height, grid.width)
    return poster_of(noise_areas(grid.count, shape, draws), layout)
