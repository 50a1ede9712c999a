"""One update of recovery as a pure function of tensors, which a GPU repeats as one recorded graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raydd.augment.crop import Crops
from raydd.core.ahead import Ahead
from raydd.core.captured import Captured
from raydd.core.tensors import Tensors
from raydd.methods.recovery.recover_config import Matching, Priors
from raydd.methods.recovery.recover_objective import (
    Batch,
    ObservedTeacher,
    group_targets,
    recovery_losses,
)
from raydd.methods.recovery.recover_parts import gradient_in_parts

EPS = 1e-8

OF_IMAGES = ("images", "first", "second", "average")
"""What a unit's state holds of every parameter of the images."""

LOGGED = "log "
"""What the names of scalars for the log begin with."""


def cosine_rate(lr: float, t: int, iterations: int) -> float:
    """Return the learning rate of update ``t``, counted from 0."""
    return lr * 0.5 * (1 + math.cos(math.pi * t / iterations))


@dataclass(frozen=True, kw_only=True)
class Update:
    """The update of some groups against one network: ``found = update(given)``.

    ``given``: ``images``, ``first`` and ``second``, the parameters and Adam's moments;
    ``labels [G, s]``; ``rate`` and ``root``, scalars: Adam's rate and the root of its second
    correction. Where they have a part: ``rows``, ``columns`` of the views, ``kept [G, L]``,
    ``running [G, 2, W]``, ``used [G, L]``, ``targets [G, 2, W]``, ``average`` and ``more`` (added
    to the gradient) like ``images``, and ``leaked``, a vector that gains the gradient of the
    network's parameters.

    ``found``: ``images``, ``first``, ``second``, ``running``, ``used``, ``leaked`` and ``average``
    after the update, and ``log <name>``, scalars. ``classes``: the labels as numbers. ``render``: parameters
    to images; ``project``: moved parameters to those allowed. ``parts``: that every group is cut in
    for the passes through the network.
    """

    teacher: ObservedTeacher
    matching: Matching
    priors: Priors
    betas: tuple[float, float]
    classes: Sequence[Sequence[int]]
    render: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    parts: int = 1

    def __call__(self, given: Mapping[str, Tensor]) -> Tensors:
        """Return what is new, for tensors on one device."""
        parameters = given["images"].detach().requires_grad_(True)
        labels, kept, used = given["labels"], given.get("kept"), given.get("used")
        batch = Batch(
            images=self.render(parameters),
            labels=labels,
            classes=self.classes,
            crops=Crops(given["rows"], given["columns"]) if "rows" in given else None,
            kept=kept,
            average=self.render(given["average"]) if "average" in given else None,
        )
        running = given.get(
            "running", torch.zeros(len(labels), 2, self.teacher.width, device=labels.device)
        )
        targets = given["targets"] if "targets" in given else group_targets(self.teacher, labels)
        leaking = tuple(self.teacher.tap.network.parameters()) if "leaked" in given else ()
        of = (self.teacher, batch, running, targets, self.matching, self.priors, used)
        if self.parts > 1:
            (gradient, *others), losses = gradient_in_parts(*of, (parameters, *leaking), self.parts)
        else:
            losses = recovery_losses(*of)
            gradient, *others = torch.autograd.grad(
                losses.total.sum(), (parameters, *leaking), materialize_grads=True
            )
        if "more" in given:
            gradient = gradient + given["more"]
        found = self._adam(given, gradient)
        if leaking:
            found["leaked"] = given["leaked"] + torch.cat([other.flatten() for other in others])
        found |= {
            f"{LOGGED}{name}": value
            for name, value in {"loss": losses.total.detach().mean(), **losses.terms}.items()
        }
        if "running" in given:
            found["running"] = losses.running
        if used is not None:
            found["used"] = used | (True if kept is None else kept)
        if "average" in given:
            alpha = self.priors.flatness_alpha
            found["average"] = alpha * given["average"] + (1 - alpha) * parameters.detach()
        return found

    def _adam(self, given: Mapping[str, Tensor], gradient: Tensor) -> Tensors:
        """Return the moved parameters and both moments."""
        beta1, beta2 = self.betas
        first = torch.lerp(given["first"], gradient, 1 - beta1)
        second = beta2 * given["second"]
        second.add_(((1 - beta2) * gradient).mul_(gradient))
        # In place, as a large batch's images are much of what an update in parts needs.
        step = (given["rate"] * first).div_(second.sqrt().div_(given["root"]).add_(EPS))
        moved = self.project(step.neg_().add_(given["images"]))
        return {"images": moved, "first": first, "second": second}


class Recorded:
    """An update whose tensors have names, recorded on a GPU.

    Data densification waits for the device, which checks the eigenvalues it found: such an update is not recorded.
    """

    def __init__(self, update: Update, device: torch.device) -> None:
        self.update, self.device = update, device
        self._given: tuple[str, ...] = ()
        self._found: tuple[str, ...] = ()
        self._captured = None if update.priors.dd_weight else Captured(self._call, device)

    def __call__(self, given: Mapping[str, Tensor]) -> Tensors:
        """Return what the update finds; tensors may be on the CPU, in pinned memory."""
        if self._captured is None:
            return self.once(given)
        self._given = tuple(given)
        values = self._captured(
            *given.values()
        )  # the names that it finds are those of the call that was recorded
        return dict(zip(self._found, values, strict=True))

    def once(self, given: Mapping[str, Tensor]) -> Tensors:
        """Return what an update finds that is not recorded."""
        return self.update(
            {name: value.to(self.device, non_blocking=True) for name, value in given.items()}
        )

    def _call(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = self.update(dict(zip(self._given, tensors, strict=True)))
        self._found = tuple(found)
        return tuple(found.values())


@dataclass
class UnitUpdates:
    """What a unit's updates share: labels of each group on the device, bounds of the pixels, draws,
    the updates of one turn.
    """

    labels: list[Tensor]
    low: Tensor
    high: Tensor
    draws: Ahead[Tensors]
    turn: slice = field(default_factory=lambda: slice(0))
    updates: dict[int, Recorded] = field(default_factory=dict)

    def update(self, turn: slice, k: int, make: Callable[[], Recorded]) -> Recorded:
        """Return the update against network ``k``, made once in each turn."""
        if turn != self.turn:
            self.turn, self.updates = turn, {}
        if k not in self.updates:
            self.updates[k] = make()
        return self.updates[k]


def with_rows(whole: Tensor, rows: slice, values: Tensor) -> Tensor:
    """Return ``whole`` with some of its rows replaced."""
    if len(values) == len(whole):
        return values
    out = whole.clone()
    out[rows] = values
    return out
