"""What jobs of the statistics-matching family are refused for, on the command line: one message,
code 2, and nothing computed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from family_jobs import INFO, METHODS, NETWORKS, job
from torch import Tensor

from raydd.core.rng import generator
from raydd.core.tensors import Tensors, dump_tensors, load_tensors
from raydd.networks import create_network
from raydd.training.statistics_tables import observe

Edit = Callable[[Tensors], Tensors | bytes]


def weights(
    folder: Path,
    *,
    shape: tuple[int, int, int] = INFO.shape,
    classes: int = 10,
    edit: Edit | None = None,
) -> str:
    """Write fresh weights of both networks, changed by ``edit``; return the folder's URL."""
    folder.mkdir(exist_ok=True)
    for name in NETWORKS:
        state = dict(create_network(name, shape, classes, generator(0, "weights")).state_dict())
        made = state if edit is None else edit(state)
        (folder / f"{name}.safetensors").write_bytes(
            made if isinstance(made, bytes) else dump_tensors(made)
        )
    return str(folder)


def statistics(folder: Path, *, edit: Edit | None = None, **facts: str) -> str:
    """Write tables of both networks, changed by ``edit``, with metadata; return the folder's URL."""
    folder.mkdir(exist_ok=True)
    for name in NETWORKS:
        layout = observe(name, INFO.shape, 10, 4).layout
        tables: Tensors = {}
        for kind, rows in (("G", ()), ("T", (10,))):
            values = torch.randn(*rows, 2, layout.width, generator=generator(0, kind))
            values[..., 1, :] = values[..., 1, :].abs() + 0.1
            parts = {f"{kind}/{key}": value for key, value in layout.split(values).items()}
            tables |= {
                key: value for key, value in parts.items() if kind == "T" or ".norm/" not in key
            }
        made = tables if edit is None else edit(tables)
        metadata = {
            "patch": "4",
            "mean": json.dumps(INFO.mean),
            "std": json.dumps(INFO.std),
            "swapped": "false",
            **facts,
        }
        (folder / f"{name}.safetensors").write_bytes(
            made if isinstance(made, bytes) else dump_tensors(made, metadata)
        )
    return str(folder)


def swapped(tables: Tensors) -> Tensors:
    """Exchange the patch means and variances of classes, as the published files have them."""
    other = {"pmu": "pvar", "pvar": "pmu"}
    names = {
        k: "/".join((*k.split("/")[:-1], other.get(k.split("/")[-1], k.split("/")[-1])))
        for k in tables
        if k.startswith("T/")
    }
    return {**tables, **{key: tables[name] for key, name in names.items()}}


def only(kind: str) -> Edit:
    return lambda tables: {k: v for k, v in tables.items() if k.startswith(kind)}


def every(change: Callable[[Tensor], Tensor], what: str = "") -> Edit:
    return lambda held: {
        k: change(v) if what in k and v.is_floating_point() else v for k, v in held.items()
    }


def faults(folder: Path, result: Result, *parts: str) -> list[str]:
    """Return how a job did not end as one that is refused: before anything began, with one message
    that holds ``parts``.
    """
    found = {
        f"exit code {result.exit_code}": result.exit_code == 2,
        "not one message": result.output.count("error: ") == 1,
        "a traceback": "Traceback" not in result.output,
        "something was computed": not list((folder / "store").glob("units/*/*")),
        **{f"no word of '{part}'": part in result.output for part in parts},
    }
    wrong = [fault for fault, fine in found.items() if not fine]
    return [*wrong, result.output] if wrong else []


