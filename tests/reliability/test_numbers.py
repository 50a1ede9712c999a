"""NaN and infinity in every stage's tensors, and by learning rates that are far too large: named, never published."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from dying import Life, in_order, places_of, plan_of, run_once, small_job
from fault_rows import Row, Tally
from safetensors.torch import load_file

from raydd.core.errors import RunFailed
from raydd.core.tensors import Tensors
from raydd.core.units import Stage
from raydd.methods import METHODS

STOPPED = (
    "The run stops and names stage, unit and step; no set is published, nothing in the store holds NaN or infinity; the"
    " same command without the fault goes on to a set"
)
VALUES = {"NaN": math.nan, "infinity": math.inf, "minus infinity": -math.inf}
WHOLE_NUMBERS = (
    "init/DrawImages",
    "init/RealPool",
    "distill/Herd",
    "distill/Cover",
    "init/RdedPool",
)
"""Stages whose tensors may be whole numbers alone."""


def poisoned_rows(name: str) -> Iterator[Row]:
    """Yield a row for each stage of a method, the values in turn; ``data``: stage and value."""
    for number, stage in enumerate(in_order(plan_of(name))):
        what, value = list(VALUES.items())[number % len(VALUES)]
        if stage not in WHOLE_NUMBERS:
            yield Row(
                "numbers",
                f"{name}, {stage}",
                f"{what} in a tensor of the last update",
                STOPPED,
                "test_what_is_not_finite_stops_the_run",
                data=(stage, value),
            )


POISONED = {name: list(poisoned_rows(name)) for name in METHODS.names()}
RATES = ("lr_img", "lr_z", "lr_inversion", "lr")
DIVERGING = [
    Row(
        "numbers",
        name,
        f"method.{field}=1e30",
        "the run stops and names stage and unit, or the set that is published is finite",
        "test_a_rate_that_is_far_too_large_publishes_nothing_that_is_not_finite",
        data=(name, f"method.{field}=1e30"),
    )
    for name in METHODS.names()
    for field in RATES
    if hasattr(METHODS.get(name), field) or field in METHODS.get(name).__dataclass_fields__
]
ELSEWHERE = [
    Row(
        "numbers",
        "a set of others",
        "NaN or infinity in images",
        "refused: how many images, and the first",
        "artifacts/test_reading.py::test_images_in_no_space_are_refused",
    ),
    Row(
        "numbers",
        "a set that is made",
        "NaN in images or soft labels",
        "refused: how many images, and the first",
        "artifacts/test_distilled_set.py::test_what_is_not_finite_is_refused",
    ),
    Row(
        "numbers",
        "a teacher's logits",
        "NaN, or beyond what the codec holds",
        "refused, with the codec",
        "labels/test_label_codecs.py::test_what_a_codec_cannot_hold_is_refused",
    ),
    Row(
        "numbers",
        "statistics of a network",
        "not finite in a batch of a slice",
        "refused, with batch and slice",
        "training/test_collecting_statistics.py::test_statistics_that_are_not_finite_are_refused",
    ),
]
"""Also promised, and shown by tests of other rooms."""
ROWS = [*(row for rows in POISONED.values() for row in rows), *DIVERGING, *ELSEWHERE]


def poison(tensors: Tensors, value: float) -> Tensors:
    """Return tensors with one value of the first that is of floating point replaced."""
    for name in sorted(tensors):
        if tensors[name].is_floating_point() and tensors[name].numel():
            bad = tensors[name].detach().clone()
            bad.view(-1)[-1] = value
            return {**tensors, name: bad}
    raise AssertionError(f"no tensor of floating point among {sorted(tensors)}")


@contextlib.contextmanager
def poisoned(stages: Sequence[Stage], value: float) -> Iterator[None]:
    """Let the last update of a unit of these stages, or where there is none what it puts out, hold a value."""
    with contextlib.ExitStack() as around:
        for kind in {type(stage) for stage in stages}:
            step, finish = kind.step, kind.finish

            def bad_step(
                self: Any, unit: str, state: Tensors, t: int, ctx: Any, step: Any = step
            ) -> Tensors:
                made = step(self, unit, state, t, ctx)
                return poison(made, value) if t == self.steps(unit) - 1 else made

            def bad_finish(
                self: Any, unit: str, state: Tensors, ctx: Any, finish: Any = finish
            ) -> Tensors:
                made = finish(self, unit, state, ctx)
                return made if self.steps(unit) else poison(made, value)

            around.enter_context(mock.patch.object(kind, "step", bad_step))
            around.enter_context(mock.patch.object(kind, "finish", bad_finish))
        yield


def not_finite(folder: Path) -> list[str]:
    """Return the tensors below a folder that hold NaN or infinity."""
    return [
        f"{path}: {name}"
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS.names())
def test_what_is_not_finite_stops_the_run(name: str, tmp_path: Path, tally: Tally) -> None:
    plan = plan_of(name, tmp_path)
    stages = in_order(plan)
    for row in POISONED[name]:
        stage_name, value = row.data
        with poisoned(stages[stage_name], value), pytest.raises(RunFailed) as refused:
            run_once(small_job(name, tmp_path), Life(places_of(plan)))
        text = str(refused.value)
        assert f"{stage_name} unit '" in text, row
        assert " step " in text, row
        assert "holds NaN or infinity" in text or " is nan" in text or "is inf" in text, text
        assert not (tmp_path / "out" / "distilled" / "data.safetensors").exists()
        assert not_finite(tmp_path) == [], row
    run_once(small_job(name, tmp_path), Life(places_of(plan)))
    assert (tmp_path / "out" / "distilled" / "data.safetensors").exists()
    assert not_finite(tmp_path) == []
    for row in POISONED[name]:
        tally(row, 1)


@pytest.mark.slow
@pytest.mark.parametrize("row", DIVERGING, ids=str)
def test_a_rate_that_is_far_too_large_publishes_nothing_that_is_not_finite(
    row: Row, tmp_path: Path, tally: Tally
) -> None:
    name, override = row.data
    data = tmp_path / "out" / "distilled" / "data.safetensors"
    failed = ""
    try:
        run_once([*small_job(name, tmp_path), override], Life(places_of(plan_of(name, tmp_path))))
    except RunFailed as error:
        failed = str(error)
    assert bool(failed) != data.exists()
    assert not failed or " unit '" in failed, failed
    assert not_finite(tmp_path) == []
    tally(row, 1)
