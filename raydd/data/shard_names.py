"""Which tar shards of others ``dataset.shards`` names: a URL with braces or wildcards, or a folder,
and the split of each shard.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from raydd.core.errors import ConfigError
from raydd.core.storage import Storage
from raydd.data.inventory import LeftOut
from raydd.data.layout import split_of

_PACKERS = {
    "gz": "gunzip", "tgz": "gunzip", "bz2": "bunzip2", "tbz2": "bunzip2", "tbz": "bunzip2", "xz": "unxz",
    "txz": "unxz", "lzma": "unlzma",
    "zst": "unzstd", "tzst": "unzstd", "lz4": "unlz4", "z": "uncompress", "br": "brotli -d",
}  # fmt: skip
_SHORT = ("tgz", "tbz2", "tbz", "txz", "tzst")
_SHOWN = 5


def is_pattern(url: str) -> bool:
    """Return whether a URL names tar files, not a folder."""
    return url.lower().endswith(".tar")


def packer(name: str) -> str | None:
    """Return the command that unpacks a compressed tar, by its name; ``None`` for other names."""
    first, _, last = name.lower().rpartition(".")
    return _PACKERS.get(last) if last in _SHORT or first.endswith(".tar") else None


def check_packed(url: str, what: str) -> None:
    """Raise ``ConfigError`` for a compressed tar: single samples cannot be read out of it."""
    name = url.rsplit("/", 1)[-1]
    command = packer(re.sub(r"[{}]", "", name))
    if command is not None:
        how = f"unpack it to a .tar first, such as with '{command} {name}'"
        raise ConfigError(
            f"{what}: '{url}' is compressed; shards are read sample by sample, so {how} (pictures are compressed"
            " already)"
        )


def split_pattern(url: str, what: str) -> tuple[str, list[str]]:
    """Return the folder and the tar names of a URL such as
    ``s3://bucket/train-{000000..000099}.tar``, or with ``*`` and ``?``.

    Names with wildcards are those that are there. ``ConfigError`` for braces or wildcards
    elsewhere, or names that stand twice.
    """
    from braceexpand import braceexpand

    folder, _, name = url.rpartition("/")
    if any(mark in folder for mark in "{}*"):
        raise ConfigError(
            f"{what}: '{url}' has braces or wildcards in a folder; they are allowed in the file name"
        )
    try:
        names = list(braceexpand(name))
    except ValueError as error:
        raise ConfigError(f"{what}: '{url}' has unbalanced braces") from error
    if any(mark in name for mark in "*?"):
        there = [found for found in Storage(folder or ".").files() if not found.startswith(".")]
        names = [found for found in there if any(fnmatch.fnmatchcase(found, one) for one in names)]
    twice = (
        next((one for one in names if names.count(one) > 1), None)
        if len(set(names)) < len(names)
        else None
    )
    if twice:
        raise ConfigError(f"{what}: '{url}' names {twice} twice")
    return folder or ".", names


@dataclass(frozen=True)
class FoundShards:
    """The shards of a folder: names below it of each split (``test`` may be missing), or the
    ``problem`` why it is refused.
    """

    train: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    problem: str = ""


def find_shards(files: Storage) -> FoundShards:
    """Return the tars directly in a folder, or in the folders directly in it, by split; which that is, their names say.

    Without a name of a split all of them are the training split. What may be meant in two ways is
    refused with what was found.
    """
    left_out = LeftOut()
    here = _tars(files, "", left_out)
    below = {
        folder: _tars(files, folder, left_out)
        for folder in files.folders()
        if not folder.startswith(".")
    }
    below = {folder: tars for folder, tars in below.items() if tars}
    packed = [
        name
        for name in (*here, *(name for tars in below.values() for name in tars))
        if packer(name)
    ]
    plain = [name for name in here if not packer(name)]
    inside = {folder: [name for name in tars if not packer(name)] for folder, tars in below.items()}
    if packed:
        return FoundShards(problem=_packed(files, packed))
    if plain and inside:
        return FoundShards(
            problem=(
                f"{files.url} has tars ({_few(plain)}) beside folders with tars ({_few(list(inside))}); give one of"
                " them"
            )
        )
    if not plain and not inside:
        return FoundShards(left_out=left_out)
    groups = _by_split(plain) if plain else _by_folder(inside)
    return _sorted(files, groups, left_out)


def _tars(files: Storage, folder: str, left_out: LeftOut) -> list[str]:
    found = []
    for name in files.files(folder):
        if not (is_pattern(name) or packer(name)):
            continue
        path = f"{folder}/{name}" if folder else name
        if name.startswith("."):
            left_out.add("hidden file", path)
        else:
            found.append(path)
    return found


def _packed(files: Storage, packed: Sequence[str]) -> str:
    command = packer(packed[0])
    how = f"shards are read sample by sample, so unpack them first, such as with '{command} {packed[0]}'"
    return f"{files.url} holds compressed shards ({_few(packed)}); {how} (pictures are compressed already)"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    )


def _split_of_tar(path: str) -> str | None:
    """Return the split that a tar's name tells, by one of its words:
    ``train-000000-of-000010.tar``, ``cifar10_val_3.tar``.
    """
    stem = path.rsplit("/", 1)[-1][: -len(".tar")]
    kinds = {
        kind
        for word in re.split(r"[^A-Za-z]+", stem)
        if word and (kind := split_of(word)) is not None
    }
    return kinds.pop() if len(kinds) == 1 else None


def _by_split(tars: Sequence[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in tars:
        groups.setdefault(_split_of_tar(path) or "", []).append(path)
    return groups


def _by_folder(inside: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return tars by the split that their folder's name tells; where no folder tells one, by their own names."""
    kinds = {folder: split_of(folder) for folder in inside}
    if not any(kinds.values()):
        return _by_split([path for tars in inside.values() for path in tars])
    groups: dict[str, list[str]] = {}
    for folder, tars in inside.items():
        groups.setdefault(kinds[folder] or "", []).extend(tars)
    return groups


def _sorted(files: Storage, groups: dict[str, list[str]], left_out: LeftOut) -> FoundShards:
    if set(groups) == {""}:
        return FoundShards(groups[""], left_out=left_out)
    counts = "; ".join(
        f"{kind or 'no split by name'}: {_few(tars)}"
        for kind, tars in sorted(groups.items(), reverse=True)
    )
    remedy = "name the splits: dataset.shards=FOLDER/train-{000..009}.tar dataset.test_shards=FOLDER/val-{000..001}.tar"
    if "train" not in groups or "" in groups:
        return FoundShards(
            problem=f"{files.url}: which of its shards are the training split cannot be told ({counts}); {remedy}"
        )
    test = next((kind for kind in ("test", "val") if kind in groups), None)
    notes = tuple(
        f"{len(tars)} shards of '{kind}' are not used ({_few(tars)}): the test split is {_few(groups[test or ''])}"
        for kind, tars in groups.items()
        if kind not in ("train", test)
    )
    return FoundShards(groups["train"], groups[test] if test else [], notes, left_out)
