"""What a person sees: plain lines outside a terminal, bars inside."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toys import Total, Walk

from raydd.core.events import Event
from raydd.core.store import Store
from raydd.core.units import Ref
from raydd.runtime.estimate import unit_table
from raydd.runtime.progress import Progress, clock
from raydd.runtime.runner import LocalRunner

MATCH = "distill/MatchDistributions"
PLAN = [
    (MATCH, "k0", 2000),
    (MATCH, "k1", 2000),
    ("evaluate/Student", "e0", 10),
    ("squeeze/Teacher", "s0", 5),
]


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def event(kind: Any, key: str = "k0", **facts: Any) -> Event:
    stage = next((label for label, known, _ in PLAN if known == key), "")
    return Event(kind=kind, stage=stage, unit=f"unit-{key}", key=key, **facts)


def plain() -> tuple[Progress, Time, io.StringIO]:
    out, time = io.StringIO(), Time()
    return Progress(PLAN, Console(file=out, width=60), now=time), time, out


def test_a_line_every_ten_seconds_says_how_far_a_stage_is() -> None:
    progress, time, out = plain()
    with progress:
        progress.on_event(event("start"))
        progress.on_event(event("output", output="final", t=2000))
        time.now += 9
        progress.on_event(event("progress", t=1, key="k1"))
        assert out.getvalue() == "", "not yet ten seconds"
        time.now += 21
        progress.on_event(event("log", key="k1", t=1001, rows=((1000, {"loss": 0.01234}),)))
        line = "00:30  distill/MatchDistributions  3001/4000 steps  1/2 units  loss 0.01234  eta 00:09\n"
        assert out.getvalue() == line, "one line, never wrapped"
        progress.on_event(event("progress", key="k1", t=1100))
        assert out.getvalue() == line
        time.now += 33
        progress.on_event(event("output", key="k1", output="final", t=2000))
        assert (
            out.getvalue()
            == line
            + "01:03  distill/MatchDistributions  4000/4000 steps  2/2 units  loss 0.01234\n"
        )
    assert out.getvalue().count("\n") == 2, "a stage that is done is not told again at the end"


def test_what_an_earlier_run_did_says_nothing_of_the_pace() -> None:
    progress, time, out = plain()
    with progress:
        progress.on_event(event("output", output="final", cached=True))
        progress.on_event(event("start", key="k1"))
        progress.on_event(event("progress", key="k1", t=1500))
        time.now += 50
        progress.on_event(event("progress", key="k1", t=1600))
        time.now += 1
        progress.on_event(event("progress", key="k1", t=1610))
    assert out.getvalue().splitlines() == [
        "distill/MatchDistributions: 1 of 2 units already in the store",
        "00:50  distill/MatchDistributions  3600/4000 steps  1/2 units  eta 03:20",
        "00:51  distill/MatchDistributions  3610/4000 steps  1/2 units  eta 03:00",
    ]


def test_messages_come_at_once_and_as_they_are_and_failures_are_left_to_the_error() -> None:
    progress, _, out = plain()
    with progress:
        progress.on_event(
            event(
                "message",
                key="",
                text="a [red]message[/red] of [1, 2] that is much longer than a narrow line",
            )
        )
        progress.on_event(event("failed", text="NumericsError: loss is nan"))
    assert out.getvalue().splitlines() == [
        "a [red]message[/red] of [1, 2] that is much longer than a narrow line",
    ]


def test_nothing_is_glued_to_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=120, color_system=None, _environ={"TERM": "xterm"}
    )
    handler = logging.StreamHandler(sys.__stderr__)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with Progress(PLAN, console) as progress:
        progress.on_event(event("start"))
        progress.on_event(event("progress", t=500))
        progress.say("SIGINT: saving the state")
        logging.getLogger("raydd").warning("a server is away")
    assert handler.stream is sys.__stderr__, "and is given back"
    for line in ("SIGINT: saving the state", "a server is away"):
        before, after = out.getvalue().split(line, 1)
        assert before.endswith("\r\x1b[2K") or before.endswith("\n"), (
            "the bar's line is cleared first"
        )
        assert after.startswith("\n")
        assert MATCH in after, "the bar comes back below"


def test_a_run_that_finds_everything_says_so() -> None:
    progress, _, out = plain()
    with progress:
        for key in ("k0", "k1"):
            progress.on_event(event("output", key=key, output="final", cached=True))
        progress.on_event(event("output", key="e0", output="step-000004", cached=True))
        progress.on_event(event("output", key="unknown", output="final", cached=True))
    assert out.getvalue() == "distill/MatchDistributions: 2 of 2 units already in the store\n"


def test_a_snapshot_moves_its_unit_and_resent_progress_does_not_move_it_back() -> None:
    progress, time, out = plain()
    with progress:
        progress.on_event(event("start"))
        progress.on_event(event("output", output="step-000500", t=500))
        progress.on_event(event("progress", t=40))
        time.now += 11
        progress.on_event(event("progress", t=45))
    assert "  500/4000 steps  0/2 units" in out.getvalue().splitlines()[0]


def test_bars_in_a_terminal() -> None:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=120, color_system=None, _environ={"TERM": "xterm"}
    )
    progress = Progress(PLAN, console)
    with progress:
        progress.on_event(event("output", output="final", cached=True))
        progress.on_event(event("start", key="k1"))
        progress.on_event(event("log", key="k1", t=500, rows=((499, {"loss": 0.5}),)))
        progress.on_event(event("message", key="", text="Ray is ready [8265]"))
        progress.on_event(event("output", key="e0", output="final", t=10))
    text = out.getvalue()
    final = text[text.rindex(MATCH) :]
    assert "distill/MatchDistributions: 1 of 2 units already in the store" in text
    assert "Ray is ready [8265]" in text
    assert "━" in final
    assert "2500/4000 steps" in final
    assert "1/2 units" in final
    assert "loss 0.5" in final
    assert "10/10 steps" in final
    assert "1/1 units" in final
    assert "squeeze/Teacher" not in text, "what is not needed never appears"


def test_a_dumb_terminal_gets_lines() -> None:
    out = io.StringIO()
    with Progress(
        PLAN, Console(file=out, force_terminal=True, _environ={"TERM": "dumb"})
    ) as progress:
        progress.on_event(event("output", key="e0", output="final", t=10))
    assert out.getvalue() == "00:00  evaluate/Student  10/10 steps  1/1 units\n"


def test_a_real_run_ends_with_every_unit_done(tmp_path: Path) -> None:
    refs = [Ref(Total(seed=0, walk=Walk(seed=1, count=2, updates=6)), "all")]
    store = Store(str(tmp_path))
    out = io.StringIO()
    with Progress(unit_table(refs), Console(file=out, width=200)) as progress:
        LocalRunner(dict).run(refs, store, progress.on_event)
    assert [line.split("  ", 1)[1] for line in out.getvalue().splitlines()] == [
        "distill/Walk  12/12 steps  2/2 units",
        "evaluate/Total  1/1 steps  1/1 units",
    ]


def test_durations_are_short() -> None:
    assert [clock(s) for s in (0, 42.9, 723, 3723, 100 * 3600)] == [
        "00:00",
        "00:42",
        "12:03",
        "1:02:03",
        "100:00:00",
    ]
