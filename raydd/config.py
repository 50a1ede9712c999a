"""The job schema: YAML and overrides in, one typed tree out, or an error that names key, value and what is allowed."""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import annotated_types
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from raydd.core.errors import ConfigError, nearest, unknown
from raydd.core.storage import absolute, check_url, protocol
from raydd.core.units import Numerics
from raydd.data.config import DatasetConfig
from raydd.evaluation.plan import EvaluationConfig, check_baseline, rivals
from raydd.methods import METHODS, Method

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where the work runs; changes no byte of any result.

    ``workers``: Ray Train workers, a number or ``[min, max]`` (elastic); 0 runs in this process without Ray.
    ``evaluators``: Ray tasks that evaluate snapshots beside the workers; 0 leaves that to the workers.
    ``gpus_per_worker``, ``cpus_per_worker``: what Ray reserves for each. ``checkpoint_every``: seconds.
    """

    workers: Annotated[int, annotated_types.Ge(0)] | tuple[Annotated[int, annotated_types.Ge(1)], Annotated[int, annotated_types.Ge(1)]] = 2
    evaluators: Annotated[int, annotated_types.Ge(0)] = 0
    gpus_per_worker: Annotated[float, annotated_types.Ge(0)] = 0.0
    cpus_per_worker: Annotated[float, annotated_types.Gt(0)] = 1.0
    checkpoint_every: Annotated[float, annotated_types.Gt(0)] = 60.0

    def __post_init__(self) -> None:
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ConfigError(f"compute.workers: [{self.workers[0]}, {self.workers[1]}]: the minimum is above the maximum")
        for name in ("evaluators", "gpus_per_worker"):
            if self.workers == 0 and getattr(self, name):
                raise ConfigError(f"compute.{name}={getattr(self, name):g} has no effect with compute.workers=0 (no Ray)")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow. ``uri``: server or database (default: ``MLFLOW_TRACKING_URI``, else a file in ``runs/``); ``none``: no tracking."""

    uri: str | None = None
    experiment: str = "raydd"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job: what ``python -m raydd.distill`` runs. ``output`` and ``store`` are absolute."""

    name: str
    seeds: tuple[int, ...]
    dataset: DatasetConfig
    ipc: int
    method: Method
    evaluation: EvaluationConfig
    numerics: Numerics
    output: str
    store: str
    compute: ComputeConfig
    tracking: TrackingConfig

    def resolved(self) -> dict[str, Any]:
        """Return the whole tree as plain values, every default written out, as ``job.yaml`` keeps it."""
        return _plain(self)

    def to_yaml(self) -> str:
        """Return :meth:`resolved` as YAML."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """The top keys of a job file."""

    name: str = "job"
    seed: Annotated[int, annotated_types.Ge(0)] | None = None
    seeds: tuple[Annotated[int, annotated_types.Ge(0)], ...] | None = None
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    ipc: Annotated[int, annotated_types.Ge(1)] = 10
    method: dict[str, Any]
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    numerics: Numerics = field(default_factory=Numerics)
    output: str | None = None
    store: str = "runs/store"
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """What ``raydd evaluate`` runs besides the set itself; ``store`` is absolute, and so is ``output`` (default: by the set).

    ``tracking.uri``: default ``MLFLOW_TRACKING_URI``, else ``none``.
    """

    seed: Annotated[int, annotated_types.Ge(0)] = 0
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    numerics: Numerics = field(default_factory=Numerics)
    output: str | None = None
    store: str = "runs/store"
    compute: ComputeConfig = field(default_factory=lambda: ComputeConfig(workers=0))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def resolved(self) -> dict[str, Any]:
        """Return the whole tree as plain values."""
        return _plain(self)


class _NoDuplicates(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; a repeated key is an error that names its line."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key '{key}' stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_job(path: str | None, overrides: Sequence[str] = ()) -> Job:
    """Return the job of a YAML file with ``key.sub=value`` overrides applied; ``ConfigError`` listing all that is wrong."""
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read(path)
        stem = os.path.splitext(os.path.basename(path))[0]
        tree.setdefault("name", stem)
    for override in overrides:
        _apply(tree, override)
    return parse_job(tree, path or "command line")


def load_evaluation(tree: dict[str, Any], overrides: Sequence[str] = ()) -> EvaluationJob:
    """Return the evaluation that a plain tree with overrides describes; ``ConfigError`` listing all that is wrong."""
    for override in overrides:
        _apply(tree, override)
    if "dataset" not in tree:
        raise ConfigError("which data set is it to be tested on? Give --dataset NAME; a foreign set does not say")
    tree.setdefault("compute", {}).setdefault("workers", 0)
    job = build(EvaluationJob, tree, "evaluate")
    output = absolute(job.output) if job.output is not None else None
    evaluation = _with_baselines(job.evaluation, "evaluate")
    _check_tracking(job.tracking, "evaluate")
    return dataclasses.replace(job, evaluation=evaluation, dataset=job.dataset.absolute(), store=absolute(job.store), output=output)


def parse_job(tree: Mapping[str, Any], where: str = "job") -> Job:
    """Return the job that a plain tree describes; see :func:`load_job`."""
    if "method" in tree and isinstance(tree["method"], str):
        tree = {**tree, "method": {"name": tree["method"]}}
    mistakes: list[str] = []
    method, top, evaluation = _method(tree, where, mistakes), None, None
    try:
        top = build(_Tree, tree, where)
        evaluation = _with_baselines(top.evaluation, where)
    except ConfigError as error:
        mistakes.insert(0, str(error))
    if top is None or method is None or evaluation is None or mistakes:
        raise ConfigError("\n".join(mistakes))
    if not re.fullmatch(r"[\w.+-]{1,100}", top.name):
        raise ConfigError(f"{where}: name: '{top.name}' may hold letters, digits, '.', '_', '+' and '-' only (at most 100)")
    if top.seed is not None and top.seeds is not None:
        raise ConfigError(f"{where}: give seed or seeds, not both")
    seeds = top.seeds if top.seeds is not None else (top.seed or 0,)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: seeds: {list(seeds)} must hold at least one seed and none twice")
    output = top.output or f"runs/{top.name}"
    for key, url in (("output", output), ("store", top.store)):
        try:
            check_url(url, key)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if protocol(url) in {"http", "https"}:
            raise ConfigError(f"{where}: {key}: {protocol(url)} URLs cannot be written")
    _check_tracking(top.tracking, where)
    output, store = absolute(output), absolute(top.store)
    if output == store:
        raise ConfigError(f"{where}: output and store must be different places, both are {output}")
    return Job(
        name=top.name,
        seeds=tuple(seeds),
        dataset=top.dataset.absolute(),
        ipc=top.ipc,
        method=method,
        evaluation=evaluation,
        numerics=top.numerics,
        output=output,
        store=store,
        compute=top.compute,
        tracking=top.tracking,
    )


def _check_tracking(tracking: TrackingConfig, where: str) -> None:
    """Raise ``ConfigError`` for credentials in the address."""
    if re.search(r"://[^/@]*@", tracking.uri or ""):
        variables = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise ConfigError(f"{where}: tracking.uri: credentials belong in the environment ({variables})")


def _method(tree: Mapping[str, Any], where: str, mistakes: list[str]) -> Method | None:
    """Return the method that ``tree`` names, or add to ``mistakes`` what is wrong with it."""
    if not isinstance(tree.get("method"), Mapping):  # reported with the other top keys
        return None
    try:
        return _method_of(tree["method"], where, ("method",))
    except ConfigError as error:
        mistakes.append(str(error))
        return None


def _method_of(fields: Mapping[str, Any], where: str, prefix: tuple[str, ...]) -> Method:
    """Return the method that a mapping of ``name`` and settings describes; ``prefix``: the keys above it."""
    name, key = fields.get("name"), f"{where}: {'.'.join(prefix)}.name"
    if not isinstance(name, str):
        found = "is missing" if name is None else f"is {name!r}"
        raise ConfigError(f"{key} {found}; allowed: {', '.join(METHODS.names())}")
    if name not in METHODS:
        raise ConfigError(f"{key}: {unknown('method', name, METHODS.names())}")
    return build(METHODS.get(name), {k: v for k, v in fields.items() if k != "name"}, where, prefix=prefix)


def method_from(fields: Mapping[str, Any], where: str) -> Method:
    """Return the method that a published recipe's ``method`` describes; ``ConfigError`` for one of another version."""
    return _method_of(fields, where, ("method",))


