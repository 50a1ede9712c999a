"""What methods of unrolled training are configured by, and how they plan (docs/methods/rat_bptt_podd.md)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from raydd.artifacts.decoding import Decoding, SetSize
from raydd.artifacts.distilled_set import DistilledSet, Whitening
from raydd.augment.dsa import parse_strategy
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.tensors import Tensors
from raydd.core.units import Stage
from raydd.methods.method import Method, Problem, by_stage, check_counts
from raydd.methods.unroll.distilled_batches import DistilledBatches
from raydd.methods.unroll.engines import Engine
from raydd.methods.unroll.inner_steps import (
    BiasCorrection,
    InnerAdam,
    InnerOptimizer,
    InnerSgd,
    WindowEps,
)
from raydd.methods.unroll.outer import OuterAdam
from raydd.methods.unroll.placement import Mode, Placement, Resample
from raydd.methods.unroll.unroll_stage import PlateauRule, Unroll
from raydd.methods.unroll.weight_vector import WeightVector
from raydd.networks import create_network, normalise_name
from raydd.training.fit_whitening import FitWhitening

Space = Literal["normalised", "zca_per_image"]


@dataclass(frozen=True, kw_only=True)
class UnrollMethod(Method):
    """Fields that methods of unrolled training share.

    ``network``: trained anew by every unroll. ``iterations``: outer updates. ``placement``,
    ``window``, ``minwindow``, ``totwindow``, ``resample``, ``plateau``: which inner steps are
    differentiated (docs/methods/rat_bptt_podd.md, "The window"). ``inner_optimizer``, ``inner_lr``:
    of the network's training; ``adam_window_eps``, ``adam_bias_correction``: of Adam's steps in the
    window. ``lr_img``: of the images' Adam; ``label_lr_scale``: labels move at ``lr_img`` divided by
    it. ``clip_coef``, ``clip_multiple``: a gradient of the images longer than ``clip_multiple`` times
    the moving average of their norms is shortened to it. ``batch_real``: real images behind each
    unroll. ``unrolls``: meta-gradients that are averaged in each update. ``syn_strategy``,
    ``real_strategy``: augmentations of distilled and of real batches, operations joined by ``_``, or
    ``none``. ``space``: of the images, whitened or normalised. ``engine``: how meta-gradients are
    computed (docs/methods/rat_bptt_podd.md, "The adjoint").
    """

    protocol: ClassVar[str] = "rat_bptt"

    network: str = "convnet3"
    iterations: Annotated[int, Ge(1)] = 100_000
    placement: Mode = "random"
    window: Annotated[int, Ge(1)] = 60
    minwindow: Annotated[int, Ge(0)] = 0
    totwindow: Annotated[int, Ge(1)] = 200
    resample: Resample = "epoch"
    plateau: PlateauRule | None = None
    inner_optimizer: Literal["adam", "sgd"] = "adam"
    inner_lr: Annotated[float, Gt(0)] = 1e-3
    adam_window_eps: WindowEps = "higher"
    adam_bias_correction: BiasCorrection = "float64"
    lr_img: Annotated[float, Gt(0)] = 1e-3
    label_lr_scale: Annotated[float, Gt(0)] = 1.0
    clip_coef: Annotated[float, Ge(0), Lt(1)] = 0.9
    clip_multiple: Annotated[float, Gt(0)] = 2.0
    batch_real: Annotated[int, Ge(1)] = 5000
    unrolls: Annotated[int, Ge(1)] = 1
    syn_strategy: str = "flip_rotate"
    real_strategy: str = "flip_rotate"
    space: Space = "zca_per_image"
    engine: Engine = "adjoint"

    def __post_init__(self) -> None:
        self._refuse("plateau", None, self.placement != "advance", f"placement={self.placement}")
        if self.placement == "advance" and self.plateau is None:
            raise ConfigError(
                "method.placement=advance needs method.plateau, the rule that moves the window on; {} for its defaults"
            )
        self._refuse(
            "minwindow",
            0,
            self.placement in ("start", "end", "random_length"),
            f"placement={self.placement}",
        )
        start = self.placement == "start"
        self._refuse("totwindow", UnrollMethod.totwindow, start, "placement=start")
        self._refuse("resample", "epoch", not self._placed().drawn, f"placement={self.placement}")
        sgd = self.inner_optimizer == "sgd"
        self._refuse("adam_window_eps", "higher", sgd, "inner_optimizer=sgd")
        self._refuse("adam_bias_correction", "float64", sgd, "inner_optimizer=sgd")
        for strategy in (self.syn_strategy, self.real_strategy):
            parse_strategy(strategy)

    def _refuse(self, name: str, default: object, useless: bool, beside: str) -> None:
        value = getattr(self, name)
        if useless and value != default:
            said = name if is_dataclass(value) else f"{name}={value}"
            raise ConfigError(f"method.{said} has no effect with method.{beside}")

    def _placed(self) -> Placement:
        return Placement(
            mode=self.placement,
            length=self.window,
            first=self.minwindow,
            total=self.window if self.placement == "start" else self.totwindow,
            resample=self.resample,
        )

    @abstractmethod
    def batches(self, problem: Problem) -> DistilledBatches:
        """Return what is distilled; ``ConfigError`` for what cannot be."""

    def decoding(self, problem: Problem) -> Decoding:
        """Return how the set's stored tensors become the images that students see."""
        return Decoding()

    @property
    def made_in(self) -> str:
        """The space of the images."""
        return self.space

    @property
    def student_network(self) -> str:
        """The network that students have by default."""
        return self.network

    def plan(self, problem: Problem) -> list[Stage]:
        """Return the whitening, where there is one, and the loop; ``ConfigError`` for a network that
        cannot be unrolled, and for classes without images.
        """
        info = problem.dataset
        check_counts(info, 1)
        probe = create_network(self.network, info.shape, info.classes, generator(0, "probe"))
        WeightVector(probe)
        whitening = self.whitening(problem)
        unroll = Unroll(
            seed=problem.seed,
            numerics=replace(problem.numerics.full, convolution="direct"),
            dataset=info.only("train"),
            batches=self.batches(problem),
            network=normalise_name(self.network),
            iterations=self.iterations,
            unrolls=self.unrolls,
            inner=self._inner(),
            outer=OuterAdam(
                lr=self.lr_img,
                label_lr_scale=self.label_lr_scale,
                clip_coef=self.clip_coef,
                clip_multiple=self.clip_multiple,
            ),
            placement=self._placed(),
            batch_real=self.batch_real,
            syn_strategy=self.syn_strategy,
            real_strategy=self.real_strategy,
            engine=self.engine,
            whitening=whitening,
            plateau=self.plateau,
            classes=problem.classes,
        )
        return [unroll] if whitening is None else [whitening, unroll]

    def last(self, problem: Problem) -> list[Stage]:
        """Return all stages: the set keeps the whitening, too."""
        return self.plan(problem)

    def whitening(self, problem: Problem) -> FitWhitening | None:
        """Return what fits the whitening, where images are whitened."""
        if self.space == "normalised":
            return None
        return FitWhitening(seed=0, dataset=problem.dataset.only("train"), space=self.space)

    def _inner(self) -> InnerOptimizer:
        if self.inner_optimizer == "sgd":
            return InnerSgd(lr=self.inner_lr)
        return InnerAdam(
            lr=self.inner_lr,
            window_eps=self.adam_window_eps,
            bias_correction=self.adam_bias_correction,
        )

    def joint(self, problem: Problem) -> bool:
        """Return True: networks are trained on the images of all classes."""
        return True

    def size(self, problem: Problem) -> SetSize:
        """Return the images of the table, their labels, and the whitening."""
        batches, whitening = self.batches(problem), self.whitening(problem)
        count = batches.count
        held = 4 * math.prod(batches.shape) + 8 + 4 * batches.classes * batches.learn_labels
        matrix = 0 if whitening is None else whitening.bytes
        return SetSize(count, count, count * held + matrix, matrix)

    def stored(self, problem: Problem, output: Tensors) -> Tensors:
        """Return what the set stores of the loop's output."""
        return self.batches(problem).stored(output)

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the set, in the space that it was distilled in."""
        whitening, fit = None, self.whitening(problem)
        made = dict(outputs)
        if fit is not None:
            fitted, made = by_stage(outputs)
            whitening = fit.whitening(fitted["all"])
        stored = self.stored(problem, made["all"])
        return distilled_set(problem, stored, self.decoding(problem), whitening)


def distilled_set(
    problem: Problem, stored: Tensors, decoding: Decoding, whitening: Whitening | None
) -> DistilledSet:
    """Return the set of stored tensors; a whitening is of pixels in [0, 1], not of normalised ones."""
    info, further = problem.dataset, dict(stored)
    images, labels = further.pop("images"), further.pop("labels")
    soft = further.pop("soft_labels", None)
    plain = whitening is not None
    return DistilledSet(
        images=images,
        labels=labels,
        soft_labels=soft,
        extra=further,
        info=info,
        mean=(0.0,) * info.channels if plain else (),
        std=(1.0,) * info.channels if plain else (),
        whitening=whitening,
        decoding=decoding,
    )
