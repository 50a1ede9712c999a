"""A job as MLflow sees it: one run that holds everything, once; and a server that is away does not matter."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from raydd.config import load_evaluation, load_job
from raydd.runtime.evaluating import plan_stored, run_stored
from raydd.runtime.pipeline import run_job

QUICKSTART = str(Path(__file__).parents[1] / "jobs" / "quickstart.yaml")
TINY = [
    "method.network=convnet1_w8",
    "method.iterations=20",
    "method.batch_real=8",
    "evaluation.epochs=2",
    "evaluation.repeats=2",
    "evaluation.every=10",
    "compute.workers=0",
]


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def run(folder: Path, uri: str) -> list[str]:
    """Run the tiny job tracked at ``uri``; return the lines it told."""
    told: list[str] = []
    job = load_job(
        QUICKSTART,
        [*TINY, f"output={folder / 'out'}", f"store={folder / 'store'}", f"tracking.uri={uri}"],
    )
    told.append(run_job(job, told.append).places["tracking"])
    return told


def runs(client: MlflowClient) -> list[Run]:
    return [
        found
        for e in client.search_experiments()
        for found in client.search_runs([e.experiment_id])
    ]


def history(client: MlflowClient, found: Run) -> dict[str, list[int]]:
    """Return the steps of every metric, in the order they were logged."""
    return {
        name: [m.step for m in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }


def artifacts(client: MlflowClient, found: Run, path: str = "") -> list[str]:
    listed = client.list_artifacts(found.info.run_id, path)
    return [
        name
        for item in listed
        for name in (artifacts(client, found, item.path) if item.is_dir else [item.path])
    ]


def check_whole(client: MlflowClient, output: Path) -> Run:
    """Check that there is one run, finished, and that it holds all there is to know of the job, once."""
    (found,) = runs(client)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "quickstart"
    params = found.data.params
    assert (params["method.name"], params["method.lr_img"], params["ipc"]) == ("dm", "1.0", "1")
    assert not [name for name in params if name.startswith("tracking")]
    assert "None" not in params.values()
    protocol = {
        "name": "dm[epochs=2]",
        "epochs": "3",
        "batch": "256",
        "lr": "0.01",
        "optimizer": "sgd",
        "schedule": "steps",
        "loss": "ce",
    }
    assert {name: params[f"protocol.{name}"] for name in protocol} == protocol
    assert params["settled.MatchDistributions.dsa"] == "color_crop_cutout_scale_rotate"
    assert found.data.tags["mlflow.source.name"] == "raydd distill quickstart"
    described = found.data.tags["mlflow.note.content"]
    assert f"get-artifact?path=distilled%2Fgrid.png&run_uuid={found.info.run_id})" in described
    assert "| dm | dm[epochs=2] | convnet1_w8 |" in described
    assert "What the protocols come to:" in described
    assert found.data.tags["raydd.method"] == "dm"
    assert found.data.tags["raydd.protocol"] == "dm[epochs=2]"
    steps = history(client, found)
    for name, logged in steps.items():
        assert len(set(logged)) == len(logged), f"{name} holds a step twice"
    loss = next(
        name
        for name in steps
        if name.startswith("distill/MatchDistributions") and name.endswith("loss")
    )
    assert sorted(steps[loss]) == list(range(20))
    assert sorted(steps["accuracy/snapshot"]) == [0, 10, 20]
    report = json.loads((output / "report.json").read_text())
    for row in report["rows"]:
        assert found.data.metrics[f"accuracy/{row['set']}/{row['network']}"] == pytest.approx(
            row["accuracy_mean"]
        )
    assert found.data.metrics["ior"] == pytest.approx(report["ior"])
    files = artifacts(client, found)
    assert {
        f"distilled/{name}"
        for name in ("data.safetensors", "README.md", "grid.png", "shards/train-000000.tar")
    } <= set(files)
    pictures = [name for name in files if name.startswith("images/") and name.endswith(".png")]
    assert sorted(
        int(name.split("step")[1].split("timestamp")[0].strip("+%")) for name in pictures
    ) == [0, 10, 20]
    inputs = {tag.value for entry in found.inputs.dataset_inputs for tag in entry.tags}
    assert inputs == {"train", "test"}
    assert {entry.dataset.name for entry in found.inputs.dataset_inputs} == {
        "digits-train",
        "digits-test",
    }
    return found


@pytest.mark.slow
def test_one_run_holds_everything_and_a_second_run_of_the_job_adds_nothing(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'tracked.db'}"
    told = run(tmp_path, uri)
    client = MlflowClient(uri)
    first = check_whole(client, tmp_path / "out")
    assert first.info.run_id in told[-1]
    before = history(client, first), sorted(artifacts(client, first))
    run(tmp_path, uri)
    second = check_whole(client, tmp_path / "out")
    assert second.info.run_id == first.info.run_id
    assert (history(client, second), sorted(artifacts(client, second))) == before


@pytest.mark.slow
def test_an_evaluation_is_described_like_a_job(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'tracked.db'}"
    run(tmp_path, "none")
    job = load_evaluation(
        {"dataset": {"name": "digits"}},
        [f"tracking.uri={uri}", "evaluation.epochs=1", "evaluation.repeats=1"],
    )
    subject, plan = plan_stored(job, str(tmp_path / "out"))
    places = run_stored(job, subject, plan, lambda _: None).places
    client = MlflowClient(uri)
    (found,) = runs(client)
    assert places["MLflow"] == f"mlflow ui --backend-store-uri {uri}"
    assert found.info.run_id in places["tracking"]
    assert found.data.tags["mlflow.source.name"] == "raydd evaluate dm"
    assert (
        f"get-artifact?path=evaluation%2Fgrid.png&run_uuid={found.info.run_id})"
        in found.data.tags["mlflow.note.content"]
    )
    assert "evaluation/grid.png" in artifacts(client, found)
    assert found.data.params["protocol.epochs"] == "2"
    assert "None" not in found.data.params.values()


@pytest.mark.slow
def test_a_dead_server_neither_stops_nor_holds_up_a_job_and_a_good_one_gets_everything_later(
    tmp_path: Path,
) -> None:
    begun = time.monotonic()
    run(tmp_path / "untracked", "none")
    alone = time.monotonic() - begun
    begun = time.monotonic()
    told = run(tmp_path, "http://127.0.0.1:9")
    assert time.monotonic() - begun < 2 * alone + 30
    assert (tmp_path / "out" / "distilled" / "data.safetensors").exists()
    assert any("could not be sent" in line and "kept" in line for line in told)
    uri = f"sqlite:///{tmp_path / 'good.db'}"
    run(tmp_path, uri)
    check_whole(MlflowClient(uri), tmp_path / "out")
