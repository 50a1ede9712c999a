"""Files that training leaves: wrappers at any depth, averages, counters and heads beside the
weights, and what is refused.
"""

from __future__ import annotations

import pathlib
import sys
from argparse import Namespace
from collections import defaultdict
from datetime import datetime
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raydd.core.errors import ConfigError, DataError
from raydd.core.tensors import dump_tensors
from raydd.data.catalog import DatasetInfo
from raydd.networks import Network, create_network
from raydd.networks.fitting import fit
from raydd.networks.released import published_name
from raydd.training import weights as files
from raydd.training.teacher_config import TeacherConfig
from raydd.training.weights import Weights

NETWORK, SHAPE, CLASSES = "convnet2_w8_batchnorm", (3, 8, 8), 5


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make(seed: int, name: str = NETWORK, classes: int = CLASSES) -> Any:
    return create_network(name, SHAPE, classes, torch.Generator().manual_seed(seed))


def state_of(seed: int, name: str = NETWORK) -> dict[str, torch.Tensor]:
    network = make(seed, name)
    return {published_name(network, key): value for key, value in network.state_dict().items()}


def put(prefix: str, state: Any) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def middle(state: Any, after: str, wrapper: str) -> dict[str, Any]:
    return {
        key.replace(f"{after}.", f"{after}.{wrapper}.", 1): value for key, value in state.items()
    }


def without(state: Any, ending: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.endswith(ending)}


def counted(state: Any) -> dict[str, Any]:
    layers = {key.rpartition(".")[0] for key in state} | {"", "features"}
    names = [
        f"{layer}.{what}".lstrip(".") for layer in layers for what in ("total_ops", "total_params")
    ]
    return {**state, **{name: torch.zeros(1, dtype=torch.float64) for name in names}}


def averaged(state: Any) -> dict[str, Any]:
    return {"n_averaged": torch.tensor(3), **put("module.", state)}


def fill(
    value: Any, path: pathlib.Path, name: str = NETWORK, head: bool = True
) -> tuple[Any, list[str]]:
    torch.save(value, path)
    network, told = make(99, name), []
    Weights.at(str(path)).fill(network, head=head, tell=told.append)
    return network, [line.removeprefix(f"{path}: ") for line in told]


def holds(network: Any, seed: int, name: str = NETWORK) -> bool:
    expected = make(seed, name).state_dict()
    return all(
        torch.equal(value, expected[key])
        for key, value in network.state_dict().items()
        if "num_batches" not in key
    )


