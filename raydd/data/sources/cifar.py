"""CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html): the binary and the Python version."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from raydd.core.errors import DataError
from raydd.core.storage import Storage, join
from raydd.data.catalog import Entry
from raydd.data.config import DatasetConfig
from raydd.data.listing import Tree
from raydd.data.sources.source import SOURCES, Source, array_data
from raydd.data.split import BaseData

_PIXELS = 3072
_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


def _encode_latin1(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"codec '{codec}'")
    return text.encode("latin1")


class _Kind:
    """Stands for NumPy's types of numbers, as a pickle makes one: by its code, then its byte order."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code, self.order = code.decode() if isinstance(code, bytes) else str(code), "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    def numbers(self, data: bytes | str, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
        """Return whole numbers of so many bytes; ``UnpicklingError`` for any other type, or number of them."""
        if not re.fullmatch(r"[iu][1248]", self.code) or self.order not in ("|", "<", ">", "="):
            raise pickle.UnpicklingError(f"an array of {self.code[:20]!r}")
        kind = np.dtype(f"{self.order}{self.code}")
        held = data.encode("latin1") if isinstance(data, str) else bytes(data)
        if len(held) != math.prod(shape) * kind.itemsize:
            raise pickle.UnpicklingError(f"{len(held)} bytes for an array of {shape}")
        return np.frombuffer(held, kind).reshape(shape, order="F" if fortran else "C")


class _Array:
    """Stands for NumPy's array, which a pickle makes empty and then fills."""

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        self.values = kind.numbers(data, shape, fortran)


def _from_buffer(data: bytes, kind: _Kind, shape: tuple[int, ...], order: str) -> _Array:
    made = _Array()
    made.values = kind.numbers(data, shape, order == "F")
    return made


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode_latin1,
}


class _Reader(pickle.Unpickler):
    """Builds numbers, text, lists, dicts and numeric arrays; any other name in the file stops the reading."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which a CIFAR file does not need"
            )
        return _ALLOWED[(module, name)]


def read_batch(data: bytes, what: str) -> dict[str, Any]:
    """Return the dictionary in a file of the Python version; ``DataError`` if it holds anything but plain data."""
    try:
        loaded = _Reader(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:
        raise DataError(f"{what} is refused: {error}") from error
    if not isinstance(loaded, dict):
        raise DataError(
            f"{what} is refused: a dictionary is expected, it holds a {type(loaded).__name__}"
        )
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): value.values
        if isinstance(value, _Array)
        else value
        for key, value in loaded.items()
    }


def _from_python(data: bytes, what: str, fine: bool) -> tuple[np.ndarray, np.ndarray]:
    batch = read_batch(data, what)
    pixels, labels = batch.get("data"), batch.get("fine_labels" if fine else "labels")
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != _PIXELS
    ):
        raise DataError(f"{what}: no uint8 array [N, {_PIXELS}] under 'data'")
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(isinstance(v, int) for v in labels)
    ):
        raise DataError(f"{what}: no list of {len(pixels)} labels")
    return pixels, np.array(labels, dtype=np.int64)


def _from_binary(data: bytes, what: str, fine: bool) -> tuple[np.ndarray, np.ndarray]:
    head = 2 if fine else 1
    if not data or len(data) % (head + _PIXELS):
        raise DataError(f"{what} is torn: {len(data)} bytes are no multiple of {head + _PIXELS}")
    rows = np.frombuffer(data, np.uint8).reshape(-1, head + _PIXELS)
    return rows[:, head:], rows[:, head - 1].astype(np.int64)


class CifarSource(Source):
    """Files in the root or in the folder that their archive unpacks to; 100 classes have fine labels, 10 have not."""

    def _layouts(self, entry: Entry) -> list[tuple[str, dict[str, list[str]]]]:
        if entry.info.classes == 100:
            return [
                ("cifar-100-binary", {"train": ["train.bin"], "test": ["test.bin"]}),
                ("cifar-100-python", {"train": ["train"], "test": ["test"]}),
            ]
        binary = {"train": [f"{name}.bin" for name in _BATCHES], "test": ["test_batch.bin"]}
        return [
            ("cifar-10-batches-bin", binary),
            ("cifar-10-batches-py", {"train": _BATCHES, "test": ["test_batch"]}),
        ]

    def _find(self, files: Storage, entry: Entry) -> dict[str, list[str]] | None:
        for folder, splits in self._layouts(entry):
            for prefix in (f"{folder}/", ""):
                paths = {
                    split: [prefix + name for name in names] for split, names in splits.items()
                }
                if all(
                    files.exists(path) for path in [*paths["test"], *paths["train"]]
                ) and not self._is_folder(files, paths["train"][0]):
                    return paths
        return None

    def _is_folder(self, files: Storage, path: str) -> bool:
        return bool(files.fs.isdir(f"{files.root.rstrip('/')}/{path}"))

    def missing(self, files: Tree, entry: Entry, config: DatasetConfig) -> list[str]:
        if self._find(files, entry) is not None:
            return []
        names = [
            f"{folder}/ ({', '.join([*splits['train'], *splits['test']])})"
            for folder, splits in self._layouts(entry)
        ]
        return [f"neither {' nor '.join(names)} is whole in {files.url}"]

    def open(self, files: Tree, entry: Entry, config: DatasetConfig) -> Mapping[str, BaseData]:
        fine = entry.info.classes == 100
        found = self._find(files, entry)
        if found is None:
            raise DataError("; ".join(self.missing(files, entry, config)))
        splits = {}
        for split, paths in found.items():
            parts = []
            for path in paths:
                read = _from_binary if path.endswith(".bin") else _from_python
                parts.append(read(files.get(path), join(files.url, path), fine))
            images = torch.from_numpy(
                np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
            )
            labels = torch.from_numpy(np.concatenate([values for _, values in parts]))
            if int(labels.max()) >= entry.info.classes or int(labels.min()) < 0:
                raise DataError(
                    f"{join(files.url, paths[0])}: label {int(labels.max())} among {entry.info.classes} classes"
                )
            splits[split] = array_data(
                images, labels, f"{entry.info.name} {split} in {files.url}", entry, config
            )
            splits[split].place = (
                paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1].rpartition('/')[2]}"
            )
        return splits


SOURCES.register("cifar")(CifarSource())
