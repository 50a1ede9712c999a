"""Posters: their sizes, the labels of their windows, their start and the order of their classes, as
published and by hand; DM on a poster.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import small_method

from raydd.artifacts.decoding import SetSize
from raydd.artifacts.poster_geometry import WindowGrid
from raydd.config import load_job
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import dump_tensors
from raydd.core.units import Data, Numerics, unit_key
from raydd.data.catalog import entry, prompt_names
from raydd.data.datasets import with_digests
from raydd.evaluation.continual_plan import memories_of
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.set_sources import AssembledSet
from raydd.methods.method import Problem
from raydd.methods.posters.class_order import class_order, cosine_distances, diagonals, poco
from raydd.methods.posters.poster_config import PosterConfig
from raydd.methods.posters.poster_labels import (
    area_pixels,
    first_label_map,
    fixed_labels,
    hard_labels,
    label_map_cells,
)
from raydd.methods.posters.poster_layout import PosterLayout, class_grid, least_ipc, poster_sides
from raydd.methods.posters.poster_start import noise_areas, noise_poster
from raydd.runtime.runner import LocalRunner

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_podd.json").read_text())
RUNS = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "cub200": "cub-200",
    "tiny_imagenet": "tiny-imagenet-200",
}
every_run = pytest.mark.parametrize("name", sorted(RUNS))


def layout_of(width: int, height: int, areas: tuple[int, int], side: int = 32) -> PosterLayout:
    columns, rows = areas
    return PosterLayout(
        height=height,
        width=width,
        windows=WindowGrid(height=side, width=side, columns=3 * columns, rows=3 * rows),
        class_areas=WindowGrid(height=side, width=side, columns=columns, rows=rows),
        order=tuple(range(columns * rows)),
    )


def published(name: str) -> PosterLayout:
    facts = GOLDEN["geometry"][RUNS[name]]
    layout = layout_of(facts["W"], facts["H"], (facts["cx"], facts["cy"]), facts["h"])
    windows = replace(layout.windows, columns=facts["nx"], rows=facts["ny"])
    return replace(layout, windows=windows)


# -- size ------------------------------------------------------------------------------------------

SIZES = {
    "cifar10": "87x35 102x40 113x45 125x49 135x53 143x57 153x60 160x64",
    "cifar100": "175x175 202x202 226x226 247x247 267x267 286x286 303x303 320x320",
    "cub200": "351x175 405x202 453x226 497x247 536x267 572x286 608x303 640x320",
    "tiny_imagenet": "702x350 811x404 906x452 992x495 1071x535 1145x572 1214x607 1280x640",
}


@every_run
def test_the_size_rule_from_three_tenths_of_an_image_to_one(name: str) -> None:
    info = entry(name).info
    columns, rows = class_grid(info.classes)
    sides = [poster_sides(info, ipc / 10, columns, rows) for ipc in range(3, 11)]
    assert " ".join(f"{width}x{height}" for height, width in sides) == SIZES[name]
    for ipc, (height, width) in zip(range(3, 11), sides, strict=True):
        assert height * width <= ipc * info.classes * info.height * info.width / 10


@every_run
def test_the_published_posters_are_within_nine_tenths(name: str) -> None:
    info, facts = entry(name).info, GOLDEN["geometry"][RUNS[name]]
    windows = (facts["nx"], facts["ny"])
    config = PosterConfig(width=facts["W"], height=facts["H"], windows=windows)
    assert config.ordered(info, 0.9) == published(name)
    with pytest.raises(ConfigError, match=r"ipc=0.89 allows .* \(the poster is one of ipc=0\.\d+"):
        config.layout(info, 0.89)


def test_classes_stand_as_square_as_may_be() -> None:
    assert [class_grid(n) for n in (10, 100, 200, 7, 12, 1)] == [
        (5, 2),
        (10, 10),
        (20, 10),
        (7, 1),
        (4, 3),
        (1, 1),
    ]


@pytest.mark.parametrize(
    ("config", "ipc", "message"),
    [
        (PosterConfig(), 0.2, "poster would have 73×28 pixels, .* has 32×32; at least ipc=0.25"),
        (PosterConfig(class_grid=(3, 3)), 1, "3 columns and 3 rows are 9 areas; cifar10 has 10"),
        (PosterConfig(width=160, height=65), 1, r"160×65 pixels are 10,400; ipc=1 allows 10,240"),
        (PosterConfig(width=300, height=31), 1, "method.poster.windows: a poster of 300×31"),
        (PosterConfig(windows=(4, 3)), 1, "method.poster.windows: columns=4: .* do not tile"),
        (PosterConfig(class_area=(32, 80)), 1, "class_area: 32×80 pixels are more than"),
    ],
)
def test_posters_that_cannot_be_are_refused(config: PosterConfig, ipc: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.layout(entry("cifar10").info, ipc)


def test_the_least_ipc_is_possible_and_less_is_not() -> None:
    for name in (*RUNS, "fashion_mnist", "digits", "imagenet10"):
        info = entry(name).info
        least = least_ipc(info, *class_grid(info.classes))
        PosterConfig().layout(info, least)
        with pytest.raises(ConfigError, match=f"at least ipc={least:g} is possible"):
            PosterConfig().layout(info, least - 0.01)


def test_width_and_height_go_together() -> None:
    with pytest.raises(ConfigError, match="width and height are given together"):
        PosterConfig(width=100)


# -- labels ----------------------------------------------------------------------------------------


def test_fixed_labels_are_those_published() -> None:
    labels = fixed_labels(published("cifar10"), 10)
    assert labels.argmax(1).tolist() == GOLDEN["fixed_labels_cifar10_identity_order_argmax"]
    torch.testing.assert_close(labels, labels.round(), rtol=0, atol=1e-6, msg="all are one-hot")
    small = replace(published("cifar10"), width=87, height=35)
    expected = torch.tensor(GOLDEN["fixed_labels_cifar10_87x35"])
    torch.testing.assert_close(fixed_labels(small, 10), expected, rtol=0, atol=1e-6)
    assert int((expected == 0.5).any(1).sum()) == 12


def test_pixels_of_areas_are_counted() -> None:
    layout = layout_of(70, 40, (5, 2), 16)
    layout = replace(layout, order=(3, 1, 4, 0, 5, 9, 2, 6, 8, 7))
    shown = torch.zeros(10, 40, 70, dtype=torch.int64)
    for place, (y, x) in enumerate(layout.class_areas.places(40, 70)):
        label = layout.order[place % 2 * 5 + place // 2]
        shown[label, y : y + 16, x : x + 16] += 1
    counted = [
        shown[:, y : y + 16, x : x + 16].sum((1, 2)) for y, x in layout.windows.places(40, 70)
    ]
    assert torch.equal(area_pixels(layout, 10), torch.stack(counted))
    assert torch.equal(hard_labels(layout, 10), torch.stack(counted).argmax(1))


@every_run
def test_label_maps_of_the_published_rule_leave_classes_without_a_cell(name: str) -> None:
    facts, layout = GOLDEN["geometry"][RUNS[name]], published(name)
    cells = label_map_cells(layout, "published", 1)
    assert list(cells) == facts["label_array_hw"]
    label_map = first_label_map(layout, cells)
    lost = (label_map.sum((1, 2)) == 0).nonzero().flatten().tolist()
    assert lost == facts["classes_without_cell_identity_order"]
    grid = first_label_map(layout, label_map_cells(layout, "grid", 1))
    assert grid.shape == (layout.class_areas.count, facts["cy"], facts["cx"])
    assert torch.equal(grid.sum((1, 2)), torch.ones(layout.class_areas.count))


@every_run
def test_areas_of_a_label_map_are_split_as_published(name: str) -> None:
    facts, layout = GOLDEN["geometry"][RUNS[name]], published(name)
    label_map = first_label_map(layout, tuple(facts["label_array_hw"]))
    across, down = facts["label_xsplit"], facts["label_ysplit"]
    for place, label in enumerate(layout.order):
        j, i = divmod(place, facts["cx"])
        expected = torch.zeros(facts["label_array_hw"])
        expected[down[j] : down[j + 1], across[i] : across[i + 1]] = 1
        assert torch.equal(label_map[label], expected)


def test_other_sizes_of_label_maps() -> None:
    def cells(side: int) -> tuple[int, int]:
        return label_map_cells(layout_of(side, side, (10, 10)), "published", 1)

    assert [cells(side) for side in (202, 286, 303, 319)] == [(10, 10), (10, 9), (10, 9), (11, 11)]
    assert label_map_cells(layout_of(475, 210, (5, 2)), "published", 10) == (6, 16)
    # a = 6.65, b = 15.04 of 100 cells: (7, 14.x) does not fit; (6, 16) is the largest that does.
    assert label_map_cells(layout_of(475, 210, (5, 2)), "grid", 10) == (6, 16)
    assert label_map_cells(layout_of(153, 60, (5, 2)), "grid", 1) == (2, 5)
    assert label_map_cells(layout_of(303, 303, (10, 10)), "grid", 4) == (20, 20)
    assert label_map_cells(layout_of(153, 60, (5, 2)), "grid", 0.5) == (2, 5), (
        "none is without a cell"
    )


# -- start -----------------------------------------------------------------------------------------


def test_a_poster_starts_as_faded_areas_of_norm_1() -> None:
    areas = noise_areas(10, (3, 32, 32), generator(0, "init"))
    torch.testing.assert_close(areas.flatten(1).norm(dim=1), torch.ones(10))
    poster = noise_poster(published("cifar10"), 3, generator(0, "init"))
    assert poster.shape == (1, 3, 60, 153)
    assert float(poster.std()) == pytest.approx(1 / math.sqrt(3 * 32 * 32), rel=0.03)
    assert torch.equal(poster[0, :, :28, :30], areas[0, :, :28, :30]), "no other area is there"
    assert torch.equal(poster[0, :, 32:, 123 + 30 - 1 :], areas[9, :, 4:, -1:]), (
        "the last is label 9's"
    )


# -- class order -----------------------------------------------------------------------------------


def toy(count: int) -> torch.Tensor:
    i, k = (
        torch.arange(1.0, count + 1, dtype=torch.float64),
        torch.arange(1.0, 9, dtype=torch.float64),
    )
    return torch.sin(i[:, None] * k[None, :])


@pytest.mark.parametrize(
    ("name", "columns", "rows"), [("2x5", 5, 2), ("5x2", 2, 5), ("10x10", 10, 10)]
)
def test_classes_are_placed_as_published(name: str, columns: int, rows: int) -> None:
    order = poco(cosine_distances(toy(columns * rows)), columns, rows)
    expected = GOLDEN["poco"][f"toy_{name}"]
    assert list(order) == [label for line in expected for label in line]
    assert [list(place) for place in diagonals(4, 3)] == GOLDEN["poco"]["diag_3x4"]


def test_of_equal_distances_the_first_class_is_taken() -> None:
    assert poco(torch.zeros(6, 6), 3, 2) == (0, 2, 4, 1, 3, 5)  # along the diagonals


def test_orders_of_files(tmp_path: Path) -> None:
    info = entry("digits").info
    orders = {"list": [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], "rows": [[5, 6, 7, 8, 9], [0, 1, 2, 3, 4]]}
    for name, value in orders.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(value))
        found = class_order(str(path), info, 5, 2)
        assert list(found.order) == torch.tensor(value).flatten().tolist()
    path = tmp_path / "embeddings.safetensors"
    path.write_bytes(dump_tensors({"embeddings": toy(10)}))
    found = class_order(str(path), info, 5, 2)
    assert found.order == (0, 3, 7, 4, 8, 6, 9, 1, 2, 5)
    assert found.origin == "PoCO, embeddings of embeddings.safetensors"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.json", b"[0, 1, 2]", "each of the classes 0 to 9 once"),
        ("x.json", b"[0, 1, 2, 3, 4, 5, 6, 7, 8, 8]", "each of the classes 0 to 9 once"),
        ("x.json", b"{", "is no JSON list"),
        ("x.json", None, "is not there"),
        ("x.txt", b"", "must be labels, poco, or a .json"),
        ("x.safetensors", dump_tensors({"a": toy(9)}), "embeddings of 10 classes are needed"),
        ("x.safetensors", dump_tensors({"a": toy(9), "b": toy(9)}), "holds 2 tensors"),
        (
            "x.safetensors",
            dump_tensors({"a": torch.tensor(1.0)}),
            "embeddings of 10 classes are needed",
        ),
        (
            "x.safetensors",
            dump_tensors({"a": toy(10) * float("nan")}),
            r"class 0 is .* NaN .*\(10 classes",
        ),
        (
            "x.safetensors",
            dump_tensors({"a": torch.eye(11)[:10, 1:]}),
            r"class 0 is all zeros.*\(1 classes",
        ),
    ],
)
def test_orders_that_cannot_be_are_refused(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        class_order(str(path), entry("digits").info, 5, 2)


def test_without_embeddings_classes_stand_in_label_order_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    class_order.cache_clear()
    found = class_order("poco", entry("cifar10").info, 5, 2)
    assert found.order == tuple(range(10))
    assert found.origin.startswith("label order, since there are no embeddings: ")
    assert "they stand in label order" in caplog.text
    class_order.cache_clear()


class TextNetwork(torch.nn.Module):
    """Stands for open_clip's: embeds tokens one by one, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_final = torch.nn.LayerNorm(4)
        self.asked = torch.zeros(0)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        self.asked = tokens
        hidden = self.ln_final(torch.sin(tokens[..., None] * torch.arange(1.0, 5.0)))
        return hidden.mean(1)


