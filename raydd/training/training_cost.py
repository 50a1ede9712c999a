"""What training and testing a network costs, known without computing anything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raydd.core.rng import generator
from raydd.core.units import Cost
from raydd.networks import create_network, flops, parameter_count
from raydd.networks.network import Shape


@dataclass(frozen=True)
class NetworkFacts:
    """FLOP of one image's forward pass; numbers of parameters, of values its layers put out for one image, of features.

    ``alive``: values that exist together in a forward pass without a gradient, about: three of the
    largest layer's outputs. ``single``: whether a batch norm sees one value per channel of one
    image.
    """

    flop: float
    parameters: int
    activations: int
    features: int
    alive: int = 0
    single: bool = False


@lru_cache(maxsize=256)
def network_facts(name: str, shape: Shape, classes: int) -> NetworkFacts:
    """Return the facts of a network that a plan needs."""
    network = create_network(name, shape, classes, generator(0, "facts"))
    sizes, single = _outputs(network, shape)
    return NetworkFacts(
        float(flops(network, shape)),
        parameter_count(network),
        sum(sizes),
        network.embed_dim,
        3 * max(sizes),
        single,
    )


def _outputs(network: nn.Module, shape: Shape) -> tuple[list[int], bool]:
    """Return how many values each layer puts out for one image, and whether a batch norm is given one per channel."""
    sizes: list[int] = []
    single = False

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal single
        single = single or inputs[0].numel() == inputs[0].shape[1]

    hooks = [
        module.register_forward_hook(add)
        for module in network.modules()
        if not list(module.children())
    ]
    hooks += [
        module.register_forward_hook(look)
        for module in network.modules()
        if isinstance(module, _BatchNorm)
    ]
    try:
        with torch.no_grad():  # on real tensors: those without data would import the compiler
            network.eval()(torch.zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
    return sizes, single


def training_cost(
    name: str,
    shape: Shape,
    classes: int,
    *,
    networks: int,
    images: int,
    epochs: int,
    batch: int,
    tested: int = 0,
    at_once: int = 1,
    copies: int = 2,
) -> Cost:
    """Return the cost of training ``networks`` on ``images`` for ``epochs``, then testing each on ``tested`` images.

    FLOP: a training step is three forward passes. Memory: values of the forward pass and their gradients for
    ``at_once`` batches, and weights, gradients and what the optimiser keeps: ``copies`` of the weights, with them.
    """
    facts = network_facts(name, shape, classes)
    state = 4 * copies * facts.parameters * networks
    batch = min(batch, images) if images else batch
    return Cost(
        flop=networks * facts.flop * (3.0 * images * epochs + tested),
        peak_bytes=2 * state + 8 * facts.activations * batch * at_once,
        state_bytes=state,
        output_bytes=4 * facts.parameters * networks,
    )
