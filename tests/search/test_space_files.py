"""The files of ``tune_spaces``: each fits the jobs that it is for, and holds what was published."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from raydd.augment.dsa import parse_strategy
from raydd.cli import main
from raydd.config import JobFile, read_job
from raydd.methods import METHODS
from raydd.networks import normalise_name, pool
from raydd.search.space import Space
from raydd.search.space_reading import load_space

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tune_spaces"
HERDING = "quickstart method=null method.name=herding"
MNIST = "mnist_dc ipc=1"
JOBS: dict[str, list[str]] = {
    "quickstart": ["quickstart", "quickstart method.lr_img=0.01"],
    "dc": ["cifar10_dc", "cifar10_dc ipc=1", "cifar100_dc"],
    "dsa": ["cifar10_dsa", "mnist_dsa ipc=50"],
    "dm": ["cifar10_dm", "fashion_mnist_dm ipc=1", "tiny_imagenet_dm"],
    "idm": ["cifar10_idm", "cifar100_idm ipc=1", "tiny_imagenet_idm", "mnist_idm ipc=50"],
    "bacon": ["cifar10_bacon", "cifar10_bacon ipc=50", "tiny_imagenet_bacon ipc=50"],
    "rat_bptt": [
        *("cifar10_rat_bptt", "cifar100_rat_bptt", "cifar100_rat_bptt ipc=1"),
        *("fashion_mnist_rat_bptt ipc=50", "fashion_mnist_rat_bptt_small", "digits_rat_bptt"),
    ],
    "podd": [
        *("cifar10_podd", "cifar100_podd ipc=0.4", "cub200_podd", "tiny_imagenet_podd"),
        *("fashion_mnist_podd", "fashion_mnist_podd_small", "digits_podd"),
    ],
    "itgan": ["cifar10_itgan", "cifar100_itgan", "fashion_mnist_itgan"],
    "sre2l": ["imagenet_sre2l"],
    "gvbsm": ["imagenet_gvbsm"],
    "edc": ["imagenet_edc", "imagenet10_edc", "cifar100_edc"],
    "dwa": ["imagenet_dwa", "cifar10_dwa ipc=10", "cifar100_dwa", "tiny_imagenet_dwa"],
    "infer": ["imagenet_infer", "cifar10_infer ipc=10", "cifar100_infer", "tiny_imagenet_infer"],
    "rded": ["imagenet_rded"],
    "herding": [HERDING],
    "kcenter": [HERDING.replace("herding", "kcenter")],
    "fashion_mnist_dm": ["fashion_mnist_dm_small"],
    "fashion_mnist_edc": ["fashion_mnist_edc_small"],
    "ablations/dc_architecture": [MNIST],
    "ablations/dc_width": [MNIST],
    "ablations/dc_depth": [MNIST],
    "ablations/dc_activation": [MNIST],
    "ablations/dc_pooling": [MNIST],
    "ablations/dc_norm": [MNIST],
    "ablations/dc_distance": [MNIST],
    "ablations/dsa_operations": ["cifar10_dsa", "mnist_dsa"],
    "ablations/dsa_batchnorm": ["cifar10_dsa ipc=50"],
    "ablations/dm_batchnorm": ["cifar10_dm ipc=50"],
    "ablations/edc_choices": ["imagenet_edc"],
}
"""Jobs that a file is for, with the overrides that it asks for."""
POOLS = {
    "dc_architecture": "M",
    "dc_width": "W",
    "dc_depth": "D",
    "dc_activation": "A",
    "dc_pooling": "P",
    "dc_norm": "N",
    "dsa_batchnorm": "B",
    "dm_batchnorm": "B",
}
SEARCHES = [name for name in JOBS if not name.startswith("ablations/")]
ABLATIONS = [name for name in JOBS if name.startswith("ablations/")]
NOBODYS = ("lr_img=0.01", "rat_bptt_small", "podd_small", "digits_")
"""Jobs whose settings are not published ones: they may lie outside of what is searched."""
WITHOUT_KEYS = {"random"}
"""Methods of which nothing is to be searched."""
every_pair = pytest.mark.parametrize(
    ("name", "job"), [(name, job) for name, jobs in JOBS.items() for job in jobs]
)


@functools.cache
def job_of(words: str) -> JobFile:
    """Return a job by its file's name and overrides."""
    file, *overrides = words.split()
    return read_job(str(ROOT / "jobs" / f"{file}.yaml"), overrides)


@functools.cache
def space_of(name: str, job: str) -> Space:
    """Return the space of a file for a job: every end and choice has been tried on it."""
    return load_space(str(FOLDER / f"{name}.yaml"), job_of(job))


def outside(space: Space) -> list[str]:
    """Return the keys whose own value, as far as it has an effect, is none of those that are searched."""
    return [
        key.name
        for key in space.keys
        if key.name in space.own and not key.domain.holds(space.own[key.name])
    ]


def values_of(space: Space, key: str) -> list[object]:
    """Return a key's values in the trials of a table: the job's own, points, or the grid within the budget."""
    trials = [*space.file.points, *space.grid()]
    most = space.file.budget.trials
    return [trial[key] for trial in trials[: most - 1 if most else None] if key in trial]


def test_every_file_is_tried() -> None:
    files = {str(path.relative_to(FOLDER)).removesuffix(".yaml") for path in FOLDER.rglob("*.yaml")}
    assert files == set(JOBS)


@every_pair
def test_a_file_fits_its_jobs(name: str, job: str) -> None:
    space = space_of(name, job)
    assert space.file.search == "grid" or space.file.budget.trials
    if name in SEARCHES and not any(word in job for word in NOBODYS):
        assert outside(space) == [], "what is published lies inside"


