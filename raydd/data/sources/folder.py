"""Folders of images, one per class: ImageNet, parts of it, and people's own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from raydd.core.errors import DataError
from raydd.core.storage import Storage, join
from raydd.data.catalog import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD, DatasetInfo, Entry
from raydd.data.config import DatasetConfig
from raydd.data.folder_data import FolderData
from raydd.data.images import decode
from raydd.data.inventory import LeftOut
from raydd.data.layout import FolderLayout, few, find_layout, lower
from raydd.data.listing import Below, Pictures, Tree
from raydd.data.sources.source import SOURCES, Source, sized, transform_of
from raydd.data.split import BaseData

_NOTHING = ("hidden file", "hidden folder", "folder of the system")
"""What a folder may hold and still count as empty."""


class FolderSource(Source):
    """``train/<class>/*`` with ``test/<class>/*`` or ``val/<class>/*``, or ``<class>/*`` alone;
    deeper levels are read too.

    Split folders may have their usual other names (:mod:`raydd.data.layout`). A validation folder
    of ImageNet without class folders, as its archive has it, is not read: its labels are elsewhere.
    """

    pictures = True

    def missing(self, files: Tree, item: Entry, config: DatasetConfig) -> list[str]:
        layout = find_layout(files)
        if layout.problem:
            return [layout.problem]
        there = files.entries(layout.train).folders
        place = join(files.url, layout.train)
        if not item.info.classes:
            return [] if len(there) > 1 else [_too_few(files, layout.train, there)]
        if not layout.train:
            return [f"train/ with one folder per class is not in {files.url}"]
        absent = [name for name in item.classes if name not in there]
        if absent:
            return [f"class folder {name}/ is not in {place}" for name in absent]
        if len(there) < item.info.classes or (not item.classes and len(there) > item.info.classes):
            return [f"{place} has {len(there)} class folders, {item.info.classes} are expected"]
        if layout.test is None:
            return [
                f"val/ with one folder per class is not in {files.url} (a flat val/ must be sorted into class folders"
                " first)"
            ]
        tested = files.entries(layout.test).folders
        return [
            f"class folder {name}/ is not in {files.url}/{layout.test}"
            for name in item.classes or there
            if name not in tested
        ]

    def describe(self, files: Tree, item: Entry, config: DatasetConfig) -> DatasetInfo:
        if item.info.classes:
            return item.info
        found = _train(files, item, _layout(files, item))
        channels = config.channels or 3
        side = config.size
        height, width = (
            (side, side)
            if side
            else _first_size(files, next(iter(found.classes.values())), channels, config)
        )
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else (GREY_MEAN, GREY_STD)
        names = tuple(found.classes)
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
        layout = _layout(files, item)
        found = {"train": _train(files, item, layout)}
        if layout.test is not None:
            found["test"] = _test(files, item, layout.test, list(found["train"].classes))
        info = sized(files.once(self.describe, item, config), config)
        transform = transform_of(info, item, config)
        splits = {}
        for split, sorted_in in found.items():
            pictures = [picture for inside in sorted_in.classes.values() for picture in inside]
            labels = [
                label for label, inside in enumerate(sorted_in.classes.values()) for _ in inside
            ]
            splits[split] = FolderData(
                Storage(files.url),
                pictures,
                torch.tensor(labels),
                transform,
                config.on_error == "skip",
            )
            splits[split].place = f"{sorted_in.folder}/" if sorted_in.folder else ""
            splits[split].left_out, splits[split].notes = sorted_in.left_out, sorted_in.notes
        return splits


@dataclass
class _Split:
    """The pictures of each class of a split, in the order of the labels; what else is there."""

    folder: str
    classes: dict[str, Pictures]
    left_out: LeftOut
    notes: tuple[str, ...] = ()


def _layout(tree: Tree, item: Entry) -> FolderLayout:
    layout = find_layout(tree)
    if layout.problem:
        raise DataError(f"{layout.problem}; {item.hint}")
    return layout


def _inside(tree: Tree, folder: str, names: Sequence[str]) -> dict[str, Below]:
    return dict(zip(names, tree.below_each([f"{folder}/{name}".lstrip("/") for name in names])))


def _train(tree: Tree, item: Entry, layout: FolderLayout) -> _Split:
    """Return the training split; of people's own data, empty folders are no classes. ``DataError``
    for a class that is lost.
    """
    names = tree.entries(layout.train).folders
    found = _inside(tree, layout.train, item.classes or names)
    left_out, notes = LeftOut().merge([layout.left_out]), layout.notes
    for name, inside in list(found.items()):
        if inside.pictures:
            continue
        folder = f"{layout.train}/{name}".lstrip("/")
        if item.info.classes or set(inside.left_out.reasons) - set(_NOTHING):
            raise DataError(_no_pictures(tree, folder, inside))
        left_out.add("empty class folder", folder)
        del found[name]
    if len(found) < 2:
        raise DataError(f"{_too_few(tree, layout.train, tuple(found))}; {item.hint}")
    if item.classes and len(names) > len(item.classes):
        notes = (*notes, f"{len(item.classes)} of the {len(names)} class folders are read")
    left_out = left_out.merge(inside.left_out for inside in found.values())
    return _Split(
        layout.train, {name: inside.pictures for name, inside in found.items()}, left_out, notes
    )


def _test(tree: Tree, item: Entry, folder: str, classes: Sequence[str]) -> _Split:
    """Return the test split, with the classes of the training split; ``DataError`` for classes more or less."""
    left_out = LeftOut()
    strange = (
        []
        if item.classes
        else [name for name in tree.entries(folder).folders if name not in classes]
    )
    for name, inside in _inside(tree, folder, strange).items():
        if inside.pictures:
            raise DataError(
                f"{tree.url}/{folder} has a class folder '{name}' that the training split lacks"
            )
        left_out.add("empty class folder", f"{folder}/{name}")
    found = _inside(tree, folder, classes)
    for name, inside in found.items():
        if inside.pictures:
            continue
        if name not in tree.entries(folder).folders:
            raise DataError(f"class folder {name}/ is not in {join(tree.url, folder)}")
        raise DataError(_no_pictures(tree, f"{folder}/{name}", inside))
    return _Split(
        folder,
        {name: inside.pictures for name, inside in found.items()},
        left_out.merge(inside.left_out for inside in found.values()),
    )


def _no_pictures(tree: Tree, folder: str, inside: Below) -> str:
    return f"no images in {join(tree.url, folder)}" + (
        f": {'; '.join(inside.left_out.lines())}" if inside.left_out else ""
    )


def _too_few(tree: Tree, folder: str, names: tuple[str, ...]) -> str:
    place = join(tree.url, folder)
    if not names:
        beside = len(tree.entries(folder).pictures)
        return f"no class folders in {place}" + (
            f", but {beside} pictures: sort them into a folder for each class" if beside else ""
        )
    return (
        f"{place} has one class folder with pictures ({few(names)}), and at least two classes are"
        f" needed{lower(tree, folder)}"
    )


def _first_size(
    files: Storage, found: Pictures, channels: int, config: DatasetConfig
) -> tuple[int, int]:
    """Return height and width of a class's first picture; with ``on_error: skip`` of the first that can be decoded."""
    for path, _ in found:
        try:
            height, width = decode(files.get(path), channels, config.orientation).shape[:2]
        except ValueError as error:
            if config.on_error == "skip":
                continue
            raise DataError(
                f"{files.url}/{path} cannot be decoded: {error}; dataset.on_error=skip goes on to the next"
            ) from error
        return height, width
    raise DataError(
        f"none of the {len(found)} images in {files.url}/{found[0][0].rsplit('/', 1)[0]} can be decoded"
    )


SOURCES.register("folder")(FolderSource())
