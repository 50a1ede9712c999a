"""Facts of known data sets: the only place that knows a data set by its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

from raydd.core.errors import ConfigError
from raydd.core.registry import Registry
from raydd.core.units import unkeyed

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)
DIGITS_MEAN, DIGITS_STD = (0.3056,), (0.3761,)
_ALL_SIX = "color_crop_cutout_flip_scale_rotate"
_NO_FLIP = "color_crop_cutout_scale_rotate"
_IMAGENET_HINT = "register at https://image-net.org, and unpack so that train/<wnid>/*.JPEG and val/<wnid>/*.JPEG exist"


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Facts of a data set as a job uses it; a field of every stage that reads it (``only`` narrows the digests).

    ``mean``/``std``: per channel, of pixels in [0, 1]. ``digests``: ``(split, sha256)`` pairs of
    the splits that exist (``train``, ``test``, and ``holdout`` if asked for), empty for a plan made
    without the data. ``train_counts``: images per class of ``train``. ``dsa_strategy``,
    ``dc_strategy``: the augmentations that published experiments of DSA and DM use on it, and those
    of DC's evaluation.
    """

    name: str = unkeyed()
    classes: int
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digests: tuple[tuple[str, str], ...] = ()
    class_names: tuple[str, ...] = unkeyed(default=())
    train_counts: tuple[int, ...] = unkeyed(default=())
    test_count: int = unkeyed(default=0)
    dsa_strategy: str = unkeyed(default=_ALL_SIX)
    dc_strategy: str = unkeyed(default="none")

    def only(self, *splits: str) -> DatasetInfo:
        """Return the facts with the digests of these splits alone: what a stage that reads only them depends on."""
        return replace(
            self, digests=tuple((name, value) for name, value in self.digests if name in splits)
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Image shape ``(C, H, W)``."""
        return (self.channels, self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A data set of the catalog: its facts (before it is read) and how its files are read.

    ``source``: the reader among ``data.sources.SOURCES``. ``roots``: where the files are looked
    for, the first also being where a download goes. ``train_count``/``test_count``: published
    sizes, 0 where they depend on the data. ``resize``/``fit``: how pictures come to the catalog's
    size (``None``: stored at that size). ``classes``: folders that are the classes, in label order,
    where they are a choice among more. ``downloader``: torchvision's class. ``hint``: what a person
    does to get the files.
    """

    info: DatasetInfo
    source: str
    roots: tuple[str, ...]
    train_count: int = 0
    test_count: int = 0
    resize: int | None = None
    fit: Literal["crop", "squash"] | None = None
    classes: tuple[str, ...] = field(default=())
    downloader: str = ""
    hint: str = ""


@lru_cache
def _class_names() -> dict[str, tuple[str, ...]]:
    table = json.loads((files("raydd.data") / "class_names.json").read_text(encoding="utf-8"))
    return {name: tuple(names) for name, names in table.items()}


def prompt_names(info: DatasetInfo) -> tuple[str, ...]:
    """Return the names by which PoCO asks a text network for a data set's classes: their own, but for
    those that the published code calls otherwise.
    """
    text = (files("raydd.data") / "prompt_names.json").read_text(encoding="utf-8")
    other = json.loads(text).get(info.name, {})
    return tuple(other.get(str(c), name) for c, name in enumerate(info.class_names))


def _info(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    flip: bool = True,
    train_counts: tuple[int, ...] = (),
    test_count: int = 0,
    dc: str = "none",
) -> DatasetInfo:
    channels, height, width = shape
    return DatasetInfo(
        name=name,
        classes=classes,
        channels=channels,
        height=height,
        width=width,
        mean=mean,
        std=std,
        class_names=_class_names().get(name, ()),
        train_counts=train_counts,
        test_count=test_count,
        dsa_strategy=_ALL_SIX if flip else _NO_FLIP,
        dc_strategy=dc,
    )


def _entries() -> list[Entry]:
    """Return what raydd knows. ImageNet-10's classes are EDC's, in the order of its labels."""
    rgb32 = (3, 32, 32)
    return [
        Entry(
            info=_info(
                "mnist",
                (1, 28, 28),
                10,
                (0.1307,),
                (0.3081,),
                flip=False,
                test_count=10_000,
                dc="crop_scale_rotate",
                train_counts=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
            ),
            source="idx",
            roots=("data/mnist",),
            train_count=60_000,
            test_count=10_000,
            downloader="MNIST",
        ),
        Entry(
            info=_info(
                "fashion_mnist",
                (1, 28, 28),
                10,
                (0.2861,),
                (0.3530,),
                train_counts=(6000,) * 10,
                test_count=10_000,
            ),
            source="idx",
            roots=("data/fashion_mnist", "/usr/share/datasets/fashion-mnist"),
            train_count=60_000,
            test_count=10_000,
            downloader="FashionMNIST",
            hint="on Debian, the package dataset-fashion-mnist installs the four files",
        ),
        Entry(
            info=_info(
                "svhn",
                rgb32,
                10,
                (0.4377, 0.4438, 0.4728),
                (0.1980, 0.2010, 0.1970),
                flip=False,
                test_count=26_032,
                train_counts=(4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
            ),
            source="svhn",
            roots=("data/svhn",),
            train_count=73_257,
            test_count=26_032,
            downloader="SVHN",
        ),
        Entry(
            info=_info(
                "cifar10",
                rgb32,
                10,
                (0.4914, 0.4822, 0.4465),
                (0.2023, 0.1994, 0.2010),
                train_counts=(5000,) * 10,
                test_count=10_000,
            ),
            source="cifar",
            roots=("data/cifar10",),
            train_count=50_000,
            test_count=10_000,
            downloader="CIFAR10",
        ),
        Entry(
            info=_info(
                "cifar100",
                rgb32,
                100,
                (0.5071, 0.4866, 0.4409),
                (0.2673, 0.2564, 0.2762),
                train_counts=(500,) * 100,
                test_count=10_000,
            ),
            source="cifar",
            roots=("data/cifar100",),
            train_count=50_000,
            test_count=10_000,
            downloader="CIFAR100",
        ),
        Entry(
            info=_info(
                "tiny_imagenet",
                (3, 64, 64),
                200,
                IMAGENET_MEAN,
                IMAGENET_STD,
                train_counts=(500,) * 200,
                test_count=10_000,
            ),
            source="tiny",
            roots=("data/tiny_imagenet", "data/tiny-imagenet-200"),
            train_count=100_000,
            test_count=10_000,
            hint=(
                "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip in data/ or in data/tiny_imagenet/, or put"
                " tinyimagenet.pt there"
            ),
        ),
        Entry(
            info=_info(
                "imagenet", (3, 224, 224), 1000, IMAGENET_MEAN, IMAGENET_STD, test_count=50_000
            ),
            source="folder",
            roots=("data/imagenet",),
            train_count=1_281_167,
            test_count=50_000,
            resize=256,
            fit="crop",
            hint=_IMAGENET_HINT,
        ),
        Entry(
            info=_info(
                "imagenet10", (3, 224, 224), 10, IMAGENET_MEAN, IMAGENET_STD, test_count=500
            ),
            source="folder",
            roots=("data/imagenet10", "data/imagenet"),
            test_count=500,
            resize=256,
            fit="crop",
            hint=_IMAGENET_HINT + " (ten of its classes are read; those of data/imagenet do)",
            classes=(
                "n02869837",
                "n01749939",
                "n02488291",
                "n02107142",
                "n13037406",
                "n02091831",
                "n04517823",
                "n04589890",
                "n03062245",
                "n01773797",
            ),
        ),
        Entry(
            info=_info("cub200", rgb32, 200, IMAGENET_MEAN, IMAGENET_STD, test_count=5794),
            source="cub",
            roots=("data/cub200",),
            train_count=5994,
            test_count=5794,
            fit="squash",
            hint="unpack CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/ there",
        ),
        Entry(
            info=_info("digits", (1, 8, 8), 10, DIGITS_MEAN, DIGITS_STD, flip=False),
            source="digits",
            roots=(),
            train_count=1438,
            test_count=359,
        ),
        Entry(
            info=_info("image_folder", (3, 0, 0), 0, (), ()),
            source="folder",
            roots=("data/image_folder",),
            hint=(
                "set dataset.root to a folder with train/<class>/* (and test/<class>/* or val/<class>/*), or with"
                " <class>/*"
            ),
        ),
        Entry(
            info=_info("webdataset", (3, 0, 0), 0, (), ()),
            source="shards",
            roots=(),
            hint="set dataset.shards to a folder of tars, or to a URL such as s3://bucket/train-{000000..000099}.tar",
        ),
    ]


def _admit(name: str, found: Any) -> Entry:
    """Return what an entry point names as the data set of that name."""
    if not isinstance(found, Entry):
        raise ConfigError(f"{found!r} is no raydd.data.catalog.Entry")
    if found.info.name != name:
        raise ConfigError(f"the data set calls itself '{found.info.name}'")
    return found


CATALOG: Registry[Entry] = Registry("data set", "raydd.datasets", _admit)
for _entry in _entries():
    CATALOG.register(_entry.info.name, __name__)(_entry)


def check_normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, key: str
) -> None:
    """Raise ``ConfigError`` for means or deviations of pixels on another scale than [0, 1];
    ``key``: the job's, ``dataset``.
    """
    for name, values in (("mean", mean or ()), ("std", std or ())):
        strange = [value for value in values if not 0 <= value <= 1]
        if strange:
            hint = (
                f" (of pixels up to 255: {strange[0] / 255:.4g})" if 1 < strange[0] <= 255 else ""
            )
            raise ConfigError(
                f"{key}.{name}: {list(values)}; means and deviations are of pixels in [0, 1]{hint}"
            )


def entry(name: str) -> Entry:
    """Return a data set's entry; ``ConfigError`` with the nearest match for a name that is not in the catalog."""
    return CATALOG.get(name)
