"""A network as a function of one vector of weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from raydd.core.errors import ConfigError
from raydd.networks import is_per_sample
from raydd.networks.flat import flatten
from raydd.networks.network import Network
from raydd.networks.twice import twice_differentiable
from raydd.training.precision import cancelled_biases


class WeightVector:
    """``once(theta, images)`` and ``twice(theta, images)``: logits of a network whose weights are ``theta [P]``.

    ``once`` for first, ``twice`` for second derivatives, with norms of few kernels where a GPU runs
    eager code (on a CPU the library's are faster, and only theirs can be compiled). Biases that the
    following norm takes away are no part of the vector: their gradients are zero but for rounding,
    which Adam would blow up.
    ``ConfigError`` for a network that mixes the images of a batch, or draws.
    """

    def __init__(self, network: Network, *, compile: bool = False) -> None:
        network.train()
        if not is_per_sample(network):
            raise ConfigError(
                f"method.network={network.name} has batch norm or dropout; an unroll needs a network that neither mixes"
                " the images of a batch nor draws, such as convnet3"
            )
        few = next(network.parameters()).device.type != "cpu" and not compile
        self.network: torch.nn.Module = network
        self.twin = twice_differentiable(network) if few else network
        self._fill = network.reinitialise_
        still = set(cancelled_biases(network))
        self.still = {n: p.detach() for n, p in network.named_parameters() if n in still}
        moving = {n: p for n, p in network.named_parameters() if n not in still}
        self.names, self.shapes = list(moving), [p.shape for p in moving.values()]
        self.sizes = [p.numel() for p in moving.values()]

    def __len__(self) -> int:
        return sum(self.sizes)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the parameters by name, as views of the vector."""
        pieces = zip(self.names, theta.split(self.sizes), self.shapes, strict=True)
        return {name: piece.view(shape) for name, piece, shape in pieces} | self.still

    def fresh(self, generator: torch.Generator) -> Tensor:
        """Return the weights ``[P]`` of a new random network."""
        self._fill(generator)
        named = dict(self.network.named_parameters())
        return flatten(named[name] for name in self.names)

    def once(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return logits ``[B, classes]``, differentiable once at the speed of the library's kernels."""
        return functional_call(self.network, self.named(theta), (images,))

    def twice(self, theta: Tensor, images: Tensor) -> Tensor:
        """Return logits ``[B, classes]``, differentiable twice."""
        return functional_call(self.twin, self.named(theta), (images,))
