"""The report of an evaluation: accuracies pooled, compared with the baselines, and their cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raydd.artifacts.report import MemoryRow, Point, Report, Row
from raydd.core.tensors import Tensors
from raydd.core.units import Ref, Stage, snapshot
from raydd.evaluation.accounts import account, coded_bytes, coding_of
from raydd.evaluation.continual_plan import PlannedMemory
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.plan import EvaluationPlan
from raydd.evaluation.rivals import rivals
from raydd.evaluation.rows import Planned
from raydd.evaluation.scores import (
    Pooled,
    beats,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    pool_accuracies,
)
from raydd.evaluation.set_sources import StoredSet
from raydd.evaluation.stages import Evaluate, EvaluateNetworks
from raydd.evaluation.trainings import trainings

Outputs = Mapping[Evaluate | EvaluateNetworks, Sequence[Tensors]]


def summarise(
    plan: EvaluationPlan,
    load: Callable[[Ref], Tensors],
    seconds: Callable[[Ref], float] | None = None,
    *,
    device: str = "",
    notes: Sequence[str] = (),
) -> Report:
    """Return the report of a plan whose targets are done; of snapshots, those whose evaluations ``load`` finds.

    ``load`` returns a target's tensors; for a snapshot's evaluation that is not there yet it may raise
    ``FileNotFoundError``. ``seconds`` returns what computing a unit up to an output took.
    """
    groups: dict[tuple[str, str, str], list[Planned]] = {}
    for entry in plan.entries:
        if entry.step is None:
            groups.setdefault((entry.set, entry.protocol, entry.network), []).append(entry)
    outputs = {
        entry.stage: [load(ref) for ref in entry.stage.refs()]
        for group in groups.values()
        for entry in group
    }
    pooled = {key: _pool(group, outputs) for key, group in groups.items()}
    rows = tuple(_row(key, group, outputs, pooled[key], seconds) for key, group in groups.items())
    rows += _early(plan, groups, load, seconds)
    network = plan.entries[0].network
    by_set = {name: value for (name, _, of), value in pooled.items() if of == network}
    first = [
        entry
        for entry in plan.entries
        if entry.set == plan.name and entry.network == network and entry.step is None
    ]
    soft = any(bool(part["soft_labels"].any()) for entry in first for part in outputs[entry.stage])
    hlr, ior, remarks = _scores(plan, by_set, soft)
    curve = _curve(plan, load, seconds)
    if curve:
        curve = (*curve, _end(first, by_set[plan.name], seconds))
    return Report(
        dataset=plan.problem.dataset.name,
        ipc=plan.problem.ipc,
        split=plan.config.split,
        rows=rows,
        hlr=hlr,
        ior=ior,
        device=device,
        curve=curve,
        curve_protocol=plan.entries[0].protocol if curve else "",
        continual=_continual(plan.continual, load),
        notes=(*remarks, *notes),
        trainings=trainings(plan),
        size=plan.size,
        published=plan.published,
        random=_random(plan.config),
    )


def _random(config: EvaluationConfig) -> dict[str, str]:
    """Return the baselines that are as many random images as a set has under another name than theirs,
    or for as many updates; see :class:`Report`.
    """
    return {
        label: rival.keys.equal
        for label, rival in rivals(config).items()
        if rival.method.drawn_at_random
        and label != rival.method.name
        and (rival.keys.ipc, rival.keys.decoding) == (None, None)
        and rival.keys.equal != "bytes"
    }


def _early(
    plan: EvaluationPlan,
    groups: Mapping[tuple[str, str, str], Sequence[Planned]],
    load: Callable[[Ref], Tensors],
    seconds: Callable[[Ref], float] | None,
) -> tuple[Row, ...]:
    """Return the rows of students before the end of their training."""
    found = []
    for epoch in plan.config.after:
        for (name, protocol, network), group in groups.items():
            if all(epoch in plan.early(entry) for entry in group):
                outputs = {
                    entry.stage: [load(ref) for ref in entry.stage.refs(snapshot(epoch))]
                    for entry in group
                }
                key = (name, f"{protocol} after {epoch}", network)
                found.append(_row(key, group, outputs, _pool(group, outputs), seconds))
    return tuple(found)


def _accuracies(outputs: Sequence[Tensors], name: str = "accuracy") -> list[float]:
    return [float(value) for output in outputs for value in output[name]]


def _pool(group: Sequence[Planned], outputs: Outputs) -> Pooled:
    return pool_accuracies([_accuracies(outputs[entry.stage]) for entry in group])


def _row(
    key: tuple[str, str, str],
    group: Sequence[Planned],
    outputs: Outputs,
    pooled: Pooled,
    seconds: Callable[[Ref], float] | None,
) -> Row:
    first = outputs[group[0].stage][0]
    unknown = seconds is None or isinstance(getattr(group[0].stage, "source", None), StoredSet)
    best = (
        [value for entry in group for value in _accuracies(outputs[entry.stage], "best_accuracy")]
        if "best_accuracy" in first
        else []
    )
    sizes: dict[str, Any] = {name: int(first[name]) for name in ("image_bytes", "label_bytes")}
    coding = coding_of(group, outputs)
    if coding is None:
        sizes |= _size(group[0].stage, first)
    else:
        labels = getattr(group[0].stage, "labels", None)
        stored = 0 if labels is None or labels.teacher_bytes is not None else labels.bytes
        sizes |= coded_bytes([outputs[entry.stage][0] for entry in group], stored)
    held = sizes["image_bytes"] + sizes["label_bytes"] + sizes.get("further_bytes", 0)
    return Row(
        set=key[0],
        protocol=key[1],
        network=key[2],
        accuracy_mean=100 * pooled.mean,
        accuracy_std=100 * pooled.std,
        seeds=pooled.seeds,
        networks=pooled.networks,
        best_accuracy=100 * statistics.fmean(best) if best else None,
        **sizes,
        account=account(group[0].stage, [outputs[entry.stage][0] for entry in group], held),
        coding=coding,
        device_seconds=None
        if unknown or seconds is None
        else statistics.fmean(_seconds(entry, seconds) for entry in group),
    )


def _seconds(entry: Planned, seconds: Callable[[Ref], float]) -> float:
    """Return what making a row's set took; images that fill another's file are not charged with making that."""
    stage = entry.stage
    if isinstance(stage, Evaluate) and entry.coding is not None and entry.coding.fills:
        made: Mapping[str, Ref] = stage.source.inputs()
        return sum(map(seconds, made.values()))
    return making_seconds(stage, seconds)


def _size(stage: Evaluate | EvaluateNetworks, output: Tensors) -> dict[str, int]:
    """Return the images stored and seen of a row, and the bytes that are neither images nor labels."""
    if isinstance(stage, EvaluateNetworks):
        images = int(output["label_bytes"]) // 8  # int64
        return {"stored": images, "seen": images}
    size = stage.source.size
    found = {"stored": size.stored, "seen": size.seen, "whitening_bytes": size.whitening}
    if "further_bytes" in output:
        return found | {"further_bytes": int(output["further_bytes"])}
    if isinstance(stage.source, StoredSet):
        labels = 0 if stage.labels is None else stage.labels.bytes
        known = int(output["image_bytes"]) + int(output["label_bytes"]) - labels
        found["further_bytes"] = size.bytes - known
    return found


def making_seconds(stage: Stage, seconds: Callable[[Ref], float]) -> float:
    """Return the device-seconds of everything that made what a stage evaluates, each unit counted once."""
    waiting = [ref for unit in stage.units() for ref in stage.inputs(unit).values()]
    counted: dict[tuple[str, str], float] = {}
    while waiting:
        ref = waiting.pop()
        if (ref.key, ref.output) not in counted:
            counted[ref.key, ref.output] = seconds(ref)
            waiting += ref.stage.inputs(ref.unit).values()
    return sum(counted.values())


def _scores(
    plan: EvaluationPlan, by_set: Mapping[str, Pooled], soft: bool
) -> tuple[float | None, float | None, list[str]]:
    mine, random, whole = by_set.get(plan.name), by_set.get("random"), by_set.get("whole")
    remarks: list[str] = []
    if mine is None:
        return None, None, remarks
    ior = None if random is None else improvement_over_random(mine.mean, random.mean)
    if random is not None and random is not mine and not beats(mine, random, 2.0):
        remarks.append("Not better than random images by two pooled standard deviations.")
    hlr = None if whole is None or soft else hard_label_recovery(whole.mean, mine.mean)
    if whole is not None and soft:
        remarks.append("HLR is not given: students of this set learn soft labels.")
    if ior is not None and hlr is not None:
        remarks.append(
            f"LRS {label_robust_score(ior, hlr):.3f} (DD-Ranking, weight 0.5; higher is better)."
        )
    return *(None if value is None else 100 * value for value in (hlr, ior)), remarks  # type: ignore[return-value]


def _end(first: Sequence[Planned], pooled: Pooled, seconds: Callable[[Ref], float] | None) -> Point:
    """Return the curve's last point: the finished set, as its row has it."""
    steps = [
        ref.stage.steps(ref.unit)
        for unit in first[0].stage.units()
        for ref in first[0].stage.inputs(unit).values()
    ]
    cost = (
        0.0
        if seconds is None
        else statistics.fmean(making_seconds(entry.stage, seconds) for entry in first)
    )
    return Point(
        step=max(steps),
        device_seconds=cost,
        accuracy_mean=100 * pooled.mean,
        accuracy_std=100 * pooled.std,
        networks=pooled.seeds * pooled.networks,
    )


