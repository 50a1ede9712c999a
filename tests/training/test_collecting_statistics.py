"""Collected statistics against the reference's golden numbers and a plain loop; slices, workers, resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import run_group
from torch import Tensor, nn

from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import Tensors, digest, dump_tensors, load_tensors
from raydd.core.units import Numerics, Ref, unit_key
from raydd.data.arrays import ArrayData
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import normalise
from raydd.networks import create_network
from raydd.networks.taps import StatTap
from raydd.training.backbones import Backbone
from raydd.training.recipe import Recipe
from raydd.training.statistics import Statistics, StatisticsConfig, add_batch
from raydd.training.train_network import TrainNetwork
from raydd.training.weights import Weights

NETWORK, CLASSES, COUNT = "convnet2_w4_batchnorm", 5, 46


def det(
    shape: tuple[int, ...], a: float = 0.37, b: float = 0.11, scale: float = 1.0, shift: float = 0.0
) -> Tensor:
    """Return the golden file's deterministic tensor."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (scale * (torch.sin(a * i + b) + 0.5 * torch.cos(0.013 * i)) + shift).float().view(shape)


def dataset() -> tuple[dict[str, ArrayData], DatasetInfo]:
    """Return random images sorted by class, as folders are, and their facts."""
    g = torch.Generator().manual_seed(3)
    labels = torch.sort(
        torch.cat(
            [torch.arange(CLASSES), torch.randint(0, CLASSES, (COUNT - CLASSES,), generator=g)]
        )
    )[0]
    images = (
        torch.randint(0, 100, (COUNT, 3, 12, 12), generator=g) + labels.view(-1, 1, 1, 1) * 30
    ).to(torch.uint8)
    data = ArrayData(images, labels)
    info = DatasetInfo(
        name="toy", classes=CLASSES, channels=3, height=12, width=12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3),
        digests=(("train", data.digest),), train_counts=tuple(torch.bincount(labels).tolist()),
    )  # fmt: skip
    return {"train": data}, info


DATA, INFO = dataset()


class Desk:
    """The least a stage needs."""

    device = torch.device("cpu")

    def __init__(self, seed: int = 0, inputs: dict[str, Tensors] | None = None) -> None:
        self.data, self.seed, self.inputs = DATA, seed, inputs or {}
        self._cache: dict[Any, Any] = {}

    def rng(self, stream: str, *ids: int) -> torch.Generator:
        return generator(self.seed, stream, *ids)

    def load(self, name: str) -> Tensors:
        return dict(self.inputs[name])

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    network = create_network(NETWORK, INFO.shape, CLASSES, generator(1, "weights"))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(det((4,), 0.9))  # type: ignore[union-attr]
                module.running_var.copy_(det((4,), 0.7, scale=0.2, shift=1.0).abs())  # type: ignore[union-attr]
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    path.write_bytes(dump_tensors(network.state_dict()))
    return Backbone(network=NETWORK, dataset=INFO.only(), weights=Weights.at(str(path)))


def stage(backbone: Backbone, **fields: Any) -> Statistics:
    config = StatisticsConfig(**{"patch": 4, "batch": 8, "slices": 3, **fields})
    made = config.source(backbone, INFO, 0, Numerics())
    assert isinstance(made, Statistics)
    return made


def collect(made: Statistics) -> Tensors:
    desk, sums = Desk(), {}
    for unit in made.collected.units():
        state = made.collected.init(unit, desk)  # type: ignore[arg-type]
        for t in range(made.collected.steps(unit)):
            state = made.collected.step(unit, state, t, desk)  # type: ignore[arg-type]
        sums[unit] = made.collected.finish(unit, state, desk)  # type: ignore[arg-type]
    return made.finish("all", {}, Desk(inputs=sums))  # type: ignore[arg-type]


