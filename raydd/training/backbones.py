"""Teachers: networks trained here or read from files, which other stages match, score with and take labels from.

See docs/methods/recovery.md, "Teachers". Weights of ImageNet-1k are torchvision's
``IMAGENET1K_V1``, never a later version: it has other statistics and other labels. An ImageNet-10
teacher keeps torchvision's plain stem (the original trains another stem than it loads) and has
ten classes: a file of a thousand is refused (docs/methods/edc.md, "Where the original differs").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.storage import Storage
from raydd.core.tensors import Tensors, dump_tensors
from raydd.core.units import Context, Ref
from raydd.data.catalog import DatasetInfo
from raydd.networks import create_network
from raydd.networks.names import spellings
from raydd.networks.network import Network, Shape
from raydd.training.train_network import TrainNetwork, restore_network
from raydd.training.weights import (
    Values,
    Weights,
)


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
        return ctx.cached(("backbone", self), lambda: self.own(ctx, name))

    def own(self, ctx: Context, name: str) -> Network:
        """Return such a network that is the caller's alone, as :meth:`load` does."""
        if self.weights is None:
            network = restore_network(self.network, self.dataset, ctx.load(name), ctx.device)
            if not all(
                bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()
            ):
                raise DataError(
                    f"the weights of network '{self.network}' hold NaN or infinity: its training diverged"
                )
            return network
        network = fresh_network(self.network, self.dataset.shape, self.dataset.classes)
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


def fresh_network(network: str, shape: Shape, classes: int) -> Network:
    """Return a network to be filled with weights: its own are of no job's seed."""
    return create_network(network, shape, classes, generator(0, "structure"))
