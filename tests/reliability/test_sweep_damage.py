"""A sweep's files, damaged: what a resume, a status and a page make of it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import yaml
from fault_rows import Row, Tally
from mutations import damages, named
from scenes import COMMON, CONFIG, Said, Scene, command

pytestmark = pytest.mark.slow

FILES = {"a sweep's trial": "sweep/journal/0001.json", "a sweep's report": "sweep/sweep.json"}
HOW = {"missing": "missing", "empty": "empty", "cut": "cut", "bit": "a bit flipped"}
OUTCOME = "Written anew, or refused with its path; on the same store another output ends with the same trials"
ROWS = [
    Row("storage", what, how, OUTCOME, "test_a_sweep", group="sweep", data=(path, key))
    for what, path in FILES.items()
    for key, how in HOW.items()
    if (path, key) != ("sweep/journal/0001.json", "missing")  # it is then run again
]


class Sweep(Scene):
    """A sweep that is done."""

    def go_on(self) -> Said:
        return command("sweep", *self.arguments)

    def elsewhere(self) -> Said:
        here = f"output={self.folder}/"
        words = [f"{here}other" if word.startswith(here) else word for word in self.arguments]
        return command("sweep", *words)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("sweeps") / "scene"
    folder.mkdir()
    keys = {"method.lr_img": {"loguniform": [0.1, 10.0]}}
    space = {"keys": keys, "search": "random", "budget": {"trials": 2}, "holdout": 0.2}
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    words = (
        "method.network=convnet1_w8",
        "method.iterations=2",
        "method.batch_real=8",
        "evaluation.every=null",
    )
    places = (f"output={folder}/sweep", f"store={folder}/store")
    scene = Sweep(
        "sweep",
        folder,
        ("--config", CONFIG, "--space", f"{folder}/space.yaml", *words, *COMMON, *places),
    )
    said = scene.go_on()
    assert (said.code, said.crash) == (0, ""), said
    scene.good = best(folder / "sweep")
    scene.keep()
    return scene


def best(folder: Path) -> dict[str, str]:
    lines = (folder / "trials.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=False)) for line in lines[1:]]
    return {row["trial"]: f"{row.get('value')}" for row in rows}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_sweep(row: Row, scene: Sweep, tally: Tally) -> None:
    path, how = row.data
    found = [damage for damage in damages(scene, path, 6, 3) if damage.how == how]
    random.Random(row.name).shuffle(found)
    for number, damage in enumerate(found[:4]):
        scene.restore()
        place = scene.folder / path
        place.unlink() if damage.data is None else place.write_bytes(damage.data)
        out = str(scene.folder / "sweep")
        for verb in ("status", "report"):
            said = command(verb, out)
            assert not said.crash, (damage.detail, said)
            if damage.data is not None and not (verb == "report" and said.code == 0):
                assert said.code == 2, (damage.detail, said)
                assert named(said.text, f"{scene.folder}/{path}"), (damage.detail, said)
        if number:
            continue  # going on takes seconds
        said = scene.go_on()
        assert not said.crash, (damage.detail, said)
        if said.code:
            assert named(said.text, f"{scene.folder}/{path}"), (damage.detail, said)
            again = scene.elsewhere()
            assert (again.code, again.crash) == (0, ""), again
            assert best(scene.folder / "other") == scene.good
            shutil.rmtree(scene.folder / "other")
        else:
            assert best(scene.folder / "sweep") == scene.good, damage.detail
    tally(row, min(4, len(found)))
