"""INFER: golden compensators (docs/methods/parity.md, "Tensors of INFER"), the loop by its definition,
budgets, what is stored, refusals.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_nets import GoldenNet, golden_images
from small import small_method
from stage_context import StageContext
from test_dwa import CIFAR, IMAGENET, StreamViews, running
from test_every_method import run
from torch import Tensor, nn

from raydd.artifacts.codec import jpeg_round_trip
from raydd.artifacts.first_images import first_images
from raydd.artifacts.offsets import OFFSETS, Offsets, levels
from raydd.artifacts.rendering import format_bytes
from raydd.config import load_job
from raydd.core.errors import ConfigError, TooFew
from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Data, Numerics
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.datasets import describe, with_digests
from raydd.data.memory import normalise
from raydd.evaluation.rows import settle
from raydd.labels.records import label_bytes
from raydd.methods import Problem
from raydd.methods.infer import Infer, InferCompat
from raydd.methods.recovery.compensate import Compensate
from raydd.methods.recovery.recover_config import Matching
from raydd.methods.recovery.recover_groups import Grouping
from raydd.methods.recovery.recover_objective import ObservedTeacher
from raydd.methods.recovery.recover_update import cosine_rate
from raydd.methods.recovery.recover_views import View, Views
from raydd.networks.taps import StatTap
from raydd.training.backbones import Backbone
from raydd.training.weights import Weights

JOBS = Path(__file__).parents[2] / "jobs"
PAGE = Path(__file__).parents[2] / "docs" / "methods" / "dwa_infer.md"
EXACT = 1e-9


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class WithUnused(GoldenNet):
    """The golden network with a batch norm right after ``b1`` that never runs."""

    def __init__(self, off: int) -> None:
        super().__init__(off)
        kept = dict(self._modules)
        self._modules.clear()
        for name, module in kept.items():
            self._modules[name] = module
            if name == "b1":
                self._modules["unused"] = nn.BatchNorm2d(4).eval().requires_grad_(False)


def second_images(count: int, side: int) -> Tensor:
    n = torch.arange(count * 3 * side * side, dtype=torch.float64)
    return (1.5 * torch.cos(0.011 * n) + 0.4 * torch.sin(0.0003 * n**2)).view(count, 3, side, side)


def slices_of(side: int) -> Tensor:
    """Return two natural slices ``[2, 10, 3, side, side]``."""
    return torch.stack([golden_images(10, side), second_images(10, side)])


@dataclass(frozen=True, kw_only=True)
class GoldenCompensate(Compensate):
    """Compensators of the golden network with an offset, for two golden slices."""

    off: int = 0

    def observed(self, k: int, ctx: Context, *, own: bool = False) -> ObservedTeacher:
        with torch.random.fork_rng(devices=[]):
            network = WithUnused(self.off) if self.off == 6 else GoldenNet(self.off)
        skipped = self.matching.skip_silent
        tap = StatTap(network, 1, ("bn",), self.dataset.shape, skipped)
        return ObservedTeacher(tap, running(tap.network), None)

    def start(self, groups: Any, ctx: Context) -> Tensor:
        slices = slices_of(self.dataset.height)
        return torch.stack(
            [slices[p % self.ipc, p // self.ipc] for g in groups for p in g.positions]
        )


def golden_stage(
    off: int, side: int = 32, numbers: tuple[Any, Any] = CIFAR, **fields: Any
) -> GoldenCompensate:
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
    given: dict[str, Any] = {
        "seed": 0,
        "dataset": info,
        "ipc": 2,
        "backbones": (named,),
        "grouping": Grouping(order="ipc_major", group_size=10),
        "iterations": 5,
        "lr_img": 0.25,
        "matching": Matching(kinds=("bn",), patch=1, r_loss=1.0, skip_silent=("unused",)),
        "before_last": True,
        "off": off,
    }
    return GoldenCompensate(**(given | fields))


def moved(stage: Compensate, unit: str, more: int = 0) -> tuple[Tensor, list[float]]:
    """Return a unit's offsets after all its updates (and ``more``), and the losses on the way."""
    ctx = StageContext(stage)
    state = stage.init(unit, ctx)
    for t in range(stage.steps(unit) + more):
        state = stage.step(unit, state, t, ctx)
    return state["images"], [row["loss"] for row in ctx.rows]


