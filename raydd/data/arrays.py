"""A split held in memory as one uint8 array."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from raydd.core.errors import DataError
from raydd.data.split import BaseData, hashed


class ArrayData(BaseData):
    """Images ``[N, C, H, W]`` uint8 and labels ``[N]`` in memory; the digest is that of the decoded arrays."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, what: str = "data") -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise DataError(
                f"{what}: {len(labels)} labels for images {tuple(images.shape)} of {images.dtype}; expected uint8 [N,"
                " C, H, W]"
            )
        self.images = images.contiguous()
        self.labels = labels.to(torch.int64)
        channels, height, width = images.shape[1:]
        self.shape = (channels, height, width)
        self.skipped: dict[str, str] = {}
        h = hashlib.sha256(f"raydd-array:{tuple(images.shape)};".encode())
        h.update(self.images.numpy().data)
        h.update(self.labels.numpy().astype("<i8").data)
        self.digest = h.hexdigest()

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        return self.images[self.checked(ids)]

    def identities(self) -> np.ndarray:
        return hashed(image.tobytes() for image in self.images.numpy())
