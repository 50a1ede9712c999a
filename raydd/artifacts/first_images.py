"""The first images of each class of a larger set, as a set of their own: so DWA, INFER, RDED and SRe2L judge
smaller sets (docs/sets.md, "The first images of each class").
"""

from __future__ import annotations

from dataclasses import replace

import torch

from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.generated import Generated
from raydd.artifacts.offsets import OFFSETS, Offsets
from raydd.core.errors import ConfigError


def first_images(distilled: DistilledSet, ipc: int, where: str) -> DistilledSet:
    """Return the first ``ipc`` stored images of each class, in the order in which they are stored; of
    images with offsets as many as a budget of ``ipc`` has room for with their offsets.

    ``ConfigError``, naming the set as ``where``, for a class with fewer, and for a set whose images
    do not belong to a class each.
    """
    if isinstance(distilled.decoder, Offsets):
        return _first_slices(distilled, distilled.decoder, ipc, where)
    latents = isinstance(distilled.decoder, Generated)
    if distilled.decoding.name == "windows" or (distilled.extra and not latents):
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


def _first_slices(distilled: DistilledSet, decoder: Offsets, ipc: int, where: str) -> DistilledSet:
    tensors = distilled.decoded
    slices, held = decoder.within(tensors, ipc), tensors[OFFSETS].shape[1]
    if not 1 <= slices <= held:
        raise ConfigError(
            f"ipc={ipc} has room for {slices} images of each class with {len(tensors[OFFSETS])} offsets for each;"
            f" allowed: 1 to {held}, which {where} has"
        )
    kept = decoder.first(tensors, slices)
    return replace(
        distilled,
        images=kept["images"],
        labels=kept["labels"],
        soft_labels=kept.get("soft_labels"),
        extra={OFFSETS: kept[OFFSETS]},
        recipe={**distilled.recipe, "ipc": ipc},
    )
