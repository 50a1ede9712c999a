"""Static labels: one row of logits for each image of a set, whatever view of it students see
(docs/methods/soft_labels.md, "Static labels").

INFER, arXiv 2408.06927: at 1,000 classes and float32 a row takes 4,000 bytes, an image's labels of
300 epochs in fp16 600,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.rng import KeyedRng
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost
from raydd.labels.codecs import STATIC, decode, encode, layout
from raydd.labels.ensemble import CHUNK, load_teachers, predict
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_views import DrawnViews, draw_views
from raydd.labels.labelled_set import DrawnEpoch, LabelledSet
from raydd.labels.records import DIGEST_BYTES, batches_of, label_bytes
from raydd.labels.relabel import Relabel
from raydd.training.training_cost import network_facts


def mixed_rows(
    rows: Tensor,
    views: DrawnViews,
    mix: Literal["cutmix", "mixup", "none"],
    size: tuple[int, int],
) -> Tensor:
    """Return the logits ``[B, classes]`` of a batch of mixed views: the mean of both images' rows,
    each weighted by its share of the mixed image.

    ``rows [N, classes]``: those of all images, as of ``views.index`` and ``views.perm``. ``size``:
    the images' height and width, of which CutMix's box takes a share.
    """
    own = rows[views.index.to(rows.device)]
    if mix == "none":
        return own
    share = views.lam
    if mix == "cutmix":
        x1, y1, x2, y2 = views.box
        share = 1 - (x2 - x1) * (y2 - y1) / (size[0] * size[1])
    return share * own + (1 - share) * own[views.perm.to(rows.device)]


class StaticEpoch(DrawnEpoch):
    """An epoch of one student's views, whose labels are those of the images behind them."""

    def __init__(
        self, count: int, draw: Callable[[int], DrawnViews], mixed: Callable[[DrawnViews], Tensor]
    ) -> None:
        super().__init__(count, draw, lambda images: images)
        self._mixed = mixed

    def logits(self, number: int, images: Tensor) -> Tensor:
        """Return the rows' logits of a batch, on the device of ``images``."""
        return self._mixed(self.views(number)).to(images.device)


def static_set(
    distilled: DistilledSet, config: LabelConfig, rows: Tensor, device: torch.device
) -> LabelledSet:
    """Return the training set that ``rows`` of logits ``[N, classes]`` make of a set of N seen images."""
    size, count, rows = distilled.shape[1:], distilled.seen, rows.to(device)

    def drawn(epoch: int, rng: KeyedRng) -> StaticEpoch:
        order = torch.randperm(count, generator=rng("label order", epoch))

        def draw(number: int) -> DrawnViews:
            index = order[number * config.batch : (number + 1) * config.batch]
            return draw_views(config, rng("labels", epoch, number), index, size)

        return StaticEpoch(
            batches_of(config, count),
            draw,
            lambda views: mixed_rows(rows, views, config.mix, size),
        )

    return LabelledSet(distilled, config, device, drawn, shared=False, epochs=None)


def stored_rows(config: LabelConfig, record: Mapping[str, Tensor], classes: int) -> Tensor:
    """Return the logits float32 ``[N, classes]`` of a record of :class:`LabelImages`."""
    kept = {name: record[name] for name in layout(config, classes)}
    return decode(config, kept, classes)


@dataclass(frozen=True, kw_only=True)
class LabelImages(Relabel):
    """Label the images of a distilled set as they are; a step is :data:`~raydd.labels.ensemble.CHUNK` of them.

    Output: what the codec keeps of every seen image, in order, and the digest of the set,
    ``images`` uint8 ``[32]``.
    """

    def units(self) -> Sequence[str]:
        """Return one unit, whose file is ``labels/static.safetensors``."""
        return (STATIC,)

    def steps(self, unit: str) -> int:
        """Return the number of chunks."""
        return math.ceil(self.source.images / CHUNK)

    def cost(self, unit: str) -> Cost:
        """Return the cost: one forward pass of every teacher over every image, of a chunk at a time."""
        size = label_bytes(self.config, self.source.images, self.classes)
        shape = self.teachers[0].dataset.shape
        facts = [network_facts(teacher.network, shape, self.classes) for teacher in self.teachers]
        work = 4 * CHUNK * (4 * math.prod(shape) + max(fact.alive for fact in facts))
        kept = self.source.size.bytes + 4 * sum(fact.parameters for fact in facts)
        return Cost(
            flop=self.source.images * sum(fact.flop for fact in facts),
            peak_bytes=kept + work + size,
            state_bytes=size - DIGEST_BYTES,
            output_bytes=size,
        )

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return rows of zeros."""
        return {
            name: torch.zeros(self.source.images, *shape, dtype=dtype, device=ctx.device)
            for name, (dtype, shape) in layout(self.config, self.classes).items()
        }

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the rows with chunk ``t`` labelled (filled in place, as records are)."""
        distilled = self._set(ctx)
        ids = distilled.ids()[t * CHUNK : (t + 1) * CHUNK]
        logits = self._logits(distilled, ids, ctx)
        for name, value in encode(self.config, logits).items():
            state[name][ids.to(value.device)] = value
        ctx.log(t, agreement=(logits.argmax(1).cpu() == distilled.labels_of(ids)).double().mean())
        return state

    def rows(self, distilled: DistilledSet, ctx: Context) -> Tensor:
        """Return the logits float32 ``[N, classes]`` of all seen images of a set, without keeping them."""
        parts = [self._logits(distilled, ids, ctx) for ids in distilled.ids().split(CHUNK)]
        return stored_rows(self.config, encode(self.config, torch.cat(parts)), self.classes)

    def _logits(self, distilled: DistilledSet, ids: Tensor, ctx: Context) -> Tensor:
        images = distilled.normalised(distilled.take(ids).to(ctx.device))
        return predict(load_teachers(self.teachers, ctx), images, self.config.ensemble)
