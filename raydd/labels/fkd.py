"""The released layout of FKD labels: ``epoch_<e>/batch_<j>.tar``, each a list that ``torch.save``
wrote, no tar archive.

====  ====================================================================  ==========================
item  content                                                               type
====  ====================================================================  ==========================
0     crop: top / W, left / H, height / W, width / H                        float32 ``[B, 4]``
1     flipped                                                               bool ``[B]``
2     permutation within the batch, ``None`` if nothing is mixed            int64 ``[B]``
3     mixing ratio                                                          float
4     box x1, y1, x2, y2 of CutMix: rows x1 to x2, columns y1 to y2;        four NumPy integers
      ``None``: all of both images is mixed (mixup)
5     logits                                                                float16 ``[B, classes]``
6     index of each image, in the order of sorted folders and files         int64 ``[B]``
7     order of patches, all zero                                            int32 ``[B, 2, 2]``
====  ====================================================================  ==========================

Files of SRe2L and G-VBSM end with item 5: the images' order is then that of a sampler seeded with
``sampler_seed``. The labels are of the mixed images, but for one layout: EDC's code for CIFAR and
Tiny-ImageNet, whose files end with item 6, shows its teachers the images before mixup (CutMix
changes them in place), so its labels of mixup are of other images than students see, and are
refused.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import DataError, TornFileError, first_line
from raydd.core.rng import KeyedRng
from raydd.core.storage import Storage, join
from raydd.core.torch_file import load_torch
from raydd.core.units import Context, added, unkeyed
from raydd.labels.label_checks import CheckedEpoch
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_sources import FoundLabels, refuse_augmentation
from raydd.labels.label_views import NO_BOX, DrawnViews, Orders
from raydd.labels.labelled_set import Epoch, LabelledSet, fits


def _number(dtype: np.dtype[Any], data: bytes) -> int | float:
    """Return a pickled NumPy scalar as a plain number; stands for NumPy's own function, which takes any type."""
    if dtype.kind not in "iuf":
        raise pickle.UnpicklingError(f"a NumPy scalar of type {dtype} is no number")
    value: int | float = np.frombuffer(data, dtype)[0].item()
    return value


_NUMBERS = ("int16", "int32", "int64", "float32", "float64")
_ALLOWED: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in _NUMBERS),
]


def read_record(data: bytes, where: str) -> list[Any]:
    """Return the items of one file; only tensors, numbers, lists and NumPy numbers are unpickled.
    ``DataError`` for others.
    """
    try:
        record = load_torch(data, where, _ALLOWED)
    except (pickle.UnpicklingError, TornFileError) as error:
        raise DataError(
            f"{where} is no file of FKD labels, or holds more than tensors and numbers: {first_line(error)}"
        ) from error
    if not isinstance(record, (list, tuple)) or len(record) < 6 or not _whole(record):
        raise DataError(
            f"{where}: a list of crop, flip, permutation, ratio, box and logits is expected, not a"
            f" {type(record).__name__}" + " of others" * isinstance(record, (list, tuple))
        )
    if mix_of(record) == "mixup" and len(record) == 7:
        raise DataError(
            f"{where}: files of seven items, which end with the images' indices, are of EDC's code for CIFAR and"
            " Tiny-ImageNet, whose labels of mixup belong to the images before they were mixed; label again with"
            " CutMix, or without mixing"
        )
    return list(record)


def _whole(record: Sequence[Any]) -> bool:
    """Return whether the items of a record are tensors of one batch and numbers, as the table says."""
    coords, flips, perm, ratio, box, logits, *rest = record
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        return False
    tensors = [(coords, (len(logits), 4)), (flips, (len(logits),))]
    tensors += [(perm, (len(logits),))] * (perm is not None)
    tensors += [(rest[0], (len(logits),))] if rest else []
    shapes = all(isinstance(t, Tensor) and tuple(t.shape) == shape for t, shape in tensors)
    numbers = [ratio, *(box if isinstance(box, (list, tuple)) else [])] if perm is not None else []
    boxed = box is None or (isinstance(box, (list, tuple)) and len(box) == 4)
    return shapes and boxed and all(isinstance(v, (int, float)) for v in numbers)


def mix_of(record: Sequence[Any]) -> Literal["cutmix", "mixup", "none"]:
    """Return how the images of a record are mixed."""
    return "none" if record[2] is None else "mixup" if record[4] is None else "cutmix"


class _FkdEpoch:
    """The batches of one epoch's folder."""

    def __init__(
        self, records: list[list[Any]], order: Tensor, batch: int, size: tuple[int, int]
    ) -> None:
        self._records, self._order, self._batch = records, order, batch
        height, width = size
        self._sides = torch.tensor([width, height, width, height], dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._records)

    def views(self, number: int) -> DrawnViews:
        """Return what was drawn for a batch."""
        coords, flips, perm, lam, box, logits, *rest = self._records[number]
        index = rest[0] if rest else self._order[number * self._batch :][: len(logits)]
        mixed = perm is not None
        x1, y1, x2, y2 = box if box is not None else NO_BOX
        return DrawnViews(
            index=index.long(),
            boxes=(coords.double() * self._sides).round().long(),
            flips=flips.bool(),
            perm=perm.long() if mixed else torch.arange(len(logits)),
            lam=float(lam) if mixed else 1.0,
            box=(int(x1), int(y1), int(x2), int(y2)),
        )

    def logits(self, number: int, images: Tensor) -> Tensor:
        """Return a batch's logits, float32 ``[B, classes]``."""
        stored: Tensor = self._records[number][5]
        return stored.to(images.device).float()


