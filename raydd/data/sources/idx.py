"""MNIST's IDX files (http://yann.lecun.com/exdb/mnist), plain or gzipped."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from raydd.core.errors import DataError
from raydd.core.storage import Storage, join
from raydd.core.unpacking import gunzipped
from raydd.data.catalog import Entry
from raydd.data.config import DatasetConfig
from raydd.data.listing import Tree
from raydd.data.sources.source import SOURCES, Source, array_data
from raydd.data.split import BaseData

_PREFIX = {"train": "train", "test": "t10k"}


def parse_idx(data: bytes, what: str) -> torch.Tensor:
    """Return the uint8 array of an IDX file; ``DataError`` naming ``what`` if header and length disagree."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != 8:
        raise DataError(f"{what} is not an IDX file of unsigned bytes")
    head = 4 + 4 * data[3]
    if len(data) < head:
        raise DataError(f"{what} is torn: it ends within its header")
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, head, 4)]
    if len(data) != head + math.prod(shape):
        raise DataError(
            f"{what} is torn: {len(data)} bytes, its header says {head + math.prod(shape)}"
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=head).reshape(shape).copy())


class IdxSource(Source):
    """Four files in the root, in ``raw/`` or in torchvision's ``<Name>/raw/``."""

    def _find(self, files: Storage, entry: Entry, stem: str) -> str | None:
        folders = ("", "raw", f"{entry.downloader}/raw")
        candidates = [
            f"{folder}/{stem}{end}".lstrip("/") for folder in folders for end in ("", ".gz")
        ]
        return next(
            (path for path, there in zip(candidates, files.exist(candidates)) if there), None
        )

    def _stems(self, split: str) -> tuple[str, str]:
        return f"{_PREFIX[split]}-images-idx3-ubyte", f"{_PREFIX[split]}-labels-idx1-ubyte"

    def missing(self, files: Tree, entry: Entry, config: DatasetConfig) -> list[str]:
        stems = [stem for split in _PREFIX for stem in self._stems(split)]
        return [
            f"{stem}(.gz) is not in {files.url}"
            for stem in stems
            if self._find(files, entry, stem) is None
        ]

    def _read(self, files: Storage, entry: Entry, stem: str) -> torch.Tensor:
        path = self._find(files, entry, stem)
        if path is None:
            raise DataError(f"{stem}(.gz) is not in {files.url}")
        data = files.get(path)
        what = join(files.url, path)
        return parse_idx(gunzipped(data, what) if path.endswith(".gz") else data, what)

    def open(self, files: Tree, entry: Entry, config: DatasetConfig) -> Mapping[str, BaseData]:
        splits = {}
        for split in _PREFIX:
            images, labels = (self._read(files, entry, stem) for stem in self._stems(split))
            what = f"{entry.info.name} {split} in {files.url}"
            if images.ndim != 3 or labels.ndim != 1:
                shapes = f"images {tuple(images.shape)} and labels {tuple(labels.shape)}"
                raise DataError(f"{what}: {shapes}; expected [N, H, W] and [N]")
            splits[split] = array_data(images[:, None], labels, what, entry, config)
            splits[split].place = self._find(files, entry, self._stems(split)[0]) or ""
        return splits


SOURCES.register("idx")(IdxSource())
