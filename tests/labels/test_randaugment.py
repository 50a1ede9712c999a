"""RandAugment against torchvision's operations."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.labels.randaugment import OPERATIONS, draw_operations, randaugment


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=OPERATIONS)
def test_operations_are_torchvisions(number: int, channels: int) -> None:
    image = torch.randint(0, 256, (channels, 28, 28), generator=generator(0, "image")).to(
        torch.uint8
    )
    # A picture with some structure: a ramp below the noise.
    image = (image // 2 + (torch.arange(28) * 4).to(torch.uint8)).to(torch.uint8)
    space = RandAugment()._augmentation_space(31, (28, 28))
    name, (magnitudes, signed) = list(space.items())[number]
    assert name.lower() == OPERATIONS[number].replace("_", "")
    level = float(magnitudes[9]) if magnitudes.ndim else 0.0
    for negative in (0, 1) if signed else (0,):
        theirs = _apply_op(
            to_pil_image(image),
            name,
            -level if negative else level,
            InterpolationMode.NEAREST,
            None,
        )
        mine = randaugment(image[None], torch.tensor([[[number, negative], [0, 0]]]))[0]
        assert torch.equal(mine, pil_to_tensor(theirs))
    if number and not (channels == 1 and name == "Color"):
        assert not torch.equal(mine, image)


def test_the_second_operation_follows_the_first() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16)).to(torch.uint8)
    both = torch.tensor([[[5, 0], [11, 0]], [[11, 0], [5, 1]]])
    nothing = torch.zeros(2, 1, 2, dtype=torch.int64)
    once = randaugment(images, torch.cat([both[:, :1], nothing], 1))
    assert torch.equal(
        randaugment(images, both), randaugment(once, torch.cat([both[:, 1:], nothing], 1))
    )


def test_draws_cover_all_operations_evenly() -> None:
    g = generator(1, "draws")
    drawn = torch.stack([draw_operations(g) for _ in range(2000)])
    counts = torch.bincount(drawn[..., 0].flatten(), minlength=len(OPERATIONS))
    assert len(counts) == 14
    assert 200 < int(counts.min()) <= int(counts.max()) < 380
    assert 0.45 < float(drawn[..., 1].double().mean()) < 0.55


def test_float_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="8-bit"):
        randaugment(torch.rand(1, 3, 8, 8), torch.zeros(1, 2, 2, dtype=torch.int64))
