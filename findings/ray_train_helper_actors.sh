#!/usr/bin/env bash
# A run of Ray Train with one worker and no data set has six processes of Ray Train, and only one setting takes any of them away.
#
# Versions: ray 2.60.0 (Ray Train v2, its default); Python 3.11.
# Seen: DataParallelTrainer with one worker and no `datasets` runs, beside the worker, TrainController, SynchronizationActor,
#   PlacementGroupCleaner, PreemptionWatcher, and DatasetManager, which hands out shards of the data sets that there are none of. Each is a
#   Python process of its own that imports ray.train. RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=0 takes the watcher away, here where no
#   machine can be taken away; DatasetManager has no setting (its callback is among those that the trainer always adds).
# Who meets it: short runs, many small groups on one machine, tests: these five processes cost more than a small worker does.
# Prints last: unwatched: DatasetManager PlacementGroupCleaner RayTrainWorker SynchronizationActor TrainController
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "ray[train]==2.60.0" "setuptools<81"
cat >"$folder/run.py" <<'P'
import collections
import os
import pathlib
import sys
import time

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

ACTORS = (
    "TrainController",
    "RayTrainWorker",
    "SynchronizationActor",
    "PlacementGroupCleaner",
    "PreemptionWatcher",
    "DatasetManager",
)


def train(config):
    time.sleep(15)  # until all that is started has its name
    found = collections.Counter()
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (folder / "cmdline").read_text(errors="replace")
        except (OSError, IndexError):
            continue
        if parent == os.getppid():  # all of them are children of this machine's raylet
            for name in ACTORS:
                found[name] += command.startswith(f"ray::{name[:10]}")
    pathlib.Path(config["out"]).write_text(" ".join(sorted(name for name in found if found[name])))


folder = pathlib.Path(sys.argv[1])
ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
DataParallelTrainer(
    train,
    train_loop_config={"out": str(folder / "found")},
    scaling_config=ScalingConfig(num_workers=1),
    run_config=RunConfig(storage_path=str(folder / "storage")),
).fit()
print((folder / "found").read_text())
P
unset RAY_ADDRESS RAY_TRAIN_ENABLE_PREEMPTION_WATCHER
plain=$("$folder/env/bin/python" "$folder/run.py" "$folder" 2>/dev/null | tail -n 1)
export RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=0
unwatched=$("$folder/env/bin/python" "$folder/run.py" "$folder" 2>/dev/null | tail -n 1)
echo "plain: $plain"
echo "unwatched: $unwatched"
test "$plain" = "DatasetManager PlacementGroupCleaner PreemptionWatcher RayTrainWorker SynchronizationActor TrainController"
test "$unwatched" = "DatasetManager PlacementGroupCleaner RayTrainWorker SynchronizationActor TrainController"
