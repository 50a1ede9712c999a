"""Which members of a WebDataset shard make which sample, and what class they say it is of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from raydd.core.json_text import parse_json
from raydd.core.storage import Storage, join
from raydd.data.inventory import LeftOut

LABEL_KEYS = ("cls", "label", "class_id")
"""Where JSON beside a picture holds its label."""

_LARGEST = (1 << 31) - 1


@dataclass(frozen=True)
class Sample:
    """A labelled picture: bytes ``offset`` to ``offset + size`` of its shard."""

    key: str
    offset: int
    size: int
    label: int


@dataclass(frozen=True)
class Damage:
    """What makes a shard or a sample unusable: why it is left out if the job skips damage, and what
    is said if it does not.
    """

    reason: str
    name: str
    message: str


@dataclass
class Scan:
    """What one shard holds. ``formats``: how often each ending occurs, for a shard without samples."""

    samples: list[Sample] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    damage: list[Damage] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)


@dataclass
class Label:
    """What says the class of a sample: a value, or why there is none, or JSON that is read only if
    nothing else says it.
    """

    member: str
    value: int | None = None
    mistake: str = ""
    later: tuple[int, int] | None = None


@dataclass
class Members:
    """The members of a shard that samples are made of, by key; a key is a member's path without its last ending."""

    order: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)
    classes: dict[str, Label] = field(default_factory=dict)
    metadata: dict[str, Label] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)


def spoil(found: Scan, members: Members, key: str, reason: str, where: str, what: str) -> None:
    """Note why the sample of a key cannot be read; ``where``: URL of the shard."""
    members.spoilt.add(key)
    raw = members.order[key]
    found.damage.append(
        Damage(reason, f"{where.rsplit('/', 1)[-1]}: {raw}", f"{where}: sample '{raw}' {what}")
    )


def parsed(name: str, content: bytes) -> Label:
    try:
        values = parse_json(content)
    except ValueError as error:  # of its encoding, too
        return Label(name, mistake=str(error))
    found = (
        next((values[key] for key in LABEL_KEYS if values.get(key) is not None), None)
        if isinstance(values, dict)
        else None
    )
    return Label(name) if found is None else number(name, found)


def number(name: str, value: Any) -> Label:
    """Return the label that a text or a JSON value is: a whole number, or why it is none."""
    text = value.strip().strip("\0").strip() if isinstance(value, str) else value
    if isinstance(text, str) and re.fullmatch(r"[+-]?\d+(\.0*)?", text):
        return Label(name, value=int(text.split(".")[0]))
    if isinstance(text, (bool, int)) or (isinstance(text, float) and text.is_integer()):
        return Label(name, value=int(text))
    if isinstance(text, str) and re.search(r"[^\W\d_]", text) and len(text) < 200:
        way = (
            "number the classes from 0, or sort the pictures into folders named after them "
            "(dataset.name=image_folder)"
        )
        return Label(name, mistake=f"'{text[:40]}' is a name; {way}")
    return Label(name, mistake=f"{str(text)[:40]!r} is no whole number")


def stem_of(key: str) -> str:
    """Return a key up to the first dot of its name: what WebDataset calls the key."""
    folder, slash, base = key.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _shorter(key: str) -> Iterator[str]:
    """Yield what a key is without its last dotted part, without its last two, …"""
    folder, slash, base = key.rpartition("/")
    while "." in base:
        base = base.rpartition(".")[0]
        yield f"{folder}{slash}{base}"


def match(files: Storage, shard: str, found: Scan, members: Members) -> None:
    """Make samples of the members: first those of equal keys, then those of one picture and one
    label whose keys begin alike.
    """
    labels = dict.fromkeys((*members.classes, *members.metadata))
    paired = {
        key: key
        for key in labels
        if key in members.pictures and _label(files, shard, members, key) is not None
    }
    whole = {stem_of(key) for key in paired}
    rest: dict[str, tuple[list[str], list[str]]] = {}
    for place, keys in enumerate(([*members.pictures], [*labels])):
        for key in keys:
            if key not in paired and (stem := stem_of(key)) not in whole:
                rest.setdefault(stem, ([], []))[place].append(key)
    for stem, (pictures, loose) in rest.items():
        said = [
            key
            for key in loose
            if key not in members.pictures and _label(files, shard, members, key) is not None
        ]
        near = [key for key in pictures if any(_belong(key, label, stem) for label in said)]
        if len(near) == len(said) == 1:
            paired[near[0]] = said[0]
        elif near:
            kind, names = ("images", near) if len(near) > 1 else ("labels", said)
            members.spoilt.update((*near, *said))
            what = f"{join(files.url, shard)}: sample '{stem}' has {len(names)} {kind}: {', '.join(names[:3])}"
            found.damage.append(Damage(f"sample with several {kind}", f"{shard}: {stem}", what))
    _collect(files, shard, found, members, paired)
    _count(found, shard, members, paired)


def _belong(picture: str, label: str, stem: str) -> bool:
    """Return whether two keys of one stem are of one sample: one goes on where the other ends, or
    they differ in words, not in numbers.
    """
    if picture.startswith(f"{label}.") or label.startswith(f"{picture}."):
        return True
    return not re.search(r"\d", picture[len(stem) :] + label[len(stem) :])


def _label(files: Storage, shard: str, members: Members, key: str) -> Label | None:
    """Return what says the class of a key: its ``.cls``, else its JSON if that holds one; ``None`` if nothing does."""
    if key in members.classes:
        return members.classes[key]
    label = members.metadata.get(key)
    if label is not None and label.later is not None:
        start, size = label.later
        label = members.metadata[key] = parsed(label.member, files.get(shard, start, start + size))
    return label if label is not None and (label.value is not None or label.mistake) else None


def _collect(
    files: Storage, shard: str, found: Scan, members: Members, paired: dict[str, str]
) -> None:
    where = join(files.url, shard)
    for key, raw in members.order.items():
        label = (
            _label(files, shard, members, paired[key])
            if key in paired and key not in members.spoilt
            else None
        )
        if label is None:
            continue
        if label.value is None:
            what = f"{where}: '{label.member}' holds no label: {label.mistake}"
            found.damage.append(Damage("sample with an unreadable label", f"{shard}: {raw}", what))
        elif not 0 <= label.value <= _LARGEST:
            what = (
                f"{where}: sample '{raw}' has the label {label.value}; classes are numbered from 0"
            )
            found.damage.append(Damage("sample with an impossible label", f"{shard}: {raw}", what))
        else:
            found.samples.append(Sample(raw, *members.pictures[key], label.value))


def _count(found: Scan, shard: str, members: Members, paired: dict[str, str]) -> None:
    """Count the pictures without a label, and the labels without a picture."""
    used, whole = {*paired.values(), *members.pictures}, {stem_of(key) for key in paired}
    for key in members.pictures:
        if key not in paired and key not in members.spoilt:
            further = any(shorter in paired for shorter in _shorter(key))
            found.left_out.add(
                "further picture of a sample" if further else "picture without a label",
                f"{shard}: {members.order[key]}",
            )
    for key in dict.fromkeys((*members.classes, *members.metadata)):
        part = any(shorter in paired for shorter in _shorter(key)) or any(
            stem in members.spoilt for stem in (key, stem_of(key))
        )
        says = key in members.classes or members.metadata[key].value is not None
        if key not in used and not part and says:
            other = members.beside.get(stem_of(key)) if stem_of(key) not in whole else None
            reason = (
                f"labelled sample of format {other}, which is no picture"
                if other
                else "label without a picture"
            )
            found.left_out.add(reason, f"{shard}: {members.order[key]}")
