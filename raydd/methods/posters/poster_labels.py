"""The labels of a poster's windows: fixed, by the areas that they show, or pooled from a label map
that is learnt (PoDDL; docs/methods/podd.md, "Labels").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raydd.artifacts.poster_geometry import window_starts
from raydd.core.errors import ConfigError
from raydd.methods.posters.poster_layout import PosterLayout


def area_pixels(layout: PosterLayout, classes: int) -> Tensor:
    """Return how many pixels of each class's area each window shows, int64 ``[P, classes]``."""
    grid, areas = layout.windows, layout.class_areas
    across = _overlaps(layout.width, grid.width, grid.columns, areas.width, areas.columns)
    down = _overlaps(layout.height, grid.height, grid.rows, areas.height, areas.rows)
    shown = (across[:, None, None, :] * down[None, :, :, None]).flatten(0, 1).flatten(1)
    found = torch.zeros(grid.count, classes, dtype=torch.int64)
    found[:, torch.tensor(layout.order)] = shown
    return found


def hard_labels(layout: PosterLayout, classes: int) -> Tensor:
    """Return the class int64 ``[P]`` of which each window shows most, of equals the lowest."""
    return area_pixels(layout, classes).argmax(1)


def check_hard_labels(layout: PosterLayout, classes: int) -> None:
    """Raise ``ConfigError`` if some class is the first of no window."""
    found = set(hard_labels(layout, classes).tolist())
    lost = [label for label in range(classes) if label not in found]
    if lost:
        raise ConfigError(
            f"method.poster.windows: no window shows more of class {lost[0]} than of others ({len(lost)} classes are"
            " so); more windows are needed"
        )


def _overlaps(length: int, window: int, windows: int, area: int, areas: int) -> Tensor:
    """Return the pixels that each window and each area share along one side, int64 ``[windows, areas]``."""
    begins = torch.tensor(window_starts(length, window, windows)).view(-1, 1)
    others = torch.tensor(window_starts(length, area, areas)).view(1, -1)
    ends = torch.minimum(begins + window, others + area)
    return (ends - torch.maximum(begins, others)).clamp_min(0)


def fixed_labels(layout: PosterLayout, classes: int) -> Tensor:
    """Return the soft labels float32 ``[P, classes]`` of the windows: the softmax of
    :func:`area_pixels`, one-hot but where a window shows as much of two classes.
    """
    return area_pixels(layout, classes).to(torch.float32).softmax(1)


def label_map_cells(layout: PosterLayout, rule: str, ipc: float) -> tuple[int, int]:
    """Return rows and columns of a poster's label map of at most ``ipc`` labels per class.

    ``rule``: ``grid``, in which every class has a cell; ``published``, that of the published code, which
    refuses what fits exactly and rounds what is nearly whole (docs/methods/podd.md, "Label maps").
    """
    columns, rows = layout.class_areas.columns, layout.class_areas.rows
    most = layout.class_areas.count * ipc
    factor = 1 / math.sqrt(layout.height * layout.width / most)
    a, b = layout.height * factor, layout.width * factor
    if rule == "published":
        chosen, best = (math.ceil(a), math.ceil(b)), math.inf
        for cells in _around(a, b):
            left = most - cells[0] * cells[1]
            if 0 < left < best:
                chosen, best = cells, left
        return chosen
    if ipc == 1:
        return rows, columns
    whole = (_snapped(a), _snapped(b))
    fitting = [
        c for c in _around(*whole) if c[0] * c[1] <= most and c[0] >= rows and c[1] >= columns
    ]
    return max(fitting, key=math.prod, default=(rows, columns))


def _snapped(value: float) -> float:
    return float(round(value)) if abs(value - round(value)) < 1e-9 else value


def _around(a: float, b: float) -> list[tuple[int, int]]:
    """Return the whole numbers around two others, in the order in which the published code tries them."""
    up, down = (math.ceil(a), math.ceil(b)), (math.floor(a), math.floor(b))
    return [up, (up[0], down[1]), (down[0], up[1]), down]


def first_label_map(layout: PosterLayout, cells: tuple[int, int]) -> Tensor:
    """Return a label map float32 ``[classes, rows, columns]`` whose cells are each wholly of the
    class of their area.
    """
    rows, columns = cells
    areas = layout.class_areas
    down, across = _splits(rows, areas.rows), _splits(columns, areas.columns)
    found = torch.zeros(len(layout.order), rows, columns)
    for place, label in enumerate(layout.order):
        j, i = divmod(place, areas.columns)
        found[label, down[j] : down[j + 1], across[i] : across[i + 1]] = 1
    return found


def _splits(length: int, parts: int) -> tuple[int, ...]:
    """Return where equal parts of a length begin and end, rounded, halves to even."""
    return window_starts(length, 0, parts + 1)
