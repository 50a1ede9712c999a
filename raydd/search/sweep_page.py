"""The page of a sweep: winner and tests, what was searched, charts, all trials, how to use it. A pure function."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from raydd.artifacts.rendering import format_seconds, signed
from raydd.artifacts.tables import Table, spread
from raydd.core.errors import ConfigError
from raydd.core.yaml_tree import parse_yaml
from raydd.pages.blocks import (
    Section,
    Shown,
    bullets,
    details,
    facts,
    note,
    paragraph,
    picture,
    section,
    subsection,
    table,
)
from raydd.pages.document import document
from raydd.pages.html import Html, element, joined
from raydd.pages.svg import shortened
from raydd.search.domains import label
from raydd.search.results import SweepReport, Tested, order, shared_line, short
from raydd.search.sweep_charts import charts
from raydd.search.trials import Trial, number, ranked
from raydd.search.views import counted, metric_label

LISTED = 50
"""Trials that the table shows; the others are folded."""
_CELL, _REASON = 260.0, 430.0
"""How wide, in pixels, a value and a reason in a cell may be."""


@dataclass(frozen=True)
class SweepFacts:
    """What a page shows of a sweep: its report, the space file and the job as plain values (and what
    this has ``by_ipc``), where it lies, the text of ``best.yaml``, the best set's picture, and when
    the page was ``made``.
    """

    report: SweepReport
    space: Mapping[str, Any] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    by_ipc: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    best_job: str = ""
    picture: Shown | None = None
    made: str = ""


def sweep_page(sweep: SweepFacts) -> str:
    """Return the page of a sweep as one HTML file; of an unfinished one with what there is."""
    report = sweep.report
    parts = [
        _tests(sweep),
        _searched(sweep),
        _charts(report),
        _trials(report),
        _use(sweep),
        section("What was shared", paragraph(_capital(shared_line(report.shared)) + "."))
        if report.shared
        else None,
        _surroundings(sweep),
    ]
    made = f"Written by raydd {sweep.made}." if sweep.made else "Written by raydd."
    shown = [part for part in parts if part is not None]
    title = f"{report.job}: sweep {report.name}"
    return document(title, _lead(sweep), shown, paragraph(made))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# -- what comes first ------------------------------------------------------------------------------------------------


def _lead(sweep: SweepFacts) -> Html:
    report = sweep.report
    stops = "" if report.scheduler == "none" else f", stopped early by {report.scheduler}"
    what = (
        f"{counted(len(report.trials), 'trial')} over {counted(len(report.keys), 'key')},"
        f" proposed by {report.search}{stops}, ranked by {metric_label(report)}"
    )
    parts = [element("p", what, class_="lead")]
    parts += [note(line) for line in report.notes]
    if report.trouble:
        parts.append(note(f"The sweep gave up: {report.trouble}."))
    if report.select and report.winner is not None and not report.tested:
        parts.append(note("The winner is not tested: the sweep has not come to its end."))
    if not ranked(report.trials, report.mode):
        parts.append(note("No trial finished."))
    tiles = _tiles(report)
    items = [
        element("li", element("span", v, class_="value"), element("span", w, class_="what"))
        for v, w in tiles
    ]
    return joined(*parts, element("ul", *items, class_="figures") if items else "")


def _tiles(report: SweepReport) -> list[tuple[str, str]]:
    done = ranked(report.trials, report.mode)
    if not done:
        return []
    if not report.select:
        ends = f"{_value(done[-1], report)} to {_value(done[0], report)}"
        return [(ends, f"{metric_label(report)} of {counted(len(done), 'finished trial')}")]
    winner = next((trial for trial in done if trial.number == report.winner), done[0])
    error = f" ± {winner.error:.2g}" if winner.error is not None else ""
    of_students = ", ± its standard error" if error else ""
    chosen = "; as it was chosen by this value, it is a little too good" if len(done) > 1 else ""
    tiles = [
        (
            f"{_value(winner, report)}{error}{_unit(report)}",
            f"{report.metric} on {report.split} of trial {winner.number}{of_students}, the best of"
            f" {counted(len(done), 'finished trial')}{chosen}",
        )
    ]
    best = _tested(report, "best")
    if best is None:
        return tiles
    under = f"{best.protocol}, {best.network}, {counted(best.students, 'fresh student')}"
    tiles.append((f"{_accuracy(best)} %", f"test accuracy of its set ({under})"))
    own = _tested(report, "job")
    if own is not None:
        gain = signed(best.accuracy_mean - own.accuracy_mean)
        tiles.append(
            (f"{_accuracy(own)} %", f"test accuracy of the job's own values ({gain} points)")
        )
    elif report.winner == 0:
        tiles.append(("trial 0", "the job's own values are the best that was tried"))
    random = _tested(report, "random")
    if random is not None:
        tiles.append((f"{_accuracy(random)} %", "test accuracy of as many random images"))
    return tiles


def _value(trial: Trial, report: SweepReport) -> str:
    """Return a trial's value as it is said: accuracies with two digits, as the tests are."""
    if trial.value is None:
        return "–"
    return f"{trial.value:.2f}" if _unit(report) else short(trial.value)


