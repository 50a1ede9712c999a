"""Generators from files: ours, folded, and published names; what is none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stage_context import StageContext

from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.tensors import Tensors, dump_tensors
from raydd.networks.biggan import Generator, fold, initialise_
from raydd.networks.folded_generator import GanShape, generate
from raydd.training.read_generator import ReadGenerator
from raydd.training.weights import Weights

SIZES = GanShape(channels=3, classes=4, width=6, dim_z=5, bottom=4, blocks=3)


def made() -> Generator:
    one, draws = Generator(SIZES), generator(0, "file")
    initialise_(one, draws)
    with torch.no_grad():
        for name, tensor in one.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=draws) + 0.5)
    return one.eval()


def published_names(one: Generator) -> Tensors:
    """Return the state dict as the published code has it, written out for each kind of tensor."""
    found: Tensors = {}

    def layer(theirs: str, ours: Any) -> None:
        found[f"{theirs}.weight"], found[f"{theirs}.bias"] = ours.weight, ours.bias
        found[f"{theirs}.u0"], found[f"{theirs}.sv0"] = ours.u.unsqueeze(0), torch.ones(1)

    layer("linear", one.linear)
    for i, block in enumerate(one.blocks):
        there: Any = block
        for theirs, conv in (
            ("conv1", there.conv1),
            ("conv2", there.conv2),
            ("conv_sc", there.shortcut),
        ):
            layer(f"blocks.{i}.0.{theirs}", conv)
        for theirs, norm in (("bn1", there.norm1), ("bn2", there.norm2)):
            name = f"blocks.{i}.0.{theirs}"
            found[f"{name}.gain.weight"] = norm.gain.weight
            found[f"{name}.bias.weight"] = norm.bias.weight
            found[f"{name}.stored_mean"] = norm.running_mean
            found[f"{name}.stored_var"] = norm.running_var
    found["output_layer.0.gain"], found["output_layer.0.bias"] = one.norm.gain, one.norm.bias
    found["output_layer.0.stored_mean"] = one.norm.running_mean
    found["output_layer.0.stored_var"] = one.norm.running_var
    layer("output_layer.2", one.conv)
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def read(path: Path, sizes: GanShape = SIZES) -> Tensors:
    one = ReadGenerator(seed=0, sizes=sizes, weights=Weights.at(str(path)))
    return one.finish("generator", {}, StageContext(one))


@pytest.mark.parametrize("kind", ["published", "nested", "parallel", "folded"])
def test_images_are_those_of_the_generator_in_the_file(kind: str, tmp_path: Path) -> None:
    one = made()
    state = published_names(one)
    if kind == "folded":
        path = tmp_path / "generator.safetensors"
        path.write_bytes(dump_tensors(fold(one)))
    else:
        path = tmp_path / "G_ema.pth"
        state = {f"module.{k}": v for k, v in state.items()} if kind == "parallel" else state
        torch.save({"G": state, "epoch": 3} if kind == "nested" else state, path)
    z, labels = torch.randn(6, 5, generator=generator(0, "z")), torch.arange(6) % 4
    images = generate(read(path), SIZES, z, labels)
    assert torch.allclose(images, one(z, labels), atol=1e-5)
    assert float(images.detach().std()) > 0


def test_the_published_layout_has_as_many_numbers() -> None:
    """9,998 numbers beside the parameters at the published size: vectors, singular values, statistics."""
    sizes = GanShape(channels=3, classes=10, width=256, dim_z=128, bottom=4, blocks=3)
    beside = [
        tensor.numel()
        for name, tensor in published_names(Generator(sizes)).items()
        if name.rpartition(".")[2] in ("u0", "sv0", "stored_mean", "stored_var")
    ]
    assert sum(beside) == 9_998


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"linear.bias": None}, DataError, "no state dict"),
        ({"output_layer.0.gain": None}, ConfigError, r"the generator has no 'norm\.gain'"),
        ({"attention.weight": torch.ones(2)}, ConfigError, r"has no 'attention\.weight'"),
        ({"linear.weight": torch.ones(96, 4)}, ConfigError, r"'linear\.weight' is \[96, 4\]"),
        ({"linear.bias": torch.full((96,), torch.nan)}, DataError, "NaN or infinity"),
        ({"output_layer.0.stored_var": -torch.ones(6)}, DataError, "a variance below 0"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    state = {**published_names(made()), **change}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "G.pth")
    with pytest.raises(error, match=message):
        read(tmp_path / "G.pth")


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    path.write_bytes(dump_tensors(fold(made())))
    one = ReadGenerator(seed=0, sizes=SIZES, weights=Weights.at(str(path)))
    path.write_bytes(dump_tensors({**fold(made()), "scale": torch.ones(6)}))
    with pytest.raises(DataError, match="has changed"):
        one.finish("generator", {}, StageContext(one))
