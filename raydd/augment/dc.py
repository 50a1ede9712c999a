"""The augmentation that DC's evaluation trains with (not DSA; docs/methods/evaluation.md, "DC's augmentation").

Each image goes through one operation, picked for it. Nothing is differentiated here. Drawing is on
the CPU and apart from applying, so that a transform is a pure function of a batch.

    transform = draw_dc("crop_scale_rotate", rng, count=len(x), shape=(1, 28, 28))
    x = transform(x)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.core.errors import ConfigError, nearest

DC_OPERATIONS = ("crop", "scale", "rotate", "noise")


@dataclass(frozen=True, kw_only=True)
class DcRanges:
    """``crop``: pixels of padding; ``scale``: largest change of a side, as a part of it;
    ``rotate``: degrees; ``noise``: its std.
    """

    crop: int = 4
    scale: float = 0.2
    rotate: int = 45
    noise: float = 0.001


@dataclass(frozen=True)
class DcTransform:
    """One operation per image of a batch ``[B, C, H, W]``.

    ``choices``: the operation's name, per image. ``numbers``: int64 ``[B, 2]``: offsets of a crop
    (row, column), sides of a scaled image (height, width), degrees of a rotation. ``noise``: what
    is added, ``[B, C, H, W]``, or ``None``.
    """

    shape: tuple[int, int, int]
    choices: tuple[str, ...]
    numbers: Tensor
    noise: Tensor | None
    ranges: DcRanges

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the augmented images; paddings and corners take the batch's channel means."""
        if not self.choices:
            return x
        if x.shape != (len(self.choices), *self.shape):
            raise ConfigError(
                f"a DC transform drawn for {(len(self.choices), *self.shape)} got images {tuple(x.shape)}"
            )
        means = torch.stack([x[:, c].mean() for c in range(x.shape[1])])
        out = x.clone()
        for operation in DC_OPERATIONS:
            rows = [i for i, choice in enumerate(self.choices) if choice == operation]
            if rows:
                out[rows] = self._apply(operation, x[rows], self.numbers[rows], means, rows)
        return out

    def _apply(
        self, operation: str, x: Tensor, numbers: Tensor, means: Tensor, rows: list[int]
    ) -> Tensor:
        if operation == "crop":
            return _crop(x, numbers, means, self.ranges.crop)
        if operation == "scale":
            return torch.stack(
                [_scale(image, int(h), int(w)) for image, (h, w) in zip(x, numbers, strict=True)]
            )
        if operation == "rotate":
            fill = float(means.double().mean())
            return torch.stack(
                [
                    _rotate(image, int(degrees), fill)
                    for image, (degrees, _) in zip(x, numbers, strict=True)
                ]
            )
        if self.noise is None:
            raise ConfigError("a DC transform with noise was made without it")
        return x + self.noise[rows].to(x.device, x.dtype)


def parse_dc_strategy(strategy: str | None) -> tuple[str, ...]:
    """Return the operations of ``"crop_scale_rotate"``; none for ``None``, ``""`` or ``"none"``;
    ``ConfigError`` if unknown.
    """
    if strategy is None or strategy.lower() in ("", "none"):
        return ()
    operations = tuple(strategy.split("_"))
    for operation in operations:
        if operation not in DC_OPERATIONS:
            hint = nearest(operation, DC_OPERATIONS)
            allowed = ", ".join(DC_OPERATIONS)
            raise ConfigError(
                f"unknown DC operation '{operation}' in '{strategy}'{hint}; allowed, joined with '_': {allowed}, or"
                " none"
            )
    return operations


