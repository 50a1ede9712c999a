"""Keys have a memory: fields that come later and classes that are renamed leave the keys of what was made before."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, make_dataclass
from typing import Any, ClassVar

import pytest

from raydd.core.units import Ref, Stage, added, canonical, key_name, stage_digest, unit_key, unkeyed
from raydd.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class Paint(Stage):
    phase: ClassVar[str] = "distill"
    colour: str = "red"


def later(name: str = "Paint", *fields: Any, **attributes: Any) -> Any:
    """Return the class as a later version of the code has it."""
    return make_dataclass(
        name,
        fields,
        bases=(Paint,),
        frozen=True,
        kw_only=True,
        namespace={"keyed_as": "Paint", **attributes},
    )


def test_a_later_field_is_in_the_key_only_away_from_the_value_of_before() -> None:
    before = Paint(seed=3)
    thick = later("Paint", ("layers", int, added(1)))
    assert stage_digest(thick(seed=3)) == stage_digest(before)
    assert unit_key(thick(seed=3), "all") == unit_key(before, "all")
    assert stage_digest(thick(seed=3, layers=2)) != stage_digest(before)


def test_the_value_of_before_stays_when_the_default_changes() -> None:
    thick = later("Paint", ("layers", int, added(1, default=2)))
    assert thick(seed=3).layers == 2
    assert stage_digest(thick(seed=3, layers=1)) == stage_digest(Paint(seed=3))
    assert stage_digest(thick(seed=3)) != stage_digest(Paint(seed=3))


def test_a_later_field_may_hold_a_group_of_fields() -> None:
    @dataclass(frozen=True)
    class Brush:
        width: float = 1.0
        bristles: tuple[int, ...] = (1, 2)

    painted = later("Paint", ("brush", Brush, added(Brush(), default_factory=Brush)))
    assert stage_digest(painted(seed=3)) == stage_digest(Paint(seed=3))
    assert stage_digest(painted(seed=3, brush=Brush(width=2.0))) != stage_digest(Paint(seed=3))
    # 1 and 1.0 are other values: as with every field, what is written in a job decides by its type.
    assert canonical(1) != canonical(1.0)


def test_a_renamed_class_keeps_its_keys_and_its_subclasses_have_their_own() -> None:
    renamed = later("Colouring")
    assert renamed.__name__ == "Colouring"
    assert stage_digest(renamed(seed=3)) == stage_digest(Paint(seed=3))
    assert canonical(Ref(renamed(seed=3), "all")) == canonical(Ref(Paint(seed=3), "all"))
    below = make_dataclass("Glossy", (), bases=(renamed,), frozen=True, kw_only=True)
    assert key_name(below) == "Glossy"
    assert stage_digest(below(seed=3)) != stage_digest(Paint(seed=3))


def test_fields_without_a_memory_are_in_the_key_always_and_unkeyed_ones_never() -> None:
    always = later("Paint", ("layers", int, field(default=1)))
    never = later("Paint", ("layers", int, unkeyed(default=1)))
    assert stage_digest(always(seed=3)) != stage_digest(Paint(seed=3))
    assert stage_digest(never(seed=3, layers=9)) == stage_digest(Paint(seed=3))


def stages(base: type = Stage) -> list[type]:
    found = []
    for cls in base.__subclasses__():
        found += ([cls] if cls.__module__.startswith("raydd.") else []) + stages(cls)
    return found


def test_no_two_stages_are_keyed_under_one_name() -> None:
    assert METHODS.names()  # all methods, and so all stages, are imported
    doubled = [
        name for name, count in Counter(key_name(cls) for cls in set(stages())).items() if count > 1
    ]
    assert not doubled


def test_only_plain_values_and_frozen_dataclasses_are_keyed() -> None:
    with pytest.raises(TypeError, match="a set cannot be part of a key"):
        canonical({1})
