"""Writing any split as WebDataset tar shards: in parallel, resumable, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Literal

import numpy as np
import torch

from raydd.core.errors import ConfigError, DataError, unknown
from raydd.core.json_text import parse_json
from raydd.core.rng import generator
from raydd.core.storage import Storage
from raydd.data.catalog import DatasetInfo
from raydd.data.config import DatasetConfig
from raydd.data.datasets import FoundData
from raydd.data.encoded import EncodedData, decode_threads
from raydd.data.inventory import LeftOut
from raydd.data.shard_format import FORMAT, MANIFEST, Index, read_manifest
from raydd.data.split import BaseData, Subset
from raydd.data.tar_writing import SplitJob, lost_of, part_of, write_shard

Encoding = Literal["original", "png", "jpg"]


def write_shards(
    data: DatasetConfig | FoundData,
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
    found = data if isinstance(data, FoundData) else FoundData(data).fetched()
    config, splits = found.config, found.splits
    if split not in splits:
        raise unknown("split", split, splits)
    files = Storage(url)
    files.check_writable("shards")
    info = found.describe()
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
) -> tuple[SplitJob, bool]:
    """Return the job, and whether every stored image has exactly the data set's size."""
    base = data.base if isinstance(data, Subset) else data
    asked = any(value is not None for value in (config.size, config.resize, config.fit))
    keep = encoding == "original" and isinstance(base, EncodedData) and not asked
    exact = not keep or (isinstance(base, EncodedData) and base.transform.fit == "exact")
    kind: Literal["png", "jpg"] = "jpg" if encoding == "jpg" else "png"
    job = SplitJob(
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


def _turning(job: SplitJob) -> dict[str, Any]:
    """Return what the manifest says of pictures that are to be turned when they are read: those
    whose own bytes are kept.
    """
    base = job.data.base if isinstance(job.data, Subset) else job.data
    return (
        {"orientation": "exif"}
        if job.keep and isinstance(base, EncodedData) and base.transform.orientation == "exif"
        else {}
    )


def _compatible(files: Storage, facts: dict[str, Any], job: SplitJob) -> dict[str, Any]:
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


def _claim(job: SplitJob, published: bool) -> None:
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
        owner = parse_json(job.files.get(claim))["fingerprint"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        listed = set(job.files.list())
        there = [number for number in range(job.shards) if job.tar_path(number) in listed]
        ours = (
            published
            or not there
            or any(job.part_path(number) in listed and part_of(job, number) for number in there)
        )
        owner = job.fingerprint if ours else None
    if owner != job.fingerprint:
        raise ConfigError(
            f"{job.files.url} holds {job.tar_path(0)} or others like it, of another run; choose an empty folder"
        )
    job.files.put(claim, json.dumps({"fingerprint": job.fingerprint}).encode())


def _foreign(job: SplitJob) -> str:
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
    job: SplitJob, workers: int, progress: Callable[[int, int], None] | None
) -> list[dict[str, Any]]:
    order = torch.randperm(len(job.data), generator=generator(0, "shards")).numpy()
    identity = job.data.identities()
    parts: dict[int, dict[str, Any]] = {}
    report = progress or (lambda done, total: None)
    with ThreadPoolExecutor(max(1, workers)) as pool:

        def one(number: int) -> tuple[int, dict[str, Any]]:
            done = part_of(job, number)
            chosen = order[number * job.shard_size : (number + 1) * job.shard_size]
            return number, done or write_shard(job, number, chosen, identity)

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


def _publish(
    job: SplitJob, facts: dict[str, Any], before: dict[str, Any], parts: list[dict[str, Any]]
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
    left_out = LeftOut().merge([job.data.left_out, *map(lost_of, parts)])
    if left_out:
        split["left_out"] = left_out.to_dict()
    if job.data.notes:
        split["notes"] = list(job.data.notes)
    manifest = {**facts, "splits": {**before, job.split: split}}
    job.files.put(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return manifest
