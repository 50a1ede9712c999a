"""The page of a run: headline, results, pictures, curves, recipe, plan, environment. Pure functions of what it left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydd.artifacts.rendering import (
    context,
    format_bytes,
    format_seconds,
    further_tables,
    random_beside,
    remarks,
    rows_table,
    signed,
    size_of,
)
from raydd.artifacts.report import Report, Row, reference
from raydd.artifacts.run_folder import RunFolder
from raydd.artifacts.standing import Standing, accuracies
from raydd.artifacts.tables import Table, continual_context, spread
from raydd.pages.axes import Axis
from raydd.pages.blocks import (
    Section,
    Shown,
    bullets,
    details,
    facts,
    figure,
    note,
    paragraph,
    picture,
    section,
    slider,
    subsection,
    table,
)
from raydd.pages.document import document
from raydd.pages.html import Html, element, joined
from raydd.pages.page_pictures import fitting
from raydd.pages.per_byte_chart import per_byte_figure
from raydd.pages.plots import Series, line_chart, series_table
from raydd.pages.run_curves import logged_curves


@dataclass(frozen=True)
class RunFacts:
    """What a page shows of a run: its folder, how far it is, its pictures (over the updates, the
    last one the set as published), those beside them, the published set's recipe, and how it stands
    in a word: ``finished``, ``running``, ``stopped``, ``failed`` or ``unfinished``.
    """

    folder: RunFolder
    standing: Standing
    pictures: Sequence[Shown] = ()
    beside: Sequence[Shown] = ()
    recipe: Mapping[str, Any] | None = None
    state: str = "finished"
    made: str = ""


def run_page(run: RunFacts) -> str:
    """Return the page of a run as one HTML file; of an unfinished one with what there is."""
    made = f"Written by raydd {run.made}." if run.made else "Written by raydd."
    parts = [
        _results(run),
        _pictures(run),
        _curves(run),
        _recipe(run),
        _plan(run),
        _surroundings(run),
    ]
    shown = [part for part in parts if part is not None]
    return document(_title(run), _lead(run), shown, paragraph(made))


def _title(run: RunFacts) -> str:
    kind = "evaluation of " if run.folder.verb == "evaluate" else ""
    return f"{kind}{run.folder.name}"


def _what(run: RunFacts) -> str:
    """Return what the run is, in a line: method, data set, size."""
    job, report = run.folder.job, run.folder.report
    plan = run.folder.plan or {}
    data = job.get("dataset")
    name = (
        report.dataset
        if report
        else plan.get("dataset") or (data.get("name", "") if isinstance(data, Mapping) else "")
    )
    method = job.get("method")
    by = f", distilled by {method.get('name')}" if isinstance(method, Mapping) else ""
    ipc = job.get("ipc")
    size = size_of(report) if report else f"{ipc} images per class" if ipc else ""
    return ", ".join(part for part in (str(name), size) if part) + by


def _lead(run: RunFacts) -> Html:
    parts = [element("p", _what(run), class_="lead")]
    said = _unfinished(run)
    if said:
        parts.append(note(said))
    parts += [note(line) for line in run.folder.notes]
    report = run.folder.report
    if report is not None and report.rows:
        parts.append(_headline(report))
    return joined(*parts)


def _unfinished(run: RunFacts) -> str:
    if run.state == "finished":
        return ""
    standing = run.standing
    done = sum(stage.done for stage in standing.stages.values())
    total = sum(stage.total for stage in standing.stages.values())
    far = f"{done} of {total} units are done" if standing.planned else f"{done} units are done"
    ended = standing.ended or {}
    why = f": {ended['text']}" if run.state == "failed" and ended.get("text") else ""
    earlier = " What is shown as the result is of an earlier run." if run.folder.report else ""
    return f"This run is not finished ({run.state}{why}). {far}; this page shows what there is.{earlier}"


def _headline(report: Report) -> Html:
    own = report.rows[0]
    random = random_beside(report, own)
    under = f"{own.protocol}, {own.network}, {report.split} split, {_repeats(own, 'seed')}"
    tiles = [
        (f"{spread(own.accuracy_mean, own.accuracy_std)} %", f"accuracy of {own.set} ({under})")
    ]
    if random is not None and random is not own:
        alike = "same protocol" if random.protocol == own.protocol else "as many updates"
        like = "of the same bytes, coded alike" if own.coding else "of the same number"
        tiles.append(
            (
                f"{spread(random.accuracy_mean, random.accuracy_std)} %",
                f"random images {like} ({alike}, {_repeats(random, 'draw')})",
            )
        )
        gain = signed(own.accuracy_mean - random.accuracy_mean)
        tiles.append((f"{gain} points", "of this set over random images"))
    elif own.set != "random":
        tiles.append(("not run", "random images of the same number: this accuracy has no baseline"))
    cost = f", made in {format_seconds(own.device_seconds)} of one device"
    made = cost if own.device_seconds is not None else ""
    held = "all that is stored" if own.further_bytes else "images and labels"
    tiles.append((format_bytes(own.bytes), f"{held}{made}"))
    items = [
        element("li", element("span", v, class_="value"), element("span", w, class_="what"))
        for v, w in tiles
    ]
    return element("ul", *items, class_="figures")


def _repeats(row: Row, word: str) -> str:
    """Return what an accuracy is over: ``1 seed × 5 networks``."""
    pairs = ((row.seeds, word), (row.networks, "network"))
    return " × ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in pairs)


def _results(run: RunFacts) -> Section | None:
    report = run.folder.report
    if report is None or not report.rows:
        return None
    parts = [
        table(rows_table(report), caption=context(report)),
        bullets(remarks(report)),
        *(joined(table(one)) for one in further_tables(report)),
    ]
    parts.append(per_byte_figure(report))
    if report.continual:
        parts.append(_continual(report))
    if report.trainings:
        lines = bullets(training.text() for training in report.trainings)
        parts.append(subsection("What the protocols come to", lines))
    if report.inventory:
        parts.append(details("What was read as the data set", facts(report.inventory)))
    return section("Results", *parts)


def _continual(report: Report) -> Html:
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in report.continual:
        found.setdefault(row.set, []).append((row.classes, row.accuracy_mean, row.accuracy_std))
    series = [
        Series(name, [(a, b) for a, b, _ in rows], [s for _, _, s in rows])
        for name, rows in found.items()
    ]
    x, y = Axis(label="classes seen"), Axis(label=f"accuracy, % ({report.split} split)")
    title = "Continual learning: accuracy on the classes seen so far"
    said = f"{title}. {', '.join(continual_context(report))}; the band is one standard deviation."
    chart = line_chart(series, x, y, title=title, description=", ".join(continual_context(report)))
    return figure(chart, said)


def _pictures(run: RunFacts) -> Section | None:
    if not run.pictures:
        return None
    shown, left_out = fitting(run.pictures)
    parts = [slider("Updates", shown)]
    if left_out:
        parts.append(note(left_out))
    parts += map(picture, run.beside)
    return section("Pictures", *parts)


def _curves(run: RunFacts) -> Section | None:
    parts = [chart for chart in (_accuracy_curve(run),) if chart]
    parts += logged_curves(run.folder.plan or {}, run.folder.log)
    return section("Curves", *parts) if parts else None


def _accuracy_curve(run: RunFacts) -> Html:
    """Return the accuracy of snapshots over the updates: of the report, or, before there is one, of the log."""
    report, levels = run.folder.report, {}
    points = [
        (step, values.get("accuracy_mean", 0.0), values.get("accuracy_std", 0.0))
        for step, values in accuracies(run.folder.log)
    ]
    split = "test"
    if report is not None and report.curve:
        points = [(p.step, p.accuracy_mean, p.accuracy_std) for p in report.curve]
        found = {name: reference(report, name) for name in ("random", "whole")}
        levels = {name: value for name, value in found.items() if value is not None}
        split = report.split
    if not points:
        return Html("")
    series = [Series("", [(a, b) for a, b, _ in points], [s for _, _, s in points])]
    x, y = Axis(label="updates of the images"), Axis(label=f"accuracy, % ({split} split)")
    protocol = report.curve_protocol if report is not None else ""
    caption = "Accuracy of the set over the updates" + (f", {protocol}" if protocol else "")
    if levels:
        caption += (
            f"; beside it {' and '.join(f'{name} ({v:.1f} %)' for name, v in levels.items())}"
        )
    chart = line_chart(series, x, y, title="Accuracy over the updates", levels=levels)
    return figure(chart, f"{caption}.", series_table(series, x, y, title=caption))


_PLACES = ("output", "store", "compute", "tracking")


def _recipe(run: RunFacts) -> Section | None:
    job, recipe = run.folder.job, run.recipe or {}
    parts = []
    method = job.get("method")
    if isinstance(method, Mapping):
        ipc = {"ipc": job["ipc"]} if "ipc" in job else {}
        parts.append(subsection("Method", facts({**_stated(method), **ipc})))
    settled = recipe.get("settled")
    if isinstance(settled, Mapping) and settled:
        parts.append(subsection("What the job leaves open came to", facts(settled)))
    for title, key in (
        ("Evaluation", "evaluation"),
        ("Data set", "dataset"),
        ("Numerics", "numerics"),
    ):
        values = job.get(key)
        if isinstance(values, Mapping) and _stated(values):
            parts.append(subsection(title, facts(_stated(values))))
    sources = recipe.get("source")
    if isinstance(sources, Mapping) and sources:
        parts.append(subsection("Digests of the data", facts(sources)))
    return section("Recipe", *parts) if parts else None


def _stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is set, without what is null or empty."""
    return {key: value for key, value in values.items() if value not in (None, [], {}, "")}