def test_a_published_value_outside_is_seen() -> None:
    path = str(FOLDER / "dc.yaml")
    space = load_space(path, job_of("cifar10_dc method.lr_img=2 method.init=real"))
    assert outside(space) == ["method.lr_img"]


@pytest.mark.parametrize("name", JOBS)
def test_a_file_names_its_jobs_and_jobs_that_exist(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    named = re.findall(r"jobs/(\w+)\.yaml", text)
    assert [job for job in named if not (ROOT / "jobs" / f"{job}.yaml").exists()] == []
    assert JOBS[name][0].split()[0] in named or "method=null" in JOBS[name][0]
    assert all(word in text for word in JOBS[name][0].split()[1:])


@pytest.mark.parametrize("method", sorted(set(METHODS.names()) - WITHOUT_KEYS))
def test_every_method_has_a_file_of_its_keys(method: str) -> None:
    (first, *_) = JOBS[method]
    assert job_of(first).job().method.name == method
    keys = [key.name for key in space_of(method, first).keys]
    assert any(key.startswith("method.") for key in keys)
    assert ("method.lr_img" in keys) == hasattr(job_of(first).job().method, "lr_img")
    loss = job_of(first).job().evaluation.resolve().loss
    assert ("evaluation.ce_weight" in keys) == (loss == "mse_gt")


@pytest.mark.parametrize("name", SEARCHES)
def test_snapshots_stop_trials_where_there_are_any(name: str) -> None:
    space = space_of(name, JOBS[name][0])
    snapshots = not job_of(JOBS[name][0]).job().method.soft_labels and name not in (
        "herding",
        "kcenter",
    )
    assert (space.file.scheduler == "asha") == snapshots


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_ends_in_a_table(name: str) -> None:
    file = space_of(name, JOBS[name][0]).file
    assert (file.search, file.winner) == ("grid", False)


@pytest.mark.parametrize("name", POOLS)
def test_students_of_an_ablation_are_those_of_its_pool(name: str) -> None:
    space = space_of(f"ablations/{name}", JOBS[f"ablations/{name}"][0])
    found = [normalise_name(network) for (network,) in values_of(space, "evaluation.networks")]
    assert sorted(set(found)) == sorted(pool(POOLS[name], "convnet3"))
    distilled = {normalise_name(str(network)) for network in values_of(space, "method.network")}
    assert len(found) == len(distilled) * len(set(found)), "each on each"


@pytest.mark.parametrize("name", ["dc_architecture", "dc_distance"])
def test_the_mlp_alone_has_a_rate_of_its_own(name: str) -> None:
    rates = {
        (trial["method.network"], trial.get("method.lr_img"))
        for trial in space_of(f"ablations/{name}", MNIST).grid()
    }
    assert len(rates) == 6
    assert [rate for rate in rates if rate[1] is not None] == [("mlp", 0.01)]


def test_each_operation_of_dsa_is_tried_alone() -> None:
    space = space_of("ablations/dsa_operations", "cifar10_dsa")
    tried = values_of(space, "method.dsa")
    assert tried == values_of(space, "evaluation.strategy"), (
        "students see what images were made under"
    )
    all_six = parse_strategy("color_crop_cutout_flip_scale_rotate")
    assert tried == [*all_six, "color_crop_cutout_scale_rotate"]


def test_each_choice_of_edc_is_changed_alone() -> None:
    space = space_of("ablations/edc_choices", "imagenet_edc")
    changed = [key for point in space.file.points for key in point]
    assert changed == [key.name for key in space.keys]
    assert space.file.budget.trials == 1 + len(changed)
    assert all(point[key] != space.own[key] for point in space.file.points for key in point)


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "count"), [([], 5), (["sweep.budget.trials=3"], 3)])
def test_a_dry_run_says_what_would_be(
    overrides: list[str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, *own = HERDING.split()
    config, space = str(ROOT / "jobs" / f"{file}.yaml"), str(FOLDER / "herding.yaml")
    result = CliRunner().invoke(
        main, ["sweep", "--config", config, "--space", space, "--dry-run", *own, *overrides]
    )
    assert result.exit_code == 0, result.output
    assert "in all about" in result.output
    heading, *planned = result.output.partition("\ntrials: ")[2].partition("\n\n")[0].splitlines()
    assert heading == f"{count} trials"
    assert len(planned) == count - 1, "the job's own is not listed again"


@pytest.mark.slow
def test_an_ablation_made_small_is_a_table_of_the_test_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "jobs" / "quickstart.yaml")
    small = [
        *("method=null", "method.name=dc", "method.network=convnet1_w8", "method.iterations=2"),
        *(
            "method.batch_real=8",
            "evaluation.epochs=1",
            "evaluation.every=null",
            "evaluation.repeats=2",
        ),
        *("compute.workers=0", "tracking.uri=none", "sweep.seeds=1"),
        "sweep.keys.method.network.grid=[convnet1_w8_nopool,convnet1_w8]",
        "sweep.keys.evaluation.networks.grid=[[convnet1_w8_nopool],[convnet1_w8]]",
    ]
    space = str(FOLDER / "ablations" / "dc_pooling.yaml")
    result = CliRunner().invoke(main, ["sweep", "--config", config, "--space", space, *small])
    assert result.exit_code == 0, result.output
    assert "accuracy (test)" in result.output
    rows = (tmp_path / "runs" / "quickstart_sweep" / "trials.csv").read_text().splitlines()
    assert len(rows) == 1 + 1 + 4
    assert all(",finished," in row for row in rows[1:])
    assert not (tmp_path / "runs" / "quickstart_sweep" / "best.yaml").exists()