def test_golden_g3() -> None:
    tap = StatTap(nn.Sequential(nn.Conv2d(3, 2, 1)), 4, shape=(3, 8, 8))
    sums = {
        "G": torch.zeros(2, 7, dtype=torch.float64),
        "T": torch.zeros(10, 2, 7, dtype=torch.float64),
        "count": torch.zeros(10).long(),
    }
    for s, labels in enumerate(([0, 1, 2, 3], [0, 1, 1, 9])):
        with torch.no_grad():
            add_batch(sums, tap(det((4, 3, 8, 8), 0.37, 0.5 * s), 4)[1], torch.tensor(labels))
    overall = tap.layout.split((sums["G"] / 8).float())
    one = tap.layout.split((sums["T"][1] / 3).float())
    want = {
        "mu": (0.0738454, -0.0256270, -0.1167692),
        "var": (0.6581203, 0.6189536, 0.6063302),
        "pmu": (-0.0013522, -0.0027911, -0.0453576, -0.0419002),
        "pvar": (0.6231675, 0.6489299, 0.6153396, 0.6462821),
    }
    want_one = {
        "mu": (-0.2411086, -0.1166480, 0.0955166),
        "var": (0.5036918, 0.5001228, 0.5074953),
        "pmu": (-0.1174374, -0.1288847, -0.0438942, -0.0594370),
        "pvar": (0.5393830, 0.4931048, 0.6046300, 0.4977223),
    }
    assert sums["count"].tolist() == [2, 3, 1, 1, 0, 0, 0, 0, 0, 1]
    for name in want:
        torch.testing.assert_close(
            overall[f"0/{name}"], torch.tensor(want[name]), rtol=2e-5, atol=1e-7
        )
        torch.testing.assert_close(
            one[f"0/{name}"], torch.tensor(want_one[name]), rtol=2e-5, atol=1e-7
        )
    resized = tap_of_6x6(det((4, 6, 6, 6)))
    torch.testing.assert_close(
        resized,
        torch.tensor([-0.0357314, -0.0416634, -0.0422512, -0.0464683]),
        rtol=2e-5,
        atol=1e-7,
    )


def test_images_of_a_class_are_added_one_after_another() -> None:
    """As by a loop, to the bit: nothing depends on the order in which a GPU's threads would add."""
    g = torch.Generator().manual_seed(0)
    labels, statistics = torch.randint(0, 4, (50,), generator=g), torch.rand(50, 2, 6, generator=g)
    sums = {
        "G": torch.zeros(2, 6).double(),
        "T": torch.rand(5, 2, 6, generator=g).double(),
        "count": torch.zeros(5).long(),
    }
    want = sums["T"].clone()
    for label, values in zip(labels.tolist(), statistics.double()):
        want[label] += values
    add_batch(sums, statistics, labels)
    assert torch.equal(sums["T"], want)
    assert sums["count"].tolist() == torch.bincount(labels, minlength=5).tolist()


def tap_of_6x6(x: Tensor) -> Tensor:
    tap = StatTap(nn.Sequential(nn.Conv2d(6, 2, 1)), 4, shape=(6, 6, 6))
    return tap.layout.split(tap(x)[1].detach()[0])["0/pmu"]


