"""Bytes under a URL (any fsspec file system), with retries and errors that name the URL."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from raydd.core.errors import ConfigError, StorageError, unknown

T = TypeVar("T")
log = logging.getLogger(__name__)

RETRY_SECONDS = float(os.environ.get("RAYDD_STORAGE_RETRY_S", "180"))
"""For how long a failing storage call is repeated (environment: ``RAYDD_STORAGE_RETRY_S``)."""

_FORBIDDEN = {"pipe", "shell", "cmd", "reference", "simplecache", "filecache", "blockcache"}
_FINAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EACCES}

_BUSY = {408, 425, 429, 500, 502, 503, 504}
"""Answers of an HTTP server that may be others a little later."""

_CLIENTS = {"botocore", "aiobotocore", "aiohttp"}

_STAMPS = ("md5Hash", "ETag", "etag", "LastModified", "mtime", "created")
"""What file systems call an object's checksum or, where there is none, the time of its last change."""


def protocol(url: str) -> str:
    """Return the scheme of a URL, ``file`` for a plain path."""
    return url.split("://", 1)[0].lower() if "://" in url else "file"


def absolute(url: str) -> str:
    """Return ``url`` with a local path made absolute (workers run in other folders than the driver)."""
    if protocol(url) != "file":
        return url.rstrip("/")
    return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))