@dataclass(frozen=True, kw_only=True)
class FkdLabels(FoundLabels):
    """Labels in the released layout at ``url``; ``digest``: of the files' names and the first
    file's content; ``mix``: of all files.
    """

    url: str = unkeyed()
    digest: str
    batch: int
    epochs: int
    batches: int
    classes: int
    sampler_seed: int = 42
    mix: Literal["cutmix", "mixup"] = added("cutmix")

    @classmethod
    def at(cls, url: str, sampler_seed: int = 42) -> FkdLabels:
        """Look at the files below ``url`` and read the first; ``DataError`` if epochs or batches are missing."""
        storage = Storage(url)
        found: dict[int, set[int]] = {}
        for path in storage.list():
            match = re.fullmatch(r"epoch_(\d+)/batch_(\d+)\.tar", path)
            if match:  # what else lies there is no epoch
                found.setdefault(int(match[1]), set()).add(int(match[2]))
        if not found:
            raise DataError(
                f"{storage.url} holds no epoch_<e>/batch_<j>.tar: it is no folder of FKD labels"
            )
        count = max(len(numbers) for numbers in found.values())
        for epoch in range(max(found) + 1):
            missing = set(range(count)) - found.get(epoch, set())
            if missing:
                raise DataError(f"{storage.url}: epoch_{epoch}/batch_{min(missing)}.tar is missing")
        data = storage.get("epoch_0/batch_0.tar")
        record = read_record(data, join(storage.url, "epoch_0/batch_0.tar"))
        logits, mix = record[5], mix_of(record)
        digest = hashlib.sha256(f"{len(found)} {count} ".encode() + data).hexdigest()
        batch, classes = logits.shape
        shape = {"batch": batch, "epochs": len(found), "batches": count, "classes": classes}
        return cls(
            url=storage.url,
            digest=digest,
            sampler_seed=sampler_seed,
            mix="mixup" if mix == "mixup" else "cutmix",
            **shape,
        )

    @property
    def config(self) -> LabelConfig:
        """How the batches are cut and mixed."""
        return LabelConfig(
            batch=self.batch, epochs=self.epochs, sampler_seed=self.sampler_seed, mix=self.mix
        )

    @property
    def bytes(self) -> int:
        """Bytes of the stored labels, about: fp16 logits and 49 bytes of draws for each image
        (docs/methods/soft_labels.md, "Published files").
        """
        return self.epochs * self.batches * (self.batch * (2 * self.classes + 49) + 2900)

    def fits(self, batch: int, epochs: int, augmentation: str = "none") -> None:
        """Raise ``ConfigError`` unless students can be trained with batches of ``batch`` for ``epochs`` epochs."""
        refuse_augmentation(augmentation)
        fits(self.config, batch, epochs, self.epochs)

    def check(self, distilled: DistilledSet) -> None:
        """Raise ``DataError`` unless ``distilled`` has the images and classes that are labelled here."""
        if distilled.info.classes != self.classes:
            raise DataError(
                f"{self.url} labels {self.classes} classes; the set has {distilled.info.classes}"
            )
        if distilled.whitening is not None:
            raise DataError("soft labels of views need images that are not whitened")
        self._read(Storage(self.url), 0, distilled.seen)

    def open(self, distilled: DistilledSet, ctx: Context) -> LabelledSet:
        """Return the training set of ``distilled``, whose images are in the order of sorted folders and files."""
        self.check(distilled)
        storage, orders = Storage(self.url), Orders(self.sampler_seed, distilled.seen)
        size = distilled.shape[1:]

        def stored(epoch: int, rng: KeyedRng) -> Epoch:
            records = self._read(storage, epoch, distilled.seen)
            found = _FkdEpoch(records, orders(epoch), self.batch, size)
            where = join(self.url, f"epoch_{epoch}")
            return CheckedEpoch(found, self.config, size, distilled.seen, where)

        return LabelledSet(
            distilled, self.config, ctx.device, stored, shared=True, epochs=self.epochs
        )

    def _read(self, storage: Storage, epoch: int, images: int) -> list[list[Any]]:
        records = []
        for number in range(self.batches):
            path = f"epoch_{epoch}/batch_{number}.tar"
            record = read_record(storage.get(path), join(storage.url, path))
            if len(record) > 6 and not 0 <= int(record[6].min()) <= int(record[6].max()) < images:
                raise DataError(
                    f"{join(storage.url, path)} labels image {int(record[6].max())}; the set has {images}"
                )
            if mix_of(record) not in (self.mix, "none"):
                raise DataError(
                    f"{join(storage.url, path)} is mixed by {mix_of(record)}, other files by {self.mix}"
                )
            records.append(record)
        labelled = sum(len(record[5]) for record in records)
        if labelled != images:
            raise DataError(
                f"{self.url}: epoch_{epoch} labels {labelled} images; the set has {images}"
            )
        return records