STATISTICS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    (
        "torn",
        {"edit": lambda held: dump_tensors(held)[:300]},
        ("is torn or not a safetensors file",),
    ),
    ("no file of tensors", {"edit": lambda held: b"hello"}, ("is torn or not a safetensors file",)),
    ("nan", {"edit": every(lambda v: v * float("nan"), "/mu")}, ("not finite",)),
    ("infinite", {"edit": every(lambda v: v + float("inf"), "/var")}, ("not finite",)),
    ("swapped", {"edit": swapped}, ("negative variances",)),
    (
        "classes",
        {"edit": every(lambda v: v[:7] if v.dim() == 2 else v)},
        ("tables of 7 classes, the data set has 10",),
    ),
    ("no classes", {"edit": only("G/")}, ("but none of classes",)),
    ("no data set", {"edit": only("T/")}, ("the tables G lack 1 of 1 layers: features.0.conv",)),
    (
        "rows of G",
        {"edit": every(lambda v: v.expand(10, -1), "G/")},
        ("table 'G/features.0.conv/mu' is float32 [10, 1]",),
    ),
    (
        "a row of G",
        {"edit": every(lambda v: v[None], "G/")},
        ("float32 [1, 1]; floating-point numbers [channels] are read",),
    ),
    (
        "rank of T",
        {"edit": every(lambda v: v[:, None], "T/")},
        ("table 'T/features.0.conv/mu' is float32 [10, 1, 1]",),
    ),
    (
        "numbers",
        {"edit": every(lambda v: v.mean(), "T/")},
        ("float32 []; floating-point numbers [classes, channels] are read",),
    ),
    (
        "integers",
        {"edit": every(lambda v: v.abs().long(), "G/")},
        ("table 'G/features.0.conv/mu' is int64 [1]",),
    ),
    ("patch", {"patch": "2"}, ("has patches of 2 pixels, statistics.patch is 4",)),
    ("mean", {"mean": "[0.5]"}, ("normalised with mean [0.5], the data set's is [0.3056]",)),
    ("words", {"mean": "hello"}, ("normalised with mean hello",)),
]


