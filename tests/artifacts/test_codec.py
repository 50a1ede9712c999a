"""The JPEG round trip against files written and read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from raydd.artifacts.codec import jpeg_round_trip, stored_as
from raydd.core.errors import ConfigError


def _pictures(channels: int) -> torch.Tensor:
    ramp = torch.arange(40.0).view(1, 1, 40, 1) * 3 + torch.arange(24.0).view(1, 1, 1, 24) * 5
    noise = torch.randn(3, channels, 40, 24, generator=torch.Generator().manual_seed(0)) * 20
    return (ramp + noise).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_it_is_what_a_file_saved_with_pillows_defaults_holds(
    channels: int, mode: str, tmp_path
) -> None:
    images = _pictures(channels)
    found = jpeg_round_trip(images)
    for i, image in enumerate(images):
        path = tmp_path / f"{i}.jpg"
        Image.fromarray(image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy()).save(
            path
        )
        read = np.asarray(Image.open(path).convert(mode)).reshape(40, 24, channels)
        assert torch.equal(found[i], torch.from_numpy(read.copy()).permute(2, 0, 1))
    error = (found.float() - images.float()).abs()
    assert 0 < float(error.mean()) < 20
    assert found.dtype == torch.uint8
    assert found.is_contiguous()


def test_png_changes_nothing_and_jpeg_only_once_much() -> None:
    images = _pictures(3)
    assert torch.equal(stored_as(images, "png"), images)
    once = stored_as(images, "jpeg75")
    again = stored_as(once, "jpeg75")
    assert (again.float() - once.float()).abs().mean() < 0.3 * (
        once.float() - images.float()
    ).abs().mean()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 2, 4, 4), torch.uint8), ((1, 3, 4, 4), torch.float32), ((3, 4, 4), torch.uint8)],
)
def test_what_jpeg_cannot_hold_is_refused(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match="uint8 images"):
        jpeg_round_trip(torch.zeros(shape, dtype=dtype))
