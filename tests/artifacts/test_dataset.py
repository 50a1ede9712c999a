from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import raydd
from raydd.artifacts.dataset import DistilledDataset
from raydd.artifacts.decoding import Decoding
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.published_folder import publish

Make = Callable[..., DistilledSet]


def test_samples_are_what_students_see(
    make: Make, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    for made in (make(), make(images=digits[0])):
        dataset = DistilledDataset(made)
        images, labels = made.tensors()
        assert len(dataset) == 30
        assert all(
            torch.equal(dataset[i][0], images[i]) and dataset[i][1] == int(labels[i])
            for i in range(30)
        )
        assert torch.equal(dataset[-1][0], images[29])
        assert isinstance(dataset[3][1], int)


def test_it_iterates_and_loads_in_batches(make: Make) -> None:
    dataset = DistilledDataset(make())
    assert len(list(dataset)) == 30
    parts = list(DataLoader(dataset, batch_size=16))
    assert torch.equal(torch.cat([images for images, _ in parts]), make().images)
    assert torch.equal(torch.cat([labels for _, labels in parts]), make().labels)
    with pytest.raises(IndexError):
        dataset[30]


def test_soft_labels_come_as_they_are(make: Make) -> None:
    soft = torch.full((30, 10), 0.1)
    label = DistilledDataset(make(soft_labels=soft))[4][1]
    assert isinstance(label, torch.Tensor)
    assert torch.equal(label, soft[4])


def test_decoded_samples(make: Make, mirrored: Decoding) -> None:
    dataset = DistilledDataset(make(decoding=mirrored))
    assert len(dataset) == 60
    assert torch.equal(dataset[31][0], make().images[1].flip(-1))
    assert dataset[59][1] == 9
    assert len(dataset.to_rgb()) == 30


def test_load_gives_the_facts_a_student_needs(make: Make, tmp_path: Path) -> None:
    publish(make(), str(tmp_path / "run" / "distilled"))
    for url in (tmp_path / "run" / "distilled", tmp_path / "run", f"file://{tmp_path}/run"):
        dataset = raydd.load(str(url))
        assert dataset.classes == 10
        assert len(dataset.class_names) == 10
        assert (dataset.mean, dataset.std) == (make().mean, make().std)
        assert torch.equal(dataset.to_rgb(), make().to_rgb())
        assert torch.equal(dataset.tensors("cpu")[1], make().labels)


@pytest.mark.slow
def test_importing_raydd_stays_instant() -> None:
    code = (
        "import sys, raydd; assert 'torch' not in sys.modules; raydd.__version__; raydd.load; assert 'torch' in"
        " sys.modules"
    )
    code += (
        "; assert not {'ray', 'mlflow', 'webdataset', 'torchvision', 'matplotlib', 'PIL', 'pydantic'} &"
        " set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = raydd.laod


def test_a_dataset_says_what_it_is(make: Make) -> None:
    shown = repr(DistilledDataset(make()))
    assert shown == str(DistilledDataset(make()))
    for part in (
        "digits",
        "30 images of 10 classes (3 per class)",
        "1×8×8",
        "normalised",
        "hard labels",
        "method dm",
        "mean (0.3056)",
    ):
        assert part in shown
    labels = torch.cat([torch.zeros(21, dtype=torch.int64), torch.arange(1, 10)])
    soft = torch.full((30, 10), 0.1)
    fields = {"labels": labels, "soft_labels": soft, "recipe": {"space": "pixels255"}}
    other = repr(DistilledDataset(make(decoding=Decoding("grid", {"factor": 2}), **fields)))
    for part in (
        "(1 to 21 per class)",
        "decoded to 120",
        "stored as pixels255",
        "soft labels",
        "method unknown",
    ):
        assert part in other
