"""Static labels: one row of logits for each image, of the images themselves; golden steps of a student
(docs/methods/parity.md, "Tensors of DWA").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_nets import GoldenNet, golden_images
from label_toys import ToyContext, ToySource, ToyTeacher, context_of, info, labels_of, run_epoch

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import KeyedRng, generator
from raydd.core.tensors import digest, dump_tensors
from raydd.labels.ensemble import predict
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_views import DrawnViews
from raydd.labels.labelled_set import SoftBatch
from raydd.labels.published import PublishedLabels, manifest
from raydd.labels.records import label_bytes
from raydd.labels.static import LabelImages, mixed_rows
from raydd.losses.soft import SoftTargets, distillation_kl

CONFIG = LabelConfig(batch=4, crop=None, pad_crop=1, mix="mixup", alpha=0.8, codec="static")
SOURCE = ToySource(dataset=info())


def keyed(seed: int) -> KeyedRng:
    return lambda stream, *ids: generator(seed, stream, *ids)


def batches(opened: Any, epoch: int, seed: int = 0) -> list[SoftBatch]:
    return list(opened.batches(epoch, 4, keyed(seed)))


def views(count: int, **fields: Any) -> DrawnViews:
    given = {
        "index": torch.arange(count),
        "boxes": torch.zeros(count, 4, dtype=torch.int64),
        "flips": torch.zeros(count, dtype=torch.bool),
        "perm": torch.arange(count).flip(0),
    }
    return DrawnViews(**(given | fields))


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_mean_of_two_rows_is_taken_before_the_softmax() -> None:
    rows = torch.tensor([[2.0, 0.0, -1.0], [-1.0, 3.0, 0.0]])
    found = mixed_rows(rows, views(2, lam=0.3), "mixup", (8, 8))[0]
    wanted = [0.3257918302, 0.3505810613, 0.3236271084]
    assert (found / 30).softmax(0).tolist() == pytest.approx(wanted, rel=1e-6)
    assert torch.equal(mixed_rows(rows, views(2, lam=0.3), "none", (8, 8)), rows)


def test_a_box_counts_for_the_share_of_the_image_that_it_has() -> None:
    rows = torch.tensor([[8.0, 0.0], [0.0, 16.0]])
    drawn = views(
        2, lam=0.1, box=(2, 0, 8, 4)
    )  # 24 of 64 pixels, whatever the ratio that was drawn
    found = mixed_rows(rows, drawn, "cutmix", (8, 8))
    assert found.tolist() == [[5.0, 6.0], [3.0, 10.0]]


@pytest.mark.usefixtures("double")
def test_golden_steps_of_a_student() -> None:
    teachers = [GoldenNet(off) for off in (0, 3, 6, 9)]
    student, x = GoldenNet(20), golden_images(10, 32)
    student.train().requires_grad_()
    rows = torch.stack([teacher(x) for teacher in teachers]).mean(0)
    near = predict(teachers, x, "mean")
    torch.testing.assert_close(near.double(), rows, rtol=1e-6, atol=1e-5)
    targets = SoftTargets(mixed_rows(rows, views(10, lam=0.3), "mixup", (32, 32)), torch.arange(10))
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01)
    found = []
    for _ in range(3):
        loss = distillation_kl(student(0.3 * x + 0.7 * x.flip(0)), targets, 30.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    wanted = (0.008712030855, 0.008657600638, 0.008602637551)
    assert found == pytest.approx(wanted, rel=1e-9)
    total = sum(p.abs().sum().item() for p in student.parameters())
    assert total == pytest.approx(123.824023416425, rel=1e-12)


def test_every_view_of_an_image_has_the_mean_of_the_teachers_logits_of_the_image() -> None:
    config = replace(CONFIG, mix="none", alpha=1.0)
    labels = labels_of(config, SOURCE)
    distilled: DistilledSet = SOURCE.load()
    images = distilled.normalised(distilled.take())
    with torch.no_grad():
        rows = torch.stack(
            [ToyTeacher(dataset=SOURCE.dataset, draw=k, gain=1 + k).make()(images) for k in (0, 1)]
        ).mean(0)
    opened, seen = labels.open(distilled, context_of(labels)), 0
    for epoch in (0, 7):
        for _, targets in batches(opened, epoch):
            matches = (targets.logits[:, None] - rows).abs().amax(2).argmin(1)
            torch.testing.assert_close(targets.logits, rows[matches], rtol=1e-5, atol=1e-5)
            assert torch.equal(targets.hard, distilled.labels[matches])
            seen += len(targets.hard)
    assert seen == 2 * len(distilled)


def test_students_have_views_of_their_own_and_epochs_without_end() -> None:
    labels = labels_of(CONFIG, SOURCE)
    labels.fits(4, 100_000)
    with pytest.raises(ConfigError, match="the students' batch is 8, that of their labels 4"):
        labels.fits(8, 1)
    opened = labels.open(SOURCE.load(), context_of(labels))
    one, same, other, later = (
        torch.cat([images for images, _ in batches(opened, epoch, seed)])
        for epoch, seed in ((500, 0), (500, 0), (500, 1), (501, 0))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, later)


@pytest.mark.parametrize("source", [SOURCE, replace(SOURCE, tiled=True, images=16)])
@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_rows_that_are_not_kept_are_those_that_are(source: ToySource, mix: Any) -> None:
    labels = labels_of(replace(CONFIG, mix=mix), source)
    live = replace(labels, kept=False)
    assert (live.stages(), dict(live.inputs())) == ([], {})
    assert list(labels.inputs()) == ["labels/static"]
    pairs = zip(
        batches(labels.open(source.load(), context_of(labels)), 3),
        batches(live.open(source.load(), ToyContext()), 3),
        strict=True,
    )
    for (images, targets), (others, computed) in pairs:
        assert torch.equal(images, others)
        assert torch.equal(targets.logits, computed.logits)


def test_a_stage_goes_on_from_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.labels.static.CHUNK", 4)
    stage = labels_of(CONFIG, SOURCE).relabel
    assert isinstance(stage, LabelImages)
    assert (stage.steps("static"), stage.units()) == (4, ("static",))
    whole = run_epoch(stage, 0)
    assert digest(run_epoch(stage, 0, interrupted=True)) == digest(whole)
    rows = stage.rows(SOURCE.load(), ToyContext())
    assert torch.equal(whole["logits"], rows)
    assert bool((rows.abs().sum(1) > 0).all())


def test_sizes_are_those_of_the_file() -> None:
    assert label_bytes(CONFIG, 900 * 5, 100) == 4500 * 100 * 4 + 32
    labels = labels_of(CONFIG, SOURCE)
    record = run_epoch(labels.relabel, 0)
    planned = sum(t.numel() * t.element_size() for t in record.values())
    assert planned == labels.bytes == labels.relabel.cost("static").output_bytes
    assert labels.relabel.cost("static").peak_bytes > SOURCE.size.bytes + planned
    assert len(dump_tensors(record)) < planned + 400, "a header is all that a file adds"
    assert labels.flop(80, 5) == 0
    assert replace(labels, kept=False).flop(80, 5) == replace(labels, kept=False).flop(1, 1) > 0


def test_published_rows_are_those_of_the_run(tmp_path: Path) -> None:
    labels = labels_of(CONFIG, SOURCE)
    (tmp_path / "labels").mkdir()
    data = dump_tensors(run_epoch(labels.relabel, 0))
    path = tmp_path / "labels" / "static.safetensors"
    path.write_bytes(data)
    files = {path.name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    (tmp_path / "labels" / "manifest.json").write_bytes(manifest(labels.relabel, files))
    found = PublishedLabels.at(str(tmp_path))
    assert (found.config, found.bytes) == (CONFIG, labels.bytes)
    found.fits(4, 100_000)
    found.check(SOURCE.load())
    pairs = zip(
        batches(found.open(SOURCE.load(), ToyContext()), 2),
        batches(labels.open(SOURCE.load(), context_of(labels)), 2),
        strict=True,
    )
    for (images, targets), (others, kept) in pairs:
        assert torch.equal(images, others)
        assert torch.equal(targets.logits, kept.logits)
    with pytest.raises(DataError, match="labels of another set"):
        found.check(replace(SOURCE, draw=1).load())
    with pytest.raises(DataError, match="labels of another set"):
        labels.open(replace(SOURCE, draw=1).load(), context_of(labels))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher_mode": "batch"}, "labels.teacher_mode=batch is of batches of views"),
        ({"ensemble": "rescaled"}, "labels.ensemble=rescaled is of batches of views"),
        ({"sampler_seed": 7}, "sampler_seed=7 has no effect with labels.codec=static"),
        ({"top": 5}, "belong to labels.codec=topk"),
    ],
)
def test_what_has_no_meaning_for_images_alone_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **fields)
