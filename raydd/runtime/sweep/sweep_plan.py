"""What a sweep will compute: its trials' jobs, and the units that all of them need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydd.config import WAIT_SECONDS, Job, parse_job
from raydd.core.dotted_keys import with_values
from raydd.core.errors import ConfigError
from raydd.core.storage import join
from raydd.core.units import Ref
from raydd.data.catalog import DatasetInfo
from raydd.runtime.planning import Plan, make_plan
from raydd.search.space import Space, Values, signature
from raydd.search.whole_settings import whole_settings

OWN_CPUS = 0.01
"""What a trial with a Train group of its own reserves for itself: next to nothing."""


@dataclass(frozen=True)
class Sweep:
    """A job and the space of its keys; ``output``: the sweep's own, absolute.

    ``tags``: of every trial's run in MLflow; ``tracked``: whether trials have runs of their own;
    ``environment``: variables that say where, for processes that run trials elsewhere.
    """

    job: Job
    space: Space
    output: str
    tags: Mapping[str, str] = field(default_factory=dict)
    tracked: bool = True
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def trial(self, number: int, values: Values) -> Job:
        """Return a trial's job; ``ConfigError`` for values that do not go together."""
        file = self.space.file
        fixed: dict[str, Any] = {
            "name": f"{self.job.name}-{number:04d}",
            "output": join(self.output, self.place(number)),
            "seeds": [self.job.seeds[0] + index for index in range(file.seeds)],
            "compute.workers": file.workers_per_trial,
            "compute.evaluators": 0,
            "tracking.uri": self.job.tracking.uri if self.tracked else "none",
        }
        if not file.workers_per_trial:
            fixed |= {"compute.gpus_per_worker": 0.0, "compute.wait": WAIT_SECONDS}
        if file.winner:
            fixed |= {"dataset.holdout": self.holdout, "evaluation.split": "holdout"}
            if file.metric not in ("hlr", "ior"):
                fixed["evaluation.baselines"] = []
        tree = self.space.tree(values)
        return parse_job(with_values(tree, fixed | file.trial | dict(values)), "trial")

    @property
    def holdout(self) -> float | int:
        """Share or count of every class that trials are judged on: the job's own, if it has one."""
        return self.job.dataset.holdout or self.space.file.holdout

    def place(self, number: int) -> str:
        """Return a trial's folder below the sweep's output."""
        return f"trials/{number:04d}"

    def complete(self, values: Values, output: str) -> Job:
        """Return the job as it was given, with a trial's values."""
        fixed = {"output": output, "seeds": list(self.job.seeds)}
        tree = self.space.tree({"ipc": self.job.ipc, **values})
        return parse_job(with_values(tree, {**values, **fixed}), "job")


@dataclass
class Corners:
    """The plans of trials at the ends of the space. ``shared``: what all of them need."""

    plans: list[tuple[Values, Plan]]
    shared: list[Ref]


MOST_CORNERS = 24
"""Further ends of a space are not planned."""


def corners(sweep: Sweep, info: DatasetInfo) -> Corners:
    """Plan the job's own trial and those at the ends of the space; ``ConfigError`` with all that cannot be."""
    plans: dict[str, tuple[Values, Plan]] = {}

    def refusal(values: Values) -> str | None:
        if len(plans) >= MOST_CORNERS:
            return None
        refused = sweep.space.refusal(values)
        if refused is None:
            try:
                plan = make_plan(sweep.trial(len(plans), values), info)
                plans.setdefault(signature(values), (values, plan))
            except ConfigError as error:
                refused = str(error)
        return refused

    _, mistakes = whole_settings(sweep.space, refusal, named=True)
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    found = list(plans.values())
    return Corners(found, common([plan.targets for _, plan in found]))


def common(plans: Sequence[Sequence[Ref]]) -> list[Ref]:
    """Return the outputs that all plans need, in the order of the first."""
    closures = [closure(targets) for targets in plans]
    return [
        ref
        for key, ref in closures[0].items()
        if len(closures) > 1 and all(key in other for other in closures[1:])
    ]


def closure(targets: Sequence[Ref]) -> dict[tuple[str, str], Ref]:
    """Return targets and all outputs that they need, by key and output."""
    found: dict[tuple[str, str], Ref] = {}
    frontier = list(targets)
    while frontier:
        ref = frontier.pop()
        if (ref.key, ref.output) not in found:
            found[ref.key, ref.output] = ref
            frontier += ref.stage.inputs(ref.unit).values()
    return found


def steps_of(plan: Plan) -> int:
    """Return the most updates that a set of a plan takes."""
    return plan.job.method.updates(plan.problems[0])
