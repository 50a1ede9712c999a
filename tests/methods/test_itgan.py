"""IT-GAN: golden losses, DM's loss without partners, inversion in any blocks, groups of blocks, trained networks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from family_jobs import raydd
from small import small_method
from stage_context import StageContext
from torch import Tensor

from raydd import load
from raydd.artifacts.generated import Generated, stored_weights
from raydd.config import load_job
from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import Tensors, dump_tensors
from raydd.core.units import Data, Numerics, Ref
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.datasets import open_data, with_digests
from raydd.data.memory import normalise
from raydd.data.split import Subset
from raydd.methods.dm import MatchDistributions
from raydd.methods.itgan import KEPT, ItGan
from raydd.methods.latents import adam
from raydd.methods.latents.inversion import Goal, InversionWeights, Invert, inverted
from raydd.methods.latents.latent_matching import MatchLatents, informative_loss
from raydd.methods.method import Problem
from raydd.networks import create_network
from raydd.networks.biggan import Generator, fold, initialise_
from raydd.networks.folded_generator import GanShape
from raydd.networks.network import Network
from raydd.runtime.runner import LocalRunner
from raydd.training.train_pool import TrainPool, draw_network

JOBS = Path(__file__).parents[2] / "jobs"
SIZES = GanShape(channels=1, classes=10, width=6, dim_z=5, bottom=2, blocks=2)
EQUAL = InversionWeights(1.0, 1.0, 0.0)


@pytest.fixture(scope="module")
def info(digits: Mapping[str, Data]) -> DatasetInfo:
    return with_digests(entry("digits").info, digits)


def problem_of(info: DatasetInfo, ipc: int = 2) -> Problem:
    return Problem(dataset=info, ipc=ipc, seed=3, numerics=Numerics())


def run(refs: list[Ref], store: Store, data: Mapping[str, Data], fault: Any = None) -> None:
    LocalRunner(lambda: data, device=torch.device("cpu"), fault=fault, checkpoint_every=0.0).run(
        refs, store, lambda event: None
    )


def untrained(scale: float = 0.3) -> Tensors:
    """Return a folded generator in float64 whose images depend on their latents."""
    made, draws = Generator(SIZES), generator(0, "untrained")
    initialise_(made, draws)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.add_(scale * torch.randn(tensor.shape, generator=draws))
    return stored_weights(fold(made.eval()), torch.float64)


def decoder_of(info: DatasetInfo) -> Generated:
    made = Generated.decoding_of(SIZES, info).decoder()
    assert isinstance(made, Generated)
    return made


def goal_of(info: DatasetInfo, z: Tensor, weights: Tensors, network: Network) -> Goal:
    """Return the images of latents as what is to be found again."""
    labels = torch.arange(len(z)) % 10
    images = decoder_of(info).take({"images": z, "labels": labels, **weights})
    with torch.no_grad():
        return Goal(images, network.embed(images), labels)


def features(info: DatasetInfo) -> Network:
    network = create_network("convnet1_w8", info.shape, 10, generator(0, "features"))
    return network.double().eval().requires_grad_(False)


# -- losses --------------------------------------------------------------------------------------


def test_the_golden_loss() -> None:
    made = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    partners = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    mean = torch.tensor([[0.25, 0.5]], dtype=torch.float64)
    assert float(informative_loss(made, partners, mean, 1.0).detach()) == pytest.approx(
        1, abs=1e-12
    )
    assert float(informative_loss(made, None, mean, 0.0).detach()) == pytest.approx(
        0.0625, abs=1e-12
    )
    loss = informative_loss(made, partners, mean, 0.001)
    (gradient,) = torch.autograd.grad(loss, made)
    assert float(loss.detach()) == pytest.approx(0.0634375, abs=1e-12)
    expected = torch.tensor([[[0.24975, -0.001], [0.24975, 0.001]]], dtype=torch.float64)
    assert float((gradient - expected).abs().max()) <= 1e-12


def test_adam_is_torchs() -> None:
    z = torch.randn(4, 3, dtype=torch.float64, generator=generator(0, "z"))
    ours, theirs = adam.fresh(z), torch.nn.Parameter(z.clone())
    optimiser = torch.optim.Adam([theirs], lr=0.1)
    for count in range(1, 8):
        gradient = torch.randn(4, 3, dtype=torch.float64, generator=generator(count, "g"))
        ours, theirs.grad = adam.stepped(ours, gradient, 0.1, count), gradient
        optimiser.step()
        assert torch.allclose(ours["z"], theirs.detach(), rtol=0, atol=1e-12)


# -- inversion -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 50])
def test_a_latent_is_found_alike_in_blocks_of_any_size(info: DatasetInfo, block: int) -> None:
    weights, network, decoder = untrained(), features(info), decoder_of(info)
    z = torch.randn(50, 5, dtype=torch.float64, generator=generator(0, "known"))
    goal = goal_of(info, z, weights, network)
    start = torch.randn(50, 5, dtype=torch.float64, generator=generator(0, "start"))

    def found(size: int) -> Tensor:
        parts = []
        for i in range(0, 50, size):
            here = Goal(*(part[i : i + size] for part in goal))
            state = adam.fresh(start[i : i + size])
            for count in range(1, 21):
                state, _ = inverted(state, count, here, weights, decoder, network.embed, 0.1, EQUAL)
            parts.append(state["z"])
        return torch.cat(parts)

    whole = found(50)
    assert float((found(block) - whole).abs().max()) <= 1e-10
    assert float((whole - start).abs().mean()) > 0.1, "latents have moved"


def test_known_latents_are_found_again(info: DatasetInfo) -> None:
    weights, network, decoder = untrained(), features(info), decoder_of(info)
    z = torch.randn(20, 5, dtype=torch.float64, generator=generator(1, "known"))
    goal = goal_of(info, z, weights, network)
    state = adam.fresh(z + 0.1 * torch.randn(z.shape, dtype=z.dtype, generator=generator(1, "off")))
    errors = []
    for count in range(1, 201):
        state, found = inverted(state, count, goal, weights, decoder, network.embed, 0.03, EQUAL)
        errors.append(float(found.pixel.mean()))
    assert errors[-1] <= errors[0] / 100


def test_the_parts_of_the_loss_count_as_they_are_weighed(info: DatasetInfo) -> None:
    weights, network, decoder = untrained(), features(info), decoder_of(info)
    z = torch.randn(3, 5, dtype=torch.float64, generator=generator(2, "known"))
    goal = goal_of(info, z, weights, network)
    away = Goal(goal.images + 0.5, goal.features + 2.0, goal.labels)
    state = adam.fresh(z)
    _, found = inverted(state, 1, away, weights, decoder, network.embed, 0.1, EQUAL)
    assert torch.allclose(found.pixel, torch.full((3,), 0.25, dtype=z.dtype))
    assert torch.allclose(found.feature, torch.full((3,), 4.0, dtype=z.dtype))
    expected = 2 * 4.0 + 3 * 0.25 + 5 * z.square().mean(1)
    assert torch.allclose(found.weighted(InversionWeights(2, 3, 5)), expected)


def stages(method: ItGan, problem: Problem) -> tuple[Invert, MatchLatents]:
    plan = method.plan(problem)
    inversion, latents = plan[-2:]
    assert isinstance(inversion, Invert)
    assert isinstance(latents, MatchLatents)
    return inversion, latents


def small(**changes: Any) -> ItGan:
    made = small_method("itgan", **changes)
    assert isinstance(made, ItGan)
    return made


def test_a_start_is_its_images_whatever_it_is_found_with(
    info: DatasetInfo, digits: Mapping[str, Data]
) -> None:
    every, _ = stages(small(latents="all", inversion_block=64), problem_of(info))
    ctx = StageContext(every, data=digits)
    known = {}
    for unit in every.units()[:3]:
        known |= dict(zip(every.ids(unit, ctx).tolist(), every.init(unit, ctx)["z"], strict=True))
    few, _ = stages(small(init="random", inversion_block=5), problem_of(info, 5))
    assert few.picks is not None
    picked = StageContext(few, data=digits)
    picks = few.picks.finish(few.picks.units()[0], {}, StageContext(few.picks, data=digits))
    picked.loaded = {"picks": picks}
    unit = few.units()[0]
    ids, starts = few.ids(unit, picked).tolist(), few.init(unit, picked)["z"]
    shared = [place for place, image in enumerate(ids) if image in known]
    assert len(shared) == 5
    assert all(torch.equal(starts[place], known[ids[place]]) for place in shared)


def test_every_training_image_has_a_latent(info: DatasetInfo, digits: Mapping[str, Data]) -> None:
    every, latents = stages(small(latents="all", group=50, inversion_block=40), problem_of(info))
    ctx = StageContext(every, data=digits)
    ids = torch.cat([every.ids(unit, ctx) for unit in every.units()])
    assert torch.equal(ids.sort().values, torch.arange(len(digits["train"])))
    assert small(latents="all").size(problem_of(info)).stored == len(ids)
    labels = torch.cat([torch.full((len(p),), p.label) for p in every.parts.values()])
    assert torch.equal(digits["train"].labels[ids], labels)
    # Groups take their rows out of blocks of another size, in order.
    starts = {unit: every.init(unit, ctx)["z"] for unit in every.units()}
    of_class = torch.cat([starts[u] for u, part in every.parts.items() if part.label == 4])
    groups = [unit for unit, part in latents.parts.items() if part.label == 4]
    inner = StageContext(latents, data=digits)
    inner.loaded = {unit: {"z": z, "ids": every.ids(unit, ctx)} for unit, z in starts.items()}
    joined = torch.cat([latents.init(unit, inner)["z"] for unit in groups])
    assert len(groups) == 3
    assert torch.equal(joined, of_class)
    needed = latents.inputs(groups[1])
    assert [name for name in needed if name.startswith("class")] == [
        "class-0004-0001",
        "class-0004-0002",
    ]


def test_blocks_change_rounding_alone(
    info: DatasetInfo, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    found = []
    for block in (3, 6):
        problem = problem_of(info, 6)
        inversion, _ = stages(small(inversion_block=block, init="random"), problem)
        store = Store(str(tmp_path / "store"))
        run(inversion.refs(), store, digits)
        found.append(torch.cat([store.load(ref)["z"] for ref in inversion.refs()]))
    assert float((found[0] - found[1]).abs().max()) <= 1e-5


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_killed_within_the_inversion_it_goes_on(
    info: DatasetInfo, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    inversion, _ = stages(small(inversion_steps=12, init="random"), problem_of(info))
    before = [ref for stage in (inversion.generator, inversion.teacher) for ref in stage.refs()]
    assert inversion.picks is not None
    before += inversion.picks.refs()
    beats: list[Any] = []

    def beat(*where: Any) -> None:
        beats.append(where)
        if len(beats) == limit:
            raise Killed

    whole, cut = Store(str(tmp_path / "whole")), Store(str(tmp_path / "cut"))
    run(before, whole, digits)
    run(before, cut, digits)
    limit = 0
    run(inversion.refs(), whole, digits, beat)
    undisturbed, limit = len(beats), len(beats) // 3
    beats.clear()
    with pytest.raises(Killed):
        run(inversion.refs(), cut, digits, beat)
    killed, limit = len(beats), 0
    run(inversion.refs(), cut, digits, beat)
    assert killed < len(beats) < undisturbed + 10, "what was done is not done again"
    for ref in inversion.refs():
        assert all(torch.equal(cut.load(ref)[k], v) for k, v in whole.load(ref).items())


# -- matching ------------------------------------------------------------------------------------


class _Pixels(Generated):
    """Latents that are images."""

    def take(self, tensors: Tensors, ids: Any = None, space: Any = None) -> Tensor:
        return tensors["images"].view(-1, 1, 8, 8)


def matched(
    info: DatasetInfo, digits: Mapping[str, Data], images: Tensor, ids: Tensor, **changes: Any
) -> tuple[Callable[[Tensors, int], Tensors], StageContext, Tensors]:
    """Return class 3's step of a matching whose latents are images, its context and first state."""
    count = len(images)
    _, latents = stages(
        small(group=count, init="random", **{"batch_z": count, **changes}), problem_of(info, count)
    )
    plain = dataclasses.asdict(latents.decoder)
    latents.__dict__["decoder"] = _Pixels(**plain)
    ctx = StageContext(latents, data=digits, loaded={"generator": {}})
    unit = next(unit for unit, part in latents.parts.items() if part.label == 3)
    state = adam.fresh(images.flatten(1)) | {"ids": ids}
    return lambda state, t: latents.step(unit, state, t, ctx), ctx, state


