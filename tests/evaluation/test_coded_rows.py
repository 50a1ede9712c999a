"""Coded sets beside random images that fill the same bytes: which rows there are, what fills a file, what is said."""

from __future__ import annotations

import csv
import importlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from stage_context import StageContext

from raydd.artifacts.charts import report_files
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.image_codecs import ImageCodec, decode, encode, facts
from raydd.artifacts.per_byte import CHART, ROWS, series_of
from raydd.artifacts.rendering import random_beside, render_table
from raydd.artifacts.report import Report
from raydd.cli import main
from raydd.config import parse_job
from raydd.core.errors import ConfigError
from raydd.core.store import Store
from raydd.core.units import Numerics
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import Described, open_data, with_digests
from raydd.evaluation.coded_set import EncodeSet, FillBytes, as_bytes, as_tensor
from raydd.evaluation.coding_rule import CodingRule
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.images_config import ImagesConfig
from raydd.evaluation.plan import EvaluationPlan, evaluation_stages
from raydd.evaluation.set_sources import AssembledSet
from raydd.evaluation.summary import summarise
from raydd.methods import METHODS, Problem
from raydd.runtime.auto_ipc import with_ipc
from raydd.runtime.runner import LocalRunner

ROOT = Path(__file__).parents[2]
SMALL = EvaluationConfig(epochs=2, networks=("convnet1_w8",), repeats=1, draw="images")
CODEC = ImageCodec(bits=2)


@pytest.fixture(scope="module")
def digits():
    data = open_data(DatasetConfig(name="digits"))
    return data, with_digests(entry("digits").info, data)


def _problem(info, ipc=4, seed=0) -> Problem:
    return Problem(dataset=info, ipc=ipc, seed=seed, numerics=Numerics())


def _dm():
    return METHODS.get("dm")(network="convnet1_w8", iterations=2, batch_real=8)


def _run(plan: EvaluationPlan, data, place: Path) -> Report:
    store = Store(str(place))
    LocalRunner(lambda: data, device=torch.device("cpu")).run(
        plan.targets(), store, lambda event: None
    )
    return summarise(plan, store.load, lambda ref: store.marker(ref)["seconds"])


def _filling(info, bits: int | None = None, seed: int = 0) -> FillBytes:
    source = AssembledSet(method=METHODS.get("random")(), problem=_problem(info))
    beside = EncodeSet(source=source, rule=CodingRule(codec=CODEC))
    codec = None if bits is None else ImageCodec(bits=bits)
    return FillBytes(seed=seed, beside=beside, dataset=info.only("train"), codec=codec)


@pytest.mark.parametrize("bits", [None, 1, 4])
def test_random_images_fill_a_file_and_one_more_of_each_class_does_not_fit(digits, bits) -> None:
    data, info = digits
    drawn = METHODS.get("random")()

    def images(ipc: int) -> DistilledSet:
        problem = _problem(info, ipc, seed=3)
        (stage,) = drawn.plan(problem)
        made = {u: stage.finish(u, {}, StageContext(stage, data)) for u in stage.units()}
        return drawn.assemble(problem, made)

    room = encode(images(12), CODEC)
    stage = _filling(info, bits, seed=3)
    context = StageContext(stage, data, loaded={"file": {"file": as_tensor(room)}})
    file = as_bytes(stage.finish("all", {}, context)["file"])
    codec = CODEC if bits is None else ImageCodec(bits=bits)
    said = facts(file)
    count = said.images // 10
    assert said.codec == codec, "coded alike, unless it is said how"
    assert len(file) <= len(room) < len(encode(images(count + 1), codec))
    assert torch.equal(decode(file).images, decode(encode(images(count), codec)).images), (
        "they are the first ones that the method random draws"
    )
    assert count == 12 or bits is not None


def test_a_file_too_small_for_an_image_of_each_class_is_refused(digits) -> None:
    data, info = digits
    stage = _filling(info, 8)
    ones = DistilledSet(
        images=torch.zeros(10, 1, 8, 8, dtype=torch.uint8), labels=torch.arange(10), info=info
    )
    room = encode(ones, CODEC)
    context = StageContext(stage, data, loaded={"file": {"file": as_tensor(room)}})
    with pytest.raises(ConfigError, match=r"random images: no file fits into .* the smallest has"):
        stage.finish("all", {}, context)


