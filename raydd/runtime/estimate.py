"""What a plan costs: the table that ``--dry-run`` prints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from raydd.artifacts.rendering import format_bytes
from raydd.core.store import Store
from raydd.core.units import PHASES, Numerics, Ref, Stage, unit_key


@dataclass
class StageCost:
    """A stage's units and their cost: FLOP in all, bytes of the largest unit at peak, bytes kept in the store."""

    label: str
    phase: str
    units: int
    updates: int
    lanes: int
    flop: float
    peak_bytes: int
    state_bytes: int
    output_bytes: int


def outputs_of(targets: Sequence[Ref]) -> list[tuple[Stage, str, set[str]]]:
    """Return every unit behind the targets: its stage, its name, and those of its outputs that are needed."""
    found: dict[str, tuple[Stage, str, set[str]]] = {}
    frontier = list(targets)
    while frontier:
        ref = frontier.pop()
        if ref.key in found:
            found[ref.key][2].add(ref.output)
            continue
        found[ref.key] = (ref.stage, ref.unit, {ref.output})
        frontier += ref.stage.inputs(ref.unit).values()
    return list(found.values())


def stages_of(targets: Sequence[Ref]) -> list[tuple[Stage, list[str], set[str]]]:
    """Return every stage behind the targets with its units, and outputs that are needed of any, in
    the order of phases.
    """
    stages: dict[Stage, tuple[list[str], set[str]]] = {}
    for stage, unit, outputs in outputs_of(targets):
        units, known = stages.setdefault(stage, ([], set()))
        units.append(unit)
        known |= outputs
    ordered = sorted(stages.items(), key=lambda item: (PHASES.index(item[0].phase), item[0].name))
    return [(stage, sorted(units), outputs) for stage, (units, outputs) in ordered]


