"""The folders of classes: what ours are called, and which label the folders of others have."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from raydd.core.errors import DataError
from raydd.data.catalog import CATALOG, DatasetInfo

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10)),
}
_LONGEST = 120
Tell = Callable[[str], None]


def _safe(name: str) -> str:
    """Return a class's name as that of a folder on any file system; empty if nothing is left of it."""
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", name)).strip(" .")[:_LONGEST].strip(" .")
    while len(name.encode()) > 2 * _LONGEST:
        name = name[:-1].strip(" .")
    return f"{name}_" if name.split(".")[0].casefold() in _RESERVED else name


def class_folders(info: DatasetInfo) -> list[str]:
    """Return the folder of each class: its name, made safe and unique, also where upper and lower case are the same.

    Classes without a name, or called by their number, have that, with zeros before it: the folders
    then sort as the labels do.
    """
    digits = max(3, len(str(info.classes - 1)))
    numbers = [f"{label:0{digits}d}" for label in range(info.classes)]
    names = info.class_names
    if len(names) != info.classes or list(names) == [str(label) for label in range(info.classes)]:
        return numbers
    safe = [_safe(name) or number for name, number in zip(names, numbers)]
    wanted = {name.casefold() for name in safe}
    taken: set[str] = set()
    found = []
    for label, name in enumerate(safe):
        made, tries = name, 0
        while made.casefold() in taken or (tries and made.casefold() in wanted):
            made, tries = f"{name} ({label}{'_' * tries})", tries + 1
        taken.add(made.casefold())
        found.append(made)
    return found


def class_of_folders(
    names: Sequence[str], info: DatasetInfo, listed: Sequence[str] = (), tell: Tell | None = None
) -> dict[str, int]:
    """Return the label of each class folder.

    The first rule that fits all names holds: a name of ``listed`` (what an export of ours says of
    its folders), of ``info.class_names``, of :func:`class_folders`, or a class folder that the
    catalog lists for the data set, is that class, upper and lower case apart where that is clear;
    ``new007`` and plain numbers are the number itself (SRe2L, EDC; RDED), and so is the one number
    in each name where these are all from 0 on (``class_7``); any other names (such as WordNet ids),
    as many as there are classes, are numbered in sorted order, which ``tell`` gets as a guess.
    ``DataError`` if none fits, or if a rule fits some names only.
    """
    if listed and not set(names) <= set(listed):
        strange, absent = (
            sorted(set(names) - set(listed)),
            [name for name in listed if name not in names],
        )
        raise DataError(
            f"class folders that dataset.json does not list: {_few(strange)}"
            + (f"; not there: {_few(absent)}" * bool(absent))
        )
    rules = [
        listed,
        info.class_names,
        class_folders(info),
        CATALOG[info.name].classes if info.name in CATALOG else (),
    ]
    for known_names in rules:
        known = {name: label for label, name in enumerate(known_names)}
        if all(name in known for name in names) and len(known) == len(known_names):
            return {name: known[name] for name in names}
        folded = {name.casefold(): label for name, label in known.items()}
        lower = {name.casefold() for name in names}
        if len(lower) == len(names) and lower <= set(folded) and len(folded) == len(known_names):
            return {name: folded[name.casefold()] for name in names}
    numbers = [re.fullmatch(r"(?:new)?(\d+)", name) for name in names]
    if all(numbers):
        labels = {name: int(found[1]) for name, found in zip(names, numbers) if found}
        if max(labels.values()) >= info.classes or len(set(labels.values())) != len(labels):
            top = max(labels.values())
            raise DataError(
                f"class folders number up to {top}, or one twice; {info.name} has classes 0 to {info.classes - 1}"
            )
        return labels
    _check_mixed(
        names,
        [found is not None for found in numbers],
        {name for rule in rules for name in rule},
        info,
    )
    if len(names) != info.classes:
        shown = f"{len(names)} class folders ({_few(sorted(names))})"
        raise DataError(
            f"{shown} but {info.name} has {info.classes} classes: their labels are unknown"
        )
    held = _one_number_each(names)
    if sorted(held.values()) == list(range(info.classes)):
        return held
    if _ordering(held, info.classes):
        shown = f"class folders hold numbers ({_few(sorted(names))})"
        raise DataError(
            f"{shown}, but not all from 0 to {info.classes - 1}: their labels are unknown"
        )
    if tell is not None:
        tell(
            f"classes: {_few(sorted(names), 3)} are 0 to {info.classes - 1}, in sorted order (guessed: no name of a"
            f" class of {info.name})"
        )
    return {name: label for label, name in enumerate(sorted(names))}


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _check_mixed(
    names: Sequence[str], numbered: Sequence[bool], known: set[str], info: DatasetInfo
) -> None:
    """Raise ``DataError`` naming those that are no classes, if some names are classes, or numbers,
    and others are not.
    """
    folded = {name.casefold() for name in known}
    what = f"names of classes of {info.name}"
    strange = sorted(name for name in names if name.casefold() not in folded)
    if len(strange) == len(names):
        what, strange = (
            "numbers",
            sorted(name for name, number in zip(names, numbered) if not number),
        )
    if not strange:
        raise DataError(
            f"class folders are {what}, but of several kinds ({_few(sorted(names))}): name them all by the same"
        )
    if len(strange) < len(names):
        raise DataError(
            f"{len(names) - len(strange)} of {len(names)} class folders are {what}, but these are not:"
            f" {_few(strange, 10)}"
        )


def _one_number_each(names: Sequence[str]) -> dict[str, int]:
    """Return the number in each name, nothing unless every name holds exactly one."""
    found = {name: re.findall(r"[0-9]+", name) for name in names}
    return (
        {name: int(numbers[0]) for name, numbers in found.items()}
        if all(len(n) == 1 for n in found.values())
        else {}
    )


def _ordering(held: Mapping[str, int], classes: int) -> bool:
    """Return whether the numbers in names seem to order the classes otherwise than sorting does;
    those of WordNet ids do not.
    """
    if not held or len(set(held.values())) != len(held):
        return False
    if sorted(held.values()) == list(range(1, classes + 1)):
        return True
    alike = len({re.sub(r"[0-9]+", "", name) for name in held}) == 1 or all(
        name[0].isdigit() for name in held
    )
    return alike and sorted(held) != sorted(held, key=held.__getitem__)
