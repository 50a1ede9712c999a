"""CUB-200-2011 (https://www.vision.caltech.edu/datasets/cub_200_2011): birds with the published split."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from raydd.core.errors import DataError
from raydd.core.storage import Storage, join
from raydd.data.catalog import Entry
from raydd.data.config import DatasetConfig
from raydd.data.folder_data import FolderData
from raydd.data.inventory import LeftOut
from raydd.data.listing import Tree, walk
from raydd.data.sources.source import SOURCES, Source, sized, transform_of
from raydd.data.split import BaseData

_TABLES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


class CubSource(Source):
    """The archive's text tables and ``images/``; whole pictures, no bounding boxes, squashed to the size asked."""

    pictures = True

    def _base(self, files: Storage) -> str:
        return "CUB_200_2011/" if files.exists("CUB_200_2011/images.txt") else ""

    def missing(self, files: Tree, entry: Entry, config: DatasetConfig) -> list[str]:
        base = self._base(files)
        return [
            f"{base}{name} is not in {files.url}"
            for name in (*_TABLES, "images")
            if not files.exists(base + name)
        ]

    def _table(self, files: Storage, path: str) -> dict[int, str]:
        try:
            rows = [
                line.split(None, 1)
                for line in files.get(path).decode().splitlines()
                if line.strip()
            ]
            return {int(number): value.strip() for number, value in rows}
        except ValueError as error:
            raise DataError(f"{join(files.url, path)} is torn: {error}") from error

    def open(self, files: Tree, entry: Entry, config: DatasetConfig) -> Mapping[str, BaseData]:
        base = self._base(files)
        paths, classes, in_train, _ = (self._table(files, base + name) for name in _TABLES)
        if not set(paths) == set(classes) == set(in_train):
            raise DataError(
                f"{files.url}: images.txt, image_class_labels.txt and train_test_split.txt do not list the same images"
            )
        there = walk(files, f"{base}images")
        sizes, left_out = dict(there.pictures), LeftOut().merge([there.left_out])
        unlisted = sorted(sizes.keys() - {f"{base}images/{path}" for path in paths.values()})
        if unlisted:
            left_out.add("picture that images.txt does not list", unlisted[0], len(unlisted))
        transform = transform_of(sized(entry.info, config), entry, config)
        splits = {}
        for split, flag in (("train", "1"), ("test", "0")):
            numbers = [number for number in sorted(paths) if in_train[number] == flag]
            names = [f"{base}images/{paths[number]}" for number in numbers]
            absent = [name for name in names if name not in sizes]
            if absent:
                raise DataError(
                    f"{join(files.url, absent[0])}, which images.txt lists, is not there ({len(absent)} such)"
                )
            labels = torch.tensor(
                [int(classes[number]) - 1 for number in numbers], dtype=torch.int64
            )
            found = [(name, sizes[name]) for name in names]
            splits[split] = FolderData(files, found, labels, transform, config.on_error == "skip")
            splits[split].place, splits[split].left_out = f"{base}images/", left_out
        return splits


SOURCES.register("cub")(CubSource())
