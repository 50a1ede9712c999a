"""A step of training, augmentation included, as one piece that a GPU records and repeats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from raydd.core.captured import Captured, pinned
from raydd.core.tensors import Tensors
from raydd.losses.soft import SoftTargets
from raydd.training.augmentation import DrawnAugmentation
from raydd.training.sgd import Labels, TrainingStep, is_trained


class RecordedStep:
    """A :class:`TrainingStep` on images ``[(R,) B, C, H, W]`` as they are in the set, which it augments itself.

    ``draws``: a generator for each network, from which the augmentation draws. Images and labels may be on the CPU.
    """

    def __init__(
        self, step: TrainingStep, augmentation: DrawnAugmentation, device: torch.device
    ) -> None:
        self._step, self._augmentation, self._device = step, augmentation, device
        self._known: dict[tuple[tuple[str, ...], bool], Captured] = {}

    def __call__(
        self,
        state: Mapping[str, Tensor],
        images: Tensor,
        labels: Labels,
        rate: Tensor,
        draws: Sequence[torch.Generator],
    ) -> tuple[Tensors, Tensor, Tensor]:
        """Return the state after one batch, and its sum of losses and count of correct answers."""
        state = {name: value for name, value in state.items() if is_trained(name)}
        names, soft = tuple(state), isinstance(labels, SoftTargets)
        if (names, soft) not in self._known:
            self._known[names, soft] = Captured(self._flat(names, soft), self._device)
        numbers = pinned(self._augmentation.draw(draws, images.shape[-4]), self._device)
        of_batch = labels if isinstance(labels, SoftTargets) else (labels,)
        loss, correct, *values = self._known[names, soft](
            *state.values(), rate, images, numbers, *of_batch
        )
        return dict(zip(names, values, strict=True)), loss, correct

    def _flat(self, names: tuple[str, ...], soft: bool) -> Callable[..., list[Tensor]]:
        """Return the step as a function of tensors alone, for a state of these names."""

        def step(*tensors: Tensor) -> list[Tensor]:
            state = dict(zip(names, tensors, strict=False))
            rate, images, numbers, *of_batch = tensors[len(names) :]
            labels: Labels = SoftTargets(*of_batch) if soft else of_batch[0]
            stacked = images.dim() == 5
            images = self._augmentation.apply(images if stacked else images.unsqueeze(0), numbers)
            after, loss, correct = self._step(
                state, images if stacked else images.squeeze(0), labels, rate
            )
            return [loss, correct, *(after[name] for name in names)]

        return step
