"""Protocols in a whitened space: the same for every set, for random images and for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.whitening import fit
from raydd.core.errors import ConfigError, DataError
from raydd.core.store import Store
from raydd.core.units import Data, Numerics, Ref
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.datasets import with_digests
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.plan import evaluation_stages
from raydd.evaluation.spaces import JudgedSpace
from raydd.evaluation.stages import Evaluate, EvaluateNetworks
from raydd.evaluation.summary import summarise
from raydd.methods import METHODS, Problem
from raydd.runtime.estimate import stages_of
from raydd.runtime.runner import LocalRunner
from raydd.training.fit_whitening import FitWhitening, network_space
from raydd.training.recipe import Recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def info(digits: Mapping[str, Data]) -> DatasetInfo:
    return with_digests(entry("digits").info, digits)


def stages(info: DatasetInfo, **changes: Any) -> list[Evaluate | EvaluateNetworks]:
    problem = Problem(dataset=info, ipc=1, seed=3, numerics=Numerics())
    config = EvaluationConfig(
        protocol="rat_bptt", networks=("convnet1_w8",), repeats=1, baselines=("random", "whole"), epochs=4,
        whole_epochs=1, **changes,
    )  # fmt: skip
    plan = evaluation_stages(
        METHODS.get("dm")(network="convnet1_w8", iterations=2), problem, config
    )
    return [entry.stage for entry in plan.entries]


def test_one_whitening_for_every_set_and_for_all_images(info: DatasetInfo) -> None:
    planned = stages(info)
    fits = {stage.inputs(stage.units()[0])["space"] for stage in planned}
    assert len(fits) == 1
    (ref,) = fits
    assert isinstance(ref.stage, FitWhitening)
    assert ref.stage.space == "zca_per_image"
    assert {type(stage) for stage in planned} == {Evaluate, EvaluateNetworks}
    (whole,) = (stage for stage in planned if isinstance(stage, EvaluateNetworks))
    assert whole.teacher.inputs("network-000") == {"space": ref}
    assert whole.teacher.recipe.draw == "epochs", (
        "all images are gone through, whatever the set's students do"
    )
    other = stages(info, space="zca")
    assert {s.inputs(s.units()[0])["space"].stage.space for s in other} == {"zca"}  # type: ignore[attr-defined]
    plain = stages(info, space="normalised")
    assert all("space" not in stage.inputs(stage.units()[0]) for stage in plain)


@pytest.mark.parametrize("space", ["zca", "zca_per_image"])
def test_pixels_and_floats_of_a_set_come_into_the_space_of_the_tests(
    digits: Mapping[str, Data], info: DatasetInfo, space: str
) -> None:
    whitening = fit(digits["train"], space)
    judged = JudgedSpace(info, whitening, CPU)
    pixels, labels = digits["train"].take(torch.arange(6)), digits["train"].labels[:6]
    expected = network_space(info, whitening, CPU)(pixels)
    as_pixels = DistilledSet(images=pixels, labels=labels, info=info)
    as_floats = replace(as_pixels, images=as_pixels.normalised(pixels))
    for distilled in (as_pixels, as_floats):
        ((images, targets),) = judged.training_set(distilled, Recipe(epochs=1)).batches(0, 10, None)  # type: ignore[arg-type]
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
        assert torch.equal(targets, labels)
    own = replace(as_pixels, images=expected, whitening=whitening, mean=(0.0,), std=(1.0,))
    ((images, _),) = judged.training_set(own, Recipe(epochs=1)).batches(0, 10, None)  # type: ignore[arg-type]
    assert torch.equal(images, expected), "a set that was made in it stays as it is"
    other = replace(own, whitening=replace(whitening, per_image=not whitening.per_image))
    with pytest.raises(DataError, match="another whitened space"):
        judged.training_set(other, Recipe(epochs=1))


def test_a_set_made_whitened_is_not_judged_in_another_space(info: DatasetInfo) -> None:
    problem = Problem(dataset=info, ipc=1, seed=3, numerics=Numerics())
    method = METHODS.get("rat_bptt")(network="convnet1_w8", window=2, totwindow=4)
    for space in ("normalised", "zca"):
        with pytest.raises(ConfigError, match=r"set evaluation\.space=zca_per_image"):
            evaluation_stages(method, problem, EvaluationConfig(space=space))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'rat_bptt' is made in the space 'zca_per_image'"):
        evaluation_stages(METHODS.get("dm")(), problem, EvaluationConfig(baselines=(method,)))
    with pytest.raises(ConfigError, match=r"evaluation\.continual: protocol 'rat_bptt'"):
        evaluation_stages(method, problem, EvaluationConfig(continual=5))


def test_what_students_reach_on_the_way_stands_in_rows_of_its_own(
    digits: Mapping[str, Data], info: DatasetInfo, tmp_path: Any
) -> None:
    problem = Problem(dataset=info, ipc=1, seed=3, numerics=Numerics())
    config = EvaluationConfig(
        protocol="podd", networks=("convnet1_w4",), repeats=2, epochs=9, after=(1, 4), baselines=("random",)
    )  # fmt: skip
    method = METHODS.get("herding")(network="convnet1_w4", epochs=1)
    plan = evaluation_stages(method, problem, config)
    store = Store(str(tmp_path))
    LocalRunner(lambda: digits, device=CPU).run(plan.targets(), store, lambda event: None)
    rows = summarise(plan, store.load).rows
    protocols = ["podd[epochs=9]", "podd[epochs=9] after 1", "podd[epochs=9] after 4"]
    assert [(row.set, row.protocol) for row in rows] == [
        (name, protocol) for protocol in protocols for name in ("herding", "random")
    ]
    four = evaluation_stages(method, problem, replace(config, epochs=4, after=()))
    LocalRunner(lambda: digits, device=CPU).run(four.targets(), store, lambda event: None)
    expected = [row.accuracy_mean for row in summarise(four, store.load).rows]
    assert [row.accuracy_mean for row in rows[4:]] == expected, (
        "as if they had been trained so long"
    )
    with pytest.raises(ConfigError, match=r"evaluation\.after: 4 stands there more than once"):
        replace(config, after=(4, 1, 4))
    with pytest.raises(ConfigError, match=r"evaluation\.after=9"):
        evaluation_stages(method, problem, replace(config, after=(9,)))


@pytest.mark.slow
def test_students_and_tests_are_whitened_alike(
    digits: Mapping[str, Data], info: DatasetInfo, tmp_path: Any
) -> None:
    """Trained on whitened images, random ones teach far more than chance: tests are in the same space."""
    problem = Problem(dataset=info, ipc=10, seed=3, numerics=Numerics())
    config = EvaluationConfig(
        protocol="rat_bptt", networks=("convnet2_w16",), repeats=1, baselines=("whole",), epochs=150,
        whole_epochs=15,
    )  # fmt: skip
    plan = evaluation_stages(METHODS.get("random")(), problem, config)
    store = Store(str(tmp_path))
    LocalRunner(lambda: digits, device=CPU).run(plan.targets(), store, lambda event: None)
    report = summarise(plan, store.load)
    assert {row.set for row in report.rows} == {"random", "whole"}
    assert min(row.accuracy_mean for row in report.rows) > 65
    ran: list[Ref] = plan.targets()
    assert sum(isinstance(stage, FitWhitening) for stage, _, _ in stages_of(ran)) == 1