A, B = state_of(1), state_of(2)
OPTIMIZER = {
    "state": {0: {"momentum_buffer": torch.ones(2)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}
HEAD = {key: value for key, value in A.items() if key.startswith("classifier")}
BODY = {key: value for key, value in A.items() if key not in HEAD}
WRAPPED: dict[str, Any] = {
    "ddp of compiled": put("module._orig_mod.", A),
    "compiled ddp": put("_orig_mod.module.", A),
    "lightning over ddp": {
        "state_dict": put("model.module.", A),
        "epoch": 3,
        "global_step": 10,
        "callbacks": {"x": {"best": 0.3}},
    },
    "parallel features": {"state_dict": middle(A, "features", "module"), "arch": "alexnet"},
    "compiled features inside ddp": put("module.", middle(A, "features", "_orig_mod")),
    "fsdp": middle(put("_fsdp_wrapped_module.", A), "features", "_fsdp_wrapped_module"),
    "activation checkpoints": middle(A, "features", "_checkpoint_wrapped_module"),
    "opacus": put("_module.", A),
    "an attribute of any name": put("my_resnet.inner.", A),
    "a backbone with a head beside it": put("backbone.", BODY) | HEAD,
    "lightning: an encoder with a head beside it": {
        "state_dict": put("model.encoder.", BODY) | put("model.", HEAD)
    },
    "parts saved apart": {
        "backbone": BODY,
        "classifier": {key.removeprefix("classifier."): value for key, value in HEAD.items()},
    },
    "a head of another name": BODY
    | {key.replace("classifier", "fc"): value for key, value in HEAD.items()},
    "a head behind dropout": BODY
    | {key.replace("classifier", "head.1"): value for key, value in HEAD.items()},
    "deep": {
        "checkpoint": {"models": {"student": {"net": put("module.", A)}}},
        "optimizer": OPTIMIZER,
    },
    "any key": {"resnet": A, "epoch": 3, "best_acc": 0.7},
    "deepspeed": {"module": A, "optimizer": OPTIMIZER, "dp_world_size": 2},
    "beside the epoch": {**A, "epoch": 12, "arch": "x", "optimizer": OPTIMIZER},
    "momenta by name": {"state_dict": A, "optimizer": {"momentum": put("", B)}, "grads": B},
    "lists and numpy": {
        "model": A,
        "history": [0.1, 0.2],
        "acc": np.float32(0.5),
        "confusion": np.eye(2),
        "where": pathlib.Path("a/b"),
    },
    "values of the library": {
        "model": A,
        "when": datetime.now(),
        "tags": {"a"},
        "history": defaultdict(list, loss=[0.1]),
        "more": SimpleNamespace(a=frozenset([1])),
    },
    "arguments": {
        "model": A,
        "args": Namespace(data=pathlib.Path("a"), lr=0.1),
        "scaler": {"scale": 65536.0},
    },
    "no counters": without(A, "num_batches_tracked"),
    "doubles": {
        key: value.double() if value.is_floating_point() else value for key, value in A.items()
    },
}


@pytest.mark.parametrize("title", WRAPPED)
def test_wrappers_at_any_depth(tmp_path: pathlib.Path, title: str) -> None:
    network, told = fill(WRAPPED[title], tmp_path / "w.pth")
    assert holds(network, 1)
    assert [line for line in told if "left out" in line] == []


DROPPED: dict[str, tuple[Any, str]] = {
    "thop": (counted(A), "counters of a profiler ("),
    "thop in ddp": (put("module.", counted(A)), "counters of a profiler ('module."),
    "averaged model": (
        {"state_dict": averaged(A)},
        "left out: 1 counters of a training ('n_averaged')",
    ),
    "averaged lightning": (
        {"state_dict": put("model.", averaged(A))},
        "left out: 1 counters of a training ('model.n_averaged')",
    ),
    "auxiliary heads": (
        {**A, **put("aux1.", {"conv.weight": torch.ones(2)}), "AuxLogits.fc.bias": torch.ones(3)},
        "2 auxiliary heads",
    ),
    "weights of a loss": (
        {"state_dict": {**put("model.", A), "criterion.weight": torch.ones(5)}},
        "1 weights of a loss ('criterion.weight')",
    ),
    "lightning with its average": (
        {"state_dict": {**put("model.", A), **put("ema_model.", B)}},
        "averaged weights ('ema_model.",
    ),
    "ema_pytorch": (
        {
            **put("online_model.", A),
            **put("ema_model.", B),
            "initted": torch.tensor(True),
            "step": torch.tensor(3),
        },
        "left out: 2 counters of a training ('initted', 'step')",
    ),
}


@pytest.mark.parametrize("title", DROPPED)
def test_known_extras_are_left_out_and_told(tmp_path: pathlib.Path, title: str) -> None:
    value, line = DROPPED[title]
    network, told = fill(value, tmp_path / "w.pth")
    assert holds(network, 1)
    assert any(line in one for one in told), told


CHOSEN: dict[str, tuple[Any, list[str] | None]] = {
    "live and average": (
        {"model_ema": B, "model": A},
        ["under 'model' are read, those under 'model_ema' are not"],
    ),
    "timm": (
        {"state_dict_ema": B, "state_dict": A, "arch": "x"},
        ["under 'state_dict' are read, those under 'state_dict_ema' are not"],
    ),
    "torchvision reference": (
        {"model": A, "model_ema": averaged(B)},
        ["under 'model' are read, those under 'model_ema' are not"],
    ),
    "an average alone": ({"model_ema": averaged(A), "epoch": 1}, None),
    "averages alone, flat": (
        {**put("ema_model.", A), "initted": torch.tensor(True)},
        ["under 'ema_model' are read: an average, no other fits"],
    ),
    "an average of mean teachers": (
        {"ema": {"state_dict": A}},
        ["under 'ema'/'state_dict' are read: an average, no other fits"],
    ),
    "another network beside it": (
        {"generator": state_of(3, "convnet1_w8"), "classifier_net": A},
        ["under 'classifier_net' are read"],
    ),
    "both live": (
        {"net": B, "state_dict": A},
        ["under 'state_dict' are read, those under 'net' are not"],
    ),
}


@pytest.mark.parametrize("title", CHOSEN)
def test_what_is_taken_of_several_is_told(tmp_path: pathlib.Path, title: str) -> None:
    value, lines = CHOSEN[title]
    network, told = fill(value, tmp_path / "w.pth")
    assert holds(network, 1)
    assert lines is None or told == [f"the weights {line}" for line in lines]


def squeezed(state: Any) -> dict[str, Any]:
    return {key: value.to(torch.int8) for key, value in state.items()}


FIRST = next(iter(A))
REFUSED: dict[str, tuple[Any, str]] = {
    "twice": (
        {"student": A, "teacher": B},
        "holds weights that fit under 'student' and 'teacher': save those",
    ),
    "twice, one averaged": ({"teacher": A, "ema": B}, "fit under 'teacher' and 'ema'"),
    "two averages": ({"ema": A, "swa": B}, "fit under 'ema' and 'swa'"),
    "two of a trainer": (
        {"a": {"state_dict": A}, "b": {"state_dict": B}},
        "fit under 'a'/'state_dict' and 'b'/'state_dict'",
    ),
    "two flat": (put("encoder_q.", A) | put("encoder_k.", B), "also holds 'encoder_"),
    "a projector": (
        put("model.", A) | {"projector.weight": torch.ones(3, 3)},
        "also holds 'projector.weight'",
    ),
    "a temperature": ({**A, "logit_scale": torch.ones(())}, "also holds 'logit_scale'"),
    "a head of two layers": (
        BODY
        | put("fc.0.", {"weight": torch.ones(5, 32)})
        | put("fc.2.", {"weight": torch.ones(5, 5)}),
        "lacks 'classifier.weight'",
    ),
    "a missing bias": (without(A, "features.0.bias"), "lacks 'features.0.bias'"),
    "missing statistics": (without(A, "running_var"), "lacks 'features.1.running_var'"),
    "names by number": (
        {str(place): value for place, value in enumerate(A.values())},
        "does not hold the weights",
    ),
    "an average beside a part": (
        put("ema_model.", A) | {"projector.weight": torch.ones(3, 3)},
        "does not hold the weights",
    ),
    "whole numbers": (squeezed(A), r"is torch\.int8; weights are read as floating-point numbers"),
    "shapes": (
        {**A, FIRST: torch.ones(8, 3, 5, 5)},
        "does not fit: 'features.0.0.conv.weight' is|does not fit: 'features",
    ),
    "more classes": (
        {
            "net": state_of(1)
            | {"classifier.weight": torch.ones(9, 32), "classifier.bias": torch.ones(9)}
        },
        "knows 9 classes",
    ),
    "masks": ({"masks": A}, "holds \\['masks'\\]; a state dict is read"),
    "a list": ([A], "holds a list"),
}


@pytest.mark.parametrize("title", REFUSED)
def test_what_may_matter_is_never_dropped_or_guessed(tmp_path: pathlib.Path, title: str) -> None:
    value, message = REFUSED[title]
    with pytest.raises((ConfigError, DataError), match=message):
        fill(value, tmp_path / "w.pth")


def test_a_whole_network_is_refused_by_its_class(tmp_path: pathlib.Path) -> None:
    for value in (nn.Linear(2, 2), {"model": nn.Linear(2, 2), "epoch": 3}):
        with pytest.raises(
            DataError, match=r"nothing else is ever unpickled.*torch\.nn\.modules\.linear\.Linear"
        ):
            fill(value, tmp_path / "w.pth")


def test_settings_of_libraries_that_are_not_here(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("yacs.config")
    kind = type("CfgNode", (dict,), {"__module__": "yacs.config", "__qualname__": "CfgNode"})
    module.CfgNode = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    node = kind(lr=0.1)
    node.frozen = True
    torch.save({"model": A, "config": node}, tmp_path / "w.pth")
    monkeypatch.undo()
    network = make(99)
    Weights.at(str(tmp_path / "w.pth")).fill(network)
    assert holds(network, 1)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_archive_is_explained(tmp_path: pathlib.Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "w.pt"))
    with pytest.raises(
        DataError, match=r"compiled by TorchScript, which is code; save its state_dict\(\)"
    ):
        Weights.at(str(tmp_path / "w.pt")).fill(make(99))


def test_a_new_head_leaves_a_head_of_any_usual_name_and_size(tmp_path: pathlib.Path) -> None:
    for name in ("classifier", "fc", "head.fc"):
        value = put("backbone.", BODY) | {
            f"{name}.weight": torch.ones(9, 3),
            f"{name}.bias": torch.ones(9),
        }
        network, _ = fill(value, tmp_path / "w.pth", head=False)
        assert torch.equal(network.classifier.weight, make(99).classifier.weight)
        assert torch.equal(network.features[0].conv.weight, make(1).features[0].conv.weight)


@pytest.mark.parametrize(
    "file", ["w.pth.tar", "w.ckpt", "w.bin", "w.th", "w.tar", "W.PTH", "weights", "epoch=3-step=10"]
)
def test_a_file_is_read_whatever_it_is_called(tmp_path: pathlib.Path, file: str) -> None:
    torch.save({"state_dict": put("module.", A)}, tmp_path / file)
    config = TeacherConfig(weights=str(tmp_path / file))
    info = DatasetInfo(
        name="toy", classes=CLASSES, channels=3, height=8, width=8, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    assert config.missing([NETWORK], info) == []
    (tmp_path / "folder").mkdir()
    (tmp_path / file).rename(tmp_path / "folder" / f"{NETWORK}.pth.tar")
    assert TeacherConfig(weights=str(tmp_path / "folder")).missing([NETWORK], info) == []
    (line,) = config.missing([NETWORK], info)
    assert f"put its weights at {tmp_path / file}" in line


def test_safetensors_of_any_name_and_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "w.bin").write_bytes(dump_tensors(put("model.", A), None))
    network = make(99)
    Weights.at(str(tmp_path / "w.bin")).fill(network)
    assert holds(network, 1)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(DataError, match="is text, no file of weights"):
        Weights.at(str(tmp_path / "model.safetensors.index.json")).fill(network)


class _Windowed(Network):
    """A table that is saved, as torchvision's Swin has, and one that is built anew, as timm's."""

    def __init__(self) -> None:
        super().__init__("windowed", SHAPE, CLASSES)
        self.classifier = nn.Linear(2, CLASSES)
        self.register_buffer("relative_position_index", torch.arange(4))
        self.register_buffer("attn_mask", torch.eye(2), persistent=False)


def test_tables_that_a_network_builds_may_be_there_or_not() -> None:
    network = _Windowed()
    weights, mask = (
        {f"classifier.{key}": value for key, value in nn.Linear(2, CLASSES).state_dict().items()},
        {"attn_mask": torch.eye(2)},
    )
    assert fit(network, weights, "f").notes() == []
    assert fit(network, put("module.", network.state_dict() | mask), "f").notes() == [
        "left out: 1 tables that the network builds itself ('module.attn_mask')"
    ]
    for other in (torch.zeros(2, 2), torch.eye(3)):
        with pytest.raises(ConfigError, match="also holds 'attn_mask'"):
            fit(network, weights | {"attn_mask": other}, "f")


def test_old_spellings_of_torchvision() -> None:
    class Block(Network):
        def __init__(self) -> None:
            super().__init__("vit", SHAPE, CLASSES)
            self.mlp = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Dropout(), nn.Linear(3, 2))
            self.denselayer2 = nn.ModuleDict({"norm1": nn.LayerNorm(2)})
            self.classifier = nn.Linear(2, CLASSES)

    names = {
        "denselayer2.norm1": "denselayer2.norm.1",
        "classifier": "classifier",
        "mlp.0": "mlp.linear_1",
        "mlp.3": "mlp.linear_2",
    }
    network = Block()
    state = {
        f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value
        for key, value in network.state_dict().items()
    }
    found = fit(network, state, "f").names
    assert (found["mlp.3.bias"], found["denselayer2.norm1.weight"]) == (
        "mlp.linear_2.bias",
        "denselayer2.norm.1.weight",
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvisions_own_files_have_auxiliary_heads_and_another_normalisation(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = getattr(models, name)(
        weights=None, aux_logits=True, init_weights=False, num_classes=1000
    ).eval()
    path = pathlib.Path(files.cache_path(files.torchvision_url(name)))
    path.parent.mkdir(parents=True)
    torch.save(model.state_dict(), path)
    told: list[str] = []
    network = create_network(
        f"torchvision/{name}", (3, 80, 80), 1000, torch.Generator().manual_seed(0)
    ).eval()
    files.torchvision_weights(name).fill(network, tell=told.append)
    assert len(told) == 1
    assert "auxiliary heads" in told[0]
    x = torch.rand(1, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    assert network.body.transform_input  # type: ignore[union-attr]
    model.transform_input = True
    torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-4)
    if name == "inception_v3":  # once is enough
        return
    # A training of one's own does not convert.
    torch.save(model.state_dict(), tmp_path / "own.pth")
    own = create_network(network.name, (3, 80, 80), 1000, torch.Generator().manual_seed(0)).eval()
    Weights.at(str(tmp_path / "own.pth")).fill(own)
    assert not own.body.transform_input  # type: ignore[union-attr]
