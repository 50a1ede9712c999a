"""Bytes under a URL (any fsspec file system), with retries and errors that name the URL."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import time
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from raydd.core.errors import ConfigError, RayddError, StorageError, first_line
from raydd.core.retries import before_work, endpoint_hint, precondition_failed, retried
from raydd.core.urls import READ, WRITTEN, absolute, check_url, join, package_for, protocol

__all__ = ["Storage", "absolute", "check_url", "join", "protocol"]

T = TypeVar("T")

_STAMPS = ("md5Hash", "ETag", "etag", "LastModified", "mtime", "created")
"""What file systems call an object's checksum or, where there is none, the time of its last change."""

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
"""What file systems without hard links answer."""

_HADOOP = "_$folder$"
"""The end of the names of empty objects by which Hadoop keeps folders."""


def _options(scheme: str) -> dict[str, Any]:
    """Return how a file system is made: without cached listings, which would hide what other processes finished."""
    options: dict[str, Any] = {"use_listings_cache": False} if scheme in READ else {}
    if scheme in ("s3", "s3a") and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
        # Calls are repeated here, where it is told; botocore would be silent for up to a quarter of a minute.
        options["config_kwargs"] = {"retries": {"total_max_attempts": 2, "mode": "standard"}}
    return options


class Storage:
    """The objects below one URL. Paths are relative, with ``/``; every call retries what may pass."""

    def __init__(self, url: str) -> None:
        check_url(url)
        self.url, scheme = absolute(url), protocol(url)
        try:
            self.fs, self.root = fsspec.url_to_fs(self.url, **_options(scheme))
        except ImportError as error:
            raise ConfigError(f"{self.url}: {package_for(scheme, error)}") from error
        except TypeError as error:
            raise ConfigError(
                f"{self.url} cannot be opened: {scheme} URLs need settings that an address does not hold ({error})"
            ) from error
        except (
            Exception
        ) as error:  # each kind has errors of its own where server, account or settings lack
            raise ConfigError(
                f"{self.url} cannot be opened: {type(error).__name__}: {first_line(error)}"
            ) from error
        if hasattr(self.fs, "retries"):  # s3fs's own; see _options
            self.fs.retries = 1
        self.local = isinstance(self.fs, LocalFileSystem)
        self.writable = scheme in WRITTEN
        self._place = "/".join(self.url.split("/")[:3]) if "://" in self.url else self.url

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.url,))

    def _path(self, path: str) -> str:
        parts = path.split("/")
        if path.startswith("/") or ".." in parts:
            raise StorageError(f"'{path}' leaves {self.url}")
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def _call(self, what: str, path: str, fn: Callable[[], T]) -> T:
        url = join(self.url, path)
        try:
            return retried(self._place, f"{what} {url}", fn)
        except FileNotFoundError as error:
            if what in ("write", "list"):  # a missing bucket
                raise StorageError(f"could not {what} {url}: {error}") from error
            raise
        except RayddError:
            raise
        except NotImplementedError as error:
            raise StorageError(f"could not {what} {url}: its file system cannot") from error
        except Exception as error:  # whatever a file system's libraries raise
            raise StorageError(
                f"could not {what} {url}: {type(error).__name__}: {error}{endpoint_hint(self.url, error)}"
            ) from error

    def _found(self, prefix: str) -> dict[str, dict[str, Any]]:
        """Return what lies below ``prefix``, by path below this storage, sorted. Folders are no
        objects, however a server keeps them:

        as an object whose name ends in a slash, as an empty one beside those below it, or (SeaweedFS, once all below is
        deleted) as an empty object that has the name of the prefix asked for.
        """
        base = self._path(prefix).rstrip("/")
        cut = len(self.root.rstrip("/")) + 1

        def find() -> dict[str, dict[str, Any]]:
            found = self.fs.find(base, detail=True)
            return {
                path[cut:]: info
                for path, info in sorted(found.items())
                if info.get("type") != "directory"
                and path.startswith(f"{base}/")
                and not path.endswith(("/", _HADOOP))
            }

        found = self._call("list", prefix, find)
        paths = list(found)
        for path in [
            path for path, info in found.items() if not info.get("size") and not self.local
        ]:
            below = bisect_left(paths, f"{path}/")
            if below < len(paths) and paths[below].startswith(f"{path}/"):
                del found[path]
        return found

    def _holds(self, path: str) -> bool:
        """Return whether some object lies below the folder at the file system's ``path``: a server
        may list an emptied one.
        """
        try:
            return any(
                name for _, _, files in self.fs.walk(path, on_error="raise") for name in files
            )
        except FileNotFoundError:
            return False

    def put(self, path: str, data: bytes) -> None:
        """Write one object whole: a reader sees the old bytes or the new ones, never a part."""

        def write(temporary: str) -> None:
            with open(temporary, "wb") as file:
                file.write(data)

        self._put(path, write, lambda target: self.fs.pipe_file(target, data))

    def create(self, path: str, data: bytes) -> bool:
        """Write one object whole unless one is there; return whether it was written.

        ``False`` also where it was, and the answer was lost: whoever asks reads it to know.
        """
        target = self._path(path)

        def local() -> bool:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            temporary = self._temporary(target)
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno not in _NO_LINKS or os.path.lexists(target):
                        raise
                    os.replace(temporary, target)
                return True
            finally:
                if os.path.exists(temporary):
                    os.unlink(temporary)

        def afar() -> bool:
            if self.exists(path):
                return False
            try:
                self.fs.pipe_file(target, data, mode="create")
            except (OSError, TypeError, NotImplementedError) as error:
                if isinstance(error, FileExistsError) or precondition_failed(error):
                    return False
                if isinstance(error, OSError) and error.errno != errno.ENOSYS:
                    raise
                self.fs.pipe_file(target, data)
            return True

        return self._call("write", path, local if self.local else afar)

    def upload(self, path: str, source: str) -> None:
        """As :meth:`put`, of a local file, which is never in memory as a whole."""
        self._put(
            path,
            lambda temporary: shutil.copyfile(source, temporary),
            lambda target: self.fs.put_file(source, target),
        )

    def _put(
        self, path: str, locally: Callable[[str], object], afar: Callable[[str], object]
    ) -> None:
        """Write one object by ``locally`` to a temporary file that takes its name, or by ``afar``."""
        target = self._path(path)

        def local() -> None:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            temporary = self._temporary(target)
            try:
                locally(temporary)
                os.replace(temporary, target)
            finally:
                if os.path.exists(temporary):
                    os.unlink(temporary)

        if not self.writable:
            raise StorageError(
                f"could not write {join(self.url, path)}: {protocol(self.url)} URLs cannot be written"
            )

        def remote() -> None:
            try:
                afar(target)
            except (
                FileNotFoundError
            ):  # the answer to the end of an upload in parts was lost: it is gone
                afar(target)

        self._call("write", path, local if self.local else remote)

    @staticmethod
    def _temporary(target: str) -> str:
        """Return the name of a hidden file beside a local one, nobody else's."""
        folder, name = os.path.split(target)
        return os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")

    def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return an object's bytes, or bytes ``start:end`` of it; ``FileNotFoundError`` if there is none."""
        target = self._path(path)
        data: bytes = self._call(
            "read", path, lambda: bytes(self.fs.cat_file(target, start=start, end=end))
        )
        if end is not None and len(data) > max(0, end - (start or 0)):
            raise StorageError(
                f"could not read bytes {start or 0} to {end} of {join(self.url, path)}: its server sends whole files"
                " only"
            )
        return data

    def fill(self, path: str, start: int, buffer: memoryview) -> int:
        """Read an object's bytes from ``start`` on into ``buffer``; return how many there were. As
        :meth:`get` otherwise.
        """
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
        """Return whether there is an object at ``path``, or a folder (on object storage: one that holds something)."""

        def info() -> bool:
            try:
                found = self.fs.info(self._path(path))
            except FileNotFoundError:
                return False
            return self.local or found["type"] != "directory" or self._holds(self._path(path))

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

    def sizes(self, prefix: str = "") -> builtins.list[tuple[str, int]]:
        """Return ``(path, bytes)`` of all objects below ``prefix``, sorted by path;
        ``StorageError`` for a bucket that is not there.
        """
        return [(path, int(info.get("size") or 0)) for path, info in self._found(prefix).items()]

    def stamps(self, prefix: str = "") -> dict[str, str]:
        """Return, by path, what tells that an object below ``prefix`` changed: its size and a
        checksum, or else a time; sorted by path.
        """
        return {path: _stamp(info) for path, info in self._found_or_none(prefix).items()}

    def stamp(self, path: str) -> str:
        """Return :meth:`stamps` of one object; ``FileNotFoundError`` if there is none."""
        return _stamp(self._call("look up", path, lambda: self.fs.info(self._path(path))))

    def _found_or_none(self, prefix: str) -> dict[str, dict[str, Any]]:
        try:
            return self._found(prefix)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return {}
            raise

    def folders(self, prefix: str = "") -> builtins.list[str]:
        """Return the names of the folders directly below ``prefix``, sorted; none if there is no such folder.

        On object storage a folder is there while an object is below it.
        """
        return [name for name, folder in self.children(prefix) if folder]

    def files(self, prefix: str = "") -> builtins.list[str]:
        """Return the names of the objects directly below ``prefix``, sorted; none if there is no such folder."""
        return [name for name, folder in self.children(prefix) if not folder]

    def children(
        self, prefix: str = "", *, emptied: bool = False
    ) -> builtins.list[tuple[str, bool]]:
        """Return ``(name, whether it is a folder)`` of what lies directly below ``prefix``, sorted by name.

        ``emptied``: also folders that some object storage lists though nothing is left below them,
        which saves a request for each.
        """
        base = self._path(prefix).rstrip("/")

        def listed() -> builtins.list[tuple[str, bool]]:
            try:
                found = self.fs.ls(base, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            items = [
                (item["name"].rstrip("/"), item["type"])
                for item in found
                if not item["name"].endswith(_HADOOP)
            ]
            marked = {name for name, kind in items if kind == "directory"}
            below = [
                (name, kind)
                for name, kind in items
                if name != base and (kind == "directory" or name not in marked)
            ]
            folders = [name for name, kind in below if kind == "directory"]
            if folders and not self.local and not emptied:
                with ThreadPoolExecutor(16) as pool:
                    empty = {
                        name
                        for name, holds in zip(folders, pool.map(self._holds, folders))
                        if not holds
                    }
                below = [(name, kind) for name, kind in below if name not in empty]
            return sorted((name.rsplit("/", 1)[-1], kind == "directory") for name, kind in below)

        return self._call("list", prefix, listed)

    def list(self, prefix: str = "") -> builtins.list[str]:
        """Return the paths of all objects below ``prefix``, sorted; temporary files left out."""
        return [path for path in self._found_or_none(prefix) if not path.endswith(".tmp")]

    def delete(self, path: str) -> None:
        """Remove an object; one that is not there is fine."""

        def remove() -> None:
            try:
                self.fs.rm_file(self._path(path))
            except FileNotFoundError:
                pass

        self._call("delete", path, remove)

    def check_writable(self, what: str) -> None:
        """Raise ``ConfigError`` now if nothing can be written here (missing bucket, no permission,
        no credentials, no server).
        """
        check_url(self.url, what, write=True)
        probe = f".raydd-probe-{uuid.uuid4().hex[:8]}"
        started = time.monotonic()
        try:
            with before_work():
                self.put(probe, b"")
                self.delete(probe)
        except (StorageError, FileNotFoundError) as error:
            waited = time.monotonic() - started
            raise ConfigError(
                f"{what}: cannot write to {self.url} (tried for {waited:.0f} s): {error}"
            ) from error


def _stamp(info: dict[str, Any]) -> str:
    return f"{info.get('size')} {next((info[key] for key in _STAMPS if key in info), '')}"
