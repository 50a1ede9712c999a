"""Students' side of soft labels: the images are those the teachers saw, and the labels those that were stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from label_toys import SEEN, ToyContext, ToySource, context_of, info, labels_of, run_epoch

from raydd.artifacts.distilled_set import DistilledSet, Whitening
from raydd.core.errors import ConfigError, DataError, TornFileError
from raydd.core.rng import generator
from raydd.core.tensors import dump_tensors
from raydd.core.units import canonical
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_sources import Labels
from raydd.labels.labelled_set import LabelledSet, SoftBatch
from raydd.labels.published import PublishedLabels, manifest
from raydd.labels.records import RecordedEpoch
from raydd.training.students import of_repeat

SMALL = LabelConfig(batch=4, epochs=2)
SOURCE = ToySource(dataset=info())
RNG = partial(generator, 7)
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rdeds": {"shuffle": 2, "crop": (0.5, 1.0), "randaugment": True},
    "padded mixup": {"crop": None, "pad_crop": 2, "mix": "mixup", "alpha": 0.8},
}


def batches(opened: LabelledSet, epoch: int = 0, rng: Any = RNG) -> list[SoftBatch]:
    return list(opened.batches(epoch, opened.config.batch, rng))


def same(one: Sequence[SoftBatch], other: Sequence[SoftBatch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(
        torch.equal(a, b) and torch.equal(s.logits, t.logits) and torch.equal(s.hard, t.hard)
        for (a, s), (b, t) in pairs
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "source",
    [
        SOURCE,
        ToySource(dataset=info(size=28, channels=1)),
        ToySource(dataset=info(), floats=True),
        ToySource(dataset=info(), images=16, tiled=True),
        ToySource(dataset=info(), images=16, tiled=True, floats=True),
    ],
    ids=["rgb", "grey", "float", "tiles of pixels", "tiles"],
)
def test_students_see_what_the_teachers_saw(way: str, source: ToySource) -> None:
    fields = (
        {**WAYS[way], "randaugment": False}
        if (source.floats or source.tiled) and "randaugment" in WAYS[way]
        else WAYS[way]
    )
    labels = labels_of(replace(SMALL, **fields), source)
    SEEN.clear()
    ctx = context_of(labels)
    seen = SEEN[:: len(labels.teachers)]
    found = batches(labels.open(source.load(), ctx), 0) + batches(
        labels.open(source.load(), ctx), 1
    )
    assert len(found) == len(seen) == 8
    networks = [teacher.make() for teacher in labels.teachers]
    for (images, targets), shown in zip(found, seen, strict=True):
        assert torch.equal(images, shown)
        exact = torch.stack([network(images) for network in networks]).mean(0)
        assert bool(((targets.logits - exact).abs() <= 2**-11 * exact.abs() + 1e-3).all())
    order = torch.cat([ctx.load(f"labels/epoch-{e:03d}")["index"].long() for e in range(2)])
    assert torch.equal(
        torch.cat([targets.hard for _, targets in found]), source.load().labels_of(order)
    )


@pytest.mark.parametrize(
    "fields", [{"codec": "int8"}, {"codec": "topk", "top": 5}], ids=["int8", "topk"]
)
def test_other_codecs_change_the_logits_alone(fields: dict[str, Any]) -> None:
    fp16 = labels_of(SMALL, SOURCE)
    other = labels_of(replace(SMALL, **fields), SOURCE)
    pairs = zip(
        *(batches(labels.open(SOURCE.load(), context_of(labels))) for labels in (fp16, other)),
        strict=True,
    )
    for (images, targets), (others, stored) in pairs:
        assert torch.equal(images, others)
        torch.testing.assert_close(stored.logits, targets.logits, rtol=2e-2, atol=2e-3)


def test_a_recipe_computes_what_would_have_been_stored() -> None:
    stored, recipe = labels_of(SMALL, SOURCE), labels_of(replace(SMALL, codec="recipe"), SOURCE)
    assert len(stored.inputs()) == 2
    assert len(recipe.inputs()) == 0
    assert recipe.stages() == []
    assert recipe.bytes == 0
    opened = recipe.open(SOURCE.load(), ToyContext())
    for epoch in range(2):
        ours, theirs = (
            batches(opened, epoch),
            batches(stored.open(SOURCE.load(), context_of(stored)), epoch),
        )
        for (images, targets), (others, rounded) in zip(ours, theirs, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(targets.logits.half().float(), rounded.logits)
    assert len(batches(opened, 5)) == 4, "epochs that are not stored have no end"


def test_students_share_the_teachers_work_of_a_recipe_but_not_online() -> None:
    for codec, calls in (("recipe", 4), ("online", 12)):
        opened = labels_of(replace(SMALL, codec=codec), SOURCE, teachers=1).open(
            SOURCE.load(), ToyContext()
        )
        SEEN.clear()
        alone = [batches(opened, 0, of_repeat(RNG, repeat)) for repeat in range(3)]
        assert len(SEEN) == calls
        assert same(alone[0], alone[1]) == (codec == "recipe")
        lockstep = list(
            zip(*(opened.batches(0, 4, of_repeat(RNG, repeat)) for repeat in range(3)), strict=True)
        )
        for repeat in range(3):
            assert same(alone[repeat], [step[repeat] for step in lockstep])


def test_online_views_are_keyed_by_the_student() -> None:
    labels = labels_of(replace(SMALL, codec="online"), SOURCE)
    opened = labels.open(SOURCE.load(), ToyContext())
    one, two = (of_repeat(RNG, repeat) for repeat in range(2))
    first = batches(opened, 3, one)
    assert same(first, batches(labels.open(SOURCE.load(), ToyContext()), 3, one))
    assert not same(first, batches(opened, 3, two))
    assert not same(first, batches(opened, 4, one))
    hard = torch.cat([targets.hard for _, targets in first])
    assert torch.equal(hard.bincount(), SOURCE.load().labels.bincount()), "every image once"


@pytest.mark.parametrize("codec", ["fp16", "recipe", "online"])
def test_batches_built_ahead_are_the_same(codec: Any) -> None:
    labels = labels_of(replace(SMALL, codec=codec), SOURCE)
    ctx = context_of(labels)
    opened, ahead = labels.open(SOURCE.load(), ctx), labels.open(SOURCE.load(), ctx)
    ahead._threaded = True
    assert same(batches(opened, 1), batches(ahead, 1))
    lockstep = list(zip(ahead.batches(1, 4, RNG), ahead.batches(1, 4, RNG), strict=True))
    assert same([step[0] for step in lockstep], [step[1] for step in lockstep])


def test_one_epoch_is_held_at_a_time() -> None:
    labels = labels_of(replace(SMALL, epochs=3), SOURCE)
    ctx = context_of(labels)
    opened, asked = labels.open(SOURCE.load(), ctx), []
    load = ctx.load

    def noted(name: str, rows: slice | None = None) -> Any:
        asked.append(name)
        return load(name, rows)

    ctx.load = noted  # type: ignore[method-assign]
    for epoch in (0, 0, 1, 2, 2):
        batches(opened, epoch)
    assert asked == ["labels/epoch-000", "labels/epoch-001", "labels/epoch-002"]
    assert isinstance(opened._kept, tuple)
    assert isinstance(opened._kept[1], RecordedEpoch)


def test_trainings_that_do_not_fit_their_labels_are_refused() -> None:
    labels = labels_of(SMALL, SOURCE)
    opened = labels.open(SOURCE.load(), context_of(labels))
    labels.fits(4, 2)
    for refused in (partial(labels.fits, 5, 2), lambda: next(opened.batches(0, 5, RNG))):
        with pytest.raises(ConfigError, match="students' batch is 5, that of their labels 4"):
            refused()
    for refused in (partial(labels.fits, 4, 3), lambda: next(opened.batches(2, 4, RNG))):
        with pytest.raises(
            ConfigError, match="3 epochs of training need as many epochs of labels; 2 are stored"
        ):
            refused()
    with pytest.raises(ConfigError, match="augmentation 'dsa' would change images"):
        labels.fits(4, 2, "dsa")
    labels_of(replace(SMALL, codec="online"), SOURCE).fits(4, 300)
    with pytest.raises(ConfigError, match="more than the set's 14 images"):
        labels_of(replace(SMALL, batch=20), SOURCE)


def test_labels_of_other_images_are_refused() -> None:
    labels = labels_of(SMALL, SOURCE)
    opened = labels.open(replace(SOURCE, draw=1).load(), context_of(labels))
    with pytest.raises(DataError, match="labels of another set"):
        next(opened.batches(0, 4, RNG))
    size = SOURCE.load().images[0].numel()
    white = Whitening(matrix=torch.eye(size), mean=torch.zeros(size))
    with pytest.raises(ConfigError, match="images that are not whitened"):
        labels.open(replace(SOURCE.load(), whitening=white), ToyContext())


def test_labels_are_part_of_a_key() -> None:
    labels = labels_of(SMALL, SOURCE)
    keys = [
        canonical(found)
        for found in (
            labels,
            replace(labels, seed=1),
            replace(labels, config=replace(SMALL, alpha=0.5)),
        )
    ]
    assert len({json.dumps(key) for key in keys}) == 3
    assert list(labels.inputs()) == ["labels/epoch-000", "labels/epoch-001"]
    assert (
        [ref.stage for ref in labels.inputs().values()]
        == [labels.relabel] * 2
        == labels.stages() * 2
    )


# -- published labels ------------------------------------------------------------------------------


def published(folder: Path, labels: Labels) -> None:
    """Write the files that a run publishes."""
    (folder / "labels").mkdir(parents=True)
    files = {}
    for epoch, unit in enumerate(labels.relabel.units()):
        data = dump_tensors(run_epoch(labels.relabel, epoch))
        (folder / "labels" / f"{unit}.safetensors").write_bytes(data)
        files[f"{unit}.safetensors"] = {
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    (folder / "labels" / "manifest.json").write_bytes(manifest(labels.relabel, files))


@pytest.mark.parametrize(
    "fields",
    [{}, {"codec": "int8", "shuffle": 2}, {"codec": "topk", "top": 2, "crop": None, "pad_crop": 1}],
)
def test_published_labels_are_those_of_the_run(tmp_path: Path, fields: dict[str, Any]) -> None:
    labels = labels_of(replace(SMALL, **fields), SOURCE)
    published(tmp_path, labels)
    for url in (tmp_path, tmp_path / "labels"):
        found = PublishedLabels.at(str(url))
        assert found.config == labels.config
        assert found.bytes == labels.bytes
        assert (dict(found.inputs()), found.stages()) == ({}, [])
        opened = found.open(SOURCE.load(), ToyContext())
        for epoch in range(2):
            assert same(
                batches(opened, epoch),
                batches(labels.open(SOURCE.load(), context_of(labels)), epoch),
            )
    found.fits(4, 2)
    with pytest.raises(ConfigError, match="2 are stored"):
        found.fits(4, 3)
    assert "tmp" not in json.dumps(canonical(found)), "where it lies is in no key"


def test_published_labels_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    published(tmp_path, labels_of(SMALL, SOURCE))
    opened = PublishedLabels.at(str(tmp_path)).open(SOURCE.load(), ToyContext())
    path = tmp_path / "labels" / "epoch-001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TornFileError, match=r"epoch-001\.safetensors is torn"):
        batches(opened, 1)
    with pytest.raises(
        TornFileError, match=r"epoch-001\.safetensors is torn: \d+ bytes, manifest\.json says \d+"
    ):
        PublishedLabels.at(str(tmp_path)).check(SOURCE.load())
    path.unlink()
    with pytest.raises(
        TornFileError, match=r"epoch-001\.safetensors is missing although manifest\.json names it"
    ):
        PublishedLabels.at(str(tmp_path)).check(SOURCE.load())
    with pytest.raises(TornFileError, match="is missing although"):
        batches(opened, 1)


def test_manifests_and_sets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    published(tmp_path, labels_of(SMALL, SOURCE))
    found = PublishedLabels.at(str(tmp_path))
    found.check(SOURCE.load())
    other: DistilledSet = ToySource(dataset=info(), images=13).load()
    with pytest.raises(DataError, match="labels 14 images of 5 classes; the set has 13 images"):
        found.open(other, ToyContext())
    with pytest.raises(DataError, match="labels of another set"):
        found.check(replace(SOURCE, draw=1).load())
    path = tmp_path / "labels" / "manifest.json"
    good = json.loads(path.read_text())
    for change, message in (
        ({"format": "raydd-distilled-set"}, "is of format"),
        ({"version": 99}, "version 99"),
        ({"config": {"nonsense": 1}}, "not a manifest of labels"),
        ({"config": {**good["config"], "codec": "recipe"}}, "none that stores labels"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(DataError, match=message):
            PublishedLabels.at(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        PublishedLabels.at(str(tmp_path / "nothing"))
