"""How a coded set is coded, and what its file says of it (:mod:`raydd.artifacts.image_codecs`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from raydd.artifacts.coders import LOSSLESS, PICTURE_FORMATS, check_coder
from raydd.core.errors import ConfigError

BITS, QUALITY = 2, 50
"""What a codec has where nothing is stated."""


@dataclass(frozen=True, kw_only=True)
class ImageCodec:
    """How a set's images are coded.

    ``codec``: ``levels``, or a lossy picture format. ``bits``: of a pixel's level; 8: the pixels
    themselves. ``size``: 2 keeps means of 2×2 pixels, which are enlarged again. ``table``: whether
    the whole set has one table of levels for each channel, or every image one. ``quality``: of
    ``avif`` and ``webp``. ``ConfigError`` for what has no effect.
    """

    codec: Literal["levels", "avif", "webp"] = "levels"
    bits: Literal[1, 2, 3, 4, 8] | None = None
    size: Literal[1, 2] = 1
    table: Literal["set", "image"] | None = None
    quality: Annotated[int, Ge(0), Le(100)] | None = None

    def __post_init__(self) -> None:
        if self.codec in PICTURE_FORMATS:
            for key in ("bits", "table"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        f"{key}={getattr(self, key)} has no effect with the codec '{self.codec}': say its quality"
                    )
            object.__setattr__(self, "quality", QUALITY if self.quality is None else self.quality)
            return
        if self.quality is not None:
            raise ConfigError(
                f"quality={self.quality} has no effect with the codec 'levels': say its bits"
            )
        object.__setattr__(self, "bits", BITS if self.bits is None else self.bits)
        if self.bits == 8 and self.table == "image":
            raise ConfigError("table=image has no effect with bits=8: pixels need no table")
        object.__setattr__(self, "table", self.table or "set")

    @property
    def coder(self) -> str:
        """The format of the streams."""
        return LOSSLESS if self.codec == "levels" else self.codec

    @property
    def text(self) -> str:
        """The codec in words: ``2 bits``, ``1 bit, half size``, ``avif, quality 50``."""
        said = [f"{self.codec}, quality {self.quality}"]
        if self.codec == "levels":
            said = [f"{self.bits} bit{'s' * (self.bits != 1)}"]
        said += ["half size"] * (self.size == 2) + ["a table for each image"] * (
            self.table == "image"
        )
        return ", ".join(said)

    def check(self) -> None:
        """Raise ``ConfigError`` saying what to install, if the coder is not there."""
        check_coder(self.coder)


@dataclass(frozen=True, kw_only=True)
class CodedFacts:
    """What a coded set's file says before its images are decoded.

    ``coder``: the library that wrote the streams, and its version. ``images``: how many are stored.
    ``bytes``: of the whole file; ``stream_bytes`` of the images' streams, ``table_bytes`` of their
    tables, ``label_bytes`` of hard and soft labels and of what else the decoding reads.
    ``pixel_digest``: sha256, cut, of the decoded pixels.
    """

    codec: ImageCodec
    coder: str
    images: int
    channels: int
    height: int
    width: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bytes: int
    stream_bytes: int
    table_bytes: int
    label_bytes: int
    pixel_digest: str

    @property
    def bits_per_class(self) -> float:
        """Bits of the file for each class."""
        return 8 * self.bytes / self.classes

    def raw_bytes(self, bits: int) -> int:
        """Return the bytes of the same images at so many bits a value, nothing coded."""
        values = self.images * self.channels * self.height * self.width
        return -(-values * bits // 8)
