"""Where a sweep is, from its output folder alone; reads a few files, writes none. Needs no torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raydd.artifacts.tables import Table, as_text
from raydd.core.errors import ConfigError, StorageError, TornFileError
from raydd.core.sealed import unseal
from raydd.core.storage import Storage, join
from raydd.runtime.lock import alive, read_lock
from raydd.search.trials import Trial, TrialJournal, number, ranked

REPORT = "sweep.json"
NEEDED = (
    *("job", "metric", "mode", "split", "keys", "select"),
    *("tested", "wanted", "ended", "notes", "trouble"),
)
"""What is read of it."""
SHOWN = 12
"""Trials that are listed, at most: those that run, then the best."""


@dataclass(frozen=True)
class SweepStatus:
    """What ``sweep.json`` says of a sweep, its trials as the journal has them now, and how it stands in a word."""

    output: Storage
    facts: Mapping[str, Any]
    trials: tuple[Trial, ...]
    state: str
    lock: Mapping[str, Any] | None
    now: float


def is_sweep(output: Storage) -> bool:
    """Return whether an output is a sweep's that has begun."""
    try:
        return output.exists(REPORT)
    except StorageError:
        return False


def sweep_status(output: Storage) -> SweepStatus:
    """Return where a sweep is; ``ConfigError`` for files that are torn or another version's."""
    try:
        facts = unseal(output.get(REPORT), join(output.url, REPORT))
        facts = {name: facts[name] for name in NEEDED}
        settled = bool(facts["tested"]) or not facts["select"]
    except (TornFileError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"output: {join(output.url, REPORT)} is torn, or of another version ({error})"
        ) from error
    trials = tuple(TrialJournal(output).read())
    lock, now = read_lock(output), time.time()
    if lock is not None and alive(lock, now):
        state = "running"
    elif facts["trouble"]:
        state = "failed"
    else:
        state = "finished" if settled and facts["ended"] else "unfinished"
    return SweepStatus(output, facts, trials, state, lock, now)


def as_dict(status: SweepStatus) -> dict[str, Any]:
    """Return a status as JSON values; times in seconds since 1970."""
    best = _best(status)
    lock = status.lock
    return {
        "output": status.output.url,
        "name": status.facts["job"],
        "verb": "sweep",
        "state": status.state,
        "now": round(status.now, 3),
        "lock": None if lock is None else {k: v for k, v in lock.items() if k != "token"},
        "metric": status.facts["metric"],
        "split": status.facts["split"],
        "trials": {"wanted": status.facts["wanted"], **_counts(status)},
        "best": None if best is None else _trial_values(best),
        "running": [_trial_values(trial) for trial in status.trials if not trial.ended],
        "tested": status.facts["tested"],
        "notes": list(status.facts["notes"]),
        "trouble": status.facts["trouble"],
    }


def _counts(status: SweepStatus) -> dict[str, int]:
    found = Counter(trial.state for trial in status.trials)
    return {state: found[state] for state in ("finished", "pruned", "failed", "same", "running")}


def _best(status: SweepStatus) -> Trial | None:
    best = ranked(status.trials, status.facts["mode"])
    return best[0] if best else None


def _trial_values(trial: Trial) -> dict[str, Any]:
    last = trial.judged[-1] if trial.judged else None
    return {
        "trial": trial.number,
        "values": dict(trial.values),
        "value": trial.value,
        "error": trial.error,
        "attempts": trial.attempts,
        "started": trial.started or None,
        "snapshot": None if last is None else {"updates": last.step, "accuracy": last.value},
    }


def as_lines(status: SweepStatus) -> list[str]:
    """Return a status as lines for a person."""
    facts, counts = status.facts, _counts(status)
    lines = [f"{facts['job']} (sweep): {_how(status)}", status.output.url, ""]
    ended = ", ".join(
        f"{counts[s]} {s}" for s in ("finished", "pruned", "failed", "same") if counts[s]
    )
    running = "not ended" if status.state != "running" else "running"
    lines.append(
        f"trials: {ended or 'none ended'}, {counts['running']} {running}; wanted: {facts['wanted']}"
    )
    best = _best(status)
    if best is not None and facts["select"]:
        lines.append(
            f"best: trial {best.number}, {facts['metric']} ({facts['split']}) {_value(best)}"
        )
    shown = _shown(status)
    if shown:
        names = list(facts["keys"])
        header = ["trial", *names, "state", facts["metric"]]
        rows = [_row(trial, names, status) for trial in shown]
        lines += ["", *as_text(Table("", header, rows))]
        left = len(status.trials) - len(shown)
        if left:
            lines.append(f"and {left} more")
    for one in facts["tested"]:
        beside = f" (beside {one['beside']})" if one["beside"] else ""
        lines.append(
            f"tested: {one['set']}{beside}  {one['accuracy_mean']:.2f} ± {one['accuracy_std']:.2f} %"
            f" ({one['protocol']}, {one['network']})"
        )
    return [*lines, *(f"note: {note}" for note in facts["notes"])]


def _how(status: SweepStatus) -> str:
    lock = status.lock
    if status.state == "running" and lock is not None:
        return f"running, process {lock.get('pid')} on {lock.get('host')} holds the lock"
    if status.state == "unfinished":
        return "unfinished, and no process works on it; the same command goes on from here"
    if status.state == "failed":
        return f"failed: {status.facts['trouble']}"
    return "finished"


def _shown(status: SweepStatus) -> list[Trial]:
    running = [trial for trial in status.trials if not trial.ended]
    best = ranked(status.trials, status.facts["mode"])
    rest = [trial for trial in status.trials if trial.ended and trial not in best]
    return [*running, *best, *rest][:SHOWN]


def _row(trial: Trial, names: list[str], status: SweepStatus) -> list[str]:
    state: str = trial.state
    if not trial.ended:
        state = "running" if status.state == "running" else "not ended"
        if trial.started and status.state == "running":
            state += f" for {max(0.0, status.now - trial.started):.0f} s"
    elif trial.same is not None:
        state = f"same as {trial.same}"
    values = [_short(trial.values[name]) if name in trial.values else "–" for name in names]
    return [str(trial.number), *values, state, _value(trial)]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value(trial: Trial) -> str:
    if trial.value is None and trial.judged:
        return f"{trial.judged[-1].value:.4g} after {trial.judged[-1].step}"
    return number(trial)
