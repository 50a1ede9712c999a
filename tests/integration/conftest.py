"""A real S3 server and a Ray cluster, both processes on this machine, for the tests that need them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from driving import CONFIG, end, environment, free_ports, overrides, records

from raydd.config import load_job
from raydd.runtime.pipeline import run_job


def _environment(port: int, key: str, secret: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class S3Server:
    """SeaweedFS on loopback: an S3 API with signed requests, its objects on disk, so that they outlive a SIGKILL."""

    bucket = "raydd"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.master, self.volume, self.filer, self.port = free_ports(4)
        self.key, self.secret = "raydd-tests", secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach the server."""
        return _environment(self.port, self.key, self.secret)

    def url(self, path: str) -> str:
        """Return the URL of a path in the server's bucket."""
        return f"s3://{self.bucket}/{path}"

    def start(self, timeout: float = 60) -> None:
        """Start the server on the objects it has; return when it takes a PUT."""
        command = [
            str(Path(sys.executable).parent / "weed"), "server", f"-dir={self.folder}", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={self.master}", "-master.telemetry=false", "-master.volumeSizeLimitMB=64",
            f"-volume.port={self.volume}", "-volume.max=0", "-volume.preStopSeconds=0",
            "-filer", f"-filer.port={self.filer}", f"-filer.localSocket={self.folder}/filer.sock",
            # Its other protocols listen on fixed ports; a bucket made by a PUT would hide a missing one.
            "-s3", f"-s3.port={self.port}", f"-s3.localSocket={self.folder}/s3.sock",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", "-s3.iam=false",
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment(**self.environment),
                cwd=self.folder,
            )
        until = time.monotonic() + timeout
        while not self._takes_a_put():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(
                    f"the S3 server did not start:\n{(self.folder / 'server.log').read_text()[-3000:]}"
                )
            time.sleep(0.2)

    def _takes_a_put(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        client = self._client
        try:
            if self.bucket not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key="ready", Body=b"1")
        except (BotoCoreError, ClientError):
            return False
        return True

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        patience = Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5)
        names = {
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.secret,
            "region_name": "us-east-1",
        }
        return boto3.Session(**names).client(
            "s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], config=patience
        )

    def paths(self, prefix: str) -> list[str]:
        """Return the paths of all objects below a prefix."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def read(self, path: str) -> bytes:
        """Return an object's bytes."""
        return self._client.get_object(Bucket=self.bucket, Key=path)["Body"].read()

    def put(self, path: str, data: bytes) -> None:
        """Write an object by the server's own client, whatever its name."""
        self._client.put_object(Bucket=self.bucket, Key=path, Body=data)

    def kill(self) -> None:
        """SIGKILL the server: open connections break, new ones are refused."""
        if self._process is not None:
            end(self._process, signal.SIGKILL)

    def stop(self) -> None:
        """End the server in good order."""
        if self._process is not None:
            end(self._process, signal.SIGTERM)

    def restart(self, after: float = 0.0) -> None:
        """Kill the server, leave the clients alone for ``after`` seconds, and start it again."""
        self.kill()
        time.sleep(after)
        self.start()


class MotoServer:
    """moto on loopback, in this process: an S3 API whose listings, unlike SeaweedFS's, know no
    folders; it takes any key.
    """

    bucket = "raydd"

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.key, self.secret = "raydd-tests", "any"

    environment = property(lambda self: _environment(self._port, self.key, self.secret))
    url, paths, read, put, _client = (
        S3Server.url,
        S3Server.paths,
        S3Server.read,
        S3Server.put,
        S3Server._client,
    )

    def start(self) -> None:
        """Start the server with an empty bucket."""
        self._server.start()
        self._port = self._server.get_host_and_port()[1]
        self._client.create_bucket(Bucket=self.bucket)

    def kill(self) -> None:
        """End the server; its objects are gone."""
        self._server.stop()


@pytest.fixture(scope="session")
def moto_server() -> Iterator[MotoServer]:
    server = MotoServer()
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.kill()  # in good order it would wait for connections that are still open


@contextlib.contextmanager
def _reached(server: S3Server | MotoServer) -> Iterator[None]:
    """Let this process reach a server; the file systems that it made for another one are forgotten."""
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    """SeaweedFS, for this process too."""
    with _reached(s3_server):
        yield s3_server


