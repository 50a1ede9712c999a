"""IT-GAN, informative training samples of a GAN (Zhao and Bilen, 2022, arXiv 2204.07513).

A generator is trained, then frozen. For every real image a latent is found of which it makes one most like it. These
latents are moved, under a random network an update, down

    L = (1 - ratio_div) ||mean_i embed(G(z_i, c)) - mean_j embed(real_{c,j})||^2
        + ratio_div mean_i ||embed(G(z_i, c)) - embed(real_i)||^2

for each class c. The set is the generator and the latents.
Worked out in docs/methods/itgan.md, "Learning the latents".

Published: the paper's tables could not be read here; none of its numbers is quoted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le

from raydd.artifacts.decoding import SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.generated import Generated, stored_weights
from raydd.augment.dsa import parse_strategy
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.storage import Storage
from raydd.core.tensors import Tensors, dump_tensors
from raydd.core.units import Ref, Stage, snapshot
from raydd.data.catalog import DatasetInfo
from raydd.methods.dm import MatchDistributions
from raydd.methods.herding import Herd
from raydd.methods.latents.inversion import Invert
from raydd.methods.latents.latent_matching import STORED, MatchLatents
from raydd.methods.latents.latent_rows import GENERATOR, AnyGenerator
from raydd.methods.matching.embedding_matching import probe_network
from raydd.methods.method import Method, Problem, by_stage, check_counts, register_method
from raydd.methods.random_selection import DrawImages, SelectImages
from raydd.networks import is_per_sample, normalise_name
from raydd.training.generator_config import GeneratorConfig
from raydd.training.read_generator import ReadGenerator, check_generator
from raydd.training.recipe import Recipe
from raydd.training.train_generator import TrainGenerator
from raydd.training.train_network import TrainNetwork
from raydd.training.train_pool import TrainPool, check_holdout
from raydd.training.weights import Weights, exists

DRAFTS = 5
"""Pictures of the generator's samples while it is trained."""
KEPT = "generator.safetensors"
"""The generator in a job's output, as ``generator.weights`` of other jobs reads it."""


@dataclass(frozen=True, kw_only=True)
class TrainedNetworks:
    """Networks that latents are matched under in place of random ones: those of ``runs`` trainings of ``epochs``
    epochs whose accuracy on held-out images, a fraction, is from ``acc_min`` to ``acc_max``.
    """

    runs: Annotated[int, Ge(1)] = 10
    epochs: Annotated[int, Ge(1)] = 20
    acc_min: Annotated[float, Ge(0), Le(1)] = 0.7
    acc_max: Annotated[float, Ge(0), Le(1)] = 1.0

    def __post_init__(self) -> None:
        if self.acc_min > self.acc_max:
            raise ConfigError(f"acc_min={self.acc_min:g} is above acc_max={self.acc_max:g}")


