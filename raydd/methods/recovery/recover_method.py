"""What SRe2L, G-VBSM and EDC have in common as methods: the keys of their jobs, and how they plan and assemble."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Lt

from raydd.artifacts.codec import ImageFormat
from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError
from raydd.core.storage import join
from raydd.core.tensors import Tensors, dump_tensors
from raydd.core.units import Ref, Stage, added, unkeyed
from raydd.labels.label_config import LabelConfig
from raydd.methods.method import Method, Problem
from raydd.methods.pools.init_config import InitConfig
from raydd.methods.recovery.recover import MatchStatistics
from raydd.methods.recovery.recover_config import Matching, Priors
from raydd.methods.recovery.recover_groups import Grouping, Order
from raydd.methods.recovery.recover_objective import tap_layout
from raydd.methods.recovery.recover_views import Views
from raydd.training.backbones import Backbone, keep_trained, training_stages
from raydd.training.statistics import CollectStatistics, Statistics, StatisticsConfig
from raydd.training.statistics_files import save_tables
from raydd.training.statistics_tables import TableStage
from raydd.training.statistics_tree import forget_trees
from raydd.training.teacher_config import TeacherConfig


@dataclass(frozen=True, kw_only=True)
class Recovering(Method):
    """Base of the methods that recover images from the statistics of trained networks.

    ``networks``: those that images are matched to, in the order in which they take turns.
    ``label_networks``: those that label (empty: the same); ``network``: the students' architecture.
    ``teachers``: where their weights come from. ``labels``: the soft labels. ``iterations``:
    updates of every image. ``lr_img``, ``betas``: of Adam on the pixels; the rate falls to 0 along
    a cosine. ``group_size``: images that share batch statistics, part of the objective.
    ``groups_per_unit``: groups that one worker computes in one batch. ``r_loss``: weight of the
    statistics; ``first_multiplier``: of those of the first layer. ``crop``: range of the area of a
    random resized crop per update, or ``pad``: a crop of the image with so many zeros around (one
    of the two; ``null`` and 0 for none); ``flip``; ``jitter``: range of a circular shift in pixels.
    ``image_format``: how images are stored, ``jpeg75`` or ``png``. ``parts``: each group's batch goes
    through networks in so many parts, which need less memory and nearly half as much time again
    (docs/methods/recovery.md, "Parts of a batch").
    """

    soft_labels: ClassVar[bool] = True
    value_bytes: ClassVar[int] = 1

    networks: tuple[str, ...] = ("resnet18",)
    label_networks: tuple[str, ...] = unkeyed(default=())
    network: str = unkeyed(default="resnet18")
    teachers: TeacherConfig = field(default_factory=partial(TeacherConfig, weights="torchvision"))
    labels: LabelConfig = field(default_factory=LabelConfig, metadata={"key": False})
    iterations: Annotated[int, Ge(1)] = 4000
    lr_img: Annotated[float, Gt(0)] = 0.1
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.5, 0.9)
    group_size: Annotated[int, Ge(1)] = 100
    groups_per_unit: Annotated[int, Ge(1)] = 1
    r_loss: Annotated[float, Ge(0)] = 0.01
    first_multiplier: Annotated[float, Ge(0)] = 10.0
    crop: tuple[float, float] | None = (0.08, 1.0)
    pad: Annotated[int, Ge(0)] = 0
    flip: bool = True
    jitter: tuple[int, int] = (0, 0)
    image_format: ImageFormat = "jpeg75"
    parts: Annotated[int, Ge(1)] = added(1)

    def __post_init__(self) -> None:
        if not self.networks:
            raise ConfigError("networks: at least one network must be matched")
        self.views()
        self.matching()

    @property
    def student_network(self) -> str:
        """The network that students have by default."""
        return self.network

    @property
    def label_config(self) -> LabelConfig:
        """How the set's soft labels are made."""
        return self.labels

    # -- what a method of the family says ----------------------------------------------------------------------------

    @property
    def image_order(self) -> Order:
        """The order in which images are put in groups."""
        return "class_major"

    @property
    def start(self) -> InitConfig:
        """What images start from."""
        return InitConfig(kind="noise")

    @property
    def tables(self) -> StatisticsConfig | None:
        """Where statistics beyond the batch norms' own come from; ``None`` if nothing but these is matched."""
        return None

    def views(self) -> Views:
        """Return how views are drawn; ``ConfigError`` for what cannot be."""
        return Views(crop=self.crop, pad=self.pad, flip=self.flip, jitter=self.jitter)

    def matching(self) -> Matching:
        """Return how statistics are matched, as the keys of the same names say; ``ConfigError`` for what cannot be."""
        said = _said(Matching, self, getattr(self, "compat", None), self.tables)
        return Matching(**said)

    def priors(self) -> Priors:
        """Return the terms on the images, as the keys of the same names say."""
        return Priors(**_said(Priors, self))

    # -- what follows ------------------------------------------------------------------------------------------------

    def label_teachers(self, problem: Problem) -> tuple[Backbone, ...]:
        """Return the networks that label."""
        return tuple(self.teachers.backbones(self.label_networks or self.networks, problem))

    def missing_teachers(self, problem: Problem) -> list[str]:
        """Return a line for each file of the labelling networks' weights that is not there or does not fit."""
        return list(self.teachers.missing(self.label_networks or self.networks, problem.dataset))

    def fetch(self) -> None:
        """Download the networks' published weights, if ``teachers.download`` says so; look at trees
        of statistics anew.
        """
        forget_trees()
        self.teachers.fetch((*self.networks, *self.label_networks, *self.start.scoring_networks))

    def missing(self, problem: Problem) -> list[str]:
        """Return a line for each file of weights, statistics or start images that is not there or does not fit."""
        lines = list(self.teachers.missing((*self.networks, *self.label_networks), problem.dataset))
        if self.tables is not None:
            matching = self.matching()
            classes = bool(matching.class_weight) and not matching.local
            networks = [b.network for b in self.teachers.backbones(self.networks, problem)]
            lines += self.tables.missing(networks, problem.dataset, classes=classes)
        problem = replace(problem, ipc=self.start_ipc(problem))
        return list(dict.fromkeys([*lines, *self.start.missing(problem, self.teachers)]))

    def start_ipc(self, problem: Problem) -> float:
        """Return how many images of each class recovery starts from: here all that the set has."""
        return problem.ipc

    def plan(self, problem: Problem) -> list[Stage]:
        """Return teachers, statistics, start images and recovery; ``ConfigError`` for what cannot be."""
        info, matching, views = problem.dataset, self.matching(), self.views()
        backbones = tuple(self.teachers.backbones(self.networks, problem))
        self._check(problem, backbones, matching, views)
        tables: list[TableStage] = []
        if self.tables is not None:
            tables.extend(
                self.tables.source(backbone, info, problem.seed, problem.numerics.plain)
                for backbone in backbones
            )
        pool = self.start.pool_stage(problem, self.teachers)
        recovery = self.recovery(
            seed=problem.seed,
            numerics=problem.numerics.plain,
            dataset=info.only("train") if matching.local else info.only(),
            ipc=problem.ipc,
            backbones=backbones,
            statistics=tuple(tables),
            pool=pool,
            sampling=self.start.sampling,
            grouping=self._grouping,
            iterations=self.iterations,
            lr_img=self.lr_img,
            betas=self.betas,
            views=views,
            matching=matching,
            priors=self.priors(),
            image_format=self.image_format,
            parts=self.parts,
        )
        self.priors().check_units(
            [] if recovery.chained else list(recovery.groups_of.values()), problem.ipc
        )
        before = [
            *training_stages(backbones),
            *_collected(tables),
            *tables,
            *self.start.stages(problem, self.teachers),
        ]
        return [*dict.fromkeys(before), recovery]

    def recovery(self, **fields: Any) -> MatchStatistics:
        """Return the stage that recovers the images, of the ``fields`` that all methods give it."""
        return MatchStatistics(**fields)

    @property
    def _grouping(self) -> Grouping:
        return Grouping(
            order=self.image_order, group_size=self.group_size, groups_per_unit=self.groups_per_unit
        )

    def _check(
        self, problem: Problem, backbones: Sequence[Backbone], matching: Matching, views: Views
    ) -> None:
        info = problem.dataset
        if self.parts > self.group_size:
            raise ConfigError(
                f"parts={self.parts}: a group has {self.group_size} images; allowed: up to {self.group_size}"
            )
        views.check(info.height, info.width)
        if self.image_format == "jpeg75" and info.channels not in (1, 3):
            raise ConfigError(
                f"image_format=jpeg75 holds grey or RGB images, not {info.channels} channels; use png"
            )
        if matching.local:
            matching.expand(info.classes * problem.ipc)
        for backbone in backbones:
            tap_layout(
                backbone.network,
                info.shape,
                info.classes,
                matching.patch,
                matching.kinds,
                matching.skip_silent,
            )

    def keep(self, problem: Problem, load: Callable[[Ref], Tensors], url: str) -> dict[str, str]:
        """Write what was trained and collected, one file per network, for ``teachers.weights`` and
        ``statistics.files`` of other jobs.
        """
        folder, teachers = join(url, "statistics"), join(url, "teachers")
        backbones = (
            *self.teachers.backbones(self.networks, problem),
            *self.label_teachers(problem),
        )
        known = keep_trained(backbones, load, teachers)
        made = [stage for stage in self.plan(problem) if isinstance(stage, Statistics)]
        for stage in made:
            of = stage.collected
            facts: dict[str, Any] = {
                "batch": of.batch,
                "slices": of.slices,
                "crop": of.crop,
                "pad": of.pad,
            }
            facts |= {"images": sum(problem.dataset.train_counts), "data": dict(of.dataset.digests)}
            trained = [
                hashlib.sha256(dump_tensors(load(ref))).hexdigest()
                for ref in of.backbone.inputs("backbone").values()
            ]
            trained += [known[of.backbone.network]] if of.backbone.network in known else []
            facts["weights"] = [
                of.backbone.identity,
                *trained,
            ]  # files are known by their sha256: the store's, and the one beside
            plain = {name: json.dumps(value) for name, value in facts.items()}
            tables = load(Ref(stage, "all"))
            save_tables(
                folder,
                of.backbone.network,
                tables,
                dataset=problem.dataset,
                patch=of.patch,
                facts=plain,
            )
        return {
            name: place
            for name, place, written in (
                ("teachers", teachers, known),
                ("statistics", folder, made),
            )
            if written
        }

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the images, as they are stored, in class order with hard labels."""
        images, labels, index = (
            torch.cat([outputs[unit][name] for unit in sorted(outputs)])
            for name in ("images", "labels", "index")
        )
        order = index.argsort()
        return DistilledSet(images=images[order], labels=labels[order], info=problem.dataset)


def _said(config: type[Matching] | type[Priors], *keys: Any) -> dict[str, Any]:
    """Return the fields of ``config`` that are keys of a method, or of a group of its keys."""
    return {
        f.name: getattr(one, f.name) for one in keys for f in fields(config) if hasattr(one, f.name)
    }


def _collected(tables: Sequence[TableStage]) -> list[CollectStatistics]:
    return [stage.collected for stage in tables if isinstance(stage, Statistics)]
