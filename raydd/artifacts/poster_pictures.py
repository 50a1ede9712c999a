"""Pictures of posters: the poster, the class of each of its areas, its label map, how it grew; of images with
offsets: the offsets.

Pillow is imported where it is used.
"""

from __future__ import annotations

import colorsys
import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.generated import Generated
from raydd.artifacts.grid import FONT_SIZE, MAX_COLUMNS, MAX_ROWS, font_for, grid, png, to_image
from raydd.artifacts.offsets import OFFSETS, Offsets
from raydd.artifacts.poster_geometry import window_starts
from raydd.artifacts.run_folder import LABEL_MAP_PICTURE, OFFSETS_PICTURE, SEMANTIC
from raydd.artifacts.windows import LABEL_MAP, Windows

if TYPE_CHECKING:
    from PIL.Image import Image

WIDEST = 1200
"""Pixels that a picture of a poster is at most wide, unless the poster itself is wider."""
SHOWN_SLICES = 20
"""Slices whose offsets are pictured."""
ANIMATED = 640
FRAME_MS, LAST_MS = 300, 2500
"""How long the animation shows a state, and the last one."""


def is_poster(distilled: DistilledSet) -> bool:
    """Return whether a set is windows of a poster."""
    return isinstance(distilled.decoder, Windows)


def picture_of(distilled: DistilledSet, *, images: int | None = None) -> Image:
    """Return what is shown of a set: a class per row, or, of a poster, the poster. Of images with offsets
    each is shown as it is and then with each of its offsets, as students see them.

    ``images``: so many of each class at most, so that a large set need not fill the memory; of
    latents never more than a row has room for, since each is made for the picture.
    """
    if isinstance(distilled.decoder, Generated):
        labels = distilled.labels
        most = min(images or MAX_COLUMNS, MAX_COLUMNS)
        ids = torch.cat(
            [(labels == c).nonzero().flatten()[:most] for c in labels.unique()[:MAX_ROWS]]
        )
        return grid(
            distilled.to_uint8(distilled.take(ids)), labels[ids], distilled.info.class_names
        )
    if isinstance(distilled.decoder, Offsets):
        return _with_offsets(distilled, images)
    shown = distilled.pictures()
    if isinstance(distilled.decoder, Windows):
        return _enlarged(distilled.to_uint8(shown)[0])
    labels, names = distilled.labels, distilled.info.class_names
    if len(labels) != len(shown):  # pictures of no one class: rows without a name
        labels = torch.arange(len(shown)) // images if images else torch.zeros(len(shown)).long()
        names = ("",) * (int(labels.max()) + 1) if images else ("images",)
    if images is not None:
        keep = torch.cat(
            [(labels == c).nonzero().flatten()[:images] for c in labels.unique()[:100]]
        )
        shown, labels = shown[keep], labels[keep]
    return grid(distilled.to_uint8(shown), labels, names)


def further_pictures(distilled: DistilledSet) -> dict[str, bytes]:
    """Return the pictures beside a set's own, as PNG by file name: of a poster and of offsets; none of
    other sets.

    Of a poster the class of each area, its name where it is readable; the label map, where there is one: each
    cell's likeliest class, the brighter the larger its share.
    """
    decoder = distilled.decoder
    if isinstance(decoder, Offsets):
        return {OFFSETS_PICTURE: png(_offsets(distilled))}
    if not isinstance(decoder, Windows):
        return {}
    found = {SEMANTIC: png(_semantic(distilled, decoder))}
    label_map = distilled.extra.get(LABEL_MAP)
    return (
        found if label_map is None else found | {LABEL_MAP_PICTURE: png(_map(distilled, label_map))}
    )


def _with_offsets(distilled: DistilledSet, images: int | None) -> Image:
    """Return a class per row, each image beside what students see of it, so many of each class."""
    most, stored = min(images or MAX_COLUMNS, MAX_COLUMNS), len(distilled)
    order = torch.arange(distilled.seen).view(-1, stored).T.flatten()  # image by image
    labels = distilled.labels_of(order)
    each = [order[labels == c] for c in labels.unique()[:MAX_ROWS]]
    ids = torch.cat([of_class[:most] for of_class in each])
    others = sum(len(of_class) for of_class in each) - len(ids)
    return grid(
        torch.cat([distilled.to_uint8(distilled.take(part)) for part in distilled.blocks(ids)]),
        distilled.labels_of(ids),
        distilled.info.class_names,
        left_out=others if images is None else 0,
    )


def _offsets(distilled: DistilledSet) -> Image:
    """Return offsets about grey, half as strong, a row for each of a slice's M, slice after slice."""
    offsets = distilled.extra[OFFSETS][:, :SHOWN_SLICES].flatten(1, 2)
    if offsets.is_floating_point():
        spread = torch.tensor(distilled.std).view(-1, 1, 1)
        offsets = offsets * spread * 255
    shown = (128 + offsets.float() / 2).round().clamp(0, 255).to(torch.uint8)
    count, each = shown.shape[:2]
    names = tuple(f"offset {number + 1}" for number in range(count))
    return grid(shown.flatten(0, 1), torch.arange(count).repeat_interleave(each), names)


