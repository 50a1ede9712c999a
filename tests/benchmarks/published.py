"""What raydd's speed is measured against: the published algorithms, written plainly from the specification dc_dsa_dm.

Loops over classes, one set of augmentation numbers per image even where all images share them, sampling matrices made of
Python lists, whole permutations to draw a few images, a loader that stacks images one by one (section 6.3). Only torch and
numpy; nothing of raydd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ALL_OPERATIONS = "color_crop_cutout_flip_scale_rotate"


class ConvNet(nn.Module):
    """Three blocks of 128 channels: convolution, instance norm, ReLU, average pooling (section 2.1); 28 pixels work as 32."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for depth in range(3):
            padding = 3 if depth == 0 and channels == 1 else 1
            layers += [nn.Conv2d(channels if depth == 0 else width, width, 3, padding=padding), nn.GroupNorm(width, width)]
            layers += [nn.ReLU(inplace=True), nn.AvgPool2d(2, 2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * 16, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return features ``[B, 2048]``."""
        return self.features(x).reshape(len(x), -1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.embed(x))


class Draws:
    """Where the numbers of an augmentation come from: with a seed, each draw's generator is seeded anew, one higher (siamese)."""

    def __init__(self, seed: int) -> None:
        self.seed, self.siamese = seed, seed >= 0

    def _reseed(self) -> None:
        if self.siamese:
            torch.random.manual_seed(self.seed)
            self.seed += 1

    def choice(self, count: int) -> int:
        """Return one integer below ``count``."""
        self._reseed()
        return int(torch.randint(0, count, (1,)).item())

    def uniform(self, *shape: int) -> Tensor:
        """Return a number per image; siamese: the first one's for all."""
        self._reseed()
        return self._shared(torch.rand(shape))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return an integer from ``low`` to ``high - 1`` per image; siamese: the first one's for all."""
        self._reseed()
        return self._shared(torch.randint(low, high, shape))

    def _shared(self, values: Tensor) -> Tensor:
        if self.siamese:
            values[:] = values[0].clone()
        return values


def augment(x: Tensor, strategy: str = ALL_OPERATIONS, seed: int = -1) -> Tensor:
    """Return ``x [B, C, H, W]`` after one operation of ``strategy`` (section 1.2)."""
    draws, names = Draws(seed), strategy.split("_")
    for function in OPERATIONS[names[draws.choice(len(names))]]:
        x = function(x, draws)
    return x.contiguous()


def _brightness(x: Tensor, draws: Draws) -> Tensor:
    return x + (draws.uniform(len(x), 1, 1, 1).to(x.dtype) - 0.5) * 1.0


def _saturation(x: Tensor, draws: Draws) -> Tensor:
    mean = x.mean(dim=1, keepdim=True)
    return (x - mean) * (draws.uniform(len(x), 1, 1, 1).to(x.dtype) * 2.0) + mean


def _contrast(x: Tensor, draws: Draws) -> Tensor:
    mean = x.mean(dim=[1, 2, 3], keepdim=True)
    return (x - mean) * (draws.uniform(len(x), 1, 1, 1).to(x.dtype) + 0.5) + mean


def _crop(x: Tensor, draws: Draws) -> Tensor:
    count, _, height, width = x.shape
    down, across = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
    by_rows = draws.integers(-down, down + 1, count, 1, 1)
    by_columns = draws.integers(-across, across + 1, count, 1, 1)
    images, rows, columns = torch.meshgrid(torch.arange(count), torch.arange(height), torch.arange(width), indexing="ij")
    rows = torch.clamp(rows + by_rows + 1, 0, height + 1)
    columns = torch.clamp(columns + by_columns + 1, 0, width + 1)
    framed = F.pad(x, [1, 1, 1, 1]).permute(0, 2, 3, 1).contiguous()
    return framed[images, rows, columns].permute(0, 3, 1, 2)


def _cutout(x: Tensor, draws: Draws) -> Tensor:
    count, _, height, width = x.shape
    high, wide = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
    top = draws.integers(0, height + (1 - high % 2), count, 1, 1)
    left = draws.integers(0, width + (1 - wide % 2), count, 1, 1)
    images, rows, columns = torch.meshgrid(torch.arange(count), torch.arange(high), torch.arange(wide), indexing="ij")
    rows = torch.clamp(rows + top - high // 2, 0, height - 1)
    columns = torch.clamp(columns + left - wide // 2, 0, width - 1)
    mask = torch.ones(count, height, width, dtype=x.dtype)
    mask[images, rows, columns] = 0
    return x * mask.unsqueeze(1)


def _flip(x: Tensor, draws: Draws) -> Tensor:
    return torch.where(draws.uniform(len(x), 1, 1, 1) < 0.5, x.flip(3), x)


def _scale(x: Tensor, draws: Draws) -> Tensor:
    low, high = 1 / 1.2, 1.2
    across = draws.uniform(len(x)) * (high - low) + low
    down = draws.uniform(len(x)) * (high - low) + low
    return _sample(x, [[[across[i], 0, 0], [0, down[i], 0]] for i in range(len(x))])


def _rotate(x: Tensor, draws: Draws) -> Tensor:
    angles = (draws.uniform(len(x)) - 0.5) * 2 * 15 / 180 * math.pi
    matrices = [[[torch.cos(a), torch.sin(-a), 0], [torch.sin(a), torch.cos(a), 0]] for a in angles]
    return _sample(x, matrices)


def _sample(x: Tensor, matrices: list[list[list[Tensor | int]]]) -> Tensor:
    grid = F.affine_grid(torch.tensor(matrices, dtype=torch.float), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid.to(x.dtype), align_corners=False)


OPERATIONS: dict[str, list[Callable[[Tensor, Draws], Tensor]]] = {
    "color": [_brightness, _saturation, _contrast],
    "crop": [_crop],
    "cutout": [_cutout],
    "flip": [_flip],
    "scale": [_scale],
    "rotate": [_rotate],
}


def dm_loss(
    net: ConvNet, synthetic: Tensor, ipc: int, classes: int, real_of: Callable[[int], Tensor], seed_of: Callable[[int], int]
) -> Tensor:
    """Return DM's loss, class by class (section 1.3); both sides of a class are augmented with the same seed."""
    loss = torch.zeros((), dtype=synthetic.dtype)
    for c in range(classes):
        seed = seed_of(c)
        real = augment(real_of(c), seed=seed)
        of_class = augment(synthetic[c * ipc : (c + 1) * ipc].reshape(ipc, *synthetic.shape[1:]), seed=seed)
        real_features = net.embed(real).detach()
        loss = loss + torch.sum((real_features.mean(dim=0) - net.embed(of_class).mean(dim=0)) ** 2)
    return loss


def dm_iterations(images: Tensor, labels: Tensor, ipc: int, batch_real: int = 256, classes: int = 10) -> Iterator[float]:
    """Run DM on normalised ``images [N, C, H, W]``, one iteration per item; yields the loss."""
    members = [np.flatnonzero(labels.numpy() == c) for c in range(classes)]
    random = np.random.RandomState(0)

    def sample(c: int, count: int) -> Tensor:
        return images[torch.from_numpy(random.permutation(members[c])[:count])]

    synthetic = torch.cat([sample(c, ipc) for c in range(classes)]).clone().requires_grad_(True)
    optimizer = torch.optim.SGD([synthetic], lr=1.0, momentum=0.5)
    while True:
        net = ConvNet(images.shape[1], classes).train()
        for parameter in net.parameters():
            parameter.requires_grad = False
        loss = dm_loss(net, synthetic, ipc, classes, lambda c: sample(c, batch_real), lambda c: int(random.randint(100_000)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def student_epochs(images: Tensor, labels: Tensor, classes: int = 10, batch: int = 256) -> Iterator[float]:
    """Train a ConvNet on a synthetic set with DSA, one epoch per item (section 3.5); yields the accuracy."""
    net = ConvNet(images.shape[1], classes).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)
    loader = DataLoader(TensorDataset(images, labels), batch_size=batch, shuffle=True, num_workers=0)
    while True:
        seen, right, total = 0, 0, 0.0
        for x, y in loader:
            x = augment(x.float(), seed=-1)
            output = net(x)
            loss = F.cross_entropy(output, y.long())
            right += int(np.sum(np.equal(np.argmax(output.detach().numpy(), axis=-1), y.numpy())))
            total += loss.item() * len(y)
            seen += len(y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield right / seen
