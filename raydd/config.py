"""The job schema: YAML and overrides in, one typed tree out, or an error that names key, value and what is allowed."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import annotated_types

from raydd.core import ipc_settings
from raydd.core.errors import ConfigError, unknown
from raydd.core.storage import absolute, check_url
from raydd.core.typed_tree import as_yaml, build, plain, stated
from raydd.core.units import Numerics
from raydd.core.yaml_tree import apply_override, read_tree, settled
from raydd.data.catalog import CATALOG
from raydd.data.config import DatasetConfig
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.images_config import ImagesConfig, check_auto
from raydd.evaluation.rivals import Rival, RivalKeys, Tiling, check_baseline, rivals
from raydd.methods import METHODS, Method
from raydd.methods.method import DEFAULT_PROTOCOL, check_ipc

WAIT_SECONDS, DEFAULT_IPC = 600.0, 10


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where the work runs; changes no byte of any result.

    ``workers``: Ray Train workers, a number or ``[min, max]`` (elastic); 0 runs in this process without Ray.
    ``evaluators``: Ray tasks that evaluate snapshots beside the workers; 0 leaves that to the workers.
    ``gpus_per_worker``, ``cpus_per_worker``: what Ray reserves for each. ``checkpoint_every``: seconds.
    ``wait``: seconds that a cluster which is busy, or may grow, is given to have room for the least of workers.
    ``same_device``: outputs in the store that another kind of device made are made anew; else they are used, and named.
    ``longest``: days above which ``--dry-run`` warns of the time that it estimates.
    """

    workers: (
        Annotated[int, annotated_types.Ge(0)]
        | tuple[Annotated[int, annotated_types.Ge(1)], Annotated[int, annotated_types.Ge(1)]]
    ) = 2
    evaluators: Annotated[int, annotated_types.Ge(0)] = 0
    gpus_per_worker: Annotated[float, annotated_types.Ge(0)] = 0.0
    cpus_per_worker: Annotated[float, annotated_types.Gt(0)] = 1.0
    checkpoint_every: Annotated[float, annotated_types.Gt(0)] = 60.0
    wait: Annotated[float, annotated_types.Ge(0)] = WAIT_SECONDS
    same_device: bool = False
    longest: Annotated[float, annotated_types.Gt(0)] = 7.0

    def __post_init__(self) -> None:
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ConfigError(
                f"compute.workers: [{self.workers[0]}, {self.workers[1]}]: the minimum is above the maximum"
            )
        for name in ("evaluators", "gpus_per_worker"):
            if self.workers == 0 and getattr(self, name):
                raise ConfigError(
                    f"compute.{name}={getattr(self, name):g} has no effect with compute.workers=0 (no Ray)"
                )
        if self.workers == 0 and self.wait != WAIT_SECONDS:
            raise ConfigError(
                f"compute.wait={self.wait:g} has no effect with compute.workers=0 (no Ray)"
            )
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ConfigError(
                f"compute.gpus_per_worker={self.gpus_per_worker:g}: allowed are whole numbers, and parts of one GPU"
                " (0.5)"
            )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow. ``uri``: server or database (default: ``MLFLOW_TRACKING_URI``, else a file in
    ``runs/``); ``none``: no tracking.
    """

    uri: str | None = None
    experiment: str = "raydd"

    def __post_init__(self) -> None:
        if re.search(r"://[^/@]*@", self.uri or ""):
            variables = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            raise ConfigError(f"tracking.uri: credentials belong in the environment ({variables})")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job: what ``python -m raydd.distill`` runs. ``output`` and ``store`` are absolute."""

    name: str
    seeds: tuple[int, ...]
    dataset: DatasetConfig
    ipc: float | Literal["auto"]
    method: Method
    images: ImagesConfig | None = None
    evaluation: EvaluationConfig
    numerics: Numerics
    output: str
    store: str
    compute: ComputeConfig
    tracking: TrackingConfig

    def resolved(self) -> dict[str, Any]:
        """Return the whole tree as plain values, every default written out."""
        return plain(self)

    def stated(self) -> dict[str, Any]:
        """Return the tree as ``job.yaml`` keeps it: every default written out but the nulls, which
        the plan says what come to.
        """
        return stated(self)

    def to_yaml(self) -> str:
        """Return :meth:`stated` as YAML."""
        return as_yaml(self.stated())


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """The top keys of a job file."""

    name: str = "job"
    seed: Annotated[int, annotated_types.Ge(0)] | None = None
    seeds: tuple[Annotated[int, annotated_types.Ge(0)], ...] | None = None
    dataset: DatasetConfig
    ipc: float | Literal["auto"] = DEFAULT_IPC  # what the method allows: check_ipc
    method: dict[str, Any] = field(default_factory=dict)
    images: ImagesConfig | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    numerics: Numerics = field(default_factory=Numerics)
    output: str | None = None
    store: str = "runs/store"
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        """Check them, and fill in ``seeds`` and the places."""
        if not re.fullmatch(r"[\w.+-]{1,100}", self.name):
            raise ConfigError(
                f"name: '{self.name}' may hold letters, digits, '.', '_', '+' and '-' only (at most 100)"
            )
        if self.seed is not None and self.seeds is not None:
            raise ConfigError("give seed or seeds, not both")
        seeds = self.seeds if self.seeds is not None else (self.seed or 0,)
        if not seeds or len(set(seeds)) < len(seeds):
            raise ConfigError(f"seeds: {list(seeds)} must hold at least one seed and none twice")
        output = self.output or f"runs/{self.name}"
        for key, url in (("output", output), ("store", self.store)):
            check_url(url, key, write=True)
            object.__setattr__(self, key, absolute(url))
        if self.output == self.store:
            raise ConfigError(f"output and store must be different places, both are {self.output}")
        object.__setattr__(self, "seeds", seeds)
        if self.ipc == "auto":
            check_auto(self.images)
        elif self.ipc == int(self.ipc):
            object.__setattr__(self, "ipc", int(self.ipc))


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """What ``raydd evaluate`` runs besides the set itself; ``store`` is absolute, and so is
    ``output`` (default: by the set).

    ``tracking.uri``: default ``MLFLOW_TRACKING_URI``, else ``none``.
    """

    seed: Annotated[int, annotated_types.Ge(0)] = 0
    dataset: DatasetConfig
    images: ImagesConfig | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    numerics: Numerics = field(default_factory=Numerics)
    output: str | None = None
    store: str = "runs/store"
    compute: ComputeConfig = field(default_factory=lambda: ComputeConfig(workers=0))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def resolved(self) -> dict[str, Any]:
        """Return the whole tree as plain values."""
        return plain(self)

    def stated(self) -> dict[str, Any]:
        """Return the tree without the nulls that are defaults."""
        return stated(self)


