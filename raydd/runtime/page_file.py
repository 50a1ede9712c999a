"""Writes the page of a run, from what lies in its output folder. Needs no torch."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raydd.artifacts.run_folder import (
    GROWTH,
    LABEL_MAP_PICTURE,
    OFFSETS_PICTURE,
    PAGE,
    SEMANTIC,
    RunFolder,
    read_run,
)
from raydd.artifacts.standing import Standing
from raydd.artifacts.whole_png import is_whole_png
from raydd.core.errors import ConfigError, StorageError
from raydd.core.json_text import parse_json
from raydd.core.storage import Storage, join
from raydd.core.urls import check_url
from raydd.pages.blocks import Shown
from raydd.pages.run_page import RunFacts, run_page
from raydd.runtime.lock import alive, read_lock
from raydd.runtime.sweep.sweep_status import REPORT, is_sweep

log = logging.getLogger(__name__)
BESIDE_BYTES = 3_000_000
"""What a picture beside the others may take in a page."""
_STEP = re.compile(r"pictures/step-(\d+)\.png")


def page_of(url: str, *, finished: bool = False) -> tuple[str, str]:
    """Return the page of a run, and its state; ``finished``: the run itself says that it is, while
    it still holds its lock. A sweep's, where ``url`` is one's. ``ConfigError`` for a place that is no
    run's.
    """
    check_url(url, "output")
    if is_sweep(Storage(url)):
        return _sweep_page(Storage(url))
    folder = read_run(url)
    standing, notes = Standing(folder.plan, folder.log), [*folder.notes]
    lock = None if finished else read_lock(folder.output, notes)
    folder = replace(folder, notes=tuple(notes))
    state = "finished" if finished else state_of(folder, standing, lock)
    run = RunFacts(
        folder=folder,
        standing=standing,
        pictures=_pictures(folder, standing),
        beside=_beside(folder),
        recipe=_recipe(folder.output),
        state=state,
        made=time.strftime("on %Y-%m-%d at %H:%M UTC", time.gmtime()),
    )
    return run_page(run), state


def _sweep_page(output: Storage) -> tuple[str, str]:
    from raydd.runtime.sweep.sweep_folder import sweep_page_of  # which needs torch

    try:
        return sweep_page_of(output)
    except (KeyError, TypeError, ValueError) as error:
        place = join(output.url, REPORT)
        raise ConfigError(f"output: {place} is torn, or of another version ({error})") from error


def write_page(output: Storage) -> str:
    """Write the page of a run that has just finished; return where it is, empty if it could not be
    drawn, which is logged as a warning: a page never fails a run.
    """
    try:
        text, _ = page_of(output.url, finished=True)
        output.put(PAGE, text.encode())
    except Exception as error:  # noqa: BLE001 - whatever it is, the run itself is done
        log.warning("no page of the run: %s: %s", type(error).__name__, error)
        return ""
    return join(output.url, PAGE)


def state_of(folder: RunFolder, standing: Standing, lock: Mapping[str, Any] | None) -> str:
    """Return how a run stands, in a word: ``running``, ``finished``, ``failed``, ``stopped`` (it was
    asked to), or ``unfinished`` (its process ended without a word).
    """
    if lock is not None and alive(lock, time.time()):
        return "running"
    ended = standing.ended
    if ended is None:
        said = any(record["kind"] == "run" for record in folder.log)
        return "finished" if folder.report is not None and not said else "unfinished"
    status = ended.get("status")
    return {"FINISHED": "finished", "KILLED": "stopped"}.get(str(status), "failed")


def _pictures(folder: RunFolder, standing: Standing) -> list[Shown]:
    """Return the run's pictures over the updates, then those of the published sets."""
    output, name = folder.output, folder.report.dataset if folder.report else folder.name
    found = []
    steps = sorted((int(m[1]), m[0]) for p in output.list("pictures") if (m := _STEP.fullmatch(p)))
    paths = [(f"after {step} updates", path) for step, path in steps]
    if folder.verb == "evaluate":
        paths.append(("the set that was evaluated", "grid.png"))
    else:
        paths += _published(folder, standing)
    for caption, path in paths:
        data = _picture(output, path)
        if data is None:
            continue
        alt = f"Distilled images of {name}, a class per row, {caption}"
        found.append(Shown(data, "image/png", alt, f"{caption[:1].upper()}{caption[1:]}"))
    return found


def _picture(output: Storage, path: str) -> bytes | None:
    """Return a picture's bytes, ``None`` where there is none, or one that is torn, which is told."""
    try:
        data = output.get(path)
    except (FileNotFoundError, StorageError):
        return None
    if is_whole_png(data):
        return data
    log.warning("%s is torn; the page is without it", join(output.url, path))
    return None


def _beside(folder: RunFolder) -> list[Shown]:
    """Return the pictures beside the set's own: of a poster its growth, the class of each area, its
    label map; offsets.
    """
    output = folder.output
    seeds = [s for s in output.folders("distilled") if s.startswith("seed-")][:1]
    place = "/".join(["distilled", *seeds])
    wanted = {
        GROWTH: "The poster over the updates, as an animation",
        f"{place}/{SEMANTIC}": "The class of each area of the poster",
        f"{place}/{LABEL_MAP_PICTURE}": "The label map: each cell's likeliest class, and its share",
        f"{place}/{OFFSETS_PICTURE}": "Offsets that all classes share, about grey",
    }
    found = []
    for path, caption in wanted.items():
        data = _picture(output, path)
        if data is not None and len(data) <= BESIDE_BYTES:
            found.append(Shown(data, "image/png", caption, caption))
    return found


def _published(folder: RunFolder, standing: Standing) -> list[tuple[str, str]]:
    charted = (folder.plan or {}).get("charted", ())
    keys = [key for label in charted for key in (folder.plan or {})["curves"][label]]
    steps = max((standing.of[key][1].steps for key in keys if key in standing.of), default=0)
    after = f", after {steps} updates" if steps else ""
    seeds = [s for s in folder.output.folders("distilled") if s.startswith("seed-")]
    if not seeds:
        return [(f"as published{after}", "distilled/grid.png")]
    return [
        (f"as published{after}, {seed.replace('-', ' ')}", f"distilled/{seed}/grid.png")
        for seed in seeds
    ]


def _recipe(output: Storage) -> Mapping[str, Any] | None:
    for path in ("distilled/recipe.json", *_seeds(output)):
        try:
            values = parse_json(output.get(path))
        except (FileNotFoundError, StorageError, ValueError):
            continue
        if isinstance(values, Mapping):
            return values
    return None


def _seeds(output: Storage) -> list[str]:
    return [f"distilled/{s}/recipe.json" for s in output.folders("distilled") if "seed" in s][:1]
