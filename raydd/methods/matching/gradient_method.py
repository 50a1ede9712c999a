"""What DC and DSA are configured by, and how they plan and assemble (docs/methods/dc_dsa.md, "Published settings")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt

from raydd.artifacts.distilled_set import DistilledSet
from raydd.augment.dsa import parse_strategy
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.tensors import Tensors
from raydd.core.units import Stage
from raydd.data.catalog import DatasetInfo
from raydd.methods.matching.blind_weights import check_blindness
from raydd.methods.matching.class_matching import check_init
from raydd.methods.matching.gradient_matching import FREEZE_IMAGES, MatchGradients
from raydd.methods.matching.parameter_gradients import check_network
from raydd.methods.method import Method, Problem
from raydd.networks import Network, create_network, has_batchnorm, normalise_name
from raydd.networks.initialise import zero_scales
from raydd.training.batches import check_batches
from raydd.training.recipe import Recipe

PUBLISHED_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Updates of the images per network, and epochs of the network between two of them, by images per class."""


def published_loops(ipc: int) -> tuple[int, int]:
    """Return ``(outer_loop, inner_loop)`` for ``ipc`` images per class: those published for the
    nearest number, the smaller of two.

    The authors' advice above 50 is those of 50, or (20, 25).
    """
    return PUBLISHED_LOOPS[min(PUBLISHED_LOOPS, key=lambda known: (abs(known - ipc), known))]


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Method):
    """Fields of DC and DSA.

    ``network``: whose gradients are matched. ``iterations``: new networks, each serving
    ``outer_loop`` updates of the images with ``inner_loop`` epochs of training between two (null:
    those published for the nearest number of images per class). ``lr_img``, ``momentum``: of the
    images' SGD (published for MLPs: 0.01). ``lr_net``, ``inner_momentum``: of the network's SGD;
    the original code had a momentum of 0.5 when DC's figures for 10 and more images per class were
    published. ``batch_real``: real images per class and update (as many as the smallest class has,
    if those are fewer). ``batch_train``: images per step of the network. ``distance``: between
    gradients, ``ours`` (cosine of rows; published), ``mse`` or ``cos``. ``init``: start from
    ``noise`` or ``real`` images. ``classes_per_unit``: classes that one worker moves together.

    With one update per network (``outer_loop`` 1, published for one image per class) the network is never trained, and
    ``inner_loop``, ``lr_net``, ``inner_momentum`` and ``batch_train`` say nothing: one job file serves any ``ipc``.
    """

    network: str = "convnet3"
    iterations: Annotated[int, Ge(1)] = 1000
    outer_loop: Annotated[int, Ge(1)] | None = None
    inner_loop: Annotated[int, Ge(1)] | None = None
    lr_img: Annotated[float, Gt(0)] = 0.1
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.5
    lr_net: Annotated[float, Gt(0)] = 0.01
    inner_momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    batch_real: Annotated[int, Ge(1)] = 256
    batch_train: Annotated[int, Ge(1)] = 256
    distance: Literal["ours", "mse", "cos"] = "ours"
    init: Literal["real", "noise"] = "noise"
    classes_per_unit: Annotated[int, Ge(1)] = 5

    @property
    def student_network(self) -> str:
        """The network that students have by default."""
        return self.network

    def strategy(self, info: DatasetInfo) -> str:
        """Return the operations of the augmentation of real and synthetic images alike."""
        return "none"

    def plan(self, problem: Problem) -> list[Stage]:
        """Return one stage; ``ConfigError`` for too few real images or a network whose gradients cannot be matched."""
        info, ipc = problem.dataset, problem.ipc
        if ipc < 1:
            raise ConfigError(f"ipc={ipc}: at least 1 image per class is needed")
        strategy = self.strategy(info)
        parse_strategy(strategy)
        check_init(info, ipc, self.init)
        probe = self._probe(info)
        scales: Literal["kept", "ones"] = "ones" if zero_scales(probe) else "kept"
        check_network(probe, self.network, self.distance)
        check_blindness(
            normalise_name(self.network), info.shape, info.classes, self.distance, scales
        )
        outer, inner = published_loops(ipc)
        outer = outer if self.outer_loop is None else self.outer_loop
        self._check_batches(problem, trained=outer > 1)
        return [
            MatchGradients(
                seed=problem.seed,
                numerics=replace(
                    problem.numerics, convolution="direct"
                ),  # Winograd's has no derivative in the weights
                dataset=info.only("train"),
                ipc=ipc,
                network=normalise_name(self.network),
                iterations=self.iterations,
                outer_loop=outer,
                inner_loop=inner if self.inner_loop is None else self.inner_loop,
                lr_img=self.lr_img,
                momentum=self.momentum,
                lr_net=self.lr_net,
                inner_momentum=self.inner_momentum,
                batch_real=self.batch_real,
                batch_train=self.batch_train,
                distance=self.distance,
                zero_scales=scales,
                init_from=self.init,
                dsa=strategy or "none",
                classes_per_unit=min(self.classes_per_unit, info.classes),
                classes=problem.classes,
            )
        ]

    def _check_batches(self, problem: Problem, *, trained: bool) -> None:
        """Raise ``ConfigError`` if batch norms would see one image: of those that freeze them, or
        at the end of an inner epoch.
        """
        info, count = problem.dataset, len(problem.present)
        smallest = (
            min((info.train_counts[c] for c in problem.present), default=0)
            if info.train_counts
            else FREEZE_IMAGES
        )
        frozen, name = count * min(FREEZE_IMAGES, smallest), normalise_name(self.network)
        facts = (name, info.shape, info.classes)
        check_batches(
            *facts,
            [frozen],
            Recipe(epochs=1, batch=max(1, frozen)),
            "method.batch_train",
            "method.network",
        )
        if trained:
            recipe = Recipe(epochs=1, batch=self.batch_train)
            check_batches(
                *facts, [count * problem.ipc], recipe, "method.batch_train", "method.network"
            )

    def _probe(self, info: DatasetInfo) -> Network:
        return create_network(self.network, info.shape, info.classes, generator(0, "probe"))

    def joint(self, problem: Problem) -> bool:
        """Return whether the network is trained on the images of all classes between two updates,
        or its batch norms see all classes.
        """
        outer = published_loops(problem.ipc)[0] if self.outer_loop is None else self.outer_loop
        return outer > 1 or has_batchnorm(self._probe(problem.dataset))

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the units' images in class order, with hard labels."""
        images = torch.cat([outputs[unit]["images"] for unit in sorted(outputs)])
        labels = torch.tensor(problem.present).repeat_interleave(problem.ipc)
        return DistilledSet(images=images, labels=labels, info=problem.dataset)
