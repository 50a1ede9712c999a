"""The distilled set: images, labels and how to read them; what methods assemble and students train on.

Nothing here touches a disk: :mod:`raydd.artifacts.published_folder` writes and reads sets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import raydd.artifacts.offsets  # noqa: F401 - registers its decoder
from raydd.artifacts.decoding import COMMON, Decoder, Decoding, SetSize, Shape
from raydd.artifacts.generated import Generated
from raydd.artifacts.seen import batches_of
from raydd.artifacts.windows import LABEL_MAP
from raydd.core.errors import ConfigError, NumericsError
from raydd.core.rng import KeyedRng
from raydd.core.tensors import Tensors, digest
from raydd.data.catalog import DatasetInfo

Batch = tuple[Tensor, Tensor]
WHITENING = ("whitening_matrix", "whitening_mean")
"""Names of a whitening's tensors beside those that a decoder reads."""
BLOCK_VALUES = 1 << 25
"""Values of images that are decoded, checked or shown together, where a set is gone through once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Whitening:
    """A linear whitening of normalised images, flattened in ``C, H, W`` order: ``(x - mean) @ matrix``.

    ``matrix`` float ``[D, D]``, invertible; ``mean`` float ``[D]``. ``per_image``: every image was first freed of its
    own mean and divided by its own norm (regularised ZCA of the kernel literature), which :meth:`undo` cannot restore.
    """

    matrix: Tensor
    mean: Tensor
    per_image: bool = False

    def apply(self, images: Tensor) -> Tensor:
        """Whiten normalised images ``[N, C, H, W]``; computed in float64, returned as float32."""
        flat = images.flatten(1).double()
        if self.per_image:
            flat = flat - flat.mean(1, keepdim=True)
            flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
        out = (flat - self.mean.double()) @ self.matrix.double()
        return out.reshape(images.shape).float()

    def undo(self, images: Tensor) -> Tensor:
        """Return normalised images of whitened ones ``[N, C, H, W]`` (with ``per_image``: up to
        each one's mean and norm).
        """
        flat = images.flatten(1).double()
        back = torch.linalg.solve(self.matrix.double(), flat, left=False)
        return (back + self.mean.double()).reshape(images.shape).float()


@dataclass(frozen=True, kw_only=True, eq=False)
class DistilledSet:
    """Named tensors and how to read them.

    ``images``: float32 ``[N, C, H, W]`` in the method's space (normalised by ``mean``/``std``, then
    whitened if there is a ``whitening``; values may leave the range of pixels), or uint8 pixels; of
    a decoding that asks for others, what it asks for (latent vectors). ``labels``: int64 ``[N]``, hard.
    ``soft_labels``: float ``[N, classes]``, probabilities that students learn instead of the hard
    labels. ``extra``: further tensors that the decoder reads, by name. ``mean``/``std``: per
    channel, of pixels in [0, 1]; those of ``info`` unless given. ``decoding``: how what is stored
    becomes the images that students see (:mod:`raydd.artifacts.decoding`). ``recipe``: how the set
    was made (JSON values).

    Raises ``ConfigError`` for tensors that do not fit together and ``NumericsError`` for NaN or infinity.
    """

    images: Tensor
    labels: Tensor
    info: DatasetInfo
    soft_labels: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    whitening: Whitening | None = None
    decoding: Decoding = field(default_factory=Decoding)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("images", "labels", "soft_labels"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value.detach().cpu().contiguous())
        extra = {name: value.detach().cpu().contiguous() for name, value in self.extra.items()}
        object.__setattr__(self, "extra", extra)
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean or self.info.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std or self.info.std))
        self._check_tensors()

    def _check_tensors(self) -> None:
        channels, taken = self.info.channels, sorted(set(self.extra) & {*COMMON, *WHITENING})
        if taken:
            raise ConfigError(
                f"a further tensor cannot be called '{taken[0]}', which is another's name"
            )
        self._check_labels()
        self.decoder.check(self.decoded, self.info)
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise ConfigError(
                f"mean {self.mean} and std {self.std} must hold {channels} values each, std above 0"
            )
        for name, tensor in (("images", self.images), *self.extra.items()):
            bad = _not_finite(tensor)
            if bad:
                what, one = (
                    ("images", "image") if name == "images" else (f"rows of '{name}'", "row")
                )
                raise NumericsError(
                    f"NaN or infinity in {len(bad)} of {len(tensor)} {what}, first: {one} {bad[0]}"
                )
        if self.whitening is not None:
            size = math.prod(self.shape) if len(self) else self.whitening.mean.numel()
            if self.whitening.matrix.shape != (size, size) or self.whitening.mean.shape != (size,):
                raise ConfigError(
                    f"whitening of {list(self.whitening.matrix.shape)} does not fit images of {size} values"
                )

    def _check_labels(self) -> None:
        labels, soft, classes = self.labels, self.soft_labels, self.info.classes
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise ConfigError(f"labels must be int64 [N], not {labels.dtype} {list(labels.shape)}")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ConfigError(
                f"labels range from {int(labels.min())} to {int(labels.max())}; allowed: 0 to {classes - 1}"
            )
        if soft is None:
            return
        if not soft.is_floating_point() or soft.shape != (len(labels), classes):
            raise ConfigError(
                f"soft labels must be float [{len(labels)}, {classes}], not {soft.dtype} {list(soft.shape)}"
            )
        if not bool(torch.isfinite(soft).all()):
            raise NumericsError("NaN or infinity in the soft labels")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def ipc(self) -> tuple[int, ...]:
        """Stored images of each class."""
        return tuple(torch.bincount(self.labels, minlength=self.info.classes).tolist())

    @cached_property
    def decoder(self) -> Decoder:
        """What makes the images that students see of the stored tensors."""
        return self.decoding.decoder()

    @property
    def decoded(self) -> Tensors:
        """The stored tensors that the decoder reads, by name."""
        tensors = {"images": self.images, "labels": self.labels}
        if self.soft_labels is not None:
            tensors["soft_labels"] = self.soft_labels
        return tensors | dict(self.extra)

    @property
    def seen(self) -> int:
        """How many images students see."""
        return self.decoder.count(self.decoded)

    @property
    def shape(self) -> Shape:
        """Channels, height and width of an image that students see."""
        return self.decoder.shape(self.decoded)

    @property
    def soft(self) -> bool:
        """Whether students learn soft labels of the set's own."""
        return self.decoder.soft(self.decoded)

    @property
    def pixel_ipc(self) -> float:
        """Images per class that have as many pixels as all that is stored, or as what is made of latents."""
        if isinstance(self.decoder, Generated):
            return self.seen / self.info.classes
        height, width = self.shape[1:]
        return math.prod(self.images.shape[2:]) * len(self) / (height * width * self.info.classes)

    @property
    def values(self) -> int:
        """Values of the stored images; of latents those of the pictures made of them."""
        if isinstance(self.decoder, Generated):
            return self.seen * math.prod(self.shape)
        return self.images.numel()

    @property
    def image_bytes(self) -> int:
        """Bytes of the stored images."""
        return self.images.numel() * self.images.element_size()

    @property
    def label_bytes(self) -> int:
        """Bytes of the stored labels, hard and soft, and of a map of them."""
        kept = (self.labels, self.soft_labels, self.extra.get(LABEL_MAP))
        return sum(t.numel() * t.element_size() for t in kept if t is not None)

    @property
    def size(self) -> SetSize:
        """Images stored and seen, bytes of all stored tensors."""
        held = {name: t.numel() * t.element_size() for name, t in self.stored().items()}
        whitening = sum(held.get(name, 0) for name in WHITENING)
        return SetSize(len(self), self.seen, sum(held.values()), whitening)

    @cached_property
    def digest(self) -> str:
        """The sha256, in hex, of all that students see: tensors, normalisation, whitening, decoding
        (not the recipe).
        """
        facts = {
            "mean": [value.hex() for value in self.mean],
            "std": [value.hex() for value in self.std],
            "per_image": self.whitening.per_image if self.whitening else None,
            "decoding": [self.decoding.name, dict(self.decoding.parameters)],
        }
        text = json.dumps(facts, sort_keys=True).encode()
        return digest(
            {**self.stored(), "facts": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        )

    def stored(self) -> Tensors:
        """Return the set's tensors by name, as they are kept in ``data.safetensors``."""
        tensors = self.decoded
        if self.whitening is not None:
            kept = (self.whitening.matrix, self.whitening.mean)
            tensors |= dict(zip(WHITENING, kept, strict=True))
        return tensors

    def normalised(self, images: Tensor) -> Tensor:
        """Return pixels, or images in network space, ``[B, C, H, W]`` as float32 in the space networks expect."""
        if images.is_floating_point():
            return images
        out = self._centred(images)
        return out if self.whitening is None else self.whitening.apply(out)

    def _centred(self, images: Tensor) -> Tensor:
        """Return pixels as float32, normalised and not whitened; images in network space as they are."""
        if images.is_floating_point():
            return images
        mean, std = (self._channels(values, images.device) for values in (self.mean, self.std))
        return (images.float() / 255 - mean) / std

    @staticmethod
    def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    def take(self, ids: Tensor | None = None, tensors: Tensors | None = None) -> Tensor:
        """Return the images ``ids`` that students see (int64 ``[B]``; ``None``: all) ``[B, C, H, W]``.

        Pixels uint8, where they are stored so and no decoding changes them; else float32 in network
        space. ``tensors``: :attr:`decoded` as they lie on another device, where the images then are.
        """
        tensors = self.decoded if tensors is None else tensors
        images = self.decoder.take(tensors, ids, self._centred)
        # What is stored in floats is in the set's space; pixels are whitened as test images are, when they are seen.
        pixels = not tensors["images"].is_floating_point() and images.is_floating_point()
        return self.whitening.apply(images) if pixels and self.whitening is not None else images

    def ids(self) -> Tensor:
        """Return the ids of all seen images."""
        return torch.arange(self.seen)

    def blocks(self, ids: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the ids of seen images (``None``: of all) in turn, as many at a time as may be decoded together."""
        yield from (self.ids() if ids is None else ids).split(
            max(1, BLOCK_VALUES // max(1, math.prod(self.shape)))
        )

    def labels_of(self, ids: Tensor | None = None) -> Tensor:
        """Return the hard labels int64 ``[B]`` of seen images (``None``: of all)."""
        return self.decoder.labels(self.decoded, self.ids() if ids is None else ids)

    def targets_of(self, ids: Tensor | None = None) -> Tensor:
        """Return what students learn of seen images (``None``: of all): soft labels ``[B, classes]``
        where there are some, else hard ones ``[B]``.
        """
        return self.decoder.targets(self.decoded, self.ids() if ids is None else ids)

    @property
    def targets(self) -> Tensor:
        """What students learn of all seen images; see :meth:`targets_of`."""
        return self.targets_of()

    def tensors(self, device: torch.device | str = "cpu") -> Batch:
        """Return everything students see: float32 images ``[M, C, H, W]`` in network space, and their labels."""
        return self.normalised(self.take()).to(device), self.targets.to(device)

    def batches(
        self, epoch: int, size: int, rng: KeyedRng, ids: Tensor | None = None
    ) -> Iterator[Batch]:
        """Yield an epoch of ``(images, labels)``, at most ``size`` at a time, in the order drawn
        from ``rng("batches", epoch)``.

        ``ids``: of the seen images that are gone through (``None``: all). The last batch may be
        smaller. What fits one batch comes whole and in its own order. Labels are int64 ``[B]`` or
        soft ``[B, classes]``.
        """
        return batches_of(self, epoch, size, rng, ids)

    def pictures(self) -> Tensor:
        """Return what is shown of the set, pixels or in network space: the stored images, for most decoders."""
        return self.decoder.pictures(self.decoded)

    def to_rgb(self, images: Tensor | None = None) -> Tensor:
        """Return pictures, float32 ``[N, C, H, W]`` in [0, 1] (clamped), of :meth:`pictures` or of
        others in network space.

        Where whitening took each image's own mean and norm away, each picture is stretched to fill [0, 1].
        """
        return self.to_pixels(images).clamp(0, 1)

    def to_pixels(self, images: Tensor | None = None) -> Tensor:
        """Return :meth:`to_rgb` as it is before it is clamped: what a method made may lie outside
        the range of pixels.
        """
        images = self.pictures() if images is None else images
        if not images.is_floating_point():
            return images.float() / 255
        whitening = self.whitening
        if whitening is not None:
            images = self.decoder.undone(images, whitening.undo)
            if whitening.per_image:
                flat = images.flatten(1)
                low, high = flat.amin(1).view(-1, 1, 1, 1), flat.amax(1).view(-1, 1, 1, 1)
                return (images - low) / (high - low).clamp_min(1e-12)
        return images * self._channels(self.std, images.device) + self._channels(
            self.mean, images.device
        )

    def to_uint8(self, images: Tensor | None = None) -> Tensor:
        """Return :meth:`to_rgb` as uint8 pixels, rounded to the nearest."""
        images = self.pictures() if images is None else images
        if not images.is_floating_point():
            return images
        # In pieces, since the floats of a large set need not exist three times; undoing a whitening is dear per call.
        pieces = images.split(1024) if self.whitening is None else [images]
        return torch.cat([(self.to_rgb(piece) * 255).round().to(torch.uint8) for piece in pieces])


def _not_finite(tensor: Tensor) -> list[int]:
    """Return the rows of a tensor in which a value is NaN or infinite, looked at in blocks."""
    if not tensor.is_floating_point() or not tensor.numel():
        return []
    flat = tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)
    bad, first = [], 0
    for part in flat.split(max(1, BLOCK_VALUES // flat.shape[1])):
        if not bool(torch.isfinite(part).all()):
            bad += (first + (~torch.isfinite(part)).any(1).nonzero().flatten()).tolist()
        first += len(part)
    return bad