def exported(images: Tensor, numbers: tuple[Any, Any] = CIFAR) -> Tensor:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in numbers)
    return (images * std + mean).clamp(0, 1)


NATURAL = (14677.180127403, 14531.500603639)
GOLDEN: dict[int, tuple[float, tuple[float, ...]]] = {
    2: (14654.441868989, (23.404824399, 34.025687351, 26.257857700, 24.174604593, 22.769692049)),
    3: (14586.433663724, (16.539934734, 29.160734477, 19.185892869, 19.286730356, 17.124857363)),
    4: (14797.311723057, (9.993501993, 19.692393492, 9.808708765, 11.783796960, 10.638185099)),
    5: (14620.982357314, (15.127380104, 22.937368455, 11.579003005, 10.763955661, 8.438377038)),
    6: (14671.207337142, (20.032630213, 28.698222283, 22.746343540, 19.904386811, 19.390524604)),
    7: (14518.032666351, (15.787396273, 25.824392753, 18.670817059, 15.416817840, 14.746501097)),
    8: (14797.493651584, (10.033326872, 17.532879554, 9.918935200, 11.258498268, 10.360282744)),
    9: (14584.448699113, (15.208737808, 22.384064085, 12.991337256, 10.707382883, 8.596700727)),
}
"""By the published number of the slice: block of network after block, two slices in each."""


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("number", GOLDEN)
def test_golden_compensators(number: int) -> None:
    network, index = number // 2 - 1, number % 2
    stage = golden_stage(3 * network)
    unit, slices = stage.units()[index], slices_of(32)
    assert exported(slices[index]).sum().item() == pytest.approx(NATURAL[index], rel=EXACT)
    offsets, _ = moved(stage, unit)
    total, losses = GOLDEN[number]
    assert exported(slices[index] + offsets).sum().item() == pytest.approx(total, rel=EXACT)
    after, found = moved(stage, unit, more=1)  # the published loop takes the loss of all updates
    assert found == pytest.approx(losses, rel=EXACT)
    if number == 2:
        assert offsets.sum().item() == pytest.approx(-14.12955994, rel=1e-8)
        assert offsets.abs().sum().item() == pytest.approx(222.358611878, rel=EXACT)
        assert after.abs().sum().item() == pytest.approx(222.204300492, rel=EXACT)


@pytest.mark.usefixtures("double")
def test_the_last_update_counts_unless_the_published_code_is_asked_for() -> None:
    stage = golden_stage(0, before_last=False)
    offsets, losses = moved(stage, stage.units()[0])
    assert len(losses) == 5
    assert offsets.abs().sum().item() == pytest.approx(222.204300492, rel=EXACT)


def test_golden_rates_and_shifts() -> None:
    rates = [cosine_rate(0.25, t, 1000) for t in (0, 1, 500, 999)]
    assert rates == pytest.approx([0.25, 0.24999938315, 0.125, 6.168497677e-7], rel=1e-9)
    random.seed(0)
    drawn = [StreamViews(jitter=(0, 4))._next(8, 8).shift for _ in range(5)]
    assert [side for shift in drawn for side in shift] == [3, 3, 0, 2, 4, 3, 3, 2, 3, 2]


# -- the loop as it is defined, without the engine --------------------------------------------------


def statistics(
    network: nn.Module, x: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor, nn.Module]]]:
    """Return a network's logits, and mean and variance of what enters each batch norm that runs."""
    found: list[tuple[Tensor, Tensor, nn.Module]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].transpose(0, 1).flatten(1)
        found.append((rows.mean(1), rows.var(1, unbiased=False), module))

    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [m.register_forward_pre_hook(look) for m in norms]
    logits = network(x)
    for hook in hooks:
        hook.remove()
    return logits, found


