"""INFER: condensation with universal feature compensators (Zhang et al., ICLR 2025, arXiv 2408.06927).

Of each class K real images are kept. For every slice of them, the j-th of every class, and every one
of M networks one offset u, a compensator, is learnt that all the slice's images share
(docs/methods/dwa_infer.md, "Compensators"):

    L = CE(f_m(view(x_j + u)), y) + r_loss * sum_l w_l (||running_var_l - var_l|| + ||running_mean_l - mean_l||)

Students see the K images as they are and with each of the M compensators; all M networks label them,
once (static) or view by view (dynamic). K images and K M / C compensators are the budget of ``ipc``.

Published (ResNet-18, static / dynamic labels): CIFAR-10 32.0 / 30.7 % and 60.4 / 60.7 at 10 and 50
images per class; CIFAR-100 45.2 / 53.4 and 62.8 / 68.9; Tiny-ImageNet 32.0 / 41.0 and 52.9 / 54.6;
ImageNet-1k 28.7 / 36.3 and 51.8 / 55.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from raydd.artifacts.codec import ImageFormat
from raydd.artifacts.decoding import Decoding, SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.offsets import OFFSETS, Offsets, slices_within
from raydd.core.errors import ConfigError, TooFew
from raydd.core.tensors import Tensors
from raydd.core.units import Stage
from raydd.labels.label_config import LabelConfig
from raydd.methods.method import Problem, by_stage, check_counts, register_method
from raydd.methods.pools.init_config import InitConfig
from raydd.methods.recovery.compensate import Compensate
from raydd.methods.recovery.recover import MatchStatistics
from raydd.methods.recovery.recover_config import Matching
from raydd.methods.recovery.recover_groups import Order
from raydd.methods.recovery.recover_method import Recovering
from raydd.networks import normalise_name


@dataclass(frozen=True, kw_only=True)
class InferCompat:
    """``before_last``: the published code saves what it composed before the last update, which counts
    for little along a cosine to 0.
    """

    before_last: bool = False


@register_method("infer")
@dataclass(frozen=True, kw_only=True)
class Infer(Recovering):
    """Real images, and compensators that each network adds to all classes at once.

    ``networks``: M of them, each with compensators of its own; all label. ``init``: the real images.
    ``group_size``: classes that share a compensator; published is all of them. Fewer need less memory
    and leave room for fewer images.
    ``image_format``: ``png`` stores images and compensators, of which what students see is
    composed; ``jpeg75``, published, stores what is composed. ``compat``: see :class:`InferCompat`. The
    other keys: :class:`Recovering`. Defaults are ImageNet-1k's; published for CIFAR: four networks,
    ``iterations: 1000``, ``r_loss: 1``, ``group_size`` of all classes, ``crop: null``, ``flip: false``,
    ``jitter: [0, 4]``.
    """

    protocol: ClassVar[str] = "infer"

    networks: tuple[str, ...] = ("resnet18", "mobilenet_v2", "efficientnet_b0")
    labels: LabelConfig = field(
        default_factory=partial(LabelConfig, batch=64, crop=(0.08, 1.0), codec="static"),
        metadata={"key": False},
    )
    init: InitConfig = field(default_factory=partial(InitConfig, kind="real"))
    iterations: Annotated[int, Ge(1)] = 2000
    lr_img: Annotated[float, Gt(0)] = 0.25
    group_size: Annotated[int, Ge(1)] = 1000
    jitter: tuple[int, int] = (0, 32)
    image_format: ImageFormat = "png"
    compat: InferCompat = field(default_factory=InferCompat)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init.kind == "noise" or self.init.sampling != "without_replacement":
            raise ConfigError(
                "init: infer keeps the images that it starts from: real ones, or others but noise, each once"
                f" (sampling=without_replacement), not kind={self.init.kind}, sampling={self.init.sampling}"
            )
        if len(set(map(normalise_name, self.networks))) < len(self.networks):
            raise ConfigError(f"networks: {', '.join(self.networks)}: one stands there twice")
        if self.compat.before_last and self.iterations < 2:
            raise ConfigError(
                "compat.before_last leaves the last update out; iterations=1 has no other"
            )

    @property
    def start(self) -> InitConfig:
        """The job's start."""
        return self.init

    @property
    def image_order(self) -> Order:
        """Image 0 of every class, then image 1: a slice after the other."""
        return "ipc_major"

    @property
    def composes(self) -> bool:
        """Whether what students see is composed when it is read."""
        return self.image_format == "png"

    def matching(self) -> Matching:
        """Match batch norms alone."""
        return Matching(
            kinds=("bn",),
            patch=1,
            r_loss=self.r_loss,
            first_multiplier=self.first_multiplier,
        )

    def recovery(self, **fields: Any) -> MatchStatistics:
        """Return the stage of all networks' compensators; the images are not mirrored before."""
        return Compensate(**fields, mirror_start=False, before_last=self.compat.before_last)

    def slices(self, problem: Problem) -> int:
        """Return how many real images of each class the budget has room for; ``ConfigError`` for none."""
        classes, networks = problem.dataset.classes, len(self.networks)
        found = slices_within(problem.ipc, networks, classes, self.group_size)
        if found < 1:
            blocks = -(-classes // self.group_size)
            raise ConfigError(
                f"ipc={problem.ipc}: a budget of ipc * {classes} images holds K real images of each class and"
                f" K * {networks * blocks} compensators, K = floor(ipc / (1 + {networks * blocks} / {classes})) = 0;"
                " set a larger ipc"
            )
        return found

    def start_ipc(self, problem: Problem) -> float:
        """Return how many real images of each class are kept."""
        return self.slices(problem)

    def plan(self, problem: Problem) -> list[Stage]:
        """Return teachers, real images, and the compensators of each network."""
        slices = self.slices(problem)
        if self.init.kind == "real" and self.init.pool is None:
            self._check_real(problem, slices)
        *before, whole = super().plan(replace(problem, ipc=slices))
        assert isinstance(whole, Compensate)
        return [
            *before,
            *(
                replace(whole, backbones=(backbone,), natural=not (self.composes or number))
                for number, backbone in enumerate(whole.backbones)
            ),
        ]

    def _check_real(self, problem: Problem, slices: int) -> None:
        """Raise ``ConfigError`` where a class has fewer real images than are kept, with the largest ``ipc``."""
        check_counts(problem.dataset, 1)
        counts = problem.dataset.train_counts or (slices,)
        if (count := min(counts)) < slices:
            ipc, classes = int(problem.ipc), problem.dataset.classes
            while slices_within(ipc, len(self.networks), classes, self.group_size) > count:
                ipc -= 1
            raise TooFew(
                f"ipc={problem.ipc} keeps {slices} real images of each class: class {counts.index(count)} has only"
                f" {count} training images to choose from",
                f"at most ipc={ipc} is possible",
            )

    def last(self, problem: Problem) -> list[Stage]:
        """Return the real images, where they are stored alone, and the compensators of each network."""
        return self.plan(problem)[-len(self.networks) - self.composes :]

    def size(self, problem: Problem) -> SetSize:
        """Return K real images of each class and the compensators, in levels of 16 bits; students see
        M + 1 times as many images.
        """
        info, slices, networks = problem.dataset, self.slices(problem), len(self.networks)
        pixels, count = info.channels * info.height * info.width, slices * info.classes
        seen = count * (networks + 1)
        if not self.composes:
            return SetSize(seen, seen, seen * (pixels + 8))
        offsets = networks * slices * -(-info.classes // self.group_size)
        return SetSize(count, seen, count * (pixels + 8) + 2 * offsets * pixels)

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the real images, class by class, with their compensators; or all that is composed."""
        info, slices = problem.dataset, self.slices(problem)
        if not self.composes:
            return self._pictures(problem, outputs)
        pool, *compensators = by_stage(outputs)
        images = torch.cat([pool[unit]["images"] for unit in sorted(pool)])
        offsets = [_ordered(units, OFFSETS).unflatten(0, (slices, -1)) for units in compensators]
        return DistilledSet(
            images=images.unflatten(0, (info.classes, -1))[:, :slices].flatten(0, 1),
            labels=torch.arange(info.classes).repeat_interleave(slices),
            info=info,
            extra={OFFSETS: torch.stack(offsets)},
            decoding=Decoding(Offsets.name, {"group_size": min(self.group_size, info.classes)}),
        )

    def _pictures(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return what was composed: of each class the real images, then each network's."""
        classes = problem.dataset.classes
        stages = [outputs] if len(self.networks) == 1 else by_stage(outputs)
        each = [_ordered(stages[0], "natural"), *(_ordered(units, "images") for units in stages)]
        images = torch.stack([one.unflatten(0, (classes, -1)) for one in each], 1)
        labels = torch.arange(classes).repeat_interleave(images.shape[1] * images.shape[2])
        return DistilledSet(images=images.flatten(0, 2), labels=labels, info=problem.dataset)


def _ordered(units: Mapping[str, Tensors], name: str) -> Tensor:
    """Return a tensor of all units' outputs in the order of their ``index``."""
    values, index = (
        torch.cat([units[unit][key] for unit in sorted(units)]) for key in (name, "index")
    )
    return values[index.argsort()]