def real_of_class(info: DatasetInfo, digits: Mapping[str, Data]) -> tuple[Tensor, Tensor]:
    ids = (digits["train"].labels == 3).nonzero().flatten()[:6]
    return normalise(digits["train"].take(ids), info.mean, info.std), ids


def test_without_partners_the_loss_is_dms(info: DatasetInfo, digits: Mapping[str, Data]) -> None:
    images, ids = real_of_class(info, digits)
    step, ctx, state = matched(info, digits, images, ids, ratio_div=0.0)
    dm = MatchDistributions(
        seed=3,
        dataset=info.only("train"),
        network="convnet1_w8",
        iterations=6,
        lr_img=1.0,
        momentum=0.0,
        batch_real=8,
        init_from="real",
        dsa=info.dsa_strategy,
        ipc=6,
        classes_per_unit=1,
    )
    unit = next(unit for unit, block in dm.blocks.items() if 3 in block)
    theirs = StageContext(dm, data=digits)
    for t in range(3):
        step(state, t)
        dm.step(unit, {"images": images, "momentum": torch.zeros_like(images)}, t, theirs)
        assert ctx.rows[t]["loss"] == pytest.approx(theirs.rows[t]["loss"], rel=1e-6)
        assert "partner_distance" not in ctx.rows[t]
    assert len({row["loss"] for row in ctx.rows}) == 3, "each update has a network of its own"


