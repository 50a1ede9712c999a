"""Whose an output folder is: nobody else's results are replaced, and a crashed run's folder is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydd.config import Job, load_job
from raydd.core.errors import ConfigError
from raydd.core.storage import Storage
from raydd.runtime.output import check_claim, check_place, claim

QUICKSTART = str(Path(__file__).parents[2] / "jobs" / "quickstart.yaml")


def job(output: Path) -> Job:
    return load_job(QUICKSTART, [f"output={output}"])


@pytest.mark.parametrize(
    "name",
    [
        "distilled/images.safetensors",
        "report.json",
        "loss.png",
        "pictures/step-000000.png",
        "distilled",
    ],
)
def test_results_without_a_job_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"theirs")
    with pytest.raises(ConfigError, match=rf"holds {name.split('/')[0]}/?, not made by this job"):
        claim(Storage(str(tmp_path)), job(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_what_is_left_of_a_crashed_run_is_its_own(tmp_path: Path) -> None:
    for name in ("lock.json", "log.jsonl", "notes.txt"):
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / "distilled").mkdir()
    assert claim(Storage(str(tmp_path)), job(tmp_path))
    (tmp_path / "distilled" / "images.safetensors").write_bytes(b"a part")
    assert not claim(Storage(str(tmp_path)), job(tmp_path))


def test_a_place_that_is_a_file_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/below"):
        with pytest.raises(
            ConfigError, match=r"output: cannot write to .*: .*/file is not a folder"
        ):
            check_place("output", str(tmp_path / place))
    check_place("output", str(tmp_path / "new" / "run"))
    check_place("output", "s3://raydd-none/run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_plan_for_the_output_of_another_job_is_refused_and_nothing_is_made(
    tmp_path: Path,
) -> None:
    check_claim("output", str(tmp_path / "new"), job(tmp_path))
    (tmp_path / "report.json").write_text("theirs")
    with pytest.raises(ConfigError, match=r"holds report\.json, not made by this job"):
        check_claim("output", str(tmp_path), job(tmp_path))
    (tmp_path / "report.json").unlink()
    check_claim("output", str(tmp_path), job(tmp_path))
    assert list(tmp_path.iterdir()) == []
    claim(Storage(str(tmp_path)), job(tmp_path))
    check_claim("output", str(tmp_path), job(tmp_path))
    other = load_job(QUICKSTART, [f"output={tmp_path}", "ipc=7"])
    with pytest.raises(ConfigError, match=r"made by a different job:\n  ipc: 1 there, 7 now"):
        check_claim("output", str(tmp_path), other)
    check_claim("output", "s3://raydd-none/run", other)


def test_a_folder_that_was_moved_is_still_its_job_s(tmp_path: Path) -> None:
    there, moved = tmp_path / "there", tmp_path / "moved"
    claim(Storage(str(there)), job(there))
    there.rename(moved)
    assert not claim(Storage(str(moved)), job(moved))
