"""DSA's operations as a table of numbers: every class's own operation, for all classes and images at once.

Each operation is one linear map of an image, plus a brightness: colour multiplies the image, its
mean over channels and its mean by numbers; crop, flip, scale and rotation read each pixel at an
affine function of its place, bilinearly; cutout keeps or drops a pixel. The numbers of an operation
that was not drawn are those of the identity, so that shapes and kernels never depend on what was
drawn: the same kernels can be recorded once and run on new numbers. The results are those of
:func:`raydd.augment.dsa.apply_classes`, which runs fewer operations on fewer images and is the
faster one on a CPU.

    table = make_table([draw(strategy, rng_of(c), size=(28, 28)) for c in classes])    # on the CPU, ahead of its use
    taps = spread(table.to(device), torch.float32)                                     # on the device, once per table
    real, synthetic = apply_taps(real, taps), apply_taps(synthetic, taps)              # [K, B, C, H, W]

The derivative reads through the transposed map, so it is a gather, too: no atomics, the same bytes
each time. On CUDA a gather is one kernel of Triton's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raydd.augment.dsa import DsaTransform
from raydd.core.errors import ConfigError
from raydd.core.kernels import kernels_run

# Columns of a table, in pairs (rows, columns) where they belong to an axis.
_COLOR = slice(
    0, 5
)  # contrast, factors of the image, of its mean over channels, of its mean, and brightness
_THERE = slice(5, 11)  # where a pixel is read from: place 0, and the matrix of places
_BACK = slice(11, 17)  # where a pixel is read at: the inverse map
_REACH = slice(17, 19)  # how far from there, at most
_LOW, _HIGH = slice(19, 21), slice(21, 23)  # the image's first and last place
_MIDDLE, _HALF = slice(23, 25), slice(25, 27)  # the hole of a cutout
_WIDTH = 27

_WINDOW = (
    3  # places along an axis that lie less than the reach away; the reach is at most half of it
)


class TransformTable(NamedTuple):
    """``numbers`` ``[P, G, 27]`` for images of ``size`` ``(H, W)``: P operations one after another,
    of G groups of images.
    """

    numbers: Tensor
    size: tuple[int, int]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TransformTable:
        """Return the table on a device."""
        return TransformTable(self.numbers.to(device, non_blocking=non_blocking), self.size)


class Taps(NamedTuple):
    """A table spread out: ``color`` ``[P, G, 5]``, ``pixels`` and their ``weights``
    ``[P, G, 4, HW]``, ``kept`` ``[P, G, HW]`` outside holes.
    """

    table: TransformTable
    color: Tensor
    pixels: Tensor
    weights: Tensor
    kept: Tensor


def make_table(
    transforms: Sequence[DsaTransform], dtype: torch.dtype = torch.float64
) -> TransformTable:
    """Return the numbers (on the CPU) of one transform per class, or per network, in order.

    Siamese transforms are a group each; if any has numbers per image, each image of each class is a
    group. Places and weights of pixels are computed in ``dtype``. Raises ``ConfigError`` if sizes
    or counts differ, or if a scale factor is below 2/3, whose derivative reads more than 3 x 3
    pixels.
    """
    if not transforms:
        raise ConfigError("a table needs one transform or more, got none")
    size, counts = transforms[0].size, [t.count for t in transforms]
    count = max(counts)
    for t, own in zip(transforms, counts, strict=True):
        if t.size != size:
            raise ConfigError(
                f"the transforms of a table must be for one size of images, got {size} and {t.size}"
            )
        if own not in (1, count):
            raise ConfigError(
                f"the transforms of a table must have numbers for one number of images, got {own} and {count}"
            )
    passes = max(len(t.operations) for t in transforms)
    numbers = np.empty((passes, len(transforms) * count, _WIDTH))
    for i in range(passes):
        _fill(numbers[i], _drawn(transforms, i, count), size)
    if passes and numbers[..., _REACH].max() > _WINDOW / 2:
        raise ConfigError("a table takes scale factors from 2/3 on, got a smaller one")
    return TransformTable(torch.from_numpy(numbers).to(dtype), size)


# What is drawn, as the identity: brightness, saturation, contrast; matrix of places; shift; edges of the hole.
_IDENTITY = np.array([0.0, 1, 1, 1, 0, 0, 1, 0, 0, 0, -1, 0, -1])
_DRAWN: dict[str, int | slice | list[int]] = {
    "color": slice(0, 3),
    "crop": slice(7, 9),
    "cutout": slice(9, 13),
    "flip": 6,
    "scale": [6, 3],  # drawn for x, then for y
    "rotate": slice(3, 7),
}


def _drawn(transforms: Sequence[DsaTransform], i: int, count: int) -> np.ndarray:
    """Return what was drawn for the operations number ``i``, ``[G, 13]``, the rest as in the identity."""
    found = np.empty((len(transforms), count, len(_IDENTITY)))
    found[:] = _IDENTITY
    for row, t in zip(found, transforms, strict=True):
        if i < len(t.operations):
            operation, v = t.operations[i], t.values[i].numpy()
            if operation == "flip":
                v = 1 - 2 * v[:, 0]
            elif operation == "rotate":
                sin, cos = np.sin(v), np.cos(v)
                v = np.concatenate([cos, sin, -sin, cos], 1)
            row[:, _DRAWN[operation]] = v
    return found.reshape(-1, len(_IDENTITY))


def _fill(out: np.ndarray, drawn: np.ndarray, size: tuple[int, int]) -> None:
    """Write the table's rows ``[G, 27]``."""
    brightness, saturation, contrast, yy, yz, zy, zz = drawn[:, :7].T
    out[:, 0], out[:, 4] = contrast, brightness
    np.multiply(saturation, contrast, out[:, 1])
    np.subtract(contrast, out[:, 1], out[:, 2])
    np.subtract(1, contrast, out[:, 3])
    last = np.array(size) - 1.0
    # place = centre + matrix (pixel - centre) + shift, and its inverse
    matrix = drawn[:, 3:7].reshape(-1, 2, 2)
    start = last / 2 + drawn[:, 7:9] - matrix @ (last / 2)
    inverse = np.stack([zz, -yz, -zy, yy], 1) / (yy * zz - yz * zy)[:, None]
    out[:, 5:7], out[:, 7:11], out[:, 13:17] = start, drawn[:, 3:7], inverse
    square = inverse.reshape(-1, 2, 2)
    out[:, 11:13] = -(square @ start[:, :, None])[:, :, 0]
    out[:, _REACH] = np.abs(square).sum(2)
    out[:, _LOW], out[:, _HIGH] = 0, last
    first, end = drawn[:, 9::2], drawn[:, 10::2]
    out[:, _MIDDLE], out[:, _HALF] = (first + end) / 2, (end - first + 1) / 2


