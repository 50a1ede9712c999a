"""The first images of each class of a larger set: what is taken, what is refused, evaluation with soft labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from family_jobs import INFO, NETWORKS, job, raydd

from raydd import load
from raydd.artifacts.decoding import Decoding
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.first_images import first_images
from raydd.artifacts.published_folder import publish
from raydd.core.errors import ConfigError
from raydd.training.training_cost import network_facts


def stored(labels: list[int], **fields: object) -> DistilledSet:
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, *INFO.shape).to(torch.uint8)
    return DistilledSet(images=images, labels=torch.tensor(labels), info=INFO, **fields)


def test_the_first_of_each_class_are_taken_in_their_order() -> None:
    labels = [*range(10), 3, *range(10), 3]
    soft = torch.eye(22)[:, :10].softmax(1)
    whole = stored(labels, soft_labels=soft, recipe={"ipc": 2, "seed": 5})
    part = first_images(whole, 1, "here")
    assert part.images[:, 0, 0, 0].tolist() == list(range(10))
    assert part.labels.tolist() == list(range(10))
    assert torch.equal(part.soft_labels, soft[:10])
    assert part.recipe == {"ipc": 1, "seed": 5}
    assert part.digest != whole.digest
    both = first_images(whole, 2, "here")
    assert both.images[:, 0, 0, 0].tolist() == [*range(11), *range(11, 14), *range(15, 21)]


def test_classes_that_are_absent_stay_absent_and_short_ones_are_named() -> None:
    with pytest.raises(ConfigError, match=r"ipc=2: class 4 has 1 images in here; allowed: 1 to 1"):
        first_images(stored([4, 5, 5]), 2, "here")
    assert first_images(stored([4, 5, 5]), 1, "here").labels.tolist() == [4, 5]


def test_every_stored_image_of_a_packed_set_brings_its_tiles(tmp_path: Path) -> None:
    whole = stored(sorted([*range(10)] * 3), decoding=Decoding("partition", {"factor": 2}))
    publish(whole, str(tmp_path / "set"))
    part = load(str(tmp_path / "set"), ipc=2)
    assert len(part) == 80
    with pytest.raises(ConfigError, match="ipc=4: class 0 has 3 images"):
        load(str(tmp_path / "set"), ipc=4)
    with pytest.raises(ConfigError, match="ipc=0: at least the first image"):
        load(str(tmp_path / "set"), ipc=0)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["fp16", "online"])
def test_a_part_is_labelled_by_the_teachers_of_the_whole(codec: str, tmp_path: Path) -> None:
    labels = {"batch": 20, "epochs": 2, "codec": codec}
    assert job(tmp_path, "sre2l", {"labels": labels}).exit_code == 0
    whole = str(tmp_path / "out" / "distilled")
    args = ["--networks", NETWORKS[0], "--repeats", "1", f"store={tmp_path / 'store'}"]
    made = raydd("evaluate", whole, *args, "--ipc", "1", "--output", str(tmp_path / "part"))
    assert made.exit_code == 0, made.output
    report = json.loads((tmp_path / "part" / "report.json").read_text())
    (row, random) = report["rows"]
    for one in (row, random):
        assert one["image_bytes"] == 10 * 8 * 8
        assert one["protocol"] == "sre2l[epochs=2,batch=10]"
        assert one["label_bytes"] == 10 * 8, "hard labels alone"
        weights = [4 * network_facts(name, (1, 8, 8), 10).parameters for name in NETWORKS]
        assert one["account"]["teacher_bytes"] == sum(weights), "both compute the labels"
        assert one["account"]["bits_per_class"] == 8 * 72
    refused = raydd("evaluate", whole, *args, "--ipc", "1", "--labels", whole)
    assert (refused.exit_code, "leave out one of the two" in refused.output) == (2, True)
    large = raydd("evaluate", whole, *args, "--ipc", "3", "--dry-run")
    assert (large.exit_code, "ipc=3: class 0 has 2 images" in large.output) == (2, True)
