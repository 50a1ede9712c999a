"""What lies in folders: pictures, and all else by the reason why it is none. Asked once in a chain of calls."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raydd.core.storage import Storage
from raydd.data.images import EXTENSIONS
from raydd.data.inventory import LeftOut

T = TypeVar("T")

Pictures = list[tuple[str, int]]
"""Path below the storage, and bytes, of each picture; sorted by path."""

_SYSTEM = {
    "__MACOSX",
    "__pycache__",
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
}
"""Folders that programs leave among people's own: no classes, whatever lies in them."""
_LISTERS = 16


@dataclass(frozen=True)
class Entries:
    """What lies directly in one folder: names of the folders and of the pictures in it, and what is neither."""

    folders: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)

    def __bool__(self) -> bool:
        return bool(self.folders or self.pictures or self.left_out)


@dataclass(frozen=True)
class Below:
    """All pictures below a folder, at any depth, and what else is there."""

    pictures: Pictures
    left_out: LeftOut


def reason_against(name: str) -> str:
    """Return why a file of this name is not read as a picture, ``""`` if it is."""
    if name.startswith("."):
        return "hidden file"
    stem, dot, ending = name.rpartition(".")
    if not dot or not stem:
        return "file without an ending"
    return "" if ending.lower() in EXTENSIONS else f"format .{ending.lower()}"


def hidden(name: str) -> str:
    """Return why a folder of this name holds no data, ``""`` if it may."""
    return (
        "hidden folder"
        if name.startswith(".")
        else "folder of the system"
        if name in _SYSTEM
        else ""
    )


