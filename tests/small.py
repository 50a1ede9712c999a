"""Methods in settings that take a second, and other values for any of their fields: both follow from names and types alone."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal

from raydd.config import build
from raydd.core.errors import ConfigError
from raydd.core.units import Ref, unit_key
from raydd.methods import METHODS, Method
from raydd.runtime.estimate import stages_of

SMALL: dict[str, Any] = {
    "network": "convnet1_w8",
    "networks": ("convnet1_w8",),
    "teacher": "convnet1_w8",
    "teachers": ("convnet1_w8",),
    "iterations": 6,
    "updates": 6,
    "epochs": 2,
    "batch": 64,
    "batch_real": 8,
    "classes_per_unit": 4,
}
"""Values for the fields of methods, by name; a field that is not here keeps its default."""

OTHER_TEXTS: dict[str, str] = {"network": "convnet1_w4", "teacher": "convnet1_w4", "dsa": "crop_rotate"}
"""Other values for fields that hold any text."""


def small_fields(name: str) -> dict[str, Any]:
    """Return the fields of a method that have a small value."""
    return {f.name: SMALL[f.name] for f in dataclasses.fields(METHODS.get(name)) if f.name in SMALL}


def small_method(name: str, **fields: Any) -> Method:
    """Return a method in its small settings."""
    return build(METHODS.get(name), {**small_fields(name), **fields}, "small", prefix=("method",))


def small_overrides(name: str) -> list[str]:
    """Return the same as overrides of a job."""
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in small_fields(name).items()}
    return [f"method.name={name}", *(f"method.{key}={value}" for key, value in listed.items())]


def all_keys(refs: typing.Iterable[Ref]) -> set[str]:
    """Return the keys of every unit behind some outputs."""
    return {unit_key(stage, unit) for stage, units, _ in stages_of(list(refs)) for unit in units}


def changed(method: Method, field: str) -> Method:
    """Return the method with another value of a field, chosen by the field's type."""
    value = getattr(method, field)
    fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    for other in _others(field, value, typing.get_type_hints(type(method))[field]):
        try:
            made = build(type(method), fields | {field: other}, "other")
        except ConfigError:
            continue
        if made != method:
            return made
    raise AssertionError(f"no other value is known for {method.name}.{field} = {value!r}: add one to OTHER_TEXTS in {__file__}")


def _others(field: str, value: Any, hint: Any) -> Iterator[Any]:
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is Literal:
            yield from (choice for choice in typing.get_args(part) if choice != value)
        if typing.get_origin(part) is tuple and isinstance(value, tuple):
            yield from ((*value, *value), value[:1])
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value * 2, value / 2, value - 1)
    if field in OTHER_TEXTS:
        yield OTHER_TEXTS[field]