def test_tables_are_those_of_a_plain_loop(backbone: Backbone) -> None:
    """The published loop: statistics of a batch weighted by its size, a Python loop over images."""
    made = stage(backbone)
    collected, desk = made.collected, Desk()
    found = collect(made)
    tap = StatTap(backbone.load(desk, "backbone"), 4)  # type: ignore[arg-type]
    overall = torch.zeros(2, tap.layout.width, dtype=torch.float64)
    classes = torch.zeros(CLASSES, 2, tap.layout.width, dtype=torch.float64)
    order = torch.randperm(COUNT, generator=generator(0, "order"))
    sizes = []
    for slice_ in (order[:15], order[15:30], order[30:]):
        for ids in slice_.split(8):
            views = collected._views(
                DATA["train"].take(ids), [generator(0, "views", int(i)) for i in ids]
            )
            with torch.no_grad():
                overall += tap(views)[1][0].double() * len(ids) / COUNT
                for view, i in zip(views, ids, strict=True):
                    classes[DATA["train"].labels[i]] += tap(view[None])[1][0].double()
            sizes.append(len(ids))
    assert sizes == [8, 7, 8, 7, 8, 8]
    assert [collected.steps(unit) for unit in collected.units()] == [2, 2, 2]
    classes /= torch.tensor(INFO.train_counts).view(-1, 1, 1)
    for kind, want in (("G", overall), ("T", classes)):
        for name, values in tap.layout.split(want.float()).items():
            if kind == "T" or "conv" in name:
                torch.testing.assert_close(found[f"{kind}/{name}"], values, rtol=2e-5, atol=2e-6)
    convolutions = {layer.name for layer in tap.layout.layers if layer.kind == "conv"}
    assert {k.split("/")[1] for k in found if k.startswith("G/")} == convolutions
    assert {v.dtype for k, v in found.items() if k != "count"} == {torch.float32}


def test_class_tables_do_not_depend_on_slices_or_batches(backbone: Backbone) -> None:
    one = collect(stage(backbone, slices=1))
    for fields in ({"slices": 4}, {"slices": 2, "batch": 5}):
        other = collect(stage(backbone, **fields))
        for name, table in one.items():
            if name.startswith("T/"):
                torch.testing.assert_close(other[name], table, rtol=1e-6, atol=1e-7)
    assert not torch.equal(
        one["G/features.0.0.conv/var" if "G/features.0.0.conv/var" in one else first(one)],
        other[first(one)],
    )


def first(tables: Tensors) -> str:
    return next(k for k in sorted(tables) if k.startswith("G/") and k.endswith("/var"))


def test_batches_mix_the_classes_of_a_sorted_data_set(backbone: Backbone) -> None:
    """Batches of one class would have too small variances: the whole variance of the image must be
    found, but for O(1/batch).
    """
    found = collect(stage(backbone, crop=(1.0, 1.0), batch=16))
    image = next(
        k for k in found if k.startswith("G/") and k.endswith("/var") and len(found[k]) == 3
    )
    whole = normalise(DATA["train"].images, INFO.mean, INFO.std).var((0, 2, 3), correction=0)
    within = torch.stack(
        [
            normalise(image, INFO.mean, INFO.std).var((1, 2), correction=0)
            for image in DATA["train"].images
        ]
    ).mean(0)
    assert bool((found[image] > within + 0.6 * (whole - within)).all())


@pytest.mark.parametrize("options", [{}, {"pad": 2}])
def test_equal_bytes_for_any_number_of_workers(
    backbone: Backbone, tmp_path: Path, options: dict[str, Any]
) -> None:
    digests = set()
    for world in (1, 2, 3):
        ref = Ref(stage(backbone, **options), "all")
        store = Store(str(tmp_path / str(world)))
        run_group([ref], store, world, lambda: DATA)
        digests.add(digest(store.load(ref)))
    assert len(digests) == 1


def test_equal_bytes_when_resumed_at_any_batch(backbone: Backbone) -> None:
    collected = stage(backbone, slices=1).collected
    unit, steps = collected.units()[0], collected.steps(collected.units()[0])
    assert steps == 6
    desk: Any = Desk()
    state, states = collected.init(unit, desk), []
    for t in range(steps):
        states.append(dump_tensors(state))
        state = collected.step(unit, state, t, desk)
    for start in (0, 2, 5):
        again, desk = load_tensors(states[start]), Desk()
        for t in range(start, steps):
            again = collected.step(unit, again, t, desk)
        assert digest(again) == digest(state)


