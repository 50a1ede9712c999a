"""Random selection: real images drawn uniformly from each class, the baseline of every method.

Worked out in docs/methods/coresets.md, "Random".

Also what the two other selections share: stages whose units are blocks of classes and whose output is real images.

Published (ConvNet, no DSA in evaluation, as quoted by later papers): CIFAR-10 14.4 / 26.0 / 43.4 %
at 1 / 10 / 50 images per class; CIFAR-100 4.2 / 14.6 / 30.0; Fashion-MNIST 51.4 / 73.8 / 82.5.
Draws of one image per class differ by about 4 points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import DataError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Stage
from raydd.methods.method import ClassBlocks, Method, Problem, check_counts, register_method


@dataclass(frozen=True, kw_only=True)
class SelectImages(ClassBlocks):
    """Choose ``ipc`` real images of each class; a unit is a block of classes, done at once.

    Output: ``images`` uint8 ``[K * ipc, C, H, W]`` and ``ids``, their indices in the training
    split, class by class in the order of choice. ``DataError`` for a class with fewer images.
    """

    phase: ClassVar[str] = "init"

    ipc: int

    def cost(self, unit: str) -> Cost:
        """Return the bytes of the block's images, chosen and read."""
        info, block = self.dataset, self.blocks[unit]
        pixels = info.channels * info.height * info.width
        chosen = len(block) * self.ipc * pixels
        return Cost(peak_bytes=2 * chosen, output_bytes=chosen)

    def steps(self, unit: str) -> int:
        """Return 0: there is nothing to iterate."""
        return 0

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the chosen images and their ids."""
        data = ctx.data["train"]
        ids = torch.cat([self._of_class(c, ctx) for c in self.blocks[unit]])
        return {"images": data.take(ids), "ids": ids}

    def _of_class(self, label: int, ctx: Context) -> Tensor:
        members = (ctx.data["train"].labels == label).nonzero().reshape(-1)
        if len(members) < self.ipc:
            raise DataError(
                f"ipc={self.ipc}: class {label} has only {len(members)} training images to choose from"
            )
        return members[self.choose(label, members, ctx)]

    def choose(self, label: int, members: Tensor, ctx: Context) -> Tensor:
        """Return ``ipc`` positions among a class's ``members`` (indices in the split), in the order of choice."""
        raise TypeError(f"{type(self).__name__} does not define choose()")


@dataclass(frozen=True, kw_only=True)
class DrawImages(SelectImages):
    """The first ``ipc`` of one keyed permutation per class: a set of more images holds those of fewer."""

    def choose(self, label: int, members: Tensor, ctx: Context) -> Tensor:
        """Return the draw of a class."""
        return torch.randperm(len(members), generator=ctx.rng("random", label))[: self.ipc]


def assemble_images(problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
    """Return the blocks' real images, as pixels, in class order with hard labels."""
    images = torch.cat([outputs[unit]["images"] for unit in sorted(outputs)])
    labels = torch.arange(problem.dataset.classes).repeat_interleave(problem.ipc)
    ids = torch.cat([outputs[unit]["ids"] for unit in sorted(outputs)])
    return DistilledSet(
        images=images, labels=labels, info=problem.dataset, recipe={"source_ids": ids.tolist()}
    )


@register_method("random")
@dataclass(frozen=True, kw_only=True)
class RandomSelection(Method):
    """Random real images. ``classes_per_unit``: classes that one worker draws together."""

    drawn_at_random: ClassVar[bool] = True
    value_bytes: ClassVar[int] = 1

    classes_per_unit: Annotated[int, Ge(1)] = 100

    def plan(self, problem: Problem) -> list[Stage]:
        """Return one stage; ``ConfigError`` if a class has too few images."""
        check_counts(problem.dataset, problem.ipc)
        return [
            DrawImages(
                seed=problem.seed,
                dataset=problem.dataset.only("train"),
                ipc=problem.ipc,
                classes_per_unit=self.classes_per_unit,
            )
        ]

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the drawn images."""
        return assemble_images(problem, outputs)
