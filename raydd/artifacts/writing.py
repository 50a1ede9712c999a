"""A distilled set written in the formats of others, so that ours are used elsewhere."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from raydd.artifacts import published_folder
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.eight_bit import folder_files, tar_shards
from raydd.artifacts.pictures import SIDE_FILE, SeenPictures, outside, side_file
from raydd.artifacts.rendering import format_bytes
from raydd.core.errors import ConfigError, StorageError, unknown
from raydd.core.storage import Storage, join
from raydd.core.tensors import dump_tensors

log = logging.getLogger(__name__)
WRITTEN = ("pt", "folder", "webdataset", "safetensors")
PIECE = 1 << 24
"""Bytes of a file that are compared at a time."""
_IMAGES = "images"
Files = Callable[[], Iterator[tuple[str, bytes]]]
Tell = Callable[[str], None]


def write_set(distilled: DistilledSet, url: str, to: str, tell: Tell = log.warning) -> list[str]:
    """Write a set in a format of others (``pt``, ``folder``, ``webdataset``) or as one
    ``safetensors`` file; return the paths written.

    ``pt``: what students see, float images and their labels. ``folder`` and ``webdataset``: the
    same as 8-bit PNG, with the data set's facts and the range of the values in ``dataset.json``; an
    image folder cannot hold soft labels. What stands there already is refused, unless it is the
    same. ``tell`` gets what a user of the written set has to know.
    """
    check_target(url, to)
    if to in ("pt", "safetensors"):
        parent, _, name = url.rpartition("/")
        storage = Storage(parent or ("/" if url.startswith("/") else "."))
        if to == "pt":
            _check_room(distilled, storage)
        with _scratch(storage) as folder:
            write = _safetensors if to == "safetensors" else _pt
            return _put_file(storage, name, write(distilled, folder), tell)
    if to == "folder" and distilled.soft:
        raise ConfigError(
            "an image folder cannot hold soft labels; write pt, webdataset or safetensors instead"
        )
    shown = SeenPictures(distilled)
    left = outside(distilled, shown)
    side = [(SIDE_FILE, side_file(distilled, shown, folders=to == "folder"))]
    view = (
        (lambda: folder_files(shown, distilled.info))
        if to == "folder"
        else (lambda: tar_shards(shown))
    )
    written = _put_folder(Storage(url), lambda: chain(view(), side), tell)
    if left:
        tell(
            f"{left}. {SIDE_FILE} says on which scale the pictures keep them: read without it, they are another,"
            " paler set"
        )
    if distilled.whitening is not None:
        tell(
            "pictures hold the set before its whitening, and cannot say so: it is another set; pt and safetensors"
            " keep it"
        )
    return written


def check_target(url: str, to: str) -> None:
    """Raise ``ConfigError`` where nothing can be written as ``to``, whatever the set: before a set is read."""
    if to not in WRITTEN:
        raise unknown("format to write", to, WRITTEN)
    parent = url.rstrip("/").rpartition("/")[0]
    if to in ("pt", "safetensors"):
        if not url.endswith(f".{to}"):
            raise ConfigError(f"'{url}': a file to write as {to} must end in .{to}")
        url = parent
    if "://" not in url and url:
        there = next((path for path in (Path(url), *Path(url).parents) if path.exists()), None)
        if there is not None and not there.is_dir():
            raise ConfigError(f"{there} exists and is a file; name a folder to write as {to}")


def written_images(distilled: DistilledSet, to: str) -> int:
    """Return how many images a written set has: those that students see, but in raydd's own format,
    which holds them as they are stored.
    """
    return len(distilled) if to == "safetensors" else distilled.seen


@contextmanager
def _scratch(storage: Storage) -> Iterator[str]:
    """Yield an empty folder of this machine, beside a local target."""
    beside = storage.root if storage.local else None
    try:
        if beside is not None:
            os.makedirs(beside, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".raydd-", suffix=".tmp", dir=beside) as folder:
            yield folder
    except OSError as error:
        raise StorageError(f"could not write to {storage.url}: {error}") from error


def _check_room(distilled: DistilledSet, storage: Storage) -> None:
    """Raise ``ConfigError`` where the disk has no room for a set's images, as students see them, twice."""
    place = Path(storage.root if storage.local else tempfile.gettempdir())
    there = next(path for path in (place, *place.parents) if path.exists())
    needed, free = 8 * distilled.seen * math.prod(distilled.shape), shutil.disk_usage(there).free
    if needed > free:
        raise ConfigError(
            f"{distilled.seen:,} images as students see them: a pt file needs {format_bytes(needed)} in {there} while"
            f" it is written, and {format_bytes(free)} are free; safetensors holds what is stored"
            f" ({format_bytes(distilled.size.bytes)})"
        )


