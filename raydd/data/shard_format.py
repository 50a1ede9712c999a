"""What stands beside the tar shards: the manifest and the index of each split.

A folder written by ``raydd shard``::

    train-000000.tar ...           WebDataset: key.jpg|png|webp, key.cls, key.json
    parts/train-000000.json        marker of a finished shard, written after it
    index-train.safetensors        sample -> shard, offset, size, label, identity, key
    manifest.json                  written last: the data set's facts, every shard's count, bytes and sha256
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raydd.core.errors import DataError
from raydd.core.json_text import parse_json
from raydd.core.plain_types import is_of
from raydd.core.storage import Storage, join
from raydd.core.tensors import dump_tensors, load_tensors
from raydd.data.inventory import LeftOut

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass
class Index:
    """Where every sample of a split lies. Arrays of length N; ``names``: the shards; ``keys``: the
    samples' tar keys.
    """

    names: list[str]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    identity: np.ndarray
    keys: list[str]

    def __len__(self) -> int:
        return len(self.label)

    def dump(self, metadata: dict[str, str] | None = None) -> bytes:
        """Return the index as a safetensors file; equal indices give equal bytes. ``metadata``:
        texts to keep in its header.
        """
        encoded = [key.encode(errors="surrogateescape") for key in self.keys]
        names = "\n".join(self.names).encode()
        arrays: dict[str, np.ndarray] = {
            "shard": self.shard.astype(np.int32),
            "offset": self.offset.astype(np.int64),
            "size": self.size.astype(np.int64),
            "label": self.label.astype(np.int64),
            "identity": self.identity.astype(np.uint8),
            "keys": np.frombuffer(b"".join(encoded), np.uint8),
            "key_ends": np.cumsum([len(key) for key in encoded], dtype=np.int64),
            "names": np.frombuffer(names, np.uint8),
        }
        return dump_tensors(
            {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}, metadata
        )

    @classmethod
    def parse(cls, data: bytes, what: str) -> Index:
        """Read what :meth:`dump` wrote; ``TornFileError`` or ``DataError`` naming ``what`` if it is not whole."""
        arrays = {name: value.numpy() for name, value in load_tensors(data, what).items()}
        try:
            flat, ends = arrays["keys"].tobytes(), arrays["key_ends"].tolist()
            keys = [
                flat[start:end].decode(errors="surrogateescape")
                for start, end in zip([0, *ends], ends)
            ]
            names = arrays["names"].tobytes().decode().split("\n")
            index = cls(
                names=names,
                shard=arrays["shard"],
                offset=arrays["offset"],
                size=arrays["size"],
                label=arrays["label"],
                identity=arrays["identity"],
                keys=keys,
            )
        except (KeyError, UnicodeDecodeError) as error:
            raise DataError(f"{what} is not a shard index: {error}") from error
        if {
            len(index.shard),
            len(index.offset),
            len(index.size),
            len(index.identity),
            len(index.keys),
        } != {len(index.label)}:
            raise DataError(f"{what} is torn: its columns differ in length")
        return index


UNDECODED = "sample that could not be decoded"


def left_out_of(facts: dict[str, Any], what: str) -> LeftOut:
    """Return what a split's source left out and its writing skipped, as the manifest ``what`` says;
    older ones have a count only.
    """
    try:
        left_out = LeftOut.from_dict(facts.get("left_out", {}))
        skipped = int(facts.get("skipped", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{what} is torn: left_out: {error}") from error
    if skipped and UNDECODED not in left_out.reasons:
        left_out.add(UNDECODED, "not named", skipped)
    return left_out


def read_manifest(files: Storage) -> dict[str, Any] | None:
    """Return the manifest of a shard folder, or ``None`` if there is none of ours; ``DataError`` if
    it is torn or too new.
    """
    try:
        data = files.get(MANIFEST)
    except FileNotFoundError:
        return None
    what = join(files.url, MANIFEST)
    try:
        manifest = parse_json(data)
        if isinstance(manifest, dict) and not {"format", "splits"} & manifest.keys():
            return None  # of others
        version, splits = int(manifest["format"]), dict(manifest["splits"])
        for split in splits.values():
            lacking = {"count", "index_sha256", "shards"} - split.keys()
            lacking |= {
                key
                for shard in split.get("shards", ())
                for key in {"name", "count", "sha256"} - shard.keys()
            }
            if lacking:
                raise ValueError(f"a split lacks {', '.join(sorted(lacking))}")
            for kind, keys, of in (
                (int, ("count",), (split, *split["shards"])),
                (str, ("index_sha256",), (split,)),
                (str, ("name", "sha256"), split["shards"]),
            ):
                wrong = [one[key] for one in of for key in keys if not is_of(one[key], kind)]
                if wrong:
                    raise ValueError(f"{ascii(wrong[0])[:60]} stands for one of {', '.join(keys)}")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{what} is torn: {error}") from error
    if version != FORMAT:
        raise DataError(f"{what} has format {version}; this version of raydd reads {FORMAT}")
    return dict(manifest)


def read_index(files: Storage, split: str, facts: dict[str, Any]) -> Index:
    """Return a split's index after checking it against the manifest: checksum, shards, and the
    count of samples in each.
    """
    path = f"index-{split}.safetensors"
    what = join(files.url, path)
    try:
        data = files.get(path)
    except FileNotFoundError as error:
        raise DataError(f"{what} is missing although the manifest lists it") from error
    if hashlib.sha256(data).hexdigest() != facts["index_sha256"]:
        raise DataError(f"{what} is torn: its checksum is not the manifest's")
    index = Index.parse(data, what)
    counts = np.bincount(index.shard, minlength=len(index.names)).tolist()
    listed = [(shard["name"], int(shard["count"])) for shard in facts["shards"]]
    for (name, count), (there, found) in zip(listed, zip(index.names, counts)):
        if (name, count) != (there, found):
            raise DataError(
                f"{what}: {found} samples in {there}, the manifest says {count} in {name}"
            )
    if len(listed) != len(index.names) or len(index) != int(facts["count"]):
        raise DataError(
            f"{what}: {len(index)} samples in {len(index.names)} shards, the manifest says {facts['count']} in"
            f" {len(listed)}"
        )
    return index
