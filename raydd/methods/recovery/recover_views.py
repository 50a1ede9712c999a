"""What of its images a group shows a network at an update: one crop, one flip and one circular
shift for the whole group.

All three are folded into two matrices per group, so a view costs two matrix products and no kernel needs atomics
(docs/methods/recovery.md, "The update"; docs/methods/sre2l.md, "CDA").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raydd.augment.crop import Box, Crops, Range, draw_flip, draw_resized_crop
from raydd.core.errors import ConfigError

Curriculum = Literal["none", "step", "linear", "cosine"]


@dataclass(frozen=True)
class View:
    """One group's draws: a crop, or where a window of the padded image starts; a flip; how far it
    is shifted down and right.
    """

    box: Box | None
    window: tuple[int, int]
    flip: bool
    shift: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Views:
    """How views are drawn.

    ``crop``: smallest and largest part of the area of a random resized crop (aspect ratio 3/4 to
    4/3), ``None`` for none. ``pad``: in place of it, a crop of the image's size after this many
    zeros on every side. ``flip``: mirror with probability one half. ``jitter``: range of the
    circular shift along each side, in pixels, both ends included. ``curriculum``: the crop's
    smallest area falls from its largest one to ``crop[0]`` (CDA) over the first ``milestone`` of
    the updates: in one ``step`` at its end, ``linear`` or along a half ``cosine``.

    Raises ``ConfigError`` for values that exclude each other.
    """

    crop: Range | None = None
    pad: int = 0
    flip: bool = False
    jitter: tuple[int, int] = (0, 0)
    curriculum: Curriculum = "none"
    milestone: float = 1.0

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ConfigError(
                f"crop={list(self.crop)}: needs 0 < smallest <= largest <= 1 (parts of the area)"
            )
        if self.crop is not None and self.pad:
            raise ConfigError(
                f"crop={list(self.crop)} and pad={self.pad} are two ways to crop; set one of them to null or 0"
            )
        if self.pad < 0:
            raise ConfigError(f"pad={self.pad} must not be negative")
        if self.jitter[0] > self.jitter[1]:
            raise ConfigError(
                f"jitter={list(self.jitter)}: the smallest shift is above the largest"
            )
        if self.curriculum != "none" and self.crop is None:
            raise ConfigError(f"crop_curriculum={self.curriculum} needs a crop; crop is null")
        if self.curriculum == "none" and self.milestone != Views.milestone:
            raise ConfigError(f"milestone={self.milestone} has no effect with crop_curriculum=none")
        if not 0 < self.milestone <= 1:
            raise ConfigError(f"milestone={self.milestone} must be above 0 and at most 1")

    def check(self, height: int, width: int) -> None:
        """Raise ``ConfigError`` for shifts or paddings that images of this size cannot have."""
        side, shift = min(height, width), max(abs(self.jitter[0]), abs(self.jitter[1]))
        if shift >= side:
            raise ConfigError(
                f"jitter={list(self.jitter)} is larger than the images of {height}x{width}; allowed: up to {side - 1}"
            )
        if self.pad >= side:
            raise ConfigError(
                f"pad={self.pad} is larger than the images of {height}x{width}; allowed: up to {side - 1}"
            )

    @property
    def whole(self) -> bool:
        """Whether a view is always the image itself."""
        return self.crop is None and not self.pad and not self.flip and self.jitter == (0, 0)

    def scale(self, part: float) -> Range:
        """Return the range of crop areas after ``part`` of the updates, in [0, 1)."""
        assert self.crop is not None
        low, high = self.crop
        if self.curriculum == "none" or part >= self.milestone:
            return low, high
        done = part / self.milestone
        left = {"step": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[
            self.curriculum
        ]
        return low + (high - low) * left, high

    def draw(self, generator: torch.Generator, part: float, height: int, width: int) -> View:
        """Draw a view of images of ``height`` x ``width`` after ``part`` of the updates: crop, flip, then shifts."""
        box = (
            draw_resized_crop(generator, height, width, self.scale(part))
            if self.crop is not None
            else None
        )
        window = _pair(generator, 0, 2 * self.pad) if self.pad else (0, 0)
        flip = self.flip and draw_flip(generator)
        return View(
            box, window, flip, _pair(generator, *self.jitter) if self.jitter != (0, 0) else (0, 0)
        )

    def matrices(
        self, views: Sequence[View], height: int, width: int, device: torch.device
    ) -> Crops:
        """Return drawn views of several groups as float32 matrices on a device, ready to be applied."""
        if self.crop is not None:
            boxes = [view.box for view in views if view.box is not None]
            crops = Crops.of(boxes, [view.flip for view in views], (height, width))
            rows, columns = crops.rows.float(), crops.columns.float()
        else:
            rows = torch.stack([self._window(height, view.window[0]) for view in views])
            columns = torch.stack([self._window(width, view.window[1]) for view in views])
            mirrored = torch.tensor([view.flip for view in views]).view(-1, 1, 1)
            columns = torch.where(mirrored, columns.flip(1), columns)
        if self.jitter != (0, 0):
            rows = torch.stack(
                [own.roll(view.shift[0], 0) for own, view in zip(rows, views, strict=True)]
            )
            columns = torch.stack(
                [own.roll(view.shift[1], 0) for own, view in zip(columns, views, strict=True)]
            )
        return Crops(rows.to(device), columns.to(device))

    def _window(self, size: int, start: int) -> Tensor:
        """Return ``[size, size]``: ``size`` pixels of the padded image from ``start`` on."""
        return torch.nn.functional.pad(torch.eye(size), (0, 0, self.pad, self.pad))[
            start : start + size
        ]


def _pair(generator: torch.Generator, low: int, high: int) -> tuple[int, int]:
    first, second = torch.randint(low, high + 1, (2,), generator=generator).tolist()
    return first, second
