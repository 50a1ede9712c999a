"""RaT-BPTT, random truncated backpropagation through training (Feng, Vedantam and Kempe, ICLR 2024, arXiv 2311.07025).

Every outer step trains a fresh network on the distilled images for k + T steps, T = ``window`` and k uniform in
``minwindow`` to ``totwindow - window``, and moves the images, by Adam, down

    L = CE(net(theta_{k+T}), real batch),    theta_{t+1} = Adam(theta_t, grad CE(net(theta_t), distilled batch_t)),

differentiated through the last T steps alone. Worked out in docs/methods/rat_bptt_podd.md, "The outer step".

Published (ConvNet, whitened images; from memory of the paper's table, which its repository does not
repeat): CIFAR-10 53.2 / 69.4 / 75.3 % at 1 / 10 / 50 images per class; CIFAR-100 about 36 / 47.5 /
50.6; Tiny-ImageNet about 20 / 24 (at 1 / 10).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from raydd.core.errors import ConfigError
from raydd.methods.method import Problem, register_method
from raydd.methods.unroll.distilled_batches import ImageTable
from raydd.methods.unroll.unroll_method import UnrollMethod


@register_method("rat_bptt")
@dataclass(frozen=True, kw_only=True)
class RatBptt(UnrollMethod):
    """Random truncated backpropagation through training; the other fields are those of :class:`UnrollMethod`.

    ``batch_per_class``: images of a class in a distilled batch (null: all ``ipc``).
    ``classes_per_batch``: classes in one (null: all). ``learn_labels``: labels are moved, too.
    ``start_norm``: L2 norm of each image of the noise that images start from.
    """

    batch_per_class: Annotated[int, Ge(1)] | None = None
    classes_per_batch: Annotated[int, Ge(1)] | None = None
    learn_labels: bool = False
    start_norm: Annotated[float, Gt(0)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse("label_lr_scale", 1.0, not self.learn_labels, "learn_labels=false")

    def batches(self, problem: Problem) -> ImageTable:
        """Return the table of images; ``ConfigError`` for batches that it cannot give."""
        present, ipc = tuple(problem.present), problem.ipc
        each = ipc if self.batch_per_class is None else self.batch_per_class
        classes = len(present) if self.classes_per_batch is None else self.classes_per_batch
        try:
            return ImageTable(
                shape=problem.dataset.shape,
                classes=problem.dataset.classes,
                learn_labels=self.learn_labels,
                present=present,
                ipc=ipc,
                batch_per_class=each,
                classes_per_batch=classes,
                start_norm=self.start_norm,
            )
        except ConfigError as error:
            raise ConfigError(f"method.{error}") from error
