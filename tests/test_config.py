"""The job schema: what is read, what is refused and how the refusal reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydd.config import Job, load_evaluation, load_job
from raydd.core.dotted_keys import flatten
from raydd.core.errors import ConfigError
from raydd.core.units import canonical
from raydd.evaluation.rivals import Rival
from raydd.methods import METHODS
from raydd.methods.dm import Dm
from raydd.methods.itgan import ItGan

JOBS = Path(__file__).parents[1] / "jobs"


def job_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "some_job.yaml"
    path.write_text(text)
    return str(path)


def defaults_of(name: str, *but: str) -> dict[str, Any]:
    cls = METHODS.get(name)
    return {f.name: f.default for f in dataclasses.fields(cls) if f.name not in but}


def load(
    tmp_path: Path, *overrides: str, text: str = "dataset: {name: digits}\nmethod: {name: dm}\n"
) -> Job:
    return load_job(job_file(tmp_path, text), overrides)


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_job_of_the_repository_is_valid_and_named_after_its_file(path: Path) -> None:
    job = load_job(str(path))
    assert job.name == path.stem


def test_every_method_has_defaults_that_make_a_job(tmp_path: Path) -> None:
    for name in METHODS.names():
        assert load(tmp_path, f"method={name}").method.name == name


def test_defaults_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = load(tmp_path)
    assert job.name == "some_job"
    assert job.seeds == (0,)
    assert job.output == str(tmp_path / "runs" / "some_job")
    assert job.store == str(tmp_path / "runs" / "store")


def test_overrides_win_and_read_yaml(tmp_path: Path) -> None:
    job = load(
        tmp_path,
        "method.lr_img=5e-2",
        "compute.workers=[1,4]",
        "seeds=[3,5]",
        "output=s3://bucket/run",
        "evaluation.networks=ConvNet,MLP",
    )
    assert job.method.lr_img == 0.05  # type: ignore[attr-defined]
    assert job.compute.workers == (1, 4)
    assert job.seeds == (3, 5)
    assert job.output == "s3://bucket/run"
    assert job.evaluation.networks == ("ConvNet", "MLP")


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda p: p.stem)
def test_what_a_job_states_reads_back_as_itself_without_the_nulls_of_defaults(
    path: Path, tmp_path: Path
) -> None:
    job = load_job(str(path))
    again = load(tmp_path, text=job.to_yaml())
    assert again == job
    assert canonical(again.method) == canonical(job.method)
    nulls = [key for key, value in flatten(job.stated()).items() if value is None]
    assert not [key for key in nulls if key.startswith(("evaluation.", "dataset.", "tracking."))]
    left_out = flatten(job.resolved()).keys() - flatten(job.stated()).keys()
    assert left_out >= {
        f"evaluation.{name}"
        for name in ("lr", "optimizer")
        if getattr(job.evaluation, name) is None
    }
    assert [flatten(job.resolved())[key] for key in left_out] == [None] * len(left_out)


def test_a_null_in_place_of_a_default_is_stated(tmp_path: Path) -> None:
    edc = "dataset: {name: digits}\nmethod: {name: edc, labels: {crop: null, pad_crop: 3}, crop: null, pad: 2}\n"
    job = load(tmp_path, text=edc)
    assert "crop" in job.stated()["method"]
    assert job.stated()["method"]["labels"]["crop"] is None
    assert job.method.teachers.weights == "torchvision", "a default of the method's own"  # type: ignore[attr-defined]
    assert load(tmp_path, text=job.to_yaml()) == job


def test_the_resolved_job_reads_back_as_itself(tmp_path: Path) -> None:
    job = load(tmp_path, "method.iterations=7", "dataset.name=fashion_mnist")
    again = load(tmp_path, text=yaml.safe_dump(job.resolved()))
    assert again == job


def test_baselines_are_methods_by_name_or_with_settings(tmp_path: Path) -> None:
    job = load(tmp_path, "evaluation.baselines=[whole,dsa,{name: herding, epochs: 3}]")
    assert job.evaluation.baselines == ("whole", "dsa", METHODS.get("herding")(epochs=3))  # type: ignore[call-arg]
    assert job.resolved()["evaluation"]["baselines"][2] == {
        "name": "herding",
        "epochs": 3,
        **defaults_of("herding", "epochs"),
    }
    assert load(tmp_path, text=yaml.safe_dump(job.resolved())) == job
    assert load_evaluation(
        {"dataset": {"name": "digits"}}, ["evaluation.baselines=random,dm"]
    ).evaluation.baselines == ("random", "dm")


GROUPS = """
dataset: {name: digits, size: 8}
method: {name: dm, network: convnet2_w64, lr_img: 2.0}
evaluation: {protocol: dc, epochs: 3}
compute: {workers: 0}
"""


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["method=dm"],
            ["would drop method.network, method.lr_img", "method.name=dm", "method=null before it"],
        ),
        (["method=random"], ["would drop method.network, method.lr_img", "method.name=random"]),
        (["method={name: dsa, lr_img: 1}"], ["would drop method.network;", "method.KEY=VALUE"]),
        (
            ["evaluation={epochs: 5}"],
            ["would drop evaluation.protocol;", "evaluation=null before it"],
        ),
        (["dataset={name: mnist}"], ["would drop dataset.size"]),
        (["dataset=mnist"], ["dataset is a group of keys; write dataset.name=mnist"]),
        (["evaluation=dm"], ["evaluation: Input should be a group of keys, not 'dm'"]),
        (
            ["method.init=noise", "method={name: dsa, network: a, lr_img: 1}"],
            ["would drop method.init"],
        ),
        (
            ["method.name=random"],
            ["method.network: unknown key", "method=null before method.name drops them all"],
        ),
    ],
    ids=lambda value: " ".join(value) if len(value[0]) < 50 and "=" in value[0] else "",
)
def test_an_override_drops_no_setting_of_the_file_unasked(
    tmp_path: Path, overrides: list[str], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *overrides, text=GROUPS)
    for part in parts:
        assert part in str(caught.value)


def test_a_group_is_replaced_where_that_is_said_or_drops_nothing(tmp_path: Path) -> None:
    assert (
        load(tmp_path, "method=null", "method=random", text=GROUPS).method
        == METHODS.get("random")()
    )
    assert (
        load(tmp_path, "method={name: dsa, network: mlp, lr_img: 1}", text=GROUPS).method.name
        == "dsa"
    )
    kept = load(tmp_path, "method.name=dsa", text=GROUPS).method
    assert (kept.name, kept.lr_img) == ("dsa", 2.0)  # type: ignore[attr-defined]
    assert load(tmp_path, "evaluation=null", text=GROUPS).evaluation.protocol == "dm"
    assert (
        load(
            tmp_path, "method=random", text="dataset: {name: digits}\nmethod: {name: dm}\n"
        ).method.name
        == "random"
    )
    with pytest.raises(ConfigError, match=r"would drop evaluation\.repeats"):
        load_evaluation(
            {"dataset": {"name": "digits"}, "evaluation": {"repeats": 2}},
            ["evaluation={epochs: 1}"],
        )


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (
            "evaluation.baselines=[rdm]",
            ["evaluation.baselines: unknown baseline 'rdm'", "did you mean", "whole"],
        ),
        (
            "evaluation.baselines=[edc]",
            [
                "evaluation.baselines",
                "'edc' have soft labels of their own",
                "allowed: bacon, dc, dm, dsa",
            ],
        ),
        (
            "evaluation.baselines=[3]",
            ["evaluation.baselines.0: Input should be a method's name or a mapping", "not 3"],
        ),
        ("evaluation.baselines={name: dm}", ["evaluation.baselines: Input should be a list"]),
        (
            "evaluation.baselines=[{name: dsb}]",
            ["evaluation.baselines.0.name", "'dsb'", "did you mean 'dsa'"],
        ),
        (
            "evaluation.baselines=[{name: edc}]",
            [
                "evaluation.baselines.0.name: the sets of 'edc' have soft labels",
                "allowed: bacon, dc, dm, dsa",
            ],
        ),
        (
            "evaluation.baselines=[{name: whole}]",
            ["evaluation.baselines.0", "'whole' is no method", "its name alone"],
        ),
        ("evaluation.baselines=[{epochs: 1}]", ["evaluation.baselines.0.name is missing"]),
        (
            "evaluation.baselines=[random,{name: dsa, lr_imgg: 1}]",
            ["evaluation.baselines.1.lr_imgg", "did you mean 'lr_img'"],
        ),
        (
            "evaluation.baselines=[{name: dsa, ipcs: 1}]",
            ["evaluation.baselines.0.ipcs", "unknown key"],
        ),
        ("evaluation.baselines=[dsa,{name: dsa, iterations: 1}]", ["'dsa' stands there twice"]),
        (
            "method.lr_imgg=1",
            ["method.lr_imgg", "unknown key", "did you mean 'lr_img'", "momentum"],
        ),
        ("method.name=dn", ["method.name", "'dn'", "did you mean 'dm'", "kcenter"]),
        ("datset.name=mnist", ["datset", "did you mean 'dataset'"]),
        ("ipc=2.5", ["ipc", "2.5", "integer"]),
        ("ipc=0", ["ipc", "0", "greater than or equal to 1"]),
        ("ipc=true", ["ipc", "number"]),
        ("method.lr_img=abc", ["method.lr_img", "'abc'", "number"]),
        ("method.lr_img=.nan", ["method.lr_img", "finite"]),
        ("method.init=rael", ["method.init", "'rael'", "did you mean 'real'"]),
        (
            "numerics.threads=0",
            ["numerics.threads: Input should be greater than or equal to 1, not 0"],
        ),
        ("numerics.precision=fp16", ["numerics.precision", "'fp16'", "bf16"]),
        (
            "numerics.cudnn_search=true",
            ["numerics.cudnn_search=true needs numerics.deterministic=false", "next run"],
        ),
        (
            "compute={workers: 0, evaluators: 1}",
            ["compute.evaluators=1 has no effect with compute.workers=0"],
        ),
        (
            "compute={workers: 0, wait: 60}",
            ["compute.wait=60 has no effect with compute.workers=0"],
        ),
        (
            "compute.gpus_per_worker=1.5",
            ["compute.gpus_per_worker=1.5: allowed are whole numbers, and parts of one GPU"],
        ),
        (
            "compute={workers: 0, gpus_per_worker: 0.5}",
            ["compute.gpus_per_worker=0.5 has no effect with compute.workers=0"],
        ),
        ("compute.workers=[3,2]", ["compute.workers", "minimum"]),
        (
            "compute.workers=-1",
            ["compute.workers: Input should be greater than or equal to 0, not -1"],
        ),
        (
            "compute.workers=[0,2]",
            ["compute.workers.0: Input should be greater than or equal to 1, not 0"],
        ),
        (
            "compute.workers=[1,2,3]",
            ["compute.workers: Input should be a list of 2 values, not [1, 2, 3]"],
        ),
        ("compute.workers=many", ["compute.workers", "'many'", "integer"]),
        ("dataset.holdout=1.5", ["dataset.holdout", "1.5", "integer", "less than 1"]),
        ("dataset.fit=cop", ["dataset.fit", "did you mean 'crop'"]),
        ("evaluation.schedule=cosin", ["evaluation.schedule", "did you mean 'cosine'"]),
        ("evaluation.baselines=[randm]", ["evaluation.baselines", "did you mean 'random'"]),
        ("evaluation.networks=", ["evaluation.networks: Input should be a list, not None"]),
        ("tracking=3", ["tracking: Input should be a group of keys, not 3"]),
        ("method.name=3", ["method.name is 3", "allowed: bacon, dc, dm"]),
        ("evaluation.random_draws=2", ["evaluation.random_draws", "3"]),
        ("output=s4://bucket/x", ["output", "'s4'", "did you mean 's3'"]),
        ("output=s3://key:secret@bucket/x", ["output", "environment"]),
        ("output=pipe:cat", ["output", "not allowed"]),
        ("store=http://host/x", ["store", "cannot be written"]),
        ("name=../evil", ["name", "letters"]),
        ("tracking.uri=https://user:secret@host", ["tracking.uri", "MLFLOW_TRACKING_PASSWORD"]),
        ("seeds=[1,1]", ["seeds", "twice"]),
        ("nonsense", ["key.sub=value"]),
        ("ipc.x=1", ["ipc"]),
        ("method.lr_img=[", ["YAML"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, override, text="dataset: {name: digits}\nipc: 1\nmethod: {name: dm}\n")
    for part in parts:
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "ipc=0", "method.batch_real=-3", "evaluation.splt=test")
    assert len(str(caught.value).splitlines()) == 3


def test_a_mapping_takes_keys_of_another_its_own_go_before(tmp_path: Path) -> None:
    text = """dataset: {name: digits}
