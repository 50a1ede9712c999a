"""A distilled set written in the formats of others, so that ours are used elsewhere."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch

from raydd.artifacts import published_folder as folder
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.eight_bit import folder_files, tar_shards
from raydd.artifacts.pictures import SIDE_FILE, SeenPictures, outside, side_file
from raydd.core.errors import ConfigError, unknown
from raydd.core.storage import Storage, join
from raydd.core.tensors import dump_tensors

log = logging.getLogger(__name__)
WRITTEN = ("pt", "folder", "webdataset", "safetensors")
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
        data = _safetensors(distilled) if to == "safetensors" else _pt(distilled)
        return _put_file(Storage(parent or ("/" if url.startswith("/") else ".")), name, data, tell)
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


def _safetensors(distilled: DistilledSet) -> bytes:
    return dump_tensors(
        distilled.stored(), {"raydd": json.dumps(folder.facts(distilled), sort_keys=True)}
    )


def _pt(distilled: DistilledSet) -> bytes:
    facts = dataclasses.asdict(
        dataclasses.replace(distilled.info, mean=distilled.mean, std=distilled.std)
    )
    values = {"data": [list(distilled.tensors())], "accs_all_exps": {}}
    if distilled.whitening is not None:
        facts["per_image"] = distilled.whitening.per_image
        values |= {
            "whitening_matrix": distilled.whitening.matrix,
            "whitening_mean": distilled.whitening.mean,
        }
    buffer = io.BytesIO()
    torch.save({**values, "raydd": json.dumps(facts)}, buffer)
    return buffer.getvalue()


def _put_file(storage: Storage, name: str, data: bytes, tell: Tell) -> list[str]:
    if storage.exists(name):
        if storage.size(name) != len(data) or storage.get(name) != data:
            raise ConfigError(
                f"{join(storage.url, name)} exists and holds something else; name another file, or remove it"
            )
        tell(f"{join(storage.url, name)} is there already, the same")
        return []
    storage.put(name, data)
    return [name]


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
