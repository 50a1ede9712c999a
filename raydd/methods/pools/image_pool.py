"""Pools of images that recovery starts from: the stage they all are, and those made by choosing alone."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from raydd.artifacts.class_folders import class_of_folders
from raydd.artifacts.pictures import Range, read_side
from raydd.core.errors import ConfigError, DataError
from raydd.core.storage import Storage, absolute
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, unkeyed
from raydd.data.catalog import DatasetInfo
from raydd.data.folder_data import FolderData
from raydd.data.images import Transform
from raydd.data.listing import walk
from raydd.methods.method import ClassBlocks

log = logging.getLogger(__name__)
Sampling = Literal["without_replacement", "with_replacement", "softmax_count"]


def start_images(pool: int, ipc: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Return the places int64 ``[ipc]``, among a class's ``pool`` images, of those it starts from
    (docs/methods/recovery.md, "Start images").

    ``without_replacement``: the first ``ipc``, image k for the k-th. ``with_replacement``: uniform
    draws, so that some are repeated and others missed (published, but for ImageNet-10).
    ``softmax_count``: an image drawn n times before is drawn with probability softmax(-1 - n)
    (ImageNet-10). ``ConfigError`` if there are too few for ``without_replacement``.
    """
    if sampling == "without_replacement":
        if pool < ipc:
            raise ConfigError(
                f"a pool of {pool} images per class gives no {ipc} without replacement; use sampling=with_replacement"
            )
        return torch.arange(ipc)
    if sampling == "with_replacement":
        return torch.randint(pool, (ipc,), generator=generator)
    counts, chosen = torch.ones(pool, dtype=torch.float64), []
    for _ in range(ipc):
        place = int(torch.multinomial((-counts).softmax(0), 1, generator=generator))
        counts[place] += 1
        chosen.append(place)
    return torch.tensor(chosen)


