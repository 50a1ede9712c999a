"""The published folder of a distilled set (``distilled/``), on any fsspec URL; readable without raydd.

Files::

    data.safetensors            images, labels, soft_labels, what else the decoding reads; the
                                header's metadata holds, under "raydd", the facts as JSON (data set,
                                normalisation, whitening, decoding)
    whitening.safetensors       whitening_matrix, whitening_mean, where images are whitened (in data
                                of version 1: beside the images)
    data-00001-of-00003.safetensors, …, data.safetensors.index.json
                                instead, above 4 GB: equal names are joined along the first axis, in
                                the order of the index
    shards/train-000000.tar     WebDataset view in 8 bits; shards/dataset.json holds its data set's
                                facts, and, where values leave the range of pixels, what the 8 bits
                                stand for
    grid.png, curve.png         pictures: a class per row, or the poster; accuracy over the
                                distillation, if the report has it
    semantic.png, label_map.png of a poster: the class of each area; its learnt label map
    networks.png, continual.png, continual.csv
                                sets on several networks, and the continual experiment, if the
                                report has them
    labels/manifest.json        how to read the label records beside it, <epoch>.safetensors, where
                                soft labels are stored
    set.rdd                     of a coded set: all that students see, in one small file, of which
                                the images beside it are decoded (docs/per_byte.md)
    recipe.json, report.json    how the set was made; what it is worth (if it was evaluated)
    README.md                   dataset card
    manifest.json               written last: size and sha256 of every other file

Equal sets, reports and recipes give equal bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from raydd.artifacts.card import card
from raydd.artifacts.charts import report_files
from raydd.artifacts.dataset_facts import info_from
from raydd.artifacts.decoding import COMMON, Decoding
from raydd.artifacts.distilled_set import WHITENING, DistilledSet, Whitening
from raydd.artifacts.eight_bit import SHARD_BYTES, tar_shards
from raydd.artifacts.grid import MODES, curve, png
from raydd.artifacts.image_codecs import facts as facts_of_file
from raydd.artifacts.image_codecs import pixel_digest
from raydd.artifacts.pictures import SIDE_FILE, Range, SeenPictures, side_file
from raydd.artifacts.poster_pictures import further_pictures, picture_of
from raydd.artifacts.published_manifest import (
    APART,
    FORMAT,
    MANIFEST,
    VERSION,
    listed_file,
    read_manifest,
)
from raydd.artifacts.rendering import format_seconds, size_of
from raydd.artifacts.report import Report, reference
from raydd.core.errors import ConfigError, DataError, TornFileError
from raydd.core.json_text import parse_json
from raydd.core.storage import Storage, join
from raydd.core.tensors import Tensors, dump_tensors, load_metadata, load_tensors

PART_BYTES = 4_000_000_000
_VALUES = 1 << 28
"""Values of an image that students may see."""
INDEX, DATA = "data.safetensors.index.json", "data.safetensors"
CODED = "set.rdd"
_VALUES = 1 << 28
"""Values of an image that students may see."""
WHITENING_FILE = "whitening.safetensors"


def to_json(value: Any) -> bytes:
    """Return a JSON file's bytes; ``ConfigError`` for what JSON cannot hold (NaN too)."""
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"not a JSON value: {error}") from error


