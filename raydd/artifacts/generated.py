"""The decoder of latents: what students see is made by a generator that is stored beside its latent vectors.

IT-GAN, arXiv 2204.07513; docs/methods/itgan.md, "What is stored".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydd.artifacts.decoding import (
    COMMON,
    Decoder,
    Decoding,
    Shape,
    Space,
    as_stored,
    register_decoder,
)
from raydd.core.errors import ConfigError, unknown
from raydd.core.tensors import Tensors
from raydd.data.catalog import DatasetInfo
from raydd.networks.folded_generator import GanShape, check_folded, generate

WEIGHTS = "generator."
"""What names of a generator's tensors begin with."""
ARCHITECTURES = ("biggan",)
BLOCK = 64
"""Images that are made together, always so many, so that an image's bytes do not depend on which
others are asked for: kernels round by the shape of what they are given.
"""


@register_decoder("generator")
@dataclass(frozen=True, kw_only=True)
class Generated(Decoder):
    """Images that a generator makes of latent vectors.

    ``images``: the latents, float16 or float32 ``[N, dim_z]``; ``labels``: their classes, which the
    generator is given, too; ``generator.*``: its folded tensors
    (:mod:`raydd.networks.folded_generator`). ``architecture``: ``biggan``, of the sizes of
    :class:`~raydd.networks.folded_generator.GanShape`. Its images, in (-1, 1), are pixels
    ``(x + 1) / 2``, normalised by ``mean`` and ``std``, by channel. Halves are computed with as floats.
    """

    architecture: str
    classes: int
    width: int
    dim_z: int
    bottom: int
    blocks: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise unknown("architecture of a generator", self.architecture, ARCHITECTURES)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not values:
                raise ConfigError(f"{name}: {values!r} must be a number for each channel")
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if len(self.std) != len(self.mean) or min(self.std) <= 0:
            raise ConfigError(
                f"std {self.std} must hold {len(self.mean)} values above 0, as many as mean"
            )
        self.sizes  # noqa: B018 - refuses numbers that are none

    @classmethod
    def decoding_of(cls, sizes: GanShape, info: DatasetInfo) -> Decoding:
        """Return the decoding of latents of a generator of a data set's images."""
        names = ("classes", "width", "dim_z", "bottom", "blocks")
        return Decoding(
            cls.name,
            {
                "architecture": "biggan",
                **{name: getattr(sizes, name) for name in names},
                "mean": list(info.mean),
                "std": list(info.std),
            },
        )

    @property
    def sizes(self) -> GanShape:
        """The generator's sizes."""
        return GanShape(
            channels=len(self.mean),
            classes=self.classes,
            width=self.width,
            dim_z=self.dim_z,
            bottom=self.bottom,
            blocks=self.blocks,
        )

    def reads(self, name: str) -> bool:
        """Return whether it is a tensor of the generator."""
        return name.startswith(WEIGHTS)

    def check(self, tensors: Tensors, info: DatasetInfo) -> None:
        """Refuse what are no latents of this generator, or of no images of the data set."""
        latents, labels = tensors["images"], tensors["labels"]
        for name in tensors:
            if name not in COMMON and not self.reads(name):
                raise ConfigError(f"decoding '{self.name}' reads no tensor '{name}'")
        if (
            latents.dtype not in (torch.float16, torch.float32)
            or latents.ndim != 2
            or latents.shape[1] != self.dim_z
        ):
            raise ConfigError(
                f"latents must be float16 or float32 [N, {self.dim_z}], not {latents.dtype} {list(latents.shape)}"
            )
        if len(labels) != len(latents):
            raise ConfigError(f"{len(latents)} latents but {len(labels)} labels")
        weights = _own(tensors)
        for name, tensor in weights.items():
            if tensor.dtype not in (torch.float16, torch.float32):
                raise ConfigError(
                    f"the generator's '{name}' must be float16 or float32, not {tensor.dtype}"
                )
        check_folded(weights, self.sizes)
        made = (len(self.mean), self.sizes.side, self.sizes.side)
        if (made, self.classes) != (info.shape, info.classes):
            raise ConfigError(
                f"the generator makes images {list(made)} of {self.classes} classes; {info.name} has {list(info.shape)}"
                f" of {info.classes}"
            )

    def shape(self, tensors: Tensors) -> Shape:
        """Return the channels and the sides of an image."""
        return len(self.mean), self.sizes.side, self.sizes.side

    def count(self, tensors: Tensors) -> int:
        """Return the number of latents."""
        return len(tensors["images"])

    def rows(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Return ``ids``."""
        return ids

    def take(self, tensors: Tensors, ids: Tensor | None = None, space: Space = as_stored) -> Tensor:
        """Return the images of latents, normalised: all at once of those that need a gradient, else
        :data:`BLOCK` at a time.
        """
        z, labels = tensors["images"], tensors["labels"]
        if ids is not None:
            z, labels = z[ids], labels[ids]
        wide = torch.promote_types(z.dtype, torch.float32)
        weights = {name: tensor.to(wide) for name, tensor in _own(tensors).items()}
        z = z.to(wide)
        if z.requires_grad:
            return self._made(weights, z, labels)
        count = len(z)
        spare = -count % BLOCK
        z = torch.cat([z, z.new_zeros(spare, z.shape[1])])
        labels = torch.cat([labels, labels.new_zeros(spare)])
        parts = zip(z.split(BLOCK), labels.split(BLOCK), strict=True)
        made = [self._made(weights, *part) for part in parts]
        return torch.cat(made)[:count] if made else z.new_empty(0, *self.shape(tensors))

    def pictures(self, tensors: Tensors) -> Tensor:
        """Return the images of all latents."""
        return self.take(tensors)

    def _made(self, weights: Mapping[str, Tensor], z: Tensor, labels: Tensor) -> Tensor:
        images = generate(weights, self.sizes, z, labels)
        mean, std = (
            torch.tensor(values, dtype=z.dtype, device=z.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images * 0.5 + 0.5 - mean) / std


def stored_weights(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a folded generator's tensors as sets keep them."""
    return {f"{WEIGHTS}{name}": tensor.to(dtype) for name, tensor in weights.items()}


def _own(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name.removeprefix(WEIGHTS): tensor
        for name, tensor in tensors.items()
        if name.startswith(WEIGHTS)
    }
