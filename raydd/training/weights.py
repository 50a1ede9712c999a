"""Files of trained weights: ``.pth`` and its like of others, safetensors, torchvision's published
ones; read without unpickling.

What a file holds is found as :mod:`raydd.training.checkpoints` says, and its names are fitted to a
network's as :mod:`raydd.networks.fitting` says: ours or the published ones
(:mod:`raydd.networks.released`). A safetensors file may say in its metadata how the images of its
network are normalised: ``mean`` and ``std``, JSON lists of a number per channel, of pixels in [0,
1]. An output of :class:`raydd.training.train_network.TrainNetwork` from a store is read as well.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from raydd.core.errors import ConfigError, DataError
from raydd.core.json_text import parse_json
from raydd.core.storage import Storage, protocol
from raydd.core.tensors import Tensors, load_metadata, load_tensors
from raydd.core.units import unkeyed
from raydd.data.catalog import IMAGENET_MEAN, IMAGENET_STD
from raydd.networks.fitting import Fit, fit, load_published_
from raydd.networks.names import normalise_name
from raydd.networks.network import Network
from raydd.training.checkpoints import find_weights, load_checkpoint

SUFFIXES = (".safetensors", ".pth", ".pt", ".pth.tar", ".ckpt", ".bin", ".tar", ".th")
"""How files of weights are called; one that is there is read whatever it is called."""
_SITE = "https://download.pytorch.org/models/"
_TRANSFORMED = ("torchvision/googlenet", "torchvision/inception_v3")
"""Networks whose published weights read images in another normalisation, which torchvision converts
inside the network.
"""
_WAIT_SECONDS = 30.0
Values = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A file of weights; what it holds is part of a stage's key, where it lies is not.

    ``digest``: sha256 of the file, empty in a plan made while it is missing. ``mean``/``std``: how
    images are normalised for its network, of a file that does not say so itself; empty for as the
    data set's are.
    """

    url: str = unkeyed()
    digest: str
    mean: Values = ()
    std: Values = ()

    @classmethod
    def at(cls, url: str, mean: Values = (), std: Values = ()) -> Weights:
        """Return the weights in the file at ``url``, which is read once for its digest if it is there."""
        place = _place(url)
        return cls(
            url=url if place != url else Storage(url).url,
            digest=_digest(*_stamped(place)),
            mean=mean,
            std=std,
        )

    def fill(
        self, network: Network, *, head: bool = True, tell: Callable[[str], None] | None = None
    ) -> tuple[Values, Values]:
        """Write the weights into a network in place and return the mean and std of its images (empty: not known).

        ``head=False``: the last linear layer stays as it is. ``tell`` gets a line for each choice
        that was made and each kind of thing in the file that was left out. ``DataError`` for a file
        that is missing, has changed since it was planned with, or holds something else;
        ``ConfigError`` for one of another network, image shape or number of classes.
        """
        data = read_bytes(self.url)
        if hashlib.sha256(data).hexdigest() != self.digest:
            planned = (
                f"planned was {self.digest[:12]}"
                if self.digest
                else "it was missing when this was planned"
            )
            raise DataError(
                f"{self.url} has changed: its sha256 is {hashlib.sha256(data).hexdigest()[:12]}, {planned}"
            )
        value, mean, std = parse_weights(data, self.url)

        def fits(state: Tensors, what: str) -> Fit:
            return fit(network, state, what, head=head)

        found = find_weights(value, self.url, fits)
        load_published_(network, found.state, self.url, head=head)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()):
            raise DataError(f"{self.url} holds NaN or infinity")
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var") and bool((tensor < 0).any()):
                raise DataError(f"{self.url}: negative variances in {name}")
        self._transform_input_(network)
        if tell is not None:
            for line in found.notes():
                tell(f"{self.url}: {line}")
        mean, std = (mean, std) if mean else (self.mean, self.std)
        if mean and {len(mean), len(std)} != {network.shape[0]}:
            raise ConfigError(
                f"{self.url}: {len(mean)} means and {len(std)} deviations for images of {network.shape[0]} channels"
            )
        return mean, std

    def _transform_input_(self, network: Network) -> None:
        """Make a network with published weights convert images as torchvision makes it do with them."""
        if network.name in _TRANSFORMED:
            published = torchvision_url(network.name).rpartition("/")[2]
            known = published.rpartition("-")[2].partition(".")[0]  # the file's hash begins so
            if self.url.endswith(published) or self.digest.startswith(known):
                network.body.transform_input = True  # type: ignore[union-attr]