def draw_dc(
    strategy: str | None,
    generator: torch.Generator,
    *,
    count: int,
    shape: tuple[int, int, int],
    ranges: DcRanges | None = None,
) -> DcTransform:
    """Draw a transform for ``count`` images of ``shape`` ``(C, H, W)`` from a CPU generator."""
    operations, r = parse_dc_strategy(strategy), ranges or DcRanges()
    if not operations:
        return DcTransform(shape, (), torch.zeros(0, 2, dtype=torch.int64), None, r)
    choices = tuple(
        operations[i]
        for i in torch.randint(0, len(operations), (count,), generator=generator).tolist()
    )
    # Every number is drawn for every image, so that one image's choice moves no other image's numbers.
    offsets = torch.randint(0, 2 * r.crop, (count, 2), generator=generator)
    factors = (
        1 - r.scale + 2 * r.scale * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    )
    sides = (factors * torch.tensor(shape[1:])).long().clamp(min=1)
    angles = torch.randint(-r.rotate, r.rotate, (count, 1), generator=generator).expand(-1, 2)
    by_operation = {
        "crop": offsets,
        "scale": sides,
        "rotate": angles,
        "noise": torch.zeros_like(offsets),
    }
    numbers = torch.stack([by_operation[choice][i] for i, choice in enumerate(choices)])
    noise = (
        r.noise * torch.randn(count, *shape, generator=generator) if "noise" in operations else None
    )
    return DcTransform(shape, choices, numbers, noise, r)


def reference_dc_draw(
    strategy: str | None,
    seed: int,
    *,
    count: int,
    shape: tuple[int, int, int],
    ranges: DcRanges | None = None,
) -> DcTransform:
    """Draw what the original code draws after ``numpy.random.seed(seed)`` and
    ``torch.manual_seed(seed)``; for parity tests.
    """
    import numpy as np

    operations, r = parse_dc_strategy(strategy), ranges or DcRanges()
    random, generator = np.random.RandomState(seed), torch.Generator().manual_seed(seed)
    choices, numbers, noise = (
        [],
        torch.zeros(count, 2, dtype=torch.int64),
        torch.zeros(count, *shape),
    )
    for i in range(count if operations else 0):
        choice = str(random.permutation(list(operations))[0])
        if choice == "crop":
            numbers[i] = torch.tensor([int(random.permutation(2 * r.crop)[0]) for _ in range(2)])
        elif choice == "scale":
            numbers[i] = torch.tensor(
                [int(random.uniform(1 - r.scale, 1 + r.scale) * side) for side in shape[1:]]
            )
        elif choice == "rotate":
            numbers[i] = int(random.randint(-r.rotate, r.rotate))
        else:
            noise[i] = r.noise * torch.randn(shape, generator=generator)
        choices.append(choice)
    return DcTransform(shape, tuple(choices), numbers[: len(choices)], noise, r)


def _crop(x: Tensor, offsets: Tensor, means: Tensor, padding: int) -> Tensor:
    count, channels, height, width = x.shape
    padded = (
        means.view(1, -1, 1, 1).expand(count, -1, height + 2 * padding, width + 2 * padding).clone()
    )
    padded[:, :, padding : padding + height, padding : padding + width] = x
    offsets = offsets.to(x.device)
    rows = (offsets[:, :1] + torch.arange(height, device=x.device)).view(count, 1, height, 1)
    columns = (offsets[:, 1:] + torch.arange(width, device=x.device)).view(count, 1, 1, width)
    images = torch.arange(count, device=x.device).view(-1, 1, 1, 1)
    return padded[images, torch.arange(channels, device=x.device).view(1, -1, 1, 1), rows, columns]


def _scale(image: Tensor, height: int, width: int) -> Tensor:
    """Resize by nearest neighbours, then cut or pad with zeros about the centre."""
    side = max(height, width, *image.shape[1:])
    square = image.new_zeros(image.shape[0], side, side)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = F.interpolate(
        image.unsqueeze(0), (height, width)
    )[0]
    return _centre(square, image.shape[1], image.shape[2])


def _rotate(image: Tensor, degrees: int, fill: float) -> Tensor:
    from scipy.ndimage import rotate

    turned = torch.from_numpy(rotate(image.cpu().numpy(), degrees, axes=(-2, -1), cval=fill))
    # A non-square image turned far may come out smaller along one side: the fill pads it.
    missing = [
        max(0, side - have) for side, have in zip(image.shape[1:], turned.shape[1:], strict=True)
    ]
    turned = F.pad(
        turned,
        (
            missing[1] // 2,
            missing[1] - missing[1] // 2,
            missing[0] // 2,
            missing[0] - missing[0] // 2,
        ),
        value=fill,
    )
    return _centre(turned, image.shape[1], image.shape[2]).to(image.device)


def _centre(image: Tensor, height: int, width: int) -> Tensor:
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]
