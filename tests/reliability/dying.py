"""A process that dies at a chosen point, without a process: from the point on nothing is written, whatever cleans up.

:class:`Life` wraps what every run writes through (:class:`raydd.core.storage.Storage`, the journal's file) and what it
computes by (:class:`raydd.runtime.worker.Worker`), and raises :class:`Killed` at a :class:`Point`. What then lies on
the disk is what SIGKILL leaves; ``test_methods.py`` compares both.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from small import small_overrides

from raydd.config import load_job
from raydd.core.sealed import seal, unseal
from raydd.core.storage import Storage
from raydd.core.units import Ref, Stage
from raydd.data.catalog import DatasetInfo
from raydd.data.config import DatasetConfig
from raydd.runtime import journal, session, worker
from raydd.runtime.control import Control
from raydd.runtime.estimate import stages_of
from raydd.runtime.leases import Lease
from raydd.runtime.pipeline import run_job, store_of
from raydd.runtime.planning import Plan, make_plan
from raydd.runtime.runner import LocalRunner
from raydd.runtime.session import described

EVERY = 3
"""Steps between two checkpoints, by the clock that :class:`Life` gives the worker."""
NETWORK = "convnet1_w8_batchnorm"
NOBODY = 2**30
"""The number of no process: more than Linux gives."""


class Killed(BaseException):
    """Stands for SIGKILL."""


@dataclass(frozen=True)
class Point:
    """When to die: at the first event of this kind, of a stage by its name, or of a URL that ends so.

    ``kind``: ``before a unit``; ``step`` (an update begins, of number ``t`` or a later one); a stage's ``checkpoint``,
    ``output`` or ``marker`` was put; an object is about to be ``put``, ``has been put``.
    """

    kind: str
    stage: str = ""
    end: str = ""
    t: int = 0

    def met(self, kind: str, stage: str, url: str, t: int) -> bool:
        """Return whether an event is it."""
        stages = self.stage in ("", stage)
        return kind == self.kind and stages and url.endswith(self.end) and t >= self.t


def small_job(name: str, folder: Path, *more: str) -> list[str]:
    """Return the overrides of a method's job of digits that takes a second, below a folder."""
    own = [f"method.label_networks=[{NETWORK}]"] if name == "edc" else []
    updates = [] if name in UNDIVIDED else ["evaluation.every=4"]
    return [
        "dataset.name=digits", "ipc=2", *small_overrides(name), *own, *updates, "evaluation.epochs=1",
        "evaluation.repeats=1", "evaluation.baselines=[]", "evaluation.networks=[convnet1_w8]", "compute.workers=0",
        "tracking.uri=none", f"output={folder}/out", f"store={folder}/store", *more,
    ]  # fmt: skip


UNDIVIDED = ("herding", "kcenter", "random", "rded")
"""Methods without updates."""


@functools.cache
def info_of_digits() -> DatasetInfo:
    """Return the facts of the digits, with digests."""
    return described(DatasetConfig(name="digits"), "job").info


def plan_of(name: str, folder: Path = Path("unused")) -> Plan:
    """Return the plan of a method's small job."""
    return make_plan(load_job(None, small_job(name, folder)), info_of_digits())


def in_order(plan: Plan) -> dict[str, list[Stage]]:
    """Return the stages of a plan by their names, each after what it reads."""
    depths: dict[Stage, int] = {}

    def depth(stage: Stage) -> int:
        if stage not in depths:
            read = {ref.stage for unit in stage.units() for ref in stage.inputs(unit).values()}
            depths[stage] = 1 + max((depth(other) for other in read), default=0)
        return depths[stage]

    found: dict[str, list[Stage]] = {}
    for stage in sorted((stage for stage, _, _ in stages_of(plan.targets)), key=depth):
        found.setdefault(stage.name, []).append(stage)
    return found


