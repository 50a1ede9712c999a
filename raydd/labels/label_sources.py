"""Soft labels as part of an evaluation's key: where they come from, and the training set that they
make of a distilled set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import KeyedRng
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Numerics, Ref, Stage, added
from raydd.labels.ensemble import Teacher, classes_of, load_teachers, predict, teacher_inputs
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_views import DrawnViews, Orders, draw_views
from raydd.labels.labelled_set import DrawnEpoch, Epoch, LabelledSet, fits
from raydd.labels.records import RecordedEpoch, batches_of, label_bytes
from raydd.labels.relabel import Relabel, check_set, views_of
from raydd.labels.static import LabelImages, static_set, stored_rows
from raydd.training.training_cost import network_facts


class LabelSource(Protocol):
    """Where soft labels come from; a frozen dataclass, part of the key of an evaluation."""

    @property
    def config(self) -> LabelConfig:
        """How they are made and kept."""
        ...

    def inputs(self) -> Mapping[str, Ref]:
        """Return the outputs of other units that the labels are made of."""
        ...

    def stages(self) -> list[Stage]:
        """Return the stages that make the labels, none if they are found or computed on the way."""
        ...

    def fits(self, batch: int, epochs: int, augmentation: str = "none") -> None:
        """Raise ``ConfigError`` unless students can be trained so with these labels."""
        ...

    def open(self, distilled: DistilledSet, ctx: Context) -> LabelledSet:
        """Return the training set that these labels make of a distilled set."""
        ...

    def flop(self, epochs: int, students: int) -> float:
        """Return the FLOP of teachers that run while so many students train."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of the stored labels."""
        ...

    @property
    def teacher_bytes(self) -> int | None:
        """Bytes of the weights of networks that compute labels while students train; ``None`` for stored labels."""
        ...


class FoundLabels(ABC):
    """What labels have in common that lie outside the store: nothing makes them, and no teacher
    runs while students train.
    """

    @abstractmethod
    def check(self, distilled: DistilledSet) -> None:
        """Raise ``DataError`` unless these are labels of ``distilled``, as far as the first epoch
        tells; reads that epoch.
        """

    def inputs(self) -> Mapping[str, Ref]:
        """Return nothing."""
        return {}

    def stages(self) -> list[Stage]:
        """Return nothing."""
        return []

    def flop(self, epochs: int, students: int) -> float:
        """Return 0."""
        return 0.0

    @property
    def teacher_bytes(self) -> int | None:
        """Nothing: the labels are stored."""
        return None


def refuse_augmentation(augmentation: str) -> None:
    """Raise ``ConfigError`` if images would be changed after the teachers saw them."""
    if augmentation != "none":
        raise ConfigError(
            f"augmentation '{augmentation}' would change images after their soft labels were made; allowed: none"
        )