def _unit(report: SweepReport) -> str:
    return " %" if "accuracy" in report.metric.partition("/")[0] else ""


def _accuracy(row: Tested) -> str:
    """Return a tested accuracy, with its deviation where there is more than one student."""
    if row.students < 2:
        return f"{row.accuracy_mean:.2f}"
    return spread(row.accuracy_mean, row.accuracy_std)


def _tested(report: SweepReport, name: str) -> Tested | None:
    return next((row for row in report.tested if row.set == name), None)


# -- sections --------------------------------------------------------------------------------------------------------


def _tests(sweep: SweepFacts) -> Section | None:
    rows = sweep.report.tested
    if not rows:
        return None
    lines = [
        [
            row.set if not row.beside else f"{row.set} (beside {row.beside})",
            "–" if row.trial is None else str(row.trial),
            row.protocol,
            row.network,
            _accuracy(row),
            str(row.students),
        ]
        for row in rows
    ]
    header = ["set", "trial", "protocol", "network", "accuracy, %", "students"]
    caption = (
        "Tested once, in the end, on the test set, with students that no trial had; ± is the standard deviation over"
        " students"
    )
    shown = [table(Table(caption, header, lines, left=4))]
    return section("Tests", *shown, picture(sweep.picture) if sweep.picture else None)


def _searched(sweep: SweepFacts) -> Section:
    report = sweep.report
    own = report.trials[0].values if report.trials and report.trials[0].origin == "job" else {}
    best = report.trials[report.winner].values if report.winner is not None else None
    header = ["key", "searched", "the job's own", *(["winner"] if best is not None else [])]
    lines = []
    for key, text in report.keys.items():
        chosen = [] if best is None else [_shown(best, key)]
        lines.append([key, text, _shown(own, key), *chosen])
    whens = {
        key: given["when"]
        for key, given in (sweep.space.get("keys") or {}).items()
        if isinstance(given, Mapping) and given.get("when")
    }
    parts = [table(Table("Keys that were searched", header, lines, left=4))]
    parts.append(
        bullets(f"{key} only counts with {_conditions(when)}" for key, when in whens.items())
    )
    parts.append(facts(_settings(sweep)))
    if sweep.space:
        parts.append(details("The space file", _code(_as_yaml(sweep.space))))
    if sweep.by_ipc:
        other = "What the job has for the images per class of other trials"
        parts.append(details(other, _code(_as_yaml(sweep.by_ipc))))
    return section("What was searched", *parts)


def _conditions(when: Any) -> str:
    if not isinstance(when, Mapping):
        return str(when)
    return ", ".join(f"{key} {label(value)}" for key, value in when.items())


def _settings(sweep: SweepFacts) -> dict[str, Any]:
    report, space = sweep.report, sweep.space
    budget = space.get("budget")
    limits = {k: v for k, v in budget.items() if v} if isinstance(budget, Mapping) else {}
    found: dict[str, Any] = {
        "search": report.search,
        "early stopping": report.scheduler,
        "metric": f"{metric_label(report)}, {'higher' if report.mode == 'max' else 'lower'} is better",
        "budget": limits,
        "seed": space.get("seed"),
        "seeds of each trial": space.get("seeds"),
        "held out of each class": space.get("holdout") if report.split == "holdout" else None,
        **_each(space.get("trial"), "in trials"),
        **_each(space.get("final"), "in the test"),
        "time": format_seconds(report.seconds) if report.seconds else None,
    }
    return {key: value for key, value in found.items() if value not in (None, {}, "")}


