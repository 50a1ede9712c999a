"""How a job says where its teachers come from: trained here, or read from files."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Protocol

from annotated_types import Ge, Gt, Lt

from raydd.core.errors import ConfigError, DataError, TornFileError, nearest
from raydd.core.storage import check_url, join
from raydd.core.units import Numerics, added, unkeyed
from raydd.data.catalog import DatasetInfo, check_normalisation
from raydd.networks import normalise_name
from raydd.networks.names import spellings
from raydd.networks.network import Shape
from raydd.training.backbones import Backbone, fresh_network
from raydd.training.batches import check_batches, sizes
from raydd.training.recipe import Recipe
from raydd.training.train_network import TrainNetwork
from raydd.training.weights import (
    SUFFIXES,
    PretrainedStart,
    Weights,
    cache_path,
    download,
    exists,
    is_file,
    torchvision_url,
    torchvision_weights,
)

log = logging.getLogger(__name__)

_TRAINING: dict[str, Any] = {
    "epochs": 50,
    "batch": 64,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": None,
    "st": None,
    "augmentation": "pad_crop_flip",
}
"""Keys of a teacher's recipe and their defaults."""


class _Problem(Protocol):
    """What teachers are made for; ``methods.method.Problem`` is one."""

    @property
    def dataset(self) -> DatasetInfo: ...

    @property
    def seed(self) -> int: ...

    @property
    def numerics(self) -> Numerics: ...


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Where teachers come from; the fields are the YAML keys under ``method.teachers``.

    ``weights``: ``train`` trains them here; ``torchvision`` reads that library's ``IMAGENET1K_V1``;
    else the URL of a file, of a folder that holds ``<network>.safetensors``, ``.pth``, ``.pt`` (or
    EDC's ``<Network>/squeeze_<Network>.pth``), ``.pth.tar`` or ``.ckpt``, or one with ``{network}``
    in it. ``mean``/``std``: how the images of those files' networks are normalised, where the files
    do not say (default: as the data set's). ``download``: fetch torchvision's weights that are not
    in torch hub's cache.

    The other keys are of training alone. ``init``: ``random`` (default), or ``torchvision`` for its
    ``IMAGENET1K_V1`` weights with a new last layer. ``epochs``: the schedule's length.
    ``save_epoch``: the epoch (from 0) whose weights are used, by default the last; published are 40
    of 50, and 0 of 5 for CIFAR-10. ``batch``, ``lr``, ``momentum``, ``weight_decay``, ``schedule``
    with its ``st`` and ``warmup``, ``augmentation``: see :class:`raydd.training.recipe.Recipe`. Defaults are
    CIFAR-100's (docs/methods/recovery.md, "Teachers"): 50 epochs of batches of 64, rate 0.05, momentum 0.9, no decay,
    ``constant``, ``pad_crop_flip``.
    """

    weights: str = unkeyed(default="train")  # the backbones' keys hold what the files hold
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Gt(0)], ...] | None = None
    download: bool = unkeyed(default=False)
    init: Literal["random", "torchvision"] | None = None
    epochs: Annotated[int, Ge(1)] | None = None
    save_epoch: Annotated[int, Ge(0)] | None = None
    batch: Annotated[int, Ge(1)] | None = None
    lr: Annotated[float, Gt(0)] | None = None
    momentum: Annotated[float, Ge(0), Lt(1)] | None = None
    weight_decay: Annotated[float, Ge(0)] | None = None
    schedule: Literal["constant", "cosine", "linear_st", "cos_st", "cos2_st"] | None = None
    st: Annotated[float, Ge(1)] | None = None
    augmentation: Literal["none", "pad_crop_flip", "resized_crop_flip"] | None = None
    warmup: Annotated[int, Ge(0)] | None = added(None)

    def __post_init__(self) -> None:
        trained, files = self.weights == "train", self.weights not in ("train", "torchvision")
        for name in (*_TRAINING, "init", "save_epoch"):
            if not trained and getattr(self, name) is not None:
                raise ConfigError(
                    f"teachers.{name}={getattr(self, name)} has no effect: teachers.weights is '{self.weights}', not"
                    " 'train'"
                )
        for name in ("mean", "std"):
            if not files and getattr(self, name) is not None:
                raise ConfigError(
                    f"teachers.{name} has no effect: teachers.weights is '{self.weights}', not files"
                )
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ConfigError(
                f"teachers.mean is {self.mean} and teachers.std {self.std}: both are needed, equally many numbers"
            )
        check_normalisation(self.mean, self.std, "teachers")
        if self.download and "torchvision" not in (self.weights, self.init):
            raise ConfigError(
                "teachers.download has no effect: neither teachers.weights nor teachers.init is 'torchvision'"
            )
        if files:
            check_url(self.weights, "teachers.weights")
        recipe = self.recipe()
        if self.save_epoch is not None and self.save_epoch >= recipe.epochs:
            raise ConfigError(
                f"teachers.save_epoch={self.save_epoch}: of {recipe.epochs} epochs, 0 to {recipe.epochs - 1} are"
                " allowed"
            )

    def recipe(self) -> Recipe:
        """Return how teachers are trained: what is set, and the defaults above."""
        given = {name: getattr(self, name) for name in _TRAINING if getattr(self, name) is not None}
        return Recipe(
            **{**{name: value for name, value in _TRAINING.items() if value is not None}, **given}
        )

    def backbones(self, networks: Sequence[str], problem: _Problem) -> tuple[Backbone, ...]:
        """Return the teachers of these networks, in order; of files that are missing without a
        digest (see :meth:`missing`).
        """
        return tuple(self._backbone(normalise_name(network), problem) for network in networks)

    def _backbone(self, network: str, problem: _Problem) -> Backbone:
        info = problem.dataset
        weights = self._file(network)
        if self.weights != "train":
            return Backbone(network=network, dataset=info.only(), weights=weights)
        options: dict[str, Any] = {} if self.save_epoch is None else {"save_epoch": self.save_epoch}
        if weights is not None:
            options["start"] = PretrainedStart(weights=weights)
        count, recipe = sum(info.train_counts), self.recipe()
        # Without digests the number of images is an estimate; networks are built here only for a
        # number that may not do.
        if info.digests and 1 in sizes(count, recipe.batch, recipe.slice):
            check_batches(
                network, info.shape, info.classes, [count], recipe, "method.teachers.batch"
            )
        training = TrainNetwork(
            seed=problem.seed,
            numerics=problem.numerics,
            dataset=info.only("train"),
            network=network,
            recipe=recipe,
            **options,
        )
        return Backbone(network=network, dataset=info.only(), training=training)

    def _file(self, network: str) -> Weights | None:
        """Return the file that a network's training starts from, or whose weights it has."""
        if self.weights == "train" and self.init != "torchvision":
            return None
        if self.weights in ("train", "torchvision"):
            return torchvision_weights(network)
        found = next(
            (url for url in self._places(network) if exists(url)), self._places(network)[0]
        )
        return Weights.at(found, self.mean or (), self.std or ())

    def _places(self, network: str) -> list[str]:
        """Return the URLs where a network's file may be, the first of them to be tried first."""
        names = spellings(network)
        if "{network}" in self.weights:
            return [self.weights.replace("{network}", name) for name in names]
        if is_file(self.weights):
            return [self.weights]
        return [
            *(join(self.weights, f"{name}{suffix}") for name in names for suffix in SUFFIXES[:3]),
            *(join(self.weights, name, f"squeeze_{name}.pth") for name in names),
            *(join(self.weights, f"{name}{suffix}") for name in names for suffix in SUFFIXES[3:]),
        ]

    def fetch(self, networks: Sequence[str]) -> None:
        """Download torchvision's weights of these networks that are not in torch hub's cache, if ``download`` says so.

        A failure is a warning: :meth:`missing` then says what to put where.
        """
        for network in dict.fromkeys(map(normalise_name, networks)) if self.download else ():
            url = torchvision_url(network)
            if not os.path.exists(cache_path(url)):
                try:
                    download(url)
                except DataError as error:
                    log.warning("%s", error)

    def missing(self, networks: Sequence[str], dataset: DatasetInfo) -> list[str]:
        """Return a line for each network that cannot read the images, or whose file is absent (what
        to put where), torn or does not fit.
        """
        lines = []
        for network in dict.fromkeys(map(normalise_name, networks)):
            weights = self._file(network)
            if weights is None:
                fault = _fault(None, network, dataset.shape, dataset.classes, True)
                lines += [fault] if fault else []
            elif weights.digest:
                fault = _fault(
                    weights, network, dataset.shape, dataset.classes, self.weights != "train"
                )
                lines += [fault] if fault else []
            elif self.weights in ("train", "torchvision"):
                hint = "" if self.download else ", or set teachers.download=true"
                lines.append(
                    f"network '{network}': put {weights.url} at {cache_path(weights.url)}{hint}"
                )
            else:
                places = self._places(network)
                others = (
                    f" (or {', '.join(place.rsplit('/', 1)[-1] for place in places[1:4])})"
                    if len(places) > 1
                    else ""
                )
                meant = (
                    "" if "/" in self.weights else nearest(self.weights, ("train", "torchvision"))
                )
                meant = meant and f"; teachers.weights is '{self.weights}'{meant}"
                lines.append(f"network '{network}': put its weights at {places[0]}{others}{meant}")
        return lines


@lru_cache(maxsize=256)
def _fault(weights: Weights | None, network: str, shape: Shape, classes: int, head: bool) -> str:
    """Return why a network cannot read the images, or cannot have the weights of a file; an empty text if it can."""
    try:
        fresh = fresh_network(network, shape, classes)
        if weights is not None:
            weights.fill(fresh, head=head, tell=log.info)
    except (ConfigError, DataError, TornFileError) as error:
        return f"network '{network}': {error}"
    return ""
