"""The page is written beside the run, whatever state it is in, on any storage; places that are no run's are refused."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from page_tree import check_page
from PIL import Image
from run_records import RUNNING, line, write_run

from raydd.cli import main
from raydd.core.storage import Storage
from raydd.runtime.page_file import page_of, write_page

HERE = {"host": socket.gethostname(), "pid": os.getpid()}


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (4, 4), value).save(out, "PNG")
    return out.getvalue()


def locked(folder: Path, **facts: object) -> None:
    (folder / "lock.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("more", "state"),
    [
        ([], "unfinished"),
        ([line(50, "end", status="KILLED")], "stopped"),
        ([line(50, "end", status="FAILED", text="x is NaN")], "failed"),
        ([line(50, "end", status="FINISHED")], "finished"),
        ([line(50, "end", status="FINISHED"), line(60, "run")], "unfinished"),
    ],
)
def test_a_run_without_a_living_process_stands_as_its_log_says(
    tmp_path: Path, more: list[dict[str, object]], state: str
) -> None:
    text, found = page_of(write_run(tmp_path, [*RUNNING, *more]))
    assert found == state
    notes = [node.text for node in check_page(text).all("p", class_="note")]
    assert any(f"not finished ({state}" in note for note in notes) == (state != "finished")


def test_a_run_runs_while_its_process_holds_the_lock(tmp_path: Path) -> None:
    url = write_run(tmp_path)
    began = psutil.Process().create_time()
    locked(tmp_path, **HERE, started=began, beat=0)
    assert page_of(url)[1] == "running"
    locked(tmp_path, **HERE, started=began - 100, beat=time.time())
    assert page_of(url)[1] == "unfinished", "the process that had this number is gone"
    locked(tmp_path, host="elsewhere", pid=1, started=1.0, beat=time.time() - 20)
    assert page_of(url)[1] == "running"
    locked(tmp_path, host="elsewhere", pid=1, started=1.0, beat=time.time() - 60)
    assert page_of(url)[1] == "unfinished"


def test_pictures_are_found_in_order_with_the_published_sets_last(tmp_path: Path) -> None:
    url = write_run(tmp_path)
    output = Storage(url)
    for name in ("step-999999.png", "step-1000000.png", "step-000000.png", "notes.txt"):
        output.put(f"pictures/{name}", png(5))
    for seed in (0, 1):
        output.put(f"distilled/seed-{seed}/grid.png", png(7))
    output.put("distilled/seed-0/recipe.json", b'{"settled": {"Match": {"dsa": "crop"}}}')
    tree = check_page(page_of(url)[0])
    assert [n.attributes["alt"] for n in tree.all("img")] == [
        f"Distilled images of small, a class per row, {what}"
        for what in (
            "after 0 updates",
            "after 999999 updates",
            "after 1000000 updates",
            "as published, after 100 updates, seed 0",
            "as published, after 100 updates, seed 1",
        )
    ]
    assert "Match.dsa" in {n.text for n in tree.all("dt")}


def test_a_page_is_written_beside_the_run_on_any_storage(tmp_path: Path) -> None:
    url = f"memory://page-{tmp_path.name}"
    output = Storage(url)
    folder = Path(write_run(tmp_path))
    for path in folder.iterdir():
        output.put(path.name, path.read_bytes())
    result = CliRunner().invoke(main, ["report", url])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"wrote {url}/report.html (unfinished), 0.0 MB")
    check_page(output.get("report.html").decode())
    assert write_page(output) == f"{url}/report.html"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere/run"], "nothing is at"),
        (["."], "is no run, but holds runs: out"),
        (["out", "--to", "/"], "--to: '/' names no file"),
        (["ftp3://host/run"], "unknown"),
    ],
)
def test_wrong_places_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "out")
    result = CliRunner().invoke(main, ["report", *args])
    assert (result.exit_code, said in result.output) == (2, True), result.output
    assert not (tmp_path / "out" / "report.html").exists()
