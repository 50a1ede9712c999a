"""IDM's and BACON's published loop, written plainly, as :mod:`published` has DM's: class after class, two passes of the
synthetic images of each, with gradients of the weights that nobody needs; an optimiser of all images that steps for
every class; a queue whose networks are trained in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from published import ConvNet
from published_dsa import Seed, augment
from torch import Tensor


def decoded(packed: Tensor) -> Tensor:
    """Return the four tiles of packed images, each as large as they are."""
    half = packed.shape[2] // 2
    tiles = (
        packed[:, :, :half, :half],
        packed[:, :, half:, :half],
        packed[:, :, :half, half:],
        packed[:, :, half:, half:],
    )
    return torch.cat(
        [F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) for x in tiles]
    )


def idm_distance(synthetic: Tensor, real: Tensor) -> Tensor:
    """Return the squared distance of two batches' mean features."""
    return torch.sum((torch.mean(real, dim=0) - torch.mean(synthetic, dim=0)) ** 2)


def bacon_distance(synthetic: Tensor, real: Tensor) -> Tensor:
    """Return BACON's three terms, the density first and its logarithm then."""
    mean, real_mean = torch.mean(synthetic, dim=0), torch.mean(real, dim=0)
    sigma = torch.exp(torch.std(real, dim=0))
    density = torch.exp(-0.5 * ((mean - real_mean) / sigma) ** 2) / (math.sqrt(2 * math.pi) * sigma)
    likelihood = -torch.sum(torch.log(density))
    variation = 0.5 * torch.sum(torch.abs(mean - real_mean))
    p, q = torch.softmax(mean, dim=0), torch.softmax(real_mean, dim=0)
    gap = (torch.mean(p) - torch.mean(q)) / torch.std(q)
    clip = (gap - torch.clamp(gap, 0, 1)) ** 2
    return likelihood + 0.8 * variation + 0.2 * clip


DISTANCES = {"idm": idm_distance, "bacon": bacon_distance}


def class_loss(
    net: ConvNet,
    packed: Tensor,
    c: int,
    real_features: Tensor,
    seed: Seed,
    weight: float,
    distance: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the loss of one class's packed images; features and logits are two passes."""
    seen = augment(decoded(packed), seed=seed)
    loss = distance(net.embed(seen), real_features)
    labels = torch.full((len(seen),), c, device=seen.device)
    return loss + weight * F.cross_entropy(net(seen), labels)


class Synthesis:
    """The packed images of all classes and their optimiser."""

    def __init__(self, images: Tensor, ipc: int, classes: int, distance: str) -> None:
        self.images = images.clone().requires_grad_(True)
        self.ipc, self.classes, self.distance = ipc, classes, DISTANCES[distance]
        self.optimizer = torch.optim.SGD([self.images], lr=0.2, momentum=0.5)

    def iteration(
        self,
        net: ConvNet,
        features_of: Callable[[int], Tensor],
        seed_of: Callable[[int], Seed],
        weight: float,
    ) -> float:
        """Step once for each class; return the sum of losses."""
        total = 0.0
        for c in range(self.classes):
            packed = self.images[c * self.ipc : (c + 1) * self.ipc]
            loss = class_loss(net, packed, c, features_of(c), seed_of(c), weight, self.distance)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total


class Trained:
    """A network of the queue, its optimiser and its meter."""

    def __init__(self, net: ConvNet) -> None:
        self.net, self.right, self.seen = net, 0, 0
        self.optimizer = torch.optim.SGD(
            net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005
        )

    def train(
        self, images: Tensor, labels: Tensor, steps: int, random: np.random.RandomState
    ) -> None:
        """Make some steps on batches of 256, each from a permutation of all images."""
        for _ in range(steps):
            ids = torch.from_numpy(random.permutation(len(images))[:256])
            output = self.net(images[ids])
            loss = F.cross_entropy(output, labels[ids])
            self.right += int((output.argmax(1) == labels[ids]).sum().item())
            self.seen += len(ids)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
