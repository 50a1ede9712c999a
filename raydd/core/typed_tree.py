"""Frozen dataclasses from plain trees, checked by pydantic, and back; errors name key, value, what
is allowed, the nearest match.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from raydd.core.errors import ConfigError, nearest

T = TypeVar("T")


def build(cls: type[T], tree: Mapping[str, Any], where: str, prefix: tuple[str, ...] = ()) -> T:
    """Return a frozen dataclass from a plain tree; ``ConfigError`` with one line per mistake."""
    none_to_empty = {
        k: {} if v is None and dataclasses.is_dataclass(typing.get_type_hints(cls).get(k)) else v
        for k, v in tree.items()
    }
    try:
        values = _model(cls).model_validate(none_to_empty)
    except ValidationError as error:
        lines = _explain(cls, prefix, [dict(e) for e in error.errors(include_url=False)])
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None
    try:
        return _instance(cls, values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


def _listed(value: Any) -> Any:
    """Read ``a,b`` or a single value as a list, as one writes it on a command line."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, (int, float)) else value


def _strict_numbers(hint: Any) -> Any:
    """Return the type with every int and float refusing booleans (YAML's ``yes`` is no number)."""
    if hint in (int, float):
        return Annotated[hint, BeforeValidator(_no_bool)]
    origin = typing.get_origin(hint)
    if origin is Annotated:
        inner, *rest = typing.get_args(hint)
        return Annotated[(_strict_numbers(inner), *rest)]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_strict_numbers(a) for a in typing.get_args(hint))]  # noqa: UP007
    if origin is tuple and typing.get_args(hint)[-1] is Ellipsis:
        entry = _strict_numbers(typing.get_args(hint)[0])
        return Annotated[tuple[entry, ...], BeforeValidator(_listed)]  # type: ignore[valid-type]
    if origin is tuple:
        entries = tuple(_strict_numbers(a) for a in typing.get_args(hint))
        return tuple[entries]  # type: ignore[valid-type]
    return hint


_models: dict[tuple[type, Any], type[BaseModel]] = {}


def _model(cls: type, given: Any = None) -> type[BaseModel]:
    """Return the pydantic model with a dataclass's fields; nested dataclasses become nested models.

    ``given``: an instance whose values are the defaults, as a field of that type may have its own.
    """
    if (cls, given) not in _models:
        hints = typing.get_type_hints(cls, include_extras=True)
        members: dict[str, Any] = {}
        for f in dataclasses.fields(cls):
            hint = hints[f.name]
            default = _default(f) if given is None else getattr(given, f.name)
            if (group := _optional_group(hint)) is not None:
                members[f.name] = (_model(group) | None, default)
            elif dataclasses.is_dataclass(hint):
                nested = _model(typing.cast(type, hint), None if default is ... else default)
                members[f.name] = (
                    nested,
                    ... if default is ... and given is None else Field(default_factory=nested),
                )
            else:
                members[f.name] = (_strict_numbers(hint), default)
        config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
        _models[cls, given] = create_model(cls.__name__, __config__=config, **members)
    return _models[cls, given]


def _default(f: dataclasses.Field[Any]) -> Any:
    """Return a field's default, ``...`` if a value is required."""
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else ...


def _instance(cls: type[T], values: BaseModel) -> T:
    hints = typing.get_type_hints(cls)
    made = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        value = getattr(values, f.name)
        group: Any = _optional_group(hints[f.name]) or hints[f.name]
        made[f.name] = _instance(group, value) if isinstance(value, BaseModel) else value
    return cls(**made)


def _optional_group(hint: Any) -> Any:
    """Return the dataclass of a type that is it or null, ``None`` for other types."""
    inner = [part for part in typing.get_args(hint) if part is not type(None)]
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType) and len(inner) == 1
    return inner[0] if optional and dataclasses.is_dataclass(inner[0]) else None


def plain(value: Any) -> Any:
    """Return a configuration as plain values, every field written out; a class that is told by its
    ``name`` begins with it. The fields that a class calls ``inline`` are groups without a key of their own.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tree = _name(value)
        for f in dataclasses.fields(value):
            found = plain(getattr(value, f.name))
            tree |= found if f.name in getattr(value, "inline", ()) else {f.name: found}
        return tree
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def stated(value: Any, given: Any = None) -> Any:
    """Return :func:`plain` values without what is null by default; a null in place of another default stays.

    ``given``: the instance that is the default, as a field of that type may have its own.
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return [stated(v) for v in value] if isinstance(value, (tuple, list)) else plain(value)
    tree: dict[str, Any] = _name(value)
    for f in dataclasses.fields(value):
        found, default = (
            getattr(value, f.name),
            getattr(given, f.name) if type(given) is type(value) else _default(f),
        )
        if f.name in getattr(value, "inline", ()):
            tree |= stated(found, default)
        elif found is not None or default is not None:
            tree[f.name] = stated(found, default)
    return tree


