"""What saving as JPEG does to images: published sets of patches and of recovered images were saved
so, and trained on decoded.
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from raydd.core.errors import ConfigError

ImageFormat = Literal["jpeg75", "png"]
"""How a method's images are stored: ``jpeg75``, through JPEG with Pillow's defaults; ``png``, without loss."""

QUALITY = 75


def jpeg_round_trip(images: Tensor) -> Tensor:
    """Return uint8 images ``[N, C, H, W]`` (grey or RGB, on the CPU) as they are after JPEG
    encoding and decoding by Pillow.

    Pillow's defaults: quality 75, colour at half the resolution (4:2:0), standard tables
    (docs/methods/recovery.md, "Stored images"). ``ConfigError`` for other kinds of images.
    """
    from PIL import Image

    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(
            f"JPEG holds uint8 images [N, C, H, W] of 1 or 3 channels, not {images.dtype} {list(images.shape)}"
        )
    grey = images.shape[1] == 1
    pixels = images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    made = np.empty_like(pixels)
    for picture, out in zip(pixels, made):
        file = io.BytesIO()
        Image.fromarray(picture[:, :, 0] if grey else picture).save(file, "JPEG", quality=QUALITY)
        with Image.open(file) as decoded:
            out[...] = np.asarray(decoded).reshape(out.shape)
    return torch.from_numpy(made).permute(0, 3, 1, 2).contiguous()


def stored_as(images: Tensor, image_format: ImageFormat) -> Tensor:
    """Return uint8 images ``[N, C, H, W]`` as a format gives them back."""
    return jpeg_round_trip(images) if image_format == "jpeg75" else images
