"""Sets of another method's images, shrunk, and decoded as a set is that holds more images than it stores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from raydd.artifacts.decoding import Decoding, SetSize, Tiles
from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError, DataError, TooFew
from raydd.core.units import Context, Ref
from raydd.evaluation.set_sources import AssembledSet
from raydd.methods.method import Method, Problem, check_ipc


@dataclass(frozen=True, kw_only=True)
class PackedSet:
    """A source: the images of ``made``, shrunk, in the decoding ``kind``.

    ``partition`` or ``grid``: ``factor²`` of them, each the mean of ``factor`` × ``factor`` pixels, in
    each stored image, the first of a class at the first place of its images, and so on, as IDM starts
    from real images. ``resize``: each alone, at ``height`` × ``width`` (bilinear, with antialiasing).
    Pixels are rounded to the nearest.
    """

    made: AssembledSet
    kind: str
    factor: int = 1
    height: int = 0
    width: int = 0

    def __post_init__(self) -> None:
        whole, decoder = self.made.size, self.decoding.decoder()
        if whole.stored != whole.seen:
            raise ConfigError(f"decoding '{self.kind}': the set has a decoding of its own")
        if isinstance(decoder, Tiles):
            decoder.check_sides(*self.made.problem.dataset.shape[1:])

    @property
    def decoding(self) -> Decoding:
        """How the set is decoded."""
        _, height, width = self.made.problem.dataset.shape
        if self.kind == "resize":
            return Decoding(self.kind, {"height": height, "width": width})
        return Decoding(self.kind, {"factor": self.factor})

    def inputs(self) -> Mapping[str, Ref]:
        """Return what the images are made of."""
        return self.made.inputs()

    def load(self, ctx: Context) -> DistilledSet:
        """Return the set; ``DataError`` if its images are decoded or whitened already."""
        whole = self.made.load(ctx)
        if whole.decoding.name != "identity" or whole.whitening is not None or whole.soft:
            raise DataError(
                f"decoding '{self.kind}': the images of '{self.made.method.name}' are decoded, whitened, or have soft"
                " labels of their own"
            )
        if self.kind == "resize":
            shrink = F.interpolate(
                whole.images.float(),
                size=(self.height, self.width),
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
            return replace(whole, images=_as(shrink, whole.images), decoding=self.decoding)
        height, width = whole.images.shape[2:]
        small = _as(self._shrunk(whole.images.float()), whole.images)
        tiles = self.decoding.decoder()
        assert isinstance(tiles, Tiles)
        images, labels = [], []
        for label in whole.labels.unique().tolist():
            packed = tiles.pack(small[whole.labels == label])
            images.append(packed[:, :, :height, :width])  # what is beyond them is filled up again
            labels += [label] * len(images[-1])
        return replace(
            whole, images=torch.cat(images), labels=torch.tensor(labels), decoding=self.decoding
        )

    def _shrunk(self, images: Tensor) -> Tensor:
        """Return images of the size of a tile."""
        height, width = images.shape[2:]
        if not (height % self.factor or width % self.factor):
            return F.avg_pool2d(images, self.factor)
        size = (-(-height // self.factor), -(-width // self.factor))
        return F.interpolate(
            images, size=size, mode="bilinear", align_corners=False, antialias=True
        )

    @property
    def note(self) -> str:
        """What a reader of the report has to know, of images that are smaller than the data set's."""
        if self.kind != "resize":
            return ""
        count = self.made.problem.ipc
        images = f"{count} image{'s' * (count != 1)}"
        return f"{images} of each class, shrunk to {self.height}×{self.width} pixels and enlarged again"

    @property
    def images(self) -> int:
        """Number of images that students see."""
        return self.size.seen

    @property
    def size(self) -> SetSize:
        """All images of ``made`` are seen; what is stored is smaller, or fewer."""
        seen, info = self.made.size.seen, self.made.problem.dataset
        tiled = self.kind != "resize"
        stored = seen // self.factor**2
        pixels = info.height * info.width if tiled else self.height * self.width
        value = self.made.method.value_bytes * info.channels
        return SetSize(stored, seen, stored * (value * pixels + 8))


def _as(values: Tensor, images: Tensor) -> Tensor:
    """Return values as pixels in 8 bits, where the images are such."""
    return values if images.is_floating_point() else values.round().clamp(0, 255).to(torch.uint8)


def sized_set(
    method: Method, problem: Problem, ipc: float, tiles: str | None = None, factor: int = 1
) -> AssembledSet | PackedSet:
    """Return the source of a method's set with as many pixels of each class as ``ipc`` images have.

    ``tiles``: ``partition`` or ``grid``, of ``factor²`` images in each stored one. Of random images
    a fraction is as many as the next whole number, and smaller. ``ConfigError`` for a fraction of
    other methods that do not make them, and for one beside ``tiles``.
    """
    if tiles is not None:
        if ipc != int(ipc):
            raise ConfigError(f"decoding '{tiles}' needs whole images of each class, not {ipc:g}")
        more = replace(problem, ipc=int(ipc) * factor**2)
        try:
            made = AssembledSet(method=method, problem=more)
        except TooFew as error:
            counts = problem.dataset.train_counts
            label, least = counts.index(min(counts)), min(counts)
            raise TooFew(
                f"ipc={ipc:g} with {factor**2} images in each: class {label} has only {least} training images to choose"
                " from",
                f"at most ipc={least // factor**2} is possible",
            ) from error
        return PackedSet(made=made, kind=tiles, factor=factor)
    if ipc == int(ipc) or not method.drawn_at_random:
        check_ipc(method, ipc)
        return AssembledSet(
            method=method, problem=replace(problem, ipc=int(ipc) if ipc == int(ipc) else ipc)
        )
    count, (_, height, width) = math.ceil(ipc), problem.dataset.shape
    sides = _smaller(height, width, ipc / count)
    if not all(sides):
        raise ConfigError(f"ipc={ipc:g} is not a pixel of each class, of {height * width}")
    return PackedSet(
        made=AssembledSet(method=method, problem=replace(problem, ipc=count)),
        kind="resize",
        height=sides[0],
        width=sides[1],
    )


def _smaller(height: int, width: int, share: float) -> tuple[int, int]:
    """Return the sides of an image of at most a ``share`` of the pixels, as posters have them: the
    height by its square root, rounded down, and as wide as the pixels suffice for.
    """
    pixels = math.floor(share * height * width + 1e-6)
    rows = max(1, math.floor(height * math.sqrt(share) + 1e-9))
    return rows, min(width, pixels // rows)
