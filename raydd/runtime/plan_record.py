"""``plan.json``: what a run computes, written into its output folder before it begins, so that others need neither
the data nor torch to tell how far it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from raydd.artifacts.run_folder import PLAN
from raydd.core.sealed import seal
from raydd.core.storage import Storage
from raydd.core.store import Store
from raydd.core.units import Ref, Stage, stage_digest, unit_key
from raydd.runtime.estimate import stages_of


def labelled(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """Return the keys of each stage's units by a name of the stage, the same in every run of a job.

    A stage is called by its name; stages of one name (one per seed) by name and seed, ``distill/Match/seed-1``.
    """
    return {
        label: [unit_key(stage, unit) for unit in stage.units()]
        for stage, label in zip(stages, _labels(stages), strict=True)
    }


def _labels(stages: Sequence[Stage]) -> list[str]:
    labels = []
    for stage in stages:
        alike = [other for other in stages if other.name == stage.name]
        if len(alike) == 1:
            labels.append(stage.name)
        elif len({other.seed for other in alike}) == len(alike):
            labels.append(f"{stage.name}/seed-{stage.seed}")
        else:
            labels.append(
                f"{stage.name}/{next(i for i, other in enumerate(alike, 1) if other is stage)}"
            )
    return labels


def record_plan(
    output: Storage,
    store: Store,
    targets: Sequence[Ref],
    facts: Mapping[str, Any],
    made: Sequence[Ref] = (),
) -> None:
    """Write ``plan.json``: ``facts`` of the run, its store, and each stage with its units (numbered
    from 0 over all stages) and wanted outputs; which units are asked for themselves, not only read
    by others. ``made``: what makes the set, whose stages have curves of their own.
    """
    curves = labelled([stage for stage, _, _ in stages_of(made)])
    chosen = {ref.key for ref in made}
    stages = stages_of(targets)
    every = [unit_key(stage, unit) for stage, units, _ in stages for unit in units]
    number = {key: index for index, key in enumerate(every)}
    record = {
        **facts,
        "store": store.url,
        "curves": curves,
        "charted": [label for label, keys in curves.items() if chosen & set(keys)],
        "asked": sorted({number[ref.key] for ref in targets}),
        "stages": [
            {
                "name": stage.name,
                "phase": stage.phase,
                "outputs": sorted(outputs),
                "units": [_unit(stage, unit, number) for unit in units],
                "place": store.places.get(stage_digest(stage), ""),
            }
            for stage, units, outputs in stages
        ],
    }
    output.put(PLAN, seal(json.dumps(record, separators=(",", ":")).encode()))


def _unit(stage: Stage, unit: str, number: Mapping[str, int]) -> list[Any]:
    """Return a unit's name, key and updates, and the numbers of the units that it reads."""
    needs = {number[ref.key] for ref in stage.inputs(unit).values()}
    return [unit, unit_key(stage, unit), stage.steps(unit), sorted(needs)]
