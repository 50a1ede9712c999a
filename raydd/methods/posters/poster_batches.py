"""The windows of a poster as what an unroll trains on (PoDD; docs/methods/podd.md, "The distilled batch")."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.artifacts.poster_geometry import pooled_labels
from raydd.artifacts.windows import LABEL_MAP
from raydd.core.rng import KeyedRng
from raydd.core.tensors import Tensors
from raydd.methods.posters.poster_labels import first_label_map, fixed_labels
from raydd.methods.posters.poster_layout import PosterLayout
from raydd.methods.posters.poster_start import noise_poster
from raydd.methods.unroll.distilled_batches import LABELS, PIXELS, DistilledBatches

SOFT = "soft_labels"


@dataclass(frozen=True, kw_only=True)
class PosterBatches(DistilledBatches):
    """Windows of one poster ``[1, C, H, W]``.

    ``batch_windows``: windows of an inner step, drawn without replacement, ascending; all in their
    order, if there are no more. ``cells``: rows and columns of the label map ``[classes, rows,
    columns]`` that is learnt with the poster; empty where labels are fixed.
    """

    layout: PosterLayout
    batch_windows: int
    cells: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Return the number of windows."""
        return self.layout.windows.count

    @property
    def batch(self) -> int:
        """Return the number of windows in a batch."""
        return min(self.batch_windows, self.count)

    def start(self, rng: KeyedRng) -> Tensors:
        """Return the first poster, and the label map of the classes' areas where it is learnt."""
        parameters = {PIXELS: noise_poster(self.layout, self.shape[0], rng("init"))}
        if self.learn_labels:
            rows, columns = self.cells
            parameters[LABELS] = first_label_map(self.layout, (rows, columns))
        return parameters

    def materialise(self, parameters: Tensors) -> tuple[Tensor, Tensor]:
        """Return all windows, and their soft labels."""
        poster = parameters[PIXELS]
        return self.layout.windows.cut(poster[0]), self._targets(parameters).to(poster)

    def _targets(self, parameters: Tensors) -> Tensor:
        if not self.learn_labels:
            known = parameters.get(SOFT)
            return fixed_labels(self.layout, self.classes) if known is None else known
        sides = (self.layout.height, self.layout.width)
        return pooled_labels(parameters[LABELS], self.layout.windows, sides)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return the windows of an inner step."""
        if self.batch == self.count:
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=generator)[: self.batch].sort().values

    def kept(self) -> Tensors:
        """Return the fixed labels, whose classes' order is perhaps not to be had where the set is put together."""
        return {} if self.learn_labels else {SOFT: fixed_labels(self.layout, self.classes)}

    def stored(self, parameters: Tensors) -> Tensors:
        """Return the poster, its windows' likeliest classes, and their soft labels or the map of these."""
        targets = self._targets(parameters)
        found = {"images": parameters[PIXELS], "labels": targets.argmax(1)}
        if self.learn_labels:
            return found | {LABEL_MAP: parameters[LABELS]}
        return found | {SOFT: targets}

    @property
    def label_bytes(self) -> int:
        """Bytes of what is kept of soft labels."""
        return 4 * self.classes * (math.prod(self.cells) if self.learn_labels else self.count)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the poster and of a label map."""
        return self._poster_bytes + (self.label_bytes if self.learn_labels else 0)

    @property
    def output_bytes(self) -> int:
        """Bytes of the poster, and of the label map or the labels."""
        return self._poster_bytes + self.label_bytes

    @property
    def _poster_bytes(self) -> int:
        return 4 * self.shape[0] * self.layout.height * self.layout.width