@pytest.fixture(params=["seaweedfs", "moto"])
def either_s3(request: pytest.FixtureRequest) -> Iterator[S3Server | MotoServer]:
    """Each of the two servers, for this process too: they differ in what a listing says of folders."""
    server = request.getfixturevalue(
        {"seaweedfs": "s3_server", "moto": "moto_server"}[request.param]
    )
    with _reached(server):
        yield server


@dataclass
class Cluster:
    """A head node of its own; ``environment`` leads a driver to it."""

    address: str
    dashboard: str
    environment: dict[str, str] = field(repr=False)
    folder: str = ""

    def ask(self, path: str) -> Any:
        """Return what the dashboard answers, as `ray list` and `ray job` ask it, in processes of their own."""
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        place = HTTPConnection(self.dashboard.removeprefix("http://"), timeout=240)
        with contextlib.closing(place):
            place.request("GET", path, headers=token)
            answer = place.getresponse()
            assert answer.status == 200, answer.read()
            return json.load(answer)

    def states(self, kind: str) -> list[dict[str, Any]]:
        """Return the states of all ``actors`` or ``placement_groups``, with all details."""
        found = self.ask(f"/api/v0/{kind}?detail=true&limit=1000")
        assert found["result"], found
        return list(found["data"]["result"]["result"])


def _own_ip() -> str:
    """Return the address under which Ray knows this machine."""
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


@contextlib.contextmanager
def head(
    *options: str, autoscaler: Callable[[str], dict[str, Any]] | None = None, **variables: str
) -> Iterator[Cluster]:
    """``ray start --head`` with token authentication; only its own processes are ended.

    ``autoscaler`` gives the configuration of one that adds machines to the head's address.
    """
    # Ray's sockets allow 107 characters: pytest's folders are too deep.
    folder = tempfile.mkdtemp(prefix="raydd-cluster-", dir="/tmp")
    gcs, dashboard, client, agent, agent_grpc = free_ports(5)
    env = environment(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    )
    env["RAY_raylet_start_wait_time_s"] = "240"  # on a machine that does much else
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats",
        f"--temp-dir={folder}",
        f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}",
        # What workers print is never sent to drivers.
        f"--object-store-memory={256 << 20}", "--include-log-monitor=False", *options,
    ]  # fmt: skip
    if autoscaler is not None:
        config = Path(folder) / "autoscaler.json"
        config.write_text(json.dumps(autoscaler(f"{_own_ip()}:{gcs}")))
        command.append(f"--autoscaling-config={config}")
    log = Path(folder) / "start.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=env | variables, cwd=folder
        )
    try:
        until = time.monotonic() + 250
        while "--address" not in log.read_text() and "Ray runtime started" not in log.read_text():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the cluster did not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield Cluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", env, folder)
    finally:
        ours = (
            psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        )
        end(process, signal.SIGTERM)
        for child in psutil.wait_procs(ours, timeout=10)[1]:
            child.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A head with 4 CPUs that says it had a GPU, which nothing makes grow."""
    with head("--node-ip-address=127.0.0.1", "--num-cpus=4", "--num-gpus=1") as one:
        yield one


@pytest.fixture(scope="session")
def paced(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides of the tiny job that make a unit of its distillation take about 2 s of a processor, however fast
    this machine is: whoever looks for the first one often, and then kills something, does so in the middle of the run.
    """
    folder, updates = tmp_path_factory.mktemp("pace"), 250
    job = load_job(CONFIG, overrides(folder, 0, "evaluation.every=null", "evaluation.baselines=[]"))
    clock, processor = time.monotonic(), time.process_time()
    run_job(job, lambda line: None)
    share = (time.process_time() - processor) / (time.monotonic() - clock)
    done = [
        line
        for line in records(folder / "out")
        if line["kind"] == "output" and line["output"] == "final"
    ]
    seconds = [line["seconds"] for line in done if line["stage"].startswith("distill/")]
    each = share * sum(seconds) / len(seconds)
    updates = 2 * max(125, round(updates / each))
    return f"method.iterations={updates}", f"evaluation.every={updates // 2}"
