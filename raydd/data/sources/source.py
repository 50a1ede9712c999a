"""What a reader of published files is, and the table of readers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from raydd.core.errors import ConfigError
from raydd.core.registry import Registry
from raydd.data.arrays import ArrayData
from raydd.data.catalog import DatasetInfo, Entry
from raydd.data.config import DatasetConfig
from raydd.data.images import Transform, fit
from raydd.data.inventory import SplitInventory
from raydd.data.listing import Tree
from raydd.data.split import BaseData


class Source:
    """Reads one layout of files below ``files``, which keeps what is asked of it once.

    ``pictures``: they are picture files, which may say how they are to be turned.
    """

    pictures = False

    def missing(self, files: Tree, entry: Entry, config: DatasetConfig) -> list[str]:
        """Return a sentence for each file that is not there; quick."""
        raise TypeError(f"{type(self).__name__} does not define missing()")

    def open(self, files: Tree, entry: Entry, config: DatasetConfig) -> Mapping[str, BaseData]:
        """Return the splits ``train`` and, where the layout has one, ``test``."""
        raise TypeError(f"{type(self).__name__} does not define open()")

    def outline(self, files: Tree, entry: Entry, config: DatasetConfig) -> tuple[DatasetInfo, str]:
        """Return the facts as a plan needs them, without reading all of large files, and a sentence
        on what was not looked at.
        """
        return files.once(self.describe, entry, config), ""

    def cheap(self, files: Tree, config: DatasetConfig) -> bool:
        """Return whether a plan may open the data: listings and small files are read for it, never
        all of large ones.
        """
        return True

    def summary(self, files: Tree, entry: Entry, config: DatasetConfig) -> list[SplitInventory]:
        """Return what is known of the splits without opening them."""
        return []

    def describe(self, files: Tree, entry: Entry, config: DatasetConfig) -> DatasetInfo:
        """Return the facts; readers of people's own data look at the folder names."""
        return entry.info


def _admit(name: str, found: Any) -> Source:
    """Return a reader of the class that an entry point names."""
    if not (isinstance(found, type) and issubclass(found, Source)):
        raise ConfigError(f"{found!r} is no subclass of raydd.data.sources.source.Source")
    return found()


SOURCES: Registry[Source] = Registry("data reader", "raydd.readers", _admit)


def sized(info: DatasetInfo, config: DatasetConfig) -> DatasetInfo:
    """Return the facts with the job's own size and normalisation put in."""
    if config.channels is not None and config.channels != info.channels:
        raise ConfigError(
            f"dataset.channels: {config.channels}, but {config.name} has {info.channels}"
        )
    changes: dict[str, Any] = {}
    if config.size is not None:
        changes |= {"height": config.size, "width": config.size}
    for key in ("mean", "std"):
        value = getattr(config, key)
        if value is not None:
            if len(value) != info.channels:
                raise ConfigError(
                    f"dataset.{key}: {len(value)} values for images of {info.channels} channels"
                )
            changes[key] = tuple(float(v) for v in value)
    return replace(info, **changes)


def transform_of(info: DatasetInfo, entry: Entry, config: DatasetConfig) -> Transform:
    """Return how pictures come to ``info``'s size: the job's ``fit`` and ``resize``, else the catalog's."""
    kind = (
        config.fit
        or entry.fit
        or ("crop" if config.size is not None or config.resize is not None else "exact")
    )
    if kind != "crop":
        return Transform(
            channels=info.channels,
            height=info.height,
            width=info.width,
            fit=kind,
            orientation=config.orientation,
        )
    default = (
        entry.resize
        if entry.resize and config.size in (None, entry.info.height)
        else max(info.height, info.width)
    )
    resize = config.resize or default
    if resize < max(info.height, info.width):
        raise ConfigError(
            f"dataset.resize: {resize} is below the image size {info.height} x {info.width}; the centre crop would"
            " not fit"
        )
    size = {"channels": info.channels, "height": info.height, "width": info.width}
    return Transform(**size, fit="crop", resize=resize, orientation=config.orientation)


def array_data(
    images: torch.Tensor, labels: torch.Tensor, what: str, entry: Entry, config: DatasetConfig
) -> ArrayData:
    """Return a split of decoded images ``[N, C, H, W]``, brought to the job's size if it asks for another."""
    info = sized(entry.info, config)
    if tuple(images.shape[1:]) == info.shape and config.resize is None:
        return ArrayData(images, labels, what)
    transform = transform_of(info, entry, config)
    out = torch.empty((len(images), *info.shape), dtype=torch.uint8)
    for target, image in zip(out.numpy(), images.numpy()):
        target[...] = fit(image.transpose(1, 2, 0), transform).transpose(2, 0, 1)
    return ArrayData(out, labels, what)