def test_with_partners_alone_each_image_follows_its_own(
    info: DatasetInfo, digits: Mapping[str, Data]
) -> None:
    images, ids = real_of_class(info, digits)
    away = images.roll(1, 0)
    step, ctx, state = matched(info, digits, away, ids, ratio_div=1.0)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    turned, _, other = matched(info, digits, away[order], ids[order], ratio_div=1.0)
    one, two = step(state, 0), turned(other, 0)
    assert torch.equal(one["z"][order], two["z"])
    assert not torch.equal(one["z"], state["z"])
    assert ctx.rows[0]["loss"] == ctx.rows[0]["partner_distance"]
    same, _, at_rest = matched(info, digits, images, ids, ratio_div=1.0)
    assert torch.equal(same(at_rest, 0)["z"], at_rest["z"]), "an image that is its partner stays"


def test_rows_that_are_not_drawn_move_on_their_momentum_alone(
    info: DatasetInfo, digits: Mapping[str, Data]
) -> None:
    images, ids = real_of_class(info, digits)
    step, _, state = matched(info, digits, images, ids, batch_z=2, ratio_div=0.5)
    first = step(state, 0)
    moved = (first["z"] != state["z"]).any(1)
    assert int(moved.sum()) == 2
    second = step(first, 1)
    assert bool((second["z"] != first["z"]).any(1)[moved].all()), "as published"


