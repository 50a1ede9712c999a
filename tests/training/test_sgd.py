"""The explicit step of SGD against ``torch.optim.SGD``, and the shortcuts that have to be exact."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from raydd.core.rng import generator
from raydd.core.units import Numerics
from raydd.networks import create_network
from raydd.training.precision import (
    LowConv2d,
    cancelled_biases,
    lower_convolutions,
    warn_of_slow_bf16,
)
from raydd.training.sgd import (
    Recipe,
    TrainingStep,
    forget_momentum,
    fresh_state,
    part,
    stack_states,
    unstack_state,
)

SHAPE = (3, 16, 16)
PLAIN = Recipe(epochs=0)


def _network(name, seed=0, dtype=torch.float64):
    return create_network(name, SHAPE, 10, generator(seed, "net")).to(dtype)


def _batch(seed, count=12, dtype=torch.float64):
    images = torch.randn(count, *SHAPE, generator=generator(seed, "images"), dtype=dtype)
    return images, torch.randint(0, 10, (count,), generator=generator(seed, "labels"))


@pytest.mark.parametrize("name", ["convnet2_w8", "convnet2_w8_batchnorm", "mlp", "lenet"])
def test_a_step_is_that_of_torch_optim_sgd(name):
    shape = (3, 32, 32)
    network = create_network(name, shape, 10, generator(0, "net")).double()
    step, state = (
        TrainingStep(network, Numerics(), Recipe(epochs=0, momentum=0.9, weight_decay=5e-3)),
        fresh_state(network),
    )
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3)
    for t in range(3):
        images = torch.randn(4, *shape, generator=generator(t, "x"), dtype=torch.float64)
        labels = torch.randint(0, 10, (4,), generator=generator(t, "y"))
        if t == 2:  # a new optimiser, as published loops make one where the rate drops
            optimiser = torch.optim.SGD(
                network.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-3
            )
            state = forget_momentum(state)
        rate = torch.tensor(0.05 if t < 2 else 0.005, dtype=torch.float64)
        state, loss, correct = step(state, images, labels, rate)
        logits = network.train()(images)
        expected = F.cross_entropy(logits, labels)
        optimiser.zero_grad()
        expected.backward()
        optimiser.step()
        assert float(loss) == pytest.approx(4 * float(expected.detach()), rel=1e-10)
        assert int(correct) == int((logits.argmax(1) == labels).sum())
    for kind, named in (
        ("params", network.named_parameters()),
        ("buffers", network.named_buffers()),
    ):
        mine = part(state, kind)
        for key, value in named:
            torch.testing.assert_close(mine[key], value.detach(), rtol=1e-9, atol=1e-12)


def test_the_step_leaves_its_arguments_alone():
    network = _network("convnet2_w8_batchnorm")
    state = fresh_state(network)
    before = {name: value.clone() for name, value in state.items()}
    TrainingStep(network, Numerics(), PLAIN)(state, *_batch(0), torch.tensor(0.1))
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("name", ["convnet2_w8", "convnet2_w8_batchnorm", "convnet2_w8_layernorm"])
def test_a_stack_equals_its_networks_one_by_one(name):
    networks = [_network(name, seed) for seed in range(3)]
    rate = torch.tensor(0.02, dtype=torch.float64)
    together = stack_states([fresh_state(network) for network in networks])
    alone = [fresh_state(network) for network in networks]
    stacked, single = (
        TrainingStep(networks[0], Numerics(), PLAIN, stacked=True),
        TrainingStep(networks[0], Numerics(), PLAIN),
    )
    for t in range(3):
        batches = [_batch(10 * t + r) for r in range(3)]
        together, loss, correct = stacked(
            together,
            torch.stack([x for x, _ in batches]),
            torch.stack([y for _, y in batches]),
            rate,
        )
        parts = [single(state, *batch, rate) for state, batch in zip(alone, batches)]
        alone = [new for new, _, _ in parts]
        torch.testing.assert_close(
            loss, torch.stack([value for _, value, _ in parts]), rtol=1e-10, atol=1e-10
        )
        assert correct.tolist() == [int(value) for _, _, value in parts]
    for r in range(3):
        for key, value in unstack_state(together, r).items():
            torch.testing.assert_close(value, alone[r][key], rtol=1e-10, atol=1e-10)


@pytest.mark.nightly
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ["convnet2_w8", "convnet2_w8_batchnorm"])
def test_a_compiled_step_equals_the_eager_one(name, stacked):
    networks = [_network(name, seed, torch.float32) for seed in range(2)]
    state = (
        stack_states([fresh_state(network) for network in networks])
        if stacked
        else fresh_state(networks[0])
    )
    images, labels = _batch(0, 24, torch.float32)
    batch = (images.view(2, 12, *SHAPE), labels.view(2, 12)) if stacked else (images, labels)
    results = []
    for compile in (False, True):
        step, now = (
            TrainingStep(networks[0], Numerics(compile=compile), PLAIN, stacked=stacked),
            state,
        )
        for _ in range(2):
            now, loss, correct = step(now, *batch, torch.tensor(0.01))
        results.append((now, loss, correct))
    for key, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][key], value, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-5)


def test_soft_labels_are_learnt_as_probabilities():
    network = _network("convnet1_w8")
    images, labels = _batch(0)
    step, rate = TrainingStep(network, Numerics(), PLAIN), torch.tensor(0.1, dtype=torch.float64)
    hard, loss, correct = step(fresh_state(network), images, labels, rate)
    one_hot = F.one_hot(labels, 10).double()
    soft, soft_loss, soft_correct = step(fresh_state(network), images, one_hot, rate)
    assert float(loss) == pytest.approx(float(soft_loss), rel=1e-12)
    assert int(correct) == int(soft_correct)
    uniform, _, _ = step(
        fresh_state(network), images, torch.full((12, 10), 0.1, dtype=torch.float64), rate
    )
    key = "params.classifier.weight"
    torch.testing.assert_close(hard[key], soft[key], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(hard[key], uniform[key])


@pytest.mark.parametrize(
    ("norm", "count"),
    [("instancenorm", 3), ("batchnorm", 3), ("groupnorm", 0), ("layernorm", 0), ("nonorm", 0)],
)
def test_biases_are_left_out_only_where_their_gradient_vanishes(norm, count):
    network = _network(f"convnet3_w8_{norm}")
    left_out = cancelled_biases(network)
    assert len(left_out) == count
    images, labels = _batch(0)
    F.cross_entropy(network.train()(images), labels).backward()
    for key, value in network.named_parameters():
        if "conv.bias" in key:
            gone = float(value.grad.abs().max()) < 1e-14
            assert gone == (key in left_out)


def test_convolutions_alone_are_lowered():
    network = _network("convnet2_w8", dtype=torch.float32)
    low = lower_convolutions(network)
    assert [name for name, _ in low.named_parameters()] == [
        name for name, _ in network.named_parameters()
    ]
    assert sum(isinstance(module, LowConv2d) for module in low.modules()) == 2
    assert not any(isinstance(module, LowConv2d) for module in network.modules())
    images, _ = _batch(0, dtype=torch.float32)
    out, exact = low(images), network(images)
    assert out.dtype == torch.float32
    error = float((out - exact).detach().abs().max())
    assert 0 < error < 0.05
    features = torch.randn(4, low.embed_dim)
    assert torch.equal(low.classifier(features), network.classifier(features))


def test_emulated_bf16_is_said_to_be_slow(monkeypatch, caplog):
    facts = {
        "architecture": "x86_64",
        "avx512_bf16": False,
        "amx_bf16": False,
        "cpu_name": "Old One",
    }
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts)
    assert warn_of_slow_bf16(torch.device("cpu"))
    assert "Old One has no bfloat16 instructions" in caplog.text
    assert not warn_of_slow_bf16(torch.device("cuda"))
    facts["avx512_bf16"] = True
    assert not warn_of_slow_bf16(torch.device("cpu"))
