"""What a protocol comes to: the numbers that networks are trained with, as reports keep and show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the students of some sets and networks were trained: ``recipe`` holds what counts, by field, as plain values.

    ``protocol``: its printed name, as in the report's rows.
    """

    protocol: str
    sets: tuple[str, ...]
    networks: tuple[str, ...]
    recipe: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in ("sets", "networks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def text(self) -> str:
        """Return one line: the protocol, whom it trained, and the recipe."""
        return f"{self.protocol} ({', '.join(self.sets)}; {', '.join(self.networks)}): {recipe_text(self.recipe)}"


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return a recipe's values for people: ``151 epochs of batches of 256; sgd, lr 0.01, momentum 0.9; …``."""

    def of(*names: str) -> str:
        return "".join(
            f", {name.replace('_', ' ')} {_plain(recipe[name])}" for name in names if name in recipe
        )

    slices = f" in {recipe['accumulate']} slices" if "accumulate" in recipe else ""
    drawn = {"images": "", "classes": ", as many of each class"}
    if "draw" in recipe:
        batch = f"a fresh batch of up to {recipe['batch']} images{drawn[recipe['draw']]}"
        parts = [f"{recipe['epochs']} steps, each on {batch}{slices}"]
    else:
        parts = [f"{recipe['epochs']} epochs of batches of {recipe['batch']}{slices}"]
    if recipe.get("drop_last"):
        parts[0] += ", without a last, smaller one"
    decay = " of matrices only" if recipe.get("decay") == "matrices_only" else ""
    parts.append(f"{recipe['optimizer']}{of('lr', 'momentum', 'betas', 'weight_decay')}{decay}")
    falls = [*recipe.get("drops", ()), *recipe.get("milestones", ())]
    drops = (
        f", times {recipe['drop_factor']:g} from epoch {', '.join(map(str, falls))}"
        if falls
        else ""
    )
    parts.append(f"schedule {recipe['schedule']}{drops}{of('st', 'warmup')}")
    parts.append(f"loss {recipe['loss']}{of('ce_weight', 'temperature', 'kl_scale')}")
    if "ema" in recipe:
        parts.append(f"tested with a moving average of {recipe['ema']:g}")
    if recipe.get("double_norm"):
        parts.append("batch norms updated twice")
    parts.append(f"augmentation {recipe['augmentation']}{of('strategy', 'pad', 'scale')}")
    return "; ".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "/".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
