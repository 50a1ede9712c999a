"""Decoders: how the stored tensors of a distilled set become the images that students see.

A set is named tensors and a decoder. Methods decode what they optimise with the same
:meth:`Decoder.take` as students, label codecs, pictures and exports do later; it is plain torch, and
gradients flow to what is stored as floats. Nothing is decoded that is not asked for, so a set of
more images than memory holds is read block by block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from raydd.core.errors import ConfigError, unknown
from raydd.core.plain_types import check_fields
from raydd.core.registry import Registry
from raydd.core.tensors import Tensors
from raydd.data.catalog import DatasetInfo

Shape = tuple[int, int, int]
Space = Callable[[Tensor], Tensor]
"""What brings stored images into the space of networks, before anything is interpolated."""
COMMON = ("images", "labels", "soft_labels")
"""Names of the tensors that sets of every decoding may have."""


@dataclass(frozen=True)
class SetSize:
    """How large a set is: images stored and seen by students, bytes of all that is stored (images,
    labels, whitening, what a decoder reads); ``whitening``: those of them that are a whitening.
    """

    stored: int
    seen: int
    bytes: int
    whitening: int = field(default=0, compare=False)

    def __add__(self, other: SetSize) -> SetSize:
        return SetSize(
            self.stored + other.stored,
            self.seen + other.seen,
            self.bytes + other.bytes,
            self.whitening + other.whitening,
        )


def as_stored(images: Tensor) -> Tensor:
    """Return images as they are: the :data:`Space` of images that are in network space already."""
    return images


def enlarged(images: Tensor, height: int, width: int) -> Tensor:
    """Return images ``[B, C, h, w]`` at ``height`` × ``width``: bilinear, ``align_corners=False``."""
    if images.device.type == "cpu":
        return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
    return enlarged_by_products(images, height, width)


def enlarged_by_products(images: Tensor, height: int, width: int) -> Tensor:
    """Return what :func:`enlarged` does, as the products of images with a matrix for each axis.

    Their derivatives are products, too; those of interpolation on a GPU add by atomics, or sort.
    """
    rows, columns = (
        _weights(small, large, images)
        for small, large in zip(images.shape[2:], (height, width), strict=True)
    )
    return rows.T @ images @ columns


def _weights(small: int, large: int, like: Tensor) -> Tensor:
    """Return how much of each of ``small`` places each of ``large`` ones takes, ``[small, large]``."""
    units = torch.eye(small, dtype=like.dtype, device=like.device).unsqueeze(0)
    return F.interpolate(units, size=large, mode="linear", align_corners=False)[0]


@dataclass(frozen=True, kw_only=True)
class Decoder(ABC):
    """Base of all decoders; the fields of a subclass are the parameters that a set keeps (JSON values).

    ``tensors``: ``images``, ``labels`` and perhaps ``soft_labels``, as
    :class:`raydd.artifacts.distilled_set.DistilledSet` has them, and further ones by names of the
    decoder's own (:meth:`reads`). Here each of M seen images is made of one of N stored images and has
    its labels, :meth:`rows`; a decoder of which that is not true defines the labels too.
    """

    name: ClassVar[str]

    def reads(self, name: str) -> bool:
        """Return whether a further tensor of this name is a part of the set."""
        return False

    def check(self, tensors: Tensors, info: DatasetInfo) -> None:
        """Raise ``ConfigError`` for stored tensors that cannot be decoded into images of a data set's channels."""
        self.check_images(tensors, info)
        images, labels = tensors["images"], tensors["labels"]
        if len(labels) != len(images):
            raise ConfigError(f"{len(images)} images but {len(labels)} labels")

    def check_images(self, tensors: Tensors, info: DatasetInfo) -> None:
        """Raise ``ConfigError`` for images of another kind or of other channels, and for tensors that nothing reads."""
        images = tensors["images"]
        for name in tensors:
            if name not in COMMON and not self.reads(name):
                raise ConfigError(f"decoding '{self.name}' reads no tensor '{name}'")
        if images.dtype not in (torch.float32, torch.uint8) or images.ndim != 4:
            raise ConfigError(
                f"images must be float32 or uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}"
            )
        if images.shape[1] != info.channels:
            raise ConfigError(
                f"images have {images.shape[1]} channels; {info.name} has {info.channels}"
            )

    def shape(self, tensors: Tensors) -> Shape:
        """Return the channels, height and width of a seen image."""
        channels, height, width = tensors["images"].shape[1:]
        return channels, height, width

    @abstractmethod
    def count(self, tensors: Tensors) -> int:
        """Return how many images students see, M."""

    @abstractmethod
    def rows(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Return the stored images ``[B]`` that the seen images ``ids`` are made of."""

    @abstractmethod
    def take(self, tensors: Tensors, ids: Tensor | None = None, space: Space = as_stored) -> Tensor:
        """Return the seen images ``ids`` (int64 ``[B]``; ``None``: all, in order) ``[B, C, H, W]``.

        uint8 pixels where they are stored so and left as they are, else floats: of the stored images in
        network space, into which ``space`` brings those that are stored as pixels.
        """

    def labels(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Return the hard labels int64 ``[B]`` of seen images."""
        return tensors["labels"][self.rows(tensors, ids)]

    def targets(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Return what students learn of seen images: soft labels ``[B, classes]`` where the set has
        some, else hard ones ``[B]``.
        """
        soft = tensors.get("soft_labels")
        return self.labels(tensors, ids) if soft is None else soft[self.rows(tensors, ids)]

    def soft(self, tensors: Tensors) -> bool:
        """Return whether :meth:`targets` are soft labels."""
        return "soft_labels" in tensors

    def pictures(self, tensors: Tensors) -> Tensor:
        """Return what is shown of a set ``[P, C, h, w]``, pixels or in network space: the stored images."""
        return tensors["images"]

    def undone(self, images: Tensor, undo: Space) -> Tensor:
        """Return stored or seen images of which ``undo``, which takes seen ones, takes something back."""
        return undo(images)


DECODERS: Registry[type[Decoder]] = Registry("decoding")


def register_decoder(name: str) -> Callable[[type[Decoder]], type[Decoder]]:
    """Return a class decorator that registers a decoder under ``name`` and sets its ``name``."""

    def add(cls: type[Decoder]) -> type[Decoder]:
        cls.name = name
        return DECODERS.register(name)(cls)

    return add


@register_decoder("identity")
@dataclass(frozen=True, kw_only=True)
class Identity(Decoder):
    """Images as they are stored."""

    def count(self, tensors: Tensors) -> int:
        """Return the number of stored images."""
        return len(tensors["images"])

    def rows(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Return ``ids``."""
        return ids

    def take(self, tensors: Tensors, ids: Tensor | None = None, space: Space = as_stored) -> Tensor:
        """Return stored images, pixels as pixels."""
        return tensors["images"] if ids is None else tensors["images"][ids]


@dataclass(frozen=True, kw_only=True)
class Tiles(Decoder):
    """Each stored image is ``factor`` rows and columns of images, which are cut out and enlarged.

    Bilinear, ``align_corners=False``, to the size of the stored image. The seen images are those of
    the first place of every stored image, then those of the second, and so on.
    """

    by_rows: ClassVar[bool]
    factor: int

    def __post_init__(self) -> None:
        self.check_factor(self.factor)

    @staticmethod
    def check_factor(factor: int) -> None:
        """Raise ``ConfigError`` for what is no factor."""
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
            raise ConfigError(
                f"factor: {factor!r} must be a whole number of at least 1: images per side of a stored one"
            )

    def check(self, tensors: Tensors, info: DatasetInfo) -> None:
        """Refuse images that cannot be cut into so many rows and columns, too."""
        super().check(tensors, info)
        self.check_sides(*tensors["images"].shape[2:])

    def check_sides(self, height: int, width: int) -> None:
        """Raise ``ConfigError`` for sides that cannot be cut into so many pieces."""
        if self.factor > min(height, width):
            raise ConfigError(
                f"factor={self.factor}: images of {height}×{width} pixels cannot be cut into so many rows and columns"
            )

    def count(self, tensors: Tensors) -> int:
        """Return ``factor²`` times the number of stored images."""
        return int(self.factor**2 * len(tensors["images"]))

    def rows(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Return the stored images that hold the tiles."""
        return ids % len(tensors["images"])

    def take(self, tensors: Tensors, ids: Tensor | None = None, space: Space = as_stored) -> Tensor:
        """Return tiles, enlarged; all of them without an index, so that gradients need no scatter."""
        images, factor = tensors["images"], self.factor
        height, width = images.shape[2:]
        full = images if ids is None else images[ids % len(images)]
        if height % factor or width % factor:
            full, space = self.filled(space(full)), as_stored
        rows, columns = full.shape[2] // factor, full.shape[3] // factor
        if ids is None:
            cut = torch.cat(
                [
                    full[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
                    for i, j in map(self.place, range(factor**2))
                ]
            )
        else:
            places = ids.to(full.device) // len(images)
            first, second = places // factor, places % factor
            i, j = (first, second) if self.by_rows else (second, first)
            tiles = full.unflatten(3, (factor, columns)).unflatten(2, (factor, rows))
            cut = tiles.permute(0, 2, 4, 1, 3, 5)[torch.arange(len(full), device=full.device), i, j]
        # What is cut out is brought into network space, not all that it is cut from.
        return enlarged(space(cut), height, width)

    def place(self, number: int) -> tuple[int, int]:
        """Return row and column of the tile that comes as number so-and-so."""
        first, second = divmod(number, self.factor)
        return (first, second) if self.by_rows else (second, first)

    def pack(self, tiles: Tensor) -> Tensor:
        """Return stored images ``[N, C, factor * h, factor * w]`` of tiles ``[factor² * N, C, h, w]``, in
        the order in which they are seen: the inverse of cutting them out.
        """
        factor, count, (rows, columns) = self.factor, len(tiles) // self.factor**2, tiles.shape[2:]
        packed = tiles.new_empty(count, tiles.shape[1], factor * rows, factor * columns)
        for number, part in enumerate(tiles.split(max(1, count))):
            i, j = self.place(number)
            packed[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = part
        return packed

    def filled(self, images: Tensor) -> Tensor:
        """Return images in network space filled up to sides that ``factor`` divides."""
        raise ConfigError(f"factor={self.factor} does not divide {list(images.shape[2:])} pixels")


@register_decoder("partition")
@dataclass(frozen=True, kw_only=True)
class Partition(Tiles):
    """Tiles of IDM and BACON: a column of tiles after the other, top left, bottom left, top right, bottom right.

    ``factor`` divides both sides.
    """

    by_rows: ClassVar[bool] = False
    factor: int = 2

    def check_sides(self, height: int, width: int) -> None:
        """Refuse sides that ``factor`` does not divide, too."""
        super().check_sides(height, width)
        if height % self.factor or width % self.factor:
            raise ConfigError(
                f"factor={self.factor} does not divide images of {height}×{width} pixels; the decoding 'grid' fills"
                " them up"
            )


@register_decoder("grid")
@dataclass(frozen=True, kw_only=True)
class GridOfTiles(Tiles):
    """Tiles of IDC: row after row. A size that ``factor`` does not divide is filled up at the right
    and below with ``padding``, by channel, of network space (none: zeros).
    """

    by_rows: ClassVar[bool] = True
    factor: int = 2
    padding: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "padding", tuple(float(v) for v in self.padding))

    def check(self, tensors: Tensors, info: DatasetInfo) -> None:
        """Refuse a padding that is not one value per channel, too."""
        super().check(tensors, info)
        if len(self.padding) not in (0, info.channels):
            raise ConfigError(
                f"padding: {list(self.padding)} must hold {info.channels} values, one per channel"
            )

    def filled(self, images: Tensor) -> Tensor:
        """Return images filled up at the right and below."""
        height, width = images.shape[2:]
        rows, columns = (-(-side // self.factor) * self.factor for side in (height, width))
        fill = torch.tensor(self.padding or (0.0,) * images.shape[1]).view(1, -1, 1, 1)
        full = fill.to(images).expand(len(images), -1, rows, columns).clone()
        full[:, :, :height, :width] = images
        return full


@register_decoder("resize")
@dataclass(frozen=True, kw_only=True)
class Resize(Decoder):
    """Small images, enlarged to ``height`` × ``width``: bilinear, ``align_corners=False``."""

    height: int
    width: int

    def check(self, tensors: Tensors, info: DatasetInfo) -> None:
        """Refuse stored images that are larger, too."""
        super().check(tensors, info)
        height, width = tensors["images"].shape[2:]
        if height > self.height or width > self.width:
            raise ConfigError(
                f"images of {height}×{width} pixels are larger than {self.height}×{self.width}, to which they are to"
                " be enlarged"
            )

    def shape(self, tensors: Tensors) -> Shape:
        """Return the size to which images are enlarged."""
        return tensors["images"].shape[1], self.height, self.width

    def count(self, tensors: Tensors) -> int:
        """Return the number of stored images."""
        return len(tensors["images"])

    def rows(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Return ``ids``."""
        return ids

    def take(self, tensors: Tensors, ids: Tensor | None = None, space: Space = as_stored) -> Tensor:
        """Return stored images, enlarged."""
        images = tensors["images"] if ids is None else tensors["images"][ids]
        return enlarged(space(images), self.height, self.width)


@dataclass(frozen=True)
class Decoding:
    """The name of a registered decoder, and its parameters (JSON values)."""

    name: str = "identity"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def decoder(self) -> Decoder:
        """Return the decoder; ``ConfigError`` for an unknown name and for parameters that it does not have."""
        kind = DECODERS.get(self.name)
        allowed = {f.name for f in fields(kind)}
        for key in self.parameters:
            if key not in allowed:
                raise unknown(f"parameter of decoding '{self.name}':", key, sorted(allowed))
        plain = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.parameters.items()
        }
        try:
            made = kind(**plain)
        except (TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"decoding '{self.name}': {error}") from error
        check_fields(made, f"decoding '{self.name}'")
        return made
