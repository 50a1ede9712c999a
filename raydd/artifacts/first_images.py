"""The first images of each class of a larger set, as a set of their own: so DWA, INFER, RDED and SRe2L judge
smaller sets (docs/sets.md, "The first images of each class").
"""

from __future__ import annotations

from dataclasses import replace

import torch

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError


def first_images(distilled: DistilledSet, ipc: int, where: str) -> DistilledSet:
    """Return the first ``ipc`` stored images of each class, in the order in which they are stored.

    ``ConfigError``, naming the set as ``where``, for a class with fewer, and for a set whose images
    do not belong to a class each.
    """
    if distilled.extra or distilled.decoding.name == "windows":
        raise ConfigError(f"ipc={ipc}: {where} is one poster, whose windows are of no class each")
    held = {label: count for label, count in enumerate(distilled.ipc) if count}
    short = min(held, key=held.__getitem__)
    if held[short] < ipc:
        raise ConfigError(
            f"ipc={ipc}: class {short} has {held[short]} images in {where}; allowed: 1 to {held[short]}"
        )
    kept = [(distilled.labels == label).nonzero().flatten()[:ipc] for label in held]
    ids = torch.cat(kept).sort().values
    soft = distilled.soft_labels
    return replace(
        distilled,
        images=distilled.images[ids],
        labels=distilled.labels[ids],
        soft_labels=None if soft is None else soft[ids],
        recipe={**distilled.recipe, "ipc": ipc},
    )