@dataclass(frozen=True, kw_only=True)
class PretrainedStart:
    """Where a training begins: published weights, but for the last linear layer, which stays fresh (new classes)."""

    weights: Weights

    def fill(self, network: Network) -> None:
        """Write the weights into a network in place; see :meth:`Weights.fill`."""
        self.weights.fill(network, head=False)


def torchvision_weights(network: str) -> Weights:
    """Return torchvision's ``IMAGENET1K_V1`` weights of a network, whatever its default is;
    ``ConfigError`` if it has none.

    They are read from torch hub's cache. The digest is the file's: the hash in its name, wrong for
    EfficientNet, is not used.
    """
    return Weights.at(torchvision_url(network), IMAGENET_MEAN, IMAGENET_STD)


@lru_cache
def torchvision_url(network: str) -> str:
    """Return where torchvision publishes the ``IMAGENET1K_V1`` weights of a network."""
    name = normalise_name(network)
    found: Any = None
    if name.startswith("torchvision/"):
        from torchvision import models

        found = models.get_model_weights(name.removeprefix("torchvision/")).__members__.get(
            "IMAGENET1K_V1"
        )
    if found is None:
        raise ConfigError(
            f"torchvision has no IMAGENET1K_V1 weights of network '{network}'; train it, or give a file"
        )
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
        with tempfile.NamedTemporaryFile(
            dir=os.path.dirname(target), suffix=".tmp", delete=False
        ) as file:
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


def is_file(url: str) -> bool:
    """Return whether ``url`` means one file of weights, not a folder of them: what is there tells,
    else how it is called.
    """
    storage, name = _storage(url.rstrip("/"))
    named = url.lower().endswith(SUFFIXES)
    if protocol(url) in ("http", "https"):  # where anything that is there is a file
        return named
    if not storage.exists(name):
        return named
    return bool(storage.fs.info(f"{storage.root.rstrip('/')}/{name}")["type"] != "directory")


def _stamped(url: str) -> tuple[str, str]:
    """Return a file's URL and what changes with its contents (size, times), an empty text while it is missing."""
    storage, name = _storage(url)
    if not storage.exists(name):
        return url, ""
    info = storage.fs.info(f"{storage.root.rstrip('/')}/{name}")
    return url, "|".join(
        str(info.get(key))
        for key in ("size", "mtime", "ino", "LastModified", "ETag", "etag", "created")
    )


@lru_cache(maxsize=256)
def _digest(url: str, stamp: str) -> str:
    return hashlib.sha256(read_bytes(url)).hexdigest() if stamp else ""


def read_bytes(url: str) -> bytes:
    """Return a file of weights, one of torchvision's from torch hub's cache; ``DataError`` if there is none."""
    place = _place(url)
    storage, name = _storage(place)
    try:
        if place != url and not storage.exists(name):
            download(url)
        return storage.get(name)
    except FileNotFoundError as error:
        raise DataError(f"{url} does not exist") from error


def parse_weights(data: bytes, what: str) -> tuple[Any, Values, Values]:
    """Return what is in a file's bytes, for :func:`find_weights`, and the mean and std it carries
    (empty if it carries none).

    ``what``: the file's URL. ``DataError`` for anything but tensors and plain values,
    ``TornFileError`` for broken bytes.
    """
    if data.lstrip()[:1] == b"{":
        raise DataError(
            f"{what} is text, no file of weights; of weights in several parts, put these into one file"
        )
    if what.endswith(".safetensors") or data[8:9] == b"{":
        state = load_tensors(data, what)
        metadata = load_metadata(data, what)
        mean, std = (_values(metadata.get(key), f"{what}: {key}") for key in ("mean", "std"))
        if len(mean) != len(std) or any(value <= 0 for value in std):
            raise DataError(
                f"{what}: mean {list(mean)} and std {list(std)} must be as long as each other, and std above 0"
            )
        return _of_unit(state), mean, std
    return _of_unit(load_checkpoint(data, what)), (), ()


def _values(text: str | None, what: str) -> Values:
    if text is None:
        return ()
    try:
        return tuple(float(value) for value in parse_json(text))
    except (ValueError, TypeError) as error:
        raise DataError(f"{what} is '{text}'; a JSON list of numbers is read") from error


def _of_unit(value: Any) -> Any:
    """Return the weights of a training's output from a store, anything else as it is."""
    if not isinstance(value, Mapping) or not any(str(name).startswith("params.") for name in value):
        return value
    return {
        name.split(".", 1)[1]: part
        for name, part in value.items()
        if str(name).startswith(("params.", "buffers."))
    }