def _name(value: Any) -> dict[str, Any]:
    """Return the name of a method, which is its class's and no field."""
    named = "name" not in {f.name for f in dataclasses.fields(value)} and isinstance(
        getattr(value, "name", None), str
    )
    return {"name": value.name} if named else {}


class _Dumper(yaml.SafeDumper):
    """YAML as people write it: lists of plain values in one line."""


def _list_node(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    nested = any(isinstance(value, (list, dict)) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=not nested)


_Dumper.add_representer(list, _list_node)


def as_yaml(tree: Mapping[str, Any]) -> str:
    """Return a plain tree as YAML, in its own order."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


_KINDS = {"tuple_type": "a list", "dict_type": "a group of keys", "model_type": "a group of keys"}
"""What pydantic calls by Python's names, as a job's author calls it."""


def _explain(cls: type, prefix: tuple[str, ...], errors: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line per key for pydantic's errors: key, value, what is allowed, the nearest match.

    A key that may be of several kinds has an error for each: told are those of the kind that was given.
    """
    found: dict[str, list[_Reason]] = {}
    for error in errors:
        key, message, end = _reason(cls, prefix, error)
        found.setdefault(key, []).append((error, message, end))
    lines = []
    for key, reasons in found.items():
        if any(other.startswith(f"{key}.") for other in found):  # a list, judged by its values
            continue
        judged = [
            reason for reason in reasons if not reason[0]["type"].endswith("_type")
        ] or reasons
        judged = _loosest(judged)
        messages = list(dict.fromkeys(message for _, message, _ in judged))
        text = " or ".join(
            [messages[0], *(message.removeprefix("Input should be ") for message in messages[1:])]
        )
        lines.append(f"{key}: {text}{judged[0][2]}")
    return lines


_Reason = tuple[dict[str, Any], str, str]
_LOWER = {"greater_than": "gt", "greater_than_equal": "ge"}
_UPPER = {"less_than": "lt", "less_than_equal": "le"}


def _loosest(reasons: list[_Reason]) -> list[_Reason]:
    """Return, of bounds on one side that a value of several kinds breaks (a whole number of at least
    1, or any above 0), the loosest: it allows what the others do.
    """
    for bounds, loosest in ((_LOWER, min), (_UPPER, max)):
        if all(error["type"] in bounds for error, _, _ in reasons):
            return [loosest(reasons, key=lambda one: one[0]["ctx"][bounds[one[0]["type"]]])]
    return reasons


def _reason(cls: type, prefix: tuple[str, ...], error: dict[str, Any]) -> tuple[str, str, str]:
    """Return the key of a pydantic error, what is wrong or allowed, and the end of its line: value
    and nearest match.
    """
    here: Any = cls
    keys: list[str] = []
    for part in error["loc"]:
        hints = typing.get_type_hints(here) if dataclasses.is_dataclass(here) else {}
        if isinstance(part, int) or part in hints or error["type"] == "extra_forbidden":
            keys.append(str(part))
        if part in hints:
            inner = _optional_group(hints[part]) or hints[part]
            here = inner if dataclasses.is_dataclass(inner) else here
    key = ".".join([*prefix, *keys])
    if error["type"] == "extra_forbidden":
        options = [f.name for f in dataclasses.fields(here)]
        return (
            key,
            f"unknown key{nearest(keys[-1], options)}; allowed: {', '.join(sorted(options))}",
            "",
        )
    if error["type"] == "missing":
        return key, "is missing", ""
    field_name = next((name for name in reversed(keys) if not name.isdigit()), "")
    hint = (
        nearest(str(error["input"]), _choices(typing.get_type_hints(here).get(field_name)))
        if error["type"] == "literal_error"
        else ""
    )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in _KINDS:
        message = f"Input should be {_KINDS[error['type']]}"
    if error["type"] == "too_long":
        message = f"Input should be a list of {error['ctx']['max_length']} values"
    return key, message, f", not {error['input']!r}{hint}"


def _choices(hint: Any) -> list[str]:
    """Return the words of the literals in a type."""
    parts = typing.get_args(hint)
    return (
        [str(part) for part in parts]
        if typing.get_origin(hint) is Literal
        else [word for part in parts for word in _choices(part)]
    )
