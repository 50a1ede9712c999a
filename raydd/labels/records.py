"""The record of one epoch of labels, ``labels/epoch-000.safetensors`` (docs/methods/soft_labels.md, "Records").

==============  ===================  ===============================================================
tensor          type and shape       content
==============  ===================  ===============================================================
``index``       int32 ``[N]``        which image of the set; batch ``j`` is rows ``j * batch`` to
                                     ``(j + 1) * batch``
``coords``      float32 ``[N, 4]``   top, left, height and width of the crop, as shares of the
                                     image's sides
``flip``        uint8 ``[N]``        whether the crop is mirrored
``perm``        uint16 ``[N]``       the row, within the batch, of the image that this one is mixed
                                     with
``lam``         float64 ``[J]``      mixing ratio of each batch
``box``         int16 ``[J, 4]``     rows x1, columns y1, rows x2, columns y2 of each batch's CutMix
``patches``     uint8 ``[N, 2, g]``  order of rows and columns of patches, where they are shuffled
``operations``  uint8 ``[N, 2, 2]``  of RandAugment, where it is used
``images``      uint8 ``[32]``       the digest (sha256) of the distilled set that was labelled
==============  ===================  ===============================================================

and the codec's tensors (:mod:`raydd.labels.codecs`): with fp16, ``logits`` ``[N, classes]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raydd.core.tensors import Tensors
from raydd.labels.codecs import Layout, decode, layout, row_bytes
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_views import DrawnViews
from raydd.labels.randaugment import COUNT

DIGEST_BYTES = 32
_BATCHES: Layout = {"lam": (torch.float64, ()), "box": (torch.int16, (4,))}


def _rows(config: LabelConfig) -> Layout:
    rows: Layout = {
        "index": (torch.int32, ()),
        "coords": (torch.float32, (4,)),
        "flip": (torch.uint8, ()),
        "perm": (torch.uint16, ()),
    }
    if config.shuffle > 1:
        rows["patches"] = (torch.uint8, (2, config.shuffle))
    if config.randaugment:
        rows["operations"] = (torch.uint8, (COUNT, 2))
    return rows


def batches_of(config: LabelConfig, images: int) -> int:
    """Return the number of batches of an epoch; the last may be smaller."""
    return math.ceil(images / config.batch)


def epoch_bytes(config: LabelConfig, images: int, classes: int) -> int:
    """Return the bytes of one epoch's tensors (a file's header adds about 700)."""
    per_image = row_bytes(_rows(config)) + row_bytes(layout(config, classes))
    return images * per_image + batches_of(config, images) * row_bytes(_BATCHES) + DIGEST_BYTES


def label_bytes(config: LabelConfig, images: int, classes: int) -> int:
    """Return the bytes of all stored epochs: 6.07e9 for 10,000 images of 1,000 classes, 300 epochs
    and fp16; of static labels those of one row for each image; 0 for what is computed while students
    train.
    """
    if config.static:
        return images * row_bytes(layout(config, classes)) + DIGEST_BYTES
    return config.epochs * epoch_bytes(config, images, classes) if config.stored else 0


def record_layout(
    config: LabelConfig, images: int, classes: int
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return type and shape of the tensors of a record."""
    rows, count = {**_rows(config), **layout(config, classes)}, batches_of(config, images)
    by_row = {name: (dtype, (images, *shape)) for name, (dtype, shape) in rows.items()}
    return by_row | {name: (dtype, (count, *shape)) for name, (dtype, shape) in _BATCHES.items()}


def blank(config: LabelConfig, images: int, classes: int, device: torch.device) -> Tensors:
    """Return a record of zeros."""
    return {
        name: torch.zeros(shape, dtype=dtype, device=device)
        for name, (dtype, shape) in record_layout(config, images, classes).items()
    }


def write_batch(
    record: Tensors,
    config: LabelConfig,
    number: int,
    views: DrawnViews,
    size: tuple[int, int],
    encoded: Tensors,
) -> None:
    """Put a batch's views and encoded logits into its place in the record."""
    height, width = size
    values = {
        "index": views.index,
        "coords": (
            views.boxes / torch.tensor([height, width, height, width], dtype=torch.float64)
        ).float(),
        "flip": views.flips,
        "perm": views.perm,
        **encoded,
    }
    values |= {
        name: value
        for name, value in (("patches", views.patches), ("operations", views.operations))
        if value is not None
    }
    rows = slice(number * config.batch, number * config.batch + len(views))
    for name, value in values.items():
        record[name][rows] = value.to(record[name].device, record[name].dtype)
    record["lam"][number] = views.lam
    record["box"][number] = torch.tensor(views.box, dtype=torch.int16)


class RecordedEpoch:
    """The batches of a record."""

    def __init__(
        self, record: Tensors, config: LabelConfig, classes: int, size: tuple[int, int]
    ) -> None:
        self._record, self._config, self._classes, self._size = record, config, classes, size

    def __len__(self) -> int:
        return len(self._record["lam"])

    def _row(self, number: int, name: str) -> Tensor:
        start = number * self._config.batch
        return self._record[name][start : start + self._config.batch]

    def views(self, number: int) -> DrawnViews:
        """Return what was drawn for a batch."""
        height, width = self._size
        sides = torch.tensor([height, width, height, width], dtype=torch.float64)
        x1, y1, x2, y2 = self._record["box"][number].tolist()
        return DrawnViews(
            index=self._row(number, "index").long(),
            boxes=(self._row(number, "coords").double() * sides).round().long(),
            flips=self._row(number, "flip").bool(),
            perm=self._row(number, "perm").long(),
            lam=float(self._record["lam"][number]),
            box=(x1, y1, x2, y2),
            patches=self._row(number, "patches").long() if "patches" in self._record else None,
            operations=self._row(number, "operations").long()
            if "operations" in self._record
            else None,
        )

    def logits(self, number: int, images: Tensor) -> Tensor:
        """Return a batch's logits, float32 ``[B, classes]``, on the device of ``images``."""
        stored = {
            name: self._row(number, name).to(images.device)
            for name in layout(self._config, self._classes)
        }
        return decode(self._config, stored, self._classes)
