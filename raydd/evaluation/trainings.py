"""What the protocols of an evaluation come to, told from its stages: plans, reports and trackers show it."""

from __future__ import annotations

import json
from typing import Any

from raydd.artifacts.protocol import Training
from raydd.evaluation.continual import EvaluateMemory
from raydd.evaluation.continual_plan import PlannedMemory
from raydd.evaluation.plan import EvaluationPlan
from raydd.evaluation.rows import Planned
from raydd.evaluation.stages import Evaluate, EvaluateNetworks


def trainings(plan: EvaluationPlan) -> tuple[Training, ...]:
    """Return how networks are trained, one for each protocol and recipe, the set's own first."""
    groups: dict[str, tuple[dict[str, Any], list[Planned | PlannedMemory]]] = {}
    entries: list[Planned | PlannedMemory] = [*plan.entries, *plan.continual]
    for entry in entries:
        recipe = _recipe(entry.stage)
        groups.setdefault(f"{entry.protocol} {json.dumps(recipe)}", (recipe, []))[1].append(entry)
    return tuple(
        Training(
            protocol=group[0].protocol,
            sets=tuple(dict.fromkeys(entry.set for entry in group)),
            networks=tuple(dict.fromkeys(entry.network for entry in group)),
            recipe=recipe,
        )
        for recipe, group in groups.values()
    )


def _recipe(stage: Evaluate | EvaluateNetworks | EvaluateMemory) -> dict[str, Any]:
    """Return what counts of the recipe of a group of students; views of soft labels take the augmentation's place."""
    recipe = stage.teacher.recipe if isinstance(stage, EvaluateNetworks) else stage.recipe
    values = recipe.effective(stage.dataset.shape[1:])
    if isinstance(stage, Evaluate) and stage.labels is not None:
        values["augmentation"] = "the views of the soft labels"
    return values
