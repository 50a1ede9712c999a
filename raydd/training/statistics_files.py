"""Tables of statistics as files: ours, and the published tree of ``npz``
(docs/methods/recovery.md, "Files of statistics").

Ours is ``<network>.safetensors`` with ``G/<layer>/{mu,var,pmu,pvar}`` and ``T/...`` of a row per
class. The published tree has a small file per layer and class, in which the class files of
convolutions hold patch means under the name of variances and the other way round. That is
recognised (a variance is never negative) and undone: tables here are never swapped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from raydd.core.errors import ConfigError, DataError, TornFileError
from raydd.core.json_text import parse_json
from raydd.core.storage import Storage, join
from raydd.core.tensors import Tensors, dump_tensors, load_metadata, load_tensors
from raydd.core.units import Context, Cost, unkeyed
from raydd.data.catalog import DatasetInfo
from raydd.losses.statistics_matching import Layer, swap_patches
from raydd.networks.names import spellings
from raydd.training.statistics_tables import Observed, TableStage, observe, require_layers
from raydd.training.statistics_tree import KEYS, Files, list_tree, read_npz, tree_digest
from raydd.training.weights import Weights

_IDENTITY = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def _numbers(text: str) -> tuple[Any, ...]:
    try:
        return tuple(parse_json(text))
    except (ValueError, TypeError):
        return (text,)


def _require_table(values: Tensor, name: str, url: str) -> None:
    width = "cells" if name.endswith(("/pmu", "/pvar")) else "channels"
    shape = ["classes", width] if name.startswith("T/") else [width]
    if values.dim() != len(shape) or not values.is_floating_point():
        found = f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
        raise DataError(
            f"{url}: table '{name}' is {found}; floating-point numbers [{', '.join(shape)}] are read"
        )


def _require_variances(values: Tensor, what: str) -> None:
    if not bool(torch.isfinite(values).all()) or not bool((values[..., 1, :] >= 0).all()):
        raise DataError(f"{what} holds negative variances, or values that are not finite")


@lru_cache(maxsize=64)
def _weights_of(url: str, path: str, digest: str) -> tuple[str, ...]:
    """Return by what our file of this sha256 names the weights it is of, any of which will do;
    nothing if it does not say so.
    """
    storage = Storage(url)
    if storage.size(path) < 8:
        return ()
    try:
        header = 8 + int.from_bytes(storage.get(path, 0, 8), "little")
        found = parse_json(load_metadata(storage.get(path, 0, header)).get("weights", "[]"))
    except (ValueError, TornFileError):  # torn, which is told where it is read
        return ()
    names = found if isinstance(found, list) else [found]
    return tuple(name for name in names if isinstance(name, str) and _IDENTITY.fullmatch(name))


def save_tables(
    url: str,
    network: str,
    tables: Mapping[str, Tensor],
    *,
    dataset: DatasetInfo,
    patch: int,
    facts: Mapping[str, str],
) -> str:
    """Write the output of a :class:`TableStage` for others, in the folder ``url``; return the file's URL.

    ``facts``: what else its metadata says (weights, transform, batch, number of images).
    ``weights``: JSON, the identity of the network or a list of several by which it is known; a job
    whose network has another is refused.
    """
    metadata = {
        **facts,
        "network": network,
        "patch": str(patch),
        "mean": json.dumps(dataset.mean),
        "std": json.dumps(dataset.std),
        "swapped": "false",
    }
    path = f"{spellings(network)[0]}.safetensors"
    Storage(url).put(path, dump_tensors(tables, metadata))
    return join(url, path)


@dataclass(frozen=True, kw_only=True)
class StatisticsFile(TableStage):
    """Tables read from a folder and kept in the store under our names of layers; see the module for the formats.

    ``digest``: sha256 of our file, or :func:`raydd.training.statistics_tree.tree_digest`.
    """

    url: str = unkeyed()
    path: str = unkeyed(default="")
    digest: str
    network: str
    dataset: DatasetInfo
    patch: int

    @classmethod
    def at(cls, url: str, network: str, dataset: DatasetInfo, patch: int) -> StatisticsFile:
        """Return the stage for the tables of a network in a folder; of no digest if there are none."""
        storage = Storage(url)
        paths = [f"{name}.safetensors" for name in dict.fromkeys((*spellings(network), network))]
        path = next((p for p in paths if storage.exists(p)), "")
        digest = Weights.at(join(storage.url, path)).digest if path else tree_digest(storage.url)
        return cls(
            seed=0,
            url=storage.url,
            path=path,
            digest=digest,
            network=network,
            dataset=dataset,
            patch=patch,
        )

    def cost(self, unit: str) -> Cost:
        """Return the cost: the tables twice in memory, and in the store."""
        size = 8 * self._observed().layout.width * (self.dataset.classes + 1)
        return Cost(peak_bytes=2 * size, output_bytes=size)

    def steps(self, unit: str) -> int:
        """Return 0: the files are read at once."""
        return 0

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the tables under our names; ``DataError`` if they are missing, have changed or do not fit."""
        if (
            StatisticsFile.at(self.url, self.network, self.dataset, self.patch).digest
            != self.digest
            or not self.digest
        ):
            raise DataError(
                f"{join(self.url, self.path)} has changed since it was planned with, or is missing"
            )
        return self.read()

    def fault(self, classes: bool) -> str:
        """Return why the tables cannot be used (``classes``: with those of classes), or an empty text."""
        where = f"network '{self.network}'"
        if not self.digest:
            ours = join(self.url, f"{spellings(self.network)[0]}.safetensors")
            return f"{where}: put its statistics at {ours}, or the published folders at {self.url}"
        try:
            found = self._ours() if self.path else self._published(most=1)
        except (ConfigError, DataError, TornFileError) as error:
            return f"{where}: {error}"
        if classes and not any(key.startswith("T/") for key in found):
            return f"{where}: {join(self.url, self.path)} has statistics of the whole data set, but none of classes"
        return ""

    def require_weights(self, identity: str) -> None:
        """Raise ``ConfigError`` if our file says that its statistics are of other weights than
        those of ``identity`` (empty: not known).
        """
        said = _weights_of(self.url, self.path, self.digest) if self.path and identity else ()
        if said and identity not in said:
            raise ConfigError(
                f"{join(self.url, self.path)} has statistics of network '{self.network}' with the weights"
                f" {said[0][:12]}, but the job's are {identity[:12]}: give the teachers they were taken of, or leave"
                " statistics.files out to collect them"
            )

    def read(self) -> Tensors:
        """Return the tables, ``G/...`` and, where there are any, ``T/...``; errors as of :meth:`finish`."""
        return self._ours() if self.path else self._published()

    def _observed(self) -> Observed:
        return observe(self.network, self.dataset.shape, self.dataset.classes, self.patch)

    def _ours(self) -> Tensors:
        url = join(self.url, self.path)
        data = Storage(self.url).get(self.path)
        held = load_tensors(data, url)
        said = load_metadata(data, url)
        if said.get("patch", str(self.patch)) != str(self.patch):
            raise DataError(
                f"{url} has patches of {said['patch']} pixels, statistics.patch is {self.patch}"
            )
        for key, value in (("mean", self.dataset.mean), ("std", self.dataset.std)):
            if key in said and _numbers(said[key]) != value:
                raise DataError(
                    f"{url} is of images normalised with {key} {said[key]}, the data set's is {list(value)}"
                )
        layout, spelled = self._observed()
        names = max(
            spelled, key=lambda names: sum(f"G/{theirs}/mu" in held for theirs in names.values())
        )
        tables: Tensors = {}
        for kind in "GT":
            keys = {
                f"{ours}/{s}": f"{kind}/{theirs}/{s}"
                for ours, theirs in names.items()
                for s in KEYS
            }
            parts = {ours: held[theirs] for ours, theirs in keys.items() if theirs in held}
            if not parts and kind == "T":
                continue
            require_layers(
                parts,
                [x for x in layout.layers if kind == "T" or x.kind == "conv"],
                f"{url}: the tables {kind}",
            )
            for theirs in (theirs for theirs in keys.values() if theirs in held):
                _require_table(held[theirs], theirs, url)
            self._check_rows(parts, kind, url)
            joined = layout.join(parts, what=url)
            if kind == "T" and said.get("swapped") == "true":
                joined = swap_patches(joined, layout)
            _require_variances(joined, url)
            tables |= {f"{kind}/{k}": v for k, v in layout.split(joined).items() if k in parts}
        return tables

    def _check_rows(self, parts: Mapping[str, Tensor], kind: str, url: str) -> None:
        rows = {len(v) for v in parts.values()} if kind == "T" else {self.dataset.classes}
        if rows != {self.dataset.classes}:
            raise DataError(
                f"{url} has tables of {', '.join(map(str, sorted(rows)))} classes, the data set has"
                f" {self.dataset.classes}"
            )

    def _files(self) -> tuple[Files, dict[str, str]]:
        """Return the network's files in the published tree, and what our layers are called there."""
        layout, spelled = self._observed()
        tree = list_tree(self.url)
        convolutions = [layer.name for layer in layout.layers if layer.kind == "conv"]
        fitting = [
            (prefix, names)
            for prefix, files in tree.items()
            for names in spelled
            if {layer for layer, c in files if c == -1} == {names[ours] for ours in convolutions}
        ]
        # Of one Python class with several networks, the tree names the network behind it.
        told = [
            (p, names)
            for p, names in fitting
            if any(p.endswith(f"_{name}") for name in spellings(self.network))
        ]
        chosen = dict(reversed(told or fitting))
        if len(chosen) != 1:
            found = (
                f"{', '.join(sorted(chosen))} could each be"
                if chosen
                else f"none of {', '.join(sorted(tree))} has the layers of"
            )
            raise DataError(f"{self.url}: {found} network '{self.network}'")
        ((prefix, names),) = chosen.items()
        return tree[prefix], names

    def _published(self, most: int | None = None) -> Tensors:
        """Return the tables of the published tree, those of at most ``most`` classes; all files
        must be there all the same.
        """
        (files, names), layout = self._files(), self._observed().layout
        known = self._classes(files)
        self._require_files(files, names, known)
        with ThreadPoolExecutor(16) as pool:
            overall = self._rows(
                files, names, [-1], [x for x in layout.layers if x.kind == "conv"], pool
            )
            tables = {f"G/{k}": v[0] for k, v in overall.items()}
            if not known:
                return tables
            parts = self._rows(files, names, known[:most], layout.layers, pool)
        joined = layout.join(parts, what=self.url)
        image = next(layer.name for layer in layout.layers if layer.kind == "conv")
        swapped = bool((parts[f"{image}/pvar"] < 0).any())
        # The images of some classes may not tell: what cannot be as it stands is then taken for swapped.
        if swapped or (len(joined) < len(known) and bool((joined[..., 1, :] < 0).any())):
            joined = swap_patches(joined, layout)
        _require_variances(joined, self.url)
        return tables | {f"T/{k}": v for k, v in layout.split(joined).items()}

    def _require_files(self, files: Files, names: Mapping[str, str], known: Sequence[int]) -> None:
        for layer in self._observed().layout.layers:
            absent = [row for row in known if (names[layer.name], row) not in files]
            if absent:
                folder = f"{'Conv' if layer.kind == 'conv' else 'BN'}FeatureHook/class_{absent[0]}"
                raise DataError(
                    f"{self.url} lacks layer '{names[layer.name]}' of class {absent[0]}: put its file into {folder}"
                )

    def _classes(self, files: Files) -> list[int]:
        """Return the classes that the published tree has files of: all of the data set's, or none."""
        known = sorted({c for _, c in files if c >= 0})
        if known and known != list(range(self.dataset.classes)):
            raise DataError(
                f"{self.url} has statistics of {len(known)} classes, the data set has {self.dataset.classes}"
            )
        return known

    def _rows(
        self,
        files: Files,
        names: Mapping[str, str],
        rows: Sequence[int],
        layers: Sequence[Layer],
        pool: ThreadPoolExecutor,
    ) -> Tensors:
        """Return ``<layer>/<statistic>`` of the files of some classes, stacked."""
        found: Tensors = {}
        storage = Storage(self.url)
        for layer in layers:
            paths = [files[names[layer.name], row] for row in rows]
            held = list(pool.map(partial(read_npz, storage), paths))
            for statistic in tuple(KEYS)[: 4 if layer.cells else 2]:
                width = layer.cells if statistic.startswith("p") else layer.channels
                found[f"{layer.name}/{statistic}"] = self._stack(
                    held, paths, statistic, width, swapped=rows[0] >= 0
                )
        return found

    def _stack(
        self,
        held: Sequence[Tensors],
        paths: Sequence[str],
        statistic: str,
        width: int,
        *,
        swapped: bool,
    ) -> Tensor:
        """Return a statistic ``[len(held), width]`` of the files of ``paths``; ``swapped``: whether
        patches may be exchanged in them.
        """
        patches = statistic.startswith("p")
        for path, values in zip(paths, held, strict=True):
            if values.get(statistic, torch.empty(0)).shape != (width,):
                hint = f" (statistics.patch is {self.patch})" if patches else ""
                raise DataError(
                    f"{join(self.url, path)}: {KEYS[statistic]} is missing, or not of {width} values{hint}"
                )
        table = torch.stack([values[statistic] for values in held])
        least = 0.0 if statistic.endswith("var") and not (patches and swapped) else -torch.inf
        bad = ~(torch.isfinite(table) & (table >= least)).all(1)
        if bool(bad.any()):
            what = (
                "values that are not finite"
                if least
                else "negative variances, or values that are not finite"
            )
            raise DataError(
                f"{join(self.url, paths[int(bad.nonzero()[0, 0])])}: {KEYS[statistic]} holds {what}"
            )
        return table
