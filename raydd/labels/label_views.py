"""Views of a batch of images: what is drawn, and the images made of it, the same for teachers and for students.

Worked out in docs/methods/soft_labels.md, "Views".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from raydd.augment.crop import cutmix_box, draw_beta, draw_flip, draw_resized_crop
from raydd.core.errors import ConfigError
from raydd.labels.label_config import LabelConfig
from raydd.labels.randaugment import draw_operations, randaugment

NO_BOX = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnViews:
    """What was drawn for a batch of ``B`` images.

    ``index`` int64 ``[B]``: which images of the set. ``boxes`` int64 ``[B, 4]``: top, left, height
    and width of the crops, in pixels. ``flips`` bool ``[B]``. ``perm`` int64 ``[B]``: the batch's
    image that each is mixed with. ``lam``: the mixing ratio. ``box``: rows x1 to x2, columns y1 to
    y2 of CutMix. ``patches`` int64 ``[B, 2, grid]``: the order of rows and of columns of patches.
    ``operations`` int64 ``[B, 2, 2]``: of RandAugment.
    """

    index: Tensor
    boxes: Tensor
    flips: Tensor
    perm: Tensor
    lam: float = 1.0
    box: tuple[int, int, int, int] = NO_BOX
    patches: Tensor | None = None
    operations: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)


class Orders:
    """The order of ``count`` images in each epoch, that of torch's ``RandomSampler`` with one generator for all epochs.

    The sampler draws two permutations per epoch and drops the second: epoch ``e`` has number
    ``2 e`` of the generator (docs/methods/soft_labels.md, "Views").
    """

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count
        self._rewind()

    def _rewind(self) -> None:
        self._generator, self._drawn = torch.Generator().manual_seed(self.seed), 0
        self._last: tuple[int, Tensor] | None = None

    def __call__(self, epoch: int) -> Tensor:
        """Return the image indices of an epoch, int64 ``[count]``; quick when epochs are asked in ascending order."""
        if self._last is not None and self._last[0] == epoch:
            return self._last[1]
        if self._drawn > 2 * epoch:
            self._rewind()
        while self._drawn < 2 * epoch:
            torch.randperm(self.count, generator=self._generator)
            self._drawn += 1
        order = torch.randperm(self.count, generator=self._generator)
        self._drawn += 1
        self._last = (epoch, order)
        return order


def draw_views(
    config: LabelConfig, generator: torch.Generator, index: Tensor, size: tuple[int, int]
) -> DrawnViews:
    """Draw the views of images of ``size`` ``(H, W)``; ``ConfigError`` if the patch grid does not divide it."""
    height, width = size
    if height % config.shuffle or width % config.shuffle:
        raise ConfigError(
            f"labels.shuffle={config.shuffle} does not divide images of {height}x{width} pixels"
        )
    operations, patches, boxes, flips = [], [], [], []
    for _ in range(len(index)):
        if config.randaugment:
            operations.append(draw_operations(generator))
        if config.shuffle > 1:
            patches.append(
                torch.stack([torch.randperm(config.shuffle, generator=generator) for _ in range(2)])
            )
        boxes.append(_draw_box(config, generator, height, width))
        flips.append(config.flip and draw_flip(generator))
    perm, lam, box = torch.arange(len(index)), 1.0, NO_BOX
    if config.mix != "none":
        perm = torch.randperm(len(index), generator=generator)
        lam = draw_beta(generator, config.alpha)
    if config.mix == "cutmix":
        row, column = (int(torch.randint(0, side, (), generator=generator)) for side in size)
        box = cutmix_box(lam, row, column, size)
    return DrawnViews(
        index=index,
        boxes=torch.tensor(boxes),
        flips=torch.tensor(flips),
        perm=perm,
        lam=lam,
        box=box,
        patches=torch.stack(patches) if patches else None,
        operations=torch.stack(operations) if operations else None,
    )


def _draw_box(
    config: LabelConfig, generator: torch.Generator, height: int, width: int
) -> tuple[int, int, int, int]:
    if config.crop is not None:
        box = draw_resized_crop(generator, height, width, config.crop)
        return box.top, box.left, box.height, box.width
    if config.pad_crop:
        top, left = (
            torch.randint(0, 2 * config.pad_crop + 1, (2,), generator=generator) - config.pad_crop
        ).tolist()
        return top, left, height, width
    return 0, 0, height, width


def make_views(
    config: LabelConfig,
    images: Tensor,
    views: DrawnViews,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Return the mixed batch, float32 ``[B, C, H, W]`` in network space.

    ``images``: those of ``views.index``, uint8 pixels or float in network space already. Float
    images are padded with zeros of their own space, the mean colour.
    """
    if views.operations is not None:
        images = randaugment(images, views.operations)
    if views.patches is not None:
        images = shuffle_patches(images, views.patches)
    floats = images if images.is_floating_point() else images.float() / 255
    floats = _cropped(config, floats, views)
    if not images.is_floating_point():
        centre, scale = (
            torch.tensor(v, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
            for v in (mean, std)
        )
        floats = (floats - centre) / scale
    return mix(config, floats, views)


def shuffle_patches(images: Tensor, patches: Tensor) -> Tensor:
    """Return images ``[B, C, H, W]`` whose rows and columns of patches were put in new orders
    ``[B, 2, grid]`` (RDED).
    """
    rows, columns = (
        _spread(patches[:, axis].to(images.device), images.shape[2 + axis]) for axis in range(2)
    )
    return _gather(images, rows, columns)


def _spread(order: Tensor, side: int) -> Tensor:
    """Return the pixel indices ``[B, side]`` of strips in the given order ``[B, grid]``."""
    each = side // order.shape[1]
    return (order.unsqueeze(2) * each + torch.arange(each, device=order.device)).flatten(1)


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``images[b, :, rows[b, i], columns[b, j]]`` as ``[B, C, i, j]``."""
    channels = images.shape[1]
    images = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, images.shape[3]))
    return images.gather(3, columns[:, None, None, :].expand(-1, channels, images.shape[2], -1))


def _taps(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels ``[B, size]`` and the weight of the second that each place of a resized
    stretch is made of.
    """
    place = (torch.arange(size, dtype=torch.float64, device=start.device) + 0.5) * (
        length.double() / size
    ).unsqueeze(1) - 0.5
    place = place.clamp_min(0)
    low = place.floor().long()
    high = torch.minimum(low + 1, (length - 1).unsqueeze(1))
    return low + start.unsqueeze(1), high + start.unsqueeze(1), (place - low).float()


def resized_crops(images: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Return crops ``[B, 4]`` of float images ``[B, C, H, W]``, bilinearly brought to ``H`` x
    ``W``, mirrored where ``flips``.

    The rule of :class:`raydd.augment.crop.Crops`. Here nothing needs a gradient, so pixels are
    gathered where the images are: no matrices (80 MB for 100 crops of 224 pixels) are built on the
    CPU and moved.
    """
    (channels, height, width), boxes, flips = (
        images.shape[1:],
        boxes.to(images.device),
        flips.to(images.device),
    )
    low, high, weight = (t[:, None, :, None] for t in _taps(boxes[:, 0], boxes[:, 2], height))
    shape = (-1, channels, -1, width)
    images = torch.lerp(
        images.gather(2, low.expand(shape)), images.gather(2, high.expand(shape)), weight
    )
    mirrored = (
        torch.where(flips[:, None], t.flip(1), t)[:, None, None, :]
        for t in _taps(boxes[:, 1], boxes[:, 3], width)
    )
    low, high, weight = mirrored
    shape = (-1, channels, height, -1)
    return torch.lerp(
        images.gather(3, low.expand(shape)), images.gather(3, high.expand(shape)), weight
    )


def _cropped(config: LabelConfig, images: Tensor, views: DrawnViews) -> Tensor:
    height, width = images.shape[2:]
    if config.crop is not None:
        return resized_crops(images, views.boxes, views.flips)
    pad = config.pad_crop
    top, left = (views.boxes[:, axis, None].to(images.device) + pad for axis in range(2))
    columns = left + torch.arange(width, device=images.device)
    columns = torch.where(views.flips[:, None].to(images.device), columns.flip(1), columns)
    return _gather(
        F.pad(images, (pad, pad, pad, pad)),
        top + torch.arange(height, device=images.device),
        columns,
    )


def mix(config: LabelConfig, images: Tensor, views: DrawnViews) -> Tensor:
    """Return the batch with each image mixed with its partner: a box of it (CutMix), or all of it (mixup)."""
    if config.mix == "none":
        return images
    others = images[views.perm.to(images.device)]
    if config.mix == "mixup":
        return views.lam * images + (1 - views.lam) * others
    x1, x2, y1, y2 = views.box[0], views.box[2], views.box[1], views.box[3]
    mixed = images.clone()
    mixed[:, :, x1:x2, y1:y2] = others[:, :, x1:x2, y1:y2]
    return mixed