def animation(frames: Sequence[bytes]) -> bytes | None:
    """Return pictures of one size, PNG each, as one animated PNG, at most :data:`ANIMATED` pixels
    wide; ``None`` for fewer than two.
    """
    from PIL import Image

    shown = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    shown = [frame for frame in shown if frame.size == shown[-1].size]
    if shown and shown[-1].width > ANIMATED:
        height = max(1, round(shown[-1].height * ANIMATED / shown[-1].width))
        shown = [frame.resize((ANIMATED, height), Image.Resampling.BOX) for frame in shown]
    if len(shown) < 2:
        return None
    out = io.BytesIO()
    times = [FRAME_MS] * (len(shown) - 1) + [LAST_MS]
    shown[0].save(
        out, "PNG", save_all=True, append_images=shown[1:], duration=times, loop=0, optimize=False
    )
    return out.getvalue()


def _factor(width: int) -> int:
    return max(1, WIDEST // width)


def _enlarged(pixels: Tensor) -> Image:
    """Return a poster enlarged by a whole factor, so that its pixels stay sharp squares."""
    from PIL import Image

    image = to_image(pixels).convert("RGB")
    factor = _factor(image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _colour(label: int, classes: int, light: float) -> tuple[int, int, int]:
    """Return the colour of a class: hues go round twice or thrice, so that neighbours of the list differ."""
    hue = (label * 0.618034) % 1.0
    saturation = 0.45 + 0.4 * (label % 3) / 2 if classes > 10 else 0.65
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, light)
    return round(255 * red), round(255 * green), round(255 * blue)


def _edges(length: int, size: int, count: int) -> list[int]:
    """Return where the parts of an axis begin and end that lie nearest to each window's middle."""
    starts = window_starts(length, size, count)
    middles = [start + size / 2 for start in starts]
    between = [round((a + b) / 2) for a, b in itertools.pairwise(middles)]
    return [0, *between, length]


def _semantic(distilled: DistilledSet, decoder: Windows) -> Image:
    """Return the poster in grey under the colours of its windows' classes."""
    from PIL import Image

    poster = _enlarged(distilled.to_uint8()[0]).convert("L").convert("RGB")
    height, width = distilled.images.shape[2:]
    factor = _factor(width)
    columns, rows = decoder.windows
    across, down = _edges(width, decoder.width, columns), _edges(height, decoder.height, rows)
    classes = distilled.info.classes
    labels = distilled.targets_of()
    labels = labels.argmax(1) if labels.is_floating_point() else labels
    table = labels.view(columns, rows)
    colours = Image.new("RGB", poster.size)
    areas = _areas(table)
    boxes = []
    for cells in areas:
        label = int(table[cells[0]])
        for i, j in cells:
            box = (across[i], down[j], across[i + 1], down[j + 1])
            colours.paste(_colour(label, classes, 0.95), _scaled(box, factor))
        left, top = (min(cell[side] for cell in cells) for side in (0, 1))
        right, bottom = (max(cell[side] for cell in cells) + 1 for side in (0, 1))
        whole = (across[left], down[top], across[right], down[bottom])
        boxes.append((label, _scaled(whole, factor)))
    picture = Image.blend(poster, colours, 0.6)
    for label, box in boxes:
        _write(picture, _name(distilled, label), box)
    return picture


def _scaled(box: tuple[int, int, int, int], factor: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return left * factor, top * factor, right * factor, bottom * factor


def _areas(table: Tensor) -> list[list[tuple[int, int]]]:
    """Return the places of a table ``[columns, rows]``, those together that have one value and touch."""
    left = {(i, j) for i in range(len(table)) for j in range(table.shape[1])}
    found = []
    while left:
        area, waiting = [], [min(left)]
        left.remove(waiting[0])
        while waiting:
            i, j = waiting.pop()
            area.append((i, j))
            for place in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if place in left and table[place] == table[i, j]:
                    left.remove(place)
                    waiting.append(place)
        found.append(area)
    return found


def _map(distilled: DistilledSet, label_map: Tensor) -> Image:
    """Return the cells of a label map, each in the colour of its likeliest class."""
    from PIL import Image

    classes, rows, columns = label_map.shape
    side = max(8, min(96, WIDEST // columns))
    picture = Image.new("RGB", (columns * side, rows * side))
    share = label_map / label_map.sum(0, keepdim=True).clamp_min(1e-12)
    best, label = share.max(0)
    for j in range(rows):
        for i in range(columns):
            box = (i * side, j * side, (i + 1) * side, (j + 1) * side)
            part, likeliest = float(best[j, i]), int(label[j, i])
            picture.paste(_colour(likeliest, classes, 0.25 + 0.7 * part), box)
            _write(picture, f"{_name(distilled, likeliest)}\n{part:.0%}", box)
    return picture


def _name(distilled: DistilledSet, label: int) -> str:
    names = distilled.info.class_names
    return names[label] if label < len(names) else str(label)


def _write(picture: Image, text: str, box: tuple[int, int, int, int]) -> None:
    """Write a text in the middle of a box, if it is readable there."""
    from PIL import ImageDraw, ImageStat

    left, top, right, bottom = box
    lines = text.split("\n")
    font = font_for(text)
    if font is None or len(lines) * (FONT_SIZE + 3) > bottom - top:
        return
    if max(font.getlength(line) for line in lines) > right - left - 2:
        return
    bright = ImageStat.Stat(picture.crop(box).convert("L")).mean[0] > 110
    draw = ImageDraw.Draw(picture)
    middle = ((left + right) / 2, (top + bottom) / 2)
    ink = (0, 0, 0) if bright else (255, 255, 255)
    draw.multiline_text(middle, text, ink, font, anchor="mm", align="center")
