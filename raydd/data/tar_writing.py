"""One tar shard of a split that is written: its samples, their bytes, and the marker that says it is done."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from raydd.core.errors import DataError
from raydd.core.json_text import parse_json
from raydd.core.storage import Storage
from raydd.data.encoded import EncodedData
from raydd.data.folder_data import FolderData
from raydd.data.images import decode, decode_into, encode
from raydd.data.inventory import EXAMPLES, LeftOut
from raydd.data.shard_format import FORMAT, UNDECODED
from raydd.data.split import BaseData, Subset

log = logging.getLogger(__name__)
_KINDS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}
_PIECE = 64


@dataclass(frozen=True, kw_only=True)
class SplitJob:
    """One split to write. ``keep``: the files' own bytes are kept; else images are encoded as ``kind``."""

    files: Storage
    data: BaseData
    split: str
    shard_size: int
    keep: bool
    kind: Literal["png", "jpg"]
    quality: int
    skip: bool

    @property
    def fingerprint(self) -> str:
        """What decides the shards' bytes."""
        quality = self.quality if self.kind == "jpg" and not self.keep else 0
        facts = [
            FORMAT,
            self.data.digest,
            self.split,
            self.shard_size,
            self.keep,
            self.kind,
            quality,
            self.skip,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def shards(self) -> int:
        """How many shards the split becomes."""
        return -(-len(self.data) // self.shard_size)

    def tar_path(self, number: int) -> str:
        """Return the name of a shard."""
        return f"{self.split}-{number:06d}.tar"

    def part_path(self, number: int) -> str:
        """Return the path of a shard's marker."""
        return f"parts/{self.split}-{number:06d}.json"


def part_of(job: SplitJob, number: int) -> dict[str, Any] | None:
    """Return a shard's marker if it belongs to this job and the shard is as long as it says."""
    try:
        part: dict[str, Any] = parse_json(job.files.get(job.part_path(number)))
        if (
            part["fingerprint"] == job.fingerprint
            and job.files.size(job.tar_path(number)) == part["bytes"]
        ):
            return part
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return None


def _samples(job: SplitJob, ids: np.ndarray) -> Iterator[tuple[int, bytes, str]]:
    """Yield ``(id, encoded bytes, extension)``; samples that cannot be decoded raise, or are left out."""
    subset = isinstance(job.data, Subset)
    base: BaseData = job.data.base if isinstance(job.data, Subset) else job.data
    inner = job.data.ids.numpy()[ids] if isinstance(job.data, Subset) and subset else ids
    if not isinstance(base, EncodedData):
        for sample, image in zip(ids.tolist(), base.take(torch.from_numpy(inner)).numpy()):
            yield sample, encode(image, job.kind, job.quality), job.kind
        return
    for sample, source, blob in zip(ids.tolist(), inner.tolist(), base.blobs(inner)):
        try:
            yield sample, *_stored(job, base, source, bytes(blob))
        except DataError as error:
            if not job.skip:
                raise DataError(
                    f"{error}; --on-error skip leaves out and counts what cannot be decoded"
                ) from error
            log.warning("%s; left out", error)


def _stored(job: SplitJob, base: EncodedData, source: int, blob: bytes) -> tuple[bytes, str]:
    kind, transform = _KINDS.get(blob[:2]), base.transform
    if not job.keep or transform.fit == "exact":
        out = np.empty(base.shape, dtype=np.uint8)
        decode_into(out, blob, base.title(source), transform)
    else:  # kept whole: what has no ending of its own in shards as PNG
        try:
            out = decode(blob, transform.channels, transform.orientation).transpose(2, 0, 1)
        except ValueError as error:
            raise DataError(
                f"{base.title(source)} cannot be decoded: {error} ({len(blob)} bytes)"
            ) from error
    return (blob, kind) if job.keep and kind else (encode(out, job.kind, job.quality), job.kind)


def _origin(data: BaseData, sample: int) -> str | None:
    """Return the path of the file that a sample comes from, where there is one."""
    if isinstance(data, Subset):
        return _origin(data.base, int(data.ids[sample]))
    return data.paths[sample] if isinstance(data, FolderData) else None


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member and return where its content begins."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o644, 0
    start = int(tar.offset) + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(content))
    return start


def write_shard(
    job: SplitJob, number: int, ids: np.ndarray, identity: np.ndarray
) -> dict[str, Any]:
    """Write the shard of the samples ``ids`` and then its marker, which is returned."""
    buffer = io.BytesIO()
    rows: list[list[Any]] = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for start in range(0, len(ids), _PIECE):
            for sample, content, kind in _samples(job, ids[start : start + _PIECE]):
                key, label = f"{sample:09d}", int(job.data.labels[sample])
                offset = _add(tar, f"{key}.{kind}", content)
                _add(tar, f"{key}.cls", str(label).encode())
                origin = _origin(job.data, sample)
                if origin is not None:
                    _add(
                        tar, f"{key}.json", json.dumps({"label": label, "source": origin}).encode()
                    )
                rows.append([key, offset, len(content), label, identity[sample].tobytes().hex()])
    data = buffer.getvalue()
    part = {
        "fingerprint": job.fingerprint,
        "name": job.tar_path(number),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "skipped": len(ids) - len(rows),
        "rows": rows,
    }
    if len(rows) < len(ids):
        written = {row[0] for row in rows}
        lost = [int(sample) for sample in ids if f"{sample:09d}" not in written]
        part["lost"] = [
            _origin(job.data, sample) or f"sample {sample}" for sample in lost[:EXAMPLES]
        ]
    job.files.put(job.tar_path(number), data)
    job.files.put(job.part_path(number), json.dumps(part).encode())
    return part


def lost_of(part: dict[str, Any]) -> LeftOut:
    """Return what could not be decoded for a shard."""
    lost = LeftOut()
    names = [*map(str, part.get("lost", ())), "not named"][: part["skipped"]]
    for place, name in enumerate(names):
        lost.add(UNDECODED, name, 1 if place < len(names) - 1 else part["skipped"] - place)
    return lost
