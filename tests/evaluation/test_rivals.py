"""Baselines of a size, a decoding, a number of updates and a label of their own; fractions of images per class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from small import small_method
from torch.nn import functional as F

from raydd.artifacts.decoding import Decoding, SetSize
from raydd.artifacts.distilled_set import DistilledSet, Whitening
from raydd.artifacts.rendering import render_table
from raydd.config import load_evaluation, load_job, parse_job
from raydd.core.errors import ConfigError
from raydd.core.store import Store
from raydd.core.tensors import Tensors
from raydd.core.units import Data, Numerics, Stage
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.packed_set import PackedSet, sized_set
from raydd.evaluation.plan import EvaluationPlan, evaluation_stages
from raydd.evaluation.rivals import Rival, RivalKeys, Tiling, rivals
from raydd.evaluation.set_sources import AssembledSet, StoredSet
from raydd.evaluation.stored_plan import Maker, stored_evaluation
from raydd.evaluation.summary import summarise
from raydd.methods import METHODS, Method, Problem
from raydd.methods.method import register_method
from raydd.methods.random_selection import RandomSelection
from raydd.runtime.runner import LocalRunner
from raydd.training.students import StudentTraining

SMALL = EvaluationConfig(epochs=3, batch=16, networks=("convnet2_w8",), repeats=1)
RANDOM = RandomSelection()


@pytest.fixture(scope="module")
def data() -> Mapping[str, Data]:
    return open_data(DatasetConfig(name="digits"))


@pytest.fixture(scope="module")
def info(data: Mapping[str, Data]) -> DatasetInfo:
    return with_digests(entry("digits").info, data)


def problem(info: DatasetInfo, ipc: Any = 2) -> Problem:
    return Problem(dataset=info, ipc=ipc, seed=0, numerics=Numerics())


def dm(**fields: Any) -> Method:
    return METHODS.get("dm")(network="convnet2_w8", iterations=4, batch_real=8, **fields)


def rival(method: Method = RANDOM, **keys: Any) -> Rival:
    return Rival(method=method, keys=RivalKeys(**keys))


def made(source: Any, data: Mapping[str, Data], folder: Path) -> DistilledSet:
    store = Store(str(folder))
    runner = LocalRunner(lambda: data, device=torch.device("cpu"))
    runner.run(list(source.inputs().values()), store, lambda event: None)
    loaded: DistilledSet = source.load(
        SimpleNamespace(load=lambda name: store.load(source.inputs()[name]))
    )
    return loaded


def of(plan: EvaluationPlan, label: str) -> list[Any]:
    return [item.stage for item in plan.entries if item.set == label]


# -- sets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["partition", "grid"])
def test_random_images_are_packed_and_seen_again(
    kind: str, data: Mapping[str, Data], info: DatasetInfo, tmp_path: Path
) -> None:
    source = sized_set(RANDOM, problem(info), 2, kind, 2)
    found = made(source, data, tmp_path)
    assert found.size == source.size == SetSize(20, 80, 20 * (64 + 8))
    assert found.decoding == Decoding(kind, {"factor": 2})
    assert found.images.dtype == torch.uint8
    whole = made(AssembledSet(method=RANDOM, problem=problem(info, 8)), data, tmp_path)
    small = F.avg_pool2d(whole.images.float(), 2).round()
    pixels = (small / 255 - info.mean[0]) / info.std[0]
    enlarged = F.interpolate(pixels, size=(8, 8), mode="bilinear", align_corners=False)
    for label in range(10):
        seen = found.take()[found.labels_of() == label]
        torch.testing.assert_close(seen, enlarged[whole.labels == label])
    first = found.images[0, 0]  # of class 0: its images 0, 2, 4, 6, the first at each place
    down, right = (2, 4) if kind == "partition" else (4, 2)
    assert torch.equal(first[:4, :4].float(), small[0, 0])
    assert torch.equal(first[4:, :4].float(), small[down, 0])
    assert torch.equal(first[:4, 4:].float(), small[right, 0])


def test_a_grid_that_does_not_divide_the_images_is_cut_off_and_filled_up_again(
    data: Mapping[str, Data], info: DatasetInfo, tmp_path: Path
) -> None:
    source = sized_set(RANDOM, problem(info), 2, "grid", 3)
    found = made(source, data, tmp_path)
    assert found.images.shape == (20, 1, 8, 8)
    assert found.size == source.size == SetSize(20, 180, 20 * (64 + 8))
    assert found.take().shape == (180, 1, 8, 8)
    whole = made(AssembledSet(method=RANDOM, problem=problem(info, 18)), data, tmp_path)
    images, how = (
        whole.images[whole.labels == 0].float(),
        {"mode": "bilinear", "align_corners": False},
    )
    small = F.interpolate(images, size=(3, 3), antialias=True, **how).round()
    enlarged = F.interpolate((small / 255 - info.mean[0]) / info.std[0], size=(8, 8), **how)
    seen = found.take()[found.labels_of() == 0]
    place = torch.arange(18) // 2  # two images at each; the last row and column lose a third
    inner = (place // 3 < 2) & (place % 3 < 2)
    torch.testing.assert_close(seen[inner], enlarged[inner])


@pytest.mark.parametrize(
    ("ipc", "count", "height", "width"), [(0.25, 1, 4, 4), (0.5, 1, 5, 6), (1.5, 2, 6, 8)]
)
def test_a_fraction_of_random_images_is_smaller_ones(
    ipc: float,
    count: int,
    height: int,
    width: int,
    data: Mapping[str, Data],
    info: DatasetInfo,
    tmp_path: Path,
) -> None:
    source = sized_set(RANDOM, problem(info, ipc), ipc)
    assert isinstance(source, PackedSet)
    found = made(source, data, tmp_path)
    pixels = height * width
    assert found.images.shape == (10 * count, 1, height, width)
    assert 0 <= 64 * ipc - pixels * count < 64 * 0.07, "as many pixels as can be, and no more"
    assert found.take().shape == (10 * count, 1, 8, 8)
    assert found.size == source.size == SetSize(10 * count, 10 * count, 10 * count * (pixels + 8))
    whole = made(AssembledSet(method=RANDOM, problem=problem(info, count)), data, tmp_path)
    assert torch.equal(found.labels, whole.labels)
    agreement = F.cosine_similarity(found.take().flatten(1), whole.tensors()[0].flatten(1))
    assert float(agreement.min()) > 0.6, "the same images, blurred"


def test_less_than_a_pixel_of_each_class_is_refused(info: DatasetInfo) -> None:
    with pytest.raises(ConfigError, match=r"ipc=0\.01 is not a pixel of each class, of 64"):
        sized_set(RANDOM, problem(info, 0.01), 0.01)


def test_images_are_not_sampled_but_shrunk(
    data: Mapping[str, Data], info: DatasetInfo, tmp_path: Path
) -> None:
    source = sized_set(RANDOM, problem(info, 1 / 16), 1 / 16)
    found = made(source, data, tmp_path).images.float()
    whole = made(AssembledSet(method=RANDOM, problem=problem(info, 1)), data, tmp_path)
    assert found.shape[2:] == (2, 2)
    means = found.mean((1, 2, 3)) - whole.images.float().mean((1, 2, 3))
    assert float(means.abs().max()) < 26, "of 255: every pixel counts"


def test_what_cannot_be_packed_is_refused(info: DatasetInfo) -> None:
    with pytest.raises(
        ConfigError, match=r"'partition' needs whole images of each class, not 0\.5"
    ):
        sized_set(RANDOM, problem(info, 0.5), 0.5, "partition", 2)
    with pytest.raises(ConfigError, match="factor=3 does not divide images of 8×8"):
        sized_set(RANDOM, problem(info), 2, "partition", 3)
    with pytest.raises(ConfigError, match=r"not 0\.5: 'dm' makes whole images"):
        sized_set(dm(), problem(info), 0.5)
    with pytest.raises(
        ConfigError,
        match=r"random \(partition 2\): ipc=50 with 4 images in each: .* has only 139 .* at most ipc=34",
    ):
        evaluation_stages(
            dm(), problem(info, 50), replace(SMALL, baselines=(rival(decoding=Tiling()),))
        )


# -- rows ------------------------------------------------------------------------------------------------------------


def test_rows_have_labels_sizes_and_settings_of_their_own(
    data: Mapping[str, Data], info: DatasetInfo, tmp_path: Path
) -> None:
    extra = (
        rival(decoding=Tiling()),
        rival(equal="bytes"),
        rival(ipc=5, label="five"),
        rival(dm(lr_img=2.0), label="dm, twice the rate"),
        rival(label="drawn"),
        rival(equal="updates"),
    )
    plain = evaluation_stages(dm(), problem(info), SMALL)
    plan = evaluation_stages(dm(), problem(info), replace(SMALL, baselines=("random", *extra)))
    assert plan.entries[: len(plain.entries)] == plain.entries, "keys of the plain rows stay"
    labels = [
        "dm",
        "random",
        "random (partition 2)",
        "random (equal bytes)",
        "five",
        "dm, twice the rate",
        "drawn",
        "random (equal updates)",
    ]
    assert list(dict.fromkeys(item.set for item in plan.entries)) == labels
    assert [len(of(plan, label)) for label in labels] == [1, 3, 3, 3, 3, 1, 3, 3]
    assert len({stage.source.made.problem.seed for stage in of(plan, labels[2])}) == 3
    assert of(plan, "five")[0].source == AssembledSet(method=RANDOM, problem=problem(info, 5))
    store, runner = Store(str(tmp_path)), LocalRunner(lambda: data, device=torch.device("cpu"))
    runner.run(plan.targets(), store, lambda event: None)
    report = summarise(plan, store.load)
    rows = {row.set: row for row in report.rows}
    sizes = {label: (row.stored, row.seen) for label, row in rows.items()}
    # 20 * (4 * 64 + 8) bytes are those of 7 images of 72 bytes for each of ten classes.
    assert [sizes[label] for label in labels] == [
        (20, 20),
        (20, 20),
        (20, 80),
        (70, 70),
        (50, 50),
        (20, 20),
        (20, 20),
        (20, 20),
    ]
    assert report.random == {"drawn": "pixels", "random (equal updates)": "updates"}
    assert rows["random (equal bytes)"].bytes <= rows["dm"].bytes < 80 * 72
    assert report.ior == pytest.approx(rows["dm"].accuracy_mean - rows["random"].accuracy_mean)
    assert "stored" in render_table(report)


def test_students_make_as_many_updates(info: DatasetInfo) -> None:
    few = rival(ipc=1, equal="updates")
    config = replace(SMALL, baselines=("random", few, rival(ipc=6, equal="updates")))
    plan = evaluation_stages(dm(), problem(info, 5), config)

    def updates(stage: Any) -> int:
        return int(stage.recipe.epochs * -(-stage.source.images // stage.recipe.batch))

    own = of(plan, "dm")[0]
    assert (own.recipe.epochs, updates(own)) == (4, 16)  # 50 images in batches of 16
    assert [updates(stage) for stage in of(plan, "random (ipc 1, equal updates)")] == [16] * 3
    assert {updates(stage) for stage in of(plan, "random (ipc 6, equal updates)")} == {16}
    named = {item.set: item.protocol for item in plan.entries}
    assert named["random (ipc 1, equal updates)"] == "dm[epochs=15,batch=16]"
    assert named["random"] == named["random (ipc 6, equal updates)"] == "dm[epochs=3,batch=16]"
    stepped = replace(SMALL, schedule="multistep", milestones=(1, 2), baselines=(few,))
    recipe = of(evaluation_stages(dm(), problem(info, 5), stepped), few.label)[0].recipe
    assert (recipe.epochs, recipe.milestones) == (12, (4, 8))
    # Of 10 images in batches of 8 one batch is left, of 50 six: 24 updates are 24 epochs of one.
    fixed = replace(SMALL, batch=8, drops=(1,), drop_last=True, baselines=(few,))
    recipe = of(evaluation_stages(dm(), problem(info, 5), fixed), few.label)[0].recipe
    assert (recipe.epochs, recipe.drops, recipe.drop_last) == (24, (6,), True)


def test_rows_that_could_not_be_told_apart_are_refused(info: DatasetInfo) -> None:
    with pytest.raises(ConfigError, match=r"'dm' is the job's own method.*: give them a label"):
        evaluation_stages(dm(), problem(info), replace(SMALL, baselines=(dm(lr_img=2.0),)))
    with pytest.raises(
        ConfigError, match="'x' stands there twice, with other settings; give one a label"
    ):
        rivals(replace(SMALL, baselines=(rival(ipc=1, label="x"), rival(ipc=2, label="x"))))
    for label in ("whole", "dsa", "random"):
        with pytest.raises(ConfigError, match=f"label: '{label}' is the name of other rows"):
            rival(ipc=1, label=label)
    with pytest.raises(ConfigError, match="printable"):
        rival(label="a\nb")
    with pytest.raises(ConfigError, match=r"equal: bytes: 80 bytes hold no image of 10 classes"):
        rival(equal="bytes").source(problem(info), SetSize(1, 1, 80))


def test_bytes_below_an_image_of_each_class_are_smaller_images(info: DatasetInfo) -> None:
    source = rival(equal="bytes").source(problem(info), SetSize(1, 1, 10 * (16 + 8)))
    assert isinstance(source, PackedSet)
    assert (source.height, source.width, source.size.bytes) == (4, 4, 240)


def test_bytes_are_those_of_stored_labels_too(info: DatasetInfo) -> None:
    config = EvaluationConfig(
        protocol="edc", networks=("convnet1_w8",), repeats=1, baselines=(rival(equal="bytes"),)
    )
    labellers = ("convnet1_w8_batchnorm", "convnet1_w4_batchnorm")
    method = small_method("edc", label_networks=labellers)
    plan = evaluation_stages(method, problem(info), config)
    own, other = (of(plan, label)[0] for label in ("edc", "random (equal bytes)"))
    held = 20 * 72 + own.labels.bytes
    assert own.labels.config.stored
    assert other.source.problem.ipc == held // 720 > 2
    stored = StoredSet(url="x", digest="0", dataset=info, count=20, stored=20, bytes=20 * 72)
    maker = Maker(method, problem(info))
    found = replace(own.labels, source=stored)
    again = stored_evaluation(stored, "edc", problem(info), config, found, maker=maker)  # type: ignore[arg-type]
    assert of(again, "random (equal bytes)")[0].source == other.source


@dataclass(frozen=True, kw_only=True)
class Whitened(RandomSelection):
    """Random images, each seen as four tiles that are whitened."""

    name: ClassVar[str] = "whitened"

    def size(self, problem: Problem) -> SetSize:
        size = super().size(problem)
        return SetSize(size.stored, 4 * size.stored, size.bytes + 4 * 64 * 65)

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        white = Whitening(matrix=2 * torch.eye(64), mean=torch.zeros(64))
        plain = super().assemble(problem, outputs)
        return replace(plain, whitening=white, decoding=Decoding("partition"))


def test_a_set_that_does_not_fit_once_decoded_is_decoded_in_batches(
    data: Mapping[str, Data], info: DatasetInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = evaluation_stages(Whitened(), problem(info), replace(SMALL, baselines=()))
    outputs, kinds = [], []
    for room in (4 << 30, 4 * 79 * 64):
        monkeypatch.setattr("raydd.evaluation.spaces.RESIDENT_BYTES", room)
        store = Store(str(tmp_path / str(room)))
        training = StudentTraining.epoch

        def epoch(self: Any, state: Any, t: int, seen: Any, of: Any = training) -> Any:
            kinds.append(type(seen).__name__)
            return of(self, state, t, seen)

        monkeypatch.setattr(StudentTraining, "epoch", epoch)
        LocalRunner(lambda: data, device=torch.device("cpu")).run(
            plan.targets(), store, lambda event: None
        )
        outputs.append(store.load(plan.targets()[0]))
        monkeypatch.setattr(StudentTraining, "epoch", training)
        row = summarise(plan, store.load).rows[0]
        assert (row.stored, row.seen, row.further_bytes) == (20, 80, 4 * 64 * 65)
        assert row.bytes == 20 * 72 + 4 * 64 * 65
    assert kinds == ["ResidentSet"] * 4 + ["DistilledSet"] * 4
    assert torch.equal(outputs[0]["accuracy"], outputs[1]["accuracy"])


def test_students_of_rivals_learn_from_the_same_teachers(info: DatasetInfo) -> None:
    own, other = small_method("edc"), small_method("sre2l")
    config = EvaluationConfig(
        protocol="edc",
        networks=("convnet1_w8",),
        repeats=1,
        baselines=(
            "random",
            other,
            rival(small_method("edc", iterations=3), label="short"),
            rival(decoding=Tiling()),
        ),
    )
    plan = evaluation_stages(own, problem(info), config)
    teachers = of(plan, "edc")[0].labels.teachers
    for label in ("random", "sre2l", "short", "random (partition 2)"):
        (stage, *_) = of(plan, label)
        assert stage.labels.teachers == teachers
        assert stage.labels.source == stage.source
        assert stage.recipe == of(plan, "edc")[0].recipe
    assert of(plan, "sre2l")[0].source.method == other
    drawn = small_method("edc", labels={"batch": 5, "epochs": 2, "randaugment": True})
    evaluation_stages(drawn, problem(info), replace(config, baselines=("random",)))
    for floats in (dm(), rival(decoding=Tiling())):
        with pytest.raises(ConfigError, match=r"labels\.randaugment changes pixels in 8 bits"):
            evaluation_stages(drawn, problem(info), replace(config, baselines=(floats,)))
    hard = replace(config, protocol="dm", baselines=("sre2l",))
    with pytest.raises(ConfigError, match="sets of 'sre2l' have soft labels of their own"):
        evaluation_stages(dm(), problem(info), hard)


def test_keys_of_a_job_file_are_read_and_kept() -> None:
    text = (
        "evaluation.baselines=[random,{name: random, decoding: partition},"
        "{name: herding, epochs: 3, ipc: 4, label: four},"
        "{name: random, decoding: {name: grid, factor: 4}, equal: updates}]"
    )
    job = load_job(None, ["dataset.name=digits", "method.name=dm", text])
    assert job.evaluation.baselines == (
        "random",
        rival(decoding=Tiling()),
        rival(METHODS.get("herding")(epochs=3), ipc=4, label="four"),
        rival(decoding=Tiling(name="grid", factor=4), equal="updates"),
    )
    for tree in (job.resolved(), job.stated()):
        assert parse_job(tree) == job
    plain = job.stated()["evaluation"]["baselines"][2]
    assert {key: plain[key] for key in ("name", "epochs", "ipc", "label", "equal")} == {
        "name": "herding",
        "epochs": 3,
        "ipc": 4,
        "label": "four",
        "equal": "pixels",
    }
    assert (
        load_evaluation({"dataset": {"name": "digits"}}, [text]).evaluation.baselines
        == job.evaluation.baselines
    )
    own = {f.name for f in dataclasses.fields(RivalKeys)}
    taken = {
        name: own & {f.name for f in dataclasses.fields(METHODS.get(name))}
        for name in METHODS.names()
    }
    assert not {name: keys for name, keys in taken.items() if keys}, (
        "a method's key would be hidden"
    )


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("{name: random, decoding: partitoin}", r"decoding\.name: .*did you mean 'partition'"),
        (
            "{name: random, decoding: {name: grid, factor: 1}}",
            r"decoding\.factor: .*equal to 2, not 1",
        ),
        ("{name: random, decoding: 3}", r"baselines\.0\.decoding: 3 is no decoding"),
        ("{name: random, equal: byte}", r"baselines\.0\.equal: .*did you mean 'bytes'"),
        ("{name: random, equal: bytes, ipc: 3}", "equal: bytes says how many images"),
        ("{name: random, ipc: 0}", r"baselines\.0\.ipc: .*greater than 0, not 0"),
        ("{name: random, label: dm}", "'dm' is the name of other rows"),
        ("{name: random, lable: x}", r"baselines\.0\.lable: unknown key"),
    ],
)
def test_mistakes_in_a_job_file_are_named(baseline: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_job(
            None, ["dataset.name=digits", "method.name=dm", f"evaluation.baselines=[{baseline}]"]
        )


# -- fractions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def half() -> Any:
    @register_method("test_half")
    @dataclass(frozen=True, kw_only=True)
    class Half(RandomSelection):
        """Half of the classes' images each, as it happens: five images of ten classes."""

        fractional: ClassVar[bool] = True
        drawn_at_random: ClassVar[bool] = False

        def plan(self, problem: Problem) -> list[Stage]:
            return super().plan(replace(problem, ipc=1))

        def size(self, problem: Problem) -> SetSize:
            images = round(problem.ipc * 10)
            return SetSize(images, images, images * 72)

        def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
            whole, count = (
                super().assemble(replace(problem, ipc=1), outputs),
                round(problem.ipc * 10),
            )
            return replace(whole, images=whole.images[:count], labels=whole.labels[:count])

    yield Half()
    METHODS._items.pop("test_half")


