"""Labelling a distilled set with an ensemble of teachers, an epoch of views per unit (docs/methods/soft_labels.md).

Published: EDC on ImageNet-1k, 10 images per class: batches of 100, 300 epochs, 4 teachers, CutMix:
6.1 GB of fp16 logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Ref, Stage, stage_digest
from raydd.labels.codecs import encode
from raydd.labels.ensemble import (
    Teacher,
    check_space,
    classes_of,
    identity,
    load_teachers,
    predict,
    teacher_inputs,
)
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_views import DrawnViews, Orders, draw_views, make_views
from raydd.labels.records import batches_of, blank, epoch_bytes, label_bytes, write_batch
from raydd.training.training_cost import network_facts

FORMAT, VERSION = "raydd-labels", 1


def views_of(
    config: LabelConfig,
    seed: int,
    epoch: int,
    number: int,
    index: torch.Tensor,
    size: tuple[int, int],
) -> DrawnViews:
    """Return the views of a batch: keyed by seed, epoch and batch alone, and so the same for
    teachers and every student.
    """
    return draw_views(config, generator(seed, "labels", epoch, number), index, size)


def check_set(distilled: DistilledSet, teachers: Sequence[Teacher]) -> None:
    """Raise ``ConfigError`` unless students see the set's images in the teachers' space."""
    if distilled.info.classes != classes_of(teachers):
        raise ConfigError(
            f"the teachers know {classes_of(teachers)} classes; the set has {distilled.info.classes}"
        )
    if distilled.whitening is not None:
        raise ConfigError("soft labels of views need images that are not whitened")
    check_space(teachers, distilled.mean, distilled.std)


@dataclass(frozen=True, kw_only=True)
class Relabel(Stage):
    """Label views of a distilled set; a unit is an epoch, a step a batch.

    ``source``: where the set comes from (:mod:`raydd.evaluation.set_sources`). The output of a unit is the
    record of :mod:`raydd.labels.records`. Views are keyed by ``(seed, "labels", epoch, batch)``;
    the order of the images is that of a sampler seeded with ``config.sampler_seed``.
    """

    phase: ClassVar[str] = "relabel"
    place: ClassVar[str] = "labels"

    source: Any
    teachers: tuple[Teacher, ...]
    config: LabelConfig

    def __post_init__(self) -> None:
        if not self.config.stored:
            raise ConfigError(
                f"labels.codec={self.config.codec} computes labels while students train: there is nothing to store"
            )
        self.config.check(self.source.images, self.classes, self.teachers[0].dataset.shape)
        if not self.source.images:
            raise ConfigError(
                "labels are planned for a known number of images; the source does not know its own"
            )

    @property
    def classes(self) -> int:
        """The number of classes, the teachers'; ``ConfigError`` if there is none or they differ."""
        return classes_of(self.teachers)

    def units(self) -> Sequence[str]:
        """Return one unit per epoch, ``epoch-000``."""
        return tuple(f"epoch-{epoch:03d}" for epoch in range(self.config.epochs))

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return what the set is made of, and the teachers' weights."""
        return {**self.source.inputs(), **teacher_inputs(self.teachers)}

    def cost(self, unit: str) -> Cost:
        """Return the cost of an epoch: one forward pass of every teacher over every image."""
        shape = self.teachers[0].dataset.shape
        facts = [network_facts(teacher.network, shape, self.classes) for teacher in self.teachers]
        images, size = (
            self.source.images,
            epoch_bytes(self.config, self.source.images, self.classes),
        )
        pixels = shape[0] * shape[1] * shape[2]
        work = 4 * self.config.batch * (4 * pixels + max(fact.alive for fact in facts))
        return Cost(
            flop=images * sum(fact.flop for fact in facts),
            peak_bytes=images * pixels + work + 4 * sum(fact.parameters for fact in facts) + size,
            state_bytes=size,
            output_bytes=size,
        )

    def facts(self) -> dict[str, Any]:
        """Return what a reader needs to understand the stored epochs, as JSON values (for ``labels/manifest.json``)."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "epochs": self.config.epochs,
            "images": self.source.images,
            "classes": self.classes,
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            "teachers": [identity(teacher) for teacher in self.teachers],
            "bytes": label_bytes(self.config, self.source.images, self.classes),
        }

    def steps(self, unit: str) -> int:
        """Return the number of batches."""
        return batches_of(self.config, self.source.images)

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return an empty record."""
        return blank(self.config, self.source.images, self.classes, ctx.device)

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the record with batch ``t`` labelled (filled in place: an epoch is too large to
        copy for every batch).
        """
        config, distilled = self.config, self._set(ctx)
        epoch, size = int(unit.removeprefix("epoch-")), distilled.shape[1:]
        order = ctx.cached(
            ("label order", config.sampler_seed, distilled.seen),
            lambda: Orders(config.sampler_seed, distilled.seen),
        )
        index = order(epoch)[t * config.batch : (t + 1) * config.batch]
        views = views_of(config, self.seed, epoch, t, index, size)
        images = make_views(
            config, distilled.take(index).to(ctx.device), views, distilled.mean, distilled.std
        )
        logits = predict(
            load_teachers(self.teachers, ctx), images, config.ensemble, config.teacher_mode
        )
        write_batch(state, config, t, views, size, encode(config, logits))
        ctx.log(t, agreement=(logits.argmax(1).cpu() == distilled.labels_of(index)).double().mean())
        return state

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the record, with the digest of the set that was labelled."""
        return {
            **state,
            "images": torch.frombuffer(bytearray.fromhex(self._set(ctx).digest), dtype=torch.uint8),
        }

    def _set(self, ctx: Context) -> DistilledSet:
        def load() -> DistilledSet:
            distilled: DistilledSet = self.source.load(ctx)
            if distilled.seen != self.source.images:
                raise DataError(
                    f"the set has {distilled.seen} images; its labels were planned for {self.source.images}"
                )
            check_set(distilled, self.teachers)
            return distilled

        return ctx.cached(("labelled set", stage_digest(self)), load)
