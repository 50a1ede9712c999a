"""scikit-learn's bundled handwritten digits: 1,797 images of 8 x 8 pixels, always there."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from raydd.data.catalog import Entry
from raydd.data.config import DatasetConfig
from raydd.data.listing import Tree
from raydd.data.sources.source import SOURCES, Source, array_data
from raydd.data.split import BaseData, keyed_split


def _table() -> np.ndarray:
    """Return the bundled table ``[1797, 65]``, a row of 64 pixels and a label per image.

    The file is read without scikit-learn itself, whose import costs every process seconds.
    """
    found = find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


class DigitsSource(Source):
    """The bundled file; a fifth of each class, chosen by content, is the test split. Values 0 to 16 become 0 to 255."""

    def missing(self, files: Tree, entry: Entry, config: DatasetConfig) -> list[str]:
        return []

    def open(self, files: Tree, entry: Entry, config: DatasetConfig) -> Mapping[str, BaseData]:
        table = _table()
        pixels = np.round(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        images, labels = torch.from_numpy(pixels), torch.from_numpy(table[:, -1].astype(np.int64))
        whole = array_data(images, labels, "digits", entry, DatasetConfig(name=config.name))
        ids = dict(zip(("train", "test"), keyed_split(whole, 0.2, "digits-test")))
        return {
            split: array_data(images[rows], labels[rows], f"digits {split}", entry, config)
            for split, rows in ids.items()
        }


SOURCES.register("digits")(DigitsSource())
