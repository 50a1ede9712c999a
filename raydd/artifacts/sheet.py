"""A contact sheet: a few images of each class of a data set, to look at before anything is computed of it."""

from __future__ import annotations

import os

import torch

from raydd.artifacts.grid import grid, png
from raydd.core.errors import ConfigError
from raydd.core.storage import Storage
from raydd.core.units import Data
from raydd.data.catalog import DatasetInfo

IMAGES = 8
"""Images of each class; half as many where there are more than a hundred classes."""
CLASSES = 1000
"""Classes that are shown; more are counted in a line below."""


def contact_sheet(info: DatasetInfo, train: Data) -> bytes:
    """Return a picture of a few training images of each class, evenly spread over them; of very
    many classes the first.
    """
    classes = torch.unique(train.labels)[:CLASSES]
    few = IMAGES if len(classes) <= 100 else IMAGES // 2
    chosen = []
    for label in classes.tolist():
        members = (train.labels == label).nonzero().flatten()
        chosen.append(members[torch.linspace(0, len(members) - 1, min(few, len(members))).long()])
    ids = torch.cat(chosen).sort().values
    return png(grid(train.take(ids), train.labels[ids], info.class_names, max_rows=CLASSES))


def write_sheet(url: str, info: DatasetInfo, train: Data) -> None:
    """Write a :func:`contact_sheet` to a path or URL; ``ConfigError`` for one that does not end in .png."""
    check_sheet(url)
    folder, name = os.path.split(url)
    Storage(folder or ".").put(name, contact_sheet(info, train))


def check_sheet(url: str) -> None:
    """Raise ``ConfigError`` for a name that is no picture's."""
    if not url.lower().endswith(".png"):
        raise ConfigError(
            f"--contact-sheet {url}: a picture is written; give a name that ends in .png"
        )
