"""The engine of the statistics-matching family: images moved until networks see in them the statistics of real ones.

A group of images is optimised together by Adam under one view per update and one network per update, in turn
(docs/methods/recovery.md, "The update"):

    L = CE(f_k(view(x)), y) + r_loss * sum_l w_l r_l(view(x)) + priors,    x <- clamp(Adam(x)),    k = t mod M

What is a group's own (start, views, left-out layers) is keyed by its index and the update, so that
neither packing nor the number of workers changes it. Methods of the family differ in their
configuration; one with other parameters than pixels overrides :meth:`MatchStatistics.renderer` and
:meth:`MatchStatistics.project`, one whose networks change with the images :meth:`MatchStatistics.teacher_at`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import ClassVar

import torch
from torch import Tensor

from raydd.artifacts.codec import ImageFormat, stored_as
from raydd.core.ahead import Ahead
from raydd.core.captured import pinned
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Ref, Stage, added, stage_digest
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import normalise
from raydd.losses.statistics_matching import Layout, draw_kept
from raydd.methods.pools.image_pool import ImagePool, Sampling
from raydd.methods.recovery.recover_config import Matching, Priors
from raydd.methods.recovery.recover_groups import Group, Grouping
from raydd.methods.recovery.recover_objective import ObservedTeacher, tap_layout
from raydd.methods.recovery.recover_start import from_pool, local_statistics, noise
from raydd.methods.recovery.recover_update import (
    LOGGED,
    OF_IMAGES,
    Recorded,
    UnitUpdates,
    Update,
    cosine_rate,
    with_rows,
)
from raydd.methods.recovery.recover_views import Views
from raydd.networks.taps import StatTap
from raydd.training.backbones import Backbone
from raydd.training.statistics_tables import TableStage, load_tables
from raydd.training.training_cost import network_facts


@dataclass(frozen=True, kw_only=True)
class MatchStatistics(Stage):
    """Recover ``ipc`` images per class; a unit is a pack (or a chain) of groups.

    ``backbones``: networks that take turns. ``statistics``: their tables, one each; none if batch
    norms' running statistics are all that is matched. ``pool``, ``sampling``: what images start
    from; no pool: normal noise. ``mirror_start``: mirror these at random where views are mirrored.
    ``parts``: every group's batch goes through networks in so many.
    ``iterations``: updates of a group. ``betas``: of Adam. State of a
    unit: ``images`` float32, normalised, with Adam's ``first`` and ``second`` moments;
    ``running.<k>`` ``[G, 2, W]`` where there is a momentum; ``average`` images where there is a
    flatness term; ``local.<k>``.

    Output: ``images`` uint8 (rounded down, as stored), ``labels``, ``index`` (class-major position in the set).
    """

    phase: ClassVar[str] = "recover"
    version: ClassVar[int] = 2

    dataset: DatasetInfo
    ipc: int
    backbones: tuple[Backbone, ...]
    statistics: tuple[TableStage, ...] = ()
    pool: ImagePool | None = None
    sampling: Sampling = "without_replacement"
    grouping: Grouping
    iterations: int
    lr_img: float
    betas: tuple[float, float] = (0.5, 0.9)
    views: Views = field(default_factory=Views)
    matching: Matching
    priors: Priors = field(default_factory=Priors)
    image_format: ImageFormat = "png"
    mirror_start: bool = added(True)
    parts: int = added(1)

    # -- units -------------------------------------------------------------------------------------------------------

    @property
    def chained(self) -> bool:
        """Whether the groups of a unit run one after another."""
        return self.matching.chained

    @cached_property
    def groups_of(self) -> dict[str, tuple[Group, ...]]:
        """The groups of every unit."""
        return self.grouping.units(self.dataset.classes, self.ipc, mixed=self.chained)

    def units(self) -> Sequence[str]:
        """Return the names of the packs or chains of groups."""
        return tuple(self.groups_of)

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the networks' weights, their tables, and the pools of the unit's classes."""
        refs: dict[str, Ref] = {}
        for k, backbone in enumerate(self.backbones):
            refs |= backbone.inputs(f"backbone-{k}")
        for k, tables in enumerate(self.statistics):
            refs |= tables.inputs_of(f"statistics-{k}")
        if self.pool is not None:
            classes = sorted(
                {label for group in self.groups_of[unit] for label in group.labels(self.ipc)}
            )
            refs |= {
                f"pool-{name}": Ref(self.pool, name)
                for name in dict.fromkeys(self.pool.unit_of(c) for c in classes)
            }
        return refs

    def steps(self, unit: str) -> int:
        """Return the number of updates: of all groups at once, or of one after another."""
        return self.iterations * (len(self.groups_of[unit]) if self.chained else 1)

    def cost(self, unit: str) -> Cost:
        """Return the cost: a forward pass and the images' gradient per update; activations of the
        largest network at peak.
        """
        info, groups = self.dataset, self.groups_of[unit]
        facts = [network_facts(b.network, info.shape, b.dataset.classes) for b in self.backbones]
        layouts = [self._layout(b) for b in self.backbones]
        count = sum(len(g.positions) for g in groups)
        at_once = max(len(g.positions) for g in groups) if self.chained else count
        pixels = info.channels * info.height * info.width
        passes = 3 + bool(self.priors.flatness_weight) - 1 / self.parts
        running = 8 * sum(layout.width for layout in layouts) * len(groups)
        state = 4 * count * pixels * (4 if self.priors.flatness_weight else 3)
        state += running * (bool(self.matching.momentum) + self.matching.local)
        tables = (
            8 * sum(layout.width for layout in layouts) * (info.classes if self.statistics else 1)
        )
        return Cost(
            flop=self.iterations * count * passes * sum(f.flop for f in facts) / len(facts),
            # Both states and what is between them; values kept for the gradient, and three eighths more.
            peak_bytes=2 * state
            + 16 * count * pixels
            + 11 * -(-at_once // self.parts) * max(f.activations for f in facts) // 2
            + 4 * sum(f.parameters for f in facts)
            + tables,
            state_bytes=state,
            output_bytes=count * (pixels + 16),
        )

    # -- state -------------------------------------------------------------------------------------------------------

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return the start images, moments of zero and running statistics of zero."""
        groups = self.groups_of[unit]
        images = self.start(groups, ctx)
        state = {
            "images": images,
            "first": torch.zeros_like(images),
            "second": torch.zeros_like(images),
        }
        if self.priors.flatness_weight:
            state["average"] = images.clone()
        together = 1 if self.chained else len(groups)
        for k in range(len(self.backbones)):
            teacher = self.teacher(k, ctx)
            if self.matching.momentum:
                state[f"running.{k}"] = torch.zeros(together, 2, teacher.width, device=ctx.device)
            if self.matching.ema_init == "first":
                state[f"used.{k}"] = torch.zeros(
                    together, len(teacher.tap.layout.layers), dtype=torch.bool, device=ctx.device
                )
        if self.matching.local:
            state |= self._local_statistics(groups, ctx)
        return state

    def start(self, groups: Sequence[Group], ctx: Context) -> Tensor:
        """Return the start images of groups, normalised float32 on the device: noise, or the
        pool's, mirrored at random.
        """
        positions = [p for group in groups for p in group.positions]
        if self.pool is None:
            return noise(positions, self.ipc, self.dataset.shape, ctx).to(ctx.device)
        flip = self.views.flip and self.mirror_start
        pictures = from_pool(positions, self.ipc, self.pool, self.sampling, flip, ctx)
        return normalise(pictures.to(ctx.device), self.dataset.mean, self.dataset.std)

    def _local_statistics(self, groups: Sequence[Group], ctx: Context) -> Tensors:
        """Return ``local.<k>``, ``[groups, 2, W]``: class statistics of real images drawn for each group."""
        expand = self.matching.expand(self.dataset.classes * self.ipc)
        taps = [self.teacher(k, ctx).tap for k in range(len(self.backbones))]
        each = [
            local_statistics(
                taps, g.index, g.labels(self.ipc), expand, self.views.flip, self.dataset, ctx
            )
            for g in groups
        ]
        return {
            f"local.{k}": torch.stack(found).to(ctx.device)
            for k, found in enumerate(zip(*each, strict=True))
        }

    # -- updates -----------------------------------------------------------------------------------------------------

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after one update of the unit's groups, or of the one whose turn it is."""
        return self.updated(unit, state, t, ctx)

    def updated(
        self, unit: str, state: Tensors, t: int, ctx: Context, more: Tensor | None = None
    ) -> Tensors:
        """Return the state after an update; ``more`` is added to its gradient, like the images that move."""
        shared: UnitUpdates = ctx.cached(
            ("recover", stage_digest(self), unit), lambda: self._share(unit, ctx)
        )
        k, turn = self.network_of(t), self._turn(unit, t)
        rows = self.rows(unit, turn)
        optional = {f"{name}.{k}": name for name in ("running", "used", "leaked")}
        given = {name: state[name][rows] for name in OF_IMAGES if name in state}
        given |= {"labels": torch.stack(shared.labels[turn]), **shared.draws(t)}
        given |= {name: state[key] for key, name in optional.items() if key in state}
        if self.matching.local:
            given["targets"] = state[f"local.{k}"][turn]
        update = shared.update(turn, k, partial(self._update, unit, turn, k, state, shared, ctx))
        found = update(given) if more is None else update.once({**given, "more": more})
        ctx.log(
            t,
            **{
                name.removeprefix(LOGGED): value
                for name, value in found.items()
                if name.startswith(LOGGED)
            },
        )
        new = {
            **state,
            **{
                name: with_rows(state[name], rows, found[name])
                for name in OF_IMAGES
                if name in state
            },
        }
        return new | {key: found[name] for key, name in optional.items() if key in state}

    def _update(
        self, unit: str, turn: slice, k: int, state: Tensors, shared: UnitUpdates, ctx: Context
    ) -> Recorded:
        """Return the update of some groups against network ``k``."""
        update = Update(
            teacher=self.teacher_at(k, unit, turn, state, ctx),
            matching=self.matching,
            priors=self.priors,
            betas=self.betas,
            classes=[group.labels(self.ipc) for group in self.groups_of[unit][turn]],
            render=self.renderer(unit, turn, ctx),
            project=partial(self.project, low=shared.low, high=shared.high),
            parts=self.parts,
        )
        return Recorded(update, ctx.device)

    def network_of(self, t: int) -> int:
        """Return which network has its turn at a unit's update ``t``."""
        return t % len(self.backbones)

    def rows(self, unit: str, turn: slice) -> slice:
        """Return where the parameters of some of a unit's groups lie: here one row per image."""
        sizes = [len(group.positions) for group in self.groups_of[unit]]
        return slice(sum(sizes[: turn.start]), sum(sizes[: turn.stop]))

    def renderer(self, unit: str, turn: slice, ctx: Context) -> Callable[[Tensor], Tensor]:
        """Return what makes the images of some groups of their parameters, here pixels; it holds whatever
        else it reads, which a recorded update reads again in its place.
        """
        return lambda parameters: parameters

    def project(self, parameters: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return parameters within what images can show, ``low`` and ``high`` being black and white per channel."""
        return torch.minimum(torch.maximum(parameters, low), high)

    def teacher(self, k: int, ctx: Context) -> ObservedTeacher:
        """Return network ``k``, observed, with the statistics that are matched."""
        return ctx.cached(("recover teacher", stage_digest(self), k), lambda: self.observed(k, ctx))

    def teacher_at(
        self, k: int, unit: str, turn: slice, state: Tensors, ctx: Context
    ) -> ObservedTeacher:
        """Return network ``k`` as some groups of a unit see it, ``state`` being the unit's at that time."""
        return self.teacher(k, ctx)

    def observed(self, k: int, ctx: Context, *, own: bool = False) -> ObservedTeacher:
        """Return network ``k``, observed anew; ``own``: a copy, whose weights may be changed."""
        load = self.backbones[k].own if own else self.backbones[k].load
        tap = StatTap(
            load(ctx, f"backbone-{k}"),
            self.matching.patch,
            self.matching.kinds,
            self.dataset.shape,
            self.matching.skip_silent,
        )
        if not self.statistics:
            return ObservedTeacher(tap, tap.running(), None)
        weight, local = self.matching.class_weight, self.matching.local
        tables = load_tables(
            ctx,
            f"statistics-{k}",
            tap,
            classes=weight > 0 and not local,
            swap=self.matching.swap_class_patch_stats,
        )
        return ObservedTeacher(tap, tables.overall if weight < 1 else None, tables.classes)

    def _rates(self, t: int) -> Tensors:
        """Return what Adam is corrected by in a group's update ``t``, counted from 0."""
        beta1, beta2 = self.betas
        rate = cosine_rate(self.lr_img, t, self.iterations) / (1 - beta1 ** (t + 1))
        return {"rate": torch.tensor(rate), "root": torch.tensor(math.sqrt(1 - beta2 ** (t + 1)))}

    def _turn(self, unit: str, t: int) -> slice:
        """Return the groups that make update ``t``."""
        return (
            slice(t // self.iterations, t // self.iterations + 1)
            if self.chained
            else slice(0, len(self.groups_of[unit]))
        )

    def crops(self, groups: Sequence[Group], local: int, ctx: Context) -> Tensors:
        """Return the matrices of the views that groups have at their update ``local``, on the CPU;
        nothing where views are the images.
        """
        info = self.dataset
        if self.views.whole:
            return {}
        part, size = local / self.iterations, (info.height, info.width)
        views = [self.views.draw(ctx.rng("view", g.index, local), part, *size) for g in groups]
        crops = self.views.matrices(views, *size, torch.device("cpu"))
        return {"rows": crops.rows, "columns": crops.columns}

    def _share(self, unit: str, ctx: Context) -> UnitUpdates:
        info, device = self.dataset, ctx.device
        mean, std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (info.mean, info.std)
        )
        labels = [
            torch.tensor(group.labels(self.ipc), device=device) for group in self.groups_of[unit]
        ]
        layouts, rng = (
            [self.teacher(k, ctx).tap.layout for k in range(len(self.backbones))],
            ctx.rng,
        )

        def draw(t: int) -> Tensors:
            local, groups = t % self.iterations, self.groups_of[unit][self._turn(unit, t)]
            drawn = self._rates(local) | self.crops(groups, local, ctx)
            if self.matching.drop_rate:
                layout = layouts[self.network_of(t)]
                drawn["kept"] = torch.stack(
                    [
                        draw_kept(rng("drop", g.index, local), layout, self.matching.drop_rate)
                        for g in groups
                    ]
                )
            return {name: pinned(value, device) for name, value in drawn.items()}

        return UnitUpdates(
            labels, (0 - mean) / std, (1 - mean) / std, Ahead(draw, threaded=device.type == "cuda")
        )

    def _layout(self, backbone: Backbone) -> Layout:
        return tap_layout(
            backbone.network,
            self.dataset.shape,
            backbone.dataset.classes,
            self.matching.patch,
            self.matching.kinds,
            self.matching.skip_silent,
        )

    # -- output ------------------------------------------------------------------------------------------------------

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the pixels as they are stored (rounded down), the labels, and the images' places in the set."""
        positions = torch.tensor([p for group in self.groups_of[unit] for p in group.positions])
        mean, std = (
            torch.tensor(values).view(-1, 1, 1) for values in (self.dataset.mean, self.dataset.std)
        )
        everyone = slice(0, len(self.groups_of[unit]))
        images = self.renderer(unit, everyone, ctx)(state["images"]).detach().float().cpu()
        pixels = ((images * std + mean).clamp(0, 1) * 255).to(torch.uint8)
        return {
            "images": stored_as(pixels, self.image_format),
            "labels": positions // self.ipc,
            "index": positions,
        }
