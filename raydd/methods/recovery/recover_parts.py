"""The gradient of recovery's loss, computed part by part of every group, so that memory follows the part
(docs/methods/recovery.md, "Parts of a batch").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.losses.priors import flatness
from raydd.methods.recovery.recover_config import Matching, Priors
from raydd.methods.recovery.recover_objective import (
    Batch,
    Losses,
    ObservedTeacher,
    matched_statistics,
    with_pictures,
)


def parts_of(size: int, parts: int) -> Iterator[tuple[float, slice]]:
    """Yield the parts of a group of ``size`` images, as equal as can be: their share of the images,
    and their places.
    """
    ends = [size * p // parts for p in range(parts + 1)]
    for start, stop in pairwise(ends):
        if stop > start:
            yield (stop - start) / size, slice(start, stop)


Seen = tuple[Tensor, Tensor]
"""Logits ``[G * n, C]`` and statistics ``[G, 2, W]`` of a part of ``n`` images of each group."""


@dataclass(frozen=True)
class Parts:
    """Groups of images that go through a network part by part: every part holds the same places of all groups.

    ``count``: the parts. ``batch.images`` are taken as they are, without what they were made of.
    """

    teacher: ObservedTeacher
    batch: Batch
    count: int

    @property
    def groups(self) -> int:
        """Groups of the batch."""
        return len(self.batch.labels)

    def shares(self) -> list[tuple[float, slice]]:
        """Return the parts as :func:`parts_of` does."""
        return list(parts_of(self.batch.labels.shape[1], self.count))

    def images(self, images: Tensor, at: slice) -> Tensor:
        """Return the images in some places, ``[G * n, C, H, W]`` of ``[G * s, C, H, W]``."""
        return images.detach().unflatten(0, (self.groups, -1))[:, at].flatten(0, 1)

    def look(self, images: Tensor) -> Seen:
        """Return what the network makes of a part's images."""
        return self.teacher.tap(self.batch.seen(images), self.groups)

    @torch.no_grad()
    def statistics(self, at: slice) -> Tensor:
        """Return a part's statistics ``[G, 2, W]``, without a graph."""
        return self.look(self.images(self.batch.images, at))[1]

    def loss(
        self, share: float, at: slice, seen: Seen, mean: Tensor, pull: Tensor, priors: Priors
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what has the gradient of a part's share of the groups' losses ``[G]``, and its terms.

        ``mean``: the groups' means ``[G, W]``. ``pull``: the loss's derivative by their statistics ``[G, 2, W]``.
        """
        batch, groups, (logits, own) = self.batch, self.groups, seen
        entropy = cross_entropy(logits, batch.labels[:, at].flatten(), reduction="none")
        part = share * entropy.unflatten(0, (groups, -1)).mean(1)
        terms = {"ce": part.detach()}
        if priors.flatness_weight:
            assert batch.average is not None
            with torch.no_grad():
                past = self.teacher.tap.network(batch.seen(self.images(batch.average, at)))
            now, before = (x.unflatten(0, (groups, -1)) for x in (logits, past))
            flat = share * flatness(now, before, priors.flatness_tau)
            terms["flatness"] = flat.detach()
            part = part + priors.flatness_weight * flat
        # The mean's part of a variance's derivative cancels over the group, so ``mean`` is a constant.
        spread = own[:, 1] + (own[:, 0] - mean) ** 2
        return part + share * (pull[:, 0] * own[:, 0] + pull[:, 1] * spread).sum(-1), terms


def gradient_in_parts(
    teacher: ObservedTeacher,
    batch: Batch,
    running: Tensor,
    targets: Tensor | None,
    matching: Matching,
    priors: Priors,
    used: Tensor | None,
    wanted: Sequence[Tensor],
    parts: int,
) -> tuple[list[Tensor], Losses]:
    """Return the gradients of the groups' summed losses, and the losses, as
    :func:`~raydd.methods.recovery.recover_objective.recovery_losses` defines them.

    ``wanted``: what the batch's images are made of, and then parameters of the network. Two passes:
    the first takes the parts' statistics without a graph, the second sends the loss's derivative by
    the whole groups' statistics back through each part. Networks are in eval mode, so nothing else
    joins parts. The last part's graph is kept between the passes, which saves it a second forward pass.
    """
    cut, (parameters, *weights) = Parts(teacher, batch, parts), wanted
    *early, last = cut.shares()
    found = [cut.statistics(at) for _, at in early]
    kept = cut.images(batch.images, last[1]).requires_grad_(True)
    seen = cut.look(kept)
    found.append(seen[1].detach())
    shares = [share for share, _ in (*early, last)]
    mean = _sum(share * own[:, 0] for share, own in zip(shares, found, strict=True))
    variance = _sum(
        share * (own[:, 1] + (own[:, 0] - mean) ** 2)
        for share, own in zip(shares, found, strict=True)
    )
    whole = torch.stack([mean, variance], 1).requires_grad_(True)
    matched, moved = matched_statistics(whole, running, teacher, batch, targets, matching, used)
    (pull,) = torch.autograd.grad(matching.r_loss * matched.sum(), whole)
    terms: dict[str, Tensor] = {"match": matched.detach()}
    of_images = torch.zeros_like(batch.images).unflatten(0, (cut.groups, -1))
    of_weights = [torch.zeros_like(tensor) for tensor in weights]

    def send_back(share: float, at: slice, images: Tensor, seen: Seen) -> None:
        loss, own = cut.loss(share, at, seen, mean, pull, priors)
        of_part, *others = torch.autograd.grad(
            loss.sum(), (images, *weights), materialize_grads=True
        )
        of_images[:, at] = of_part.unflatten(0, (cut.groups, -1))
        for gradient, other in zip(of_weights, others, strict=True):
            gradient.add_(other)
        for name, value in own.items():
            terms[name] = terms[name] + value if name in terms else value

    send_back(*last, kept, seen)
    del kept, seen
    for share, at in early:
        images = cut.images(batch.images, at).requires_grad_(True)
        send_back(share, at, images, cut.look(images))
    total = terms["ce"] + matching.r_loss * terms["match"]
    if priors.flatness_weight:
        total = total + priors.flatness_weight * terms["flatness"]
    outputs, gradients = [batch.images], [of_images.flatten(0, 1)]
    if priors.of_pictures:
        on_pictures = torch.zeros_like(total)
        on_pictures = with_pictures(on_pictures, batch.seen(batch.images), batch, priors, terms)
        outputs.append(on_pictures)
        gradients.append(torch.ones_like(on_pictures))
        total = total + on_pictures.detach()
    (of_parameters,) = torch.autograd.grad(outputs, parameters, gradients)
    return [of_parameters, *of_weights], Losses(
        total, {name: value.detach().mean() for name, value in terms.items()}, moved
    )


def _sum(tensors: Iterator[Tensor]) -> Tensor:
    """Return the sum, added in order."""
    total = next(tensors)
    for tensor in tensors:
        total = total + tensor
    return total
