"""One MLflow run: opened or continued, and sent what it does not have yet. Everything here may block and may fail."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from raydd.core.redaction import redact
from raydd.core.storage import Storage, protocol
from raydd.runtime.tracking.tracking_uri import sqlite_path

METRICS_AT_ONCE = 1000
"""What MLflow takes in one request."""
TAG_LENGTH = 5000
"""What every MLflow takes as a tag's value."""
RUN_ID = "{run_id}"
"""Stands in a tag's value for the run's id, which is not known before the run is opened."""
_SMALL = 1 << 20
_CHUNK = 64 << 20


class Rejected(Exception):
    """An item that would be refused however often it is sent."""


@dataclass(frozen=True)
class Metric:
    """A scalar of an update; ``time`` in milliseconds since 1970."""

    kind: ClassVar[str] = "metric"
    name: str
    value: float
    step: int
    time: int


@dataclass(frozen=True)
class Tag:
    """A name and its value, which may change; :data:`RUN_ID` in the value becomes the run's id.
    ``run``: the id of another run that it is of.
    """

    kind: ClassVar[str] = "tag"
    key: str
    value: str
    run: str = ""


@dataclass(frozen=True)
class Input:
    """A data set the run reads; ``profile`` is JSON."""

    kind: ClassVar[str] = "input"
    name: str
    digest: str
    source: str
    context: str
    profile: str


@dataclass(frozen=True)
class Picture:
    """A PNG that belongs to an update."""

    kind: ClassVar[str] = "picture"
    key: str
    step: int
    time: int
    png: bytes


@dataclass(frozen=True)
class Artifacts:
    """A folder (any URL) to be copied below ``path`` of the run, or of it the files ``names``."""

    kind: ClassVar[str] = "artifacts"
    source: str
    path: str
    names: Sequence[str] = ()


Item = Metric | Tag | Input | Picture | Artifacts
KINDS: dict[str, type[Item]] = {cls.kind: cls for cls in (Metric, Tag, Input, Picture, Artifacts)}


_KIND = ("mlflow.experimentKind", "custom_model_development")
_LEFT_OUT = re.compile(
    r"lock\.json|plan\.json|log\.jsonl|report\.html|labels/(epoch-\d+|static)\.(safetensors|json)|tracking(\.json|/.*)"
)
"""Soft labels are not copied: they are gigabytes, and their manifest, which is, says what they are.
Nor is what is still to be sent, nor the lock, the log and the page, which change until the end.
"""


def clean(name: str) -> str:
    """Return ``name`` with whatever MLflow does not allow in the name of a metric, param or picture
    replaced by ``_``.
    """
    return posixpath.normpath(re.sub(r"[^a-zA-Z0-9_/.\- ]", "_", name)).strip("/.")[:250] or "_"


