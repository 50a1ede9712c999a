"""The settings of a poster, and the layout that they come to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from raydd.artifacts.decoding import SetSize
from raydd.artifacts.poster_geometry import WindowGrid, least_windows
from raydd.core.errors import ConfigError
from raydd.data.catalog import DatasetInfo
from raydd.methods.posters.class_order import class_order
from raydd.methods.posters.poster_layout import (
    PosterLayout,
    check_pixels,
    class_grid,
    least_ipc,
    poster_sides,
)

PER_AREA = 3
"""Windows along each side of a class's area, where a job does not say how many there are."""


@dataclass(frozen=True, kw_only=True)
class PosterConfig:
    """A poster.

    ``width``, ``height``: its pixels (null: those of the size rule, from ``ipc``); both or none.
    ``windows``: how many columns and rows of windows, each as large as an image (null: three for
    each class, both ways; one under DM). ``class_grid``: in how many columns and rows the classes stand (null: as
    square as may be, wider than high). ``class_area``: width and height of a class's area (null:
    those of an image). ``order``: which class stands where: ``labels``, row after row; ``poco``,
    such that classes of like names are neighbours (needs open_clip, else ``labels``, which is said);
    or the path or URL of a file of an order, or of the classes' embeddings.
    """

    width: Annotated[int, Ge(1)] | None = None
    height: Annotated[int, Ge(1)] | None = None
    windows: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] | None = None
    class_grid: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] | None = None
    class_area: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] | None = None
    order: str = "labels"

    def __post_init__(self) -> None:
        if (self.width is None) != (self.height is None):
            raise ConfigError("poster: width and height are given together, or neither")

    def layout(self, info: DatasetInfo, ipc: float, per_area: int = PER_AREA) -> PosterLayout:
        """Return the layout of a data set's poster; ``ConfigError`` for a grid of other than its
        classes, for windows that do not tile it, for a poster that is smaller than a window, or has
        more pixels than ``ipc`` images per class. ``per_area``: windows along each side of a class's
        area, where the job does not say how many there are.
        """
        return _layout(self, info, ipc, per_area)

    def ordered(self, info: DatasetInfo, ipc: float, per_area: int = PER_AREA) -> PosterLayout:
        """Return the layout with the order of its classes, which may need files or packages of this machine."""
        layout = self.layout(info, ipc, per_area)
        areas = layout.class_areas
        return replace(layout, order=class_order(self.order, info, areas.columns, areas.rows).order)

    def settled(
        self, info: DatasetInfo, ipc: float, per_area: int = PER_AREA
    ) -> dict[str, dict[str, Any]]:
        """Return the poster's size, the order of its classes, row after row, and its windows, as JSON values."""
        layout = self.layout(info, ipc, per_area)
        areas = layout.class_areas
        found = class_order(self.order, info, areas.columns, areas.rows)
        rows = [
            list(found.order[i : i + areas.columns]) for i in range(0, areas.count, areas.columns)
        ]
        size = {
            "width": layout.width,
            "height": layout.height,
            "windows": layout.windows.count,
        }
        return {"poster": {**size, "class_order_from": found.origin, "class_order": rows}}

    def size(
        self,
        info: DatasetInfo,
        ipc: float,
        label_bytes: int = 0,
        whitening: int = 0,
        per_area: int = PER_AREA,
    ) -> SetSize:
        """Return the size of a set of one float poster and a hard label for each window, beside
        ``label_bytes`` of others and the bytes of a ``whitening``.
        """
        layout = self.layout(info, ipc, per_area)
        poster = 4 * info.channels * layout.height * layout.width
        held = poster + 8 * layout.windows.count + label_bytes + whitening
        return SetSize(1, layout.windows.count, held, whitening)


@lru_cache(maxsize=256)
def _layout(config: PosterConfig, info: DatasetInfo, ipc: float, per_area: int) -> PosterLayout:
    columns, rows = config.class_grid or class_grid(info.classes)
    if columns * rows != info.classes:
        raise ConfigError(
            f"method.poster.class_grid: {columns} columns and {rows} rows are {columns * rows} areas; {info.name} has"
            f" {info.classes} classes"
        )
    if config.width is not None and config.height is not None:
        height, width = config.height, config.width
        check_pixels(info, ipc, height, width)
    else:
        height, width = poster_sides(info, ipc, columns, rows)
        if height < info.height or width < info.width:
            raise ConfigError(
                f"ipc={ipc:g}: the poster would have {width}×{height} pixels, and a window of it has"
                f" {info.width}×{info.height}; at least ipc={least_ipc(info, columns, rows):g} is possible"
            )
    across, down = config.windows or (
        max(per_area * columns, least_windows(width, info.width)),
        max(per_area * rows, least_windows(height, info.height)),
    )
    windows = WindowGrid(height=info.height, width=info.width, columns=across, rows=down)
    try:
        windows.check(height, width)
    except ConfigError as error:
        raise ConfigError(f"method.poster.windows: {error}") from error
    area_width, area_height = config.class_area or (info.width, info.height)
    if area_width > width or area_height > height:
        raise ConfigError(
            f"method.poster.class_area: {area_width}×{area_height} pixels are more than the poster's {width}×{height}"
        )
    return PosterLayout(
        height=height,
        width=width,
        windows=windows,
        class_areas=WindowGrid(height=area_height, width=area_width, columns=columns, rows=rows),
    )


@dataclass(frozen=True, kw_only=True)
class LabelMapConfig:
    """The label map of a poster whose labels are learnt.

    ``rule``: how many cells it has: ``grid``, one for each class's area, or as many as ``ipc`` allows,
    and none of the classes without one; ``published``, as the published code counts them, which leaves
    some classes without a cell. ``ipc``: cells are no more than the labels of so many images per
    class.
    """

    rule: Literal["grid", "published"] = "grid"
    ipc: Annotated[float, Gt(0)] = 1.0

    def __post_init__(self) -> None:
        if self.rule == "grid" and self.ipc < 1:
            raise ConfigError(
                f"label_map.ipc={self.ipc:g} has no effect with rule=grid, which gives every class a cell; 1 or more is"
                " possible, or rule=published"
            )