def point(
    step: int,
    tested: Sequence[tuple[Planned, Sequence[Tensors]]],
    seconds: Callable[[Ref], float] | None,
) -> Point:
    """Return the accuracy of a snapshot: its students, and the outputs of each one's stage."""
    pooled = pool_accuracies([_accuracies(outputs) for _, outputs in tested])
    cost = (
        0.0
        if seconds is None
        else statistics.fmean(making_seconds(entry.stage, seconds) for entry, _ in tested)
    )
    return Point(
        step=step,
        device_seconds=cost,
        accuracy_mean=100 * pooled.mean,
        accuracy_std=100 * pooled.std,
        networks=pooled.seeds * pooled.networks,
    )


def _curve(
    plan: EvaluationPlan, load: Callable[[Ref], Tensors], seconds: Callable[[Ref], float] | None
) -> tuple[Point, ...]:
    at: dict[int, list[tuple[Planned, list[Tensors]]]] = {}
    for entry in plan.entries:
        if entry.step is None:
            continue
        try:
            found = [load(ref) for ref in entry.stage.refs()]
        except FileNotFoundError:
            continue
        at.setdefault(entry.step, []).append((entry, found))
    return tuple(point(step, members, seconds) for step, members in sorted(at.items()))


def _continual(
    entries: Sequence[PlannedMemory], load: Callable[[Ref], Tensors]
) -> tuple[MemoryRow, ...]:
    """Return a row for each set and step: the accuracies of all class orders and students, pooled."""
    groups: dict[str, list[PlannedMemory]] = {}
    for entry in entries:
        groups.setdefault(entry.set, []).append(entry)
    rows = []
    for group in groups.values():
        first = group[0]
        for step, seen in enumerate(first.stage.seen, 1):
            outputs = [
                [load(Ref(entry.stage, unit)) for unit in entry.stage.units_after(seen)]
                for entry in group
            ]
            pooled = pool_accuracies([_accuracies(of_order) for of_order in outputs])
            images = {int(part["images"]) for of_order in outputs for part in of_order}
            rows.append(
                MemoryRow(
                    set=first.set,
                    protocol=first.protocol,
                    network=first.network,
                    step=step,
                    classes=seen,
                    images=max(images),
                    accuracy_mean=100 * pooled.mean,
                    accuracy_std=100 * pooled.std,
                    orders=pooled.seeds,
                    networks=pooled.networks,
                )
            )
    return tuple(rows)
