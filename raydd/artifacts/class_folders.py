"""The folders of classes: what ours are called, and which label the folders of others have."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from raydd.core.errors import DataError
from raydd.data.catalog import CATALOG, DatasetInfo

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_RESERVED = {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10))}
_LONGEST = 120


def _safe(name: str) -> str:
    """Return a class's name as that of a folder on any file system; empty if nothing is left of it."""
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", name)).strip(" .")[:_LONGEST].strip(" .")
    while len(name.encode()) > 2 * _LONGEST:
        name = name[:-1].strip(" .")
    return f"{name}_" if name.split(".")[0].casefold() in _RESERVED else name


def class_folders(info: DatasetInfo) -> list[str]:
    """Return the folder of each class: its name, made safe and unique, also where upper and lower case are the same.

    Classes without a name, or called by their number, have that, with zeros before it: the folders then sort as the labels do.
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


def class_of_folders(names: Sequence[str], info: DatasetInfo, listed: Sequence[str] = ()) -> dict[str, int]:
    """Return the label of each class folder.

    The first rule that fits all names holds: a name of ``listed`` (what an export of ours says of its folders), of
    ``info.class_names``, of :func:`class_folders`, or a class folder that the catalog lists for the data set, is that class;
    ``new007`` and plain numbers are the number itself (SRe2L, EDC; RDED); any other names (such as WordNet ids), as many as there
    are classes, are numbered in sorted order. ``DataError`` if none fits.
    """
    for known_names in (listed, info.class_names, class_folders(info), CATALOG[info.name].classes if info.name in CATALOG else ()):
        known = {name: label for label, name in enumerate(known_names)}
        if all(name in known for name in names) and len(known) == len(known_names):
            return {name: known[name] for name in names}
    numbers = [re.fullmatch(r"(?:new)?(\d+)", name) for name in names]
    if all(numbers):
        labels = {name: int(found[1]) for name, found in zip(names, numbers) if found}
        if max(labels.values()) >= info.classes or len(set(labels.values())) != len(labels):
            top = max(labels.values())
            raise DataError(f"class folders number up to {top}, or one twice; {info.name} has classes 0 to {info.classes - 1}")
        return labels
    if len(names) != info.classes:
        shown = ", ".join(sorted(names)[:5])
        raise DataError(f"{len(names)} class folders ({shown}, …) but {info.name} has {info.classes} classes: their labels are unknown")
    return {name: label for label, name in enumerate(sorted(names))}
