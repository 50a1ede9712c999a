"""scikit-learn's bundled handwritten digits: 1,797 images of 8 x 8 pixels, always there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from raydd.core.storage import Storage
from raydd.data.catalog import Entry
from raydd.data.dataset_config import DatasetConfig
from raydd.data.sources.source import SOURCES, Source, array_data
from raydd.data.split import BaseData, keyed_split


class DigitsSource(Source):
    """The bundled file; a fifth of each class, chosen by content, is the test split. Values 0 to 16 become 0 to 255."""

    def missing(self, files: Storage, entry: Entry, config: DatasetConfig) -> list[str]:
        return []

    def open(self, files: Storage, entry: Entry, config: DatasetConfig) -> Mapping[str, BaseData]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
        images, labels = (
            torch.from_numpy(pixels[:, None]),
            torch.from_numpy(bunch.target.astype(np.int64)),
        )
        whole = array_data(images, labels, "digits", entry, DatasetConfig(name=config.name))
        ids = dict(zip(("train", "test"), keyed_split(whole, 0.2, "digits-test")))
        return {
            split: array_data(images[rows], labels[rows], f"digits {split}", entry, config)
            for split, rows in ids.items()
        }


SOURCES.register("digits")(DigitsSource())
