"""DWA: golden displacements and updates (docs/methods/parity.md, "Tensors of DWA"), chains, resume, refusals."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_nets import GoldenNet, golden_images
from stage_context import StageContext
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from raydd.augment.crop import Box
from raydd.config import load_job
from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors, digest, dump_tensors, load_tensors
from raydd.core.units import Context, canonical, unkeyed
from raydd.data.catalog import DatasetInfo
from raydd.data.datasets import describe
from raydd.data.memory import normalise
from raydd.losses.statistics_matching import layer_distances, matching_loss
from raydd.methods import Problem
from raydd.methods.pools.image_pool import RealPool
from raydd.methods.recovery.displaced import DwaCompat, MatchDisplaced, climb
from raydd.methods.recovery.recover import MatchStatistics
from raydd.methods.recovery.recover_config import Matching
from raydd.methods.recovery.recover_groups import Grouping
from raydd.methods.recovery.recover_objective import ObservedTeacher
from raydd.methods.recovery.recover_views import View, Views
from raydd.networks.taps import StatTap
from raydd.training.backbones import Backbone
from raydd.training.weights import Weights

JOBS = Path(__file__).parents[2] / "jobs"
EXACT = 1e-9
IMAGE_LEAK = DwaCompat(leak_image_grad=True)
QUIRKS = DwaCompat(leak_image_grad=True, carry_theta=True, leak_param_grad=True)
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def running(network: Any) -> Tensor:
    """Return the running statistics ``[2, W]`` in the network's own precision."""
    norms = (network.b1, network.b2)
    return torch.cat([torch.stack([n.running_mean, n.running_var]) for n in norms], 1)


