"""Bytes of one picture to uint8 pixels of a fixed shape, and back."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from raydd.core.errors import DataError

Pixels = npt.NDArray[np.uint8]
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp")
_JPEG = b"\xff\xd8"


@dataclass(frozen=True, kw_only=True)
class Transform:
    """How a decoded picture becomes ``(channels, height, width)``.

    ``fit``: ``exact`` refuses any other shape; ``crop`` scales the shorter side to ``resize`` (bilinear, antialiased) and
    cuts the centre, as torchvision's Resize and CenterCrop do; ``squash`` scales both sides.
    """

    channels: int
    height: int
    width: int
    fit: Literal["exact", "crop", "squash"] = "exact"
    resize: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of what comes out."""
        return (self.channels, self.height, self.width)


def decode(data: bytes | memoryview, channels: int) -> Pixels:
    """Return the pixels ``[H, W, C]`` of an encoded picture, converted to grey (1) or RGB (3 channels).

    JPEG by simplejpeg; what that refuses (CMYK, damaged ends) and other formats by Pillow. ``ValueError`` if neither can.
    The EXIF orientation is ignored, as in the field's loaders.
    """
    import simplejpeg

    if bytes(data[:2]) == _JPEG:
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="GRAY" if channels == 1 else "RGB")
            return pixels
        except ValueError:
            pass
    return _decode_pillow(data, channels)


def _decode_pillow(data: bytes | memoryview, channels: int) -> Pixels:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP")) as image:
            deep = image.mode.startswith("I")  # 16 bits: Pillow's own conversion would clip
            shallow = Image.fromarray((np.asarray(image) // 256).astype(np.uint8)) if deep else image
            pixels = np.array(shallow.convert("L" if channels == 1 else "RGB"))
    except UnidentifiedImageError as error:
        raise ValueError("not a JPEG, PNG, WebP or BMP picture") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    return pixels[:, :, None] if channels == 1 else pixels


def size_of(data: bytes) -> tuple[int, int] | None:
    """Return height and width of an encoded picture as its header says, ``None`` where there is no readable one."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP")) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # told when it is decoded
        return None


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
    pixels = _scale(pixels, int(transform.resize * height / short), int(transform.resize * width / short))
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
        pixels = fit(decode(data, transform.channels), transform)
    except ValueError as error:
        raise DataError(f"{title} cannot be decoded: {error or 'not a picture'} ({len(data)} bytes)") from error
    out[...] = pixels.transpose(2, 0, 1)


def decode_jpegs_into(rows: Sequence[Pixels], blobs: Iterable[bytes | memoryview]) -> list[int]:
    """Decode JPEGs straight into contiguous ``rows``, each ``[H, W, C]``; return the places of those that are none of that size."""
    import simplejpeg

    shape, others = rows[0].shape, []
    colours = "GRAY" if shape[2] == 1 else "RGB"
    for place, (row, data) in enumerate(zip(rows, blobs, strict=True)):
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
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(target, "PNG", compress_level=6)
    return target.getvalue()
