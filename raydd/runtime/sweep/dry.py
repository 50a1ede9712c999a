"""What ``raydd sweep --dry-run`` prints: the space, the trials, what they share, time and storage."""

from __future__ import annotations

from collections.abc import Sequence

from raydd.artifacts.rendering import format_bytes
from raydd.core.errors import DataError
from raydd.core.numerics import pick_device
from raydd.core.store import Store, device_kind
from raydd.core.units import Ref
from raydd.data.datasets import FoundData
from raydd.runtime.estimate import costs, critical_seconds, duration, measured_rate, stages_of
from raydd.runtime.output import check_place
from raydd.runtime.planning import listed, most_workers
from raydd.runtime.sweep.sweep_claim import check_claim, count_text, whole_text
from raydd.runtime.sweep.sweep_plan import Sweep, corners
from raydd.search.domains import label
from raydd.search.searchers import grid_points
from raydd.search.space import Values


def dry_run(sweep: Sweep) -> tuple[str, list[str]]:
    """Return the plan of a sweep as text, and a line for each thing that is missing; nothing is written."""
    check_place("store", sweep.job.store)
    check_claim(sweep)
    job, file = sweep.job, sweep.space.file
    first = sweep.trial(0, sweep.space.own)
    parts = [whole_text(sweep).rstrip(), ""]
    parts += ["searched:", *(f"  {key.name}: {key.domain.text()}" for key in sweep.space.keys)]
    parts += [f"  job's own: {values(sweep.space.own)}", "", f"trials: {count_text(sweep)}"]
    if file.search == "grid":
        after_own = [*file.points, *grid_points(sweep.space)][: (_count(sweep) or 1) - 1]
        parts += [f"  {values(point)}" for point in after_own[:20]]
        parts += _left_out(sweep)
    found = FoundData(first.dataset)
    try:
        data = found.look(plan=True)
        planned = corners(sweep, data.info)
    except DataError as error:
        if not found.absent:
            raise
        return "\n".join([*parts, "", f"no plan: {error}", "", *listed(found.absent)]), found.absent
    absent = [*found.absent, *first.method.missing(planned.plans[0][1].problems[0])]
    rate, at_once = measured_rate(job.numerics, pick_device()), most_workers(job.compute)
    shared = costs(planned.shared)
    units = {ref.key for ref in planned.shared}
    parts += ["", f"shared by all trials, computed first: {len(units)} units"]
    parts += [
        f"  {stage.name}: {len(needed)} of {len(stage.units())} units"
        for stage, needed, _ in stages_of(planned.shared)
    ]
    store = Store(job.store)
    there = sum(store.has(planned.shared))
    if there:
        parts += [f"  {there} of {len(planned.shared)} outputs are in the store already"]
    parts += ["", "a trial:", _rows(planned.plans[0][1].targets)]
    before = critical_seconds(shared, rate, at_once)
    each = [
        critical_seconds(costs(plan.targets), rate, 1) - critical_seconds(shared, rate, 1)
        for _, plan in planned.plans
    ]
    kept = sum(row.output_bytes for row in shared)
    own = max(
        sum(row.output_bytes for row in costs(plan.targets)) - kept for _, plan in planned.plans
    )
    count = _count(sweep)
    parts += [
        f"time: {duration(before)} for what is shared; {duration(min(each))} to {duration(max(each))} for a trial"
        f" ({at_once} at once, on {device_kind(pick_device())} as here)"
    ]
    if count is not None:
        whole = before + -(-count // at_once) * sum(each) / len(each)
        parts += [
            f"in all about {duration(whole)} for {count} trials; storage: up to {format_bytes(kept + count * own)}"
        ]
    if data.unseen:
        parts += ["", data.unseen]
    if absent:
        parts += ["", *listed(absent)]
    return "\n".join(parts), absent


def values(given: Values) -> str:
    """Return a trial's values for a person."""
    return ", ".join(f"{key}={label(value)}" for key, value in given.items()) or "none"


def _left_out(sweep: Sweep) -> list[str]:
    """Return a line on the combinations of a grid that no job can have."""
    every = sweep.space.combinations()
    refused = [(point, why) for point in every if (why := sweep.space.refusal(point)) is not None]
    if not refused:
        return []
    (point, why), *_ = refused
    return [f"  left out: {len(refused)} of {len(every)} combinations, as {values(point)}: {why}"]


def _count(sweep: Sweep) -> int | None:
    if sweep.space.file.search == "grid":
        whole = 1 + len(sweep.space.file.points) + len(grid_points(sweep.space))
        return min(whole, sweep.space.file.budget.trials or whole)
    return sweep.space.file.budget.trials


def _rows(targets: Sequence[Ref]) -> str:
    return "\n".join(
        f"  {row.label}: {row.units} units, {row.updates} updates, {row.flop:.2e} FLOP"
        for row in costs(targets)
    )
