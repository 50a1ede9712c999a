"""Pools of tiled patches: RDED's (docs/methods/rded.md, "Choosing crops" and "Tiling"), and EDC's variant of it
(docs/methods/recovery.md, "Start images").

RDED (Sun et al., CVPR 2024, arXiv 2312.03526) optimises nothing: crops of real images that a
teacher recognises best are put together, ``factor`` x ``factor`` to an image. Crops are made of the
images as the data set gives them (ImageNet: 224 pixels), where the originals cut from the files at
their own size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.artifacts.codec import ImageFormat, stored_as
from raydd.augment.crop import RATIO, Box, Crops, Range, draw_flip, draw_resized_crop
from raydd.core.errors import ConfigError, DataError
from raydd.core.units import Context, Cost, Ref
from raydd.data.catalog import DatasetInfo
from raydd.data.images import Transform, fit
from raydd.methods.method import check_counts
from raydd.methods.pools.image_pool import ImagePool, members_of
from raydd.methods.pools.scoring import (
    BATCH,
    ScoreImages,
    class_losses,
    forward_cost,
    load_teachers,
    teacher_inputs,
)
from raydd.training.backbones import Backbone

SCALE: Range = (0.08, 1.0)
SQUARE: Range = (1.0, 1.0)


def _antialiased(
    starts: Sequence[int], lengths: Sequence[int], size: int, out: int, device: torch.device | None
) -> Tensor:
    """Return ``[N, out, size]`` float64: ``length`` pixels from ``start`` brought to ``out`` by an
    antialiased triangle filter.
    """
    start = torch.tensor(starts, dtype=torch.float64, device=device).view(-1, 1, 1)
    length = torch.tensor(lengths, dtype=torch.float64, device=device).view(-1, 1, 1)
    scale = length / out
    centre = (torch.arange(out, dtype=torch.float64, device=device) + 0.5).view(1, -1, 1) * scale
    pixel = torch.arange(size, dtype=torch.float64, device=device).view(1, 1, -1) - start
    weight = (1 - (pixel + 0.5 - centre).abs_() / scale.clamp_min(1.0)).clamp_min_(0) * (
        (pixel >= 0) & (pixel < length)
    )
    return weight / weight.sum(2, keepdim=True)


def smooth_crops(
    boxes: Sequence[Box],
    flips: Sequence[bool],
    size: tuple[int, int],
    out: tuple[int, int],
    device: torch.device | None = None,
) -> Crops:
    """Return crops of images of ``size`` brought to ``out`` pixels as torchvision does with
    antialiasing, for ``Crops.apply``.
    """
    rows = _antialiased([b.top for b in boxes], [b.height for b in boxes], size[0], out[0], device)
    columns = _antialiased(
        [b.left for b in boxes], [b.width for b in boxes], size[1], out[1], device
    )
    mirrored = torch.tensor(list(flips), device=device).view(-1, 1, 1)
    return Crops(rows, torch.where(mirrored, columns.flip(1), columns))


def tile_spread(crops: Tensor, factor: int, ipc: int) -> Tensor:
    """Return ``[ipc, C, f h, f w]`` of crops ``[f f ipc, C, h, w]``, best first: cell k (row by
    row) of image i has rank ``i + k ipc``.

    RDED's way: every image gets as good crops as the next.
    """
    return _tiled(crops.view(factor * factor, ipc, *crops.shape[1:]).transpose(0, 1), factor)


def tile_in_order(crops: Tensor, factor: int, ipc: int) -> Tensor:
    """Return the same, with ranks ``f f i`` to ``f f i + f f - 1`` in image i: EDC's way, the best
    crops in the first image.
    """
    return _tiled(crops.view(ipc, factor * factor, *crops.shape[1:]), factor)


def _tiled(cells: Tensor, factor: int) -> Tensor:
    ipc, _, channels, height, width = cells.shape
    grid = cells.reshape(ipc, factor, factor, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(ipc, channels, factor * height, factor * width)


def to_pixels(values: Tensor) -> Tensor:
    """Return uint8 of values from 0 to 255, rounded down as the originals do (but for what rounding errors took)."""
    return (values + 1e-3).floor().clamp(0, 255).to(torch.uint8)


def _scaled(values: Tensor, info: DatasetInfo) -> Tensor:
    """Return values from 0 to 255 as networks see them."""
    mean, std = (
        torch.tensor(v, device=values.device).view(-1, 1, 1) for v in (info.mean, info.std)
    )
    return (values / 255 - mean) / std


def _padded(crops: Tensor, size: tuple[int, int]) -> Tensor:
    """Return normalised crops in the middle of ``size`` zeros."""
    height, width = size[0] - crops.shape[2], size[1] - crops.shape[3]
    return F.pad(crops, (width // 2, width - width // 2, height // 2, height - height // 2))


def _check_factor(info: DatasetInfo, factor: int) -> None:
    if info.height % factor or info.width % factor:
        raise ConfigError(
            f"factor={factor} does not divide images of {info.height} x {info.width} pixels"
        )


def check_rded(info: DatasetInfo, pool: int, factor: int, candidates: int) -> None:
    """Raise ``ConfigError`` unless each class can give ``factor^2 * pool`` crops, one per image."""
    _check_factor(info, factor)
    check_counts(info, 1)
    needed = factor * factor * pool
    if candidates < needed:
        raise ConfigError(
            f"candidates={candidates} give as many crops per class; {pool} images of {factor}x{factor} need {needed}"
        )
    if info.train_counts and min(info.train_counts) < needed:
        short = min(range(info.classes), key=lambda c: info.train_counts[c])
        count = info.train_counts[short]
        raise ConfigError(
            f"class {short} has {count} training images, one crop each; {pool} images of {factor}x{factor} need"
            f" {needed}"
        )


@dataclass(frozen=True, kw_only=True)
class PatchPool(ImagePool):
    """What both kinds share: crops judged by teachers, and the stored format. ``factor``: crops
    along a side of an image.

    ``candidates``: images per class that are cut; a class with fewer gives all it has.
    """

    backbones: tuple[Backbone, ...]
    factor: int
    candidates: int
    num_crop: int
    image_format: ImageFormat

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the teachers' weights."""
        return teacher_inputs(self.backbones)

    def cost(self, unit: str) -> Cost:
        """Return the cost of judging every crop of the block."""
        plain = super().cost(unit)
        counts = (
            [self.dataset.train_counts[c] for c in self.blocks[unit]]
            if self.dataset.train_counts
            else [self.candidates]
        )
        images = min(max(counts), self.candidates)
        judged = forward_cost(self.backbones, images * self.num_crop * len(self.blocks[unit]))
        kept = images * self.pixels * 2 + 4 * BATCH * self.pixels * 3
        return Cost(
            flop=judged.flop,
            peak_bytes=plain.peak_bytes + judged.peak_bytes + kept,
            output_bytes=plain.output_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class RdedPool(PatchPool):
    """RDED's images: of each of ``candidates`` random images the best of ``num_crop`` square crops,
    of those the best, tiled.

    A crop is judged at its size in the finished image, amid zeros, by ``-log softmax`` at its
    class. ``DataError`` for a class with fewer than ``factor^2 * pool`` images.
    """

    def images_of(self, label: int, ctx: Context) -> Tensor:
        """Return the tiled images of a class, the stored format applied."""
        members = members_of(label, ctx)
        chosen = members[
            torch.randperm(len(members), generator=ctx.rng("candidates", label))[: self.candidates]
        ]
        needed = self.factor * self.factor * self.pool
        if len(chosen) < needed:
            raise DataError(
                f"class {label} has {len(members)} training images, one crop each; {needed} crops are needed"
            )
        boxes = [self._boxes(label, sample, ctx) for sample in chosen.tolist()]
        images = ctx.data["train"].take(chosen)
        losses = self._losses(images, boxes, label, ctx)
        best_loss, best_crop = losses.min(1)
        ranked = torch.sort(best_loss, stable=True).indices[:needed]
        kept = [boxes[i][int(best_crop[i])] for i in ranked.tolist()]
        crops = to_pixels(self._crops(images[ranked].to(ctx.device), kept)).cpu()
        return stored_as(tile_spread(crops, self.factor, self.pool), self.image_format)

    def _boxes(self, label: int, sample: int, ctx: Context) -> list[Box]:
        generator = ctx.rng("crops", label, sample)
        return [
            draw_resized_crop(generator, self.dataset.height, self.dataset.width, SCALE, SQUARE)
            for _ in range(self.num_crop)
        ]

    def _crops(self, images: Tensor, boxes: list[Box]) -> Tensor:
        """Return crops ``[N, C, H / f, W / f]`` of uint8 images, as values from 0 to 255."""
        size = (self.dataset.height, self.dataset.width)
        out = (size[0] // self.factor, size[1] // self.factor)
        return smooth_crops(boxes, [False] * len(boxes), size, out, images.device).apply(
            images.float()
        )

    def _losses(self, images: Tensor, boxes: list[list[Box]], label: int, ctx: Context) -> Tensor:
        """Return the loss of every crop, float32 ``[N, num_crop]`` on the CPU."""
        teachers, size = (
            load_teachers(self.backbones, self, ctx),
            (self.dataset.height, self.dataset.width),
        )
        flat = [box for of_image in boxes for box in of_image]
        losses = []
        for start in range(0, len(flat), BATCH):
            which = torch.arange(start, min(start + BATCH, len(flat))) // self.num_crop
            crops = self._crops(images[which].to(ctx.device), flat[start : start + BATCH])
            seen = _padded(_scaled(crops, self.dataset), size)
            losses.append(class_losses(teachers, seen, torch.full((len(seen),), label)).cpu())
        return torch.cat(losses).view(-1, self.num_crop)


@dataclass(frozen=True, kw_only=True)
class EdcPool(PatchPool):
    """EDC's images: the ``candidates`` surest images of a class, cropped ``num_crop`` times block
    by block, the surest crops tiled.

    ``block`` images share a crop and a flip; images beyond the last whole block are dropped (of
    300: 44), a class with fewer than one block is one block. Crops are judged at full size, and
    several of one image may be kept.
    """

    scores: ScoreImages
    block: int = 64

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the teachers' weights and the scores of all images."""
        return {
            **super().inputs(unit),
            **{f"scores-{u}": Ref(self.scores, u) for u in self.scores.units()},
        }

    def available(self, count: int) -> int:
        """Return how many crops a class of ``count`` images gives."""
        count = min(count, self.candidates)
        block = min(self.block, count)
        return count // block * block * self.num_crop if block else 0

    def check(self, info: DatasetInfo) -> None:
        """Raise ``ConfigError`` unless every class gives enough crops."""
        _check_factor(info, self.factor)
        check_counts(info, 1)
        needed, counts = (
            self.factor * self.factor * self.pool,
            info.train_counts or (self.candidates,),
        )
        short = min(range(len(counts)), key=lambda c: counts[c])
        if self.available(counts[short]) < needed:
            raise ConfigError(
                f"class {short} gives {self.available(counts[short])} crops (candidates={self.candidates},"
                f" num_crop={self.num_crop}); {self.pool} images of {self.factor}x{self.factor} need {needed}"
            )

    def images_of(self, label: int, ctx: Context) -> Tensor:
        """Return the tiled images of a class, the stored format applied."""
        members = members_of(label, ctx)
        scores = ctx.cached(("scores", self.scores), lambda: self._all_scores(ctx))
        chosen = members[torch.sort(scores[members], stable=True).indices[: self.candidates]]
        needed, given = self.factor * self.factor * self.pool, self.available(len(members))
        if given < needed:
            raise DataError(f"class {label} gives {given} crops; {needed} are needed")
        images = ctx.data["train"].take(chosen[: given // self.num_crop])
        block = min(self.block, len(chosen))
        drawn = [
            self._draw(label, b, k, ctx)
            for b in range(len(images) // block)
            for k in range(self.num_crop)
        ]
        blocks = [
            images[b * block : (b + 1) * block]
            for b in range(len(images) // block)
            for _ in range(self.num_crop)
        ]
        losses = torch.cat([self._losses(i, *draw, label, ctx) for i, draw in zip(blocks, drawn)])
        kept = torch.sort(losses, stable=True).indices[:needed].tolist()
        crops = [
            self._crops(blocks[k // block][k % block :][:1].to(ctx.device), *drawn[k // block])
            for k in kept
        ]
        stored = stored_as(to_pixels(torch.cat(crops)).cpu(), self.image_format)
        return stored_as(
            tile_in_order(self._shrunk(stored), self.factor, self.pool), self.image_format
        )

    def _all_scores(self, ctx: Context) -> Tensor:
        return torch.cat([ctx.load(f"scores-{u}")["scores"] for u in self.scores.units()])

    def _draw(self, label: int, block: int, crop: int, ctx: Context) -> tuple[Box, bool]:
        generator = ctx.rng("crops", label, block, crop)
        return draw_resized_crop(
            generator, self.dataset.height, self.dataset.width, SCALE, RATIO
        ), draw_flip(generator)

    def _crops(self, images: Tensor, box: Box, flip: bool) -> Tensor:
        """Return one crop of all images, at the images' size, as values from 0 to 255."""
        size = (self.dataset.height, self.dataset.width)
        return smooth_crops([box], [flip], size, size, images.device).apply(images.float())

    def _losses(self, images: Tensor, box: Box, flip: bool, label: int, ctx: Context) -> Tensor:
        crops = _scaled(self._crops(images.to(ctx.device), box, flip), self.dataset)
        return class_losses(
            load_teachers(self.backbones, self, ctx), crops, torch.full((len(crops),), label)
        ).cpu()

    def _shrunk(self, crops: Tensor) -> Tensor:
        """Return uint8 crops at their size in the finished image, scaled by Pillow as the original's files are."""
        info = self.dataset
        small = Transform(
            channels=info.channels,
            height=info.height // self.factor,
            width=info.width // self.factor,
            fit="squash",
        )
        shrunk = [
            torch.from_numpy(fit(crop.permute(1, 2, 0).contiguous().numpy(), small).copy())
            for crop in crops
        ]
        return torch.stack(shrunk).permute(0, 3, 1, 2).contiguous()
