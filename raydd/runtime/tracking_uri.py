"""Where runs are tracked: the addresses MLflow knows, without the passwords in them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from raydd.core.errors import ConfigError, nearest

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


def redact(text: str) -> str:
    """Return ``text`` with the user and password of every URL in it replaced by ``***``."""
    return re.sub(r"(\w://)\S*@", r"\1***@", text)  # to the last @: a password may hold one, or a slash


def resolve_uri(uri: str | None) -> str:
    """Return the tracking URI to use: ``uri``, else ``MLFLOW_TRACKING_URI``, else a database in ``runs/``; SQLite paths made absolute.

    Raises ``ConfigError`` for a scheme that MLflow does not keep runs under.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///runs/mlflow.db"
    scheme = uri.split(":", 1)[0].split("+", 1)[0].lower()
    if scheme not in SCHEMES:
        hint = nearest(scheme, SCHEMES)
        allowed = ", ".join(f"{name}://…" for name in SCHEMES)
        raise ConfigError(f"tracking.uri: '{redact(uri)}' names no tracking server or database{hint}; allowed: {allowed}, none")
    database = sqlite_path(uri)
    return uri if database is None else f"sqlite:///{database}"


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite database's file; ``None`` for other URIs."""
    return Path(uri.removeprefix("sqlite:///")).expanduser().absolute() if uri.startswith("sqlite:///") else None


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


def web_address(uri: str, experiment_id: str, run_id: str) -> str:
    """Return where a person sees the run: a URL of a server, or the command that shows a database."""
    if urlsplit(uri).scheme in ("http", "https"):
        return f"{redact(uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
    return f"mlflow ui --backend-store-uri {redact(uri)}   (run {run_id})"
