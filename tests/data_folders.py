"""The folders ``data/<name>`` of every data set of the catalog, as their publishers pack them, with
the fewest and smallest pictures.

And a stage that looks at them all.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.io
import torch
from PIL import Image

from raydd.core.tensors import Tensors
from raydd.core.units import Data, Stage
from raydd.data.catalog import CATALOG, entry
from raydd.runtime.runner import OpenData


def jpeg(tone: int, side: int = 8) -> bytes:
    """Return a JPEG of one tone."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), tone, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def put(path: Path, data: bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _idx(root: Path) -> None:
    for stem, count in (("train", 40), ("t10k", 20)):
        images = np.arange(count * 784, dtype=np.uint32).reshape(count, 28, 28) % 251
        for kind, values in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
            head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            put(root / f"{stem}-{kind}-ubyte", head + values.astype(np.uint8).tobytes())


def _svhn(root: Path) -> None:
    root.mkdir(parents=True)
    for split, count in (("train", 40), ("test", 20)):
        pixels = (np.arange(count * 3072) % 251).astype(np.uint8).reshape(32, 32, 3, count)
        scipy.io.savemat(
            root / f"{split}_32x32.mat",
            {"X": pixels, "y": (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]},
        )


def _rows(count: int) -> np.ndarray:
    return (np.arange(count * 3072) % 251).astype(np.uint8).reshape(count, 3072)


def _cifar10(root: Path) -> None:
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        put(
            root / "cifar-10-batches-py" / name,
            pickle.dumps({b"data": _rows(20), b"labels": [i % 10 for i in range(20)]}),
        )


def _cifar100(root: Path) -> None:
    for name in ("train", "test"):
        content = {
            b"data": _rows(200),
            b"fine_labels": [i % 100 for i in range(200)],
            b"coarse_labels": [0] * 200,
        }
        put(root / "cifar-100-python" / name, pickle.dumps(content))


def _tiny(root: Path) -> None:
    wnids = [f"n{i:08d}" for i in range(200)]
    put(root / "wnids.txt", "\n".join(wnids).encode())
    put(
        root / "val" / "val_annotations.txt",
        "".join(f"val_{i}.JPEG\t{w}\t0\t0\t62\t62\n" for i, w in enumerate(wnids)).encode(),
    )
    for i, wnid in enumerate(wnids):
        put(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", jpeg(i, 64))
        put(root / "val" / "images" / f"val_{i}.JPEG", jpeg(i + 1, 64))


def _by_class(root: Path, names: tuple[str, ...], test: str = "val") -> None:
    for i, name in enumerate(names):
        for split in ("train", test):
            for k in range(2):
                put(root / split / name / f"{k}.JPEG", jpeg(i % 250 + k))


def _imagenet(root: Path) -> None:
    _by_class(root, tuple(f"n{i:08d}" for i in range(1000)))


def _imagenet10(root: Path) -> None:
    _by_class(root, entry("imagenet10").classes)


def _image_folder(root: Path) -> None:
    _by_class(root, ("cat", "dog"), "test")


def _cub(root: Path) -> None:
    base, names = (
        root / "CUB_200_2011",
        [f"{c + 1:03d}.Bird/{k}.jpg" for c in range(200) for k in range(2)],
    )
    for i, name in enumerate(names):
        put(base / "images" / name, jpeg(i % 250))
    put(base / "images.txt", "".join(f"{i + 1} {name}\n" for i, name in enumerate(names)).encode())
    put(
        base / "image_class_labels.txt",
        "".join(f"{i + 1} {i // 2 + 1}\n" for i in range(400)).encode(),
    )
    put(base / "train_test_split.txt", "".join(f"{i + 1} {i % 2}\n" for i in range(400)).encode())
    put(base / "classes.txt", "".join(f"{c + 1} {c + 1:03d}.Bird\n" for c in range(200)).encode())


def _webdataset(root: Path) -> None:
    root.mkdir(parents=True)
    for split in ("train", "test"):
        with tarfile.open(root / f"{split}-0.tar", "w") as tar:
            for i in range(8):
                for kind, data in (("jpg", jpeg(i)), ("cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(f"{i:04d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


WRITERS: dict[str, Callable[[Path], None]] = {
    "mnist": _idx,
    "fashion_mnist": _idx,
    "svhn": _svhn,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "tiny_imagenet": _tiny,
    "imagenet": _imagenet,
    "imagenet10": _imagenet10,
    "cub200": _cub,
    "image_folder": _image_folder,
    "webdataset": _webdataset,
    "digits": lambda root: None,  # comes with scikit-learn
}
"""By data set: writes its files into a folder that is not there yet."""

assert set(WRITERS) == set(CATALOG), "a data set of the catalog has no files here"


@dataclass(frozen=True)
class OpenAll:
    """Opens the training split of each of several data sets, called by the data set's name."""

    each: Mapping[str, OpenData]

    def __call__(self) -> dict[str, Data]:
        return {name: open_one()["train"] for name, open_one in self.each.items()}


@dataclass(frozen=True, kw_only=True)
class Look(Stage):
    """A unit for each data set: its labels and the sum of its first images."""

    phase: ClassVar[str] = "init"
    names: tuple[str, ...]

    def units(self) -> Sequence[str]:
        return self.names

    def steps(self, unit: str) -> int:
        return 0

    def finish(self, unit: str, state: Tensors, ctx: Any) -> Tensors:
        data = ctx.data[unit]
        return {
            "labels": data.labels,
            "sum": data.take(torch.arange(min(20, len(data)))).sum()[None],
            "pid": torch.tensor([os.getpid()]),
        }