def test_embeddings_are_all_hidden_states_of_names_filled_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, asked = TextNetwork(), list[str]()

    def tokenizer(names: list[str]) -> torch.Tensor:
        asked.extend(names)
        tokens = torch.zeros(len(names), 6, dtype=torch.int64)
        for row, name in enumerate(names):
            tokens[row, :3] = torch.tensor([49406, 1000 + len(name), 49407])
        return tokens

    stand_in = SimpleNamespace(
        create_model_and_transforms=lambda name, pretrained: (network, None, None),
        get_tokenizer=lambda name: tokenizer,
    )
    monkeypatch.setitem(sys.modules, "open_clip", stand_in)
    class_order.cache_clear()
    info = entry("cifar10").info
    found = class_order("poco", info, 5, 2)
    class_order.cache_clear()
    assert asked[8] == "boat"
    assert network.asked[0].tolist() == [49406, 1008, 49407, 49407, 49407, 49407]
    hidden = network.ln_final(torch.sin(network.asked[..., None] * torch.arange(1.0, 5.0)))
    assert found.order == poco(cosine_distances(hidden.detach().flatten(1)), 5, 2)
    assert found.origin == "PoCO, open_clip ViT-B-32-quickgelu"
    assert prompt_names(entry("cifar100").info)[39] == "computer keyboard"
    assert prompt_names(entry("digits").info) == entry("digits").info.class_names