@dataclass(frozen=True)
class JobFile:
    """A job file and what is changed in it: the job for any number of images per class.

    ``tree``: its keys but ``by_ipc``, whose entries (:mod:`raydd.core.ipc_settings`) are
    ``by_ipc``; ``overrides``: ``key.sub=value``, which hold before both.
    """

    where: str
    tree: Mapping[str, Any]
    by_ipc: Mapping[float, Mapping[str, Any]] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    def job(self, ipc: Any = None) -> Job:
        """Return the job as it is given or, as one more override would, for another ``ipc``;
        ``ConfigError`` listing all that is wrong.
        """
        own = ipc_settings.asked(self.tree, self.overrides, DEFAULT_IPC)
        wanted = own if ipc is None else ipc
        settings = self.by_ipc.get(wanted, {}) if isinstance(wanted, (int, float)) else {}
        tree = ipc_settings.merged(self.tree, settings, f"{self.where}: {ipc_settings.KEY}")
        named = _method_name(tree)
        for override in self.overrides:
            apply_override(tree, override)
        if ipc is not None:
            tree["ipc"] = ipc
        try:
            return parse_job(tree, self.where)
        except ConfigError as error:
            if named in (None, _method_name(tree)) or ": unknown key" not in str(error):
                raise
            hint = (
                f"settings of method '{named}' that '{_method_name(tree)}' does not have: method=null before"
                " method.name drops them all"
            )
            raise ConfigError(f"{error}\n{hint}") from error


