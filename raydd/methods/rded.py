"""RDED: tiled crops of real images, nothing optimised (Sun et al., CVPR 2024, arXiv 2312.03526).

Of each of 300 random images of a class, the best of five random square crops is kept, best meaning the lowest

    - log softmax(teacher(crop))_class

and of those the ``factor^2 * ipc`` best are put together, ``factor`` x ``factor`` to an image, each
image from the whole range of ranks. Students learn the teacher's labels of the views they see (KL
divergence at temperature 20, mixed by CutMix). Worked out in docs/methods/rded.md, "Choosing crops", "Tiling" and
"Students".

Published (ResNet-18 teaching ResNet-18): ImageNet-1k 6.6 / 42.0 / 56.5 % at 1 / 10 / 50 images per
class; ImageNet-10 24.9 / 53.3 / 75.5; Tiny-ImageNet 9.7 / 41.9 / 58.2; CIFAR-100 11.0 / 42.6 /
62.6; CIFAR-10 22.9 / 37.1 / 62.1 (the best of several test epochs, and as quoted by EDC).
ImageNet-1k at 10 takes seven minutes on one RTX 4090.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge

from raydd.artifacts.codec import ImageFormat
from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.storage import join
from raydd.core.tensors import Tensors
from raydd.core.units import Ref, Stage, unkeyed
from raydd.labels.label_config import LabelConfig
from raydd.methods.method import Method, Problem, register_method
from raydd.methods.pools.patches import RdedPool, check_rded
from raydd.training.backbones import Backbone, keep_trained, training_stages
from raydd.training.teacher_config import TeacherConfig


@register_method("rded")
@dataclass(frozen=True, kw_only=True)
class Rded(Method):
    """Tiles of the crops that a teacher is surest of.

    ``teacher``: the network that judges crops and labels the students' images; ``teachers``: where
    its weights come from. ``network``: the architecture of the students. ``factor``: crops along a
    side of an image (published for CIFAR and Tiny-ImageNet: 1). ``candidates``: random images per
    class that are cut, fewer where a class has fewer. ``num_crop``: crops of each image.
    ``image_format``: ``jpeg75`` (published) or ``png``. ``labels``: of the students' views;
    published for another ``factor`` f: ``shuffle: f`` and ``crop: [1/f, 1]``; published batches at
    1 / 10 / 50 images per class: 10 / 50 / 100, for 100 and 1000 classes twice that, for
    Tiny-ImageNet always 100. ``classes_per_unit``: classes that one
    worker makes together.
    """

    protocol: ClassVar[str] = "rded"

    soft_labels: ClassVar[bool] = True
    value_bytes: ClassVar[int] = 1

    teacher: str = "resnet18"
    teachers: TeacherConfig = field(default_factory=partial(TeacherConfig, weights="torchvision"))
    network: str = unkeyed(default="resnet18")
    factor: Annotated[int, Ge(1)] = 2
    candidates: Annotated[int, Ge(1)] = 300
    num_crop: Annotated[int, Ge(1)] = 5
    image_format: ImageFormat = "jpeg75"
    labels: LabelConfig = field(
        default_factory=partial(LabelConfig, shuffle=2, codec="online"), metadata={"key": False}
    )
    classes_per_unit: Annotated[int, Ge(1)] = 10

    @property
    def student_network(self) -> str:
        """The network that students have by default."""
        return self.network

    @property
    def label_config(self) -> LabelConfig:
        """How the set's soft labels are made."""
        return self.labels

    def label_teachers(self, problem: Problem) -> tuple[Backbone, ...]:
        """Return the teacher, who also labels."""
        return tuple(self.teachers.backbones((self.teacher,), problem))

    def fetch(self) -> None:
        """Download the teacher's published weights, if ``teachers.download`` says so."""
        self.teachers.fetch((self.teacher,))

    def missing_teachers(self, problem: Problem) -> list[str]:
        """Return a line for the teacher's file of weights if it is not there or does not fit."""
        return list(self.teachers.missing((self.teacher,), problem.dataset))

    def missing(self, problem: Problem) -> list[str]:
        """Return the same: nothing else is read."""
        return self.missing_teachers(problem)

    def plan(self, problem: Problem) -> list[Stage]:
        """Return the teacher's training, if it is trained here, and the choice of crops;
        ``ConfigError`` if there are too few.
        """
        info = problem.dataset
        check_rded(info, problem.ipc, self.factor, self.candidates)
        backbones = self.label_teachers(problem)
        pool = RdedPool(
            seed=problem.seed,
            numerics=problem.numerics.plain,
            dataset=info.only("train"),
            pool=problem.ipc,
            classes_per_unit=min(self.classes_per_unit, info.classes),
            backbones=backbones,
            factor=self.factor,
            candidates=self.candidates,
            num_crop=self.num_crop,
            image_format=self.image_format,
        )
        return [*training_stages(backbones), pool]

    def keep(self, problem: Problem, load: Callable[[Ref], Tensors], url: str) -> dict[str, str]:
        """Write the teacher that was trained here, for ``teachers.weights`` of other jobs."""
        folder = join(url, "teachers")
        return (
            {"teachers": folder} if keep_trained(self.label_teachers(problem), load, folder) else {}
        )

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the tiled images, as pixels, in class order with hard labels."""
        units = sorted(outputs)
        images, labels = (
            torch.cat([outputs[unit][name] for unit in units]) for name in ("images", "labels")
        )
        return DistilledSet(images=images, labels=labels, info=problem.dataset)
