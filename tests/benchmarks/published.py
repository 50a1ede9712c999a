"""What raydd's speed is measured against: the published algorithms, written plainly.

Loops over classes, one set of augmentation numbers per image even where all images share them,
sampling matrices made of Python lists, whole permutations to draw a few images, a loader that
stacks images one by one. On a GPU everything is where the original has it: images, labels, networks
and most of the augmentation's numbers on the device; the choice of an operation, the numbers of
scale and rotate with their sampling grids, and the permutations on the CPU. Only torch and numpy;
nothing of raydd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from published_dsa import ALL_OPERATIONS, Seed, augment
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class ConvNet(nn.Module):
    """Three blocks of 128 channels: convolution, instance norm, ReLU, average pooling; 28 pixels work as 32."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for depth in range(3):
            padding = 3 if depth == 0 and channels == 1 else 1
            layers += [
                nn.Conv2d(channels if depth == 0 else width, width, 3, padding=padding),
                nn.GroupNorm(width, width),
            ]
            layers += [nn.ReLU(inplace=True), nn.AvgPool2d(2, 2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * 16, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return features ``[B, 2048]``."""
        return self.features(x).reshape(len(x), -1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.embed(x))


def dm_loss(
    net: ConvNet,
    synthetic: Tensor,
    ipc: int,
    classes: int,
    real_of: Callable[[int], Tensor],
    seed_of: Callable[[int], Seed],
) -> Tensor:
    """Return DM's loss, class by class; both sides of a class are augmented with the same seed."""
    loss = torch.zeros((), dtype=synthetic.dtype, device=synthetic.device)
    for c in range(classes):
        seed = seed_of(c)
        real = augment(real_of(c), seed=seed)
        of_class = augment(
            synthetic[c * ipc : (c + 1) * ipc].reshape(ipc, *synthetic.shape[1:]), seed=seed
        )
        real_features = net.embed(real).detach()
        loss = loss + torch.sum((real_features.mean(dim=0) - net.embed(of_class).mean(dim=0)) ** 2)
    return loss


class RealImages:
    """Normalised images ``[N, C, H, W]`` on a device, drawn class by class with a permutation of all of the class's."""

    def __init__(self, images: Tensor, labels: Tensor, classes: int) -> None:
        self.images, self.random = images, np.random.RandomState(0)
        self.members = [np.flatnonzero(labels.cpu().numpy() == c) for c in range(classes)]

    def sample(self, c: int, count: int) -> Tensor:
        """Return ``count`` images of a class."""
        return self.images[torch.from_numpy(self.random.permutation(self.members[c])[:count])]

    def seed(self, c: int) -> int:
        """Return the seed of a class's augmentation."""
        return int(self.random.randint(100_000))


def dm_iterations(
    images: Tensor,
    labels: Tensor,
    ipc: int,
    batch_real: int = 256,
    classes: int = 10,
    width: int = 128,
) -> Iterator[float]:
    """Run DM on normalised ``images [N, C, H, W]``, one iteration per item; yields the loss."""
    real = RealImages(images, labels, classes)
    synthetic = (
        torch.cat([real.sample(c, ipc) for c in range(classes)]).clone().requires_grad_(True)
    )
    optimizer = torch.optim.SGD([synthetic], lr=1.0, momentum=0.5)
    while True:
        net = ConvNet(images.shape[1], classes, width).to(images.device).train()
        for parameter in net.parameters():
            parameter.requires_grad = False
        loss = dm_loss(
            net, synthetic, ipc, classes, lambda c: real.sample(c, batch_real), real.seed
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def gradient_distance(mine: Tensor, theirs: Tensor) -> Tensor:
    """Return the distance of one parameter's gradients: rows' cosines, none for vectors."""
    if mine.dim() == 1:
        return torch.zeros((), dtype=mine.dtype, device=mine.device)
    if mine.dim() == 4:
        mine, theirs = (
            g.reshape(g.shape[0], g.shape[1] * g.shape[2] * g.shape[3]) for g in (mine, theirs)
        )
    products = torch.sum(mine * theirs, dim=-1)
    return torch.sum(
        1 - products / (torch.norm(mine, dim=-1) * torch.norm(theirs, dim=-1) + 0.000001)
    )


def gradient_loss(
    net: ConvNet,
    synthetic: Tensor,
    ipc: int,
    classes: int,
    real_of: Callable[[int], Tensor],
    seed_of: Callable[[int], Seed],
    strategy: str = ALL_OPERATIONS,
) -> Tensor:
    """Return DC's loss, class by class, over all parameters; DSA's with a ``strategy`` other than ``none``."""
    parameters = list(net.parameters())
    total = torch.zeros((), dtype=synthetic.dtype, device=synthetic.device)
    for c in range(classes):
        real, of_class = (
            real_of(c),
            synthetic[c * ipc : (c + 1) * ipc].reshape(ipc, *synthetic.shape[1:]),
        )
        labels = [torch.full((count,), c, device=synthetic.device) for count in (len(real), ipc)]
        if strategy != "none":
            seed = seed_of(c)
            real, of_class = (augment(x, strategy, seed=seed) for x in (real, of_class))
        wanted = torch.autograd.grad(F.cross_entropy(net(real), labels[0]), parameters)
        theirs = [g.detach().clone() for g in wanted]
        mine = torch.autograd.grad(
            F.cross_entropy(net(of_class), labels[1]), parameters, create_graph=True
        )
        for a, b in zip(mine, theirs, strict=True):
            total = total + gradient_distance(a, b)
    return total


def gradient_iterations(
    images: Tensor,
    labels: Tensor,
    ipc: int,
    strategy: str = ALL_OPERATIONS,
    batch_real: int = 256,
    classes: int = 10,
    loops: tuple[int, int] = (1, 1),
    width: int = 128,
) -> Iterator[float]:
    """Run DC or DSA on normalised ``images [N, C, H, W]``, one update of the images per item; yields the loss.

    ``loops``: updates per network, and epochs of the network on the images between two of them.
    """
    real = RealImages(images, labels, classes)
    synthetic = torch.randn(classes * ipc, *images.shape[1:], device=images.device).requires_grad_(
        True
    )
    targets = torch.arange(classes, device=images.device).repeat_interleave(ipc)
    optimizer = torch.optim.SGD([synthetic], lr=0.1, momentum=0.5)
    while True:
        net = ConvNet(images.shape[1], classes, width).to(images.device).train()
        of_net = torch.optim.SGD(net.parameters(), lr=0.01)
        for outer in range(loops[0]):
            loss = gradient_loss(
                net,
                synthetic,
                ipc,
                classes,
                lambda c: real.sample(c, batch_real),
                real.seed,
                strategy,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if outer < loops[0] - 1:
                loader = DataLoader(
                    TensorDataset(synthetic.detach().clone(), targets),
                    batch_size=256,
                    shuffle=True,
                    num_workers=0,
                )
                for _ in range(loops[1]):
                    train_epoch(net, of_net, loader, strategy)
            yield loss.item()


def train_epoch(
    net: ConvNet,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[tuple[Tensor, ...]],
    strategy: str,
) -> float:
    """Train a network for an epoch; return its accuracy on the augmented images."""
    seen, right, total = 0, 0, 0.0
    for x, y in loader:
        x = x.float()
        if strategy != "none":
            x = augment(x, strategy, seed=-1)
        output = net(x)
        loss = F.cross_entropy(output, y.long())
        right += int(
            np.sum(np.equal(np.argmax(output.detach().cpu().numpy(), axis=-1), y.cpu().numpy()))
        )
        total += loss.item() * len(y)
        seen += len(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return right / seen


def student_epochs(
    images: Tensor, labels: Tensor, classes: int = 10, batch: int = 256, width: int = 128
) -> Iterator[float]:
    """Train a ConvNet on a synthetic set with DSA, one epoch per item; yields the accuracy."""
    net = ConvNet(images.shape[1], classes, width).to(images.device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)
    loader = DataLoader(
        TensorDataset(images, labels), batch_size=batch, shuffle=True, num_workers=0
    )
    while True:
        yield train_epoch(net, optimizer, loader, ALL_OPERATIONS)
