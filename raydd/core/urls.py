"""URLs of places: which schemes are read and written, and what is refused before anything is opened."""

from __future__ import annotations

import os
import re

import fsspec
from fsspec.registry import known_implementations

from raydd.core.errors import ConfigError, unknown

WRITTEN = ("file", "local", "memory", "s3", "s3a", "gs", "gcs", "az", "abfs")
"""Schemes that jobs write to: each puts an object whole or not at all, and lists it at once."""

READ = (*WRITTEN, "http", "https", "hf")
"""Schemes that are known to be read; those of other file servers are tried."""

_BUCKETS = {
    "s3": "bucket",
    "s3a": "bucket",
    "gs": "bucket",
    "gcs": "bucket",
    "az": "container",
    "abfs": "container",
}
_NAMELESS = {"file", "local", "memory", "hdfs", "arrow_hdfs"}
_COMMANDS = {
    "pipe",
    "shell",
    "cmd",
    "reference",
    "simplecache",
    "filecache",
    "blockcache",
    "cached",
}
_COMMANDS |= {"dir", "generic", "async_wrapper", "asyncwrapper", "asynclocal"}
_ARCHIVES = {"zip", "tar", "libarchive"}
_NO_STORAGE = {
    "data",
    "dask",
    "git",
    "github",
    "gist",
    "jupyter",
    "jlab",
    "pyscript",
    "wandb",
    "dvc",
}
_SERVERS = {
    "ftp",
    "sftp",
    "ssh",
    "smb",
    "hdfs",
    "arrow_hdfs",
    "webhdfs",
    "webdav",
    "box",
    "dropbox",
    "gdrive",
    "root",
}
_ADDRESSED = "s3|s3a|gs|gcs|az|abfs|https?|s?ftp"
_PLACES = "a folder, s3://bucket/folder, gs://bucket/folder, az://container/folder"


def protocol(url: str) -> str:
    """Return the scheme of a URL, ``file`` for a local path however it is written."""
    scheme = url.split("://", 1)[0].lower() if "://" in url else "file"
    return "file" if scheme == "local" else scheme


def absolute(url: str) -> str:
    """Return ``url`` with a local path made absolute (workers run in other folders than the driver).

    Slashes that stand twice behind a bucket count as one: file systems differ in whether they keep
    or drop them. ``ConfigError`` for what only looks like a URL: it would become a local folder of
    that name.
    """
    _check_spelling(url, "place")
    scheme = protocol(url)
    if scheme == "file":
        return os.path.abspath(
            os.path.expanduser(re.sub(r"^(file|local)://", "", url, flags=re.IGNORECASE))
        )
    rest = url.split("://", 1)[1]
    return f"{scheme}://{re.sub('(?<=.)/{2,}', '/', rest) if scheme in _BUCKETS else rest}".rstrip(
        "/"
    )


def join(url: str, *parts: str) -> str:
    """Join a URL and path parts with ``/``."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts if part)])


def check_url(url: str, what: str = "url", *, write: bool = False) -> None:
    """Refuse, as ``ConfigError``, what is no place that jobs read (with ``write``: write), with what is allowed.

    That is a scheme which is unknown, misspelt, runs commands or holds no files; a missing bucket,
    host or folder; secrets.
    """
    _check_spelling(url, what)
    scheme = protocol(url)
    if scheme in _ARCHIVES:
        raise ConfigError(f"{what}: '{url}' is inside an archive; unpack it, and give the folder")
    if scheme in _NO_STORAGE:
        raise ConfigError(
            f"{what}: '{scheme}://' is no storage of files that jobs use; allowed: {_PLACES}"
        )
    if write and scheme not in WRITTEN:
        way = "; mount it, and give the folder" if scheme in _SERVERS else ""
        raise ConfigError(f"{what}: {scheme} URLs cannot be written; allowed: {_PLACES}{way}")
    if "://" not in url:
        return
    rest = url.split("://", 1)[1]
    name = rest.split("/", 1)[0]
    if scheme == "file" and not rest:
        raise ConfigError(f"{what}: '{url}' names no folder; allowed: {_PLACES}")
    if scheme not in _NAMELESS and not name.strip():
        kind = _BUCKETS.get(scheme, "host")
        raise ConfigError(f"{what}: '{url}' names no {kind}; allowed: {scheme}://{kind}/folder")
    if "@" in name and (scheme in {"s3", "gs", "az", "http", "https"} or ":" in name.split("@")[0]):
        raise ConfigError(f"{what}: credentials belong in the environment, not in the URL")


def _check_spelling(url: str, what: str) -> None:
    """Refuse what only looks like a URL: it would be taken for a local folder of that name."""
    if not url.strip():
        raise ConfigError(f"{what}: '{url}' names no place; allowed: {_PLACES}")
    if "::" in url:
        raise ConfigError(
            f"{what}: '{url}' chains file systems with '::', which is not allowed; give one place"
        )
    found = re.match(r"(?s)([A-Za-z][\w+.-]+):(/*)(.*)", url) or re.match(
        rf"(?si)({_ADDRESSED})()//+(.*)", url
    )
    if found is None:
        if "://" in url:
            raise ConfigError(f"{what}: '{url}' names no scheme before '://'; allowed: {_PLACES}")
        return
    scheme, slashes, rest = found[1], found[2], found[3]
    if scheme.lower() in _COMMANDS:
        raise ConfigError(
            f"{what}: '{scheme}:' URLs are not allowed (they run commands or bypass storage)"
        )
    known = (
        scheme.lower() in known_implementations or scheme.lower() in fsspec.available_protocols()
    )
    if known and not (len(slashes) > 1 and scheme.islower()):
        meant = (
            f"file:///{rest}"
            if protocol(f"{scheme}://") == "file"
            else f"{scheme.lower()}://{rest}"
        )
        raise ConfigError(
            f"{what}: '{url}' is not written as a URL (did you mean '{meant}'?); allowed: {_PLACES}"
        )
    if not known and slashes:
        raise unknown(
            f"{what}: storage scheme", scheme, ["file", "s3", "gs", "az", "http", "https", "memory"]
        )


def package_for(scheme: str, error: ImportError) -> str:
    """Return what to do where a file system's package is not installed."""
    extra = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}.get(scheme)
    return (
        f"{error}; pip install 'raydd[{extra}]'"
        if extra
        else f"{error}; install the file system's package"
    )
