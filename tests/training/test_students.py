"""Students: what they depend on (their repeat), what they do not (company, interruptions), and what they learn."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from recording import recorded
from tracing import traced_gradients

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.rng import generator
from raydd.core.tensors import digest
from raydd.core.units import Numerics
from raydd.data.catalog import DatasetInfo
from raydd.losses.soft import SoftTargets
from raydd.networks import Network, create_network
from raydd.networks.initialise import fill_defaults_
from raydd.networks.layers import Linear
from raydd.training import students
from raydd.training.sgd import Recipe, unstack_state
from raydd.training.students import ResidentSet, StudentTraining, of_repeat, stack_labels, stackable

SHAPE = (1, 8, 8)
INFO = DatasetInfo(name="blobs", classes=3, channels=1, height=8, width=8, mean=(0.5,), std=(0.25,))
DSA = Recipe(
    epochs=4,
    batch=8,
    lr=0.05,
    drops=(2,),
    augmentation="dsa",
    strategy="color_crop_cutout_flip_scale_rotate",
)


def _data(count=20, dtype=torch.float32):
    labels = torch.arange(count) % 3
    images = torch.randn(count, *SHAPE, generator=generator(5, "data"), dtype=dtype) * 0.3
    return ResidentSet(images + labels.view(-1, 1, 1, 1) - 1, labels)


def _training(repeats, recipe=DSA, network="convnet2_w8", **options):
    return StudentTraining(
        network=network,
        shape=SHAPE,
        classes=3,
        recipe=recipe,
        numerics=Numerics(),
        repeats=repeats,
        rng=partial(generator, 7),
        device=torch.device("cpu"),
        **options,
    )


def _train(training, data, first=0, state=None):
    state = training.init() if state is None else state
    for epoch in range(first, training.recipe.epochs):
        state, loss, accuracy = training.epoch(state, epoch, data)
    return state, loss, accuracy


@pytest.mark.parametrize("network", ["convnet2_w8", "convnet2_w8_batchnorm"])
def test_a_stack_learns_what_its_students_learn_alone(network):
    data = _data(dtype=torch.float64)
    runs = [
        _train(_training([0, 1, 2], network=network, stacked=stacked, dtype=torch.float64), data)
        for stacked in (False, True)
    ]
    for name, value in runs[0][0].items():
        torch.testing.assert_close(runs[1][0][name], value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(runs[1][1], runs[0][1], rtol=1e-10, atol=1e-10)
    assert runs[1][2].tolist() == pytest.approx(runs[0][2].tolist())


def test_a_student_depends_on_its_repeat_and_not_on_its_company():
    data = _data()
    together, _, _ = _train(_training([0, 1, 2]), data)
    alone, _, _ = _train(_training([1]), data)
    assert digest(unstack_state(together, 1)) == digest(unstack_state(alone, 0))
    assert digest(unstack_state(together, 1)) != digest(unstack_state(together, 2))


@pytest.mark.parametrize("network", ["convnet2_w8", "convnet2_w8_batchnorm"])
def test_a_training_resumed_between_epochs_gives_the_same_bytes(network):
    data = _data()
    whole, _, _ = _train(_training([0, 1], network=network), data)
    half = _training([0, 1], network=network)
    state = half.init()
    for epoch in range(2):
        state, _, _ = half.epoch(state, epoch, data)
    resumed, _, _ = _train(
        _training([0, 1], network=network),
        data,
        first=2,
        state={k: v.clone() for k, v in state.items()},
    )
    assert digest(resumed) == digest(whole)


def test_momentum_is_forgotten_where_the_rate_drops():
    data, training = _data(), _training([0], Recipe(epochs=3, batch=32, lr=0.1, drops=(2,)))
    state = training.init()
    for epoch in range(2):
        state, _, _ = training.epoch(state, epoch, data)
    noisy = {k: v + 5 if k.startswith("momentum.") else v for k, v in state.items()}
    assert digest(training.epoch(state, 2, data)[0]) == digest(training.epoch(noisy, 2, data)[0])
    assert digest(training.epoch(state, 1, data)[0]) != digest(training.epoch(noisy, 1, data)[0])


@pytest.mark.parametrize(("images", "trained_on"), [(20, 16), (7, 7)])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_last_smaller_batch_is_not_trained_on(images, trained_on, stacked):
    """Twenty images in batches of eight: the training of the first sixteen in the order drawn."""
    data = _data()
    data = ResidentSet(data.images[:images], data.labels[:images])
    recipe = Recipe(epochs=1, batch=8, lr=0.1, drop_last=True)
    state, _, _ = _train(_training([3], recipe, stacked=stacked), data)

    class Shortened:
        def batches(self, epoch, size, rng):
            batches = list(data.batches(epoch, size, rng))
            yield from batches[: max(1, trained_on // size)]

    expected, _, _ = _train(
        _training([3], replace(recipe, drop_last=False), stacked=stacked), Shortened()
    )
    whole, _, _ = _train(_training([3], replace(recipe, drop_last=False), stacked=stacked), data)
    assert digest(state) == digest(expected)
    assert (digest(state) == digest(whole)) == (images == trained_on)


def test_students_learn():
    data = _data()
    _, loss, accuracy = _train(_training([0, 1], Recipe(epochs=25, batch=8, lr=0.02)), data)
    assert float(loss.max()) < 0.3
    assert float(accuracy.min()) > 0.9


@pytest.mark.parametrize("size", [7, 20])
def test_resident_batches_are_those_of_the_distilled_set(size):
    data = _data()
    distilled = DistilledSet(images=data.images, labels=data.labels, info=INFO)
    rng = of_repeat(partial(generator, 3), 4)
    for epoch in range(2):
        ours, theirs = (
            list(data.batches(epoch, size, rng)),
            list(distilled.batches(epoch, size, rng)),
        )
        assert [len(y) for _, y in ours] == [len(y) for _, y in theirs]
        for (x, y), (u, v) in zip(ours, theirs):
            assert torch.equal(x, u)
            assert torch.equal(y, v)


class _Dropped(Network):
    def __init__(self):
        super().__init__("dropped", SHAPE, 3)
        self.drop, self.classifier = torch.nn.Dropout(0.5), Linear(64, 3)

    def embed(self, x):
        return self.drop(x.flatten(1))

    def reinitialise_(self, generator):
        fill_defaults_(self, generator)


def test_networks_that_draw_are_trained_alone_and_their_draws_are_keyed(monkeypatch):
    def create(name, shape, classes, draws):
        network = _Dropped()
        network.reinitialise_(draws)
        return network

    monkeypatch.setattr(students, "create_network", create)
    data, recipe = _data(), Recipe(epochs=2, batch=8)
    training = _training([0, 1], recipe, network="dropped", stacked=True)
    assert not training.stacked
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _, _ = _train(training, data)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, _, _ = _train(_training([0, 1], recipe, network="dropped", stacked=True), data)
    assert digest(first) == digest(second)
    assert stackable(create_network("convnet2_w8_batchnorm", SHAPE, 3, generator(0, "n")))


def test_soft_labels_train_students():
    hard = _data()
    soft = ResidentSet(hard.images, torch.nn.functional.one_hot(hard.labels, 3).float())
    recipe = Recipe(epochs=3, batch=8)
    a, loss, accuracy = _train(_training([0], recipe), hard)
    b, soft_loss, soft_accuracy = _train(_training([0], recipe), soft)
    torch.testing.assert_close(
        a["params.classifier.weight"], b["params.classifier.weight"], rtol=1e-4, atol=1e-6
    )
    assert float(loss) == pytest.approx(float(soft_loss), rel=1e-4)
    assert float(accuracy) == float(soft_accuracy)


class _Taught:
    """Images with the logits of teachers in half precision, new ones every epoch, in batches of
    which the last is smaller.
    """

    def __init__(self):
        self.data, self.sizes = _data(), []

    def batches(self, epoch, size, rng):
        noise = generator(1, "teacher", epoch)
        for images, labels in self.data.batches(epoch, size, rng):
            self.sizes.append(len(labels))
            logits = 4 * torch.nn.functional.one_hot(labels, 3) + torch.randn(
                len(labels), 3, generator=noise
            )
            yield images, SoftTargets(logits.half(), labels)


ADAMW = {"optimizer": "adamw", "decay": "matrices_only", "lr": 0.01}
EDC = Recipe(
    epochs=4,
    batch=8,
    schedule="linear_st",
    st=2.0,
    loss="mse_gt",
    ce_weight=0.025,
    ema=0.9,
    **ADAMW,
)
KL = Recipe(
    epochs=4, batch=8, lr=0.05, schedule="alrs", loss="kl", temperature=2.0, double_norm=True
)


@pytest.mark.parametrize("recipe", [EDC, KL], ids=["mse_gt", "kl"])
def test_students_of_logits_are_alone_what_they_are_together(recipe):
    options = {"network": "convnet2_w8_batchnorm", "dtype": torch.float64}
    taught = _Taught()
    runs = [
        _train(_training([0, 1], recipe, stacked=stacked, **options), taught)
        for stacked in (False, True)
    ]
    assert taught.sizes[:3] == [8, 8, 4]
    for name, value in runs[0][0].items():
        torch.testing.assert_close(runs[1][0][name], value, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(runs[1][1], runs[0][1], rtol=1e-9, atol=1e-9)
    alone, _, _ = _train(_training([1], recipe, stacked=False, **options), taught)
    assert digest(unstack_state(alone, 0)) == digest(unstack_state(runs[0][0], 1))


@pytest.mark.parametrize("recipe", [EDC, KL], ids=["mse_gt", "kl"])
def test_students_of_logits_resumed_between_epochs_give_the_same_bytes(recipe):
    whole, _, _ = _train(_training([0, 1], recipe), _Taught())
    half = _training([0, 1], recipe)
    state = half.init()
    for epoch in range(2):
        state, _, _ = half.epoch(state, epoch, _Taught())
    resumed, _, _ = _train(
        _training([0, 1], recipe),
        _Taught(),
        first=2,
        state={k: v.clone() for k, v in state.items()},
    )
    assert digest(resumed) == digest(whole)


def test_students_learn_from_logits():
    recipe = Recipe(
        epochs=20,
        batch=8,
        lr=0.02,
        optimizer="adamw",
        schedule="cosine",
        loss="mse_gt",
        ce_weight=0.025,
    )
    _, loss, accuracy = _train(_training([0], recipe), _Taught())
    assert float(accuracy) > 0.9
    assert float(loss) < 3


def test_the_loss_of_an_epoch_is_the_mean_over_its_images():
    taught, recipe = _Taught(), Recipe(epochs=1, batch=8, lr=1e-12, loss="mse_gt", ce_weight=0.5)
    training = _training([0], recipe, network="mlp", dtype=torch.float64)
    state = training.init()
    _, loss, _ = training.epoch(state, 0, taught)
    training.network.load_state_dict(
        {k.removeprefix("params."): v[0] for k, v in state.items() if k.startswith("params.")}
    )
    total = 0.0
    for images, (logits, hard) in _Taught().batches(0, 8, training.rngs[0]):
        out = training.network(images.double())
        each = (out - logits.double()).square().mean(1) + 0.5 * torch.nn.functional.cross_entropy(
            out, hard, reduction="none"
        )
        total += float(each.sum().detach())
    assert float(loss) == pytest.approx(total / 20, rel=1e-6)


def test_a_rate_that_adapts_is_each_students_own():
    recipe = Recipe(epochs=3, batch=32, lr=1e-9, schedule="alrs")
    state, loss, _ = _train(_training([0, 1], recipe, network="convnet2_w8"), _data())
    assert state["alrs.factor"].tolist() == pytest.approx(
        [0.9975**2] * 2
    )  # at such a rate no loss ever changes
    assert torch.equal(state["alrs.loss"], loss)
    learning, _, _ = _train(
        _training([0, 1], Recipe(epochs=2, batch=8, lr=0.05, schedule="alrs")), _data()
    )
    assert learning["alrs.factor"].tolist() == [1, 1]


def test_labels_of_a_stack_are_stacked_field_by_field():
    targets = [SoftTargets(torch.full((2, 3), float(r)), torch.full((2,), r)) for r in range(4)]
    stacked = stack_labels(targets)
    assert isinstance(stacked, SoftTargets)
    assert stacked.logits.shape == (4, 2, 3)
    assert stacked.hard.tolist() == [[r, r] for r in range(4)]
    assert stack_labels([torch.zeros(2), torch.ones(2)]).tolist() == [[0, 0], [1, 1]]


PLAIN = Recipe(epochs=4, batch=8, lr=0.05, drops=(2,))
WHOLE = {
    "dsa": DSA,
    "pad_crop_flip": replace(PLAIN, augmentation="pad_crop_flip", pad=2),
    "resized_crop_flip": replace(PLAIN, augmentation="resized_crop_flip"),
    "none": PLAIN,
    "mse_gt": EDC,
    "kl": KL,
}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", WHOLE)
def test_a_recorded_step_teaches_what_augmentation_and_step_teach(kind: str, stacked: bool) -> None:
    recipe = WHOLE[kind]
    options = {
        "network": "convnet2_w8_batchnorm" if kind in ("mse_gt", "kl") else "convnet2_w8",
        "dtype": torch.float64,
    }

    def data():
        return _Taught() if recipe.loss != "ce" else _data(dtype=torch.float64)

    plain, loss, accuracy = _train(_training([0, 1], recipe, stacked=False, **options), data())
    with recorded() as calls:
        whole, of_whole, correct = _train(
            _training([0, 1], recipe, stacked=stacked, **options), data()
        )
    assert len(calls) == recipe.epochs * 3 * (1 if stacked else 2)
    near = (
        {"rtol": 1e-5, "atol": 1e-7} if kind == "dsa" else {"rtol": 1e-8, "atol": 1e-9}
    )  # DSA's places are float32 there
    for name, value in plain.items():
        torch.testing.assert_close(whole[name], value, **near)
    torch.testing.assert_close(of_whole, loss, **near)
    assert correct.tolist() == pytest.approx(accuracy.tolist())


def test_what_draws_while_it_trains_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded() as calls:
        _train(_training([0, 1], replace(DSA, augmentation="dc", strategy="crop_rotate")), _data())
    assert not calls


@pytest.mark.slow
@pytest.mark.parametrize("stacked", [False, True])
def test_a_recorded_step_compiles_as_one_graph(stacked: bool) -> None:
    data = _data()
    with recorded():
        training = _training([0, 1], stacked=stacked)
        state, rate = training.init(), torch.tensor(0.1)
        state = state if stacked else unstack_state(state, 0)
        images = torch.stack([data.images[:8]] * 2) if stacked else data.images[:8]
        labels = torch.stack([data.labels[:8]] * 2) if stacked else data.labels[:8]
        numbers = training.recorded._augmentation.draw(
            [generator(0, "x")] * (2 if stacked else 1), 8
        )
        step = training.recorded._flat(tuple(state), False)
        given = (*state.values(), rate, images, numbers, labels)
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        with traced_gradients():
            for a, b in zip(compiled(*given), step(*given), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
