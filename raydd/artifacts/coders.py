"""Images in the streams of picture formats: JPEG XL without loss, AVIF and WebP with (docs/per_byte.md, "Streams").

Images lie side by side on square pages, so that a coder sees many at once.
"""

from __future__ import annotations

import io
import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from raydd.core.errors import ConfigError, TornFileError

LOSSLESS = "jpegxl"
PICTURE_FORMATS = ("avif", "webp")
EXTRA = "raydd[codecs]"
"""What installs the coder of :data:`LOSSLESS`."""
EFFORT = 9
PAGE_PIXELS = 1 << 22
"""Pixels of a page; an image that is larger has a page of its own."""
LONGEST = {"webp": 16_383, "avif": 65_535}
"""The longest side of a page, by format."""


def check_coder(name: str) -> None:
    """Raise ``ConfigError`` saying what to install if a coder is not there."""
    if name == LOSSLESS:
        if find_spec("imagecodecs") is None:
            raise ConfigError(
                "levels and pixels are coded by JPEG XL, which the package imagecodecs reads and writes:"
                f" pip install '{EXTRA}'"
            )
        return
    from PIL import features

    if not features.check(name):
        raise ConfigError(
            f"this Pillow reads and writes no {name.upper()}: pip install --upgrade pillow"
        )


def coder_version(name: str) -> str:
    """Return the name and version of the library that codes, such as ``libjxl 0.11.2``."""
    if name == LOSSLESS:
        return str(_jpegxl().jpegxl_version())
    from PIL import features

    library = {"avif": "libavif", "webp": "libwebp"}[name]
    return f"{library} {features.version(name)}"


def page_sizes(count: int, height: int, width: int) -> list[int]:
    """Return how many of ``count`` images of this size lie on each page."""
    most = max(1, PAGE_PIXELS // (height * width))
    return [min(most, count - start) for start in range(0, count, most)]


def encode_pages(images: Tensor, name: str, quality: int = 0) -> list[bytes]:
    """Return a stream for each page of uint8 images ``[N, C, H, W]``; ``quality``: of lossy formats, 0 to 100."""
    check_coder(name)
    planes = _planes(images)
    sizes = page_sizes(len(planes), *images.shape[2:])
    return [_encode(_page(part), name, quality) for part in planes.split(sizes or [0]) if len(part)]


def decode_pages(streams: list[bytes], name: str, shape: tuple[int, int, int, int]) -> Tensor:
    """Return the uint8 images ``[N, C, H, W]`` of :func:`encode_pages`' streams.

    ``TornFileError`` for what is no such stream, and for pages of another size, of which nothing is decoded.
    """
    check_coder(name)
    count, channels, height, width = shape
    merged = channels in (1, 3)
    planes, depth = (count, channels) if merged else (count * channels, 1)
    parts = [
        _cut(_decode(stream, name, *_sides(number, height, width), depth), number, height, width)
        for stream, number in zip(streams, page_sizes(planes, height, width), strict=True)
    ]
    if not parts:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.cat(parts).reshape(shape)


def _planes(images: Tensor) -> Tensor:
    """Return images of 1 or 3 channels as they are, and others' channels as images of their own."""
    if images.shape[1] in (1, 3):
        return images
    return images.flatten(0, 1).unsqueeze(1)


def _sides(count: int, height: int, width: int) -> tuple[int, int]:
    """Return the height and the width of the page of so many images."""
    columns = _columns(count)
    return height * -(-count // columns), width * columns


def _columns(count: int) -> int:
    return math.isqrt(max(0, count - 1)) + 1


def _page(images: Tensor) -> Tensor:
    """Return images ``[N, C, H, W]`` row by row on one page ``[h, w, C]``; what is left over is 0."""
    count, channels, height, width = images.shape
    columns = _columns(count)
    rows = -(-count // columns)
    full = images.new_zeros(rows * columns, channels, height, width)
    full[:count] = images
    tiles = full.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)
    return tiles.reshape(rows * height, columns * width, channels).contiguous()


def _cut(page: Tensor, count: int, height: int, width: int) -> Tensor:
    """Return the images ``[N, C, H, W]`` of a page ``[h, w, C]``."""
    tiles = page.unflatten(1, (-1, width)).unflatten(0, (-1, height)).permute(0, 2, 4, 1, 3)
    return tiles.flatten(0, 1)[:count]


def _jpegxl() -> Any:
    check_coder(LOSSLESS)
    import imagecodecs

    return imagecodecs


def _encode(page: Tensor, name: str, quality: int) -> bytes:
    pixels = page.numpy() if page.shape[2] > 1 else page[:, :, 0].numpy()
    if name == LOSSLESS:
        return bytes(
            _jpegxl().jpegxl_encode(
                pixels, lossless=True, effort=EFFORT, usecontainer=False, numthreads=1
            )
        )
    from PIL import Image

    if max(pixels.shape[:2]) > LONGEST[name]:
        raise ConfigError(
            f"{name} holds pictures of at most {LONGEST[name]} pixels a side; this one is"
            f" {pixels.shape[1]}×{pixels.shape[0]}"
        )
    options: dict[str, Any] = {"quality": quality}
    if name == "avif":
        grey = {"subsampling": "4:0:0"} if page.shape[2] == 1 else {}
        options |= {"speed": 4, "max_threads": 1, **grey}
    else:
        options |= {"method": 6}
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name.upper(), **options)
    return file.getvalue()


def _decode(stream: bytes, name: str, height: int, width: int, channels: int) -> Tensor:
    """Return the page ``[height, width, channels]`` of a stream."""
    import numpy as np

    shape = (height, width, channels) if channels > 1 else (height, width)
    if name == LOSSLESS:
        pixels = np.empty(shape, np.uint8)
        try:
            # Into an array of the size that it must have: one of another size is refused before it is decoded.
            _jpegxl().jpegxl_decode(stream, numthreads=1, out=pixels)
        except (RuntimeError, ValueError) as error:
            raise TornFileError(f"its stream is no such JPEG XL picture: {error}") from error
        return torch.from_numpy(pixels).reshape(height, width, channels)
    from PIL import Image

    try:
        with Image.open(io.BytesIO(stream), formats=(name.upper(),)) as picture:
            if picture.size != (width, height):
                raise ValueError(f"{picture.size} pixels, not {(width, height)}")
            pixels = np.array(picture.convert("RGB"))
    except (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TornFileError(f"its stream is no such {name} picture: {error}") from error
    return torch.from_numpy(pixels[:, :, :channels].copy())
