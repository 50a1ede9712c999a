"""Whole jobs of the statistics-matching family: every variant runs, and what is published is enough
to repeat the evaluation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_jobs import INFO, NETWORKS, job, raydd
from test_family_refusals import weights

from raydd.artifacts.published_folder import verify
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.tensors import load_metadata, load_tensors
from raydd.core.units import Numerics
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.set_sources import StoredSet
from raydd.evaluation.stored_plan import Maker, stored_evaluation
from raydd.labels.label_config import LabelConfig
from raydd.labels.published import PublishedLabels
from raydd.methods import Problem
from raydd.networks import create_network, normalise_name
from raydd.networks.released import published_name
from raydd.runtime.evaluating import maker_of

VARIANTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("edc", {"compat": {"ema_carry": "chain"}, "groups_per_unit": 3}, ()),
    ("edc", {"category_aware": "local", "local_images": 40, "class_weight": 1.0}, ()),
    (
        "edc",
        {"flatness_weight": 1.0, "drop_rate": 0.4, "compat": {"ema_init": "first"}},
        ("evaluation.every=1",),
    ),
    ("gvbsm", {"order": "ten_blocks", "group_size": 20}, ("ipc=10",)),
    ("sre2l", {"crop_curriculum": "cosine", "tv": 1e-3, "l2": 1e-3}, ("evaluation.every=1",)),
    (
        "dwa",
        {
            "compat": {"leak_image_grad": True, "carry_theta": True, "leak_param_grad": True},
            "groups_per_unit": 3,
            "labels": {"batch": 5, "epochs": 2, "codec": "online", "teacher_mode": "batch"},
        },
        ("evaluation.every=3", "evaluation.kl_scale=tau2", "evaluation.epochs=2"),
    ),
    ("infer", {}, ("evaluation.every=1", "ipc=3")),
    (
        "infer",
        {
            "image_format": "jpeg75",
            "compat": {"before_last": True},
            "groups_per_unit": 2,
            "labels": {"batch": 5, "epochs": 2, "codec": "online", "mix": "mixup", "crop": None},
        },
        ("ipc=3",),
    ),
    (
        "infer",
        {
            "group_size": 4,
            "parts": 3,
            "labels": {"batch": 5, "epochs": 2, "codec": "fp16", "randaugment": True},
        },
        ("ipc=4",),
    ),
    ("rded", {"factor": 1}, ("evaluation.epochs=2",)),
    (
        "rded",
        {
            "factor": 2,
            "labels": {"batch": 5, "epochs": 2, "codec": "topk", "top": 3, "tail": "mass"},
        },
        (),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "fields", "overrides"),
    VARIANTS,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_variants_run(
    method: str, fields: dict[str, Any], overrides: tuple[str, ...], tmp_path: Path
) -> None:
    result = job(tmp_path, method, fields, overrides)
    assert result.exit_code == 0, result.output
    verify(str(tmp_path / "out" / "distilled"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["set"] for row in report["rows"]] == [method]
    assert len(report["curve"]) == (3 if any("every=" in o for o in overrides) else 0), (
        "snapshots are evaluated with soft labels too"
    )


@pytest.mark.slow
def test_networks_of_infer_match_label_and_judge(tmp_path: Path) -> None:
    names = {x: normalise_name(x) for x in ("mobilenetV2", "efficientnet", "shufflenet")}
    for name, network in names.items():
        made = create_network(network, INFO.shape, INFO.classes, generator(0, name))
        state = {f"module.{published_name(made, k)}": v for k, v in made.state_dict().items()}
        (tmp_path / f"{name}_E200").mkdir()
        torch.save({"state_dict": state, "epoch": 199}, tmp_path / f"{name}_E200" / "ckpt.pth")
    fields = {
        "networks": list(names),
        "teachers": {"weights": str(tmp_path / "{network}_E200" / "ckpt.pth")},
        "group_size": 10,
        "iterations": 3,
        "ascent_steps": 2,
    }
    result = job(tmp_path, "dwa", fields, (f"evaluation.networks=[{','.join(names)}]",))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["network"] for row in report["rows"]] == list(names.values())


@pytest.mark.slow
def test_each_seed_publishes_labels_that_repeat_its_evaluation_without_the_store(
    tmp_path: Path,
) -> None:
    assert job(tmp_path, "edc", {}, ("seeds=[0,1]",)).exit_code == 0
    folders = [tmp_path / "out" / "distilled" / f"seed-{seed}" for seed in (0, 1)]
    before = {
        path: path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert {path.name for path in before if path.parent.name == "labels"} >= {
        "epoch-000.safetensors",
        "epoch-001.safetensors",
    }
    collected = raydd("gc", str(tmp_path / "store"))
    assert collected.exit_code == 0
    assert "0 are still needed" in collected.output
    found = []
    for seed, folder in enumerate(folders):
        args = ["--networks", NETWORKS[0], "--repeats", "1", "--output", str(tmp_path / str(seed))]
        again = raydd(
            "evaluate",
            str(folder),
            *args,
            "evaluation.baselines=[]",
            f"seed={seed}",
            f"store={tmp_path / 'other'}",
        )
        assert again.exit_code == 0, again.output
        (row,) = json.loads((tmp_path / str(seed) / "report.json").read_text())["rows"]
        found.append(row["accuracy_mean"])
        verify(str(folder))
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert row["accuracy_mean"] == pytest.approx(sum(found) / 2, abs=1e-9)
    assert before == {path: path.read_bytes() for path in before}
    other = raydd(
        "evaluate",
        str(folders[0]),
        "--labels",
        str(folders[1]),
        *args,
        f"store={tmp_path / 'other'}",
    )
    assert (other.exit_code, "labels of another set" in other.output) == (2, True), other.output


def units_called(store: Path, prefix: str) -> set[str]:
    """Return the keys of a store's finished units whose names begin with ``prefix``."""
    return {
        path.parent.name
        for path in store.glob("units/*/*/final.json")
        if json.loads(path.read_text())["unit"].startswith(prefix)
    }


