"""Models of timm and torchvision behind the interface of :class:`raydd.networks.network.Network`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from raydd.core.errors import ConfigError, first_line
from raydd.losses.priors import pooling
from raydd.networks.network import Network, Shape

_CHECKED: set[tuple[str, Shape, int]] = set()
"""Models that are known to put out features, by name, image shape and number of classes."""


@lru_cache(maxsize=2)
def external_names(library: str) -> tuple[str, ...]:
    """Return the names of a library's image classifiers, sorted."""
    if library == "timm":
        import timm

        return tuple(timm.list_models())
    from torchvision import models

    return tuple(models.list_models(module=models))


def is_external(library: str, name: str) -> bool:
    """Return whether a library has a model of this name (of timm's names also with a pretrained tag, ``name.tag``)."""
    base = name.split(".", 1)[0] if library == "timm" else name
    return base in external_names(library)


@lru_cache(maxsize=1)
def _renamed() -> dict[str, str]:
    """Return timm's former names of models, such as ``tv_resnet50``, and what it calls these now."""
    from timm.models import get_deprecated_models

    return {old: new for old, new in get_deprecated_models().items() if new}


def external_name(library: str, name: str) -> str | None:
    """Return what a library calls a model now, of a name that is or was one of its own; ``None`` for any other."""
    if is_external(library, name):
        return name
    return _renamed().get(name) if library == "timm" else None


def former_names(name: str) -> list[str]:
    """Return what timm called a model before; nothing for other libraries' models."""
    return (
        [old for old, new in _renamed().items() if f"timm/{new}" == name]
        if name.startswith("timm/")
        else []
    )


class ExactAveragePool(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling that can be differentiated where atomics are forbidden: torch's kernel on GPUs cannot.

    AlexNet and VGG pool maps that have the wanted size already, at 224 pixels; others become
    products with two matrices.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the averages, ``[..., height, width]`` of ``output_size``."""
        wanted = (
            self.output_size if isinstance(self.output_size, tuple) else (self.output_size,) * 2
        )
        sizes = tuple(x.shape[-2:])
        height, width = (out or size for out, size in zip(wanted, sizes, strict=True))
        if (height, width) == sizes:
            return x
        if (height, width) == (1, 1):  # torch takes the mean
            return super().forward(x)
        return (
            pooling(sizes[0], height, x.device, x.dtype)
            @ x
            @ pooling(sizes[1], width, x.device, x.dtype).T
        )


_DRAWING = threading.Lock()
"""Held while a library draws from torch's one global generator: fresh networks may be drawn in several threads."""


class ExternalNetwork(Network):
    """A timm or torchvision model for any channels and classes, and for any image size that its layers allow.

    ``body`` is the library's model without its last linear layer ``classifier`` (which it calls
    ``head``). Weights come from the library's own initialisation, drawn from one generator.
    """

    def __init__(self, name: str, shape: Shape, classes: int, generator: torch.Generator) -> None:
        super().__init__(name, shape, classes)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with _DRAWING, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                model = (
                    _timm_model(name, shape, classes)
                    if name.startswith("timm/")
                    else _torchvision_model(name, shape, classes)
                )
            except (RuntimeError, ValueError, TypeError, AssertionError) as error:
                raise _misfit(name, shape, error) from error
        self.head, classifier = _last_linear(model, name, classes)
        model.set_submodule(self.head, nn.Identity())
        for path, module in list(model.named_modules()):
            if type(module) is nn.AdaptiveAvgPool2d:
                model.set_submodule(path, ExactAveragePool(module.output_size))
        self.body = model
        self.classifier = classifier
        self.embed_dim = classifier.in_features
        self._check()

    def _check(self) -> None:
        """Refuse what puts out no features; models of one name, shape and number of classes put out the same."""
        known = (self.name, self.shape, self.classes)
        if known not in _CHECKED:
            self._probe()
            _CHECKED.add(known)

    def _probe(self) -> None:
        empty = {
            n: torch.empty_like(t, device="meta")
            for n, t in (*self.body.named_parameters(), *self.body.named_buffers())
        }
        training = self.body.training
        try:
            with torch.no_grad():
                features = functional_call(
                    self.body.eval(), empty, (torch.empty(2, *self.shape, device="meta"),)
                )
        except (RuntimeError, ValueError, AssertionError) as error:
            raise _misfit(self.name, self.shape, error) from error
        finally:
            self.body.train(training)
        if not isinstance(features, Tensor) or features.shape != (2, self.embed_dim):
            raise ConfigError(
                f"network '{self.name}' has no features [B, {self.embed_dim}] before its last linear layer"
            )

    def embed(self, x: Tensor) -> Tensor:
        """Return the features ``[B, embed_dim]`` that the last linear layer reads."""
        return self.body(x)

    def reinitialise_(self, generator: torch.Generator) -> None:
        """Refill all weights in place with a fresh draw of the library's own initialisation."""
        self.load_state_dict(
            ExternalNetwork(self.name, self.shape, self.classes, generator).state_dict()
        )

    def load_library_state(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under the library's own names (published checkpoints); ``RuntimeError`` if they do not fit."""
        prefix = f"{self.head}."
        renamed = {
            f"classifier.{k.removeprefix(prefix)}" if k.startswith(prefix) else f"body.{k}": v
            for k, v in state.items()
        }
        self.load_state_dict(renamed)


def _misfit(name: str, shape: Shape, error: Exception) -> ConfigError:
    return ConfigError(
        f"network '{name}' cannot read {shape[0]}x{shape[1]}x{shape[2]} images: {first_line(error)}"
    )


def _timm_model(name: str, shape: Shape, classes: int) -> nn.Module:
    import timm
    from timm.models import get_pretrained_cfg

    model = name.removeprefix("timm/")
    config = get_pretrained_cfg(model, allow_unregistered=True)
    sized: dict[str, Any] = (
        {"img_size": shape[1:]} if config is not None and config.fixed_input_size else {}
    )
    return timm.create_model(
        model, pretrained=False, num_classes=classes, in_chans=shape[0], **sized
    )


def _torchvision_model(name: str, shape: Shape, classes: int) -> nn.Module:
    from torchvision import models

    short = name.removeprefix("torchvision/")
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if short in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if short.startswith("vit_"):
        if shape[1] != shape[2]:
            raise ValueError("torchvision's transformers need square images")
        options["image_size"] = shape[1]
    model = models.get_model(short, **options)
    if shape[0] != 3:
        path, conv = next(
            (path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d)
        )
        _replace_first(model, path, conv, shape[0])
    return model


def _replace_first(model: nn.Module, path: str, conv: nn.Conv2d, channels: int) -> None:
    kernel, stride, padding = (
        tuple(getattr(conv, field)) for field in ("kernel_size", "stride", "padding")
    )
    new = nn.Conv2d(
        channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    model.set_submodule(path, new)


def _last_linear(model: nn.Module, name: str, classes: int) -> tuple[str, nn.Linear]:
    linear = [
        (path, m)
        for path, m in model.named_modules()
        if isinstance(m, nn.Linear) and m.out_features == classes
    ]
    get_classifier: Any = getattr(model, "get_classifier", None)
    chosen = get_classifier() if get_classifier else linear[-1][1] if linear else None
    for path, module in linear:
        if module is chosen:
            return path, module
    raise ConfigError(
        f"network '{name}' does not end in one linear layer of {classes} outputs, so it has no features to embed"
    )
