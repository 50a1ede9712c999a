"""A queue of networks on object storage: an update reads its row, and nothing else of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MotoServer, S3Server

from raydd.core.storage import Storage
from raydd.core.store import Store
from raydd.core.tensors import digest
from raydd.core.units import Numerics, Ref
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.methods import Problem
from raydd.methods.idm import Idm
from raydd.runtime.runner import LocalRunner
from raydd.training.network_queue import QueueConfig
from raydd.training.train_queue import TrainQueue


def test_a_queue_is_read_by_row(
    either_s3: S3Server | MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_data(DatasetConfig(name="digits"))
    queue = QueueConfig(net_num=4, net_generate_interval=3, model_train_steps=2, trained_bs=32)
    method = Idm(network="convnet2_w8", iterations=12, batch_real=8, queue=queue)
    info = with_digests(entry("digits").info, data)
    problem = Problem(dataset=info, ipc=1, seed=0, numerics=Numerics())
    trained, matching = method.plan(problem)
    assert isinstance(trained, TrainQueue)
    targets = list(method.targets(problem).values())

    def run(store: Store, refs: list[Ref]) -> list[str]:
        runner = LocalRunner(lambda: data, device=torch.device("cpu"))
        runner.run(refs, store, lambda event: None)
        return [digest(store.load(ref)) for ref in refs]

    store = Store(either_s3.url("rows/store"))
    networks = sorted(matching.inputs("").values(), key=lambda ref: ref.unit)
    run(store, networks)
    there = sum(store.marker(ref)["files"]["final.safetensors"]["size"] for ref in networks)
    read: list[tuple[str, int]] = []
    get = Storage.get

    def counted(self: Storage, path: str, *span: Any) -> bytes:
        found = get(self, path, *span)
        read.append((path, len(found)))
        return found

    monkeypatch.setattr(Storage, "get", counted)
    keys = {ref.key for ref in networks}
    run(store, targets)
    rows = [
        size
        for path, size in read
        if path.endswith("final.safetensors") and path.split("/")[2] in keys
    ]
    sizes = 0
    for t in range(12):
        network, _, row = queue.plan.reading(t)
        facts = store.marker(Ref(trained, f"network-{network:05d}"))["rows"]
        assert row < facts["weights"]["shape"][0]
        sizes += 4 * facts["weights"]["shape"][1] + 4 * facts["correct"]["shape"][1]
    assert len(matching.units()) == 2
    assert sum(rows) == 2 * sizes, "both blocks read a row for each update"
    assert len(rows) == 2 * 2 * 12
    assert max(rows) < there / 4
    monkeypatch.setattr(Storage, "get", get)
    assert run(store, targets) == run(Store(str(tmp_path)), targets)