def _each(settings: Any, where: str) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        return {}
    return {f"{key} {where}": value for key, value in settings.items()}


def _shown(values: Mapping[str, Any], key: str) -> str:
    """Return a trial's value of a key for the eye: four digits, and not too long."""
    if key not in values:
        return "–"
    return shortened(short(values[key]), _CELL)


def _charts(report: SweepReport) -> Section | None:
    shown = charts(report)
    return section("Charts", *shown) if shown else None


def _trials(report: SweepReport) -> Section | None:
    if not report.trials:
        return None
    trials = order(report)
    parts = [_table(report, trials[:LISTED], "best first" if report.select else "by number")]
    if len(trials) > LISTED:
        rest = _table(report, trials[LISTED:], "the others")
        parts.append(details(f"The other {len(trials) - LISTED} trials", rest))
    failures = [trial for trial in report.trials if trial.state == "failed" and trial.reason]
    if failures:
        why = [
            subsection(f"Trial {trial.number}", _code(trial.reason)) for trial in failures[:LISTED]
        ]
        parts.append(details(f"Why trials failed ({len(failures)})", *why))
    return section("Trials", *parts)


def _table(report: SweepReport, trials: Sequence[Trial], what: str) -> Html:
    keys = [key for key in report.keys if any(key in trial.values for trial in trials)]
    header = ["trial", "outcome", metric_label(report), *keys]
    header += ["device-seconds", "units computed", "units found", "proposed by"]
    lines = [
        [
            f"{trial.number}{' (winner)' if trial.number == report.winner else ''}",
            _outcome(trial),
            number(trial),
            *(_shown(trial.values, key) for key in keys),
            short(round(trial.seconds_computed, 1)),
            str(trial.computed),
            str(trial.reused),
            trial.origin,
        ]
        for trial in trials
    ]
    errors = "; ± is the standard error over students" if any(t.error for t in trials) else ""
    return table(Table(f"Trials, {what}{errors}", header, lines, left=2))


def _outcome(trial: Trial) -> str:
    if trial.same is not None:
        return f"same as trial {trial.same}"
    lines = trial.reason.splitlines()
    text = trial.state + (f": {lines[0]}" if lines else "")
    return shortened(text.replace("pruned: stopped", "stopped early,"), _REASON)


def _use(sweep: SweepFacts) -> Section | None:
    report = sweep.report
    if report.winner is None or not report.select:
        return None
    values = report.trials[report.winner].values
    own = [shlex.quote(f"{key}={_override(value)}") for key, value in values.items()]
    job = f"{sweep.output}/refit.yaml" if sweep.output else "refit.yaml"
    parts = [
        paragraph("Distil anew with the winner's values, of all training images:"),
        _code(f"raydd distill --config {shlex.quote(job)}"),
        paragraph("Or set them in the job that was swept:"),
        _code(" \\\n  ".join(["raydd distill --config JOB.yaml", *own])),
    ]
    if sweep.best_job:
        parts.append(
            details("best.yaml: the job of the set that was tested", _code(sweep.best_job))
        )
    return section("Use it", *parts)


def _override(value: Any) -> str:
    """Return a value as ``key=value`` takes it, so that YAML reads the same."""
    text = label(value)
    try:
        same = not isinstance(value, str) or parse_yaml(text) == value
    except ConfigError:
        same = False
    return text if same else json.dumps(value)


def _code(text: str) -> Html:
    """Return a text as it is, to be copied."""
    return element("pre", element("code", text.rstrip()), tabindex="0")


def _as_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _surroundings(sweep: SweepFacts) -> Section:
    trials = sweep.report.trials
    devices = {str(t.facts["device"]): None for t in trials if t.facts.get("device")}
    found: dict[str, Any] = {
        "devices of trials": ", ".join(devices),
        **sweep.report.environment,
        "output": sweep.output,
        "store": sweep.job.get("store"),
    }
    return section(
        "Environment", facts({k: v for k, v in found.items() if v not in (None, "", {})})
    )
