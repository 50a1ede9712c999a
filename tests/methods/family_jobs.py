"""Jobs of the statistics-matching family that take a second: digits, networks of one layer, a few updates."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner, Result

from raydd.cli import main
from raydd.data.catalog import entry

INFO = entry("digits").info
NETWORKS = ("convnet1_w8_batchnorm", "convnet1_w4_batchnorm")
EDC: dict[str, Any] = {
    "name": "edc",
    "network": NETWORKS[0],
    "networks": list(NETWORKS),
    "label_networks": [NETWORKS[0]],
    "teachers": {"weights": "train", "epochs": 1, "augmentation": "none"},
    "statistics": {"patch": 4, "batch": 256, "slices": 1},
    "init": {"kind": "real", "pool": 3},
    "iterations": 2,
    "group_size": 4,
    "image_format": "png",
    "labels": {"batch": 5, "epochs": 2},
}
SHARED = ("network", "teachers", "iterations", "group_size", "labels", "image_format")
METHODS: dict[str, dict[str, Any]] = {
    "edc": EDC,
    "gvbsm": {k: EDC[k] for k in (*SHARED, "networks", "statistics")}
    | {"name": "gvbsm", "jitter": [0, 2]},
    "sre2l": {k: EDC[k] for k in (*SHARED, "networks")} | {"name": "sre2l", "jitter": [0, 2]},
    "dwa": {k: EDC[k] for k in (*SHARED, "networks", "init")}
    | {"name": "dwa", "jitter": [0, 2], "labels": {"batch": 5, "epochs": 2, "codec": "online"}},
    "infer": {k: EDC[k] for k in ("network", "teachers", "iterations", "networks")}
    | {"name": "infer", "jitter": [0, 2], "labels": {"batch": 5, "epochs": 2, "codec": "static"}},
    "rded": {
        "name": "rded",
        "teacher": NETWORKS[0],
        "network": NETWORKS[0],
        "candidates": 20,
        "labels": {"batch": 5},
    }
    | {"teachers": EDC["teachers"]},
}


def raydd(*args: str) -> Result:
    """Run the command line in this process, and leave logging as it was."""
    logger = logging.getLogger("raydd")
    level = logger.level
    try:
        result = CliRunner().invoke(main, list(args))
    finally:
        logger.setLevel(level)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def job(
    folder: Path, method: str, fields: dict[str, Any], overrides: tuple[str, ...] = ()
) -> Result:
    """Run ``raydd distill`` in this process on a job of digits below ``folder``."""
    tree = {
        "dataset": {"name": "digits"},
        "ipc": 2,
        "method": {**METHODS[method], **fields},
        "evaluation": {
            "protocol": method,
            "repeats": 1,
            "baselines": [],
            "networks": [NETWORKS[0]],
        },
        "compute": {"workers": 0},
        "tracking": {"uri": "none"},
        "output": str(folder / "out"),
        "store": str(folder / "store"),
    }
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(tree))
    return raydd("distill", "--config", str(folder / "job.yaml"), *overrides)
