"""Folders of images, one per class: ImageNet, parts of it, and people's own data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from raydd.core.errors import DataError
from raydd.core.storage import Storage, join
from raydd.data.base import BaseData
from raydd.data.catalog import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD, DatasetInfo, Entry
from raydd.data.config import DatasetConfig
from raydd.data.folder import FolderData, list_images
from raydd.data.images import decode
from raydd.data.sources.base import SOURCES, Source, sized, transform_of

_TEST = ("test", "val", "validation")


def subfolders(files: Storage, prefix: str) -> list[str]:
    """Return the names of the folders directly below ``prefix``, sorted; hidden ones left out."""
    return [name for name in files.folders(prefix) if not name.startswith(".")]


class FolderSource(Source):
    """``train/<class>/*`` with ``test/<class>/*`` or ``val/<class>/*``, or ``<class>/*`` alone; deeper levels are read too.

    A validation folder of ImageNet without class folders, as its archive has it, is not read: its labels are elsewhere.
    """

    def _train(self, files: Storage) -> str:
        return "train" if subfolders(files, "train") else ""

    def _test(self, files: Storage) -> str | None:
        if not self._train(files):
            return None
        return next((name for name in _TEST if subfolders(files, name)), None)

    def _classes(self, files: Storage, item: Entry) -> list[str]:
        if item.classes:
            return list(item.classes)
        return subfolders(files, self._train(files))

    def missing(self, files: Storage, item: Entry, config: DatasetConfig) -> list[str]:
        train = self._train(files)
        there = subfolders(files, train)
        place = f"{files.url}/{train}".rstrip("/")
        if not item.info.classes:
            return [] if there else [f"no class folders in {place}"]
        if not train:
            return [f"train/ with one folder per class is not in {files.url}"]
        absent = [name for name in item.classes if name not in there]
        if absent:
            return [f"class folder {name}/ is not in {place}" for name in absent]
        if len(there) < item.info.classes:
            return [f"{place} has {len(there)} class folders, {item.info.classes} are expected"]
        return self._missing_test(files, item)

    def _missing_test(self, files: Storage, item: Entry) -> list[str]:
        test = self._test(files)
        if test is None:
            return [f"val/ with one folder per class is not in {files.url} (a flat val/ must be sorted into class folders first)"]
        there = subfolders(files, test)
        return [f"class folder {name}/ is not in {files.url}/{test}" for name in self._classes(files, item) if name not in there]

    def describe(self, files: Storage, item: Entry, config: DatasetConfig) -> DatasetInfo:
        if item.info.classes:
            return item.info
        names = self._classes(files, item)
        if not names:
            raise DataError(f"no class folders in {files.url}: {item.hint}")
        channels = config.channels or 3
        side, skip = config.size, config.on_error == "skip"
        height, width = (side, side) if side else self._first_size(files, names[0], channels, skip)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else (GREY_MEAN, GREY_STD)
        facts: dict[str, Any] = {"classes": len(names), "channels": channels, "height": height, "width": width, "mean": mean, "std": std}
        return replace(item.info, class_names=tuple(names), **facts)

    def _first_size(self, files: Storage, class_name: str, channels: int, skip: bool) -> tuple[int, int]:
        """Return height and width of a class's first picture; ``skip``: of the first that can be decoded."""
        folder = f"{self._train(files)}/{class_name}".lstrip("/")
        found = list_images(files, folder)
        if not found:
            raise DataError(f"no images in {files.url}/{folder}")
        for path, _ in found:
            try:
                height, width = decode(files.get(path), channels).shape[:2]
            except ValueError as error:
                if skip:
                    continue
                raise DataError(f"{files.url}/{path} cannot be decoded: {error}") from error
            return height, width
        raise DataError(f"none of the {len(found)} images in {files.url}/{folder} can be decoded")

    def open(self, files: Storage, item: Entry, config: DatasetConfig) -> Mapping[str, BaseData]:
        info = sized(self.describe(files, item, config), config)
        transform = transform_of(info, item, config)
        classes = self._classes(files, item)
        folders = {"train": self._train(files), "test": self._test(files)}
        splits = {}
        for split, folder in folders.items():
            if folder is None:
                continue
            if split == "test":
                _same_classes(files, folder, classes, chosen=bool(item.classes))
            found, labels = [], []
            for label, name in enumerate(classes):
                inside = list_images(files, f"{folder}/{name}".lstrip("/"))
                if not inside:
                    raise DataError(f"no images in {join(files.url, folder, name)}")
                found += inside
                labels += [label] * len(inside)
            splits[split] = FolderData(files, found, torch.tensor(labels), transform, config.on_error == "skip")
        return splits


def _same_classes(files: Storage, folder: str, classes: list[str], chosen: bool) -> None:
    strange = [name for name in subfolders(files, folder) if name not in classes]
    if strange and not chosen:
        raise DataError(f"{files.url}/{folder} has a class folder '{strange[0]}' that the training split lacks")


SOURCES.register("folder")(FolderSource())
