"""Trials and what is kept of them: one JSON object each, in the sweep's output, written whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raydd.core.errors import ConfigError, TornFileError
from raydd.core.json_text import parse_json
from raydd.core.sealed import seal, unseal
from raydd.core.storage import Storage

State = Literal["running", "finished", "pruned", "failed", "same"]
FOLDER = "journal"
ELAPSED = f"{FOLDER}/elapsed.json"


@dataclass(frozen=True)
class Judged:
    """A snapshot's accuracy and what was decided on it. ``order``: its place among all trials' reports."""

    order: int
    step: int
    value: float
    stopped: bool


@dataclass
class Trial:
    """One trial. ``values``: what it sets; ``origin``: who proposed it.

    ``value``, ``error``: of the metric, and its standard error; of a pruned trial the last snapshot's.
    ``same``: the number of the trial that set the same before. ``computed``, ``reused``: units that
    it computed, and found in the store; ``seconds_computed``, ``seconds_reused``: their device-seconds.
    ``clock``: seconds by the clock, over all attempts; ``started``: seconds since 1970.
    """

    number: int
    values: Mapping[str, Any]
    origin: str
    state: State = "running"
    value: float | None = None
    error: float | None = None
    reason: str = ""
    same: int | None = None
    judged: list[Judged] = field(default_factory=list)
    computed: int = 0
    reused: int = 0
    seconds_computed: float = 0.0
    seconds_reused: float = 0.0
    clock: float = 0.0
    started: float = 0.0
    attempts: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.state != "running"

    def to_json(self) -> bytes:
        """Return the trial as JSON."""
        return seal((json.dumps(dataclasses.asdict(self), allow_nan=False) + "\n").encode())

    @classmethod
    def from_json(cls, text: bytes) -> Trial:
        """Return the trial of a JSON object; ``ValueError`` or ``TypeError`` for another's, ``TornFileError``
        for one that is torn.
        """
        tree = unseal(text, "trial")
        judged = [Judged(**one) for one in tree.pop("judged")]
        return cls(**tree, judged=judged)


class TrialJournal:
    """The trials of a sweep as its output has them."""

    def __init__(self, output: Storage) -> None:
        self.output = output

    def read(self) -> list[Trial]:
        """Return all trials, by number; ``ConfigError`` for an object that is none."""
        found = []
        for path in self.output.list(FOLDER):
            if not path.endswith(".json") or path == ELAPSED:
                continue
            try:
                found.append(Trial.from_json(self.output.get(path)))
                if found[-1].number != int(path.rsplit("/", 1)[-1].removesuffix(".json")):
                    raise ValueError(f"it holds trial {found[-1].number}")
            except (TornFileError, ValueError, TypeError, KeyError) as error:
                raise ConfigError(
                    f"{self.output.url}/{path} is torn, or no trial of this version ({error}); choose another output"
                    " with the same store, where all finished units are"
                ) from error
        found.sort(key=lambda trial: trial.number)
        if [trial.number for trial in found] != list(range(len(found))):
            raise ConfigError(
                f"{self.output.url}/{FOLDER}: trials are missing before others that are there; choose another output"
            )
        return found

    def write(self, trial: Trial) -> None:
        """Keep a trial as it is now."""
        self.output.put(f"{FOLDER}/{trial.number:04d}.json", trial.to_json())

    def elapsed(self) -> float:
        """Return the seconds that earlier runs of the sweep took, as far as they were noted."""
        try:
            return float(parse_json(self.output.get(ELAPSED)))
        except (FileNotFoundError, ValueError, TypeError):
            return 0.0

    def note_elapsed(self, seconds: float) -> None:
        """Note what the sweep's runs took so far."""
        self.output.put(ELAPSED, json.dumps(seconds).encode())


def ranked(trials: Sequence[Trial], mode: str) -> list[Trial]:
    """Return the finished trials, best first; of equal ones the earlier."""
    done = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    sign = -1.0 if mode == "max" else 1.0
    return sorted(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def number(trial: Trial) -> str:
    """Return a trial's value and its standard error as a text."""
    if trial.value is None:
        return "–"
    return f"{trial.value:.4g}" + (f" ± {trial.error:.2g}" if trial.error is not None else "")
