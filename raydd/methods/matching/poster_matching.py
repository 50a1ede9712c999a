"""Matching embeddings of a poster's windows: what moves is one image, and each class is seen in the windows
that show most of it (docs/methods/podd.md, "Posters of other methods").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost
from raydd.methods.matching.embedding_matching import EmbeddingMatching, Moments, Side
from raydd.methods.posters.poster_labels import hard_labels
from raydd.methods.posters.poster_layout import PosterLayout
from raydd.methods.posters.poster_start import poster_of


class WindowTable(NamedTuple):
    """The windows of each class: ids int64 ``[K, n]``, and weights ``[K, n, 1]`` of their features'
    mean; rows of classes with fewer are filled up with a window of zeros, of weight 0.
    """

    ids: Tensor
    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class PosterMatching(EmbeddingMatching):
    """A loop that moves a poster; all classes are one unit, its state the poster ``[1, C, H, W]`` and its momentum."""

    layout: PosterLayout

    @property
    def labels(self) -> Tensor:
        """The class int64 ``[P]`` of every window."""
        return hard_labels(self.layout, self.dataset.classes)

    @property
    def expansion(self) -> int:
        """Windows of the class that has most."""
        return int(self.labels.bincount().max())

    def facts(self, unit: str, device: torch.device) -> WindowTable:
        """Return the windows of each class."""
        labels, most = self.labels, self.expansion
        ids = torch.full((self.dataset.classes, most), len(labels))
        weights = torch.zeros(self.dataset.classes, most, 1)
        for label in range(self.dataset.classes):
            own = (labels == label).nonzero().flatten()
            ids[label, : len(own)] = own
            weights[label, : len(own)] = 1 / len(own)
        return WindowTable(ids.to(device), weights.to(device))

    def seen_of(self, images: Tensor, count: int, facts: WindowTable) -> Tensor:
        """Return the windows of each class, ``[K, n, C, h, w]``."""
        windows = self.layout.windows.cut(images[0])
        # Every window is taken once; only the zeros are taken several times, and nothing of them is kept.
        windows = torch.cat([windows, torch.zeros_like(windows[:1])])
        return windows[facts.ids.flatten()].unflatten(0, facts.ids.shape)

    def objective(self, features: Tensor, real: Moments, side: Side) -> Tensor:
        """Return the objective of the mean features of each class's windows."""
        means = (features * side.facts.weights.to(features.dtype)).sum(1, keepdim=True)
        return super().objective(means, real, side)

    def cost(self, unit: str) -> Cost:
        """Return the cost of all classes, with the bytes of the poster."""
        poster = 4 * self.dataset.channels * self.layout.height * self.layout.width
        labels = 8 * self.layout.windows.count
        return replace(super().cost(unit), state_bytes=2 * poster, output_bytes=poster + labels)

    def start(self, block: Sequence[int], ctx: Context) -> Tensor:
        """Return the first poster: one real image of each class, or normal noise, in the class's area,
        faded into its neighbours.
        """
        places = {label: place for place, label in enumerate(block)}
        areas = super().start(block, ctx)[[places[label] for label in self.layout.order]]
        return poster_of(areas, self.layout)

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the poster and its windows' classes."""
        return {"images": state["images"], "labels": self.labels}
