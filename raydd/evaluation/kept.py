"""How many images a growing memory holds after each step of continual learning, known before anything is made."""

from __future__ import annotations

from collections.abc import Iterator

from raydd.evaluation.continual import StepSets, class_order
from raydd.evaluation.set_sources import SetSource, StoredSet


def kept_images(
    source: SetSource | StepSets, classes: int, order: int, parts: int
) -> Iterator[int]:
    """Yield the number of images of the classes that have come, step after step; a stored set is read to count them.

    ``order``: seed of the order in which ``classes`` come; ``parts``: the number of steps.
    """
    size = max(1, classes // parts)
    steps = range(size, classes + 1, size)
    if not isinstance(source, StoredSet):
        yield from (source.images * seen // classes for seen in steps)
        return
    distilled = source.read()
    counts, come = (
        distilled.labels_of().bincount(minlength=classes).tolist(),
        class_order(classes, order),
    )
    yield from (sum(counts[c] for c in come[:seen]) for seen in steps)
