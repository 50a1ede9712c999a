"""Tiny-ImageNet (cs231n's tiny-imagenet-200.zip), and the single file that the DC repository reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from raydd.core.errors import DataError
from raydd.core.storage import Storage, join
from raydd.core.torch_file import load_torch
from raydd.data.catalog import Entry
from raydd.data.config import DatasetConfig
from raydd.data.folder_data import FolderData
from raydd.data.listing import Tree
from raydd.data.sources.source import SOURCES, Source, array_data, sized, transform_of
from raydd.data.split import BaseData

_FILE = "tinyimagenet.pt"
_PARTS = ("train", "val", "wnids.txt", "val/val_annotations.txt")


class TinySource(Source):
    """``train/<wnid>/images/*.JPEG`` and ``val/images/*.JPEG`` with ``val_annotations.txt``; val is the test split.

    The root is the archive's folder ``tiny-imagenet-200``, or holds it. Labels are the ranks of the
    sorted wnids, as image folders give them. A ``val`` sorted into class folders is read too.
    """

    pictures = True

    def _base(self, files: Storage) -> str:
        return "tiny-imagenet-200/" if files.exists("tiny-imagenet-200/train") else ""

    def missing(self, files: Tree, entry: Entry, config: DatasetConfig) -> list[str]:
        if files.exists(_FILE):
            return []
        base = self._base(files)
        absent = [f"{base}{part}" for part in _PARTS if not files.exists(base + part)]
        if (
            absent == [f"{base}val/val_annotations.txt"]
            and len(files.entries(f"{base}val").folders) > 1
        ):
            return []
        return [f"{path} is not in {files.url}" for path in absent]

    def open(self, files: Tree, entry: Entry, config: DatasetConfig) -> Mapping[str, BaseData]:
        if files.exists(_FILE):
            return self._open_file(files, entry, config)
        base = self._base(files)
        wnids = sorted(files.get(f"{base}wnids.txt").decode().split())
        label_of = {wnid: label for label, wnid in enumerate(wnids)}
        transform = transform_of(sized(entry.info, config), entry, config)
        splits = {}
        for split, folder in (("train", f"{base}train"), ("test", f"{base}val")):
            annotated = split == "test" and files.exists(f"{folder}/val_annotations.txt")
            wnid_of = (
                self._annotations(files, f"{folder}/val_annotations.txt") if annotated else None
            )
            there = files.below(folder)
            found = there.pictures
            labels = []
            for path, _ in found:
                parts = path[len(folder) + 1 :].split("/")
                wnid = parts[0] if wnid_of is None else wnid_of.get(parts[-1], "")
                if wnid not in label_of:
                    raise DataError(
                        f"{join(files.url, path)} has no class among the {len(wnids)} of wnids.txt"
                    )
                labels.append(label_of[wnid])
            splits[split] = FolderData(
                files,
                found,
                torch.tensor(labels, dtype=torch.int64),
                transform,
                config.on_error == "skip",
            )
            splits[split].place, splits[split].left_out = f"{folder}/", there.left_out
        return splits

    def _annotations(self, files: Storage, path: str) -> dict[str, str]:
        rows = [line.split() for line in files.get(path).decode().splitlines() if line.strip()]
        if any(len(row) < 2 for row in rows):
            raise DataError(f"{join(files.url, path)} is torn: a line has no file name and wnid")
        return {row[0]: row[1] for row in rows}

    def _open_file(
        self, files: Storage, entry: Entry, config: DatasetConfig
    ) -> Mapping[str, BaseData]:
        what = join(files.url, _FILE)
        try:
            content = load_torch(files.get(_FILE), what)
            pairs = {
                split: (content[f"images_{name}"], content[f"labels_{name}"])
                for split, name in (("train", "train"), ("test", "val"))
            }
        except Exception as error:
            raise DataError(f"{what} is refused: {error}") from error
        for images, labels in pairs.values():
            if not (
                isinstance(images, torch.Tensor)
                and isinstance(labels, torch.Tensor)
                and images.dtype == torch.uint8
            ):
                raise DataError(f"{what}: uint8 images and labels as tensors are expected")
        return {
            split: array_data(images, labels, what, entry, config)
            for split, (images, labels) in pairs.items()
        }


SOURCES.register("tiny")(TinySource())