class Tree(Storage):
    """A storage that is asked once: which folders and objects are there, and what :meth:`once`
    found, is kept as long as this object.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._kept: dict[Any, Any] = {}
        self._there: dict[str, bool] = {}
        self._children: dict[tuple[str, bool], list[tuple[str, bool]]] = {}
        self._entries: dict[str, Entries] = {}
        self._below: dict[str, Below] = {}

    def once(self, find: Callable[..., T], *given: Any) -> T:
        """Return ``find(self, *given)``, as it was the first time; what is given is always the same."""
        if find not in self._kept:
            self._kept[find] = find(self, *given)
        found: T = self._kept[find]
        return found

    def exists(self, path: str) -> bool:
        if path not in self._there:
            self._there[path] = super().exists(path)
        return self._there[path]

    def children(self, prefix: str = "", *, emptied: bool = False) -> list[tuple[str, bool]]:
        if (prefix, emptied) not in self._children:
            self._children[prefix, emptied] = super().children(prefix, emptied=emptied)
        return self._children[prefix, emptied]

    def entries(self, prefix: str = "") -> Entries:
        """Return what lies directly in a folder; nothing if there is none. Links are followed,
        unless they lead back.
        """
        if prefix not in self._entries:
            self._entries[prefix] = (
                _local_entries(self, prefix) if self.local else _remote_entries(self, prefix)
            )
        return self._entries[prefix]

    def below(self, prefix: str) -> Below:
        """Return all pictures below a folder."""
        return self.below_each([prefix])[0]

    def below_each(self, prefixes: Sequence[str]) -> list[Below]:
        """Return :meth:`below` of several folders; of storage that is not local they are asked for side by side."""
        new = [prefix for prefix in prefixes if prefix not in self._below]
        if self.local or len(new) < 2:
            found = [walk(self, prefix) for prefix in new]
        else:
            with ThreadPoolExecutor(_LISTERS) as pool:
                found = list(pool.map(lambda prefix: walk(self, prefix), new))
        self._below |= dict(zip(new, found))
        return [self._below[prefix] for prefix in prefixes]


def walk(files: Storage, prefix: str = "") -> Below:
    """Return all pictures below a folder, and what was left out; hidden folders are not entered,
    links are followed but not in circles.
    """
    return _local_walk(files, prefix) if files.local else _remote_walk(files, prefix)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


Place = tuple[int, int]
"""Device and number of a folder: the same however it was reached."""


def _place(path: str) -> Place:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _way(files: Storage, prefix: str) -> frozenset[Place]:
    """Return the places of a folder, of those it was reached through, and of those that hold the
    root: a link to one is a circle.
    """
    root = os.path.realpath(files.root)
    held = [root]
    while os.path.dirname(held[-1]) != held[-1]:
        held.append(os.path.dirname(held[-1]))
    parts = prefix.split("/") if prefix else []
    through = [os.path.join(files.root, *parts[:depth]) for depth in range(1, len(parts) + 1)]
    return frozenset(_place(path) for path in (*held, *through) if os.path.isdir(path))


def _scan(
    files: Storage, prefix: str, way: frozenset[Place], left_out: LeftOut
) -> tuple[list[tuple[str, frozenset[Place]]], Pictures]:
    """Return the folders (with the way to each) and pictures directly in a local folder, by name; count the rest."""
    try:
        with os.scandir(os.path.join(files.root, prefix)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except PermissionError:
        left_out.add("folder without permission to read it", prefix or files.root)
        return [], []
    folders: list[tuple[str, frozenset[Place]]] = []
    pictures: Pictures = []
    for entry in entries:
        path = _joined(prefix, entry.name)
        if _is_folder(entry):
            reason, further = _enter(entry, way)
            if further is not None:
                folders.append((path, further))
        else:
            broken = entry.is_symlink() and not os.path.exists(entry.path)
            reason, size = "broken link" if broken else reason_against(entry.name), 0
            if not reason:
                reason, size = _file(entry)
            if not reason:
                pictures.append((path, size))
        if reason:
            left_out.add(reason, path)
    return folders, pictures


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _enter(entry: os.DirEntry[str], way: frozenset[Place]) -> tuple[str, frozenset[Place] | None]:
    """Return why a folder is not entered, or the way that leads through it."""
    reason = hidden(entry.name)
    if reason:
        return reason, None
    try:
        place = _place(entry.path)
    except OSError:
        return "folder without permission to read it", None
    return ("link to a folder that holds it", None) if place in way else ("", way | {place})


def _file(entry: os.DirEntry[str]) -> tuple[str, int]:
    """Return why a file that is called like a picture is not read, or its size."""
    try:
        status = entry.stat()
    except OSError:
        return "file without permission to read it", 0
    if not stat.S_ISREG(status.st_mode):
        return "special file", 0
    # Asked only where not everybody may: a call for every file would make large folders slower.
    if not status.st_mode & stat.S_IROTH and not os.access(entry.path, os.R_OK):
        return "file without permission to read it", 0
    return "", status.st_size


def _local_entries(files: Storage, prefix: str) -> Entries:
    left_out = LeftOut()
    folders, pictures = _scan(files, prefix, _way(files, prefix), left_out)
    return Entries(
        _names(path for path, _ in folders), _names(path for path, _ in pictures), left_out
    )


def _names(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(path.rsplit("/", 1)[-1] for path in paths)


def _local_walk(files: Storage, prefix: str) -> Below:
    left_out = LeftOut()
    found: Pictures = []
    folders = [(prefix, _way(files, prefix))]
    while folders:
        folder, way = folders.pop()
        inside, pictures = _scan(files, folder, way, left_out)
        folders += reversed(inside)
        found += pictures
    return Below(sorted(found), left_out)


def _remote_entries(files: Storage, prefix: str) -> Entries:
    left_out = LeftOut()
    folders, pictures = [], []
    for name, is_folder in files.children(
        prefix, emptied=bool(prefix)
    ):  # an emptied class is told when its pictures are looked for
        reason = hidden(name) if is_folder else reason_against(name)
        if reason:
            left_out.add(reason, _joined(prefix, name))
        elif is_folder:
            folders.append(name)
        else:
            pictures.append(name)
    return Entries(tuple(folders), tuple(pictures), left_out)


def _remote_walk(files: Storage, prefix: str) -> Below:
    left_out = LeftOut()
    found: Pictures = []
    closed: set[str] = set()
    for path, size in files.sizes(prefix):
        if path.endswith("/"):  # an object that stands for a folder
            continue
        inside = path[len(prefix) + 1 :] if prefix else path
        *folders, name = inside.split("/")
        depth = next((depth for depth, folder in enumerate(folders) if hidden(folder)), None)
        if depth is not None:
            folder = _joined(prefix, "/".join(folders[: depth + 1]))
            if folder not in closed:
                closed.add(folder)
                left_out.add(hidden(folders[depth]), folder)
            continue
        reason = reason_against(name)
        if reason:
            left_out.add(reason, path)
        else:
            found.append((path, size))
    return Below(found, left_out)