def spread(table: TransformTable, dtype: torch.dtype) -> Taps:
    """Return what pixels read, for images of ``dtype``; half precision is computed in float32."""
    numbers, dtype = table.numbers, torch.promote_types(dtype, torch.float32)
    pixels, weights, kept = _taps(numbers.flatten(0, 1), table.size)
    shaped = (part.unflatten(0, numbers.shape[:2]) for part in (pixels, weights.to(dtype), kept))
    return Taps(table, numbers[..., _COLOR].to(dtype), *shaped)


def apply_table(x: Tensor, table: TransformTable) -> Tensor:
    """Return the images ``x [K, B, C, H, W]``, each class's (or network's) after its own
    operations; the table is where they are.

    Where several batches go through one table, :func:`spread` it once and use :func:`apply_taps`.
    """
    return apply_taps(x, spread(table, x.dtype))


def apply_taps(x: Tensor, taps: Taps) -> Tensor:
    """Return the images ``x [K, B, C, H, W]`` after the operations of a table.

    A pure function of tensors, differentiable in ``x`` any number of times. Raises ``ConfigError``
    if sizes or counts do not fit.
    """
    numbers, size = taps.table
    groups, shape = numbers.shape[1], x.shape
    if x.dim() != 5 or groups not in (shape[0], shape[0] * shape[1]):
        raise ConfigError(
            f"a table of {groups} groups needs images [K, B, C, H, W] with K or K * B = {groups}, got {list(shape)}"
        )
    if tuple(shape[3:]) != size:
        raise ConfigError(f"a table for {size[0]}x{size[1]} images got {shape[3]}x{shape[4]}")
    y = x.reshape(groups, -1, *shape[2:]).to(taps.weights.dtype)
    for p in range(len(numbers)):
        y = _Pass.apply(
            y,
            numbers[p],
            taps.color[p],
            taps.pixels[p],
            taps.weights[p],
            taps.kept[p],
            False,
            False,
        )
    return y.reshape(shape).to(x.dtype)


class _Pass(torch.autograd.Function):
    """One operation of each group on ``x [G, n, C, H, W]``; ``transposed``: its transpose;
    ``linear``: without the brightness.
    """

    @staticmethod
    def forward(
        x: Tensor,
        numbers: Tensor,
        color: Tensor,
        pixels: Tensor,
        weights: Tensor,
        kept: Tensor,
        transposed: bool,
        linear: bool,
    ) -> Tensor:
        if not transposed:
            return _gathered(_colored(x, color, linear), pixels, weights)
        size = (x.shape[3], x.shape[4])
        seen = x * kept.view(-1, 1, 1, *size)
        pixels, weights = _transposed_taps(numbers, size)
        return _colored(_gathered(seen, pixels, weights.to(x.dtype)), color, linear)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:6])
        ctx.transposed = inputs[6]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (
            _Pass.apply(grad, *ctx.saved_tensors, not ctx.transposed, True),
            None,
            None,
            None,
            None,
            None,
            None,
            None,
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, *rest: Any
    ) -> tuple[Tensor, int]:
        """Take a batch of images as more images of each group; a batch of tables is not taken."""
        if in_dims[0] is None or any(dim is not None for dim in in_dims[1:6]):
            raise NotImplementedError("torch.func.vmap over the numbers of a table")
        x = x.movedim(in_dims[0], 1)
        return _Pass.apply(x.flatten(1, 2), *rest).reshape(x.shape), 1


