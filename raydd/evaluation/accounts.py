"""What the sets of a report's rows weigh, told from their stages (docs/per_byte.md, "What is counted")."""

from __future__ import annotations

import math

from raydd.artifacts.accounting import Accounting
from raydd.core.tensors import Tensors
from raydd.evaluation.packed_set import PackedSet
from raydd.evaluation.set_sources import AssembledSet, StoredSet
from raydd.evaluation.stages import Evaluate, EvaluateNetworks


def account(stage: Evaluate | EvaluateNetworks, output: Tensors, held: int) -> Accounting | None:
    """Return the accounting of a row, whose set has ``held`` bytes; ``None`` where its images are not known.

    ``output``: one of the stage's.
    """
    info, image_bytes = stage.dataset, int(output["image_bytes"])
    if isinstance(stage, EvaluateNetworks):
        return Accounting.of(held, image_bytes, info.classes)
    teachers = None if stage.labels is None else stage.labels.teacher_bytes
    values = _values(stage, image_bytes)
    return Accounting.of(held, values, info.classes, teachers) if values else None


def _values(stage: Evaluate, image_bytes: int) -> int:
    """Return how many values the images of an evaluated set have."""
    source = stage.source
    if isinstance(source, StoredSet):
        return source.values
    made = source.made if isinstance(source, PackedSet) else source
    if not isinstance(made, AssembledSet):
        return image_bytes  # pixels, decoded
    if not made.method.stores_pixels:
        return made.size.seen * math.prod(stage.dataset.shape)
    return image_bytes // made.method.value_bytes
