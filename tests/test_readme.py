"""Every command of the README runs, smaller; its tables and its picture are those of the files they come from."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from raydd.cli import main
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = [
    "method.network=convnet1_w8",
    "method.iterations=4",
    "method.batch_real=8",
    "evaluation.epochs=1",
    "evaluation.repeats=1",
    "evaluation.every=null",
    "numerics.compile=false",
    "compute.workers=0",
    "tracking.uri=none",
]


SMALL_SOFT = [
    "dataset.name=digits",
    "ipc=5",
    "method.teachers.epochs=1",
    "method.statistics.slices=2",
    "method.init.candidates=60",
    "method.iterations=2",
    "method.labels.epochs=2",
    "evaluation.epochs=2",
    "evaluation.repeats=1",
    "compute.workers=0",
    "tracking.uri=none",
]
"""The same for jobs with soft labels."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


BLOCKS = [
    [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
    for block in blocks("bash")
]
COMMANDS = [line for block in BLOCKS for line in block]


def raydd(args: list[str], code: int = 0) -> str:
    result = CliRunner().invoke(main, args)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"raydd {shlex.join(args)}\n{result.output}"
    return str(result.output)


def words_of(line: str) -> list[str]:
    """Return a command's words without what only sets it up: installing uv, ``uv run``, variables."""
    words = shlex.split(line.removeprefix("pip install uv && "))
    while "=" in words[0]:
        del words[0]
    return words[2:] if words[:2] == ["uv", "run"] else words


# -- how each kind of command is run here ----------------------------------------------------------------------------


def distill(line: str) -> None:
    args = words_of(line)
    args = args[args.index("raydd.distill") + 1 :] if "raydd.distill" in args else args[2:]
    if "--dry-run" in args:
        plan = raydd(["distill", *args], code=3)  # their data are not here
        assert "missing:" in plan
        assert "distill/MatchDistributions" in plan or "relabel/Relabel" in plan
        return
    small = list(SMALL_SOFT if any("_edc" in arg for arg in args) else SMALL)
    if not any(arg.startswith("dataset.") for arg in [*args, *small]):
        small.append("dataset.name=digits")  # no downloads here
    args = [
        f"{arg.split('=')[0]}=runs/{arg.rsplit('/', 1)[1]}_here"
        if "s3://" in arg or "$PWD" in arg
        else arg
        for arg in args
    ]
    assert "accuracy, %" in raydd(["distill", *args, *small])


def sweep(line: str) -> None:
    args = words_of(line)[1:]
    shorter = ["method.iterations=4", "evaluation.epochs=1", "evaluation.every=2"]
    small = [*SMALL, "sweep.budget.trials=2", *(f"sweep.trial.{change}" for change in shorter)]
    assert "tested once, fresh students" in raydd([*args, *small])


def submit(line: str) -> None:
    """Ray itself reads the options; what it would start runs here."""
    from ray.scripts.scripts import cli

    words = words_of(line)
    split = words.index("--")
    job, verb = cli.commands["job"], words[2]
    assert isinstance(job, click.Group)
    context = job.commands[verb].make_context(verb, words[3:])
    assert context.params["entrypoint"] == tuple(words[split + 1 :])
    assert context.params["working_dir"] == "."
    distill(shlex.join(words[split + 1 :]))


def ray_command(line: str) -> None:
    """Ray itself reads the options; tests/integration/test_job_submit.py starts such a head."""
    from ray.scripts.scripts import cli

    verb, *options = words_of(line.rpartition(" && ")[2])[1:]
    name = verb.replace("-", "_")
    (command,) = {
        command for known, command in cli.commands.items() if known.replace("-", "_") == name
    }
    command.make_context(verb, options)


def evaluate(line: str) -> None:
    args = words_of(line)[1:]
    if "--protocol edc" in line:  # its labels were stored for two epochs
        assert "edc[" in raydd([*args, "--epochs", "2", "--repeats", "1"])
        return
    assert "evaluate/Evaluate" in raydd([*args, "--dry-run"]), "as it stands it can be planned"
    # The other baselines train a network on all data first; tests/methods run them smaller.
    assert "random" in raydd([*args, "--epochs", "1", "--repeats", "1", "--baselines", "random"])


def as_it_stands(line: str) -> None:
    raydd(words_of(line)[1:])


def track(line: str) -> None:
    """MLflow itself reads the options; its server is started by the tests of tracking."""
    from mlflow.cli import cli

    words = words_of(line)
    verb = cli.get_command(click.Context(cli), words[1])  # knows the short names, too
    assert verb is not None
    context = verb.make_context(words[1], words[2:])
    assert context.params["backend_store_uri"] == "sqlite:///runs/mlflow.db"


def suite(line: str) -> None:
    """Running the tests within the tests would not end: the options are read, and CI runs this very line."""
    help_text = subprocess.run(
        [sys.executable, "-m", "pytest", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert help_text.stdout.startswith("pytest ")
    if "nightly" not in line:
        assert "uv run pytest" in (ROOT / ".ci" / "run").read_text()


def checks(line: str) -> None:
    """CI runs this very line."""
    assert line in (ROOT / ".ci" / "run").read_text().splitlines()


def script(line: str) -> None:
    """Scripts write where they are told to: a copy, here."""
    words = words_of(line)
    here = [sys.executable, str(ROOT / words[1]), *words[2:]]
    before = {path: Path(path).read_bytes() for path in words[2:] if Path(path).is_file()}
    subprocess.run(here, check=True, timeout=120)
    for path, old in before.items():
        assert Path(path).read_bytes() == old, f"{path} is not what '{line}' makes"


RULES: list[tuple[str, Callable[[str], None]]] = [
    (r"(pip install uv && uv run |RAY_ADDRESS=auto )?raydd distill ", distill),
    (r"(RAY_ADDRESS=\S+ )?uv run ray job submit ", submit),
    (r"(export RAY_AUTH_MODE=token && )?uv run ray (get-auth-token|start|stop)\b", ray_command),
    (r"raydd sweep ", sweep),
    (r"raydd evaluate ", evaluate),
    (r"raydd (gc|shard|export|status|report) ", as_it_stands),
    (r"mlflow ui ", track),
    (r"(pip install uv && )?uv run pytest", suite),
    (r"uv run (ruff check|mypy)$", checks),
    (r"uv run python tests/benchmarks/results_table\.py ", script),
    (r"uv run python tests/benchmarks/quickstart_picture\.py ", script),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the jobs, a few photos and a copy of the README, and what the first command leaves there."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "jobs").symlink_to(ROOT / "jobs")
    (folder / "tune_spaces").symlink_to(ROOT / "tune_spaces")
    (folder / "docs").mkdir()
    (folder / "docs" / "results").symlink_to(ROOT / "docs" / "results")
    (folder / "README.md").write_text(README, encoding="utf-8")
    digits = open_data(DatasetConfig(name="digits"))["train"]
    for number, (image, label) in enumerate(
        zip(digits.take(torch.arange(120)), digits.labels[:120].tolist(), strict=True)
    ):
        place = folder / "my_photos" / f"class-{label % 4}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).resize((40, 36)).save(place / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        distill(COMMANDS[0])
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("lines", BLOCKS, ids=lambda lines: lines[0])
def test_the_commands_of_a_block_run(lines: list[str], here: Path) -> None:
    for line in lines:
        rules = [run for pattern, run in RULES if re.match(pattern, line)]
        assert len(rules) == 1, f"'{line}' is not covered: say in RULES how it is run in smoke size"
        rules[0](line)


@pytest.mark.slow
def test_the_lines_that_load_a_set_work(here: Path) -> None:
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - the project's own README
    assert isinstance(names["image"], torch.Tensor)
    assert names["image"].shape == (1, 8, 8)
    assert names["label"] == 0


def test_every_rule_is_used() -> None:
    assert [
        pattern for pattern, _ in RULES if not any(re.match(pattern, line) for line in COMMANDS)
    ] == []


def test_the_first_screen_holds_the_two_commands_alone() -> None:
    assert blocks("bash")[0].splitlines() == [
        "pip install uv && uv run raydd distill --config jobs/quickstart.yaml",
        "pip install uv && uv run pytest",
    ]
    assert "'pip install uv && uv run pytest'" in (ROOT / ".ci" / "run").read_text()


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`((?:raydd|jobs|tests|docs|\.ci)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name
