"""Batches of views with soft labels, as students see them, whether labels were stored or are computed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.ahead import Ahead
from raydd.core.errors import ConfigError
from raydd.core.rng import KeyedRng
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_views import DrawnViews, make_views
from raydd.losses.soft import SoftTargets

SoftBatch = tuple[Tensor, SoftTargets]
Predict = Callable[[Tensor], Tensor]


class Epoch(Protocol):
    """The batches of one epoch."""

    def __len__(self) -> int: ...

    def views(self, number: int) -> DrawnViews:
        """Return what was drawn for a batch."""
        ...

    def logits(self, number: int, images: Tensor) -> Tensor:
        """Return the teachers' logits float32 ``[B, classes]`` of a batch's mixed ``images``, on their device."""
        ...


class DrawnEpoch:
    """An epoch whose labels are computed; what was computed is kept for the students that come after."""

    def __init__(self, count: int, draw: Callable[[int], DrawnViews], predict: Predict) -> None:
        self._count, self._draw, self._predict = count, draw, predict
        self._views: dict[int, DrawnViews] = {}
        self._logits: dict[int, Tensor] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return self._count

    def views(self, number: int) -> DrawnViews:
        """Return what was drawn for a batch."""
        with self._lock:
            if number not in self._views:
                self._views[number] = self._draw(number)
            return self._views[number]

    def logits(self, number: int, images: Tensor) -> Tensor:
        """Return the teachers' logits of a batch."""
        with self._lock:
            if number not in self._logits:
                self._logits[number] = self._predict(images)
            return self._logits[number]


class LabelledSet:
    """A training set (:class:`raydd.training.students.TrainingSet`) of mixed views with soft labels.

    ``epoch_of(epoch, rng)`` returns an epoch; with ``shared`` it is the same for every student, and
    the latest is kept. ``epochs``: how many there are (``None``: no end). ``threaded``: build the
    next batch in a thread (default: on a GPU).
    """

    def __init__(
        self,
        distilled: DistilledSet,
        config: LabelConfig,
        device: torch.device,
        epoch_of: Callable[[int, KeyedRng], Epoch],
        *,
        shared: bool,
        epochs: int | None,
        threaded: bool | None = None,
    ) -> None:
        self.config, self.epochs = config, epochs
        self._mean, self._std = distilled.mean, distilled.std
        self._device = device
        self._distilled, self._labels = distilled, distilled.labels_of().to(device)
        self._tensors = {name: tensor.to(device) for name, tensor in distilled.decoded.items()}
        self._epoch_of, self._shared = epoch_of, shared
        self._kept: tuple[int, Epoch] | None = None
        self._threaded = device.type == "cuda" if threaded is None else threaded

    def __len__(self) -> int:
        return len(self._labels)

    def batches(self, epoch: int, size: int, rng: KeyedRng) -> Iterator[SoftBatch]:
        """Yield an epoch of float32 images ``[B, C, H, W]`` in network space and their :class:`SoftTargets`.

        The hard labels are those of the images before mixing. ``ConfigError`` if ``size`` is not that of the labels'
        batches, or the epoch is not stored.
        """
        fits(self.config, size, epoch + 1, self.epochs)
        found = self._epoch(epoch, rng)
        count = len(found)
        ahead: Ahead[SoftBatch | None] = Ahead(
            lambda j: self._batch(found, j) if j < count else None, threaded=self._threaded
        )
        for number in range(count):
            batch = ahead(number)
            if batch is not None:
                yield batch

    def _epoch(self, epoch: int, rng: KeyedRng) -> Epoch:
        if not self._shared:
            return self._epoch_of(epoch, rng)
        if self._kept is None or self._kept[0] != epoch:
            self._kept = None  # never two epochs at once
            self._kept = (epoch, self._epoch_of(epoch, rng))
        return self._kept[1]

    @torch.no_grad()
    def _batch(self, epoch: Epoch, number: int) -> SoftBatch:
        views = epoch.views(number)
        index = views.index.to(self._device)
        seen = self._distilled.take(index, self._tensors)
        images = make_views(self.config, seen, views, self._mean, self._std)
        return images, SoftTargets(epoch.logits(number, images), self._labels[index])


def fits(config: LabelConfig, batch: int, epochs: int, stored: int | None) -> None:
    """Raise ``ConfigError`` unless a training of ``batch`` and ``epochs`` can use labels of which
    ``stored`` epochs exist.
    """
    if batch != config.batch:
        raise ConfigError(
            f"the students' batch is {batch}, that of their labels {config.batch}: mixed pairs lie within a batch; make"
            " evaluation.batch and labels.batch equal"
        )
    if stored is not None and epochs > stored:
        raise ConfigError(
            f"{epochs} epochs of training need as many epochs of labels; {stored} are stored"
        )
