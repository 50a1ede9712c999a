"""Gradients of a network's weights on real and on synthetic images, and how the latter follow the former (DC, DSA).

Worked out in docs/methods/dc_dsa.md, "Distance between gradients", "Batch norm" and "Second derivatives". Pure
functions of tensors and of a network's weights and modes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.losses import gradient_distance, is_matched
from raydd.losses.soft import cross_entropy
from raydd.networks import is_per_sample
from raydd.networks.segments import Segmented


def matched_parameters(network: nn.Module, distance: str) -> dict[str, nn.Parameter]:
    """Return the parameters whose gradients enter a distance, by name, in the network's order."""
    return {name: p for name, p in network.named_parameters() if is_matched(p, distance)}


def prepare_(network: nn.Module, distance: str) -> None:
    """Put a network into the modes of matching: train, but batch norms frozen; only matched
    parameters have gradients.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    matched = matched_parameters(network, distance)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in matched)


def check_network(network: nn.Module, name: str, distance: str) -> None:
    """Raise ``ConfigError`` for a network that gradients cannot be matched on."""
    if not matched_parameters(network, distance):
        raise ConfigError(
            f"method.network={name} has no parameter of 2 or more dimensions, and distance '{distance}' reads no other;"
            " use another network, or distance mse or cos"
        )
    prepare_(network, distance)
    if not is_per_sample(network):
        raise ConfigError(
            f"method.network={name} draws at random (dropout, stochastic depth) or mixes the images of a batch while"
            " its gradients are taken; use a network that does neither, such as convnet3"
        )


@torch.no_grad()
def freeze_batchnorm_(network: nn.Module, images: Tensor) -> None:
    """Update running statistics by one forward pass of ``images [N, C, H, W]``, then put batch norms into eval mode.

    The statistics are what they were, moved by a tenth (the norms' momentum) towards the batch's: not the batch's own.
    """
    network.train()
    network(images)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def class_gradient(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    label: int | Tensor,
    distance: str,
) -> tuple[Tensor, ...]:
    """Return the gradient of the mean cross entropy of one class's ``images [B, C, H, W]`` in each matched parameter.

    ``forward``: the network, or its fast form that shares its weights.
    """
    with torch.enable_grad():
        loss = _cross_entropy(forward(images), label)
        return torch.autograd.grad(
            loss, list(matched_parameters(network, distance).values()), materialize_grads=True
        )


def class_gradients(
    network: nn.Module, segmented: Segmented | None, images: Tensor, labels: Tensor, distance: str
) -> list[Tensor]:
    """Return each class's gradient of its mean cross entropy in each matched parameter, ``[K, *parameter shape]`` each.

    ``images``: ``[K, B, C, H, W]``; ``labels``: ``[K]``, on their device. ``segmented``: the
    network's form in which all classes go through together, if it has one (:func:`segmented_form`);
    else class after class.
    """
    if segmented is None:
        found = [
            class_gradient(network, network, of_class, label, distance)
            for of_class, label in zip(images, labels, strict=True)
        ]
        return [torch.stack(of_parameter) for of_parameter in zip(*found, strict=True)]
    count, each = images.shape[:2]
    with torch.enable_grad():
        logits, weights = segmented(images.flatten(0, 1), count)
        loss = (
            F.cross_entropy(logits, labels.unsqueeze(1).expand(-1, each).flatten(), reduction="sum")
            / each
        )
        return list(torch.autograd.grad(loss, weights))


def train_step_(
    forward: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
) -> None:
    """Update the weights behind ``forward`` in place: one step on the mean cross entropy of a batch."""
    with torch.enable_grad():
        optimizer.zero_grad()
        F.cross_entropy(forward(images), labels).backward()
        optimizer.step()


def match(
    network: nn.Module,
    images: Tensor,
    labels: Sequence[int] | Tensor,
    real: Sequence[Tensor],
    distance: str,
    *,
    at_once: bool,
) -> tuple[Tensor, Tensor]:
    """Return each class's distance ``[K]`` between gradients, and its derivative in ``images [K, n, C, H, W]``.

    ``labels``: numbers, or a tensor ``[K]`` on the images' device. ``real``: a gradient per matched
    parameter, ``[K, *parameter shape]``. The network must be one whose output for an image depends
    on that image alone. ``at_once``: all classes by one call (for GPUs, where small kernels wait to
    be launched); else class by class, which needs the memory of one and is as fast on a CPU. Equal
    up to rounding.
    """
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        return (_match_at_once if at_once else _match_in_turn)(
            network, images, labels, real, distance
        )


def _match_in_turn(
    network: nn.Module,
    images: Tensor,
    labels: Sequence[int] | Tensor,
    real: Sequence[Tensor],
    distance: str,
) -> tuple[Tensor, Tensor]:
    parameters = list(matched_parameters(network, distance).values())
    values: list[Tensor] = []
    derivatives: list[Tensor] = []
    with torch.enable_grad():
        for k, label in enumerate(labels):
            leaf = images[k].detach().requires_grad_(True)
            loss = _cross_entropy(network(leaf), label)
            found = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
            value = gradient_distance(
                [g.unsqueeze(0) for g in found], [g[k : k + 1] for g in real], distance
            )[0]
            derivatives += torch.autograd.grad(value, leaf)
            values.append(value.detach())
    return torch.stack(values), torch.stack(derivatives)


def _match_at_once(
    network: nn.Module,
    images: Tensor,
    labels: Sequence[int] | Tensor,
    real: Sequence[Tensor],
    distance: str,
) -> tuple[Tensor, Tensor]:
    matched = {name: p.detach() for name, p in matched_parameters(network, distance).items()}
    fixed = {name: p.detach() for name, p in network.named_parameters() if name not in matched}

    def loss(weights: Tensors, x: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(
            functional_call(network, {**fixed, **weights}, (x,)), label.expand(len(x))
        )

    def of_class(x: Tensor, label: Tensor, wanted: list[Tensor]) -> Tensor:
        found = grad(loss)(matched, x, label)
        return gradient_distance(
            [found[name].unsqueeze(0) for name in matched],
            [g.unsqueeze(0) for g in wanted],
            distance,
        )[0]

    # Both derivatives are torch.func's: ordinary backward through vmap(grad) is wrong for layer norms
    # (docs/methods/dc_dsa.md, "Second derivatives").
    targets = labels if isinstance(labels, Tensor) else torch.tensor(labels, device=images.device)
    derivatives, values = vmap(grad_and_value(of_class))(images.detach(), targets, list(real))
    return values, derivatives


def _cross_entropy(logits: Tensor, label: int | Tensor) -> Tensor:
    if isinstance(label, Tensor):
        return F.cross_entropy(logits, label.expand(len(logits)))
    return F.cross_entropy(logits, torch.full((len(logits),), label, device=logits.device))
