"""Which folders below a root are the splits, and which the classes; a root where that cannot be
told is refused with what was found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from raydd.data.inventory import LeftOut
from raydd.data.listing import Entries, Tree

Kind = Literal["train", "test", "val"]
_STEMS: dict[str, Kind] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(
        ("val", "valid", "validate", "validation", "dev", "development", "eval", "evaluation"),
        "val",
    ),
}
_TAILS = ("", "set", "sets", "data", "dataset", "split", "images", "imgs")
_LOOSE = re.compile(
    r"(?<![a-z])(train|training|test|testing|val|valid|validation|dev|eval)(?![a-z])", re.IGNORECASE
)
_PACKED = {"zip", "tar", "tgz", "tbz", "tbz2", "txz", "gz", "bz2", "xz", "zst", "7z", "rar"}
_PACKED |= {"npz", "npy", "h5", "hdf5", "parquet", "arrow", "lmdb", "tfrecord"}
"""Endings of files that may hold the pictures of a split."""
_SHOWN = 5
_SAMPLED = 20
"""Folders that are looked into where a root seems to hold classes alone."""
OUTSIDE, UNUSED = "outside the class folders", "folder that is no split"


@dataclass(frozen=True)
class FolderLayout:
    """Where the splits are, below the root: ``train`` (``""``: the root itself holds the classes),
    ``test`` (``None``: there is none).

    ``problem``: why the root is refused; then nothing else counts. ``notes``, ``left_out``: as
    :class:`BaseData` has them.
    """

    train: str = ""
    test: str | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)


def split_of(name: str) -> Kind | None:
    """Return which split a folder of this name usually is: ``Train``, ``training_set``, ``valid``, ``Test Images`` …"""
    plain = re.sub(r"[\W_]+", "", name.lower())
    for tail in _TAILS:
        if plain.endswith(tail) and plain.removesuffix(tail) in _STEMS:
            return _STEMS[plain.removesuffix(tail)]
    return None


def find_layout(tree: Tree) -> FolderLayout:
    """Return where the splits of a root are: it is listed, and each folder that may be a split or
    lies beside one; never all classes.
    """
    root = tree.entries()
    kinds = {name: split_of(name) for name in root.folders}
    known = [name for name, kind in kinds.items() if kind is not None]
    if any(kind == "train" for kind in kinds.values()) and not _is_class(tree, root, known):
        found = _with_train(tree, root, kinds)
    elif known:
        found = _without_train(tree, root, known)
    else:
        found = _classes_alone(tree, root)
    if found.problem:
        return replace(found, problem=f"{tree.url}: {found.problem}")
    return replace(found, left_out=found.left_out.merge([_outside(root, "")]))


def few(names: tuple[str, ...] | list[str]) -> str:
    """Return the first few names, ``cat/, dog/ and 3 more``."""
    shown = ", ".join(f"{name}/" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def held(tree: Tree, folder: str) -> str:
    """Return what a folder holds directly, in words."""
    inside = tree.entries(folder)
    if inside.folders:
        return f"folders ({few(inside.folders)})"
    if inside.pictures:
        return (
            f"{len(inside.pictures)} picture{'s' * (len(inside.pictures) != 1)} in no class folders"
        )
    return "no pictures" if inside else "nothing"


def _outside(entries: Entries, folder: str) -> LeftOut:
    """Return what lies beside folders instead of in one."""
    found = LeftOut()
    if entries.pictures:
        found.add(
            f"picture {OUTSIDE}",
            f"{folder}/{entries.pictures[0]}".lstrip("/"),
            len(entries.pictures),
        )
    return entries.left_out.merge([found])


def _is_class(tree: Tree, root: Entries, known: list[str]) -> bool:
    """Return whether the one folder that is called like a split is a class: it holds pictures
    alone, as others beside it do.
    """
    others = [name for name in root.folders if name not in known][:_SHOWN]
    if len(known) != 1 or not others:
        return False
    inside = tree.entries(known[0])
    return (
        bool(inside.pictures)
        and not inside.folders
        and any(tree.entries(name).pictures for name in others)
    )


def _with_train(tree: Tree, root: Entries, kinds: dict[str, Kind | None]) -> FolderLayout:
    trains = [name for name, kind in kinds.items() if kind == "train"]
    usable = [name for name in trains if tree.entries(name).folders]
    if len(trains) > 1:
        return FolderLayout(problem=f"{few(trains)} may each be the training split")
    if not usable:
        return FolderLayout(problem=f"{trains[0]}/ holds {held(tree, trains[0])}")
    train = trains[0]
    tests = [name for name, kind in kinds.items() if kind == "test"]
    vals = [name for name, kind in kinds.items() if kind == "val"]
    sorted_in = [name for name in (*tests, *vals) if tree.entries(name).folders]
    first = [name for name in tests if name in sorted_in] or [
        name for name in vals if name in sorted_in
    ]
    if len(first) > 1:
        return FolderLayout(problem=f"{few(first)} may each be the test split")
    others = [name for name, kind in kinds.items() if kind is None]
    if not first:
        return _no_test(tree, train, [*tests, *vals], others)
    test, left_out = first[0], _no_splits(others)
    unused = [name for name in (*tests, *vals) if name != test]
    notes = [
        f"{name}/ is not used; it holds {held(tree, name)}, but the test split is {test}/"
        for name in unused
    ]
    twin = [
        name
        for name in others
        if set(tree.entries(name).folders) & set(tree.entries(train).folders)
    ]
    notes += (
        [
            f"{few(twin)} beside {train}/ and {test}/ is not used, though it holds folders of the same names"
        ]
        if twin
        else []
    )
    parts = [_outside(tree.entries(name), name) for name in (train, test)]
    return FolderLayout(train, test, "", tuple(notes), left_out.merge(parts))


def _no_splits(names: list[str]) -> LeftOut:
    found = LeftOut()
    for name in names:
        found.add(UNUSED, name)
    return found


def _no_test(tree: Tree, train: str, flat: list[str], others: list[str]) -> FolderLayout:
    """Return the layout of a training split alone: a refusal if anything beside it may be the test split."""
    if flat:
        what = ", ".join(f"{name}/ holds {held(tree, name)}" for name in flat)
        remedy = f"sort its pictures into {flat[0]}/<class>/, with the classes of {train}/, or move {flat[0]}/ away"
        return FolderLayout(train, problem=f"{what}; {remedy}")
    classes = set(tree.entries(train).folders)
    meant = [
        name
        for name in others
        if classes & set(tree.entries(name).folders) or (_LOOSE.search(name) and tree.entries(name))
    ]
    if not flat and not meant:
        packed = [
            name
            for name, folder in tree.children(emptied=True)
            if name not in (train, *others) and _packed_test(name)
        ]
        if packed:
            what = f"{packed[0]} beside {train}/ may be the test split, and is no folder that can be read"
            return FolderLayout(
                train,
                problem=f"{what}; make it a folder test/<class>/, with the classes of {train}/, or move it away",
            )
    if meant:
        what = f"{few(meant)} beside {train}/ may be the test split ({meant[0]}/ holds {held(tree, meant[0])})"
        return FolderLayout(train, problem=f"{what}; call it test, or move it away")
    return FolderLayout(
        train, None, "", (), _no_splits(others).merge([_outside(tree.entries(train), train)])
    )


def _packed_test(name: str) -> bool:
    """Return whether a file (or a link to nothing) is called like a test split, and may hold its pictures."""
    stem, *endings = name.split(".")
    if not stem or any(ending.lower() not in _PACKED for ending in endings):
        return False
    kinds = {split_of(stem)} - {None} or {
        _STEMS[found[0].lower()] for found in _LOOSE.finditer(stem)
    }
    return bool(kinds) and "train" not in kinds


def _without_train(tree: Tree, root: Entries, known: list[str]) -> FolderLayout:
    """Return the layout of a root with folders called like splits, none of them for training (or
    one that is a class).
    """
    others = [name for name in root.folders if name not in known]
    if not others:
        return FolderLayout(problem=f"{few(known)} but no training split was found")
    if len(known) > 1:
        return FolderLayout(
            problem=f"{few(known)} beside {few(others)}, but no training split was found"
        )
    name = known[0]
    inside = set(tree.entries(name).folders)
    if inside & set(others):
        return FolderLayout(
            problem=f"{name}/ holds folders of the same names as lie beside it ({few(sorted(inside & set(others)))})"
        )
    twins = [other for other in others[:20] if inside and inside & set(tree.entries(other).folders)]
    if twins:
        return FolderLayout(
            problem=f"{few([name, *twins])} hold folders of the same names, as splits do, but none is called train"
        )
    note = f"{name}/ is read as a class: it is called like a split, but lies beside {few(others)}"
    return FolderLayout(notes=(note,))


def _classes_alone(tree: Tree, root: Entries) -> FolderLayout:
    """Return the layout of a root without folders called like splits; those are looked for within
    the first of its folders.
    """
    folders = root.folders[:_SAMPLED]
    if len(folders) < 2:
        return FolderLayout()
    inside = {name: tree.entries(name).folders for name in folders}
    split = [
        name for name in folders if len({split_of(within) for within in inside[name]} - {None}) > 1
    ]
    if split:
        first, within = split[0], [name for name in inside[split[0]] if split_of(name)]
        verb = "hold" if len(split) > 1 else "holds"
        problem = f"{few(split)} {verb} folders that are called like splits ({few(within)})"
        if any(tree.entries(f"{first}/{name}").folders for name in within):
            return FolderLayout(
                problem=f"{problem}; set dataset.root to {tree.url.rstrip('/')}/{first}"
            )
        return FolderLayout(
            problem=(
                f"{problem}; splits lie above the classes: make {within[0]}/{first}/ of {first}/{within[0]}/, and so on"
            )
        )
    deeper = [name for name in folders if inside[name] and not tree.entries(name).pictures]
    if len(deeper) == len(root.folders) and all(_LOOSE.search(name) for name in deeper):
        return FolderLayout(
            problem=f"{few(deeper)} look like splits, but not by names that are known"
        )
    if not deeper:
        return FolderLayout()
    held = "; ".join(f"{name}/: {few(inside[name])}" for name in deeper[:_SHOWN])
    more = f"; and {len(deeper) - _SHOWN} more" if len(deeper) > _SHOWN else ""
    are = (
        "are read as classes, though each holds"
        if len(deeper) > 1
        else "is read as a class, though it holds"
    )
    return FolderLayout(notes=(f"{few(deeper)} {are} folders alone ({held}{more})",))


def lower(tree: Tree, folder: str) -> str:
    """Return what to do about a folder with fewer than two class folders: the root may lie one level lower."""
    inside = tree.entries(folder).folders
    deeper = [name for name in inside if tree.entries(f"{folder}/{name}".lstrip("/")).folders]
    if not deeper:
        return ""
    place = f"{folder}/{deeper[0]}".lstrip("/")
    what = f"{place}/ itself holds folders ({few(tree.entries(place).folders)})"
    if folder:
        return f"; {what}: move them up into {folder}/"
    return f"; {what}: set dataset.root to {tree.url.rstrip('/')}/{place}"
