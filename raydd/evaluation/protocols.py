"""Published evaluation protocols, by name (dc_dsa_dm spec, sections 3.2, 3.4 and 3.5)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, Literal

from raydd.core.errors import ConfigError, unknown
from raydd.core.registry import Registry
from raydd.data.catalog import DatasetInfo
from raydd.networks import normalise_name
from raydd.training.sgd import Recipe


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a student is trained and judged; every field may be overridden, and :attr:`label` then says so.

    ``epochs``: E of the papers. The published loops run ``E + 1`` epochs, and after the epoch with index ``E // 2 + 1`` they
    divide the rate by ten and make a new optimiser, whose momentum is zero. ``augmentation``: the family; ``strategy``: its
    operations (``None``: those published for the data set and the network; ``none``: no augmentation).
    ``augmented_epochs``: E instead of ``epochs`` where an augmentation is in use. ``network_strategies``: pairs
    ``(network, strategy)`` of networks with a published strategy of their own, whatever the data set. SGD with
    ``momentum`` and ``weight_decay`` on all parameters; cross-entropy; accuracy of the last epoch.
    """

    name: str
    epochs: int
    batch: int = 256
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augmentation: Literal["none", "dsa", "dc"] = "none"
    strategy: str | None = None
    augmented_epochs: int | None = None
    network_strategies: tuple[tuple[str, str], ...] = ()

    def override(self, **fields: Any) -> Protocol:
        """Return the protocol with some fields changed; ``epochs`` holds with and without augmentation.

        Raises ``ConfigError`` for a field that does not exist, or that makes no difference.
        """
        allowed = ("epochs", "batch", "lr", "momentum", "weight_decay", "strategy")
        for key in fields:
            if key not in allowed:
                raise unknown(f"field of protocol '{self.name}':", key, allowed)
        if fields.get("strategy") is not None and self.augmentation == "none":
            raise ConfigError(f"protocol '{self.name}' has no augmentation, so strategy '{fields['strategy']}' has no effect")
        if "epochs" in fields:
            fields["augmented_epochs"] = None
        return replace(self, **fields)

    @property
    def label(self) -> str:
        """The name to print: ``dm``, or ``dm[epochs=300]`` for a protocol that is not as published."""
        published = PROTOCOLS.get(self.name)
        hidden = ("name", "augmented_epochs")
        changed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in hidden}
        changed = {key: value for key, value in changed.items() if value != getattr(published, key)}
        if self.augmented_epochs != published.augmented_epochs:
            changed["epochs"] = self.epochs
        return self.name + (f"[{','.join(f'{key}={value}' for key, value in changed.items())}]" if changed else "")

    def operations(self, info: DatasetInfo, network: str) -> str:
        """Return the augmentation's operations for a data set and a network, ``none`` where there are none."""
        if self.augmentation == "none" or self.strategy is not None:
            return self.strategy or "none"
        for name, strategy in self.network_strategies:
            if normalise_name(name) == normalise_name(network):
                return strategy
        return info.dsa_strategy if self.augmentation == "dsa" else info.dc_strategy

    def recipe(self, info: DatasetInfo, network: str) -> Recipe:
        """Return the training recipe for a data set and a network."""
        strategy = self.operations(info, network)
        augmented = strategy.lower() not in ("", "none")
        epochs = self.augmented_epochs if augmented and self.augmented_epochs is not None else self.epochs
        return Recipe(
            epochs=epochs + 1,
            batch=self.batch,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            drops=(epochs // 2 + 2,),
            augmentation=self.augmentation if augmented else "none",
            strategy=strategy if augmented else "",
        )


PROTOCOLS: Registry[Protocol] = Registry("protocol")


def _publish(protocol: Protocol) -> None:
    PROTOCOLS.register(protocol.name)(protocol)


_publish(Protocol(name="dc", epochs=300, augmentation="dc", augmented_epochs=1000, network_strategies=(("ConvNetBN", "crop_noise"),)))
_publish(Protocol(name="dsa", epochs=1000, augmentation="dsa"))
_publish(Protocol(name="dm", epochs=1000, augmentation="dsa"))
