"""Steps with AdamW, moving averages, teachers' logits and doubled norms, against torch's own optimisers and modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.units import Numerics
from raydd.losses.soft import SoftTargets, distillation_kl, mse_gt
from raydd.networks import create_network
from raydd.training.accuracy import Examiner
from raydd.training.recipe import Recipe
from raydd.training.sgd import (
    TrainingStep,
    forget_momentum,
    fresh_state,
    part,
    stack_states,
    unstack_state,
    weights_for_test,
)

SHAPE = (3, 8, 8)
EDC = Recipe(
    epochs=0,
    optimizer="adamw",
    weight_decay=0.3,
    decay="matrices_only",
    loss="mse_gt",
    ce_weight=0.025,
    ema=0.9,
)
RDED = Recipe(
    epochs=0, optimizer="adamw", weight_decay=0.3, loss="kl", temperature=20.0, double_norm=True
)
SRE2L = Recipe(
    epochs=0,
    batch=12,
    accumulate=3,
    optimizer="adamw",
    weight_decay=0.3,
    decay="matrices_only",
    loss="kl",
    temperature=20.0,
)
CIFAR = Recipe(
    epochs=0,
    momentum=0.875,
    weight_decay=0.2,
    decay="matrices_only",
    loss="mse_gt",
    ce_weight=0.1,
    ema=0.9,
)


def _network(name="convnet2_w8_batchnorm", seed=0, dtype=torch.float64):
    return create_network(name, SHAPE, 10, generator(seed, "net")).to(dtype)


def _batch(seed, count=12, dtype=torch.float64):
    images = torch.randn(count, *SHAPE, generator=generator(seed, "images"), dtype=dtype)
    logits = 3 * torch.randn(count, 10, generator=generator(seed, "logits"), dtype=dtype)
    return images, SoftTargets(
        logits, torch.randint(0, 10, (count,), generator=generator(seed, "labels"))
    )


def _distance(recipe, logits, targets):
    if recipe.loss == "kl":
        return distillation_kl(logits, targets, recipe.temperature)
    return mse_gt(logits, targets, recipe.ce_weight)


def _torch_optimiser(network, recipe, lr):
    matrices = [
        p
        for name, p in network.named_parameters()
        if recipe.decay == "all" or ("weight" in name and p.dim() > 1)
    ]
    others = [p for p in network.parameters() if not any(p is matrix for matrix in matrices)]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=recipe.betas)
    return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum)


@pytest.mark.parametrize("recipe", [EDC, RDED, CIFAR, SRE2L], ids=["edc", "rded", "cifar", "sre2l"])
@pytest.mark.parametrize("name", ["convnet2_w8_batchnorm", "convnet2_w8_layernorm", "mlp"])
def test_steps_are_those_of_torch(name, recipe):
    network = _network(name)
    step, state = TrainingStep(network, Numerics(), recipe), fresh_state(network, recipe)
    optimiser, average = _torch_optimiser(network, recipe, 1e-2), copy.deepcopy(network)
    for t in range(6):
        images, targets = _batch(t, 12 if t < 5 else 5)
        lr = 1e-2 * (1 - t / 12)
        state, loss, correct = step(state, images, targets, torch.tensor(lr, dtype=torch.float64))
        for group in optimiser.param_groups:
            group["lr"] = lr
        network.train()
        if (
            recipe.double_norm
        ):  # the published loop looks at the batch once more, for an accuracy to print
            with torch.no_grad():
                network(images)
        optimiser.zero_grad()
        told, hits, size = (
            0.0,
            0,
            recipe.batch // recipe.accumulate if recipe.accumulate > 1 else len(images),
        )
        for begin in range(
            0, len(images), size
        ):  # slices of a batch, as the published loops accumulate gradients
            part_ = slice(begin, begin + size)
            logits = network(images[part_])
            expected = _distance(
                recipe, logits, SoftTargets(targets.logits[part_], targets.hard[part_])
            )
            (expected / recipe.accumulate).backward()
            told += len(logits) * float(expected.detach())
            hits += int((logits.argmax(1) == targets.hard[part_]).sum())
        optimiser.step()
        assert float(loss) == pytest.approx(told, rel=1e-9)
        assert int(correct) == hits
        if recipe.ema is not None:
            for mine, live in zip(average.parameters(), network.parameters()):
                mine.data = 0.9 * mine.data + 0.1 * live.data
    for kind, named in (
        ("params", network.named_parameters()),
        ("buffers", network.named_buffers()),
    ):
        mine = part(state, kind)
        for key, value in named:
            torch.testing.assert_close(mine[key], value.detach(), rtol=1e-8, atol=1e-9)
    for key, value in average.named_parameters() if recipe.ema is not None else ():
        torch.testing.assert_close(part(state, "ema")[key], value.detach(), rtol=1e-8, atol=1e-9)


def test_vectors_decay_only_where_all_parameters_do():
    network = _network("convnet2_w8_layernorm")
    images, targets = _batch(0)
    found = {}
    for decay in ("all", "matrices_only"):
        steps = [
            TrainingStep(
                network, Numerics(), Recipe(**(_fields(EDC) | {"decay": decay, "weight_decay": w}))
            )
            for w in (0.0, 0.5)
        ]
        after = [
            part(step(fresh_state(network, EDC), images, targets, torch.tensor(1e-2))[0], "params")
            for step in steps
        ]
        found[decay] = {
            name for name in after[0] if not torch.equal(after[0][name], after[1][name])
        }
    biased = {name for name, p in network.named_parameters() if bool(p.abs().sum() > 0)}
    assert found["all"] == biased
    assert found["matrices_only"] == {
        name for name, p in network.named_parameters() if "weight" in name and p.dim() > 1
    }
    assert found["matrices_only"] < found["all"]


def _fields(recipe):
    return {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}


@pytest.mark.parametrize("recipe", [EDC, RDED, CIFAR, SRE2L], ids=["edc", "rded", "cifar", "sre2l"])
def test_a_stack_equals_its_networks_one_by_one(recipe):
    networks = [_network(seed=seed) for seed in range(3)]
    rate = torch.tensor(0.01, dtype=torch.float64)
    together = stack_states([fresh_state(network, recipe) for network in networks])
    alone = [fresh_state(network, recipe) for network in networks]
    stacked, single = (
        TrainingStep(networks[0], Numerics(), recipe, stacked=s) for s in (True, False)
    )
    for t in range(3):
        batches = [_batch(10 * t + r) for r in range(3)]
        targets = SoftTargets(*(torch.stack(field) for field in zip(*(y for _, y in batches))))
        together, loss, correct = stacked(
            together, torch.stack([x for x, _ in batches]), targets, rate
        )
        parts = [single(state, *batch, rate) for state, batch in zip(alone, batches)]
        alone = [new for new, _, _ in parts]
        torch.testing.assert_close(
            loss, torch.stack([value for _, value, _ in parts]), rtol=1e-10, atol=1e-10
        )
        assert correct.tolist() == [int(value) for _, _, value in parts]
    assert set(together) == set(alone[0])
    for r in range(3):
        for key, value in unstack_state(together, r).items():
            torch.testing.assert_close(value, alone[r][key], rtol=1e-9, atol=1e-10)


def test_tests_use_the_moving_average_with_live_buffers():
    recipe = Recipe(epochs=0, optimizer="adamw", ema=0.99)
    network = _network(dtype=torch.float32)
    step, state = TrainingStep(network, Numerics(), recipe), fresh_state(network, recipe)
    for t in range(5):
        images, targets = _batch(t, 32, torch.float32)
        state, _, _ = step(state, images, targets.hard, torch.tensor(0.05))
    weights = weights_for_test(state)
    assert set(weights) == {name for name in state if name.startswith(("params.", "buffers."))}
    assert all(
        torch.equal(weights[name], state[name]) for name in weights if name.startswith("buffers.")
    )
    assert all(
        torch.equal(weights[name], state[name.replace("params.", "ema.")])
        for name in weights
        if name.startswith("params.")
    )
    by_hand = _network(dtype=torch.float32)
    live, averaged = part(state, "params"), part(state, "ema")
    assert not torch.equal(live["classifier.weight"], averaged["classifier.weight"])
    by_hand.load_state_dict({**averaged, **part(state, "buffers")})
    images, targets = _batch(99, 64, torch.float32)
    with torch.no_grad():
        expected = float((by_hand.eval()(images).argmax(1) == targets.hard).double().mean())
        by_hand.load_state_dict({**live, **part(state, "buffers")})
        other = float((by_hand(images).argmax(1) == targets.hard).double().mean())
    found = Examiner(network, Numerics()).accuracy(state, [(images, targets.hard)], lambda x: x)
    assert found == pytest.approx(expected)
    assert found != pytest.approx(other)


def test_states_without_an_average_are_tested_as_they_are():
    state = fresh_state(_network())
    assert weights_for_test(state).keys() == {
        name for name in state if not name.startswith("momentum.")
    }


def test_a_new_optimiser_remembers_nothing_and_keeps_the_average():
    network = _network()
    state, _, _ = TrainingStep(network, Numerics(), EDC)(
        fresh_state(network, EDC), *_batch(0), torch.tensor(0.1)
    )
    assert int(state["count"]) == 1
    forgotten = forget_momentum(state)
    assert int(forgotten["count"]) == 0
    for name, value in forgotten.items():
        if name.startswith(("momentum.", "second.")):
            assert not value.any()
        elif name != "count":
            assert torch.equal(value, state[name])


def test_a_rate_that_adapts_is_that_of_decayed_parameters_alone():
    recipe = Recipe(
        epochs=5, schedule="alrs", momentum=0.0, weight_decay=0.0, decay="matrices_only"
    )
    network = _network("mlp")
    step, state = TrainingStep(network, Numerics(), recipe), fresh_state(network, recipe)
    images, targets = _batch(0)
    after, _, _ = step(state, images, targets.hard, torch.tensor(0.1))
    slower, _, _ = step(
        state | {"alrs.factor": torch.tensor(0.5)}, images, targets.hard, torch.tensor(0.1)
    )
    for name, p in network.named_parameters():
        moved = [part(new, "params")[name] - p.detach() for new in (after, slower)]
        torch.testing.assert_close(
            moved[1], moved[0] * (0.5 if p.dim() > 1 else 1), rtol=1e-6, atol=1e-12
        )


def test_labels_must_be_of_the_losss_kind():
    network = _network()
    images, targets = _batch(0)
    with pytest.raises(
        ConfigError, match="loss 'mse_gt' needs the logits of teachers, and the set has labels"
    ):
        TrainingStep(network, Numerics(), EDC)(
            fresh_state(network, EDC), images, targets.hard, torch.tensor(0.1)
        )
    with pytest.raises(
        ConfigError, match="loss 'ce' needs labels, and the set has the logits of teachers"
    ):
        TrainingStep(network, Numerics(), Recipe(epochs=0))(
            fresh_state(network), images, targets, torch.tensor(0.1)
        )


def test_doubled_norms_need_a_momentum():
    network = _network()
    next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)).momentum = None
    with pytest.raises(ConfigError, match="averages over all batches"):
        TrainingStep(network, Numerics(), RDED)


def test_bf16_convolutions_learn_logits_too():
    network = _network(dtype=torch.float32)
    images, targets = _batch(0, dtype=torch.float32)
    exact, low = (TrainingStep(network, Numerics(precision=p), EDC) for p in ("fp32", "bf16"))
    results = [
        step(fresh_state(network, EDC), images, targets, torch.tensor(0.01))
        for step in (exact, low)
    ]
    assert float(results[1][1]) == pytest.approx(float(results[0][1]), rel=2e-2)
    assert results[1][0]["params.classifier.weight"].dtype == torch.float32
    assert not torch.equal(results[0][1], results[1][1])


@pytest.mark.nightly
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("recipe", [EDC, RDED, CIFAR, SRE2L], ids=["edc", "rded", "cifar", "sre2l"])
def test_a_compiled_step_equals_the_eager_one(recipe, stacked):
    networks = [_network(seed=seed, dtype=torch.float32) for seed in range(2)]
    state = (
        stack_states([fresh_state(n, recipe) for n in networks])
        if stacked
        else fresh_state(networks[0], recipe)
    )
    images, targets = _batch(0, 24, torch.float32)
    if stacked:
        images, targets = (
            images.view(2, 12, *SHAPE),
            SoftTargets(*(field.view(2, 12, *field.shape[1:]) for field in targets)),
        )
    results = []
    for compile in (False, True):
        step, now = (
            TrainingStep(networks[0], Numerics(compile=compile), recipe, stacked=stacked),
            state,
        )
        for _ in range(2):
            now, loss, _ = step(now, images, targets, torch.tensor(0.001))
        results.append((now, loss))
    for key, value in results[0][0].items():
        # Biases that a norm cancels have no gradient; AdamW makes the rounding of very small ones visible.
        torch.testing.assert_close(results[1][0][key], value, rtol=1e-3, atol=5e-4)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-4)


def test_cross_entropy_is_as_before():
    network = _network()
    images, targets = _batch(0)
    _, loss, _ = TrainingStep(network, Numerics(), Recipe(epochs=0))(
        fresh_state(network), images, targets.hard, torch.tensor(0.1)
    )
    assert float(loss) == pytest.approx(
        12 * float(F.cross_entropy(network.train()(images), targets.hard).detach()), rel=1e-12
    )


def test_a_batch_in_slices_is_refused_where_it_cannot_be():
    with pytest.raises(
        ConfigError, match="accumulate=13 slices are more than the 12 images of a batch"
    ):
        Recipe(epochs=1, batch=12, accumulate=13)
    with pytest.raises(ConfigError, match="accumulate=2 and double_norm"):
        Recipe(epochs=1, accumulate=2, double_norm=True)
    assert (Recipe(epochs=1, batch=25, accumulate=2).slice, Recipe(epochs=1, batch=25).slice) == (
        13,
        25,
    )
    assert Recipe(epochs=1, batch=25).of_step() == Recipe(epochs=9, batch=12).of_step()
    assert (
        Recipe(epochs=1, batch=25, accumulate=2).of_step()
        != Recipe(epochs=1, batch=12, accumulate=2).of_step()
    )