@pytest.mark.parametrize(
    ("fields", "parts"), [case[1:] for case in STATISTICS], ids=[case[0] for case in STATISTICS]
)
def test_tables_that_do_not_fit(
    fields: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    url = statistics(tmp_path / "tables", **fields)
    assert (
        faults(
            tmp_path,
            job(tmp_path, "edc", {"statistics": {"patch": 4, "files": url}}),
            *parts,
            *NETWORKS,
        )
        == []
    )


def test_tables_that_are_missing(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    parts = [f"put its statistics at {nowhere}/{name}.safetensors" for name in NETWORKS]
    assert (
        faults(
            tmp_path,
            job(tmp_path, "edc", {"statistics": {"patch": 4, "files": str(nowhere)}}),
            *parts,
        )
        == []
    )
    url = statistics(tmp_path / "tables")
    (tmp_path / "tables" / f"{NETWORKS[1]}.safetensors").unlink()
    result = job(tmp_path, "edc", {"statistics": {"patch": 4, "files": url}})
    assert faults(tmp_path, result, f"put its statistics at {url}/{NETWORKS[1]}.safetensors") == []
    assert NETWORKS[0] not in result.output


def test_tables_that_say_that_they_are_swapped_are_read(tmp_path: Path) -> None:
    fields = {
        "statistics": {
            "patch": 4,
            "files": statistics(tmp_path / "tables", edit=swapped, swapped="true"),
        }
    }
    result = job(tmp_path, "edc", fields)
    assert result.exit_code == 0, result.output


def tree(folder: Path) -> None:
    """Write tables of both networks as the published code does, a file per layer and class, patches exchanged."""
    folder.mkdir()
    url = statistics(folder / "ours", edit=swapped)
    keys = {
        "mu": "running_dd_mean",
        "var": "running_dd_var",
        "pmu": "running_patch_mean",
        "pvar": "running_patch_var",
    }
    for name in NETWORKS:
        found: dict[Path, dict[str, Any]] = {}
        for key, values in load_tensors(Path(url, f"{name}.safetensors").read_bytes()).items():
            kind, layer, statistic = key.split("/")
            hook, theirs = (
                ("BN", "features.1") if layer.endswith("norm") else ("Conv", "features.0")
            )
            for c, row in (
                [("", values)]
                if kind == "G"
                else [(f"class_{c}", row) for c, row in enumerate(values)]
            ):
                path = (
                    folder / f"{hook}FeatureHook" / c / f"ConvNet_{name}={theirs}" / "running.npz"
                )
                found.setdefault(path, {})[keys[statistic]] = row.numpy()
        for path, arrays in found.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **arrays)
    shutil.rmtree(url)


def test_a_published_tree_is_read_and_one_that_is_incomplete_or_torn_is_refused(
    tmp_path: Path,
) -> None:
    tree(tmp_path / "whole")
    result = job(tmp_path, "edc", {"statistics": {"patch": 4, "files": str(tmp_path / "whole")}})
    assert result.exit_code == 0, result.output
    for broken, victim, patch, message in (
        (
            "hook",
            "BNFeatureHook",
            4,
            "lacks layer 'features.1' of class 0: put its file into BNFeatureHook/class_0",
        ),
        (
            "file",
            f"ConvFeatureHook/class_7/ConvNet_{NETWORKS[1]}=features.0",
            4,
            "lacks layer 'features.0' of class 7",
        ),
        (
            "patch",
            "nothing",
            2,
            "running_patch_mean is missing, or not of 16 values (statistics.patch is 2)",
        ),
    ):
        folder = tmp_path / broken
        shutil.copytree(tmp_path / "whole", folder / "tree")
        shutil.rmtree(folder / "tree" / victim, ignore_errors=True)
        found = job(folder, "edc", {"statistics": {"patch": patch, "files": str(folder / "tree")}})
        assert faults(folder, found, message, NETWORKS[1]) == []


@pytest.mark.slow
def test_a_changed_class_of_a_published_tree_is_read_again(tmp_path: Path) -> None:
    tree(tmp_path / "tree")
    victim = (
        tmp_path
        / "tree"
        / "BNFeatureHook"
        / "class_7"
        / f"ConvNet_{NETWORKS[1]}=features.1"
        / "running.npz"
    )
    fields = {"statistics": {"patch": 4, "files": str(tmp_path / "tree")}}
    read: list[int] = []
    for _ in range(3):
        result = job(tmp_path, "edc", fields, (f"output={tmp_path}/out-{len(read)}",))
        assert result.exit_code == 0, result.output
        read.append(
            sum(
                "StatisticsFile" in path.read_text()
                for path in (tmp_path / "store").glob("units/*/*/*.json")
            )
        )
        if len(read) == 2:
            np.savez(victim, **{name: values + 1 for name, values in np.load(victim).items()})
    assert read == [2, 2, 4]


@pytest.mark.slow
def test_published_statistics_are_read_again_with_the_same_teachers_alone(tmp_path: Path) -> None:
    assert job(tmp_path / "made", "edc", {}).exit_code == 0
    fields = {"statistics": {"patch": 4, "files": str(tmp_path / "made" / "out" / "statistics")}}
    assert job(tmp_path / "again", "edc", fields).exit_code == 0
    (tmp_path / "weights").mkdir()
    for marker in (tmp_path / "made" / "store").glob("units/*/*/final.json"):
        if "TrainNetwork" in marker.read_text():
            data = marker.with_suffix(".safetensors").read_bytes()
            width = load_tensors(data)["params.features.0.norm.weight"].numel()
            (tmp_path / "weights" / f"convnet1_w{width}_batchnorm.safetensors").write_bytes(data)
    result = job(
        tmp_path / "files", "edc", {**fields, "teachers": {"weights": str(tmp_path / "weights")}}
    )
    assert result.exit_code == 0, result.output
    other = {"teachers": {**METHODS["edc"]["teachers"], "epochs": 2}}
    words = ("has statistics of network", "but the job's are")
    assert (
        faults(tmp_path / "other", job(tmp_path / "other", "edc", {**fields, **other}), *words)
        == []
    )
    assert (
        faults(tmp_path / "seeds", job(tmp_path / "seeds", "edc", fields, ("seeds=[0,1]",)), *words)
        == []
    )
    fresh = {"teachers": {"weights": weights(tmp_path / "fresh")}}
    assert (
        faults(tmp_path / "fresh", job(tmp_path / "fresh", "edc", {**fields, **fresh}), *words)
        == []
    )


WEIGHTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("classes", {"classes": 100}, ("knows 100 classes, the data set has 10",)),
    ("channels", {"shape": (3, 8, 8)}, ("reads images of 3 channels, the data set has 1",)),
    ("size", {"shape": (1, 16, 16)}, ("another image size",)),
    ("nan", {"edit": every(lambda v: v * float("nan"))}, ("holds NaN or infinity",)),
    (
        "variances",
        {"edit": every(lambda v: -v, "running_var")},
        (".safetensors: negative variances in features.0.norm.running_var",),
    ),
    ("torn", {"edit": lambda state: b"abc"}, ("is torn or not a safetensors file",)),
]