# -- DM on a poster --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem(digits: Mapping[str, Data]) -> Problem:
    info = with_digests(entry("digits").info, digits)
    return Problem(dataset=info, ipc=0.5, seed=3, numerics=Numerics())


def made(method: Any, problem: Problem, data: Mapping[str, Data], place: Path) -> Any:
    refs, store = method.targets(problem), Store(str(place))
    runner = LocalRunner(lambda: data, device=torch.device("cpu"))
    runner.run(list(refs.values()), store, lambda event: None)
    return AssembledSet(method=method, problem=problem).assembled(
        {name: store.load(ref) for name, ref in refs.items()}
    )


def test_a_dm_without_a_poster_is_what_it_was(problem: Problem) -> None:
    whole = replace(problem, ipc=2)
    (stage,) = small_method("dm").plan(whole)
    assert type(stage).__name__ == "MatchDistributions"
    assert small_method("dm").size(whole) == SetSize(20, 20, 20 * (4 * 64 + 8))
    with pytest.raises(ConfigError, match=r"ipc: .* not 0.5: 'dm' makes whole images"):
        load_job(None, ["dataset.name=digits", "ipc=0.5", "method.name=dm"])


@pytest.mark.parametrize("init", ["real", "noise"])
def test_dm_moves_a_poster(
    problem: Problem, digits: Mapping[str, Data], tmp_path: Path, init: str
) -> None:
    method = small_method("dm", poster={"windows": (15, 6)}, init=init)
    distilled = made(method, problem, digits, tmp_path / "moved")
    layout = method.poster.layout(problem.dataset, 0.5)  # type: ignore[attr-defined]
    assert (layout.height, layout.width) == (11, 29)
    assert distilled.images.shape == (1, 1, 11, 29)
    assert distilled.size == method.size(problem) == SetSize(1, 90, 4 * 11 * 29 + 8 * 90)
    assert not distilled.soft
    assert sorted(set(distilled.labels.tolist())) == list(range(10))
    still = small_method("dm", poster={"windows": (15, 6)}, init=init, lr_img=1e-12)
    start = made(still, problem, digits, tmp_path / "still")
    assert float((distilled.images - start.images).abs().min()) > 0, "every pixel moves"


