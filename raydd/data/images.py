"""Bytes of one picture to uint8 pixels of a fixed shape, and back."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from raydd.core.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]
Orientation = Literal["ignore", "exif"]

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "TIFF": ("tif", "tiff"),
    "JPEG2000": ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"),
    "AVIF": ("avif", "avifs"),
    "QOI": ("qoi",),
    "PCX": ("pcx",),
    "SGI": ("sgi",),
    "SUN": ("ras",),
}
"""Still pictures that Pillow reads by itself and knows by their first bytes, with the endings of
their files; of several frames the first.

Left out on purpose: what is drawn by another program (EPS, PDF, WMF), films, formats of programs
(PSD, ICO), and TGA, which has no mark.
"""
EXTENSIONS = tuple(ending for endings in FORMATS.values() for ending in endings)
PIXELS = 89_478_485
"""Pixels that a picture may have at most: those above which Pillow warns."""
SCANS = 200
"""Passes over its pixels that a JPEG may have at most: encoders write about ten."""
_JPEG = b"\xff\xd8"
_SCAN = re.compile(rb"\xff\xda")
_ORIENTED = (b"EXIF", b"eXIf", b"irot", b"imir", b"Raw profile type")
"""What stands in the bytes of pictures other than JPEGs that may say how they are to be turned,
beside what JPEGs have.
"""


@dataclass(frozen=True, kw_only=True)
class Transform:
    """How a decoded picture becomes ``(channels, height, width)``.

    ``fit``: ``exact`` refuses any other shape; ``crop`` scales the shorter side to ``resize``
    (bilinear, antialiased) and cuts the centre, as torchvision's Resize and CenterCrop do;
    ``squash`` scales both sides. ``orientation``: ``exif`` turns pictures as their EXIF orientation
    says, before all else. The text of a transform is part of digests.
    """

    channels: int
    height: int
    width: int
    fit: Literal["exact", "crop", "squash"] = "exact"
    resize: int = 0
    orientation: Orientation = "ignore"

    def __repr__(self) -> str:
        """Return the fields; the orientation, which came later, only where it is not ignored:
        digests of before stay.
        """
        turned = "" if self.orientation == "ignore" else f", orientation={self.orientation!r}"
        size = f"channels={self.channels!r}, height={self.height!r}, width={self.width!r}"
        return f"Transform({size}, fit={self.fit!r}, resize={self.resize!r}{turned})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of what comes out."""
        return (self.channels, self.height, self.width)


def decode(data: bytes | memoryview, channels: int, orientation: Orientation = "ignore") -> Pixels:
    """Return the pixels ``[H, W, C]`` of an encoded picture, converted to grey (1) or RGB (3 channels).

    The content decides how, not a name. JPEG by simplejpeg, CMYK too; what that refuses (damaged
    ends) and other formats by Pillow. 16 bits become 8 by their upper half. ``ValueError`` if it
    cannot be decoded, or its values have no known range (floats, 32 bits). The EXIF orientation is
    ignored, as in the field's loaders, unless ``orientation`` is ``exif``.
    """
    import simplejpeg

    turn = orientation_of(data) if orientation == "exif" else 1
    if bytes(data[:2]) == _JPEG:
        check_jpeg(data)
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                data, colorspace="GRAY" if channels == 1 else "RGB"
            )
            return turned(pixels, turn)
        except ValueError:
            pass
    return turned(_decode_pillow(data, channels), turn)


def check_jpeg(data: bytes | memoryview) -> None:
    """Raise ``ValueError`` for a JPEG of more pixels, or of more passes over them, than pictures have."""
    import simplejpeg

    scans = _scans(data)
    if scans > SCANS:
        raise ValueError(f"its pixels come in {scans} passes; at most {SCANS} are read")
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError:
        return  # told when it is decoded
    check_pixels(height, width)


def _scans(data: bytes | memoryview) -> int:
    """Return how many passes over its pixels a JPEG has, at least."""
    return len(_SCAN.findall(data))


def check_pixels(height: int, width: int) -> None:
    """Raise ``ValueError`` for a picture of more than :data:`PIXELS` pixels."""
    if height * width > PIXELS:
        raise ValueError(f"{height} x {width} pixels, more than {PIXELS}; make it smaller")