@dataclass(frozen=True, kw_only=True)
class ImagePool(ClassBlocks):
    """``pool`` images of each class; a unit is a block of classes.

    Output: ``images`` uint8 ``[K * pool, C, H, W]``, class by class, and ``labels`` int64 ``[K * pool]``.
    """

    phase: ClassVar[str] = "init"

    pool: int

    def unit_of(self, label: int) -> str:
        """Return the unit that holds a class."""
        return self.units()[label // self.classes_per_unit]

    def rows(self, label: int) -> slice:
        """Return where a class's images lie in its unit's output, for ``ctx.load(name, rows)``."""
        first = label % self.classes_per_unit * self.pool
        return slice(first, first + self.pool)

    def steps(self, unit: str) -> int:
        """Return 0: a pool is made at once, and half of one is nothing to look at."""
        return 0

    def cost(self, unit: str) -> Cost:
        """Return the bytes of the block's images."""
        held = len(self.blocks[unit]) * self.pool * self.pixels
        return Cost(peak_bytes=2 * held, output_bytes=held)

    @property
    def pixels(self) -> int:
        """Bytes of one image."""
        return self.dataset.channels * self.dataset.height * self.dataset.width

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the images of the block's classes, and their labels."""
        block = self.blocks[unit]
        with torch.no_grad():
            images = torch.cat([self.images_of(label, ctx) for label in block])
        return {"images": images, "labels": torch.tensor(list(block)).repeat_interleave(self.pool)}

    def images_of(self, label: int, ctx: Context) -> Tensor:
        """Return a class's images, uint8 ``[pool, C, H, W]`` on the CPU."""
        raise TypeError(f"{type(self).__name__} does not define images_of()")


def members_of(label: int, ctx: Context) -> Tensor:
    """Return the indices of a class's training images, ascending; ``DataError`` if there are none."""
    members = (ctx.data["train"].labels == label).nonzero().reshape(-1)
    if not len(members):
        raise DataError(f"class {label} has no training images")
    return members


@dataclass(frozen=True, kw_only=True)
class RealPool(ImagePool):
    """Real images, drawn without replacement: the first of one keyed permutation per class."""

    def images_of(self, label: int, ctx: Context) -> Tensor:
        """Return the draw of a class; ``DataError`` if it has fewer than ``pool`` images."""
        members = members_of(label, ctx)
        if len(members) < self.pool:
            raise DataError(
                f"init.pool={self.pool}: class {label} has only {len(members)} training images"
            )
        order = torch.randperm(len(members), generator=ctx.rng("pool", label))
        return ctx.data["train"].take(members[order[: self.pool]])


@lru_cache(maxsize=8)
def _tell(url: str, lines: tuple[str, ...]) -> None:
    for line in lines:
        log.warning("init.folder %s: %s", url, line)


@lru_cache(maxsize=8)
def _opened(
    url: str, found: tuple[tuple[str, int], ...], info: DatasetInfo, listed: tuple[str, ...]
) -> FolderData:
    strange = [path for path, _ in found if path.count("/") != 1]
    if strange:
        raise DataError(f"{url} must hold <class>/<image> and nothing deeper; it has {strange[0]}")
    labels = class_of_folders(sorted({path.split("/")[0] for path, _ in found}), info, listed)
    given = torch.tensor([labels[path.split("/")[0]] for path, _ in found])
    transform = Transform(
        channels=info.channels, height=info.height, width=info.width, fit="squash"
    )
    return FolderData(Storage(url), found, given, transform, skip=False)


def open_folder(url: str, info: DatasetInfo) -> FolderData | None:
    """Return the images of an image folder, one subfolder per class, scaled to the data set's size;
    ``None`` if it has none.

    ``DataError`` for folders that are no classes of the data set, or deeper than one.
    """
    url = absolute(url)
    there = walk(Storage(url))
    _tell(url, tuple(there.left_out.lines()))
    found = tuple(there.pictures)
    return (
        _opened(url, found, info.only(), tuple(read_side(Storage(url)).get("folders", ())))
        if found
        else None
    )


def view_of(url: str, info: DatasetInfo) -> Range | None:
    """Return what the 8 bits of an exported set's folder stand for, if they are no plain pixels."""
    values = read_side(Storage(absolute(url))).get("view")
    return None if values is None else Range.from_json(values, info.channels, url)


def _digest(data: FolderData, view: Range | None) -> str:
    return (
        data.digest
        if view is None
        else hashlib.sha256(f"{data.digest} {view}".encode()).hexdigest()
    )


@dataclass(frozen=True, kw_only=True)
class FolderPool(ImagePool):
    """The first ``pool`` files of each class of an image folder of others, such as RDED's output
    (see :func:`open_folder`).

    ``digest``: of the folder as :meth:`at` found it; ``""`` if it was not there, when the stage can
    be planned but not run.
    """

    url: str = unkeyed()
    digest: str

    @classmethod
    def at(
        cls,
        url: str,
        dataset: DatasetInfo,
        *,
        pool: int | None,
        fallback: int,
        classes_per_unit: int,
        seed: int,
    ) -> FolderPool:
        """Look at a folder; ``pool=None``: as many images as its smallest class has, or
        ``fallback`` where there is no folder.

        ``ConfigError`` if a class has fewer than ``pool``.
        """
        data = open_folder(url, dataset)
        if data is not None:
            counts = torch.bincount(data.labels, minlength=dataset.classes)
            short = int(counts.argmin())
            if counts[short] < (pool or 1):
                hint = "; init.pool=null takes what every class has" if counts[short] else ""
                raise ConfigError(
                    f"init.pool={pool or 1}: class {short} has {int(counts[short])} images in {url}{hint}"
                )
            pool = pool or int(counts[short])
        digest = "" if data is None else _digest(data, view_of(url, dataset))
        pool = pool or fallback
        return cls(
            seed=seed,
            dataset=dataset.only(),
            pool=pool,
            classes_per_unit=classes_per_unit,
            url=url,
            digest=digest,
        )

    def images_of(self, label: int, ctx: Context) -> Tensor:
        """Return the files of a class, by name; ``DataError`` if the folder is not the one that was planned with."""
        data, view = ctx.cached(("folder pool", self.url, self.digest), self._open)
        images = data.take((data.labels == label).nonzero().reshape(-1)[: self.pool])
        return (
            images
            if view is None
            else (view.decode(images).clamp(0, 1) * 255).round().to(torch.uint8)
        )

    def _open(self) -> tuple[FolderData, Range | None]:
        data = open_folder(self.url, self.dataset)
        if data is None:
            raise DataError(f"init.folder: no images in {self.url}")
        view = view_of(self.url, self.dataset)
        if _digest(data, view) != self.digest:
            raise DataError(f"init.folder: {self.url} has changed since the job was planned")
        return data, view
