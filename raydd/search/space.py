"""A space file: which keys of a job are searched, by whom, and what a trial is judged by."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from raydd.config import Job, JobFile, parse_job
from raydd.core.dotted_keys import flatten, value_at, with_values
from raydd.core.errors import ConfigError
from raydd.core.typed_tree import plain
from raydd.search.domains import Domain, label

Values = Mapping[str, Any]
"""What a trial sets: values by dotted key of the job."""

CLOSED = ("name", "seed", "seeds", "output", "store", "compute", "tracking")
"""Keys of a job that change nothing of a set, or are the sweep's own."""
OWN = ("dataset.holdout", "evaluation.split", "evaluation.baselines")
"""Keys that the sweep sets for its trials."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When no further trial begins: after ``trials`` of them, ``device_seconds`` of computing, or
    ``seconds`` by the clock.
    """

    trials: Annotated[int, Ge(1)] | None = None
    device_seconds: Annotated[float, Gt(0)] | None = None
    seconds: Annotated[float, Gt(0)] | None = None


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Early stopping. ``grace``: updates that every trial makes; ``reduction``: of trials that
    reach a rung, one in so many goes on (ASHA).
    """

    grace: Annotated[int, Ge(1)] | None = None
    reduction: Annotated[float, Gt(1)] = 3.0


@dataclass(frozen=True, kw_only=True)
class SpaceFile:
    """A space file's keys.

    ``keys``: what is searched, dotted keys of the job with one of ``choice``, ``grid``,
    ``uniform``, ``loguniform``, ``quniform`` (low, high, step), ``randint`` (both ends included),
    and ``when``: values of other keys under which the key has an effect. ``search``: ``grid`` (all
    combinations), ``random``, ``tpe`` (Optuna). ``startup``: random trials before TPE begins.
    ``metric``, ``mode``: what trials are ranked by. ``scheduler`` and ``stopping``: who stops
    trials early, on accuracies of snapshots. ``budget``: when no further trial begins. ``points``:
    values that are tried first, after the job's own. ``seed``: of what is drawn; ``seeds``:
    distillations of each trial. ``holdout``: share or count of every class's training images that
    trials are judged on. ``trial``: keys of the job as trials have them (shorter, say); ``final``:
    as the test of the winner has them. ``workers_per_trial``: Ray Train workers of each trial; 0:
    it computes in one process. ``winner: false``: a table of all, each judged on the test set;
    nothing is selected.
    ``give_up``: the sweep stops if its first so many trials all fail.
    """

    keys: dict[str, dict[str, Any]]
    search: Literal["grid", "random", "tpe"] = "tpe"
    startup: Annotated[int, Ge(1)] = 4
    metric: str = "accuracy"
    mode: Literal["max", "min"] | None = None
    scheduler: Literal["none", "asha", "median"] = "none"
    stopping: Asha = field(default_factory=Asha)
    budget: Budget = field(default_factory=Budget)
    points: tuple[dict[str, Any], ...] = ()
    seed: Annotated[int, Ge(0)] = 0
    seeds: Annotated[int, Ge(1)] = 1
    holdout: Annotated[int, Ge(1)] | Annotated[float, Gt(0), Lt(1)] = 0.1
    trial: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    workers_per_trial: Annotated[int, Ge(0)] = 0
    winner: bool = True
    give_up: Annotated[int, Ge(1)] = 3


@dataclass(frozen=True)
class Key:
    """A searched key: its values, and the values of other keys under which it has an effect."""

    name: str
    domain: Domain
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """A checked space: the file, its keys in their order, and the job that they are keys of.

    ``own``: the job's values of the keys; ``ipc``: its images per class. ``trees``: the job as a
    plain tree, with all defaults, by number of images per class, made when they are asked for.
    ``where``: the file, for messages. ``refused``: what :meth:`refusal` found, by signature.
    """

    name: str
    file: SpaceFile
    keys: tuple[Key, ...]
    job: JobFile
    own: Values
    ipc: float
    mode: str
    where: str = ""
    trees: dict[float | None, Any] = field(default_factory=dict, compare=False, repr=False)
    refused: dict[str, str | None] = field(default_factory=dict, compare=False, repr=False)

    def tree(self, values: Values) -> Mapping[str, Any]:
        """Return the job in which values are set: as its file has it for their images per class."""
        ipc = self.ipc_of(values)
        known = isinstance(ipc, (int, float)) and (ipc in self.job.by_ipc or ipc == self.ipc)
        place = self.ipc if not self.job.by_ipc else ipc if known else None
        if place not in self.trees:
            self.trees[place] = plain(self.job.job(ipc))
        return self.trees[place]

    def ipc_of(self, values: Values) -> Any:
        """Return the images per class of a trial that sets these values."""
        return {"ipc": self.ipc, **self.file.trial, **values}["ipc"]

    def by_ipc(self) -> dict[str, dict[str, Any]]:
        """Return what trials have for their images per class and the job has not, unless all set it: keys, by ipc."""
        own = flatten(self.tree({"ipc": self.ipc}))
        theirs = {"ipc", *self.file.trial, *(key.name for key in self.keys if not key.when)}
        found: dict[str, dict[str, Any]] = {}
        for values in [*self.corners(), *self.file.points]:
            found[label(self.ipc_of(values))] = {
                key: value
                for key, value in flatten(self.tree(values)).items()
                if not (key in theirs or key.split(".")[0] in CLOSED)
                and (key not in own or own[key] != value)
            }
        return {ipc: settings for ipc, settings in found.items() if settings}

    def active(self, key: Key, values: Values) -> bool:
        """Return whether a key has an effect beside these values of the keys before it."""
        given = {**self.file.trial, **values}
        return all(
            label(given[other] if other in given else value_at(self.tree(values), other))
            in map(label, allowed)
            for other, allowed in key.when.items()
        )

    def without_idle(self, values: Values) -> dict[str, Any]:
        """Return values without those that have no effect."""
        kept: dict[str, Any] = {}
        for key in self.keys:
            if key.name in values and self.active(key, kept):
                kept[key.name] = values[key.name]
        return kept

    def grid(self) -> list[dict[str, Any]]:
        """Return all combinations that can be, the last key's values changing fastest; keys without effect left out."""
        return [values for values in self.combinations() if self.refusal(values) is None]

    def combinations(self) -> list[dict[str, Any]]:
        """Return all combinations, also those that no job can have."""
        names = [key.name for key in self.keys]
        every = itertools.product(*(key.domain.corners() for key in self.keys))
        found = [self.without_idle(dict(zip(names, values, strict=True))) for values in every]
        return list({signature(values): values for values in found}.values())

    def ends(self) -> list[dict[str, Any]]:
        """Return each key's ends and what lies between, and what other keys must be for it to have an effect.

        A key that never has an effect, whatever else is searched, has none.
        """
        found, searched = [], {key.name for key in self.keys}
        for key in self.keys:
            beside = {name: values[0] for name, values in key.when.items() if name in searched}
            if self.active(key, beside):
                found += [{**beside, key.name: one} for one in self.tried(key)]
        return found

    def corners(self) -> list[dict[str, Any]]:
        """Return the job's own values, and these with each key at its ends and between."""
        found = [dict(self.own), *({**self.own, **end} for end in self.ends())]
        return list({signature(values): values for values in found}.values())

    def refusal(self, values: Values) -> str | None:
        """Return why no job can have these values together; ``None`` where one can."""
        known = signature(values)
        if known not in self.refused:
            try:
                job = self.trial_job(values)
                job.evaluation.architectures(job.method.student_network)
                self.refused[known] = None
            except ConfigError as error:
                self.refused[known] = str(error)
        return self.refused[known]

    def trial_job(self, values: Values) -> Job:
        """Return the job of a trial with these values; ``ConfigError`` where none can have them."""
        tree = with_values(self.tree(values), {**self.file.trial, **values})
        return parse_job(tree, self.where)

    def tried(self, key: Key) -> list[Any]:
        """Return a key's values that are checked before a search, the job's own ipc among them."""
        own_settings = [
            ipc for ipc in self.job.by_ipc if key.name == "ipc" and key.domain.holds(ipc)
        ]
        return [*key.domain.tried(), *own_settings]

    def better(self, one: float, two: float) -> bool:
        """Return whether a trial's value is better than another's."""
        return one > two if self.mode == "max" else one < two


def signature(values: Values) -> str:
    """Return a text that two trials share if they set the same."""
    return label({key: values[key] for key in sorted(values)})