method: &own {name: dm, lr_img: 3, iterations: 7}
evaluation:
  baselines: [{<<: *own, iterations: 5, label: fewer}]
"""
    (rival,) = load(tmp_path, text=text).evaluation.baselines
    assert isinstance(rival, Rival)
    assert isinstance(rival.method, Dm)
    assert (rival.method.lr_img, rival.method.iterations, rival.label) == (3, 5, "fewer")
    twice = text.replace("iterations: 5,", "iterations: 5, iterations: 6,")
    with pytest.raises(ConfigError, match="line 4: the key 'iterations' stands twice"):
        load(tmp_path, text=twice)


def test_what_a_mapping_takes_follows_the_overrides_of_the_other(tmp_path: Path) -> None:
    text = """dataset: {name: digits}
ipc: 10
method: &own {name: itgan, network: convnet1_w8, inversion_steps: 9, generator: {width: 4, dim_z: 4}}
evaluation:
  baselines: [{<<: *own, iterations: 5, label: fewer}]
by_ipc: {2: {method.batch: 32}}
"""

    def rival(*overrides: str) -> ItGan:
        (found,) = load(tmp_path, *overrides, text=text).evaluation.baselines
        assert isinstance(found, Rival)
        assert isinstance(found.method, ItGan)
        return found.method

    assert (rival().iterations, rival().inversion_steps) == (5, 9)
    followed = rival("method.inversion_steps=3", "method.iterations=2")
    assert (followed.iterations, followed.inversion_steps) == (5, 3), "its own goes before"
    read = rival(
        "method.generator=null", "method.generator.width=8", "method.generator.weights=G.pth"
    )
    assert (read.generator.width, read.generator.weights) == (8, "G.pth")
    assert rival("ipc=2").batch == 32
    other = rival("method=null", "method.name=dm")
    assert other.inversion_steps == 9, "another method takes the place of what it was taken from"


def test_overrides_of_what_is_taken_leave_the_other_alone(tmp_path: Path) -> None:
    text = """dataset: {name: digits}
