"""Writing any split as WebDataset tar shards: in parallel, resumable, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from raydd.core.errors import ConfigError, DataError, unknown
from raydd.core.rng import generator
from raydd.core.storage import Storage
from raydd.data.catalog import DatasetInfo
from raydd.data.dataset_config import DatasetConfig
from raydd.data.datasets import describe, open_data
from raydd.data.encoded import EncodedData, decode_threads
from raydd.data.folder_data import FolderData
from raydd.data.images import decode, decode_into, encode
from raydd.data.inventory import EXAMPLES, LeftOut
from raydd.data.shard_format import FORMAT, MANIFEST, UNDECODED, Index, read_manifest
from raydd.data.split import BaseData, Subset

log = logging.getLogger(__name__)
Encoding = Literal["original", "png", "jpg"]
_KINDS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}
_PIECE = 64


@dataclass(frozen=True, kw_only=True)
class _Job:
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
        return -(-len(self.data) // self.shard_size)

    def tar_path(self, number: int) -> str:
        return f"{self.split}-{number:06d}.tar"

    def part_path(self, number: int) -> str:
        return f"parts/{self.split}-{number:06d}.json"


def write_shards(
    config: DatasetConfig,
    url: str,
    split: str = "train",
    *,
    shard_size: int = 2048,
    workers: int = 0,
    encoding: Encoding = "original",
    quality: int = 95,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a split below ``url`` and return the folder's manifest; started again, it does only what is missing.

    ``shard_size``: samples per shard. ``workers``: shards written at once (0: one per core).
    ``encoding``: ``original`` keeps the bytes of image files where no resize is asked, and is PNG
    elsewhere; ``jpg`` has a ``quality``. Samples are permuted over the whole split by a keyed draw,
    so every shard mixes the classes. A shard counts as done when its marker, written after it, says
    so. With ``on_error: skip`` what cannot be decoded is left out, and counted. ``progress`` is
    called with ``(shards done, shards)``.

    Raises:
        ConfigError: a folder that holds shards of something else, an unknown split or encoding.
        DataError: a sample that cannot be decoded, named.
    """
    if encoding not in ("original", "png", "jpg"):
        raise unknown("encoding", encoding, ("original", "png", "jpg"))
    if shard_size < 1 or not 1 <= quality <= 100:
        raise ConfigError(
            f"shard_size {shard_size}, quality {quality}; allowed: at least 1, and 1 to 100"
        )
    splits = open_data(config)
    if split not in splits:
        raise unknown("split", split, splits)
    files = Storage(url)
    files.check_writable("shards")
    info = describe(config)
    job, exact = _plan(config, files, splits[split], split, shard_size, encoding, quality)
    facts = _facts(info, exact) | _turning(job)
    _claim(job, job.split in _compatible(files, facts, job))
    parts = _write_missing(job, workers or decode_threads(), progress)
    before = _compatible(
        files, facts, job
    )  # once more: another split may have been finished beside this one
    return _publish(job, facts, before, parts)


def _plan(
    config: DatasetConfig,
    files: Storage,
    data: BaseData,
    split: str,
    shard_size: int,
    encoding: Encoding,
    quality: int,
) -> tuple[_Job, bool]:
    """Return the job, and whether every stored image has exactly the data set's size."""
    base = data.base if isinstance(data, Subset) else data
    asked = any(value is not None for value in (config.size, config.resize, config.fit))
    keep = encoding == "original" and isinstance(base, EncodedData) and not asked
    exact = not keep or (isinstance(base, EncodedData) and base.transform.fit == "exact")
    kind: Literal["png", "jpg"] = "jpg" if encoding == "jpg" else "png"
    job = _Job(
        files=files,
        data=data,
        split=split,
        shard_size=shard_size,
        keep=keep,
        kind=kind,
        quality=quality,
        skip=config.on_error == "skip",
    )
    return job, exact


def _facts(info: DatasetInfo, exact: bool) -> dict[str, Any]:
    keys = ("name", "classes", "channels", "height", "width", "mean", "std", "class_names")
    facts = {key: getattr(info, key) for key in keys}
    return {
        "format": FORMAT,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()},
        "exact": exact,
    }


def _turning(job: _Job) -> dict[str, Any]:
    """Return what the manifest says of pictures that are to be turned when they are read: those
    whose own bytes are kept.
    """
    base = job.data.base if isinstance(job.data, Subset) else job.data
    return (
        {"orientation": "exif"}
        if job.keep and isinstance(base, EncodedData) and base.transform.orientation == "exif"
        else {}
    )


def _compatible(files: Storage, facts: dict[str, Any], job: _Job) -> dict[str, Any]:
    """Return the splits already published here; ``ConfigError`` if they are not of the same data set and settings."""
    manifest = read_manifest(files)
    if manifest is None:
        return {}
    splits: dict[str, Any] = manifest.pop("splits")
    differs = [key for key in (*facts, "orientation") if manifest.get(key) != facts.get(key)]
    if differs:
        key = differs[0]
        raise ConfigError(
            f"{files.url} holds shards with {key} {manifest.get(key)!r}, not {facts.get(key)!r}; choose an empty folder"
        )
    if job.split in splits and splits[job.split]["fingerprint"] != job.fingerprint:
        raise ConfigError(
            f"{files.url} holds '{job.split}' shards of other data or settings; choose an empty folder"
        )
    return splits


