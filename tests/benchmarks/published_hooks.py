"""EDC's loss on the statistics of a network's layers, as its hooks compute it, written plainly: one
group of images at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.losses import Layout

FIRST = 10
"""How often the first layer counts."""


class Hook:
    """A published hook, plainly: copies of the input with channels last, patches as a permuted copy
    of the resized input.
    """

    def __init__(self, module: nn.Module, keys: list[str], patch: int, momentum: float) -> None:
        self.keys, self.patch, self.momentum = keys, patch, momentum
        self.references: list[list[Tensor]] = []
        self.loss = torch.zeros(())
        self.handle = module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        channels = x.shape[1]
        mean = x.mean([0, 2, 3])
        spread = x.permute(1, 0, 2, 3).contiguous().reshape(channels, -1).var(1, unbiased=False)
        found = [mean, spread]
        if self.patch:
            p = self.patch
            height, width = (-(-n // p) * p for n in x.shape[2:])
            large = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
            cut = large.reshape(len(x), channels, height // p, p, width // p, p).permute(
                2, 4, 0, 1, 3, 5
            )
            cut = cut.reshape(-1, len(x) * channels * p * p)
            found += [cut.mean(1), cut.var(1, unbiased=False)]
        kept = 1 - self.momentum
        smoothed = [
            kept * value.detach() + (value - value.detach()) for value in found
        ]  # memories of zero
        pairs = [
            pair
            for references in self.references
            for pair in zip(references, smoothed, strict=True)
        ]
        self.loss = (
            0.5 * torch.stack([torch.norm(wanted - value, 2) for wanted, value in pairs]).sum()
        )


def observe(network: nn.Module, layout: Layout, patch: int, momentum: float) -> list[Hook]:
    """Put a hook on every layer of ``layout``; return them in order."""
    modules, hooks = dict(network.named_modules()), []
    for layer in layout.layers:
        keys = [
            f"{layer.name}/{k}" for k in ("mu", "var", "pmu", "pvar")[: 4 if layer.cells else 2]
        ]
        hooks.append(Hook(modules[layer.name], keys, patch if layer.cells else 0, momentum))
    return hooks


def edc_loss(
    network: nn.Module,
    hooks: list[Hook],
    images: Tensor,
    labels: Tensor,
    overall: dict[str, Tensor],
    table: dict[str, Tensor],
    weight: float,
) -> Tensor:
    """Return the loss of a group's ``images [s, C, H, W]`` with ``labels [s]``: cross entropy, and
    the hooks' distances.

    ``overall``, ``table``: statistics by layer of the data set and of each class (``[classes, ...]``).
    """
    for hook in hooks:
        hook.references = [
            [overall[k] for k in hook.keys],
            [table[k][labels].mean(0) for k in hook.keys],
        ]
    logits = network(images)
    weighted = sum(
        (hook.loss * (FIRST if i == 0 else 1) for i, hook in enumerate(hooks)), logits.new_zeros(())
    )
    return F.cross_entropy(logits, labels) + weight * weighted


def recovery_iterations(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    groups: Sequence[Tensor],
    labels: Sequence[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
) -> Iterator[float]:
    """Run EDC's recovery on groups of images, one after another, one update of each per item; yields their mean loss.

    A random crop of half to all of the area and a flip, shared by the group; Adam; every channel
    cut to what pixels can show.
    """
    from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

    view = Compose(
        [RandomResizedCrop(groups[0].shape[-1], scale=(0.5, 1.0)), RandomHorizontalFlip()]
    )
    leaves = [images.clone().requires_grad_(True) for images in groups]
    optimizers = [torch.optim.Adam([leaf], lr=0.05, betas=(0.5, 0.9), eps=1e-8) for leaf in leaves]
    while True:
        total = 0.0
        for leaf, of_group, optimizer in zip(leaves, labels, optimizers, strict=True):
            optimizer.zero_grad()
            loss = loss_of(view(leaf), of_group)
            loss.backward()
            optimizer.step()
            for c, (centre, scale) in enumerate(zip(mean, std, strict=True)):
                leaf.data[:, c] = torch.clamp(
                    leaf.data[:, c], -centre / scale, (1 - centre) / scale
                )
            total += loss.item()
        yield total / len(leaves)
