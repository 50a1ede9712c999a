"""Settings by ipc in a job file: put in place before overrides, absent from the job, refused where mistaken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from raydd.config import load_job
from raydd.core.errors import ConfigError
from raydd.sweep import main as sweep

BASE: dict[str, Any] = {
    "dataset": {"name": "digits"},
    "ipc": 10,
    "method": {"name": "dm", "lr_img": 1.0, "iterations": 100},
    "by_ipc": {
        1: {"method.batch_real": 5000, "method.iterations": 50},
        10: {"method": {"lr_img": 2.0}, "evaluation.networks": ["convnet2_w8"]},
    },
}


def written(folder: Path, **changes: Any) -> str:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))
    return str(path)


def test_the_settings_of_the_jobs_ipc_are_put_in_place(tmp_path: Path) -> None:
    ten, one, other = (load_job(written(tmp_path), given) for given in ([], ["ipc=1"], ["ipc=5"]))
    found = [
        (job.ipc, job.method.lr_img, job.method.iterations, job.method.batch_real)  # type: ignore[attr-defined]
        for job in (ten, one, other)
    ]
    default = type(other.method)().batch_real  # type: ignore[attr-defined]
    assert found == [(10, 2.0, 100, default), (1, 1.0, 50, 5000), (5, 1.0, 100, default)]
    assert (ten.evaluation.networks, one.evaluation.networks) == (("convnet2_w8",), ())
    assert "by_ipc" not in ten.resolved()
    alone = {key: value for key, value in BASE.items() if key != "by_ipc"}
    (tmp_path / "plain").mkdir()
    path = tmp_path / "plain" / "job.yaml"
    path.write_text(yaml.safe_dump(alone))
    given = ["ipc=1", "method.batch_real=5000", "method.iterations=50"]
    assert load_job(str(path), given) == one, "the same job as one that says so itself"


def test_overrides_hold_before_them(tmp_path: Path) -> None:
    job = load_job(written(tmp_path), ["method.iterations=7", "ipc=5", "ipc=1"])
    assert (job.ipc, job.method.iterations, job.method.batch_real) == (1, 7, 5000)  # type: ignore[attr-defined]
    short = load_job(written(tmp_path, method="dm"), ["ipc=1"])
    assert short.method.batch_real == 5000, "a method by its name alone"  # type: ignore[attr-defined]
    assert load_job(written(tmp_path, ipc=1)).method.batch_real == 5000  # type: ignore[attr-defined]
    without = load_job(written(tmp_path, ipc=None), ["ipc=10"])
    assert without.method.lr_img == 2.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"ten": {"method.lr_img": 1.0}}, r"by_ipc\.ten: 'ten' is no number of images per class"),
        ({True: {"method.lr_img": 1.0}}, r"by_ipc\.True: True is no number"),
        ({0: {"method.lr_img": 1.0}}, r"by_ipc\.0: 0 is no number"),
        ({1: 5000}, r"by_ipc\.1: 5000 is no mapping"),
        ([1], r"by_ipc: \[1\]; write settings by ipc"),
        ({1: {"ipc": 2}}, r"by_ipc\.1: 'ipc' cannot be set by ipc"),
        (
            {1: {"method.batch_reel": 5000}},
            r"by_ipc\.1: method\.batch_reel: unknown key.*batch_real",
        ),
        ({10: {"metod.lr_img": 5000}}, r"by_ipc\.10: metod: unknown key.*method"),
        ({50: {"method.lr_img": "big"}}, r"by_ipc\.50: method\.lr_img: .*number"),
        ({1: {"ipc.more": 5000}}, r"'ipc\.more' cannot be set by ipc"),
        ({1: {"name.more": 5000}}, r"cannot be set by ipc"),
        (
            {1: {"method.lr_img.more": 5000}},
            r"method\.lr_img is the value 1\.0, not a group of keys",
        ),
    ],
)
def test_mistakes_are_refused_whatever_the_ipc(tmp_path: Path, entries: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_job(written(tmp_path, by_ipc=entries))


def test_they_belong_into_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"override 'by_ipc\.1\.method\.lr_img=2': .* a file"):
        load_job(written(tmp_path), ["by_ipc.1.method.lr_img=2"])


def test_a_sweep_over_ipc_says_what_trials_have_by_it(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("keys: {ipc: {choice: [1, 10]}}\nsearch: grid\n")
    asked = ["--config", written(tmp_path), "--space", str(space), "--dry-run"]
    done = CliRunner().invoke(sweep, [*asked, f"output={tmp_path}/out", f"store={tmp_path}/store"])
    assert done.exit_code == 0, done.output
    said = done.output[done.output.index("\nby_ipc:") :]
    for line in ("'1':", "method.batch_real: 5000", "method.iterations: 50", "method.lr_img: 1.0"):
        assert line in said


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("random", "dm"), ("dm", "dm"), ("dsa", "dsa"), ("dc", "dc"), ("edc", "edc")],
)
def test_a_methods_own_protocol_is_the_default(name: str, protocol: str) -> None:
    given = ["dataset.name=digits", f"method.name={name}"]
    assert load_job(None, given).evaluation.protocol == protocol
    assert load_job(None, [*given, "evaluation.protocol=null"]).evaluation.protocol == protocol
    assert load_job(None, [*given, "evaluation.protocol=dc"]).evaluation.protocol == "dc"