def costs(targets: Sequence[Ref]) -> list[StageCost]:
    """Return the cost of each kind of stage behind the targets; stages that differ only in seed or set share a row.

    Where a stage's units make unequal numbers of updates, their mean stands for each.
    """
    needed = {(stage, unit): outputs for stage, unit, outputs in outputs_of(targets)}
    rows: dict[tuple[str, int, int], StageCost] = {}
    for stage, units, _ in stages_of(targets):
        steps = -(-sum(stage.steps(unit) for unit in units) // len(units))
        row = rows.setdefault(
            (stage.name, steps, stage.lanes),
            StageCost(stage.name, stage.phase, 0, steps, stage.lanes, 0, 0, 0, 0),
        )
        for unit in units:
            cost = stage.cost(unit)
            row.units += 1
            row.flop += cost.flop
            row.peak_bytes = max(row.peak_bytes, cost.peak_bytes)
            row.state_bytes += cost.state_bytes
            row.output_bytes += cost.output_bytes * len(needed[stage, unit])
    return list(rows.values())


def measured_rate(numerics: Numerics, device: torch.device) -> float:
    """Return FLOP/s of a 3x3 convolution on a device of this machine, measured for about half a second."""
    dtype = torch.bfloat16 if numerics.precision == "bf16" else torch.float32
    before, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(numerics.threads)
    torch.backends.cudnn.allow_tf32 = numerics.precision != "fp32_strict"
    try:
        x = torch.ones(32, 128, 16, 16, device=device, dtype=dtype)
        w = torch.ones(128, 128, 3, 3, device=device, dtype=dtype)
        flop = 2.0 * x.shape[0] * 128 * 128 * 9 * 256
        best = float("inf")
        begun = time.monotonic()
        with torch.no_grad():
            while time.monotonic() - begun < 0.5:
                start = time.monotonic()
                float(torch.nn.functional.conv2d(x, w, padding=1)[0, 0, 0, 0])
                best = min(best, time.monotonic() - start)
        return flop / best
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.allow_tf32 = tf32


_UPDATE_SECONDS = 0.02
"""What an update costs beside its FLOP: calls, draws, the log (measured at a few images: 15 to 40 ms on a CPU)."""

GPU_UPDATE_SECONDS = 0.005
"""The same on a GPU, whose host waits for nothing: launches of what was captured, and the drawing
of a new network (1.9 ms on one).
"""

DAY = 86400.0
_START_SECONDS = 15
"""Until workers compute: their processes, their imports, the data."""


def critical_seconds(
    rows: Sequence[StageCost], rate: float, workers: int, update_seconds: float = _UPDATE_SECONDS
) -> float:
    """Return an estimate of wall seconds: FLOP at 70 % of ``rate`` and a little for each update,
    units spread over the workers.
    """
    total = 0.0
    for row in rows:
        lanes = max(1, min(workers, row.lanes))
        if (
            row.units < lanes
        ):  # the group shares one unit after the other, as the ledger leases them
            total += row.flop / lanes / (0.7 * rate) + row.units * row.updates * update_seconds
            continue
        rounds = -(-row.units // max(1, min(workers, row.units)))
        total += (
            row.flop * rounds / row.units / (0.7 * rate) + rounds * row.updates * update_seconds
        )
    return total


def render(
    rows: Sequence[StageCost],
    *,
    rate: float,
    workers: int,
    where: str,
    update_seconds: float = _UPDATE_SECONDS,
) -> str:
    """Return the plan as a text table."""
    head = ("stage", "units", "updates", "lanes", "FLOP", "peak memory", "state", "kept")
    body = [
        (
            r.label,
            str(r.units),
            str(r.updates),
            str(r.lanes or "-"),
            f"{r.flop:.2e}" if r.flop else "-",
            format_bytes(r.peak_bytes) if r.peak_bytes else "-",
            format_bytes(r.state_bytes) if r.state_bytes else "-",
            format_bytes(r.output_bytes) if r.output_bytes else "-",
        )
        for r in rows
    ]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        )
        for row in [head, *body]
    ]
    peak = max((r.peak_bytes for r in rows), default=0)
    stored = sum(r.output_bytes for r in rows)
    state = 2 * max((min(r.units, workers) * r.state_bytes // r.units for r in rows), default=0)
    labels = sum(r.output_bytes for r in rows if r.phase == "relabel")
    seconds = _START_SECONDS + critical_seconds(rows, rate, workers, update_seconds)
    lines += [
        "",
        f"peak memory of a worker: {format_bytes(peak)} and about 0.5 GB for the process",
        f"storage: {format_bytes(stored)} of outputs, about {format_bytes(state)} of checkpoints while units run",
        *(
            [
                f"soft labels, of these: {_label_size(labels)}, written straight into the distilled set"
            ]
            if labels
            else []
        ),
        (
            f"compute: {sum(r.flop for r in rows):.2e} FLOP; about {duration(seconds)} with {workers}"
            f" worker{'s' * (workers != 1)} {where}"
        ),
    ]
    return "\n".join(lines)


def _label_size(size: int) -> str:
    """Return a size with two decimals where it is large enough to plan a disk by."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else format_bytes(size)


def duration(seconds: float) -> str:
    """Return a time for people: ``45 s``, ``12 min``, ``3.4 h``, ``2.1 days``, ``5.2 months``, ``3.1 years``."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if name != "h" else f"{seconds / unit:.1f} {name}"
    days = seconds / DAY
    for most, length, name in ((61, 1.0, "days"), (731, 365.25 / 12, "months")):
        if days < most:
            return f"{days / length:.1f} {name}"
    return f"{days / 365.25:.1f} years"


def too_long(
    rows: Sequence[StageCost],
    *,
    rate: float,
    workers: int,
    longest: float,
    update_seconds: float = _UPDATE_SECONDS,
    instead: tuple[str, float] | None = None,
) -> list[str]:
    """Return a warning for a plan that takes more than ``longest`` days, nothing for others.

    ``instead``: another device, and its FLOP/s: what one of it would take.
    """
    seconds = _START_SECONDS + critical_seconds(rows, rate, workers, update_seconds)
    if seconds <= longest * DAY:
        return []
    many = f"{workers} worker{'s' * (workers != 1)}"
    lines = [
        f"warning: about {duration(seconds)} with {many} is more than compute.longest={longest:g} days"
    ]
    if instead is not None:
        name, other = instead
        there = _START_SECONDS + critical_seconds(rows, other, 1, GPU_UPDATE_SECONDS)
        lines.append(
            f"  one {name} would take about {duration(there)}, at {0.7 * other / 1e12:.0f} TFLOP/s: "
            f"raydd distill --dry-run --device {name.split()[-1].lower()}"
        )
    return lines


def unit_table(targets: Sequence[Ref]) -> list[tuple[str, str, int]]:
    """Return ``(stage, key, updates)`` of every unit behind the targets, for progress."""
    return [
        (stage.name, unit_key(stage, unit), stage.steps(unit))
        for stage, units, _ in stages_of(targets)
        for unit in units
    ]


def skipped_of(store: Store, targets: Sequence[Ref], where: str) -> dict[str, str]:
    """Return the samples that could not be decoded in all that is behind the targets: name below ``where``, reason."""
    refs = [
        Ref(stage, unit, output)
        for stage, units, outputs in stages_of(targets)
        for unit in units
        for output in sorted(outputs)
    ]
    found: dict[str, str] = {}
    for ref in refs:
        try:
            found |= store.skipped(ref)
        except FileNotFoundError:  # a snapshot nobody made
            continue
    return {title.replace(f"{where}/", ""): why for title, why in found.items()}
