"""What a person sees while a job runs: bars in a terminal, a line now and then anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from raydd.core.events import Event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

LINE_SECONDS = 10.0
"""Outside a terminal, a stage's line comes at most this often, and when it is done."""


def clock(seconds: float) -> str:
    """Return a duration in seconds as ``00:42``, ``12:03`` or ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def _redirect_logging(before: Any, now: Any) -> list[tuple[logging.StreamHandler[Any], Any]]:
    """Send what is logged to ``before`` to ``now``, which prints above the bars; return what was changed."""
    found = [
        h
        for h in logging.getLogger().handlers
        if isinstance(h, logging.StreamHandler) and h.stream is before
    ]
    for handler in found:
        handler.setStream(now)
    return [(handler, before) for handler in found]


@dataclass
class _Stage:
    """How far the units of a stage are; ``fresh`` counts the steps made in this run, for the rate."""

    label: str
    steps: dict[str, int] = field(default_factory=dict)
    at: dict[str, int] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    cached: set[str] = field(default_factory=set)
    fresh: int = 0
    shown: int = 0
    begun: float | None = None
    loss: float | None = None

    def take(self, event: Event, now: float) -> None:
        """Note an event of one of the stage's units."""
        key, total = event.key, self.steps[event.key]
        if event.kind == "start" and self.begun is None:
            self.begun = now
        reached = event.t
        if event.kind == "output":
            reached = total if event.output == "final" else int(event.output.removeprefix("step-"))
            if event.output == "final":
                self.done.add(key)
                if event.cached:
                    self.cached.add(key)
        if event.kind != "start":
            # A resumed unit's first report holds what an earlier run did: it tells nothing of this run's pace.
            earlier = event.cached or (key not in self.at and event.kind != "output")
            before = self.at.get(key, 0)
            self.at[key] = max(before, min(reached, total))
            self.fresh += 0 if earlier else self.at[key] - before
        losses = [row["loss"] for _, row in event.rows if "loss" in row]
        self.loss = losses[-1] if losses else self.loss

    @property
    def made(self) -> int:
        """Steps made, over all units."""
        return sum(self.at.values())

    @property
    def total(self) -> int:
        """Steps to make, over all units."""
        return sum(self.steps.values())

    @property
    def complete(self) -> bool:
        """Whether every unit is done."""
        return len(self.done) == len(self.steps)

    def eta(self, now: float) -> float | None:
        """Return the seconds left at this run's pace, ``None`` before there is one."""
        if self.begun is None or self.fresh <= 0 or now <= self.begun:
            return None
        return (self.total - self.made) * (now - self.begun) / self.fresh

    def facts(self, now: float) -> list[str]:
        """Return units, loss and time left as short texts."""
        parts = [f"{len(self.done)}/{len(self.steps)} units"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        left = self.eta(now)
        if left is not None and not self.complete:
            parts.append(f"eta {clock(left)}")
        return parts


class Progress:
    """Shows a run's events; ``plan`` lists ``(stage, key, updates)`` of every unit that may be computed.

    A stage is shown from its first event on: what the store makes needless never appears.
    ``console`` is rich's (default: standard output); outside a terminal the lines are plain text.
    ``now`` gives the time in seconds.
    """

    def __init__(
        self,
        plan: Sequence[tuple[str, str, int]],
        console: Console | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console

        self.console = console or Console()
        self._now = now
        self._stages: dict[str, _Stage] = {}
        self._of: dict[str, _Stage] = {}
        for label, key, steps in plan:
            stage = self._stages.setdefault(label, _Stage(label))
            stage.steps[key] = max(1, steps)
            self._of[key] = stage
        self._begun = now()
        self._told: dict[str, float] = {}
        self._summed_up = False
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._redirected: list[tuple[logging.StreamHandler[Any], Any]] = []

    def __enter__(self) -> Progress:
        self._begun = self._now()
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            )
            self._bars = Bars(
                *columns,
                TextColumn("{task.fields[facts]}"),
                TimeElapsedColumn(),
                console=self.console,
                refresh_per_second=2,
            )
            self._bars.start()
            self._redirected = _redirect_logging(sys.__stderr__, sys.stderr)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sum_up()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            for handler, stream in self._redirected:
                handler.setStream(stream)
            return
        for stage in self._stages.values():
            if stage.label in self._told and stage.made != stage.shown:
                self._line(stage)

    def on_event(self, event: Event) -> None:
        """Show an event."""
        # What fails is told once, as the error that ends the run.
        if event.kind == "message":
            self.say(event.text)
            return
        if not event.cached:
            self._sum_up()
        stage = self._of.get(event.key)
        if stage is None:
            return
        was_complete = stage.complete
        stage.take(event, self._now())
        if self._bars is not None:
            self._draw(self._bars, stage)
        elif not event.cached:
            last = self._told.setdefault(stage.label, self._now())
            if (stage.complete and not was_complete) or self._now() - last >= LINE_SECONDS:
                self._line(stage)

    def _sum_up(self) -> None:
        """Say, once, what the store already held."""
        if self._summed_up:
            return
        self._summed_up = True
        for stage in self._stages.values():
            if stage.cached:
                self.say(
                    f"{stage.label}: {len(stage.cached)} of {len(stage.steps)} units already in the store"
                )

    def _line(self, stage: _Stage) -> None:
        now = self._now()
        self._told[stage.label], stage.shown = now, stage.made
        self.say(
            "  ".join(
                [
                    clock(now - self._begun),
                    stage.label,
                    f"{stage.made}/{stage.total} steps",
                    *stage.facts(now),
                ]
            )
        )

    def say(self, text: str) -> None:
        """Print a line for a person, above the bars; not from within a signal handler, which may
        have interrupted another line.
        """
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _draw(self, bars: Bars, stage: _Stage) -> None:
        from rich.markup import escape

        if stage.label not in self._tasks:
            self._tasks[stage.label] = bars.add_task(
                escape(stage.label), total=stage.total, facts=""
            )
        bars.update(
            self._tasks[stage.label],
            completed=stage.made,
            facts="  ".join(stage.facts(self._now())),
        )
