"""Data sets as jobs use them: what they are, what is missing, how to get and open them."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from raydd.core.errors import ConfigError, DataError
from raydd.core.storage import absolute, protocol
from raydd.core.units import Data
from raydd.data.catalog import DatasetInfo, Entry, entry
from raydd.data.config import DatasetConfig
from raydd.data.inventory import Inventory, LeftOut, SplitInventory
from raydd.data.listing import Tree
from raydd.data.shard_names import is_pattern
from raydd.data.sources import load_sources
from raydd.data.sources.source import SOURCES, sized
from raydd.data.split import BaseData, Subset, keyed_split

log = logging.getLogger(__name__)
_ORDER = {"train": 0, "test": 1, "holdout": 2}


@dataclass(frozen=True)
class Described:
    """A data set, looked at once: its facts, what its files hold, and its open splits, of which the facts have digests.

    ``config``: with the place where it was found. ``splits`` is ``None`` where the data are not there, or a
    plan is made without opening them; ``unseen``: a sentence on what was not looked at for it.
    ``absent``: a sentence for each thing that is missing.
    """

    config: DatasetConfig
    info: DatasetInfo
    inventory: Inventory | None = None
    splits: Mapping[str, BaseData] | None = None
    unseen: str = ""
    absent: Sequence[str] = ()


class FoundData:
    """A data set where a job looks for it; what its reader finds there is found once for all that is asked here.

    ``absent``: a sentence for each thing that is missing, with what to do; empty if all is there.
    ``files``: the job's place, else the first of the catalog's that has them, or some of them, else
    its first. ``ConfigError`` for an unknown name.
    """

    def __init__(self, config: DatasetConfig) -> None:
        self.config, self.item = config, entry(config.name)
        load_sources()
        self.source = SOURCES.get("shards" if config.shards is not None else self.item.source)
        if config.orientation != "ignore" and not self.source.pictures:
            raise ConfigError(
                f"dataset.orientation: {config.orientation} has no effect: the files of {config.name} are no pictures"
            )
        self.files, absent = self._place()
        self.absent = [*absent, _advice(self.item, config, self.files)] if absent else []
        if config.shards is None and config.root is None and self.item.roots:
            self.config = replace(config, root=self.files.url)

    def _place(self) -> tuple[Tree, list[str]]:
        config, urls = self.config, self.item.roots or (".",)
        if config.shards is not None or config.root is not None:
            urls = (config.shards or config.root or ".",)
        if config.shards and is_pattern(config.shards):
            urls = (os.path.dirname(config.shards) or ".",)
        partly = []
        for files in map(Tree, urls):
            absent = files.once(self.source.missing, self.item, config)
            if not absent:
                return files, []
            partly.append((files, absent))
        there = [place for place in partly if len(urls) > 1 and place[0].exists("")]
        return (there or partly)[0]

    def describe(self) -> DatasetInfo:
        """Return the facts of a data set, without digests: of catalog names without the data.

        Own data is described by its folder names or shard manifest; ``DataError`` if it is not there.
        """
        return sized(self.files.once(self.source.describe, self.item, self.config), self.config)

    def look(self, *, plan: bool = False) -> Described:
        """Return the data set as it is there; without the data, what :meth:`describe` says.

        ``plan``: quick on any storage; large files far away are not opened.
        """
        if plan:
            outlined, unseen = self.source.outline(self.files, self.item, self.config)
            info = sized(outlined, self.config)
        else:
            info, unseen = self.describe(), ""
        if self.absent:
            return Described(self.config, info, unseen=unseen, absent=self.absent)
        splits = None
        if not plan or self.source.cheap(self.files, self.config):
            splits = self.splits
        held = self.inventory(info, splits)
        info = info if splits is None else with_digests(info, splits)
        return Described(self.config, info, held, splits, unseen)

    @cached_property
    def splits(self) -> dict[str, BaseData]:
        """The splits, see :func:`open_data`; opened when they are first asked for."""
        config, item = self.config, self.item
        if self.absent:
            raise DataError("; ".join(self.absent))
        splits = dict(self.source.open(self.files, item, config))
        if "test" not in splits:
            kept, taken = keyed_split(
                splits["train"], config.test_split, "test", lambda: self.describe().class_names
            )
            note = (
                f"there is no test split: {config.test_split:.0%} of every class are kept apart as one"
                " (dataset.test_split)"
            )
            splits |= {
                "train": Subset(splits["train"], kept),
                "test": Subset(splits["train"], taken),
            }
            splits["train"].notes += (note,)
        for split, published in (("train", item.train_count), ("test", item.test_count)):
            if published and len(splits[split]) != published:
                log.warning(
                    "%s: %d %s images, %d were published",
                    config.name,
                    len(splits[split]),
                    split,
                    published,
                )
        if config.holdout:
            kept, taken = keyed_split(
                splits["train"], config.holdout, "holdout", lambda: self.describe().class_names
            )
            splits |= {
                "train": Subset(splits["train"], kept),
                "holdout": Subset(splits["train"], taken),
            }
        return splits

    def inventory(self, info: DatasetInfo, splits: Mapping[str, BaseData] | None) -> Inventory:
        """Return what the data set holds, and its files besides; without ``splits`` (not opened)
        what is known at once.
        """
        if splits is None:
            listed, left_out = self.source.summary(self.files, self.item, self.config), LeftOut()
            notes: tuple[str, ...] = ()
        else:
            listed = [
                SplitInventory(
                    split=name,
                    place=data.place,
                    count=len(data),
                    per_class=tuple(torch.bincount(data.labels, minlength=info.classes).tolist()),
                )
                for name, data in splits.items()
            ]
            left_out = LeftOut().merge(
                {id(data.left_out): data.left_out for data in splits.values()}.values()
            )  # shared: counted once
            notes = tuple(
                dict.fromkeys(note for data in splits.values() for note in data.remarks())
            )
        where = self.config.shards or (self.files.url if self.item.roots else "")
        return Inventory(
            name=info.name,
            where=where,
            classes=info.classes,
            class_names=info.class_names,
            splits=tuple(sorted(listed, key=lambda one: _ORDER.get(one.split, len(_ORDER)))),
            left_out=left_out,
            notes=notes,
        )

    def fetched(self) -> FoundData:
        """Return the same, downloaded first where the job says so and something is missing."""
        if not (self.config.download and self.absent):
            return self
        self.download()
        return FoundData(self.config)

    def download(self) -> None:
        """Fetch the files into their root with torchvision's downloader; ``DataError`` where that
        is not allowed or fails.
        """
        name, files = self.config.name, self.files
        if not self.item.downloader or self.config.shards is not None:
            raise DataError(f"{name} cannot be downloaded: " + "; ".join(self.absent))
        if protocol(files.url) != "file":
            raise DataError(f"{name} can only be downloaded to a local folder, not to {files.url}")
        from torchvision import datasets

        fetch = getattr(datasets, self.item.downloader)
        by_split = "split" in inspect.signature(fetch).parameters  # else one call fetches both
        try:
            for options in ({"split": "train"}, {"split": "test"}) if by_split else ({},):
                fetch(files.url, download=True, **options)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{name} could not be downloaded to {files.url}: {error}; "
                + "; ".join(missing(self.config))
            ) from error


def located(config: DatasetConfig) -> DatasetConfig:
    """Return the same with the place of the files, the catalog's too: what a process that runs in
    another folder opens.
    """
    given = config.shards is not None or config.root is not None
    return config if given else FoundData(config).config


def describe(config: DatasetConfig) -> DatasetInfo:
    """Return :meth:`FoundData.describe` of a data set."""
    return FoundData(config).describe()


def missing(config: DatasetConfig) -> list[str]:
    """Return what of a data set is missing, see :class:`FoundData`."""
    return FoundData(config).absent


def _advice(item: Entry, config: DatasetConfig, files: Tree) -> str:
    ways = []
    if item.downloader and config.shards is None and protocol(files.url) == "file":
        ways.append("set dataset.download=true to fetch it")
    if item.hint and config.shards is None:
        ways.append(item.hint)
    if config.shards is not None:
        ways.append(
            "set dataset.shards to what 'raydd shard' wrote, a folder of tars, or a URL such as"
            " s3://bucket/train-{000000..000099}.tar"
        )
    elif item.roots and item.info.classes:  # own data: its hint says it
        ways.append("set dataset.root to where the files are")
    looked = [files.url]
    if config.root is None and config.shards is None:
        looked += [url for url in map(absolute, item.roots) if url != files.url]
    return f"{config.name} ({', '.join(looked)}): " + "; or ".join(ways)


def open_data(config: DatasetConfig) -> dict[str, BaseData]:
    """Return the splits ``train``, ``test`` and, if asked for, ``holdout`` (cut from ``train``).

    Raises:
        DataError: what is missing, with what to do; or a torn file, by name.
    """
    return FoundData(config).fetched().splits


def with_digests(info: DatasetInfo, data: Mapping[str, Data]) -> DatasetInfo:
    """Return the facts with what only the data says: digests of the splits, images per class, test images."""
    counts = torch.bincount(data["train"].labels, minlength=info.classes)
    if len(counts) > info.classes:
        raise DataError(
            f"{info.name}: label {len(counts) - 1} in the training split, but {info.classes} classes"
        )
    return replace(
        info,
        digests=tuple((name, data[name].digest) for name in sorted(data)),
        train_counts=tuple(counts.tolist()),
        test_count=len(data["test"]) if "test" in data else info.test_count,
    )
