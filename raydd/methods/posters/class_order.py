"""PoCO, the order in which a poster's classes stand: like ones as neighbours (docs/methods/podd.md, "Class order").

The classes' embeddings are the hidden states of CLIP's text network for their names (open_clip, an
optional package), or a file's. Nothing needs them: without them classes stand in label order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from raydd.core.errors import ConfigError, first_line
from raydd.core.json_text import parse_json
from raydd.core.storage import Storage, absolute
from raydd.core.tensors import load_tensors
from raydd.data.catalog import DatasetInfo, prompt_names

log = logging.getLogger(__name__)
CLIP, WEIGHTS = "ViT-B-32-quickgelu", "openai"
"""Whose text network embeds the names, in open_clip's words."""
END_OF_TEXT = 49407
"""The token with which names are filled up to the text network's length."""


@dataclass(frozen=True)
class ClassOrder:
    """The class of each area, row after row, and what it was made of, for people."""

    order: tuple[int, ...]
    origin: str


def diagonals(columns: int, rows: int) -> Iterator[tuple[int, int]]:
    """Yield the places (row, column) of a grid, anti-diagonal after anti-diagonal from the top left, each
    from its bottom left to its top right.
    """
    for sum_of_both in range(columns + rows - 1):
        for row in range(min(sum_of_both, rows - 1), -1, -1):
            if sum_of_both - row < columns:
                yield row, sum_of_both - row


def cosine_distances(embeddings: Tensor) -> Tensor:
    """Return ``1 - cos`` of every two embeddings ``[N, d]``, float64 ``[N, N]``, 0 of each with itself."""
    flat = embeddings.double().flatten(1)
    norms = flat.norm(dim=1)
    similar = (flat @ flat.T) / (norms[:, None] * norms[None, :]).clamp_min(1e-6)
    distances = 1 - (similar + similar.T) / 2
    return distances.fill_diagonal_(0)


def poco(distances: Tensor, columns: int, rows: int) -> tuple[int, ...]:
    """Return the class of each place of a grid, row after row, filled greedily along :func:`diagonals`.

    The first place gets class 0, every other one the class left whose ``distances`` (float ``[N, N]``)
    to those above and at its left sum to the least; of equals the first.
    """
    grid = [[-1] * columns for _ in range(rows)]
    left = list(range(columns * rows))
    for row, column in diagonals(columns, rows):
        around = [grid[row - 1][column]] if row else []
        around += [grid[row][column - 1]] if column else []
        sums = distances[left][:, around].sum(1)
        grid[row][column] = left.pop(int(sums.argmin()))
    return tuple(label for line in grid for label in line)


@lru_cache(maxsize=64)
def class_order(order: str, info: DatasetInfo, columns: int, rows: int) -> ClassOrder:
    """Return the order that ``poster.order`` asks for; ``ConfigError`` for what is none.

    ``poco`` without open_clip, or without its weights, is label order: that is logged, and said by
    :attr:`ClassOrder.origin`.
    """
    labels = tuple(range(info.classes))
    if order == "labels":
        return ClassOrder(labels, "label order")
    if order == "poco":
        try:
            found = clip_embeddings(prompt_names(info))
        except (ConfigError, ImportError, OSError, RuntimeError, ValueError) as error:
            reason = first_line(error) or type(error).__name__
            log.warning(
                "poster.order=poco: no embeddings of the classes (%s); they stand in label order",
                reason,
            )
            return ClassOrder(labels, f"label order, since there are no embeddings: {reason}")
        return ClassOrder(poco(cosine_distances(found), columns, rows), f"PoCO, open_clip {CLIP}")
    return _of_file(order, info, columns, rows)


def clip_embeddings(names: tuple[str, ...]) -> Tensor:
    """Return CLIP's hidden states of names, float32 ``[N, positions * width]``: of the text network's
    last norm, at all positions, those after the end of the text included.

    ``ImportError`` without open_clip, ``OSError`` or ``RuntimeError`` without its weights.
    """
    if not names:
        raise ConfigError("the data set's classes have no names")
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(CLIP, pretrained=WEIGHTS)
    tokens = open_clip.get_tokenizer(CLIP)([name.replace("_", " ") for name in names])
    ends = (tokens == END_OF_TEXT).int().cumsum(1) > 0
    tokens = torch.where(ends, torch.full_like(tokens, END_OF_TEXT), tokens)
    kept: list[Tensor] = []
    hook = model.ln_final.register_forward_hook(lambda _, __, out: kept.append(out.detach()))
    try:
        with torch.no_grad():
            model.eval().encode_text(tokens)
    finally:
        hook.remove()
    return kept[0].float().flatten(1)


def _of_file(url: str, info: DatasetInfo, columns: int, rows: int) -> ClassOrder:
    """Return the order of a JSON file (class ids, in one list or in rows), or of the embeddings
    ``[classes, …]`` that a safetensors file holds.
    """
    where = f"method.poster.order: '{url}'"
    if not url.endswith((".json", ".safetensors")):
        raise ConfigError(
            f"{where} must be labels, poco, or a .json of class ids or a .safetensors of embeddings"
        )
    parent, _, name = absolute(url).rpartition("/")
    try:
        data = Storage(parent).get(name)
    except FileNotFoundError:
        raise ConfigError(f"{where} is not there") from None
    if url.endswith(".json"):
        return ClassOrder(_listed(data, info.classes, where), f"the order of {name}")
    tensors = load_tensors(data, url)
    if len(tensors) != 1:
        raise ConfigError(f"{where} holds {len(tensors)} tensors; one of embeddings is needed")
    (embeddings,) = tensors.values()
    if embeddings.ndim < 2 or len(embeddings) != info.classes:
        raise ConfigError(
            f"{where} holds {list(embeddings.shape)}; embeddings of {info.classes} classes are needed"
        )
    norms = embeddings.double().flatten(1).norm(dim=1)
    bad = (~(torch.isfinite(norms) & (norms > 0))).nonzero().flatten().tolist()
    if bad:
        raise ConfigError(
            f"{where}: the embedding of class {bad[0]} is all zeros, or holds NaN or infinity ({len(bad)} classes are"
            " so)"
        )
    return ClassOrder(
        poco(cosine_distances(embeddings), columns, rows), f"PoCO, embeddings of {name}"
    )


def _listed(data: bytes, classes: int, where: str) -> tuple[int, ...]:
    try:
        values = parse_json(data)
        flat = [v for line in values for v in (line if isinstance(line, list) else [line])]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where} is no JSON list: {error}") from error
    plain = all(isinstance(v, int) and not isinstance(v, bool) for v in flat)
    if not plain or sorted(flat) != list(range(classes)):
        raise ConfigError(f"{where} must hold each of the classes 0 to {classes - 1} once")
    return tuple(flat)
