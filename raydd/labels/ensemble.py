"""The teachers behind soft labels, and the mean of their logits (docs/methods/soft_labels.md, "Teachers' mean")."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from raydd.core.errors import ConfigError
from raydd.core.units import Context, Ref, canonical
from raydd.data.catalog import DatasetInfo

CHUNK = 256
"""Images of one forward pass; part of the numbers, since some kernels round by the size of their batch."""


class Teacher(Protocol):
    """A trained network, part of a stage's key; :class:`raydd.training.backbones.Backbone` is one."""

    @property
    def network(self) -> str:
        """Canonical name of the architecture."""
        ...

    @property
    def dataset(self) -> DatasetInfo:
        """The data set it was trained on, whose normalisation it expects."""
        ...

    def inputs(self, name: str) -> Mapping[str, Ref]:
        """Return the outputs of other units that the weights are read from, by names that start with ``name``."""
        ...

    def load(self, ctx: Context, name: str) -> nn.Module:
        """Return the network on the context's device, in eval mode, without gradients."""
        ...


def _name(number: int) -> str:
    return f"teacher-{number}"


def teacher_inputs(teachers: Sequence[Teacher]) -> dict[str, Ref]:
    """Return the outputs that the teachers' weights are read from."""
    return {
        name: ref
        for number, teacher in enumerate(teachers)
        for name, ref in teacher.inputs(_name(number)).items()
    }


def load_teachers(teachers: Sequence[Teacher], ctx: Context) -> list[nn.Module]:
    """Return the teachers' networks."""
    return [teacher.load(ctx, _name(number)) for number, teacher in enumerate(teachers)]


def identity(teacher: Teacher) -> dict[str, Any]:
    """Return a teacher's architecture and a hash of all that makes its weights, as JSON values."""
    text = json.dumps(
        [canonical(teacher), {name: ref.key for name, ref in teacher.inputs("weights").items()}],
        sort_keys=True,
    )
    return {"network": teacher.network, "key": hashlib.sha256(text.encode()).hexdigest()[:40]}


def classes_of(teachers: Sequence[Teacher]) -> int:
    """Return the number of classes that all teachers know; ``ConfigError`` for none, or for different numbers."""
    known = {teacher.dataset.classes: teacher.network for teacher in teachers}
    if not known:
        raise ConfigError("labels need at least one teacher: an ensemble of none has no logits")
    if len(known) > 1:
        found = ", ".join(f"{name}: {classes}" for classes, name in known.items())
        raise ConfigError(f"the teachers of an ensemble must know the same classes, not {found}")
    return next(iter(known))


def check_space(teachers: Sequence[Teacher], mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ``ConfigError`` if images normalised by ``mean`` and ``std`` are not what the teachers expect."""
    for teacher in teachers:
        expected = (tuple(teacher.dataset.mean), tuple(teacher.dataset.std))
        if expected != (tuple(mean), tuple(std)):
            found = f"mean {list(mean)}, std {list(std)}"
            raise ConfigError(
                f"teacher {teacher.network} expects mean {list(expected[0])}, std {list(expected[1])}; the set has"
                f" {found}"
            )


def combine(logits: Sequence[Tensor], ensemble: Literal["mean", "rescaled"]) -> Tensor:
    """Return the mean of the teachers' logits ``[B, classes]``.

    ``rescaled``: each teacher's are first brought to the mean of their Frobenius norms over batch and classes.
    """
    stacked = torch.stack(list(logits))
    if ensemble == "rescaled":
        norms = stacked.flatten(1).norm(dim=1).view(-1, 1, 1)
        stacked = stacked * (norms.mean() / norms)
    return stacked.mean(0)


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Let the batch norms of a network in eval mode take a batch's own statistics; their running ones stay."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, was in zip(norms, tracked, strict=True):
            norm.training, norm.track_running_stats = False, was


@torch.no_grad()
def predict(
    networks: Sequence[nn.Module],
    images: Tensor,
    ensemble: Literal["mean", "rescaled"],
    mode: Literal["eval", "batch"] = "eval",
) -> Tensor:
    """Return the combined logits float32 ``[B, classes]`` of images in network space, :data:`CHUNK`
    images at a time; in the ``mode`` of batch statistics all at once.
    """
    logits = []
    for network in networks:
        if mode == "batch":
            with batch_statistics(network):
                logits.append(network(images).float())
        else:
            logits.append(torch.cat([network(part).float() for part in images.split(CHUNK)]))
    return combine(logits, ensemble)
