"""Pools of start images: tilings and crops against the published rules, choices written out, bytes
for any number of workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from groups import run_group
from PIL import Image
from torchvision.transforms.v2 import functional as V

from raydd.artifacts.codec import jpeg_round_trip
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.writing import write_set
from raydd.augment.crop import Box, draw_flip, draw_resized_crop
from raydd.core.errors import ConfigError, DataError, RunFailed
from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import Tensors, digest
from raydd.core.units import Context, Numerics, Ref, Stage
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.methods import Problem
from raydd.methods.pools.image_pool import (
    FolderPool,
    ImagePool,
    RealPool,
    open_folder,
    start_images,
)
from raydd.methods.pools.init_config import InitConfig
from raydd.methods.pools.patches import (
    EdcPool,
    RdedPool,
    smooth_crops,
    tile_in_order,
    tile_spread,
    to_pixels,
)
from raydd.methods.pools.scoring import ScoreImages
from raydd.networks import create_network
from raydd.networks.network import Network
from raydd.runtime.runner import LocalRunner
from raydd.training.teacher_config import TeacherConfig
from raydd.training.train_network import TrainNetwork

SEED = 5


@dataclass(frozen=True, kw_only=True)
class FixedTeacher:
    """A network of given, untrained weights in place of a trained backbone."""

    network: str
    dataset: DatasetInfo
    draw: int = 0

    def inputs(self, name: str) -> Mapping[str, Ref]:
        return {}

    def load(self, ctx: Context, name: str) -> Network:
        return ctx.cached(self, self.make)

    def make(self) -> Network:
        network = create_network(
            self.network, self.dataset.shape, self.dataset.classes, generator(self.draw, "weights")
        )
        return network.eval().requires_grad_(False)


class Teachers:
    """Stands for a TeacherConfig."""

    def backbones(self, networks: Any, problem: Problem) -> tuple[FixedTeacher, ...]:
        return tuple(FixedTeacher(network=n, dataset=problem.dataset.only()) for n in networks)

    def missing(self, networks: Any, dataset: DatasetInfo) -> list[str]:
        return [f"{network}: no weights" for network in networks]


@pytest.fixture(scope="module")
def digits():
    data = open_data(DatasetConfig(name="digits"))
    return data, with_digests(entry("digits").info, data)


@pytest.fixture(scope="module")
def problem(digits) -> Problem:
    return Problem(dataset=digits[1], ipc=2, seed=SEED, numerics=Numerics())


def teachers(info: DatasetInfo, count: int = 1) -> tuple[Any, ...]:
    return tuple(
        FixedTeacher(network="convnet1_w8", dataset=info.only(), draw=i) for i in range(count)
    )


def patches(kind: type, info: DatasetInfo, **fields: Any) -> Any:
    given: dict[str, Any] = {
        "pool": 2,
        "classes_per_unit": 4,
        "factor": 2,
        "candidates": 20,
        "num_crop": 3,
        "image_format": "png",
    }
    backbones = teachers(info, 2)
    if kind is EdcPool:
        given |= {
            "block": 6,
            "scores": ScoreImages(
                seed=SEED, dataset=info.only("train"), backbones=backbones, slices=3
            ),
        }
    return kind(
        **{"seed": SEED, "dataset": info.only("train"), "backbones": backbones} | given | fields
    )


def computed(stage: Stage, data: Any, folder: Path) -> dict[str, Tensors]:
    store = Store(str(folder))
    LocalRunner(lambda: data, device=torch.device("cpu")).run(
        stage.refs(), store, lambda event: None
    )
    return {ref.unit: store.load(ref) for ref in stage.refs()}


def images_of(outputs: Mapping[str, Tensors]) -> torch.Tensor:
    return torch.cat([outputs[unit]["images"] for unit in sorted(outputs)])


# -- tilings and crops -----------------------------------------------------------------------------


def test_tiles_lie_as_published() -> None:
    """Golden G12: EDC's images hold ranks 0-3 and 4-7, RDED's every other rank."""
    ranks = torch.arange(8.0).view(8, 1, 1, 1)
    assert tile_in_order(ranks, 2, 2)[:, 0].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert tile_spread(ranks, 2, 2)[:, 0].tolist() == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]


def test_cells_are_whole_crops_in_their_places() -> None:
    crops = torch.rand(9 * 2, 3, 4, 5)
    tiled = tile_spread(crops, 3, 2)
    assert tiled.shape == (2, 3, 12, 15)
    assert torch.equal(tiled[1, :, 4:8, 10:15], crops[1 + 5 * 2])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("out", [(12, 10), (24, 20), (40, 7)])
def test_a_smooth_crop_is_torchvisions_antialiased_one(out: tuple[int, int], flip: bool) -> None:
    images = torch.rand(4, 2, 24, 20)
    boxes = [Box(0, 0, 24, 20), Box(3, 5, 7, 11), Box(20, 0, 4, 1), Box(1, 2, 21, 17)]
    found = smooth_crops(boxes, [flip] * 4, (24, 20), out).apply(images)
    for image, box, mine in zip(images, boxes, found, strict=True):
        theirs = V.resized_crop(
            image, box.top, box.left, box.height, box.width, list(out), antialias=True
        )
        torch.testing.assert_close(
            mine, V.horizontal_flip(theirs) if flip else theirs, rtol=0, atol=2e-6
        )


def test_pixels_are_rounded_down_but_for_rounding_errors() -> None:
    assert to_pixels(torch.tensor([0.0, 0.99, 254.99998, 255.00003, 12.5, -0.00001])).tolist() == [
        0,
        0,
        255,
        255,
        12,
        0,
    ]
    white = smooth_crops([Box(1, 2, 5, 3)], [False], (8, 8), (6, 6)).apply(
        torch.full((1, 1, 8, 8), 255.0)
    )
    assert (to_pixels(white) == 255).all()


# -- which images of a pool are started from -------------------------------------------------------


def test_without_replacement_image_k_is_the_kth() -> None:
    assert start_images(5, 3, "without_replacement", generator(0, "x")).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="pool of 2 images"):
        start_images(2, 3, "without_replacement", generator(0, "x"))


def test_with_replacement_repeats_some_and_misses_others() -> None:
    draws = [start_images(10, 10, "with_replacement", generator(0, "x", i)) for i in range(300)]
    distinct = sum(len(set(d.tolist())) for d in draws) / 300
    assert 6.2 < distinct < 6.8, "10 (1 - 0.9^10) = 6.5"
    assert torch.equal(draws[0], start_images(10, 10, "with_replacement", generator(0, "x", 0)))


def test_softmax_of_counts_spreads_the_draws() -> None:
    counts = torch.bincount(start_images(10, 400, "softmax_count", generator(0, "x")), minlength=10)
    assert counts.sum() == 400
    assert int(counts.max() - counts.min()) <= 6, "plain draws differ by about 20"
    again = [start_images(2, 2, "softmax_count", generator(1, "x", i)).tolist() for i in range(600)]
    repeated = sum(a == b for a, b in again) / 600
    assert repeated == pytest.approx(1 / (1 + torch.e), abs=0.06), (
        "after one draw: e^-2 against e^-1"
    )


# -- real images and folders -----------------------------------------------------------------------


def test_real_images_are_distinct_and_of_their_class_and_larger_pools_hold_smaller_ones(
    digits, tmp_path: Path
) -> None:
    data, info = digits
    small, large = (
        computed(
            RealPool(seed=SEED, dataset=info.only("train"), pool=n, classes_per_unit=k),
            data,
            tmp_path / str(n),
        )
        for n, k in ((3, 4), (5, 10))
    )
    images = images_of(large).view(10, 5, 1, 8, 8)
    assert torch.equal(images[:, :3].flatten(0, 1), images_of(small))
    for label in range(10):
        of_class = data["train"].take((data["train"].labels == label).nonzero().reshape(-1))
        places = [
            (of_class == image).flatten(1).all(1).nonzero().reshape(-1).tolist()
            for image in images[label]
        ]
        assert all(places)
        assert len({tuple(p) for p in places}) == 5
    assert large["classes-0000-0009"]["labels"].tolist() == [c for c in range(10) for _ in range(5)]


def test_a_class_is_found_by_its_unit_and_rows(digits, tmp_path: Path) -> None:
    data, info = digits
    whole = images_of(
        computed(
            RealPool(seed=SEED, dataset=info.only("train"), pool=3, classes_per_unit=10),
            data,
            tmp_path / "a",
        )
    )
    stage = RealPool(seed=SEED, dataset=info.only("train"), pool=3, classes_per_unit=4)
    outputs = computed(stage, data, tmp_path / "b")
    assert stage.units() == ("classes-0000-0003", "classes-0004-0007", "classes-0008-0009")
    for label in range(10):
        assert torch.equal(
            outputs[stage.unit_of(label)]["images"][stage.rows(label)],
            whole[3 * label : 3 * label + 3],
        )


def _folder(
    root: Path, counts: Mapping[str, int], size: tuple[int, int] = (8, 8)
) -> dict[str, list[torch.Tensor]]:
    written: dict[str, list[torch.Tensor]] = {}
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = torch.randint(256, size, generator=generator(0, name, i), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / name / f"class_id{i:03d}.png")
            written.setdefault(name, []).append(pixels)
    return written


def test_a_folder_of_others_is_a_pool(problem: Problem, digits, tmp_path: Path) -> None:
    written = _folder(tmp_path / "rded", {f"{c:05d}": 3 + c % 2 for c in range(10)})
    stage = InitConfig(kind="folder", folder=str(tmp_path / "rded")).pool_stage(problem, Teachers())
    assert isinstance(stage, FolderPool)
    assert stage.pool == 3, "as many as the smallest class has"
    images = images_of(computed(stage, digits[0], tmp_path / "store")).view(10, 3, 8, 8)
    for label in range(10):
        assert torch.equal(images[label], torch.stack(written[f"{label:05d}"][:3]))


def test_an_exported_set_is_a_pool_of_what_its_pictures_stand_for(
    problem: Problem, digits, tmp_path: Path
) -> None:
    info = problem.dataset
    pixels = torch.linspace(-0.5, 1.5, 64).view(1, 1, 8, 8).repeat(20, 1, 1, 1)
    made = DistilledSet(
        images=(pixels - info.mean[0]) / info.std[0], labels=torch.arange(20) // 2, info=info
    )
    write_set(made, str(tmp_path / "export"), "folder")
    stage = InitConfig(kind="folder", folder=str(tmp_path / "export")).pool_stage(
        problem, Teachers()
    )
    assert stage is not None
    images = images_of(computed(stage, digits[0], tmp_path / "store")).view(20, 8, 8)
    assert int((images.int() - (pixels[:, 0].clamp(0, 1) * 255).round().int()).abs().max()) <= 1
    (tmp_path / "export" / "dataset.json").unlink()
    other = InitConfig(kind="folder", folder=str(tmp_path / "export")).pool_stage(
        problem, Teachers()
    )
    assert other is not None
    assert other.refs()[0].key != stage.refs()[0].key


def test_files_of_a_folder_come_to_the_data_sets_size(
    problem: Problem, digits, tmp_path: Path
) -> None:
    _folder(tmp_path / "big", {f"{c}": 2 for c in range(10)}, size=(30, 20))
    stage = InitConfig(kind="folder", folder=str(tmp_path / "big")).pool_stage(problem, Teachers())
    assert stage is not None
    theirs = Image.open(tmp_path / "big" / "0" / "class_id000.png").resize(
        (8, 8), Image.Resampling.BILINEAR
    )
    found = computed(stage, digits[0], tmp_path / "store")["classes-0000-0009"]["images"][0, 0]
    assert (
        found.tolist()
        == torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.uint8).view(8, 8).tolist()
    )


def test_a_folder_is_keyed_by_what_it_holds_and_checked_when_read(
    problem: Problem, digits, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        _folder(tmp_path / name, {f"{c}": 2 for c in range(10)})
    one, two = (
        InitConfig(kind="folder", folder=str(tmp_path / name)).pool_stage(problem, Teachers())
        for name in ("one", "two")
    )
    assert one is not None
    assert two is not None
    assert one.refs()[0].key == two.refs()[0].key, "the same images elsewhere"
    (tmp_path / "two" / "3" / "more.png").write_bytes(
        (tmp_path / "two" / "3" / "class_id000.png").read_bytes()
    )
    with pytest.raises(RunFailed, match="has changed since"):
        computed(two, digits[0], tmp_path / "store")
    other = InitConfig(kind="folder", folder=str(tmp_path / "two")).pool_stage(problem, Teachers())
    assert other is not None
    assert other.refs()[0].key != one.refs()[0].key


def test_an_absent_folder_can_be_planned_and_is_named_as_missing(
    problem: Problem, tmp_path: Path
) -> None:
    config = InitConfig(kind="folder", folder=str(tmp_path / "nowhere"))
    stage = config.pool_stage(problem, Teachers())
    assert stage is not None
    assert stage.pool == problem.ipc
    (line,) = config.missing(problem, Teachers())
    assert str(tmp_path / "nowhere") in line
    _folder(tmp_path / "nowhere", {f"{c}": 2 for c in range(10)})
    assert config.missing(problem, Teachers()) == []


def test_a_folder_that_does_not_fit_is_refused(problem: Problem, tmp_path: Path) -> None:
    _folder(tmp_path / "few", {f"{c}": 2 for c in range(10) if c != 4})
    with pytest.raises(ConfigError, match="class 4 has 0 images"):
        InitConfig(kind="folder", folder=str(tmp_path / "few")).pool_stage(problem, Teachers())
    _folder(tmp_path / "deep" / "train", {f"{c}": 2 for c in range(10)})
    with pytest.raises(DataError, match="nothing deeper"):
        open_folder(str(tmp_path / "deep"), problem.dataset)
    _folder(tmp_path / "two", {f"{c}": 2 for c in range(10)})
    with pytest.raises(ConfigError, match=r"pool=3: class 0 has 2 images"):
        InitConfig(kind="folder", folder=str(tmp_path / "two"), pool=3).pool_stage(
            problem, Teachers()
        )


# -- patches ---------------------------------------------------------------------------------------


def _judge(
    networks: list[Network], images: torch.Tensor, label: int, info: DatasetInfo
) -> torch.Tensor:
    logits = sum(network(V.normalize(images, info.mean, info.std)) for network in networks) / len(
        networks
    )
    return -F.log_softmax(logits, 1)[:, label]


def _rded_by_hand(stage: RdedPool, data: Any, info: DatasetInfo, label: int) -> torch.Tensor:
    """RDED image by image, with torchvision's transforms (docs/methods/rded.md, "Choosing crops" and "Tiling")."""
    networks = [backbone.make() for backbone in stage.backbones]
    members = (data["train"].labels == label).nonzero().reshape(-1)
    chosen = members[torch.randperm(len(members), generator=generator(SEED, "candidates", label))][
        : stage.candidates
    ]
    side, best = 8 // stage.factor, []
    for sample in chosen.tolist():
        image = data["train"].take(torch.tensor([sample])).float() / 255
        draws, crops = generator(SEED, "crops", label, sample), []
        for _ in range(stage.num_crop):
            box = draw_resized_crop(draws, 8, 8, (0.08, 1.0), (1.0, 1.0))
            assert box.height == box.width
            crops.append(
                V.resized_crop(
                    image, box.top, box.left, box.height, box.width, [side, side], antialias=True
                )
            )
        seen = [F.pad(V.normalize(c, info.mean, info.std), [(8 - side) // 2] * 4) for c in crops]
        logits = sum(network(torch.cat(seen)) for network in networks) / len(networks)
        losses = -F.log_softmax(logits, 1)[:, label]
        best.append((float(losses.min()), crops[int(losses.argmin())]))
    best.sort(key=lambda item: item[0])
    made = torch.zeros(stage.pool, 1, 8, 8)
    for i in range(stage.pool):
        for k in range(stage.factor**2):
            row, column = divmod(k, stage.factor)
            made[i, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = best[
                i + k * stage.pool
            ][1]
    return (made * 255 + 1e-3).floor()


@pytest.mark.parametrize("factor", [1, 2])
def test_rded_is_what_was_published(factor: int, digits, tmp_path: Path) -> None:
    data, info = digits
    stage = patches(RdedPool, info, factor=factor, classes_per_unit=10)
    made = images_of(computed(stage, data, tmp_path)).view(10, 2, 1, 8, 8)
    for label in (0, 3, 9):
        expected = _rded_by_hand(stage, data, info, label)
        assert ((made[label].float() - expected).abs() > 1).sum() == 0
        assert (made[label].float() == expected).float().mean() > 0.99


def test_edc_is_what_was_published(digits, tmp_path: Path) -> None:
    data, info = digits
    stage = patches(EdcPool, info, image_format="jpeg75", classes_per_unit=10)
    made = images_of(computed(stage, data, tmp_path)).view(10, 2, 1, 8, 8)
    networks = [backbone.make() for backbone in stage.backbones]
    for label in (0, 7):
        members = (data["train"].labels == label).nonzero().reshape(-1)
        images = data["train"].take(members).float() / 255
        kept = images[_judge(networks, images, label, info).argsort()[:20]]
        crops, losses = [], []
        for b in range(20 // 6):
            for k in range(3):
                draws = generator(SEED, "crops", label, b, k)
                box, flip = draw_resized_crop(draws, 8, 8, (0.08, 1.0)), draw_flip(draws)
                cut = V.resized_crop(
                    kept[6 * b : 6 * b + 6],
                    box.top,
                    box.left,
                    box.height,
                    box.width,
                    [8, 8],
                    antialias=True,
                )
                crops.append(V.horizontal_flip(cut) if flip else cut)
                losses.append(_judge(networks, crops[-1], label, info))
        assert sum(map(len, crops)) == stage.available(len(members)) == 54
        ranked = torch.cat(crops)[torch.cat(losses).argsort()[:8]]
        files = jpeg_round_trip((ranked * 255 + 1e-3).floor().to(torch.uint8))
        halves = [
            Image.fromarray(file[0].numpy()).resize((4, 4), Image.Resampling.BILINEAR)
            for file in files
        ]
        small = [
            torch.frombuffer(bytearray(half.tobytes()), dtype=torch.uint8).view(1, 4, 4)
            for half in halves
        ]
        rows = [
            torch.cat(
                [
                    torch.cat([small[i], small[i + 1]], 2),
                    torch.cat([small[i + 2], small[i + 3]], 2),
                ],
                1,
            )
            for i in (0, 4)
        ]
        difference = (made[label].float() - jpeg_round_trip(torch.stack(rows)).float()).abs()
        assert difference.mean() < 1.0, (
            "a pixel rounded the other way may move a whole JPEG block a little"
        )


def test_scores_are_of_all_images_in_order(digits, tmp_path: Path) -> None:
    data, info = digits
    stage = ScoreImages(
        seed=SEED, dataset=info.only("train"), backbones=teachers(info, 2), slices=3
    )
    outputs = computed(stage, data, tmp_path)
    found = torch.cat([outputs[unit]["scores"] for unit in stage.units()])
    ids = torch.tensor([0, 500, 1437])
    for i in ids.tolist():
        image, label = (
            data["train"].take(torch.tensor([i])).float() / 255,
            int(data["train"].labels[i]),
        )
        torch.testing.assert_close(
            found[i : i + 1],
            _judge([b.make() for b in stage.backbones], image, label, info),
            rtol=1e-4,
            atol=1e-5,
        )
    assert len(found) == 1438


@pytest.mark.parametrize("kind", [RdedPool, EdcPool])
@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    kind: type, world: int, digits, tmp_path: Path
) -> None:
    data, info = digits
    stage = patches(kind, info)
    alone = computed(stage, data, tmp_path / "one")
    store = Store(str(tmp_path / "many"))
    run_group(stage.refs(), store, world, lambda: data)
    assert {ref.unit: digest(store.load(ref)) for ref in stage.refs()} == {
        unit: digest(found) for unit, found in alone.items()
    }


@pytest.mark.parametrize("kind", [RdedPool, EdcPool])
def test_how_classes_are_cut_into_units_changes_nothing_and_the_seed_does(
    kind: type, digits, tmp_path: Path
) -> None:
    data, info = digits
    one, cut, seed = (
        images_of(computed(patches(kind, info, **fields), data, tmp_path / str(i)))
        for i, fields in enumerate(({"classes_per_unit": 10}, {"classes_per_unit": 3}, {"seed": 6}))
    )
    assert torch.equal(one, cut)
    assert not torch.equal(one, seed)


def test_patches_are_surer_than_random_crops(digits, tmp_path: Path) -> None:
    """More candidates and more crops give images that the teachers find easier."""
    data, info = digits
    networks = [b.make() for b in teachers(info, 2)]
    means = []
    for fields in ({"candidates": 8, "num_crop": 1}, {"candidates": 100, "num_crop": 5}):
        stage = patches(RdedPool, info, factor=1, pool=4, **fields)
        made = (
            images_of(computed(stage, data, tmp_path / str(fields["candidates"])))
            .view(10, 4, 1, 8, 8)
            .float()
            / 255
        )
        means.append(
            float(
                torch.stack([_judge(networks, made[c], c, info).mean() for c in range(10)]).mean()
            )
        )
    assert means[1] < means[0]


def test_a_class_with_fewer_images_than_candidates_gives_all_it_has(digits, tmp_path: Path) -> None:
    data, info = digits
    assert max(info.train_counts) < 300
    beyond, all_of_them = (
        images_of(
            computed(
                patches(RdedPool, info, candidates=count, num_crop=1), data, tmp_path / str(count)
            )
        )
        for count in (300, max(info.train_counts))
    )
    assert torch.equal(beyond, all_of_them)


# -- the configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [
    {"kind": "noise", "pool": 4}, {"kind": "noise", "sampling": "softmax_count"}, {"kind": "noise",
    "classes_per_unit": 3},
    {"kind": "noise", "image_format": "png"}, {"kind": "real", "factor": 2}, {"kind": "real",
    "networks": ("convnet3",)},
    {"kind": "edc", "folder": "x"}, {"kind": "folder", "folder": "x", "candidates": 10},
])  # fmt: skip
def test_a_field_without_effect_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"has no effect with init\.kind"):
        InitConfig(**fields)


def test_what_a_kind_needs_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"needs init\.folder"):
        InitConfig(kind="folder")
    with pytest.raises(ConfigError, match="at least one teacher"):
        InitConfig(kind="rded", networks=())