def read_job(path: str | None, overrides: Sequence[str] = ()) -> JobFile:
    """Return a YAML file with ``key.sub=value`` overrides; ``ConfigError`` for a file that is none,
    and for a mistake in the settings of any ipc.
    """
    if path is None:
        return JobFile("command line", {}, {}, tuple(overrides))
    tree = read_tree(path)
    tree.setdefault("name", os.path.splitext(os.path.basename(path))[0])
    entries = ipc_settings.take_out(tree, path)
    try:
        whole = bool(entries) and bool(parse_job(tree, path))
    except ConfigError:
        whole = False  # overrides make a job of it
    for ipc, settings in entries.items():
        where = f"{path}: {ipc_settings.KEY}.{ipc:g}"
        variant = ipc_settings.merged(tree, settings, where)
        if whole:
            parse_job({**variant, "ipc": ipc}, where)
    return JobFile(path, tree, entries, tuple(overrides))


def load_job(path: str | None, overrides: Sequence[str] = ()) -> Job:
    """Return the job of :func:`read_job`; ``ConfigError`` listing all that is wrong."""
    return read_job(path, overrides).job()


def _method_name(tree: Mapping[str, Any]) -> Any:
    method = settled(tree).get("method")
    return method.get("name") if isinstance(method, Mapping) else method


def load_evaluation(tree: dict[str, Any], overrides: Sequence[str] = ()) -> EvaluationJob:
    """Return the evaluation that a plain tree with overrides describes; ``ConfigError`` listing all that is wrong."""
    for override in overrides:
        apply_override(tree, override)
    given = tree.get("dataset")
    if given is None or (isinstance(given, dict) and given.get("name") is None):
        raise ConfigError(
            f"which data set is it to be tested on? Give --dataset NAME ({', '.join(CATALOG)}); a foreign set does"
            " not say"
        )
    tree.setdefault("compute", {}).setdefault("workers", 0)
    job = build(EvaluationJob, tree, "evaluate")
    for key, url in (("output", job.output), ("store", job.store)):
        if url is not None:
            check_url(url, key, write=True)
    output = absolute(job.output) if job.output is not None else None
    evaluation = _with_baselines(job.evaluation, DEFAULT_PROTOCOL, "evaluate")
    store = absolute(job.store)
    return dataclasses.replace(job, evaluation=evaluation, store=store, output=output)


def parse_job(tree: Mapping[str, Any], where: str = "job") -> Job:
    """Return the job that a plain tree describes; see :func:`load_job`."""
    tree = settled(tree)
    if "method" in tree and isinstance(tree["method"], str):
        tree = {**tree, "method": {"name": tree["method"]}}
    given = tree.get("dataset")
    if isinstance(given, str):
        raise ConfigError(f"{where}: dataset is a group of keys; write dataset.name={given}")
    mistakes: list[str] = []
    method, top, evaluation = None, None, None
    if given is None or (isinstance(given, Mapping) and given.get("name") is None):
        mistakes.append(f"{where}: dataset.name: is missing; allowed names: {', '.join(CATALOG)}")
        # Any name, so that the other mistakes are found too.
        tree = {**tree, "dataset": {**(given or {}), "name": next(iter(CATALOG))}}
    if "method" not in tree:
        mistakes.append(f"{where}: method: is missing; allowed names: {', '.join(METHODS.names())}")
    elif isinstance(tree["method"], Mapping):  # else reported with the other top keys
        try:
            method = method_from(tree["method"], where)
        except ConfigError as error:
            mistakes.append(str(error))
    try:
        top = build(_Tree, tree, where)
        own = DEFAULT_PROTOCOL if method is None else method.protocol
        evaluation = _with_baselines(top.evaluation, own, where)
    except ConfigError as error:
        mistakes.insert(0, str(error))
    ipc = tree.get("ipc", DEFAULT_IPC) if top is None else top.ipc
    if isinstance(ipc, (int, float)) and not isinstance(ipc, bool):
        mistakes += _mistake(check_ipc, method, ipc, where)
    if top is None or method is None or evaluation is None or mistakes:
        raise ConfigError("\n".join(mistakes))
    shared = {f.name: getattr(top, f.name) for f in dataclasses.fields(Job) if hasattr(top, f.name)}
    return Job(**{**shared, "method": method, "evaluation": evaluation})


