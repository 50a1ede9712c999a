"""The update of distilled data by a meta-gradient: clipping by a moving average, Adam (docs/methods/rat_bptt_podd.md,
"The outer update").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.core.tensors import Tensors
from raydd.methods.unroll.distilled_batches import LABELS, PIXELS
from raydd.training.optimisers import adamw, corrections

BETAS = (0.9, 0.999)
_SMALL = 1e-6


@dataclass(frozen=True, kw_only=True)
class OuterAdam:
    """Adam on pixels and labels.

    ``lr``: of the pixels; labels move at ``lr / label_lr_scale``. ``clip_coef``: of the moving
    average of the pixels' gradient norms; a gradient longer than ``clip_multiple`` times that is
    shortened to it.
    """

    lr: float
    label_lr_scale: float = 1.0
    clip_coef: float = 0.9
    clip_multiple: float = 2.0

    def fresh(self, parameters: Tensors) -> Tensors:
        """Return the memory before the first step: ``first.*``, ``second.*``, ``count``, the average ``norm``."""
        memory: Tensors = {}
        for name, value in parameters.items():
            memory[f"first.{name}"] = torch.zeros_like(value)
            memory[f"second.{name}"] = torch.zeros_like(value)
        device = parameters[PIXELS].device
        memory["count"] = torch.zeros((), dtype=torch.int64, device=device)
        memory["norm"] = torch.zeros((), dtype=torch.float64, device=device)
        return memory

    def update(
        self, parameters: Tensors, memory: Tensors, gradients: Mapping[str, Tensor]
    ) -> tuple[Tensors, Tensors, Tensor]:
        """Return parameters and memory after a step, and the norm of the pixels' gradient before it was clipped."""
        norm = torch.linalg.vector_norm(gradients[PIXELS], dtype=torch.float64)
        average = averaged_norm(memory["norm"], norm, memory["count"] == 0, self.clip_coef)
        factor = (self.clip_multiple * average / (norm + _SMALL)).clamp(max=1.0)
        bias = corrections(BETAS, memory["count"])
        after: Tensors = {}
        kept: Tensors = {"count": memory["count"] + 1, "norm": average}
        for name, value in parameters.items():
            gradient = gradients[name]
            if name == PIXELS:
                gradient = gradient * factor.to(gradient.dtype)
            rate = self.lr / (self.label_lr_scale if name == LABELS else 1.0)
            after[name], kept[f"first.{name}"], kept[f"second.{name}"] = adamw(
                value,
                gradient,
                memory[f"first.{name}"],
                memory[f"second.{name}"],
                rate=value.new_tensor(rate),
                corrections=bias,
                betas=BETAS,
                decay=None,
            )
        return after, kept, norm


def averaged_norm(average: Tensor, norm: Tensor, first: Tensor, coef: float) -> Tensor:
    """Return the moving average of norms with the next one: the first is taken as it is."""
    return torch.where(first, norm, coef * average + (1 - coef) * norm)


def finite_mean(found: Sequence[Tensors]) -> tuple[Tensors | None, int]:
    """Return the mean of those meta-gradients (loss among them) that are finite throughout, in
    order, or ``None`` if there is none; and how many are not.
    """
    good = [one for one in found if all(bool(torch.isfinite(t).all()) for t in one.values())]
    skipped = len(found) - len(good)
    if not good:
        return None, skipped
    return {name: torch.stack([one[name] for one in good]).mean(0) for name in good[0]}, skipped
