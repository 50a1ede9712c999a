"""SVHN, cropped digits (http://ufldl.stanford.edu/housenumbers): two MATLAB files; the extra split is not used."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from raydd.core.errors import DataError, RayddError
from raydd.core.storage import join
from raydd.core.unpacking import check_unfolded, inflated_bytes, most
from raydd.data.catalog import Entry
from raydd.data.config import DatasetConfig
from raydd.data.listing import Tree
from raydd.data.sources.source import SOURCES, Source, array_data
from raydd.data.split import BaseData

_FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


_HEADER, _COMPRESSED = 128, 15
"""Bytes before the first element of a MATLAB file; the type of a compressed one."""


def check_compressed(data: bytes, what: str) -> None:
    """Raise ``DataError`` naming ``what`` if the elements of a MATLAB file (version 5) unfold to much
    more than they are; ``zlib.error`` if they do not unfold.
    """
    order: Literal["little", "big"] = "little" if data[126:128] == b"IM" else "big"
    at, limit, count = _HEADER, most(len(data)), 0
    while at + 8 <= len(data):
        kind, size = (int.from_bytes(data[i : i + 4], order) for i in (at, at + 4))
        if kind == _COMPRESSED:
            count += inflated_bytes(memoryview(data)[at + 8 : at + 8 + size], limit)
            check_unfolded(count, len(data), what)
        at += 8 + size


class SvhnSource(Source):
    """``train_32x32.mat`` and ``test_32x32.mat`` in the root; label 10 is the digit 0."""

    def missing(self, files: Tree, entry: Entry, config: DatasetConfig) -> list[str]:
        return [
            f"{name} is not in {files.url}" for name in _FILES.values() if not files.exists(name)
        ]

    def open(self, files: Tree, entry: Entry, config: DatasetConfig) -> Mapping[str, BaseData]:
        from scipy.io import loadmat

        splits = {}
        for split, name in _FILES.items():
            what = join(files.url, name)
            try:
                data = files.get(name)
                check_compressed(data, what)
                content = loadmat(io.BytesIO(data), variable_names=["X", "y"])
                pixels, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
            except RayddError:
                raise
            except Exception as error:
                raise DataError(
                    f"{what} is torn or not a MATLAB file of X and y: {error}"
                ) from error
            if (
                pixels.dtype != np.uint8
                or pixels.ndim != 4
                or pixels.shape[:3] != (32, 32, 3)
                or pixels.shape[3] != len(labels)
            ):
                raise DataError(
                    f"{what}: X {pixels.shape} of {pixels.dtype} with {len(labels)} labels; expected uint8 [32, 32,"
                    " 3, N]"
                )
            if len(labels) and not (labels.min() >= 1 and labels.max() <= 10):
                raise DataError(f"{what}: label {int(labels.max())}; 1 to 10 are expected")
            images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
            splits[split] = array_data(images, torch.from_numpy(labels % 10), what, entry, config)
            splits[split].place = name
        return splits


SOURCES.register("svhn")(SvhnSource())
