"""How a job's images are coded: the YAML keys under ``images:`` (docs/per_byte.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from raydd.artifacts.byte_budget import bytes_of
from raydd.artifacts.coded_facts import ImageCodec
from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError
from raydd.evaluation.coding_rule import Bits, CodingRule

Amount = int | str


@dataclass(frozen=True)
class Rung:
    """One way in which a set is coded and judged; ``name``: what its rows are called beside the set's name."""

    name: str
    rule: CodingRule

    def of(self, name: str) -> str:
        """Return what the rows of a set are called."""
        return f"{name} {self.name}" if self.name else name


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """How images are coded before students see them; see :class:`raydd.artifacts.coded_facts.ImageCodec`.

    ``bits``: of a pixel's level; several: each is judged; ``auto`` (default beside ``budget``): what fits it.
    ``budget``: bytes that the file has at most (``8kB``); several: each is judged, of a set that is
    too large its first images. ``random_bits``: random images at so many bits stand beside each
    row, too, where its own are others.
    """

    codec: Literal["levels", "avif", "webp"] = "levels"
    bits: Bits | tuple[Bits, ...] | Literal["auto"] | None = None
    size: Literal[1, 2] = 1
    table: Literal["set", "image"] | None = None
    quality: Annotated[int, Ge(0), Le(100)] | None = None
    budget: Amount | tuple[Amount, ...] | None = None
    random_bits: Bits | None = None

    def __post_init__(self) -> None:
        if self.bits == "auto" and self.budget is None:
            raise ConfigError("images.bits=auto has no effect without images.budget")
        several = isinstance(self.budget, tuple)
        if several and (self.bits not in (None, "auto") or self.size != 1):
            raise ConfigError(
                f"images.budget: several budgets say how many bits there are; images.bits={self.bits} and"
                f" images.size={self.size} have no effect beside them"
            )
        for key, value in (("bits", self.bits), ("budget", self.budgets if several else None)):
            if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
                raise ConfigError(
                    f"images.{key}: {list(value)} must hold at least one and none twice"
                )
        if isinstance(self.bits, tuple) and self.budget is not None:
            raise ConfigError("images: several bits are judged without images.budget")
        if self.codec != "levels" and (self.budget is not None or self.random_bits is not None):
            raise ConfigError(
                f"images.budget and images.random_bits are of the codec 'levels', not '{self.codec}'"
            )
        list(self.rungs())

    @classmethod
    def of(cls, codec: ImageCodec) -> ImagesConfig:
        """Return the keys of a codec."""
        return cls(**vars(codec))

    def check_coder(self) -> None:
        """Raise ``ConfigError`` saying what to install, if a coder is not there."""
        for rung in self.rungs():
            rung.rule.codec.check()

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets in bytes, ascending."""
        if self.budget is None:
            return ()
        given = self.budget if isinstance(self.budget, tuple) else (self.budget,)
        return tuple(sorted(bytes_of(one, "images.budget") for one in given))

    @property
    def rule(self) -> CodingRule | None:
        """How the published set is coded; ``None`` where several files are judged: it is published as it was made."""
        return None if self.ladder else next(self.rungs()).rule

    @property
    def ladder(self) -> bool:
        """Whether several files of the set are judged."""
        return isinstance(self.bits, tuple) or isinstance(self.budget, tuple)

    def rungs(self) -> Iterator[Rung]:
        """Yield each way in which the set is coded, the largest file first."""
        plain: dict[str, Any] = {"size": self.size, "table": self.table, "quality": self.quality}
        if isinstance(self.budget, tuple):
            for budget in reversed(self.budgets):
                codec = ImageCodec(bits=2, table=self.table)
                rule = CodingRule(codec=codec, budget=budget, auto=True, fewer=True)
                yield Rung(f"in {budget / 1000:g} kB", rule)
        elif isinstance(self.bits, tuple):
            for bits in sorted(self.bits, reverse=True):
                codec = ImageCodec(codec=self.codec, bits=bits, **_tabled(plain, bits))
                yield Rung(f"at {codec.text}", CodingRule(codec=codec))
        else:
            auto = self.bits == "auto" or (self.bits is None and self.budget is not None)
            stated = None if self.bits == "auto" else self.bits
            codec = ImageCodec(codec=self.codec, bits=stated, **plain)
            room = self.budgets[0] if self.budgets else None
            yield Rung("", CodingRule(codec=codec, budget=room, auto=auto))

    def check(self, distilled: DistilledSet, what: str) -> None:
        """Raise ``ConfigError`` for a set that cannot be coded, or whose smallest file is larger than a budget."""
        from raydd.artifacts.image_codecs import codable

        self.check_coder()
        codable(distilled)
        if self.budgets:
            list(self.rungs())[-1].rule.file(distilled, what)

    def random_rule(self, rung: Rung) -> CodingRule | None:
        """Return how the further random images of a rung are coded, ``None`` without ``random_bits``,
        or where they are the rung's own.
        """
        own = rung.rule
        if self.random_bits is None or (not own.auto and own.codec.bits == self.random_bits):
            return None
        return CodingRule(codec=replace(own.codec, bits=self.random_bits))


def check_auto(images: ImagesConfig | None) -> None:
    """Raise ``ConfigError`` for ``ipc: auto`` without one budget that chooses the bits."""
    rule = None if images is None else images.rule
    if rule is None or not rule.auto:
        raise ConfigError(
            "ipc: auto needs one images.budget that chooses the bits (images.bits=auto): the number of images and"
            " their bits follow from it"
        )


def _tabled(plain: dict[str, Any], bits: int) -> dict[str, Any]:
    """Return the fields of a codec without a table that pixels in 8 bits do not have."""
    return plain | {"table": None} if bits == 8 else plain