@pytest.mark.parametrize(("fields", "match"), [
    ({"kind": "rded", "factor": 3}, "factor=3 does not divide"),
    ({"kind": "edc", "factor": 3}, "factor=3 does not divide"),
    ({"kind": "rded", "candidates": 7}, "candidates=7 give as many crops"),
    ({"kind": "rded", "pool": 60}, r"class \d has 1\d\d training images, one crop each; 60 images of 2x2 need 240"),
    ({"kind": "edc", "candidates": 1, "num_crop": 7}, r"gives 7 crops"),
    ({"kind": "real", "pool": 500}, "has only"),
    ({"kind": "real", "pool": 1}, "init.pool=1 is below the 2 of each class"),
])  # fmt: skip
def test_too_little_is_refused_before_anything_runs(
    fields: dict[str, Any], match: str, problem: Problem
) -> None:
    with pytest.raises(ConfigError, match=match):
        InitConfig(**fields).pool_stage(problem, Teachers())


def test_each_kind_gives_its_stage_with_the_published_settings(problem: Problem) -> None:
    networks = {"noise": None, "real": None, "rded": ("convnet1_w8",)}
    networks |= {"edc": ("convnet1_w8", "convnet1_w4")}
    kinds = {
        kind: InitConfig(kind=kind, networks=names).pool_stage(problem, Teachers())
        for kind, names in networks.items()
    }
    assert kinds["noise"] is None
    assert isinstance(kinds["real"], RealPool)
    rded, edc = kinds["rded"], kinds["edc"]
    assert isinstance(rded, RdedPool)
    assert (rded.pool, rded.factor, rded.candidates, rded.num_crop, rded.image_format) == (
        2,
        2,
        300,
        5,
        "jpeg75",
    )
    assert isinstance(edc, EdcPool)
    assert (edc.candidates, edc.block, edc.num_crop, len(edc.backbones)) == (300, 64, 4, 2)
    assert edc.available(1300) == 1024, "four blocks of 64 images, four crops each"
    assert InitConfig(kind="edc").scoring_networks == (
        "resnet18",
        "mobilenet_v2",
        "efficientnet_b0",
        "shufflenet_v2_x0_5",
    )
    assert InitConfig(kind="rded").missing(problem, Teachers()) == ["resnet18: no weights"]


