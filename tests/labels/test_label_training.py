"""Soft labels at work: teachers trained by another stage, epochs stored by workers, students that learn them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from groups import run_group
from label_toys import ToyContext, ToySource, ToyTeacher, context_of, info, labels_of

from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import digest
from raydd.core.units import Numerics
from raydd.data.arrays import ArrayData
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_sources import Labels
from raydd.training.backbones import Backbone
from raydd.training.recipe import Recipe
from raydd.training.students import StudentTraining
from raydd.training.train_network import TrainNetwork

SOURCE = ToySource(dataset=info(), images=20)
CONFIG = LabelConfig(batch=5, epochs=6)
NUMERICS = Numerics()


def students(stacked: bool = False) -> StudentTraining:
    recipe = Recipe(epochs=6, batch=5, lr=0.05, weight_decay=0.0, loss="mse_gt", ce_weight=0.025)
    return StudentTraining(
        network="convnet1_w8",
        shape=SOURCE.dataset.shape,
        classes=5,
        recipe=recipe,
        numerics=NUMERICS,
        repeats=[0, 1],
        rng=partial(generator, 7),
        device=torch.device("cpu"),
        stacked=stacked,
    )


@pytest.mark.parametrize("codec", ["fp16", "int8", "recipe", "online"])
def test_students_come_nearer_to_their_teachers(codec: str) -> None:
    labels = labels_of(replace(CONFIG, codec=codec), SOURCE)  # type: ignore[arg-type]
    labels = replace(labels, teachers=(ToyTeacher(dataset=SOURCE.dataset, gain=5.0),))
    training, opened = students(), labels.open(SOURCE.load(), context_of(labels))
    state, losses = training.init(), []
    for epoch in range(6):
        state, loss, _ = training.epoch(state, epoch, opened)
        losses.append(loss)
    assert bool((losses[-2] + losses[-1] < 0.8 * (losses[0] + losses[1])).all()), losses


def test_stacked_students_learn_the_same_labels() -> None:
    labels = labels_of(replace(CONFIG, codec="online"), SOURCE, teachers=1)
    alone, stack = students(), students(stacked=True)
    found = [
        training.epoch(training.init(), 2, labels.open(SOURCE.load(), ToyContext()))[1]
        for training in (alone, stack)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert float(found[0][0]) != float(found[0][1])


def test_teachers_trained_by_a_stage_label_the_same_for_any_number_of_workers(
    tmp_path: Path,
) -> None:
    dataset = SOURCE.dataset.only("train")
    train = ArrayData(
        torch.randint(0, 256, (30, 3, 16, 16), generator=generator(0, "d")).to(torch.uint8),
        torch.arange(30) % 5,
        "train",
    )
    training = TrainNetwork(
        seed=1,
        numerics=NUMERICS,
        dataset=dataset,
        network="convnet1_w8",
        recipe=Recipe(epochs=1, batch=10),
    )
    teacher = Backbone(network="convnet1_w8", dataset=dataset, training=training)
    labels = Labels(
        source=SOURCE,
        teachers=(teacher,),
        config=replace(CONFIG, epochs=2),
        seed=0,
        numerics=NUMERICS,
    )
    assert set(labels.relabel.inputs("epoch-000")) == {"teacher-0"}
    found = []
    for world in (1, 2):
        store = Store(str(tmp_path / str(world)))
        run_group(list(labels.inputs().values()), store, world, open_data=lambda: {"train": train})
        found.append([digest(store.load(ref)) for ref in labels.inputs().values()])
    assert found[0] == found[1]
    ctx = ToyContext({name: store.load(ref) for name, ref in labels.inputs().items()})
    recipe = replace(labels, config=replace(labels.config, codec="recipe"))
    assert set(recipe.inputs()) == {"teacher-0"}
    live = ToyContext({name: store.load(ref) for name, ref in recipe.inputs().items()})
    pairs = zip(
        *(
            one.open(SOURCE.load(), c).batches(1, 5, ctx.rng)
            for one, c in ((labels, ctx), (recipe, live))
        ),
        strict=True,
    )
    for (images, targets), (others, exact) in pairs:
        assert torch.equal(images, others)
        assert torch.equal(targets.logits, exact.logits.half().float())
