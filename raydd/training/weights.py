"""Files of trained weights: ``.pth`` and ``.pt`` of others, safetensors, torchvision's published ones; read without unpickling.

A ``.pth`` or ``.pt`` holds a state dict, plain or under ``state_dict``, ``model`` or ``net`` (else timm's averaged one, under
``state_dict_ema``), with or without ``module.`` or Lightning's ``model.`` before its names. A safetensors file may say in its
metadata how the images of its network are normalised: ``mean`` and ``std``, JSON lists of a number per channel, of pixels in
[0, 1]. Names are ours or the published ones (:mod:`raydd.networks.released`); an output of
:class:`raydd.training.teachers.TrainNetwork` from a store is read as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from raydd.artifacts.formats import load_pt
from raydd.core.errors import ConfigError, DataError
from raydd.core.storage import Storage
from raydd.core.tensors import Tensors, load_metadata, load_tensors
from raydd.core.units import unkeyed
from raydd.data.catalog import IMAGENET_MEAN, IMAGENET_STD
from raydd.networks.base import Network
from raydd.networks.names import normalise_name
from raydd.networks.released import load_published_

SUFFIXES = (".safetensors", ".pth", ".pt")
_SITE = "https://download.pytorch.org/models/"
_WRAPPERS = ("state_dict", "model", "net", "model_state_dict", "network", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_WAIT_SECONDS = 30.0
Values = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A file of weights; what it holds is part of a stage's key, where it lies is not.

    ``digest``: sha256 of the file, empty in a plan made while it is missing. ``mean``/``std``: how images are normalised for its
    network, of a file that does not say so itself; empty for as the data set's are.
    """

    url: str = unkeyed()
    digest: str
    mean: Values = ()
    std: Values = ()

    @classmethod
    def at(cls, url: str, mean: Values = (), std: Values = ()) -> Weights:
        """Return the weights in the file at ``url``, which is read once for its digest if it is there."""
        place = _place(url)
        return cls(url=url if place != url else Storage(url).url, digest=_digest(*_stamped(place)), mean=mean, std=std)

    def fill(self, network: Network, *, head: bool = True) -> tuple[Values, Values]:
        """Write the weights into a network in place and return the mean and std of its images (empty: not known).

        ``head=False``: the last linear layer stays as it is. ``DataError`` for a file that is missing, has changed since it was
        planned with, or holds something else; ``ConfigError`` for one of another network, image shape or number of classes.
        """
        data = _read(self.url)
        if hashlib.sha256(data).hexdigest() != self.digest:
            planned = f"planned was {self.digest[:12]}" if self.digest else "it was missing when this was planned"
            raise DataError(f"{self.url} has changed: its sha256 is {hashlib.sha256(data).hexdigest()[:12]}, {planned}")
        state, mean, std = parse_weights(data, self.url)
        load_published_(network, state, self.url, head=head)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()):
            raise DataError(f"{self.url} holds NaN or infinity")
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var") and bool((tensor < 0).any()):
                raise DataError(f"{self.url}: negative variances in {name}")
        mean, std = (mean, std) if mean else (self.mean, self.std)
        if mean and {len(mean), len(std)} != {network.shape[0]}:
            raise ConfigError(f"{self.url}: {len(mean)} means and {len(std)} deviations for images of {network.shape[0]} channels")
        return mean, std


@dataclass(frozen=True, kw_only=True)
class PretrainedStart:
    """Where a training begins: published weights, but for the last linear layer, which stays fresh (new classes)."""

    weights: Weights

    def fill(self, network: Network) -> None:
        """Write the weights into a network in place; see :meth:`Weights.fill`."""
        self.weights.fill(network, head=False)


def torchvision_weights(network: str) -> Weights:
    """Return torchvision's ``IMAGENET1K_V1`` weights of a network, whatever its default is; ``ConfigError`` if it has none.

    They are read from torch hub's cache. The digest is the file's: the hash in its name, wrong for EfficientNet, is not used.
    """
    return Weights.at(torchvision_url(network), IMAGENET_MEAN, IMAGENET_STD)


@lru_cache
def torchvision_url(network: str) -> str:
    """Return where torchvision publishes the ``IMAGENET1K_V1`` weights of a network."""
    name = normalise_name(network)
    found: Any = None
    if name.startswith("torchvision/"):
        from torchvision import models

        found = models.get_model_weights(name.removeprefix("torchvision/")).__members__.get("IMAGENET1K_V1")
    if found is None:
        raise ConfigError(f"torchvision has no IMAGENET1K_V1 weights of network '{network}'; train it, or give a file")
    return str(found.url)