evaluation:
  baselines: [&own {name: itgan, network: convnet1_w8, generator: {width: 4, dim_z: 6}}]
method: {<<: [*own], iterations: 3}
"""
    job = load(tmp_path, "method.generator.width=8", "method.epochs=2", text=text)
    (rival,) = job.evaluation.baselines
    assert isinstance(rival, ItGan)
    assert isinstance(job.method, ItGan)
    assert (job.method.generator.width, job.method.generator.dim_z) == (8, 6)
    assert (job.method.epochs, job.method.iterations) == (2, 3)
    assert (rival.generator.width, rival.epochs) == (4, ItGan().epochs)
    for taken in ("3", "[3]"):
        with pytest.raises(ConfigError, match="line 4: '<<' takes the keys of a mapping"):
            load(tmp_path, text=text.replace("[*own]", taken))
    with pytest.raises(ConfigError, match=r"write key\.sub=value"):
        load(tmp_path, "method.<<=3", text=text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("method: {name: dm}\nipc: 1\nipc: 2\n", "line 3: the key 'ipc' stands twice"),
        ("- a\n- b\n", "mapping"),
        ("a: [1\n", "YAML"),
        ("ipc: 1\n", "method"),
        ("seed: 1\nseeds: [1, 2]\ndataset: {name: digits}\nmethod: dm\n", "not both"),
        ("dataset: {name: digits}\nmethod: {name: dm}\noutput: a\nstore: a\n", "different places"),
    ],
)
def test_files_that_are_no_jobs(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part.replace("'", ".")):
        load(tmp_path, text=text)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "fashion_mnist_dm.yaml").write_text("method: dm\n")
    with pytest.raises(ConfigError, match=r"no such file.*fashion_mnist_dm\.yaml"):
        load_job(str(tmp_path / "fashon_mnist_dm.yaml"))


def test_an_evaluation_needs_a_data_set() -> None:
    with pytest.raises(ConfigError, match="--dataset"):
        load_evaluation({})
    job = load_evaluation({"dataset": {"name": "digits"}}, ["evaluation.repeats=2"])
    assert job.compute.workers == 0
    assert job.evaluation.repeats == 2


def test_a_job_without_the_name_of_its_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("method: {name: dm, network: convnet2_w16, itertions: 2}\n")
    with pytest.raises(ConfigError) as raised:
        load_job(str(tmp_path / "job.yaml"), ["evaluation.epochs=-1"])
    lines = str(raised.value)
    assert "dataset.name: is missing; allowed names: mnist, fashion_mnist, " in lines
    assert "image_folder, webdataset" in lines
    assert "method.itertions" in lines, "told together"
    assert "evaluation.epochs" in lines, "told together"
    for dataset in ("", "dataset:\n", "dataset: {root: data}\n"):
        (tmp_path / "job.yaml").write_text(f"method: dm\n{dataset}")
        with pytest.raises(ConfigError, match=r"dataset\.name: is missing; allowed names"):
            load_job(str(tmp_path / "job.yaml"))
    assert (
        load_job(
            str(tmp_path / "job.yaml"), ["dataset.name=digits", "method.network=convnet2_w16"]
        ).dataset.name
        == "digits"
    )
    with pytest.raises(ConfigError, match=r"--dataset NAME \(mnist, "):
        load_evaluation({"dataset": {"root": "data"}})
