"""A whitening as a unit of work: computed once from the training images, and kept in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raydd.artifacts.distilled_set import Whitening
from raydd.artifacts.whitening import check_size, fit
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Stage
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import normalise


@dataclass(frozen=True, kw_only=True)
class FitWhitening(Stage):
    """Fit the whitening of a ``space`` (``zca``, ``zca_per_image``) on the training split; output:
    ``matrix`` and ``mean``.

    ``dataset``: narrowed to ``train``. Raises ``ConfigError`` for images too large.
    """

    phase: ClassVar[str] = "init"

    dataset: DatasetInfo
    space: str

    def __post_init__(self) -> None:
        check_size(self.dataset, self.space)

    def cost(self, unit: str) -> Cost:
        """Return the cost of the second moments and of taking them apart."""
        size, images = (
            self.dataset.channels * self.dataset.height * self.dataset.width,
            sum(self.dataset.train_counts),
        )
        return Cost(
            flop=2.0 * images * size**2 + 10.0 * size**3,
            peak_bytes=40 * size**2,
            output_bytes=4 * size * (size + 1),
        )

    def steps(self, unit: str) -> int:
        """Return 0: all is done at the end."""
        return 0

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the whitening's tensors."""
        found = fit(ctx.data["train"], self.space)
        return {"matrix": found.matrix, "mean": found.mean}

    @property
    def bytes(self) -> int:
        """Bytes of the whitening."""
        return self.cost("all").output_bytes

    def whitening(self, output: Tensors) -> Whitening:
        """Return the whitening of an output."""
        return Whitening(
            matrix=output["matrix"], mean=output["mean"], per_image=self.space == "zca_per_image"
        )


def network_space(
    info: DatasetInfo, whitening: Whitening | None, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return what brings uint8 images ``[B, C, H, W]`` on a device into the space of networks, as float32.

    Normalised; or whitened, of pixels in [0, 1], whatever the normalisation.
    """
    if whitening is None:
        return lambda images: normalise(images, info.mean, info.std)
    there = Whitening(
        matrix=whitening.matrix.double().to(device),
        mean=whitening.mean.double().to(device),
        per_image=whitening.per_image,
    )
    none, one = (0.0,) * info.channels, (1.0,) * info.channels
    return lambda images: there.apply(normalise(images, none, one))