@pytest.mark.parametrize("method", ["edc", "sre2l", "gvbsm", "rded"])
@pytest.mark.parametrize(
    ("fields", "parts"), [case[1:] for case in WEIGHTS], ids=[case[0] for case in WEIGHTS]
)
def test_teachers_that_do_not_fit(
    method: str, fields: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    url = weights(tmp_path / "weights", **fields)
    assert (
        faults(tmp_path, job(tmp_path, method, {"teachers": {"weights": url}}), *parts, NETWORKS[0])
        == []
    )


def test_teachers_that_are_missing(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for method in METHODS:
        result = job(tmp_path, method, {"teachers": {"weights": str(nowhere)}})
        assert (
            faults(tmp_path, result, f"put its weights at {nowhere}/{NETWORKS[0]}.safetensors")
            == []
        )


TOP = {"batch": 5, "epochs": 2, "codec": "topk", "top": 3}
LABELS: list[tuple[str, dict[str, Any], tuple[str, ...], str]] = [
    ("edc", {}, ("evaluation.batch=4",), "the students' batch is 4, that of their labels 5"),
    (
        "rded",
        {},
        ("evaluation.batch=4", "evaluation.epochs=1"),
        "the students' batch is 4, that of their labels 5",
    ),
    (
        "edc",
        {},
        ("evaluation.epochs=3",),
        "3 epochs of training need as many epochs of labels; 2 are stored",
    ),
    (
        "edc",
        {"labels": {"batch": 30, "epochs": 2}},
        (),
        "labels.batch=30 is more than the set's 20 images",
    ),
    (
        "edc",
        {"labels": {"batch": 5, "epochs": 2, "codec": "topk", "top": 11}},
        (),
        "labels.top=11 is more than the 10 classes",
    ),
    ("edc", {"labels": {"batch": 5, "epochs": 2, "codec": "topk"}}, (), "needs labels.top"),
    (
        "edc",
        {"labels": {"batch": 5, "epochs": 2, "shuffle": 3}},
        (),
        "labels.shuffle=3 does not divide images of 8x8",
    ),
    (
        "rded",
        {"labels": {"batch": 5, "shuffle": 3}},
        (),
        "labels.shuffle=3 does not divide images of 8x8",
    ),
    (
        "edc",
        {"labels": {"batch": 5, "epochs": 2, "crop": None, "pad_crop": 8}},
        (),
        "labels.pad_crop=8",
    ),
    (
        "edc",
        {"labels": TOP | {"tail": "mass"}},
        (),
        "labels.tail=mass: students of the loss mse_gt need labels.tail=mean",
    ),
    (
        "rded",
        {"labels": TOP},
        (),
        "labels.tail=mean: students of the loss kl need labels.tail=mass",
    ),
    (
        "rded",
        {"labels": {"batch": 5, "codec": "online", "sampler_seed": 1}},
        (),
        "labels.sampler_seed=1 has no effect",
    ),
]


@pytest.mark.parametrize(("method", "fields", "overrides", "message"), LABELS)
def test_labels_that_do_not_fit(
    method: str, fields: dict[str, Any], overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    assert faults(tmp_path, job(tmp_path, method, fields, overrides), message) == []


SETTINGS: list[tuple[str, dict[str, Any], tuple[str, ...], str]] = [
    (
        "edc",
        {"statistics": {"patch": 4, "pad": 8}},
        (),
        "statistics.pad=8: images of 8x8 allow at most 7",
    ),
    (
        "edc",
        {"init": {"kind": "real", "pool": 500}},
        (),
        "init.pool=500: class 8 has only 139 training images",
    ),
    (
        "edc",
        {"init": {"kind": "real", "pool": 1, "sampling": "without_replacement"}},
        (),
        "init.pool=1 is below the 2 of each class that are started from",
    ),
    (
        "edc",
        {"init": {"kind": "folder", "folder": "/nowhere/at/all"}},
        (),
        "no images in /nowhere/at/all",
    ),
    (
        "edc",
        {"init": {"kind": "rded", "networks": [NETWORKS[0]]}},
        (),
        "class 8 has 139 training images, one crop each",
    ),
    ("edc", {"networks": [NETWORKS[0], "convnt1_w8"]}, (), "unknown network 'convnt1_w8'"),
    (
        "edc",
        {"teachers": {"weights": "torchvision"}},
        (),
        "torchvision has no IMAGENET1K_V1 weights of network 'convnet1_w8_batchnorm'",
    ),
    (
        "edc",
        {},
        ("evaluation.protocol=sre2l", "evaluation.ce_weight=0.1"),
        "ce_weight=0.1 has no effect with loss 'kl'",
    ),
    ("gvbsm", {"order": "ten_blocks"}, (), "multiple of 10, not 2"),
    (
        "gvbsm",
        {"order": "ten_blocks", "group_size": 20, "groups_per_unit": 2},
        ("ipc=10",),
        "set groups_per_unit=1",
    ),
    ("sre2l", {"networks": ["convnet1_w8"]}, (), "has no layer of the kinds bn"),
    ("sre2l", {"jitter": [0, 8]}, (), "jitter=[0, 8] is larger than the images of 8x8"),
    ("rded", {"factor": 3}, (), "factor=3 does not divide images of 8 x 8"),
    ("rded", {"candidates": 7}, (), "candidates=7"),
    (
        "edc",
        {"statistics": {"patch": 4, "slices": 2000}},
        (),
        "statistics.slices=2000 is more than the 1438 training images",
    ),
    ("edc", {"local_images": 20}, (), "local_images=20 has no effect with category_aware=global"),
    ("edc", {"flatness_tau": 3.0}, (), "flatness_tau=3.0 has no effect with flatness_weight=0"),
    ("gvbsm", {"dd_weight": 0.0, "dd_tau": 3.0}, (), "dd_tau=3.0 has no effect with dd_weight=0"),
    (
        "edc",
        {"momentum": 0.0, "compat": {"ema_carry": "chain"}},
        (),
        "compat.ema_carry=chain has no effect with momentum=0",
    ),
    ("sre2l", {"milestone": 0.5}, (), "milestone=0.5 has no effect with crop_curriculum=none"),
    (
        "edc",
        {},
        ("dataset.mean=[127]", "dataset.std=[50]"),
        "dataset.mean: [127.0]; means and deviations are of pixels in [0, 1]",
    ),
    (
        "edc",
        {"teachers": {"weights": "x.pt", "mean": [0.5], "std": [50.0]}},
        (),
        "teachers.std: [50.0]",
    ),
    (
        "edc",
        {"teachers": {"weights": "torchvison"}},
        (),
        "teachers.weights is 'torchvison' (did you mean 'torchvision'?)",
    ),
]


@pytest.mark.parametrize(("method", "fields", "overrides", "message"), SETTINGS)
def test_settings_that_cannot_be(
    method: str, fields: dict[str, Any], overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    assert faults(tmp_path, job(tmp_path, method, fields, overrides), message) == []