def facts(distilled: DistilledSet) -> dict[str, Any]:
    """Return how to read a set's tensors, as JSON values."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "dataset": dataclasses.asdict(distilled.info),
        "mean": list(distilled.mean),
        "std": list(distilled.std),
        "whitening": None
        if distilled.whitening is None
        else {"per_image": distilled.whitening.per_image},
        "decoding": {
            "name": distilled.decoding.name,
            "parameters": dict(distilled.decoding.parameters),
        },
    }


def data_files(distilled: DistilledSet, limit: int = PART_BYTES) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the set's safetensors files, each of about ``limit`` bytes at most,
    and of their index.
    """
    tensors = distilled.stored()
    told = facts(distilled)
    if distilled.whitening is not None:
        told["version"] = APART
    metadata = {"raydd": json.dumps(told, sort_keys=True)}
    if distilled.whitening is not None:
        whitening = {name: tensors.pop(name) for name in WHITENING}
        yield WHITENING_FILE, dump_tensors(whitening, metadata)
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    if sum(sizes.values()) <= limit:
        yield DATA, dump_tensors(tensors, metadata)
        return
    rows = len(distilled.images)
    by_row = [name for name in COMMON if name in tensors and len(tensors[name]) == rows]
    once = {name: tensor for name, tensor in tensors.items() if name not in by_row}
    per_row = max(1, sum(sizes[name] for name in by_row) // max(1, rows))
    starts = [0]
    room = limit - sum(sizes[name] for name in once)
    while starts[-1] < rows:
        starts.append(min(rows, starts[-1] + max(1, room // per_row)))
        room = limit
    count = len(starts) - 1
    parts = []
    for i, (start, end) in enumerate(itertools.pairwise(starts)):
        part = {name: tensors[name][start:end] for name in by_row} | (once if i == 0 else {})
        parts.append(
            {"file": f"data-{i + 1:05d}-of-{count:05d}.safetensors", "tensors": sorted(part)}
        )
        yield str(parts[-1]["file"]), dump_tensors(part, metadata)
    yield (
        INDEX,
        to_json(
            {
                "metadata": {"total_size": sum(sizes.values()), "raydd": told},
                "parts": parts,
            }
        ),
    )


def _curve(report: Report) -> bytes | None:
    if len(report.curve) < 2:
        return None
    references = {name: reference(report, name) for name in ("random", "whole")}
    last = report.curve[-1]
    return curve(
        {"": [(p.step, p.accuracy_mean, p.accuracy_std) for p in report.curve]},
        x_label=f"updates of the images ({format_seconds(last.device_seconds)} of one device in all)",
        y_label=f"accuracy, % ({report.split} split)",
        title=f"{report.dataset}, {size_of(report)}"
        + (f", {report.curve_protocol}" if report.curve_protocol else ""),
        levels={
            f"{name} {value:.1f}": value for name, value in references.items() if value is not None
        },
    )


def _files(
    distilled: DistilledSet,
    report: Report | None,
    license_id: str,
    part: int,
    shard: int,
    records: int,
    coded: bytes | None,
) -> Iterator[tuple[str, bytes]]:
    parts = []
    if coded is not None:
        yield CODED, coded
    for name, data in data_files(distilled, part):
        parts += [name] if name != INDEX else []
        yield name, data
    shards = distilled.info.channels in MODES
    view: Range | None = None
    if shards:
        shown = SeenPictures(distilled)
        view = shown.range
        for name, data in tar_shards(shown, shard):
            yield f"shards/{name}", data
        yield f"shards/{SIDE_FILE}", side_file(distilled, shown)
    yield "grid.png", png(picture_of(distilled))
    further = further_pictures(distilled)
    yield from further.items()
    chart = None if report is None else _curve(report)
    charts = ({} if chart is None else {"curve.png": chart}) | (
        {} if report is None else report_files(report)
    )
    yield from charts.items()
    yield "recipe.json", to_json(dict(distilled.recipe))
    if report is not None:
        yield "report.json", to_json(report.to_dict())
    text = card(
        distilled,
        report,
        parts=parts,
        license_id=license_id,
        shards=shards,
        charts=[*further, *charts],
        records=records,
        view=view,
        coded=None if coded is None else facts_of_file(coded),
    )
    yield "README.md", text.encode()


def publish(
    distilled: DistilledSet,
    url: str,
    report: Report | Mapping[str, Any] | None = None,
    *,
    license_id: str = "unknown",
    part_bytes: int = PART_BYTES,
    shard_bytes: int = SHARD_BYTES,
    written: Mapping[str, Mapping[str, Any]] | None = None,
    coded: bytes | None = None,
) -> dict[str, Any]:
    """Write a set as a folder at ``url``, its manifest last, and return the manifest.

    ``report``: as :class:`Report` or its JSON values. ``license_id``: the hub's identifier for the
    card; a distilled set usually carries the licence of its source. ``written``: size and sha256 of
    files that lie in the folder already (label records). ``coded``: the file that the set was
    decoded of, which is put beside it; the manifest has its size. A set published there before is replaced;
    meanwhile the folder has no manifest, so that nobody reads half of each.
    """
    if report is not None and not isinstance(report, Report):
        report = Report.from_dict(report)
    storage = Storage(url)
    before = _old_files(storage)
    storage.delete(MANIFEST)
    files = {path: dict(facts) for path, facts in (written or {}).items()}
    records = sum(int(facts["size"]) for facts in files.values())
    for path, data in _files(
        distilled, report, license_id, part_bytes, shard_bytes, records, coded
    ):
        storage.put(path, data)
        files[path] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for path in before - set(files):
        storage.delete(path)
    version = VERSION if distilled.whitening is None else APART
    manifest = {"format": FORMAT, "version": version, "digest": distilled.digest, "files": files}
    if coded is not None:
        manifest["coded"] = {"file": CODED, "bytes": len(coded), "digest": distilled.digest}
    storage.put(MANIFEST, to_json(manifest))
    return manifest


def _old_files(storage: Storage) -> set[str]:
    try:
        return set(read_manifest(storage)["files"])
    except (FileNotFoundError, TornFileError):
        return set()


def verify(url: str) -> None:
    """Read every file of a published folder; raise ``TornFileError`` naming the first that is not as published."""
    storage = Storage(url)
    files = read_manifest(storage)["files"]
    for path in files:
        listed_file(storage, path, files)


def read(url: str) -> DistilledSet:
    """Return the set published at ``url``, its checksums verified.

    Raises ``TornFileError`` naming a file that is not as published, or a folder whose publication did not finish;
    ``FileNotFoundError`` if there is nothing.
    """
    storage = Storage(url)
    try:
        files = read_manifest(storage)["files"]
    except FileNotFoundError:
        if storage.exists(DATA) or storage.exists(INDEX):
            raise TornFileError(
                f"{storage.url} has no {MANIFEST}: its publication did not finish"
            ) from None
        raise
    names = _parts(storage, files) if INDEX in files else [DATA]
    names += [WHITENING_FILE] * (WHITENING_FILE in files)
    pieces: dict[str, list[torch.Tensor]] = {}
    metadata: dict[str, str] = {}
    for name in names:
        data = listed_file(storage, name, files)
        where = join(storage.url, name)
        for key, tensor in load_tensors(data, where).items():
            pieces.setdefault(key, []).append(tensor)
        metadata = load_metadata(data, where)
    try:
        tensors = {
            key: torch.cat(parts) if len(parts) > 1 else parts[0] for key, parts in pieces.items()
        }
    except (RuntimeError, TypeError) as error:
        raise DataError(f"{storage.url}: the parts of a tensor do not fit: {error}") from error
    found = from_tensors(tensors, metadata, _recipe(storage, files), storage.url)
    if CODED in files:
        where = join(storage.url, CODED)
        coded = facts_of_file(listed_file(storage, CODED, files), where)
        if coded.pixel_digest != pixel_digest(found.images).hex():
            raise TornFileError(f"{where} is decoded to other images than those beside it")
    return found


def _recipe(storage: Storage, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    try:
        recipe = parse_json(listed_file(storage, "recipe.json", files))
        if isinstance(recipe, dict):
            return recipe
        why = f"a {type(recipe).__name__}"
    except ValueError as error:
        why = str(error)
    raise DataError(f"{join(storage.url, 'recipe.json')} is no recipe: {why}")


def _parts(storage: Storage, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the files that the index lists."""
    try:
        return [
            str(part["file"]) for part in parse_json(listed_file(storage, INDEX, files))["parts"]
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{join(storage.url, INDEX)} is no index: {error!r}") from error


def from_tensors(
    tensors: Tensors, metadata: Mapping[str, str], recipe: Mapping[str, Any], where: str
) -> DistilledSet:
    """Return the set of one safetensors file's tensors and header; ``DataError`` naming ``where`` if it is none."""
    try:
        values = parse_json(metadata["raydd"])
        if values["format"] != FORMAT or int(values["version"]) > APART:
            raise DataError(
                f"{where} is of format '{values['format']}' version {values['version']}"
            )
        whitening = None
        if values["whitening"] is not None:
            if not set(WHITENING) <= set(tensors):
                raise DataError(
                    f"{where}: its whitening is in {WHITENING_FILE} beside it; name the folder of both"
                )
            matrix, mean = (tensors[name] for name in WHITENING)
            whitening = Whitening(
                matrix=matrix, mean=mean, per_image=bool(values["whitening"]["per_image"])
            )
        made = DistilledSet(
            images=tensors["images"],
            labels=tensors["labels"],
            soft_labels=tensors.get("soft_labels"),
            extra={
                name: tensor
                for name, tensor in tensors.items()
                if name not in (*COMMON, *WHITENING)
            },
            info=info_from(values["dataset"]),
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
            whitening=whitening,
            decoding=Decoding(values["decoding"]["name"], values["decoding"]["parameters"]),
            recipe=recipe,
        )
        if math.prod(made.shape) > _VALUES:
            raise DataError(f"{where}: students would see images of {list(made.shape)}")
        return made
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise DataError(f"{where} is not a distilled set: {error!r}") from error
