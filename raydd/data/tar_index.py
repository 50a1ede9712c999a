"""An index for WebDataset shards that others wrote: one pass over the tar headers, nothing unpacked."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from raydd.core.errors import ConfigError, DataError, RayddError, StorageError
from raydd.core.storage import Storage, join
from raydd.data.base import hashed
from raydd.data.images import EXTENSIONS
from raydd.data.shard_format import Index

log = logging.getLogger(__name__)
_WINDOW = 4 << 20
_LABEL_BYTES = 1 << 16
_LARGEST = (1 << 31) - 1
_LABEL_KEYS = ("cls", "label", "class_id")


def split_pattern(url: str, what: str) -> tuple[str, list[str]]:
    """Return the folder and the tar names of a URL such as ``s3://bucket/train-{000000..000099}.tar``."""
    from braceexpand import braceexpand

    folder, _, name = url.rpartition("/")
    if any(mark in folder for mark in "{}"):
        raise ConfigError(f"{what}: '{url}' has braces in a folder; they are allowed in the file name")
    try:
        return folder or ".", list(braceexpand(name))
    except ValueError as error:
        raise ConfigError(f"{what}: '{url}' has unbalanced braces") from error


class _RangeFile(io.RawIOBase):
    """One object as a seekable file of range reads (buffer it: a seek past the buffer skips the bytes between)."""

    def __init__(self, files: Storage, path: str) -> None:
        self._files, self._path, self._size, self._at = files, path, files.size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        stop = min(self._at + len(view), self._size)
        if stop <= self._at:
            return 0
        data = self._files.get(self._path, self._at, stop)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass
class _Sample:
    offset: int = -1
    size: int = 0
    label: int | None = None


@dataclass
class _Scan:
    keys: list[str] = field(default_factory=list)
    samples: list[_Sample] = field(default_factory=list)


def _label(member: tarfile.TarInfo, extension: str, content: bytes, what: str) -> int | None:
    """Return the label in a ``.cls`` or ``.json`` member; ``None`` for JSON without one."""
    try:
        if extension == "cls":
            return int(content)
        values = json.loads(content)
        found = next((values[key] for key in _LABEL_KEYS if key in values), None) if isinstance(values, dict) else None
        return None if found is None else int(found)
    except (ValueError, TypeError) as error:
        raise DataError(f"{what}: '{member.name}' holds no label: {error}") from error


def _scan(files: Storage, name: str) -> _Scan:
    """Read the headers of one shard. Member names are only names: nothing is written, and no other type is looked at."""
    what = join(files.url, name)
    by_key: dict[str, _Sample] = {}
    try:
        with tarfile.open(fileobj=io.BufferedReader(_RangeFile(files, name), _WINDOW), mode="r:") as tar:
            for member in tar:
                base = member.name.rsplit("/", 1)[-1]
                if not member.isreg() or base.startswith(".") or "." not in base:
                    continue
                stem, _, extension = base.partition(".")
                key, extension = member.name[: len(member.name) - len(base)] + stem, extension.lower()
                if extension not in (*EXTENSIONS, "cls", "json"):
                    continue
                sample = by_key.setdefault(key, _Sample())
                if extension in EXTENSIONS:
                    if sample.size:
                        raise DataError(f"{what}: sample '{key}' has two images")
                    sample.offset, sample.size = member.offset_data, member.size
                elif member.size > _LABEL_BYTES:
                    raise DataError(f"{what}: '{member.name}' has {member.size} bytes, too many for a label")
                elif extension == "cls" or sample.label is None:
                    file = tar.extractfile(member)
                    value = _label(member, extension, file.read() if file else b"", what)
                    sample.label = sample.label if value is None else value
    except FileNotFoundError as error:
        raise DataError(f"shard {what} is missing") from error
    except tarfile.TarError as error:
        raise DataError(f"shard {what} is torn or not a tar file: {error}") from error
    return _whole(by_key, what)


def _whole(by_key: dict[str, _Sample], what: str) -> _Scan:
    scan = _Scan()
    for key, sample in by_key.items():
        if sample.offset < 0:
            continue
        if sample.label is not None and sample.label > _LARGEST:
            raise DataError(f"{what}: sample '{key}' has the label {sample.label}; classes are numbered from 0")
        if sample.label is None or sample.label < 0:
            raise DataError(f"{what}: sample '{key}' has no label (.cls, or .json with one of {', '.join(_LABEL_KEYS)})")
        scan.keys.append(key)
        scan.samples.append(sample)
    if not scan.keys:
        raise DataError(f"{what} holds no labelled images")
    return scan


def scan_shards(files: Storage, names: Sequence[str]) -> tuple[Index, str]:
    """Return the index of tar shards and a digest of it; kept beside them where that can be written, for the next time."""
    sizes = []
    for name in names:
        try:
            sizes.append(files.size(name))
        except FileNotFoundError as error:
            raise DataError(f"shard {join(files.url, name)} is missing") from error
    facts = hashlib.sha256(json.dumps([1, list(names), sizes]).encode()).hexdigest()
    path = f".raydd-index-{facts[:20]}.safetensors"
    try:
        data = files.get(path)
        return Index.parse(data, join(files.url, path)), hashlib.sha256(data).hexdigest()
    except (FileNotFoundError, RayddError):
        pass
    with ThreadPoolExecutor(8) as pool:
        scans = list(pool.map(lambda name: _scan(files, name), names))
    samples = [sample for scan in scans for sample in scan.samples]
    index = Index(
        names=list(names),
        shard=np.repeat(np.arange(len(names)), [len(scan.keys) for scan in scans]),
        offset=np.array([sample.offset for sample in samples]),
        size=np.array([sample.size for sample in samples]),
        label=np.array([sample.label for sample in samples]),
        identity=hashed(f"{name}/{key}".encode() for name, scan in zip(names, scans) for key in scan.keys),
        keys=[key for scan in scans for key in scan.keys],
    )
    data = index.dump()
    if not files.writable:
        return index, hashlib.sha256(data).hexdigest()
    try:
        files.put(path, data)
    except StorageError as error:  # nothing may be written there
        log.info("the index of %s is kept in memory: %s", files.url, error)
    return index, hashlib.sha256(data).hexdigest()
