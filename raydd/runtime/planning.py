"""What a job will compute: its problems, evaluation and targets, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from raydd.artifacts.sheet import write_sheet
from raydd.config import ComputeConfig, Job
from raydd.core.errors import DataError
from raydd.core.numerics import pick_device
from raydd.core.storage import join
from raydd.core.store import Store, device_kind
from raydd.core.units import Ref, Stage, snapshot, stage_digest
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.datasets import FoundData
from raydd.evaluation.plan import EvaluationPlan, evaluation_stages, own_labels
from raydd.labels.relabel import Relabel
from raydd.methods.method import Method, Problem, check_counts
from raydd.runtime.advice import advice
from raydd.runtime.auto_ipc import with_ipc
from raydd.runtime.devices import store_lines
from raydd.runtime.estimate import (
    GPU_UPDATE_SECONDS,
    costs,
    measured_rate,
    render,
    stages_of,
    too_long,
)
from raydd.runtime.hardware import GPUS, Hardware, named_device
from raydd.runtime.output import check_claim, check_place
from raydd.runtime.resolved import describe as resolved
from raydd.runtime.resolved import settled

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
    labels: list[Relabel | None] = field(default_factory=list)

    def made(self) -> list[Ref]:
        """Return the outputs that the sets of all seeds are made of."""
        return [ref for p in self.problems for ref in self.job.method.targets(p).values()]

    def folder(self, index: int) -> str:
        """Return the folder below the output that a problem's set is published in."""
        return (
            "distilled"
            if len(self.problems) == 1
            else f"distilled/seed-{self.problems[index].seed}"
        )

    def places(self) -> dict[str, str]:
        """Return where the outputs of stages go that are written straight into the published sets,
        by the stages' digests.
        """
        made = [(index, stage) for index, stage in enumerate(self.labels) if stage is not None]
        return {
            stage_digest(stage): join(self.job.output, self.folder(index), stage.place)
            for index, stage in made
        }


def make_plan(job: Job, info: DatasetInfo) -> Plan:
    """Return the plan of a job on a data set; ``ConfigError`` for a combination that cannot run."""
    problems = [
        Problem(dataset=info, ipc=job.ipc, seed=seed, numerics=job.numerics) for seed in job.seeds
    ]
    if job.images is not None:
        job.images.check_coder()
    evaluation = evaluation_stages(job.method, problems, job.evaluation, job.images)
    steps = _picture_steps(job.method, problems[0], job.evaluation.every)
    targets = [ref for p in problems for ref in job.method.targets(p).values()]
    targets += [
        ref for step in steps for ref in job.method.targets(problems[0], snapshot(step)).values()
    ]
    targets += [ref for refs in job.method.drafts(problems[0]).values() for ref in refs.values()]
    targets += evaluation.targets()
    rule = None if job.images is None else job.images.rule
    made = [own_labels(job.method, problem, rule) for problem in problems]
    labels = [one.relabel if one is not None and one.config.stored else None for one in made]
    targets += [ref for stage in labels if stage is not None for ref in stage.refs()]
    if not all(info.train_counts) and any(
        _reads_train(stage) for stage, _, _ in stages_of(targets)
    ):
        check_counts(info, 1)
    return Plan(job, problems, evaluation, steps, list(dict.fromkeys(targets)), labels)


def _reads_train(stage: Stage) -> bool:
    info = getattr(stage, "dataset", None)
    return isinstance(info, DatasetInfo) and "train" in dict(info.digests)


