"""How large a poster is, and where its windows and its classes' areas lie (docs/methods/podd.md, "Size")."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raydd.artifacts.decoding import Decoding
from raydd.artifacts.poster_geometry import WindowGrid
from raydd.artifacts.windows import Windows
from raydd.core.errors import ConfigError
from raydd.data.catalog import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class PosterLayout:
    """A poster of ``height`` × ``width`` pixels.

    ``windows``: what students see of it. ``class_areas``: the areas of the classes, in ``columns``
    and ``rows``. ``order``: the class of each area, row after row (empty: not asked for yet).
    """

    height: int
    width: int
    windows: WindowGrid
    class_areas: WindowGrid
    order: tuple[int, ...] = ()

    @property
    def decoding(self) -> Decoding:
        """How a set of the poster is decoded."""
        grid = self.windows
        size = {"height": grid.height, "width": grid.width}
        return Decoding(Windows.name, {**size, "windows": [grid.columns, grid.rows]})


def budget(info: DatasetInfo, ipc: float) -> int:
    """Return the pixels that ``ipc`` images of each class have."""
    # 0.7 is a little less than seven tenths in binary, and 0.7 images of 10,240 pixels are 7,168.
    return math.floor(ipc * info.classes * info.height * info.width + 1e-6)


def poster_sides(info: DatasetInfo, ipc: float, columns: int, rows: int) -> tuple[int, int]:
    """Return height and width of the poster of ``ipc`` images per class, whose classes stand in
    ``columns`` and ``rows``: the height of ``sqrt(ipc)`` times all rows, rounded down, and as wide as
    the pixels suffice for; square, where the areas are as many both ways and images square.
    """
    pixels = budget(info, ipc)
    if columns == rows and info.height == info.width:
        side = math.isqrt(pixels)
        return side, side
    height = math.floor(math.sqrt(ipc) * rows * info.height + 1e-9)
    return height, (pixels // height if height else 0)


def least_ipc(info: DatasetInfo, columns: int, rows: int) -> float:
    """Return the smallest ``ipc``, in hundredths, whose poster is no smaller than an image."""
    for hundredths in range(1, 101):
        height, width = poster_sides(info, hundredths / 100, columns, rows)
        if height >= info.height and width >= info.width:
            return hundredths / 100
    return 1.0


def class_grid(classes: int) -> tuple[int, int]:
    """Return the columns and rows in which ``classes`` stand: as square as may be, and no higher than wide."""
    rows = next(r for r in range(math.isqrt(classes), 0, -1) if classes % r == 0)
    return classes // rows, rows


def check_pixels(info: DatasetInfo, ipc: float, height: int, width: int) -> None:
    """Raise ``ConfigError`` for a poster of more pixels than ``ipc`` images per class have."""
    if height * width > budget(info, ipc):
        least = height * width / (info.classes * info.height * info.width)
        raise ConfigError(
            f"method.poster: {width}×{height} pixels are {height * width:,}; ipc={ipc:g} allows {budget(info, ipc):,}"
            f" (the poster is one of ipc={math.ceil(1000 * least) / 1000:g})"
        )
