"""Where runs are tracked: the addresses MLflow knows, without the passwords in them."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

from raydd.core.errors import ConfigError, nearest
from raydd.core.redaction import redact

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


def resolve_uri(uri: str | None) -> str:
    """Return the tracking URI to use: ``uri``, else ``MLFLOW_TRACKING_URI``, else a database in
    ``runs/``; SQLite paths made absolute.

    Raises ``ConfigError`` for a scheme that MLflow does not keep runs under.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///runs/mlflow.db"
    scheme = uri.split(":", 1)[0].split("+", 1)[0].lower()
    if scheme not in SCHEMES:
        hint = nearest(scheme, SCHEMES)
        allowed = ", ".join(f"{name}://…" for name in SCHEMES)
        raise ConfigError(
            f"tracking.uri: '{redact(uri)}' names no tracking server or database{hint}; allowed: {allowed}, none"
        )
    database = sqlite_path(uri)
    return uri if database is None else f"sqlite:///{database}"


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite database's file; ``None`` for other URIs."""
    return (
        Path(uri.removeprefix("sqlite:///")).expanduser().absolute()
        if uri.startswith("sqlite:///")
        else None
    )


def quiet() -> None:
    """Set what MLflow reads when it is imported: no telemetry, no waiting for a server that is away, no chatter."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the tracker itself tries again, and knows when to stop
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }.items():
        os.environ.setdefault(name, value)


def show_command(uri: str) -> str:
    """Return the command that shows a database's runs in a browser; empty for a server, which shows them itself."""
    return (
        ""
        if _server(uri) or uri.startswith("databricks")
        else f"mlflow ui --backend-store-uri {shlex.quote(redact(uri))}"
    )


def web_address(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the link to a run's page: on its server, or on that of :func:`show_command`, without
    the address's credentials.

    MLflow 3 opens on traces of language models unless the link asks for its other half.
    """
    if uri.startswith("databricks"):
        return f"{uri}, experiment {experiment_id}, run {run_id}"
    server = re.sub(r"://\S*@", "://", uri).rstrip("/") if _server(uri) else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def _server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")
