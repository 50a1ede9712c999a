"""Labels that others may have written: every number in them is one that a view, a mixture or a table can have."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raydd.core.errors import DataError
from raydd.labels.codecs import layout
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_views import DrawnViews
from raydd.labels.labelled_set import Epoch
from raydd.labels.randaugment import OPERATIONS
from raydd.labels.records import DIGEST_BYTES, record_layout


def check_record(
    record: Mapping[str, Tensor], config: LabelConfig, images: int, classes: int, where: str
) -> None:
    """Raise ``DataError`` naming ``where`` unless a record holds the tensors of such labels, and
    classes that there are.
    """
    if config.static:
        rows = layout(config, classes)
        wanted = {name: (dtype, (images, *shape)) for name, (dtype, shape) in rows.items()}
    else:
        wanted = record_layout(config, images, classes)
    wanted = {**wanted, "images": (torch.uint8, (DIGEST_BYTES,))}
    for name, (dtype, shape) in wanted.items():
        found = record.get(name)
        if found is None or found.dtype != dtype or tuple(found.shape) != shape:
            held = "none" if found is None else f"{found.dtype} {list(found.shape)}"
            raise DataError(f"{where}: '{name}' is {held}; {dtype} {list(shape)} is expected")
    top = record.get("top") if "top" in wanted else None
    if (
        top is not None
        and top.numel()
        and not 0 <= int(top.long().min()) <= int(top.long().max()) < classes
    ):
        raise DataError(f"{where}: 'top' names class {int(top.long().max())}; there are {classes}")


class CheckedEpoch:
    """An epoch whose views are looked at before they are made; ``DataError`` naming ``where`` and
    the batch for impossible ones.

    ``size``: height and width of an image; ``images``: how many the set has.
    """

    def __init__(
        self, epoch: Epoch, config: LabelConfig, size: tuple[int, int], images: int, where: str
    ) -> None:
        self._epoch, self._config, self._size = epoch, config, size
        self._images, self._where = images, where

    def __len__(self) -> int:
        return len(self._epoch)

    def views(self, number: int) -> DrawnViews:
        """Return what was drawn for a batch."""
        views = self._epoch.views(number)
        wrong = _wrong(views, self._config, self._size, self._images)
        if wrong:
            raise DataError(f"{self._where}: batch {number}: {wrong}")
        return views

    def logits(self, number: int, images: Tensor) -> Tensor:
        """Return a batch's logits, float32 ``[B, classes]``, on the device of ``images``."""
        return self._epoch.logits(number, images)


def _wrong(views: DrawnViews, config: LabelConfig, size: tuple[int, int], images: int) -> str:
    """Return what is impossible of a batch's views; empty if nothing is."""
    count, sides = len(views), torch.tensor(size)
    if not _within(views.index, images):
        return f"an image that is none of the set's {images}"
    if not _within(views.perm, count):
        return f"an image is mixed with one that is none of the batch's {count}"
    if not 0 <= views.lam <= 1:
        return f"a mixing ratio of {views.lam:g}"
    first, extent = views.boxes[:, :2], views.boxes[:, 2:]
    if config.crop is None:
        inside = bool((first.abs() <= config.pad_crop).all())
    else:
        inside = bool(((first >= 0) & (extent >= 1) & (first + extent <= sides)).all())
    if not inside:
        return f"a crop that leaves the image of {size[0]}×{size[1]} pixels"
    x1, y1, x2, y2 = views.box
    if not (0 <= x1 <= x2 <= size[0] and 0 <= y1 <= y2 <= size[1]):
        return f"a box {list(views.box)} that leaves the image of {size[0]}×{size[1]} pixels"
    if views.patches is not None and not _within(views.patches, views.patches.shape[2]):
        return "an order of patches that names others than there are"
    if views.operations is not None and not _within(views.operations[..., 0], len(OPERATIONS)):
        return "an operation that there is not"
    return ""


def _within(values: Tensor, count: int) -> bool:
    return not values.numel() or 0 <= int(values.min()) <= int(values.max()) < count
