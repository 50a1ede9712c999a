"""What a searched key may be: the kinds of a space file."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from raydd.core.errors import ConfigError, nearest
from raydd.core.plain_types import is_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_BETWEEN = 0.38196601125
"""A share of a range that is no whole number of anything."""


class Domain(ABC):
    """The values of one key."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Any:
        """Return a value at random."""

    @abstractmethod
    def distribution(self) -> BaseDistribution:
        """Return them as Optuna has them."""

    def param(self, value: Any) -> Any:
        """Return a value as Optuna has it."""
        return value

    def value(self, param: Any) -> Any:
        """Return the value that Optuna's parameter stands for."""
        return param

    @abstractmethod
    def corners(self) -> tuple[Any, ...]:
        """Return the values at the ends, or all of them where they are counted: what is checked before a search."""

    def inside(self) -> tuple[Any, ...]:
        """Return values between the corners, of which more may be wrong than of those: a fraction, say."""
        return ()

    def tried(self) -> tuple[Any, ...]:
        """Return what is checked before a search: corners and what is between."""
        return (*self.corners(), *self.inside())

    @abstractmethod
    def holds(self, value: Any) -> bool:
        """Return whether a value is one of them."""

    @abstractmethod
    def text(self) -> str:
        """Return them for a person."""

    logarithmic = False


def _unit(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator, dtype=torch.float64))


@dataclass(frozen=True)
class Choice(Domain):
    """One of a few values of any kind: numbers, names, lists."""

    values: tuple[Any, ...]

    def draw(self, generator: torch.Generator) -> Any:
        return self.values[int(torch.randint(len(self.values), (), generator=generator))]

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.labels())

    def param(self, value: Any) -> str:
        return label(value)

    def value(self, param: Any) -> Any:
        return self.values[self.labels().index(param)]

    def labels(self) -> tuple[str, ...]:
        """Return the values as texts, as Optuna names them."""
        return tuple(label(value) for value in self.values)

    def corners(self) -> tuple[Any, ...]:
        return self.values

    def holds(self, value: Any) -> bool:
        return label(value) in self.labels()

    def text(self) -> str:
        return f"one of {', '.join(self.labels())}"


@dataclass(frozen=True)
class Uniform(Domain):
    """A number of ``[low, high]``, evenly or evenly in its logarithm."""

    low: float
    high: float
    logarithmic: bool = False

    def draw(self, generator: torch.Generator) -> float:
        share = _unit(generator)
        if not self.logarithmic:
            return self.low + share * (self.high - self.low)
        value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        return min(max(value, self.low), self.high)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.logarithmic)

    def corners(self) -> tuple[float, ...]:
        return (self.low, self.high)

    def inside(self) -> tuple[float, ...]:
        return (self.low + (self.high - self.low) * _BETWEEN,)

    def holds(self, value: Any) -> bool:
        return _number(value) and self.low <= value <= self.high

    def text(self) -> str:
        return f"{self.low:g} to {self.high:g}{' by factors' if self.logarithmic else ''}"


@dataclass(frozen=True)
class Stepped(Domain):
    """A number ``low``, ``low + step``, … up to ``high``."""

    low: float
    high: float
    step: float

    @property
    def count(self) -> int:
        """How many there are."""
        return int((self.high - self.low) / self.step + 1e-9) + 1

    def draw(self, generator: torch.Generator) -> float:
        return self._at(int(torch.randint(self.count, (), generator=generator)))

    def _at(self, place: int) -> float:
        return float(f"{self.low + place * self.step:.12g}")

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self._at(self.count - 1), step=self.step)

    def value(self, param: Any) -> float:
        return self._at(round((param - self.low) / self.step))

    def corners(self) -> tuple[float, ...]:
        return (self.low, self._at(self.count - 1))

    def inside(self) -> tuple[float, ...]:
        return (self._at(1),) if self.count > 2 else ()

    def holds(self, value: Any) -> bool:
        if not _number(value) or not self.low <= value <= self.high:
            return False
        place = (value - self.low) / self.step
        return abs(place - round(place)) < 1e-6

    def text(self) -> str:
        return f"{self.low:g} to {self.high:g} in steps of {self.step:g}"


@dataclass(frozen=True)
class Integer(Domain):
    """A whole number of ``[low, high]``, both included."""

    low: int
    high: int

    def draw(self, generator: torch.Generator) -> int:
        return int(torch.randint(self.low, self.high + 1, (), generator=generator))

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high)

    def corners(self) -> tuple[int, ...]:
        return (self.low, self.high)

    def holds(self, value: Any) -> bool:
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
        )

    def text(self) -> str:
        return f"whole numbers from {self.low} to {self.high}"


def label(value: Any) -> str:
    """Return a value as a short text: a name as it is, anything else as JSON. Equal numbers have equal ones: 1, 1.0."""
    return value if isinstance(value, str) else json.dumps(_short(value), sort_keys=True)


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _short(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


KINDS = ("choice", "grid", "uniform", "loguniform", "quniform", "randint")


def domain(key: str, entry: Mapping[str, Any], where: str) -> Domain:
    """Return the values that a space file's mapping describes; ``ConfigError`` naming ``where`` and ``key``."""
    at = f"{where}: keys.{key}"
    kinds = [name for name in entry if name != "when"]
    for name in kinds:
        if name not in KINDS:
            raise ConfigError(
                f"{at}.{name}: unknown kind{nearest(name, KINDS)}; allowed: {', '.join(KINDS)}, and when"
            )
    if len(kinds) != 1:
        raise ConfigError(f"{at}: give one of {', '.join(KINDS)}, not {len(kinds)}")
    kind, given = kinds[0], entry[kinds[0]]
    if kind in ("choice", "grid"):
        return _choice(f"{at}.{kind}", given)
    numbers = 3 if kind == "quniform" else 2
    if (
        not isinstance(given, (list, tuple))
        or len(given) != numbers
        or not all(map(_number, map(_read, given)))
    ):
        wanted = "[low, high, step]" if numbers == 3 else "[low, high]"
        raise ConfigError(f"{at}.{kind}: {given!r}; write {wanted}, numbers all")
    low, high, *step = map(_read, given)
    if low >= high:
        raise ConfigError(f"{at}.{kind}: low {low:g} must be below high {high:g}")
    if kind == "randint":
        if low != int(low) or high != int(high):
            raise ConfigError(f"{at}.randint: {list(given)!r}; whole numbers are needed")
        return Integer(int(low), int(high))
    if kind == "quniform":
        if step[0] <= 0 or step[0] > high - low:
            raise ConfigError(
                f"{at}.quniform: step {step[0]:g} must be above 0 and at most {high - low:g}"
            )
        return Stepped(float(low), float(high), float(step[0]))
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"{at}.loguniform: low {low:g} must be above 0")
    return Uniform(float(low), float(high), logarithmic=kind == "loguniform")


def _choice(at: str, given: Any) -> Choice:
    if not isinstance(given, (list, tuple)) or not given:
        raise ConfigError(f"{at}: {given!r}; write a list of values")
    found = Choice(tuple(given))
    if len(set(found.labels())) < len(given):
        raise ConfigError(f"{at}: {list(given)!r} holds a value twice")
    return found


def _read(value: Any) -> Any:
    """Return a number that YAML takes for a text, as it does ``1e-3``."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _number(value: Any) -> bool:
    return is_of(value, float)