@dataclass
class Life:
    """What one process does on a folder, up to its death at ``point`` if there is one; ``die``: what dying is there.

    ``steps``: updates made, by key and number. ``lost``: those of them that no checkpoint keeps when it dies.
    """

    places: Mapping[str, tuple[str, str]]
    point: Point | None = None
    die: Callable[[], None] | None = None
    dead: bool = False
    steps: Counter[tuple[str, int]] = field(default_factory=Counter)
    trace: list[tuple[str, str, str, int]] = field(default_factory=list)
    """Kind, stage, URL and update of each event."""
    done: set[str] = field(default_factory=set)
    kept: dict[str, int] = field(default_factory=dict)
    current: str = ""
    ticks: int = 0

    @property
    def lost(self) -> int:
        """Updates of the unit under work that no checkpoint and no output of this life keeps."""
        if self.current in self.done:
            return 0
        kept = self.kept.get(self.current, 0)
        return sum(n for (key, t), n in self.steps.items() if key == self.current and t >= kept)

    def tell(self, kind: str, stage: str = "", url: str = "", t: int = 0) -> None:
        """Hear of an event; die if it is the point, or if all is over."""
        if self.dead:
            raise Killed
        self.trace.append((kind, stage, url, t))
        if self.point is not None and self.point.met(kind, stage, url, t):
            if self.die is not None:
                self.die()
            self.dead = True
            raise Killed

    def monotonic(self) -> float:
        """Return a clock of which each question is a second."""
        self.ticks += 1
        return float(self.ticks)

    def wrote(self, url: str) -> None:
        """Hear of an object that was put."""
        unit, state, rest = url.partition("/state-")
        stage, key = self.places.get(unit, ("", ""))
        if state:
            self.kept[key] = int(rest.split(".")[0])
            self.tell("checkpoint", stage, url)
        elif stage and url.endswith(".json"):
            if "/step-" not in url:
                self.done.add(key)
            self.tell("marker", stage, url)
        elif stage:
            self.tell("output", stage, url)
        self.tell("has been put", stage, url)

    @contextlib.contextmanager
    def lived(self) -> Iterator[None]:
        """Let all that this process does be heard of."""
        put, delete = Storage._put, Storage.delete
        write, run, life = journal._Append.write, worker.Worker.run, self

        def heard_put(storage: Storage, path: str, locally: Any, afar: Any) -> None:
            life.tell("put", "", f"{storage.url}/{path}")
            put(storage, path, locally, afar)
            life.wrote(f"{storage.url}/{path}")

        def heard_delete(storage: Storage, path: str) -> None:
            if not life.dead:
                delete(storage, path)

        def heard_write(writer: Any, lines: list[bytes]) -> None:
            if not life.dead:
                write(writer, lines)

        def heard_run(self: worker.Worker, lease: Lease, lanes: worker.Lanes) -> None:
            life.current = lease.ref.key
            life.tell("before a unit", lease.ref.stage.name)
            run(self, lease, lanes)

        def runner(open_data: Any, **settings: Any) -> LocalRunner:
            own = {"checkpoint_every": EVERY - 0.5, "fault": life.step}
            return LocalRunner(open_data, **{**settings, **own})

        with (
            mock.patch.object(Storage, "_put", heard_put),
            mock.patch.object(Storage, "delete", heard_delete),
            mock.patch.object(journal._Append, "write", heard_write),
            mock.patch.object(worker.Worker, "run", heard_run),
            mock.patch.object(worker, "time", SimpleNamespace(monotonic=self.monotonic)),
            mock.patch.object(session, "LocalRunner", runner),
        ):
            yield

    def step(self, stage: str, unit: str, t: int) -> None:
        """Hear of an update that begins."""
        self.tell("step", stage, "", t)
        self.steps[self.current, t] += 1


def run_once(job: Sequence[str], life: Life) -> None:
    """Run a job in a life."""
    with life.lived():
        run_job(load_job(None, list(job)), lambda line: None, Control())


def bury(folder: Path) -> None:
    """Make the lock that a dead life left the lock of a process that is no more."""
    lock = folder / "out" / "lock.json"
    if lock.exists():
        held = unseal(lock.read_bytes(), str(lock))
        lock.write_bytes(seal(json.dumps(held | {"pid": NOBODY}).encode()))


def places_of(plan: Plan) -> dict[str, tuple[str, str]]:
    """Return stage and key behind each URL that a run puts outputs to, and behind each unit's folder."""
    found: dict[str, tuple[str, str]] = {}
    store = store_of([plan], Control())
    for stage, units, outputs in stages_of(plan.targets):
        for unit in units:
            key = Ref(stage, unit).key
            found[f"{store.url}/{store.folder(key)}"] = (stage.name, key)
            for output in {"final", *outputs}:
                storage, path = store.place(Ref(stage, unit, output))
                for end in ("safetensors", "json"):
                    found[f"{storage.url}/{path}.{end}"] = (stage.name, key)
    return found


NOT_BYTES = ("curve.png", "recipe.json", "report.json", "README.md", "manifest.json")
"""Files of a published set that hold seconds, or digests of such files, as do the markers of label records."""


def published(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a published set that holds no seconds, and the report's accuracies."""
    root = folder / "out" / "distilled"
    found = {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.name not in NOT_BYTES
        and (path.parent.name, path.suffix) != ("labels", ".json")
    }
    report = json.loads((folder / "out" / "report.json").read_text())
    return found | {"accuracies": json.dumps(accuracies(report))}


def accuracies(tree: Any) -> list[Any]:
    """Return what a report says of accuracy, in order."""
    if isinstance(tree, list):
        return [found for item in tree for found in accuracies(item)]
    if isinstance(tree, dict):
        mine = [[name, value] for name, value in tree.items() if "accuracy" in name]
        return mine + [found for value in tree.values() for found in accuracies(value)]
    return []


def outputs(folder: Path) -> dict[str, str]:
    """Return what the markers of a store say of their files, by path."""
    root = folder / "store"
    return {
        str(path.relative_to(root)): json.dumps(json.loads(path.read_text())["files"])
        for path in sorted((root / "units").rglob("*.json"))
        if not path.name.startswith("skipped")
    }


def litter(folder: Path) -> list[str]:
    """Return what a finished run has to clear away: locks, half-written files, probes, checkpoints."""
    names = [path for path in folder.rglob("*") if path.is_file()]
    ends = (".tmp", "lock.json")
    return [
        str(path.relative_to(folder))
        for path in names
        if path.name.endswith(ends) or ".raydd-probe" in path.name or path.name.startswith("state-")
    ]
