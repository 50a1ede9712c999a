"""Tables as files: ours, the published tree with its exchanged patches, and files that do not fit."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.storage import Storage
from raydd.core.tensors import Tensors
from raydd.core.units import Numerics, unit_key
from raydd.data.catalog import DatasetInfo
from raydd.losses import swap_patches
from raydd.networks import create_network
from raydd.networks.network import Network
from raydd.networks.released import published_name
from raydd.networks.taps import StatTap
from raydd.training.backbones import Backbone
from raydd.training.recipe import Recipe
from raydd.training.statistics import StatisticsConfig
from raydd.training.statistics_files import StatisticsFile, save_tables
from raydd.training.statistics_tables import load_tables
from raydd.training.statistics_tree import forget_trees
from raydd.training.train_network import TrainNetwork
from raydd.training.weights import Weights

NETWORK = "resnet18_cifar_batchnorm"
INFO = DatasetInfo(
    name="toy", classes=3, channels=3, height=8, width=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)
)


class Desk:
    """The least that reading tables needs."""

    device = torch.device("cpu")

    def __init__(self, tables: Tensors) -> None:
        self.tables = tables

    def load(self, name: str) -> Tensors:
        assert name == "tables"
        return dict(self.tables)

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:
        return make()


@pytest.fixture(scope="module")
def tap() -> StatTap:
    network = create_network(NETWORK, INFO.shape, INFO.classes, generator(0, "network")).eval()
    for i, module in enumerate(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        module.running_mean.add_(0.1 * i)  # type: ignore[operator, union-attr]
    return StatTap(network, 4)


@pytest.fixture(scope="module")
def tables(tap: StatTap) -> Tensors:
    """Return tables as the collecting stage puts them out: means of any sign, variances above zero."""
    g = generator(0, "tables")
    table, overall = (
        torch.randn(*leading, 2, tap.layout.width, generator=g) for leading in ((3,), ())
    )
    for values in (table, overall):
        values[..., 1, :].abs_()
    convolutions = {layer.name for layer in tap.layout.layers if layer.kind == "conv"}
    of_all = {
        f"G/{k}": v
        for k, v in tap.layout.split(overall).items()
        if k.rsplit("/", 1)[0] in convolutions
    }
    return (
        of_all
        | {f"T/{k}": v for k, v in tap.layout.split(table).items()}
        | {"count": torch.tensor([4, 5, 6])}
    )


def write_tree(
    folder: Path,
    tap: StatTap,
    tables: Tensors,
    *,
    swapped: bool,
    prefix: str = "ResNet18",
    classes: bool = True,
) -> None:
    """Write tables as the published code does: a file per layer and class, the patches of classes exchanged."""
    assert isinstance(tap.network, Network)
    for layer in tap.layout.layers:
        full = f"{prefix}={published_name(tap.network, layer.name)}"
        kind = "ConvFeatureHook" if layer.kind == "conv" else "BNFeatureHook"
        wanted = [(-1, "G")] if layer.kind == "conv" else []
        for c, table in wanted + ([(c, "T") for c in range(3)] if classes else []):
            keys = ["mu", "var"] + (["pmu", "pvar"] if layer.cells else [])
            values = {k: tables[f"{table}/{layer.name}/{k}"] for k in keys}
            values = {k: v if c == -1 else v[c] for k, v in values.items()}
            if swapped and c >= 0 and layer.cells:
                values["pmu"], values["pvar"] = values["pvar"], values["pmu"]
            names = {
                "mu": "running_dd_mean",
                "var": "running_dd_var",
                "pmu": "running_patch_mean",
                "pvar": "running_patch_var",
            }
            path = folder / kind / (f"class_{c}" if c >= 0 else "") / full / "running.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **{names[k]: v.numpy() for k, v in values.items()})


def at(
    folder: Path, patch: int = 4, info: DatasetInfo = INFO, network: str = NETWORK
) -> StatisticsFile:
    return StatisticsFile.at(str(folder), network, info, patch)


def finish(stage: StatisticsFile) -> Tensors:
    return stage.finish("all", {}, Desk({}))  # type: ignore[arg-type]


def assert_same(found: Tensors, tables: Tensors, *, without: tuple[str, ...] = ("count",)) -> None:
    wanted = {k: v for k, v in tables.items() if not k.startswith(without)}
    assert set(found) == set(wanted)
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_our_file_comes_back_as_it_was(tmp_path: Path, tables: Tensors) -> None:
    url = save_tables(str(tmp_path), NETWORK, tables, dataset=INFO, patch=4, facts={"batch": "64"})
    assert url == f"{tmp_path}/{NETWORK}.safetensors"
    stage = at(tmp_path)
    assert_same(finish(stage), tables)
    assert stage.fault(classes=True) == ""
    assert stage.inputs_of("x")["x"].unit == "all"
    assert stage.cost("all").output_bytes >= sum(
        v.nbytes for k, v in tables.items() if k != "count"
    )


@pytest.mark.parametrize("swapped", [True, False])
def test_the_published_tree_is_read_and_its_exchange_undone(
    tmp_path: Path, tap: StatTap, tables: Tensors, swapped: bool
) -> None:
    write_tree(tmp_path / "a" / "statistic", tap, tables, swapped=swapped)
    write_tree(
        tmp_path / "a" / "statistic",
        other := small_tap(),
        tables_of(other),
        swapped=True,
        prefix="ConvNet",
    )
    stage = at(tmp_path / "a")
    assert stage.fault(classes=True) == ""
    assert_same(finish(stage), tables)


def small_tap() -> StatTap:
    return StatTap(
        create_network("convnet1_w4_batchnorm", INFO.shape, INFO.classes, generator(0, "network")),
        4,
    )


def tables_of(tap: StatTap) -> Tensors:
    values = torch.rand(3, 2, tap.layout.width, generator=generator(0, "other"))
    return {f"G/{k}": v[0] for k, v in tap.layout.split(values).items()} | {
        f"T/{k}": v for k, v in tap.layout.split(values).items()
    }


def test_of_several_networks_of_a_class_the_named_one_is_taken(
    tmp_path: Path, tap: StatTap, tables: Tensors
) -> None:
    write_tree(
        tmp_path, tap, {k: v + 1 for k, v in tables.items()}, swapped=True, prefix="ResNet_other"
    )
    write_tree(tmp_path, tap, tables, swapped=True, prefix=f"ResNet_{NETWORK}")
    assert_same(finish(at(tmp_path)), tables)


def test_networks_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, tap: StatTap, tables: Tensors
) -> None:
    for prefix in ("ResNet_a", "ResNet_b"):
        write_tree(tmp_path, tap, tables, swapped=True, prefix=prefix)
    assert "ResNet_a, ResNet_b could each be network" in at(tmp_path).fault(classes=True)
    with pytest.raises(
        DataError,
        match="none of ResNet_a, ResNet_b has the layers of network 'convnet1_w4_batchnorm'",
    ):
        finish(at(tmp_path, network="convnet1_w4_batchnorm"))


def test_a_tree_without_classes_serves_where_none_are_needed(
    tmp_path: Path, tap: StatTap, tables: Tensors
) -> None:
    write_tree(tmp_path, tap, tables, swapped=True, classes=False)
    stage = at(tmp_path)
    assert_same(finish(stage), tables, without=("count", "T/"))
    assert stage.fault(classes=False) == ""
    more = at(tmp_path, info=replace(INFO, classes=5))
    assert more.fault(classes=False) == ""
    assert "none of classes" in stage.fault(classes=True)
    with pytest.raises(DataError, match=r"of classes lack 4\d of 4\d layers: conv1, norm1"):
        load_tables(Desk(finish(stage)), "tables", tap)  # type: ignore[arg-type]
    assert load_tables(Desk(finish(stage)), "tables", tap, classes=False).classes is None  # type: ignore[arg-type]


def test_a_torn_file_of_the_tree_is_named(tmp_path: Path, tap: StatTap, tables: Tensors) -> None:
    write_tree(tmp_path, tap, tables, swapped=True)
    victim = tmp_path / "BNFeatureHook" / "class_1" / "ResNet18=bn1" / "running.npz"
    data = victim.read_bytes()
    victim.write_bytes(data[:100])
    with pytest.raises(DataError, match=r"class_1/ResNet18=bn1/running.npz is no npz file"):
        finish(at(tmp_path))
    held = io.BytesIO()
    np.savez(held, running_dd_mean=np.zeros(7, np.float32), running_dd_var=np.zeros(64, np.float32))
    victim.write_bytes(held.getvalue())
    with pytest.raises(DataError, match="running_dd_mean is missing, or not of 64 values"):
        finish(at(tmp_path))


def rewrite(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    """Return what changes the arrays in a file of the tree."""

    def edit(path: Path) -> None:
        with np.load(path) as held:
            arrays = dict(held)
        np.savez(path, **change(arrays))

    return edit


def each(key: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return rewrite(lambda held: {k: change(v) if k == key else v for k, v in held.items()})


CONV, BN = "ConvFeatureHook", "BNFeatureHook"
BROKEN: list[tuple[str, str, Callable[[Path], object], str]] = [
    (
        "no class",
        f"{BN}/class_2/ResNet18=bn1",
        Path.unlink,
        "lacks layer 'bn1' of class 2: put its file into BNFeatureHook/class_2",
    ),
    (
        "torn",
        f"{CONV}/class_0/ResNet18=conv1",
        lambda path: path.write_bytes(path.read_bytes()[:99]),
        "is no npz file",
    ),
    (
        "torn, of all",
        f"{CONV}/ResNet18=conv1",
        lambda path: path.write_bytes(b""),
        "is no npz file",
    ),
    (
        "an array",
        f"{CONV}/ResNet18=conv1",
        lambda path: np.save(path.open("wb"), np.ones(3)),
        "is no npz file",
    ),
    (
        "nan",
        f"{CONV}/ResNet18=conv1",
        each("running_dd_mean", lambda v: v * np.nan),
        "running_dd_mean holds values that are not finite",
    ),
    (
        "infinite",
        f"{BN}/class_0/ResNet18=bn1",
        each("running_dd_var", lambda v: v + np.inf),
        "running_dd_var holds negative variances, or",
    ),
    (
        "negative",
        f"{CONV}/ResNet18=conv1",
        each("running_dd_var", np.negative),
        "running_dd_var holds negative variances, or",
    ),
    (
        "negative patches",
        f"{CONV}/ResNet18=conv1",
        each("running_patch_var", np.negative),
        "running_patch_var holds negative variances",
    ),
    (
        "objects",
        f"{CONV}/ResNet18=conv1",
        each("running_dd_mean", lambda v: v.astype(object)),
        "Object arrays cannot be loaded",
    ),
    (
        "words",
        f"{CONV}/ResNet18=conv1",
        each("running_dd_mean", lambda v: np.array(["a", "b", "c"])),
        "is no npz file",
    ),
    (
        "no key",
        f"{BN}/class_0/ResNet18=bn1",
        rewrite(lambda held: {}),
        "running_dd_mean is missing, or not of 64 values",
    ),
    (
        "width",
        f"{BN}/class_0/ResNet18=bn1",
        each("running_dd_mean", lambda v: v[1:]),
        "running_dd_mean is missing, or not of 64 values",
    ),
]


@pytest.mark.parametrize(
    ("place", "edit", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_a_tree_with_a_broken_file_is_refused_before_work(
    tmp_path: Path,
    tap: StatTap,
    tables: Tensors,
    place: str,
    edit: Callable[[Path], object],
    message: str,
) -> None:
    write_tree(tmp_path, tap, tables, swapped=True)
    edit(tmp_path / place / "running.npz")
    fault = at(tmp_path).fault(classes=True)
    assert fault.startswith(f"network '{NETWORK}': {tmp_path}")
    assert message in fault
    with pytest.raises(DataError, match=re.escape(message)):
        finish(at(tmp_path))


def test_a_tree_without_batch_norms_or_of_another_patch_is_refused_before_work(
    tmp_path: Path, tap: StatTap, tables: Tensors
) -> None:
    write_tree(tmp_path, tap, tables, swapped=True)
    fault = at(tmp_path, patch=2).fault(classes=True)
    assert fault.endswith(
        "=conv1/running.npz: running_patch_mean is missing, or not of 16 values (statistics.patch is 2)"
    )
    shutil.rmtree(tmp_path / BN)
    forget_trees()
    assert "lacks layer 'bn1' of class 0: put its file into BNFeatureHook/class_0" in at(
        tmp_path
    ).fault(classes=True)


def test_a_first_class_that_does_not_tell_whether_it_is_swapped_is_not_refused(
    tmp_path: Path, tap: StatTap, tables: Tensors
) -> None:
    tables = {k: v.clone() for k, v in tables.items()}
    tables["T/conv1/pmu"][0].abs_()
    write_tree(tmp_path, tap, tables, swapped=True)
    assert at(tmp_path).fault(classes=True) == ""
    assert_same(finish(at(tmp_path)), tables)


def copy(source: Path, url: str) -> None:
    storage = Storage(url)
    for path in source.rglob("*.npz"):
        storage.put(str(path.relative_to(source)), path.read_bytes())


@pytest.mark.parametrize("remote", [False, True])
def test_any_changed_file_of_the_tree_gives_another_digest(
    tmp_path: Path, tap: StatTap, tables: Tensors, remote: bool
) -> None:
    write_tree(tmp_path / "made", tap, tables, swapped=True)
    url = "memory://statistics-that-change" if remote else f"{tmp_path}/copy"
    copy(tmp_path / "made", url)
    stage = StatisticsFile.at(url, NETWORK, INFO, 4)
    copy(tmp_path / "made", f"{url}-again")
    again = StatisticsFile.at(f"{url}-again", NETWORK, INFO, 4)
    assert remote or again.digest == stage.digest, "a copy holds the same"
    path = f"{BN}/class_2/ResNet18=bn1/running.npz"
    each("running_dd_mean", lambda v: v + 1)(tmp_path / "made" / path)
    data = (tmp_path / "made" / path).read_bytes()
    assert len(data) == Storage(url).size(path)
    Storage(url).put(path, data)
    forget_trees()
    assert StatisticsFile.at(url, NETWORK, INFO, 4).digest not in ("", stage.digest)
    with pytest.raises(DataError, match="has changed since it was planned with"):
        finish(stage)
    if remote:
        Storage(url).fs.rm("/statistics-that-change", recursive=True)


def test_a_tree_of_other_classes_is_refused(tmp_path: Path, tap: StatTap, tables: Tensors) -> None:
    write_tree(tmp_path, tap, tables, swapped=True)
    stage = at(tmp_path, info=replace(INFO, classes=4))
    assert "statistics of 3 classes, the data set has 4" in stage.fault(classes=True)
    with pytest.raises(DataError, match="statistics of 3 classes"):
        finish(stage)


def test_a_missing_file_of_the_tree_is_named(tmp_path: Path, tap: StatTap, tables: Tensors) -> None:
    write_tree(tmp_path, tap, tables, swapped=True)
    (tmp_path / "ConvFeatureHook" / "class_2" / "ResNet18=conv1" / "running.npz").unlink()
    with pytest.raises(DataError, match="lacks layer 'conv1' of class 2"):
        finish(at(tmp_path))


def test_what_is_missing_is_listed_with_where_to_put_it(tmp_path: Path, tables: Tensors) -> None:
    config = StatisticsConfig(files=str(tmp_path), patch=4)
    (line,) = config.missing([NETWORK, NETWORK], INFO)
    assert line.startswith(
        f"network '{NETWORK}': put its statistics at {tmp_path}/{NETWORK}.safetensors"
    )
    save_tables(str(tmp_path), NETWORK, tables, dataset=INFO, patch=4, facts={})
    assert config.missing([NETWORK], INFO) == []
    stage = config.source(backbone(tmp_path), INFO, 3, Numerics())
    assert stage == at(tmp_path)


def backbone(folder: Path) -> Backbone:
    return Backbone(network=NETWORK, dataset=INFO, weights=Weights.at(f"{folder}/no.pth"))


def test_tables_of_other_weights_are_refused(tmp_path: Path, tables: Tensors) -> None:
    path = tmp_path / f"{NETWORK}.pth"
    path.write_bytes(b"some weights")
    given = Backbone(network=NETWORK, dataset=INFO, weights=Weights.at(str(path)))
    made = TrainNetwork(seed=0, dataset=INFO, network=NETWORK, recipe=Recipe(epochs=1))
    trained = Backbone(network=NETWORK, dataset=INFO, training=made)
    config, known = (
        StatisticsConfig(files=str(tmp_path), patch=4),
        replace(INFO, digests=(("train", "abc"),)),
    )
    for said, fits in (
        (given.identity, (given,)),
        (["0" * 40, given.identity], (given,)),
        ([trained.identity], (trained,)),
        ("trained here", (given, trained)),
        (None, (given, trained)),
        ({"of": 3}, (given, trained)),
    ):
        save_tables(
            str(tmp_path),
            NETWORK,
            tables,
            dataset=INFO,
            patch=4,
            facts={"weights": json.dumps(said)},
        )
        for backbone in (given, trained):
            if backbone in fits:
                assert config.source(backbone, known, 0, Numerics()) == at(tmp_path)
                continue
            first = said[0] if isinstance(said, list) else said
            with pytest.raises(
                ConfigError,
                match=f"{NETWORK}.safetensors has .* {first[:12]}, but the job's are {backbone.identity[:12]}",
            ):
                config.source(backbone, known, 0, Numerics())
        assert config.source(trained, INFO, 0, Numerics()) == at(tmp_path), (
            "without the data, no training's key is known"
        )
    (tmp_path / f"{NETWORK}.safetensors").write_bytes(b"torn")
    assert config.source(given, known, 0, Numerics()) == at(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"info": replace(INFO, classes=4)}, "tables of 3 classes, the data set has 4"),
        ({"patch": 8}, "patches of 4 pixels, statistics.patch is 8"),
        ({"info": replace(INFO, mean=(0.1, 0.1, 0.1))}, "normalised with mean"),
        (
            {"info": replace(INFO, height=16, width=16)},
            "'conv1/pmu' is .4., this network needs .16.",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, tables: Tensors, change: dict[str, Any], message: str
) -> None:
    save_tables(str(tmp_path), NETWORK, tables, dataset=INFO, patch=4, facts={})
    stage = at(tmp_path, **change)
    with pytest.raises(DataError, match=message):
        finish(stage)
    assert stage.fault(classes=True).startswith(f"network '{NETWORK}': ")


def test_a_file_without_a_layer_or_with_negative_variances_is_refused(
    tmp_path: Path, tables: Tensors
) -> None:
    save_tables(
        str(tmp_path),
        NETWORK,
        {k: v for k, v in tables.items() if "conv1/" not in k},
        dataset=INFO,
        patch=4,
        facts={},
    )
    with pytest.raises(DataError, match=r"tables G lack \d+ of 20 layers: conv1"):
        finish(at(tmp_path))
    save_tables(
        str(tmp_path),
        NETWORK,
        tables | {"G/conv1/var": -torch.ones(3)},
        dataset=INFO,
        patch=4,
        facts={},
    )
    with pytest.raises(DataError, match="negative variances"):
        finish(at(tmp_path))


def test_a_file_that_changed_after_planning_is_refused(tmp_path: Path, tables: Tensors) -> None:
    save_tables(str(tmp_path), NETWORK, tables, dataset=INFO, patch=4, facts={})
    stage = at(tmp_path)
    key = unit_key(stage, "all")
    other = tables | {"G/conv1/var": torch.ones(3)}
    save_tables(
        str(tmp_path), NETWORK, other, dataset=INFO, patch=4, facts={"batch": "of another length"}
    )
    with pytest.raises(DataError, match="has changed since it was planned with"):
        finish(stage)
    assert unit_key(at(tmp_path), "all") != key


def test_loaded_tables_take_batch_norms_from_the_network(tap: StatTap, tables: Tensors) -> None:
    loaded = load_tables(Desk(tables), "tables", tap)  # type: ignore[arg-type]
    parts, running = tap.layout.split(loaded.overall), tap.layout.split(tap.running())
    for layer in tap.layout.layers:
        for statistic in ("mu", "var"):
            name = f"{layer.name}/{statistic}"
            assert torch.equal(
                parts[name], tables[f"G/{name}"] if layer.kind == "conv" else running[name]
            )
    assert isinstance(loaded.classes, Tensor)
    for name, values in tap.layout.split(loaded.classes).items():
        assert torch.equal(values, tables[f"T/{name}"])


def test_swapping_on_demand_changes_patches_of_classes_alone(tap: StatTap, tables: Tensors) -> None:
    plain, swapped = (load_tables(Desk(tables), "tables", tap, swap=swap) for swap in (False, True))  # type: ignore[arg-type]
    assert torch.equal(plain.overall, swapped.overall)
    assert plain.classes is not None
    assert swapped.classes is not None
    patches = tap.layout.columns(patches=True)
    assert torch.equal(plain.classes[..., ~patches], swapped.classes[..., ~patches])
    assert not torch.equal(plain.classes, swapped.classes)
    assert torch.equal(swap_patches(swapped.classes, tap.layout), plain.classes)


def test_batch_norms_alone_need_no_table_of_the_data_set(tap: StatTap, tables: Tensors) -> None:
    with StatTap(tap.network, 4, ("bn",)) as only:
        loaded = load_tables(
            Desk({k: v for k, v in tables.items() if k.startswith("T/")}), "tables", only
        )  # type: ignore[arg-type]
        assert torch.equal(loaded.overall, only.running())
        assert loaded.classes is not None
        assert loaded.classes.shape == (3, 2, only.layout.width)
    with pytest.raises(DataError, match="of the data set lack"):
        load_tables(Desk({k: v for k, v in tables.items() if k.startswith("T/")}), "tables", tap)  # type: ignore[arg-type]
