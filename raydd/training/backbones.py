"""Teachers: networks trained here or read from files, which other stages match, score with and take labels from.

See docs/methods/recovery.md, "Teachers". Weights of ImageNet-1k are torchvision's
``IMAGENET1K_V1``, never a later version: it has other statistics and other labels. An ImageNet-10
teacher keeps torchvision's plain stem (the original trains another stem than it loads) and has
ten classes: a file of a thousand is refused (docs/methods/edc.md, "Where the original differs").
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Protocol

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from raydd.core.errors import ConfigError, DataError, TornFileError, nearest
from raydd.core.rng import generator
from raydd.core.storage import Storage, check_url, join
from raydd.core.tensors import Tensors, dump_tensors
from raydd.core.units import Context, Numerics, Ref, unkeyed
from raydd.data.catalog import DatasetInfo, check_normalisation
from raydd.networks import create_network, normalise_name
from raydd.networks.names import spellings
from raydd.networks.network import Network, Shape
from raydd.training.batches import check_batches, sizes
from raydd.training.recipe import Recipe
from raydd.training.train_network import TrainNetwork, restore_network
from raydd.training.weights import (
    SUFFIXES,
    PretrainedStart,
    Values,
    Weights,
    cache_path,
    download,
    exists,
    is_file,
    torchvision_url,
    torchvision_weights,
)

__all__ = [
    "Backbone",
    "PretrainedStart",
    "TeacherConfig",
    "Weights",
    "convert_images_",
    "keep_trained",
    "training_stages",
]

log = logging.getLogger(__name__)

_TRAINING: dict[str, Any] = {
    "epochs": 50,
    "batch": 64,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "schedule": "constant",
    "st": None,
    "augmentation": "pad_crop_flip",
}
"""Keys of a teacher's recipe and their defaults."""


class _Problem(Protocol):
    """What teachers are made for; ``methods.base.Problem`` is one."""

    @property
    def dataset(self) -> DatasetInfo: ...

    @property
    def seed(self) -> int: ...

    @property
    def numerics(self) -> Numerics: ...


class _Converting(Network):
    """Put before a network's own class: images come normalised as the data set's and are read as the network's."""

    gain: Tensor
    offset: Tensor

    def embed(self, x: Tensor) -> Tensor:
        """Return the features ``[B, embed_dim]`` of images in the data set's normalisation."""
        return super().embed(x * self.gain + self.offset)


@lru_cache
def _converting(kind: Any) -> type[Network]:
    return type(f"Converting{kind.__name__}", (_Converting, kind), {})


def convert_images_(network: Network, dataset: DatasetInfo, mean: Values, std: Values) -> Network:
    """Make a network of images normalised by ``mean``/``std`` read those normalised as the data set's, in place.

    One multiplication and addition at the entry; names of layers and weights stay. Nothing happens
    where both are equal.
    """
    if (mean, std) == (dataset.mean, dataset.std) or not mean:
        return network
    ours, theirs = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (dataset.mean, mean)
    )
    scale = torch.tensor(dataset.std, dtype=torch.float64).view(-1, 1, 1)
    width = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
    like = next(network.parameters())
    network.register_buffer("gain", (scale / width).to(like), persistent=False)
    network.register_buffer("offset", ((ours - theirs) / width).to(like), persistent=False)
    kind: Any = type(network)
    network.__class__ = _converting(kind)
    return network


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A trained network as part of a stage's key: made by ``training``, or read from the file of ``weights``.

    ``network``: canonical name. ``dataset``: image shape, classes and the normalisation of the images it is given.
    """

    network: str
    dataset: DatasetInfo
    training: TrainNetwork | None = None
    weights: Weights | None = None

    def __post_init__(self) -> None:
        if (self.training is None) == (self.weights is None):
            raise ConfigError(
                f"network '{self.network}' is either trained or read from a file, not both or neither"
            )

    def inputs(self, name: str) -> dict[str, Ref]:
        """Return the output that holds the weights, to be read as ``name``; nothing for those of a file."""
        return {} if self.training is None else {name: Ref(self.training, self.training.units()[0])}

    @property
    def identity(self) -> str:
        """What tells its weights from others: the sha256 of their file (empty: it is missing), or
        the key of what its training puts out.
        """
        return self.weights.digest if self.weights is not None else self.inputs("")[""].key

    def load(self, ctx: Context, name: str) -> Network:
        """Return the network in eval mode, without gradients for its weights, on the worker's device, where it is kept.

        ``name``: as given to :meth:`inputs`. It reads images normalised as the data set's.
        ``DataError`` for a file that is missing or has changed, or for weights that are not finite;
        ``ConfigError`` for weights that do not fit.
        """
        return ctx.cached(("backbone", self), lambda: self._load(ctx, name))

    def _load(self, ctx: Context, name: str) -> Network:
        if self.weights is None:
            network = restore_network(self.network, self.dataset, ctx.load(name), ctx.device)
            if not all(
                bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()
            ):
                raise DataError(
                    f"the weights of network '{self.network}' hold NaN or infinity: its training diverged"
                )
            return network
        network = _fresh(self.network, self.dataset.shape, self.dataset.classes)
        mean, std = self.weights.fill(network)
        convert_images_(network, self.dataset, mean, std)
        return network.to(ctx.device).eval().requires_grad_(False)


def keep_trained(
    backbones: Sequence[Backbone], load: Callable[[Ref], Tensors], url: str
) -> dict[str, str]:
    """Write the networks that were trained here below ``url``, as ``teachers.weights`` of other jobs reads them.

    ``<network>.safetensors`` holds the state dict under our names; its metadata says how images are
    normalised, and what the network is. Returns each file's sha256 by the network's name; files
    that were not trained here are left where they are.
    """
    kept: dict[str, str] = {}
    for backbone in dict.fromkeys(backbones):
        if backbone.training is None:
            continue
        (ref,) = backbone.inputs("").values()
        output, info = load(ref), backbone.dataset
        state = {
            name.split(".", 1)[1]: value
            for name, value in output.items()
            if name.startswith(("params.", "buffers."))
        }
        facts = {
            "network": backbone.network,
            "classes": info.classes,
            "shape": info.shape,
            "mean": info.mean,
            "std": info.std,
        }
        data = dump_tensors(
            state,
            {"raydd.key": ref.key, **{name: json.dumps(value) for name, value in facts.items()}},
        )
        Storage(url).put(f"{spellings(backbone.network)[0]}.safetensors", data)
        kept[backbone.network] = hashlib.sha256(data).hexdigest()
    return kept


def training_stages(backbones: Sequence[Backbone]) -> list[TrainNetwork]:
    """Return the stages that train backbones, each once, in order."""
    return list(dict.fromkeys(b.training for b in backbones if b.training is not None))


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
    with its ``st``, ``augmentation``: see :class:`raydd.training.recipe.Recipe`. Defaults are
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
        fresh = _fresh(network, shape, classes)
        if weights is not None:
            weights.fill(fresh, head=head, tell=log.info)
    except (ConfigError, DataError, TornFileError) as error:
        return f"network '{network}': {error}"
    return ""


def _fresh(network: str, shape: Shape, classes: int) -> Network:
    return create_network(network, shape, classes, generator(0, "structure"))
