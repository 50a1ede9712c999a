"""Every kind of file that jobs leave, damaged: what a resume, a load, an evaluation, the collector, a status and a page
make of it. Never a crash, never an error without the file, never other bytes, nothing lost, nothing shown as if whole.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_rows import RECORDS, Row, Tally
from mutations import (
    BAD,
    Damage,
    Finding,
    Shown,
    collected,
    content,
    damages,
    evaluated,
    judged,
    loaded,
    resumed,
)
from scenes import DM, Scene, finished, in_the_middle, kind_of, on_shards, small, stopped

pytestmark = pytest.mark.slow

HOW = {
    "missing": "missing",
    "empty": "empty",
    "cut": "cut",
    "bit": "a bit flipped",
    "swapped": "swapped",
}
"""What is done to a file, as the page calls it; swapped: another file of its kind lies in its place."""
COMMANDS = {
    "checkpoint": ("distill",),
    "unit output": ("distill",),
    "unit marker": ("distill", "status"),
    "run registration": ("distill", "gc"),
    "label record": ("distill", "evaluate"),
    "label marker": ("distill",),
    "label manifest": ("distill", "evaluate"),
    "set manifest": ("distill", "load"),
    "set data": ("distill", "load"),
    "recipe": ("distill", "load"),
    "set shard": ("distill",),
    "picture": ("distill", "report"),
    "report": ("distill", "status", "report"),
    "plan": ("distill", "status", "report"),
    "log": ("distill", "status", "report"),
    "job file": ("distill", "status", "report"),
    "lock": ("distill", "status"),
    "data shard": ("distill",),
    "data shard index": ("distill",),
}
"""Which commands are given after damage to a file, by its kind: those that read it."""
SINGLE = (
    "label manifest",
    "set manifest",
    "set data",
    "recipe",
    "set shard",
    "plan",
    "log",
    "job file",
    "lock",
)
"""Kinds of which a job has one file, or whose others are copies."""
LEFT_OUT = {
    (kind, "swapped") for kind in (*SINGLE, "run registration", "data shard index", "picture")
}
"""Pictures carry checksums of what they show, not of whose they are; a run that is registered nowhere is nobody's."""
OUTCOME = (
    "Computed again, told, refused with its path, or of no use to the command: in the end the same bytes; nothing of it"
    " is shown or loaded as if it were whole"
)
ROWS = [
    Row("storage", kind, how, OUTCOME, "test_damage", group="damage", data=key)
    for kind in COMMANDS
    for key, how in HOW.items()
    if (kind, key) not in LEFT_OUT
]


@dataclass
class Stage:
    """The scenes, and what is compared with of each, made when it is first asked for."""

    scenes: Sequence[Scene]

    def __post_init__(self) -> None:
        self._shown: dict[str, Shown] = {}
        self._good: dict[tuple[str, str], str] = {}

    def places(self, kind: str) -> list[tuple[Scene, str]]:
        """Return all files of a kind."""
        return [
            (scene, path)
            for scene in self.scenes
            for path in scene.files()
            if kind_of(path) == kind
        ]

    def tried(self, verb: str, scene: Scene, damage: Damage) -> list[Finding]:
        """Give a command after damage; nothing where it has no place in the scene."""
        done = not scene.name.endswith("stopped")
        if verb == "distill":
            return [resumed(scene, damage)]
        if verb == "gc":
            return [] if done or damage.how == "missing" else [collected(scene, damage)]
        if verb == "load":
            return [loaded(scene, damage, self._of(scene, verb, content))] if done else []
        if verb == "evaluate":
            return [judged(scene, damage, self._of(scene, verb, _rows))] if done else []
        if scene.name not in self._shown:
            self._shown[scene.name] = Shown(scene)
        return [found for found in self._shown[scene.name].of(damage) if found.command == verb]

    def _of(self, scene: Scene, verb: str, ask: Callable[[Scene], str]) -> str:
        if (scene.name, verb) not in self._good:
            scene.restore()
            self._good[scene.name, verb] = ask(scene)
        return self._good[scene.name, verb]


