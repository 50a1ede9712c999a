"""How soft labels are made and kept: the YAML keys under ``method.labels``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from raydd.core.errors import ConfigError, unknown
from raydd.core.units import added, unkeyed
from raydd.labels.codecs import CODECS, STATIC

COMPUTED = ("online", "recipe")
"""What may stand in place of a codec: nothing is kept, the teachers run while students train."""


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Which views of the images teachers label, and what is kept of their logits.

    ``batch``: images per batch, of labelling and of training alike, since mixed pairs lie within a
    batch. ``epochs``: of the students, unless the evaluation names its own; as many are stored (of
    labels that are not, and of ``static`` ones, there is no end).

    Views, in the order in which they are made: ``randaugment`` (two random operations per image, of
    8-bit images only); ``shuffle``: RDED's grid of so many rows and columns of patches, each
    permuted (1: none); ``crop``: range of the crop's share of the area, or ``pad_crop``: a crop of
    the image padded by so many black pixels (one of the two, or none); ``flip``: mirror half of the
    images; ``mix`` with ``alpha`` of its Beta distribution.

    ``ensemble``: ``mean`` of the teachers' logits, or ``rescaled`` first to equal norms over the
    batch (G-VBSM). ``codec``: ``fp16``, ``int8`` (per row) or ``topk`` (the ``top`` largest; the
    other classes share one value, their ``tail``: the ``mean`` of their logits, for ``mse_gt``, or
    that of equal probability ``mass``, for ``kl``) are stored. ``static`` stores one float32 row
    for each image as it is, whose views all have it; mixed images have the rows' mean, weighted as
    the images are. ``recipe`` stores nothing and
    computes the same labels while students train; ``online`` too, with new views for every student.
    Installed packages may add codecs (docs/plugins.md).
    ``teacher_mode``: batch norms of teachers take their running statistics (``eval``), or those of
    the batch that is labelled (``batch``; published for CIFAR by SRe2L and DWA).
    ``sampler_seed``: of the images' order, except for ``online`` and ``static``, where every student
    has an order of its own.
    """

    batch: Annotated[int, Ge(1)] = 100
    epochs: Annotated[int, Ge(1)] = unkeyed(default=300)
    randaugment: bool = False
    shuffle: Annotated[int, Ge(1)] = 1
    crop: tuple[float, float] | None = (0.5, 1.0)
    pad_crop: Annotated[int, Ge(0)] = 0
    flip: bool = True
    mix: Literal["cutmix", "mixup", "none"] = "cutmix"
    alpha: Annotated[float, Gt(0)] = 1.0
    ensemble: Literal["mean", "rescaled"] = "mean"
    codec: str = "fp16"
    top: Annotated[int, Ge(1)] | None = None
    tail: Literal["mean", "mass"] = "mean"
    sampler_seed: Annotated[int, Ge(0)] = 42
    teacher_mode: Literal["eval", "batch"] = added("eval")

    def __post_init__(self) -> None:
        if self.codec not in COMPUTED and self.codec not in CODECS:
            raise ConfigError(
                f"labels.codec: {unknown('label codec', self.codec, (*CODECS, *COMPUTED))}"
            )
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ConfigError(
                f"labels.crop: {list(self.crop)} must be a range of shares of the area, above 0 and at most 1"
            )
        if self.crop is not None and self.pad_crop:
            raise ConfigError(
                f"labels.pad_crop={self.pad_crop}: images are cropped in one way; set labels.crop to null"
            )
        if self.codec == "topk" and self.top is None:
            raise ConfigError(
                "labels.codec=topk needs labels.top: how many classes of each image are kept, such as 100"
            )
        if self.codec != "topk" and (self.top is not None or self.tail != "mean"):
            raise ConfigError(
                f"labels.top and labels.tail belong to labels.codec=topk, not {self.codec}"
            )
        if (self.online or self.static) and self.sampler_seed != LabelConfig.sampler_seed:
            raise ConfigError(
                f"labels.sampler_seed={self.sampler_seed} has no effect with labels.codec={self.codec}"
            )
        for name, needed in (("teacher_mode", "eval"), ("ensemble", "mean")):
            if self.static and getattr(self, name) != needed:
                raise ConfigError(
                    f"labels.{name}={getattr(self, name)} is of batches of views, and labels.codec=static labels images"
                    f" one by one; allowed: {needed}"
                )
        if self.mix == "none" and self.alpha != LabelConfig.alpha:
            raise ConfigError(f"labels.alpha={self.alpha} has no effect with labels.mix=none")
        if self.batch > 65_536:
            raise ConfigError(
                f"labels.batch: {self.batch} is more than 65536, which a stored permutation can hold"
            )

    @property
    def stored(self) -> bool:
        """Whether labels are computed once and kept; otherwise the teachers run while students train."""
        return self.codec not in COMPUTED

    @property
    def online(self) -> bool:
        """Whether every student has views of its own."""
        return self.codec == "online"

    @property
    def static(self) -> bool:
        """Whether an image has one row of logits, whatever its views."""
        return self.codec == STATIC

    @property
    def epochs_kept(self) -> int | None:
        """How many epochs of students labels are kept for; ``None``: there is no end."""
        return self.epochs if self.stored and not self.static else None

    def check_loss(self, loss: str) -> None:
        """Raise ``ConfigError`` if what is kept of logits is not what a student's ``loss`` is made of."""
        wanted = {"mse_gt": "mean", "kl": "mass"}.get(loss)
        if self.codec == "topk" and wanted not in (None, self.tail):
            raise ConfigError(
                f"labels.tail={self.tail}: students of the loss {loss} need labels.tail={wanted}"
            )

    def check(self, images: int, classes: int, shape: tuple[int, int, int]) -> None:
        """Raise ``ConfigError`` for what cannot be with so many ``images`` (0: not known) of
        ``(C, H, W)``, and ``classes``.
        """
        channels, height, width = shape
        if height % self.shuffle or width % self.shuffle:
            raise ConfigError(
                f"labels.shuffle={self.shuffle} does not divide images of {height}x{width} pixels"
            )
        if self.pad_crop >= min(height, width):
            raise ConfigError(
                f"labels.pad_crop={self.pad_crop}: images of {height}x{width} allow at most {min(height, width) - 1}"
            )
        if self.randaugment and channels not in (1, 3):
            raise ConfigError(
                f"labels.randaugment needs 8-bit grey or RGB images, not {channels} channels"
            )
        if images and self.batch > images:
            raise ConfigError(
                f"labels.batch={self.batch} is more than the set's {images} images; at most {images} is allowed"
            )
        if self.teacher_mode == "batch" and (self.batch == 1 or images % self.batch == 1):
            raise ConfigError(
                f"labels.teacher_mode=batch takes statistics of batches, and of {images} images in batches of"
                f" {self.batch} one is alone; change labels.batch"
            )
        if self.top is not None and self.top > classes:
            raise ConfigError(f"labels.top={self.top} is more than the {classes} classes")
        if self.codec == "topk" and classes > 65_536:
            raise ConfigError(f"labels.codec=topk holds up to 65536 classes, not {classes}")
