"""The jobs of DC and DSA hold what was published: docs/methods/dc_dsa.md, "Published settings"."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydd.config import Job, load_job
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.datasets import describe
from raydd.methods import Problem
from raydd.methods.matching.gradient_matching import MatchGradients

JOBS = Path(__file__).parents[2] / "jobs"
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
DATASETS = ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100")


def loaded(dataset: str, method: str, *overrides: str) -> tuple[Job, DatasetInfo]:
    job = load_job(str(JOBS / f"{dataset}_{method}.yaml"), overrides)
    return job, describe(job.dataset)


def stage_of(job: Job, info: DatasetInfo) -> MatchGradients:
    (stage,) = job.method.plan(Problem(dataset=info, ipc=job.ipc, seed=0, numerics=job.numerics))
    assert isinstance(stage, MatchGradients)
    return stage


@pytest.mark.parametrize("ipc", [1, 10, 50])
@pytest.mark.parametrize("method", ["dc", "dsa"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_settings_are_the_published_ones(dataset: str, method: str, ipc: int) -> None:
    job, info = loaded(dataset, method, f"ipc={ipc}")
    stage = stage_of(job, info)
    assert (stage.outer_loop, stage.inner_loop) == {1: (1, 1), 10: (10, 50), 50: (50, 10)}[ipc]
    assert (stage.network, stage.iterations, stage.distance) == ("convnet3_w128", 1000, "ours")
    assert (stage.lr_img, stage.momentum, stage.lr_net) == (0.1, 0.5, 0.01)
    assert (stage.batch_real, stage.batch_train) == (256, 256)
    assert stage.init_from == {"dc": "noise", "dsa": "real"}[method]
    all_six = "color_crop_cutout_flip_scale_rotate"
    operations = all_six.replace("flip_", "") if dataset in ("mnist", "svhn") else all_six
    assert stage.dsa == {"dc": "none", "dsa": operations}[method]
    recipe = job.evaluation.resolve().recipe(info, stage.network)
    assert recipe.epochs == (301 if method == "dc" and dataset != "mnist" else 1001)
    assert (
        recipe.strategy
        == {"dc": "crop_scale_rotate" if dataset == "mnist" else "", "dsa": operations}[method]
    )
    assert (recipe.lr, recipe.batch, recipe.momentum, recipe.weight_decay) == (0.01, 256, 0.9, 5e-4)
    assert (job.seeds, job.evaluation.repeats) == ((0, 1, 2, 3, 4), 20)


def test_compat_switches_are_off_by_default_and_on_in_the_jobs_whose_figures_need_them() -> None:
    momenta = {
        (d, m): stage_of(*loaded(d, m)).inner_momentum for d in DATASETS for m in ("dc", "dsa")
    }
    on = {("mnist", "dc"), ("fashion_mnist", "dc"), ("svhn", "dc"), ("cifar10", "dc")}
    assert momenta == {key: 0.5 if key in on else 0.0 for key in momenta}
    assert (entry("cifar100").info.mean, entry("cifar100").info.std) == CIFAR100
    for method in ("dc", "dsa"):
        _, then = loaded("cifar100", method)
        _, now = loaded("cifar100", method, "dataset.mean=null", "dataset.std=null")
        assert (then.mean, then.std) == CIFAR10
        assert (now.mean, now.std) == CIFAR100
