"""The generator against golden numbers of the published one, folded against unfolded, and its sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.networks.biggan import (
    Discriminator,
    Generator,
    UpBlock,
    fold,
    initialise_,
)
from raydd.networks.folded_generator import GanShape, check_folded, generate
from raydd.networks.network_cost import parameter_count

SMALL = GanShape(channels=3, classes=10, width=16, dim_z=8, bottom=4, blocks=3)
SIDES = {8: (2, 2), 28: (7, 2), 32: (4, 3), 64: (4, 4)}


def published(classes: int) -> GanShape:
    return GanShape(channels=3, classes=classes, width=256, dim_z=128, bottom=4, blocks=3)


def in_published_order(made: Generator) -> list[Tensor]:
    """Return the parameters in the order of the golden numbers."""
    found: list[Tensor] = [made.linear.weight, made.linear.bias]
    for block in made.blocks:
        assert isinstance(block, UpBlock)
        for norm in (block.norm1, block.norm2):
            found += [norm.gain.weight, norm.bias.weight]
        for conv in (block.conv1, block.conv2, block.shortcut):
            assert conv.bias is not None
            found += [conv.weight, conv.bias]
    assert made.conv.bias is not None
    return [*found, made.norm.gain, made.norm.bias, made.conv.weight, made.conv.bias]


def golden() -> Generator:
    """Return the generator whose numbers are cosines."""
    made = Generator(SMALL).double().eval()
    tensors = in_published_order(made)
    assert (len(tensors), sum(t.numel() for t in tensors)) == (36, 19_427)
    with torch.no_grad():
        for k, tensor in enumerate(tensors):
            j = torch.arange(tensor.numel(), dtype=torch.float64)
            tensor.copy_((0.1 * torch.cos(0.37 * j + k)).view_as(tensor))
        made.norm.gain.add_(1)
    return made


def golden_inputs() -> tuple[Tensor, Tensor]:
    return torch.cos(torch.arange(16, dtype=torch.float64)).view(2, 8), torch.tensor([3, 7])


@pytest.mark.parametrize("folded", [False, True])
def test_images_and_gradients_of_the_published_generator(folded: bool) -> None:
    made, (z, labels) = golden(), golden_inputs()
    z.requires_grad_(True)
    x = generate(fold(made), SMALL, z, labels) if folded else made(z, labels)
    (dz,) = torch.autograd.grad(x.square().mean(), z)
    sums = x.sum((1, 2, 3))
    assert sums.tolist() == pytest.approx([-203.881861440404, -187.908567360786], abs=1e-10)
    few = [-0.089394284012, -0.092618744928, -0.097588286021]
    assert x[0, 0, 0, :3].tolist() == pytest.approx(few, abs=1e-10)
    assert float(x[1, 2, 31, 31].detach()) == pytest.approx(-0.026680660694, abs=1e-10)
    assert float(dz.norm()) == pytest.approx(0.025413250211, abs=1e-10)
    assert float(dz[0, 0]) == pytest.approx(3.541155403464e-4, abs=1e-10)


@pytest.mark.parametrize(("classes", "count"), [(10, 4_304_387), (100, 4_580_867)])
def test_the_published_sizes(classes: int, count: int) -> None:
    shape = published(classes)
    assert shape.numbers == count == parameter_count(Generator(shape))


def test_the_published_discriminator() -> None:
    shape = published(10)
    assert shape.discriminator_numbers == 4_207_361 == parameter_count(Discriminator(shape))
    # Multiplications with additions, as counted on the published networks.
    assert shape.generator_flop / 2e6 == pytest.approx(1681, abs=1)
    assert shape.discriminator_flop / 2e6 == pytest.approx(1081, abs=1)


@pytest.mark.parametrize(
    ("width", "dim_z", "count"), [(16, 32, 37_153), (32, 64, 143_937), (64, 64, 365_697)]
)
def test_sizes_for_28_pixels(width: int, dim_z: int, count: int) -> None:
    shape = GanShape(channels=1, classes=10, width=width, dim_z=dim_z, bottom=7, blocks=2)
    assert shape.numbers == count


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_folded_equals_unfolded(side: int, dtype: torch.dtype, limit: float) -> None:
    bottom, blocks = SIDES[side]
    shape = GanShape(channels=1, classes=4, width=8, dim_z=6, bottom=bottom, blocks=blocks)
    made, draws = Generator(shape), generator(0, "folded", side)
    initialise_(made, draws)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():  # far from where it starts
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=draws) + 0.5)
            elif not name.endswith(".u"):
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=draws))
    made = made.to(dtype).eval()
    z, labels = torch.randn(9, 6, generator=draws).to(dtype), torch.arange(9) % 4
    whole, folded = made(z, labels), fold(made)
    assert whole.shape == (9, 1, side, side)
    assert float((whole - generate(folded, shape, z, labels)).detach().abs().max()) <= limit
    assert float(whole.detach().std()) > 0.05, "images are not flat, or nothing is compared"
    check_folded(folded, shape)
    scores = Discriminator(shape).to(dtype)(whole, labels)
    assert scores.shape == (9,)


def test_one_power_step_at_a_time_finds_the_largest_singular_value() -> None:
    made = Discriminator(SMALL)
    initialise_(made, generator(1, "power"))
    images = torch.randn(4, 3, 32, 32, generator=generator(1, "images"))
    labels = torch.arange(4)
    before = made.embed.u.clone()
    made.eval()(images, labels)
    assert torch.equal(made.embed.u, before), "kept in train mode alone"
    made.train()
    for _ in range(200):
        made.embed(labels)
    exact = float(torch.linalg.matrix_norm(made.embed.weight.detach(), ord=2))
    found = made.embed.weight[0, 0] / made.embed(labels)[0, 0]
    assert float(found.detach()) == pytest.approx(exact, rel=1e-4)


def test_a_mean_over_the_side_keeps_first_scores_small() -> None:
    """Those of a sum over 49 places are far outside of the hinge loss's margin before anything is learnt."""
    shape = GanShape(channels=1, classes=10, width=16, dim_z=4, bottom=7, blocks=2)
    images = torch.randn(20, 1, 28, 28, generator=generator(2, "images"))
    labels, scores = torch.arange(20) % 10, {}
    for pooling in ("sum", "mean"):
        made = Discriminator(shape, pooling)
        initialise_(made, generator(2, "pooling"))
        with torch.no_grad():
            for _ in range(10):  # power steps
                made(images, labels)
            scores[pooling] = made(images, labels) - made.linear.bias
    assert torch.allclose(scores["mean"] * 49, scores["sum"], rtol=1e-3, atol=1e-4)
    assert float(scores["sum"].abs().mean()) > 2
    assert float(scores["mean"].abs().mean()) < 0.5


