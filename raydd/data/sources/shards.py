"""WebDataset shards: folders written by ``raydd shard``, and shards that others wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raydd.core.errors import ConfigError, DataError
from raydd.core.storage import Storage
from raydd.data.base import BaseData
from raydd.data.catalog import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD, DatasetInfo, Entry
from raydd.data.config import DatasetConfig
from raydd.data.images import Transform, decode
from raydd.data.shard_data import ShardData
from raydd.data.shard_format import MANIFEST, Index, read_index, read_manifest
from raydd.data.sources.base import SOURCES, Source, sized, transform_of
from raydd.data.tar_index import scan_shards, split_pattern

_TRIED = 100
"""Damaged images of foreign shards that are passed over to find one whose size can be read."""


class ShardSource(Source):
    """``dataset.shards`` is a folder with a manifest, or a URL ending in ``.tar`` (braces allowed)."""

    def missing(self, files: Storage, item: Entry, config: DatasetConfig) -> list[str]:
        if config.shards is None:
            return [f"dataset.shards is not set: {item.hint}"]
        if config.shards.endswith(".tar"):
            absent = []
            for key, url in (("shards", config.shards), ("test_shards", config.test_shards)):
                if url is not None:
                    folder, names = split_pattern(url, f"dataset.{key}")
                    absent += _absent(Storage(folder), names)
            return absent
        manifest = read_manifest(files)
        if manifest is None:
            return [f"{MANIFEST} is not in {files.url} (if 'raydd shard' was interrupted, start it again: it goes on where it stopped)"]
        unwritten = [split for split in ("train", "test") if split not in manifest["splits"]]
        if unwritten:
            return [f"the split '{split}' is not in {files.url} (write it with 'raydd shard --split {split}')" for split in unwritten]
        return _absent(files, [shard["name"] for split in manifest["splits"].values() for shard in split["shards"]])

    def describe(self, files: Storage, item: Entry, config: DatasetConfig) -> DatasetInfo:
        if config.shards is None:
            raise DataError(f"dataset.shards is not set: {item.hint}")
        if config.shards.endswith(".tar"):
            return item.info if item.info.classes else self._describe_foreign(item, config)
        manifest = read_manifest(files)
        if manifest is None:
            if item.info.classes:
                return item.info
            raise DataError("; ".join(self.missing(files, item, config)))
        return _from_manifest(manifest, item, files)

    def _describe_foreign(self, item: Entry, config: DatasetConfig) -> DatasetInfo:
        where, index, _ = _scan(config.shards, "dataset.shards")
        channels = config.channels or 3
        if config.size:
            height, width = config.size, config.size
        else:
            height, width = _first_size(where, index, channels, _TRIED if config.on_error == "skip" else 1)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else (GREY_MEAN, GREY_STD)
        classes = int(index.label.max()) + 1
        names = tuple(str(label) for label in range(classes))
        facts: dict[str, Any] = {"classes": classes, "channels": channels, "height": height, "width": width, "mean": mean, "std": std}
        return replace(item.info, class_names=names, **facts)

    def open(self, files: Storage, item: Entry, config: DatasetConfig) -> Mapping[str, BaseData]:
        info = sized(self.describe(files, item, config), config)
        skip = config.on_error == "skip"
        if config.shards is not None and not config.shards.endswith(".tar"):
            return self._open_folder(files, item, config, info, skip)
        transform = transform_of(info, item, config)
        splits = {}
        for split, url in (("train", config.shards), ("test", config.test_shards)):
            if url is not None:
                where, index, digest = _scan(url, f"dataset.{'shards' if split == 'train' else 'test_shards'}")
                if int(index.label.max()) >= info.classes:
                    raise DataError(f"{url}: label {int(index.label.max())}, but {info.name} has {info.classes} classes")
                splits[split] = ShardData(where, index, _digest([digest], transform), transform, skip)
        return splits

    def _open_folder(
        self, files: Storage, item: Entry, config: DatasetConfig, info: DatasetInfo, skip: bool
    ) -> Mapping[str, BaseData]:
        manifest = read_manifest(files)
        if manifest is None:
            raise DataError("; ".join(self.missing(files, item, config)))
        transform = _stored_transform(manifest, info, item, config)
        splits = {}
        for split, facts in manifest["splits"].items():
            digest = _digest([shard["sha256"] for shard in facts["shards"]], transform)
            splits[split] = ShardData(files, read_index(files, split, facts), digest, transform, skip)
        return splits


def _absent(files: Storage, names: list[str]) -> list[str]:
    absent = [name for name, there in zip(names, files.exist(names)) if not there]
    more = [f"and {len(absent) - 5} further shards"] if len(absent) > 5 else []
    return [f"shard {name} is not in {files.url}" for name in absent[:5]] + more


def _scan(url: str | None, what: str) -> tuple[Storage, Index, str]:
    folder, names = split_pattern(url or "", what)
    files = Storage(folder)
    return files, *scan_shards(files, names)


def _digest(parts: list[str], transform: Transform) -> str:
    return hashlib.sha256(json.dumps([parts, repr(transform)]).encode()).hexdigest()


def _first_size(files: Storage, index: Index, channels: int, tried: int) -> tuple[int, int]:
    """Return height and width of the first image that can be decoded; ``DataError`` if the first few cannot."""
    refused: list[tuple[str, ValueError]] = []
    for sample in range(min(tried, len(index))):
        shard, start = index.names[int(index.shard[sample])], int(index.offset[sample])
        try:
            height, width, _ = decode(files.get(shard, start, start + int(index.size[sample])), channels).shape
            return height, width
        except ValueError as error:
            refused.append((f"sample '{index.keys[sample]}' of {files.url}/{shard}", error))
    title, cause = refused[0]
    more = f" (nor can the {len(refused) - 1} after it)" if len(refused) > 1 else ""
    raise DataError(f"{title} cannot be decoded: {cause}{more}") from cause


def _from_manifest(manifest: dict[str, Any], item: Entry, files: Storage) -> DatasetInfo:
    """Return the facts in a manifest; normalisation and names are the catalog's for a data set that stands there."""
    try:
        shape: dict[str, Any] = {key: int(manifest[key]) for key in ("classes", "channels", "height", "width")}
        own: dict[str, Any] = {key: tuple(manifest[key]) for key in ("mean", "std", "class_names")}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{files.url}/{MANIFEST} is torn: {error}") from error
    if not item.info.classes:
        return replace(item.info, **shape, **own)
    for key in ("classes", "channels"):
        if shape[key] != getattr(item.info, key):
            held = f"{files.url} holds {manifest['name']} with {shape[key]} {key}"
            raise ConfigError(f"dataset.shards: {held}; {item.info.name} has {getattr(item.info, key)}")
    names = own["class_names"] if not item.info.class_names else item.info.class_names
    return replace(item.info, **shape, class_names=names)


def _stored_transform(manifest: dict[str, Any], info: DatasetInfo, item: Entry, config: DatasetConfig) -> Transform:
    """Return the transform at reading: none where the stored images already have the size asked for."""
    same = (info.height, info.width) == (manifest["height"], manifest["width"])
    if manifest["exact"] and same and config.resize is None and config.fit is None:
        return Transform(channels=info.channels, height=info.height, width=info.width)
    if manifest["exact"]:
        return transform_of(info, replace(item, resize=None), config)
    return transform_of(info, item, config)


SOURCES.register("shards")(ShardSource())
