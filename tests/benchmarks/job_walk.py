"""How far a job travels from ``distill.main``: which functions it is handed to, and how often a reader turns back.

A *stop* is a function of raydd that is handed the job or one of its sections (data set, evaluation,
compute, tracking), counted once. A *return* is a stop that the one before it does not call: a reader
who follows the job goes back to an earlier function for it. Beside them: how often files of the data
set were opened, folders listed and the catalogue asked.

    python tests/benchmarks/job_walk.py --config jobs/quickstart.yaml [--dry-run] [key=value …]

    python tests/benchmarks/job_walk.py --reads dm edc

The second form counts the files, and their lines, that a method's imports lead to.
``--tree FOLDER`` walks another checkout's code; ``--list`` prints the stops.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

SECTIONS = ("Job", "DatasetConfig", "EvaluationConfig", "ComputeConfig", "TrackingConfig")
WITHOUT = "raydd/core/typed_tree.py"
"""Builds and prints trees of any type."""
CATALOGUE = "raydd/data/catalog.py:entry"


class Walk:
    """What was entered, in order."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.stops: dict[str, str] = {}
        self.returns = 0
        self.asked: Counter[str] = Counter()

    def name(self, frame: FrameType | None) -> str:
        """Return the place of the nearest function of raydd, from a frame outwards."""
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(self.package) and not code.co_name.startswith("<"):
                file = os.path.relpath(code.co_filename, os.path.dirname(self.package))
                return f"{file}:{code.co_qualname}"
            frame = frame.f_back
        return ""

    def profile(self, frame: FrameType, event: str, arg: Any) -> None:
        """Note a call; see ``sys.setprofile``."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(self.package):
            return
        name = self.name(frame)
        self.asked["catalogue"] += name == CATALOGUE
        if code.co_name.startswith(("<", "__")) or name.startswith(WITHOUT) or name in self.stops:
            return
        handed = (frame.f_locals.get(v) for v in code.co_varnames[: _arguments(frame)])
        if any(_is_section(value) for value in handed):
            caller = self.name(frame.f_back)
            self.returns += bool(self.stops) and caller != next(reversed(self.stops))
            self.stops[name] = caller

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note opened files and listed folders; see ``sys.addaudithook``."""
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            self.asked[f"open {os.fsdecode(arguments[0])}"] += 1
        elif event in ("os.listdir", "os.scandir"):
            self.asked[f"list {arguments[0]}"] += 1


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


def reads(tree: Path, method: str) -> dict[str, int]:
    """Return how many files, and lines in them, the imports of a method's file lead to."""
    seen: set[Path] = set()
    ahead = [f"raydd.methods.{method}"]
    while ahead:
        file = tree.joinpath(*ahead.pop().split(".")).with_suffix(".py")
        if file.exists() and file not in seen:
            seen.add(file)
            ahead += _imported(file)
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in seen)
    return {"files": len(seen), "lines": lines}


def _arguments(frame: FrameType) -> int:
    return frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount


def _is_section(value: Any) -> bool:
    kind = type(value)
    return kind.__module__.startswith("raydd.") and kind.__name__ in SECTIONS


def main() -> None:
    """Run a job under the profile and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config")
    parser.add_argument("--reads", nargs="+", default=[], metavar="METHOD")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--tree", default=os.getcwd())
    parser.add_argument("--data", default="", help="count opened files and listed folders below")
    parser.add_argument("--list", action="store_true")
    o, overrides = parser.parse_known_args()
    for method in o.reads:
        sys.stdout.write(f"{method} {json.dumps(reads(Path(o.tree).resolve(), method))}\n")
    if o.config is None:
        return
    sys.path.insert(0, os.path.abspath(o.tree))
    import raydd

    walk = Walk(os.path.dirname(os.path.abspath(raydd.__file__)))
    places = tempfile.mkdtemp()
    inside = ["compute.workers=0", "tracking.uri=none"]
    inside += [f"{place}={places}/{place}" for place in ("output", "store")]
    dry = ["--dry-run"] if o.dry_run else []
    sys.argv = ["raydd.distill", "--config", o.config, *dry, *inside, *overrides]
    if o.data:
        sys.addaudithook(walk.audit)
    sys.setprofile(walk.profile)
    threading.setprofile(walk.profile)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_module("raydd.distill", run_name="__main__")
    except SystemExit as end:
        if end.code not in (0, None):
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    if o.list:
        lines = (f"{stop}  <- {caller}\n" for stop, caller in walk.stops.items())
        sys.stdout.writelines(lines)
    found = {"stops": len(walk.stops), "returns": walk.returns}
    found["catalogue"] = walk.asked["catalogue"]
    if o.data:
        for kind in ("open", "list"):
            found[kind] = sum(
                count for key, count in walk.asked.items() if key.startswith(f"{kind} {o.data}")
            )
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
