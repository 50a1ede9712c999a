"""Plans and reports: which students are trained, under which names, and what is said of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from raydd.artifacts.accounting import Accounting
from raydd.artifacts.decoding import Decoding
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.published_folder import publish
from raydd.artifacts.rendering import render_table
from raydd.config import EvaluationJob
from raydd.core.errors import ConfigError, RunFailed
from raydd.core.store import Store
from raydd.core.units import Numerics, Ref, unit_key
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.plan import evaluation_stages
from raydd.evaluation.set_sources import AssembledSet, StoredSet
from raydd.evaluation.stages import Evaluate, EvaluateNetworks
from raydd.evaluation.stored_plan import stored_evaluation
from raydd.evaluation.summary import summarise
from raydd.methods import METHODS, Problem
from raydd.methods.random_selection import RandomSelection
from raydd.networks import normalise_name
from raydd.runtime.evaluating import plan_stored
from raydd.runtime.runner import LocalRunner

SMALL = EvaluationConfig(epochs=3, networks=("convnet2_w8",), repeats=2)


@pytest.fixture(scope="module")
def digits():
    data = open_data(DatasetConfig(name="digits"))
    return data, with_digests(entry("digits").info, data)


def _problem(info, seed=0):
    return Problem(dataset=info, ipc=2, seed=seed, numerics=Numerics())


def _dm(**fields):
    return METHODS.get("dm")(network="convnet2_w8", iterations=4, batch_real=8, **fields)


def test_random_images_come_with_every_set(digits):
    problem = _problem(digits[1])
    plan = evaluation_stages(_dm(), problem, EvaluationConfig(epochs=3, repeats=2))
    assert [(item.set, item.draw) for item in plan.entries] == [
        ("dm", 0),
        ("random", 0),
        ("random", 1),
        ("random", 2),
    ]
    assert {item.protocol for item in plan.entries} == {"dm[epochs=3]"}
    assert {item.network for item in plan.entries} == {"convnet2_w8"}
    assert {item.stage.seed for item in plan.entries} == {0}
    draws = [item.stage.source.problem.seed for item in plan.entries[1:]]
    assert draws[0] == 0
    assert len(set(draws)) == 3
    assert len({item.stage.recipe for item in plan.entries}) == 1


def test_repetitions_share_the_draws_of_random(digits):
    problems = [_problem(digits[1], seed) for seed in (0, 1)]
    plan = evaluation_stages(_dm(), problems, SMALL)
    assert [item.stage.seed for item in plan.entries if item.set == "dm"] == [0, 1]
    assert sorted(item.stage.seed for item in plan.entries if item.set == "random") == [0, 0, 1, 1]
    alone = evaluation_stages(_dm(), problems[0], SMALL)
    assert {ref.key for ref in alone.targets()} - {ref.key for ref in plan.targets()} == {
        alone.targets()[-1].key
    }


def test_pools_and_names_are_spelt_out_once(digits):
    config = replace(SMALL, networks=("ConvNetW32", "W", "SS"), repeats=1)
    plan = evaluation_stages(_dm(), _problem(digits[1]), config)
    networks = list(dict.fromkeys(item.network for item in plan.entries))
    assert networks == [
        "convnet3_w32",
        "convnet3_w64",
        "convnet3_w128",
        "convnet3_w256",
        "convnet2_w8",
    ]


def test_a_selection_is_not_its_own_baseline(digits):
    config = replace(SMALL, baselines=("random", "herding", "kcenter"))
    plan = evaluation_stages(METHODS.get("herding")(epochs=1), _problem(digits[1]), config)
    assert [item.set for item in plan.entries] == [
        "herding",
        "random",
        "random",
        "random",
        "kcenter",
    ]
    own = evaluation_stages(METHODS.get("random")(), _problem(digits[1]), SMALL)
    assert [item.set for item in own.entries] == ["random"] * 3


@pytest.mark.slow
def test_other_methods_are_judged_beside_with_settings_of_their_own(digits, tmp_path):
    data, info = digits
    random, dsa = (
        METHODS.get("random")(),
        METHODS.get("dsa")(network="convnet2_w8", iterations=1, outer_loop=1, batch_real=8),
    )
    problems = [_problem(info, seed) for seed in (0, 1)]
    plan = evaluation_stages(
        _dm(), problems, replace(SMALL, baselines=("whole", random, dsa), whole_epochs=1, epochs=1)
    )
    assert [(item.set, item.draw) for item in plan.entries] == [
        *(
            ("dm", 0),
            ("dm", 1),
            ("random", 0),
            ("random", 1),
            ("random", 2),
            ("random", 3),
            ("dsa", 0),
            ("dsa", 1),
            ("whole", 0),
        )
    ]
    of_dsa = [item.stage.source for item in plan.entries if item.set == "dsa"]
    assert of_dsa == [AssembledSet(method=dsa, problem=problem) for problem in problems], (
        "a distillation for each repetition"
    )
    store = Store(str(tmp_path))
    LocalRunner(lambda: data, device=torch.device("cpu")).run(
        plan.targets(), store, lambda event: None
    )
    report = summarise(plan, store.load)
    assert [row.set for row in report.rows] == ["dm", "random", "dsa", "whole"]
    with pytest.raises(ConfigError, match="'dm' is the job's own method"):
        evaluation_stages(_dm(), problems, replace(SMALL, baselines=(METHODS.get("dm")(),)))
    for own in ("dm", _dm()):
        assert {
            item.set
            for item in evaluation_stages(_dm(), problems, replace(SMALL, baselines=(own,))).entries
        } == {"dm"}
    with pytest.raises(ConfigError, match="'rded' have soft labels of their own"):
        evaluation_stages(_dm(), problems, replace(SMALL, baselines=("rded",)))
    stored = stored_evaluation(
        StoredSet(url="x", digest="0", dataset=info),
        "dsa",
        problems[0],
        replace(SMALL, baselines=(dsa,)),
    )
    assert [item.set for item in stored.entries] == ["stored dsa", "dsa"]


def test_whole_data_is_trained_for_epochs_of_its_own(digits):
    plan = evaluation_stages(
        _dm(), _problem(digits[1]), replace(SMALL, baselines=("whole",), whole_epochs=7)
    )
    whole = plan.entries[-1]
    assert isinstance(whole.stage, EvaluateNetworks)
    assert (whole.set, whole.protocol, whole.stage.teacher.recipe.epochs) == (
        "whole",
        "dm[epochs=7]",
        8,
    )
    assert len(whole.stage.units()) == 2


def test_snapshots_are_evaluated_by_fewer_students(digits):
    plan = evaluation_stages(
        _dm(), _problem(digits[1]), replace(SMALL, every=2, snapshot_repeats=1)
    )
    snapshots = [item for item in plan.entries if item.step is not None]
    assert [item.step for item in snapshots] == [0, 2]
    stage = snapshots[1].stage
    assert isinstance(stage, Evaluate)
    assert len(stage.units()) == 1
    assert stage.repeats == 1
    assert {ref.output for ref in stage.inputs(stage.units()[0]).values()} == {"step-000002"}


def test_what_cannot_be_planned_is_refused(digits):
    _, info = digits
    with pytest.raises(ConfigError, match=r"no 'holdout' split; set dataset.holdout"):
        evaluation_stages(_dm(), _problem(info), replace(SMALL, split="holdout"))
    with pytest.raises(ConfigError, match=r"unknown protocol 'dn'.*did you mean"):
        evaluation_stages(_dm(), _problem(info), replace(SMALL, protocol="dn"))
    with pytest.raises(ConfigError, match="no snapshots"):
        stored_evaluation(
            StoredSet(url="x", digest="0", dataset=info),
            "x",
            _problem(info),
            replace(SMALL, every=2),
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet9_w8", "vgg11_cifar", "torchvision/vgg11"])
def test_a_network_that_cannot_read_the_images_is_refused_by_the_plan(digits, name):
    _, info = digits
    config = replace(SMALL, networks=("convnet2_w8", name))
    with pytest.raises(ConfigError, match=f"network '{name}' cannot read 1x8x8 images"):
        evaluation_stages(_dm(), _problem(info), config)
    with pytest.raises(ConfigError, match=f"network '{name}' cannot read 1x8x8 images"):
        stored_evaluation(StoredSet(url="x", digest="0", dataset=info), "x", _problem(info), config)


def test_a_stored_set_is_compared_with_random_images_too(digits):
    _, info = digits
    plan = stored_evaluation(
        StoredSet(url="x", digest="0", dataset=info), "random", _problem(info), SMALL
    )
    assert [item.set for item in plan.entries] == ["stored random", "random", "random", "random"]


def test_pools_of_a_stored_set_are_of_the_network_that_made_it(digits, tmp_path):
    data, info = digits
    images = data["train"].take(torch.arange(20))
    for recipe, own in (
        ({"method": {"name": "dm", "network": "ConvNetBN"}}, "ConvNetBN"),
        ({}, "ConvNet"),
    ):
        made = DistilledSet(
            images=images, labels=torch.arange(10).repeat(2), info=info, recipe=recipe
        )
        publish(made, str(tmp_path / own))
        for networks, expected in (((), own), (("SS",), own), (("S",), "ConvNet")):
            config = replace(SMALL, networks=networks)
            _, plan = plan_stored(
                EvaluationJob(dataset=DatasetConfig(name="digits"), evaluation=config),
                str(tmp_path / own),
            )
            assert {item.network for item in plan.entries} == {normalise_name(expected)}


@pytest.mark.parametrize("letter", ["s", "X", "MB"])
def test_an_unknown_pool_is_called_a_pool(letter):
    with pytest.raises(
        ConfigError,
        match=f"unknown evaluation pool '{letter}'.*allowed: A, B, D, M, N, P, S, SS, W",
    ):
        EvaluationConfig(networks=("W", letter)).architectures("ConvNet")


def test_the_report_of_a_run(digits, tmp_path):
    data, info = digits
    config = replace(SMALL, baselines=("random", "whole"), whole_epochs=2, every=2, test_every=2)
    plan = evaluation_stages(_dm(), _problem(info), config)
    store = Store(str(tmp_path))
    LocalRunner(lambda: data, device=torch.device("cpu")).run(
        plan.targets(), store, lambda event: None
    )
    report = summarise(
        plan, store.load, lambda ref: store.marker(ref)["seconds"], device="cpu", notes=["a note"]
    )
    rows = {row.set: row for row in report.rows}
    assert [row.set for row in report.rows] == ["dm", "random", "whole"]
    assert (
        rows["dm"].seeds,
        rows["dm"].networks,
        rows["random"].seeds,
        rows["random"].networks,
    ) == (1, 2, 3, 2)
    assert rows["whole"].protocol == "dm[epochs=2]"
    values = [
        100 * float(v)
        for item in plan.entries
        if item.set == "random"
        for r in item.stage.refs()
        for v in store.load(r)["accuracy"]
    ]
    assert rows["random"].accuracy_mean == pytest.approx(sum(values) / 6)
    assert rows["random"].accuracy_std == pytest.approx(
        float(torch.tensor(values).std(correction=0)), rel=1e-4
    )
    assert report.ior == pytest.approx(rows["dm"].accuracy_mean - rows["random"].accuracy_mean)
    assert report.hlr == pytest.approx(rows["whole"].accuracy_mean - rows["dm"].accuracy_mean)
    assert (rows["dm"].image_bytes, rows["random"].image_bytes) == (4 * 20 * 64, 20 * 64)
    assert [(row.stored, row.seen, row.bytes) for row in report.rows] == [
        (20, 20, 4 * 20 * 64 + 20 * 8),
        (20, 20, 20 * 64 + 20 * 8),
        (len(data["train"]), len(data["train"]), (64 + 8) * len(data["train"])),
    ]
    accounts = {name: row.account for name, row in rows.items()}
    assert accounts["dm"] == Accounting(
        bits_per_class=8 * (4 * 20 * 64 + 20 * 8) / 10, at_8_bits=20 * 64, at_32_bits=4 * 20 * 64
    )
    assert accounts["random"].bits_per_class == 8 * (20 * 64 + 20 * 8) / 10
    assert (accounts["random"].at_8_bits, accounts["whole"].at_8_bits) == (
        20 * 64,
        64 * len(data["train"]),
    )
    assert rows["dm"].best_accuracy >= rows["dm"].accuracy_mean
    made = AssembledSet(method=_dm(), problem=_problem(info)).inputs().values()
    assert rows["dm"].device_seconds == pytest.approx(
        sum(store.marker(ref)["seconds"] for ref in made)
    )
    assert [(point.step, point.networks) for point in report.curve] == [(0, 1), (2, 1), (4, 2)]
    assert report.curve[-1].accuracy_mean == rows["dm"].accuracy_mean
    assert report.curve_protocol == "dm[epochs=3]"
    assert any("LRS" in note for note in report.notes)
    assert "a note" in render_table(report)


@dataclass(frozen=True, kw_only=True)
class Tiled(RandomSelection):
    """Random images, each seen as four tiles: as many as it says, or not."""

    name: ClassVar[str] = "tiled"
    says: int = 4

    def size(self, problem):
        size = super().size(problem)
        return replace(size, seen=self.says * size.stored)

    def assemble(self, problem, outputs):
        made = super().assemble(problem, outputs)
        return replace(made, decoding=Decoding("partition"))


def test_sizes_are_what_the_method_says(digits, tmp_path):
    data, info = digits
    store, runner = Store(str(tmp_path)), LocalRunner(lambda: data, device=torch.device("cpu"))
    plan = evaluation_stages(Tiled(), _problem(info), SMALL)
    stage = plan.entries[0].stage
    plain = evaluation_stages(RandomSelection(), _problem(info), SMALL).entries[0].stage
    assert stage.source.images == 80
    assert stage.cost("repeats-000-001").flop > 2 * plain.cost("repeats-000-001").flop
    runner.run(plan.targets(), store, lambda event: None)
    row = summarise(plan, store.load).rows[0]
    assert (row.stored, row.seen, row.image_bytes, row.further_bytes) == (20, 80, 20 * 64, 0)
    wrong = evaluation_stages(Tiled(says=3), _problem(info), replace(SMALL, baselines=()))
    with pytest.raises(
        RunFailed, match="'tiled' made 20 images, of which students see 80; planned were 20 and 60"
    ):
        runner.run(wrong.targets(), store, lambda event: None)


def test_a_report_without_its_snapshots_yet(digits):
    plan = evaluation_stages(_dm(), _problem(digits[1]), replace(SMALL, every=2))
    snapshots = {
        ref.key for item in plan.entries if item.step is not None for ref in item.stage.refs()
    }

    def load(ref: Ref):
        if ref.key in snapshots:
            raise FileNotFoundError(ref.unit)
        return {
            "accuracy": torch.tensor([0.5, 0.7], dtype=torch.float64),
            "image_bytes": torch.tensor(1),
            "label_bytes": torch.tensor(1),
            "soft_labels": torch.tensor(True),
        }

    report = summarise(plan, load)
    assert report.curve == ()
    assert report.ior == pytest.approx(0.0)
    assert any("Not better than random" in note for note in report.notes)


def test_the_configuration_of_an_evaluation_changes_only_what_it_must(digits):
    problem = _problem(digits[1])
    base, more = (
        evaluation_stages(_dm(), problem, config)
        for config in (SMALL, replace(SMALL, baselines=("random", "kcenter")))
    )
    assert {ref.key for ref in base.targets()} < {ref.key for ref in more.targets()}
    other = evaluation_stages(_dm(), problem, replace(SMALL, lr=0.1))
    assert not {ref.key for ref in base.targets()} & {ref.key for ref in other.targets()}
    assert unit_key(base.entries[0].stage, "repeats-000-001") in {ref.key for ref in base.targets()}
