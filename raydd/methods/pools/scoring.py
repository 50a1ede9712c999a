"""How sure teachers are of images: the cross-entropy that chooses patches
(docs/methods/rded.md, "Choosing crops"; docs/methods/recovery.md, "Start images").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.core.errors import NumericsError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Ref, Stage
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import normalise
from raydd.networks.fast import fast_forward
from raydd.training.backbones import Backbone
from raydd.training.training_cost import network_facts

Teacher = Callable[[Tensor], Tensor]
BATCH = 250
"""Images in one forward pass; part of what a score is, so it is never changed without the stages' version."""


def class_losses(teachers: Sequence[Teacher], images: Tensor, labels: Tensor) -> Tensor:
    """Return float32 ``[N]``: the cross-entropy at ``labels [N]`` of the mean of the teachers' logits; lower is surer.

    ``images``: normalised, ``[N, C, H, W]``. ``NumericsError`` if one is not finite.
    """
    with torch.no_grad():
        logits = torch.stack([teacher(images).float() for teacher in teachers]).mean(0)
        losses = F.cross_entropy(logits, labels.to(logits.device), reduction="none")
    if not bool(torch.isfinite(losses).all()):
        raise NumericsError(
            "a teacher that judges images gives NaN or infinity: its training diverged, or its weights are broken"
        )
    return losses


def teacher_inputs(backbones: Sequence[Backbone]) -> dict[str, Ref]:
    """Return the outputs that the teachers' weights are read from."""
    return {
        name: ref
        for i, backbone in enumerate(backbones)
        for name, ref in backbone.inputs(f"teacher-{i}").items()
    }


def load_teachers(backbones: Sequence[Backbone], stage: Stage, ctx: Context) -> list[Teacher]:
    """Return the teachers' forwards, on the context's device."""
    networks = [backbone.load(ctx, f"teacher-{i}") for i, backbone in enumerate(backbones)]
    return [fast_forward(network, stage.numerics) for network in networks]


def forward_cost(backbones: Sequence[Backbone], images: int) -> Cost:
    """Return the cost of one forward pass of ``images`` through every teacher."""
    facts = [network_facts(b.network, b.dataset.shape, b.dataset.classes) for b in backbones]
    weights = sum(4 * f.parameters for f in facts)
    return Cost(
        flop=images * sum(f.flop for f in facts),
        peak_bytes=weights + 4 * BATCH * max(f.alive for f in facts),
    )


@dataclass(frozen=True, kw_only=True)
class ScoreImages(Stage):
    """The loss of every training image under the teachers' mean logits; a unit is a fixed slice of the training set.

    Output: ``scores`` float32, in the order of the slice; all slices in order are the whole set.
    """

    phase: ClassVar[str] = "init"

    dataset: DatasetInfo
    backbones: tuple[Backbone, ...]
    slices: int = 64

    def units(self) -> Sequence[str]:
        """Return the names of the slices."""
        return tuple(f"slice-{i:03d}" for i in range(self.slices))

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the teachers' weights."""
        return teacher_inputs(self.backbones)

    def steps(self, unit: str) -> int:
        """Return 0: a slice is one pass."""
        return 0

    def cost(self, unit: str) -> Cost:
        """Return the cost of a slice's forward passes."""
        images = -(-sum(self.dataset.train_counts) // self.slices)
        once = forward_cost(self.backbones, images)
        return Cost(flop=once.flop, peak_bytes=once.peak_bytes, output_bytes=4 * images)

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the slice's scores."""
        teachers, info = load_teachers(self.backbones, self, ctx), self.dataset
        scores = [torch.zeros(0)]
        for images, labels in ctx.data["train"].stream(self.units().index(unit), self.slices):
            scores.append(
                class_losses(
                    teachers, normalise(images.to(ctx.device), info.mean, info.std), labels
                ).cpu()
            )
        return {"scores": torch.cat(scores)}
