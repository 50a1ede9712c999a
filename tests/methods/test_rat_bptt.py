"""RaT-BPTT as a stage and a method: lanes, resuming, what is skipped, windows that move on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import run_group

from raydd.config import load_job
from raydd.core.errors import ConfigError
from raydd.core.store import Store
from raydd.core.tensors import digest
from raydd.core.units import Data, Numerics, Ref, snapshot
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.datasets import describe, with_digests
from raydd.methods import Problem
from raydd.methods.rat_bptt import RatBptt
from raydd.methods.unroll import unroll_stage
from raydd.methods.unroll.distilled_batches import LABELS, PIXELS, ImageTable
from raydd.methods.unroll.placement import Placement
from raydd.methods.unroll.unroll_stage import PlateauRule, Unroll
from raydd.runtime.estimate import costs
from raydd.runtime.planning import make_plan
from raydd.runtime.runner import LocalRunner

JOBS = Path(__file__).parents[2] / "jobs"
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "network": "convnet1_w4", "iterations": 6, "window": 2, "totwindow": 4, "batch_real": 400, "unrolls": 4,
    "lr_img": 0.03,
}  # fmt: skip
"""Four batches of real images are an epoch, so that a run of six updates ends in the middle of one."""


@pytest.fixture(scope="module")
def problem(digits: Mapping[str, Data]) -> Problem:
    info = with_digests(entry("digits").info, digits)
    return Problem(dataset=info, ipc=2, seed=3, numerics=Numerics())


class Killed(BaseException):
    """Stands for SIGKILL."""


def run(
    refs: list[Ref], store: Store, data: Mapping[str, Data], kill_at: int | None = None
) -> None:
    def fault(stage: str, unit: str, t: int) -> None:
        if stage == "distill/Unroll" and t == kill_at:
            raise Killed

    LocalRunner(lambda: data, device=CPU, fault=fault, checkpoint_every=0.0).run(
        refs, store, lambda event: None
    )


def targets(method: RatBptt, problem: Problem) -> list[Ref]:
    return list(method.targets(problem).values())


def contents(refs: list[Ref], store: Store) -> list[str]:
    return [digest(store.load(ref)) for ref in refs]


@pytest.mark.slow
@pytest.mark.parametrize("learn_labels", [False, True])
def test_any_number_of_workers_shares_four_unrolls_and_a_killed_run_goes_on(
    learn_labels: bool, digits: Mapping[str, Data], problem: Problem, tmp_path: Path
) -> None:
    refs = targets(RatBptt(**SMALL, learn_labels=learn_labels), problem)
    alone = Store(str(tmp_path / "alone"))
    run(refs, alone, digits)
    expected = contents(refs, alone)
    for world in (1, 2, 3):
        store = Store(str(tmp_path / f"group-{world}"))
        events = run_group(refs, store, world, lambda: digits)
        assert not any(event.cached for event in events)
        assert contents(refs, store) == expected
    for kill_at in (1, 5):
        store = Store(str(tmp_path / f"killed-{kill_at}"))
        with pytest.raises(Killed):
            run(refs, store, digits, kill_at)
        run(refs, store, digits)
        assert contents(refs, store) == expected


def test_the_mean_of_the_unrolls_moves_the_images(
    digits: Mapping[str, Data], problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lane has a network, batches and real images of its own; one that is not finite is left out."""
    plain, seen = unroll_stage.meta_gradient, []

    def spied(*args: Any) -> Any:
        found = plain(*args)
        seen.append((args[4].weights.clone(), found[1][PIXELS].clone()))
        if len(seen) == 3:
            found[1][PIXELS].fill_(float("nan"))
        return found

    monkeypatch.setattr(unroll_stage, "meta_gradient", spied)
    method = RatBptt(**SMALL | {"iterations": 1, "space": "normalised"})
    (ref,) = targets(method, problem)
    start = Ref(ref.stage, ref.unit, snapshot(0))
    store = Store(str(tmp_path))
    run([start, ref], store, digits)
    assert len({digest({"w": weights}) for weights, _ in seen}) == 4
    assert len({digest({"g": gradient}) for _, gradient in seen}) == 4
    moved = store.load(ref)[PIXELS] - store.load(start)[PIXELS]
    mean = torch.stack([seen[k][1] for k in (0, 1, 3)]).mean(0)
    # Adam's first step is the rate times the sign, where the gradient is not tiny.
    clear = mean.abs() > 1e-5
    assert int(clear.sum()) > 100
    torch.testing.assert_close(moved[clear], -0.03 * mean[clear].sign(), atol=1e-3, rtol=0)
    assert int(store.load(ref)["skipped"]) == 1


