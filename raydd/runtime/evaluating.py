"""Evaluates a stored set, ours or foreign, with the same stages, runners and store as a job's own evaluation."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raydd.artifacts import published_manifest
from raydd.artifacts.card import poster_text
from raydd.artifacts.charts import CONTINUAL, CONTINUAL_ROWS, NETWORKS
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.encoding import coded_file
from raydd.artifacts.formats import data_set_at, detect, experiments_at, read_set
from raydd.artifacts.grid import png
from raydd.artifacts.image_codecs import facts
from raydd.artifacts.per_byte import CHART, ROWS
from raydd.artifacts.poster_pictures import is_poster, picture_of
from raydd.artifacts.reading import Reading
from raydd.artifacts.rendering import images_per_class
from raydd.artifacts.run_folder import PAGE, PLAN
from raydd.config import EvaluationJob, load_evaluation, method_from
from raydd.core.allocator import tune_allocator
from raydd.core.dotted_keys import flatten
from raydd.core.errors import ConfigError, refusing
from raydd.core.json_text import parse_json
from raydd.core.numerics import pick_device
from raydd.core.storage import Storage, absolute, join
from raydd.core.store import Store, device_kind
from raydd.core.typed_tree import as_yaml, build
from raydd.core.units import Numerics
from raydd.data.catalog import CATALOG, DatasetInfo
from raydd.data.datasets import Described
from raydd.evaluation.images_config import ImagesConfig
from raydd.evaluation.memories import check_classes
from raydd.evaluation.plan import EvaluationPlan
from raydd.evaluation.set_sources import StoredSet
from raydd.evaluation.stored_plan import Maker, stored_evaluation
from raydd.labels.fkd import FkdLabels
from raydd.labels.published import FOLDER, MANIFEST, PublishedLabels
from raydd.methods.method import DEFAULT_NETWORK, Problem
from raydd.runtime.control import Control
from raydd.runtime.devices import store_lines
from raydd.runtime.estimate import costs, measured_rate, render
from raydd.runtime.lock import Lock
from raydd.runtime.output import Recorded, check_claim_as, check_place, claim_as
from raydd.runtime.plan_record import record_plan
from raydd.runtime.planning import listed, most_workers
from raydd.runtime.resolved import describe as describe_protocols
from raydd.runtime.resolved import protocol_params
from raydd.runtime.session import Outcome, Session, check_places, described, run_tags
from raydd.runtime.tracking.tracker import Tracker

GRID = "grid.png"
SHOWN = 10
"""Images of each class in the picture of an evaluated set."""


@dataclass(frozen=True)
class Subject:
    """The set to be evaluated: where it lies, what it is called, what it holds; ``data``: what it is tested on.

    ``notes``: what was guessed and left out when it was read. ``beside``: what else makes an
    evaluation of it another one.
    """

    url: str
    name: str
    distilled: DistilledSet
    data: Described
    notes: tuple[str, ...] = ()
    beside: Mapping[str, str] = field(default_factory=dict)


def job_of(url: str) -> Mapping[str, Any]:
    """Return the job that made a set of ours, as its recipe keeps it; of an export, which has no recipe, its data set.

    Nothing for a foreign set, ``DataError`` for none at all.
    """
    source = detect(absolute(url))
    if source.format != "distilled":
        name = data_set_at(absolute(url))
        return {"dataset": {"name": name}} if name in CATALOG else {}
    try:
        job = parse_json(source.storage.get("recipe.json"))["job"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return job if isinstance(job, dict) else {}


def plan_stored(
    job: EvaluationJob,
    url: str,
    reading: Reading | None = None,
    labels: str | None = None,
    *,
    pooled: bool = False,
    anyway: bool = False,
) -> tuple[Subject, EvaluationPlan]:
    """Read the set and plan its evaluation; ``ConfigError`` or ``DataError`` if that cannot be,
    ``Missing`` without the data.

    ``reading``: what the values of a foreign set mean, as far as it is stated. ``labels``: URL of
    soft labels that do not lie beside the set: a ``labels/`` folder of ours, or FKD's ``epoch_0``,
    …. ``pooled``: all experiments of a file, as repetitions. ``anyway``: plan without the data,
    where the catalog knows it.
    """
    data = described(job.dataset, "evaluation", anyway=anyway)
    info, url, notes = data.info, absolute(url), dict[str, None]()
    readings, published = _readings(url, reading or Reading(), pooled)
    sets = [
        read_set(url, info=info, reading=one, tell=lambda line: notes.setdefault(line))
        for one in readings
    ]
    distilled = sets[-1]
    if (distilled.info.classes, *distilled.shape) != (info.classes, *info.shape):
        shape = "x".join(map(str, distilled.shape))
        raise ConfigError(
            f"{url}: {shape} images of {distilled.info.classes} classes; {info.name} has {info.shape} and"
            f" {info.classes}"
        )
    method = distilled.recipe.get("method")
    made_by = method if isinstance(method, Mapping) else {}
    name, own = str(made_by.get("name", "set")), made_by.get("network")
    if job.evaluation.continual is not None:
        if is_poster(distilled):
            raise ConfigError(
                f"evaluation.continual: {url} is one poster, whose windows show several classes; it has no part that"
                " belongs to the classes of a step"
            )
        check_classes(distilled.labels, range(info.classes))
    images = job.images
    as_it_is = images is None and readings == [Reading()] and job.evaluation.continual is None
    kept = coded_file(url) if as_it_is else None
    if kept is not None:
        images = ImagesConfig.of(facts(kept).codec)
    if images is not None:
        for one in sets:
            images.check(one, url)
    stored = [StoredSet.of(one, url, info, of) for one, of in zip(sets, readings, strict=True)]
    given = distilled.recipe.get("ipc")
    if isinstance(given, (int, float)):
        ipc = given
    elif is_poster(distilled):
        ipc = distilled.pixel_ipc
    else:
        ipc = max(1, round(len(distilled) / info.classes))
    problem = Problem(dataset=info, ipc=ipc, seed=job.seed, numerics=job.numerics)
    part = readings[0].ipc
    if part is not None and labels is not None:
        raise ConfigError(
            f"ipc={part}: the labels at {labels} are of views of the whole set; leave out one of the two"
        )
    found = None if part is not None else _labels(url, labels)
    if found is not None:
        if stored[0].whitening is not None or len(sets) > 1:
            raise ConfigError("soft labels of views need one set, whose images are not whitened")
        found.check(distilled)
    own_space = job.evaluation.resolve().space == "normalised"
    if own_space and stored[0].whitening is not None and job.evaluation.baselines:
        notes.setdefault(
            "Test images are whitened as the set is; the sets beside it, and their tests, are not whitened."
        )
    own = own if isinstance(own, str) else DEFAULT_NETWORK
    plan = stored_evaluation(
        stored if len(stored) > 1 else stored[0],
        name,
        problem,
        job.evaluation,
        found,
        own,
        maker_of(distilled.recipe, info, ipc),
        size=contents(distilled),
        published=published or distilled.recipe.get("published", {}),
        images=images,
        kept=kept is not None,
    )
    beside = {"labels": found.digest} if labels is not None and found is not None else {}
    beside |= (
        {"experiments": " ".join(one.digest[:12] for one in stored)} if len(stored) > 1 else {}
    )
    beside |= {} if stored[0].whitening is None else {"space": stored[0].whitening.space}
    subject = Subject(url, name, distilled, data, tuple(notes), beside)
    return subject, replace(plan, notes=(*plan.notes, *notes))


def _readings(
    url: str, reading: Reading, pooled: bool
) -> tuple[list[Reading], Mapping[str, Sequence[float]]]:
    """Return how each set of a file is read, one or all its experiments, and the accuracies that
    the file has of all of them.
    """
    if not pooled:
        return [reading], {}
    held = experiments_at(url)
    if held is None:
        raise ConfigError(
            f"experiment=all has no effect: {url} holds one set; only .pt lists hold more"
        )
    # The steps of continual learning are one set.
    readings = (
        [reading]
        if held.steps
        else [replace(reading, experiment=place) for place in range(len(held.sets))]
    )
    return readings, held.published


def contents(distilled: DistilledSet) -> str:
    """Return what a set holds, if that is not equally many images of each class, seen as they are
    stored, else nothing.
    """
    if is_poster(distilled):
        return poster_text(distilled)
    held = _uneven(distilled)
    if distilled.seen == len(distilled):
        return held
    return f"{held or images_per_class(max(distilled.ipc))} stored, {distilled.seen:,} images seen"


def _count(distilled: DistilledSet) -> str:
    stored, seen = len(distilled), distilled.seen
    what = poster_text(distilled) or f"{stored} image{'s' * (stored != 1)}"
    return what + (f", of which students see {seen}," if seen != stored else "")


def _uneven(distilled: DistilledSet) -> str:
    """Return what a set stores, if that is not equally many images of each class, else nothing."""
    counts = distilled.ipc
    present = [count for count in counts if count]
    images = f"{len(distilled):,} image{'s' * (len(distilled) != 1)}"
    if distilled.soft_labels is not None or len(distilled.labels) != len(
        distilled
    ):  # its images are of no one class
        return images if len(distilled) % len(counts) else ""
    if len(set(counts)) == 1:
        return ""
    if len(present) < len(counts):
        return f"{images} of {len(present)} of {len(counts)} classes"
    return f"{images}, {min(present)} to {max(present)} of each class"


def maker_of(recipe: Mapping[str, Any], info: DatasetInfo, ipc: float) -> Maker | None:
    """Return what made a set of ours, if it has teachers and was made of this training split (if
    that is here) by a version like this.
    """
    try:
        method = method_from(recipe["method"], "recipe.json")
        numerics = build(Numerics, recipe["job"]["numerics"], "recipe.json")
        problem = Problem(dataset=info, ipc=ipc, seed=int(recipe["seed"]), numerics=numerics)
        same = not info.digests or recipe["source"]["train"] == dict(info.digests)["train"]
    except (ConfigError, KeyError, TypeError, ValueError):
        return None
    return Maker(method, problem) if same and method.label_config is not None else None


def _labels(url: str, given: str | None) -> PublishedLabels | FkdLabels | None:
    """Return the soft labels at ``given``, or those published beside a set, if there are any."""
    if given is not None:
        storage = Storage(absolute(given))
        ours = storage.exists(MANIFEST) or storage.exists(f"{FOLDER}/{MANIFEST}")
        return PublishedLabels.at(storage.url) if ours else FkdLabels.at(storage.url)
    if detect(url).format != "distilled":
        return None
    storage, path = Storage(url), f"{FOLDER}/{MANIFEST}"
    try:
        files = published_manifest.read_manifest(storage)["files"]
    except FileNotFoundError:  # told when the set is read
        files = {}
    if path in files:
        published_manifest.listed_file(storage, path, files)  # as it was published, or refused
    return PublishedLabels.at(url) if path in files or storage.exists(path) else None


def describe_plan(
    job: EvaluationJob, subject: Subject, plan: EvaluationPlan
) -> tuple[str, list[str]]:
    """Return the plan as text, and a line for each thing that is missing, for ``--dry-run``."""
    check_place("output", place_of(job, subject))
    check_claim_as(place_of(job, subject), *_claimed(job, subject))
    rate = measured_rate(job.numerics, pick_device())
    where = f"at the {rate / 1e9:.0f} GFLOP/s that one worker reaches on this machine's {device_kind(pick_device())}"
    table = render(costs(plan.targets()), rate=rate, workers=most_workers(job.compute), where=where)
    held = subject.data.inventory
    absent = list(subject.data.absent)
    made = store_lines(
        Store(job.store), plan.targets(), device_kind(pick_device()), job.compute.same_device
    )
    parts = [as_yaml(job.stated()), *describe_protocols(plan, {}), "", table, *made]
    parts += [] if held is None else ["", *held.lines()]
    return "\n".join([*parts, *(["", *listed(absent)] if absent else [])]), absent


def place_of(job: EvaluationJob, subject: Subject) -> str:
    """Return where an evaluation's report goes: the job's output, or a folder named after the set
    and what is asked of it.
    """
    if job.output is not None:
        return job.output
    asked = {key: value for key, value in job.resolved().items() if key in ASKED}
    if job.images is None:
        del asked["images"]  # a key that came later: folders of evaluations keep their names
    what = [subject.distilled.digest, asked, *([subject.beside] if subject.beside else [])]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return absolute(f"runs/evaluate/{subject.name.replace(' ', '-')}-{digest[:8]}")


ASKED = ("seed", "dataset", "images", "evaluation", "numerics")
"""Keys of a job that make an evaluation of a set another one."""


def _claimed(
    job: EvaluationJob, subject: Subject
) -> tuple[dict[str, Any], Recorded, tuple[str, ...]]:
    """Return what is asked of which set, how a ``job.yaml`` says so, and what the run writes; see :func:`claim_as`."""

    def recorded(tree: Mapping[str, Any]) -> Mapping[str, Any]:
        try:  # with the defaults of keys that an earlier version did not know
            known = load_evaluation({key: tree[key] for key in ASKED if key in tree}).resolved()
        except ConfigError:
            return tree
        return {**tree, **{key: known[key] for key in ASKED}}

    resolved = job.resolved()
    asked = {**_of(subject), **{key: resolved[key] for key in ASKED}}
    pictures = (GRID, NETWORKS, CONTINUAL, CONTINUAL_ROWS, CHART, ROWS)
    return asked, recorded, ("report.json", PAGE, PLAN, *pictures)


def _of(subject: Subject) -> dict[str, Any]:
    return {"set": subject.distilled.digest, **subject.beside}


def _claim(output: Storage, job: EvaluationJob, subject: Subject) -> None:
    """Write what is asked of which set as ``job.yaml``; ``ConfigError`` if the folder is another run's."""
    stated = job.stated()
    text = as_yaml({**_of(subject), **{key: stated[key] for key in ASKED if key in stated}})
    claim_as(output, text, *_claimed(job, subject))