def test_no_file_of_a_set_is_without_random_images(digits) -> None:
    problems = [_problem(digits[1], seed=seed) for seed in (0, 1)]
    for baselines in (("random",), (), ("whole",)):
        config = replace(SMALL, baselines=baselines)
        images = ImagesConfig(bits=(2, 8), random_bits=2)
        plan = evaluation_stages(_dm(), problems, config, images)
        rows = [entry.set for entry in plan.entries if entry.set != "whole"]
        assert rows == [
            *2 * ["dm at 8 bits"],
            *4 * ["random at 8 bits"],
            *4 * ["random at 2 bits for dm at 8 bits"],
            *2 * ["dm at 2 bits"],
            *4 * ["random at 2 bits"],
        ]
        assert ("whole" in baselines) == any(entry.set == "whole" for entry in plan.entries)
    seeds = {entry.stage.source.made.seed for entry in plan.entries if entry.set[:6] == "random"}
    assert len(seeds) == 4, "draws differ, and the files of a draw share its images"
    one = evaluation_stages(_dm(), problems[0], SMALL, ImagesConfig(bits=1))
    assert [entry.set for entry in one.entries] == ["dm", "random", "random", "random"]


def test_what_cannot_stand_beside_coded_sets_is_refused(digits) -> None:
    problem, ladder = _problem(digits[1]), ImagesConfig(bits=(8, 2))
    with pytest.raises(ConfigError, match="beside coded images stand random ones"):
        evaluation_stages(_dm(), problem, replace(SMALL, baselines=("herding",)), ladder)
    with pytest.raises(ConfigError, match=r"evaluation.every=1: images has several files"):
        evaluation_stages(_dm(), problem, replace(SMALL, every=1), ladder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bits": "auto"}, "images.bits=auto has no effect without images.budget"),
        ({"bits": (2, 2)}, "none twice"),
        ({"bits": (8, 2), "budget": "8kB"}, "several bits are judged without images.budget"),
        ({"bits": 2, "budget": ("8kB", "9kB")}, "have no effect beside them"),
        ({"budget": ("8kB", 8000)}, "none twice"),
        ({"budget": "8 apples"}, "images.budget: '8 apples' is no number of bytes"),
        ({"codec": "avif", "budget": "8kB"}, "are of the codec 'levels', not 'avif'"),
    ],
)
def test_settings_without_effect_are_refused(fields, said) -> None:
    with pytest.raises(ConfigError, match=said):
        ImagesConfig(**fields)


def test_a_report_has_files_their_random_images_and_what_they_weigh(digits, tmp_path) -> None:
    data, info = digits
    images = ImagesConfig(bits=(8, 2), random_bits=2)
    plan = evaluation_stages(_dm(), _problem(info), SMALL, images)
    report = _run(plan, data, tmp_path)
    rows = {row.set: row for row in report.rows}
    for row in report.rows:
        assert row.bytes == row.account.bits_per_class * 10 / 8
        assert row.account.at_8_bits == pytest.approx(row.stored * 64, abs=64), "means of draws"
        if row.coding.fills:
            assert row.bytes <= rows[row.coding.fills].bytes
            assert len(row.coding.files) == 3
            assert row.device_seconds < rows["dm at 8 bits"].device_seconds, "not DM's time"
    assert rows["random at 2 bits for dm at 8 bits"].stored > 2 * rows["random at 8 bits"].stored
    assert random_beside(report, rows["dm at 8 bits"]) is rows["random at 8 bits"]
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    series = series_of(report)
    assert {name: len(points) for name, points in series.items()} == {
        "dm": 2,
        "random, coded alike": 2,
        "random at 2 bits": 2,
    }
    assert series["dm"][0][0] == rows["dm at 2 bits"].bytes
    files = report_files(report)
    lines = list(csv.DictReader(io.StringIO(files[ROWS].decode())))
    assert [line["set"] for line in lines] == list(rows)
    assert [int(line["bytes"]) for line in lines] == [row.bytes for row in report.rows]
    assert Image.open(io.BytesIO(files[CHART])).size[0] > 500
    assert "vs random is against those coded alike" in render_table(report)


def test_a_budget_takes_the_most_bits_that_fit_and_says_what_is_left(digits, tmp_path) -> None:
    data, info = digits
    images = ImagesConfig(bits="auto", budget="900B")
    report = _run(evaluation_stages(_dm(), _problem(info), SMALL, images), data, tmp_path)
    own = report.rows[0]
    assert own.set == "dm"
    made = max(own.coding.files)
    assert made <= 900
    assert own.coding.left == 900 - made
    assert f"dm: {own.coding.codec}, {made} bytes; {900 - made} of 900 are left over" in (
        render_table(report)
    )
    assert report.ior is not None
    with pytest.raises(Exception, match=r"no file .*fit.* 60 bytes; the smallest has \d+"):
        _run(
            evaluation_stages(_dm(), _problem(info), SMALL, replace(images, budget=60)),
            data,
            tmp_path,
        )


