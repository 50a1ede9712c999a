"""A distilled set in 8 bits, with the range that its 8 bits stand for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from raydd.artifacts.class_folders import class_folders
from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import DataError
from raydd.core.json_text import parse_json
from raydd.core.storage import Storage, join

SIDE_FILE = "dataset.json"
"""Beside a view: the data set's facts, the :class:`Range` (``view``) and, of an image folder, the
``folders`` in label order.
"""
HALF_STEP = 0.5 / 255


@dataclass(frozen=True)
class Range:
    """What 8 bits stand for, by channel: the pixel ``offset + scale * value / 255``, where 0 is black and 1 white."""

    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def of(cls, distilled: DistilledSet) -> Range | None:
        """Return the range that the images which students see need; ``None`` if rounding them to
        pixels loses nothing but fractions.
        """
        blocks = (distilled.take(ids) for ids in distilled.blocks())
        bounds = [
            distilled.to_pixels(block).transpose(0, 1).flatten(1).aminmax(dim=1)
            for block in blocks
            if block.is_floating_point() and len(block)
        ]
        if not bounds:
            return None
        low, high = (
            torch.stack([b.min for b in bounds]).amin(0).double(),
            torch.stack([b.max for b in bounds]).amax(0).double(),
        )
        if float(low.min()) >= -HALF_STEP and float(high.max()) <= 1 + HALF_STEP:
            return None
        offset = low.clamp_max(0)
        return cls(tuple(offset.tolist()), tuple((high.clamp_min(1) - offset).tolist()))

    @classmethod
    def from_json(cls, values: Any, channels: int, where: str) -> Range:
        """Return the range of JSON values; ``DataError`` naming ``where`` if they are none of so many channels."""
        try:
            found = cls(tuple(map(float, values["offset"])), tuple(map(float, values["scale"])))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{where}: the range of an 8-bit view (offset, scale) cannot be read: {error!r}"
            ) from error
        if not len(found.offset) == len(found.scale) == channels or min(found.scale) <= 0:
            raise DataError(
                f"{where}: the range of an 8-bit view needs offset and scale, above 0, of {channels} channels, not"
                f" {values}"
            )
        return found

    def to_json(self) -> dict[str, list[float]]:
        """Return JSON values that give the same range."""
        return {name: list(values) for name, values in asdict(self).items()}

    def _channels(self) -> tuple[Tensor, Tensor]:
        offset, scale = (
            torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1)
            for v in (self.offset, self.scale)
        )
        return offset, scale

    def encode(self, pixels: Tensor) -> Tensor:
        """Return 8 bits of pixels ``[N, C, H, W]``, rounded to the nearest."""
        offset, scale = self._channels()
        return ((pixels.double() - offset) / scale * 255).round().clamp(0, 255).to(torch.uint8)

    def decode(self, values: Tensor) -> Tensor:
        """Return pixels, float32, of 8 bits ``[N, C, H, W]``."""
        offset, scale = self._channels()
        return (offset + scale * values.double() / 255).float()


@dataclass(frozen=True)
class Pictures:
    """8 bits ``[N, C, H, W]``, hard labels int64 ``[N]`` and, where there are some, soft ones
    ``[N, classes]``; see :class:`Range`.
    """

    pixels: Tensor
    labels: Tensor
    soft_labels: Tensor | None = None
    range: Range | None = None

    def images(self, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Return the pixels as they are, or, of a view with a range, float32 images normalised by
        ``mean`` and ``std``.
        """
        if self.range is None:
            return self.pixels
        centre, spread = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        return torch.cat(
            [(self.range.decode(piece) - centre) / spread for piece in self.pixels.split(1024)]
        )


class SeenPictures:
    """What students see of a set, in 8 bits, decoded block after block; see :class:`Range`."""

    def __init__(self, distilled: DistilledSet) -> None:
        self._distilled = distilled
        self.range = Range.of(distilled)
        self.soft = distilled.soft

    def __len__(self) -> int:
        return self._distilled.seen

    def __iter__(self) -> Iterator[tuple[Tensor, int, list[float] | None]]:
        """Yield the pixels uint8 ``[C, H, W]``, hard and, where there are some, soft labels of each image."""
        distilled = self._distilled
        for ids in distilled.blocks():
            images = distilled.take(ids)
            if self.range is None:
                pixels = distilled.to_uint8(images)
            else:
                pixels = self.range.encode(distilled.to_pixels(images))
            softs = distilled.targets_of(ids).tolist() if self.soft else [None] * len(ids)
            yield from zip(pixels, distilled.labels_of(ids).tolist(), softs, strict=True)


def side_file(distilled: DistilledSet, shown: SeenPictures, *, folders: bool = False) -> bytes:
    """Return the bytes of :data:`SIDE_FILE` beside a view."""
    values: dict[str, Any] = asdict(distilled.info) | {"mean": distilled.mean, "std": distilled.std}
    if shown.range is not None:
        values["view"] = shown.range.to_json()
    if folders:
        values["folders"] = class_folders(distilled.info)
    return json.dumps(values, ensure_ascii=False).encode()


def read_side(storage: Storage) -> dict[str, Any]:
    """Return what :data:`SIDE_FILE` in a folder holds, nothing if there is none of ours;
    ``DataError`` if it cannot be read.
    """
    if not storage.exists(SIDE_FILE):
        return {}
    try:
        values = parse_json(storage.get(SIDE_FILE))
    except ValueError as error:
        raise DataError(f"{join(storage.url, SIDE_FILE)} cannot be read: {error}") from error
    return values if isinstance(values, dict) and {"classes", "channels"} <= set(values) else {}


def outside(distilled: DistilledSet, shown: SeenPictures) -> str:
    """Return what a person has to know of a view that leaves the range of pixels, empty if it does not."""
    if shown.range is None:
        return ""
    counts = [
        ((p < -HALF_STEP) | (p > 1 + HALF_STEP)).sum()
        for p in (distilled.to_pixels(distilled.take(ids)) for ids in distilled.blocks())
    ]
    share = int(torch.stack(counts).sum()) / (distilled.seen * math.prod(distilled.shape))
    low = min(shown.range.offset)
    high = max(o + s for o, s in zip(shown.range.offset, shown.range.scale))
    return f"{share:.0%} of the values lie outside the range of pixels, [0, 1]: they reach from {low:.2f} to {high:.2f}"