def join(url: str, *parts: str) -> str:
    """Join a URL and path parts with ``/``."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts if part)])


def check_url(url: str, what: str = "url") -> None:
    """Refuse, as ``ConfigError``, schemes fsspec does not know, schemes that run commands, and secrets in a URL."""
    if re.match(r"^\w+:(?!//)", url) and url.split(":", 1)[0].lower() in _FORBIDDEN:
        raise ConfigError(f"{what}: '{url.split(':', 1)[0]}:' URLs are not allowed (they run commands or bypass storage)")
    scheme = protocol(url)
    if scheme in _FORBIDDEN:
        raise ConfigError(f"{what}: '{scheme}://' URLs are not allowed (they run commands or bypass storage)")
    if scheme not in known_implementations and scheme not in fsspec.available_protocols():
        raise unknown(f"{what}: storage scheme", scheme, ["file", "s3", "gs", "az", "http", "https", "memory"])
    if "://" in url and "@" in url.split("://", 1)[1].split("/", 1)[0] and scheme in {"s3", "gs", "az", "http", "https"}:
        raise ConfigError(f"{what}: credentials belong in the environment, not in the URL")


def _transient(error: BaseException) -> bool:
    if isinstance(error, (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)):
        return False
    module = type(error).__module__.split(".")[0]
    status = getattr(error, "status", None)
    if module == "aiohttp" and isinstance(status, int):  # an answer: a server that refuses a request refuses it again
        return status in _BUSY
    if isinstance(error, OSError):
        return error.errno not in _FINAL
    if module in {"botocore", "aiobotocore"}:
        return type(error).__name__ not in {"NoCredentialsError", "ParamValidationError", "PartialCredentialsError"}
    return module in {"aiohttp", "urllib3", "requests"} or isinstance(error, (TimeoutError, ConnectionError))


class Storage:
    """The objects below one URL. Paths are relative, with ``/``; every call retries what may pass."""

    def __init__(self, url: str) -> None:
        check_url(url)
        self.url = absolute(url)
        try:
            # Other processes write here: a cached listing would hide what they finished.
            self.fs, self.root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise ConfigError(f"{self.url}: {error}; install the file system's package") from error
        self.local = isinstance(self.fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.url,))

    def _path(self, path: str) -> str:
        parts = path.split("/")
        if path.startswith("/") or ".." in parts:
            raise StorageError(f"'{path}' leaves {self.url}")
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def _call(self, what: str, path: str, fn: Callable[[], T]) -> T:
        def report(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            log.warning("storage: %s %s failed (%s: %s); trying again", what, join(self.url, path), type(error).__name__, error)

        retrying = Retrying(
            retry=retry_if_exception(_transient),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=stop_after_delay(RETRY_SECONDS),
            before_sleep=report,
            reraise=True,
        )
        try:
            return retrying(fn)
        except FileNotFoundError as error:
            if what in ("write", "list"):  # a missing bucket
                raise StorageError(f"could not {what} {join(self.url, path)}: {error}") from error
            raise
        except Exception as error:
            if isinstance(error, StorageError):
                raise
            if isinstance(error, OSError) or _transient(error) or type(error).__module__.split(".")[0] in _CLIENTS:
                raise StorageError(f"could not {what} {join(self.url, path)}: {type(error).__name__}: {error}") from error
            raise

    def put(self, path: str, data: bytes) -> None:
        """Write one object whole: a reader sees the old bytes or the new ones, never a part."""
        target = self._path(path)

        def local() -> None:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            temporary = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                os.replace(temporary, target)
            finally:
                if os.path.exists(temporary):
                    os.unlink(temporary)

        self._call("write", path, local if self.local else lambda: self.fs.pipe_file(target, data))

    def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return an object's bytes, or bytes ``start:end`` of it; ``FileNotFoundError`` if there is none."""
        target = self._path(path)
        data: bytes = self._call("read", path, lambda: bytes(self.fs.cat_file(target, start=start, end=end)))
        if end is not None and len(data) > max(0, end - (start or 0)):
            raise StorageError(f"could not read bytes {start or 0} to {end} of {join(self.url, path)}: its server sends whole files only")
        return data

    def fill(self, path: str, start: int, buffer: memoryview) -> int:
        """Read an object's bytes from ``start`` on into ``buffer``; return how many there were. As :meth:`get` otherwise."""
        target = self._path(path)

        def local() -> int:
            with open(target, "rb", buffering=0) as file:
                file.seek(start)
                filled = 0
                while filled < len(buffer) and (count := file.readinto(buffer[filled:])):
                    filled += count
                return filled

        if self.local:
            return self._call("read", path, local)
        data = self.get(path, start, start + len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def exists(self, path: str) -> bool:
        """Return whether there is an object (or folder) at ``path``."""

        def info() -> bool:
            try:
                self.fs.info(self._path(path))
            except FileNotFoundError:
                return False
            return True

        return self._call("look up", path, info)

    def size(self, path: str) -> int:
        """Return an object's size in bytes."""
        return int(self._call("look up", path, lambda: self.fs.info(self._path(path)))["size"])

    def exist(self, paths: Iterable[str]) -> list[bool]:
        """Return :meth:`exists` of many paths, asked in parallel."""
        paths = list(paths)
        if self.local or len(paths) < 4:
            return [self.exists(path) for path in paths]
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(self.exists, paths))

    def sizes(self, prefix: str = "") -> list[tuple[str, int]]:
        """Return ``(path, bytes)`` of all objects below ``prefix``, sorted by path; ``StorageError`` for a bucket that is not there."""
        cut = len(self.root.rstrip("/")) + 1
        found = self._call("list", prefix, lambda: self.fs.find(self._path(prefix).rstrip("/"), detail=True))
        return sorted((path[cut:], int(info.get("size") or 0)) for path, info in found.items())

    def stamps(self, prefix: str = "") -> dict[str, str]:
        """Return, by path, what tells that an object below ``prefix`` changed: its size and a checksum, or else a time; sorted by path."""

        def find() -> dict[str, dict[str, Any]]:
            try:
                return dict(self.fs.find(self._path(prefix).rstrip("/"), detail=True))
            except FileNotFoundError:
                return {}

        def stamp(info: dict[str, Any]) -> str:
            return f"{info.get('size')} {next((info[key] for key in _STAMPS if key in info), '')}"

        cut = len(self.root.rstrip("/")) + 1
        return {path[cut:]: stamp(info) for path, info in sorted(self._call("list", prefix, find).items())}

    def folders(self, prefix: str = "") -> list[str]:
        """Return the names of the folders directly below ``prefix``, sorted; none if there is no such folder."""

        def listed() -> list[str]:
            try:
                found = self.fs.ls(self._path(prefix).rstrip("/"), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return [item["name"].rstrip("/").rsplit("/", 1)[-1] for item in found if item["type"] == "directory"]

        return sorted(self._call("list", prefix, listed))

    def list(self, prefix: str = "") -> list[str]:
        """Return the paths of all objects below ``prefix``, sorted; folder markers and temporary files left out."""
        base = self._path(prefix)

        def find() -> list[str]:
            try:
                return list(self.fs.find(base))
            except FileNotFoundError:
                return []

        cut = len(self.root.rstrip("/")) + 1
        found = self._call("list", prefix, find)
        return sorted(p[cut:] for p in found if not p.endswith("/") and not p.endswith(".tmp"))

    def delete(self, path: str) -> None:
        """Remove an object; one that is not there is fine."""

        def remove() -> None:
            try:
                self.fs.rm_file(self._path(path))
            except FileNotFoundError:
                pass

        self._call("delete", path, remove)

    def upload(self, path: str, source: str) -> None:
        """Copy a local file to ``path``."""
        with open(source, "rb") as file:
            self.put(path, file.read())

    def check_writable(self, what: str) -> None:
        """Raise ``ConfigError`` now if nothing can be written here (missing bucket, no permission, no credentials)."""
        probe = f".raydd-probe-{uuid.uuid4().hex[:8]}"
        started = time.monotonic()
        global RETRY_SECONDS
        patience, RETRY_SECONDS = RETRY_SECONDS, min(RETRY_SECONDS, 20.0)
        try:
            self.put(probe, b"")
            self.delete(probe)
        except (StorageError, FileNotFoundError) as error:
            waited = time.monotonic() - started
            raise ConfigError(f"{what}: cannot write to {self.url} (tried for {waited:.0f} s): {error}") from error
        finally:
            RETRY_SECONDS = patience
