"""The decoder of posters: what students see of one large stored image are windows of it, which overlap.

PoDD, arXiv 2403.12040; docs/methods/podd.md, "Windows".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.artifacts.decoding import Decoder, Shape, Space, as_stored, register_decoder
from raydd.artifacts.poster_geometry import WindowGrid, pooled_labels
from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.data.catalog import DatasetInfo

LABEL_MAP = "label_map"
"""The tensor ``[classes, rows, columns]`` from which the windows' soft labels are pooled; there where it is learnt."""


@register_decoder("windows")
@dataclass(frozen=True, kw_only=True)
class Windows(Decoder):
    """Windows of ``height`` × ``width`` pixels of one poster ``[1, C, H, W]``.

    ``windows``: how many columns and rows of them. ``labels`` int64 ``[P]`` and ``soft_labels``
    ``[P, classes]`` are the windows'; in place of the latter a :data:`LABEL_MAP` may stand.
    """

    height: int
    width: int
    windows: tuple[int, int]

    def __post_init__(self) -> None:
        if not isinstance(self.windows, tuple) or len(self.windows) != 2:
            raise ConfigError(
                f"windows: {self.windows!r} must be two whole numbers: columns and rows of windows"
            )
        self.grid  # noqa: B018 - refuses numbers that are none

    @property
    def grid(self) -> WindowGrid:
        """Where the windows lie."""
        columns, rows = self.windows
        return WindowGrid(height=self.height, width=self.width, columns=columns, rows=rows)

    def reads(self, name: str) -> bool:
        """Return whether it is the label map."""
        return name == LABEL_MAP

    def check(self, tensors: Tensors, info: DatasetInfo) -> None:
        """Refuse what is no poster, or has no label for each of its windows."""
        images, labels = tensors["images"], tensors["labels"]
        self.check_images(tensors, info)
        if len(images) != 1:
            raise ConfigError(
                f"decoding 'windows' is of one poster [1, C, H, W], not of {len(images)}"
            )
        grid = self.grid
        grid.check(*images.shape[2:])
        if len(labels) != grid.count:
            raise ConfigError(
                f"{grid.columns}×{grid.rows} windows but {len(labels)} labels: one of each is needed"
            )
        label_map = tensors.get(LABEL_MAP)
        if label_map is None:
            return
        if "soft_labels" in tensors:
            raise ConfigError("a poster has soft labels or a label map, not both")
        fits = label_map.is_floating_point() and label_map.ndim == 3
        if not fits or len(label_map) != info.classes or not label_map.numel():
            raise ConfigError(
                f"a label map must be float [{info.classes}, rows, columns], not {label_map.dtype}"
                f" {list(label_map.shape)}"
            )
        if bool((label_map < 0).any()):
            raise ConfigError("a label map must be at least 0 everywhere")

    def shape(self, tensors: Tensors) -> Shape:
        """Return the channels and the size of a window."""
        return tensors["images"].shape[1], self.height, self.width

    def count(self, tensors: Tensors) -> int:
        """Return the number of windows."""
        return self.grid.count

    def rows(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Return zeros: all windows are of the one poster."""
        return torch.zeros_like(ids)

    def take(self, tensors: Tensors, ids: Tensor | None = None, space: Space = as_stored) -> Tensor:
        """Return windows, pixels as pixels."""
        return self.grid.cut(tensors["images"][0], ids)

    def labels(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Return the windows' hard labels."""
        return tensors["labels"][ids]

    def targets(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Return the windows' soft labels, pooled from the label map where there is one, else hard ones."""
        if LABEL_MAP in tensors:
            height, width = tensors["images"].shape[2:]
            return pooled_labels(tensors[LABEL_MAP], self.grid, (height, width), ids)
        return tensors.get("soft_labels", tensors["labels"])[ids]

    def soft(self, tensors: Tensors) -> bool:
        """Return whether there are soft labels, or a map of them."""
        return LABEL_MAP in tensors or super().soft(tensors)

    def undone(self, images: Tensor, undo: Space) -> Tensor:
        """Return images of which ``undo``, which takes seen ones, takes something back: of a poster
        window by window, faded together, within four deviations of the mean.
        """
        if images.shape[2:] == (self.height, self.width):
            return undo(images)
        height, width = images.shape[2:]
        windows = (undo(self.grid.cut(poster)) for poster in images)
        whole = torch.stack([self.grid.faded(part, height, width) for part in windows])
        mean, deviation = whole.mean(), whole.std()
        return whole.clamp(mean - 4 * deviation, mean + 4 * deviation)
