"""WebDataset shards: folders written by ``raydd shard``, and shards that others wrote."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raydd.core.errors import ConfigError, DataError
from raydd.core.storage import Storage, join
from raydd.data.catalog import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD, DatasetInfo, Entry
from raydd.data.config import DatasetConfig
from raydd.data.images import Transform, decode
from raydd.data.inventory import LeftOut, SplitInventory
from raydd.data.listing import Tree
from raydd.data.shard_data import ShardData
from raydd.data.shard_format import MANIFEST, Index, left_out_of, read_index, read_manifest
from raydd.data.shard_names import find_shards, is_pattern, split_pattern
from raydd.data.sources.source import SOURCES, Source, sized, transform_of
from raydd.data.split import BaseData
from raydd.data.tar_index import Scanned, glimpse, is_indexed, scan_shards

_MOST_CLASSES = 1 << 16
"""Labels below it may be classes without samples; larger ones than there are samples are mistakes."""

_TRIED = 100
"""Damaged images of foreign shards that are passed over to find one whose size can be read."""


class ShardSource(Source):
    """``dataset.shards`` is a folder with a manifest, a folder of others' tars, or a URL ending in
    ``.tar`` (with braces, ``*``, ``?``).
    """

    pictures = True

    def missing(self, files: Tree, item: Entry, config: DatasetConfig) -> list[str]:
        if config.shards is None:
            return [f"dataset.shards is not set: {item.hint}"]
        if is_pattern(config.shards):
            absent = []
            for split, shards in files.once(_foreign, config)[0].items():
                url = config.shards if split == "train" else config.test_shards
                absent += (
                    _absent(shards.files, shards.names)
                    if shards.names
                    else [f"no tar file is called {url}"]
                )
            return absent
        if _is_file(files):
            return [f"{files.url} is a file, but no .tar"]
        manifest = files.once(read_manifest)
        if manifest is None:
            return _missing_foreign(files, config)
        unwritten = [split for split in ("train", "test") if split not in manifest["splits"]]
        if unwritten:
            return [
                f"the split '{split}' is not in {files.url} (write it with 'raydd shard --split {split}')"
                for split in unwritten
            ]
        return _absent(
            files,
            [shard["name"] for split in manifest["splits"].values() for shard in split["shards"]],
        )

    def cheap(self, files: Tree, config: DatasetConfig) -> bool:
        if files.local:
            return True
        if not is_pattern(config.shards or "") and files.once(read_manifest) is not None:
            return False  # an index of all samples would be fetched
        return all(
            is_indexed(shards.files, shards.names)
            for shards in files.once(_foreign, config)[0].values()
        )

    def outline(self, files: Tree, item: Entry, config: DatasetConfig) -> tuple[DatasetInfo, str]:
        foreign = config.shards is not None and (
            is_pattern(config.shards) or files.once(read_manifest) is None
        )
        if (
            files.local
            or not foreign
            or files.once(self.missing, item, config)
            or self.cheap(files, config)
        ):
            return files.once(self.describe, item, config), ""
        later = "torn shards and labels that are none are found when the job starts, which keeps an index of them"
        if item.info.classes:
            return item.info, f"the shards were not looked into: {later}"
        train = files.once(_foreign, config)[0]["train"]
        index, looked = glimpse(train.files, train.names)
        seen = (
            f"of {len(train.names)} training shards only the beginning of {looked} was looked into: there may be more"
            " classes"
        )
        return self._described(train.files, index, item, config), f"{seen}; {later}"

    def summary(self, files: Tree, entry: Entry, config: DatasetConfig) -> list[SplitInventory]:
        splits = (files.once(read_manifest) or {"splits": {}})["splits"]
        return [
            SplitInventory(split=name, place=f"{name}-*.tar", count=int(facts["count"]))
            for name, facts in splits.items()
        ]

    def describe(self, files: Tree, item: Entry, config: DatasetConfig) -> DatasetInfo:
        if config.shards is None:
            raise DataError(f"dataset.shards is not set: {item.hint}")
        manifest = (
            None if is_pattern(config.shards) or _is_file(files) else files.once(read_manifest)
        )
        if manifest is not None:
            return _from_manifest(manifest, item, files)
        if item.info.classes:
            return item.info
        absent = files.once(self.missing, item, config)
        if absent:
            raise DataError("; ".join(absent))
        train = files.once(_foreign, config)[0]["train"]
        return self._described(train.files, train.scanned(config).index, item, config)

    def _described(
        self, files: Storage, index: Index, item: Entry, config: DatasetConfig
    ) -> DatasetInfo:
        channels = config.channels or 3
        if config.size:
            height, width = config.size, config.size
        else:
            height, width = _first_size(files, index, channels, config)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else (GREY_MEAN, GREY_STD)
        first, last = first_label(index, item.info.classes), int(index.label.max())
        names = tuple(str(label) for label in range(first, last + 1))
        facts: dict[str, Any] = {
            "classes": len(names),
            "channels": channels,
            "height": height,
            "width": width,
            "mean": mean,
            "std": std,
        }
        return replace(item.info, class_names=names, **facts)

    def open(self, files: Tree, item: Entry, config: DatasetConfig) -> Mapping[str, BaseData]:
        info = sized(files.once(self.describe, item, config), config)
        skip = config.on_error == "skip"
        if config.shards is not None and not is_pattern(config.shards):
            manifest = files.once(read_manifest)
            if manifest is not None:
                return self._open_folder(files, item, config, info, manifest)
        transform = transform_of(info, item, config)
        found, notes, left_out = files.once(_foreign, config)
        first = first_label(found["train"].scanned(config).index, item.info.classes)
        splits = {}
        for split, shards in found.items():
            scanned = shards.scanned(config)
            index = renumbered(scanned.index, first, info, join(shards.files.url, shards.place))
            facts = [scanned.digest] if first == 0 else [scanned.digest, f"labels from {first}"]
            data = splits[split] = ShardData(
                shards.files, index, _digest(facts, transform), transform, skip
            )
            data.place, data.left_out = shards.place, scanned.left_out
        splits["train"].left_out = splits["train"].left_out.merge([left_out])
        splits["train"].notes = (*notes, *_counted_from(first, info))
        return splits

    def _open_folder(
        self,
        files: Storage,
        item: Entry,
        config: DatasetConfig,
        info: DatasetInfo,
        manifest: dict[str, Any],
    ) -> Mapping[str, BaseData]:
        transform = _stored_transform(manifest, info, item, config)
        splits = {}
        for split, facts in manifest["splits"].items():
            digest = _digest([shard["sha256"] for shard in facts["shards"]], transform)
            data = splits[split] = ShardData(
                files, read_index(files, split, facts), digest, transform, config.on_error == "skip"
            )
            data.place, data.left_out = (
                f"{split}-*.tar",
                left_out_of(facts, join(files.url, MANIFEST)),
            )
            data.notes = tuple(map(str, facts.get("notes", ())))
        return splits


@dataclass(frozen=True)
class _Shards:
    """The shards of one split of others' making."""

    files: Storage
    names: list[str]

    @property
    def place(self) -> str:
        """Which they are, for a person."""
        return self.names[0] + (f" … {self.names[-1]}" if len(self.names) > 1 else "")

    def scanned(self, config: DatasetConfig) -> Scanned:
        """Return what they hold; the second time it is known."""
        return scan_shards(self.files, self.names, config.on_error == "skip")


