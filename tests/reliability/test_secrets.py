"""Planted credentials: in the environment, in jobs, in what libraries raise; every byte written is looked at."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from fault_rows import ROOT, Row, Tally

from raydd.core.errors import ConfigError, StorageError, first_line
from raydd.core.redaction import redact

pytestmark = pytest.mark.slow
PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEYID0001",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret0002",
    "AWS_SESSION_TOKEN": "planted-session-token0003",
    "MLFLOW_TRACKING_USERNAME": "someone",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password0004",
    "MLFLOW_TRACKING_TOKEN": "planted-mlflow-token0005",
    "RAY_AUTH_TOKEN": "planted-ray-token-0006-of-thirty-two-characters-and-more",
    "HF_TOKEN": "planted-hub-token0007",
    "AZURE_STORAGE_CONNECTION_STRING": "AccountKey=planted-account0008;x=1",
}
WORDS = ("PLANTEDKEYID", "planted")
ENVIRONMENT = Row(
    "secrets", "a run, whole", "credentials in the environment",
    "in no byte of output, store, tracking and what is printed",
    "test_a_run_writes_no_credential", data="",
)  # fmt: skip
FAILING = Row(
    "secrets", "a run that fails", "credentials in the environment, an endpoint with a password",
    "in no byte of them, and of the message", "test_a_run_writes_no_credential", data="s3://bucket/store",
)  # fmt: skip
JOBS = Row(
    "secrets", "jobs, spaces, overrides", "passwords, signed URLs, storage options, values of the environment",
    "refused, with the key, without the value", "test_a_job_with_a_credential_is_refused",
)  # fmt: skip
ERRORS = Row(
    "secrets", "errors, log messages, tracebacks", "credentials in what libraries raise", "`***` in their place",
    "test_errors_and_tracebacks_hold_no_credential",
)  # fmt: skip
ROWS = [ENVIRONMENT, FAILING, JOBS, ERRORS]


def written(folder: Path) -> dict[Path, bytes]:
    """Return every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def clean(found: Mapping[object, bytes]) -> int:
    """Return how many texts were looked at; a planted word in one is a failure."""
    for where, data in found.items():
        for word in WORDS:
            assert word.encode() not in data, f"{word} in {where}"
    return len(found)


@pytest.mark.parametrize("row", [ENVIRONMENT, FAILING], ids=str)
def test_a_run_writes_no_credential(row: Row, tmp_path: Path, tally: Tally) -> None:
    store = row.data or str(tmp_path / "store")
    words = [
        *(
            "name=named",
            "dataset.name=digits",
            "method=null",
            "method.name=dm",
            "method.iterations=2",
            "ipc=1",
        ),
        *(
            "method.network=convnet1_w4",
            "evaluation.networks=convnet1_w4",
            "evaluation.epochs=1",
            "evaluation.repeats=1",
        ),
        *("evaluation.baselines=[]", "evaluation.every=null", "compute.workers=0"),
        *(
            f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
            f"output={tmp_path}/out",
            f"store={store}",
        ),
    ]
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "MLFLOW_"))
    } | PLANTED
    env |= {
        "AWS_ENDPOINT_URL": "http://user:planted-endpoint0009@127.0.0.1:9/",
        "RAYDD_STORAGE_RETRY_S": "2",
    }
    done = subprocess.run(
        [sys.executable, "-m", "raydd.distill", "--config", str(ROOT / "jobs/quickstart.yaml"), *words, "-v"],
        capture_output=True, env=env, cwd=tmp_path, timeout=540, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == (not row.data), done.stdout + done.stderr
    files = written(tmp_path)
    assert row.data or len(files) > 10
    tally(row, clean({**files, "stdout": done.stdout, "stderr": done.stderr}) and len(PLANTED) + 1)


def test_a_job_with_a_credential_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    from raydd.config import load_job, read_job
    from raydd.search.space_reading import load_space

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED["AWS_SECRET_ACCESS_KEY"])
    quickstart, count = str(ROOT / "jobs/quickstart.yaml"), 0
    values = (
        "http://me:planted-password@host/x", "https://planted-token@host/x", "s3://key:planted@bucket/x",
        "https://host/x?X-Amz-Signature=planted0001", "https://host/x?sig=planted0002&se=1",
        PLANTED["AWS_SECRET_ACCESS_KEY"], "AccountKey=planted0003", "postgresql://me:planted/with@sign@db/m",
    )  # fmt: skip
    for value in values:
        for key in (
            "dataset.root",
            "store",
            "output",
            "tracking.uri",
            "method.teachers.weights",
            "name",
        ):
            path = tmp_path / "job.yaml"
            group, _, last = key.rpartition(".")
            text = f'  {last}: "{value}"\n' if group else f'{last}: "{value}"\n'
            path.write_text(
                "".join(f"{g}:\n" for g in group.split(".") if group and "." not in group) + text
            )
            if group.count("."):
                path.write_text(f'method: {{teachers: {{weights: "{value}"}}}}\n')
            for given in ((str(path), []), (quickstart, [f"{key}={value}"])):
                with pytest.raises(
                    ConfigError, match="credentials belong in the environment"
                ) as caught:
                    load_job(*given)
                assert "planted" not in str(caught.value)
                count += 1
    for text in (
        "storage_options: {secret: planted}",
        "dataset: {aws_access_key: planted}",
        "token: planted",
    ):
        for read in (lambda p: load_job(p), lambda p: load_space(p, read_job(quickstart))):
            path = tmp_path / "other.yaml"
            path.write_text(text)
            with pytest.raises(ConfigError, match="credentials belong") as caught:
                read(str(path))
            assert "planted" not in str(caught.value)
            count += 1
    tally(JOBS, count)


def test_errors_and_tracebacks_hold_no_credential(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tally: Tally
) -> None:
    from raydd.core import command

    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    texts = [
        *(f"could not read: {value}!" for name, value in PLANTED.items() if value != "someone"),
        "GET https://me:planted@host/x?sig=planted&a=1",
        "Authorization: Bearer planted-planted",
        "{'aws_secret_access_key': 'planted-value', 'token': 'planted-value'}",
        "AKIAPLANTEDKEYID0001",
    ]
    count = 0
    for text in texts:
        for said in (redact(text), str(StorageError(text)), first_line(RuntimeError(text))):
            assert "***" in said
            assert not [word for word in WORDS if word in said], said
            count += 1
        record = logging.LogRecord("raydd", logging.ERROR, "f", 1, "%s", (text,), None)
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            record.exc_info = (type(error), error, error.__traceback__)
            command._told(type(error), error, error.__traceback__)
        said = command._Redacting("%(message)s").format(record) + capsys.readouterr().err
        assert "Traceback" in said
        assert not [word for word in WORDS if word in said], said
        count += 1
    plain = "RAY_AUTH_MODE=token, but there is no token; s3://bucket/a@b; http://host:5000/a@b"
    assert redact(plain) == plain
    tally(ERRORS, count)
