"""RandAugment of 8-bit images with explicit draws: torchvision's operations and magnitudes (2 of
14, magnitude 9 of 31).

Source: Cubuk et al. 2019, arXiv 1909.13719; docs/methods/soft_labels.md, "RandAugment".
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from raydd.core.errors import ConfigError

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness",
    "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
COUNT = 2
LEVEL = 9 / 30
"""Magnitude 9 of 31 levels, as a share of the largest."""


def draw_operations(generator: torch.Generator) -> Tensor:
    """Return int64 ``[2, 2]``: for each of two operations its index and whether its magnitude is negative."""
    chosen = torch.randint(0, len(OPERATIONS), (COUNT,), generator=generator)
    return torch.stack([chosen, torch.randint(0, 2, (COUNT,), generator=generator)], 1)


def randaugment(images: Tensor, operations: Tensor) -> Tensor:
    """Return uint8 images ``[B, C, H, W]`` (grey or RGB) after ``operations`` ``[B, 2, 2]``; same device.

    Computed with Pillow on the CPU, as the published recipe does. ``ConfigError`` for images that are not 8-bit.
    """
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise ConfigError(
            f"labels.randaugment needs 8-bit grey or RGB images, not {images.dtype} with {images.shape[1]} channels"
        )
    out = []
    for image, chosen in zip(images.cpu(), operations.tolist(), strict=True):
        picture = to_pil_image(image)
        for operation, negative in chosen:
            picture = _apply(picture, OPERATIONS[operation], -LEVEL if negative else LEVEL)
        out.append(pil_to_tensor(picture))
    return torch.stack(out).to(images.device)


def _apply(picture: Any, name: str, level: float) -> Any:
    """Return a picture after one operation at ``level``, a share of the largest magnitude (-1 to 1)."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    def affine(**changed: Any) -> Any:
        settings: dict[str, Any] = {
            "angle": 0.0,
            "translate": [0, 0],
            "scale": 1.0,
            "shear": [0.0, 0.0],
            "center": None,
            **changed,
        }
        return F.affine(picture, interpolation=InterpolationMode.NEAREST, **settings)

    width, height = picture.size
    slope = math.degrees(math.atan(0.3 * level))
    strength = 1 + 0.9 * level
    operations = {
        "identity": lambda: picture,
        "shear_x": lambda: affine(shear=[slope, 0.0], center=[0, 0]),
        "shear_y": lambda: affine(shear=[0.0, slope], center=[0, 0]),
        "translate_x": lambda: affine(translate=[int(150 / 331 * width * level), 0]),
        "translate_y": lambda: affine(translate=[0, int(150 / 331 * height * level)]),
        "rotate": lambda: F.rotate(picture, 30 * level, InterpolationMode.NEAREST),
        "brightness": lambda: F.adjust_brightness(picture, strength),
        "color": lambda: F.adjust_saturation(picture, strength),
        "contrast": lambda: F.adjust_contrast(picture, strength),
        "sharpness": lambda: F.adjust_sharpness(picture, strength),
        "posterize": lambda: F.posterize(picture, 8 - round(4 * abs(level))),
        "solarize": lambda: F.solarize(picture, 255 * (1 - abs(level))),
        "autocontrast": lambda: F.autocontrast(picture),
        "equalize": lambda: F.equalize(picture),
    }
    return operations[name]()