def _with_baselines(config: EvaluationConfig, where: str) -> EvaluationConfig:
    """Return the evaluation with methods in place of the mappings among its baselines; ``ConfigError`` for what is none."""
    found: list[str | Method] = []
    for place, baseline in enumerate(config.baselines):
        if isinstance(baseline, Mapping):
            key = ("evaluation", "baselines", str(place))
            if isinstance(baseline.get("name"), str):
                check_baseline(baseline["name"], f"{where}: {'.'.join(key)}.name")
            if baseline.get("name") == "whole":
                raise ConfigError(f"{where}: {'.'.join(key)}: 'whole' is no method and has no settings here; write its name alone")
            found.append(_method_of(baseline, where, key))
        elif isinstance(baseline, str):
            found.append(baseline)
        else:
            wanted = "a method's name or a mapping of its name and settings"
            raise ConfigError(f"{where}: evaluation.baselines.{place}: Input should be {wanted}, not {baseline!r}")
    config = dataclasses.replace(config, baselines=tuple(found))
    try:
        rivals(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return config


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            tree = yaml.load(file, Loader=_NoDuplicates)  # noqa: S506 - a subclass of the safe loader
    except FileNotFoundError as error:
        folder = os.path.dirname(path) or "."
        there = [os.path.join(folder, f) for f in os.listdir(folder) if f.endswith((".yaml", ".yml"))] if os.path.isdir(folder) else []
        raise ConfigError(f"{path}: no such file{nearest(path, there)}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a job is a mapping of keys to values, this is a {type(tree).__name__}")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set ``a.b=value`` in the tree; the value is read as YAML."""
    key, sign, text = override.partition("=")
    parts = key.strip().split(".")
    if not sign or not all(parts):
        raise ConfigError(f"override '{override}': write key.sub=value")
    try:
        value = yaml.load(text, Loader=_NoDuplicates)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not YAML: {' '.join(str(error).split())}") from error
    if parts[0] in {"seed", "seeds"}:
        tree.pop("seeds" if parts[0] == "seed" else "seed", None)
    for depth, part in enumerate(parts[:-1]):
        below = tree.setdefault(part, {})
        if isinstance(below, str) and part == "method":
            below = tree[part] = {"name": below}
        if below is None:
            below = tree[part] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"override '{override}': {'.'.join(parts[: depth + 1])} is the value {below!r}, not a group of keys")
        tree = below
    tree[parts[-1]] = value


# -- typed trees from frozen dataclasses --------------------------------------------------------------------------------


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
        return Annotated[tuple[_strict_numbers(typing.get_args(hint)[0]), ...], BeforeValidator(_listed)]  # type: ignore[misc]
    if origin is tuple:
        return tuple[tuple(_strict_numbers(a) if a is not Ellipsis else a for a in typing.get_args(hint))]  # type: ignore[misc]
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
            if dataclasses.is_dataclass(hint):
                nested = _model(typing.cast(type, hint), None if default is ... else default)
                members[f.name] = (nested, ... if default is ... and given is None else Field(default_factory=nested))
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


def build(cls: type[T], tree: Mapping[str, Any], where: str, prefix: tuple[str, ...] = ()) -> T:
    """Return a frozen dataclass from a plain tree; ``ConfigError`` with one line per mistake."""
    none_to_empty = {k: {} if v is None and dataclasses.is_dataclass(typing.get_type_hints(cls).get(k)) else v for k, v in tree.items()}
    try:
        values = _model(cls).model_validate(none_to_empty)
    except ValidationError as error:
        lines = _explain(cls, prefix, [dict(e) for e in error.errors(include_url=False)])
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None
    try:
        return _instance(cls, values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _instance(cls: type[T], values: BaseModel) -> T:
    hints = typing.get_type_hints(cls)
    made = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        value = getattr(values, f.name)
        made[f.name] = _instance(hints[f.name], value) if dataclasses.is_dataclass(hints[f.name]) else value
    return cls(**made)


_KINDS = {"tuple_type": "a list", "dict_type": "a group of keys", "model_type": "a group of keys"}
"""What pydantic calls by Python's names, as a job's author calls it."""


def _explain(cls: type, prefix: tuple[str, ...], errors: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line per key for pydantic's errors: key, value, what is allowed, the nearest match.

    A key that may be of several kinds has an error for each: told are those of the kind that was given.
    """
    found: dict[str, list[tuple[dict[str, Any], str, str]]] = {}
    for error in errors:
        key, message, end = _reason(cls, prefix, error)
        found.setdefault(key, []).append((error, message, end))
    lines = []
    for key, reasons in found.items():
        if any(other.startswith(f"{key}.") for other in found):  # a list, judged by its values
            continue
        judged = [reason for reason in reasons if not reason[0]["type"].endswith("_type")] or reasons
        messages = list(dict.fromkeys(message for _, message, _ in judged))
        text = " or ".join([messages[0], *(message.removeprefix("Input should be ") for message in messages[1:])])
        lines.append(f"{key}: {text}{judged[0][2]}")
    return lines


def _reason(cls: type, prefix: tuple[str, ...], error: dict[str, Any]) -> tuple[str, str, str]:
    """Return the key of a pydantic error, what is wrong or allowed, and the end of its line: value and nearest match."""
    here: Any = cls
    keys: list[str] = []
    for part in error["loc"]:
        hints = typing.get_type_hints(here) if dataclasses.is_dataclass(here) else {}
        if isinstance(part, int) or part in hints or error["type"] == "extra_forbidden":
            keys.append(str(part))
        if part in hints:
            inner = hints[part]
            here = inner if dataclasses.is_dataclass(inner) else here
    key = ".".join([*prefix, *keys])
    if error["type"] == "extra_forbidden":
        options = [f.name for f in dataclasses.fields(here)]
        return key, f"unknown key{nearest(keys[-1], options)}; allowed: {', '.join(sorted(options))}", ""
    if error["type"] == "missing":
        extra = f"; allowed names: {', '.join(METHODS.names())}" if key == "method" else ""
        return key, f"is missing{extra}", ""
    field_name = next((name for name in reversed(keys) if not name.isdigit()), "")
    hint = nearest(str(error["input"]), _choices(typing.get_type_hints(here).get(field_name))) if error["type"] == "literal_error" else ""
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in _KINDS:
        message = f"Input should be {_KINDS[error['type']]}"
    if error["type"] == "too_long":
        message = f"Input should be a list of {error['ctx']['max_length']} values"
    return key, message, f", not {error['input']!r}{hint}"


def _choices(hint: Any) -> list[str]:
    """Return the words of the literals in a type."""
    parts = typing.get_args(hint)
    return [str(part) for part in parts] if typing.get_origin(hint) is Literal else [word for part in parts for word in _choices(part)]


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        return {"name": value.name, **{f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value
