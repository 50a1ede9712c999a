"""Pictures of distilled sets (a class per row) and curves; Pillow and matplotlib are imported where they are used."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydd.core.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

BACKGROUND, INK, FAINT = (255, 255, 255), (32, 32, 32), (110, 110, 110)
GAP, MARGIN, BLOCK_GAP, FONT_SIZE = 3, 12, 28, 15
MAX_ROWS, MAX_COLUMNS = 100, 20
"""Classes, and images of each, that a picture of a set has room for."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Channel counts that 8-bit pictures have, with Pillow's names for them."""


def to_image(pixels: Tensor) -> Image:
    """Return a uint8 tensor ``[C, H, W]``, C from 1 to 4, as a Pillow image; ``ConfigError`` for
    other channel counts.
    """
    from PIL import Image

    if pixels.shape[0] not in MODES:
        raise ConfigError(
            f"images of {pixels.shape[0]} channels cannot be written as pictures; allowed: 1 to 4 channels"
        )
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if pixels.shape[0] == 1 else array)


def _tile(pixels: Tensor, size: tuple[int, int]) -> Image:
    from PIL import Image

    if pixels.shape[0] not in MODES:
        pixels = pixels.float().mean(0, keepdim=True).round().to(torch.uint8)
    image = to_image(pixels).convert("RGB")
    # Enlarged by whole factors, pixels stay sharp squares; what is made smaller is averaged.
    enlarges = size[0] >= image.width
    return image.resize(size, Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS)


