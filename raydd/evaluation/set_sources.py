"""Where a distilled set comes from, as part of a stage's key: what a method assembles, or a folder
that was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from raydd.artifacts.decoding import SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.reading import WHITENED, Reading
from raydd.core.errors import DataError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Ref, added, unkeyed
from raydd.data.catalog import DatasetInfo
from raydd.methods.method import Method, Problem
from raydd.training.fit_whitening import FitWhitening


class SetSource(Protocol):
    """Where the evaluated set comes from; a frozen dataclass, part of the stage's key."""

    def inputs(self) -> Mapping[str, Ref]:
        """Return the outputs of other units that the set is made of."""
        ...

    def load(self, ctx: Context) -> DistilledSet:
        """Return the set."""
        ...

    @property
    def images(self) -> int:
        """Number of images that students see, for estimates; 0 if it is not known."""
        ...

    @property
    def size(self) -> SetSize:
        """Images stored and seen, bytes of all that the set keeps."""
        ...


@lru_cache(maxsize=4096)
def _targets(method: Method, problem: Problem, output: str) -> dict[str, Ref]:
    return method.targets(problem, output)


@dataclass(frozen=True, kw_only=True)
class AssembledSet:
    """The set a method makes of a problem: at the end, or at a snapshot such as ``step-002000``.

    It is planned where it is made and keeps its targets when it goes to a worker, which may not see the files (weights,
    statistics) whose digests are in their keys.
    """

    method: Method
    problem: Problem
    output: str = "final"

    def __post_init__(self) -> None:
        object.__setattr__(self, "_planned", _targets(self.method, self.problem, self.output))

    def inputs(self) -> Mapping[str, Ref]:
        """Return the method's targets."""
        planned: Mapping[str, Ref] = self.__dict__["_planned"]
        return planned

    def load(self, ctx: Context) -> DistilledSet:
        """Return the assembled set; ``DataError`` if it is not as large as its method said."""
        return self.assembled({name: ctx.load(name) for name in self.inputs()})

    def assembled(self, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the set of :meth:`inputs`' tensors; ``DataError`` if it is not as large as its method said."""
        made, planned = self.method.assemble(self.problem, outputs), self.size
        if (len(made), made.seen) != (planned.stored, planned.seen):
            raise DataError(
                f"method '{self.method.name}' made {len(made)} images, of which students see {made.seen}; planned were"
                f" {planned.stored} and {planned.seen}"
            )
        return made

    @property
    def images(self) -> int:
        """Number of images that students see, as the method says."""
        return self.size.seen

    @property
    def size(self) -> SetSize:
        """What the method says."""
        return self.method.size(self.problem)


@dataclass(frozen=True, kw_only=True)
class StoredSet:
    """A published set, or a foreign one of any format that can be read; ``digest`` is :attr:`DistilledSet.digest`.

    ``count``, ``stored``, ``bytes``, ``whitening_bytes``: its :class:`SetSize`; ``values``: of its
    images, of latents of the pictures made of them. ``whitening``: what fits the whitening of a
    foreign set that was made in a whitened space.
    """

    url: str = unkeyed()
    digest: str
    dataset: DatasetInfo
    reading: Reading = unkeyed(default_factory=Reading)
    count: int = unkeyed(default=0)
    stored: int = unkeyed(default=0)
    bytes: int = unkeyed(default=0)
    whitening: FitWhitening | None = added(None)
    whitening_bytes: int = unkeyed(default=0)
    values: int = unkeyed(default=0)

    @classmethod
    def at(cls, url: str, dataset: DatasetInfo, reading: Reading | None = None) -> StoredSet:
        """Read the set at ``url`` to learn its digest; see :func:`raydd.artifacts.formats.read_set` for errors."""
        from raydd.artifacts.formats import read_set

        reading = reading or Reading()
        return cls.of(
            read_set(url, info=dataset, reading=reading, tell=_unheard), url, dataset, reading
        )

    @classmethod
    def of(cls, found: DistilledSet, url: str, dataset: DatasetInfo, reading: Reading) -> StoredSet:
        """Return the source of a set that was read already."""
        size = found.size
        whitening = None
        if found.whitening is None and found.recipe.get("space") in WHITENED:
            whitening = FitWhitening(
                seed=0, dataset=dataset.only("train"), space=str(found.recipe["space"])
            )
        return cls(
            url=url,
            digest=found.digest,
            dataset=dataset.only(),
            reading=reading,
            count=size.seen,
            stored=size.stored,
            bytes=size.bytes,
            whitening=whitening,
            whitening_bytes=size.whitening,
            values=found.values,
        )

    def inputs(self) -> Mapping[str, Ref]:
        """Return the whitening, if there is one to be fitted: the set itself lies outside the store."""
        return {} if self.whitening is None else {"whitening": self.whitening.refs()[0]}

    def load(self, ctx: Context) -> DistilledSet:
        """Return the set; see :meth:`read`."""
        found = self.read()
        return (
            found
            if self.whitening is None
            else replace(found, whitening=self.whitening.whitening(ctx.load("whitening")))
        )

    def read(self) -> DistilledSet:
        """Return the set, without a whitening that is to be fitted; ``DataError`` if it is no
        longer the one that was planned with.
        """
        from raydd.artifacts.formats import read_set

        found = read_set(self.url, info=self.dataset, reading=self.reading, tell=_unheard)
        if found.digest != self.digest:
            raise DataError(
                f"{self.url} has changed: its digest is {found.digest[:12]}, planned was {self.digest[:12]}"
            )
        return found

    @property
    def images(self) -> int:
        """Number of images that students see."""
        return self.count

    @property
    def size(self) -> SetSize:
        """What was found when the set was read; a whitening that is fitted comes on top."""
        fitted = 0 if self.whitening is None else self.whitening.bytes
        kept = self.whitening_bytes + fitted
        return SetSize(self.stored, self.count, self.bytes + fitted, kept)


def _unheard(line: str) -> None:
    """Tell nobody: guesses are told once, where the evaluation is planned."""
