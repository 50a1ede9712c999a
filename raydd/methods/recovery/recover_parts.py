"""The gradient of recovery's loss, computed part by part of every group, so that memory follows the part
(docs/methods/recovery.md, "Parts of a batch").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Return the gradients of the groups' summed losses for ``wanted``, and the losses, as
    :func:`~raydd.methods.recovery.recover_objective.recovery_losses` defines them.

    Two passes: the first takes the parts' statistics without a graph, the second sends the loss's
    derivative by the whole groups' statistics back through each part. Networks are in eval mode, so
    nothing else joins parts.
    """
    groups, size = batch.labels.shape
    images = batch.images.unflatten(0, (groups, size))
    shares = list(parts_of(size, parts))
    with torch.no_grad():
        found = [
            teacher.tap(batch.seen(images[:, at].flatten(0, 1)), groups)[1] for _, at in shares
        ]
    mean = _sum(share * own[:, 0] for (share, _), own in zip(shares, found, strict=True))
    variance = _sum(
        share * (own[:, 1] + (own[:, 0] - mean) ** 2)
        for (share, _), own in zip(shares, found, strict=True)
    )
    whole = torch.stack([mean, variance], 1).requires_grad_(True)
    matched, moved = matched_statistics(whole, running, teacher, batch, targets, matching, used)
    (pull,) = torch.autograd.grad(matching.r_loss * matched.sum(), whole)
    terms: dict[str, Tensor] = {"ce": matched.new_zeros(groups), "match": matched.detach()}
    total = matching.r_loss * matched.detach()
    gradients = [torch.zeros_like(tensor) for tensor in wanted]
    # The mean's part of a variance's derivative cancels over the group, so ``mean`` is a constant below.

    def add(loss: Tensor) -> None:
        each = torch.autograd.grad(loss.sum(), wanted, retain_graph=True, materialize_grads=True)
        for gradient, own in zip(gradients, each, strict=True):
            gradient.add_(own)

    def one(share: float, at: slice) -> Tensor:
        """Send one part back; what it keeps is given up on return."""
        logits, own = teacher.tap(batch.seen(images[:, at].flatten(0, 1)), groups)
        entropy = cross_entropy(logits, batch.labels[:, at].flatten(), reduction="none")
        part = share * entropy.unflatten(0, (groups, -1)).mean(1)
        terms["ce"] = terms["ce"] + part.detach()
        if priors.flatness_weight:
            assert batch.average is not None
            average = batch.average.unflatten(0, (groups, size))[:, at].flatten(0, 1)
            with torch.no_grad():
                past = teacher.tap.network(batch.seen(average))
            now, before = (x.unflatten(0, (groups, -1)) for x in (logits, past))
            flat = share * flatness(now, before, priors.flatness_tau)
            terms["flatness"] = terms.get("flatness", torch.zeros_like(flat)) + flat.detach()
            part = part + priors.flatness_weight * flat
        spread = own[:, 1] + (own[:, 0] - mean) ** 2
        add(part + share * (pull[:, 0] * own[:, 0] + pull[:, 1] * spread).sum(-1))
        return part.detach()

    for share, at in shares:
        total = total + one(share, at)
    if priors.of_pictures:
        on_pictures = torch.zeros_like(total)
        on_pictures = with_pictures(on_pictures, batch.seen(batch.images), batch, priors, terms)
        add(on_pictures)
        total = total + on_pictures.detach()
    return gradients, Losses(
        total, {name: value.detach().mean() for name, value in terms.items()}, moved
    )


def _sum(tensors: Iterator[Tensor]) -> Tensor:
    """Return the sum, added in order."""
    total = next(tensors)
    for tensor in tensors:
        total = total + tensor
    return total
