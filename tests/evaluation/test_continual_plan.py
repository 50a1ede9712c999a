"""The continual experiment as jobs and commands ask for it: plans, refusals, reports, what is written and tracked."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow.tracking import MlflowClient
from page_tree import check_page

from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.published_folder import publish
from raydd.artifacts.report import Report
from raydd.cli import main
from raydd.config import EvaluationJob, load_job
from raydd.core.errors import ConfigError, DataError
from raydd.core.store import Store
from raydd.core.units import Numerics, Ref
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.evaluation.continual import EvaluateMemory
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.plan import evaluation_stages
from raydd.evaluation.rivals import Rival, RivalKeys, Tiling
from raydd.evaluation.set_sources import AssembledSet, StoredSet
from raydd.evaluation.stored_plan import stored_evaluation
from raydd.evaluation.summary import summarise
from raydd.labels.label_config import LabelConfig
from raydd.methods import METHODS, Problem
from raydd.runtime.evaluating import plan_stored
from raydd.runtime.pipeline import run_job
from raydd.runtime.runner import LocalRunner
from raydd.training.sgd import Recipe
from raydd.training.teacher_config import TeacherConfig

ROOT = Path(__file__).parents[2]
SMALL = EvaluationConfig(
    epochs=1,
    networks=("convnet1_w8",),
    repeats=1,
    continual=5,
    continual_orders=2,
    continual_repeats=2,
)


@pytest.fixture(scope="module")
def digits():
    data = open_data(DatasetConfig(name="digits"))
    return data, with_digests(entry("digits").info, data)


def _problem(info, seed=0):
    return Problem(dataset=info, ipc=2, seed=seed, numerics=Numerics())


def _dm(**fields):
    return METHODS.get("dm")(network="convnet1_w8", iterations=2, batch_real=4, **fields)


def test_the_plan_adds_the_experiment_and_changes_nothing_else(digits):
    problem = _problem(digits[1])
    base = evaluation_stages(
        _dm(), problem, replace(SMALL, continual=None, continual_orders=5, continual_repeats=3)
    )
    plan = evaluation_stages(
        _dm(), problem, replace(SMALL, baselines=("random", "herding", "whole"))
    )
    more = {ref.key for ref in plan.targets()}
    assert {ref.key for ref in base.targets()} < more
    assert base.continual == ()
    assert [(item.set, item.stage.order) for item in plan.continual] == [
        (s, o) for s in ("dm", "random", "herding") for o in (0, 1)
    ]
    assert {ref.key for item in plan.continual for ref in item.stage.refs()} < more
    assert {(item.protocol, item.network) for item in plan.continual} == {
        ("dm[epochs=1]", "convnet1_w8")
    }
    assert [type(item.stage.source).__name__ for item in plan.continual] == ["AssembledSet"] * 2 + [
        "OrderDraw"
    ] * 2 + ["AssembledSet"] * 2
    assert [item.stage.source.order for item in plan.continual[2:4]] == [0, 1]


def test_methods_whose_classes_talk_distil_every_step_and_random_draws_every_order(digits):
    def sources(method, **change):
        plan = evaluation_stages(method, _problem(digits[1]), replace(SMALL, **change))
        return [(item.set, type(item.stage.source).__name__) for item in plan.continual[::2]]

    fields = {"network": "convnet1_w8", "iterations": 1, "batch_real": 4}
    dsa = METHODS.get("dsa")(**fields, outer_loop=2, inner_loop=1)
    names = ("random", "herding", METHODS.get("dm")(**fields))
    kinds = [
        ("dsa", "StepSets"),
        ("random", "OrderDraw"),
        ("herding", "AssembledSet"),
        ("dm", "AssembledSet"),
    ]
    assert sources(dsa, baselines=names) == kinds
    assert sources(replace(dsa, outer_loop=1), baselines=())[0] == ("dsa", "AssembledSet"), (
        "one update per network: classes never talk"
    )
    assert sources(_dm(), baselines=(dsa,)) == [("dm", "AssembledSet"), ("dsa", "StepSets")]
    assert sources(METHODS.get("random")(), baselines=()) == [("random", "OrderDraw")]
    keys = ({"ipc": 1}, {"decoding": Tiling()}, {"equal": "updates"})
    rivals = tuple(Rival(method=METHODS.get("random")(), keys=RivalKeys(**of)) for of in keys)
    assert sources(_dm(), baselines=rivals) == [
        ("dm", "AssembledSet"),
        ("random (ipc 1)", "OrderDraw"),
        ("random (partition 2)", "PackedSet"),
    ], "students of a memory are all trained for as many epochs"


def test_sets_of_methods_with_teachers_are_cut_by_class_and_say_so(digits):
    networks = ("convnet1_w8_batchnorm",)
    method = METHODS.get("dwa")(
        networks=networks,
        teachers=TeacherConfig(weights="train"),
        labels=LabelConfig(batch=10),
        jitter=(0, 1),
        iterations=2,
    )
    problem = _problem(digits[1])
    config = replace(SMALL, protocol="dm", baselines=())
    plan = evaluation_stages(method, problem, config)
    assert {item.stage.source for item in plan.continual} == {
        AssembledSet(method=method, problem=problem)
    }
    assert plan.notes == ("Continual learning: dwa sees all classes; its set is cut by class.",)
    plain = replace(config, continual=None, continual_orders=5, continual_repeats=3)
    assert evaluation_stages(method, problem, plain).notes == ()
    assert evaluation_stages(_dm(), problem, config).notes == ()


def test_repetitions_of_a_distillation_take_the_orders_in_turn(digits):
    problems = [_problem(digits[1], seed) for seed in (4, 7)]
    plan = evaluation_stages(_dm(), problems, replace(SMALL, continual_orders=3))
    assert [
        (item.stage.order, item.stage.source.problem.seed)
        for item in plan.continual
        if item.set == "dm"
    ] == [(0, 4), (1, 7), (2, 4)]
    seeds = [
        [item.stage.seed for item in plan.continual if item.set == name]
        for name in ("dm", "random")
    ]
    assert seeds == [[4, 7, 4]] * 2, "students of both start alike"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"continual": 3}, r"3 steps do not divide 10 classes; allowed: 2, 5, 10"),
        ({"continual": 20}, r"20 steps do not divide 10 classes"),
    ],
)
def test_steps_that_cannot_be_are_refused(digits, change, message):
    with pytest.raises(ConfigError, match=message):
        evaluation_stages(_dm(), _problem(digits[1]), replace(SMALL, **change))


def test_options_without_effect_and_soft_labels_are_refused(digits):
    with pytest.raises(
        ConfigError, match=r"continual_repeats=2 has no effect without evaluation.continual"
    ):
        EvaluationConfig(continual_repeats=2)
    recipe = Recipe(epochs=1, loss="mse_gt", ce_weight=0.1)
    with pytest.raises(ConfigError, match="'mse_gt' needs soft labels, and these cannot be cut"):
        EvaluateMemory(
            seed=0, source=None, dataset=digits[1], recipe=recipe, network="mlp", order=0, parts=5
        )


def test_a_stored_set_learns_step_by_step_too(digits):
    _, info = digits
    plan = stored_evaluation(
        StoredSet(url="x", digest="0", dataset=info, count=20), "random", _problem(info), SMALL
    )
    assert [(item.set, item.stage.order) for item in plan.continual] == [
        (s, o) for s in ("stored random", "random") for o in (0, 1)
    ]


def test_a_stored_set_without_a_class_is_refused_before_anything_runs(digits, tmp_path):
    data, info = digits
    images, labels = data["train"].take(torch.arange(20)), torch.arange(10).repeat(2)
    publish(
        DistilledSet(images=images[labels != 4], labels=labels[labels != 4], info=info),
        str(tmp_path),
    )
    job = EvaluationJob(dataset=DatasetConfig(name="digits"), evaluation=SMALL)
    with pytest.raises(DataError, match=r"evaluation\.continual: the set has no image of class 4"):
        plan_stored(job, str(tmp_path))
    whole = replace(SMALL, continual=None, continual_orders=5, continual_repeats=3)
    assert plan_stored(replace(job, evaluation=whole), str(tmp_path))[1].continual == ()


def test_the_report_of_the_experiment(digits, tmp_path):
    data, info = digits
    plan = evaluation_stages(
        METHODS.get("herding")(epochs=1, network="convnet1_w8"), _problem(info), SMALL
    )
    store = Store(str(tmp_path))
    LocalRunner(lambda: data, device=torch.device("cpu")).run(
        plan.targets(), store, lambda event: None
    )
    report = summarise(plan, store.load)
    assert [(row.set, row.step, row.classes, row.images) for row in report.continual] == [
        (name, t + 1, 2 * t + 2, 4 * t + 4) for name in ("herding", "random") for t in range(5)
    ]
    assert {(row.orders, row.networks) for row in report.continual} == {(2, 2)}
    stages = [item.stage for item in plan.continual if item.set == "random"]
    values = [
        100 * float(v)
        for s in stages
        for unit in s.units_after(6)
        for v in store.load(Ref(s, unit))["accuracy"]
    ]
    row = next(row for row in report.continual if (row.set, row.classes) == ("random", 6))
    assert row.accuracy_mean == pytest.approx(np.mean(values))
    assert row.accuracy_std == pytest.approx(np.std(values))
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.slow
def test_a_job_leaves_curve_rows_and_metrics_and_its_set_is_evaluated_again_from_its_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'tracked.db'}"
    small = [
        "method.network=convnet1_w8",
        "method.iterations=2",
        "method.batch_real=4",
        "compute.workers=0",
        f"tracking.uri={uri}",
    ]
    few = ["evaluation.epochs=1", "evaluation.repeats=1", "evaluation.every=null"]
    steps = [
        "evaluation.continual=2",
        "evaluation.continual_orders=2",
        "evaluation.continual_repeats=1",
    ]
    run_job(
        load_job(
            str(ROOT / "jobs" / "quickstart.yaml"),
            [*small, *few, *steps, "output=out", "store=store"],
        ),
        lambda line: None,
    )
    report = json.loads(Path("out/report.json").read_text())
    rows = {(row["set"], row["classes"]): row for row in report["continual"]}
    assert list(rows) == [("dm", 5), ("dm", 10), ("random", 5), ("random", 10)]
    table = list(csv.DictReader(io.StringIO(Path("out/continual.csv").read_text())))
    assert [float(line["accuracy_mean"]) for line in table] == [
        row["accuracy_mean"] for row in report["continual"]
    ]
    for name in ("continual.png", "continual.csv"):
        assert Path("out", name).read_bytes() == Path("out/distilled", name).read_bytes()
    assert Path("out/continual.png").read_bytes().startswith(b"\x89PNG")
    card = Path("out/distilled/README.md").read_text()
    assert "](continual.png)" in card
    assert "2 steps of 5 classes" in card
    client = MlflowClient(uri)
    (found,) = [
        run for e in client.search_experiments() for run in client.search_runs([e.experiment_id])
    ]
    history = client.get_metric_history(found.info.run_id, "continual/dm/convnet1_w8")
    logged = [(m.step, m.value) for m in history]
    assert logged == [(seen, pytest.approx(rows["dm", seen]["accuracy_mean"])) for seen in (5, 10)]

    args = [
        "evaluate",
        "out/distilled",
        "--continual",
        "5",
        "--networks",
        "convnet1_w8",
        "--epochs",
        "1",
        "--repeats",
        "1",
    ]
    one = ["evaluation.continual_orders=1", "evaluation.continual_repeats=1"]
    again = CliRunner().invoke(main, [*args, "--output", "again", *one, "store=store"])
    assert again.exit_code == 0, again.output
    assert "5 steps of 2 classes, 1 class order × 1 network, protocol" in again.output
    assert "the stored set (dm) is cut by class" in again.output
    results = {"job.yaml", "report.json", "grid.png", "continual.png", "continual.csv"}
    left_behind = results | {"plan.json", "log.jsonl", "report.html"}
    assert left_behind == {path.name for path in Path("again").iterdir()}
    charts = check_page(Path("again/report.html").read_text()).one("section", id="results")
    assert "5 steps of 2 classes" in charts.all("desc")[0].text
    tracked = CliRunner().invoke(
        main,
        [*args, *one, "store=store", "--networks", "W", "--continual", "2", f"tracking.uri={uri}"],
    )
    assert tracked.exit_code == 0, tracked.output
    (folder,) = Path("runs/evaluate").iterdir()
    assert f"{folder}/continual.png" in tracked.output, (
        "without --output it goes where the last lines say"
    )
    (run,) = [
        r
        for e in client.search_experiments()
        for r in client.search_runs([e.experiment_id])
        if r.info.run_name == "evaluate dm"
    ]
    sent = {file.path for file in client.list_artifacts(run.info.run_id, "evaluation")}
    left = ("job.yaml", "report.json", "grid.png", "continual.png", "continual.csv", "networks.png")
    assert sent == {f"evaluation/{name}" for name in left}
    rows = json.loads((folder / "report.json").read_text())["rows"]
    assert run.data.metrics["accuracy/dm/convnet3_w32"] == pytest.approx(rows[0]["accuracy_mean"])
    assert rows[0]["device_seconds"] is None, "what the set cost is not known here"
    assert [
        m.step for m in client.get_metric_history(run.info.run_id, "continual/dm/convnet3_w32")
    ] == [5, 10]
    refused = CliRunner().invoke(main, ["evaluate", "out/distilled", "--continual", "4"])
    assert refused.exit_code == 2
    assert "4 steps do not divide 10 classes; allowed: 2, 5, 10" in refused.output