def _foreign(
    files: Tree, config: DatasetConfig
) -> tuple[dict[str, _Shards], tuple[str, ...], LeftOut]:
    """Return the shards of each split, notes on how they were told apart, and what lies beside them."""
    if config.shards is not None and not is_pattern(config.shards):
        found = files.once(find_shards)
        if found.problem:
            raise DataError(found.problem)
        splits = {
            split: _Shards(files, names)
            for split, names in (("train", found.train), ("test", found.test))
            if names
        }
        return splits, found.notes, found.left_out
    splits = {}
    for split, key, url in (
        ("train", "shards", config.shards),
        ("test", "test_shards", config.test_shards),
    ):
        if url is not None:
            folder, names = split_pattern(url, f"dataset.{key}")
            splits[split] = _Shards(Storage(folder), names)
    return splits, (), LeftOut()


def _missing_foreign(files: Tree, config: DatasetConfig) -> list[str]:
    """Return why a folder without a manifest is no set of shards; nothing if it holds tars of others."""
    if any(name.endswith(".json") for name in files.files("parts")):
        return [
            f"{MANIFEST} is not in {files.url}: 'raydd shard' was interrupted there; start it again: it goes on where"
            " it stopped"
        ]
    found = files.once(find_shards)
    if found.problem:
        return [found.problem]
    if not found.train:
        return [f"neither {MANIFEST} of 'raydd shard' nor a .tar is in {files.url}"]
    if config.test_shards is not None:
        return [
            "dataset.test_shards needs dataset.shards to be a URL of tars, such as …/train-{000..009}.tar"
        ]
    return []


def _is_file(files: Storage) -> bool:
    return files.local and os.path.isfile(files.root)


def _absent(files: Storage, names: list[str]) -> list[str]:
    absent = [name for name, there in zip(names, files.exist(names)) if not there]
    more = [f"and {len(absent) - 5} further shards"] if len(absent) > 5 else []
    return [f"shard {name} is not in {files.url}" for name in absent[:5]] + more


