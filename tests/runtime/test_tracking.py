"""MLflow behind its thread: real databases, a real server that is killed, runs that are resumed."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from waiting import waited

from raydd.artifacts.report import Report, Row
from raydd.core.errors import ConfigError, StorageError
from raydd.core.redaction import redact
from raydd.core.sealed import unseal
from raydd.core.storage import Storage
from raydd.runtime.tracking.mlflow_run import TAG_LENGTH, MlflowRun
from raydd.runtime.tracking.note import command_line, note
from raydd.runtime.tracking.tracker import Tracker
from raydd.runtime.tracking.tracking_uri import resolve_uri, show_command, web_address

PARAMS = {
    "method.name": "dm",
    "method.lr_img": 1.0,
    "compute.workers": 2,
    "tracking.uri": "http://user:canary@host",
}
pytestmark = pytest.mark.timeout(300)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs/mlflow.db"


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


@pytest.fixture
def start(output: Storage, request: pytest.FixtureRequest) -> Any:
    """Make trackers of one job: an experiment per test, one output."""

    def make(
        uri: str | None, params: dict[str, Any] | None = None, where: Storage | None = None
    ) -> Tracker:
        return Tracker(
            uri, request.node.name, "job", where or output, params or PARAMS, {"raydd.method": "dm"}
        )

    return make


def png(shade: int = 100) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(data, "PNG")
    return data.getvalue()


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs(uri: str, experiment: str) -> list[Any]:
    found = client(uri).get_experiment_by_name(experiment)
    return [] if found is None else list(client(uri).search_runs([found.experiment_id]))


def history(uri: str, run: Any, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client(uri).get_metric_history(run.info.run_id, name))


def files(uri: str, run: Any, folder: str) -> list[str]:
    return sorted(f.path for f in client(uri).list_artifacts(run.info.run_id, folder))


def state(output: Storage) -> dict[str, Any]:
    return unseal(output.get("tracking.json"), "tracking.json")


def test_a_run_holds_everything_and_a_resumed_one_nothing_twice(
    database: str, output: Storage, start: Any, tmp_path: Path
) -> None:
    made = tmp_path / "set"
    (made / "shards").mkdir(parents=True)
    (made / "README.md").write_text("card")
    (made / "shards" / "0.tar").write_bytes(b"tar")

    def log(tracker: Tracker, steps: int) -> None:
        for t in range(steps):
            tracker.metrics("distill/Walk/loss", 1.0 / (t + 1), t)
        tracker.batch({"hlr": 3.0, "what: [odd]?": 1.0}, 10, timestamp=5.0)
        tracker.picture("distilled/all", 4, png())
        tracker.input_dataset(
            "digits-train", "0123456789" * 5, "s3://bucket/digits", "train", {"images": 1437}
        )
        tracker.artifacts(Storage(str(made)), "distilled")
        tracker.tag("note", "first")

    first = start(database)
    log(first, 1500)
    places = first.places()
    assert first.finish("KILLED") is None
    (run,) = runs(database, "test_a_run_holds_everything_and_a_resumed_one_nothing_twice")
    assert run.info.status == "KILLED"
    assert run.info.run_name == "job"
    assert run.data.params == {"method.name": "dm", "method.lr_img": "1.0", "compute.workers": "2"}
    assert run.data.tags["raydd.method"] == "dm"
    assert run.data.tags["note"] == "first"
    assert places == {
        "MLflow": f"mlflow ui --backend-store-uri {database}",
        "tracking": f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning",
    }
    assert run.info.start_time <= 1000 * time.time() - 100, (
        "when the job began, not when the run was made"
    )
    assert len(history(database, run, "distill/Walk/loss")) == 1500
    (odd,) = client(database).get_metric_history(run.info.run_id, "what_ _odd__")
    assert (odd.step, odd.timestamp, odd.value) == (10, 5000, 1.0)
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.dataset.source_type) == (
        "digits-train",
        ("0123456789" * 5)[:36],
        "s3",
    )
    assert json.loads(dataset.dataset.profile) == {"images": 1437}
    assert {t.key: t.value for t in dataset.tags} == {"mlflow.data.context": "train"}
    assert files(database, run, "distilled") == ["distilled/README.md", "distilled/shards"]
    assert files(database, run, "distilled/shards") == ["distilled/shards/0.tar"]
    assert len(files(database, run, "images")) == 2, "the picture and its preview"
    assert run.info.artifact_uri.startswith(
        f"file://{Path(database.removeprefix('sqlite:///')).parent}/mlartifacts/"
    )

    (made / "README.md").write_text("another card")
    before = Path(database.removeprefix("sqlite:///")).parent.rglob("0.tar")
    stamps = [path.stat().st_mtime_ns for path in before]
    second = start(database, params={**PARAMS, "compute.workers": 8, "method.new": "x"})
    log(second, 1503)
    second.tag("note", "second")
    second.picture("distilled/all", 8, png(200))
    assert second.finish("FINISHED") is None
    (run,) = runs(database, "test_a_run_holds_everything_and_a_resumed_one_nothing_twice")
    assert run.info.status == "FINISHED"
    assert history(database, run, "distill/Walk/loss") == [(t, 1.0 / (t + 1)) for t in range(1503)]
    assert history(database, run, "hlr") == [(10, 3.0)]
    assert run.data.params["compute.workers"] == "2"
    assert run.data.params["method.new"] == "x"
    assert run.data.tags["raydd.now.compute.workers"] == "8"
    assert run.data.tags["note"] == "second"
    assert len(run.inputs.dataset_inputs) == 1
    assert len(files(database, run, "images")) == 4
    copies = list(Path(database.removeprefix("sqlite:///")).parent.rglob("0.tar"))
    assert [path.stat().st_mtime_ns for path in copies] == stamps, (
        "a file that is there is not copied again"
    )
    assert [
        p.read_text() for p in Path(database.removeprefix("sqlite:///")).parent.rglob("README.md")
    ] == ["another card"]
    assert state(output)["unsent"] == []


def test_a_server_that_is_away_costs_no_time_and_what_it_missed_is_sent_later(
    database: str, output: Storage, start: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = tmp_path / "set"
    made.mkdir()
    (made / "report.json").write_text("{}")
    uri = f"http://me:canary-{tmp_path.name}@127.0.0.1:{free_port()}"
    with caplog.at_level(logging.DEBUG, logger="raydd"):
        begun = waited()
        away = start(uri)
        for t in range(2000):
            away.metrics("loss", float(t), t)
        for step in (0, 5):
            away.picture("distilled/x", step, png())
        away.input_dataset("digits", "abc", "digits", "train", {})
        away.artifacts(str(made), "distilled")
        away.tag("note", "kept")
        assert waited() - begun < 1.0, "the job never waits"
        assert away.places() == {"tracking": f"http://***@{uri.split('@')[1]} (not reached yet)"}
        sentence = away.finish("FINISHED", patience=2.0)
    assert sentence is not None
    for part in (
        "2000 metrics",
        "1 tag",
        "2 pictures",
        "1 input",
        "1 artifacts",
        "http://***@127.0.0.1",
        "kept, and sent when",
    ):
        assert part in sentence
    assert len([r for r in caplog.records if "nothing can be sent" in r.message]) == 1, (
        "warned once"
    )
    assert output.list("tracking") == [
        "tracking/distilled~x-000000.png",
        "tracking/distilled~x-000005.png",
    ]
    everything = (
        sentence
        + caplog.text
        + "".join(output.get(name).decode("latin1") for name in output.list())
    )
    assert f"canary-{tmp_path.name}" not in everything, "a password is never written or logged"
    assert len(state(output)["unsent"]) == 2005

    again = start(uri)
    again.metrics("loss", 2000.0, 2000)
    assert "2001 metrics" in str(again.finish("FINISHED", patience=1.0)), (
        "nothing kept is lost by another failure"
    )
    assert len(output.list("tracking")) == 2

    back = start(database)
    for t in range(1000, 2005):
        back.metrics("loss", float(t), t)
    back.picture("distilled/x", 5, png())
    assert back.finish("FINISHED") is None
    (run,) = runs(
        database, "test_a_server_that_is_away_costs_no_time_and_what_it_missed_is_sent_later"
    )
    assert history(database, run, "loss") == [(t, float(t)) for t in range(2005)]
    assert [
        name.split("+")[2] for name in files(database, run, "images") if name.endswith(".png")
    ] == ["0", "5"]
    assert run.data.tags["note"] == "kept"
    assert files(database, run, "distilled") == ["distilled/report.json"]
    assert state(output)["unsent"] == []
    assert output.list("tracking") == [], "what is sent is no longer kept"


def test_a_run_that_the_server_does_not_know_is_made_anew(
    database: str, output: Storage, start: Any
) -> None:
    experiment = "test_a_run_that_the_server_does_not_know_is_made_anew"
    output.put(
        "tracking.json",
        json.dumps(
            {"run_id": "f" * 32, "token": "t1", "files": {"distilled/a": "1:x"}, "unsent": []}
        ).encode(),
    )
    first = start(database)
    first.metrics("loss", 1.0, 0)
    assert first.finish("FINISHED") is None
    (run,) = runs(database, experiment)
    assert state(output)["run_id"] == run.info.run_id
    assert state(output)["files"] == {}, "the new run has none of the old one's files"
    client(database).delete_run(run.info.run_id)
    second = start(database)
    second.metrics("loss", 1.0, 0)
    assert second.finish("FINISHED") is None
    (fresh,) = runs(database, experiment)
    assert fresh.info.run_id != run.info.run_id
    assert history(database, fresh, "loss") == [(0, 1.0)]


def test_a_run_whose_id_got_lost_is_found_by_its_token(
    database: str, output: Storage, start: Any
) -> None:
    first = start(database)
    first.metrics("loss", 1.0, 0)
    assert first.finish("FAILED") is None
    output.put("tracking.json", json.dumps({**state(output), "run_id": None}).encode())
    second = start(database)
    second.metrics("loss", 1.0, 0)
    second.metrics("loss", 0.5, 1)
    assert second.finish("FINISHED") is None
    (run,) = runs(database, "test_a_run_whose_id_got_lost_is_found_by_its_token")
    assert history(database, run, "loss") == [(0, 1.0), (1, 0.5)]


@pytest.mark.parametrize("damaged", [b'{"run_id": "abc', b'{"unsent": [{"kind": "poem"}]}', b"[1]"])
def test_a_damaged_record_makes_a_new_run(
    database: str, output: Storage, start: Any, damaged: bytes
) -> None:
    output.put("tracking.json", damaged)
    tracker = start(database)
    tracker.metrics("loss", 1.0, 0)
    address = tracker.places()["tracking"]
    assert tracker.finish("FINISHED") is None
    assert state(output)["run_id"] in address
    assert [
        (m.step, m.value)
        for m in client(database).get_metric_history(state(output)["run_id"], "loss")
    ] == [(0, 1.0)]


def test_what_the_server_refuses_is_dropped_and_the_rest_goes_on(
    database: str, start: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="raydd"):
        tracker = start(database)
        tracker.picture("broken", 0, b"no picture")
        tracker.artifacts(str(tmp_path / "nothing here"), "distilled")
        tracker.picture("fine", 0, png())
        assert tracker.finish("FINISHED") is None
    assert "the server refuses 1 picture: not a picture" in caplog.text
    assert "holds no files" in caplog.text
    (run,) = runs(database, "test_what_the_server_refuses_is_dropped_and_the_rest_goes_on")
    assert [name.split("/")[1].split("+")[0] for name in files(database, run, "images")] == [
        "fine",
        "fine",
    ]


def test_a_remote_output_folder_is_copied_through(
    database: str, start: Any, tmp_path: Path
) -> None:
    remote = Storage(f"memory://tracking-{tmp_path.name}")
    remote.put("distilled/labels/a.bin", b"labels")
    remote.put("distilled/recipe.json", b"{}")
    tracker = start(database, where=remote)
    tracker.artifacts(Storage(f"{remote.url}/distilled"), "distilled")
    assert tracker.finish("FINISHED") is None
    (run,) = runs(database, "test_a_remote_output_folder_is_copied_through")
    assert files(database, run, "distilled/labels") == ["distilled/labels/a.bin"]
    path = client(database).download_artifacts(
        run.info.run_id, "distilled/labels/a.bin", str(tmp_path)
    )
    assert Path(path).read_bytes() == b"labels"
    assert json.loads(remote.get("tracking.json"))["run_id"] == run.info.run_id


class Away(Storage):
    """An output folder whose server does not answer."""

    def put(self, path: str, data: bytes) -> None:
        raise StorageError(f"could not write {self.url}/{path}")

    def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        raise StorageError(f"could not read {self.url}/{path}")


def test_an_output_folder_that_is_away_too_is_told_and_fails_nothing(
    database: str, start: Any, tmp_path: Path
) -> None:
    tracker = start(database, where=Away(str(tmp_path)))
    tracker.metrics("loss", 1.0, 0)
    sentence = tracker.finish("FINISHED", patience=1.0)
    assert sentence is not None
    assert "1 metric" in sentence
    assert "not kept" in sentence


def test_no_tracking_does_nothing(output: Storage, start: Any) -> None:
    tracker = start("none")
    tracker.metrics("loss", 1.0, 0)
    tracker.picture("x", 0, png())
    assert tracker.places() == {"tracking": "not tracked (tracking.uri: none)"}
    assert tracker.beginning() == ""
    assert tracker.finish("FINISHED") is None
    assert output.list() == []


def test_where_runs_go_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri("sqlite:///other.db") == f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_uri(None) == "http://server:5000"
    assert resolve_uri("https://mine") == "https://mine"
    with pytest.raises(
        ConfigError, match=r"'htp://a:1' names no tracking server.*did you mean 'http'.*sqlite://"
    ):
        resolve_uri("htp://a:1")
    with pytest.raises(ConfigError, match="mlruns"):
        Tracker("mlruns", "e", "r", Storage(str(tmp_path)), {}, {})


def test_passwords_are_taken_out_of_any_text() -> None:
    text = "POST http://me:p@ss/w:rd@host:1/x failed; postgresql+psycopg2://u:s3cret@db/m"
    assert redact(text) == "POST http://***@host:1/x failed; postgresql+psycopg2://***@db/m"
    assert (
        redact("http://host:5000/a sqlite:////tmp/x.db") == "http://host:5000/a sqlite:////tmp/x.db"
    )


@pytest.mark.parametrize(
    ("uri", "command", "link"),
    [
        (
            "sqlite:////a b/m.db",
            "mlflow ui --backend-store-uri 'sqlite:////a b/m.db'",
            "http://127.0.0.1:5000/#/experiments/3/runs/r",
        ),
        ("https://me:p@ss@host:1/mlflow/", "", "https://host:1/mlflow/#/experiments/3/runs/r"),
        ("http://host:5000", "", "http://host:5000/#/experiments/3/runs/r"),
        (
            "postgresql://me:pass@db/m",
            "mlflow ui --backend-store-uri 'postgresql://***@db/m'",
            "http://127.0.0.1:5000/#/experiments/3/runs/r",
        ),
    ],
)
def test_a_run_is_found_by_a_command_and_a_link_without_secrets(
    uri: str, command: str, link: str
) -> None:
    assert show_command(uri) == command
    assert web_address(uri, "3", "r") == f"{link}?workflowType=machine_learning"


def test_a_run_says_whose_it_is_and_what_came_out(
    database: str, start: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "/venv/bin/raydd",
            "distill",
            "--config",
            "a b.yaml",
            "tracking.uri=http://me:canary@host",
        ],
    )
    monkeypatch.setattr("getpass.getuser", lambda: "somebody")
    rows = tuple(
        Row(
            set=name,
            protocol="dm",
            network="mlp",
            accuracy_mean=mean,
            accuracy_std=0.5,
            seeds=3,
            networks=2,
            image_bytes=1,
            label_bytes=1,
        )
        for name, mean in (("edc", 81.26), ("random", 60.0))
    )
    report = Report(dataset="digits", ipc=1, split="test", rows=rows)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "grid.png").write_bytes(png())
    tracker = start(database)
    assert (
        tracker.beginning()
        == f"tracking: mlflow ui --backend-store-uri {database} (experiment {tracker._run.experiment})"
    )
    tracker.artifacts(str(tmp_path / "set"), "distilled")
    tracker.report(report, 5, picture="distilled/grid.png")
    assert tracker.finish("FINISHED") is None
    (run,) = runs(database, "test_a_run_says_whose_it_is_and_what_came_out")
    tags = run.data.tags
    assert (tags["mlflow.user"], tags["mlflow.source.type"]) == ("somebody", "LOCAL")
    assert tags["raydd.command"] == "raydd distill --config 'a b.yaml' tracking.uri=http://***@host"
    told = tags["mlflow.note.content"].splitlines()
    assert (
        told[0]
        == "**81.3 ± 0.5 %** (random images 60.0 ± 0.5 %): digits, 1 image per class, edc, dm, mlp"
    )
    assert (
        told[2]
        == f"![the set's images](get-artifact?path=distilled%2Fgrid.png&run_uuid={run.info.run_id})"
    )
    assert "| edc | dm | mlp | 81.26 ± 0.50 | +21.26 | 3 × 2 | 1 B | 1 B | – |" in told
    experiment = client(database).get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_description_is_cut_to_what_a_tag_holds() -> None:
    rows = tuple(
        Row(
            set="dm",
            protocol="dm",
            network=f"net{i}",
            accuracy_mean=1,
            accuracy_std=0,
            seeds=1,
            networks=1,
            image_bytes=1,
            label_bytes=1,
        )
        for i in range(200)
    )
    told = note(Report(dataset="digits", ipc=1, split="test", rows=rows), None)
    assert len(told) < TAG_LENGTH
    assert told.endswith("… (the rest is in `report.json`)")
    assert "get-artifact" not in told


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/x/raydd/distill.py", "--config", "j.yaml"], "python -m raydd.distill --config j.yaml"),
        (["raydd", "evaluate", "s"], "raydd evaluate s"),
        (["/usr/bin/pytest", "-q"], ""),
        ([], ""),
    ],
)
def test_only_commands_of_raydd_are_told(argv: list[str], command: str) -> None:
    assert command_line(argv) == command


SCRIPT = """
import sys
from raydd.core.storage import Storage
from raydd.runtime.tracking.tracker import Tracker
assert "mlflow" not in sys.modules
tracker = Tracker(None, "quiet", "job", Storage(sys.argv[1]), {"a": 1}, {})
tracker.metrics("loss", 1.0, 0)
print(tracker.finish("FINISHED", patience=100))
"""


@pytest.mark.slow
def test_first_runs_at_once_make_the_default_database_and_say_nothing(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")} | {"PYTHONPATH": root}
    command = [sys.executable, "-c", SCRIPT]
    jobs = [
        subprocess.Popen(
            [*command, name],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("out-1", "out-2")
    ]
    told = [job.communicate(timeout=250) for job in jobs]
    assert told == [("None\n", "")] * 2, (
        "neither alembic nor mlflow chatters, and nothing has to be tried again"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out-1", "out-2", "runs"]
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["mlflow.db"]
    found = runs(f"sqlite:///{tmp_path}/runs/mlflow.db", "quiet")
    assert {run.info.run_id for run in found} == {
        state(Storage(str(tmp_path / name)))["run_id"] for name in ("out-1", "out-2")
    }


def test_an_experiment_that_another_job_makes_meanwhile_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    look = MlflowClient.get_experiment_by_name
    made: list[str] = []

    def late(self: MlflowClient, name: str) -> object:
        """Another job makes the experiment between every first look (of the run's token, of the
        experiment) and the making.
        """
        found = look(self, name)
        if len(made) < 2:
            assert found is None
            made.append(name)
            if len(made) == 2:
                self.create_experiment(name)
        return found

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    run = MlflowRun(uri, "shared", "job", token="t", params={}, tags={})  # noqa: S106
    run.open(None)
    assert made == ["shared", "shared"]
    assert run.experiment_id == look(MlflowClient(tracking_uri=uri), "shared").experiment_id
    assert len(runs(uri, "shared")) == 1


class Server:
    """A real tracking server on a loopback port, with a folder that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        command += [
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven more processes
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=env, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):  # noqa: S310 - loopback
                    return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()[-2000:]
                assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    made = Server(folder)
    yield made
    made.kill()


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_server_killed_in_the_middle_of_a_job_gets_everything_once(
    server: Server, start: Any, tmp_path: Path
) -> None:
    experiment = "test_a_server_killed_in_the_middle_of_a_job_gets_everything_once"
    server.start()
    tracker = start(server.uri)
    for t in range(100):
        tracker.metrics("loss", float(t), t)
    tracker.picture("distilled", 0, png())
    (address,) = tracker.places().values()
    assert address.startswith(f"{server.uri}/#/experiments/")
    deadline = time.monotonic() + 60
    while not [run for run in runs(server.uri, experiment) if files(server.uri, run, "images")]:
        assert time.monotonic() < deadline, "the picture does not arrive"
        time.sleep(0.2)
    server.kill()
    begun = waited()
    for t in range(100, 200):
        tracker.metrics("loss", float(t), t)
    tracker.picture("distilled", 100, png())
    assert waited() - begun < 0.5
    time.sleep(1.0)
    server.start()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "grid.png").write_bytes(png())
    tracker.artifacts(str(tmp_path / "set"), "distilled")
    row = Row(
        set="dm",
        protocol="dm",
        network="n",
        accuracy_mean=1,
        accuracy_std=0,
        seeds=1,
        networks=1,
        image_bytes=1,
        label_bytes=1,
    )
    tracker.report(
        Report(dataset="digits", ipc=1, split="test", rows=(row,)),
        200,
        picture="distilled/grid.png",
    )
    assert tracker.finish("FINISHED", patience=60.0) is None
    resumed = start(server.uri)
    for t in range(205):
        resumed.metrics("loss", float(t), t)
    resumed.picture("distilled", 100, png())
    assert resumed.finish("FINISHED", patience=60.0) is None
    (run,) = runs(server.uri, experiment)
    assert run.info.run_id in address
    shown = urllib.parse.urljoin(
        address, run.data.tags["mlflow.note.content"].split("](")[1].split(")")[0]
    )
    with urllib.request.urlopen(shown, timeout=10) as answer:  # noqa: S310 - loopback
        assert answer.read() == png(), "the description's picture, as a browser asks for it"
    assert run.info.status == "FINISHED"
    assert history(server.uri, run, "loss") == [(t, float(t)) for t in range(205)]
    assert len([name for name in files(server.uri, run, "images") if name.endswith(".png")]) == 2
