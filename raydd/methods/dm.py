"""DM, distribution matching (Zhao and Bilen, WACV 2023, arXiv 2110.04181).

Every update draws a new random network, embeds a batch of real and all synthetic images of each
class under one shared DSA transform per class, and moves the images down

    L = sum_c || mean_i embed(real_{c,i}) - mean_j embed(S_{c,j}) ||^2

by SGD with momentum 0.5. Classes never talk, unless the network has batch norm: then one unit holds them all.
Worked out in docs/methods/dm.md, "The update".

Published (ConvNet, DM protocol): CIFAR-10 26.0 / 48.9 / 63.0 % at 1 / 10 / 50 images per class; CIFAR-100 11.4 / 29.7 /
43.6; Tiny-ImageNet 3.9 / 12.9 / 24.1; Fashion-MNIST 70.7 / 83.5 / 88.1 (the last as quoted by later papers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from raydd.artifacts.decoding import SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.augment.dsa import parse_strategy
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Stage, added
from raydd.losses import distribution_matching_loss
from raydd.methods.matching.class_matching import check_init
from raydd.methods.matching.embedding_matching import (
    EmbeddingMatching,
    Known,
    Moments,
    Side,
    probe_network,
)
from raydd.methods.matching.poster_matching import PosterMatching
from raydd.methods.method import Method, Problem, register_method
from raydd.methods.posters.poster_config import PosterConfig
from raydd.methods.posters.poster_labels import check_hard_labels
from raydd.networks import create_network, is_per_sample, normalise_name
from raydd.networks.flat import FreshWeights
from raydd.training.batches import check_batches
from raydd.training.recipe import Recipe

PER_AREA = 1
"""Windows along each side of a class's area, by default: those between two areas spoil both classes."""


@dataclass(frozen=True, kw_only=True)
class MatchDistributions(EmbeddingMatching):
    """DM's loop: a new random network in every update, and the distance of mean features."""

    def networks(self, ctx: Context) -> Callable[[int], Known]:
        """Return a new random network's weights for every update."""
        info = self.dataset

        def make() -> FreshWeights:
            return FreshWeights(
                lambda: create_network(self.network, info.shape, info.classes, ctx.rng("network"))
            )

        fresh = ctx.cached(("fresh weights", self.network, info.shape, info.classes), make)
        return lambda t: (fresh(ctx.rng("network", t)),)

    def objective(self, features: Tensor, real: Moments, side: Side) -> Tensor:
        """Return the squared distance of mean features."""
        return distribution_matching_loss(real[0], features)


@dataclass(frozen=True, kw_only=True)
class MatchPosters(PosterMatching, MatchDistributions):
    """DM's loop on the windows of one poster."""


@register_method("dm")
@dataclass(frozen=True, kw_only=True)
class Dm(Method):
    """Distribution matching.

    ``network``: embeds the images; a new random one per update. ``iterations``: updates.
    ``lr_img``: learning rate of the images (published: 1; 10 at 100 images per class and more).
    ``momentum``: of the images' SGD. ``batch_real``: real images per class and update. ``init``:
    start from ``real`` images or ``noise``. ``dsa``: operations joined by ``_``, ``none``, or null
    for those published for the data set. ``classes_per_unit``: classes that one worker moves
    together (all, of a network with batch norm and of a poster). ``poster``: the images are windows
    of one poster, of ``ipc`` images' pixels, which may be a fraction, by default one for each class
    (docs/methods/podd.md, "Posters of other methods"); null: they are images.
    """

    network: str = "convnet3"
    iterations: Annotated[int, Ge(1)] = 20_000
    lr_img: Annotated[float, Gt(0)] = 1.0
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.5
    batch_real: Annotated[int, Ge(1)] = 256
    init: Literal["real", "noise"] = "real"
    dsa: str | None = None
    classes_per_unit: Annotated[int, Ge(1)] = 5
    poster: PosterConfig | None = added(None)

    fractions_with: ClassVar[str] = "method.poster"

    @property
    def takes_fractions(self) -> bool:
        """Whether the set is a poster."""
        return self.poster is not None

    @property
    def one_image(self) -> bool:
        """Whether the set is a poster."""
        return self.poster is not None

    @property
    def student_network(self) -> str:
        """The network that students have by default."""
        return self.network

    def plan(self, problem: Problem) -> list[Stage]:
        """Return one stage; ``ConfigError`` if real images are too few for ``init`` or the network
        has no use for the size.
        """
        info = problem.dataset
        strategy = info.dsa_strategy if self.dsa is None else self.dsa
        parse_strategy(strategy)
        each = problem if self.poster is None else replace(problem, ipc=1)
        check_init(info, each.ipc, self.init)
        alone = is_per_sample(probe_network(self.network, info))
        _check_batch(normalise_name(self.network), each, self.batch_real)
        given: dict[str, Any] = {
            "seed": problem.seed,
            "numerics": problem.numerics,
            "dataset": info.only("train"),
            "network": normalise_name(self.network),
            "iterations": self.iterations,
            "lr_img": self.lr_img,
            "momentum": self.momentum,
            "batch_real": self.batch_real,
            "init_from": self.init,
            "dsa": strategy or "none",
        }
        if self.poster is not None:
            layout = self.poster.ordered(info, problem.ipc, PER_AREA)
            check_hard_labels(layout, info.classes)
            return [MatchPosters(**given, ipc=1, layout=layout, classes_per_unit=info.classes)]
        block = min(self.classes_per_unit, info.classes) if alone else info.classes
        return [
            MatchDistributions(
                **given, ipc=problem.ipc, classes_per_unit=block, classes=problem.classes
            )
        ]

    def size(self, problem: Problem) -> SetSize:
        """Return the size of ``ipc`` images of each class, or of the poster."""
        if self.poster is None:
            return super().size(problem)
        return self.poster.size(problem.dataset, problem.ipc, per_area=PER_AREA)

    def settled(self, problem: Problem) -> dict[str, dict[str, Any]]:
        """Return a poster's size and the order of its classes."""
        return (
            {}
            if self.poster is None
            else self.poster.settled(problem.dataset, problem.ipc, PER_AREA)
        )

    def joint(self, problem: Problem) -> bool:
        """Return whether the network has batch norm, whose statistics are of all classes."""
        return not is_per_sample(probe_network(self.network, problem.dataset))

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the blocks' images in class order, or the poster, with hard labels."""
        if self.poster is not None:
            (made,) = outputs.values()
            info, ipc = problem.dataset, problem.ipc
            decoding = self.poster.layout(info, ipc, PER_AREA).decoding
            return DistilledSet(
                images=made["images"], labels=made["labels"], info=info, decoding=decoding
            )
        images = torch.cat([outputs[unit]["images"] for unit in sorted(outputs)])
        labels = torch.tensor(problem.present).repeat_interleave(problem.ipc)
        return DistilledSet(images=images, labels=labels, info=problem.dataset)


def _check_batch(network: str, problem: Problem, batch_real: int) -> None:
    """Raise ``ConfigError`` if the network's batch norms, which see all classes at once, would see one image."""
    info = problem.dataset
    smallest = (
        min((info.train_counts[c] for c in problem.present), default=0) if info.train_counts else 0
    )
    seen = [
        count * len(problem.present)
        for count in (problem.ipc, min(batch_real, smallest) or batch_real)
    ]
    check_batches(
        network,
        info.shape,
        info.classes,
        seen,
        Recipe(epochs=1, batch=max(seen)),
        "method.batch_real",
        "method.network",
    )
