"""The command line: help, refusals, dry runs, and a tiny job from its file to its published set,
evaluated, exported, forgotten.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from page_tree import check_page
from PIL import Image
from s3fs import S3FileSystem

from raydd import load
from raydd.cli import main
from raydd.config import load_job
from raydd.core.errors import ConfigError
from raydd.core.keeping import register_run
from raydd.core.store import Store
from raydd.data.catalog import DatasetInfo
from raydd.data.config import DatasetConfig
from raydd.data.datasets import describe, with_digests
from raydd.runtime.planning import make_plan

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "jobs" / "quickstart.yaml")
EDC = ("--config", str(ROOT / "jobs" / "fashion_mnist_edc_small.yaml"), "dataset.name=digits")
VERBS = ["distill", "sweep", "evaluate", "status", "report", "shard", "export", "encode", "gc"]
TINY = [
    "method.network=convnet1_w8",
    "method.iterations=20",
    "method.batch_real=8",
    "evaluation.epochs=2",
    "evaluation.repeats=2",
    "evaluation.every=10",
    "compute.workers=0",
    "tracking.uri=none",
]
FEW = ["--epochs", "1", "--repeats", "1"]


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder, and leave logging as it was."""
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("raydd")
    level = logger.level
    yield
    logger.setLevel(level)


