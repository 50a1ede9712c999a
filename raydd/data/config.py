"""The ``dataset:`` part of a job: which data, where it lies, how images are brought to one size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from raydd.core.errors import ConfigError
from raydd.core.storage import absolute, check_url
from raydd.data.catalog import check_normalisation
from raydd.data.shard_names import check_packed


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """A data set as a job names it; the fields are the YAML keys under ``dataset:``.

    ``name``: a name of the catalog, or ``image_folder`` / ``webdataset`` for data of one's own.
    ``root``: folder or fsspec URL of the files as their publisher packs them (default: the
    catalog's, below ``data/``). ``shards``: URL of a folder written by ``raydd shard`` or of a
    folder of tars, or a WebDataset URL with braces; read instead of ``root``. ``test_shards``:
    WebDataset URL of the test split, where ``shards`` is a URL of tars. ``size``: side in pixels of
    the square images that come out. ``fit``: ``crop`` brings the shorter side to ``resize``
    (default: the catalog's, else ``size``) and cuts the centre; ``squash`` scales both sides to
    ``size``. ``channels``: 1 or 3, for data of one's own (default 3). ``mean``/``std``: per
    channel, of pixels in [0, 1], instead of the catalog's. Own data without them takes what its
    shard manifest says, else ImageNet's. ``test_split``: share of every class that becomes the test
    split of data that has none of its own. ``holdout``: training images kept apart for selection, a
    share (0.1) or a count (50) of every class; 0 for none. The split depends on the images'
    identity alone, never on their order. ``on_error``: a sample that cannot be decoded stops the
    run (``raise``), or is replaced by the next sample of its class and counted (``skip``).
    ``orientation``: pictures that say how they are to be turned are taken as they lie (``ignore``,
    as the field's loaders do), or turned (``exif``). ``download``: fetch what is missing, where the
    publisher allows it.

    Local paths are made absolute: workers run in other folders than the driver.
    """

    name: str
    root: str | None = None
    shards: str | None = None
    test_shards: str | None = None
    size: Annotated[int, Ge(1)] | None = None
    resize: Annotated[int, Ge(1)] | None = None
    fit: Literal["crop", "squash"] | None = None
    channels: Literal[1, 3] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Gt(0)], ...] | None = None
    test_split: Annotated[float, Gt(0), Lt(1)] = 0.2
    holdout: Annotated[int, Ge(0)] | Annotated[float, Ge(0), Lt(1)] = 0
    on_error: Literal["raise", "skip"] = "raise"
    orientation: Literal["ignore", "exif"] = "ignore"
    download: bool = False

    def __post_init__(self) -> None:
        for key in ("size", "resize"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"dataset.{key}: {value} pixels; at least 1 is allowed")
        if self.fit not in (None, "crop", "squash"):
            raise ConfigError(f"dataset.fit: '{self.fit}'; allowed: crop, squash")
        if self.orientation not in ("ignore", "exif"):
            raise ConfigError(f"dataset.orientation: '{self.orientation}'; allowed: ignore, exif")
        if self.on_error not in ("raise", "skip"):
            raise ConfigError(f"dataset.on_error: '{self.on_error}'; allowed: raise, skip")
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"dataset.channels: {self.channels}; allowed: 1, 3")
        if not 0 < self.test_split < 1:
            raise ConfigError(
                f"dataset.test_split: {self.test_split}; a share between 0 and 1 is allowed"
            )
        if (
            not math.isfinite(self.holdout)
            or self.holdout < 0
            or (self.holdout >= 1 and self.holdout != int(self.holdout))
        ):
            raise ConfigError(
                f"dataset.holdout: {self.holdout}; a share below 1 or a whole number of images per class is allowed"
            )
        if self.std is not None and any(value <= 0 for value in self.std):
            raise ConfigError(f"dataset.std: {list(self.std)}; every value must be above 0")
        check_normalisation(self.mean, self.std, "dataset")
        if (
            self.resize is not None
            and self.size is not None
            and self.resize < self.size
            and self.fit != "squash"
        ):
            raise ConfigError(
                f"dataset.resize: {self.resize} is below dataset.size {self.size}; the centre crop would not fit"
            )
        if self.test_shards is not None and self.shards is None:
            raise ConfigError("dataset.test_shards needs dataset.shards")
        given = [key for key in ("root", "shards", "test_shards") if getattr(self, key) is not None]
        for key in given:
            check_url(getattr(self, key), f"dataset.{key}")
        for key in given:
            if key != "root":
                check_packed(getattr(self, key), f"dataset.{key}")
            object.__setattr__(self, key, absolute(getattr(self, key)))