def _plan(run: RunFacts) -> Section | None:
    stages = list(run.standing.stages.values())
    if not stages:
        return None
    lines = []
    for stage in stages:
        here = [unit for unit in stage.units if unit.done and not unit.reused]
        kinds = [f"{kind} ({count})" for kind, count in stage.devices().items()]
        each = stage.seconds / max(1, sum(unit.done for unit in stage.units))
        lines.append(
            [
                stage.name,
                f"{stage.done} of {stage.total}",
                str(len(here)),
                str(stage.reused),
                f"{stage.steps:,}",
                format_seconds(stage.seconds) if stage.seconds else "–",
                format_seconds(each) if stage.seconds else "–",
                ", ".join(kinds) or "–",
                _some(stage.workers()),
            ]
        )
    header = ["stage", "units done", "by this job", "reused", "updates", "device time", "per unit"]
    header += ["devices (units)", "workers"]
    caption = (
        "Stages and their units: computed by this job, or reused from the store, where another job left them. Device"
        " time is of all that are there, whoever computed them."
    )
    parts = [table(Table(caption, header, lines))]
    needless = sum(unit.needless for unit in run.standing.units)
    if needless:
        units = "units were" if needless != 1 else "unit was"
        parts.append(
            paragraph(f"{needless} {units} not needed, as what is made of them was in the store.")
        )
    return section("Plan", *parts)


