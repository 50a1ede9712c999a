"""What stands at a path or URL that is given as a distilled set: its format and its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raydd.artifacts import published_folder as folder
from raydd.artifacts import published_manifest
from raydd.artifacts.eight_bit import PICTURES
from raydd.core.errors import DataError
from raydd.core.storage import Storage, join

_SUFFIXES = {
    ".pt": "pt",
    ".pth": "pt",
    ".pth.tar": "pt",
    ".pt.tar": "pt",
    ".ckpt": "pt",
    ".tar": "webdataset",
    ".tar.gz": "webdataset",
    ".tgz": "webdataset",
    ".safetensors": "safetensors",
    ".rdd": "coded",
}
_HALF = re.compile(r"(images|labels)_(?:(zca)_)?(.+?)\.(pt|pth)")
"""``images_5000.pt``; ``images_zca_5000.pt``, the same with its whitening undone; ``labels_5000.pt``."""


@dataclass(frozen=True)
class FoundFiles:
    """Where a set was found: its format, the storage of its folder, and the paths of its files there.

    ``unread``: files of an image folder that are no pictures, and its folders that hold none
    (``new009/``). ``chosen``: what was chosen among several sets, for a person. ``space``, ``why``:
    what file names say of the images' space. ``partner``: the file that a lone half of images and
    labels lacks.
    """

    format: str
    storage: Storage
    paths: tuple[str, ...]
    unread: tuple[str, ...] = ()
    chosen: str = ""
    space: str | None = None
    why: str = ""
    partner: str = ""

    @property
    def url(self) -> str:
        """The URL to name in errors."""
        return (
            join(self.storage.url, self.paths[0])
            if len(self.paths) == 1 or self.format == "mtt"
            else self.storage.url
        )


def detect(url: str) -> FoundFiles:
    """Return the format of what stands at ``url``; ``DataError`` saying what was found if it is none that is read."""
    parent, _, name = url.rstrip("/").rpartition("/")
    suffix = max((s for s in _SUFFIXES if name.lower().endswith(s)), key=len, default=None)
    if suffix is not None:
        return _file(
            Storage(parent or ("/" if url.startswith("/") else ".")), name, _SUFFIXES[suffix]
        )
    storage = Storage(url)
    paths = storage.list()
    if not paths:
        what = (
            "an empty folder or nothing"
            if "." not in name
            else "nothing, or a file that is not read"
        )
        arrays = ""
        if name.lower().endswith((".npz", ".npy", ".h5", ".hdf5", ".mat")):
            arrays = "; read its arrays and write torch.save((images, labels), 'set.pt')"
        raise DataError(
            f"{storage.url}: {what}{arrays}; a distilled set is a folder, or a file ending in {', '.join(_SUFFIXES)}"
        )
    return _folder(storage, paths)


def _file(storage: Storage, name: str, kind: str) -> FoundFiles:
    if not storage.exists(name):
        raise DataError(f"{join(storage.url, name)} does not exist")
    half = _HALF.fullmatch(name) if kind == "pt" else None
    if half is not None:
        return _pair(storage, name, half)
    if (
        kind == "webdataset"
        and name.lower().endswith(".tar")
        and storage.get(name, 0, 4)[:2] in (b"PK", b"\x80\x02")
    ):
        kind = "pt"  # torch.save writes no tar archives, but people call its files so
    return FoundFiles(kind, storage, (name,))


def _pair(storage: Storage, name: str, half: re.Match[str]) -> FoundFiles:
    """Return the images and labels of one iteration, given one of the two files."""
    zca, number, suffix = half[2], half[3], half[4]
    images, labels = (
        f"images_{zca + '_' if zca else ''}{number}.{suffix}",
        f"labels_{number}.{suffix}",
    )
    for needed in (images, labels):
        if not storage.exists(needed):  # both may be in this one file
            return FoundFiles("pt", storage, (name,), partner=needed)
    space, why = None, ""
    if zca:
        space, why = "pixels", f"{images} holds pixels again, its whitening undone"
    elif storage.exists(f"images_zca_{number}.{suffix}"):
        space, why = (
            "zca",
            f"images_zca_{number}.{suffix} beside it is the same with its whitening undone",
        )
    return FoundFiles("mtt", storage, (images, labels), space=space, why=why)


def _iterations(paths: Sequence[str]) -> list[str]:
    """Return the names of images that have labels beside them, the best first, then the latest iteration."""
    halves = {path: _HALF.fullmatch(path) for path in paths}
    found = [
        (match[3], path)
        for path, match in halves.items()
        if match
        and match[1] == "images"
        and not match[2]
        and f"labels_{match[3]}.{match[4]}" in halves
    ]

    def rank(item: tuple[str, str]) -> tuple[bool, int, str]:
        return item[0] != "best", -int(item[0]) if item[0].isdigit() else 1, item[0]

    return [path for _, path in sorted(found, key=rank)]


def _folder(storage: Storage, paths: list[str]) -> FoundFiles:
    for inner in ("", "distilled"):
        if {published_manifest.MANIFEST, folder.DATA, folder.INDEX} & {
            p.removeprefix(f"{inner}/") for p in paths if p.startswith(inner)
        }:
            return FoundFiles("distilled", Storage(join(storage.url, inner)), ())
    iterations = _iterations([p for p in paths if "/" not in p])
    if iterations:
        found = _file(storage, iterations[0], "pt")
        others = len(iterations) - 1
        chosen = (
            f"{iterations[0]} of {others + 1} sets there; name another by its path"
            if others
            else ""
        )
        return FoundFiles(
            "mtt", storage, found.paths, chosen=chosen, space=found.space, why=found.why
        )
    shards = tuple(
        p for p in paths if "/" not in p and p.lower().endswith((".tar", ".tar.gz", ".tgz"))
    )
    if shards:
        return FoundFiles("webdataset", storage, shards)
    inside = [p for p in paths if p.count("/") == 1 and not p.startswith(".") and "/." not in p]
    images = tuple(p for p in inside if p.lower().endswith(PICTURES))
    if images:
        with_images = {p.split("/")[0] for p in images}
        empty = [
            f"{name}/"
            for name in storage.folders()
            if name not in with_images and not name.startswith(".")
        ]
        return FoundFiles(
            "folder", storage, images, unread=(*(p for p in inside if p not in set(images)), *empty)
        )
    files = [p for p in paths if p.endswith((".pt", ".pth"))]
    hint = f"; name one of its files, such as {files[0]}" if files else ""
    lone = next((p for p in files if _HALF.fullmatch(p)), None)
    if lone is not None:
        hint += "; images_<n>.pt and labels_<n>.pt belong together"
    raise DataError(
        f"{storage.url} holds {len(paths)} files ({', '.join(paths[:5])}, …) but no distilled set that is known{hint}"
    )