def _picture_steps(method: Method, problem: Problem, every: int | None) -> list[int]:
    refs = list(method.targets(problem).values())
    size = sum(
        ref.stage.cost(ref.unit).output_bytes for ref in refs if ref.stage.steps(ref.unit)
    )  # what is made at once, a whitening, is kept once
    if size * (PICTURES + 1) > PICTURE_BYTES:
        return []
    total = method.updates(problem)
    every = every or max(1, total // PICTURES)
    return list(range(0, total, every)) if total > 1 else []


def dry_run(job: Job, sheet: str | None = None, device: str | None = None) -> tuple[str, list[str]]:
    """Return the resolved job and its plan as text, and a line for each thing that is missing; works without the data.
    ``ConfigError`` for places that are files, or a local output that is another run's.

    ``sheet``: path or URL to write a contact sheet of the training images to. Data of one's own
    that is not there leaves no plan. ``DataError`` for data that is there and cannot be used.
    ``device``: one of :mod:`raydd.runtime.hardware` to estimate for and to advise on, in place of
    this machine's.
    """
    gpu = None if device is None else named_device(device)
    check_claim("output", job.output, job)
    check_place("store", job.store)
    parts = [job.to_yaml().rstrip()]
    found = FoundData(job.dataset)
    try:
        data = found.look(plan=sheet is None and job.ipc != "auto")
    except DataError as error:
        if not found.absent:
            raise
        return "\n".join([*parts, "", f"no plan: {error}", "", *listed(found.absent)]), found.absent
    info = data.info
    if not info.train_counts and (published := entry(job.dataset.name).train_count):
        info = replace(
            info, train_counts=(published // info.classes,) * info.classes
        )  # for the estimate alone
    if job.ipc == "auto":
        job = with_ipc(job, replace(data, info=info))
    plan = make_plan(job, info)
    parts += _coded_lines(job, plan.problems[0])
    absent = [*found.absent, *job.method.missing(plan.problems[0])]
    workers = most_workers(job.compute)
    parts += ["", *resolved(plan.evaluation, settled(job.method, plan.problems[0]))]
    parts += [
        "",
        _table(job, plan, gpu, here := pick_device() if device is None else torch.device("cpu")),
    ]
    kind = gpu.kind if gpu else device_kind(here)
    parts += store_lines(
        Store(job.store, plan.places()), plan.targets, kind, job.compute.same_device
    )
    if device is not None:
        parts += ["", *advice(job, plan.problems[0], plan.evaluation, gpu, workers)]
    if not info.train_counts:
        parts += [
            "",
            "the number of training images is not known without them: what reads them all is left out of FLOP and time",
        ]
    if data.inventory is not None:
        parts += ["", *data.inventory.lines()]
        if sheet and data.splits is not None:
            write_sheet(sheet, info, data.splits["train"])
            parts += [f"contact sheet: {sheet}"]
    if data.unseen:
        parts += ["", data.unseen]
    if absent:
        parts += ["", *listed(absent)]
    return "\n".join(parts), absent


def _coded_lines(job: Job, problem: Problem) -> list[str]:
    """Return what the images of a job take before their streams are coded, where they are coded."""
    method = job.method
    if job.images is None:
        return []
    rules = [rung.rule for rung in job.images.rungs()]
    ways = (
        one.codec.text if one.budget is None else f"at most {one.budget:,} bytes" for one in rules
    )
    line = f"images ({'; '.join(ways)})"
    if method.one_image:
        return ["", line]
    info, stored = problem.dataset, method.size(problem).stored
    count = stored * info.channels * info.height * info.width
    sizes = [f"{4 * count:,} bytes at 32 bits", f"{count:,} at 8"]
    for codec in (one.codec for one in rules if one.budget is None):
        if codec.bits is not None and codec.bits < 8:
            sides = (-(-side // codec.size) for side in (info.height, info.width))
            levels = stored * info.channels * math.prod(sides)
            sizes.append(f"{-(-levels * codec.bits // 8):,} at {codec.text}, before they are coded")
    return ["", f"{line}: {', '.join(sizes)}"]


def _table(job: Job, plan: Plan, gpu: Hardware | None, here: torch.device) -> str:
    """Return the table of costs, with the time that they take on a GPU, or else on this machine's device."""
    rows, workers = costs(plan.targets), most_workers(job.compute)
    if gpu is not None:
        rate = gpu.rate(job.numerics)
        where = (
            f"at the {rate / 1e12:.0f} TFLOP/s that networks of this kind reach on an {gpu.kind}"
        )
        text = render(
            rows, rate=rate, workers=workers, where=where, update_seconds=GPU_UPDATE_SECONDS
        )
        warned = too_long(
            rows,
            rate=rate,
            workers=workers,
            longest=job.compute.longest,
            update_seconds=GPU_UPDATE_SECONDS,
        )
        return "\n".join([text, *warned])
    rate = measured_rate(job.numerics, here)
    where = f"at the {rate / 1e9:.0f} GFLOP/s that one worker reaches on this machine's {device_kind(here)}"
    text = render(rows, rate=rate, workers=workers, where=where)
    other = GPUS["h100"]
    instead = None if here.type == "cuda" else (f"NVIDIA {other.name}", other.rate(job.numerics))
    warned = too_long(
        rows, rate=rate, workers=workers, longest=job.compute.longest, instead=instead
    )
    return "\n".join([text, *warned])


def listed(absent: Sequence[str]) -> list[str]:
    """Return the lines that say what is missing."""
    return ["missing:", *(f"  - {line}" for line in absent)]


def most_workers(compute: ComputeConfig) -> int:
    """Return the largest number of workers that ``compute`` allows, at least 1."""
    return max(1, compute.workers if isinstance(compute.workers, int) else compute.workers[1])