@register_method("itgan")
@dataclass(frozen=True, kw_only=True)
class ItGan(Method):
    """IT-GAN.

    ``network``: whose features are inverted and matched. ``generator``: see
    :class:`raydd.training.generator_config.GeneratorConfig`. ``latents``: ``all``, one for each
    training image (published; ``ipc`` is then of baselines alone), or ``ipc`` of each class.
    ``init``: the real images of the latter: ``herding`` by the features, or ``random``. ``epochs``,
    ``batch``: of the training of the network whose features are inverted. ``inversion_steps``,
    ``lr_inversion``, ``inversion_block``: updates (0: latents stay as they are drawn), rate, images
    that are inverted together. ``feature_weight``, ``pixel_weight``, ``z_penalty``: of the mean
    squares of differences of features and pixels, and of the latents. ``iterations``, ``lr_z``:
    updates and rate of Adam. ``ratio_div``: share of the pull of each image to its real partner.
    ``group``: latents of a class that move together; ``batch_z``: of which an update makes images;
    ``batch_real``: real images of an update. ``dsa``: operations joined by ``_``, ``none``, or null
    for those published for the data set. ``network_draws``: an update's random or trained one is
    ``shared`` by the classes, or each has its own (``per_class``, published).
    ``trained_networks``: in place of random ones. ``stored``: type of the set's numbers.
    """

    protocol: ClassVar[str] = "itgan"
    stores_pixels: ClassVar[bool] = False

    network: str = "convnet3"
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    latents: Literal["ipc", "all"] = "ipc"
    init: Literal["herding", "random"] = "herding"
    epochs: Annotated[int, Ge(1)] = 201
    batch: Annotated[int, Ge(1)] = 256
    inversion_steps: Annotated[int, Ge(0)] = 5000
    lr_inversion: Annotated[float, Gt(0)] = 0.1
    inversion_block: Annotated[int, Ge(1)] = 100
    feature_weight: Annotated[float, Ge(0)] = 1.0
    pixel_weight: Annotated[float, Ge(0)] = 1.0
    z_penalty: Annotated[float, Ge(0)] = 0.0
    iterations: Annotated[int, Ge(0)] = 10_000
    lr_z: Annotated[float, Gt(0)] = 1e-3
    ratio_div: Annotated[float, Ge(0), Le(1)] = 1e-3
    group: Annotated[int, Ge(1)] = 1250
    batch_z: Annotated[int, Ge(1)] = 1250
    batch_real: Annotated[int, Ge(1)] = 500
    dsa: str | None = None
    network_draws: Literal["shared", "per_class"] = "shared"
    trained_networks: TrainedNetworks | None = None
    stored: Literal["float16", "float32"] = "float16"

    @property
    def student_network(self) -> str:
        """The network that students have by default."""
        return self.network

    def plan(self, problem: Problem) -> list[Stage]:
        """Return the training of generator and network, the choice of images, inversion and matching.

        ``ConfigError`` for a data set whose images no such generator makes, too few images, batch
        norm, trained networks without held-out images, and a file of another generator, or of none
        (``DataError``).
        """
        info, strategy = problem.dataset, self._strategy(problem.dataset)
        network = normalise_name(self.network)
        parse_strategy(strategy)
        if not is_per_sample(probe_network(network, info)):
            raise ConfigError(
                f"method.network={self.network}: latents are each on their own, and batch norm ties images together; a"
                " network with another norm is needed"
            )
        if not (self.feature_weight or self.pixel_weight) and self.inversion_steps:
            raise ConfigError(
                "method.feature_weight=0 and method.pixel_weight=0: nothing is inverted; set inversion_steps=0"
            )
        frozen, teacher = self._generator(problem), self._teacher(problem, network, strategy)
        counts, picks = self._rows(problem, teacher)
        given: dict[str, Any] = {
            "seed": problem.seed,
            "numerics": problem.numerics,
            "dataset": info.only("train"),
        }
        rows = {**given, "generator": frozen, "counts": counts, "picks": picks}
        inversion = Invert(
            **rows,
            teacher=teacher,
            iterations=self.inversion_steps,
            lr=self.lr_inversion,
            feature_weight=self.feature_weight,
            pixel_weight=self.pixel_weight,
            z_penalty=self.z_penalty,
            block=self.inversion_block,
        )
        matching = MatchDistributions(
            **given,
            network=network,
            iterations=self.iterations,
            lr_img=self.lr_z,
            momentum=0.0,
            batch_real=self.batch_real,
            init_from="latents",
            dsa=strategy or "none",
            ipc=self.group,
            classes_per_unit=1,
        )
        pool = self._pool(problem, network, strategy)
        trained = self.trained_networks or TrainedNetworks()
        latents = MatchLatents(
            **rows,
            inversion=inversion,
            matching=matching,
            group=self.group,
            batch_z=min(self.batch_z, self.group),
            ratio_div=self.ratio_div,
            pool=pool,
            window=(trained.acc_min, trained.acc_max) if pool is not None else (0.0, 1.0),
            network_draws=self.network_draws,
            stored=self.stored,
        )
        before = [stage for stage in (pool, picks) if stage is not None]
        return [frozen, teacher, *before, inversion, latents]

    def last(self, problem: Problem) -> list[Stage]:
        """Return the stage of the generator and that of the latents."""
        plan = self.plan(problem)
        return [plan[0], plan[-1]]

    def targets(self, problem: Problem, output: str = "final") -> dict[str, Ref]:
        """Return the generator, which is done, and the latents at the end or at a snapshot."""
        found = super().targets(problem, output)
        return {
            name: Ref(ref.stage, ref.unit) if ref.unit == GENERATOR else ref
            for name, ref in found.items()
        }

    def updates(self, problem: Problem) -> int:
        """Return how many updates the latents take."""
        return self.iterations

    def size(self, problem: Problem) -> SetSize:
        """Return the size of latents, labels and generator."""
        count, sizes = sum(self._counts(problem)), self.generator.sizes(problem.dataset)
        width = STORED[self.stored].itemsize
        return SetSize(count, count, count * (width * sizes.dim_z + 8) + width * sizes.numbers)

    def drafts(self, problem: Problem) -> dict[tuple[str, int], dict[str, Ref]]:
        """Return the generator after parts of its training."""
        stage = self.last(problem)[0]
        if not isinstance(stage, TrainGenerator):
            return {}
        every = max(1, stage.rounds // DRAFTS)
        return {
            (GENERATOR, step): {GENERATOR: Ref(stage, GENERATOR, snapshot(step))}
            for step in range(every, stage.rounds, every)
        } | {(GENERATOR, stage.rounds): {GENERATOR: Ref(stage, GENERATOR)}}

    def drafted(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return ten samples of each class, the same latents at any time."""
        info, sizes = problem.dataset, self.generator.sizes(problem.dataset)
        draws = generator(problem.seed, "draft")
        count = 10 * info.classes
        return DistilledSet(
            images=torch.randn(count, sizes.dim_z, generator=draws),
            labels=torch.arange(info.classes).repeat_interleave(10),
            info=info,
            extra=stored_weights(outputs[GENERATOR], torch.float32),
            decoding=Generated.decoding_of(sizes, info),
        )

    def missing(self, problem: Problem) -> list[str]:
        """Return a line for the generator's file, if it is not there."""
        url = self.generator.weights
        return [] if url is None or exists(url) else [f"method.generator.weights: {url}"]

    def keep(self, problem: Problem, load: Callable[[Ref], Tensors], url: str) -> dict[str, str]:
        """Write a generator that was trained here, folded, for other jobs; return where."""
        stage = self.last(problem)[0]
        if not isinstance(stage, TrainGenerator):
            return {}
        storage = Storage(url)
        storage.put(KEPT, dump_tensors(load(Ref(stage, GENERATOR))))
        return {GENERATOR: f"{url.rstrip('/')}/{KEPT}"}

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return latents, labels and generator."""
        (weights,), latents = (list(found.values()) for found in by_stage(outputs))
        stage = self.last(problem)[-1]
        if not isinstance(stage, MatchLatents):
            raise TypeError(f"{type(stage).__name__} puts out no latents")
        labels = [torch.full((len(part),), part.label) for _, part in sorted(stage.parts.items())]
        return DistilledSet(
            images=torch.cat([found["z"] for found in latents]),
            labels=torch.cat(labels),
            info=problem.dataset,
            extra=stored_weights(weights, STORED[self.stored]),
            decoding=Generated.decoding_of(self.generator.sizes(problem.dataset), problem.dataset),
            recipe={"source_ids": torch.cat([found["ids"] for found in latents]).tolist()},
        )

    def _strategy(self, info: DatasetInfo) -> str:
        return info.dsa_strategy if self.dsa is None else self.dsa

    def _generator(self, problem: Problem) -> AnyGenerator:
        """Return the stage that trains or reads the generator."""
        config, info = self.generator, problem.dataset
        sizes = config.sizes(info)
        if config.weights is not None:
            weights = Weights.at(config.weights)
            check_generator(weights, sizes)
            return ReadGenerator(
                seed=0, numerics=problem.numerics.plain, sizes=sizes, weights=weights
            )
        return TrainGenerator(
            seed=problem.seed,
            numerics=problem.numerics.plain,
            dataset=info.only("train"),
            sizes=sizes,
            rounds=config.rounds,
            batch=config.batch,
            d_steps=config.d_steps,
            lr=config.lr,
            lr_discriminator=config.lr_discriminator,
            ema=config.ema,
            ema_start=config.averaged_from,
            augment=config.operations(info),
            flip=config.mirrors(info),
            standing=config.standing,
            pooling=config.pooling,
        )

    def _recipe(self, epochs: int, strategy: str) -> Recipe:
        """Return how networks are trained: the rate falls, and momentum is forgotten, at half."""
        drawn = {"augmentation": "dsa", "strategy": strategy} if parse_strategy(strategy) else {}
        drops = (epochs // 2,) if epochs >= 2 else ()
        return Recipe(epochs=epochs, batch=self.batch, drops=drops, **drawn)  # type: ignore[arg-type]

    def _teacher(self, problem: Problem, network: str, strategy: str) -> TrainNetwork:
        return TrainNetwork(
            seed=problem.seed,
            numerics=problem.numerics,
            dataset=problem.dataset.only("train"),
            network=network,
            recipe=self._recipe(self.epochs, strategy),
        )

    def _pool(self, problem: Problem, network: str, strategy: str) -> TrainPool | None:
        if self.trained_networks is None:
            return None
        check_holdout(problem.dataset, "method.trained_networks")
        return TrainPool(
            seed=problem.seed,
            numerics=problem.numerics,
            dataset=problem.dataset.only("train", "holdout"),
            network=network,
            recipe=self._recipe(self.trained_networks.epochs, strategy),
            count=self.trained_networks.runs,
        )

    def _counts(self, problem: Problem) -> tuple[int, ...]:
        """Return how many latents each class has."""
        info = problem.dataset
        if self.latents == "ipc":
            return (problem.ipc,) * info.classes
        if not info.train_counts:
            raise ConfigError(
                "method.latents=all: how many training images there are is not known; set method.latents=ipc"
            )
        return info.train_counts

    def _rows(
        self, problem: Problem, teacher: TrainNetwork
    ) -> tuple[tuple[int, ...], SelectImages | None]:
        """Return how many latents each class has, and what chooses their real images."""
        info = problem.dataset
        check_counts(info, problem.ipc if self.latents == "ipc" else 1)
        counts = self._counts(problem)
        if self.latents == "all":
            return counts, None
        given: dict[str, Any] = {
            "seed": problem.seed,
            "dataset": info.only("train"),
            "ipc": problem.ipc,
            "classes_per_unit": 10,
        }
        if self.init == "random":
            return counts, DrawImages(**given)
        return counts, Herd(**given, numerics=problem.numerics, teacher=teacher)
