"""The published tree of statistics: a small ``npz`` per layer and class (specification edc_sre2l_gvbsm_rded, section 1.6)."""

from __future__ import annotations

import hashlib
import io
import re
import zlib
from functools import lru_cache
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from raydd.core.errors import DataError
from raydd.core.storage import Storage, join

_FILE = re.compile(r"(?:.*/)?(Conv|BN)FeatureHook/(?:class_(\d+)/)?([^/=]+)=([^/]+)/running\.npz")
KEYS = {"mu": "running_dd_mean", "var": "running_dd_var", "pmu": "running_patch_mean", "pvar": "running_patch_var"}
Files = dict[tuple[str, int], str]
"""The paths of ``(layer, class)``, class -1 for the whole data set."""


def read_npz(storage: Storage, path: str) -> dict[str, Tensor]:
    """Return the statistics in one file, under our names; ``DataError`` if it is torn."""
    try:
        with np.load(io.BytesIO(storage.get(path)), allow_pickle=False) as arrays:
            return {ours: torch.from_numpy(np.array(arrays[key], np.float32)) for ours, key in KEYS.items() if key in arrays}
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(f"{join(storage.url, path)} is no npz file of statistics: {error}") from error


@lru_cache(maxsize=4)
def list_tree(url: str) -> dict[str, Files]:
    """Return, by the network's class name, a published tree's files; kept, since there may be hundreds of thousands."""
    tree: dict[str, Files] = {}
    for path in Storage(url).list():
        match = _FILE.fullmatch(path)
        if match is not None:
            tree.setdefault(match[3], {})[match[4], int(match[2] or -1)] = path
    if not tree:
        raise DataError(f"{url} holds neither <network>.safetensors nor the folders ConvFeatureHook and BNFeatureHook")
    return tree


@lru_cache(maxsize=4)
def _hash_tree(url: str) -> str:
    entries = [(path, c) for files in list_tree(url).values() for (_, c), path in files.items()]
    h = hashlib.sha256("\n".join(sorted(path for path, _ in entries)).encode())
    storage = Storage(url)
    for path in sorted(path for path, c in entries if c <= 0):
        h.update(storage.get(path))
    return h.hexdigest()


def tree_digest(url: str) -> str:
    """Return the sha256 of all paths, of the data set's files and of those of the first class; empty if there is no tree."""
    try:
        return _hash_tree(url)
    except DataError:
        return ""