@pytest.mark.parametrize("draws", ["shared", "per_class"])
def test_networks_are_shared_by_the_classes_or_their_own(
    info: DatasetInfo, digits: Mapping[str, Data], draws: str
) -> None:
    _, latents = stages(small(network_draws=draws), problem_of(info))
    ctx = StageContext(latents, data=digits)
    one, two = (latents._networks(label, ctx)(4)[0] for label in (1, 2))
    assert torch.equal(one, two) == (draws == "shared")


def test_halves_that_move_pixels_are_refused(info: DatasetInfo, digits: Mapping[str, Data]) -> None:
    _, latents = stages(small(), problem_of(info))
    weights = {name: torch.zeros(size) for name, size in latents.generator.sizes.shapes().items()}
    weights["linear.weight"] += 1.0
    weights["blocks.0.shortcut.weight"] += torch.eye(4).view(4, 4, 1, 1)
    weights["blocks.1.shortcut.weight"] += torch.eye(4).view(4, 4, 1, 1)
    weights["scale"] += 1.0
    weights["conv.weight"] += 0.3
    ctx = StageContext(latents, data=digits, loaded={"generator": weights})
    unit = latents.units()[0]
    for value, allowed in ((0.25, True), (4000.3, False)):
        weights["linear.bias"] = torch.full((16,), -4 * value + 0.01)
        ctx._cache.clear()
        state = {"z": torch.full((2, 4), value), "ids": torch.arange(2)}
        if allowed:
            assert latents.finish(unit, state, ctx)["z"].dtype == torch.float16
        else:
            with pytest.raises(DataError, match=r"set method\.stored=float32"):
                latents.finish(unit, state, ctx)


