"""A split made of image files below one URL."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from raydd.core.errors import DataError
from raydd.core.storage import Storage, join
from raydd.data.encoded import Blob, EncodedData, Ids
from raydd.data.images import Transform, misfit, orientation_of, size_of
from raydd.data.split import hashed

HASHED_BYTES = 256 << 20
"""Local splits up to this size are identified by the files' content, larger and remote ones by names and sizes."""


def _read(files: Storage, path: str) -> bytes:
    """Return a local file's bytes: of a hundred thousand small files the storage's care for each
    takes longer than reading it.
    """
    try:
        with open(os.path.join(files.root, path), "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return files.get(path)  # tries again what may pass, and names it


class FolderData(EncodedData):
    """Image files ``paths`` below ``files`` with a label each; decoded when asked for.

    The digest covers paths, labels, the transform and the sizes (see ``HASHED_BYTES`` for when it
    covers the content). What is read for it must have the transform's size where that is ``exact``:
    ``DataError`` for a picture of another, unless ``skip``.
    """

    def __init__(
        self,
        files: Storage,
        found: Sequence[tuple[str, int]],
        labels: torch.Tensor,
        transform: Transform,
        skip: bool,
    ) -> None:
        if not found:
            raise DataError(f"no images in {files.url}")
        self.files = files
        self.paths = [path for path, _ in found]
        sizes = np.array([size for _, size in found], dtype=np.int64)
        h = hashlib.sha256(repr(transform).encode())
        content = files.local and int(sizes.sum()) <= HASHED_BYTES
        oriented = 0
        for (path, size), label in zip(found, labels.tolist()):
            h.update(f"\n{path}\t{size}\t{label}".encode(errors="surrogateescape"))
            if content:
                data = _read(files, path)
                h.update(hashlib.sha256(data).digest())
                oriented += orientation_of(data) != 1
                if transform.fit == "exact" and not skip:
                    self._check_size(path, data, transform)
        super().__init__(labels.to(torch.int64), sizes, transform, h.hexdigest(), skip)
        self.oriented = (len(found), oriented) if content else None

    def _check_size(self, path: str, data: bytes, transform: Transform) -> None:
        found = size_of(data, transform.orientation)
        if found is not None and found != (transform.height, transform.width):
            raise DataError(f"{join(self.files.url, path)}: {misfit(*found, transform)}")

    def title(self, sample: int) -> str:
        return join(self.files.url, self.paths[sample])

    def identities(self) -> np.ndarray:
        return hashed(path.encode(errors="surrogateescape") for path in self.paths)

    def blobs(self, ids: Ids) -> list[Blob]:
        if len(ids) < 4:
            return [self._get(i) for i in ids]
        pool: ThreadPoolExecutor = self.pool("fetch", 4 if self.files.local else 32)
        return list(pool.map(self._get, ids))

    def _get(self, sample: int) -> bytes:
        try:
            return self.files.get(self.paths[sample])
        except FileNotFoundError as error:
            raise DataError(
                f"{self.title(sample)} was there when the folder was listed and is gone"
            ) from error
