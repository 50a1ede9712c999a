"""What the values of a set of others mean: stated by whoever reads it, else guessed aloud; what
cannot be is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydd.artifacts.decoding import Decoding, Tiles
from raydd.artifacts.windows import Windows
from raydd.core.errors import ConfigError, DataError, unknown
from raydd.data.catalog import DatasetInfo
from raydd.data.images import Orientation

Tell = Callable[[str], None]
SPACES = ("pixels", "pixels255", "normalised", "zca", "zca_per_image")
"""``pixels``: in [0, 1]; ``pixels255``: 0 to 255; ``normalised``: by the data set's mean and
deviation. Whitened by the training images: ``zca`` as in MTT and its descendants, ``zca_per_image``
as in KIP, RaT-BPTT and PoDD (:mod:`raydd.artifacts.whitening`).
"""
LABEL_KINDS = ("logits", "probabilities", "targets")
"""What a table of labels holds: logits, whose softmax students learn; probabilities, whose rows sum
to 1; targets, rows that students learn as they are, as RaT-BPTT's learnt labels.
"""
WHITENED = ("zca", "zca_per_image")
TILED = ("partition", "grid")
STATED = ("identity", *TILED, "resize", Windows.name)
"""Decodings that a reader can state; of :data:`TILED` each stored image holds several."""

SLACK = 0.05
"""How far, in pixels of [0, 1], values may leave the range before they count as outside."""
OUTSIDE = 0.25
"""The share of values outside above which images are not pixels: normalised ones have about half of theirs below 0."""
FAR = 100.0
"""Beyond it values are not normalised: it is 20 times a white pixel of digits, and more of any other data set."""
ROW_SUM = 0.01
"""How far the sum of a row of probabilities may be from 1; half precision takes some."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a set of others is read, as far as whoever reads it says so.

    ``space``: one of :data:`SPACES`; ``None``: guessed from the values. ``decoding``: what students
    see of the stored images, one of :data:`STATED` (:mod:`raydd.artifacts.decoding`); ``None``: the
    images themselves, or, with a ``factor``, ``grid``. ``factor``: how many rows and columns of
    images each stored one holds; ``None``: 2 where the decoding needs one. ``windows``: columns and
    rows of windows of a poster, which the decoding ``windows`` needs. ``labels``: what a table
    ``[N, classes]`` holds, one of :data:`LABEL_KINDS`; ``None``: guessed. ``experiment``: which set
    of a file that lists several; ``None``: the last, or all steps of a file of continual learning.
    ``orientation``: ``exif`` turns picture files as they say. ``ipc``: only the first so many images
    of each class, of our own sets, too (:mod:`raydd.artifacts.first_images`). Raises
    ``ConfigError`` for values that are not allowed.
    """

    space: str | None = None
    decoding: str | None = None
    factor: int | None = None
    windows: tuple[int, int] | None = None
    labels: str | None = None
    experiment: int | None = None
    orientation: Orientation = "ignore"
    ipc: int | None = None

    def __post_init__(self) -> None:
        if self.ipc is not None and self.ipc < 1:
            raise ConfigError(f"ipc={self.ipc}: at least the first image of each class is needed")
        if self.orientation not in ("ignore", "exif"):
            raise unknown("orientation", self.orientation, ("ignore", "exif"))
        if self.space is not None and self.space not in SPACES:
            raise unknown("space", self.space, SPACES)
        if self.labels is not None and self.labels not in LABEL_KINDS:
            raise unknown("kind of labels", self.labels, LABEL_KINDS)
        if self.experiment is not None and self.experiment < -1:
            raise ConfigError(
                f"experiment: {self.experiment} must be a number from 0 on, or -1, the last"
            )
        if self.decoding is not None and self.decoding not in STATED:
            raise unknown("decoding", self.decoding, STATED)
        if self.windows is not None and self.decoding not in (None, Windows.name):
            raise ConfigError(f"windows have no effect with the decoding '{self.decoding}'")
        if self.windows is None and self.decoding == Windows.name:
            raise ConfigError(
                "decoding 'windows': how many columns and rows of windows? Say --windows 16x6, or windows=(16, 6)"
            )
        if self.factor is not None:
            Tiles.check_factor(self.factor)
            if (self.decoding not in (None, *TILED) or self.windows) and self.factor != 1:
                raise ConfigError(
                    f"factor={self.factor} has no effect with the decoding '{self.decoding or Windows.name}'; allowed:"
                    f" {', '.join(TILED)}"
                )

    @property
    def poster(self) -> bool:
        """Whether what is read is a poster."""
        return self.windows is not None

    def decoding_of(self, info: DatasetInfo, space: str) -> Decoding:
        """Return how images that lie in ``space`` are decoded; those of a ``grid`` are filled up with grey."""
        if self.windows is not None:
            size = {"height": info.height, "width": info.width}
            return Decoding(Windows.name, {**size, "windows": list(self.windows)})
        name = self.decoding or ("identity" if self.factor in (None, 1) else "grid")
        if name == "resize":
            return Decoding(name, {"height": info.height, "width": info.width})
        if name not in TILED:
            return Decoding()
        factor = self.factor or 2
        parameters: dict[str, Any] = {"factor": factor}
        if name == "grid" and (info.height % factor or info.width % factor):
            grey = [(0.5 - mean) / std for mean, std in zip(info.mean, info.std)]
            parameters["padding"] = [0.0] * info.channels if space in WHITENED else grey
        found = Decoding(name, parameters)
        decoder = found.decoder()
        if isinstance(decoder, Tiles):
            decoder.check_sides(info.height, info.width)
        return found

    def refuse(self, where: str, why: str) -> None:
        """Raise ``ConfigError`` if anything is stated, for a set that says itself how it is read."""
        stated = {
            "space": self.space,
            "decoding": self.decoding,
            "factor": None if self.factor == 1 else self.factor,
            "windows": self.windows,
            "labels": self.labels,
        }
        stated |= {"orientation": None if self.orientation == "ignore" else self.orientation}
        for name, value in stated.items():
            if value is not None:
                raise ConfigError(f"{name}={value} has no effect: {where} {why}")


def _span(low: float, high: float) -> str:
    return f"{low:.4g} … {high:.4g}"


def images_in_space(
    images: Tensor,
    info: DatasetInfo,
    space: str | None,
    where: str,
    tell: Tell,
    hint: tuple[str, str] | None = None,
) -> tuple[Tensor, str]:
    """Return images as :class:`DistilledSet` takes them (uint8, or float32 in network space), and
    the space they were in.

    ``images``: as the file holds them, ``[N, C, H, W]``. ``space``: stated, or ``None``; then a
    guess is told. ``hint``: the space that file names speak for, and how. Whitened images are
    returned as they are. Raises ``DataError`` for images that are in no space, and ``ConfigError``
    for a stated space in which they cannot be, and for a guess that fits them no better.
    """
    if images.dtype == torch.bool or images.is_complex():
        raise DataError(
            f"{where}: images are {images.dtype}; expected whole numbers from 0 to 255 or floats"
        )
    if not images.numel():
        raise DataError(f"{where}: holds no image ({list(images.shape)})")
    if not images.is_floating_point():
        return _whole_numbers(images, space, where, tell)
    images = images.float()
    if not bool(torch.isfinite(images).all()):
        bad = (~torch.isfinite(images)).flatten(1).any(1).nonzero().flatten().tolist()
        raise DataError(
            f"{where}: NaN or infinity in {len(bad)} of {len(images)} images, first: image {bad[0]}"
        )
    found, guessed = _Values.of(images), ""
    if space is None:
        space = hint[0] if hint else found.guess(info)
        why = hint[1] if hint else f"values range from {_span(found.low, found.high)}"
        tell(f"space: {space} (guessed: {why}; say --space {'|'.join(SPACES)} to be sure)")
        guessed = f" (guessed: {why})" if hint else " (guessed)"
        if (
            space == "normalised"
            and found.signed
            and (set(info.mean), set(info.std)) != ({0.5}, {0.5})
        ):
            tell(
                "if these images were scaled to [-1, 1], save (images + 1) / 2 and say --space pixels"
            )
    reason = found.against(space, info)
    if reason:
        raise ConfigError(f"space={space}{guessed} cannot be: {where}: {reason}")
    if space in WHITENED or space == "normalised":
        return images, space
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (info.mean, info.std))
    if images.shape[1] != info.channels:  # told with the shape
        return images, space
    return ((images / (255 if space == "pixels255" else 1)) - mean) / std, space


def _whole_numbers(images: Tensor, space: str | None, where: str, tell: Tell) -> tuple[Tensor, str]:
    low, high = int(images.min()), int(images.max())
    if low < 0 or high > 255:
        raise DataError(
            f"{where}: images are whole numbers from {low} to {high}; those of pixels are 0 to 255"
        )
    if space not in (None, "pixels", "pixels255"):
        raise ConfigError(
            f"space={space} cannot be: {where}: images are whole numbers from {low} to {high}: pixels"
        )
    two_valued = low == 0 and high == 1
    if space == "pixels" and high > 1:
        raise ConfigError(
            f"space=pixels cannot be: {where}: values range from {_span(low, high)}, pixels in [0, 1]: say --space"
            " pixels255"
        )
    if space == "pixels255" and two_valued:
        raise ConfigError(
            f"space=pixels255 cannot be: {where}: whole numbers of 0 and 1 would be black pictures: say --space pixels"
        )
    if space is None and two_valued:
        tell("space: pixels (guessed: whole numbers of 0 and 1; say --space pixels to be sure)")
    pixels = images.to(torch.uint8)
    return (pixels * 255 if two_valued else pixels), "pixels" if two_valued else "pixels255"


@dataclass(frozen=True)
class _Values:
    """What tells spaces apart: the least and the greatest value, the share outside of pixels,
    whether all are whole numbers.
    """

    low: float
    high: float
    outside: float
    outside255: float
    whole: bool

    @classmethod
    def of(cls, images: Tensor) -> _Values:
        def outside(scale: float) -> float:
            return float(
                ((images < -SLACK * scale) | (images > (1 + SLACK) * scale)).float().mean()
            )

        whole = bool((images == images.round()).all())
        return cls(float(images.min()), float(images.max()), outside(1), outside(255), whole)

    @property
    def constant(self) -> bool:
        return self.low == self.high

    @property
    def within(self) -> bool:
        """Whether all values are those of pixels in [0, 1]."""
        return self.low >= -0.01 and self.high <= 1.01

    @property
    def signed(self) -> bool:
        """Whether the values fill [-1, 1], to which generators scale images."""
        return abs(self.low + 1) < 0.02 and abs(self.high - 1) < 0.02

    @property
    def dark(self) -> bool:
        """Whether pixels of 0 to 255 with these values would be black pictures."""
        return self.high <= 1.01 or (self.high <= 16 and not self.whole)

    def guess(self, info: DatasetInfo) -> str:
        """Return the likeliest space."""
        plain = max(map(abs, info.mean)) < 0.01 and max(abs(v - 1) for v in info.std) < 0.01
        if self.low == self.high == 0 and not plain:
            return "pixels"
        if (self.constant and abs(self.high) <= 1) or (plain and self.high <= 16):
            return "normalised"
        if self.outside255 <= OUTSIDE and not self.dark and self.high > 16 and self.low > -64:
            return "pixels255"
        return (
            "pixels"
            if self.within or (self.outside <= 0.1 and max(info.mean) > 0.1)
            else "normalised"
        )

    def against(self, space: str, info: DatasetInfo) -> str:
        """Return what speaks so strongly against a space that it cannot be; empty if nothing does."""
        span = f"values range from {_span(self.low, self.high)}"
        if space == "pixels" and (self.outside > OUTSIDE or max(-self.low, self.high) > 10):
            return f"{span}, {self.outside:.0%} of them outside of [0, 1]"
        if space == "pixels255" and not self.constant and (self.dark or self.outside255 > OUTSIDE):
            return f"{span}; pixels of 0 to 255 would be {'black pictures' if self.dark else 'mostly out of range'}"
        if space == "normalised" and not self.constant:
            low = min(-m / s for m, s in zip(info.mean, info.std))
            high = max((1 - m) / s for m, s in zip(info.mean, info.std))
            needed = (
                f"normalised images of {info.name} lie around 0, pixels from {_span(low, high)}"
            )
            if self.within and min(info.mean) > 0.02:
                return f"{span}, all in [0, 1]; {needed}: say --space pixels"
            white = 4 * high if min(info.mean) > 0.02 else max(16.0, 4 * high)
            if self.low >= -0.01 and self.high > white:
                way = (
                    "scale them to [0, 1] and say --space pixels"
                    if self.dark
                    else "say --space pixels255"
                )
                return f"{span}; {needed}: {way}"
            if max(-self.low, self.high) > FAR:
                return f"{span}; {needed}"
        if space in WHITENED and not self.constant and self.low >= -0.01:
            return f"{span}; whitened images lie around 0"
        return ""


def targets_of(
    labels: Any, classes: int, kind: str | None, where: str, tell: Tell
) -> tuple[Tensor, Tensor | None]:
    """Return hard labels int64 ``[N]`` and, of a table, what students learn, float32 ``[N, classes]``; of
    logits, their softmax.

    ``kind``: what a table holds, stated, or ``None``; then it is guessed, and a guess told. Raises
    ``DataError`` for what is no labels, and ``ConfigError`` for a stated kind that cannot be.
    """
    labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim == 2 and not labels.is_complex():
        return _table(labels, classes, kind, where, tell)
    whole = not labels.is_complex() and (
        not labels.is_floating_point() or bool((labels == labels.round()).all())
    )
    if labels.ndim != 1 or not whole or labels.dtype == torch.bool:
        raise DataError(
            f"{where}: labels must be whole numbers [N] or probabilities or logits [N, classes], not {labels.dtype}"
            f" {list(labels.shape)}"
        )
    if kind is not None:
        raise ConfigError(
            f"labels={kind} has no effect: {where}: labels are one number for each image"
        )
    hard = labels.long()
    if hard.numel() and int(hard.min()) == 1 and int(hard.max()) == classes:
        raise DataError(
            f"{where}: labels are 1 to {classes}; those of {classes} classes are 0 to {classes - 1}: save labels - 1"
        )
    tell_counted_from_1(hard, classes, where, tell)
    return hard, None


def tell_counted_from_1(labels: Tensor, classes: int, where: str, tell: Tell) -> None:
    """Tell it where labels are 1 to some number below that of classes, as those of a part of the
    classes that count from 1 are.
    """
    found = sorted(set(labels.tolist()))
    if 2 <= len(found) < classes and found == list(range(1, len(found) + 1)):
        tell(
            f"labels: {where}: 1 to {found[-1]}, none is 0, read as they are (guessed: if they count from 1, save"
            " labels - 1)"
        )


def _table(
    labels: Tensor, classes: int, kind: str | None, where: str, tell: Tell
) -> tuple[Tensor, Tensor | None]:
    if labels.shape[1] != classes:
        raise DataError(
            f"{where}: labels are a table of {labels.shape[1]} classes; the data set has {classes}"
        )
    values = labels.float()
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"{where}: NaN or infinity in the labels")
    sums = values.double().sum(1)
    low, high = float(values.min()), float(values.max())
    sums_to_one = bool(((sums - 1).abs() <= ROW_SUM).all()) and low >= -1e-6
    rows = f"values range from {_span(low, high)}, rows sum to {_span(float(sums.min()), float(sums.max()))}"
    if kind is None:
        if not sums_to_one and low >= 0 and high <= 1:
            raise DataError(
                f"{where}: labels are neither probabilities nor, it seems, logits: {rows}; say --labels logits if"
                " they are, --labels targets to learn them as they are"
            )
        kind = "probabilities" if sums_to_one else "logits"
        if kind == "logits":
            other = ", --labels targets to learn them as they are" if low >= 0 else ""
            tell(
                f"labels: logits, of which students learn the softmax (guessed: {rows}; say --labels logits to be"
                f" sure{other})"
            )
    if kind == "targets" and low < 0:
        raise ConfigError(f"labels=targets cannot be: {where}: {rows}, and none may be below 0")
    if kind == "probabilities" and not sums_to_one:
        raise ConfigError(f"labels=probabilities cannot be: {where}: {rows}, not to 1")
    if kind == "logits" and sums_to_one:
        tell(f"labels: logits, as was said, although {rows}, as those of probabilities do")
    if kind == "probabilities" and not labels.is_floating_point():
        return labels.argmax(1), None  # ones and zeros, as whole numbers
    soft = values.softmax(1) if kind == "logits" else values
    return values.argmax(1), soft
