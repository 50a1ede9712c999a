"""Distilled sets of others, read and written, so that published sets are evaluated here and ours elsewhere.

============  ==========================================================================================================
format        what it is
============  ==========================================================================================================
distilled     raydd's own folder (:mod:`raydd.artifacts.folder`), or a run's output folder that holds it
safetensors   one ``data.safetensors`` of raydd, with how to read it in its header
pt            ``.pt`` of DC, DSA and DM: a dict whose ``data`` lists ``[images, labels]`` per experiment; also a pair
              ``(images, labels)`` or a dict of them; images as networks see them
mtt           ``images_best.pt`` with ``labels_best.pt`` beside it (MTT and its descendants), alone or in a folder
folder        a folder per class of PNG or JPEG files (SRe2L, EDC, RDED, any image folder)
webdataset    tar shards with ``.png``/``.jpg`` and ``.cls``
============  ==========================================================================================================

Formats of others say neither what data set they stand for nor how it is normalised: ``info`` does, or a ``dataset.json``
that raydd wrote beside them. Sets made in a whitened space (MTT with ZCA) do not carry their whitening either: give it with
``dataclasses.replace(distilled, whitening=…)``. Nothing is unpickled but tensors and plain numbers.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydd.artifacts import folder
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.views import PICTURES, Pictures, folder_files, pictures, read_folder, read_tars, tar_shards
from raydd.core.errors import ConfigError, DataError, RayddError, TornFileError, unknown
from raydd.core.storage import Storage, join
from raydd.core.tensors import dump_tensors, load_metadata, load_tensors
from raydd.data.catalog import DatasetInfo, entry

WRITTEN = ("pt", "folder", "webdataset", "safetensors")
SIDE_FILE = "dataset.json"
_SUFFIXES = {".pt": "pt", ".pth": "pt", ".tar": "webdataset", ".safetensors": "safetensors"}


@dataclass(frozen=True)
class Source:
    """Where a set was found: its format, the storage of its folder, and the paths of its files there."""

    format: str
    storage: Storage
    paths: tuple[str, ...]

    @property
    def url(self) -> str:
        """The URL to name in errors."""
        return join(self.storage.url, self.paths[0]) if len(self.paths) == 1 else self.storage.url


def detect(url: str) -> Source:
    """Return the format of what stands at ``url``; ``DataError`` saying what was found if it is none that is read."""
    parent, _, name = url.rstrip("/").rpartition("/")
    suffix = next((s for s in _SUFFIXES if name.lower().endswith(s)), None)
    if suffix is not None:
        return _file(Storage(parent or "."), name, _SUFFIXES[suffix])
    storage = Storage(url)
    paths = storage.list()
    if not paths:
        what = "an empty folder or nothing" if "." not in name else "nothing, or a file that is not read"
        raise DataError(f"{storage.url}: {what}; a distilled set is a folder, or a file ending in {', '.join(_SUFFIXES)}")
    return _folder(storage, paths)


def _file(storage: Storage, name: str, kind: str) -> Source:
    if not storage.exists(name):
        raise DataError(f"{join(storage.url, name)} does not exist")
    if kind == "pt" and name.startswith("images_best"):
        labels = name.replace("images_best", "labels_best", 1)
        if not storage.exists(labels):
            raise DataError(f"{join(storage.url, name)} needs its labels beside it, in {labels}")
        return Source("mtt", storage, (name, labels))
    return Source(kind, storage, (name,))


def _folder(storage: Storage, paths: list[str]) -> Source:
    for inner in ("", "distilled"):
        if {folder.MANIFEST, folder.DATA, folder.INDEX} & {p.removeprefix(f"{inner}/") for p in paths if p.startswith(inner)}:
            return Source("distilled", Storage(join(storage.url, inner)), ())
    if {"images_best.pt", "labels_best.pt"} <= set(paths):
        return Source("mtt", storage, ("images_best.pt", "labels_best.pt"))
    shards = tuple(p for p in paths if "/" not in p and p.endswith(".tar"))
    if shards:
        return Source("webdataset", storage, shards)
    images = tuple(p for p in paths if p.count("/") == 1 and p.lower().endswith(PICTURES))
    if images:
        return Source("folder", storage, images)
    files = [p for p in paths if p.endswith((".pt", ".pth"))]
    hint = f"; name one of its files, such as {files[0]}" if files else ""
    raise DataError(f"{storage.url} holds {len(paths)} files ({', '.join(paths[:5])}, …) but no distilled set that is known{hint}")


def read_set(url: str, *, info: DatasetInfo | str | None = None, experiment: int = -1) -> DistilledSet:
    """Return the distilled set at ``url``, of any format in the table above.

    ``info``: the data set it stands for (its facts, or its name in the catalog), needed where the format does not say.
    ``experiment``: which repetition of a ``.pt`` list (the last, by default). Raises ``DataError`` for what is not a set
    or does not fit ``info``, ``TornFileError`` for what is broken, ``ConfigError`` for an ``info`` that is missing or unknown.
    """
    info = entry(info).info if isinstance(info, str) else info
    source = detect(url)
    if experiment != -1 and source.format != "pt":
        raise ConfigError(f"experiment={experiment} has no effect: {source.url} ({source.format}) holds one set; only .pt lists hold more")
    if source.format == "distilled":
        distilled = folder.read(source.storage.url)
    elif source.format == "safetensors":
        data = source.storage.get(source.paths[0])
        tensors = load_tensors(data, source.url)
        distilled = folder.from_tensors(tensors, load_metadata(data), {"source": source.url, "format": "safetensors"}, source.url)
    else:
        distilled = _read_foreign(source, info, experiment)
    if info is not None and (distilled.info.classes, distilled.info.channels) != (info.classes, info.channels):
        raise DataError(f"{source.url} has {_kind(distilled.info)}; {info.name} has {_kind(info)}")
    return distilled


def _kind(info: DatasetInfo) -> str:
    return f"{info.classes} classes and {info.channels} channel{'s' if info.channels != 1 else ''}"


def _read_foreign(source: Source, info: DatasetInfo | None, experiment: int) -> DistilledSet:
    storage, soft = source.storage, None
    recipe: dict[str, Any] = {"source": source.url, "format": source.format}
    if source.format in ("pt", "mtt"):
        values = [load_pt(storage.get(path), join(storage.url, path)) for path in source.paths]
        if source.format == "pt" and isinstance(values[0], Mapping) and "raydd" in values[0]:
            info = folder.info_from(json.loads(values[0]["raydd"]))  # the images are in its space, whatever the given one's
        images, labels, soft = _tensors_of(values[0] if source.format == "pt" else tuple(values), experiment, source.url)
        info = _needed(info, source)
        recipe |= {"experiment": experiment} if source.format == "pt" else {}
    else:
        info = _needed(info or _side_info(storage), source)
        shown = _read_pictures(source, info)
        images, labels, soft = shown.pixels, shown.labels, shown.soft_labels
    if tuple(images.shape[1:]) != info.shape:
        raise DataError(f"{source.url}: images are {_shape(images.shape[1:])}; those of {info.name} are {_shape(info.shape)} (C×H×W)")
    try:
        return DistilledSet(images=images, labels=labels, soft_labels=soft, info=info, recipe=recipe)
    except RayddError as error:
        raise DataError(f"{source.url}: {error}") from error


def _shape(values: tuple[int, ...] | torch.Size) -> str:
    return "×".join(map(str, values))


def _needed(info: DatasetInfo | None, source: Source) -> DatasetInfo:
    if info is None:
        raise ConfigError(f"{source.url} ({source.format}) does not say of which data set it is: give its name, or its facts, as `info`")
    return info


def _side_info(storage: Storage) -> DatasetInfo | None:
    if not storage.exists(SIDE_FILE):
        return None
    try:
        return folder.info_from(json.loads(storage.get(SIDE_FILE)))
    except ValueError as error:
        raise DataError(f"{join(storage.url, SIDE_FILE)} cannot be read: {error}") from error


def _read_pictures(source: Source, info: DatasetInfo) -> Pictures:
    storage = source.storage
    if source.format == "webdataset":
        return read_tars(((join(storage.url, path), storage.get(path)) for path in source.paths), info.channels)
    return read_folder(((path.split("/")[0], join(storage.url, path), storage.get(path)) for path in source.paths), info)


def load_pt(data: bytes, what: str) -> Any:
    """Return the tensors and plain values of a ``.pt`` file; ``DataError`` naming ``what`` if it holds anything else."""
    import numpy as np

    # Lists of accuracies hold NumPy's float64 scalars: what rebuilds one stands under the module name of NumPy 1 or 2.
    scalar: Any = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    allowed: list[Any] = [*((scalar, name) for name in names), np.dtype, np.dtypes.Float64DType]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"WeightsUnpickler error: (.+?)(?: was not an allowed global|\n|$)", str(error))  # the rest is how to allow it
        reason = f": {found[1]}" if found else ""
        raise DataError(f"{what} holds more than tensors and numbers, or is no .pt file; nothing else is ever unpickled{reason}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise TornFileError(f"{what} is torn or not a .pt file: {error}") from error


def _tensors_of(value: Any, experiment: int, where: str) -> tuple[Tensor, Tensor, Tensor | None]:
    if isinstance(value, Mapping) and "data" in value:
        experiments = value["data"]
        if not -len(experiments) <= experiment < len(experiments):
            raise ConfigError(f"{where} holds {len(experiments)} experiments; {experiment} is none of them")
        value = experiments[experiment]
    elif isinstance(value, Mapping) and {"images", "labels"} <= set(value):
        value = (value["images"], value["labels"])
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(part, Tensor) for part in value):
        found = f"keys {sorted(map(str, value))[:8]}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise DataError(f"{where} holds {found}; expected `data`, a list of [images, labels], or a pair (images, labels)")
    images, labels = value
    images = images if images.dtype == torch.uint8 else images.float()
    if labels.is_floating_point() and labels.ndim == 2:
        return images, labels.argmax(1), labels.float()
    if labels.is_floating_point() or labels.ndim != 1:
        raise DataError(f"{where}: labels must be whole numbers [N] or probabilities [N, classes], not {labels.dtype} {list(labels.shape)}")
    return images, labels.long(), None


def write_set(distilled: DistilledSet, url: str, to: str) -> list[str]:
    """Write a set in a format of others (``pt``, ``folder``, ``webdataset``) or as one ``safetensors`` file; return the paths.

    ``pt``: what students see, float images and their labels. ``folder`` and ``webdataset``: the same as 8-bit PNG, with the
    data set's facts in ``dataset.json``; an image folder cannot hold soft labels. Folders must be empty.
    """
    if to not in WRITTEN:
        raise unknown("format to write", to, WRITTEN)
    side = json.dumps(dataclasses.asdict(distilled.info))
    if to in ("pt", "safetensors"):
        parent, _, name = url.rpartition("/")
        if not name.endswith(f".{to}"):
            raise ConfigError(f"'{url}': a file to write as {to} must end in .{to}")
        if to == "safetensors":
            data = dump_tensors(distilled.stored(), {"raydd": json.dumps(folder.facts(distilled), sort_keys=True)})
        else:
            buffer = io.BytesIO()
            torch.save({"data": [list(distilled.tensors())], "accs_all_exps": {}, "raydd": side}, buffer)
            data = buffer.getvalue()
        Storage(parent or ".").put(name, data)
        return [name]
    if to == "folder" and distilled.soft_labels is not None:
        raise ConfigError("an image folder cannot hold soft labels; write pt, webdataset or safetensors instead")
    storage = Storage(url)
    if storage.list():
        raise ConfigError(f"{storage.url} is not empty")
    shown = pictures(distilled)
    written = []
    for path, data in folder_files(shown, distilled.info.classes) if to == "folder" else tar_shards(shown):
        storage.put(path, data)
        written.append(path)
    storage.put(SIDE_FILE, side.encode())
    return [*written, SIDE_FILE]
