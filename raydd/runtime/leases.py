"""What the ledger leases: segments of units, and what it knows of each unit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from raydd.core.units import Ref, Stage


@dataclass(frozen=True)
class Lease:
    """What a worker is to do: ``run`` a unit up to an output, ``join`` the group in one, ``wait``, or ``stop``."""

    kind: str
    stage: Stage | None = None
    unit: str = ""
    outputs: tuple[str, ...] = ()
    ticket: int = 0

    @property
    def ref(self) -> Ref:
        """The unit's next output."""
        if self.stage is None:
            raise ValueError(f"a lease of kind '{self.kind}' names no unit")
        return Ref(self.stage, self.unit, self.outputs[0])


@dataclass
class Node:
    """A unit with outputs still wanted. ``alone``: the last worker to take its lanes took all of them."""

    stage: Stage
    unit: str
    key: str
    order: int
    wanted: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    needs: set[tuple[str, str]] = field(default_factory=set)
    urgency: float = math.inf
    holders: set[str] = field(default_factory=set)
    alone: bool = False
    t: int = 0
    stumbles: int = 0
    crashes: int = 0
    crashed_at: int = -1

    def next_output(self) -> str:
        """Return the output the unit reaches next."""
        return min(self.wanted - self.done, key=step_of)

    @property
    def complete(self) -> bool:
        """Whether every wanted output is there."""
        return self.wanted <= self.done


class Claims(Protocol):
    """Who computes which unit, among runs that share a store at the same time."""

    def take(self, key: str) -> bool:
        """Return whether this run may compute the unit now; ``False`` while another computes it."""
        ...

    def free(self, key: str) -> None:
        """Give a unit back: its outputs are there."""
        ...


def step_of(output: str) -> float:
    """Return the step of an output; infinity for the final one."""
    return math.inf if output == "final" else int(output.removeprefix("step-"))
