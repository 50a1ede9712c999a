"""Whether a cluster has room for what a job asks: go, wait or refuse, from what the cluster
reports. Plain Python, no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Resources = Mapping[str, float]
_TOLERANCE = 1e-4  # Ray counts resources in ten-thousandths


@dataclass(frozen=True)
class Need:
    """What has to fit before work starts: the least number of workers, all evaluators, and what each of them takes."""

    workers: int
    evaluators: int = 0
    cpus: float = 1.0
    gpus: float = 0.0
    elastic: bool = False

    @property
    def count(self) -> int:
        """Places that have to be there."""
        return self.workers + self.evaluators

    @property
    def bundle(self) -> dict[str, float]:
        """What one of them takes, in Ray's words."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def __str__(self) -> str:
        parts = [
            _count(self.workers, "worker"),
            *([_count(self.evaluators, "evaluator")] if self.evaluators else []),
        ]
        each = [
            *([_count(self.cpus, "CPU")] if self.cpus != 1 else []),
            *([_count(self.gpus, "GPU")] if self.gpus else []),
        ]
        return " and ".join(parts) + (
            f" of {' and '.join(each)}{' each' if self.count > 1 else ''}" if each else ""
        )


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster: what it has, and what of it nobody uses; ``kind``: its autoscaler's
    name for such machines.
    """

    total: Resources
    free: Resources
    kind: str = ""


@dataclass(frozen=True)
class Growth:
    """What the cluster's autoscaler says.

    ``fixed``: there is none. ``asked``: it has not answered yet. ``grows``: it can get what is
    missing. ``full``: its kinds of machines are all at their maximum, or none of them holds what is
    asked. ``coming``: how many of a kind it is starting.
    """

    state: Literal["fixed", "asked", "grows", "full"]
    coming: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """``go``, ``wait`` or ``refuse``; ``text`` says what is missing."""

    kind: Literal["go", "wait", "refuse"]
    text: str = ""


def places(resources: Resources, need: Need) -> int:
    """Return how many workers of ``need`` fit on a machine with these resources."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    room = math.floor(cpus / need.cpus + _TOLERANCE)
    if need.gpus >= 1:
        room = min(room, math.floor(gpus / need.gpus + _TOLERANCE))
    elif need.gpus:  # a worker's part of a GPU is of one GPU, so two of 0.6 do not share one
        whole, rest = divmod(gpus + _TOLERANCE, 1)
        room = min(room, int(whole) * int(1 / need.gpus + _TOLERANCE) + int(rest / need.gpus))
    return max(0, room)


def room(machines: Sequence[Machine], need: Need, *, free: bool = False) -> int:
    """Return how many workers of ``need`` fit on all machines; with ``free``, beside what runs there now."""
    return sum(places(machine.free if free else machine.total, need) for machine in machines)


def decide(need: Need, machines: Sequence[Machine], growth: Growth) -> Verdict:
    """Return whether work can start, whether waiting can help, or why it never can.

    Others may give back what they use; machines that no autoscaler can get will not come by themselves.
    """
    if room(machines, need, free=True) >= need.count:
        return Verdict("go")
    if room(machines, need) >= need.count or growth.state in ("grows", "asked"):
        return Verdict("wait", f"waiting for {need}; {describe(need, machines)}{_coming(growth)}")
    return Verdict("refuse", _refusal(need, machines, growth))


def describe(need: Need, machines: Sequence[Machine]) -> str:
    """Say what the cluster has of what is asked, how much of it is free, and for how many that would do."""
    if not machines:
        return "the cluster has no machine"
    names = ["CPU", *(["GPU"] if need.gpus else [])]
    have = " and ".join(
        _count(sum(m.total.get(name, 0.0) for m in machines), name) for name in names
    )
    text = f"the cluster has {have}"
    if len(machines) > 1:
        text += f" on {len(machines)} machines"
    used = {
        name: sum(m.total.get(name, 0.0) - m.free.get(name, 0.0) for m in machines)
        for name in names
    }
    if any(amount > _TOLERANCE for amount in used.values()):
        left = " and ".join(
            _count(sum(m.free.get(name, 0.0) for m in machines), name) for name in names
        )
        text += f" ({left} free)"
    fit = room(machines, need)
    if need.count > fit and _enough_in_sum(need, machines):
        text += f", the largest {_largest(names, machines)}: room for {fit} of {need.count}"
    return text


def _refusal(need: Need, machines: Sequence[Machine], growth: Growth) -> str:
    fit = room(machines, need)
    key = "compute.workers"
    if not fit:
        enough = any(machine.total.get("CPU", 0.0) >= need.cpus for machine in machines)
        key = "compute.gpus_per_worker" if need.gpus and enough else "compute.cpus_per_worker"
    why = (
        "its autoscaler can start no more machines for them"
        if growth.state == "full"
        else "it does not grow by itself"
    )
    remedies = []
    if growth.state == "full" and fit:
        remedies.append(f"ask for fewer {'evaluators' if fit <= need.evaluators else 'workers'}")
    elif fit > need.evaluators:
        most = fit - need.evaluators
        remedies.append(
            f"ask for {'a minimum of ' if need.elastic else ''}at most {_count(most, 'worker')}"
            f" (compute.workers={most})"
        )
    if fit and need.evaluators and growth.state == "fixed":
        remedies.append("ask for fewer evaluators (compute.evaluators)")
    if not fit:
        remedies.append(f"lower {key}")
    remedies.append(
        "raise the autoscaler's maximum"
        if growth.state == "full"
        else "add machines (`ray start --address=HEAD:PORT`)"
    )
    return f"{key}: {need} cannot be placed; {describe(need, machines)}, and {why}. {_sentence(remedies)}"


def _enough_in_sum(need: Need, machines: Sequence[Machine]) -> bool:
    """Whether it is the machines' sizes that are in the way, not the sums."""
    return all(
        sum(m.total.get(name, 0.0) for m in machines) >= amount * need.count
        for name, amount in need.bundle.items()
    )


def _largest(names: Sequence[str], machines: Sequence[Machine]) -> str:
    return " and ".join(
        _count(max(m.total.get(name, 0.0) for m in machines), name) for name in names
    )


def _coming(growth: Growth) -> str:
    if not growth.coming:
        return ""
    return "; starting " + ", ".join(
        f"{count} × {kind}" for kind, count in sorted(growth.coming.items())
    )


def _sentence(parts: Sequence[str]) -> str:
    text = ", or ".join(parts)
    return text[:1].upper() + text[1:]


def _count(amount: float, noun: str) -> str:
    """Return ``1 worker``, ``3 workers``, ``0.5 CPUs``."""
    return f"{amount:g} {noun}{'' if amount == 1 else 's'}"
