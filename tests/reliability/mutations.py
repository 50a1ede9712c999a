"""Damage to one file of a scene, and what the commands make of it."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from scenes import COMMON, Said, Scene, command, essence, kind_of

from raydd.artifacts import published_folder
from raydd.artifacts.formats import read_set
from raydd.artifacts.reading import Reading
from raydd.core.errors import RayddError
from raydd.runtime.page_file import page_of
from raydd.runtime.run_status import as_dict, run_status

CUTS = (0.0, 0.02, 0.5, 0.97)
"""Where files are cut, as shares of their length; the first leaves nothing."""


@dataclass(frozen=True)
class Damage:
    """One damaged file. ``how``: ``empty``, ``cut``, ``bit``, ``swapped`` or ``missing``."""

    path: str
    how: str
    detail: str
    data: bytes | None


def damages(scene: Scene, path: str, bits: int, seed: int) -> Iterator[Damage]:
    """Yield every kind of damage of a file; ``bits``: so many flips, drawn by ``seed`` and the path."""
    data = (scene.kept / path).read_bytes()
    draw = random.Random(f"{seed} {path}")
    for share in CUTS:
        cut = int(len(data) * share)
        if cut < len(data):
            yield Damage(
                path, "cut" if cut else "empty", f"to {cut} of {len(data)} bytes", data[:cut]
            )
    for _ in range(bits if data else 0):
        at, bit = draw.randrange(len(data)), draw.randrange(8)
        flipped = bytearray(data)
        flipped[at] ^= 1 << bit
        yield Damage(path, "bit", f"{bit} of byte {at} of {len(data)}", bytes(flipped))
    others = [other for other in scene.files() if other != path and kind_of(other) == kind_of(path)]
    others = [other for other in others if (scene.kept / other).read_bytes() != data]
    if others:
        other = draw.choice(others)
        yield Damage(path, "swapped", f"with {other}", (scene.kept / other).read_bytes())
    yield Damage(path, "missing", "", None)


def inflict(scene: Scene, damage: Damage) -> None:
    """Bring the scene back to what was kept, with one file damaged."""
    scene.restore()
    place = scene.folder / damage.path
    if damage.data is None:
        place.unlink()
    else:
        place.write_bytes(damage.data)


@dataclass(frozen=True)
class Finding:
    """What a command made of damage. ``outcome``, good ones: ``redone`` (told, and then as good as before),
    ``refused`` (with the file's path), ``harmless`` (as good as before), ``told`` (shown with a note);
    bad ones: ``crash``, ``nameless`` (an error without the path), ``silent`` (shown or kept as if whole),
    ``wrong`` (other bytes), ``lost`` (not as good as before with another output on the same store, either).
    """

    damage: Damage
    kind: str
    command: str
    outcome: str
    text: str = ""


NOTES = ("cannot be read", "is torn", "there is no plan.json")
"""What is shown of a file that is damaged or missing."""
BAD = ("crash", "nameless", "silent", "wrong", "lost")


def named(text: str, path: str) -> bool:
    """Return whether a text names a file, with the folder it lies in."""
    folder, _, name = path.rpartition("/")
    return "/".join(path.rsplit("/", 2)[-2:]) in text or (folder in text and name in text)


def resumed(scene: Scene, damage: Damage) -> Finding:
    """Give the job's command on a damaged scene."""

    def finding(outcome: str, text: str = "") -> Finding:
        return Finding(damage, kind_of(damage.path), "distill", outcome, text)

    inflict(scene, damage)
    said = scene.go_on()
    if said.crash:
        return finding("crash", said.crash)
    if said.code == 0:
        bad = _not_good(scene)
        if bad:
            return finding("wrong", f"{bad}; {said.text[-500:]}")
        told = named(said.text, damage.path) and re.search("torn|missing|again|torn,", said.text)
        return finding("redone" if told else "harmless")
    error = said.text[said.text.find("error: ") :] if "error: " in said.text else said.text
    if not named(error, damage.path):
        return finding("nameless", error)
    if kind_of(damage.path).startswith(
        "data shard"
    ):  # what the job reads: only whoever has it can bring it back
        shutil.copyfile(scene.kept / damage.path, scene.folder / damage.path)
    again = scene.elsewhere()
    if again.crash or again.code or _not_good(scene, "other"):
        return finding("lost", f"{error} -> {again.code} {again.crash} {again.text[-500:]}")
    return finding("refused", error)


def _not_good(scene: Scene, output: str = "out") -> str:
    """Return what of a job's results is not as it was; empty if all is."""
    out = scene.folder / output
    try:
        found = essence(out)
        published_folder.verify(str(out / "distilled"))
    except (RayddError, OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return ", ".join(
        name for name in {*found, *scene.good} if found.get(name) != scene.good.get(name)
    )


def _views(scene: Scene) -> dict[str, Said]:
    """Return what is shown of a scene: its status and its page."""
    out, found = str(scene.folder / "out"), {}
    for verb, ask in (("status", _status), ("report", _page)):
        said = command(verb, out)
        if said.crash or said.code not in (0, 1, 3):
            found[verb] = said
        else:
            warned = [line for line in said.text.splitlines() if "torn" in line]
            found[verb] = Said(said.code, "\n".join([ask(out), *warned]))
    return found


def _status(out: str) -> str:
    values = as_dict(run_status(out))
    values.pop("now")
    return repr(values)


def _page(out: str) -> str:
    return re.sub(r"on \d{4}-\d\d-\d\d at \d\d:\d\d UTC", "", page_of(out)[0])


class Shown:
    """What status and page show of a scene; asked of damaged ones, compared with the whole one."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        scene.restore()
        self.good = _views(scene)
        assert not any(said.crash or "error" in said.text[:20] for said in self.good.values()), self.good  # fmt: skip

    def of(self, damage: Damage) -> Iterator[Finding]:
        """Yield what status and page make of damage."""
        inflict(self.scene, damage)
        for verb, said in _views(self.scene).items():
            outcome, text = self._judged(verb, said, damage)
            yield Finding(damage, kind_of(damage.path), verb, outcome, text)

    def _judged(self, verb: str, said: Said, damage: Damage) -> tuple[str, str]:
        if said.crash:
            return "crash", said.crash
        if said.text == self.good[verb].text:
            return "harmless", ""
        name = damage.path.rsplit("/", 1)[-1]
        if said.code == 2:
            return ("refused", said.text) if name in said.text else ("nameless", said.text)
        notes = [note for note in NOTES if note in said.text and note not in self.good[verb].text]
        if notes:
            return "told", notes[0]
        return (
            ("told", "missing")
            if damage.data is None
            else ("silent", _difference(said.text, self.good[verb].text))
        )


def _difference(one: str, other: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    return f"…{one[max(0, at - 60) : at + 60]}… was …{other[max(0, at - 60) : at + 60]}…"


def loaded(scene: Scene, damage: Damage, good: str) -> Finding:
    """Load the published set of a damaged scene."""
    inflict(scene, damage)
    kind = kind_of(damage.path)
    try:
        found = content(scene)
    except (RayddError, FileNotFoundError) as error:
        outcome = "refused" if damage.path.rsplit("/", 1)[-1] in str(error) else "nameless"
        return Finding(damage, kind, "load", outcome, str(error))
    except Exception as error:  # noqa: BLE001 - a crash is what is looked for
        return Finding(damage, kind, "load", "crash", f"{type(error).__name__}: {error}")
    return Finding(damage, kind, "load", "harmless" if found == good else "wrong")


def content(scene: Scene) -> str:
    """Return what a scene's published set holds, as a digest."""
    return read_set(str(scene.folder / "out" / "distilled"), info=None, reading=Reading()).digest


def judged(scene: Scene, damage: Damage, good: str) -> Finding:
    """Evaluate the published set of a damaged scene; ``good``: what that gave of the whole one."""
    inflict(scene, damage)
    said, rows = evaluated(scene)
    kind = kind_of(damage.path)
    if said.crash:
        return Finding(damage, kind, "evaluate", "crash", said.crash)
    if said.code:
        outcome = "refused" if named(said.text, damage.path) else "nameless"
        return Finding(damage, kind, "evaluate", outcome, said.text)
    return Finding(damage, kind, "evaluate", "harmless" if rows == good else "wrong", rows)


def evaluated(scene: Scene) -> tuple[Said, str]:
    """Evaluate the published set of a scene; return what was said, and its accuracies."""
    to = scene.folder / "judged"
    keys = [word for word in COMMON if word.startswith(("tracking", "compute"))]
    said = command(
        "evaluate", str(scene.folder / "out" / "distilled"), "--epochs", "2", "--repeats", "1",
        "--baselines", "", "--output", str(to), f"store={scene.folder}/judging", *keys,
    )  # fmt: skip
    rows = ""
    if said.code == 0 and not said.crash:
        report = json.loads((to / "report.json").read_text())
        rows = repr([[row["set"], row["accuracy_mean"]] for row in report["rows"]])
    return said, rows


def collected(scene: Scene, damage: Damage) -> Finding:
    """Collect what nobody needs in the store of a damaged scene, whose run is not finished: no unit may go."""

    def units() -> set[str]:
        return {str(path) for path in (scene.folder / "store" / "units").rglob("*")}

    inflict(scene, damage)
    before, said = units(), command("gc", str(scene.folder / "store"))
    if said.crash:
        return Finding(damage, kind_of(damage.path), "gc", "crash", said.crash)
    if units() != before:
        return Finding(damage, kind_of(damage.path), "gc", "lost", said.text)
    if said.code and not named(said.text, damage.path):
        return Finding(damage, kind_of(damage.path), "gc", "nameless", said.text)
    return Finding(damage, kind_of(damage.path), "gc", "refused" if said.code else "harmless")
