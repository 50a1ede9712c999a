"""What an unroll trains on: parameters, the images and targets made of them, and the batch of each inner step.

RaT-BPTT's is a table of images, :class:`ImageTable`. Others (windows of a poster) define a subclass
of :class:`DistilledBatches`; the engines, the outer optimiser and the stage know no other thing of
them. Worked out in docs/methods/rat_bptt_podd.md, "The distilled batch".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.core.errors import ConfigError
from raydd.core.rng import KeyedRng
from raydd.core.tensors import Tensors
from raydd.networks.network import Shape

PIXELS = "images"
"""The parameter that is moved at the rate of the images, and whose gradient is clipped."""
LABELS = "labels"
"""The parameter that is moved at the rate of the labels; there where labels are learnable."""


@dataclass(frozen=True, kw_only=True)
class DistilledBatches(ABC):
    """How distilled data are kept as parameters, and cut into the batches of inner steps.

    Fields of a subclass are part of the key of the stage that holds it: plain values, tuples,
    frozen dataclasses. Parameters are float32 tensors called :data:`PIXELS` and, where labels are
    learnable, :data:`LABELS`; of any shape. ``shape``: channels, height and width of the images
    that networks see. ``classes``: outputs of the networks.

    All ``M`` images and targets are made once per outer step (:meth:`materialise`), batches are
    rows of them (:meth:`sample`), and the meta-gradient is pulled back through the making once.
    """

    shape: Shape
    classes: int
    learn_labels: bool = False

    @property
    @abstractmethod
    def count(self) -> int:
        """How many images there are to choose from, M."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """How many images an inner step has, B."""

    @abstractmethod
    def start(self, rng: KeyedRng) -> Tensors:
        """Return the parameters before the first update, on the CPU; draws are keyed ``rng("init", ...)``."""

    @abstractmethod
    def materialise(self, parameters: Tensors) -> tuple[Tensor, Tensor]:
        """Return all images ``[M, C, H, W]`` and all targets, int64 ``[M]`` or floats ``[M, classes]``.

        Plain torch, differentiable in every parameter, without atomics in the derivative; on the
        device of the parameters, and of their dtype.
        """

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Tensor:
        """Return the ids int64 ``[B]`` of one inner step's images, ascending, none of them twice; on the CPU."""

    def project(self, parameters: Tensors) -> Tensors:
        """Return the parameters after an update as they may be: labels of at least 0."""
        if LABELS not in parameters:
            return parameters
        return parameters | {LABELS: parameters[LABELS].clamp_min(0)}

    def kept(self) -> Tensors:
        """Return what an output has beside the parameters, since a set's maker may not know it."""
        return {}

    @abstractmethod
    def stored(self, parameters: Tensors) -> Tensors:
        """Return what a distilled set stores, by the names that its decoder reads: ``images``,
        ``labels`` (hard, int64) and perhaps ``soft_labels`` or others.

        ``parameters``: with what :meth:`kept` returned.
        """

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters, for estimates."""
        floats = self.count * (math.prod(self.shape) + self.classes * self.learn_labels)
        return 4 * floats

    @property
    def output_bytes(self) -> int:
        """Bytes of parameters and of what is kept beside them, for estimates."""
        return self.parameter_bytes


@dataclass(frozen=True, kw_only=True)
class ImageTable(DistilledBatches):
    """``ipc`` images of each class, sorted by class: RaT-BPTT's distilled data.

    ``present``: the classes that are distilled, ascending. ``batch_per_class``: images of a class
    in a batch (at most ``ipc``). ``classes_per_batch``: so many classes, drawn anew, are in a batch.
    ``start_norm``: the L2 norm of every image at the start, whose values are normal (published: 1).
    Learnable labels are raw targets, one-hot at the start.

    Raises ``ConfigError`` for numbers that do not fit.
    """

    present: tuple[int, ...]
    ipc: int
    batch_per_class: int
    classes_per_batch: int
    start_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.batch_per_class <= self.ipc:
            raise ConfigError(
                f"batch_per_class={self.batch_per_class}: 1 to ipc={self.ipc} are possible"
            )
        if not 1 <= self.classes_per_batch <= len(self.present):
            raise ConfigError(
                f"classes_per_batch={self.classes_per_batch}: 1 to {len(self.present)} classes are possible"
            )

    @property
    def count(self) -> int:
        """Return the number of images in the table."""
        return self.ipc * len(self.present)

    @property
    def batch(self) -> int:
        """Return the number of images in a batch."""
        return self.batch_per_class * self.classes_per_batch

    @property
    def hard(self) -> Tensor:
        """The class of every image, int64 ``[M]``."""
        return torch.tensor(self.present).repeat_interleave(self.ipc)

    def start(self, rng: KeyedRng) -> Tensors:
        """Return normal noise, every image of norm ``start_norm``, and one-hot labels where these are learnt."""
        parts = [
            torch.randn((self.ipc, *self.shape), generator=rng("init", c)) for c in self.present
        ]
        images = torch.cat(parts)
        norms = images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        parameters = {PIXELS: images / norms * self.start_norm}
        if self.learn_labels:
            one_hot = torch.nn.functional.one_hot(self.hard, self.classes)
            parameters[LABELS] = one_hot.to(torch.float32)
        return parameters

    def materialise(self, parameters: Tensors) -> tuple[Tensor, Tensor]:
        """Return the table, with its learnt labels or those of its rows."""
        images = parameters[PIXELS]
        return images, parameters[LABELS] if self.learn_labels else self.hard.to(images.device)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return rows of the classes drawn for the batch (all, if so many are in one), some of each."""
        places = torch.arange(len(self.present))
        if self.classes_per_batch < len(places):
            chosen = torch.randperm(len(places), generator=generator)[: self.classes_per_batch]
            places = chosen.sort().values
        if self.batch_per_class == self.ipc:
            rows = torch.arange(self.ipc).expand(len(places), -1)
        else:
            drawn = [torch.randperm(self.ipc, generator=generator) for _ in places]
            rows = torch.stack([d[: self.batch_per_class].sort().values for d in drawn])
        return (places.unsqueeze(1) * self.ipc + rows).flatten()

    def stored(self, parameters: Tensors) -> Tensors:
        """Return the images, their classes, and the learnt labels as soft ones."""
        found = {"images": parameters[PIXELS], "labels": self.hard}
        return found | ({"soft_labels": parameters[LABELS]} if self.learn_labels else {})
