"""Tables set × network and set × step, and their pictures: every row is in them, equal reports give equal bytes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from raydd.artifacts.charts import continual_csv, matrix, report_files
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.published_folder import publish, verify
from raydd.artifacts.rendering import render_markdown, render_table
from raydd.artifacts.report import MemoryRow, Report, cross
from raydd.core.errors import ConfigError


@pytest.fixture
def several(report: Report) -> Report:
    """The report with a second network, on which random was not run, and the whole data under a protocol of its own."""
    dm, random = report.rows
    more = (
        replace(dm, network="mlp", accuracy_mean=61.25),
        replace(dm, set="whole", protocol="dsa-60", accuracy_mean=93.7),
    )
    return replace(report, rows=(dm, random, *more))


@pytest.fixture
def learnt(report: Report) -> Report:
    """The report with a continual experiment of two sets and two steps."""
    shared = {
        "protocol": "dsa-1000",
        "network": "convnet3-w128",
        "orders": 5,
        "networks": 3,
        "accuracy_std": 1.5,
    }
    rows = [
        MemoryRow(
            set=name, step=t, classes=5 * t, images=15 * t, accuracy_mean=high - 10 * t, **shared
        )
        for name, high in (("dm", 100.0), ("random", 90.0))
        for t in (1, 2)
    ]
    return replace(report, continual=tuple(rows))


def test_one_network_is_no_table_and_changes_no_byte(report: Report) -> None:
    assert cross(report) is None
    assert report_files(report) == {}
    assert {"table", "continual"} & set(report.to_dict()) == set()
    assert "every set on every network" not in render_table(report)


def test_rows_are_crossed(several: Report) -> None:
    crossed = cross(several)
    assert crossed is not None
    assert crossed.to_dict() == {
        "sets": ["dm", "random", "whole, dsa-60"],
        "networks": ["convnet3-w128", "mlp"],
        "accuracy_mean": [[83.5, 61.25], [73.7, None], [93.7, None]],
        "accuracy_std": [[0.31, 0.31], [1.3, None], [0.31, None]],
    }
    lines = render_table(several).splitlines()
    start = lines.index("Accuracy of every set on every network, %:")
    assert lines[start + 2].split("  ")[0] == "network"
    assert lines[start + 4].split() == [
        "convnet3-w128",
        "83.50",
        "±",
        "0.31",
        "73.70",
        "±",
        "1.30",
        "93.70",
        "±",
        "0.31",
    ]
    assert lines[start + 5].split() == ["mlp", "61.25", "±", "0.31", "–", "–"]
    assert "| mlp | 61.25 ± 0.31 | – | – |" in render_markdown(several)


def test_reports_with_tables_survive_json(several: Report, learnt: Report) -> None:
    for report in (several, learnt):
        assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    values = learnt.to_dict()
    values["continual"][0]["clases"] = 5
    with pytest.raises(ConfigError, match="did you mean 'classes'"):
        Report.from_dict(values)


@pytest.mark.slow
def test_pictures_are_deterministic_and_show_what_changes(several: Report, learnt: Report) -> None:
    assert set(report_files(several)) == {"networks.png"}
    assert set(report_files(learnt)) == {"continual.png", "continual.csv"}
    for report in (several, learnt):
        assert report_files(report) == report_files(report)
    other = replace(
        several,
        rows=(*several.rows[:2], replace(several.rows[2], accuracy_mean=60.0), several.rows[3]),
    )
    assert report_files(other) != report_files(several)
    more = replace(
        several,
        rows=(*several.rows, *(replace(several.rows[0], network=f"convnet{n}") for n in range(20))),
    )
    small, large = (
        Image.open(io.BytesIO(report_files(r)["networks.png"])) for r in (several, more)
    )
    assert large.height > 3 * small.height
    assert large.width == small.width
    assert "Software" not in small.info


def test_equal_accuracies_are_drawn_too(several: Report) -> None:
    crossed = cross(
        replace(several, rows=tuple(replace(row, accuracy_mean=50.0) for row in several.rows))
    )
    assert crossed is not None
    assert matrix(crossed).startswith(b"\x89PNG")


def test_the_continual_table_has_a_line_per_set_and_a_column_per_step(learnt: Report) -> None:
    lines = render_table(learnt).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Continual learning"))
    assert (
        "2 steps of 5 classes, 5 class orders × 3 networks, protocol dsa-1000, convnet3-w128"
        in lines[start]
    )
    assert lines[start + 2].split() == ["set", "5", "classes", "10", "classes"]
    assert lines[start + 4].split() == ["dm", "90.00", "±", "1.50", "80.00", "±", "1.50"]
    assert lines[start + 5].split() == ["random", "80.00", "±", "1.50", "70.00", "±", "1.50"]


def test_csv_holds_every_row(learnt: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(continual_csv(learnt).decode())))
    assert [
        (row["set"], int(row["classes"]), int(row["images"]), float(row["accuracy_mean"]))
        for row in rows
    ] == [
        ("dm", 5, 15, 90.0),
        ("dm", 10, 30, 80.0),
        ("random", 5, 15, 80.0),
        ("random", 10, 30, 70.0),
    ]


def test_a_published_set_shows_its_pictures(
    make: Callable[..., DistilledSet], several: Report, learnt: Report, tmp_path: Path
) -> None:
    both = replace(several, continual=learnt.continual)
    files = publish(make(), str(tmp_path), both)["files"]
    assert {"curve.png", "networks.png", "continual.png", "continual.csv"} <= set(files)
    verify(str(tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert [part.split(")")[0] for part in card.split("](")[1:]] == [
        "grid.png",
        "curve.png",
        "networks.png",
        "continual.png",
    ]
    publish(make(), str(tmp_path), replace(both, continual=()))
    assert not (tmp_path / "continual.csv").exists()