def test_sums_are_added_in_place_and_their_cost_is_told(backbone: Backbone) -> None:
    made = stage(backbone)
    unit = made.collected.units()[0]
    desk: Any = Desk()
    state = made.collected.init(unit, desk)
    after = made.collected.step(unit, state, 0, desk)
    assert after["T"].data_ptr() == state["T"].data_ptr()
    size = sum(v.nbytes for v in after.values())
    cost = made.collected.cost(unit)
    assert 0.95 * size < cost.state_bytes <= size
    assert cost.peak_bytes > 2 * cost.state_bytes
    tables = collect(made)
    assert made.cost("all").output_bytes >= sum(v.nbytes for k, v in tables.items() if k != "count")


def test_padding_is_black_and_crops_are_of_each_image(backbone: Backbone) -> None:
    white = torch.full((40, 3, 12, 12), 255, dtype=torch.uint8)
    rngs = [generator(0, "views", i) for i in range(40)]
    views = stage(backbone, pad=3).collected._views(white, rngs)
    black, bright = normalise(
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1),
        INFO.mean,
        INFO.std,
    )
    assert bool((torch.isclose(views, black) | torch.isclose(views, bright)).all())
    dark = torch.isclose(views, black)[:, 0].flatten(1).sum(1)
    assert len(dark.unique()) > 5


def test_a_trained_network_is_an_input(backbone: Backbone) -> None:
    training = TrainNetwork(
        seed=0, dataset=INFO.only("train"), network=NETWORK, recipe=Recipe(epochs=0)
    )
    made = stage(Backbone(network=NETWORK, dataset=INFO.only(), training=training))
    assert made.collected.inputs("slice-000") == {"backbone": Ref(training, "network-000")}
    assert list(made.inputs("all")) == ["slice-000", "slice-001", "slice-002"]
    assert made.inputs_of("x") == {"x": Ref(made, "all")}


def test_the_key_holds_what_changes_the_tables(backbone: Backbone) -> None:
    base = unit_key(stage(backbone), "all")
    for fields in ({"batch": 9}, {"slices": 2}, {"patch": 3}, {"crop": (0.5, 1.0)}, {"pad": 1}):
        assert unit_key(stage(backbone, **fields), "all") != base
    assert unit_key(stage(backbone, crop=(0.08, 1.0)), "all") == base


def test_a_class_without_images_and_another_data_set_are_refused(backbone: Backbone) -> None:
    made = stage(backbone)
    sums = {
        unit: {"G/x/mu": torch.zeros(2), "count": torch.tensor([1, 0])}
        for unit in made.collected.units()
    }
    with pytest.raises(DataError, match="class 1 has no training images"):
        made.finish("all", {}, Desk(inputs=sums))  # type: ignore[arg-type]
    other = replace(made.collected, dataset=replace(INFO, train_counts=(3, 3, 3, 3, 3)))
    with pytest.raises(DataError, match="46 images, planned were 15"):
        other.init("slice-000", Desk())  # type: ignore[arg-type]


def test_statistics_that_are_not_finite_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    network = create_network(NETWORK, INFO.shape, CLASSES, generator(1, "weights"))
    with torch.no_grad():
        next(network.parameters()).fill_(3e38)
    path = tmp_path / "huge.safetensors"
    path.write_bytes(dump_tensors(network.state_dict()))
    collected = stage(replace(backbone, weights=Weights.at(str(path)))).collected
    desk: Any = Desk()
    with pytest.raises(DataError, match="not finite in batch 0 of slice-001"):
        collected.step("slice-001", collected.init("slice-001", desk), 0, desk)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": (0.5, 1.0), "pad": 4}, "cropped in one way"),
        ({"crop": (0.5, 0.2)}, r"range within \(0, 1\]"),
        ({"files": "/somewhere", "batch": 4}, "statistics.batch=4 has no effect"),
        ({"files": "shell://x"}, "not allowed"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StatisticsConfig(**fields)


def test_nothing_is_missing_where_statistics_are_collected() -> None:
    assert StatisticsConfig().missing([NETWORK], INFO) == []