def by_definition(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    see: Callable[[Tensor, int], Tensor],
    *,
    iterations: int,
    updates: int,
    r_loss: float,
    lr: float = 0.25,
) -> tuple[Tensor, list[float]]:
    """Return the universal offset after some updates and their losses: one image at a time is all that
    is shared with the engine, torch's own Adam moves it.
    """
    u = torch.zeros_like(images[:1], requires_grad=True)
    optimiser, losses = torch.optim.Adam([u], lr=lr, betas=(0.5, 0.9), eps=1e-8), []
    for t in range(updates):
        optimiser.param_groups[0]["lr"] = (
            0.5 * (1 + torch.cos(torch.tensor(torch.pi * t / iterations)).item()) * lr
        )
        logits, layers = statistics(network, see(images + u, t))
        loss = nn.functional.cross_entropy(logits, labels)
        for number, (mean, variance, norm) in enumerate(layers):
            weight = 10.0 if number == 0 else 1.0
            loss = loss + r_loss * weight * (norm.running_var - variance).norm()
            loss = loss + r_loss * weight * (norm.running_mean - mean).norm()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return u.detach(), losses


def seen_by(view: View, images: Tensor) -> Tensor:
    """Return images under a view: crop, mirror, circular shift, as torchvision and torch do them."""
    if view.box is not None:
        box = view.box
        images = images[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
        size = (16, 16)
        images = nn.functional.interpolate(
            images, size=size, mode="bilinear", align_corners=False, antialias=True
        )
    images = images.flip(3) if view.flip else images
    return images.roll(view.shift, (2, 3))


SHIFTED = StreamViews(jitter=(0, 4))
CROPPED = StreamViews(crop=(0.08, 1.0), flip=True, jitter=(0, 4))
CASES: dict[str, dict[str, Any]] = {
    "shifts": {"views": SHIFTED, "off": 3, "r_loss": 1.0},
    "crops": {"views": CROPPED, "off": 0, "r_loss": 0.01},
    "crops in parts": {"views": CROPPED, "off": 6, "r_loss": 0.01, "parts": 4},
    "blocks": {"views": SHIFTED, "off": 9, "r_loss": 0.1, "group_size": 5},
    "packed in parts": {"views": Views(), "off": 3, "r_loss": 0.1, "parts": 3, "packed": 2},
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CASES)
def test_compensators_are_those_of_the_definition(name: str) -> None:
    """Matrices of crops are float32, so figures agree to 1e-6."""
    case = CASES[name]
    size, views = case.get("group_size", 10), replace(case["views"])
    if isinstance(views, StreamViews):
        views.known.clear()
    stage = golden_stage(
        case["off"],
        16,
        IMAGENET,
        views=views,
        iterations=6,
        before_last=False,
        parts=case.get("parts", 1),
        grouping=Grouping(
            order="ipc_major", group_size=size, groups_per_unit=case.get("packed", 1)
        ),
        matching=Matching(kinds=("bn",), patch=1, r_loss=case["r_loss"], skip_silent=("unused",)),
    )
    random.seed(0)
    torch.manual_seed(0)
    for unit in stage.units():
        ctx = StageContext(stage)
        offsets, _ = moved(stage, unit)
        losses = []
        for group, found in zip(stage.groups_of[unit], offsets, strict=True):
            drawn = [views.draw(ctx.rng("view", group.index, t), 0.0, 16, 16) for t in range(6)]
            images = stage.start((group,), ctx)
            wanted, own = by_definition(
                GoldenNet(case["off"]),
                images,
                torch.tensor(group.labels(2)),
                lambda x, t, drawn=drawn: seen_by(drawn[t], x),
                iterations=6,
                updates=6,
                r_loss=case["r_loss"],
            )
            near = 1e-5 if "crops" in name else 1e-9
            assert (found - wanted[0]).abs().max().item() < near
            losses.append(own)
        assert len({round(row[-1], 6) for row in losses}) == len(losses), "no group is another's"


# -- the method ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem(digits: Mapping[str, Data]) -> Problem:
    info = with_digests(entry("digits").info, digits)
    return Problem(dataset=info, ipc=4, seed=3, numerics=Numerics())


def outputs_of(
    method: Infer, problem: Problem, store: Store, digits: Mapping[str, Data]
) -> dict[str, Tensors]:
    targets = method.targets(problem)
    run(list(targets.values()), store, digits)
    return {name: store.load(ref) for name, ref in targets.items()}


def small_infer(**fields: Any) -> Infer:
    method = small_method("infer", **({"groups_per_unit": 1, "init": {"kind": "real"}} | fields))
    assert isinstance(method, Infer)
    return method


def test_the_real_images_are_kept_and_students_see_them_with_each_compensator(
    problem: Problem, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    method, store = small_infer(), Store(str(tmp_path))
    distilled = method.assemble(problem, outputs_of(method, problem, store, digits))
    assert (len(distilled), distilled.seen) == (20, 60)  # 2 (10 + 2 * 2) of 40
    assert distilled.extra[OFFSETS].shape == (2, 2, 2, 1, 8, 8)
    assert bool((distilled.extra[OFFSETS].flatten(3) != 0).any(-1).all())
    pixels, train = distilled.images.flatten(1), digits["train"]
    real = train.take(torch.arange(len(train))).flatten(1)
    for image, label in zip(pixels, distilled.labels, strict=True):
        (same,) = (real == image).all(1).nonzero().T
        assert int(label) in train.labels[same].tolist()
    assert len(distilled.images.unique(dim=0)) == 20, "slices are of other images"


def test_a_compensator_is_that_of_its_network_slice_and_block(
    problem: Problem, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    method, store = small_infer(), Store(str(tmp_path))
    outputs = outputs_of(method, problem, store, digits)
    offsets = method.assemble(problem, outputs).extra[OFFSETS]
    _, *stages = method.last(problem)
    for m, stage in enumerate(stages):
        assert isinstance(stage, Compensate)
        for unit, groups in stage.groups_of.items():
            (group,) = groups
            label, index = group.labels(2)[0], group.positions[0] % 2
            found = outputs[f"{m + 1}/{unit}"][OFFSETS][0]
            assert torch.equal(offsets[m, index, label // 6], found)


def test_composed_pictures_are_stored_class_by_class_in_the_published_order(
    problem: Problem, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    plain = small_infer()
    method = small_infer(image_format="jpeg75")
    shown = method.assemble(problem, outputs_of(method, problem, store, digits))
    whole = plain.assemble(problem, outputs_of(plain, problem, store, digits))
    assert shown.size == method.size(problem)
    assert (len(shown), shown.seen, shown.decoding.name) == (60, 60, "identity")
    order = [m * 20 + c * 2 + k for c in range(10) for m in range(3) for k in range(2)]
    jpeg = jpeg_round_trip(whole.take())[order]
    assert torch.equal(shown.images, jpeg)
    assert shown.labels.tolist() == [c for c in range(10) for _ in range(6)]
    one = small_infer(image_format="jpeg75", networks=("convnet1_w8_batchnorm",))
    alone = one.assemble(problem, outputs_of(one, problem, store, digits))
    assert alone.size == one.size(problem)
    assert len(one.last(problem)) == 1
    packed = small_infer(image_format="jpeg75", groups_per_unit=2)
    near = packed.assemble(problem, outputs_of(packed, problem, store, digits)).images
    # Groups in one batch are those alone up to rounding, which may move a level, and JPEG some with it.
    assert float(((near.int() - jpeg.int()).abs().flatten(1).amax(1) <= 8).float().mean()) > 0.9


def test_a_part_of_a_larger_set_is_the_set_of_the_smaller_budget(
    problem: Problem, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    method, store = small_infer(), Store(str(tmp_path))
    small = replace(problem, ipc=2)
    larger, smaller = (
        method.assemble(one, outputs_of(method, one, store, digits)) for one in (problem, small)
    )
    part = first_images(larger, 2, "here")
    assert torch.equal(part.images, smaller.images)
    assert torch.equal(part.extra[OFFSETS], smaller.extra[OFFSETS])
    assert torch.equal(part.take(), smaller.take())


def test_published_tensors_are_the_real_images_and_no_more_are_needed_than_kept(
    problem: Problem, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    info = problem.dataset
    drawn = torch.randint(256, (2, 10, *info.shape), generator=generator(0, "drawn")).byte()
    for k, pixels in enumerate(drawn):
        torch.save(normalise(pixels, info.mean, info.std), tmp_path / f"tensor_{k}.pt")
    init = {"kind": "tensors", "folder": str(tmp_path), "pool": None}
    method, store = small_infer(init=init), Store(str(tmp_path / "store"))
    assert method.missing(problem) == []  # 2 of 4 images have room
    distilled = method.assemble(problem, outputs_of(method, problem, store, digits))
    assert torch.equal(distilled.images, drawn.transpose(0, 1).flatten(0, 1))
    (line,) = method.missing(replace(problem, ipc=6))  # 4 (10 + 2 * 2) of 60
    assert "tensor_2.pt" in line


def test_a_budget_without_room_is_refused_with_the_formula(problem: Problem) -> None:
    one = replace(problem, ipc=1)
    with pytest.raises(
        ConfigError,
        match=r"ipc=1: a budget of ipc \* 10 images .* K = floor\(ipc / \(1 \+ 4 / 10\)\) = 0; set a larger ipc",
    ):
        small_infer().plan(one)
    with pytest.raises(ConfigError, match=r"1 \+ 2 / 10"):
        small_infer(group_size=10).size(one)


def test_too_few_real_images_are_counted_as_what_they_are(problem: Problem) -> None:
    counts = (9,) * 6 + (1,) + (9,) * 3
    few = replace(problem, dataset=replace(problem.dataset, train_counts=counts))
    said = f"ipc={few.ipc} keeps 2 real images of each class: class 6 has only 1 training images"
    with pytest.raises(
        TooFew, match=f"{said} to choose from; at most ipc=(.) is possible"
    ) as error:
        small_infer().plan(few)
    most = int(error.value.most.split("=")[1][0])
    small_infer().plan(replace(few, ipc=most))
    with pytest.raises(TooFew):
        small_infer().plan(replace(few, ipc=most + 1))
    small_infer().plan(replace(few, dataset=replace(few.dataset, train_counts=())))
    pool = small_infer(init={"kind": "real", "pool": 1})
    with pytest.raises(ConfigError, match=r"init\.pool=1 is below the 2 of each class"):
        pool.plan(problem)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": {"kind": "noise"}}, "keeps the images that it starts from.*not kind=noise"),
        (
            {"init": {"kind": "real", "sampling": "with_replacement"}},
            "not kind=real, sampling=with_replacement",
        ),
        ({"networks": ("resnet18", "torchvision/resnet18")}, "one stands there twice"),
        ({"compat": {"before_last": True}, "iterations": 1}, "iterations=1 has no other"),
        ({"networks": ()}, "at least one network"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_infer(**fields)


def test_every_network_has_a_stage_and_teachers_label_with_all(problem: Problem) -> None:
    method = small_infer()
    pool, *stages = method.last(problem)
    assert [stage.phase for stage in (pool, *stages)] == ["init", "recover", "recover"]
    assert [stage.backbones[0].network for stage in stages] == [
        teacher.network for teacher in method.label_teachers(problem)
    ]
    assert method.updates(problem) == 6
    assert small_infer(compat={"before_last": True}).updates(problem) == 5
    assert InferCompat() == method.compat
    assert Offsets.name == "offsets"
    assert levels(torch.zeros(1, 1, 1), (0.3,)).dtype == torch.int16


SMALL_NETWORKS = (
    "resnet18_cifar_batchnorm",
    "mobilenetv2x1_cifar",
    "efficientnetb0_cifar",
    "shufflenetg2_cifar",
)
CIFAR_JOB = {
    "networks": SMALL_NETWORKS,
    "iterations": 1000,
    "lr_img": 0.25,
    "r_loss": 1.0,
    "first_multiplier": 10.0,
    "crop": None,
    "flip": False,
    "jitter": (0, 4),
    "image_format": "png",
    "compat": InferCompat(),
}
IMAGENET_JOB = CIFAR_JOB | {
    "networks": ("resnet18", "mobilenet_v2", "efficientnet_b0"),
    "iterations": 2000,
    "r_loss": 0.01,
    "crop": (0.08, 1.0),
    "flip": True,
    "jitter": (0, 32),
}
TINY_JOB = IMAGENET_JOB | {"networks": SMALL_NETWORKS, "lr_img": 0.1, "jitter": (0, 4)}


@pytest.mark.parametrize(
    ("name", "fields", "classes", "seen", "student"),
    [
        ("cifar10", CIFAR_JOB, 10, 1750, (400, 64, "adamw", 1e-3, "all", 30.0, 0, "one")),
        ("cifar100", CIFAR_JOB, 100, 24_000, (400, 64, "adamw", 1e-3, "all", 30.0, 0, "one")),
        ("tiny_imagenet", TINY_JOB, 200, 49_000, (200, 64, "sgd", 0.2, "all", 20.0, 5, "tau2")),
        (
            "imagenet",
            IMAGENET_JOB,
            1000,
            36_000,
            (300, 128, "adamw", 1e-3, "matrices_only", 20.0, 0, "one"),
        ),
    ],
)
def test_the_jobs_have_the_published_settings(
    name: str, fields: dict[str, Any], classes: int, seen: int, student: tuple[Any, ...]
) -> None:
    """Of Tiny-ImageNet and of ImageNet-1k's students those of docs/methods/dwa_infer.md."""
    job = load_job(str(JOBS / f"{name}_infer.yaml"), [])
    method, info = job.method, describe(job.dataset)
    assert {key: getattr(method, key) for key in fields} == fields
    assert (method.group_size, method.start.kind) == (classes, "real")
    problem = Problem(dataset=info, ipc=job.ipc, seed=0, numerics=job.numerics)
    assert method.size(problem).seen == seen
    labels = method.label_config
    assert labels is not None
    config, _ = settle(job.evaluation, problem, method.student_network, labels)
    recipe = config.resolve().recipe(info, method.student_network)
    found = (recipe.epochs, recipe.batch, recipe.optimizer, recipe.lr, recipe.decay)
    assert (*found, recipe.temperature, recipe.warmup, recipe.kl_scale) == student
    assert (labels.batch, labels.codec, labels.epochs) == (recipe.batch, "static", recipe.epochs)
    pool, *stages = method.last(problem)
    assert len(stages) == len(method.networks)
    assert [len(stage.units()) for stage in stages] == [pool.pool] * len(stages)
    assert not any(stage.mirror_start for stage in stages)


@pytest.mark.parametrize("path", sorted(JOBS.glob("*infer*.yaml")), ids=lambda path: path.stem)
def test_dynamic_labels_have_the_epochs_that_their_larger_set_leaves(path: Path) -> None:
    """As the job's comment says them, which must reach the students."""
    head = path.read_text(encoding="utf-8").split("\nname:")[0].replace("\n#", "")
    said = re.search(r"Dynamic labels: (\S+) (\S+\d)", head)
    overrides = [[], list(said.groups()) if said else ["method.labels.codec=online"]]
    epochs = []
    for more in overrides:
        job = load_job(str(path), more)
        info, network = describe(job.dataset), job.method.student_network
        problem = Problem(dataset=info, ipc=job.ipc, seed=0, numerics=job.numerics)
        config, _ = settle(job.evaluation, problem, network, job.method.label_config)
        epochs.append(config.resolve().recipe(info, network).epochs)
    assert job.method.label_config.codec == "online"
    assert epochs[1] == (epochs[0] // (len(job.method.networks) + 1) if said else epochs[0])


@pytest.mark.parametrize(
    ("name", "title", "ipc"),
    [
        (name, title, ipc)
        for name, title in (
            ("cifar10", "CIFAR-10"),
            ("cifar100", "CIFAR-100"),
            ("imagenet", "ImageNet-1k"),
        )
        for ipc in (10, 50)
    ],
)
def test_the_page_has_the_bytes_of_the_jobs(name: str, title: str, ipc: int) -> None:
    job = load_job(str(JOBS / f"{name}_infer.yaml"), [f"ipc={ipc}"])
    info, labels = describe(job.dataset), job.method.label_config
    assert labels is not None
    size = job.method.size(Problem(dataset=info, ipc=ipc, seed=0, numerics=job.numerics))
    seen = size.seen * info.channels * info.height * info.width
    rows = label_bytes(labels, size.seen, info.classes)
    row = f"| {title}, {ipc} | {format_bytes(size.bytes)} | {format_bytes(rows)} | {format_bytes(seen)} |"
    assert f"{row} {100 * size.bytes / seen:.1f} % |" in PAGE.read_text(encoding="utf-8")
