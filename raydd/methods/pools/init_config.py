"""What recovery starts from, as jobs ask for it: noise, real images, patches of them, or a folder
or tensors of others (docs/methods/recovery.md, "Start images").

The stages are in :mod:`raydd.methods.pools.image_pool` and
:mod:`raydd.methods.pools.patches`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge

from raydd.artifacts.codec import ImageFormat
from raydd.core.errors import ConfigError
from raydd.core.storage import absolute
from raydd.core.units import Stage, added
from raydd.data.catalog import DatasetInfo, check_normalisation
from raydd.methods.method import Problem, check_counts
from raydd.methods.pools.image_pool import (
    FolderPool,
    ImagePool,
    RealPool,
    Sampling,
    open_folder,
    start_images,
)
from raydd.methods.pools.patches import EdcPool, RdedPool, check_rded
from raydd.methods.pools.scoring import ScoreImages
from raydd.methods.pools.tensor_pool import TensorPool
from raydd.training.backbones import Backbone, training_stages
from raydd.training.teacher_config import TeacherConfig

__all__ = [
    "EdcPool",
    "FolderPool",
    "ImagePool",
    "InitConfig",
    "RdedPool",
    "RealPool",
    "Sampling",
    "start_images",
]

_READ_BY: Mapping[str, tuple[str, ...]] = {
    "folder": ("folder", "tensors"),
    "mean": ("tensors",),
    "std": ("tensors",),
    "networks": ("rded", "edc"),
    "factor": ("rded", "edc"),
    "candidates": ("rded", "edc"),
    "num_crop": ("rded", "edc"),
    "image_format": ("rded", "edc"),
    "pool": ("real", "rded", "edc", "folder", "tensors"),
    "sampling": ("real", "rded", "edc", "folder", "tensors"),
    "classes_per_unit": ("real", "rded", "edc", "folder", "tensors"),
}
"""The kinds that read a field; elsewhere it must be left at its default."""

_NETWORKS = {
    "rded": ("resnet18",),
    "edc": ("resnet18", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5"),
}
_NUM_CROP = {"rded": 5, "edc": 4}


def _rded_pool(given: dict[str, Any], info: DatasetInfo) -> ImagePool:
    check_rded(info, given["pool"], given["factor"], given["candidates"])
    return RdedPool(**given)


def _edc_pool(given: dict[str, Any], info: DatasetInfo) -> ImagePool:
    scores = ScoreImages(
        **{name: given[name] for name in ("seed", "numerics", "dataset", "backbones")}
    )
    stage = EdcPool(**given, scores=scores)
    stage.check(info)
    return stage


_PATCHES = {"rded": _rded_pool, "edc": _edc_pool}


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """What synthetic images start as (YAML: ``method.init``). Fields that a kind does not read must
    be left at their default.

    ``kind``: ``noise``; ``real``, random training images; ``rded``, the crops a teacher is surest
    of, tiled (RDED); ``edc``, EDC's variant, the best images and then the best of crops shared by
    many; ``folder``, an image folder with a subfolder per class, such as RDED's published output;
    ``tensors``, a folder of files ``tensor_<k>.pt`` with image k of every class, as DWA and INFER
    publish them. ``folder``: its URL. ``mean``, ``std``: what ``tensors`` are normalised by, of
    pixels in [0, 1] (null: as the data set). ``pool``: images per class to start from (null: ipc;
    of an image folder, as many as its smallest class has). ``sampling``: which of them become which
    start images: ``without_replacement`` (image k for the k-th), ``with_replacement`` (published),
    ``softmax_count`` (published for ImageNet-10). ``networks``: teachers that judge crops (null:
    those published for ImageNet-1k, of RDED ResNet-18, of EDC four). ``factor``: crops along a side
    of an image (null: 2; published for CIFAR and Tiny-ImageNet: 1). ``candidates``: images per
    class that are cut (null: 300). ``num_crop``: crops of each (null: 5 for RDED, 4 for EDC).
    ``image_format``: ``jpeg75`` (null; published) or ``png``. ``classes_per_unit``: classes that
    one worker makes together.
    """

    kind: Literal["noise", "real", "rded", "edc", "folder", "tensors"] = "rded"
    folder: str | None = None
    mean: tuple[float, ...] | None = added(None)
    std: tuple[float, ...] | None = added(None)
    pool: Annotated[int, Ge(1)] | None = None
    sampling: Sampling = "without_replacement"
    networks: tuple[str, ...] | None = None
    factor: Annotated[int, Ge(1)] | None = None
    candidates: Annotated[int, Ge(1)] | None = None
    num_crop: Annotated[int, Ge(1)] | None = None
    image_format: ImageFormat | None = None
    classes_per_unit: Annotated[int, Ge(1)] = 10

    def __post_init__(self) -> None:
        for f in fields(self):
            kinds, value = _READ_BY.get(f.name, (self.kind,)), getattr(self, f.name)
            if value != f.default and self.kind not in kinds:
                raise ConfigError(
                    f"init.{f.name}={value} has no effect with init.kind={self.kind}, only with {', '.join(kinds)}"
                )
        if self.kind == "folder" and not self.folder:
            raise ConfigError(
                "init.kind=folder needs init.folder, the URL of an image folder with a subfolder per class"
            )
        if self.kind == "tensors" and not self.folder:
            raise ConfigError(
                "init.kind=tensors needs init.folder, the URL of a folder with tensor_0.pt, tensor_1.pt, …"
            )
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ConfigError(
                f"init.mean is {self.mean} and init.std {self.std}: both are needed, equally many numbers"
            )
        check_normalisation(self.mean, self.std, "init")
        if self.networks is not None and not self.networks:
            raise ConfigError("init.networks: at least one teacher must judge the crops")

    @property
    def scoring_networks(self) -> tuple[str, ...]:
        """The teachers that judge images; none for kinds that judge nothing."""
        return _NETWORKS.get(self.kind, ()) if self.networks is None else self.networks

    @property
    def _url(self) -> str:
        return absolute(self.folder or "")

    def backbones(self, problem: Problem, teachers: TeacherConfig) -> tuple[Backbone, ...]:
        """Return the teachers that judge images."""
        return (
            tuple(teachers.backbones(self.scoring_networks, problem))
            if self.scoring_networks
            else ()
        )

    def pool_stage(self, problem: Problem, teachers: TeacherConfig) -> ImagePool | None:
        """Return the stage whose output a problem's images start from, ``None`` for noise.

        ``ConfigError`` where the training images, or the pool, are too few.
        """
        if self.kind == "noise":
            return None
        info, ipc = problem.dataset, problem.ipc
        pool = ipc if self.pool is None else self.pool
        common: dict[str, Any] = {
            "seed": problem.seed,
            "classes_per_unit": min(self.classes_per_unit, info.classes),
        }
        stage: ImagePool
        if self.kind == "folder":
            stage = FolderPool.at(self._url, info, pool=self.pool, fallback=ipc, **common)
        elif self.kind == "tensors":
            stage = TensorPool.at(self._url, self._normalised(info), pool=pool, **common)
        elif self.kind == "real":
            check_counts(info, pool, "ipc" if self.pool is None else "init.pool")
            stage = RealPool(dataset=info.only("train"), pool=pool, **common)
        else:
            stage = self._patches(problem, self.backbones(problem, teachers), pool, common)
        if self.sampling == "without_replacement" and stage.pool < ipc:
            few = (
                f"init.folder: a class has {stage.pool} images, which"
                if self.kind == "folder" and self.pool is None
                else f"init.pool={stage.pool}"
            )
            raise ConfigError(
                f"{few} is below the {ipc} of each class that are started from: raise it, or, where images may repeat,"
                " set init.sampling=with_replacement"
            )
        return stage

    def _normalised(self, info: DatasetInfo) -> DatasetInfo:
        """Return the data set with the normalisation of the tensors."""
        if self.mean is None or self.std is None:
            return info
        if len(self.mean) != info.channels:
            raise ConfigError(
                f"init.mean and init.std have {len(self.mean)} numbers, images {info.channels} channels"
            )
        return replace(info, mean=self.mean, std=self.std)

    def _patches(
        self, problem: Problem, backbones: tuple[Backbone, ...], pool: int, common: dict[str, Any]
    ) -> ImagePool:
        given: dict[str, Any] = common | {
            "numerics": problem.numerics.plain,
            "dataset": problem.dataset.only("train"),
            "pool": pool,
            "backbones": backbones,
            "factor": self.factor or 2,
            "candidates": self.candidates or 300,
            "num_crop": self.num_crop or _NUM_CROP[self.kind],
            "image_format": self.image_format or "jpeg75",
        }
        return _PATCHES[self.kind](given, problem.dataset)

    def stages(self, problem: Problem, teachers: TeacherConfig) -> list[Stage]:
        """Return all stages of the start: the training of teachers that are trained here, scores, the pool (last)."""
        pool = self.pool_stage(problem, teachers)
        if pool is None:
            return []
        scores = [pool.scores] if isinstance(pool, EdcPool) else []
        return [*training_stages(self.backbones(problem, teachers)), *scores, pool]

    def missing(self, problem: Problem, teachers: TeacherConfig) -> list[str]:
        """Return a sentence for each thing that is not there or does not fit: the folder, tensors, the
        weights of the teachers that judge.
        """
        if self.kind == "folder":
            if open_folder(self._url, problem.dataset) is None:
                return [
                    f"init.folder: no images in {self._url}; put <class>/<image> there, such as RDED's published output"
                ]
            return []
        if self.kind == "tensors":
            pool = self.pool_stage(problem, teachers)
            return pool.faults() if isinstance(pool, TensorPool) else []
        return (
            list(teachers.missing(self.scoring_networks, problem.dataset))
            if self.scoring_networks
            else []
        )
