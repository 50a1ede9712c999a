"""The jobs of IDM and BACON hold what was published: docs/methods/idm_bacon.md, "Published settings"."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import pytest

from raydd.config import Job, load_job
from raydd.core.units import unit_key
from raydd.data.catalog import DatasetInfo
from raydd.data.datasets import describe
from raydd.methods import Problem
from raydd.methods.matching.queue_matching import MatchUnderQueue

JOBS = Path(__file__).parents[2] / "jobs"
ALL_SIX = "color_crop_cutout_flip_scale_rotate"


class Command(NamedTuple):
    """What the published commands differ in: ``--ce_weight``, ``--eval_interval``, ``--batch_real``,
    ``--net_generate_interval``, ``--model_train_steps``.
    """

    ce_weight: float
    eval_interval: int
    batch_real: int
    interval: int
    steps: int


DIGITS = {
    1: Command(0.5, 100, 5000, 5, 10),
    10: Command(0.5, 100, 256, 30, 10),
    50: Command(0.5, 100, 256, 30, 10),
}
COLOUR = DIGITS | {50: Command(0.1, 500, 256, 30, 10)}
CIFAR100 = {
    1: Command(0.5, 100, 5000, 5, 10),
    10: Command(0.1, 100, 256, 30, 50),
    50: Command(0.1, 500, 256, 30, 50),
}
TINY = {
    1: Command(0.5, 100, 256, 30, 10),
    10: Command(0.5, 500, 256, 30, 50),
    50: Command(0.8, 1000, 256, 30, 50),
}
BACON = {
    "mnist": DIGITS,
    "fashion_mnist": DIGITS,
    "svhn": COLOUR,
    "cifar10": COLOUR,
    "cifar100": CIFAR100,
    "tiny_imagenet": TINY,
}
IDM = BACON | {
    "cifar100": CIFAR100 | {50: CIFAR100[50]._replace(steps=10)},
    "tiny_imagenet": TINY | {10: TINY[10]._replace(steps=10)},
}
COMMANDS = {"idm": IDM, "bacon": BACON}
every_command = pytest.mark.parametrize(
    ("method", "dataset", "ipc"),
    list(itertools.product(COMMANDS, BACON, (1, 10, 50))),
)


def loaded(method: str, dataset: str, *overrides: str) -> tuple[Job, DatasetInfo]:
    job = load_job(str(JOBS / f"{dataset}_{method}.yaml"), overrides)
    return job, describe(job.dataset)


def stage_of(job: Job, info: DatasetInfo) -> MatchUnderQueue:
    _, stage = job.method.plan(
        Problem(dataset=info, ipc=job.ipc, seed=job.seeds[0], numerics=job.numerics)
    )
    assert isinstance(stage, MatchUnderQueue)
    return stage


@every_command
def test_settings_are_the_published_ones(method: str, dataset: str, ipc: int) -> None:
    job, info = loaded(method, dataset, f"ipc={ipc}")
    stage, command = stage_of(job, info), COMMANDS[method][dataset][ipc]
    queue = stage.queue.queue
    assert command == Command(
        stage.ce_weight,
        stage.meter_reset_period or 0,
        stage.batch_real,
        queue.net_generate_interval,
        queue.model_train_steps,
    )
    assert (stage.network, stage.iterations, stage.lr_img, stage.momentum) == (
        "convnet3_w128",
        20_000,
        0.2,
        0.5,
    )
    assert (queue.net_num, queue.fetch_net_num, queue.trained_bs) == (100, 2, 256)
    assert (queue.lr_net, queue.net_decay, queue.storage) == (0.01, True, "fp32")
    assert (stage.init_from, stage.factor, stage.dsa) == ("real", 2, ALL_SIX)
    whole = (method, dataset) == ("idm", "tiny_imagenet")
    assert stage.init_tiling == ("full" if whole else "collage")
    recipe = job.evaluation.resolve().recipe(info, stage.network)
    assert (job.evaluation.protocol, recipe.epochs, recipe.drops) == ("idm", 1001, (502,))
    assert (recipe.strategy, recipe.batch, recipe.lr) == (ALL_SIX, 256, 0.01)
    assert (job.seeds, job.evaluation.repeats) == ((0, 1, 2, 3, 4), 5)


def test_weights_of_bacons_terms_are_the_published_ones() -> None:
    job, _ = loaded("bacon", "cifar10")
    assert (job.method.likelihood_weight, job.method.tv_weight) == (1.0, 0.8)  # type: ignore[attr-defined]


def queues(dataset: str) -> dict[str, set[str]]:
    """Return the jobs (method and ipc) that share a queue, by the key of a network of it."""
    found: dict[str, set[str]] = {}
    for method, ipc, seed in itertools.product(COMMANDS, (1, 10, 50), (0, 3)):
        stage = stage_of(*loaded(method, dataset, f"ipc={ipc}", "seeds=null", f"seed={seed}"))
        key = unit_key(stage.queue, "network-00000")
        found.setdefault(key, set()).add(f"{method} {ipc}")
    return found


def test_published_jobs_share_queues() -> None:
    ones = {"idm 1", "bacon 1"}
    larger = {"idm 10", "bacon 10", "idm 50", "bacon 50"}
    for dataset in ("mnist", "fashion_mnist", "svhn", "cifar10"):
        assert sorted(queues(dataset).values(), key=len) == [ones, larger]
    assert sorted(queues("cifar100").values(), key=len) == [
        {"idm 50"},
        ones,
        {"idm 10", "bacon 10", "bacon 50"},
    ]


def test_small_jobs_share_one_queue() -> None:
    assert len(queues("fashion_mnist")) == 2
    keys = {
        unit_key(
            stage_of(*loaded(f"{method}_small", "fashion_mnist", f"ipc={ipc}")).queue,
            "network-00000",
        )
        for method in COMMANDS
        for ipc in (1, 10)
    }
    assert len(keys) == 1