def test_a_step_without_a_finite_meta_gradient_moves_nothing(
    digits: Mapping[str, Data], problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = unroll_stage.meta_gradient

    def broken(*args: Any) -> Any:
        found = plain(*args)
        found[1][PIXELS][0].fill_(float("inf"))
        return found

    monkeypatch.setattr(unroll_stage, "meta_gradient", broken)
    method = RatBptt(**SMALL | {"iterations": 2, "space": "normalised", "unrolls": 2})
    (ref,) = targets(method, problem)
    start = Ref(ref.stage, ref.unit, snapshot(0))
    store = Store(str(tmp_path))
    run([start, ref], store, digits)
    assert torch.equal(store.load(ref)[PIXELS], store.load(start)[PIXELS])
    assert int(store.load(ref)["skipped"]) == 4


@pytest.mark.slow
def test_windows_advance_inside_the_steps_and_the_run_stops(
    digits: Mapping[str, Data], problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss never improves on the first: the window goes on every second epoch, and stops at its end."""
    monkeypatch.setattr(Unroll, "_train_loss", lambda *_: torch.tensor(1.0, dtype=torch.float64))
    seen: list[int] = []
    plain = Placement.window

    def spied(self: Placement, randint: Any, at: int) -> Any:
        seen.append(at)
        return plain(self, randint, at)

    monkeypatch.setattr(Placement, "window", spied)
    rule = PlateauRule(every=1, patience=2, steps=3)
    method = RatBptt(
        **SMALL | {"batch_real": 800, "iterations": 16, "unrolls": 1, "totwindow": 5},
        placement="advance", plateau=rule, minwindow=0, space="normalised",
    )  # fmt: skip
    (ref,) = targets(method, problem)
    run([ref], Store(str(tmp_path)), digits)
    # Epochs have two steps: best in epoch 0; on after 2 and 4; the rule applies at the end after 6.
    assert seen == [0] * 6 + [2] * 4 + [3] * 4


def test_the_loss_of_the_rule_is_that_of_networks_trained_on_the_images(
    digits: Mapping[str, Data], problem: Problem, tmp_path: Path
) -> None:
    rule = PlateauRule(every=1, patience=1, steps=2)
    method = RatBptt(
        **SMALL | {"batch_real": 1500, "iterations": 1, "unrolls": 2},
        placement="advance", plateau=rule, space="normalised",
    )  # fmt: skip
    (ref,) = targets(method, problem)
    after = Ref(replace(ref.stage, iterations=2), ref.unit, snapshot(1))  # type: ignore[type-var]
    store = Store(str(tmp_path))
    run([after], store, digits)
    state = store.load_checkpoint(after.key, 1, None)
    assert state is not None
    best, epoch, at, stopped = state.state["plateau"].tolist()
    assert 1.5 < best < 5
    assert (epoch, at, stopped) == (0, 0, 0)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"network": "convnet3_batchnorm"}, "batch norm"),
        ({"window": 9}, "totwindow=4 is shorter"),
        ({"minwindow": 3}, "minwindow=3"),
        ({"placement": "end", "minwindow": 1}, "minwindow=1 has no effect"),
        ({"placement": "end", "resample": "step"}, "resample=step has no effect"),
        ({"placement": "advance"}, "needs method.plateau"),
        ({"placement": "start", "minwindow": 1}, "minwindow=1 has no effect with method.placement=start"),
        ({"placement": "start", "totwindow": 40}, "totwindow=40 has no effect with method.placement=start"),
        ({"plateau": PlateauRule()}, "method.plateau has no effect with method.placement=random"),
        ({"label_lr_scale": 3.0}, "label_lr_scale=3.0 has no effect with method.learn_labels=false"),
        ({"inner_optimizer": "sgd", "adam_window_eps": "torch"}, "adam_window_eps=torch has no effect"),
        ({"syn_strategy": "flip_rotat"}, "rotate"),
        ({"batch_per_class": 3}, "method.batch_per_class=3: 1 to ipc=2"),
        ({"classes_per_batch": 11}, "method.classes_per_batch=11"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_any_work(
    fields: dict[str, Any], text: str, problem: Problem
) -> None:
    with pytest.raises(ConfigError, match=text):
        RatBptt(**SMALL | fields).plan(problem)


def test_the_classes_of_a_step_of_continual_learning(problem: Problem) -> None:
    method = RatBptt(**SMALL)
    *_, stage = method.plan(replace(problem, classes=(2, 5)))
    assert isinstance(stage, Unroll)
    assert isinstance(stage.batches, ImageTable)
    assert stage.classes == stage.batches.present == (2, 5)
    assert stage.batches.hard.tolist() == [2, 2, 5, 5]
    assert method.joint(problem)


# -- jobs ------------------------------------------------------------------------------------------


def planned(name: str, *overrides: str) -> tuple[Unroll, DatasetInfo, Any]:
    job = load_job(str(JOBS / f"{name}.yaml"), overrides)
    info = describe(job.dataset)
    problem = Problem(dataset=info, ipc=job.ipc, seed=0, numerics=job.numerics)
    *_, stage = job.method.plan(problem)
    assert isinstance(stage, Unroll)
    return stage, info, job


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("cifar10_rat_bptt", [], ("random", 60, 200, 1e-3, 100, False)),
        ("cifar100_rat_bptt", [], ("random", 100, 300, 1e-3, 100, True)),
        ("cifar100_rat_bptt", ["ipc=1"], ("end", 90, 130, 3e-4, 100, True)),
    ],
)
def test_jobs_hold_the_published_settings(
    name: str, overrides: list[str], expected: tuple[Any, ...]
) -> None:
    stage, info, job = planned(name, *overrides)
    placement = stage.placement
    found = (placement.mode, placement.length, placement.total, stage.outer.lr, stage.batches.batch)
    assert (*found, stage.batches.learn_labels) == expected
    assert (placement.first, placement.resample) == (0, "epoch")
    assert (stage.network, stage.batch_real, stage.unrolls) == ("convnet3_w128", 5000, 1)
    assert (stage.syn_strategy, stage.real_strategy) == ("flip_rotate", "flip_rotate")
    assert stage.inner.lr == 1e-3
    assert (stage.outer.label_lr_scale, stage.outer.clip_coef, stage.outer.clip_multiple) == (
        1,
        0.9,
        2,
    )
    assert stage.whitening is not None
    assert stage.whitening.space == "zca_per_image"
    recipe = job.evaluation.resolve().recipe(info, stage.network)
    assert (recipe.epochs, recipe.lr, recipe.optimizer, recipe.weight_decay) == (
        3000,
        1e-3,
        "adamw",
        0,
    )
    assert (recipe.draw, recipe.strategy, recipe.schedule) == ("classes", "flip_rotate", "constant")
    assert job.evaluation.repeats == 8
    if name == "cifar100_rat_bptt":
        assert recipe.batch == 100


def test_a_window_of_200_steps_of_cifar10_is_planned_under_8_gb() -> None:
    stage, *_ = planned("cifar10_rat_bptt", "method.window=200", "method.totwindow=300")
    (row,) = costs(stage.refs()[:1])[-1:]
    assert row.peak_bytes < 8e9
    graph = replace(stage, engine="graph")
    assert graph.cost("all").peak_bytes > 5 * stage.cost("all").peak_bytes


def test_a_whitening_is_no_reason_to_leave_pictures_out() -> None:
    """It is 38 MB, and made once: ten snapshots of a hundred images are small beside it."""
    job = load_job(str(JOBS / "cifar10_rat_bptt.yaml"))
    plan = make_plan(job, describe(job.dataset))
    assert len(plan.picture_steps) == 60


@pytest.mark.parametrize("ipc", [1, 10, 50])
@pytest.mark.parametrize("name", ["fashion_mnist_rat_bptt", "fashion_mnist_rat_bptt_small"])
def test_jobs_of_fashion_mnist_serve_every_published_size(name: str, ipc: int) -> None:
    stage, _, job = planned(name, f"ipc={ipc}")
    assert stage.batches.count == 10 * ipc
    assert job.evaluation.resolve().space == job.method.made_in
    assert LABELS not in stage.batches.start(lambda *_: torch.Generator())
