"""RaT-BPTT's loop as a stage: one unit, whose outer steps' unrolls are lanes (docs/methods/rat_bptt_podd.md, "The outer
step").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from raydd.augment.dsa import DsaTransform, draw, parse_strategy
from raydd.augment.table import apply_taps, make_table, spread
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Ref, Stage, stage_digest
from raydd.data.catalog import DatasetInfo
from raydd.methods.unroll.distilled_batches import LABELS, PIXELS, DistilledBatches
from raydd.methods.unroll.engines import (
    Engine,
    InnerBatch,
    MetaGradient,
    Unroller,
    UnrollPlan,
    mean_cross_entropy,
)
from raydd.methods.unroll.inner_steps import InnerOptimizer
from raydd.methods.unroll.outer import OuterAdam, finite_mean
from raydd.methods.unroll.placement import Placement, Plateau, Window
from raydd.methods.unroll.real_batches import REAL_CHUNK, RealBatches
from raydd.methods.unroll.unroll_cost import unroll_cost
from raydd.methods.unroll.weight_vector import WeightVector
from raydd.networks import create_network
from raydd.training.fit_whitening import FitWhitening, network_space

_WHITENING = "whitening"
_OUTER = "outer."
_NEVER = torch.finfo(torch.float64).max


@dataclass(frozen=True, kw_only=True)
class PlateauRule:
    """When windows of the placement ``advance`` go further.

    After every ``every`` epochs of real images fresh networks, one for each unroll, are trained for
    ``steps`` inner steps and their cross entropy on the training images is taken. If it was last
    improved ``patience`` epochs ago, or the rule last applied then, the window goes further.
    """

    every: Annotated[int, Ge(1)] = 25
    patience: Annotated[int, Ge(1)] = 60
    steps: Annotated[int, Ge(1)] = 2000


@dataclass(frozen=True, kw_only=True)
class Unroll(Stage):
    """Move distilled data by meta-gradients; a step is one outer update, whose ``unrolls`` are its lanes.

    ``batches``: what is distilled, and what inner steps see of it. ``network``: trained by each
    unroll from fresh weights with ``inner``. ``batch_real``: real images behind each unroll.
    ``syn_strategy``, ``real_strategy``: augmentations of inner batches and of real ones, operations
    joined by ``_`` of which one is drawn for each batch, with numbers for each image. ``whitening``:
    of the real images (``None``: they are normalised). ``classes``: of the real images (``None``: all).

    State and output: the parameters of ``batches``, by name; in the state the memory of ``outer`` as
    ``outer.*``; ``skipped``, how many meta-gradients were left out since they were not finite.
    """

    phase: ClassVar[str] = "distill"

    dataset: DatasetInfo
    batches: DistilledBatches
    network: str
    iterations: int
    unrolls: int
    inner: InnerOptimizer
    outer: OuterAdam
    placement: Placement
    batch_real: int
    syn_strategy: str
    real_strategy: str
    engine: Engine
    whitening: FitWhitening | None = None
    plateau: PlateauRule | None = None
    classes: tuple[int, ...] | None = None

    @property
    def lanes(self) -> int:
        """Return the number of unrolls of a step; 0 for one alone."""
        return self.unrolls if self.unrolls > 1 else 0

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the whitening."""
        return {} if self.whitening is None else {_WHITENING: self.whitening.refs()[0]}

    def steps(self, unit: str) -> int:
        """Return the number of outer updates."""
        return self.iterations

    def cost(self, unit: str) -> Cost:
        """Return the cost: warm-up, window and its derivative, real images."""
        return unroll_cost(self)

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return the parameters as they start, and an empty memory."""
        parameters = {n: v.to(ctx.device) for n, v in self.batches.start(ctx.rng).items()}
        memory = {_OUTER + n: v for n, v in self.outer.fresh(parameters).items()}
        state = parameters | memory
        state["skipped"] = torch.zeros((), dtype=torch.int64, device=ctx.device)
        if self.plateau is not None:
            start = [_NEVER, 0.0, float(self.placement.first), 0.0]
            state["plateau"] = torch.tensor(start, dtype=torch.float64, device=ctx.device)
        return state

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after an outer update."""
        reached = self._reached(state)
        if reached is not None and reached.stopped:
            return state
        real = self._real(ctx)
        epoch, place = divmod(t, real.per_epoch)
        at = self.placement.first if reached is None else reached.at
        parameters = {n: v for n, v in state.items() if n in (PIXELS, LABELS)}

        def lane(k: int) -> Tensors:
            window = self._window(epoch, t, k, at, ctx)
            found = self._meta_gradient(parameters, window, (t, epoch, place, k), ctx)
            return {name: value.unsqueeze(0) for name, value in found.items()}

        lanes = ctx.each_lane(lane) if self.lanes else [lane(0)]
        mean, skipped = finite_mean([{n: v[0] for n, v in one.items()} for one in lanes])
        new = state | {"skipped": state["skipped"] + skipped}
        if mean is not None:
            memory = {n.removeprefix(_OUTER): v for n, v in state.items() if n.startswith(_OUTER)}
            parameters, memory, norm = self.outer.update(parameters, memory, mean)
            new |= self.batches.project(parameters)
            new |= {_OUTER + name: value for name, value in memory.items()}
            ctx.log(t, loss=mean["loss"], inner_loss=mean["inner"], gradient_norm=norm)
        if skipped:
            ctx.log(t, skipped=skipped)
        if self.plateau is not None and reached is not None and place == real.per_epoch - 1:
            new |= self._tested(new, reached, epoch, ctx)
        return new

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the parameters, what is kept beside them, and how many meta-gradients were left out."""
        parameters = {n: v for n, v in state.items() if n in (PIXELS, LABELS, "skipped")}
        return parameters | self.batches.kept()

    # -- one unroll --------------------------------------------------------------------------------

    def _window(self, epoch: int, t: int, k: int, at: int, ctx: Context) -> Window:
        key = {"epoch": (epoch,), "step": (t,), "unroll": (t, k)}[self.placement.resample]
        draws = ctx.rng(f"window/{self.placement.resample}", *key)

        def randint(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (1,), generator=draws))

        return self.placement.window(randint, at)

    def _plan(self, window: Window, name: str, key: tuple[int, ...], ctx: Context) -> UnrollPlan:
        """Return what is drawn for an unroll; streams ``name/...`` keyed by ``key``."""
        sample, numbers = ctx.rng(f"{name}/batch", *key), ctx.rng(f"{name}/augment", *key)
        batches = []
        for _ in range(window.warmup + window.length):
            ids = self.batches.sample(sample)
            augmented = self._augmentation(self.syn_strategy, numbers, len(ids), ctx)
            batches.append(InnerBatch(ids.to(ctx.device), augmented))
        weights = self._unroller(ctx).network.fresh(ctx.rng(f"{name}/network", *key))
        return UnrollPlan(weights.to(ctx.device), batches, window.warmup)

    def _augmentation(
        self, strategy: str, draws: torch.Generator, count: int, ctx: Context
    ) -> Callable[[Tensor], Tensor]:
        if not parse_strategy(strategy):
            return lambda images: images
        size = self.batches.shape[1:]
        transform = draw(strategy, draws, size=size, siamese=False, count=count)
        return transform if ctx.device.type == "cpu" else _by_table(transform, ctx.device)

    def _meta_gradient(
        self, parameters: Tensors, window: Window, key: tuple[int, int, int, int], ctx: Context
    ) -> Tensors:
        """Return the derivatives of one unroll's loss in the parameters, by name, with the ``loss``
        and the last ``inner`` loss.
        """
        t, epoch, place, k = key
        plan = self._plan(window, "inner", (t, k), ctx)
        images, labels = self._real(ctx).batch(place, ctx.rng("real", epoch, k))
        augmented = self._augmentation(
            self.real_strategy, ctx.rng("real/augment", t, k), len(images), ctx
        )
        seen = augmented(images)
        unroller = self._unroller(ctx)

        def outer(theta: Tensor) -> tuple[Tensor, Tensor]:
            return unroller.loss_and_gradient(theta, seen, labels, REAL_CHUNK)

        found = meta_gradient(unroller, self.engine, self.batches, parameters, plan, outer)
        return found[1] | {"loss": found[0].loss, "inner": found[0].inner[-1]}

    def _unroller(self, ctx: Context) -> Unroller:
        def make() -> Unroller:
            network = create_network(
                self.network, self.batches.shape, self.batches.classes, ctx.rng("structure")
            )
            fused = self.numerics.compile
            vector = WeightVector(network.to(ctx.device), compile=fused)
            return Unroller(vector, self.inner, compile=fused)

        return ctx.cached(("unroller", stage_digest(self)), make)

    def _real(self, ctx: Context) -> RealBatches:
        def make() -> RealBatches:
            whitening = (
                None if self.whitening is None else self.whitening.whitening(ctx.load(_WHITENING))
            )
            prepare = network_space(self.dataset, whitening, ctx.device)
            return RealBatches(ctx.data["train"], ctx, self.batch_real, prepare, self.classes)

        return ctx.cached(("real batches", stage_digest(self)), make)

    # -- the rule that moves windows on ------------------------------------------------------------

    def _reached(self, state: Tensors) -> Plateau | None:
        if self.plateau is None:
            return None
        best, epoch, at, stopped = state["plateau"].tolist()
        return Plateau(best, int(epoch), int(at), bool(stopped))

    def _tested(self, state: Tensors, reached: Plateau, epoch: int, ctx: Context) -> Tensors:
        """Return what the rule remembers after an epoch, of which some are tested."""
        rule = self.plateau
        if rule is None or (epoch + 1) % rule.every:
            return {}
        parameters = {n: v for n, v in state.items() if n in (PIXELS, LABELS)}

        def lane(k: int) -> Tensors:
            plan = self._plan(Window(rule.steps, 0), "plateau", (epoch, k), ctx)
            return {"loss": self._train_loss(parameters, plan, ctx).reshape(1)}

        lanes = ctx.each_lane(lane) if self.lanes else [lane(0)]
        loss = torch.cat([one["loss"] for one in lanes]).mean()
        if not bool(torch.isfinite(loss)):
            return {}
        after = reached.after(self.placement, float(loss), epoch, rule.patience)
        values = [after.best, float(after.epoch), float(after.at), float(after.stopped)]
        return {"plateau": state["plateau"].new_tensor(values)}

    def _train_loss(self, parameters: Tensors, plan: UnrollPlan, ctx: Context) -> Tensor:
        unroller, real = self._unroller(ctx), self._real(ctx)
        weights, _ = unroller.warm_up(plan, *self.batches.materialise(parameters))
        total = torch.zeros((), dtype=torch.float64, device=ctx.device)
        with torch.no_grad():
            for images, labels in real.all():
                logits = unroller.network.once(weights, images)
                total += mean_cross_entropy(logits, labels).double() * len(labels)
        return total / len(real.ids)


def meta_gradient(
    unroller: Unroller,
    engine: Engine,
    batches: DistilledBatches,
    parameters: Tensors,
    plan: UnrollPlan,
    outer: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[MetaGradient, Tensors]:
    """Return an unroll's meta-gradient in all images and targets, and in the parameters they are made of."""
    with torch.enable_grad():
        leaves = {n: v.detach().requires_grad_(True) for n, v in parameters.items()}
        images, targets = batches.materialise(leaves)
    found = unroller.gradient(engine, plan, images, targets, outer)
    made, of_made = [images], [found.of_images]
    if targets.requires_grad and found.of_targets is not None:
        made, of_made = [*made, targets], [*of_made, found.of_targets]
    derivatives = torch.autograd.grad(made, list(leaves.values()), of_made)
    return found, dict(zip(leaves, derivatives, strict=True))


def _by_table(transform: DsaTransform, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the transform in the form whose derivative adds without atomics."""
    table = make_table([transform], torch.float32).to(device)

    def augmented(images: Tensor) -> Tensor:
        return apply_taps(images.unsqueeze(0), spread(table, images.dtype)).squeeze(0)

    return augmented