@cache
def _formats() -> tuple[str, ...]:
    """Return those of :data:`FORMATS` that the installed Pillow reads."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode_pillow(data: bytes | memoryview, channels: int) -> Pixels:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            check_pixels(image.height, image.width)
            deep = image.mode == "F" or image.mode.startswith(
                "I"
            )  # Pillow's own conversion would clip
            shallow = Image.fromarray(_upper_byte(image)) if deep else image
            pixels = np.array(shallow.convert("L" if channels == 1 else "RGB"))
            bits = int(getattr(image, "tag_v2", {}).get(258, (8,))[0])
        if (
            bits > 8 and not deep and not pixels.any()
        ):  # of colours Pillow itself keeps the upper bytes
            raise ValueError(f"it has {bits} bits, whose upper 8 are black; save it in 8 bits")
    except UnidentifiedImageError as error:
        tiff = bytes(data[:4]) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        known = "a TIFF of a kind that is not read (its bits, colours or compression)"
        raise ValueError(
            known if tiff else f"not a picture of a format that is read ({', '.join(FORMATS)})"
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    return pixels[:, :, None] if channels == 1 else pixels


def _upper_byte(image: Image.Image) -> Pixels:
    """Return a grey picture of up to 16 bits in 8; ``ValueError`` where the range is not known, or
    all of it would be black.
    """
    tags = getattr(image, "tag_v2", {})  # of TIFF
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        what = "floating point" if image.mode == "F" else "32 bits, or signed"
        raise ValueError(
            f"its pixels are of {what}, whose range is not known; save them in 8 or 16 bits"
        )
    bits = int(tags.get(258, (16,))[0])  # 12 of the 16 are used in some
    values = np.asarray(image).astype(np.int64)
    if tags.get(262) == 0:  # white is zero, which Pillow leaves so
        values = (1 << bits) - 1 - values
    if 0 < int(values.max(initial=0)) < 1 << (bits - 8):
        raise ValueError(
            f"it has {bits} bits, but no value above {int(values.max())}: in 8 bits it would be black; save it in 8"
            " bits"
        )
    return (values >> (bits - 8)).astype(np.uint8)


def orientation_of(data: bytes | memoryview) -> int:
    """Return the EXIF orientation of an encoded picture, 1 (as it is) to 8; 1 where there is none,
    or none that can be read.

    A TIFF's is 1: its tag belongs to the format, and every reader applies it.
    """
    whole = bytes(data)
    if (
        b"Exif" not in whole
        and b"tiff:Orientation" not in whole
        and (whole[:2] == _JPEG or not any(m in whole for m in _ORIENTED))
    ):
        return 1
    from PIL import Image

    try:
        with Image.open(io.BytesIO(whole), formats=_formats()) as image:
            found = 1 if image.format == "TIFF" else image.getexif().get(274, 1)
    except (
        OSError,
        SyntaxError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        struct.error,
        Image.DecompressionBombError,
    ):
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Return pixels ``[H, W, C]`` as an EXIF orientation from 1 to 8 wants them shown; 5 to 8 exchange the sides."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (
        3,
        4,
        7,
        8,
    ):  # 5: the diagonal alone; 6: a quarter clockwise; 7: the other diagonal; 8: a quarter back
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels if orientation == 1 else np.ascontiguousarray(pixels)


def size_of(data: bytes, orientation: Orientation = "ignore") -> tuple[int, int] | None:
    """Return height and width of an encoded picture as its header says, ``None`` where there is no readable one."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            height, width = image.height, image.width
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ):  # told when it is decoded
        return None
    return (
        (width, height) if orientation == "exif" and orientation_of(data) >= 5 else (height, width)
    )


def misfit(height: int, width: int, transform: Transform) -> str:
    """Return what is wrong with a picture of another size than the transform's."""
    return f"{height} x {width} pixels where {transform.height} x {transform.width} are expected; set dataset.size"


def fit(pixels: Pixels, transform: Transform) -> Pixels:
    """Return pixels ``[H, W, C]`` brought to the transform's size; ``ValueError`` if they must have it and do not."""
    height, width = pixels.shape[:2]
    if transform.fit == "exact":
        if (height, width) != (transform.height, transform.width):
            raise ValueError(misfit(height, width, transform))
        return pixels
    if transform.fit == "squash":
        return _scale(pixels, transform.height, transform.width)
    short = min(height, width)
    pixels = _scale(
        pixels, int(transform.resize * height / short), int(transform.resize * width / short)
    )
    top = round((pixels.shape[0] - transform.height) / 2)
    left = round((pixels.shape[1] - transform.width) / 2)
    return pixels[top : top + transform.height, left : left + transform.width]


def _scale(pixels: Pixels, height: int, width: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    from PIL import Image

    grey = pixels.shape[2] == 1
    image = Image.fromarray(pixels[:, :, 0] if grey else pixels)
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return scaled[:, :, None] if grey else scaled


def decode_into(out: Pixels, data: bytes | memoryview, title: str, transform: Transform) -> None:
    """Decode one picture into ``out [C, H, W]``; ``DataError`` with ``title`` if it cannot be read."""
    try:
        pixels = fit(decode(data, transform.channels, transform.orientation), transform)
    except ValueError as error:
        raise DataError(
            f"{title} cannot be decoded: {error or 'not a picture'} ({len(data)} bytes)"
        ) from error
    out[...] = pixels.transpose(2, 0, 1)


def decode_jpegs_into(
    rows: Sequence[Pixels], blobs: Iterable[bytes | memoryview], orientation: Orientation = "ignore"
) -> list[int]:
    """Decode JPEGs straight into contiguous ``rows``, each ``[H, W, C]``; return the places of
    those that are none of that size.

    ``orientation``: with ``exif`` those that are to be turned are among the places returned.
    """
    import simplejpeg

    shape, others = rows[0].shape, []
    colours = "GRAY" if shape[2] == 1 else "RGB"
    for place, (row, data) in enumerate(zip(rows, blobs, strict=True)):
        if (orientation == "exif" and orientation_of(data) != 1) or _scans(data) > SCANS:
            others.append(place)
            continue
        try:
            if simplejpeg.decode_jpeg(data, colours, buffer=row).shape != shape:
                others.append(place)
        except ValueError:
            others.append(place)
    return others


def encode(pixels: Pixels, encoding: Literal["png", "jpg"], quality: int = 95) -> bytes:
    """Return pixels ``[C, H, W]`` as PNG (lossless) or as JPEG of a quality from 1 to 100."""
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    if encoding == "jpg":
        import simplejpeg

        grey = image.shape[2] == 1
        return bytes(simplejpeg.encode_jpeg(image, quality, "GRAY" if grey else "RGB", "444"))
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(
        target, "PNG", compress_level=6
    )
    return target.getvalue()
