"""What a sweep found: its trials as a table, as CSV and as JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydd.search.domains import label
from raydd.search.space import Space
from raydd.search.trials import Trial, number, ranked


@dataclass(frozen=True)
class Tested:
    """A set as it was tested in the end: percent, over ``students``, under one protocol.

    ``set``: ``best``, ``job`` (the job's own values), ``refit``, or ``random`` beside one of
    them, whose name is ``beside``.
    """

    set: str
    beside: str
    trial: int | None
    protocol: str
    network: str
    accuracy_mean: float
    accuracy_std: float
    students: int


@dataclass(frozen=True)
class SweepReport:
    """All that a sweep found. ``keys``: searched keys and their values as texts; ``winner``: the
    best trial's number; ``shared``: what trials did not have to compute; ``seconds``: by the clock;
    ``environment``: what ran it, versions say. ``wanted``: how many trials, in words; ``ended``:
    whether there are that many; ``marked``: the trial whose run MLflow has marked as the winner's;
    ``trouble``: why the sweep gave up.
    """

    name: str
    job: str
    metric: str
    mode: str
    search: str
    scheduler: str
    keys: Mapping[str, str]
    logarithmic: Sequence[str]
    split: str
    trials: Sequence[Trial]
    winner: int | None
    select: bool = True
    tested: Sequence[Tested] = ()
    shared: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    environment: Mapping[str, Any] = field(default_factory=dict)
    wanted: str = ""
    ended: bool = False
    marked: int | None = None
    trouble: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"kind": "sweep", **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> SweepReport:
        """Return the report of JSON values; ``KeyError`` or ``TypeError`` for another version's."""
        import json

        values = {key: value for key, value in tree.items() if key != "kind"}
        values["trials"] = [Trial.from_json(json.dumps(one).encode()) for one in values["trials"]]
        values["tested"] = [Tested(**one) for one in values["tested"]]
        return cls(**values)

    def with_trials(self, trials: Sequence[Trial]) -> SweepReport:
        """Return the same with the trials as a journal has them now, where it knows as many."""
        if len(trials) < len(self.trials):
            return self
        best = ranked(trials, self.mode)
        winner = best[0].number if best and self.select else None
        return dataclasses.replace(self, trials=trials, winner=winner)

    def best_so_far(self) -> list[tuple[int, float]]:
        """Return the best value after each finished trial, in the order of numbers."""
        found: list[tuple[int, float]] = []
        for trial in self.trials:
            if trial.state == "finished" and trial.value is not None:
                before = found[-1][1] if found else trial.value
                best = max if self.mode == "max" else min
                found.append((trial.number, best(before, trial.value)))
        return found


def shared_of(trials: Sequence[Trial], first: int, first_seconds: float) -> dict[str, float]:
    """Return what was shared: units (and device-seconds) computed before the trials, by them, and found by them."""
    own = [trial for trial in trials if trial.same is None]
    return {
        "first": first,
        "first_seconds": first_seconds,
        "computed": sum(trial.computed for trial in own),
        "computed_seconds": sum(trial.seconds_computed for trial in own),
        "reused": sum(trial.reused for trial in own),
        "reused_seconds": sum(trial.seconds_reused for trial in own),
        "same": sum(trial.same is not None for trial in trials),
    }


def shared_line(shared: Mapping[str, float]) -> str:
    """Return a sentence about :func:`shared_of`."""
    wanted = shared["computed"] + shared["reused"]
    share = 100 * shared["reused"] / wanted if wanted else 0.0
    text = (
        f"shared: {shared['first']:.0f} units computed for all trials together ({shared['first_seconds']:.0f}"
        f" device-seconds); of {wanted:.0f} units that trials needed, {shared['reused']:.0f} ({share:.0f} %) were in"
        f" the store ({shared['reused_seconds']:.0f} device-seconds not spent again)"
    )
    if shared["same"]:
        text += f"; {shared['same']:.0f} trials set what another one had set"
    return text


def order(report: SweepReport) -> list[Trial]:
    """Return the trials as a table has them: the best first where one is selected, else by number."""
    if not report.select:
        return list(report.trials)
    best = ranked(report.trials, report.mode)
    rest = [trial for trial in report.trials if trial not in best]
    return [*best, *rest]


def short(value: Any) -> str:
    """Return a value for the eye: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else label(value)


def outcome(trial: Trial, metric: str) -> str:
    """Return what came of a trial, as a text."""
    if trial.same is not None:
        return f"same as trial {trial.same}" + (
            f": {number(trial)}" if trial.value is not None else ""
        )
    if trial.state == "finished":
        return number(trial)
    if trial.state == "pruned":
        return f"{number(trial)}, {trial.reason}"
    return trial.state + (f": {trial.reason.splitlines()[0]}" if trial.reason else "")


def table(report: SweepReport) -> str:
    """Return the trials, and the tests in the end, as text."""
    names = list(report.keys)
    heading = f"{report.metric} ({report.split})"
    head = ["trial", *names, heading, "device s", "computed", "found", "from"]
    lines = [
        [
            str(trial.number) + ("*" if trial.number == report.winner else ""),
            *(short(trial.values[key]) if key in trial.values else "–" for key in names),
            outcome(trial, report.metric),
            f"{trial.seconds_computed:.1f}",
            str(trial.computed),
            str(trial.reused),
            trial.origin,
        ]
        for trial in order(report)
    ]
    text = _aligned([head, *lines])
    told = [text, ""]
    if any(trial.error is not None for trial in report.trials):
        told.append("±: standard error over students")
    if report.winner is not None and report.select:
        told.append(f"*: the best of {len(ranked(report.trials, report.mode))} finished trials")
    if report.tested:
        rows = [
            ["tested once, fresh students", "trial", "protocol", "network", "accuracy", "students"]
        ]
        rows += [
            [
                one.set if not one.beside else f"{one.set} (beside {one.beside})",
                "–" if one.trial is None else str(one.trial),
                one.protocol,
                one.network,
                f"{one.accuracy_mean:.2f} ± {one.accuracy_std:.2f}",
                str(one.students),
            ]
            for one in report.tested
        ]
        told += ["", _aligned(rows)]
    return "\n".join(told)


def sweep_note(report: SweepReport) -> list[str]:
    """Return a sweep's description in lines of Markdown; the first is its result."""
    done = ranked(report.trials, report.mode)
    ended = sum(trial.ended for trial in report.trials)
    over = ", ".join(f"`{key}`" for key in report.keys)
    best = next((one for one in report.tested if one.set == "best" and not one.beside), None)
    if best is not None:
        reached = f"{best.accuracy_mean:.1f} ± {best.accuracy_std:.1f} %"
        result = f"**{reached}** on test: trial {best.trial}, {best.protocol}"
    elif done and report.select:
        result = (
            f"**{number(done[0])}** {report.metric} ({report.split}) so far: trial {done[0].number}"
        )
    else:
        result = f"{len(done)} finished trials"
    lines = [f"{result}; {ended} trials ended, over {over}", ""]
    if report.tested:
        lines += ["| tested | trial | network | accuracy, % | students |", "|---|--:|---|--:|--:|"]
        for one in report.tested:
            name = one.set if not one.beside else f"{one.set} (beside {one.beside})"
            spread = f"{one.accuracy_mean:.2f} ± {one.accuracy_std:.2f}"
            of = "–" if one.trial is None else str(one.trial)
            lines.append(f"| {name} | {of} | {one.network} | {spread} | {one.students} |")
        lines.append("")
    heads = [f"`{key}`" for key in report.keys]
    lines.append(f"| trial | {' | '.join(heads)} | {report.metric} ({report.split}) |")
    lines.append("|--:|" + "---|" * len(heads) + "---|")
    for trial in order(report):
        values = [short(trial.values[key]) if key in trial.values else "–" for key in report.keys]
        cells = [str(trial.number), *values, outcome(trial, report.metric)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def place_of_test(number: int) -> str:
    """Return the folder of a trial's test below a sweep's output; a sweep that goes on may find another winner."""
    return f"tested/{number:04d}"


def to_csv(report: SweepReport) -> bytes:
    """Return a row for each trial."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    facts = (
        "state",
        "value",
        "error",
        "same",
        "reason",
        "origin",
        "seconds_computed",
        "seconds_reused",
    )
    counts = ("computed", "reused", "clock", "attempts")
    writer.writerow(["trial", *report.keys, *facts, *counts])
    for trial in report.trials:
        values = [label(trial.values[key]) if key in trial.values else "" for key in report.keys]
        rest = [getattr(trial, name) for name in (*facts, *counts)]
        writer.writerow([trial.number, *values, *("" if one is None else one for one in rest)])
    return out.getvalue().encode()


def importance_of(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Return how much each key matters (Optuna's PED-ANOVA), from ten finished trials on; else nothing."""
    done = [trial for trial in trials if trial.state == "finished"]
    if len(done) < 10 or len({trial.value for trial in done}) < 2 or len(space.keys) < 2:
        return {}
    import optuna

    from raydd.search.searchers import study_of

    try:
        found = optuna.importance.get_param_importances(study_of(space, trials))
    except (RuntimeError, ValueError):  # keys that no finished trial has in common
        return {}
    return {name: float(share) for name, share in found.items()}
