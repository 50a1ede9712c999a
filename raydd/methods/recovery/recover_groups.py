"""Which images are optimised together: groups share batch statistics, units share forward passes
(docs/methods/recovery.md, "Groups").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from raydd.core.errors import ConfigError

Order = Literal["class_major", "ipc_major", "ten_blocks"]
BLOCKS = 10


@dataclass(frozen=True)
class Group:
    """Images that share statistics: ``index`` keys their draws; ``positions`` are class-major, ``class * ipc + id``."""

    index: int
    positions: tuple[int, ...]

    def labels(self, ipc: int) -> tuple[int, ...]:
        """Return the class of each image."""
        return tuple(p // ipc for p in self.positions)


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """How images are put in groups, and groups in units.

    ``order``: of the images before they are cut into groups. ``class_major``: all of class 0, then
    of class 1 (EDC, G-VBSM). ``ipc_major``: image 0 of every class, then image 1; a group never
    holds two ids, so classes in it are distinct (SRe2L). ``ten_blocks``: ten class-major blocks
    with a tenth of each class's images (G-VBSM on Tiny-ImageNet). ``group_size``: images per group;
    the last group (of every id, for ``ipc_major``) may be smaller. ``groups_per_unit``: groups that
    one worker computes together; those of another size than the first stay apart.
    """

    order: Order = "class_major"
    group_size: int
    groups_per_unit: int = 1

    def __post_init__(self) -> None:
        for name in ("group_size", "groups_per_unit"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")

    def runs(self, classes: int, ipc: int) -> Iterator[Sequence[int]]:
        """Yield the runs of positions that groups are cut from."""
        if self.order == "ipc_major":
            yield from (range(i, classes * ipc, ipc) for i in range(ipc))
        elif self.order == "class_major":
            yield range(classes * ipc)
        else:
            if ipc % BLOCKS:
                raise ConfigError(
                    f"order=ten_blocks needs ipc to be a multiple of {BLOCKS}, not {ipc}; use class_major"
                )
            part = ipc // BLOCKS
            yield [
                c * ipc + b * part + j
                for b in range(BLOCKS)
                for c in range(classes)
                for j in range(part)
            ]

    def groups(self, classes: int, ipc: int) -> list[Group]:
        """Return the groups; ``ConfigError`` if ``ipc`` does not fit the order."""
        size = self.group_size
        cut = [
            run[start : start + size]
            for run in self.runs(classes, ipc)
            for start in range(0, len(run), size)
        ]
        return [Group(index, tuple(positions)) for index, positions in enumerate(cut)]

    def units(self, classes: int, ipc: int, *, mixed: bool = False) -> dict[str, tuple[Group, ...]]:
        """Return the groups of every unit, by the unit's name; groups of one unit are of one size unless ``mixed``."""
        packs: list[list[Group]] = []
        open_pack: dict[
            int, list[Group]
        ] = {}  # by size: ids' last groups are packed with each other
        for group in self.groups(classes, ipc):
            size = 0 if mixed else len(group.positions)
            if len(open_pack.get(size, [])) in (0, self.groups_per_unit):
                open_pack[size] = []
                packs.append(open_pack[size])
            open_pack[size].append(group)
        return {f"groups-{pack[0].index:05d}-{pack[-1].index:05d}": tuple(pack) for pack in packs}