# -- networks that were trained ------------------------------------------------------------------


@pytest.fixture(scope="module")
def held(digits: Mapping[str, Data]) -> dict[str, Data]:
    train = digits["train"]
    ids = torch.arange(len(train))
    return {
        "train": Subset(train, ids[300:]),
        "holdout": Subset(train, ids[:300]),
        "test": digits["test"],
    }


def test_networks_that_were_trained_are_drawn_by_their_accuracy(
    held: dict[str, Data], tmp_path: Path
) -> None:
    info = with_digests(entry("digits").info, held)
    settings = {"runs": 2, "epochs": 3, "acc_min": 0.0}
    method = small(trained_networks=settings, batch=16)
    plan = method.plan(problem_of(info))
    pool = next(stage for stage in plan if isinstance(stage, TrainPool))
    store = Store(str(tmp_path / "store"))
    run(list(method.targets(problem_of(info)).values()), store, held)
    outputs = {ref.unit: store.load(ref) for ref in pool.refs()}
    accuracy = torch.stack([found["accuracy"] for found in outputs.values()])
    assert accuracy.shape == (2, 3)
    # Judged again, network by network.
    network = create_network("convnet1_w8", info.shape, 10, generator(0, "again")).eval()
    images = normalise(held["holdout"].take(torch.arange(300)), info.mean, info.std)
    for unit, found in outputs.items():
        for row in range(3):
            torch.nn.utils.vector_to_parameters(found["weights"][row], network.parameters())
            hits = network(images).argmax(1) == held["holdout"].labels
            assert float(hits.double().mean()) == pytest.approx(
                float(outputs[unit]["accuracy"][row]), abs=0.5 / 300
            )

    def rows(unit: str, part: slice) -> Tensors:
        return {name: tensor[part] for name, tensor in outputs[unit].items()}

    best = float(accuracy.max())
    flat = torch.stack([found["weights"] for found in outputs.values()])
    for t in range(5):
        drawn = draw_network(rows, pool.units(), 3, (best, 1.0), generator(t, "draw"))
        assert any(torch.equal(drawn, known) for known in flat[accuracy == best])
    assert int((accuracy == best).sum()) < 6, "some are less accurate, or nothing is chosen"
    seen = {
        float(draw_network(rows, pool.units(), 3, (0.0, 1.0), generator(t, "draw"))[0])
        for t in range(60)
    }
    assert len(seen) == 6, "all are drawn where all are allowed"
    with pytest.raises(DataError, match=r"has an accuracy from 0\.999 to 1"):
        draw_network(rows, pool.units(), 3, (0.999, 1.0), generator(0, "draw"))


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "convnet1_w8_batchnorm"}, "batch norm ties images together"),
        ({"trained_networks": {}}, r"set dataset\.holdout"),
        ({"feature_weight": 0, "pixel_weight": 0}, "nothing is inverted"),
        ({"generator": {"bottom": 3}}, "digits have 8"),
        ({"dsa": "crop_spin"}, "unknown DSA operation 'spin'"),
    ],
)
def test_what_cannot_be_is_refused(
    info: DatasetInfo, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes).plan(problem_of(info))


def test_more_latents_than_images_are_refused(info: DatasetInfo) -> None:
    with pytest.raises(ConfigError, match="ipc=500: class"):
        small().plan(problem_of(info, 500))
    with pytest.raises(ConfigError, match="latents=all"):
        small(latents="all").plan(problem_of(dataclasses.replace(info, train_counts=())))
    with pytest.raises(ConfigError, match=r"acc_min=0\.8 is above acc_max=0\.5"):
        small(trained_networks={"acc_min": 0.8, "acc_max": 0.5})


