"""Statistics of a data set under a network: of all images, and of each class
(docs/methods/recovery.md, "Statistics" and "Collecting statistics").

``G``: the mean, weighted by size, of the statistics of batches (convolutions alone: batch norms
know their own running statistics). ``T``: per class, the mean of its images' own statistics, whose
variances are those within an image. One augmented view per image, keyed by the image: tables are
equal bytes for any number of workers, and ``T`` depends on no slices or batches.

Tables are outputs named ``G/<layer>/<statistic>`` and ``T/<layer>/<statistic>``, the statistics
being ``mu``, ``var`` of channels and ``pmu``, ``pvar`` of patches. Of ImageNet-1k's five networks
they are 0.8 GB in all; sums in float64 twice that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, cast

import torch
from annotated_types import Ge
from torch import Tensor

from raydd.core.errors import ConfigError, DataError
from raydd.core.storage import check_url
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Numerics, Ref, Stage, stage_digest
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import normalise
from raydd.data.split import BaseData, Batch, bounds
from raydd.losses.statistics_matching import Layout
from raydd.networks.taps import StatTap
from raydd.training.augmentation import make_augmentation
from raydd.training.backbones import Backbone
from raydd.training.recipe import Augmentation, Recipe
from raydd.training.statistics_files import StatisticsFile
from raydd.training.statistics_tables import TableStage, observe
from raydd.training.training_cost import network_facts

SCALE = (0.08, 1.0)
BATCH, SLICES = 256, 8


def add_batch(sums: Tensors, statistics: Tensor, labels: Tensor) -> None:
    """Add a batch to running sums, in place: ``G [2, W]``, ``T [C, 2, W]`` float64, ``count [C]`` int64.

    ``statistics``: of each image alone, ``[B, 2, W]``. The variance of the batch is the mean
    variance within its images plus the variance of their means. Images of a class are added one
    after another: no atomics, the same bytes on every run.
    """
    wide = statistics.double()
    mean = wide[:, 0].mean(0)
    sums["G"][0] += mean * len(wide)
    sums["G"][1] += (wide[:, 1] + (wide[:, 0] - mean).square_()).sum(0)
    earlier = (
        (labels.unsqueeze(1) == labels).tril(-1).sum(1)
    )  # images of the same class before this one
    for k in range(int(earlier.max()) + 1):
        rows = (earlier == k).nonzero().squeeze(1)
        sums["T"][labels[rows]] += wide[rows]
    sums["count"] += torch.bincount(labels, minlength=len(sums["count"]))


@dataclass
class _Reader:
    """The batches of a slice from some position on; kept between updates, so that reading runs ahead of them."""

    unit: str = ""
    position: int = -1
    batches: Iterator[Batch] = field(default_factory=lambda: iter(()))


@dataclass(frozen=True, kw_only=True)
class CollectStatistics(Stage):
    """Sums of a network's statistics over fixed slices of the training set, one unit each, one batch per step.

    The training set is shuffled once, cut into ``slices``, and these into batches of ``batch``
    images (the last of a slice may be smaller): all part of the key, since ``G`` depends on who
    shares a batch. ``crop``: range of areas of a random resized crop, or ``pad``: pixels of black
    around the image, of which a random crop is taken; then a flip. ``patch``: side of patches.
    Output: sums in float64 by layer, ``count`` of images by class.
    """

    phase: ClassVar[str] = "squeeze"
    version: ClassVar[int] = 2

    backbone: Backbone
    dataset: DatasetInfo
    batch: int
    crop: tuple[float, float] | None
    pad: int | None
    patch: int
    slices: int

    def units(self) -> Sequence[str]:
        """Return the names of the slices."""
        return tuple(f"slice-{i:03d}" for i in range(self.slices))

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the network's weights, where they are trained."""
        return self.backbone.inputs("backbone")

    def _span(self, unit: str) -> tuple[int, int]:
        return bounds(sum(self.dataset.train_counts), self.units().index(unit), self.slices)

    def steps(self, unit: str) -> int:
        """Return the number of batches."""
        first, last = self._span(unit)
        return -(-(last - first) // self.batch)

    @property
    def layout(self) -> Layout:
        """Which layers are observed."""
        return observe(
            self.backbone.network, self.dataset.shape, self.backbone.dataset.classes, self.patch
        ).layout

    def cost(self, unit: str) -> Cost:
        """Return the cost of a slice: forward passes; the sums, their output, and two batches of
        statistics and activations.
        """
        first, last = self._span(unit)
        facts = network_facts(
            self.backbone.network, self.dataset.shape, self.backbone.dataset.classes
        )
        width = 2 * self.layout.width
        sums = 8 * (self.dataset.classes + 1) * width
        pixels = self.dataset.channels * self.dataset.height * self.dataset.width
        # No gradient: of the activations only some layers' are alive at once, beside maps of values and squares.
        return Cost(
            flop=facts.flop * (last - first),
            peak_bytes=2 * sums
            + self.batch * (4 * facts.alive + 20 * width + 8 * pixels)
            + 4 * facts.parameters,
            state_bytes=sums,
            output_bytes=sums,
        )

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return sums of zero."""
        if len(ctx.data["train"]) != sum(self.dataset.train_counts):
            raise DataError(
                f"the training set has {len(ctx.data['train'])} images, planned were {sum(self.dataset.train_counts)}"
            )
        width, classes = self.layout.width, self.dataset.classes
        wide = {"dtype": torch.float64, "device": ctx.device}
        return {
            "G": torch.zeros(2, width, **wide),  # type: ignore[call-overload]
            "T": torch.zeros(classes, 2, width, **wide),  # type: ignore[call-overload]
            "count": torch.zeros(classes, dtype=torch.int64, device=ctx.device),
        }

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the sums with batch ``t`` added, in place."""
        ids = self._ids(unit, t, ctx)
        images, labels = self._next(unit, t, ctx)
        tap = ctx.cached(
            ("tap", stage_digest(self)),
            lambda: StatTap(self.backbone.load(ctx, "backbone"), self.patch),
        )
        views = self._views(
            images.to(ctx.device), [ctx.rng("views", i) for i in ids[: len(images)].tolist()]
        )
        with torch.no_grad():
            _, statistics = tap(views, len(views))
        if not bool(torch.isfinite(statistics).all()):
            raise DataError(
                f"statistics of network '{self.backbone.network}' are not finite in batch {t} of {unit}"
            )
        add_batch(state, statistics, labels.to(ctx.device))
        return state

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the sums by layer."""
        layout = self.layout
        overall = {
            k: v for k, v in layout.split(state["G"]).items() if not k.startswith(self._batch_norms)
        }
        tables = {f"G/{k}": v for k, v in overall.items()} | {
            f"T/{k}": v for k, v in layout.split(state["T"]).items()
        }
        return tables | {"count": state["count"]}

    @property
    def _batch_norms(self) -> tuple[str, ...]:
        return tuple(f"{layer.name}/" for layer in self.layout.layers if layer.kind == "bn")

    def _next(self, unit: str, t: int, ctx: Context) -> Batch:
        reader = ctx.cached(("batches", stage_digest(self)), _Reader)
        if (reader.unit, reader.position) != (unit, t):
            data = cast(BaseData, ctx.data["train"])
            reader.unit, reader.batches = unit, data.iterate(self._ids(unit, t, ctx), self.batch)
        reader.position = t + 1
        return next(reader.batches)

    def _ids(self, unit: str, t: int, ctx: Context) -> Tensor:
        """Return the images of a slice from batch ``t`` on."""
        data = cast(BaseData, ctx.data["train"])
        order: Tensor = ctx.cached(
            ("order", stage_digest(self)),
            lambda: data.shuffled(torch.arange(len(data)), ctx.rng("order")),
        )
        first, last = self._span(unit)
        return order[first + t * self.batch : last]

    def _views(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return a normalised, augmented view of each image, drawn by a generator of its own."""
        info = self.dataset
        family: Augmentation = "pad_crop_flip" if self.pad else "resized_crop_flip"
        black = [-m / s for m, s in zip(info.mean, info.std, strict=True)]
        recipe = Recipe(epochs=0, augmentation=family, pad=self.pad, scale=self.crop)
        augment = make_augmentation(recipe, (info.height, info.width), black)
        return augment(normalise(images, info.mean, info.std).unsqueeze(1), generators).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class Statistics(TableStage):
    """The tables of a network: the slices' sums, added in order and divided, float32; the one unit is ``all``."""

    collected: CollectStatistics

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the slices' sums."""
        return {ref.unit: ref for ref in self.collected.refs()}

    def cost(self, unit: str) -> Cost:
        """Return the cost: two slices' sums and the tables in memory."""
        sums = self.collected.cost(self.collected.units()[0]).output_bytes
        return Cost(peak_bytes=5 * sums // 2, output_bytes=sums // 2)

    def steps(self, unit: str) -> int:
        """Return 0: the sums are added at once."""
        return 0

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the tables; ``DataError`` for a class without images."""
        sums: Tensors = {}
        for name in self.inputs(unit):
            part = ctx.load(name)
            if not sums:
                sums = {key: value.clone() for key, value in part.items()}
                continue
            for key, value in part.items():
                sums[key] += value
        count = sums.pop("count")
        if not bool(count.all()):
            raise DataError(
                f"class {int((count == 0).nonzero()[0, 0])} has no training images to take statistics of"
            )
        images = count.sum().double()
        tables = {}
        while sums:  # one layer after another, so that both precisions are in memory once
            key, value = sums.popitem()
            tables[key] = (value / (count.view(-1, 1) if key.startswith("T/") else images)).float()
        return tables | {"count": count}


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """Where statistics come from; the fields are the YAML keys under ``method.statistics``.

    ``files``: the URL of a folder of tables made before (``<network>.safetensors``) or of the
    published ``npz`` tree; none: they are collected here. ``patch``: side of patches in pixels
    (published: 16 at 224 pixels, 4 at 32 and 64). The other keys are of collecting alone: images
    per ``batch`` (published: 256; 64 at 32 and 64 pixels), ``crop`` (areas of a random resized
    crop, by default 0.08 to 1) or ``pad`` (published: 4 at 32 pixels, 8 at 64), ``slices`` (units,
    8).
    """

    patch: Annotated[int, Ge(1)] = 16
    files: str | None = None
    batch: Annotated[int, Ge(1)] | None = None
    crop: tuple[float, float] | None = None
    pad: Annotated[int, Ge(1)] | None = None
    slices: Annotated[int, Ge(1)] | None = None

    def __post_init__(self) -> None:
        if self.files is not None:
            check_url(self.files, "statistics.files")
            for name in ("batch", "crop", "pad", "slices"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"statistics.{name}={getattr(self, name)} has no effect: statistics.files={self.files} are read"
                    )
        if self.crop is not None and self.pad is not None:
            raise ConfigError(
                f"statistics.crop={self.crop} and statistics.pad={self.pad}: images are cropped in one way; give one of"
                " them"
            )
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ConfigError(f"statistics.crop={self.crop}: allowed is a range within (0, 1]")

    def source(
        self, backbone: Backbone, dataset: DatasetInfo, seed: int, numerics: Numerics
    ) -> TableStage:
        """Return the stage whose unit ``all`` holds the tables of a network; ``ConfigError`` for
        files that say they are of another.
        """
        if self.files is not None:
            file = StatisticsFile.at(self.files, backbone.network, dataset.only(), self.patch)
            if (
                backbone.training is None or dataset.digests
            ):  # else a plan made without the data, which the training's key depends on
                file.require_weights(backbone.identity)
            return file
        side, images = min(dataset.height, dataset.width), sum(dataset.train_counts)
        if images and (self.slices or SLICES) > images:
            raise ConfigError(
                f"statistics.slices={self.slices or SLICES} is more than the {images} training images"
            )
        if self.pad is not None and self.pad >= side:
            raise ConfigError(
                f"statistics.pad={self.pad}: images of {dataset.height}x{dataset.width} allow at most {side - 1}"
            )
        collected = CollectStatistics(
            seed=seed,
            numerics=numerics,
            backbone=backbone,
            dataset=dataset.only("train"),
            batch=self.batch or BATCH,
            crop=None if self.pad else self.crop or SCALE,
            pad=self.pad,
            patch=self.patch,
            slices=self.slices or SLICES,
        )
        return Statistics(seed=seed, numerics=numerics, collected=collected)

    def missing(
        self, networks: Sequence[str], dataset: DatasetInfo, *, classes: bool = True
    ) -> list[str]:
        """Return a line for each network whose tables are not among the files, or do not fit; none
        where they are collected.

        ``classes``: whether class tables are needed.
        """
        if self.files is None:
            return []
        made = (
            StatisticsFile.at(self.files, network, dataset.only(), self.patch)
            for network in dict.fromkeys(networks)
        )
        return [line for line in (file.fault(classes) for file in made) if line]
