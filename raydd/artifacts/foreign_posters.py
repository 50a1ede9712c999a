"""Posters in files of others: the labels of their windows, or a map of them, as the set keeps them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from raydd.artifacts.poster_geometry import WindowGrid, pooled_labels
from raydd.artifacts.reading import Tell, targets_of
from raydd.artifacts.windows import LABEL_MAP
from raydd.core.errors import ConfigError, DataError
from raydd.core.tensors import Tensors


def windows_from(value: str | Sequence[int] | None) -> tuple[int, int] | None:
    """Return columns and rows of windows of a text such as ``16x6``, or of two numbers; ``ConfigError``
    for anything else.
    """
    if value is None:
        return None
    if isinstance(value, str):
        found = re.fullmatch(r"(\d{1,4})[x×,](\d{1,4})", value.strip())
        sides = [int(side) for side in found.groups()] if found else []
    else:
        sides = [*value] if isinstance(value, (list, tuple)) else []
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ConfigError(
            f"windows: {value!r} must be columns and rows of windows, such as 16x6 or (16, 6)"
        )
    return sides[0], sides[1]


def one_poster(images: Tensor) -> Tensor:
    """Return a poster ``[1, C, H, W]``, which a file may hold as ``[C, H, W]``."""
    return images.unsqueeze(0) if images.ndim == 3 else images


def poster_targets(
    images: Tensor,
    labels: Tensor,
    grid: WindowGrid,
    classes: int,
    kind: str | None,
    where: str,
    tell: Tell,
) -> tuple[Tensor, Tensor | None, Tensors]:
    """Return hard labels int64 ``[P]`` of the windows, their soft labels ``[P, classes]`` where the file
    has some, and what else the decoder reads.

    ``labels``: a number or a table's row for each window, or a label map ``[classes, rows, columns]``,
    perhaps with a batch axis. ``DataError`` for what is neither.
    """
    if labels.ndim not in (3, 4):
        hard, soft = targets_of(labels, classes, kind, where, tell)
        return hard, soft, {}
    if labels.ndim == 4 and len(labels) == 1:
        labels = labels[0]
    label_map = labels.float()
    if label_map.ndim != 3 or len(label_map) != classes or not label_map.numel():
        raise DataError(
            f"{where}: a label map must be [{classes}, rows, columns], not {list(labels.shape)}"
        )
    if not bool(torch.isfinite(label_map).all()) or float(label_map.min()) < 0:
        raise DataError(f"{where}: NaN, infinity or values below 0 in the label map")
    empty = int((label_map.sum(0) == 0).sum())
    if empty:
        tell(f"labels: {where}: {empty} cells of the label map hold nothing but zeros")
    height, width = images.shape[2:]
    hard = pooled_labels(label_map, grid, (height, width)).argmax(1)
    return hard, None, {LABEL_MAP: label_map}
