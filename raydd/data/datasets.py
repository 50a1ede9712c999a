"""Data sets as jobs use them: what they are, what is missing, how to get and open them."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from dataclasses import replace

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
from raydd.data.sources.source import SOURCES, Source, sized
from raydd.data.split import BaseData, Subset, keyed_split

log = logging.getLogger(__name__)
_ORDER = ("train", "test", "holdout")


def _source(item: Entry, config: DatasetConfig) -> Source:
    load_sources()
    return SOURCES.get("shards" if config.shards is not None else item.source)


def _files(item: Entry, config: DatasetConfig) -> Tree:
    """Return where the files are: the job's place, else the first of the catalog's that has them,
    or some of them, else its first.
    """
    place = (
        os.path.dirname(config.shards) or "."
        if config.shards and is_pattern(config.shards)
        else config.shards
    )
    given = place or config.root
    if given is not None or not item.roots:
        return Tree(given or ".")
    places = [Tree(root) for root in item.roots]
    source = _source(item, config)
    whole = next((files for files in places if not source.missing(files, item, config)), None)
    return whole or next((files for files in places if files.exists("")), places[0])


def located(config: DatasetConfig) -> DatasetConfig:
    """Return the same with every place absolute, the catalog's too: what a process that runs in
    another folder opens.
    """
    item = entry(config.name)
    if config.shards is None and config.root is None and item.roots:
        return replace(config, root=_files(item, config).url)
    return config.absolute()


class FoundData:
    """A data set as a job names it, looked at once: its folders are listed no more than once for
    all that is asked here.

    ``ConfigError`` for an unknown name.
    """

    def __init__(self, config: DatasetConfig) -> None:
        self.config, self.item = config, entry(config.name)
        self.source, self.files = _source(self.item, config), _files(self.item, config)

    def missing(self) -> list[str]:
        """Return a sentence for each thing that is not where the job looks for it, with what to do;
        empty if all is there.
        """
        absent = self.source.missing(self.files, self.item, self.config)
        return [*absent, _advice(self.item, self.config, self.files)] if absent else []

    def describe(self) -> DatasetInfo:
        """Return the facts of a data set, without digests: of catalog names without the data.

        Own data is described by its folder names or shard manifest; ``DataError`` if it is not there.
        """
        return self._asked(self.source.describe(self.files, self.item, self.config))

    def outline(self) -> tuple[DatasetInfo, str]:
        """Return :meth:`describe` for a plan, quick on any storage, and a sentence on what was not looked at."""
        info, unseen = self.source.outline(self.files, self.item, self.config)
        return self._asked(info), unseen

    def _asked(self, info: DatasetInfo) -> DatasetInfo:
        """Return the facts with what the job asks for."""
        config = self.config
        if config.channels is not None and config.channels != info.channels:
            raise ConfigError(
                f"dataset.channels: {config.channels}, but {config.name} has {info.channels}"
            )
        if config.orientation != "ignore" and not self.source.pictures:
            raise ConfigError(
                f"dataset.orientation: {config.orientation} has no effect: the files of {config.name} are no pictures"
            )
        return sized(info, config)

    def cheap(self) -> bool:
        """Return whether a plan may open the data; else :meth:`inventory` says what is known without."""
        return self.source.cheap(self.files, self.config)

    def open(self) -> dict[str, BaseData]:
        """Return the splits, see :func:`open_data`."""
        config, item = self.config, self.item
        absent = self.missing()
        if absent:
            raise DataError("; ".join(absent))
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

    def inventory(
        self, info: DatasetInfo, splits: Mapping[str, BaseData] | None = None
    ) -> Inventory:
        """Return what the data set holds, and its files besides; without ``splits`` (not opened)
        what is known at once.
        """
        if splits is None:
            listed, left_out = self.source.summary(self.files, self.item, self.config), LeftOut()
            notes: tuple[str, ...] = ()
        else:
            listed = [_counted(name, data, info.classes) for name, data in splits.items()]
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
            splits=tuple(
                sorted(
                    listed,
                    key=lambda split: (
                        _ORDER.index(split.split) if split.split in _ORDER else len(_ORDER)
                    ),
                )
            ),
            left_out=left_out,
            notes=notes,
        )


def _counted(split: str, data: BaseData, classes: int) -> SplitInventory:
    counts = torch.bincount(data.labels, minlength=classes).tolist()
    return SplitInventory(split=split, place=data.place, count=len(data), per_class=tuple(counts))


def describe(config: DatasetConfig) -> DatasetInfo:
    """Return :meth:`FoundData.describe` of a data set."""
    return FoundData(config).describe()


def missing(config: DatasetConfig) -> list[str]:
    """Return :meth:`FoundData.missing` of a data set."""
    return FoundData(config).missing()


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


def download(config: DatasetConfig) -> None:
    """Fetch a data set's files into its root with torchvision's downloader; ``DataError`` where
    that is not allowed or fails.
    """
    item = entry(config.name)
    if not missing(config):
        return
    files = _files(item, config)
    if not item.downloader or config.shards is not None:
        raise DataError(f"{config.name} cannot be downloaded: " + "; ".join(missing(config)))
    if protocol(files.url) != "file":
        raise DataError(
            f"{config.name} can only be downloaded to a local folder, not to {files.url}"
        )
    from torchvision import datasets

    fetch = getattr(datasets, item.downloader)
    by_split = "split" in inspect.signature(fetch).parameters  # else one call fetches both
    try:
        for options in ({"split": "train"}, {"split": "test"}) if by_split else ({},):
            fetch(files.url, download=True, **options)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{config.name} could not be downloaded to {files.url}: {error}; "
            + "; ".join(missing(config))
        ) from error


def open_data(config: DatasetConfig) -> dict[str, BaseData]:
    """Return the splits ``train``, ``test`` and, if asked for, ``holdout`` (cut from ``train``).

    Raises:
        DataError: what is missing, with what to do; or a torn file, by name.
    """
    if config.download:
        download(config)
    return FoundData(config).open()


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
