"""Where the differentiated window of an unroll lies (docs/methods/rat_bptt_podd.md, "The window")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from raydd.core.errors import ConfigError

Mode = Literal["random", "start", "end", "advance", "random_length"]
Resample = Literal["epoch", "step", "unroll"]
RandInt = Callable[[int, int], int]
"""``randint(low, high)``: a uniform integer, both ends included."""


@dataclass(frozen=True)
class Window:
    """``warmup``: inner steps before it, which are not differentiated; ``length``: those that are."""

    warmup: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where windows of ``length`` inner steps lie in unrolls of at most ``total`` steps.

    ``mode``: ``random``, after ``first`` to ``total - length`` steps, uniform; ``start``: at the
    first step; ``end``: after ``total - length`` steps; ``advance``: after ``first`` steps, and
    ``length`` further on each time the loss has come to rest, until it is at the end;
    ``random_length``: at the first step, ``length`` to ``total`` steps long, uniform.
    ``resample``: what is drawn holds for an ``epoch`` of the real images (published code) or for
    one outer ``step``, or for one ``unroll`` of it.

    Raises ``ConfigError`` for numbers that do not fit.
    """

    mode: Mode = "random"
    length: int
    first: int = 0
    total: int
    resample: Resample = "epoch"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"window={self.length}: at least 1 inner step is needed")
        if self.total < self.length:
            raise ConfigError(
                f"totwindow={self.total} is shorter than the window of {self.length} inner steps"
            )
        if not 0 <= self.first <= self.last:
            raise ConfigError(
                f"minwindow={self.first}: 0 to totwindow - window = {self.last} is possible"
            )

    @property
    def last(self) -> int:
        """The most inner steps before a window."""
        return self.total - self.length

    @property
    def longest(self) -> int:
        """The most inner steps that are differentiated."""
        return self.total if self.mode == "random_length" else self.length

    @property
    def drawn(self) -> bool:
        """Whether windows are drawn."""
        return self.mode in ("random", "random_length")

    @property
    def mean_warmup(self) -> float:
        """How many inner steps lie before a window on average, for estimates."""
        at = {
            "random": (self.first + self.last) / 2,
            "end": float(self.last),
            "advance": (self.first + self.last) / 2,
        }
        return at.get(self.mode, 0.0)

    @property
    def mean_length(self) -> float:
        """How many inner steps are differentiated on average, for estimates."""
        return (self.length + self.longest) / 2

    def window(self, randint: RandInt, at: int) -> Window:
        """Return a window; ``at``: where windows of the mode ``advance`` are now."""
        if self.mode == "random":
            return Window(randint(self.first, self.last), self.length)
        if self.mode == "random_length":
            return Window(0, randint(self.length, self.total))
        return Window({"start": 0, "end": self.last}.get(self.mode, at), self.length)


@dataclass(frozen=True)
class Plateau:
    """What the rule that moves windows on remembers.

    ``best``: the lowest loss so far; ``epoch``: when it was found, or the rule last applied; ``at``:
    inner steps before the window; ``stopped``: whether it applied where windows cannot go further.
    """

    best: float
    epoch: int
    at: int
    stopped: bool = False

    def after(self, placement: Placement, loss: float, epoch: int, patience: int) -> Plateau:
        """Return what is remembered after a test in ``epoch``.

        The rule applies if ``loss`` is no improvement and the last one is ``patience`` epochs ago.
        """
        if loss < self.best:
            return Plateau(loss, epoch, self.at, self.stopped)
        if epoch < self.epoch + patience:
            return self
        end = self.at >= placement.last
        at = min(self.at + placement.length, placement.last)
        return Plateau(self.best, epoch, at, self.stopped or end)
