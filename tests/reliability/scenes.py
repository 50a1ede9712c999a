"""Scenes of damage: what real jobs leave in their folders, and the commands that go on from there.

A scene is made once in a folder, which is then kept beside it; every try begins from a copy of what was kept.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from small import small_overrides

from raydd.artifacts import published_folder
from raydd.config import load_job
from raydd.core.events import Event
from raydd.core.sealed import seal
from raydd.runtime.control import Control
from raydd.runtime.lock import LOCK
from raydd.runtime.pipeline import run_job
from raydd.runtime.session import Interrupted

CONFIG = str(Path(__file__).parents[2] / "jobs" / "quickstart.yaml")
COMMON = (
    "tracking.uri=none",
    "compute.workers=0",
    "compute.checkpoint_every=0.001",
    "evaluation.epochs=2",
    "evaluation.repeats=1",
    "evaluation.networks=[convnet1_w8]",
    "evaluation.baselines=[]",
)
DM = (
    "method.network=convnet1_w8",
    "method.iterations=6",
    "method.classes_per_unit=5",
    "method.batch_real=8",
    "evaluation.every=3",
)


@dataclass(frozen=True)
class Said:
    """What a command came to: its exit code, all that it said, and an exception that is no message to a person."""

    code: int
    text: str
    crash: str = ""


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def command(verb: str, *arguments: str) -> Said:
    """Run ``raydd <verb>`` in this process; return what it came to."""
    lines = _Lines()
    logger = logging.getLogger("raydd")
    logger.addHandler(lines)
    try:
        main = importlib.import_module(f"raydd.{verb}").main
        done = CliRunner().invoke(main, arguments)
    finally:
        logger.removeHandler(lines)
    crash = ""
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        crash = f"{type(done.exception).__name__}: {done.exception}"
        trace = done.exception.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is not None:
            crash += f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
    return Said(done.exit_code, "\n".join([done.output, *lines.lines]), crash)


@dataclass
class Scene:
    """A folder that a job left, the job's command, and what a good end is."""

    name: str
    folder: Path
    arguments: tuple[str, ...]
    good: dict[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> Path:
        """The copy of the folder from which tries begin."""
        return self.folder.with_name(f"{self.folder.name}-kept")

    def keep(self) -> None:
        """Keep the folder as it is."""
        shutil.rmtree(self.kept, ignore_errors=True)
        shutil.copytree(self.folder, self.kept)

    def restore(self) -> None:
        """Bring the folder back to what was kept."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.kept, self.folder)

    def files(self) -> list[str]:
        """Return the paths of all files that were kept, sorted."""
        return sorted(
            str(path.relative_to(self.kept)) for path in self.kept.rglob("*") if path.is_file()
        )

    def go_on(self) -> Said:
        """Give the job's command again."""
        return command("distill", *self.arguments)

    def elsewhere(self) -> Said:
        """Give the job's command again with another output, on the same store."""
        here = f"output={self.folder}/"
        words = [f"{here}other" if word.startswith(here) else word for word in self.arguments]
        return command("distill", *words)


def kind_of(path: str) -> str:
    """Return what kind of file lies at a path of a scene; files of one kind can be swapped."""
    for kind, pattern in KINDS.items():
        if re.search(pattern, path):
            return kind
    return path.rsplit("/", 1)[-1]


KINDS = {
    "checkpoint": r"^store/units/.*/state-\d+\.safetensors$",
    "unit output": r"^store/units/.*\.safetensors$",
    "unit marker": r"^store/units/.*\.json$",
    "run registration": r"^store/runs/",
    "label record": r"/labels/epoch-\d+\.safetensors$",
    "label marker": r"/labels/epoch-\d+\.json$",
    "label manifest": r"/labels/manifest\.json$",
    "set manifest": r"distilled/manifest\.json$",
    "set data": r"distilled/(data|whitening).*\.safetensors$",
    "set shard": r"distilled/shards/.*\.tar$",
    "set side file": r"distilled/shards/dataset\.json$",
    "picture": r"\.png$|\.gif$",
    "page or card": r"report\.html$|README\.md$",
    "data shard": r"^shards/.*\.tar$",
    "data shard index": r"^shards/.*(index|\.safetensors)",
    "data shard file": r"^shards/",
    "recipe": r"recipe\.json$",
    "report": r"report\.json$",
    "job file": r"job\.yaml$",
    "plan": r"plan\.json$",
    "log": r"log\.jsonl$",
    "lock": r"lock\.json$",
}


def essence(out: Path) -> dict[str, Any]:
    """Return what has to be equal whatever happened on the way: the set, its labels, its accuracies."""
    found: dict[str, Any] = {}
    manifest = published_folder.read_manifest(published_folder.Storage(str(out / "distilled")))
    for path, facts in manifest["files"].items():
        if path.endswith((".safetensors", ".tar")) or "labels/" in path:
            found[path] = facts["sha256"]
    report = json.loads((out / "report.json").read_bytes())
    found["accuracies"] = [
        [row["set"], row["accuracy_mean"], row["accuracy_std"]] for row in report["rows"]
    ]
    return found


def arguments(folder: Path, method: Sequence[str], *more: str) -> tuple[str, ...]:
    """Return the arguments of ``raydd distill`` for a tiny job below a folder."""
    places = (f"output={folder}/out", f"store={folder}/store")
    return ("--config", CONFIG, *method, *COMMON, *places, *more)


def finished(name: str, folder: Path, method: Sequence[str], *more: str) -> Scene:
    """Return the scene of a job that is done."""
    scene = Scene(name, folder, arguments(folder, method, *more))
    said = scene.go_on()
    assert said.code == 0, said
    scene.good = essence(folder / "out")
    scene.keep()
    return scene


def on_shards(folder: Path) -> Scene:
    """Return the scene of a job that is done and read shards, which lie in its folder."""
    said = command(
        "shard",
        str(folder / "shards"),
        "--dataset",
        "digits",
        "--shard-size",
        "512",
        "--workers",
        "1",
    )
    assert said.code == 0, said
    words = ("method=null", "method.name=random", f"dataset.shards={folder}/shards")
    return finished("shards", folder, words)


def stopped(whole: Scene, name: str, when: Callable[[Event], bool]) -> Scene:
    """Return the scene of the same job, stopped at an event with its checkpoint; ``whole``: the one that is done."""
    folder = whole.folder.with_name(name)
    scene = Scene(name, folder, tuple(a.replace(str(whole.folder), str(folder)) for a in whole.arguments))  # fmt: skip
    if (whole.folder / "shards").exists():
        shutil.copytree(whole.folder / "shards", folder / "shards")
    control = Control()

    def stop(event: Event) -> None:
        if when(event):
            control.stop()

    control.on_event = stop
    job = load_job(scene.arguments[1], scene.arguments[2:])
    try:
        run_job(job, lambda line: None, control)
        raise AssertionError("the job was to be stopped")
    except Interrupted:
        pass
    assert list(folder.rglob("state-*.safetensors")), "a checkpoint was to be left"
    # What a process leaves that is killed.
    dead = {
        "host": socket.gethostname(),
        "pid": 2**22 + 1,
        "token": "0",
        "boot": "",
        "after_boot": 1.0,
    }
    (folder / "out" / LOCK).write_bytes(
        seal(json.dumps({**dead, "since": 1.0, "beat": 2.0}).encode())
    )
    scene.good = whole.good
    scene.keep()
    return scene


def in_the_middle(event: Event) -> bool:
    """Return whether an event tells of some update in the middle of a unit of the distillation."""
    return (
        event.kind in ("progress", "log")
        and event.stage.startswith(("distill/", "recover/"))
        and 1 < event.t < event.steps
    )


def small(name: str) -> list[str]:
    """Return the overrides of a method in its small settings."""
    return ["method=null", *small_overrides(name), "evaluation.every=null"]
