"""Posters of others, and ours, evaluated from the command line; what a run leaves of a poster."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import raydd
from raydd.artifacts.poster_geometry import WindowGrid
from raydd.cli import main
from raydd.core.rng import generator

FEW = ["--dataset", "digits", "--networks", "convnet1_w8", "--epochs", "1", "--repeats", "2"]
GRID = WindowGrid(height=8, width=8, columns=15, rows=6)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(verb: str, *args: str) -> Result:
    return CliRunner().invoke(main, [verb, *args, *(["store=store"] if verb != "export" else [])])


def report(folder: str) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "report.json").read_text()))


def save(height: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Write a poster of 29 pixels in width and a label map as ``poster.pt``; return both."""
    poster = torch.randn(1, 1, height, 29, generator=generator(0, "poster"))
    label_map = torch.rand(1, 10, 2, 5, generator=generator(0, "map"))
    torch.save((poster, label_map), "poster.pt")
    return poster, label_map


@pytest.mark.slow
def test_a_poster_of_others_is_evaluated(here: Path) -> None:
    poster, _ = save()
    given = ["--space", "normalised", "--windows", "15x6", "--protocol", "dm"]
    done = run("evaluate", "poster.pt", *FEW, *given, "--output", "out")
    assert done.exit_code == 0, done.output
    own, random = report("out")["rows"]
    assert (own["stored"], own["seen"]) == (1, 90)
    assert own["image_bytes"] == 4 * 11 * 29
    assert own["label_bytes"] == 8 * 90 + 4 * 100
    assert report("out")["size"] == "a poster of 29×11 pixels"
    assert report("out")["ipc"] == pytest.approx(319 / 640)
    assert random["seen"] == 10, "random images, each shrunk to as many pixels"
    assert random["image_bytes"] == 10 * 5 * 6, "at most the 319 pixels of the poster"
    with Image.open("out/grid.png") as image:
        assert image.size == (29 * 41, 11 * 41)
    dataset = raydd.load("poster.pt", info="digits", space="normalised", windows=(15, 6))
    assert torch.equal(dataset.tensors()[0], GRID.cut(poster[0]))
    dataset = raydd.load("poster.pt", info="digits", space="normalised", windows="15x6")
    assert torch.equal(dataset.tensors()[0], GRID.cut(poster[0]))
    done = run("export", "poster.pt", "tars", *FEW[:2], *given[:4], "--to", "webdataset")
    assert done.exit_code == 0, done.output
    assert len(raydd.load("tars")) == 90


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--decoding", "windows"], "Say --windows 16x6"),
        (["--windows", "15by6"], "windows: '15by6' must be columns and rows"),
        (
            ["--windows", "3x2"],
            "poster.pt: --windows 3x2: columns=3: windows of 8 pixels do not tile",
        ),
        (["--windows", "15x6", "--decoding", "partition"], "windows have no effect"),
        (["--windows", "15x6", "--continual", "5"], "is one poster, whose windows show several"),
        ([], "images are 1×11×29; those of digits are 1×8×8 (C×H×W); if it is a poster, say"),
    ],
)
def test_posters_of_others_that_cannot_be_are_refused(
    here: Path, args: list[str], message: str
) -> None:
    save()
    refused = run("evaluate", "poster.pt", *FEW, "--space", "normalised", *args)
    assert refused.exit_code == 2
    assert message in refused.output


def test_a_poster_with_labels_of_other_windows_is_refused(here: Path) -> None:
    poster, _ = save()
    torch.save((poster, torch.arange(90) % 10), "poster.pt")
    refused = run("evaluate", "poster.pt", *FEW, "--space", "normalised", "--windows", "15x5")
    assert refused.exit_code == 2
    assert "poster.pt: --windows 15x5: 15×5 windows but 90 labels" in refused.output


JOB = """
name: small
dataset: {name: digits}
ipc: 0.5
method: {name: dm, network: convnet1_w8, iterations: 6, batch_real: 8, poster: {windows: [15, 6]}}
evaluation: {epochs: 2, repeats: 1, every: 2}
compute: {workers: 0}
tracking: {uri: none}
output: run
"""


@pytest.mark.slow
def test_a_run_leaves_the_posters_growth_and_the_class_of_each_area(here: Path) -> None:
    Path("small.yaml").write_text(JOB)
    done = run("distill", "--config", "small.yaml")
    assert done.exit_code == 0, done.output
    with Image.open("run/pictures/growth.png") as image:
        assert image.n_frames == 4  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(Path("run/distilled/semantic.png").read_bytes())) as image:
        assert image.size == (29 * 41, 11 * 41)
    page = Path("run/report.html").read_text()
    assert page.count("The poster over the updates, as an animation") == 2, (
        "and for those who do not see it"
    )
    assert "The class of each area of the poster" in page
    recipe = json.loads(Path("run/distilled/recipe.json").read_text())
    assert recipe["settled"]["poster"]["class_order_from"] == "label order"
    assert report("run")["ipc"] == 0.5
    again = run("evaluate", "run/distilled", *FEW[2:], "--output", "again")
    assert again.exit_code == 0, again.output
    assert report("again")["rows"][0]["seen"] == 90