def tile_size(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Return the drawn ``(width, height)`` of an image: a whole multiple of small ones, large ones made smaller."""
    target = 48 if rows * columns > 400 else 64 if rows * columns > 60 else 96
    longest = max(height, width)
    if longest <= target:
        factor = target // longest
        return width * factor, height * factor
    if longest <= 1.5 * target:
        return width, height
    return max(1, round(width * target / longest)), max(1, round(height * target / longest))


def _letters() -> str:
    """Return the file of matplotlib's letters, which have more alphabets than Pillow's own."""
    import matplotlib

    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def _font(path: str = "") -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(path or _letters(), FONT_SIZE)


@lru_cache(maxsize=512)
def _glyphs(path: str) -> frozenset[int]:
    """Return the characters that a font file draws; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        _font(path)  # some, of coloured pictures, have no size such as ours
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def font_for(text: str) -> FreeTypeFont | None:
    """Return a font that draws every character of a text: matplotlib's, else one of the system's;
    ``None`` if none does.
    """
    needed = {ord(character) for character in text if not character.isspace()}
    if needed <= _glyphs(_letters()):
        return _font()
    from matplotlib import font_manager

    for path in sorted(font_manager.findSystemFonts()):
        if "lastresort" not in path.lower() and needed <= _glyphs(
            path
        ):  # that one draws a box for everything
            return _font(path)
    return None


def _shorten(text: str, font: FreeTypeFont, limit: float) -> str:
    text = "".join(c if c.isprintable() else " " for c in text)  # a line of text has no line break
    if font.getlength(text) <= limit:
        return text
    while text and font.getlength(text + "…") > limit:
        text = text[:-1]
    return text.rstrip() + "…"


def _blocks(rows: int, row_height: int, block_width: int, limit: int) -> int:
    """Return into how many side-by-side blocks the rows are cut: a picture about 4:3, not too wide,
    with few empty places.
    """

    def misfit(blocks: int) -> float:
        width = blocks * block_width + (blocks - 1) * BLOCK_GAP
        per_block = math.ceil(rows / blocks)
        shape = abs(math.log(width / (per_block * row_height) / 1.33))
        return (
            shape
            + 2.0 * (blocks * per_block / rows - 1)
            + (100.0 if width > limit and blocks > 1 else 0.0)
        )

    return min(range(1, rows + 1), key=misfit)


def grid(
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str] = (),
    *,
    max_rows: int = MAX_ROWS,
    max_columns: int = MAX_COLUMNS,
    max_width: int = 1800,
    left_out: int = 0,
) -> Image:
    """Return a picture with a class per row, its name at the left and its images in their order.

    ``images``: pictures ``[N, C, H, W]``, float in [0, 1] or uint8; ``labels``: int ``[N]``;
    classes without a name, or with one that no font here draws, show their number. Classes past
    ``max_rows`` and images past ``max_columns`` are left out and counted in a line below, with the
    ``left_out`` images of the classes shown that are not given. Few columns are set in several
    blocks side by side. Equal arguments give equal pixels.
    """
    from PIL import Image, ImageDraw

    if len(images) != len(labels) or images.ndim != 4 or not len(images):
        raise ConfigError(
            f"a grid needs images [N, C, H, W] and labels [N], not {list(images.shape)} and {list(labels.shape)}"
        )
    pixels = (
        images
        if images.dtype == torch.uint8
        else (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    )
    present = sorted(set(labels.tolist()))
    shown = present[:max_rows]
    of_class = {c: (labels == c).nonzero().flatten().tolist() for c in shown}
    columns = min(max_columns, max(map(len, of_class.values())))
    width, height = tile_size(images.shape[2], images.shape[3], len(shown), columns)
    font = _font()
    wanted = [class_names[c] if c < len(class_names) else str(c) for c in shown]
    drawn = [
        (name, found) if (found := font_for(name)) else (str(c), font)
        for c, name in zip(shown, wanted)
    ]
    fonts = [found for _, found in drawn]
    names = [_shorten(name, found, 150) for name, found in drawn]
    label_widths = [math.ceil(found.getlength(name)) + 10 for name, found in zip(names, fonts)]
    row_height = max(height + GAP, FONT_SIZE + 5)
    images_width = columns * (width + GAP) - GAP
    blocks = _blocks(
        len(shown), row_height, max(label_widths) + images_width, max_width - 2 * MARGIN
    )
    per_block = math.ceil(len(shown) / blocks)
    starts = [MARGIN]  # of the images of each block, and one past the last
    for first in range(0, len(shown), per_block):
        starts[-1] += max(label_widths[first : first + per_block])
        starts.append(starts[-1] + images_width + BLOCK_GAP)
    note = _left_out(
        len(present) - len(shown),
        left_out + sum(max(0, len(ids) - columns) for ids in of_class.values()),
    )
    full_width = max(starts[-1] - BLOCK_GAP + MARGIN, math.ceil(font.getlength(note)) + 2 * MARGIN)
    full_height = 2 * MARGIN + per_block * row_height - GAP + (FONT_SIZE + 12 if note else 0)
    picture = Image.new("RGB", (full_width, full_height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for i, c in enumerate(shown):
        left = starts[i // per_block]
        top = MARGIN + (i % per_block) * row_height
        draw.text((left - 10, top + height / 2), names[i], INK, fonts[i], anchor="rm")
        for column, index in enumerate(of_class[c][:columns]):
            picture.paste(
                _tile(pixels[index], (width, height)), (left + column * (width + GAP), top)
            )
    if note:
        draw.text((MARGIN, full_height - MARGIN), note, FAINT, font, anchor="ls")
    return picture


def _left_out(classes: int, images: int) -> str:
    parts = []
    if images:
        parts.append(f"{images:,} more image{'s' if images != 1 else ''} of the classes above")
    if classes:
        parts.append(f"{classes:,} more class{'es' if classes != 1 else ''}")
    return "not shown: " + " and ".join(parts) if parts else ""


def png(image: Image) -> bytes:
    """Return an image as PNG bytes, the same for the same pixels."""
    out = io.BytesIO()
    image.save(out, "PNG", optimize=False)
    return out.getvalue()


def curve(
    series: Mapping[str, Sequence[tuple[float, ...]]],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    levels: Mapping[str, float] | None = None,
    log_y: bool = False,
    log_x: bool = False,
    notes: Mapping[tuple[float, float], str] | None = None,
) -> bytes:
    """Return a line chart as PNG bytes.

    ``series``: by legend name, points ``(x, y)`` or ``(x, y, spread)``, the spread drawn as a band of ± that size.
    ``x_label``/``y_label`` name quantity and unit. ``levels``: horizontal reference lines (a baseline) by name.
    ``notes``: what stands beside points ``(x, y)``: above the highest of those at about the same ``x``, below others.
    """
    if not any(len(points) for points in series.values()):
        raise ConfigError("a curve needs at least one point")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    figure = Figure(figsize=(7.2, 4.3), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        x, y = [point[0] for point in points], [point[1] for point in points]
        (line,) = axes.plot(
            x, y, label=name, linewidth=1.8, marker="o" if len(points) <= 40 else "", markersize=4
        )
        if points and len(points[0]) > 2:
            low, high = [p[1] - p[2] for p in points], [p[1] + p[2] for p in points]
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        for point in points:
            at = (point[0], point[1])
            if notes is not None and at in notes:
                axes.annotate(
                    notes[at],
                    at,
                    (0, 6 if _highest(at, series) else -12),
                    textcoords="offset points",
                    ha="center",
                    color=line.get_color(),
                    fontsize=7,
                )
    for name, level in (levels or {}).items():
        axes.axhline(level, color="#777777", linestyle="--", linewidth=1.2)
        across = axes.get_yaxis_transform()
        axes.annotate(
            name,
            (1, level),
            (-4, 4),
            xycoords=across,
            textcoords="offset points",
            ha="right",
            color="#555555",
        )
    if not log_x and all(
        float(point[0]).is_integer() for points in series.values() for point in points
    ):
        axes.xaxis.set_major_locator(
            MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True)
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, fontsize=11)
    if log_y:
        axes.set_yscale("log")
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return out.getvalue()


def _highest(at: tuple[float, float], series: Mapping[str, Sequence[tuple[float, ...]]]) -> bool:
    """Return whether no point at about the same ``x``, within a fifth of it, lies higher."""
    near = [p for points in series.values() for p in points if abs(p[0] - at[0]) <= abs(at[0]) / 5]
    return all(point[1] <= at[1] for point in near)
