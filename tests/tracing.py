"""Whether this torch compiles an update with its gradient as one graph."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


def _gradient(x: torch.Tensor) -> torch.Tensor:
    leaf = x.detach().requires_grad_(True)
    return torch.autograd.grad(leaf.square().sum(), leaf)[0]


@functools.cache
def _traces() -> bool:
    import torch._dynamo as dynamo

    if not hasattr(dynamo.config, "trace_autograd_ops"):
        return False
    try:
        with dynamo.config.patch(trace_autograd_ops=True):
            torch.compile(_gradient, fullgraph=True, backend="aot_eager")(torch.ones(2))
    except dynamo.exc.Unsupported:
        return False
    return True


@contextmanager
def traced_gradients() -> Iterator[None]:
    """Let ``torch.compile`` trace gradients; skip the test where it cannot trace those of tensors
    made inside (torch 2.11).
    """
    import torch._dynamo as dynamo

    if not _traces():
        pytest.skip("this torch cannot trace the gradient of a tensor that is made inside")
    with dynamo.config.patch(trace_autograd_ops=True):
        yield
    dynamo.reset()
