from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from raydd.artifacts.accounting import Accounting
from raydd.artifacts.protocol import Training
from raydd.artifacts.rendering import (
    format_bytes,
    format_seconds,
    render_markdown,
    render_table,
    signed,
)
from raydd.artifacts.report import Report, Row, summarise
from raydd.core.errors import ConfigError


def test_a_report_survives_json(report: Report) -> None:
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_mean_and_spread_are_pooled_with_ddof_0() -> None:
    mean, std = summarise([[0.8, 0.9], [0.7, 0.8]])
    assert mean == pytest.approx(80.0)
    assert std == pytest.approx(7.0710678)
    with pytest.raises(ConfigError, match="no accuracies"):
        summarise([[], []])


def test_every_number_has_its_context(report: Report) -> None:
    text = render_table(report)
    for part in (
        "digits",
        "3 images per class",
        "test split",
        "ddof 0",
        "last epoch",
        "seeds × networks",
        "dsa-1000",
        "convnet3-w128",
    ):
        assert part in text
    row = next(line for line in text.splitlines() if line.startswith("dm "))
    assert row.split("  ")[0] == "dm"
    for part in ("83.50 ± 0.31", "+9.80", "5 × 20", "7.7 kB", "240 B", "61.7 min"):
        assert part in row
    assert "HLR +10.20 points" in text
    assert "IOR +9.80 points" in text
    assert "best epoch" not in text


def test_columns_line_up(report: Report) -> None:
    lines = render_table(report).splitlines()
    header, rows = lines[2], lines[4:6]
    assert len({len(line) for line in [header, *rows]}) == 1
    assert all(row[header.index("protocol") :].startswith("dsa-1000") for row in rows)


def test_sizes_have_columns_where_they_differ(report: Report) -> None:
    def table(*sizes: dict[str, int]) -> list[list[str]]:
        rows = tuple(replace(row, **size) for row, size in zip(report.rows, sizes, strict=True))
        lines = render_table(replace(report, rows=rows)).splitlines()
        return [re.split(r"\s{2,}", line) for line in (lines[2], *lines[4:6])]

    header, *_ = table({}, {})
    assert header[-3:] == ["images", "labels", "device time"]
    same = {"stored": 30, "seen": 30}
    assert table(same, same)[0] == header
    header, mine, random = table({"stored": 30, "seen": 1200}, same)
    assert header[-5:] == ["stored", "seen", "images", "labels", "device time"]
    assert (mine[-5:-3], random[-5:-3]) == (["30", "1,200"], ["30", "30"])
    header, mine, random = table({"further_bytes": 1_000_000}, {})
    assert header[-4:] == ["images", "labels", "in all", "device time"]
    assert (mine[-2], random[-2]) == ("1.0 MB", "7.9 kB")


def test_best_epochs_say_so(report: Report) -> None:
    rows = (replace(report.rows[0], best_accuracy=84.25), report.rows[1])
    text = render_table(replace(report, rows=rows))
    assert "best epoch, %" in text
    assert "84.25" in text
    assert "chosen on the test split itself" in text


def test_a_missing_random_baseline_is_said(report: Report) -> None:
    text = render_table(replace(report, rows=report.rows[:1]))
    assert "not run" in text
    assert "Random images of the same number were not evaluated" in text


def test_random_of_another_protocol_is_no_baseline(report: Report) -> None:
    rows = (report.rows[0], replace(report.rows[1], protocol="mse-gt"))
    assert "+9.80" not in "".join(
        line
        for line in render_table(replace(report, rows=rows)).splitlines()
        if line.startswith("dm")
    )


def test_random_images_of_another_name_are_the_baseline_that_they_are(report: Report) -> None:
    own, random = report.rows
    other = replace(random, set="as many")

    def beside(random: dict[str, str], *rows: Row) -> tuple[list[str], str]:
        text = render_table(replace(report, rows=rows, random=random))
        cells = [re.split(r"\s{2,}", line) for line in text.splitlines()[4 : 4 + len(rows)]]
        return [line[4] for line in cells], text

    gain = f"{own.accuracy_mean - random.accuracy_mean:+.2f}"
    missing = "Random images of the same number were not evaluated"
    found, text = beside({"as many": "pixels"}, own, other)
    assert found == [gain, "–"]
    assert missing not in text
    found, text = beside({}, own, other)
    assert (found, missing in text) == (["not run", "not run"], True)
    longer = replace(other, protocol="longer")
    assert beside({"as many": "pixels"}, own, longer)[0] == ["not run", "–"]
    third = replace(own, set="third", protocol="another")
    found, text = beside({"as many": "updates"}, own, longer, third)
    assert found == [gain, "–", "not run"]
    assert f"{gain} points beside random images for as many updates (as many)." in text
    lower = replace(longer, accuracy_mean=1.0)
    found, text = beside({"as many": "updates"}, own, random, lower)
    assert found == [gain, "–", "–"]
    assert f"{own.accuracy_mean - 1:+.2f} points beside random images for as many updates" in text
    few = replace(other, seeds=2)
    assert "fewer than three" in beside({"as many": "pixels"}, own, few)[1]


