"""``.pt`` files of others: what is unpickled, and the sets, experiments and published accuracies that they hold."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raydd.core.errors import ConfigError, DataError
from raydd.core.torch_file import load_torch

_PAIRS = (
    ("images", "labels"),
    ("image", "label"),
    ("data", "labels"),
    ("data", "targets"),
    ("data", "target"),
    ("x", "y"),
)
_MAGIC = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""With what files begin that torch.save wrote before it wrote zip archives."""
_WEIGHTS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "optimizer",
    "pytorch-lightning_version",
)


def load_pt(data: bytes, what: str, also: Sequence[Any] = ()) -> Any:
    """Return the tensors and plain values of a ``.pt`` file; ``DataError`` naming ``what`` if it
    holds anything else. ``also``: what may be named in it besides.
    """
    import numpy as np

    # Lists of accuracies hold NumPy's float64 scalars: what rebuilds one stands under the module name of NumPy 1 or 2.
    scalar: Any = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    allowed: list[Any] = [*((scalar, name) for name in names), np.dtype, np.dtypes.Float64DType]
    try:
        return load_torch(data, what, [*also, *allowed])
    except pickle.UnpicklingError as error:
        found = re.search(
            r"WeightsUnpickler error: (.+?)(?: was not an allowed global|\n|$)", str(error)
        )  # the rest is how to allow it
        reason = f": {found[1]}" if found else ""
        if data[:1] == b"\x80" and _MAGIC not in data[:32]:
            reason = (
                "; pickle.dump wrote it, not torch.save: where you trust it, load it and write torch.save((images,"
                " labels), 'set.pt')"
            )
        raise DataError(
            f"{what} holds more than tensors and numbers, or is no .pt file; nothing else is ever unpickled{reason}"
        ) from error


@dataclass(frozen=True)
class Experiments:
    """The sets of a file, each ``(images, labels)``.

    ``steps``: whether they are parts of one set, the classes of successive steps of continual
    learning. ``published``: accuracies in percent by network, of all experiments one after the
    other, where the file has them. ``unread``: keys of tensors beside a pair's, which may be other
    labels than those read, ``labels``.
    """

    sets: tuple[tuple[Tensor, Tensor], ...]
    steps: bool = False
    published: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    labels: str = ""

    def chosen(self, experiment: int | None, where: str) -> tuple[Tensor, Tensor]:
        """Return one experiment's images and labels: by default the last, or all steps as one set;
        ``ConfigError`` if it is not there.
        """
        count, what = len(self.sets), "steps" if self.steps else "experiments"
        if experiment is None and self.steps:
            return torch.cat([images for images, _ in self.sets]), torch.cat(
                [labels for _, labels in self.sets]
            )
        experiment = -1 if experiment is None else experiment
        if not -count <= experiment < count:
            raise ConfigError(
                f"{where} holds {count} {what}; {experiment} is none of them (0 to {count - 1})"
            )
        return self.sets[experiment]

    def published_of(self, experiment: int | None) -> dict[str, tuple[float, ...]]:
        """Return the accuracies of one experiment by network, or of all with ``None``; all where
        they cannot be told apart.
        """
        count = len(self.sets)
        if experiment is None or self.steps:
            return dict(self.published)
        cut = {
            name: len(values) // count
            for name, values in self.published.items()
            if len(values) % count == 0
        }
        first = experiment % count
        return {
            name: values[first * cut[name] : (first + 1) * cut[name]] if cut.get(name) else values
            for name, values in self.published.items()
        }


def experiments_of(value: Any, where: str) -> Experiments:
    """Return the sets that a file's value holds; ``DataError`` saying what was found if there is none."""
    if isinstance(value, Mapping) and isinstance(value.get("data"), (list, tuple, Mapping)):
        entries = value["data"]
        entries = (
            [entries[key] for key in sorted(entries)]
            if isinstance(entries, Mapping)
            else list(entries)
        )
        if len(entries) == 2 and all(isinstance(part, Tensor) for part in entries):
            entries = [entries]
        if not entries:
            raise DataError(f"{where}: its list of experiments (`data`) is empty")
        sets = tuple(
            _pair(entry, f"{where}: experiment {place}") for place, entry in enumerate(entries)
        )
        return Experiments(sets, _are_steps(sets), _accuracies(value.get("accs_all_exps")))
    pair = next(
        (pair for pair in _PAIRS if isinstance(value, Mapping) and set(pair) <= set(value)), ()
    )
    unread = (
        sorted(
            f"'{key}'"
            for key, held in value.items()
            if key not in pair and isinstance(held, Tensor)
        )
        if pair
        else []
    )
    return Experiments((_pair(value, where),), unread=tuple(unread), labels=pair[1] if pair else "")


def _pair(value: Any, where: str) -> tuple[Tensor, Tensor]:
    if isinstance(value, Mapping):
        for pair in _PAIRS:
            if set(pair) <= set(value):
                value = tuple(value[name] for name in pair)
                break
    if isinstance(value, Mapping) and (
        set(value) & set(_WEIGHTS) or (value and all(isinstance(v, Tensor) for v in value.values()))
    ):
        raise DataError(
            f"{where} holds keys {sorted(map(str, value))[:8]}: a network's weights, no set of images; expected `data`,"
            " a list of [images, labels], or a pair (images, labels). A job reads weights as method.teachers.weights"
        )
    if isinstance(value, Tensor):
        raise DataError(
            f"{where} holds one tensor {list(value.shape)}; its labels belong beside it: images_<n>.pt with"
            " labels_<n>.pt"
        )
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or not all(isinstance(part, Tensor) for part in value)
    ):
        found = (
            f"keys {sorted(map(str, value))[:8]}"
            if isinstance(value, Mapping)
            else f"a {type(value).__name__}"
        )
        raise DataError(
            f"{where} holds {found}; expected `data`, a list of [images, labels], or a pair (images, labels)"
        )
    return value[0].detach(), value[1].detach()


def _are_steps(sets: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Return whether several sets have no class in common: experiments repeat the same classes,
    steps bring new ones.
    """
    if len(sets) < 2 or any(labels.ndim != 1 for _, labels in sets):
        return False
    classes = [set(labels.tolist()) for _, labels in sets]
    return sum(map(len, classes)) == len(set().union(*classes))


def _accuracies(value: Any) -> dict[str, tuple[float, ...]]:
    """Return percent by network; nothing for what is no mapping of networks to numbers."""
    if not isinstance(value, Mapping):
        return {}
    found: dict[str, tuple[float, ...]] = {}
    for name, entry in value.items():
        try:
            numbers = torch.as_tensor([float(v) for v in _flat(entry)], dtype=torch.float64)
        except (TypeError, ValueError):
            continue
        if len(numbers) and bool(((numbers >= 0) & (numbers <= 100)).all()):
            found[str(name)] = tuple((numbers * (100 if float(numbers.max()) <= 1 else 1)).tolist())
    return found


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return list(value.flatten().tolist())
    return (
        [v for part in value for v in _flat(part)] if isinstance(value, (list, tuple)) else [value]
    )
