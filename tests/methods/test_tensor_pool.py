"""Start images from published tensors: the same pixels in the same places, and what is refused before anything runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_jobs import job, raydd
from stage_context import StageContext
from torch import Tensor

from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.storage import Storage
from raydd.core.typed_tree import build
from raydd.core.units import Numerics, Stage
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.memory import normalise
from raydd.methods import METHODS, Problem
from raydd.methods.dwa import Dwa
from raydd.methods.pools.init_config import InitConfig
from raydd.methods.pools.tensor_pool import TensorPool, as_pixels
from raydd.training.teacher_config import TeacherConfig

INFO = replace(entry("cifar10").info, train_counts=(5000,) * 10)
OTHER_STD = (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10, too, but not what our images are normalised by."""
TEACHERS = TeacherConfig(weights="train")


def problem(info: DatasetInfo = INFO, ipc: int = 3) -> Problem:
    return Problem(dataset=info, ipc=ipc, seed=0, numerics=Numerics())


def pictures(k: int, info: DatasetInfo = INFO) -> Tensor:
    """Return image ``k`` of every class, uint8."""
    shape = (info.classes, *info.shape)
    return torch.randint(256, shape, generator=generator(k, "pictures"), dtype=torch.uint8)


def publish(
    folder: Path, count: int, info: DatasetInfo = INFO, dtype: torch.dtype = torch.float32
) -> str:
    """Write files as DWA and INFER publish them."""
    folder.mkdir(exist_ok=True)
    for k in range(count):
        values = normalise(pictures(k, info), info.mean, info.std).to(dtype)
        torch.save(values, folder / f"tensor_{k}.pt")
    return str(folder)


def pool_of(folder: str, of: Problem | None = None, **fields: Any) -> TensorPool:
    config = InitConfig(kind="tensors", folder=folder, **fields)
    stage = config.pool_stage(of or problem(), TEACHERS)
    assert isinstance(stage, TensorPool)
    return stage


