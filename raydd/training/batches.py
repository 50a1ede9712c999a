"""Trainings that would put a single value into a batch norm, refused before anything starts.

A batch norm divides by the deviation of a channel over images and pixels. Where its maps are of one
pixel, a batch of one image has one value per channel, and torch refuses to train on it: so ends an
epoch of 257 images in batches of 256.
"""

from __future__ import annotations

from collections.abc import Iterable

from raydd.core.errors import ConfigError
from raydd.networks.network import Shape
from raydd.training.recipe import Recipe
from raydd.training.training_cost import network_facts


def sizes(images: int, batch: int, piece: int | None = None) -> set[int]:
    """Return how many images go through a network at once in an epoch of ``images`` in batches, or
    in pieces of these.
    """
    whole, last = divmod(images, batch)
    found = set()
    for size in ({batch} if whole else set()) | ({last} if last else set()):
        pieces, rest = divmod(size, piece or batch)
        found |= ({piece or batch} if pieces else set()) | ({rest} if rest else set())
    return found


def check_batches(
    network: str,
    shape: Shape,
    classes: int,
    counts: Iterable[int],
    recipe: Recipe,
    key: str,
    where: str = "",
) -> None:
    """Raise ``ConfigError`` if an epoch of one of ``counts`` images would end in a batch of one,
    and the network cannot learn from it.

    ``counts``: numbers of images, of all the trainings that have this batch; one of 0 is not known.
    ``key``: the job's key of the batch, for the remedy. ``where``: what is trained.
    """
    if not recipe.epochs or not network_facts(network, shape, classes).single:
        return
    known = sorted({recipe.seen(count) for count in counts if count})
    bad = [count for count in known if 1 in sizes(count, recipe.batch, recipe.slice)]
    if not bad:
        return
    what = f"{where}: network '{network}'" if where else f"network '{network}'"
    images = f"{bad[0]} images in batches of {recipe.batch}" if bad[0] > 1 else "the only image"
    slices = f" in {recipe.accumulate} slices" if recipe.accumulate > 1 and bad[0] > 1 else ""
    raise ConfigError(
        f"{what} has batch norm over one pixel of {shape[1]}x{shape[2]} images and cannot be trained on one image"
        f" alone, which is what {images}{slices} would come to; {_remedy(known, recipe, key)}"
    )


def _remedy(counts: list[int], recipe: Recipe, key: str) -> str:
    other = "another network, such as convnet3"
    if counts[0] == 1:
        return f"use more images, or {other}"

    def fits(batch: int) -> bool:
        piece = -(-batch // recipe.accumulate)
        return batch >= recipe.accumulate and all(
            1 not in sizes(count, batch, piece) for count in counts
        )

    near = sorted(
        range(2, max(*counts, recipe.batch) + 2),
        key=lambda batch: (abs(batch - recipe.batch), batch),
    )
    found = next((batch for batch in near if fits(batch)), None)
    return f"use {other}" if found is None else f"set {key}={found}, or use {other}"
