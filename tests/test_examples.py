"""The examples run, with small settings, and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
SMALL = ["evaluation.epochs=2", "evaluation.repeats=1", "evaluation.networks=[convnet1_w8]"]
SMALL += ["tracking.uri=none"]


def example(name: str, folder: Path, *arguments: str) -> str:
    """Run an example in a folder; return what it prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_photos_of_ones_own_are_distilled(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for label, name in enumerate(("cats", "dogs")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 120, (40, 50, 3), dtype=np.uint8) + 130 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"photos/{name}/{i}.jpg")
    small = ["ipc=2", "method.iterations=3", "method.network=convnet1_w8", "dataset.size=16"]
    told = example("own_photos.py", tmp_path, "photos", *small, "method.batch_real=4", *SMALL)
    assert "4 images of the classes cats, dogs" in told
    assert "the first: (3, 16, 16), class 0" in told
    assert (tmp_path / "runs/own_photos/distilled/grid.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pt", "folder"])
def test_a_set_of_others_is_compared_with_random_and_herding(tmp_path: Path, form: str) -> None:
    images, labels = torch.rand(10, 1, 8, 8, generator=torch.manual_seed(0)), torch.arange(10)
    if form == "pt":
        torch.save((images, labels), tmp_path / "set")
        (tmp_path / "set").rename(tmp_path / "set.pt")
    else:
        for image, label in zip(images.numpy(), labels.tolist()):
            (tmp_path / "set" / str(label)).mkdir(parents=True)
            pixels = (image[0] * 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"set/{label}/0.png")
    name = "set.pt" if form == "pt" else "set"
    told = example("published_set.py", tmp_path, name, "digits", *SMALL)
    rows = re.findall(r"^(\S+) +convnet1_w8 +([\d.]+) ± [\d.]+ %$", told, re.M)
    assert [row[0] for row in rows][1:] == ["random", "herding"]
    gain = re.search(r"better than random images by ([+-][\d.]+) points", told)
    assert gain is not None
    assert float(gain[1]) == pytest.approx(float(rows[0][1]) - float(rows[1][1]), abs=0.11)


@pytest.mark.slow
def test_a_method_outside_the_package_beats_random_digits(tmp_path: Path) -> None:
    small = ["evaluation.epochs=60", "evaluation.repeats=2", "evaluation.networks=[convnet1_w16]"]
    told = example("new_method.py", tmp_path, *small, "tracking.uri=none", "method.per_unit=5")
    found = re.search(r"IOR[^-+\d]*([+-]?[\d.]+)", told)
    assert found is not None, told
    assert float(found[1]) > 5
    assert "average" in told


def test_examples_are_short_and_the_readme_names_each() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert EXAMPLES
    for name in EXAMPLES:
        assert len((ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()) < 60
        assert readme.count(f"(examples/{name})") == 1