def first_label(index: Index, classes: int) -> int:
    """Return 1 for labels that are counted from 1 beyond doubt, else 0; ``classes``: how many there
    are, 0 where that is not known.

    That is: none is 0, and all from 1 on occur, or the largest is the number of classes. Raises
    ``DataError`` for a label that would make more classes than there can be.
    """
    last = int(index.label.max())
    if last >= max(len(index), _MOST_CLASSES):
        sample = int(index.label.argmax())
        title = f"sample '{index.keys[sample]}' of {index.names[int(index.shard[sample])]}"
        raise DataError(
            f"{title} has the label {last}, but there are {len(index)} samples; labels number the classes from 0"
        )
    if int(index.label.min()) != 1:
        return 0
    return int(last == classes if classes else len(np.unique(index.label)) == last)


def renumbered(index: Index, first: int, info: DatasetInfo, place: str) -> Index:
    """Return the index with labels counted from 0; ``DataError`` for a label that is no class of ``info``."""
    wrong = np.flatnonzero((index.label < first) | (index.label >= first + info.classes))
    if len(wrong):
        sample, last = int(wrong[0]), first + info.classes - 1
        held = f"sample '{index.keys[sample]}' has the label {int(index.label[sample])}"
        raise DataError(
            f"{place}: {held}, but {info.name} has {info.classes} classes, whose labels go from {first} to {last}"
        )
    return replace(index, label=index.label - first) if first else index


def _counted_from(first: int, info: DatasetInfo) -> tuple[str, ...]:
    if not first:
        return ()
    return (
        (
            f"labels start at {first}: label {first} is class 0, and so on up to label {info.classes}, which is class"
            f" {info.classes - 1}"
        ),
    )


def _digest(parts: list[str], transform: Transform) -> str:
    return hashlib.sha256(json.dumps([parts, repr(transform)]).encode()).hexdigest()


def _first_size(
    files: Storage, index: Index, channels: int, config: DatasetConfig
) -> tuple[int, int]:
    """Return height and width of the first image that can be decoded; ``DataError`` if the first few cannot."""
    refused: list[tuple[str, ValueError]] = []
    tried = _TRIED if config.on_error == "skip" else 1
    for sample in range(min(tried, len(index))):
        shard, start = index.names[int(index.shard[sample])], int(index.offset[sample])
        try:
            height, width, _ = decode(
                files.get(shard, start, start + int(index.size[sample])),
                channels,
                config.orientation,
            ).shape
            return height, width
        except ValueError as error:
            refused.append((f"sample '{index.keys[sample]}' of {files.url}/{shard}", error))
    title, cause = refused[0]
    hint = "" if config.on_error == "skip" else "; dataset.on_error=skip goes on to the next"
    more = f" (nor can the {len(refused) - 1} after it)" if len(refused) > 1 else ""
    raise DataError(f"{title} cannot be decoded: {cause}{more}{hint}") from cause


def _from_manifest(manifest: dict[str, Any], item: Entry, files: Storage) -> DatasetInfo:
    """Return the facts in a manifest; normalisation and names are the catalog's for a data set that stands there."""
    try:
        shape: dict[str, Any] = {
            key: int(manifest[key]) for key in ("classes", "channels", "height", "width")
        }
        own: dict[str, Any] = {key: tuple(manifest[key]) for key in ("mean", "std", "class_names")}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{files.url}/{MANIFEST} is torn: {error}") from error
    if not item.info.classes:
        return replace(item.info, **shape, **own)
    for key in ("classes", "channels"):
        if shape[key] != getattr(item.info, key):
            held = f"{files.url} holds {manifest['name']} with {shape[key]} {key}"
            raise ConfigError(
                f"dataset.shards: {held}; {item.info.name} has {getattr(item.info, key)}"
            )
    names = own["class_names"] if not item.info.class_names else item.info.class_names
    return replace(item.info, **shape, class_names=names)


def _stored_transform(
    manifest: dict[str, Any], info: DatasetInfo, item: Entry, config: DatasetConfig
) -> Transform:
    """Return the transform at reading: none where the stored images already have the size asked for."""
    # Shards that keep the files' bytes say that these are to be turned; of others it was done when they were written.
    config = (
        replace(config, orientation="exif") if manifest.get("orientation") == "exif" else config
    )
    same = (info.height, info.width) == (manifest["height"], manifest["width"])
    if manifest["exact"] and same and config.resize is None and config.fit is None:
        return Transform(
            channels=info.channels,
            height=info.height,
            width=info.width,
            orientation=config.orientation,
        )
    if manifest["exact"]:
        return transform_of(info, replace(item, resize=None), config)
    return transform_of(info, item, config)


SOURCES.register("shards")(ShardSource())
