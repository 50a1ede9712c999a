"""Windows of posters: where they lie, what is cut out, faded back and pooled, as published and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raydd import load
from raydd.artifacts.decoding import Decoding, SetSize
from raydd.artifacts.distilled_set import DistilledSet, Whitening
from raydd.artifacts.foreign_posters import windows_from
from raydd.artifacts.formats import read_set
from raydd.artifacts.poster_geometry import (
    WindowGrid,
    fade,
    label_windows,
    pooled_labels,
    window_starts,
)
from raydd.artifacts.poster_pictures import animation, further_pictures, picture_of
from raydd.artifacts.published_folder import publish, read
from raydd.artifacts.reading import Reading
from raydd.artifacts.windows import Windows
from raydd.artifacts.writing import write_set
from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.tensors import Tensors
from raydd.data.catalog import DatasetInfo, entry

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_podd.json").read_text())
GEOMETRY = GOLDEN["geometry"]
every_run = pytest.mark.parametrize("run", sorted(GEOMETRY))


def grid_of(facts: dict[str, Any]) -> WindowGrid:
    return WindowGrid(height=facts["h"], width=facts["h"], columns=facts["nx"], rows=facts["ny"])


@every_run
def test_windows_of_the_published_posters_begin_where_they_did(run: str) -> None:
    facts = GEOMETRY[run]
    assert list(window_starts(facts["W"], facts["h"], facts["nx"])) == facts["patch_x"]
    assert list(window_starts(facts["H"], facts["h"], facts["ny"])) == facts["patch_y"]
    assert list(window_starts(facts["W"], facts["h"], facts["cx"])) == facts["class_x"]
    assert list(window_starts(facts["H"], facts["h"], facts["cy"])) == facts["class_y"]
    grid_of(facts).check(facts["H"], facts["W"])


def test_starts_are_numpys_and_not_exact_fractions() -> None:
    import numpy as np

    for length, count in ((15, 23), (121, 16), (37, 8), (399, 61), (7, 2)):
        expected = np.linspace(0, length, count).round().astype(int).tolist()
        assert list(window_starts(length + 9, 9, count)) == expected
    assert window_starts(24, 9, 23)[11] == 7, "15 / 22 * 11 is a little below 7.5 in binary"
    assert window_starts(100, 32, 1) == (0,)


def stored(height: int = 13, width: int = 17, classes: int = 3, channels: int = 2) -> Tensors:
    images = torch.randn((1, channels, height, width), generator=generator(0, "poster"))
    return {"images": images, "labels": torch.arange(12) % classes}


def decoder() -> Windows:
    return Windows(height=8, width=8, windows=(4, 3))


def test_windows_are_counted_down_the_columns() -> None:
    tensors = stored()
    seen = decoder().take(tensors)
    assert seen.shape == (12, 2, 8, 8)
    xs, ys = (0, 3, 6, 9), (0, 2, 5)
    for k in range(12):
        x, y = xs[k // 3], ys[k % 3]
        assert torch.equal(seen[k], tensors["images"][0, :, y : y + 8, x : x + 8]), k
    assert decoder().labels(tensors, torch.tensor([11, 4])).tolist() == [2, 1]
    assert decoder().rows(tensors, torch.tensor([11, 4])).tolist() == [0, 0]


@pytest.mark.parametrize("pixels", [False, True], ids=["floats", "pixels"])
def test_some_windows_are_those_of_all(pixels: bool) -> None:
    tensors = stored()
    if pixels:
        tensors["images"] = (tensors["images"].clamp(-1, 1) * 127 + 128).to(torch.uint8)
    whole = decoder().take(tensors)
    ids = torch.randperm(12, generator=generator(1, "ids"))
    assert whole.dtype == tensors["images"].dtype
    assert torch.equal(decoder().take(tensors, ids), whole[ids])
    assert decoder().take(tensors, ids[:0]).shape == (0, 2, 8, 8)


@pytest.mark.parametrize("ids", [None, torch.tensor([3, 3, 0, 11])], ids=["all", "some"])
def test_a_poster_has_the_sum_of_its_windows_gradients(ids: Tensor | None) -> None:
    poster = stored()["images"].double().requires_grad_()
    seen = decoder().take({"images": poster, "labels": torch.zeros(12)}, ids)
    weights = torch.randn(seen.shape, dtype=torch.float64, generator=generator(2, "weights"))
    (gradient,) = torch.autograd.grad((seen * weights).sum(), poster)
    expected = torch.zeros_like(poster)
    places = decoder().grid.places(13, 17)
    for k, part in zip(range(12) if ids is None else ids.tolist(), weights, strict=True):
        y, x = places[k]
        expected[0, :, y : y + 8, x : x + 8] += part
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_gradients_of_windows_and_pooled_labels_are_those_of_differences() -> None:
    poster = stored(10, 12)["images"].double().requires_grad_()
    grid = WindowGrid(height=8, width=8, columns=3, rows=2)
    label_map = torch.rand(3, 3, 4, dtype=torch.float64, generator=generator(3, "map"))

    def seen(images: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        return grid.cut(images[0]), pooled_labels(cells, grid, (10, 12))

    inputs = (poster, (label_map + 0.1).requires_grad_())
    assert torch.autograd.gradcheck(seen, inputs)


@pytest.mark.parametrize(
    ("height", "width", "name"), [(60, 153, "fade_153x60"), (50, 100, "fade_100x50")]
)
def test_areas_fade_into_one_another_as_published(height: int, width: int, name: str) -> None:
    areas = torch.arange(1.0, 11.0).view(10, 1, 1, 1).expand(-1, 3, 32, 32)
    poster = fade(areas, 5, height, width)
    assert poster.shape == (3, height, width)
    for line, values in GOLDEN.items():
        if line.startswith(f"{name}_row"):
            found = poster[0, int(line.split("row")[1])]
        elif line.startswith(f"{name}_col"):
            found = poster[0, :, int(line.split("col")[1])]
        else:
            continue
        torch.testing.assert_close(found, torch.tensor(values), rtol=0, atol=1e-6)
    sums = {"fade_153x60": 50490.0, "fade_100x50": 27500.0}
    assert float(poster[2].double().sum()) == pytest.approx(sums[name], abs=0.05)


def test_areas_fade_by_hand_also_where_there_are_more_rows_than_columns() -> None:
    areas = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1).expand(-1, 1, 4, 4)
    # Tops 0, 2 and 5: two lines are shared by the first two, one by the others.
    poster = fade(areas, 1, 9, 4)
    assert poster[0, :, 0].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    apart = fade(areas[:2], 2, 4, 10)
    assert apart[0, 0].tolist() == [1, 1, 1, 1, 0, 0, 2, 2, 2, 2]


def test_windows_are_faded_back_into_the_poster_they_are_of() -> None:
    poster = stored(20, 26)["images"][0]
    grid = WindowGrid(height=8, width=8, columns=5, rows=4)
    torch.testing.assert_close(grid.faded(grid.cut(poster), 20, 26), poster, rtol=0, atol=1e-6)


def test_labels_are_pooled_as_published() -> None:
    c, i, j = torch.meshgrid(torch.arange(3), torch.arange(8), torch.arange(10), indexing="ij")
    label_map = (((80 * c + 10 * i + j) * 7) % 11 + 1).double()
    grid = WindowGrid(height=16, width=16, columns=3, rows=2)
    found = pooled_labels(label_map, grid, (32, 40))
    expected = torch.tensor(GOLDEN["label_pooling"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    ids = torch.tensor([5, 0, 0, 3])
    assert torch.equal(pooled_labels(label_map, grid, (32, 40), ids), found[ids])
    assert found[0].tolist() == pytest.approx([0.27609428, 0.37037037, 0.35353535], abs=1e-8)


@every_run
def test_windows_on_a_label_map_are_those_published(run: str) -> None:
    facts = GEOMETRY[run]
    rows, columns = facts["label_array_hw"]
    cells = label_windows(grid_of(facts), (facts["H"], facts["W"]), (rows, columns))
    assert [cells.width, cells.height] == facts["label_patch_wh"]
    assert list(window_starts(columns, cells.width, cells.columns)) == facts["label_x"]
    assert list(window_starts(rows, cells.height, cells.rows)) == facts["label_y"]


def test_a_cell_of_nothing_has_a_label_of_zeros_that_can_grow() -> None:
    label_map = torch.zeros(3, 2, 2, requires_grad=True)
    grid = WindowGrid(height=8, width=8, columns=2, rows=2)
    labels = pooled_labels(label_map, grid, (16, 16))
    assert not labels.any()
    labels.sum().backward()  # type: ignore[no-untyped-call]
    assert label_map.grad is not None
    assert torch.equal(label_map.grad, torch.ones_like(label_map))


@pytest.mark.parametrize(
    ("sides", "grid", "message"),
    [
        (
            (7, 20),
            (4, 3),
            r"poster of 20×7 pixels \(width×height\) is smaller than a window of 8×8",
        ),
        (
            (8, 40),
            (4, 1),
            r"columns=4: .* do not tile a width of 40: none shows pixels 8 to 10; at least columns=5",
        ),
        (
            (20, 8),
            (1, 2),
            r"rows=2: .* do not tile a height of 20: none shows pixels 8 to 11; at least rows=3",
        ),
        ((9, 8), (1, 1), r"rows=1: .* do not tile a height of 9"),
    ],
)
def test_windows_that_leave_pixels_out_are_refused(
    sides: tuple[int, int], grid: tuple[int, int], message: str
) -> None:
    columns, rows = grid
    with pytest.raises(ConfigError, match=message):
        WindowGrid(height=8, width=8, columns=columns, rows=rows).check(*sides)


def test_as_few_windows_as_are_asked_for_do_tile() -> None:
    for length in range(8, 200):
        for count in range(1, 30):
            grid = WindowGrid(height=8, width=8, columns=count, rows=1)
            try:
                grid.check(8, length)
            except ConfigError as error:
                least = int(str(error).split("at least columns=")[1].split()[0])
                WindowGrid(height=8, width=8, columns=least, rows=1).check(8, length)
                assert least > count


# -- sets ------------------------------------------------------------------------------------------


@pytest.fixture
def info() -> DatasetInfo:
    return entry("digits").info


def poster_set(info: DatasetInfo, **fields: Any) -> DistilledSet:
    labels = torch.arange(15 * 6) // 9
    values: dict[str, Any] = {
        "images": torch.randn((1, 1, 16, 40), generator=generator(5, "set")),
        "labels": labels,
        "soft_labels": torch.nn.functional.one_hot(labels, 10).float(),
        "info": info,
        "decoding": Decoding("windows", {"height": 8, "width": 8, "windows": [15, 6]}),
        "recipe": {"method": {"name": "podd"}, "ipc": 1},
    }
    return DistilledSet(**(values | fields))


def mapped(info: DatasetInfo) -> DistilledSet:
    label_map = torch.rand(10, 2, 5, generator=generator(6, "map"))
    return poster_set(info, soft_labels=None, extra={"label_map": label_map})


def test_a_poster_is_published_and_students_see_its_windows(
    info: DatasetInfo, tmp_path: Path
) -> None:
    made = mapped(info)
    assert made.soft
    assert made.size == SetSize(1, 90, 4 * 640 + 8 * 90 + 4 * 100)
    assert made.label_bytes == 8 * 90 + 4 * 100
    assert made.pixel_ipc == 1.0
    publish(made, str(tmp_path / "set"))
    again = read(str(tmp_path / "set"))
    assert again.digest == made.digest
    dataset = load(str(tmp_path / "set"))
    assert len(dataset) == 90
    assert "a poster of 40×16 pixels of 10 classes (1 images per class), decoded to 90" in repr(
        dataset
    )
    image, label = dataset[17]
    assert isinstance(label, Tensor)
    assert torch.equal(image, made.images[0, :, 8:16, 5:13])  # column 2, row 5
    assert label.tolist() == pytest.approx(
        pooled_labels(
            made.extra["label_map"], Windows(height=8, width=8, windows=(15, 6)).grid, (16, 40)
        )[17].tolist()
    )
    files = {path.name for path in (tmp_path / "set").iterdir()}
    assert {"grid.png", "semantic.png", "label_map.png"} <= files
    card = (tmp_path / "set" / "README.md").read_text()
    assert "raydd. A poster of 40×16 pixels, 10 classes, hard and soft labels" in card
    assert "![The poster](grid.png)" in card
    assert "pooled from `label_map`" in card


def test_another_label_map_is_another_set(info: DatasetInfo) -> None:
    made = mapped(info)
    other = poster_set(info, soft_labels=None, extra={"label_map": made.extra["label_map"] + 1})
    assert made.digest != other.digest


def test_exports_hold_what_students_see(info: DatasetInfo, tmp_path: Path) -> None:
    made = mapped(info)
    write_set(made, str(tmp_path / "tars"), "webdataset")
    write_set(made, str(tmp_path / "set.pt"), "pt")
    write_set(made, str(tmp_path / "set.safetensors"), "safetensors")
    tars, pt = (read_set(str(tmp_path / name)) for name in ("tars", "set.pt"))
    images, targets = made.tensors()
    torch.testing.assert_close(tars.tensors()[0], images, atol=0.05, rtol=0)
    torch.testing.assert_close(tars.targets, targets, atol=1e-6, rtol=0)
    assert torch.equal(pt.tensors()[0], images)
    assert read_set(str(tmp_path / "set.safetensors")).digest == made.digest
    with pytest.raises(ConfigError, match="image folder cannot hold soft labels"):
        write_set(made, str(tmp_path / "folder"), "folder")


def test_a_loop_of_plain_torch_trains_on_a_published_poster(
    info: DatasetInfo, tmp_path: Path
) -> None:
    publish(mapped(info), str(tmp_path / "set"))
    dataset = load(str(tmp_path / "set"))
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, dataset.classes))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        for images, targets in torch.utils.data.DataLoader(dataset, batch_size=30, shuffle=True):
            loss = torch.nn.functional.cross_entropy(network(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_whitened_poster_is_shown_window_by_window(info: DatasetInfo) -> None:
    matrix = torch.diag(torch.linspace(0.5, 2.0, 64))
    whitening = Whitening(matrix=matrix, mean=torch.zeros(64))
    pixels = torch.rand((1, 1, 16, 40), generator=generator(7, "pixels"))
    plain: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
    # Windows side by side, so that a poster can be whitened exactly.
    tiles = Decoding("windows", {"height": 8, "width": 8, "windows": [5, 2]})
    grid = WindowGrid(height=8, width=8, columns=5, rows=2)
    white = grid.faded(whitening.apply(grid.cut(pixels[0])), 16, 40).unsqueeze(0)
    made = poster_set(
        info,
        images=white,
        labels=torch.arange(10),
        soft_labels=None,
        decoding=tiles,
        whitening=whitening,
        **plain,
    )
    torch.testing.assert_close(made.to_rgb(), pixels, rtol=0, atol=1e-4)
    torch.testing.assert_close(made.to_rgb(made.take()), grid.cut(pixels[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": torch.zeros(2, 1, 16, 40)}, "is of one poster .*, not of 2"),
        ({"images": torch.zeros(1, 1, 7, 40)}, "is smaller than a window"),
        ({"images": torch.zeros(1, 3, 16, 40)}, "images have 3 channels"),
        ({"labels": torch.arange(9), "soft_labels": None}, "15×6 windows but 9 labels"),
        ({"extra": {"label_map": torch.ones(10, 2, 5)}}, "soft labels or a label map, not both"),
        (
            {"soft_labels": None, "extra": {"label_map": torch.ones(9, 2, 5)}},
            r"label map must be float \[10, rows, columns\], not torch.float32 \[9, 2, 5\]",
        ),
        (
            {"soft_labels": None, "extra": {"label_map": -torch.ones(10, 2, 5)}},
            "label map must be at least 0",
        ),
        (
            {"decoding": Decoding("windows", {"height": 8, "width": 8, "windows": [3, 2]})},
            "do not tile",
        ),
        (
            {"decoding": Decoding("windows", {"height": 8, "width": 8, "windows": 6})},
            "two whole numbers",
        ),
        (
            {"decoding": Decoding("windows", {"height": 8, "width": 8, "windows": [0, 2]})},
            "columns: 0 must be a whole number",
        ),
        ({"decoding": Decoding("windows", {"height": 8, "width": 8})}, "windows.*missing"),
    ],
)
def test_what_is_no_poster_is_refused(
    info: DatasetInfo, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        poster_set(info, **fields)


# -- posters of others -----------------------------------------------------------------------------


def told(path: Path, value: Any, **reading: Any) -> tuple[DistilledSet, list[str]]:
    torch.save(value, path)
    lines: list[str] = []
    given = Reading(**{"decoding": "windows", "windows": (15, 6), **reading})
    return read_set(str(path), info="digits", reading=given, tell=lines.append), lines


@pytest.mark.parametrize("batch", [False, True], ids=["3-d", "4-d"])
def test_posters_of_others_are_read(info: DatasetInfo, tmp_path: Path, batch: bool) -> None:
    made = mapped(info)
    images, cells = made.images, made.extra["label_map"]
    value = (images, cells.unsqueeze(0)) if batch else {"images": images[0], "labels": cells}
    got, _ = told(tmp_path / "x.pt", value, space="normalised")
    assert torch.equal(got.take(), made.take())
    assert torch.equal(got.targets, made.targets)
    assert got.labels.tolist() == made.targets.argmax(1).tolist()
    table, lines = told(tmp_path / "y.pt", (images, made.targets), space="normalised")
    torch.testing.assert_close(table.targets, made.targets)
    assert lines == []
    one, _ = told(tmp_path / "z.pt", (images, made.labels), space="normalised", decoding=None)
    assert torch.equal(one.targets, made.labels)
    assert one.decoding == made.decoding


def test_posters_of_others_that_cannot_be_are_refused(info: DatasetInfo, tmp_path: Path) -> None:
    made = mapped(info)
    path, cells = tmp_path / "x.pt", made.extra["label_map"]
    with pytest.raises(ConfigError, match=r"how many columns and rows of windows.*--windows 16x6"):
        Reading(decoding="windows")
    with pytest.raises(ConfigError, match="windows have no effect with the decoding 'grid'"):
        Reading(decoding="grid", windows=(15, 6))
    with pytest.raises(ConfigError, match="factor=3 has no effect with the decoding 'windows'"):
        Reading(windows=(15, 6), factor=3)
    with pytest.raises(DataError, match="14×6 windows but 90 labels"):
        told(path, (made.images, made.labels), windows=(14, 6), space="normalised")
    with pytest.raises(
        DataError, match=r"label map must be \[10, rows, columns\], not \[9, 2, 5\]"
    ):
        told(path, (made.images, cells[:9]), space="normalised")
    with pytest.raises(DataError, match="values below 0 in the label map"):
        told(path, (made.images, cells - 1), space="normalised")
    assert windows_from("16x6") == (16, 6)
    assert windows_from(None) is None
    assert windows_from([16, 6]) == (16, 6)
    for wrong in ("16by6", "16", "0x6", (16,), (16, 6, 1), (16, 0), (16.0, 6.0), 16):
        with pytest.raises(ConfigError, match=r"windows: .* must be columns and rows"):
            windows_from(wrong)  # type: ignore[arg-type]


# -- pictures --------------------------------------------------------------------------------------


def test_pictures_of_a_poster(info: DatasetInfo) -> None:
    made = mapped(info)
    whole = picture_of(made)
    assert whole.size == (1200, 480), "enlarged by a whole factor"
    bright = int((made.to_uint8()[0, 0, 3, 7]).item())
    assert whole.getpixel((7 * 30 + 11, 3 * 30 + 29)) == (bright, bright, bright)
    further = further_pictures(made)
    assert set(further) == {"semantic.png", "label_map.png"}
    assert set(further_pictures(poster_set(info))) == {"semantic.png"}


def test_the_classes_of_areas_are_written_into_each_of_them(info: DatasetInfo) -> None:
    from raydd.artifacts.poster_pictures import _areas

    table = torch.tensor([[0, 0, 1], [2, 0, 1], [2, 1, 0]])
    areas = [sorted(area) for area in _areas(table)]
    assert sorted(areas) == [
        [(0, 0), (0, 1), (1, 1)],
        [(0, 2), (1, 2)],
        [(1, 0), (2, 0)],
        [(2, 1)],
        [(2, 2)],
    ]


def test_the_growth_of_a_poster_is_an_animation(info: DatasetInfo) -> None:
    import io

    from PIL import Image

    from raydd.artifacts.grid import png

    frames = []
    for value in (-1.0, 0.0, 1.0):
        frames.append(png(picture_of(poster_set(info, images=torch.full((1, 1, 16, 40), value)))))
    moving = animation(frames)
    assert moving is not None
    with Image.open(io.BytesIO(moving)) as image:
        assert (image.n_frames, image.width) == (3, 640)  # type: ignore[attr-defined]
        shades = []
        for place in range(3):
            image.seek(place)
            shades.append(image.convert("L").getpixel((9, 9)))
    assert shades == sorted(shades)
    assert shades[0] != shades[2]
    assert animation(frames[:1]) is None
