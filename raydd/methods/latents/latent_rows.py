"""Which latents there are: rows of each class, cut into units; and the generator that makes images of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from raydd.artifacts.generated import Generated, stored_weights
from raydd.core.errors import DataError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Ref, Stage
from raydd.data.catalog import DatasetInfo
from raydd.methods.random_selection import SelectImages
from raydd.training.read_generator import ReadGenerator
from raydd.training.train_generator import TrainGenerator

GENERATOR = "generator"
"""What stages call the generator among their inputs."""
AnyGenerator = TrainGenerator | ReadGenerator


class Part(NamedTuple):
    """A unit's latents: those of the rows ``first`` to ``last - 1`` of the class ``label``."""

    label: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, kw_only=True)
class LatentStage(Stage):
    """A stage whose units are latents of one class, ``size`` of them or what is left.

    ``counts``: latents of each class. ``picks``: the stage that chose the real image of each, in
    order; ``None``: there is one for every training image of a class, by index.
    """

    dataset: DatasetInfo
    generator: AnyGenerator
    counts: tuple[int, ...]
    picks: SelectImages | None

    @property
    def size(self) -> int:
        """How many latents a unit has at most."""
        raise TypeError(f"{type(self).__name__} does not define size")

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The units' latents, by name, class after class."""
        found = {}
        for label, count in enumerate(self.counts):
            for number, first in enumerate(range(0, count, self.size)):
                last = min(count, first + self.size)
                found[f"class-{label:04d}-{number:04d}"] = Part(label, first, last)
        return found

    def units(self) -> Sequence[str]:
        """Return the names of the units."""
        return tuple(self.parts)

    def picked(self, part: Part) -> dict[str, Ref]:
        """Return the output that names a unit's real images, to be read as ``picks``."""
        if self.picks is None:
            return {}
        (unit,) = [name for name, block in self.picks.blocks.items() if part.label in block]
        return {"picks": Ref(self.picks, unit)}

    def ids(self, unit: str, ctx: Context) -> Tensor:
        """Return the indices in the training split of the unit's real images, int64 ``[n]``;
        ``DataError`` where there are not as many as planned.
        """
        part, labels = self.parts[unit], ctx.data["train"].labels
        if self.picks is None:
            ids = (labels == part.label).nonzero().flatten()
        else:
            ids = ctx.load("picks")["ids"]
            ids = ids[labels[ids] == part.label]
        if len(ids) != self.counts[part.label]:
            raise DataError(
                f"class {part.label} has {len(ids)} images; {self.counts[part.label]} latents were planned"
            )
        return ids[part.first : part.last]

    @cached_property
    def decoder(self) -> Generated:
        """What makes images of latents."""
        made = Generated.decoding_of(self.generator.sizes, self.dataset).decoder()
        if not isinstance(made, Generated):
            raise TypeError(f"{type(made).__name__} makes no images of latents")
        return made

    def weights(self, ctx: Context) -> Tensors:
        """Return the generator's tensors as the decoder reads them, on the device."""
        key = Ref(self.generator, GENERATOR).key

        def load() -> Tensors:
            found = stored_weights(ctx.load(GENERATOR), torch.float32)
            return {name: tensor.to(ctx.device) for name, tensor in found.items()}

        return ctx.cached(("folded generator", key), load)

    @property
    def pixels(self) -> int:
        """Numbers of one image."""
        return self.dataset.channels * self.dataset.height * self.dataset.width
