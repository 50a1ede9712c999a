"""Latents with their generator: decoded on read, the same bytes however they are asked for, published and loaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from raydd import load
from raydd.artifacts.decoding import Decoding
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.first_images import first_images
from raydd.artifacts.generated import Generated, stored_weights
from raydd.artifacts.published_folder import publish, read
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.tensors import Tensors
from raydd.data.catalog import DatasetInfo, entry
from raydd.networks.biggan import Generator, fold, initialise_
from raydd.networks.folded_generator import GanShape

INFO = dataclasses.replace(entry("digits").info, digests=())
SIZES = GanShape(channels=1, classes=10, width=8, dim_z=6, bottom=2, blocks=2)


def weights() -> Tensors:
    """Return a generator whose images are not flat."""
    made = Generator(SIZES)
    initialise_(made, generator(0, "decoder"))
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator(0, "more")))
    return fold(made.eval())


def latents(count: int, dtype: torch.dtype = torch.float32, **changes: Any) -> DistilledSet:
    """Return a set of latents, class after class."""
    z = torch.randn(count, SIZES.dim_z, generator=generator(0, "z")).to(dtype)
    values: dict[str, Any] = {
        "images": z,
        "labels": torch.arange(count) * INFO.classes // count,
        "info": INFO,
        "extra": stored_weights(weights(), dtype),
        "decoding": Generated.decoding_of(SIZES, INFO),
    }
    return DistilledSet(**(values | changes))


def test_the_images_are_the_generators_in_network_space() -> None:
    made, whole = Generator(SIZES), latents(20)
    initialise_(made, generator(0, "decoder"))
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator(0, "more")))
        direct = made.eval()(whole.images, whole.labels)
    pixels = whole.to_pixels(whole.take())
    assert torch.allclose(pixels, (direct + 1) / 2, atol=1e-5)
    assert float(pixels.std()) > 0.02
    assert whole.shape == INFO.shape
    assert (whole.seen, len(whole)) == (20, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_image_has_the_same_bytes_however_it_is_asked_for(dtype: torch.dtype) -> None:
    whole = latents(150, dtype)
    images = whole.take()
    assert images.dtype == torch.float32
    for ids in (torch.tensor([149]), torch.tensor([3, 77, 3]), torch.arange(149, -1, -1)):
        assert torch.equal(whole.take(ids), images[ids])
    assert whole.take(torch.tensor([], dtype=torch.int64)).shape == (0, *INFO.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_published_and_loaded_it_is_the_same_set(dtype: torch.dtype, tmp_path: Path) -> None:
    whole = latents(40, dtype)
    publish(whole, str(tmp_path / "set"))
    back, loaded = read(str(tmp_path / "set")), load(str(tmp_path / "set"))
    assert (back.digest, back.size) == (whole.digest, whole.size)
    assert back.images.dtype == dtype
    assert torch.equal(loaded.tensors()[0], whole.take())
    assert torch.equal(loaded[17][0], whole.take()[17])
    width = torch.finfo(dtype).bits // 8
    assert whole.size.bytes == width * (40 * SIZES.dim_z + SIZES.numbers) + 8 * 40
    assert whole.size.bytes - whole.image_bytes - whole.label_bytes == width * SIZES.numbers
    card = (tmp_path / "set" / "README.md").read_text()
    assert "latent vectors of 6 numbers" in card


def test_half_precision_is_close() -> None:
    """Halves move what students see by less than two grey levels on 99.9 % of pixels."""
    full, half = (
        whole.to_pixels(whole.take()) for whole in (latents(200), latents(200, torch.float16))
    )
    assert float(((full - half).abs() <= 2 / 255).double().mean()) >= 0.999
    assert not torch.equal(full, half)


def test_gradients_flow_to_latents() -> None:
    whole = latents(7)
    z = whole.images.clone().requires_grad_(True)
    images = whole.decoder.take(whole.decoded | {"images": z})
    assert torch.allclose(images.detach(), whole.take(), atol=1e-5)
    (gradient,) = torch.autograd.grad(images.square().sum(), z)
    assert bool((gradient.abs().sum(1) > 0).all())


def test_the_first_images_of_each_class() -> None:
    whole = latents(50)
    few = first_images(whole, 2, "here")
    assert few.ipc == (2,) * 10
    assert torch.equal(few.take(), whole.take(torch.arange(50).view(10, 5)[:, :2].flatten()))


def _info(**changes: Any) -> DatasetInfo:
    return dataclasses.replace(INFO, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(20, 5)}, r"latents must be float16 or float32 \[N, 6\]"),
        ({"images": torch.zeros(20, 6).double()}, "latents must be float16 or float32"),
        ({"images": torch.zeros(20, 6, 1, 1)}, "latents must be float16 or float32"),
        ({"labels": torch.zeros(19, dtype=torch.int64)}, "20 latents but 19 labels"),
        ({"info": _info(height=16, width=16)}, r"makes images \[1, 8, 8\] of 10 classes"),
        ({"info": _info(classes=11, train_counts=())}, "of 10 classes; digits has"),
        ({"extra": stored_weights(weights(), torch.float64)}, "must be float16 or float32"),
        ({"extra": {}}, r"no tensor 'linear\.weight'"),
        ({"extra": {"label_map": torch.zeros(1)}}, "reads no tensor 'label_map'"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        latents(20, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "bigan"}, "did you mean 'biggan'|biggan"),
        ({"std": [0.0]}, "above 0"),
        ({"mean": []}, "a number for each channel"),
        ({"width": 0}, "width: 0"),
        ({"depth": 3}, "depth"),
    ],
)
def test_parameters_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    known = Generated.decoding_of(SIZES, INFO)
    with pytest.raises(ConfigError, match=message):
        Decoding("generator", {**known.parameters, **changes}).decoder()


def test_it_is_decoded_without_a_method(tmp_path: Path) -> None:
    publish(latents(20), str(tmp_path / "set"))
    code = (
        "import sys, raydd\n"
        f"print(float(raydd.load({str(tmp_path / 'set')!r}).tensors()[0].sum()))\n"
        "assert not [name for name in sys.modules if name.startswith('raydd.methods')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(float(latents(20).take().sum()), rel=1e-6)