def run_stored(
    job: EvaluationJob, subject: Subject, plan: EvaluationPlan, tell: Callable[[str], None]
) -> Outcome:
    """Evaluate, write ``report.json`` and its pictures to the job's output (see :func:`place_of`),
    and track; return what is where.

    ``ConfigError`` if the output is that of another evaluation, or of a distillation.
    """
    tune_allocator()
    store, output = Store(job.store), Storage(place_of(job, subject))
    uri = job.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "none"
    with refusing():
        check_places(output, store.storage, uri)
    held, name = subject.data.inventory, f"evaluate {subject.name}"
    control = Control(show=True)
    with Lock(output, tell, control.stop):
        _claim(output, job, subject)
        tell(f"{subject.name}: {_count(subject.distilled)} at {subject.url}")
        for line in held.lines() if held is not None else ():
            tell(line)
        params = {**flatten(job.stated()), **protocol_params(plan)}
        tags = {"raydd.set": subject.distilled.digest, **run_tags(name, output, plan)}
        facts = {"verb": "evaluate", "name": subject.name, "dataset": subject.data.info.name}
        record_plan(output, store, plan.targets(), facts)
        tracker = Tracker(uri, job.tracking.experiment, name, output, params, tags)
        with Session(job.compute, subject.data, output, store, tracker, tell, control) as session:
            targets = plan.targets()
            report = session.finished(targets, lambda: session.report(plan, targets))
            places = session.write(report, {GRID: _picture(subject.distilled)})
            tracker.report(report, 0, picture=f"evaluation/{GRID}")
            tracker.artifacts(output, "evaluation")
            for file in places:
                if file.endswith(".png"):
                    tracker.picture(file.removesuffix(".png"), 0, output.get(file))
            places = {"report": join(output.url, "report.json"), **places, **tracker.places()}
        return Outcome(report, places).with_page(output)


def _picture(distilled: DistilledSet) -> bytes:
    """Return a picture of a set: the first images of its first classes, as a large set would fill the memory."""
    return png(picture_of(distilled, images=SHOWN))
