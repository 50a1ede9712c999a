"""How a set becomes a file: by one codec, or by what fits a budget (docs/per_byte.md, "Budgets")."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from raydd.artifacts.byte_budget import within
from raydd.artifacts.byte_filling import most_that_fit, none_fits
from raydd.artifacts.coded_facts import ImageCodec
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.encoding import Encoded
from raydd.artifacts.first_images import first_images
from raydd.artifacts.image_codecs import decode, encode, facts

Bits = Literal[1, 2, 3, 4, 8]
CURVE_BITS: tuple[Bits, ...] = (8, 4, 3, 2)
"""Bits of a curve over budgets, whose sets are made smaller rather than coarser than the last ones."""


@dataclass(frozen=True, kw_only=True)
class CodingRule:
    """How a set becomes a file.

    ``codec``: what is stated of it. ``budget``: bytes that the file has at most. ``auto``: at the
    most bits with which it fits. ``fewer``: of :data:`CURVE_BITS` alone; a set that does not fit at
    ``codec`` is cut to its first images of each class, as many as fit.
    """

    codec: ImageCodec
    budget: int | None = None
    auto: bool = False
    fewer: bool = False

    def file(self, distilled: DistilledSet, what: str = "the set") -> bytes:
        """Return the file of a set; ``ConfigError`` naming the smallest one if none fits the budget."""
        if self.budget is None:
            return encode(distilled, self.codec)
        if self.fewer:
            return self._cut(distilled, self.budget, what)
        if self.auto:
            return within(distilled, self.budget, self.codec)[1]
        file = encode(distilled, self.codec)
        if len(file) > self.budget:
            raise none_fits(what, self.budget, len(file), self.codec.text)
        return file

    def encoded(self, distilled: DistilledSet) -> Encoded:
        """Return the file of a set, and what students see of it, with the recipe that the set had."""
        file = self.file(distilled)
        codec = facts(file).codec
        stated = {name: value for name, value in vars(codec).items() if value is not None}
        recipe = {**distilled.recipe, "images": stated}
        return Encoded(distilled=replace(decode(file, distilled.info), recipe=recipe), data=file)

    def _cut(self, distilled: DistilledSet, budget: int, what: str) -> bytes:
        """Return the file of all images, or of the first of each class, as many as fit."""
        for bits in CURVE_BITS:
            table = None if bits == 8 else self.codec.table
            file = encode(distilled, replace(self.codec, bits=bits, table=table))
            if len(file) <= budget:
                return file

        def code(count: int) -> bytes:
            return encode(first_images(distilled, count, what), self.codec)

        found = most_that_fit(code, budget, min(count for count in distilled.ipc if count))
        if found is None:
            how = f"{self.codec.text}, one image of each class"
            raise none_fits(what, budget, len(code(1)), how)
        return found[1]
