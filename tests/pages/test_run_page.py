"""The page of a run: what it shows, finished or not; foreign text stays text; how large it gets."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_tree import Node, check_page
from PIL import Image
from run_records import JOB, PLAN, RUNNING, line, write_run

from raydd.artifacts.protocol import Training
from raydd.artifacts.report import MemoryRow, Point, Report, Row
from raydd.artifacts.run_folder import read_run
from raydd.artifacts.standing import Standing
from raydd.pages.blocks import Shown
from raydd.pages.page_pictures import fitting
from raydd.pages.run_curves import means
from raydd.pages.run_page import RunFacts, run_page

EVIL = "<script>alert('x')</script>"
ROW = {
    "protocol": "dm[epochs=2]",
    "network": "convnet3",
    "seeds": 1,
    "networks": 5,
    "image_bytes": 2560,
    "label_bytes": 80,
}


@pytest.fixture
def report() -> Report:
    own = Row(set="dm", accuracy_mean=91.25, accuracy_std=0.5, device_seconds=70.0, **ROW)
    random = Row(set="random", accuracy_mean=68.0, accuracy_std=3.75, **{**ROW, "seeds": 3})
    points = ((0, 60.0, 1.5), (100, 91.25, 0.5))
    return Report(
        dataset="digits",
        ipc=1,
        split="test",
        rows=(own, random),
        ior=23.25,
        device="cpu",
        curve=tuple(
            Point(step=t, device_seconds=t, accuracy_mean=mean, accuracy_std=std, networks=5)
            for t, mean, std in points
        ),
        curve_protocol="dm[epochs=2]",
        notes=("Two images could not be read.",),
    )


def png(size: int = 8, seed: int = 0, *, noise: bool = False) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256 if noise else 2, (size, size, 3))
    out = io.BytesIO()
    Image.fromarray(values.astype("uint8")).save(out, "PNG")
    return out.getvalue()


def shown(count: int, **how: Any) -> list[Shown]:
    return [
        Shown(png(seed=i, **how), "image/png", f"Images after {i}", f"After {i}")
        for i in range(count)
    ]


def page(folder: Path, report: Report | None, log: Any = RUNNING, **facts: Any) -> Node:
    """Return the tree of the page of a run that left ``log`` and ``report``."""
    values = None if report is None else report.to_dict()
    job = facts.pop("job", JOB)
    run = read_run(write_run(folder, log, report=values, plan=facts.pop("plan", PLAN), job=job))
    given = {"state": "finished", "pictures": shown(3), **facts}
    return check_page(run_page(RunFacts(run, Standing(run.plan, run.log), **given)))


def part(tree: Node, title: str) -> Node:
    (found,) = (n for n in tree.all("section") if n.all("h2")[0].text == title)
    return found


def keyed(node: Node) -> dict[str, str]:
    return {
        n.one("dt").text: n.one("dd").text
        for n in node
        if n.name == "div" and n.all("dt") and not n.all("div")[1:]
    }


def test_the_headline_has_the_accuracy_its_protocol_and_random_beside_it(
    tmp_path: Path, report: Report
) -> None:
    tree = page(tmp_path, report)
    assert tree.one("h1").text == "small"
    assert tree.one("p", class_="lead").text == "digits, 1 image per class, distilled by dm"
    tiles = [n.text for n in tree.one("ul", class_="figures").all("li")]
    assert (
        tiles[0]
        == "91.25 ± 0.50 %accuracy of dm (dm[epochs=2], convnet3, test split, 1 seed × 5 networks)"
    )
    assert (
        tiles[1]
        == "68.00 ± 3.75 %random images of the same number (same protocol, 3 draws × 5 networks)"
    )
    assert tiles[2].startswith("+23.25 points")
    assert tiles[3] == "2.6 kBimages and labels, made in 70 s of one device"
    alone = page(tmp_path / "alone", replace(report, rows=report.rows[:1]))
    assert "not run" in alone.one("ul", class_="figures").text
    longer = replace(report.rows[1], set="longer", protocol="dm[epochs=9]")
    equal = replace(report, rows=(report.rows[0], longer), random={"longer": "updates"})
    tiles = [n.text for n in page(tmp_path / "e", equal).one("ul", class_="figures").all("li")]
    assert tiles[1].endswith("number (as many updates, 3 draws × 5 networks)")
    assert tiles[2].startswith("+23.25 points")


def test_every_row_of_the_report_is_in_its_tables(tmp_path: Path, report: Report) -> None:
    other = Row(set="dm", accuracy_mean=55.5, accuracy_std=1.0, **{**ROW, "network": "mlp"})
    rows = (*report.rows, other)
    learnt = [
        MemoryRow(
            set=name, protocol="dm", network="convnet3", step=k, classes=5 * k, images=5 * k,
            accuracy_mean=mean, accuracy_std=1.0, orders=2, networks=1,
        )
        for name, means_ in (("dm", (80.0, 62.5)), ("random", (70.0, 41.0)))
        for k, mean in enumerate(means_, 1)
    ]  # fmt: skip
    recipe = {"epochs": 3, "batch": 8, "optimizer": "sgd", "schedule": "none", "loss": "ce"}
    own = {**recipe, "augmentation": "none"}
    trainings = (Training(protocol="dm", sets=("dm",), networks=("convnet3",), recipe=own),)
    whole = replace(report, rows=rows, continual=tuple(learnt), trainings=trainings)
    results = part(page(tmp_path, whole), "Results")
    first, crossed, continual = (table.cells() for table in results.all("table"))
    assert first[1][:5] == ["dm", "dm[epochs=2]", "convnet3", "91.25 ± 0.50", "+23.25"]
    assert [line[2:5] for line in first[2:]] == [
        ["convnet3", "68.00 ± 3.75", "–"],
        ["mlp", "55.50 ± 1.00", "not run"],
    ]
    assert crossed == [
        ["network", "dm", "random"],
        ["convnet3", "91.25 ± 0.50", "68.00 ± 3.75"],
        ["mlp", "55.50 ± 1.00", "–"],
    ]
    assert continual[1:] == [
        ["dm", "80.00 ± 1.00", "62.50 ± 1.00"],
        ["random", "70.00 ± 1.00", "41.00 ± 1.00"],
    ]
    assert "IOR +23.25 points" in results.text
    assert "dm (dm; convnet3): 3 epochs of batches of 8; sgd" in results.text
    assert "Two images could not be read." in results.text
    (chart,) = (n for n in results.all("svg", class_="wide"))
    assert "dm: 2 points from classes seen 5 to 10, first 80, last 62.5" in chart.one("desc").text


def test_curves_have_their_numbers_beside_them(tmp_path: Path, report: Report) -> None:
    curves = part(page(tmp_path, report), "Curves")
    accuracy, loss = (table.cells() for table in curves.all("table"))
    assert accuracy[1:] == [["0", "60 ± 1.5"], ["100", "91.25 ± 0.5"]]
    assert loss == [["updates", "distill/Match"], ["0", "3"], ["59", "1.5"]]
    svg = curves.all("svg", class_="wide")[0]
    assert "random 68" in svg.text


def test_a_step_counts_once_all_units_have_logged_it() -> None:
    found = means(PLAN["curves"], RUNNING)
    assert found == {("distill/Match", "loss"): [(0.0, 3.0), (59.0, 1.5)]}
    assert means(PLAN["curves"], RUNNING[:8]) == {}


def test_the_plan_says_who_computed_what(tmp_path: Path, report: Report) -> None:
    plan = part(page(tmp_path, report), "Plan")
    lines = {line[0]: line[1:] for line in plan.one("table").cells()[1:]}
    assert lines["distill/Match"] == [
        "1 of 2",
        "1",
        "0",
        "200",
        "20 s",
        "20 s",
        "cpu (1)",
        "rank-0",
    ]
    assert lines["evaluate/Evaluate"][:3] == ["1 of 2", "0", "1"]
    assert lines["evaluate/Evaluate"][-2:] == ["NVIDIA H100 (1)", "–"]
    assert "1 unit was not needed" in plan.text


def test_recipe_and_environment_are_told(tmp_path: Path, report: Report) -> None:
    recipe = {"settled": {"Match": {"dsa": "color_crop"}}, "source": {"train": "d1gest"}}
    tree = page(tmp_path, report, recipe=recipe)
    told = keyed(part(tree, "Recipe"))
    assert told["iterations"] == "100"
    assert told["Match.dsa"] == "color_crop"
    assert told["train"] == "d1gest"
    around = keyed(part(tree, "Environment"))
    assert around["versions.torch"] == "2.15"
    assert around["git commit"] == "abc123"
    assert around["device"] == "cpu"
    assert around["first line of the log"] == "2026-05-04 12:00:00 UTC"


def test_a_run_that_failed_says_so_and_shows_what_there_is(tmp_path: Path) -> None:
    log = [*RUNNING, line(50, "end", status="FAILED", text="distill/Match unit 'd1': x is NaN")]
    tree = page(tmp_path, None, log, state="failed", pictures=[])
    said = tree.all("p", class_="note")[0].text
    assert "not finished (failed: distill/Match unit 'd1': x is NaN). 2 of 4 units are done" in said
    assert [n.all("h2")[0].text for n in tree.all("section")] == [
        "Curves",
        "Recipe",
        "Plan",
        "Environment",
    ]
    accuracy = part(tree, "Curves").all("table")[0].cells()
    assert accuracy[1:] == [["50", "71.5 ± 2.5"]]
    begun = page(tmp_path / "begun", None, [], plan=None, state="unfinished", pictures=[])
    assert "not finished" in begun.all("p", class_="note")[0].text


def test_what_others_called_things_stays_text(tmp_path: Path, report: Report) -> None:
    job = {
        **JOB,
        "name": EVIL,
        "dataset": {"name": EVIL, "root": f"/data/{EVIL}"},
        "method": {"name": EVIL, EVIL: [EVIL]},
    }
    rows = tuple(replace(row, network=EVIL, protocol=EVIL) for row in report.rows)
    inventory = {"classes": [EVIL, "cats & dogs"], "left_out": {EVIL: EVIL}}
    evil = replace(report, dataset=EVIL, rows=rows, notes=(EVIL,), inventory=inventory)
    stage = {**PLAN["stages"][1], "name": EVIL}
    plan = {
        **PLAN,
        "dataset": EVIL,
        "stages": [stage],
        "curves": {EVIL: ["d0", "d1"]},
        "charted": [EVIL],
        "asked": [0, 1],
    }
    log = [*RUNNING, line(50, "message", text=EVIL), line(51, "end", status="FAILED", text=EVIL)]
    recipe = {"settled": {EVIL: {EVIL: EVIL}}, "source": {EVIL: EVIL}}
    pictures = [replace(one, alt=EVIL, caption=EVIL) for one in shown(2)]
    facts = {"recipe": recipe, "pictures": pictures, "state": "failed"}
    tree = page(tmp_path, evil, log, job=job, plan=plan, **facts)
    assert len(tree.all("script")) == 1
    assert tree.one("h1").text == EVIL
    for title in ("Results", "Curves", "Recipe", "Plan", "Environment", "Pictures"):
        assert "alert('x')" in part(tree, title).text, title


def test_pictures_come_with_a_slider_in_order(tmp_path: Path, report: Report) -> None:
    pictures = part(page(tmp_path, report), "Pictures")
    assert [n.text for n in pictures.all("figcaption")] == ["After 0", "After 1", "After 2"]
    assert pictures.one("input").attributes["max"] == "2"
    assert not part(page(tmp_path / "one", report, pictures=shown(1)), "Pictures").all("input")


def test_pictures_that_are_too_large_are_recompressed_then_left_out() -> None:
    pictures = shown(6, size=64, noise=True)
    size = len(pictures[0].data)
    same, said = fitting(pictures, 6 * size + 100)
    assert (same, said) == (pictures, "")
    smaller, said = fitting(pictures, 4 * size)
    assert [one.caption for one in smaller] == [one.caption for one in pictures]
    assert {one.kind for one in smaller} == {"image/webp"}
    assert said == "The pictures are recompressed (at most 1600 pixels wide or high)."
    assert Image.open(io.BytesIO(smaller[0].data)).size == (64, 64)
    few, said = fitting(pictures, size // 2)
    assert 0 < len(few) < 6
    assert few[-1].caption == "After 5"
    assert sum(len(one.data) for one in few) <= size // 2
    assert f"{6 - len(few)} of 6 are left out" in said
    assert fitting(pictures, 10)[0] == []


def test_a_page_of_many_large_pictures_stays_below_15_megabytes(
    tmp_path: Path, report: Report
) -> None:
    run = read_run(write_run(tmp_path, report=report.to_dict()))
    rng = np.random.default_rng(0).bytes
    pictures = [Shown(rng(3_000_000), "image/png", "Noise", f"After {i}") for i in range(8)]
    text = run_page(RunFacts(run, Standing(run.plan, run.log), pictures))
    assert len(text) < 15e6
    tree = check_page(text)
    assert "are left out" in part(tree, "Pictures").one("p", class_="note").text
    assert len(part(tree, "Pictures").all("img")) == 3
    source = str(part(tree, "Pictures").all("img")[-1].attributes["src"])
    assert base64.b64decode(source.partition(",")[2]) == pictures[-1].data