def test_what_is_not_there_is_zero_for_noise(problem: Problem) -> None:
    assert InitConfig(kind="noise").stages(problem, Teachers()) == []
    assert InitConfig(kind="noise").missing(problem, Teachers()) == []


@pytest.mark.parametrize("stage", ["real", "rded", "edc"])
def test_costs_are_known_without_the_data(stage: str, problem: Problem) -> None:
    bare = dataclasses.replace(
        problem, dataset=dataclasses.replace(problem.dataset, train_counts=(), digests=())
    )
    networks = None if stage == "real" else ("convnet1_w8",)
    for given in (problem, bare):
        pool: ImagePool | None = InitConfig(kind=stage, networks=networks).pool_stage(
            given, Teachers()
        )  # type: ignore[arg-type]
        assert pool is not None
        cost = pool.cost(pool.units()[0])
        assert cost.output_bytes == 10 * 2 * 64
        assert cost.peak_bytes > cost.output_bytes
        assert (cost.flop > 0) == (stage != "real")


def test_with_teachers_trained_here_the_stages_come_in_order_and_run(
    problem: Problem, digits, tmp_path: Path
) -> None:
    config = InitConfig(
        kind="edc",
        networks=("convnet1_w8", "convnet1_w4"),
        candidates=12,
        pool=3,
        sampling="with_replacement",
    )
    stages = config.stages(problem, TeacherConfig(epochs=1, augmentation="none"))
    assert [type(stage) for stage in stages] == [TrainNetwork, TrainNetwork, ScoreImages, EdcPool]
    assert stages[-1] == config.pool_stage(problem, TeacherConfig(epochs=1, augmentation="none"))
    assert images_of(computed(stages[-1], digits[0], tmp_path)).shape == (30, 1, 8, 8)
