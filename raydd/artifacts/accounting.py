"""What a set weighs: its bytes, bits per class, and what its images are in 8 and in 32 bits."""

from __future__ import annotations

from dataclasses import dataclass

from raydd.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """What the images and labels of a set weigh (docs/per_byte.md, "What is counted").

    ``bits_per_class``: eight times its bytes, shared out among the data set's classes.
    ``at_8_bits``, ``at_32_bits``: bytes of the same images, in 8 bits and in floats, without labels;
    of latents those of the pictures made of them. ``teacher_bytes``: weights of the networks that
    compute its soft labels while students train (``None``: no such labels), which are not among
    the bytes.
    """

    bits_per_class: float
    at_8_bits: int
    at_32_bits: int
    teacher_bytes: int | None = None

    @classmethod
    def of(
        cls, held: int, values: int, classes: int, teacher_bytes: int | None = None
    ) -> Accounting:
        """Return the accounting of a set of ``held`` bytes, whose images have so many values."""
        return cls(
            bits_per_class=8 * held / classes,
            at_8_bits=values,
            at_32_bits=4 * values,
            teacher_bytes=teacher_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How a row's images were coded before students saw them.

    ``series``: what the line is called that joins the row with others in a chart. ``codec``: its
    name and settings, as rows show them; ``bits``: of a level (8: of a pixel); ``budget``: bytes
    that the file had to fit into (``None``: none were given). ``fills``: the set whose file these
    images fill (empty: the file is of the set itself). ``files``: bytes of the file of each seed or
    draw.
    """

    series: str
    codec: str
    bits: int
    budget: int | None = None
    fills: str = ""
    files: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(self.files))
        if any(size < 1 for size in self.files):
            raise ConfigError(f"files of {list(self.files)} bytes: each has at least one")

    @property
    def left(self) -> int | None:
        """Bytes of the budget that the largest file leaves over; ``None`` without a budget."""
        return None if self.budget is None else self.budget - max(self.files, default=0)
