"""An update of recovery as a function of tensors: one graph, the same work every time, nothing waited for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from recording import Strict
from recovering import MicroRecovery, micro_stage, micro_teacher
from stage_context import StageContext
from torch import Tensor
from tracing import traced_gradients

from raydd.core.captured import Captured
from raydd.core.tensors import Tensors
from raydd.core.units import Context
from raydd.methods.recovery.recover_config import Priors
from raydd.methods.recovery.recover_groups import Grouping
from raydd.methods.recovery.recover_objective import ObservedTeacher
from raydd.methods.recovery.recover_update import Recorded, Update
from raydd.methods.recovery.recover_views import Views

AUGMENTED = Views(crop=(0.3, 1.0), flip=True, jitter=(-2, 3))
SETTINGS: dict[str, dict[str, Any]] = {
    "edc": {
        "views": AUGMENTED,
        "matching": {"drop_rate": 0.4},
        "priors": Priors(flatness_weight=1.0, flatness_alpha=0.9),
    },
    "sre2l": {
        "views": Views(pad=3, flip=True),
        "matching": {"kinds": ("bn",), "momentum": 0.0, "class_weight": 0.0},
        "priors": Priors(tv=1e-3, l2=1e-3),
        "grouping": Grouping(group_size=4, groups_per_unit=2),
    },
    "a chain": {
        "matching": {"ema_init": "first", "ema_carry": "chain", "drop_rate": 0.5},
        "grouping": Grouping(group_size=4, groups_per_unit=2),
    },
}
every_setting = pytest.mark.parametrize("setting", SETTINGS)


def updates(stage: MicroRecovery, count: int) -> list[tuple[Update, dict[str, Tensor]]]:
    """Return the first updates of a stage's first unit, and what each was given."""
    calls: list[tuple[Update, dict[str, Tensor]]] = []
    original = Recorded.__call__

    def call(self: Recorded, given: Mapping[str, Tensor]) -> Tensors:
        calls.append((self.update, {name: value.clone() for name, value in given.items()}))
        return original(self, given)

    unit, ctx = stage.units()[0], StageContext(stage)
    state = stage.init(unit, ctx)
    with mock.patch.object(Recorded, "__call__", call):
        for t in range(count):
            state = stage.step(unit, state, t, ctx)
    return calls


@every_setting
def test_updates_do_the_same_work_and_wait_for_nothing(setting: str) -> None:
    known: dict[int, Any] = {}
    for update, given in updates(micro_stage(**SETTINGS[setting]), 6):
        with Strict() as strict:
            update(given)
        assert len(strict.seen) > 50
        assert known.setdefault(id(update), strict.seen) == strict.seen
    assert len(known) == 2, "one for each network"


@pytest.mark.slow
@every_setting
def test_an_update_compiles_without_a_break_to_the_same_bytes(setting: str) -> None:
    ((update, given),) = updates(micro_stage(**SETTINGS[setting]), 1)
    with traced_gradients():
        found = torch.compile(update.__call__, fullgraph=True, backend="aot_eager")(given)
    want = update(given)
    assert list(found) == list(want)
    for name, value in want.items():
        assert torch.equal(found[name], value), name


def test_updates_are_recorded_unless_they_wait_for_the_device() -> None:
    cpu = torch.device("cpu")
    for priors, recorded in ((Priors(tv=1.0), True), (Priors(dd_weight=1.0), False)):
        ((update, given),) = updates(micro_stage(priors=priors), 1)
        with mock.patch.object(
            Captured, "__call__", autospec=True, side_effect=lambda self, *x: self.function(*x)
        ) as call:
            found = Recorded(update, cpu)(given)
        assert call.called is recorded
        assert torch.equal(found["images"], update(given)["images"])


def test_a_chain_makes_updates_anew_for_every_group() -> None:
    """Their classes are numbers in an update with data densification."""
    stage = micro_stage(**SETTINGS["a chain"], priors=Priors(dd_weight=1.0), iterations=3)
    found = [tuple(update.classes[0]) for update, _ in updates(stage, 6)]
    assert found == [(0, 0, 1, 1)] * 3 + [(2, 2, 3, 3)] * 3


@dataclass(frozen=True, kw_only=True)
class OnDevice(MicroRecovery):
    """The micro nets on the context's device."""

    def teacher(self, k: int, ctx: Context) -> ObservedTeacher:
        return ctx.cached(("micro", k), partial(self._moved, k, ctx.device))

    @staticmethod
    def _moved(k: int, device: torch.device) -> ObservedTeacher:
        teacher = micro_teacher(k)
        teacher.tap.network.to(device)
        assert teacher.overall is not None
        assert teacher.table is not None
        return ObservedTeacher(teacher.tap, teacher.overall.to(device), teacher.table.to(device))


@pytest.mark.gpu
@every_setting
def test_a_gpu_repeats_its_recording_and_agrees_with_a_cpu(setting: str) -> None:
    plain = micro_stage(**SETTINGS[setting])
    stage = OnDevice(**{f.name: getattr(plain, f.name) for f in fields(plain)})

    def states(device: str) -> list[Tensors]:
        unit, ctx = stage.units()[0], StageContext(stage, device=torch.device(device))
        found = [stage.init(unit, ctx)]
        for t in range(5):
            found.append(stage.step(unit, found[-1], t, ctx))
        return [{name: value.cpu() for name, value in state.items()} for state in found]

    with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True):
        recorded, again = states("cuda"), states("cuda")
        with mock.patch.object(
            Captured,
            "__call__",
            lambda self, *x: tuple(self.function(*(v.to(self.device) for v in x))),
        ):
            called = states("cuda")
    for state, same, eager, cpu in zip(recorded, again, called, states("cpu"), strict=True):
        for name, value in state.items():
            assert torch.equal(value, same[name]), name
            assert torch.equal(value, eager[name]), name
            torch.testing.assert_close(value.float(), cpu[name].float(), rtol=1e-3, atol=1e-3)
