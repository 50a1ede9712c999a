"""The distilled set: images, labels and how to read them; what methods assemble and students train on.

Nothing here touches a disk: :mod:`raydd.artifacts.published_folder` writes and reads sets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from raydd.core.errors import ConfigError, NumericsError
from raydd.core.registry import Registry
from raydd.core.rng import KeyedRng
from raydd.core.tensors import Tensors, digest
from raydd.data.catalog import DatasetInfo

Batch = tuple[Tensor, Tensor]

Decoder = Callable[..., Batch]
DECODERS: Registry[Decoder] = Registry("decoding")
"""What turns stored images and labels into those that students see: ``decoder(images, labels, **parameters)``.

Images arrive as float32 in network space, labels as they are stored (hard ``[N]`` or soft ``[N, classes]``).
"""


@DECODERS.register("identity")
def identity(images: Tensor, labels: Tensor) -> Batch:
    """Return images and labels as they are."""
    return images, labels


@DECODERS.register("grid")
def grid(images: Tensor, labels: Tensor, factor: int, padding: Sequence[float] = ()) -> Batch:
    """Return ``factor²`` images of each: it is a grid of that many rows and columns, each cut out
    and enlarged (IDC, IDM, BACON).

    Bilinear, ``align_corners=False``, to the full size. All images of the first row's first place
    come first, then those of its second, row after row. A size that ``factor`` does not divide is
    filled up at the right and below with ``padding``, by channel.
    """
    height, width = images.shape[2:]
    rows, columns = (-(-side // factor) for side in (height, width))
    if rows * factor > height or columns * factor > width:
        fill = torch.tensor(tuple(padding) or (0.0,) * images.shape[1]).view(1, -1, 1, 1).to(images)
        full = fill.expand(len(images), -1, rows * factor, columns * factor).clone()
        full[:, :, :height, :width] = images
        images = full
    places = [(i, j) for i in range(factor) for j in range(factor)]
    cut = torch.cat(
        [
            images[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            for i, j in places
        ]
    )
    enlarged = F.interpolate(cut, size=(height, width), mode="bilinear", align_corners=False)
    return enlarged, labels.repeat(factor**2, *(1,) * (labels.ndim - 1))


@dataclass(frozen=True)
class Decoding:
    """The name of a registered decoder, and its parameters (JSON values)."""

    name: str = "identity"
    parameters: Mapping[str, Any] = field(default_factory=dict)


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
    """Images, labels and how to read them.

    ``images``: float32 ``[N, C, H, W]`` in the method's space (normalised by ``mean``/``std``, then
    whitened if there is a ``whitening``; values may leave the range of pixels), or uint8 pixels.
    ``labels``: int64 ``[N]``, hard. ``soft_labels``: float ``[N, classes]``, probabilities that
    students learn instead of the hard labels. ``mean``/``std``: per channel, of pixels in [0, 1];
    those of ``info`` unless given. ``decoding``: how stored images become those that students see.
    ``recipe``: how the set was made (JSON values).

    Raises ``ConfigError`` for tensors that do not fit together and ``NumericsError`` for NaN or infinity.
    """

    images: Tensor
    labels: Tensor
    info: DatasetInfo
    soft_labels: Tensor | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    whitening: Whitening | None = None
    decoding: Decoding = Decoding()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("images", "labels", "soft_labels"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value.detach().cpu().contiguous())
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean or self.info.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std or self.info.std))
        self._check_images()
        self._check_labels()

    def _check_images(self) -> None:
        images, channels = self.images, self.info.channels
        if images.dtype not in (torch.float32, torch.uint8) or images.ndim != 4:
            raise ConfigError(
                f"images must be float32 or uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}"
            )
        if images.shape[1] != channels:
            raise ConfigError(
                f"images have {images.shape[1]} channels; {self.info.name} has {channels}"
            )
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise ConfigError(
                f"mean {self.mean} and std {self.std} must hold {channels} values each, std above 0"
            )
        if images.is_floating_point() and not bool(torch.isfinite(images).all()):
            bad = (~torch.isfinite(images)).flatten(1).any(1).nonzero().flatten().tolist()
            raise NumericsError(
                f"NaN or infinity in {len(bad)} of {len(images)} images, first: image {bad[0]}"
            )
        if self.whitening is not None:
            size = images[0].numel() if len(images) else self.whitening.mean.numel()
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
        if self._as_stored and len(labels) != len(self.images):
            raise ConfigError(f"{len(self.images)} images but {len(labels)} labels")
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

    @property
    def targets(self) -> Tensor:
        """The labels students learn, before decoding: soft ones where there are some, else hard ones."""
        return self.labels if self.soft_labels is None else self.soft_labels

    @property
    def image_bytes(self) -> int:
        """Bytes of the stored images."""
        return self.images.numel() * self.images.element_size()

    @property
    def label_bytes(self) -> int:
        """Bytes of the stored labels, hard and soft."""
        return sum(
            t.numel() * t.element_size() for t in (self.labels, self.soft_labels) if t is not None
        )

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
        tensors = {"images": self.images, "labels": self.labels}
        if self.soft_labels is not None:
            tensors["soft_labels"] = self.soft_labels
        if self.whitening is not None:
            tensors["whitening_matrix"], tensors["whitening_mean"] = (
                self.whitening.matrix,
                self.whitening.mean,
            )
        return tensors

    def normalised(self, images: Tensor) -> Tensor:
        """Return stored images ``[B, C, H, W]`` as float32 in the space networks expect."""
        if images.is_floating_point():
            return images
        out = (images.float() / 255 - self._channels(self.mean, images.device)) / self._channels(
            self.std, images.device
        )
        return out if self.whitening is None else self.whitening.apply(out)

    @staticmethod
    def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    @cached_property
    def _decoded(self) -> Batch:
        return DECODERS.get(self.decoding.name)(
            self.normalised(self.images), self.targets, **self.decoding.parameters
        )

    @property
    def _as_stored(self) -> bool:
        # Sets without decoding may be large and uint8: no float copy of them is kept.
        return self.decoding.name == "identity"

    def tensors(self, device: torch.device | str = "cpu") -> Batch:
        """Return everything students see: float32 images ``[M, C, H, W]`` in network space, and their labels."""
        images, labels = (
            (self.normalised(self.images), self.targets) if self._as_stored else self._decoded
        )
        return images.to(device), labels.to(device)

    def batches(self, epoch: int, size: int, rng: KeyedRng) -> Iterator[Batch]:
        """Yield an epoch of ``(images, labels)``, at most ``size`` at a time, in the order drawn
        from ``rng("batches", epoch)``.

        The last batch may be smaller. A set that fits one batch comes whole and in its own order. Labels are int64
        ``[B]`` or soft ``[B, classes]``.
        """
        if size < 1:
            raise ConfigError(f"batch size must be at least 1, not {size}")
        images, labels = (self.images, self.targets) if self._as_stored else self._decoded
        if len(images) <= size:
            yield self.normalised(images), labels
            return
        order = torch.randperm(len(images), generator=rng("batches", epoch))
        for ids in order.split(size):
            yield self.normalised(images[ids]), labels[ids]

    def to_rgb(self, images: Tensor | None = None) -> Tensor:
        """Return pictures, float32 ``[N, C, H, W]`` in [0, 1] (clamped), of the stored images or of
        others in network space.

        Where whitening took each image's own mean and norm away, each picture is stretched to fill [0, 1].
        """
        return self.to_pixels(images).clamp(0, 1)

    def to_pixels(self, images: Tensor | None = None) -> Tensor:
        """Return :meth:`to_rgb` as it is before it is clamped: what a method made may lie outside
        the range of pixels.
        """
        images = self.images if images is None else images
        if not images.is_floating_point():
            return images.float() / 255
        whitening = self.whitening
        if whitening is not None:
            images = whitening.undo(images)
            if whitening.per_image:
                flat = images.flatten(1)
                low, high = flat.amin(1).view(-1, 1, 1, 1), flat.amax(1).view(-1, 1, 1, 1)
                return (images - low) / (high - low).clamp_min(1e-12)
        return images * self._channels(self.std, images.device) + self._channels(
            self.mean, images.device
        )

    def to_uint8(self, images: Tensor | None = None) -> Tensor:
        """Return :meth:`to_rgb` as uint8 pixels, rounded to the nearest."""
        images = self.images if images is None else images
        if not images.is_floating_point():
            return images
        # In pieces, since the floats of a large set need not exist three times; undoing a whitening is dear per call.
        pieces = images.split(1024) if self.whitening is None else [images]
        return torch.cat([(self.to_rgb(piece) * 255).round().to(torch.uint8) for piece in pieces])
