"""Draws the README's picture from a finished run: the distilled images, and their worth while they were made.

python tests/benchmarks/quickstart_picture.py runs/quickstart docs/quickstart.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from raydd import load
from raydd.artifacts.report import Report


def draw(run: Path, out: Path) -> None:
    """Write the picture of a run with one image per class."""
    from matplotlib.figure import Figure

    report = Report.from_dict(json.loads((run / "report.json").read_text()))
    dataset = load(str(run / "distilled"))
    pictures = dataset.to_rgb().permute(0, 2, 3, 1)
    figure = Figure(figsize=(9, 2.9), dpi=150, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    left.suptitle(f"{len(dataset)} distilled images", fontsize=10)
    for number, axes in enumerate(left.subplots(2, 5).flat):
        axes.imshow(pictures[number].expand(-1, -1, 3), interpolation="nearest")
        axes.set_title(dataset.class_names[number], fontsize=8, pad=2)
        axes.axis("off")
    axes = right.subplots()
    steps = [point.step for point in report.curve]
    axes.plot(
        steps,
        [point.accuracy_mean for point in report.curve],
        "o-",
        color="#0b6e99",
        label=f"students of the {len(dataset)} images",
    )
    random = next(row for row in report.rows if row.set == "random")
    axes.axhline(
        random.accuracy_mean,
        color="#888888",
        ls="--",
        label="students of as many random real images",
    )
    low, high = (random.accuracy_mean + sign * random.accuracy_std for sign in (-1, 1))
    axes.axhspan(low, high, color="#888888", alpha=0.2, lw=0)
    axes.set_xlabel("updates", fontsize=9)
    axes.set_ylabel("test accuracy, %", fontsize=9)
    axes.set_xticks(steps)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, loc="center right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    draw(arguments.run, arguments.out)
