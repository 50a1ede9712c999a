"""Labelling: the teachers' mean, what they see, resuming, workers, costs and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import run_group
from label_toys import SEEN, ToyContext, ToySource, ToyTeacher, info, labels_of, run_epoch

from raydd.core.errors import ConfigError, DataError, NumericsError
from raydd.core.store import Store
from raydd.core.tensors import digest, dump_tensors, load_tensors
from raydd.core.units import Numerics, unit_key
from raydd.labels.ensemble import combine, predict
from raydd.labels.label_config import LabelConfig
from raydd.labels.relabel import Relabel

SMALL = LabelConfig(batch=4, epochs=2)
SOURCE = ToySource(dataset=info())


def det(shape: tuple[int, ...], a: float, b: float, scale: float) -> torch.Tensor:
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (scale * (torch.sin(a * i + b) + 0.5 * torch.cos(0.013 * i))).float().view(shape)


def test_golden_ensembles() -> None:
    outs = [det((4, 10), 0.3 + 0.1 * k, 0.2, 1 + k) for k in range(3)]
    norms = torch.tensor([5.552600, 11.568080, 16.404910])
    torch.testing.assert_close(torch.stack([out.norm() for out in outs]), norms, rtol=2e-5, atol=0)
    torch.testing.assert_close(
        combine(outs, "rescaled").norm(),
        (sum(out * norms.mean() / out.norm() for out in outs) / 3).norm(),
    )
    torch.testing.assert_close(
        combine(outs, "mean")[0, :3],
        torch.tensor([1.397339, 2.180370, 2.731801]),
        rtol=2e-5,
        atol=0,
    )
    torch.testing.assert_close(
        combine(outs, "rescaled")[0, :3],
        torch.tensor([1.394617, 2.122091, 2.655810]),
        rtol=2e-5,
        atol=0,
    )


def test_teachers_see_at_most_a_chunk_and_keep_no_graph() -> None:
    teacher = ToyTeacher(dataset=info()).make()
    SEEN.clear()
    found = predict([teacher], torch.randn(600, 3, 16, 16).requires_grad_(True), "mean")
    assert [len(seen) for seen in SEEN] == [256, 256, 88]
    assert not found.requires_grad


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"codec": "int8"},
        {"codec": "topk", "top": 2},
        {"shuffle": 2, "randaugment": True, "ensemble": "rescaled"},
    ],
    ids=["fp16", "int8", "topk", "options"],
)
def test_an_interrupted_epoch_has_the_same_bytes(fields: dict[str, Any]) -> None:
    stage = labels_of(replace(SMALL, **fields), SOURCE).relabel
    assert digest(run_epoch(stage, 1)) == digest(run_epoch(stage, 1, interrupted=True))
    assert digest(run_epoch(stage, 1)) != digest(run_epoch(stage, 0))


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    stage = labels_of(replace(SMALL, epochs=5), SOURCE).relabel
    found = set()
    for world in (1, 2, 3):
        store = Store(str(tmp_path / str(world)))
        run_group(stage.refs(), store, world)
        found.add(tuple(digest(store.load(ref)) for ref in stage.refs()))
    assert len(found) == 1
    assert len(set(next(iter(found)))) == 5, "every epoch has other views"


def test_labels_are_those_of_the_images_the_teachers_saw() -> None:
    stage = labels_of(SMALL, SOURCE).relabel
    SEEN.clear()
    record = run_epoch(stage, 0)
    per_batch = len(stage.teachers)
    seen = torch.cat(SEEN[::per_batch])
    logits = torch.stack([teacher.make()(seen) for teacher in stage.teachers]).mean(0)
    error = (record["logits"].float() - logits).abs()
    assert bool((error <= 2**-11 * logits.abs() + 1e-3).all())
    assert sorted(record["index"].tolist()) == list(range(14))
    assert bytes(record["images"].tolist()).hex() == SOURCE.load().digest


def test_the_order_is_the_samplers_and_the_last_batch_is_kept() -> None:
    stage = labels_of(SMALL, SOURCE).relabel
    sampler = torch.utils.data.RandomSampler(range(14), generator=torch.Generator().manual_seed(42))
    for epoch in range(2):
        record = run_epoch(stage, epoch)
        assert record["index"].tolist() == list(sampler)
        assert record["lam"].shape == (4,)
        assert record["perm"][12:].long().max() < 2


def test_epochs_are_in_no_key_and_all_else_is() -> None:
    stage = labels_of(SMALL, SOURCE).relabel
    assert unit_key(stage, "epoch-001") == unit_key(
        replace(stage, config=replace(SMALL, epochs=9)), "epoch-001"
    )
    others = [
        replace(stage, config=replace(SMALL, **fields))
        for fields in (
            {"batch": 5},
            {"crop": None},
            {"alpha": 2.0},
            {"codec": "int8"},
            {"sampler_seed": 1},
            {"ensemble": "rescaled"},
        )
    ]
    others += [
        replace(stage, seed=9),
        replace(stage, teachers=stage.teachers[:1]),
        replace(stage, source=replace(SOURCE, draw=1)),
    ]
    assert len({unit_key(s, "epoch-001") for s in [stage, *others]}) == 1 + len(others)


def test_facts_are_json_and_costs_are_the_files() -> None:
    stage = labels_of(SMALL, SOURCE).relabel
    facts = json.loads(json.dumps(stage.facts()))
    assert (facts["epochs"], facts["images"], facts["classes"], facts["seed"]) == (2, 14, 5, 3)
    assert facts["config"]["batch"] == 4
    assert len({teacher["key"] for teacher in facts["teachers"]}) == 2
    record = run_epoch(stage, 0)
    assert stage.cost("epoch-000").output_bytes == sum(
        t.numel() * t.element_size() for t in record.values()
    )
    assert facts["bytes"] == 2 * stage.cost("epoch-000").output_bytes


def test_the_published_setting_takes_six_gigabytes() -> None:
    source = ToySource(dataset=info(size=32, classes=1000), images=10_000)
    stage = labels_of(LabelConfig(), source, teachers=1).relabel
    assert sum(stage.cost(unit).output_bytes for unit in stage.units()) == pytest.approx(
        6.07e9, rel=1e-3
    )
    assert stage.steps("epoch-000") == 100


def stage_with(**fields: Any) -> Relabel:
    base = labels_of(SMALL, SOURCE)
    values = {
        "source": SOURCE,
        "teachers": base.teachers,
        "config": SMALL,
        "seed": 0,
        "numerics": Numerics(),
        **fields,
    }
    return Relabel(**values)


def test_what_cannot_be_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="an ensemble of none"):
        stage_with(teachers=())
    with pytest.raises(ConfigError, match="same classes, not convnet1_w8: 5, convnet1_w8: 7"):
        stage_with(teachers=(ToyTeacher(dataset=info()), ToyTeacher(dataset=info(classes=7))))
    with pytest.raises(ConfigError, match="more than the set's 14 images"):
        stage_with(config=replace(SMALL, batch=15))
    with pytest.raises(ConfigError, match="more than the 5 classes"):
        stage_with(config=replace(SMALL, codec="topk", top=6))
    with pytest.raises(ConfigError, match="nothing to store"):
        stage_with(config=replace(SMALL, codec="recipe"))
    with pytest.raises(ConfigError, match="known number of images"):
        stage_with(source=replace(SOURCE, images=0))


class Grown(ToySource):
    """A set that has one image fewer than it says."""

    def load(self, ctx: Any = None) -> Any:
        return ToySource(dataset=self.dataset, images=self.images - 1).load()


def test_what_does_not_fit_is_refused_when_it_is_read() -> None:
    stage, ctx = stage_with(source=Grown(dataset=info())), ToyContext()
    with pytest.raises(DataError, match="has 13 images; its labels were planned for 14"):
        stage.step("epoch-000", stage.init("epoch-000", ctx), 0, ctx)
    elsewhere = replace(info(), mean=(0.1, 0.1, 0.1))
    stage = stage_with(teachers=(ToyTeacher(dataset=elsewhere),))
    with pytest.raises(ConfigError, match="expects mean"):
        stage.step("epoch-000", stage.init("epoch-000", ctx), 0, ctx)
    stage = stage_with(teachers=(ToyTeacher(dataset=info(classes=7)),))
    with pytest.raises(ConfigError, match="know 7 classes; the set has 5"):
        stage.step("epoch-000", stage.init("epoch-000", ctx), 0, ctx)
    stage = stage_with(teachers=(ToyTeacher(dataset=info(), gain=float("inf")),))
    with pytest.raises(NumericsError, match="NaN or infinity"):
        stage.step("epoch-000", stage.init("epoch-000", ctx), 0, ctx)


def test_a_record_survives_the_file() -> None:
    record = run_epoch(labels_of(SMALL, SOURCE).relabel, 0)
    assert digest(load_tensors(dump_tensors(record))) == digest(record)
