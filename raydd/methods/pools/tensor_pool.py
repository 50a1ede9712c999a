"""Start images that others drew and published as tensors: ``tensor_<k>.pt`` has image k of every class
(docs/methods/recovery.md, "Start images").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from raydd.artifacts.pt import load_pt
from raydd.core.errors import DataError, RayddError
from raydd.core.storage import Storage
from raydd.core.units import Context, Cost, unkeyed
from raydd.data.catalog import DatasetInfo
from raydd.methods.pools.image_pool import ImagePool

_OFF_GRID = 0.1
"""Of a level of 255, how far values may lie from one: half precision is off by less, other deviations by 0.5."""
_OUTSIDE = 1 / 255
_AT_ONCE = 4
"""Files that are on their way together while a job is planned."""
_NAMED = 3
"""Files that are named where several are missing or do not fit."""


def file_of(k: int) -> str:
    """Return what the file with image ``k`` of every class is called."""
    return f"tensor_{k}.pt"


def as_pixels(value: object, info: DatasetInfo, what: str) -> Tensor:
    """Return normalised images, one per class ``[classes, C, H, W]``, as the uint8 pixels that they were made of.

    ``info``: classes, shape, and the normalisation to be undone. ``DataError`` naming ``what`` for
    anything else: other classes or sizes, integers, NaN, or values that no 8-bit pixels have under
    this normalisation.
    """
    shape = (info.classes, *info.shape)
    if not isinstance(value, Tensor):
        raise DataError(f"{what} holds a {type(value).__name__}; a tensor {list(shape)} is read")
    images = value.detach()
    if tuple(images.shape) != shape:
        why = ""
        if tuple(images.shape[1:]) == info.shape:
            why = f": it has {len(images)} classes, the data set {info.classes}"
        raise DataError(f"{what} is {list(images.shape)}; {list(shape)} is read{why}")
    if not images.is_floating_point():
        raise DataError(f"{what} is {images.dtype}; normalised images are read, which are floats")
    images = images.double()
    if not bool(torch.isfinite(images).all()):
        raise DataError(f"{what} holds NaN or infinity")
    mean, std = (torch.tensor(x, dtype=torch.float64).view(-1, 1, 1) for x in (info.mean, info.std))
    levels = (images * std + mean) * 255
    low, high = (float(x) / 255 for x in levels.aminmax())
    by = f"mean {list(info.mean)} and std {list(info.std)}"
    if low < -_OUTSIDE or high > 1 + _OUTSIDE:
        raise DataError(
            f"{what}: normalised by {by} its pixels would be {low:.3g} to {high:.3g}, not 0 to 1; give"
            " init.mean and init.std as they were normalised"
        )
    off = float((levels - levels.round()).abs().max())
    if off > _OFF_GRID:
        raise DataError(
            f"{what}: normalised by {by} its pixels would lie up to {off:.2f} between two of 256 levels; give"
            " init.mean and init.std as they were normalised"
        )
    return levels.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class _Seen:
    """A file: sha256 (empty: it is missing), and why it cannot be used (empty: it can)."""

    digest: str = ""
    fault: str = ""


@lru_cache(maxsize=4096)
def _seen(url: str, name: str, stamp: str, info: DatasetInfo) -> _Seen:
    try:
        data = Storage(url).get(name)
    except FileNotFoundError:
        return _Seen()
    digest, what = hashlib.sha256(data).hexdigest(), f"{url}/{name}"
    try:
        as_pixels(load_pt(data, what), info, what)
    except RayddError as error:
        return _Seen(digest, str(error))
    return _Seen(digest)


def _look(url: str, count: int, info: DatasetInfo) -> list[_Seen]:
    """Look into the first ``count`` files, into each again only when it has changed."""
    storage, of = Storage(url), info.only()

    def look(name: str) -> _Seen:
        try:
            stamp = storage.stamp(name)
        except FileNotFoundError:
            return _Seen()
        return _seen(url, name, stamp, of)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(look, map(file_of, range(count))))


def _few(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


@dataclass(frozen=True, kw_only=True)
class TensorPool(ImagePool):
    """The first ``pool`` files ``tensor_<k>.pt`` of a folder, image k of every class in each.

    ``digests``: their sha256 as :meth:`at` found them; an empty one where a file was not there, when
    the stage can be planned but not run. ``dataset`` has the normalisation of the files.
    """

    url: str = unkeyed()
    digests: tuple[str, ...]

    @classmethod
    def at(
        cls,
        url: str,
        dataset: DatasetInfo,
        *,
        pool: int,
        classes_per_unit: int,
        seed: int,
    ) -> TensorPool:
        """Look at the files of a folder (:meth:`faults` says what is wrong with them)."""
        return cls(
            seed=seed,
            dataset=dataset.only(),
            pool=pool,
            classes_per_unit=classes_per_unit,
            url=url,
            digests=tuple(seen.digest for seen in _look(url, pool, dataset)),
        )

    def faults(self) -> list[str]:
        """Return a line for the files that are missing, and one for each kind of those that do not fit."""
        found, shape = _look(self.url, self.pool, self.dataset), list(self.dataset.shape)
        missing = [file_of(k) for k, seen in enumerate(found) if not seen.digest]
        lines = []
        if missing:
            lines.append(
                f"init.folder: {_few(missing)} of {self.pool} files are not in {self.url}; tensor_<k>.pt holds image k"
                f" of every class, [{self.dataset.classes}, {', '.join(map(str, shape))}], normalised"
            )
        faults = [seen.fault for seen in found if seen.fault]
        more = f" ({len(faults) - 1} more files do not fit)" if len(faults) > 1 else ""
        return lines + [f"init.folder: {fault}{more}" for fault in faults[:1]]

    def cost(self, unit: str) -> Cost:
        """Return the bytes of all pixels, which stay, and of a file on its way."""
        one = self.dataset.classes * self.pixels
        return replace(super().cost(unit), peak_bytes=(self.pool + 24) * one)

    def images_of(self, label: int, ctx: Context) -> Tensor:
        """Return a class's image of each file; ``DataError`` if a file is not the one that was planned with."""
        pixels = ctx.cached(("tensor pool", self.url, self.digests, self.dataset), self._read)
        return pixels[:, label]

    def _read(self) -> Tensor:
        """Return ``[pool, classes, C, H, W]``, uint8."""
        storage, pixels = Storage(self.url), []
        for k, planned in enumerate(self.digests):
            what = f"{self.url}/{file_of(k)}"
            try:
                data = storage.get(file_of(k))
            except FileNotFoundError as error:
                raise DataError(f"init.folder: {what} does not exist") from error
            if hashlib.sha256(data).hexdigest() != planned:
                raise DataError(f"init.folder: {what} has changed since the job was planned")
            pixels.append(as_pixels(load_pt(data, what), self.dataset, what))
        return torch.stack(pixels)
