"""The settings, the plan and the set of methods that match under a queue: IDM and BACON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt

from raydd.artifacts.decoding import Decoding, Partition, SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.augment.dsa import DEFAULT_STRATEGY, parse_strategy
from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.core.units import Stage
from raydd.methods.matching.class_matching import check_init
from raydd.methods.matching.embedding_matching import probe_network
from raydd.methods.matching.queue_matching import MatchUnderQueue
from raydd.methods.method import Method, Problem
from raydd.networks import is_per_sample, normalise_name
from raydd.training.network_queue import QueueConfig
from raydd.training.train_queue import TrainQueue


@dataclass(frozen=True, kw_only=True)
class QueueMatching(Method):
    """Matching under a queue of networks that learn from real images.

    ``network``: of the queue, and of students. ``iterations``: updates. ``lr_img``, ``momentum``:
    of the images' SGD, which steps once per class. ``batch_real``: real images per class and
    update. ``ce_weight``: of the cross entropy, times the network's accuracy in per cent.
    ``meter_reset_period``: iterations after which accuracies are forgotten, as published where the
    set is evaluated (null: never). ``init``: start from ``real`` images or ``noise``.
    ``init_tiling``: real images are each a tile (``collage``), or cut into tiles (``full``, as
    IDM's script for Tiny-ImageNet has it). ``factor``: a stored image holds so many rows and
    columns of images (published: 2; 1: none). ``dsa``: operations joined by ``_``, or ``none``;
    published are all six whatever the data set. ``classes_per_unit``: classes that one worker moves
    together. ``queue``: see :class:`raydd.training.network_queue.QueueConfig`.
    """

    protocol: ClassVar[str] = "idm"
    stage: ClassVar[type[MatchUnderQueue]]
    least_batch: ClassVar[int] = 1
    """Real images per class that the objective needs."""

    network: str = "convnet3"
    iterations: Annotated[int, Ge(1)] = 20_000
    lr_img: Annotated[float, Gt(0)] = 0.2
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.5
    batch_real: Annotated[int, Ge(1)] = 256
    ce_weight: Annotated[float, Ge(0)] = 0.5
    meter_reset_period: Annotated[int, Ge(1)] | None = 100
    init: Literal["real", "noise"] = "real"
    init_tiling: Literal["collage", "full"] = "collage"
    factor: Annotated[int, Ge(1)] = 2
    dsa: str = DEFAULT_STRATEGY
    classes_per_unit: Annotated[int, Ge(1)] = 5
    queue: QueueConfig = field(default_factory=QueueConfig)

    @property
    def student_network(self) -> str:
        """The network that students have by default."""
        return self.network

    @property
    def options(self) -> dict[str, Any]:
        """Fields of the stage that a method has beside those of IDM."""
        return {}

    def plan(self, problem: Problem) -> list[Stage]:
        """Return the queue's training and the matching; ``ConfigError`` if real images are too few,
        sizes cannot be cut into tiles, or the network has batch norm.
        """
        info, network = problem.dataset, normalise_name(self.network)
        parse_strategy(self.dsa)
        check_init(info, problem.ipc, self.init)
        self._check(problem)
        queue = TrainQueue(
            seed=self.queue.seed,
            numerics=problem.numerics,
            dataset=info.only("train"),
            network=network,
            queue=self.queue,
            count=self.queue.plan.alive(self.iterations - 1).stop,
        )
        matching = self.stage(
            seed=problem.seed,
            numerics=problem.numerics,
            dataset=info.only("train"),
            ipc=problem.ipc,
            network=network,
            iterations=self.iterations,
            lr_img=self.lr_img,
            momentum=self.momentum,
            batch_real=self.batch_real,
            init_from=self.init,
            init_tiling=self.init_tiling if self.init == "real" and self.factor > 1 else "none",
            factor=self.factor,
            dsa=self.dsa or "none",
            ce_weight=self.ce_weight,
            meter_reset_period=self.meter_reset_period,
            classes_per_unit=min(self.classes_per_unit, info.classes),
            classes=problem.classes,
            queue=queue,
            **self.options,
        )
        return [queue, matching]

    def joint(self, problem: Problem) -> bool:
        """Return True: how often a class's images coast depends on its place among the classes."""
        return True

    def size(self, problem: Problem) -> SetSize:
        """Return the size of a set whose stored images hold ``factor²`` each."""
        stored = super().size(problem)
        return SetSize(stored.stored, stored.stored * self.factor**2, stored.bytes)

    @property
    def decoding(self) -> Decoding:
        """How students see the set's images."""
        return Decoding("partition", {"factor": self.factor}) if self.factor > 1 else Decoding()

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the blocks' images in class order, with hard labels, to be decoded."""
        return DistilledSet(
            images=torch.cat([outputs[unit]["images"] for unit in sorted(outputs)]),
            labels=torch.tensor(problem.present).repeat_interleave(problem.ipc),
            info=problem.dataset,
            decoding=self.decoding,
        )

    def _check(self, problem: Problem) -> None:
        info = problem.dataset
        Partition(factor=self.factor).check_sides(info.height, info.width)
        if not is_per_sample(probe_network(self.network, info)):
            raise ConfigError(
                f"method.network={self.network}: classes and networks of the queue are each on their own, and batch"
                " norm ties images together; a network with another norm is needed"
            )
        smallest = (
            min((info.train_counts[c] for c in problem.present), default=0)
            if info.train_counts
            else 0
        )
        seen = min(self.batch_real, smallest) if smallest else self.batch_real
        if seen < self.least_batch:
            what = (
                f"method.batch_real={self.batch_real}"
                if seen == self.batch_real
                else "dataset: a class"
            )
            raise ConfigError(
                f"{what}: {seen} real image per class has no deviation; at least {self.least_batch} are needed"
            )