def faults(folder: str, of: Problem | None = None, **fields: Any) -> list[str]:
    return InitConfig(kind="tensors", folder=folder, **fields).missing(of or problem(), TEACHERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_pool_is_the_pixels_of_the_files(tmp_path: Path, dtype: torch.dtype) -> None:
    stage = pool_of(publish(tmp_path / "x", 4, dtype=dtype), classes_per_unit=4)
    assert stage.pool == 3
    ctx = StageContext(stage)
    for unit, classes in stage.blocks.items():
        found = stage.finish(unit, {}, ctx)
        assert found["labels"].tolist() == [c for c in classes for _ in range(3)]
        wanted = torch.stack([pictures(k)[c] for c in classes for k in range(3)])
        assert torch.equal(found["images"], wanted)


def test_image_k_of_a_class_starts_as_the_one_in_file_k(tmp_path: Path) -> None:
    fields = {
        "networks": ("convnet1_w8_batchnorm",),
        "teachers": {"weights": "train"},
        "init": {"kind": "tensors", "folder": publish(tmp_path / "x", 3)},
        "crop": None,
        "jitter": (0, 4),
        "group_size": 10,
    }
    stage: Any = build(METHODS.get("dwa"), fields, "test").plan(problem())[-1]
    pool = stage.pool
    made = StageContext(pool)
    loaded = {f"pool-{unit}": pool.finish(unit, {}, made) for unit in pool.units()}
    for number, unit in enumerate(stage.units()):
        found = stage.start(stage.groups_of[unit], StageContext(stage, loaded=loaded))
        published = torch.load(tmp_path / "x" / f"tensor_{number}.pt", weights_only=True)
        assert (found - published).abs().max() <= 2**-21, "the values of the file, but for rounding"


class Fewer(Dwa):
    """Recovers one image of each class less than are asked for, as a method with a budget of its own may."""

    def start_ipc(self, problem: Problem) -> float:
        return problem.ipc - 1

    def plan(self, problem: Problem) -> list[Stage]:
        return super().plan(replace(problem, ipc=self.start_ipc(problem)))


def test_as_many_files_are_asked_for_as_images_are_recovered(tmp_path: Path) -> None:
    init = InitConfig(kind="tensors", folder=publish(tmp_path / "x", 2))
    few, all_of_them = (
        kind(
            networks=("convnet1_w8_batchnorm",),
            teachers=TEACHERS,
            init=init,
            crop=None,
            jitter=(0, 4),
        )
        for kind in (Fewer, Dwa)
    )
    assert few.missing(problem()) == []
    assert "tensor_2.pt of 3 files are not in" in all_of_them.missing(problem())[0]


def test_files_of_another_normalisation_need_it_said(tmp_path: Path) -> None:
    narrow = publish(tmp_path / "narrow", 3, replace(INFO, std=(0.1, 0.1, 0.1)))
    (line,) = faults(narrow)
    assert "tensor_0.pt: normalised by mean [0.491" in line
    assert "not 0 to 1; give init.mean and init.std" in line
    assert line.endswith("(2 more files do not fit)")
    url = publish(tmp_path / "x", 3, replace(INFO, std=OTHER_STD))
    assert "between two of 256 levels; give init.mean and init.std" in faults(url)[0]
    assert faults(url, mean=INFO.mean, std=OTHER_STD) == []
    stage = pool_of(url, mean=INFO.mean, std=OTHER_STD)
    found = stage.finish(stage.units()[0], {}, StageContext(stage))["images"]
    assert torch.equal(found[1], pictures(1)[0])


def test_what_is_missing_or_does_not_fit_is_listed_before_anything_runs(tmp_path: Path) -> None:
    url = publish(tmp_path / "x", 2)
    (line,) = faults(url, problem(ipc=9))
    assert "tensor_2.pt, tensor_3.pt, tensor_4.pt and 4 more of 9 files are not in" in line
    assert "[10, 3, 32, 32], normalised" in line
    assert pool_of(url, problem(ipc=9)).digests[2:] == ("",) * 7
    assert faults(url, problem(ipc=2)) == []
    assert "tensor_0.pt" in faults(str(tmp_path / "nowhere"))[0]
    hundred = replace(entry("cifar100").info, train_counts=(500,) * 100)
    (line,) = faults(url, problem(hundred, 2))
    assert "tensor_0.pt is [10, 3, 32, 32]; [100, 3, 32, 32] is read: it has 10 classes" in line
    with pytest.raises(ConfigError, match=r"init\.pool=1 is below the 2 of each class"):
        pool_of(url, problem(ipc=2), pool=1)
    with pytest.raises(ConfigError, match="have 1 numbers, images 3 channels"):
        pool_of(url, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"images": torch.zeros(1)}, r"holds a dict; a tensor \[10, 3, 32, 32\] is read"),
        (torch.zeros(10, 3, 64, 64), r"is \[10, 3, 64, 64\]; \[10, 3, 32, 32\] is read$"),
        (torch.zeros(10, 3, 32, 32, dtype=torch.uint8), "torch.uint8; normalised images are read"),
        (torch.full((10, 3, 32, 32), torch.nan), "NaN or infinity"),
        (torch.zeros(10, 3, 32, 32), "between two of 256 levels"),
    ],
)
def test_other_contents_are_refused(value: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        as_pixels(value, INFO, "f")


def test_a_file_that_is_no_tensor_file_is_named(tmp_path: Path) -> None:
    url = publish(tmp_path / "x", 3)
    (tmp_path / "x" / "tensor_1.pt").write_bytes(b"torn")
    (line,) = faults(url)
    assert "tensor_1.pt" in line


def test_it_is_keyed_by_what_the_files_hold_and_checked_when_read(tmp_path: Path) -> None:
    one, two = (pool_of(publish(tmp_path / name, 3)) for name in ("one", "two"))
    assert one.refs()[0].key == two.refs()[0].key, "the same files elsewhere"
    torch.save(normalise(pictures(8), INFO.mean, INFO.std), tmp_path / "two" / "tensor_1.pt")
    with pytest.raises(DataError, match=r"tensor_1\.pt has changed since the job was planned"):
        two.finish(two.units()[0], {}, StageContext(two))
    assert pool_of(str(tmp_path / "two")).refs()[0].key != one.refs()[0].key
    (tmp_path / "two" / "tensor_2.pt").unlink()
    with pytest.raises(DataError, match=r"tensor_2\.pt does not exist|has changed"):
        two.finish(two.units()[0], {}, StageContext(two))


def test_files_are_read_from_any_storage(tmp_path: Path) -> None:
    publish(tmp_path / "x", 2)
    url = f"memory://tensors-{tmp_path.name}"
    for k in range(2):
        Storage(url).put(f"tensor_{k}.pt", (tmp_path / "x" / f"tensor_{k}.pt").read_bytes())
    assert faults(url, problem(ipc=2)) == []
    there, here = (pool_of(place, problem(ipc=2)) for place in (url, str(tmp_path / "x")))
    assert there.refs()[0].key == here.refs()[0].key
    found = there.finish(there.units()[0], {}, StageContext(there))["images"]
    assert torch.equal(found[:2], torch.stack([pictures(0)[0], pictures(1)[0]]))


def test_settings_without_effect_are_refused() -> None:
    for fields in (
        {"kind": "real", "mean": (0.5,), "std": (0.5,)},
        {"kind": "tensors", "folder": "x", "factor": 2},
    ):
        with pytest.raises(ConfigError, match=r"has no effect with init\.kind"):
            InitConfig(**fields)
    with pytest.raises(ConfigError, match=r"needs init\.folder, the URL of a folder with tensor_0"):
        InitConfig(kind="tensors")
    with pytest.raises(ConfigError, match="both are needed"):
        InitConfig(kind="tensors", folder="x", mean=(0.5,))
    with pytest.raises(ConfigError, match=r"init\.std: .* in \[0, 1\]"):
        InitConfig(kind="tensors", folder="x", mean=(0.5,), std=(51.0,))


@pytest.mark.slow
def test_a_job_starts_from_them(tmp_path: Path) -> None:
    digits = entry("digits").info
    init = {"kind": "tensors", "folder": publish(tmp_path / "x", 2, digits)}
    result = job(tmp_path, "dwa", {"init": init})
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    (tmp_path / "x" / "tensor_1.pt").unlink()
    plan = raydd("distill", "--config", str(tmp_path / "job.yaml"), "--dry-run")
    assert "init.folder: tensor_1.pt of 2 files are not in" in plan.output