def test_a_set_too_large_for_a_budget_of_a_curve_is_cut_to_its_first_images(digits) -> None:
    data, info = digits
    ids = torch.cat([(data["train"].labels == c).nonzero().flatten()[:9] for c in range(10)])
    whole = DistilledSet(
        images=data["train"].take(ids), labels=torch.arange(10).repeat_interleave(9), info=info
    )
    rungs = list(ImagesConfig(budget=("2kB", "600B", "100kB")).rungs())
    assert [rung.of("dm") for rung in rungs] == ["dm in 100 kB", "dm in 2 kB", "dm in 0.6 kB"]
    large, middle, small = (rung.rule.file(whole) for rung in rungs)
    assert facts(large).codec.bits == 8
    assert (facts(middle).codec.bits or 8) < 8
    assert (facts(middle).images, len(middle) <= 2000) == (90, True)
    cut = facts(small)
    assert (cut.codec.bits, len(small) <= 600, cut.images < 90) == (2, True, True)
    per_class = whole.images.unflatten(0, (10, 9))[:, : cut.images // 10].flatten(0, 1)
    kept = DistilledSet(
        images=per_class, labels=torch.arange(10).repeat_interleave(cut.images // 10), info=info
    )
    assert small == encode(kept, CODEC)
    with pytest.raises(
        ConfigError, match=r"the smallest has \d+ \(2 bits, one image of each class"
    ):
        CodingRule(codec=CODEC, budget=90, auto=True, fewer=True).file(whole)


@pytest.mark.slow
def test_the_committed_ladder_and_a_curve_over_budgets(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["method.network=convnet1_w8", "method.iterations=2", "evaluation.epochs=2"]
    small += ["evaluation.repeats=1", "compute.workers=0", "tracking.uri=none"]
    job = str(ROOT / "jobs" / "digits_per_byte.yaml")
    ran = CliRunner().invoke(main, ["distill", "--config", job, *small])
    assert ran.exit_code == 0, ran.output
    report = Report.from_dict(json.loads(Path("runs/digits_per_byte/report.json").read_text()))
    own = [row for row in report.rows if not row.coding.fills]
    assert [row.coding.bits for row in own] == [8, 4, 2, 1]
    assert all(random_beside(report, row) is not None for row in own)
    assert "Accuracy against bytes" in Path("runs/digits_per_byte/report.html").read_text()
    assert Path("runs/digits_per_byte/distilled/per_byte.png").exists()
    url = "runs/digits_per_byte/distilled"
    words = ["--epochs", "2", "--repeats", "1", "evaluation.draw=images", "--output", "judged"]
    judged = CliRunner().invoke(main, ["evaluate", url, "--budgets", "600B,1200,6kB", *words])
    assert judged.exit_code == 0, judged.output
    curve = Report.from_dict(json.loads(Path("judged/report.json").read_text()))
    budgets = [row.coding.budget for row in curve.rows if not row.coding.fills]
    assert budgets == [6000, 1200, 600]
    assert all(row.bytes <= row.coding.budget for row in curve.rows)
    assert {p.name for p in Path("judged").iterdir()} >= {"per_byte.png", "per_byte.csv"}
    refused = CliRunner().invoke(main, ["evaluate", url, "--budgets", "90B,6kB", "--dry-run"])
    assert refused.exit_code == 2
    assert "no file fits into 90 bytes; the smallest has" in refused.output


def test_the_number_of_images_follows_from_a_budget(digits) -> None:
    data, info = digits
    described = Described(config=DatasetConfig(name="digits"), info=info, splits=data)
    tree = {"dataset": {"name": "digits"}, "method": "random", "images": {"budget": "3kB"}}
    job = parse_job({**tree, "ipc": "auto"})
    found = with_ipc(job, described)
    assert isinstance(found.ipc, int)
    assert found.images == job.images
    ids = [(data["train"].labels == c).nonzero().flatten()[: found.ipc] for c in range(10)]
    real = DistilledSet(
        images=data["train"].take(torch.cat(ids)),
        labels=torch.arange(10).repeat_interleave(found.ipc),
        info=info,
    )
    assert 0.8 * 3000 < len(encode(real, CODEC)) <= 3000, "nine tenths of it, about"
    assert with_ipc(parse_job({**tree, "ipc": 3}), described).ipc == 3
    with pytest.raises(
        ConfigError, match=r"images.budget: no file fits into 90 bytes; the smallest"
    ):
        with_ipc(parse_job({**tree, "ipc": "auto", "images": {"budget": 90}}), described)
    with pytest.raises(ConfigError, match="coding images of 'digits', which are not here"):
        with_ipc(job, replace(described, splits=None))
    for images in ({"bits": 2}, {"bits": 2, "budget": "3kB"}, {"budget": ["3kB", "4kB"]}):
        with pytest.raises(ConfigError, match=r"ipc: auto needs one images\.budget"):
            parse_job({**tree, "ipc": "auto", "images": images})


def test_the_table_of_the_page_is_that_of_its_reports(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    page = ROOT / "docs" / "per_byte.md"
    text = page.read_text(encoding="utf-8")
    assert "| dm | 10 × 1 bit | 2,718 |" in text
    assert importlib.import_module("results_table").rewrite(text, page.parent) == text
