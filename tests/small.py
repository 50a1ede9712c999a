"""Methods in settings that take a second, and other values for any of their fields: both follow
from names and types alone.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal

from raydd.core.errors import ConfigError
from raydd.core.typed_tree import build
from raydd.core.units import Ref, unit_key
from raydd.methods import METHODS, Method
from raydd.runtime.estimate import stages_of

SMALL: dict[str, Any] = {
    "network": "convnet1_w8",
    "networks": ("convnet1_w8_batchnorm", "convnet1_w4_batchnorm"),
    "teacher": "convnet1_w8",
    "teachers": {"weights": "train", "epochs": 2, "augmentation": "none"},
    "labels": {"batch": 5, "epochs": 2, "shuffle": 1},
    "statistics": {"batch": 256, "patch": 4, "slices": 2},
    "init": {"kind": "real", "pool": 3},
    "queue": {
        "net_num": 3,
        "net_generate_interval": 2,
        "model_train_steps": 2,
        "trained_bs": 16,
        "lr_net": 0.05,
    },
    "meter_reset_period": 4,
    "candidates": 20,
    "group_size": 6,
    "groups_per_unit": 2,
    "jitter": (0, 2),
    "iterations": 6,
    "updates": 6,
    "epochs": 2,
    "batch": 64,
    "batch_real": 8,
    "classes_per_unit": 4,
    "outer_loop": 2,
    "inner_loop": 2,
    "window": 3,
    "totwindow": 8,
    "generator": {"width": 4, "dim_z": 4, "rounds": 4, "batch": 8, "standing": 2},
    "inversion_steps": 5,
    "inversion_block": 1,
    "group": 2,
    "batch_z": 1,
}
"""Values for the fields of methods, by name; a field that is not here keeps its default."""

OTHER_TEXTS: dict[str, Any] = {
    "network": "convnet1_w4",
    "teacher": "convnet1_w4",
    "dsa": "crop_rotate",
    "inner_momentum": 0.5,
    "factor": 1,
    "teachers": {"epochs": 3},
    "statistics": {"patch": 2},
    "init": {"pool": 4},
    "compat": {"ema_carry": "chain", "leak_image_grad": True, "before_last": True},
    "queue": {"storage": "bf16"},
    "plateau": {"every": 1},
    "syn_strategy": "flip",
    "real_strategy": "flip",
    "poster": {"windows": (20, 8)},
    "batch_windows": 7,
    "batch_per_class": 1,
    "classes_per_batch": 5,
    "label_map": {"rule": "published"},
    "generator": {"width": 5},
    "trained_networks": {"runs": 2},
}
"""Other values for fields that hold any text, or few of a type's values, and inner values of those
that hold a group of fields.
"""

TOGETHER: dict[str, dict[str, Any]] = {
    "pad": {"crop": None},
    "order": {"groups_per_unit": 1},
    "group_size": {"groups_per_unit": 1},
    "local_images": {"category_aware": "local"},
    "flatness_alpha": {"flatness_weight": 0.5},
    "flatness_tau": {"flatness_weight": 0.5},
    "dd_tau": {"dd_weight": 0.5},
    "milestone": {"crop_curriculum": "cosine"},
    "plateau": {"placement": "advance"},
    "label_map": {"learn_labels": True},
    "label_lr_scale": {"learn_labels": True},
}
"""Fields without which another value of a field is excluded or has no effect, and what they have to be with it."""


def small_fields(name: str) -> dict[str, Any]:
    """Return the fields of a method that have a small value."""
    hints = typing.get_type_hints(METHODS.get(name))
    return {
        key: value
        for key, value in SMALL.items()
        if key in hints and isinstance(value, dict) == dataclasses.is_dataclass(hints[key])
    }


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
    fields = {f.name: _as_tree(getattr(method, f.name)) for f in dataclasses.fields(method)}
    value = fields[field]
    for other in _others(field, value, typing.get_type_hints(type(method))[field]):
        try:
            made = build(type(method), fields | {field: other, **TOGETHER.get(field, {})}, "other")
        except ConfigError:
            continue
        if getattr(made, field) != getattr(method, field):
            return made
    raise AssertionError(
        f"no other value is known for {method.name}.{field} = {value!r}: add one to OTHER_TEXTS in {__file__}"
    )


def _as_tree(value: Any) -> Any:
    return (
        dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else value
    )


def _others(field: str, value: Any, hint: Any) -> Iterator[Any]:
    if field in OTHER_TEXTS:
        other = OTHER_TEXTS[field]
        yield (
            {**value, **{key: of for key, of in other.items() if key in value}}
            if isinstance(value, dict)
            else other
        )
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is Literal:
            yield from (choice for choice in typing.get_args(part) if choice != value)
        if typing.get_origin(part) is tuple and isinstance(value, tuple):
            yield from ((*value, *value), value[:1])
            if all(isinstance(item, (int, float)) for item in value):
                yield tuple(item / 2 for item in value)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value * 2, value / 2, value - 1)