def test_other_names_of_random_images_are_kept_where_there_are_some(report: Report) -> None:
    assert "random" not in report.to_dict()
    named = replace(report, random={"as many": "updates"})
    assert Report.from_dict(named.to_dict()) == named


def test_few_random_draws_are_said(report: Report) -> None:
    assert "fewer than three" not in render_table(report)
    few = replace(report, rows=(report.rows[0], replace(report.rows[1], seeds=2)))
    assert "fewer than three" in render_table(few)


def test_markdown_is_a_table_with_the_same_cells(report: Report) -> None:
    lines = render_markdown(replace(report, notes=("2 samples were skipped.",))).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    assert "| 83.50 ± 0.31 | +9.80 | 5 × 20 |" in table[2]
    assert "- 2 samples were skipped." in lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy_mean": 101.0}, "percentage from 0 to 100, not 101"),
        ({"networks": 0}, "at least 1"),
        ({"protocl": "x"}, "did you mean 'protocol'"),
    ],
)
def test_rows_that_cannot_be_are_refused(
    report: Report, change: dict[str, object], message: str
) -> None:
    values = report.to_dict()
    values["rows"][0].update(change)
    with pytest.raises(ConfigError, match=message):
        Report.from_dict(values)


def test_missing_keys_are_refused(report: Report) -> None:
    values = report.to_dict()
    del values["rows"][0]["network"]
    with pytest.raises(ConfigError, match=r"not a row: .*network"):
        Report.from_dict(values)


def test_a_difference_of_nothing_has_no_minus() -> None:
    assert [signed(x) for x in (-0.001, 0.0, -1.006, 2.5)] == ["+0.00", "+0.00", "-1.01", "+2.50"]


def test_protocols_are_told_with_what_they_come_to(report: Report) -> None:
    recipe = {
        "epochs": 300,
        "batch": 100,
        "accumulate": 2,
        "lr": 1e-3,
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "weight_decay": 0.01,
        "decay": "matrices_only",
        "schedule": "multistep",
        "milestones": [100, 200],
        "drop_factor": 0.2,
        "loss": "kl",
        "temperature": 20.0,
        "ema": 0.99,
        "double_norm": True,
        "augmentation": "pad_crop_flip",
        "pad": 4,
    }
    training = Training(
        protocol="dsa-1000", sets=("dm", "random"), networks=("convnet3-w128",), recipe=recipe
    )
    told = replace(report, trainings=(training,))
    line = "dsa-1000 (dm, random; convnet3-w128): 300 epochs of batches of 100 in 2 slices; "
    line += (
        "adamw, lr 0.001, betas 0.9/0.999, weight decay 0.01 of matrices only; schedule multistep, times 0.2 from epoch"
        " 100, 200; "
    )
    line += (
        "loss kl, temperature 20; tested with a moving average of 0.99; batch norms updated twice; augmentation"
        " pad_crop_flip, pad 4"
    )
    assert f"  {line}" in render_table(told).splitlines()
    assert f"- {line}" in render_markdown(told).splitlines()
    assert Report.from_dict(json.loads(json.dumps(told.to_dict()))) == told
    assert "trainings" not in report.to_dict(), (
        "reports of earlier versions have none, and read back as they are"
    )
    values = told.to_dict()
    values["trainings"][0]["netwroks"] = ["x"]
    with pytest.raises(ConfigError, match="did you mean 'networks'"):
        Report.from_dict(values)


def test_units() -> None:
    assert [format_bytes(n) for n in (999, 313_600, 4_000_000, 2.5e13)] == [
        "999 B",
        "313.6 kB",
        "4.0 MB",
        "25.0 TB",
    ]
    assert [format_seconds(s) for s in (None, 2.25, 64, 294, 9000)] == [
        "–",
        "2.2 s",
        "64 s",
        "4.9 min",
        "2.5 h",
    ]


def test_what_sets_weigh_stands_below_the_rows(report: Report) -> None:
    assert "weigh" not in render_table(report), "of earlier versions"
    dm, random = report.rows
    known = replace(dm, account=Accounting.of(dm.bytes, 1920, 10))
    told = replace(random, account=Accounting.of(random.bytes, 1920, 10, teacher_bytes=4_000_000))
    weighed = replace(report, rows=(known, random))
    text = render_table(weighed)
    header, row = (next(x for x in text.splitlines() if x.startswith(w)) for w in ("set  ", "dm  "))
    assert "protocol" in header
    line = next(x for x in text.splitlines() if x.startswith("dm") and "6,336" in x)
    assert line.split() == ["dm", "7,920", "6,336", "1.9", "kB", "7.7", "kB"]
    assert "teachers" not in text
    assert "83.50" in row
    assert "4.0 MB" in render_markdown(replace(report, rows=(known, told)))
    assert Report.from_dict(json.loads(json.dumps(weighed.to_dict()))) == weighed
