"""The published tree of statistics: a small ``npz`` per layer and class
(docs/methods/recovery.md, "Files of statistics").
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from raydd.core.errors import DataError
from raydd.core.storage import Storage, join
from raydd.core.unpacking import check_zip

_FILE = re.compile(r"(?:.*/)?(Conv|BN)FeatureHook/(?:class_(\d+)/)?([^/=]+)=([^/]+)/running\.npz")
KEYS = {
    "mu": "running_dd_mean",
    "var": "running_dd_var",
    "pmu": "running_patch_mean",
    "pvar": "running_patch_var",
}
_CHUNK = 64
Files = dict[tuple[str, int], str]
"""The paths of ``(layer, class)``, class -1 for the whole data set."""


def read_npz(storage: Storage, path: str) -> dict[str, Tensor]:
    """Return the statistics in one file, under our names; ``DataError`` if it is torn."""
    data = storage.get(path)
    try:
        check_zip(data, join(storage.url, path))
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {
                ours: torch.from_numpy(np.array(arrays[key], np.float32))
                for ours, key in KEYS.items()
                if key in arrays
            }
    except DataError:
        raise
    except Exception as error:  # whatever a header makes of the library that reads it
        raise DataError(
            f"{join(storage.url, path)} is no npz file of statistics: {error}"
        ) from error


@lru_cache(maxsize=4)
def _listing(url: str) -> dict[str, str]:
    return Storage(url).stamps()


@lru_cache(maxsize=4)
def list_tree(url: str) -> dict[str, Files]:
    """Return, by the network's class name, a published tree's files; kept, since there may be hundreds of thousands."""
    tree: dict[str, Files] = {}
    for path in _listing(url):
        match = _FILE.fullmatch(path)
        if match is not None:
            tree.setdefault(match[3], {})[match[4], int(match[2] or -1)] = path
    if not tree:
        raise DataError(
            f"{url} holds neither <network>.safetensors nor the folders ConvFeatureHook and BNFeatureHook"
        )
    return tree


def _contents(storage: Storage, paths: Sequence[str]) -> bytes:
    return b"".join(hashlib.sha256(storage.get(path)).digest() for path in paths)


@lru_cache(maxsize=4)
def _hash_tree(url: str) -> str:
    storage, stamps = Storage(url), _listing(url)
    entries = sorted(
        (path, c) for files in list_tree(url).values() for (_, c), path in files.items()
    )
    h = hashlib.sha256(
        "\n".join(
            path if storage.local else f"{path} {stamps[path]}" for path, _ in entries
        ).encode()
    )
    read = [path for path, c in entries if storage.local or c <= 0]
    with ThreadPoolExecutor(16) as pool:
        for part in pool.map(
            partial(_contents, storage), (read[i : i + _CHUNK] for i in range(0, len(read), _CHUNK))
        ):
            h.update(part)
    return h.hexdigest()


def tree_digest(url: str) -> str:
    """Return the sha256 of a published tree's paths and files, kept like :func:`list_tree`; empty if there is no tree.

    Local files are read, so that a copy has the same digest. Elsewhere that would be a request for
    each: there it is of the data set's files, those of the first class, and the sizes and checksums
    (or times) that the listing says of all.
    """
    try:
        return _hash_tree(url)
    except DataError:
        return ""


def forget_trees() -> None:
    """Drop what is kept of trees: they may have changed since the last job of this process."""
    for kept in (_listing, list_tree, _hash_tree):
        kept.cache_clear()
