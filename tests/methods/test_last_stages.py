"""A method whose set is made of the outputs of several stages, one of which has nothing to iterate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from raydd.artifacts.decoding import SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.config import load_job
from raydd.core.store import Store
from raydd.core.tensors import Tensors
from raydd.core.units import Numerics, Ref, Stage, snapshot
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.plan import evaluation_stages
from raydd.evaluation.summary import summarise
from raydd.methods.method import METHODS, ClassBlocks, Method, Problem, by_stage, register_method
from raydd.methods.random_selection import DrawImages
from raydd.runtime.planning import make_plan
from raydd.runtime.runner import LocalRunner


@dataclass(frozen=True, kw_only=True)
class Brighten(ClassBlocks):
    """An image of each class, from black, brighter by a step with every update."""

    phase: ClassVar[str] = "distill"
    updates: int
    by: float

    def steps(self, unit: str) -> int:
        return self.updates

    def init(self, unit: str, ctx: Any) -> Tensors:
        return {"images": torch.zeros(len(self.blocks[unit]), *self.dataset.shape)}

    def step(self, unit: str, state: Tensors, t: int, ctx: Any) -> Tensors:
        return {"images": state["images"] + self.by}


@pytest.fixture(scope="module")
def both() -> Any:
    @register_method("test_both")
    @dataclass(frozen=True, kw_only=True)
    class Both(Method):
        """Real images, and two synthetic ones of each class, of 4 and of 6 updates."""

        by: float = 1.0

        def plan(self, problem: Problem) -> list[Stage]:
            given = {"seed": problem.seed, "dataset": problem.dataset.only("train")}
            natural = DrawImages(ipc=problem.ipc, classes_per_unit=10, **given)
            made = [
                Brighten(classes_per_unit=5, updates=updates, by=self.by * updates, **given)
                for updates in (4, 6)
            ]
            return [natural, *made]

        def last(self, problem: Problem) -> list[Stage]:
            return self.plan(problem)

        def size(self, problem: Problem) -> SetSize:
            images = 10 * (problem.ipc + 2)
            return SetSize(images, images, images * (4 * 64 + 8))

        def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
            natural, *made = by_stage(outputs)
            real = natural["classes-0000-0009"]["images"].float() / 255
            parts = [torch.cat([part[unit]["images"] for unit in sorted(part)]) for part in made]
            labels = torch.arange(10)
            return DistilledSet(
                images=torch.cat([real, *parts]),
                labels=torch.cat([labels.repeat_interleave(problem.ipc), labels, labels]),
                info=problem.dataset,
            )

    yield Both()
    METHODS._items.pop("test_both")


@pytest.fixture(scope="module")
def info() -> DatasetInfo:
    return with_digests(entry("digits").info, open_data(DatasetConfig(name="digits")))


def test_targets_are_of_all_stages(both: Method, info: DatasetInfo) -> None:
    problem = Problem(dataset=info, ipc=3, seed=0, numerics=Numerics())
    names = ["0/classes-0000-0009"]
    names += [
        f"{place}/classes-{block}" for place in (1, 2) for block in ("0000-0004", "0005-0009")
    ]
    assert list(both.targets(problem)) == names
    assert both.updates(problem) == 6
    at_five = both.targets(problem, snapshot(5))
    assert [ref.output for ref in at_five.values()] == ["final"] * 3 + ["step-000005"] * 2
    assert at_five[names[1]] == Ref(both.plan(problem)[1], "classes-0000-0004")


def test_it_is_run_pictured_and_followed(both: Method, info: DatasetInfo, tmp_path: Path) -> None:
    job = load_job(
        None, ["dataset.name=digits", "ipc=3", "method.name=test_both", "evaluation.every=2"]
    )
    plan = make_plan(job, info)
    assert plan.picture_steps == [0, 2, 4]
    config = EvaluationConfig(epochs=2, networks=("convnet2_w8",), repeats=1, every=2)
    problem = Problem(dataset=info, ipc=3, seed=0, numerics=Numerics())
    evaluation, store = evaluation_stages(both, problem, config), Store(str(tmp_path))
    data = open_data(DatasetConfig(name="digits"))
    LocalRunner(lambda: data, device=torch.device("cpu")).run(
        evaluation.targets(), store, lambda event: None
    )
    report = summarise(evaluation, store.load)
    assert [point.step for point in report.curve] == [0, 2, 4, 6]
    assert (report.rows[0].stored, report.rows[0].seen) == (50, 50)
    assert report.rows[0].image_bytes == 50 * 64 * 4
    for step, expected in ((0, (0, 0)), (4, (16, 24)), (5, (16, 30))):
        outputs = both.targets(problem, snapshot(step))
        runner = LocalRunner(lambda: data, device=torch.device("cpu"))
        runner.run(list(outputs.values()), store, lambda event: None)
        made = both.assemble(problem, {name: store.load(ref) for name, ref in outputs.items()})
        assert [float(made.images[i].mean()) for i in (30, 40)] == pytest.approx(expected)