class MlflowRun:
    """A job's run on a tracking server. ``token`` is a tag by which the run is found even if its id got lost."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        name: str,
        *,
        token: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        self.uri, self.experiment, self.name, self.token = uri, experiment, name, token
        self.params, self.tags = params, tags
        self.begun = int(time.time() * 1000)
        self.run_id: str | None = None
        self.experiment_id = ""
        self.files: dict[str, str] = {}
        self._client: Any = None
        self._steps: dict[str, set[int]] = {}
        self._inputs: set[tuple[str, str, str]] = set()
        self._pictures: set[tuple[str, int]] | None = None

    def open(self, run_id: str | None) -> None:
        """Continue the run ``run_id``, or the one with this token, or make a new one; the run is RUNNING afterwards."""
        client = self._connect()
        run = self._find(client, run_id)
        fresh = run is None
        if run is None:
            tags = {"raydd.token": self.token}
            run = client.create_run(
                self._experiment(client), start_time=self.begun, run_name=self.name, tags=tags
            )
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
        if run.info.run_id != run_id:
            self.files.clear()
        self._steps.clear()
        self._pictures = set() if fresh else None
        inputs = run.inputs.dataset_inputs
        self._inputs = {
            (i.dataset.name, i.dataset.digest, t.value)
            for i in inputs
            for t in i.tags
            if t.key == "mlflow.data.context"
        }
        if run.info.status != "RUNNING":
            client.update_run(self.run_id, status="RUNNING")
        self._describe(client, dict(run.data.params))

    def _connect(self) -> Any:
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        database = sqlite_path(self.uri)
        if database is not None and not database.exists():
            _create(database)
        self._client = MlflowClient(tracking_uri=self.uri)
        return self._client

    def _experiment(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        database = sqlite_path(self.uri)
        # Without a server MLflow would put artifacts below whatever folder the process runs in.
        location = None if database is None else (database.parent / "mlartifacts").as_uri()
        try:
            # Which half of MLflow's page opens: where it has no switch between them the kind
            # decides, else the link (web_address).
            return str(
                client.create_experiment(
                    self.experiment, artifact_location=location, tags=dict([_KIND])
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(
                client.get_experiment_by_name(self.experiment).experiment_id
            )  # another job was a moment earlier

    def _find(self, client: Any, run_id: str | None) -> Any:
        from mlflow.exceptions import MlflowException

        if run_id is not None:
            try:
                run = client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None
            return run if run.info.lifecycle_stage == "active" else None
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            return None
        runs = client.search_runs(
            [found.experiment_id], f"tags.`raydd.token` = '{self.token}'", max_results=1
        )
        return client.get_run(runs[0].info.run_id) if runs else None

    def _describe(self, client: Any, known: Mapping[str, str]) -> None:
        """Send params that the run lacks, and tags; a param cannot change: one that did becomes a tag."""
        from mlflow.entities import Param, RunTag

        tags = dict(self.tags)
        tags |= {
            f"raydd.now.{key}": value
            for key, value in self.params.items()
            if known.get(key, value) != value
        }
        params = [Param(key, value) for key, value in self.params.items() if key not in known]
        client.log_batch(
            self.run_id,
            params=params,
            tags=[RunTag(key, value[:TAG_LENGTH]) for key, value in tags.items()],
        )

    def end(self, status: str) -> None:
        """Set the run's status: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status=status)

    def send(self, items: Sequence[Item], note: Callable[[int], None]) -> None:
        """Send items of one kind that the run does not have yet; ``note`` is told the bytes of each
        file before it goes.

        Raises :class:`Rejected` for what the server will never take, and whatever MLflow raises otherwise.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._send(items, note)
        except MlflowException as error:
            if error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise Rejected(redact(str(error))) from error
            raise

    def _send(self, items: Sequence[Item], note: Callable[[int], None]) -> None:
        first = items[0]
        if isinstance(first, Metric):
            self._send_metrics([item for item in items if isinstance(item, Metric)])
        elif isinstance(first, Tag):
            self._send_tags([item for item in items if isinstance(item, Tag)])
        elif isinstance(first, Input):
            self._send_input(first)
        elif isinstance(first, Picture):
            self._send_picture(first)
        else:
            self._send_artifacts(first, note)

    def _send_tags(self, tags: Iterable[Tag]) -> None:
        from mlflow.entities import RunTag
        from mlflow.exceptions import MlflowException

        of_run: dict[str, dict[str, str]] = {}
        for tag in tags:
            value = tag.value.replace(RUN_ID, str(self.run_id))
            of_run.setdefault(tag.run, {})[tag.key[:250]] = value[:TAG_LENGTH]
        lost = []
        for run, values in of_run.items():
            sent = [RunTag(key, value) for key, value in values.items()]
            try:
                self._client.log_batch(run or self.run_id, tags=sent)
            except MlflowException as error:
                if not run or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                lost.append(run)
        if lost:
            raise Rejected(f"there is no run {', '.join(lost)}")

    def _send_metrics(self, metrics: Iterable[Metric]) -> None:
        from mlflow.entities import Metric as Entity

        new = []
        added: dict[str, set[int]] = {}
        for metric in metrics:
            if metric.name not in self._steps:
                self._steps[metric.name] = {
                    m.step for m in self._client.get_metric_history(self.run_id, metric.name)
                }
            if metric.step in self._steps[metric.name] or metric.step in added.get(metric.name, ()):
                continue
            added.setdefault(metric.name, set()).add(metric.step)
            new.append(Entity(metric.name, metric.value, metric.time, metric.step))
        for start in range(0, len(new), METRICS_AT_ONCE):
            self._client.log_batch(self.run_id, metrics=new[start : start + METRICS_AT_ONCE])
        for name, steps in added.items():
            self._steps[name] |= steps

    def _send_input(self, item: Input) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest = item.digest[:36]
        if (item.name, digest, item.context) in self._inputs:
            return
        scheme = protocol(item.source)
        kind = {"file": "local", "https": "http"}.get(scheme, scheme)
        source = json.dumps({"url" if kind == "http" else "uri": item.source})
        dataset = Dataset(item.name[:500], digest, kind, source, profile=item.profile)
        self._client.log_inputs(
            self.run_id,
            datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", item.context)])],
        )
        self._inputs.add((item.name, digest, item.context))

    def _send_picture(self, item: Picture) -> None:
        import io

        from PIL import Image

        if self._pictures is None:
            # Names are images/<key, / as ~>+step+<step>+timestamp+<time>+<uuid>.png.
            names = [
                posixpath.basename(unquote(f.path)).split("+")
                for f in self._client.list_artifacts(self.run_id, "images")
            ]
            self._pictures = {
                (n[0], int(n[2]))
                for n in names
                if len(n) == 6 and n[2].isdigit() and n[5].endswith(".png")
            }
        name = (item.key.replace("/", "~"), item.step)
        if name in self._pictures:
            return
        try:
            image = Image.open(io.BytesIO(item.png))
            image.load()
        except OSError as error:
            raise Rejected(f"not a picture: {error}") from error
        self._client.log_image(
            self.run_id, image, key=item.key, step=item.step, timestamp=item.time, synchronous=True
        )
        self._pictures.add(name)

    def _send_artifacts(self, item: Artifacts, note: Callable[[int], None]) -> None:
        source = Storage(item.source)
        names = [name for name in item.names if source.exists(name)]
        if not item.names:
            names = [name for name in source.list() if not _LEFT_OUT.fullmatch(name)]
        if not names:
            raise Rejected(f"{item.source} holds no files")
        for name in names:
            target = posixpath.normpath(posixpath.join(item.path, name))
            size = source.size(name)
            content = hashlib.sha256(source.get(name)).hexdigest() if size <= _SMALL else ""
            if self.files.get(target) == f"{size}:{content}":
                continue
            note(size)
            folder = posixpath.dirname(target) or None
            if source.local:
                self._client.log_artifact(self.run_id, str(Path(source.root) / name), folder)
            else:
                with tempfile.TemporaryDirectory(prefix="raydd-") as temporary:
                    self._client.log_artifact(
                        self.run_id, _download(source, name, size, Path(temporary)), folder
                    )
            self.files[target] = f"{size}:{content}"


def _create(database: Path) -> None:
    """Make an empty database whole: jobs that start at once, or are killed meanwhile, would leave
    one no migration can mend.
    """
    from mlflow import MlflowClient

    database.parent.mkdir(parents=True, exist_ok=True)
    temporary = database.with_name(f".{database.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        MlflowClient(tracking_uri=f"sqlite:///{temporary}").search_experiments(max_results=1)
        os.link(temporary, database)
    except FileExistsError:
        pass  # another job was quicker
    finally:
        temporary.unlink(missing_ok=True)


def _download(source: Storage, name: str, size: int, folder: Path) -> str:
    path = folder / posixpath.basename(name)
    with path.open("wb") as file:
        for start in range(0, size, _CHUNK):
            file.write(source.get(name, start, min(size, start + _CHUNK)))
    return str(path)
