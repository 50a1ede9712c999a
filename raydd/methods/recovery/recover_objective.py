"""The loss of recovery for one or several groups, packed in one batch: cross-entropy, statistics, priors.

Networks are in eval mode, so groups meet only in their statistics, which are taken per group: the
sum of the groups' losses has the gradients of each group alone
(docs/methods/recovery.md, "Groups").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from raydd.augment.crop import Crops
from raydd.core.rng import generator
from raydd.losses.priors import density, flatness, image_norm, total_variation
from raydd.losses.statistics_matching import Layout, class_targets, matching_loss
from raydd.methods.recovery.recover_config import Matching, Priors
from raydd.networks import create_network
from raydd.networks.network import Shape
from raydd.networks.taps import KINDS, StatTap
from raydd.training.statistics_tables import observe


@lru_cache(maxsize=256)
def tap_layout(
    network: str,
    shape: Shape,
    classes: int,
    patch: int,
    kinds: tuple[str, ...],
    skip_silent: tuple[str, ...] = (),
) -> Layout:
    """Return which statistics of a network are matched; ``ConfigError`` if it has no layer of these kinds."""
    if set(kinds) == set(
        KINDS
    ):  # what tables of statistics hold: the network is built and run once for both
        return observe(network, shape, classes, patch).layout
    with StatTap(
        create_network(network, shape, classes, generator(0, "facts")),
        patch,
        kinds,
        shape,
        skip_silent,
    ) as tap:
        return tap.layout


@dataclass
class ObservedTeacher:
    """A network that images are matched to, observed by ``tap``.

    ``overall``: statistics of the data set, ``[2, W]``; ``table``: those of each class,
    ``[C, 2, W]``; ``None`` where they have no weight.
    """

    tap: StatTap
    overall: Tensor | None
    table: Tensor | None

    @property
    def width(self) -> int:
        """Columns of the statistics."""
        return self.tap.layout.width


@dataclass(frozen=True)
class Batch:
    """What one update sees: ``images [G * s, C, H, W]`` with gradient, ``average`` ones or ``None``, ``labels [G, s]``.

    ``classes``: the labels as numbers. ``crops``: the groups' views, ``None`` where they are the
    images. ``kept``: ``[G, L]``, false for layers left out.
    """

    images: Tensor
    labels: Tensor
    classes: Sequence[Sequence[int]]
    crops: Crops | None
    kept: Tensor | None = None
    average: Tensor | None = None

    def seen(self, images: Tensor) -> Tensor:
        """Return the views of images."""
        return images if self.crops is None else self.crops.apply(images)


@dataclass(frozen=True)
class Losses:
    """One value per group ``[G]``: the whole loss, and its terms for the log; the running statistics after it."""

    total: Tensor
    terms: dict[str, Tensor]
    running: Tensor


def matched_statistics(
    values: Tensor,
    running: Tensor,
    teacher: ObservedTeacher,
    batch: Batch,
    targets: Tensor | None,
    matching: Matching,
    used: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the distances ``[G]`` of the groups' observed statistics ``values`` ``[G, 2, W]``, and the
    running ones after them; the other arguments: :func:`recovery_losses`.
    """
    layout = teacher.tap.layout
    if used is not None:
        known = used[:, layout.layer_of(values.device)].unsqueeze(1)
        running = torch.where(known, running, values.detach())
    return matching_loss(
        values,
        running,
        layout,
        overall=teacher.overall,
        classes=targets,
        class_weight=matching.class_weight,
        momentum=matching.momentum,
        first_multiplier=matching.first_multiplier,
        kept=batch.kept,
        variance_weight=matching.variance_weight,
    )


def recovery_losses(
    teacher: ObservedTeacher,
    batch: Batch,
    running: Tensor,
    targets: Tensor | None,
    matching: Matching,
    priors: Priors,
    used: Tensor | None = None,
) -> Losses:
    """Return the groups' losses against one network.

    ``running``: ``[G, 2, W]``. ``targets``: the groups' class statistics ``[G, 2, W]``, or
    ``None``. ``used``: ``[G, L]``, false for layers whose running statistics are to start at this
    batch's; ``None`` if none are.
    """
    groups, size = batch.labels.shape
    seen = batch.seen(batch.images)
    logits, values = teacher.tap(seen, groups)
    entropy = (
        torch.nn.functional.cross_entropy(logits, batch.labels.flatten(), reduction="none")
        .view(groups, size)
        .mean(1)
    )
    matched, moved = matched_statistics(values, running, teacher, batch, targets, matching, used)
    terms = {"ce": entropy, "match": matched}
    total = entropy + matching.r_loss * matched
    total = with_pictures(total, seen, batch, priors, terms)
    if priors.flatness_weight:
        assert batch.average is not None
        with torch.no_grad():  # the network itself: nothing is observed, so running statistics stay
            past = teacher.tap.network(batch.seen(batch.average))
        terms["flatness"] = flatness(
            logits.unflatten(0, (groups, size)),
            past.unflatten(0, (groups, size)),
            priors.flatness_tau,
        )
        total = total + priors.flatness_weight * terms["flatness"]
    return Losses(total, {name: value.detach().mean() for name, value in terms.items()}, moved)


def with_pictures(
    total: Tensor, seen: Tensor, batch: Batch, priors: Priors, terms: dict[str, Tensor]
) -> Tensor:
    """Return the losses ``total [G]`` with the priors that need the views ``seen`` alone, and no
    network, added; ``terms`` gains them.
    """
    pictures = seen.unflatten(0, batch.labels.shape)
    if priors.tv:
        terms["tv"] = total_variation(pictures)
        total = total + priors.tv * terms["tv"]
    if priors.l2:
        terms["l2"] = image_norm(pictures)
        total = total + priors.l2 * terms["l2"]
    if priors.dd_weight:
        each = zip(pictures, batch.classes, strict=True)
        terms["dd"] = torch.stack([density(own, classes, priors.dd_tau) for own, classes in each])
        total = total + priors.dd_weight * terms["dd"]
    return total


def group_targets(teacher: ObservedTeacher, labels: Tensor) -> Tensor | None:
    """Return the groups' class statistics ``[G, 2, W]`` for labels ``[G, s]``; ``None`` where
    classes have no weight.
    """
    return None if teacher.table is None else class_targets(teacher.table, labels)


@torch.no_grad()
def batch_statistics(taps: Sequence[StatTap], parts: Iterable[Tensor]) -> list[Tensor]:
    """Return ``[2, W]`` for each network: the statistics of one batch that comes in parts,
    variances between them included.
    """
    count, sums = 0, [torch.zeros(2, tap.layout.width, dtype=torch.float64) for tap in taps]
    for images in parts:
        count += len(images)
        for tap, total in zip(taps, sums, strict=True):
            mean, variance = tap(images)[1][0].double().cpu()
            total += len(images) * torch.stack([mean, variance + mean**2])
    means = [total / count for total in sums]
    return [
        torch.stack([mean, square - mean**2]).clamp_min(torch.tensor([[-torch.inf], [0.0]])).float()
        for mean, square in means
    ]