def test_fractions_are_for_methods_that_make_them(
    half: Method, data: Mapping[str, Data], info: DatasetInfo, tmp_path: Path
) -> None:
    given = ["dataset.name=digits", "method.name=test_half"]
    job = load_job(None, [*given, "ipc=0.5"])
    assert (job.ipc, job.resolved()["ipc"]) == (0.5, 0.5)
    assert type(load_job(None, [*given, "ipc=2.0"]).ipc) is int
    with pytest.raises(
        ConfigError, match=r"ipc: .*integer.*not 0\.5: 'dm' makes whole.*by: podd, test_half"
    ):
        load_job(None, ["dataset.name=digits", "method.name=dm", "ipc=0.5"])
    config = replace(SMALL, baselines=("random", rival(ipc=1)))
    plan = evaluation_stages(half, problem(info, 0.5), config)
    assert of(plan, "test_half")[0].source.images == 5
    assert [stage.source.made.problem.ipc for stage in of(plan, "random")] == [1, 1, 1]
    assert of(plan, "random (ipc 1)")[0].source == AssembledSet(
        method=RANDOM, problem=problem(info, 1)
    )
    assert plan.notes == (
        "random: 1 image of each class, shrunk to 5×6 pixels and enlarged again.",
    )
    with pytest.raises(ConfigError, match=r"baselines: dm: ipc: .*not 0\.5"):
        evaluation_stages(half, problem(info, 0.5), replace(SMALL, baselines=("dm",)))
    store, runner = Store(str(tmp_path)), LocalRunner(lambda: data, device=torch.device("cpu"))
    runner.run(plan.targets(), store, lambda event: None)
    report = summarise(plan, store.load)
    assert [(row.stored, row.image_bytes) for row in report.rows] == [
        (5, 5 * 64),
        (10, 10 * 30),
        (10, 640),
    ]
    assert "0.5 images per class" in render_table(report)
