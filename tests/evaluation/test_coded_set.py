"""Sets behind a codec: what is keyed, which sets are coded, what is published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from small import small_method, small_overrides

from raydd import load
from raydd.artifacts import coders
from raydd.artifacts.image_codecs import ImageCodec, decode, encode
from raydd.cli import main
from raydd.core.errors import ConfigError
from raydd.core.units import Numerics, unit_key
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.evaluation.coded_set import CodedSet
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.images_config import ImagesConfig
from raydd.evaluation.plan import evaluation_stages
from raydd.methods import METHODS, Problem
from raydd.runtime.estimate import stages_of

ROOT = Path(__file__).parents[2]
SMALL = EvaluationConfig(epochs=2, networks=("convnet2_w8",), repeats=2)
CODEC = ImageCodec(bits=2)
IMAGES = ImagesConfig(bits=2)


@pytest.fixture(scope="module")
def problem() -> Problem:
    info = with_digests(entry("digits").info, open_data(DatasetConfig(name="digits")))
    return Problem(dataset=info, ipc=2, seed=0, numerics=Numerics())


def _dm() -> Any:
    return METHODS.get("dm")(network="convnet2_w8", iterations=4, batch_real=8)


def test_the_codec_is_in_the_keys_of_students_alone(problem: Problem) -> None:
    keys, made = {}, {}
    for images in (None, ImagesConfig(bits=2), ImagesConfig(bits=4)):
        plan = evaluation_stages(_dm(), problem, SMALL, images)
        keys[images] = [unit_key(e.stage, unit) for e in plan.entries for unit in e.stage.units()]
        made[images] = {
            unit_key(stage, unit)
            for stage, units, _ in stages_of(plan.targets())
            for unit in units
            if stage.phase == "distill"
        }
    assert len(set(map(frozenset, made.values()))) == 1
    assert len({key for found in keys.values() for key in found}) == 3 * len(keys[None])


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_is_coded_or_refused_before_it_runs(name: str, problem: Problem) -> None:
    method = small_method(name)
    config = replace(SMALL, protocol=method.protocol, networks=(), baselines=())
    if method.made_in != "normalised" or not method.stores_pixels:
        with pytest.raises(ConfigError, match=f"^images: the sets of '{name}'"):
            evaluation_stages(method, problem, config, IMAGES)
        return
    plan = evaluation_stages(method, problem, config, IMAGES)
    assert all(isinstance(item.stage.source, CodedSet) for item in plan.entries)


def test_single_steps_are_not_coded(problem: Problem) -> None:
    config = replace(SMALL, continual=5)
    with pytest.raises(ConfigError, match=r"evaluation\.continual: sets of single steps"):
        evaluation_stages(_dm(), problem, config, IMAGES)


TINY = [
    "dataset.name=digits",
    "ipc=1",
    "evaluation.epochs=2",
    "evaluation.repeats=1",
    "compute.workers=0",
    "tracking.uri=none",
    "store=store",
]
DM = ["method.name=dm", "method.network=convnet1_w8", "method.iterations=4", "method.batch_real=8"]


def raydd(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def distill(tmp_path: Path, *words: str) -> Result:
    return raydd("distill", "--config", tmp_path / "job.yaml", *words)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text("{}\n")
    return tmp_path


def test_a_job_publishes_the_coded_set(place: Path) -> None:
    plain = distill(place, *TINY, *DM, "output=plain")
    assert plain.exit_code == 0, plain.output
    made = sorted(path for path in Path("store").rglob("final.json"))
    coded = distill(place, *TINY, *DM, "images.bits=2", "output=coded")
    assert coded.exit_code == 0, coded.output
    new = {path.parts[-3] for path in Path("store").rglob("final.json") if path not in made}
    stages = [json.loads(p.read_text()) for p in Path("store").rglob("final.json") if p not in made]
    assert new
    assert sorted(stage["stage"] for stage in stages) == [
        "evaluate/EncodeSet",
        *4 * ["evaluate/Evaluate"],
        *3 * ["evaluate/FillBytes"],
    ], "the file, three of random images, and the students of all"
    found = load("coded/distilled").distilled
    data = encode(load("plain/distilled").distilled, CODEC)
    assert Path("coded/distilled/set.rdd").read_bytes() == data
    assert torch.equal(decode(data).images, found.images)
    assert "images:\n  codec: levels\n  bits: 2" in Path("coded/job.yaml").read_text()
    assert "images" not in Path("plain/job.yaml").read_text()
    other = distill(place, *TINY, *DM, "images.bits=1", "output=coded")
    assert other.exit_code == 2
    assert "images.bits" in other.output
    judged = raydd(
        "evaluate", "coded", "--epochs", 2, "--repeats", 1, "--continual", 5, "store=store"
    )
    assert judged.exit_code == 0, judged.output


def test_soft_labels_are_of_the_coded_images(place: Path) -> None:
    soft = [*small_overrides("sre2l"), "evaluation.epochs=null", "evaluation.baselines=[]"]
    soft += ["evaluation.networks=[convnet1_w8_batchnorm]"]
    coded = distill(place, *TINY, *soft, "images.bits=2", "output=coded")
    assert coded.exit_code == 0, coded.output
    assert len(load("coded/distilled").distilled.images.unique()) <= 4
    judged = raydd("evaluate", "coded/distilled", "--baselines", "", "--repeats", 1, "store=store")
    assert judged.exit_code == 0, judged.output
    left = raydd("encode", "coded", "again", "--bits", 1)
    assert left.exit_code == 0, left.output
    assert "soft labels beside the set are of the images before they were coded" in left.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["images.bits=5"], "Input should be 1, 2, 3, 4 or 8, not 5"),
        (["images.bit=2"], "images.bit: unknown key"),
        (["images={codec: avif, bits: 2}"], "bits=2 has no effect with the codec 'avif'"),
        (["images.quality=4"], "quality=4 has no effect"),
        (["images.bits=2", "method.name=itgan"], "the sets of 'itgan' store what images are made"),
    ],
)
def test_jobs_that_cannot_be(place: Path, words: list[str], said: str) -> None:
    refused = distill(place, *TINY, "method.name=random", *words, "--dry-run")
    assert refused.exit_code == 2
    assert said in refused.output


def test_a_dry_run_says_what_the_images_take(place: Path) -> None:
    dry = distill(place, *TINY, *DM, "images={bits: 2, size: 2}", "--dry-run")
    assert dry.exit_code == 0, dry.output
    sizes = "2,560 bytes at 32 bits, 640 at 8, 40 at 2 bits, half size, before they are coded"
    assert f"images (2 bits, half size): {sizes}" in dry.output


def test_a_job_without_the_coder_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coders, "find_spec", lambda name: None)
    refused = distill(place, *TINY, *DM, "images.bits=2", "output=coded")
    assert refused.exit_code == 2
    assert "pip install 'raydd[codecs]'" in refused.output
    assert not list(Path("store").rglob("*.json"))