CODECS: list[tuple[str, dict[str, Any]]] = [
    ("infer", {}),
    ("edc", {"labels": {"batch": 5, "epochs": 2}}),
    ("edc", {"labels": {"batch": 5, "epochs": 2, "codec": "recipe"}}),
    ("rded", {"labels": {"batch": 5, "epochs": 3}}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fields"), CODECS, ids=["static", "stored", "recipe", "online"])
def test_a_published_set_is_evaluated_beside_others_with_the_labels_of_its_teachers(
    method: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """With the job's store, nothing but students is computed; with another one, the teachers are
    trained again, alike.
    """
    result = job(tmp_path, method, fields, ("evaluation.baselines=[random]", "seed=3"))
    assert result.exit_code == 0, result.output
    folder, found = tmp_path / "out" / "distilled", []
    expected = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert [(row["set"], row["networks"]) for row in expected] == [(method, 1), ("random", 1)]
    assert method != "rded" or "epochs=3" in expected[0]["protocol"], (
        "the epochs of labels that are not stored are the students' too"
    )
    for store in ("store", "other"):
        args = [
            "--networks",
            NETWORKS[0],
            "--repeats",
            "1",
            "--output",
            str(tmp_path / f"report-{store}"),
            f"store={tmp_path / store}",
        ]
        before = set((tmp_path / store).glob("units/*/*"))
        again = raydd("evaluate", str(folder), *args, "seed=3")
        assert again.exit_code == 0, again.output
        found.append(json.loads((tmp_path / f"report-{store}" / "report.json").read_text())["rows"])
        computed = set((tmp_path / store).glob("units/*/*")) - before
        assert (len(computed) == 1) == (store == "store"), (
            "the students of the published set, else also teachers, draws and their students"
        )
    trained = units_called(tmp_path / "store", "network-")
    assert (
        raydd(
            "evaluate",
            str(folder),
            *args[:4],
            f"store={tmp_path / 'store'}",
            f"output={tmp_path / 'again'}",
            "seed=8",
        ).exit_code
        == 0
    )
    assert units_called(tmp_path / "store", "network-") == trained != set(), (
        "students of another seed learn from the set's own teachers"
    )
    wanted = [(row["set"], pytest.approx(row["accuracy_mean"])) for row in expected]
    for rows in found:
        assert [(row["set"], row["accuracy_mean"]) for row in rows] == wanted


def test_a_published_set_whose_teachers_cannot_be_had_is_refused_beside_others(
    tmp_path: Path,
) -> None:
    url = weights(tmp_path / "weights")
    fields = {"teachers": {"weights": url}, "labels": {"batch": 5, "epochs": 2, "codec": "recipe"}}
    assert job(tmp_path, "edc", fields).exit_code == 0
    folder = tmp_path / "out" / "distilled"
    args = ["--networks", NETWORKS[0], "--repeats", "1", f"store={tmp_path / 'other'}"]
    assert raydd("evaluate", str(folder), *args, "evaluation.baselines=[]").exit_code == 0, (
        "files are read from where they were"
    )
    for file in Path(url).iterdir():
        file.unlink()
    alone = raydd("evaluate", str(folder), *args, "evaluation.baselines=[]")
    assert (
        alone.exit_code,
        "needs the set's soft labels, computed (recipe) by teachers that are missing"
        in alone.output,
    ) == (2, True)
    assert f"put its weights at {url}/{NETWORKS[0]}.safetensors" in alone.output
    recipe = json.loads((folder / "recipe.json").read_text())
    data = open_data(DatasetConfig(name="digits"))
    info = with_digests(INFO, data)
    assert isinstance(maker_of(recipe, info, 2), Maker)
    others = [
        {**recipe, "method": {**recipe["method"], "of_another_version": 1}},
        {**recipe, "source": {"train": "other"}},
        {},
    ]
    assert [maker_of(other, info, 2) for other in others] == [None] * 3
    fields = {"url": "x", "digest": "0", "dataset": info, "count": 20}
    problem = Problem(dataset=info, ipc=2, seed=0, numerics=Numerics())
    found = PublishedLabels(
        url="x", digest="0", config=LabelConfig(batch=5, epochs=2), images=20, classes=10
    )
    config = EvaluationConfig(protocol="edc", networks=(NETWORKS[0],))
    with pytest.raises(
        ConfigError,
        match="other sets need soft labels of the same teachers, and it is not known which they are",
    ):
        stored_evaluation(StoredSet(**fields), "edc", problem, config, found)
    with pytest.raises(ConfigError, match="'edc' teaches soft labels, and this set has none"):
        stored_evaluation(StoredSet(**fields), "edc", problem, config)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["edc", "rded"])
def test_teachers_and_statistics_of_a_job_make_the_same_images_in_another(
    method: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    made = job(first, method, {})
    assert f" {first}/out/teachers\n" in made.output, made.output
    kept = {
        path.name: load_metadata(path.read_bytes())
        for path in (first / "out" / "teachers").iterdir()
    }
    assert set(kept) == {
        f"{name}.safetensors" for name in (NETWORKS if method == "edc" else NETWORKS[:1])
    }
    for name, facts in kept.items():
        assert (facts["network"], facts["mean"], facts["std"]) == (
            f'"{name.split(".")[0]}"',
            json.dumps(INFO.mean),
            json.dumps(INFO.std),
        )
    fields: dict[str, Any] = {"teachers": {"weights": f"{first}/out/teachers"}}
    if method == "edc":
        fields["statistics"] = {"patch": 4, "files": f"{first}/out/statistics"}
    again = job(second, method, fields)
    assert again.exit_code == 0, again.output
    one, two = (
        (folder / "out/distilled/data.safetensors").read_bytes() for folder in (first, second)
    )
    assert load_tensors(one)["images"].equal(load_tensors(two)["images"])
    assert "squeeze/TrainNetwork" not in again.output
    other = job(
        tmp_path,
        method,
        {**fields, "teachers": {**fields["teachers"]}},
        ("dataset.mean=[0.9]", "dataset.std=[0.01]"),
    )
    assert (other.exit_code, "normalis" in other.output) == (
        (2, True) if method == "edc" else (0, False)
    ), other.output