def _claim(job: _Job, published: bool) -> None:
    """Write down whose the split's shards are, before the first; ``ConfigError`` for tars of the
    same names that are another's.
    """
    claim = f"parts/{job.split}.json"
    foreign = _foreign(job)
    if foreign:
        raise ConfigError(
            f"{job.files.url} holds {foreign}, which was not written by raydd shard; choose an empty folder"
        )
    try:
        owner = json.loads(job.files.get(claim))["fingerprint"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        listed = set(job.files.list())
        there = [number for number in range(job.shards) if job.tar_path(number) in listed]
        ours = (
            published
            or not there
            or any(job.part_path(number) in listed and _done(job, number) for number in there)
        )
        owner = job.fingerprint if ours else None
    if owner != job.fingerprint:
        raise ConfigError(
            f"{job.files.url} holds {job.tar_path(0)} or others like it, of another run; choose an empty folder"
        )
    job.files.put(claim, json.dumps({"fingerprint": job.fingerprint}).encode())


def _foreign(job: _Job) -> str:
    """Return a tar of the folder that neither its manifest nor a claim on a split's shards accounts
    for; ``""`` if there is none.

    Tars that are called like the split's own are left to its claim.
    """
    tars = [name for name in job.files.files() if name.lower().endswith(".tar")]
    if not tars:
        return ""
    published = (read_manifest(job.files) or {"splits": {}})["splits"]
    known = {shard["name"] for facts in published.values() for shard in facts["shards"]}
    known |= {job.tar_path(number) for number in range(job.shards)}
    markers = set(job.files.list("parts"))

    def claimed(name: str) -> bool:
        parts = (name[:-4], name.rpartition("-")[0])
        return any(f"parts/{part}.json" in markers for part in parts)

    return next((name for name in tars if name not in known and not claimed(name)), "")


def _write_missing(
    job: _Job, workers: int, progress: Callable[[int, int], None] | None
) -> list[dict[str, Any]]:
    order = torch.randperm(len(job.data), generator=generator(0, "shards")).numpy()
    identity = job.data.identities()
    parts: dict[int, dict[str, Any]] = {}
    report = progress or (lambda done, total: None)
    with ThreadPoolExecutor(max(1, workers)) as pool:

        def one(number: int) -> tuple[int, dict[str, Any]]:
            done = _done(job, number)
            chosen = order[number * job.shard_size : (number + 1) * job.shard_size]
            return number, done or _write_shard(job, number, chosen, identity)

        futures = [pool.submit(one, number) for number in range(job.shards)]
        try:
            for future in as_completed(futures):
                number, part = future.result()
                parts[number] = part
                report(len(parts), job.shards)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return [parts[number] for number in range(job.shards)]


def _done(job: _Job, number: int) -> dict[str, Any] | None:
    """Return a shard's marker if it belongs to this job and the shard is as long as it says."""
    try:
        part: dict[str, Any] = json.loads(job.files.get(job.part_path(number)))
        if (
            part["fingerprint"] == job.fingerprint
            and job.files.size(job.tar_path(number)) == part["bytes"]
        ):
            return part
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return None


def _samples(job: _Job, ids: np.ndarray) -> Iterator[tuple[int, bytes, str]]:
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


def _stored(job: _Job, base: EncodedData, source: int, blob: bytes) -> tuple[bytes, str]:
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


def _write_shard(job: _Job, number: int, ids: np.ndarray, identity: np.ndarray) -> dict[str, Any]:
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


def _lost(part: dict[str, Any]) -> LeftOut:
    """Return what could not be decoded for a shard."""
    lost = LeftOut()
    names = [*map(str, part.get("lost", ())), "not named"][: part["skipped"]]
    for place, name in enumerate(names):
        lost.add(UNDECODED, name, 1 if place < len(names) - 1 else part["skipped"] - place)
    return lost


def _publish(
    job: _Job, facts: dict[str, Any], before: dict[str, Any], parts: list[dict[str, Any]]
) -> dict[str, Any]:
    rows = [row for part in parts for row in part["rows"]]
    if not rows:
        raise DataError(f"{job.files.url}: no sample of '{job.split}' could be decoded")
    index = Index(
        names=[part["name"] for part in parts],
        shard=np.repeat(np.arange(len(parts)), [len(part["rows"]) for part in parts]),
        offset=np.array([row[1] for row in rows]),
        size=np.array([row[2] for row in rows]),
        label=np.array([row[3] for row in rows]),
        identity=np.frombuffer(bytes.fromhex("".join(row[4] for row in rows)), np.uint8).reshape(
            -1, 16
        ),
        keys=[row[0] for row in rows],
    )
    data = index.dump()
    job.files.put(f"index-{job.split}.safetensors", data)
    described = [
        {**{key: part[key] for key in ("name", "bytes", "sha256")}, "count": len(part["rows"])}
        for part in parts
    ]
    split = {
        "count": len(rows),
        "skipped": sum(part["skipped"] for part in parts),
        "index_sha256": hashlib.sha256(data).hexdigest(),
        "fingerprint": job.fingerprint,
        "shards": described,
    }
    left_out = LeftOut().merge([job.data.left_out, *map(_lost, parts)])
    if left_out:
        split["left_out"] = left_out.to_dict()
    if job.data.notes:
        split["notes"] = list(job.data.notes)
    manifest = {**facts, "splits": {**before, job.split: split}}
    job.files.put(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return manifest
