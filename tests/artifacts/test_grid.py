from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydd.artifacts.grid import curve, font_for, grid, png, tile_size, to_image
from raydd.core.errors import ConfigError
from raydd.core.rng import generator


def noise(count: int, channels: int, side: int) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=generator(0, "noise"))


def test_equal_arguments_give_equal_bytes(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, again = (png(grid(*digits, [f"digit {c}" for c in range(10)])) for _ in range(2))
    assert first == again
    assert first != png(grid(digits[0].flip(0), digits[1], [f"digit {c}" for c in range(10)]))


def test_pixels_are_sharp_squares_in_class_order() -> None:
    images = torch.tensor([0, 50, 100, 150], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    picture = np.asarray(grid(images, torch.tensor([1, 0, 1, 0]), ["a", "b"]))
    width, _ = tile_size(8, 8, 2, 2)
    solid = {v: np.argwhere((picture == v).all(2)) for v in (50, 100, 150)}
    assert all(len(found) >= width * width for found in solid.values())
    top, left = solid[50].min(0)
    assert (picture[top : top + width, left : left + width] == 50).all()
    assert solid[150].min(0)[0] == top
    assert solid[150].min(0)[1] > left + width
    assert solid[100].min(0)[0] > top


@pytest.mark.parametrize(
    ("side", "rows", "columns", "low", "high"),
    [(8, 10, 10, 48, 64), (28, 10, 10, 56, 84), (32, 100, 10, 32, 48), (224, 10, 1, 96, 96)],
)
def test_tiles_are_neither_tiny_nor_huge(
    side: int, rows: int, columns: int, low: int, high: int
) -> None:
    width, height = tile_size(side, side, rows, columns)
    assert width == height
    assert low <= width <= high
    assert width < side or width % side == 0


def test_what_is_left_out_is_said() -> None:
    images, labels = noise(12, 1, 8), torch.arange(12) // 3
    full, cut = grid(images, labels), grid(images, labels, max_rows=2, max_columns=2)
    assert cut.size != full.size
    bottom = np.asarray(cut)[-26:]
    assert (bottom < 150).any()
    assert (np.asarray(full)[-12:] == 255).all()


def test_few_columns_are_set_side_by_side() -> None:
    picture = grid(noise(100, 3, 32), torch.arange(100), [f"class {c}" for c in range(100)])
    assert 0.8 < picture.width / picture.height < 2
    assert picture.width <= 1800


def test_a_long_name_is_cut_not_spread() -> None:
    short, long = (
        grid(noise(10, 1, 8), torch.arange(10), [name] * 10) for name in ("m" * 12, "m" * 400)
    )
    assert long.width <= short.width + 100


def test_letters_of_other_alphabets_are_drawn() -> None:
    """A font that lacks two letters draws the same box for both."""
    label = torch.zeros(1, dtype=torch.int64)
    for one, other in (("é", "ö"), ("д", "ж"), ("α", "β")):
        assert png(grid(noise(1, 1, 8), label, [one])) != png(grid(noise(1, 1, 8), label, [other]))


def test_channels_that_pictures_lack_are_averaged_in_grids_only() -> None:
    assert grid(noise(2, 5, 8), torch.arange(2)).mode == "RGB"
    with pytest.raises(ConfigError, match="5 channels"):
        to_image(torch.zeros(5, 8, 8, dtype=torch.uint8))


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"images \[N, C, H, W\]"):
        grid(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))


def test_curves_are_deterministic_pictures_that_show_their_series() -> None:
    points = [(t, 60 + t / 10, 1.0) for t in range(11)]
    labels = {"x_label": "updates", "y_label": "accuracy, %"}
    first, again = (curve({"dm": points}, levels={"random 73.7": 73.7}, **labels) for _ in range(2))
    assert first == again
    assert first != curve({"dm": points}, **labels)
    assert first != curve(
        {"dm": [(x, y + (x == 5), s) for x, y, s in points]}, levels={"random 73.7": 73.7}, **labels
    )
    image = Image.open(io.BytesIO(first))
    assert image.width >= 1000
    assert len(image.info.get("Software", "")) == 0


def test_a_curve_without_points_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one point"):
        curve({"dm": []}, x_label="updates", y_label="loss")


def test_names_that_no_font_draws_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    images, labels = (
        torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.arange(3),
    )
    assert font_for("猫") is None
    assert np.array_equal(
        np.asarray(grid(images, labels, ("猫", "dog", "犬 1"))),
        np.asarray(grid(images, labels, ("0", "dog", "2"))),
    )


def test_names_are_drawn_by_a_font_that_has_their_letters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import matplotlib
    from matplotlib import font_manager

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(
        font_manager,
        "findSystemFonts",
        lambda: [str(tmp_path / "broken.ttf"), str(fonts / "STIXNonUni.ttf")],
    )
    found = font_for("\ue000")  # a letter that only this font has
    assert found is not None
    assert found.path == str(fonts / "STIXNonUni.ttf")
    assert font_for("Größe, кот") is not None
    images = torch.rand(2, 1, 8, 8)
    assert grid(images, torch.arange(2), ("\ue000", "b")).size
