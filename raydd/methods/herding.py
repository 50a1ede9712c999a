"""Herding: real images whose mean feature follows the class mean (Welling, ICML 2009).

In each class, with features ``phi`` and class mean ``mu``, the i-th image is the one not yet chosen that minimises

    || i mu - sum of the chosen phi - phi(x) ||

The features are those before the last layer of a network trained on the whole training set, or of an untrained one
(docs/methods/coresets.md, "Herding" and "Features").

Published (ConvNet, no DSA in evaluation, as quoted by later papers): CIFAR-10 21.5 / 31.6 / 40.4 %
at 1 / 10 / 50 images per class; CIFAR-100 8.4 / 17.3 / 33.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Ref, Stage
from raydd.methods.method import Method, Problem, check_counts, register_method
from raydd.methods.random_selection import SelectImages, assemble_images
from raydd.networks import Network, normalise_name
from raydd.training.batches import check_batches
from raydd.training.sgd import Recipe
from raydd.training.train_network import TrainNetwork, features_of, restore_network
from raydd.training.training_cost import network_facts


def herd(features: Tensor, count: int) -> Tensor:
    """Return the positions of ``count`` rows of ``features [N, d]``, chosen greedily so that their
    mean follows the mean of all.

    Computed in float64; of equally good rows the first is taken. ``count`` must not exceed ``N``.
    """
    phi = features.double()
    mean, squares = phi.mean(0), (phi * phi).sum(1)
    chosen: list[int] = []
    rest = torch.zeros_like(mean)
    for _ in range(count):
        rest = rest + mean  # i mu - sum of the chosen
        distance = squares - 2 * (phi @ rest)  # of phi to rest, squared, up to a constant
        if chosen:
            distance[chosen] = torch.inf
        best = int(distance.argmin())
        chosen.append(best)
        rest = rest - phi[best]
    return torch.tensor(chosen, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class SelectByFeature(SelectImages):
    """Selection that looks at features of a network (``teacher``, a stage of one network); classes are independent."""

    phase: ClassVar[str] = "distill"

    teacher: TrainNetwork

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the network."""
        return {"teacher": Ref(self.teacher, self.teacher.units()[0])}

    def cost(self, unit: str) -> Cost:
        """Return the cost of one forward pass over the block's classes."""
        info, block = self.dataset, self.blocks[unit]
        facts = network_facts(self.teacher.network, info.shape, info.classes)
        images = sum(info.train_counts[c] for c in block) if info.train_counts else 0
        largest = max((info.train_counts[c] for c in block), default=0) if info.train_counts else 0
        pixels = info.channels * info.height * info.width
        return Cost(
            flop=facts.flop * images,
            peak_bytes=largest * (pixels + 12 * facts.features)
            + 4 * 256 * facts.activations
            + 4 * facts.parameters,
            output_bytes=len(block) * self.ipc * pixels,
        )

    def choose(self, label: int, members: Tensor, ctx: Context) -> Tensor:
        """Return the selection among a class's features."""

        def restore() -> Network:
            return restore_network(
                self.teacher.network, self.dataset, ctx.load("teacher"), ctx.device
            )

        ref = Ref(self.teacher, self.teacher.units()[0])
        network = ctx.cached(("teacher", ref.key), restore)
        images = ctx.data["train"].take(members)
        return self.select(features_of(network, images, self.dataset, self.numerics)).cpu()

    def select(self, features: Tensor) -> Tensor:
        """Return ``ipc`` positions among a class's features ``[N, d]``."""
        raise TypeError(f"{type(self).__name__} does not define select()")


@dataclass(frozen=True, kw_only=True)
class Herd(SelectByFeature):
    """Herding in each class."""

    def select(self, features: Tensor) -> Tensor:
        """Return the herded positions."""
        return herd(features, self.ipc)


@dataclass(frozen=True, kw_only=True)
class FeatureSelection(Method):
    """What herding and k-center share: a network for the features, then a choice in each class.

    ``network``: its architecture. ``epochs``: of its training on the whole training set, with the learning rate ``lr``,
    momentum 0.9, weight decay 5e-4, the rate divided by ten for the last quarter; 0: an untrained network. ``dsa``:
    augmentation of that training, operations joined by ``_``, ``none``, or null for those published for the data set.
    ``classes_per_unit``: classes that one worker looks at together.
    """

    stage: ClassVar[type[SelectByFeature]]
    value_bytes: ClassVar[int] = 1

    network: str = "convnet3"
    epochs: Annotated[int, Ge(0)] = 30
    lr: Annotated[float, Gt(0)] = 0.01
    batch: Annotated[int, Ge(1)] = 256
    dsa: str | None = None
    classes_per_unit: Annotated[int, Ge(1)] = 10

    @property
    def student_network(self) -> str:
        """The network that students have by default."""
        return self.network

    def teacher(self, problem: Problem) -> TrainNetwork:
        """Return the stage that trains the network."""
        strategy = problem.dataset.dsa_strategy if self.dsa is None else self.dsa
        augmented = self.epochs > 0 and strategy.lower() not in ("", "none")
        augmentation: dict[str, Any] = (
            {"augmentation": "dsa", "strategy": strategy} if augmented else {}
        )
        drops = (self.epochs - self.epochs // 4,) if self.epochs >= 4 else ()
        info, network = problem.dataset, normalise_name(self.network)
        recipe = Recipe(
            epochs=self.epochs, batch=self.batch, lr=self.lr, drops=drops, **augmentation
        )
        if info.digests:  # else the numbers of images are estimates
            check_batches(
                network,
                info.shape,
                info.classes,
                [sum(info.train_counts)],
                recipe,
                "method.batch",
                "method.network",
            )
        return TrainNetwork(
            seed=problem.seed,
            numerics=problem.numerics,
            dataset=info.only("train"),
            network=network,
            recipe=recipe,
        )

    def plan(self, problem: Problem) -> list[Stage]:
        """Return the training of the network and the selection; ``ConfigError`` if a class has too few images."""
        check_counts(problem.dataset, problem.ipc)
        teacher = self.teacher(problem)
        selection = self.stage(
            seed=problem.seed,
            numerics=problem.numerics,
            dataset=problem.dataset.only("train"),
            ipc=problem.ipc,
            classes_per_unit=self.classes_per_unit,
            teacher=teacher,
        )
        return [teacher, selection]

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the chosen images."""
        return assemble_images(problem, outputs)


@register_method("herding")
@dataclass(frozen=True, kw_only=True)
class Herding(FeatureSelection):
    """Herding; fields: see :class:`FeatureSelection`."""

    stage: ClassVar[type[SelectByFeature]] = Herd