def cache_path(url: str) -> str:
    """Return where torch hub keeps a file of torchvision's (``TORCH_HOME`` moves it)."""
    return os.path.join(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


@lru_cache
def download(url: str) -> None:
    """Fetch a file of torchvision's into torch hub's cache, once per process; ``DataError`` if that fails."""
    target = cache_path(url)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(target), suffix=".tmp", delete=False) as file:
            try:
                with urllib.request.urlopen(url, timeout=_WAIT_SECONDS) as source:  # noqa: S310 - torchvision's own address
                    shutil.copyfileobj(source, file)
                os.replace(file.name, target)
            finally:
                if os.path.exists(file.name):
                    os.unlink(file.name)
    except OSError as error:
        raise DataError(f"{url} could not be downloaded ({error}): put it at {target}") from error


def _place(url: str) -> str:
    """Return where a file is read: torchvision's from torch hub's cache."""
    return cache_path(url) if url.startswith(_SITE) else url


def _storage(url: str) -> tuple[Storage, str]:
    parent, _, name = url.rpartition("/")
    return Storage(parent or "."), name


def exists(url: str) -> bool:
    """Return whether there is a file at ``url``."""
    storage, name = _storage(url)
    return storage.exists(name)


def _stamped(url: str) -> tuple[str, str]:
    """Return a file's URL and what changes with its contents (size, times), an empty text while it is missing."""
    storage, name = _storage(url)
    if not storage.exists(name):
        return url, ""
    info = storage.fs.info(f"{storage.root.rstrip('/')}/{name}")
    return url, "|".join(str(info.get(key)) for key in ("size", "mtime", "ino", "LastModified", "ETag", "etag", "created"))


@lru_cache(maxsize=256)
def _digest(url: str, stamp: str) -> str:
    return hashlib.sha256(_read(url)).hexdigest() if stamp else ""


def _read(url: str) -> bytes:
    place = _place(url)
    storage, name = _storage(place)
    try:
        if place != url and not storage.exists(name):
            download(url)
        return storage.get(name)
    except FileNotFoundError as error:
        raise DataError(f"{url} does not exist") from error


def parse_weights(data: bytes, what: str) -> tuple[Tensors, Values, Values]:
    """Return the state dict in a file's bytes, and the mean and std it carries (empty if it carries none).

    ``what``: the file's URL, whose ending tells its format. ``DataError`` for anything but tensors, ``TornFileError`` for broken bytes.
    """
    if what.endswith(".safetensors"):
        state = load_tensors(data, what)
        metadata = load_metadata(data)
        mean, std = (_values(metadata.get(key), f"{what}: {key}") for key in ("mean", "std"))
        if len(mean) != len(std) or any(value <= 0 for value in std):
            raise DataError(f"{what}: mean {list(mean)} and std {list(std)} must be as long as each other, and std above 0")
        return _plain(state), mean, std
    with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments that training scripts keep beside their weights
        return _plain(_unwrap(load_pt(data, what), what)), (), ()


def _values(text: str | None, what: str) -> Values:
    if text is None:
        return ()
    try:
        return tuple(float(value) for value in json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(f"{what} is '{text}'; a JSON list of numbers is read") from error


def _unwrap(value: Any, what: str) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(value, Mapping):
            raise DataError(f"{what} holds a {type(value).__name__}; a state dict is read")
        if value and all(isinstance(part, Tensor) for part in value.values()):
            return {str(name): part for name, part in value.items()}
        inner = [value[key] for key in _WRAPPERS if isinstance(value.get(key), Mapping)]
        if not inner:
            break
        value = inner[0]
    raise DataError(f"{what} holds {sorted(map(str, value))[:8]}; a state dict is read, plain or under one of {', '.join(_WRAPPERS)}")


def _plain(state: Mapping[str, Tensor]) -> Tensors:
    """Return a state dict without what wrappers put before its names, and without torchvision's oldest spelling of DenseNets."""
    if any(name.startswith("params.") for name in state):
        state = {name.split(".", 1)[1]: value for name, value in state.items() if name.startswith(("params.", "buffers."))}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\b", r"\1\2", name): value for name, value in state.items()}
