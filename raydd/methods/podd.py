"""PoDD, posters of less than one image per class (Shul, Horwitz and Hoshen, TMLR 2025, arXiv 2403.12040).

RaT-BPTT's loop (docs/methods/rat_bptt_podd.md, "The outer step"), whose distilled batches are
overlapping windows of one poster: inner steps train on ``batch_windows`` of them, with labels that
are fixed by the classes' areas they show, or pooled from a label map that is learnt,

    x_k = poster[y_k : y_k + h, x_k : x_k + w],    y_k = sum of the map's cells under k / sum over classes.

Worked out in docs/methods/podd.md.

Published (ConvNet, whitened images): CIFAR-100 35.7 % at 0.4 images per class, where one image per class gave 35.5 %
before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from raydd.artifacts.decoding import Decoding, SetSize
from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.methods.method import Problem, register_method
from raydd.methods.posters.poster_batches import PosterBatches
from raydd.methods.posters.poster_config import LabelMapConfig, PosterConfig
from raydd.methods.posters.poster_labels import label_map_cells
from raydd.methods.posters.poster_layout import PosterLayout
from raydd.methods.unroll.unroll_method import UnrollMethod


@register_method("podd")
@dataclass(frozen=True, kw_only=True)
class Podd(UnrollMethod):
    """Distillation into one poster; the other fields are those of :class:`UnrollMethod`.

    ``poster``: see :class:`raydd.methods.posters.poster_config.PosterConfig`. ``batch_windows``: the
    most windows in a distilled batch; all, if there are no more (null: all). ``learn_labels``: a
    label map is moved, too; ``label_map``: see
    :class:`raydd.methods.posters.poster_config.LabelMapConfig`.
    """

    protocol: ClassVar[str] = "podd"
    fractional: ClassVar[bool] = True

    poster: PosterConfig = field(default_factory=PosterConfig)
    batch_windows: Annotated[int, Ge(1)] | None = None
    learn_labels: bool = False
    label_map: LabelMapConfig = field(default_factory=LabelMapConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learn_labels and self.label_map != LabelMapConfig():
            raise ConfigError("method.label_map has no effect without method.learn_labels=true")
        self._refuse("label_lr_scale", 1.0, not self.learn_labels, "learn_labels=false")

    @property
    def one_image(self) -> bool:
        """Whether the set is a poster: it is."""
        return True

    def batches(self, problem: Problem) -> PosterBatches:
        """Return the windows; ``ConfigError`` for a poster that cannot be, and for a part of the classes."""
        if problem.classes is not None:
            raise ConfigError("a poster is of all classes, not of those of a step")
        return self._batches(problem, self.poster.ordered(problem.dataset, problem.ipc))

    def _batches(self, problem: Problem, layout: PosterLayout) -> PosterBatches:
        cells: tuple[int, ...] = ()
        if self.learn_labels:
            cells = label_map_cells(layout, self.label_map.rule, self.label_map.ipc)
        return PosterBatches(
            shape=problem.dataset.shape,
            classes=problem.dataset.classes,
            learn_labels=self.learn_labels,
            layout=layout,
            batch_windows=min(self.batch_windows or layout.windows.count, layout.windows.count),
            cells=cells,
        )

    def decoding(self, problem: Problem) -> Decoding:
        """Return the windows that students see."""
        return self.poster.layout(problem.dataset, problem.ipc).decoding

    def size(self, problem: Problem) -> SetSize:
        """Return the poster, its windows, and the bytes of labels and whitening with it."""
        batches = self._batches(problem, self.poster.layout(problem.dataset, problem.ipc))
        whitening = self.whitening(problem)
        matrix = 0 if whitening is None else whitening.bytes
        return self.poster.size(problem.dataset, problem.ipc, batches.label_bytes, matrix)

    def stored(self, problem: Problem, output: Tensors) -> Tensors:
        """Return what the set stores; the classes' order, which may need files of another machine, is not asked for."""
        layout = self.poster.layout(problem.dataset, problem.ipc)
        return self._batches(problem, layout).stored(output)

    def settled(self, problem: Problem) -> dict[str, dict[str, Any]]:
        """Return the poster's size, the order of its classes, and the windows in a batch."""
        found = self.poster.settled(problem.dataset, problem.ipc)
        layout = self.poster.layout(problem.dataset, problem.ipc)
        batch = self._batches(problem, layout).batch
        return {"poster": {**found["poster"], "batch_windows": batch}}