def _rows(scene: Scene) -> str:
    said, rows = evaluated(scene)
    assert rows, said
    return rows


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    root = tmp_path_factory.mktemp("scenes")
    labelled = [
        *small("sre2l"),
        "evaluation.protocol=sre2l",
        "evaluation.networks=[convnet1_w4_batchnorm]",
    ]
    matched, recovered = (
        finished("dm", root / "dm", DM),
        finished("sre2l", root / "sre2l", labelled),
    )
    return Stage(
        [
            matched,
            stopped(matched, "dm-stopped", in_the_middle),
            recovered,
            stopped(recovered, "sre2l-stopped", in_the_middle),
            on_shards(root / "shards"),
        ]
    )


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.runtime.lock.STALE_SECONDS", 0.3)  # for a lock that says nothing


def cases(stage: Stage, row: Row, count: int, bits: int) -> Iterator[tuple[Scene, Damage]]:
    """Yield damaged files of a row, in an order that is drawn, files of all scenes in turn."""
    draw = random.Random(row.name)
    places = stage.places(row.what)
    draw.shuffle(places)
    assert places, f"no file of the kind '{row.what}'"
    lists = [
        [d for d in damages(scene, path, bits, 7) if d.how == row.data] for scene, path in places
    ]
    for some in lists:
        draw.shuffle(some)
    found = [
        (scene, some[turn])
        for turn in range(max(map(len, lists), default=0))
        for (scene, _), some in zip(places, lists, strict=True)
        if turn < len(some)
    ]
    yield from found[:count]


def series(stage: Stage, row: Row, resumes: int, looks: int) -> list[Finding]:
    """Return what all commands of a row's kind made of damage; ``looks``: cases for the quick ones."""
    found = []
    for verb in COMMANDS[row.what]:
        count = resumes if verb in ("distill", "evaluate") else looks
        for scene, damage in cases(stage, row, count, max(2, count)):
            found += stage.tried(verb, scene, damage)
    return found


def bad(findings: Sequence[Finding]) -> list[Finding]:
    return [found for found in findings if found.outcome in BAD]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_damage(stage: Stage, row: Row, tally: Tally) -> None:
    found = series(stage, row, 1, 3)
    assert bad(found) == []
    tally(row, len(found))


COUNTS: Counter[tuple[str, str, str, str]] = Counter()


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Write what all came to, by kind, damage, command and outcome, where the long series is recorded."""
    yield
    if request.config.pluginmanager.get_plugin("reliability-recorder") is not None and COUNTS:
        write(RECORDS / "storage.json", COUNTS)


def write(place: Path, counts: Counter[tuple[str, str, str, str]]) -> None:
    """Write counts as JSON: the sums of what must not be, and all counts by kind, damage, command and outcome."""
    tree: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for (kind, how, verb, outcome), count in sorted(counts.items()):
        tree.setdefault(kind, {}).setdefault(how, {}).setdefault(verb, {})[outcome] = count
    ended: Counter[str] = Counter()
    for (*_, outcome), count in counts.items():
        ended[outcome] += count
    sums = {"tried": sum(counts.values()), **{name: ended[name] for name in BAD}}
    sums |= {name: count for name, count in sorted(ended.items()) if name not in BAD}
    place.parent.mkdir(parents=True, exist_ok=True)
    command = "python tests/reliability/record.py --nightly tests/reliability/test_damage.py"
    place.write_text(
        json.dumps({"command": command, "sums": sums, "counts": tree}, indent=1) + "\n"
    )


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_damage_long(stage: Stage, row: Row, tally: Tally, recorded: None) -> None:
    found = series(stage, row, 2, 12)
    for one in found:
        COUNTS[one.kind, one.damage.how, one.command, one.outcome] += 1
    assert bad(found) == []
    tally(row, len(found))