def test_other_jobs_read_the_generator_that_is_kept(
    info: DatasetInfo, digits: Mapping[str, Data], tmp_path: Path
) -> None:
    problem, store = problem_of(info), Store(str(tmp_path / "store"))
    method = small(inversion_steps=0, iterations=0)
    run(list(method.targets(problem).values()), store, digits)
    kept = method.keep(problem, store.load, str(tmp_path))
    assert kept == {"generator": f"{tmp_path}/{KEPT}"}
    read = small(
        inversion_steps=0,
        iterations=0,
        generator={"width": 4, "dim_z": 4, "weights": kept["generator"]},
    )
    assert read.missing(problem) == []
    run(list(read.targets(problem).values()), store, digits)
    sets = [
        one.assemble(problem, {n: store.load(ref) for n, ref in one.targets(problem).items()})
        for one in (method, read)
    ]
    assert torch.equal(sets[0].take(), sets[1].take())
    assert read.keep(problem, store.load, str(tmp_path / "elsewhere")) == {}
    gone = small(generator={"width": 4, "dim_z": 4, "weights": str(tmp_path / "no.pth")})
    assert gone.missing(problem) == [f"method.generator.weights: {tmp_path / 'no.pth'}"]


def test_a_file_of_no_such_generator_is_refused_when_it_is_planned(
    info: DatasetInfo, tmp_path: Path
) -> None:
    sizes = GanShape(channels=1, classes=10, width=4, dim_z=4, bottom=2, blocks=2)
    folded = fold(Generator(sizes).eval())

    def plan(name: str, data: bytes, **changes: Any) -> None:
        (tmp_path / name).write_bytes(data)
        given = {"width": 4, "dim_z": 4, "weights": str(tmp_path / name), **changes}
        small(generator=given).plan(problem_of(info))

    plan("whole.safetensors", dump_tensors(folded))
    with pytest.raises(ConfigError, match=r"wide\.safetensors: the generator's 'linear\.weight'"):
        plan("wide.safetensors", dump_tensors(folded), width=8)
    del folded["conv.bias"]
    with pytest.raises(ConfigError, match=r"part\.safetensors: the generator has no tensor 'conv"):
        plan("part.safetensors", dump_tensors(folded))
    with pytest.raises(DataError, match=r"junk\.pth"):
        plan("junk.pth", b"no weights")


def test_a_sweep_of_the_last_stage_shares_what_comes_before(info: DatasetInfo) -> None:
    problem = problem_of(info)
    for changes in ({"lr_z": 0.5}, {"ratio_div": 0.3}, {"network_draws": "per_class"}):
        one, two = stages(small(), problem), stages(small(**changes), problem)
        assert one[0].refs()[0].key == two[0].refs()[0].key
        assert one[1].refs()[0].key != two[1].refs()[0].key


def test_networks_that_were_trained_change_the_last_stage_alone(held: dict[str, Data]) -> None:
    problem = problem_of(with_digests(entry("digits").info, held))
    one, two, other = (
        stages(small(trained_networks=settings), problem)
        for settings in (None, {"acc_min": 0.5}, {"acc_min": 0.6})
    )
    assert len({inversion.refs()[0].key for inversion, _ in (one, two, other)}) == 1
    assert len({latents.refs()[0].key for _, latents in (one, two, other)}) == 3