def check_digest(record: Tensors, distilled: DistilledSet, where: str) -> None:
    """Raise ``DataError`` if a record belongs to other images."""
    found = bytes(record["images"].tolist()).hex()
    if found != distilled.digest:
        raise DataError(
            f"{where} holds labels of another set: its digest is {found[:12]}, this set's {distilled.digest[:12]}"
        )


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels that teachers give to the set of ``source``: stored beforehand, or computed while students train.

    ``seed`` and ``numerics``: those of the :class:`Relabel` stage, whose labels ``recipe`` computes again.
    ``kept``: whether labels that can be stored are; else, of ``static`` ones, every worker computes
    the rows for itself.
    """

    source: Any
    teachers: tuple[Teacher, ...]
    config: LabelConfig
    seed: int
    numerics: Numerics
    kept: bool = added(True)

    def __post_init__(self) -> None:
        self.config.check(
            self.source.images, classes_of(self.teachers), self.teachers[0].dataset.shape
        )

    @property
    def stored(self) -> bool:
        """Whether a stage makes the labels beforehand and keeps them."""
        return self.kept and self.config.stored

    @property
    def relabel(self) -> Relabel:
        """The stage that stores the labels; ``ConfigError`` if they are not stored."""
        kind = LabelImages if self.config.static else Relabel
        return kind(
            source=self.source,
            teachers=self.teachers,
            config=self.config,
            seed=self.seed,
            numerics=self.numerics,
        )

    @property
    def bytes(self) -> int:
        """Bytes of the stored labels."""
        return label_bytes(self.config, self.source.images, classes_of(self.teachers))

    @property
    def teacher_bytes(self) -> int | None:
        """Bytes of the teachers' parameters in floats, of labels that are not stored."""
        if self.stored:
            return None
        shape, classes = self.teachers[0].dataset.shape, classes_of(self.teachers)
        named = [network_facts(teacher.network, shape, classes) for teacher in self.teachers]
        return 4 * sum(facts.parameters for facts in named)

    def inputs(self) -> Mapping[str, Ref]:
        """Return the stored epochs, ``labels/epoch-000``, or rows, ``labels/static``, or what the
        teachers are made of.
        """
        if not self.stored:
            return teacher_inputs(self.teachers)
        stage = self.relabel
        return {f"labels/{unit}": Ref(stage, unit) for unit in stage.units()}

    def stages(self) -> list[Stage]:
        """Return the stage that stores the labels, if they are stored."""
        return [self.relabel] if self.stored else []

    def fits(self, batch: int, epochs: int, augmentation: str = "none") -> None:
        """Raise ``ConfigError`` unless students can be trained with batches of ``batch`` for ``epochs`` epochs."""
        refuse_augmentation(augmentation)
        fits(self.config, batch, epochs, self.config.epochs_kept)

    def flop(self, epochs: int, students: int) -> float:
        """Return the FLOP of teachers that run while so many students train: for each of them only
        if labels are ``online``, and once over the images if they are ``static`` and not kept.
        """
        if self.stored:
            return 0.0
        if self.config.static:
            epochs, students = 1, 1
        shape, classes = self.teachers[0].dataset.shape, classes_of(self.teachers)
        each = sum(network_facts(teacher.network, shape, classes).flop for teacher in self.teachers)
        return each * self.source.images * epochs * (students if self.config.online else 1)

    def open(self, distilled: DistilledSet, ctx: Context) -> LabelledSet:
        """Return the training set of ``distilled``, the set of ``source``."""
        check_set(distilled, self.teachers)
        classes = classes_of(self.teachers)
        if self.config.static:
            return static_set(distilled, self.config, self._rows(distilled, ctx), ctx.device)
        if not self.stored:
            return self._computed(distilled, ctx)
        size = distilled.shape[1:]

        def stored(epoch: int, rng: KeyedRng) -> Epoch:
            name = f"labels/epoch-{epoch:03d}"
            record = ctx.load(name)
            check_digest(record, distilled, name)
            return RecordedEpoch(record, self.config, classes, size)

        return LabelledSet(
            distilled, self.config, ctx.device, stored, shared=True, epochs=self.config.epochs_kept
        )

    def _rows(self, distilled: DistilledSet, ctx: Context) -> torch.Tensor:
        """Return the static rows of logits ``[N, classes]``, stored or computed."""
        stage = self.relabel
        if not self.stored and isinstance(stage, LabelImages):
            return stage.rows(distilled, ctx)
        (name,) = self.inputs()
        record = ctx.load(name)
        check_digest(record, distilled, name)
        return stored_rows(self.config, record, classes_of(self.teachers))

    def _computed(self, distilled: DistilledSet, ctx: Context) -> LabelledSet:
        networks, config = load_teachers(self.teachers, ctx), self.config
        size, count = distilled.shape[1:], distilled.seen
        orders = Orders(config.sampler_seed, count)

        def computed(epoch: int, rng: KeyedRng) -> Epoch:
            if config.online:
                order = torch.randperm(count, generator=rng("label order", epoch))
            else:
                order = orders(epoch)

            def draw(number: int) -> DrawnViews:
                index = order[number * config.batch : (number + 1) * config.batch]
                if config.online:
                    return draw_views(config, rng("labels", epoch, number), index, size)
                return views_of(config, self.seed, epoch, number, index, size)

            return DrawnEpoch(
                batches_of(config, count),
                draw,
                lambda images: predict(networks, images, config.ensemble, config.teacher_mode),
            )

        return LabelledSet(
            distilled, config, ctx.device, computed, shared=not config.online, epochs=None
        )