def _safetensors(distilled: DistilledSet, folder: str) -> str:
    path = os.path.join(folder, "set")
    facts = {"raydd": json.dumps(published_folder.facts(distilled), sort_keys=True)}
    Path(path).write_bytes(dump_tensors(distilled.stored(), facts))
    return path


def _pt(distilled: DistilledSet, folder: str) -> str:
    facts = dataclasses.asdict(
        dataclasses.replace(distilled.info, mean=distilled.mean, std=distilled.std)
    )
    values = {"data": [[_decoded(distilled, folder), distilled.targets]], "accs_all_exps": {}}
    if distilled.whitening is not None:
        facts["per_image"] = distilled.whitening.per_image
        values |= {
            "whitening_matrix": distilled.whitening.matrix,
            "whitening_mean": distilled.whitening.mean,
        }
    path = os.path.join(folder, "set")
    with open(path, "wb") as file:  # else the path's name would be a part of the file
        torch.save({**values, "raydd": json.dumps(facts)}, file)
    os.unlink(os.path.join(folder, _IMAGES))
    return path


def _decoded(distilled: DistilledSet, folder: str) -> Tensor:
    """Return the images that students see, float32 ``[M, C, H, W]``, in a file instead of memory."""
    path, shape = os.path.join(folder, _IMAGES), (distilled.seen, *distilled.shape)
    with open(path, "wb") as file:
        for ids in distilled.blocks():
            file.write(distilled.normalised(distilled.take(ids)).contiguous().numpy().data)
    size = math.prod(shape)
    return torch.from_file(path, shared=True, size=size, dtype=torch.float32).view(shape)


def _put_file(storage: Storage, name: str, path: str, tell: Tell) -> list[str]:
    if storage.exists(name):
        if not _same(storage, name, path):
            raise ConfigError(
                f"{join(storage.url, name)} exists and holds something else; name another file, or remove it"
            )
        tell(f"{join(storage.url, name)} is there already, the same")
        return []
    storage.upload(name, path)
    return [name]


def _same(storage: Storage, name: str, path: str) -> bool:
    """Return whether an object has the bytes of a local file, looked at in pieces."""
    size = os.path.getsize(path)
    if storage.size(name) != size:
        return False
    with open(path, "rb") as file:
        return all(
            storage.get(name, first, min(first + PIECE, size)) == file.read(PIECE)
            for first in range(0, size, PIECE)
        )


def _put_folder(storage: Storage, files: Files, tell: Tell) -> list[str]:
    """Write files; those of an earlier export of the same set may be there, others are refused
    before anything is written.
    """
    there = set(storage.list())
    if there:
        for path, data in files():
            if path in there and storage.get(path) != data:
                raise ConfigError(
                    f"{storage.url} is not empty: {path} there is another; name another folder, or remove it"
                )
        strange = sorted(there - {path for path, _ in files()})
        if strange:
            raise ConfigError(
                f"{storage.url} is not empty: it holds {strange[0]}; name another folder, or remove it"
            )
    written = []
    for path, data in files():
        if path not in there:
            storage.put(path, data)
            written.append(path)
    if not written:
        tell(f"{storage.url} is there already, the same")
    return written