def _colored(x: Tensor, color: Tensor, linear: bool) -> Tensor:
    """Brightness, saturation and contrast: the image, its mean over channels and its mean times
    numbers; its own transpose.
    """
    contrast, factor, grey, mean, brightness = (
        column.view(-1, 1, 1, 1, 1) for column in color.unbind(1)
    )
    means = x.flatten(2).mean(2).view(*x.shape[:2], 1, 1, 1)
    offset = means * mean if linear else torch.addcmul(brightness, means, mean)
    if x.shape[2] == 1:
        return torch.addcmul(offset, x, contrast)
    return torch.addcmul(torch.addcmul(offset, x.mean(2, keepdim=True), grey), x, factor)


def _gathered(x: Tensor, pixels: Tensor, weights: Tensor) -> Tensor:
    """Return ``out[g, …, q] = sum_t weights[g, t, q] x[g, …, pixels[g, t, q]]``; ``pixels`` and
    ``weights`` are ``[G, T, HW]``.
    """
    flat = x.reshape(x.shape[0], -1, x.shape[3] * x.shape[4])
    if flat.is_cuda and kernels_run():
        from raydd.augment.table_kernels import gather

        return gather(flat, pixels, weights).view(x.shape)
    read = flat.gather(2, pixels.flatten(1).unsqueeze(1).expand(-1, flat.shape[1], -1))
    return (read.unflatten(2, pixels.shape[1:]) * weights.unsqueeze(1)).sum(2).view(x.shape)


def _axis(size: tuple[int, int], like: Tensor) -> Tensor:
    return torch.arange(max(*size, _WINDOW), device=like.device, dtype=like.dtype)


def _places(numbers: Tensor, axis: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an affine function ``[G, 2, H, W]`` of the pixels' places (exact for whole pixels)."""
    start, matrix = numbers[:, :2].unsqueeze(2), numbers[:, 2:].view(-1, 2, 2)
    down = torch.addcmul(start, matrix[:, :, :1], axis[: size[0]])
    return down.unsqueeze(3) + (matrix[:, :, 1:] * axis[: size[1]]).unsqueeze(2)


def _column(numbers: Tensor, columns: slice) -> Tensor:
    """Return two columns as ``[G, 2, 1, 1, 1]``."""
    return numbers[:, columns].view(-1, 2, 1, 1, 1)


def _index(places: Tensor, width: int) -> Tensor:
    """Return the numbers ``[G, T * T, HW]`` of pixels from their rows and columns ``[G, 2, T, H, W]``."""
    return (
        torch.add(places[:, 1].unsqueeze(1), places[:, 0].unsqueeze(2), alpha=width)
        .long()
        .flatten(3)
        .flatten(1, 2)
    )


def _taps(numbers: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the four pixels that each pixel reads, their weights, and which pixels lie in no hole."""
    axis = _axis(size, numbers)
    places = _places(numbers[:, _THERE], axis, size).unsqueeze(2)
    near = places.floor() + axis[:2].view(2, 1, 1)
    inside = torch.clamp(near, _column(numbers, _LOW), _column(numbers, _HIGH))
    weights = (1 - (places - near).abs()) * (inside == near)
    away = (axis - numbers[:, _MIDDLE].unsqueeze(2)).abs() >= numbers[:, _HALF].unsqueeze(2)
    kept = away[:, 0, : size[0]].unsqueeze(2) | away[:, 1, : size[1]].unsqueeze(1)
    both = weights[:, 0].unsqueeze(2) * weights[:, 1].unsqueeze(1) * kept[:, None, None]
    return _index(inside, size[1]), both.flatten(3).flatten(1, 2), kept.flatten(1)


def _transposed_taps(numbers: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the pixels that read a given one, and their weights: those in a 3 x 3 window, since
    the image of the four unit squares around a pixel is less than 3 wide. Holes are not looked at:
    what lies in them must be zero.
    """
    axis = _axis(size, numbers)
    places = _places(numbers[:, _BACK], axis, size).unsqueeze(2)
    near = (places - _column(numbers, _REACH)).ceil() + axis[:_WINDOW].view(_WINDOW, 1, 1)
    inside = torch.clamp(near, _column(numbers, _LOW), _column(numbers, _HIGH))
    # Away from the image is so far away that the pixel is out of reach, however turned.
    away = (near - places).masked_fill(inside != near, 1e3)
    matrix = numbers[:, 7:11].view(-1, 2, 2, 1, 1, 1, 1)
    distance = torch.addcmul(
        matrix[:, :, 0] * away[:, :1].unsqueeze(3), matrix[:, :, 1], away[:, 1:].unsqueeze(2)
    )
    weights = (1 - distance.abs()).clamp(min=0)
    return _index(inside, size[1]), (weights[:, 0] * weights[:, 1]).flatten(3).flatten(1, 2)
