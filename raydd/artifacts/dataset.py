"""``raydd.load``: a distilled set as a ``torch.utils.data.Dataset`` in the space networks expect."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from raydd.artifacts.card import method_name, poster_text
from raydd.artifacts.distilled_set import Batch, DistilledSet
from raydd.artifacts.foreign_posters import windows_from
from raydd.artifacts.formats import read_set
from raydd.artifacts.reading import Reading
from raydd.artifacts.whitening import whitened
from raydd.data.catalog import DatasetInfo
from raydd.data.images import Orientation


class DistilledDataset(Dataset[tuple[Tensor, "int | Tensor"]]):
    """Samples ``(image, label)``: float32 ``[C, H, W]``, normalised (whitened, decoded) as networks
    expect; an int or soft ``[classes]``.

    ``distilled``: the set behind it. ``classes``: their number; ``class_names``: their names. ``mean``/``std``: the
    normalisation, per channel, of pixels in [0, 1].
    """

    def __init__(self, distilled: DistilledSet) -> None:
        self.distilled = distilled
        self.classes = distilled.info.classes
        self.class_names = distilled.info.class_names or tuple(map(str, range(self.classes)))
        self.mean, self.std = distilled.mean, distilled.std

    def __repr__(self) -> str:
        """Return what the set is: data set, images, classes, images per class, space, labels, method."""
        of, recipe = self.distilled, self.distilled.recipe
        low, high = min(of.ipc), max(of.ipc)
        count = f"{len(of)} images of {self.classes} classes" + (
            f" ({low if low == high else f'{low} to {high}'} per class)"
        )
        if poster := poster_text(of):
            count = f"{poster} of {self.classes} classes ({of.pixel_ipc:.3g} images per class)"
        count += f", decoded to {len(self)}" if len(self) != len(of) else ""
        space = "whitened" if of.whitening is not None else "normalised"
        stored = (
            f", stored as {recipe['space']}"
            if recipe.get("space") not in (None, "normalised")
            else ""
        )
        labels = "soft" if of.soft else "hard"
        shape = "×".join(map(str, of.shape))
        return (
            f"DistilledDataset({of.info.name}: {count}, {shape}, {space}{stored}, {labels} labels, "
            f"method {method_name(recipe)}, mean {_rounded(self.mean)}, std {_rounded(self.std)})"
        )

    def __len__(self) -> int:
        return self.distilled.seen

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        ids = torch.tensor([index % len(self)])
        image, label = (
            self.distilled.normalised(self.distilled.take(ids))[0],
            self.distilled.targets_of(ids)[0],
        )
        return image, label if label.is_floating_point() else int(label)

    def tensors(self, device: torch.device | str = "cpu") -> Batch:
        """Return all images ``[N, C, H, W]`` and labels at once, on ``device``."""
        return self.distilled.tensors(device)

    def to_rgb(self) -> Tensor:
        """Return pictures of the stored images, float32 ``[N, C, H, W]`` in [0, 1]."""
        return self.distilled.to_rgb()


def _rounded(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def load(
    url: str,
    *,
    info: DatasetInfo | str | None = None,
    experiment: int | None = None,
    space: str | None = None,
    decoding: str | None = None,
    factor: int | None = None,
    windows: str | Sequence[int] | None = None,
    labels: str | None = None,
    orientation: Orientation = "ignore",
    ipc: int | None = None,
) -> DistilledDataset:
    """Return the distilled set at a path or URL (``s3://…``) as a dataset.

    Reads raydd's folders and the formats of others (:mod:`raydd.artifacts.formats`). ``info``: the
    data set it stands for (its name in the catalog, or its facts), where the format does not say.
    ``experiment``: which repetition of a DC/DSA/DM ``.pt`` file, the last by default. ``space`` of
    the images (``pixels``, ``pixels255``, ``normalised``, ``zca``, ``zca_per_image``), their ``decoding``
    (``partition`` of IDM and BACON, ``grid`` of IDC, ``resize``, ``windows`` of a poster of PoDD), the
    ``factor`` of several images in one, the columns and rows of ``windows``, and whether a table of
    ``labels`` holds ``logits``, ``probabilities`` or ``targets``: see
    :class:`raydd.artifacts.reading.Reading`; what is not stated is guessed, with a warning. ``zca``
    and ``zca_per_image`` need the data set's files. ``orientation="exif"`` turns picture files of others as they say
    they are to be shown. ``ipc``: only the first so many images of
    each class. Raises ``DataError`` for what is not a set and ``TornFileError``, naming the file,
    for what is broken; ``ConfigError`` for what cannot be.
    """
    reading = Reading(
        space=space,
        decoding=decoding,
        factor=factor,
        windows=windows_from(windows),
        labels=labels,
        experiment=experiment,
        orientation=orientation,
        ipc=ipc,
    )
    return DistilledDataset(whitened(read_set(url, info=info, reading=reading)))
