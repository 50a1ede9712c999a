"""Codecs: golden losses, errors within their steps, and sizes that are those of the files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from label_toys import ToySource, info, labels_of, run_epoch

from raydd.core.errors import ConfigError, NumericsError
from raydd.core.tensors import dump_tensors
from raydd.labels.codecs import decode, encode, layout, row_bytes
from raydd.labels.label_config import LabelConfig
from raydd.labels.records import epoch_bytes, label_bytes
from raydd.losses.soft import SoftTargets, distillation_kl, mse_gt

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_edc.json").read_text())[
    "G4_losses"
]
FP16, INT8 = LabelConfig(), LabelConfig(codec="int8")
STORED = [
    FP16,
    INT8,
    LabelConfig(codec="topk", top=3),
    LabelConfig(codec="topk", top=2, tail="mass"),
]
names = [f"{c.codec}-{c.tail}" for c in STORED]


def det(shape: tuple[int, ...], a: float, b: float, scale: float) -> torch.Tensor:
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (scale * (torch.sin(a * i + b) + 0.5 * torch.cos(0.013 * i))).float().view(shape)


def test_golden_losses_of_an_fp16_label() -> None:
    student, label, hard = (
        det((4, 10), 0.3, 0.2, 2),
        det((4, 10), 0.41, 0.3, 3),
        torch.tensor([1, 4, 9, 0]),
    )
    exact = mse_gt(student, SoftTargets(label, hard), 0.025)
    stored = mse_gt(student, SoftTargets(decode(FP16, encode(FP16, label), 10), hard), 0.025)
    assert float(exact) == pytest.approx(GOLDEN["mse_gt_025"], rel=2e-5)
    assert float(stored) == pytest.approx(GOLDEN["mse_gt_025_fp16label"], rel=2e-6)


def test_int8_errs_by_half_a_step_of_each_row() -> None:
    logits = torch.cat([det((6, 40), 0.3, 0.2, 9), torch.full((1, 40), 2.5)])
    stored = encode(INT8, logits)
    error = (decode(INT8, stored, 40) - logits).abs().amax(1)
    assert bool((error <= stored["scale"] / 2 + 1e-5).all())
    assert float(error[:6].min()) > 0
    assert float(error[6]) == 0, "a constant row is exact"
    assert int(stored["levels"].max()) == 255


def test_topk_keeps_the_largest_and_a_tail() -> None:
    logits = det((5, 30), 0.7, 0.1, 4)
    order = logits.argsort(1, descending=True)
    for tail in ("mean", "mass"):
        config = LabelConfig(codec="topk", top=4, tail=tail)
        found = decode(config, encode(config, logits), 30)
        torch.testing.assert_close(
            found.gather(1, order[:, :4]), logits.gather(1, order[:, :4]), rtol=1e-3, atol=1e-3
        )
        rest = found.gather(1, order[:, 4:])
        assert bool((rest == rest[:, :1]).all())
        if tail == "mean":
            torch.testing.assert_close(rest[:, 0], logits.gather(1, order[:, 4:]).mean(1))
        else:
            mass = logits.softmax(1).gather(1, order[:, 4:]).sum(1)
            torch.testing.assert_close(
                found.softmax(1).gather(1, order[:, 4:]).sum(1), mass, rtol=1e-2, atol=1e-5
            )
    whole = LabelConfig(codec="topk", top=30)
    assert torch.equal(decode(whole, encode(whole, logits), 30), logits.half().float())


def test_the_tail_serves_the_loss_it_is_for() -> None:
    logits, hard = det((8, 50), 0.7, 0.1, 4), torch.zeros(8, dtype=torch.int64)
    mean, mass = (LabelConfig(codec="topk", top=5, tail=tail) for tail in ("mean", "mass"))
    decoded = [decode(config, encode(config, logits), 50) for config in (mean, mass)]
    squares = [float(mse_gt(found, SoftTargets(logits, hard), 0.0)) for found in decoded]
    kl = [float(distillation_kl(found, SoftTargets(logits, hard), 1.0)) for found in decoded]
    assert squares[0] < squares[1]
    assert kl[1] < kl[0]


@pytest.mark.parametrize("config", STORED, ids=names)
def test_what_a_codec_cannot_hold_is_refused(config: LabelConfig) -> None:
    with pytest.raises(NumericsError, match="NaN or infinity"):
        encode(config, torch.tensor([[1.0, float("nan"), 2.0, 0.0]]))
    large = torch.tensor([[1.0, 70_000.0, 2.0, 0.0]])
    if config.codec == "int8":
        assert float(decode(config, encode(config, large), 4).max()) == pytest.approx(
            70_000, rel=1e-6
        )
    else:
        with pytest.raises(NumericsError, match="beyond fp16"):
            encode(config, large)


@pytest.mark.parametrize("config", STORED, ids=names)
def test_a_layout_is_what_is_encoded(config: LabelConfig) -> None:
    stored = encode(config, det((7, 12), 0.3, 0.2, 2))
    assert {name: (t.dtype, tuple(t.shape[1:])) for name, t in stored.items()} == layout(config, 12)
    assert sum(t.numel() * t.element_size() for t in stored.values()) == 7 * row_bytes(
        layout(config, 12)
    )


def test_sizes_on_imagenet_are_the_published_ones() -> None:
    config = LabelConfig(batch=100, epochs=300)
    assert label_bytes(config, 10_000, 1000) == pytest.approx(6.07e9, rel=1e-3)
    assert epoch_bytes(config, 50_000, 1000) == pytest.approx(101e6, rel=2e-3)
    assert label_bytes(replace(config, codec="int8"), 10_000, 1000) == pytest.approx(
        3.09e9, rel=2e-3
    )
    assert label_bytes(replace(config, codec="topk", top=100), 10_000, 1000) == pytest.approx(
        1.28e9, rel=5e-3
    )
    for codec in ("recipe", "online"):
        assert label_bytes(replace(config, codec=codec), 10_000, 1000) == 0


@pytest.mark.parametrize("config", STORED, ids=names)
@pytest.mark.parametrize(
    "extra", [{}, {"shuffle": 4, "randaugment": True}], ids=["plain", "shuffled"]
)
def test_sizes_are_those_of_the_files(config: LabelConfig, extra: dict[str, int]) -> None:
    config = replace(config, batch=4, epochs=2, **extra)
    record = run_epoch(labels_of(config, ToySource(dataset=info())).relabel, 1)
    planned, found = (
        epoch_bytes(config, 14, 5),
        sum(t.numel() * t.element_size() for t in record.values()),
    )
    assert found == planned
    assert planned < len(dump_tensors(record)) < planned + 1200, "a header is all that a file adds"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codec": "topk"}, "labels.top: how many"),
        ({"top": 5}, "belong to labels.codec=topk"),
        ({"tail": "mass"}, "belong to labels.codec=topk"),
        ({"crop": (0.0, 1.0)}, "above 0"),
        ({"crop": (0.5, 0.2)}, "range"),
        ({"pad_crop": 4}, "one way"),
        ({"batch": 70_000}, "65536"),
    ],
)
def test_configurations_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelConfig(**fields)  # type: ignore[arg-type]