# -- a whole job ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_job_on_digits(tmp_path: Path) -> None:
    """`jobs/digits_itgan.yaml`, cut: rows beside it share what they can, bytes count the generator, the set is read."""
    short = [
        "method.generator.rounds=30",
        "method.epochs=2",
        "method.inversion_steps=20",
        "method.iterations=6",
        "evaluation.epochs=2",
        "evaluation.every=3",
        "evaluation.repeats=1",
        "evaluation.baselines=[random]",
    ]
    places = ["compute.workers=0", "tracking.uri=none", f"output={tmp_path}/out"]
    job = JOBS / "digits_itgan.yaml"
    told = raydd("distill", "--config", str(job), *short, *places, f"store={tmp_path}/store")
    assert told.exit_code == 0, told.output
    sizes = GanShape(channels=1, classes=10, width=32, dim_z=32, bottom=2, blocks=2)
    held = 2 * (100 * 32 + sizes.numbers) + 8 * 100
    assert f"{held / 1000:.1f} kB" in told.output, "bytes of latents, labels and generator"
    loaded = load(f"{tmp_path}/out/distilled")
    assert len(loaded) == 100
    assert loaded.distilled.size.bytes == held
    assert loaded.distilled.images.dtype == torch.float16
    steps = sorted(path.name for path in (tmp_path / "out" / "pictures").glob("step-*.png"))
    assert steps == ["step-000000.png", "step-000003.png"]
    drafts = sorted(path.name for path in (tmp_path / "out" / "pictures").glob("generator-*.png"))
    assert drafts == [f"generator-{step:06d}.png" for step in (6, 12, 18, 24, 30)]
    ids = loaded.distilled.recipe["source_ids"]
    assert len(set(ids)) == 100
    judged = raydd(
        "evaluate",
        f"{tmp_path}/out/distilled",
        "evaluation.epochs=2",
        "evaluation.repeats=1",
        "evaluation.baselines=[]",
        f"store={tmp_path}/store",
        "tracking.uri=none",
    )
    assert judged.exit_code == 0, judged.output


@pytest.mark.nightly
def test_what_the_job_on_digits_reaches(tmp_path: Path) -> None:
    """Inverted images are near the real ones, learnt ones nearer to their class for networks that nothing was moved
    under, none falls together; students of neither are much worse than those of what it began with.
    """
    job = load_job(str(JOBS / "digits_itgan.yaml"), [f"store={tmp_path}/store"])
    places = ["compute.workers=0", "tracking.uri=none", f"output={tmp_path}/out"]
    told = raydd(
        "distill", "--config", str(JOBS / "digits_itgan.yaml"), *places, f"store={tmp_path}/store"
    )
    assert told.exit_code == 0, told.output
    data, store = open_data(job.dataset), Store(f"{tmp_path}/store")
    info = with_digests(entry("digits").info, data)
    assert isinstance(job.method, ItGan)
    problem = Problem(dataset=info, ipc=job.ipc, seed=0, numerics=job.numerics)
    inversion, latents = stages(job.method, problem)
    weights = stored_weights(store.load(Ref(inversion.generator, "generator")), torch.float32)
    every = normalise(data["train"].take(torch.arange(len(data["train"]))), info.mean, info.std)
    labels = data["train"].labels
    outputs = [store.load(ref) for ref in inversion.refs()]
    ids = torch.cat([found["ids"] for found in outputs])
    own, real = labels[ids], every[ids]

    def made(z: Tensor) -> Tensor:
        return inversion.decoder.take({"images": z, "labels": own, **weights})

    starts = [torch.randn(32, generator=generator(0, "latent", image)) for image in ids.tolist()]
    inverted_images = made(torch.cat([found["z"] for found in outputs]))
    learnt = made(torch.cat([store.load(ref)["z"] for ref in latents.refs()]).float())
    means = torch.stack([every[labels == label].mean(0) for label in range(10)])[own]
    error = (inverted_images - real).square().mean()
    assert error <= 0.5 * (means - real).square().mean()
    assert error <= 0.2 * (made(torch.stack(starts)) - real).square().mean()

    def apart(images: Tensor, number: int) -> tuple[float, float]:
        """Return the distance of the classes' mean features, and the mean distance from a class's mean."""
        network = create_network("convnet2_w32", info.shape, 10, generator(number, "held out"))
        with torch.no_grad():
            of_made, of_real = network.embed(images), network.embed(every)
        distance, spread = 0.0, 0.0
        for label in range(10):
            mean = of_made[own == label].mean(0)
            distance += float((mean - of_real[labels == label].mean(0)).square().sum())
            spread += float((of_made[own == label] - mean).norm(dim=1).mean())
        return distance, spread

    before, after, at_real = (
        torch.tensor([apart(images, number) for number in range(8)]).sum(0)
        for images in (inverted_images, learnt, real)
    )
    assert after[0] / before[0] < 0.9
    assert after[1] >= 0.7 * at_real[1]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    reached = {row["set"]: row["accuracy_mean"] for row in report["rows"]}
    assert reached["inverted"] >= reached["samples of the generator"] - 2
    assert reached["itgan"] >= reached["inverted"] - 2
