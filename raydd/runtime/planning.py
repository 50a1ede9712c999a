"""What a job will compute: its problems, evaluation and targets, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raydd.config import ComputeConfig, Job
from raydd.core.errors import DataError
from raydd.core.numerics import pick_device
from raydd.core.store import device_kind
from raydd.core.units import Ref, snapshot
from raydd.data.catalog import DatasetInfo
from raydd.data.datasets import describe, missing, open_data, with_digests
from raydd.evaluation.plan import EvaluationPlan, evaluation_stages
from raydd.methods.base import Problem
from raydd.runtime.estimate import costs, measured_rate, render

PICTURES = 10
"""Pictures of a distillation, evenly spread over its updates, besides the first and the evaluated ones."""
PICTURE_BYTES = 256 << 20
"""Sets whose snapshots together are larger than this are pictured at the end only."""


@dataclass
class Plan:
    """All that a job will compute: a problem per seed, its evaluation, the outputs asked for."""

    job: Job
    problems: list[Problem]
    evaluation: EvaluationPlan
    picture_steps: list[int]
    targets: list[Ref] = field(default_factory=list)


def make_plan(job: Job, info: DatasetInfo) -> Plan:
    """Return the plan of a job on a data set; ``ConfigError`` for a combination that cannot run."""
    problems = [Problem(dataset=info, ipc=job.ipc, seed=seed, numerics=job.numerics) for seed in job.seeds]
    evaluation = evaluation_stages(job.method, problems, job.evaluation)
    steps = _picture_steps(job, problems[0])
    targets = [ref for p in problems for ref in job.method.targets(p).values()]
    targets += [ref for step in steps for ref in job.method.targets(problems[0], snapshot(step)).values()]
    targets += evaluation.targets()
    return Plan(job, problems, evaluation, steps, list(dict.fromkeys(targets)))


def _picture_steps(job: Job, problem: Problem) -> list[int]:
    refs = list(job.method.targets(problem).values())
    totals = {ref.stage.steps(ref.unit) for ref in refs}
    size = sum(ref.stage.cost(ref.unit).output_bytes for ref in refs)
    if len(totals) != 1 or size * (PICTURES + 1) > PICTURE_BYTES:
        return []
    total = totals.pop()
    every = job.evaluation.every or max(1, total // PICTURES)
    return list(range(0, total, every)) if total > 1 else []


def dry_run(job: Job) -> str:
    """Return the resolved job and its plan as text; works without the data, and says what is missing."""
    parts = [job.to_yaml().rstrip()]
    absent: list[str] = []
    try:
        info = describe(job.dataset)
        absent = missing(job.dataset)
        if not absent and _cheap_to_open(job.dataset):
            info = with_digests(info, open_data(job.dataset))
    except DataError as error:
        return "\n".join([*parts, "", f"no plan: {error}"])
    plan = make_plan(job, info)
    workers = most_workers(job.compute)
    rate = measured_rate(job.numerics.threads, job.numerics.precision)
    where = f"at the {rate / 1e9:.0f} GFLOP/s that one worker reaches on this machine's {device_kind(pick_device())}"
    parts += ["", render(costs(plan.targets), rate=rate, workers=workers, where=where)]
    if absent:
        parts += ["", "missing:", *(f"  - {line}" for line in absent)]
    return "\n".join(parts)


def _cheap_to_open(config: Any) -> bool:
    return config.shards is None and config.name not in {"image_folder", "webdataset"}


def most_workers(compute: ComputeConfig) -> int:
    """Return the largest number of workers that ``compute`` allows, at least 1."""
    return max(1, compute.workers if isinstance(compute.workers, int) else compute.workers[1])