@dataclass(frozen=True, kw_only=True)
class GoldenDisplaced(MatchDisplaced):
    """DWA with the golden network from the golden images."""

    def observed(self, k: int, ctx: Context, *, own: bool = False) -> ObservedTeacher:
        with torch.random.fork_rng(devices=[]):  # fresh layers draw from the stream of the views
            tap = StatTap(GoldenNet(3 * k), 1, ("bn",), self.dataset.shape)
        return ObservedTeacher(tap, running(tap.network), None)

    def start(self, groups: Any, ctx: Context) -> Tensor:
        positions = [p for group in groups for p in group.positions]
        return golden_images(10, self.dataset.height)[[p // self.ipc for p in positions]]


@dataclass(frozen=True, kw_only=True)
class StreamViews(Views):
    """Views of one seeded stream for all updates, as the published code draws them: each once."""

    known: dict[int, View] = unkeyed(default_factory=dict, compare=False)

    def draw(self, generator: torch.Generator, part: float, height: int, width: int) -> View:
        key = generator.initial_seed()
        if key not in self.known:
            self.known[key] = self._next(height, width)
        return self.known[key]

    def _next(self, height: int, width: int) -> View:
        box, flip = None, False
        if self.crop is not None:
            crop = pytest.importorskip("torchvision.transforms").RandomResizedCrop
            like = torch.empty(1, 3, height, width)
            box = Box(*crop.get_params(like, list(self.crop), [3 / 4, 4 / 3]))
            flip = bool(torch.rand(1) < 0.5)
        return View(box, (0, 0), flip, (random.randint(*self.jitter), random.randint(*self.jitter)))


def golden_stage(
    side: int = 32, numbers: tuple[Any, Any] = CIFAR, **fields: Any
) -> GoldenDisplaced:
    info = DatasetInfo(
        name="micro",
        classes=10,
        channels=3,
        height=side,
        width=side,
        mean=numbers[0],
        std=numbers[1],
    )
    named = Backbone(
        network="convnet1_w8_batchnorm", dataset=info, weights=Weights(url="", digest="")
    )
    matching = Matching(kinds=("bn",), patch=1, r_loss=0.01, variance_weight=11.0)
    given: dict[str, Any] = {
        "seed": 0,
        "dataset": info,
        "ipc": 1,
        "backbones": (named,),
        "grouping": Grouping(order="ipc_major", group_size=10),
        "iterations": 5,
        "lr_img": 0.25,
        "matching": matching,
        "rho": 0.015,
        "ascent_steps": 3,
    }
    return GoldenDisplaced(**(given | fields))


def run(stage: MatchDisplaced, upto: int | None = None) -> tuple[Tensors, StageContext]:
    """Return the state of the stage's first unit after ``upto`` updates, and its context.

    Draws are made when they are asked for, since those of a stream have an order.
    """
    unit, ctx = stage.units()[0], StageContext(stage)
    state = stage.init(unit, ctx)
    for t in range(stage.steps(unit) if upto is None else upto):
        state = stage.step(unit, state, t, ctx)
    return state, ctx


def exported(state: Tensors, stage: MatchDisplaced) -> Tensor:
    """Return the images as what pixels show, in [0, 1]."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (stage.dataset.mean, stage.dataset.std))
    return (state["images"] * std + mean).clamp(0, 1)


@pytest.mark.usefixtures("double")
def test_golden_forward_pass_and_statistics_of_weighted_variances() -> None:
    tap, x = StatTap(GoldenNet(0), 1, ("bn",), (3, 32, 32)), golden_images(10, 32)
    logits, values = tap(x)
    assert logits[0, :3].tolist() == pytest.approx(
        [-4.8034635922, 7.8457913166, -4.7124945017], rel=1e-9
    )
    entropy = torch.nn.functional.cross_entropy(logits, torch.arange(10))
    assert entropy.item() == pytest.approx(8.61510402638936, rel=1e-12)
    for weight, want in (
        (1.0, 14.789720372135815),
        (2.0, 27.717672114782),
        (11.0, 144.069237798598),
    ):
        loss, _ = matching_loss(
            values,
            torch.zeros_like(values),
            tap.layout,
            overall=running(tap.network),
            variance_weight=weight,
        )
        assert loss.item() == pytest.approx(want, rel=1e-12)


@pytest.mark.usefixtures("double")
def test_the_gradient_of_weighted_variances_is_that_of_the_definition() -> None:
    tap, x = StatTap(GoldenNet(0), 1, ("bn",), (3, 8, 8)), golden_images(4, 8)
    values = tap(x)[1].detach().requires_grad_()
    reference = running(tap.network)
    (found,) = torch.autograd.grad(
        layer_distances(values, reference, tap.layout, 3.0).sum(), values
    )
    other = values.detach().clone().requires_grad_()
    total = torch.zeros(())
    for _, columns, _ in tap.layout.spans:
        mean, variance = (reference - other[0])[:, columns]
        total = total + mean.norm() + 3 * variance.norm()
    assert torch.allclose(found, torch.autograd.grad(total, other)[0], rtol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("steps", "norm", "entropy", "bias", "weight"),
    [
        (1, 0.0149999999999994, 9.02543627546924, -5.532381e-5, 2.0615835e-3),
        (3, 0.0149998282500659, 9.025465927254155, -5.498944e-5, 2.0565121e-3),
        (12, 0.0149998300680195, 9.025474657524894, -5.487044e-5, 2.0543146e-3),
    ],
)
def test_golden_displacements(
    steps: int, norm: float, entropy: float, bias: float, weight: float
) -> None:
    network, plain, x = GoldenNet(0).requires_grad_(), GoldenNet(0), golden_images(10, 32)
    labels = torch.arange(10)
    climb(network, x, labels, rho=0.015, steps=steps, see=lambda images: images)
    moved = parameters_to_vector(network.parameters()) - parameters_to_vector(plain.parameters())
    assert moved.norm().item() == pytest.approx(norm, rel=1e-12)
    after = torch.nn.functional.cross_entropy(network(x), labels)
    assert after.item() == pytest.approx(entropy, rel=1e-12)
    assert (network.fc.bias - plain.fc.bias)[0].item() == pytest.approx(bias, rel=1e-6)
    assert (network.c1.weight - plain.c1.weight).flatten()[0].item() == pytest.approx(
        weight, rel=1e-6
    )
    assert torch.equal(network.b1.running_mean, plain.b1.running_mean)


TOTALS = {
    "plain": (
        (10.674030331539, 6.103314800884, 4.393972331963, 3.725600201306, 3.418210399190),
        14594.162446286711,
    ),
    "leak": (
        (10.674030331539, 5.941285271233, 4.576565009796, 4.181936660120, 3.804359216623),
        14565.713969991526,
    ),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "compat"), [("plain", DwaCompat()), ("leak", IMAGE_LEAK)])
def test_golden_updates_with_and_without_the_leak_of_images(name: str, compat: DwaCompat) -> None:
    stage = golden_stage(compat=compat)
    state, ctx = run(stage)
    losses, total = TOTALS[name]
    assert [row["loss"] for row in ctx.rows] == pytest.approx(losses, rel=EXACT)
    assert exported(state, stage).sum().item() == pytest.approx(total, rel=EXACT)


@pytest.mark.usefixtures("double")
def test_golden_updates_with_shifts_of_the_published_stream() -> None:
    random.seed(0)
    stage = golden_stage(compat=IMAGE_LEAK, views=StreamViews(jitter=(0, 4)))
    state, ctx = run(stage)
    want = (10.701997301162, 5.924035443372, 4.667292182105, 4.695257965550, 4.125305878936)
    assert [row["loss"] for row in ctx.rows] == pytest.approx(want, rel=EXACT)
    assert exported(state, stage).sum().item() == pytest.approx(14566.599395360754, rel=EXACT)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("parts", [1, 3])
def test_golden_updates_of_sre2l_are_those_without_a_displacement(parts: int) -> None:
    matching = Matching(kinds=("bn",), patch=1, r_loss=0.01)
    stage = golden_stage(rho=0.0, matching=matching, parts=parts)
    state, ctx = run(stage)
    losses = (8.763001230111, 4.859221917888, 3.342300731815, 3.004242821728, 2.753547437333)
    matched = (14.789720372136, 9.824621532063, 13.311840545776, 14.139214151609, 13.079042477695)
    assert [row["loss"] for row in ctx.rows] == pytest.approx(losses, rel=EXACT)
    assert [row["match"] for row in ctx.rows] == pytest.approx(matched, rel=EXACT)
    shown = exported(state, stage).flatten()
    assert shown.sum().item() == pytest.approx(14609.034366339336, rel=EXACT)
    assert shown[[0, -1]].tolist() == pytest.approx([0.4377986135, 0.5167036845], rel=EXACT)


FIRST = (
    (46.498264955181, 39.824509026052, 35.430930503788, 33.882754739661),
    1747.862312033,
    0.014999933233,
)
CHAINS = {
    "all": (
        QUIRKS,
        (35.291121399378, 28.818879486726, 25.599117447550, 24.949274639159),
        1745.578176125,
        0.029708154268,
    ),
    "images": (
        IMAGE_LEAK,
        (34.353577224512, 28.154918447783, 24.922719622542, 24.351098930265),
        1745.482748526,
        0.014999922501,
    ),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CHAINS)
def test_golden_chains_of_two_groups(name: str) -> None:
    """Matrices of crops are float32, so figures agree to 1e-6."""
    compat, second, total, norm = CHAINS[name]
    views = StreamViews(crop=(0.08, 1.0), flip=True, jitter=(0, 4))
    stage = golden_stage(
        16,
        IMAGENET,
        compat=compat,
        views=views,
        grouping=Grouping(order="ipc_major", group_size=5, groups_per_unit=2),
        iterations=4,
        matching=Matching(kinds=("bn",), patch=1, r_loss=0.01, variance_weight=2.0),
    )
    trained = parameters_to_vector(GoldenNet(0).parameters())
    random.seed(0)
    torch.manual_seed(0)
    unit, ctx = stage.units()[0], StageContext(stage)
    state, norms = stage.init(unit, ctx), []
    for t in range(stage.steps(unit)):
        state = stage.step(unit, state, t, ctx)
        if t % 4 == 0:
            network = stage.teacher_at(0, unit, slice(t // 4, t // 4 + 1), state, ctx).tap.network
            norms.append((parameters_to_vector(network.parameters()) - trained).norm().item())
    losses = [row["loss"] for row in ctx.rows]
    assert losses == pytest.approx((*FIRST[0], *second), rel=1e-6)
    sums = exported(state, stage).unflatten(0, (2, 5)).sum((1, 2, 3, 4)).tolist()
    assert sums == pytest.approx((FIRST[1], total), rel=1e-6)
    assert norms == pytest.approx((FIRST[2], norm), rel=1e-6)


@pytest.mark.parametrize(
    "compat",
    [DwaCompat(), IMAGE_LEAK, DwaCompat(carry_theta=True), DwaCompat(leak_param_grad=True), QUIRKS],
)
def test_a_unit_goes_on_from_any_step_with_equal_bytes(compat: DwaCompat) -> None:
    stage = small_stage(compat=compat)
    unit = stage.units()[0]
    whole = digest(run(stage)[0])
    assert ("weights.0" in run(stage, 1)[0]) == compat.leak_param_grad
    for stop in range(1, stage.steps(unit)):
        state, ctx = load_tensors(dump_tensors(run(stage, stop)[0])), StageContext(stage)
        for t in range(stop, stage.steps(unit)):
            state = stage.step(unit, state, t, ctx)
        assert digest(state) == whole, stop


def images_of_units(stage: MatchDisplaced) -> list[Tensor]:
    ctx, each = StageContext(stage), []
    for unit in stage.units():
        state = stage.init(unit, ctx)
        for t in range(stage.steps(unit)):
            state = stage.step(unit, state, t, ctx)
        each.append(state["images"])
    return each


def test_groups_of_their_own_do_not_depend_on_those_of_their_unit() -> None:
    stage, together = small_stage(groups_per_unit=1), small_stage(groups_per_unit=4)
    each = images_of_units(stage)
    assert torch.equal(run(together)[0]["images"], torch.cat(each))


def test_every_group_starts_from_the_trained_weights_where_its_number_begins() -> None:
    """Two numbers of two groups each in one unit, as one unit for each number."""
    stage, together = (
        small_stage(compat=QUIRKS, groups_per_unit=2),
        small_stage(compat=QUIRKS, groups_per_unit=4),
    )
    each = images_of_units(stage)
    assert len(each) == 2
    assert torch.equal(run(together)[0]["images"], torch.cat(each))


def test_chains_need_the_groups_of_a_number_in_one_unit() -> None:
    with pytest.raises(ConfigError, match="groups_per_unit=1 must be a multiple"):
        small_stage(compat=QUIRKS, groups_per_unit=1)


def small_stage(groups_per_unit: int = 2, **fields: Any) -> GoldenDisplaced:
    """Two networks in turn, two images of ten classes in groups of five, shifted views, float32."""
    stage = golden_stage(8)
    return replace(
        FloatDisplaced(**{f.name: getattr(stage, f.name) for f in dataclass_fields(stage)}),
        ipc=2,
        backbones=stage.backbones * 2,
        grouping=Grouping(order="ipc_major", group_size=5, groups_per_unit=groups_per_unit),
        iterations=3,
        views=Views(jitter=(0, 2)),
        **fields,
    )


@dataclass(frozen=True, kw_only=True)
class FloatDisplaced(GoldenDisplaced):
    """The same from noise."""

    def start(self, groups: Any, ctx: Context) -> Tensor:
        return MatchDisplaced.start(self, groups, ctx)


def test_start_images_are_those_of_the_pool_unless_they_are_mirrored() -> None:
    stage = golden_stage(8, views=Views(flip=True), mirror_start=False)
    pool = RealPool(seed=0, dataset=stage.dataset, pool=1, classes_per_unit=10)
    images = torch.arange(10 * 3 * 8 * 8).view(10, 3, 8, 8).remainder(251).to(torch.uint8)
    unmirrored, mirrored = (
        replace(stage, pool=pool, mirror_start=mirror) for mirror in (False, True)
    )
    found = []
    for each in (unmirrored, mirrored):
        loaded = {f"pool-{pool.units()[0]}": {"images": images}}
        groups = each.groups_of[each.units()[0]]
        found.append(MatchStatistics.start(each, groups, StageContext(each, loaded=loaded)))
    wanted = normalise(images, stage.dataset.mean, stage.dataset.std)
    assert torch.equal(found[0], wanted)
    same = [torch.equal(a, b) for a, b in zip(found[1], wanted, strict=True)]
    assert not all(same)
    assert any(same)


def test_what_was_not_there_before_is_in_no_key_of_what_was() -> None:
    before = Matching(kinds=("bn",), patch=1, r_loss=0.01)
    assert not {"variance_weight", "skip_silent"} & set(canonical(before))
    other = replace(before, variance_weight=2.0, skip_silent=("layers.0.bn1",))
    assert {"variance_weight", "skip_silent"} <= set(canonical(other))
    with pytest.raises(ConfigError, match=r"skip_silent=.*they alone are matched, not bn, conv"):
        Matching(r_loss=0.01, skip_silent=("layers.0.bn1",))


SHARED = {"r_loss": 0.01, "rho": 0.015, "first_multiplier": 10.0, "compat": DwaCompat()}
CIFAR_JOB = {
    **SHARED,
    "iterations": 1000,
    "lr_img": 0.25,
    "variance_weight": 11.0,
    "ascent_steps": 12,
    "jitter": (0, 4),
    "crop": None,
    "flip": False,
}
TINY_JOB = {**CIFAR_JOB, "iterations": 2000, "lr_img": 0.1, "crop": (0.08, 1.0), "flip": True}
IMAGENET_JOB = {
    **TINY_JOB,
    "lr_img": 0.25,
    "variance_weight": 2.0,
    "ascent_steps": 15,
    "jitter": (0, 32),
}


@pytest.mark.parametrize(
    ("name", "fields", "classes", "student"),
    [
        ("cifar10", CIFAR_JOB, 10, (400, 128, "adamw", 1e-3, "all", 30.0, 0, "one", "batch")),
        ("cifar100", CIFAR_JOB, 100, (400, 128, "adamw", 1e-3, "all", 30.0, 0, "one", "batch")),
        ("tiny_imagenet", TINY_JOB, 200, (200, 64, "sgd", 0.2, "all", 20.0, 5, "tau2", "eval")),
        (
            "imagenet",
            IMAGENET_JOB,
            100,
            (300, 128, "adamw", 1e-3, "matrices_only", 20.0, 0, "one", "eval"),
        ),
    ],
)
def test_the_jobs_have_the_published_settings(
    name: str, fields: dict[str, Any], classes: int, student: tuple[Any, ...]
) -> None:
    job = load_job(str(JOBS / f"{name}_dwa.yaml"), [])
    method, info = job.method, describe(job.dataset)
    assert {key: getattr(method, key) for key in fields} == fields
    assert (method.group_size, method.start.kind, job.ipc) == (classes, "real", 50)
    recipe = job.evaluation.resolve().recipe(info, method.student_network)
    labels = method.label_config
    assert labels is not None
    found = (recipe.epochs, recipe.batch, recipe.optimizer, recipe.lr, recipe.decay)
    found += (recipe.temperature, recipe.warmup, recipe.kl_scale, labels.teacher_mode)
    assert found == student
    assert (labels.batch, labels.codec) == (recipe.batch, "online")
    stage = method.plan(Problem(dataset=info, ipc=50, seed=0, numerics=job.numerics))[-1]
    assert isinstance(stage, MatchDisplaced)
    assert not stage.mirror_start
    assert len(stage.units()) == 50 * info.classes // classes