def method_from(
    fields: Mapping[str, Any], where: str, prefix: tuple[str, ...] = ("method",)
) -> Method:
    """Return the method that a mapping of ``name`` and settings describes; ``prefix``: the keys above it."""
    name, key = fields.get("name"), f"{where}: {'.'.join(prefix)}.name"
    if not isinstance(name, str):
        found = "is missing" if name is None else f"is {name!r}"
        raise ConfigError(f"{key} {found}; allowed: {', '.join(METHODS.names())}")
    if name not in METHODS:
        raise ConfigError(f"{key}: {unknown('method', name, METHODS.names())}")
    return build(
        METHODS.get(name), {k: v for k, v in fields.items() if k != "name"}, where, prefix=prefix
    )


def _mistake(
    check: Callable[[Method | None, float], None], method: Method | None, ipc: float, where: str
) -> list[str]:
    try:
        check(method, ipc)
    except ConfigError as error:
        return [f"{where}: {error}"]
    return []


def _rival(baseline: Mapping[str, Any], where: str, prefix: tuple[str, ...]) -> Method | Rival:
    """Return the method that a baseline is, or, of one with keys beside its method's, the rival."""
    own = {f.name for f in dataclasses.fields(RivalKeys)} & set(baseline)
    method = method_from({k: v for k, v in baseline.items() if k not in own}, where, prefix)
    if not own:
        return method
    keys = build(RivalKeys, {k: baseline[k] for k in own if k != "decoding"}, where, prefix=prefix)
    tiles = baseline.get("decoding")
    if tiles is not None:
        tiles = {"name": tiles} if isinstance(tiles, str) else tiles
        if not isinstance(tiles, Mapping):
            raise ConfigError(f"{where}: {'.'.join(prefix)}.decoding: {tiles!r} is no decoding")
        found = build(Tiling, tiles, where, prefix=(*prefix, "decoding"))
        keys = dataclasses.replace(keys, decoding=found)
    try:
        return Rival(method=method, keys=keys)
    except ConfigError as error:
        raise ConfigError(f"{where}: {'.'.join(prefix)}.{error}") from error


def _with_baselines(config: EvaluationConfig, protocol: str, where: str) -> EvaluationConfig:
    """Return the evaluation with methods, or rivals, in place of the mappings among its baselines,
    and ``protocol`` where it names none; ``ConfigError`` for what is no baseline.
    """
    config = dataclasses.replace(config, protocol=config.protocol or protocol)
    found: list[str | Method | Rival] = []
    try:
        logits = config.resolve().learns_logits
    except ConfigError as error:
        raise ConfigError(f"{where}: evaluation: {error}") from error
    for place, baseline in enumerate(config.baselines):
        if isinstance(baseline, Mapping):
            key = ("evaluation", "baselines", str(place))
            if isinstance(baseline.get("name"), str):
                check_baseline(baseline["name"], f"{where}: {'.'.join(key)}.name", logits=logits)
            if baseline.get("name") == "whole":
                raise ConfigError(
                    f"{where}: {'.'.join(key)}: 'whole' is no method and has no settings here; write its name alone"
                )
            found.append(_rival(baseline, where, key))
        elif isinstance(baseline, str):
            found.append(baseline)
        else:
            wanted = "a method's name or a mapping of its name and settings"
            raise ConfigError(
                f"{where}: evaluation.baselines.{place}: Input should be {wanted}, not {baseline!r}"
            )
    config = dataclasses.replace(config, baselines=tuple(found))
    try:
        rivals(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return config
