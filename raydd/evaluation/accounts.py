"""What the sets of a report's rows weigh, told from their stages (docs/per_byte.md, "What is counted")."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from raydd.artifacts.accounting import Accounting, Coding
from raydd.artifacts.coded_facts import ImageCodec
from raydd.core.tensors import Tensors
from raydd.evaluation.coded_set import CodedSet, EncodeSet
from raydd.evaluation.packed_set import PackedSet
from raydd.evaluation.rows import Planned
from raydd.evaluation.set_sources import AssembledSet, StoredSet
from raydd.evaluation.stages import Evaluate, EvaluateNetworks


def account(
    stage: Evaluate | EvaluateNetworks, outputs: Sequence[Tensors], held: int
) -> Accounting | None:
    """Return the accounting of a row, whose set has ``held`` bytes; ``None`` where its images are not known.

    ``outputs``: one of each of the row's seeds or draws, of which ``stage`` is the first's.
    """
    info = stage.dataset
    image_bytes = round(statistics.fmean(int(output["image_bytes"]) for output in outputs))
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


def coding_of(
    group: Sequence[Planned], outputs: Mapping[Evaluate | EvaluateNetworks, Sequence[Tensors]]
) -> Coding | None:
    """Return how the sets of a row's seeds or draws were coded; ``None`` for a row that is not coded."""
    planned = group[0].coding
    if planned is None:
        return None
    found = [outputs[entry.stage][0] for entry in group]
    texts = [_codec(entry, output) for entry, output in zip(group, found, strict=True)]
    return Coding(
        series=planned.series,
        codec=" or ".join(dict.fromkeys(texts)),
        bits=int(found[0]["bits"]),
        budget=planned.budget,
        fills=planned.fills,
        files=tuple(int(output["file_bytes"]) for output in found),
    )


def _codec(entry: Planned, output: Tensors) -> str:
    """Return a file's codec in words: what its bits came to, or as it was stated."""
    source = entry.stage.source if isinstance(entry.stage, Evaluate) else None
    if not isinstance(source, CodedSet):
        raise TypeError(f"{entry.set}: its students see no coded set")
    made = source.made
    stated = (
        made.rule.codec if isinstance(made, EncodeSet) else made.codec or made.beside.rule.codec
    )
    bits, size = int(output["bits"]), int(output["size"])
    if not bits:
        return stated.text
    table = None if bits == 8 else stated.table
    return ImageCodec(bits=bits, size=size, table=table).text  # type: ignore[arg-type]


def coded_bytes(found: Sequence[Tensors], stored: int) -> dict[str, int]:
    """Return the sizes of a coded row: bytes of its file, labels apart, and images; means of seeds or draws.

    ``stored``: bytes of soft labels that are stored beside the file.
    """
    mean = {
        name: round(statistics.fmean(int(output[name]) for output in found))
        for name in ("file_bytes", "file_label_bytes", "stored", "seen")
    }
    return {
        "image_bytes": mean["file_bytes"] - mean["file_label_bytes"],
        "label_bytes": mean["file_label_bytes"] + stored,
        "stored": mean["stored"],
        "seen": mean["seen"],
    }
