"""How the tests share three processes and what they cost: two clusters at a time, quick tests that are quick,
seconds of each folder ("room").
"""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

PROCESSES = 3
"""Two for what starts clusters and waits for them most of the time, one for all else."""
WITH_RAY = (
    "tests/integration/",
    "tests/runtime/test_ray_",
    "tests/test_plugins.py",
    "tests/reliability/test_on_ray",
)
"""What starts clusters: in two processes, of about equal length, so that no more than two start at once."""
SECOND = ("statistics_jobs", "s3", "sweep_runs", "places", "ray_")
"""Of these the second; its tests of S3 share a server, the first one's share a cluster."""

QUICK = 6.0
"""Seconds of processor time, beyond which a test has to be marked slow; the first of a file imports libraries, too."""

PATIENCE = 20.0
"""Seconds by the clock, beyond which it has to be, too: many, since a machine may do much else."""

RAY = "ray"
PROCESSOR = "processor_seconds"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rooms", action="store_true", help="print the seconds of each folder of tests"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return three, or none (the tests run in this process) where files or tests are named."""
    return 0 if all(".py" in argument for argument in config.args) else PROCESSES


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return what deals out whole files, so that a file's fixtures are made once; Ray's first, as the longest."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return room_of_process(nodeid)

    config.option.loadscopereorder = False  # the tests' own order: see below
    return Files(config, log)


def room_of_process(nodeid: str) -> str:
    """Return what a test shares a process with: its file, or half of what uses Ray."""
    file = nodeid.partition("::")[0]
    if not nodeid.startswith(WITH_RAY):
        return file
    return f"{RAY}, {'second' if Path(file).stem.startswith(tuple(f'test_{s}' for s in SECOND)) else 'first'} half"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests, leave the nightly ones out unless they are asked for, and put long work first."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker("slow")
            if not item.nodeid.startswith(WITH_RAY):
                raise pytest.UsageError(f"{item.nodeid} uses Ray: say so in WITH_RAY in {__file__}")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
    named = tuple(argument for argument in config.args if "::" in argument)
    if "nightly" not in config.option.markexpr and not named:
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]
    slow: dict[str, int] = defaultdict(int)
    for item in items:
        slow[room_of_process(item.nodeid)] += item.get_closest_marker("slow") is not None
    order = sorted(slow, key=lambda room: (not room.startswith(RAY), -slow[room]))
    place = {room: number for number, room in enumerate(order)}
    items.sort(key=lambda item: place[room_of_process(item.nodeid)])


def _processor_seconds() -> float:
    mine, ended = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return mine.ru_utime + mine.ru_stime + ended.ru_utime + ended.ru_stime


def _measured(item: pytest.Item) -> Generator[None, Any, Any]:
    before = _processor_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append((PROCESSOR, _processor_seconds() - before))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _measured(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _measured(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _measured(item))


@dataclass
class Cost:
    """What a test took: seconds by the clock, and of processors (its process and children that ended)."""

    clock: float = 0.0
    processor: float = 0.0
    slow: bool = False


def costs(reports: Iterable[pytest.TestReport]) -> dict[str, Cost]:
    """Return what each test took, its fixtures included."""
    found: dict[str, Cost] = defaultdict(Cost)
    for report in reports:
        cost = found[report.nodeid]
        cost.clock += report.duration
        cost.slow |= "slow" in report.keywords
        if report.when == "teardown":
            cost.processor += sum(
                float(str(value)) for name, value in report.user_properties if name == PROCESSOR
            )
    return found


def table(found: Mapping[str, Cost]) -> list[str]:
    """Return the lines of a table of rooms: how many tests, their seconds, the share of those that are not slow."""
    rooms: dict[str, list[Cost]] = defaultdict(list)
    for nodeid, cost in found.items():
        folder = Path(nodeid.partition("::")[0]).parent.as_posix()
        rooms[folder].append(cost)
        rooms["all"].append(cost)
    lines = ["| room | tests | s | processor s | not slow | s |", "|---|---|---|---|---|---|"]
    for room in sorted(rooms, key=lambda room: (room == "all", room)):
        every, quick = rooms[room], [cost for cost in rooms[room] if not cost.slow]
        clock, processor = (
            sum(getattr(cost, name) for cost in every) for name in ("clock", "processor")
        )
        lines.append(
            f"| {room} | {len(every)} | {clock:.0f} | {processor:.0f}"
            f" | {len(quick)} | {sum(cost.clock for cost in quick):.0f} |"
        )
    return lines


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the tests that take long and are not marked as slow; print the table that ``--rooms`` asks for."""
    reports = [
        report
        for group in terminalreporter.stats.values()
        for report in group
        if isinstance(report, pytest.TestReport)
    ]
    found = costs(reports)
    long = {
        name: cost
        for name, cost in found.items()
        if not cost.slow and (cost.processor > QUICK or cost.clock > PATIENCE)
    }
    if long:
        terminalreporter.section("long, but not marked as slow", yellow=True)
        for name, cost in long.items():
            terminalreporter.line(
                f"{name}: {cost.clock:.1f} s, {cost.processor:.1f} s of processors"
            )
    if config.option.rooms:
        terminalreporter.section("rooms")
        for line in table(found):
            terminalreporter.line(line)