def raydd(*args: str) -> Result:
    """Run the command line in this process; stdout and stderr are one text."""
    result = CliRunner().invoke(main, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def distill(folder: Path, *overrides: str, code: int = 0) -> str:
    result = raydd(
        "distill",
        "--config",
        QUICKSTART,
        *TINY,
        f"output={folder / 'out'}",
        f"store={folder / 'store'}",
        *overrides,
    )
    assert result.exit_code == code, result.output
    return result.output


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the output and the store of a finished tiny job."""
    folder = tmp_path_factory.mktemp("finished")
    distill(folder)
    return folder


# -- help and refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args", [[], *([verb] for verb in VERBS)], ids=lambda args: " ".join(args) or "raydd"
)
def test_help(args: list[str]) -> None:
    for flag in ("--help", "-h"):
        result = raydd(*args, flag)
        assert result.exit_code == 0
        assert "Usage:" in result.output
    if not args:
        assert [verb for verb in VERBS if f"  {verb} " not in result.output] == []


def test_version() -> None:
    assert raydd("--version").output.startswith("raydd, version 0.")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["distil"], ["no verb 'distil'", "did you mean 'distill'", "evaluate"]),
        (["distill"], ["--config"]),
        (["distill", "--config", QUICKSTART, "--dryrun"], ["--dryrun", "--dry-run"]),
        (
            ["distill", "--config", QUICKSTART, "method.lr_imgg=1"],
            ["method.lr_imgg", "unknown key", "did you mean 'lr_img'"],
        ),
        (["distill", "--config", QUICKSTART, "ipc=abc"], ["ipc", "'abc'", "valid number"]),
        (["distill", "--config", QUICKSTART, "ipc"], ["'ipc'", "key.sub=value"]),
        (
            ["distill", "--config", QUICKSTART, "ipc=500"],
            ["class 8", "at most", "method.init=noise with evaluation.baselines=[]"],
        ),
        (["distill", "--config", QUICKSTART, "evaluation.networks=convnt3"], ["convnt3"]),
        (
            ["distill", "--config", QUICKSTART, "dataset.name=cifar10"],
            ["missing", "cifar-10", "dataset.download=true"],
        ),
        (
            ["distill", "--config", QUICKSTART, "dataset.name=cifar"],
            ["unknown data set 'cifar'", "cifar10"],
        ),
        (
            ["distill", *EDC, "method.labels.mix=none", "method.labels.alpha=0.5"],
            ["labels.alpha=0.5 has no effect"],
        ),
        (
            ["distill", "--config", QUICKSTART, "evaluation.split=holdout"],
            ["holdout", "dataset.holdout"],
        ),
        (
            ["distill", "--config", QUICKSTART, "tracking.uri=postgres://host/db"],
            ["tracking.uri", "postgresql"],
        ),
        (
            ["distill", "--config", str(ROOT / "jobs" / "quickstrat.yaml")],
            ["no such file", "did you mean", "quickstart.yaml"],
        ),
        (["evaluate", "nowhere", "--dataset", "digits"], ["nowhere"]),
        (["evaluate", "some.pt"], ["some.pt does not exist"]),
        (["evaluate", "some.pt", "--dataset", "digits"], ["some.pt does not exist"]),
        (["export", "nowhere", "out.pt", "--to", "pt"], ["nowhere"]),
        (["shard", "out", "--dataset", "cifar10"], ["cifar-10", "download", "root"]),
        (
            ["shard", "out", "--dataset", "digit"],
            ["unknown data set 'digit'", "did you mean 'digits'"],
        ),
        (["shard", "out", "--dataset", "digits", "--split", "val"], ["'val'", "test", "train"]),
        (
            ["distill", "--config", QUICKSTART, "evaluation.strategy=color_zoom"],
            ["'zoom'", "cutout"],
        ),
        (
            ["distill", "--config", QUICKSTART, "ipc=500", "method.init=noise"],
            ["baselines: random: ipc=500", "class 8", "or leave it out"],
        ),
        (
            [
                "distill",
                "--config",
                QUICKSTART,
                "dataset.name=image_folder",
                "dataset.root=s3://raydd-none/x",
            ],
            ["s3://raydd-none/x"],
        ),
        (
            ["distill", "--config", QUICKSTART, "dataset.shards=s3://raydd-none/x", "--dry-run"],
            ["s3://raydd-none/x"],
        ),
        (
            ["distill", *EDC, "method.statistics=null", f"method.statistics.files={QUICKSTART}"],
            ["could not look up", QUICKSTART],
        ),
        (
            ["distill", *EDC, f"method.statistics={{files: {QUICKSTART}}}"],
            ["would drop method.statistics.patch", "method.statistics=null"],
        ),
        (
            ["distill", *EDC, "method.label_networks=[convnet6_w8]"],
            ["convnet6_w8", "cannot read 1x8x8 images"],
        ),
        (
            ["distill", *EDC, "method.init={kind: folder, folder: s3://raydd-none/x}"],
            ["s3://raydd-none/x"],
        ),
        (["evaluate", "s3://raydd-none/x"], ["s3://raydd-none/x"]),
        (["export", "s3://raydd-none/x", "out", "--to", "folder"], ["s3://raydd-none/x"]),
        (["gc", "s3://raydd-none/x"], ["s3://raydd-none/x"]),
        (["gc", "empty"], ["empty holds no store"]),
        (["gc", "empty", "--forget", "runs/gone"], ["no run wrote to", "runs/gone"]),
    ],
    ids=lambda value: (
        " ".join(value).replace(str(ROOT) + "/", "")
        if isinstance(value[0], str) and len(value) < 8
        else ""
    ),
)
def test_what_cannot_be_is_refused_with_one_message_and_code_2(
    args: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    S3FileSystem.clear_instance_cache()  # of other tests, with credentials
    monkeypatch.setenv(
        "AWS_EC2_METADATA_DISABLED", "true"
    )  # no credentials, and nobody who is asked for some
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    result = raydd(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert len(re.findall(r"(?mi)^error: ", result.output)) == 1, result.output
    for part in parts:
        assert part in result.output, result.output


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["export", "OUT", "somewhere", "--to", "pth"], ["'pth'", "did you mean 'pt'"]),
        (["evaluate", "OUT", "--protocol", "dn"], ["unknown protocol 'dn'", "dm"]),
        (["evaluate", "OUT", "--baselines", "rand"], ["evaluation.baselines", "'rand'"]),
        (["evaluate", "OUT", "--dataset", "cifar10"], ["missing", "cifar-10"]),
        (["evaluate", "OUT", "--dataset", "fashion_mnist"], ["28"]),
        (["evaluate", "OUT", "ipc=3"], ["ipc", "unknown key"]),
        (["evaluate", "OUT", "evaluation.every=5"], ["evaluation.every", "no snapshots"]),
    ],
    ids=lambda value: " ".join(value[2:]),
)
def test_what_cannot_be_done_with_a_set_is_refused(
    args: list[str], parts: list[str], finished: Path
) -> None:
    result = raydd(*(str(finished / "out") if arg == "OUT" else arg for arg in args))
    assert result.exit_code == 2, result.output
    assert result.output.count("error: ") == 1
    for part in parts:
        assert part in result.output, result.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [["-m", "raydd.distill"], ["-m", "raydd.cli", "distill"]],
    ids=["module", "console script"],
)
def test_a_process_refuses_in_the_same_way(start: list[str], tmp_path: Path) -> None:
    command = [sys.executable, *start, "--config", QUICKSTART, "ipc=0", "method.init=rael"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 2, "one line for each of the two mistakes"


def test_a_plan_counts_the_images_of_ones_own_folder(tmp_path: Path) -> None:
    for c, count in (("a", 4), ("b", 2)):
        (tmp_path / "own" / c).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / "own" / c / f"{i}.png")
    own = (
        "--config",
        QUICKSTART,
        "dataset.name=image_folder",
        f"dataset.root={tmp_path}/own",
        "dataset.test_split=0.5",
        "--dry-run",
    )
    few = raydd("distill", *own, "ipc=2")
    assert few.exit_code == 2, few.output
    assert "class 1 has only 1 training images" in few.output
    assert raydd("distill", *own).exit_code == 0
    assert raydd("distill", *own, "ipc=2", "method.init=noise").exit_code == 2, (
        "random images are as many"
    )
    for more in (["method.init=noise", "evaluation.baselines=[]"], ["ipc=1"]):
        assert raydd("distill", *own, "ipc=2", *more).exit_code == 0, "what the refusal says helps"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method.init=noise"],
        ["method=null", "method.name=random"],
        ["method=null", "method.name=herding", "method.epochs=0"],
        ["method.name=dsa", "method.init=noise", "evaluation.baselines=[]"],
    ],
    ids=lambda overrides: " ".join(overrides) or "as it stands",
)
def test_classes_without_images_are_refused_before_work_starts(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted_from_one(info: DatasetInfo, data: object) -> DatasetInfo:
        return replace(with_digests(info, data), train_counts=(0, *[150] * 9))  # type: ignore[arg-type]

    monkeypatch.setattr("raydd.data.datasets.with_digests", counted_from_one)
    result = raydd("distill", "--config", QUICKSTART, *overrides, "--dry-run")
    assert result.exit_code == 2, result.output
    assert "no training images of class 0" in result.output
    assert "labels that begin at 1 have to be counted from 0" in result.output
    assert "noise" not in result.output


def test_classes_without_images_matter_only_to_what_reads_images(tmp_path: Path) -> None:
    info = replace(
        describe(DatasetConfig(name="digits")),
        train_counts=(150,) * 9 + (0,),
        digests=(("test", "a"), ("train", "b")),
    )
    sre2l, own = (
        str(ROOT / "jobs" / "fashion_mnist_sre2l_small.yaml"),
        ["dataset.name=digits", "evaluation.baselines=[]"],
    )
    job = load_job(sre2l, own)
    with pytest.raises(ConfigError, match=r"no training images of class 9 .*give them images"):
        make_plan(job, info)  # its teachers are trained here
    job = load_job(sre2l, [*own, "method.teachers=null", f"method.teachers.weights={tmp_path}"])
    assert make_plan(job, info).targets


# -- dry runs --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["dataset.name=cifar10", "method.network=convnet3"],
            ["missing:", "cifar-10-batches-py", "dataset.download=true"],
        ),
        (
            ["dataset.name=tiny_imagenet", "method.network=convnet4"],
            ["missing:", "tiny-imagenet-200", "dataset.root"],
        ),
        (
            ["dataset.name=imagenet10", "method.network=convnet5_w4"],
            ["missing:", "number of training images is not known"],
        ),
        (["compute.workers=[1,4]"], ["with 4 workers"]),
    ],
    ids=["cifar10", "tiny_imagenet", "imagenet10", "digits"],
)
def test_a_dry_run_plans_without_the_data_and_without_a_cluster(
    overrides: list[str], expected: list[str], tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom raydd.distill import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    print('started:', [name for name in ('ray', 'mlflow') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", code, "--config", QUICKSTART, "--dry-run", *overrides]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.returncode == (3 if "missing:" in expected else 0), done.stderr
    assert "started: []" in done.stdout
    resolved, _, plan = done.stdout.partition("\n\n")
    assert yaml.safe_load(resolved)["method"]["momentum"] == 0.5, "defaults are written out"
    stages = ("distill/MatchDistributions", "evaluate/Evaluate", "init/DrawImages")
    for part in (*stages, "peak memory of a worker", "storage:", "FLOP", *expected):
        assert part in plan
    assert ("missing:" in plan) == ("missing:" in expected)
    assert list(tmp_path.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize(
    ("overrides", "code", "expected"),
    [
        (
            ["dataset.name=image_folder", "dataset.root=nowhere"],
            3,
            ["no plan:", "missing:", "nowhere"],
        ),
        (
            ["dataset.name=cifar10", "method.network=convnet3", "ipc=6000"],
            2,
            ["ipc=6000", "at most ipc=5000"],
        ),
        (
            ["dataset.name=cifar10", "method.network=convnet3", "evaluation.networks=[mlpp]"],
            2,
            ["mlpp"],
        ),
    ],
    ids=["no plan", "too few", "a wrong job"],
)
def test_a_dry_run_tells_missing_files_from_a_wrong_job(
    overrides: list[str], code: int, expected: list[str]
) -> None:
    result = raydd("distill", "--config", QUICKSTART, "--dry-run", *overrides)
    assert result.exit_code == code, result.output
    for part in expected:
        assert part in result.output


def test_a_dry_run_says_whose_the_output_is(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: theirs\n")
    result = raydd("distill", "--config", QUICKSTART, "--dry-run", f"output={tmp_path}")
    assert (result.exit_code, "was made by a different job" in result.output) == (2, True), (
        result.output
    )


def test_a_dry_run_misses_weights_as_it_misses_data(tmp_path: Path) -> None:
    weights = ("method.teachers=null", f"method.teachers.weights={tmp_path}/nothing")
    result = raydd("distill", *EDC, *weights, "method.labels.batch=10", "--dry-run")
    assert result.exit_code == 3, result.output
    assert "missing:\n  - network 'convnet3_w64_batchnorm'" in result.output
    assert raydd("distill", *EDC, *weights, "method.labels.batch=10").exit_code == 2, (
        "without --dry-run it is refused"
    )


def test_a_dry_run_of_an_evaluation_plans_without_the_test_images(tmp_path: Path) -> None:
    torch.save({"data": [[torch.randn(10, 1, 28, 28), torch.arange(10)]]}, tmp_path / "foreign.pt")
    args = [
        "evaluate",
        str(tmp_path / "foreign.pt"),
        "--dataset",
        "mnist",
        "--networks",
        "mlp",
        "dataset.root=nowhere",
    ]
    plan = raydd(*args, "--dry-run")
    assert plan.exit_code == 3, plan.output
    for part in (
        "dm (set, random; mlp): 1001 epochs of batches of 256",
        "evaluate/Evaluate",
        "missing:\n  - train-images-idx3-ubyte",
    ):
        assert part in plan.output
    assert raydd(*args).exit_code == 2
    wrong = raydd(*args, "--dry-run", "--protocol", "edc")
    assert wrong.exit_code == 2
    assert "teaches soft labels" in wrong.output


# -- a job -----------------------------------------------------------------------------------------------------------


def test_a_job_leaves_everything_it_promises(finished: Path) -> None:
    out = finished / "out"
    files = set(content(out))
    distilled = {
        "data.safetensors",
        "grid.png",
        "recipe.json",
        "report.json",
        "README.md",
        "shards/train-000000.tar",
    }
    assert {f"distilled/{name}" for name in distilled} <= files
    assert {
        "job.yaml",
        "report.json",
        "log.jsonl",
        "plan.json",
        "report.html",
        "loss.png",
        *(f"pictures/step-{t:06d}.png" for t in (0, 10)),
    } <= files
    assert "lock.json" not in files
    job = yaml.safe_load((out / "job.yaml").read_text())
    assert job["method"]["iterations"] == 20
    assert job["evaluation"]["random_draws"] == 3
    report = json.loads((out / "report.json").read_text())
    rows = {row["set"]: row for row in report["rows"]}
    assert (rows["dm"]["seeds"], rows["dm"]["networks"]) == (1, 2)
    assert (rows["random"]["seeds"], rows["random"]["networks"]) == (3, 2)
    assert rows["dm"]["protocol"] == "dm[epochs=2]"
    assert rows["dm"]["device_seconds"] > 0
    assert report["ior"] == pytest.approx(
        rows["dm"]["accuracy_mean"] - rows["random"]["accuracy_mean"]
    )
    assert [point["step"] for point in report["curve"]] == [0, 10, 20]
    recipe = json.loads((out / "distilled" / "recipe.json").read_text())
    assert recipe["method"]["name"] == "dm"
    assert set(recipe["source"]) == {"train", "test"}
    assert str(finished) not in json.dumps(recipe), "where it was made is no fact about the set"
    dataset = load(str(out / "distilled"))
    assert (len(dataset), dataset[3][0].shape, dataset[3][1]) == (10, (1, 8, 8), 3)


def test_the_same_job_again_computes_nothing(finished: Path) -> None:
    before = content(finished)
    times = {
        path: path.stat().st_mtime_ns
        for path in (finished / "store" / "units").rglob("*")
        if path.is_file()
    }
    output = distill(finished)
    assert "quickstart: dm on digits, ipc 1 (resumed)" in output
    assert "distill/MatchDistributions: 2 of 2 units already in the store" in output
    assert {path: path.stat().st_mtime_ns for path in times} == times
    after = content(finished)
    for told in ("out/log.jsonl", "out/report.html"):  # that it ran
        assert told in before
        before[told] = after[told]
    assert after == before


def test_a_job_elsewhere_on_the_same_store_shares_its_units(finished: Path, tmp_path: Path) -> None:
    before = {path.name for path in (finished / "store" / "units").glob("*/*")}
    distill(
        tmp_path,
        f"store={finished / 'store'}",
        "evaluation.snapshot_repeats=2",
        "evaluation.every=5",
    )
    new = [path for path in (finished / "store" / "units").glob("*/*") if path.name not in before]
    made = [
        json.loads(marker.read_text())["stage"] for path in new for marker in path.glob("*.json")
    ]
    assert made == ["evaluate/Evaluate"] * 4, (
        "four snapshots with two students each; nothing else is a new unit"
    )
    shared = ("data.safetensors", "grid.png", "shards/train-000000.tar")
    here, there = content(tmp_path / "out" / "distilled"), content(finished / "out" / "distilled")
    assert [here[name] for name in shared] == [there[name] for name in shared]


def test_a_job_on_an_empty_store_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    distill(tmp_path)
    here, there = content(tmp_path / "out" / "distilled"), content(finished / "out" / "distilled")
    assert here["data.safetensors"] == there["data.safetensors"]
    assert here["shards/train-000000.tar"] == there["shards/train-000000.tar"]


def test_a_job_shows_what_its_protocol_comes_to(finished: Path) -> None:
    out = finished / "out"
    assert "null" not in (out / "job.yaml").read_text()
    report = json.loads((out / "report.json").read_text())
    (training,) = report["trainings"]
    assert (training["protocol"], training["sets"], training["networks"]) == (
        "dm[epochs=2]",
        ["dm", "random"],
        ["convnet1_w8"],
    )
    recipe = training["recipe"]
    assert {
        key: recipe[key]
        for key in (
            "epochs",
            "batch",
            "lr",
            "optimizer",
            "momentum",
            "weight_decay",
            "schedule",
            "loss",
        )
    } == {
        "epochs": 3,
        "batch": 256,
        "lr": 0.01,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "schedule": "steps",
        "loss": "ce",
    }
    assert recipe["strategy"] == "color_crop_cutout_scale_rotate"
    made = json.loads((out / "distilled" / "recipe.json").read_text())
    assert made["settled"]["MatchDistributions"]["dsa"] == "color_crop_cutout_scale_rotate"
    assert "dsa" not in made["method"]
    line = (
        "dm[epochs=2] (dm, random; convnet1_w8): 3 epochs of batches of 256; sgd, lr 0.01, momentum 0.9, weight decay"
        " 0.0005; "
    )
    line += "schedule steps, times 0.1 from epoch 3; loss ce; augmentation dsa, strategy color_crop_cutout_scale_rotate"
    assert f"- {line}" in (out / "distilled" / "README.md").read_text().splitlines()
    plan = raydd("distill", "--config", QUICKSTART, *TINY, "--dry-run").output
    assert f"  {line}" in plan.splitlines()
    assert (
        "  MatchDistributions: init_from real, dsa color_crop_cutout_scale_rotate"
        in plan.splitlines()
    )
    again = raydd("evaluate", str(out), "--networks", "convnet1_w8,mlp", *FEW, "--dry-run").output
    assert "null" not in again
    assert "  dm[epochs=1] (dm, random; convnet1_w8, mlp): 2 epochs of batches of 256; sgd" in again


def test_a_job_file_of_an_earlier_version_is_resumed(finished: Path) -> None:
    """It wrote the nulls, and knew fewer keys."""
    path = finished / "out" / "job.yaml"
    now = path.read_text()
    old = load_job(str(path)).resolved()
    assert "lr" in old["evaluation"]
    del (
        old["evaluation"]["whole_epochs"],
        old["dataset"]["on_error"],
        old["numerics"]["convolution"],
    )
    path.write_text(yaml.safe_dump(old, sort_keys=False))
    assert "(resumed)" in distill(finished)
    assert path.read_text() == now
    path.write_text(yaml.safe_dump({**old, "dataset": {**old["dataset"], "holdout": 5}}))
    assert "dataset.holdout: 5 there, 0 now" in distill(finished, code=2)
    path.write_text(yaml.safe_dump({**old, "gone": {"since": 1}}))
    assert "gone.since: 1 there, 'absent' now" in distill(finished, code=2), (
        "a key that no version knows any more is told"
    )
    path.write_text(now)


def test_a_job_leaves_a_page_of_itself(finished: Path, tmp_path: Path) -> None:
    page = check_page((finished / "out" / "report.html").read_text())
    assert page.one("h1").text == "quickstart"
    parts = {part.all("h2")[0].text: part for part in page.all("section")}
    assert list(parts) == ["Results", "Pictures", "Curves", "Recipe", "Plan", "Environment"]
    captions = [node.text for node in parts["Pictures"].all("figcaption")]
    assert captions == ["After 0 updates", "After 10 updates", "As published, after 20 updates"]
    (row,) = (
        row
        for row in json.loads((finished / "out" / "report.json").read_text())["rows"]
        if row["set"] == "dm"
    )
    shown = f"{row['accuracy_mean']:.2f} ± {row['accuracy_std']:.2f}"
    assert f"{shown} %" in page.one("ul", class_="figures").text
    lines = {line[0]: line[1:4] for line in parts["Plan"].one("table").cells()[1:]}
    assert lines == {
        "init/DrawImages": ["3 of 3", "3", "0"],
        "distill/MatchDistributions": ["2 of 2", "2", "0"],
        "evaluate/Evaluate": ["6 of 6", "6", "0"],
    }
    accuracies = [line for line in records(finished) if line["kind"] == "accuracy"]
    curve = json.loads((finished / "out" / "report.json").read_text())["curve"][:2]
    assert [(line["t"], line["values"]["accuracy_mean"]) for line in accuracies] == [
        (point["step"], point["accuracy_mean"]) for point in curve
    ]
    result = raydd("report", str(finished / "out"), "--to", str(tmp_path / "page.html"))
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"wrote {tmp_path / 'page.html'}, 0.")
    again = check_page((tmp_path / "page.html").read_text())
    assert [node.text for node in again.all("td")] == [node.text for node in page.all("td")]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]


def test_a_page_that_cannot_be_drawn_stops_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> str:
        raise KeyError("whatever")

    monkeypatch.setattr("raydd.runtime.page_file.run_page", fail)
    output = distill(tmp_path, "evaluation.every=null")
    assert "report.html" not in output
    assert "no page of the run: KeyError: 'whatever'" in caplog.text
    assert (tmp_path / "out" / "report.json").exists()
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("there", ["- a list", "text"])
def test_an_output_with_another_kind_of_job_file_is_refused(
    tmp_path: Path, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydd.runtime.lock.STALE_SECONDS", 0.5)  # for a lock that says nothing
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/job.yaml").write_text(there)
    (tmp_path / "runs/quickstart/lock.json").write_text("[]")
    result = raydd("distill", "--config", QUICKSTART)
    assert result.exit_code == 2, result.output
    assert "job.yaml is not the file of a job" in result.output
    assert (tmp_path / "runs/quickstart/job.yaml").read_text() == there


def test_an_output_of_another_job_is_refused_with_the_difference(finished: Path) -> None:
    before = content(finished)
    output = distill(finished, "method.lr_img=0.5", "seed=1", code=2)
    assert "method.lr_img: 1.0 there, 0.5 now" in output
    assert "seeds: [0] there, [1] now" in output
    assert content(finished) == before
    assert "resumed" in distill(finished, "compute.checkpoint_every=7"), (
        "where and how it runs may differ"
    )


def test_seeds_repeat_the_distillation(tmp_path: Path) -> None:
    output = distill(tmp_path, "seeds=[0,1]", "evaluation.every=null")
    folders = [tmp_path / "out" / "distilled" / f"seed-{seed}" for seed in (0, 1)]
    one, two = (load(str(folder)).tensors()[0] for folder in folders)
    assert one.shape == two.shape == (10, 1, 8, 8)
    assert not torch.equal(one, two)
    row = next(
        r
        for r in json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
        if r["set"] == "dm"
    )
    assert (row["seeds"], row["networks"]) == (2, 2)
    assert "2 × 2" in output


# -- evaluate and export ---------------------------------------------------------------------------------------------


def rows_of(output: Path) -> list[dict[str, object]]:
    return list(json.loads((output / "report.json").read_text())["rows"])


def test_a_set_of_ours_is_evaluated_on_any_networks(finished: Path, tmp_path: Path) -> None:
    args = [
        "evaluate",
        str(finished / "out" / "distilled"),
        "--networks",
        "convnet1_w8,mlp",
        *FEW,
        "--output",
        str(tmp_path / "report"),
    ]
    plan = raydd(*args, "--dry-run", f"store={tmp_path / 'store'}")
    assert plan.exit_code == 0, plan.output
    assert "evaluate/Evaluate" in plan.output
    assert not (tmp_path / "store").exists()
    away = raydd(*args, "--dry-run", "dataset.root=nowhere", "dataset.name=mnist")
    assert away.exit_code == 2, (
        "8x8 images are none of that set's, whether its files are here or not"
    )
    result = raydd(*args, f"store={tmp_path / 'store'}")
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "report")
    assert [(r["set"], r["network"], r["seeds"]) for r in rows] == [
        ("dm", "convnet1_w8", 1),
        ("random", "convnet1_w8", 3),
        ("dm", "mlp", 1),
        ("random", "mlp", 3),
    ]
    assert all(row["protocol"] == "dm[epochs=1]" for row in rows)
    assert "dm[epochs=1]" in result.output
    again = raydd(*args, f"store={tmp_path / 'store'}")
    assert "already in the store" in again.output


@pytest.mark.parametrize("to", ["pt", "folder", "webdataset", "safetensors"])
def test_what_is_exported_is_evaluated_and_loaded_as_foreign(
    finished: Path, to: str, tmp_path: Path
) -> None:
    place = str(tmp_path / {"pt": "res.pt", "safetensors": "set.safetensors"}.get(to, "set"))
    written = raydd("export", str(finished / "out"), place, "--to", to)
    assert written.exit_code == 0, written.output
    assert f"wrote 10 images of 10 classes as {to}" in written.output
    args = [
        "--dataset",
        "digits",
        "--networks",
        "convnet1_w8",
        *FEW,
        "--output",
        str(tmp_path / "report"),
        f"store={tmp_path / 'store'}",
    ]
    if to == "pt":
        unsaid = raydd(
            "evaluate",
            place,
            "--dry-run",
            "--networks",
            "convnet1_w8",
            f"store={tmp_path / 'store'}",
        )
        assert unsaid.exit_code == 0, "an export says what its data set is"
        assert "name: digits" in unsaid.output
    result = raydd("evaluate", place, *args)
    assert result.exit_code == 0, result.output
    assert [row["set"] for row in rows_of(tmp_path / "report")] == [
        rows_of(tmp_path / "report")[0]["set"],
        "random",
    ]
    ours, theirs = load(str(finished / "out" / "distilled")), load(place, info="digits")
    assert torch.equal(torch.as_tensor([label for _, label in theirs]), torch.arange(10))  # type: ignore[attr-defined]
    if to in ("pt", "safetensors"):
        assert torch.equal(theirs.tensors()[0], ours.tensors()[0])
    else:
        step = (
            float(ours.distilled.to_pixels().max() - ours.distilled.to_pixels().min().clamp_max(0))
            / 255
        )
        assert torch.allclose(
            theirs.distilled.to_pixels(),
            ours.distilled.to_pixels(),
            atol=max(step, 1 / 255) / 2 + 1e-6,
        )


# -- gc --------------------------------------------------------------------------------------------------------------


def test_gc_removes_what_no_unfinished_run_needs(tmp_path: Path) -> None:
    distill(tmp_path, "evaluation.every=null")
    before, units = (
        content(tmp_path / "out" / "distilled"),
        list((tmp_path / "store" / "units").glob("*/*")),
    )
    keys, store = [unit.name for unit in units], Store(str(tmp_path / "store"))
    register_run(store, str(tmp_path / "unfinished"), keys[:2], finished=False)
    would = raydd("gc", str(tmp_path / "store"), "--dry-run")
    assert would.exit_code == 0
    assert f"would remove {len(units) - 2} units" in would.output
    assert "2 are still needed" in would.output
    assert all(unit.exists() for unit in units)
    done = raydd("gc", str(tmp_path / "store"))
    assert f"removed {len(units) - 2} units" in done.output
    left = {
        path.parent.name for path in (tmp_path / "store" / "units").rglob("*") if path.is_file()
    }
    assert left == set(keys[:2])
    forgotten = raydd("gc", str(tmp_path / "store"), "--forget", "unfinished")
    assert "removed 2 units" in forgotten.output
    assert not [path for path in (tmp_path / "store" / "units").rglob("*") if path.is_file()]
    assert content(tmp_path / "out" / "distilled") == before, (
        "published sets do not depend on the store"
    )
    assert "removed 0 units" in raydd("gc", str(tmp_path / "store")).output
    distill(tmp_path, "evaluation.every=null")
    assert (
        content(tmp_path / "out" / "distilled")["data.safetensors"] == before["data.safetensors"]
    ), "and what is gone is computed again"


def test_a_dry_run_refuses_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = raydd("distill", "--config", QUICKSTART, f"output={tmp_path}/file", "--dry-run")
    assert result.exit_code == 2, result.output
    assert "is not a folder" in result.output
