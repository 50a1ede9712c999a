"""What a data set's files hold, said for every kind of source: in a plan, in a run's first lines, in its report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from raydd.data import encoded
from raydd.data import folder_data as folder
from raydd.data.config import DatasetConfig
from raydd.data.datasets import FoundData
from raydd.data.inventory import Inventory, LeftOut, SplitInventory, skipped_lines
from raydd.data.shard_writing import write_shards

RNG = np.random.default_rng(9)


def save(path: Path, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(RNG.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path, exif=exif)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("Train", 4), ("valid", 2)):
        for name in ("cat", "dog"):
            for i in range(count + (name == "dog")):
                save(tmp_path / "own" / split / name / f"{i}.jpg", 6 if i == 1 else 1)
    (tmp_path / "own" / "Train" / "cat" / "x.heic").write_bytes(b"x")
    (tmp_path / "own" / "Train" / "dog" / ".ipynb_checkpoints").mkdir()
    return tmp_path / "own"


def inventory(config: DatasetConfig, opened: bool = True) -> Inventory:
    found = FoundData(config)
    return found.inventory(found.describe(), found.splits if opened else None)


def test_a_folder_tells_splits_classes_and_what_was_left_out(root: Path) -> None:
    found = inventory(DatasetConfig(name="image_folder", root=str(root)))
    assert found.lines() == [
        f"image_folder in {root}: 2 classes (cat, dog)",
        "train: 9 images in Train/: cat 4, dog 5",
        "test: 5 images in valid/: cat 2, dog 3",
        "left out: 1 × format .heic (Train/cat/x.heic)",
        "left out: 1 × hidden folder (Train/dog/.ipynb_checkpoints)",
        (
            "note: 2 of 9 images in Train/ carry an EXIF orientation, which is ignored; dataset.orientation=exif turns"
            " them"
        ),
        (
            "note: 2 of 5 images in valid/ carry an EXIF orientation, which is ignored; dataset.orientation=exif turns"
            " them"
        ),
    ]
    values = json.loads(json.dumps(found.to_dict()))
    assert values["splits"][0] == {
        "split": "train",
        "place": "Train/",
        "images": 9,
        "per_class": [4, 5],
    }
    assert values["left_out"]["format .heic"] == {"count": 1, "examples": ["Train/cat/x.heic"]}
    assert str(root) not in json.dumps(values)


def test_of_large_folders_a_sample_is_looked_at_for_orientations(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "HASHED_BYTES", 0)
    monkeypatch.setattr(encoded, "_LOOKED_AT", 4)
    notes = inventory(DatasetConfig(name="image_folder", root=str(root))).notes
    carried = "carry an EXIF orientation, which is ignored; dataset.orientation=exif turns them"
    assert notes == (
        f"1 of a sample of 4 images in Train/ {carried}",
        f"1 of a sample of 4 images in valid/ {carried}",
    )


def test_splits_cut_from_train_count_what_was_left_out_once(root: Path) -> None:
    found = inventory(DatasetConfig(name="image_folder", root=str(root / "Train"), holdout=1))
    assert [(s.split, s.count) for s in found.splits] == [("train", 5), ("test", 2), ("holdout", 2)]
    assert {reason: value.count for reason, value in found.left_out.reasons.items()} == {
        "format .heic": 1,
        "hidden folder": 1,
    }
    assert (
        "there is no test split: 20% of every class are kept apart as one (dataset.test_split)"
        in found.notes
    )
    assert sum("EXIF" in note for note in found.notes) == 1


def test_shards_and_bundled_sets_have_one_too(root: Path, tmp_path: Path) -> None:
    assert (
        inventory(DatasetConfig(name="digits"))
        .lines()[1]
        .startswith("train: 1438 images: 0 142, 1 146")
    )
    out = str(tmp_path / "out")
    for split in ("train", "test"):
        write_shards(DatasetConfig(name="image_folder", root=str(root)), out, split)
    config = DatasetConfig(name="webdataset", shards=out)
    assert inventory(config).lines()[:3] == [
        f"webdataset in {out}: 2 classes (cat, dog)",
        "train: 9 images in train-*.tar: cat 4, dog 5",
        "test: 5 images in test-*.tar: cat 2, dog 3",
    ]
    assert inventory(config, opened=False).lines()[1:] == [
        "train: 9 images in train-*.tar",
        "test: 5 images in test-*.tar",
    ]


def test_many_classes_are_told_by_the_smallest_and_the_largest() -> None:
    names = tuple(f"n{label:04d}" for label in range(1000))
    counts = (1300,) * 998 + (732, 1301)
    split = SplitInventory(split="train", place="train/", count=sum(counts), per_class=counts)
    held = Inventory(
        name="x", where="", classes=1000, class_names=names, splits=(split,), left_out=LeftOut()
    )
    assert split.line(names).endswith(
        "images in train/, 732 (class 'n0998') to 1301 (class 'n0999') per class"
    )
    assert max(map(len, held.lines())) < 140
    assert (
        "2 samples could not be decoded and were replaced by the next of the same class: a, b"
        in skipped_lines({"b": "x", "a": "y"})
    )
    assert skipped_lines({str(i): "" for i in range(25)})[0].endswith("… (5 more)")


def test_a_contact_sheet_shows_a_few_images_of_each_class(root: Path, tmp_path: Path) -> None:
    from raydd.cli import main

    command = [
        "distill",
        "--config",
        "jobs/quickstart.yaml",
        "dataset.name=image_folder",
        f"dataset.root={root}",
        "dataset.size=8",
        f"output={tmp_path / 'out'}",
    ]
    sheet = str(tmp_path / "deep" / "sheet.png")
    told = CliRunner().invoke(main, [*command, "--dry-run", "--contact-sheet", sheet])
    assert told.exit_code == 0, told.output
    assert f"contact sheet: {sheet}" in told.output
    assert min(Image.open(sheet).size) > 100
    for wrong, words in (
        ([*command, "--contact-sheet", sheet], "needs --dry-run"),
        ([*command, "--dry-run", "--contact-sheet", "a.jpg"], ".png"),
    ):
        refused = CliRunner().invoke(main, wrong)
        assert refused.exit_code != 0
        assert words in refused.output


@pytest.mark.slow
def test_plan_run_and_report_tell_it_and_name_what_was_skipped(root: Path, tmp_path: Path) -> None:
    from raydd.cli import main

    (root / "Train" / "dog" / "3.jpg").write_bytes(
        (root / "Train" / "dog" / "3.jpg").read_bytes()[:300]
    )
    small = (
        "method.iterations=2 evaluation.epochs=1 evaluation.repeats=1 evaluation.baselines=[] compute.workers=0"
        " tracking.uri=none"
    )
    data = f"dataset.name=image_folder dataset.root={root} dataset.size=8 dataset.on_error=skip"
    command = [
        "distill",
        "--config",
        "jobs/quickstart.yaml",
        *small.split(),
        *data.split(),
        f"output={tmp_path}/o",
        f"store={tmp_path}/s",
    ]
    lines = [
        "train: 9 images in Train/: cat 4, dog 5",
        "left out: 1 × format .heic (Train/cat/x.heic)",
    ]
    planned = CliRunner().invoke(main, [*command, "--dry-run"]).output
    assert all(line in planned for line in lines)
    ran = CliRunner().invoke(main, command)
    assert ran.exit_code == 0, ran.output
    assert all(line in ran.output for line in lines)
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert report["inventory"]["splits"][0]["per_class"] == [4, 5]
    told = "1 sample could not be decoded and was replaced by the next of the same class: Train/dog/3.jpg"
    assert told in report["notes"]
    again = CliRunner().invoke(main, command)  # nothing is computed, so nothing is decoded again
    assert told in again.output
    card = (tmp_path / "o" / "distilled" / "report.json").read_text()
    assert str(root) not in card
    tested = [
        "evaluate",
        f"{tmp_path}/o/distilled",
        "evaluation.baselines=[]",
        "evaluation.epochs=1",
        f"output={tmp_path}/e",
        f"store={tmp_path}/s",
    ]
    assert lines[0] in CliRunner().invoke(main, [*tested, "--dry-run"]).output
    ran = CliRunner().invoke(main, tested)
    assert lines[0] in ran.output, ran.output
    assert json.loads((tmp_path / "e" / "report.json").read_text())["inventory"]["classes"] == 2