def test_a_poster_whose_windows_do_not_overlap_is_dm(
    problem: Problem, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    whole = replace(problem, ipc=1)
    poster = made(small_method("dm", poster={"windows": (5, 2)}), whole, digits, tmp_path / "a")
    images = made(small_method("dm", classes_per_unit=10), whole, digits, tmp_path / "b")
    assert poster.labels.tolist() == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    expected = images.images[poster.labels]
    torch.testing.assert_close(poster.take(), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_dms_poster_is_that_of_its_means(
    problem: Problem, digits: Mapping[str, Data]
) -> None:
    """Of features that are the windows themselves: the sum over classes of the squared distance of means."""
    from raydd.methods.matching.embedding_matching import Side

    method = small_method("dm", poster={"windows": (15, 6)})
    (stage,) = method.plan(problem)
    facts = stage.facts("all", torch.device("cpu"))  # type: ignore[attr-defined]
    poster = torch.randn(1, 1, 11, 29, generator=generator(0, "p"), dtype=torch.float64)
    poster.requires_grad_()
    seen = stage.seen_of(poster, 10, facts)  # type: ignore[attr-defined]
    real = torch.randn(10, 64, generator=generator(0, "r"), dtype=torch.float64)
    side = Side(None, lambda x: x, facts, ())  # type: ignore[arg-type]
    loss = stage.objective(seen.flatten(2), (real,), side)  # type: ignore[attr-defined]
    windows, labels = stage.layout.windows.cut(poster[0]), stage.labels  # type: ignore[attr-defined]
    expected = sum(
        ((windows[labels == c].flatten(1).mean(0) - real[c]) ** 2).sum() for c in range(10)
    )
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (one,) = torch.autograd.grad(loss, poster)
    (two,) = torch.autograd.grad(expected, poster)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def test_an_order_is_in_the_keys_and_labels_follow_it(problem: Problem, tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text("[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]")
    plain = small_method("dm", poster={})
    turned = small_method("dm", poster={"order": str(tmp_path / "order.json")})
    one, two = (method.plan(problem)[0] for method in (plain, turned))
    assert unit_key(one, one.units()[0]) != unit_key(two, two.units()[0])
    assert torch.equal(two.labels, 9 - one.labels)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("ipc", "windows"), [(0.5, [5, 2]), (1, [5, 2]), (2, [8, 3])])
def test_dm_has_a_window_of_each_class_unless_more_are_needed(
    problem: Problem, ipc: float, windows: list[int]
) -> None:
    method, whole = small_method("dm", poster={}), replace(problem, ipc=ipc)
    (stage,) = method.plan(whole)
    assert stage.layout.decoding.parameters["windows"] == windows  # type: ignore[attr-defined]
    assert method.size(whole).seen == windows[0] * windows[1]
    assert method.settled(whole)["poster"]["windows"] == windows[0] * windows[1]


def test_posters_are_refused_in_continual_learning(problem: Problem) -> None:
    source = AssembledSet(method=small_method("dm", poster={}), problem=problem)
    config = EvaluationConfig(protocol="dm", continual=5)
    with pytest.raises(ConfigError, match=r"evaluation.continual: a set of 'dm' is one poster"):
        memories_of("dm", [(source, problem)], "convnet1_w8", config, 5, {})


def test_a_class_that_no_window_shows_is_refused(problem: Problem) -> None:
    method = small_method("dm", poster={"windows": (4, 2)})
    with pytest.raises(ConfigError, match="no window shows more of class"):
        method.plan(problem)


def test_keys_of_a_poster_that_are_wrong_are_named() -> None:
    job = ["dataset.name=digits", "ipc=0.5", "method.name=dm"]
    with pytest.raises(
        ConfigError, match=r"method.poster.window: unknown key \(did you mean 'windows'"
    ):
        load_job(None, [*job, "method.poster.window=[3,3]"])
    with pytest.raises(ConfigError, match=r"method.poster.width: .* not 0"):
        load_job(None, [*job, "method.poster.width=0"])
    with pytest.raises(ConfigError, match=r"fractions are made by: podd, dm with method\.poster"):
        load_job(None, job)
    made = load_job(None, [*job, "method.poster.windows=[15,6]"])
    assert made.method.poster == PosterConfig(windows=(15, 6))  # type: ignore[attr-defined]
    assert made.stated()["method"]["poster"] == {"windows": [15, 6], "order": "labels"}