def _some(names: Sequence[str], most: int = 6) -> str:
    if not names:
        return "–"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _surroundings(run: RunFacts) -> Section:
    log, recipe = run.folder.log, run.recipe or {}
    begun = [record for record in log if record["kind"] == "run"]
    last = begun[-1] if begun else {}
    times = [str(record["time"]) for record in log if record.get("time")]
    job = run.folder.job
    compute = job.get("compute")
    values: dict[str, Any] = {
        "state": run.state,
        "device": _device(run),
        "git commit": last.get("git_commit") or recipe.get("git_commit"),
        "versions": last.get("versions") or recipe.get("versions") or {},
        "first line of the log": _readable(times[:1]),
        "last line of the log": _readable(times[-1:]),
        "runs": len(begun) or None,
        "workers": compute.get("workers") if isinstance(compute, Mapping) else None,
        "output": run.folder.output.url,
        "store": job.get("store") or (run.folder.plan or {}).get("store"),
    }
    messages = [str(r.get("text", "")) for r in log if r["kind"] in ("message", "failed")]
    parts: list[Html] = [
        facts({key: value for key, value in values.items() if value not in (None, "", {})})
    ]
    if messages:
        parts.append(details(f"Messages ({len(messages)})", bullets(_last(messages))))
    return section("Environment", *parts)


def _device(run: RunFacts) -> str:
    report = run.folder.report
    if report is not None and report.device:
        return report.device
    kinds: dict[str, int] = {}
    for stage in run.standing.stages.values():
        for kind, count in stage.devices().items():
            kinds[kind] = kinds.get(kind, 0) + count
    return ", ".join(kinds)


def _last(messages: Sequence[str], most: int = 50) -> Iterable[str]:
    left = len(messages) - most
    return [*([f"({left} earlier ones are in the log)"] if left > 0 else []), *messages[-most:]]


def _readable(times: Sequence[str]) -> str:
    """Return a log's time without fractions of a second."""
    return times[0].split(".")[0].replace("T", " ") + " UTC" if times else ""