def test_a_generator_is_folded_in_eval_mode() -> None:
    with pytest.raises(ConfigError, match="eval mode"):
        fold(Generator(SMALL))


def test_tensors_of_another_generator_are_refused() -> None:
    folded = fold(golden())
    with pytest.raises(ConfigError, match=r"'scale' is \[15\]; that of its sizes is \[16\]"):
        check_folded({**folded, "scale": folded["scale"][:15]}, SMALL)
    with pytest.raises(ConfigError, match=r"no tensor 'conv\.bias'"):
        check_folded({k: v for k, v in folded.items() if k != "conv.bias"}, SMALL)
    with pytest.raises(ConfigError, match="no generator has a tensor 'extra'"):
        check_folded({**folded, "extra": folded["scale"]}, SMALL)


def test_starts_are_keyed_and_small() -> None:
    one, two, other = (Generator(SMALL) for _ in range(3))
    for made, seed in ((one, 0), (two, 0), (other, 1)):
        initialise_(made, generator(seed, "init"))
    assert torch.equal(one.conv.weight, two.conv.weight)
    assert not torch.equal(one.conv.weight, other.conv.weight)
    gains = [b.norm1.gain.weight for b in one.blocks if isinstance(b, UpBlock)]
    weights = torch.cat([one.linear.weight.flatten(), *(g.flatten() for g in gains)])
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.1)
    bound = 1 / math.sqrt(SMALL.dim_z)
    assert float(one.linear.bias.detach().abs().max()) <= bound


@pytest.mark.parametrize("bad", [0, -1, 2.0, True])
def test_sizes_that_are_none(bad: object) -> None:
    with pytest.raises(ConfigError, match="width"):
        GanShape(channels=1, classes=2, width=bad, dim_z=2, bottom=2, blocks=2)  # type: ignore[arg-type]


def test_a_side_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ConfigError, match="halves the side 6 2 times"):
        Discriminator(GanShape(channels=1, classes=2, width=4, dim_z=2, bottom=3, blocks=1))
