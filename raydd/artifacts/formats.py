"""Distilled sets of others, read, so that published sets are evaluated here
(:mod:`raydd.artifacts.writing` writes ours for others).

============  ======================================================================================
format        what it is
============  ======================================================================================
distilled     raydd's own folder (:mod:`raydd.artifacts.published_folder`), or a run's output folder
              that holds it
safetensors   one ``data.safetensors`` of raydd, with how to read it in its header
coded         one ``set.rdd`` of raydd (:mod:`raydd.artifacts.image_codecs`)
pt            ``.pt`` of DC, DSA and DM: a dict whose ``data`` lists ``[images, labels]`` per
              experiment, or per step of continual learning; also a pair ``(images, labels)`` or a
              dict of them (IDC, IDM)
mtt           ``images_<n>.pt`` with ``labels_<n>.pt`` beside it (MTT and its descendants): one of
              the two, or their folder
folder        a folder per class of pictures (SRe2L, EDC, RDED, any image folder)
webdataset    tar shards with ``.png``/``.jpg`` and ``.cls``
============  ======================================================================================

Formats of others say neither what data set they stand for nor how it is normalised: ``info`` does,
or a ``dataset.json`` that raydd wrote beside them; nor in which space their values are: a
:class:`Reading` does, or it is guessed, and told (:mod:`raydd.artifacts.reading`). Nothing is
unpickled but tensors and plain numbers.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raydd.artifacts import published_folder as folder
from raydd.artifacts.dataset_facts import info_from
from raydd.artifacts.detection import FoundFiles
from raydd.artifacts.detection import detect as detect
from raydd.artifacts.distilled_set import DistilledSet, Whitening
from raydd.artifacts.eight_bit import read_folder, read_tars
from raydd.artifacts.first_images import first_images
from raydd.artifacts.foreign_posters import one_poster, poster_targets
from raydd.artifacts.image_codecs import decode
from raydd.artifacts.pictures import SIDE_FILE, Pictures, read_side
from raydd.artifacts.poster_geometry import WindowGrid
from raydd.artifacts.pt import Experiments, experiments_of
from raydd.artifacts.pt import load_pt as load_pt
from raydd.artifacts.reading import (
    WHITENED,
    Reading,
    Tell,
    images_in_space,
    targets_of,
    tell_counted_from_1,
)
from raydd.artifacts.writing import write_set as write_set
from raydd.core.errors import ConfigError, DataError, RayddError
from raydd.core.json_text import parse_json
from raydd.core.storage import join
from raydd.core.tensors import Tensors, load_metadata, load_tensors
from raydd.data.catalog import DatasetInfo, entry

log = logging.getLogger(__name__)


def read_set(
    url: str,
    *,
    info: DatasetInfo | str | None = None,
    reading: Reading | None = None,
    tell: Tell = log.warning,
) -> DistilledSet:
    """Return the distilled set at ``url``, of any format in the table above.

    ``info``: the data set it stands for (its facts, or its name in the catalog), needed where the
    format does not say. ``reading``: what its values mean, as far as that is known. ``tell`` gets a
    line for each guess, and for what was left out. A set in a whitened space is returned without
    its whitening, which :mod:`raydd.artifacts.whitening` fits. Raises ``DataError`` for what is not
    a set or does not fit ``info``, ``TornFileError`` for what is broken, ``ConfigError`` for an
    ``info`` that is missing or unknown and for a reading that cannot be.
    """
    info = entry(info).info if isinstance(info, str) else info
    reading = reading or Reading()
    source = detect(url)
    if reading.experiment is not None and source.format != "pt":
        what = f"experiment={reading.experiment} has no effect: {source.url} ({source.format})"
        raise ConfigError(f"{what} holds one set; only .pt lists hold more")
    if source.format == "distilled":
        reading.refuse(source.storage.url, "says itself how it is read")
        distilled = folder.read(source.storage.url)
    elif source.format == "safetensors":
        reading.refuse(source.url, "says itself how it is read")
        data = source.storage.get(source.paths[0])
        tensors = load_tensors(data, source.url)
        distilled = folder.from_tensors(
            tensors,
            load_metadata(data, source.url),
            {"source": source.url, "format": "safetensors"},
            source.url,
        )
    elif source.format == "coded":
        reading.refuse(source.url, "says itself how it is read")
        data = source.storage.get(source.paths[0])
        recipe = {"source": source.url, "format": "coded"}
        distilled = replace(decode(data, info, source.url), recipe=recipe)
    else:
        distilled = _read_foreign(source, info, reading, tell)
        absent = [label for label, count in enumerate(distilled.ipc) if not count]
        if absent and not distilled.soft:
            names = distilled.info.class_names
            shown = ", ".join(names[c] if c < len(names) else str(c) for c in absent[:5]) + (
                ", …" if len(absent) > 5 else ""
            )
            tell(
                f"{source.url}: {len(absent)} of {distilled.info.classes} classes have no image: {shown}"
            )
    if info is not None and (distilled.info.classes, distilled.info.channels) != (
        info.classes,
        info.channels,
    ):
        raise DataError(f"{source.url} has {_kind(distilled.info)}; {info.name} has {_kind(info)}")
    return (
        distilled
        if reading.ipc is None
        else first_images(distilled, reading.ipc, source.storage.url)
    )


def _kind(info: DatasetInfo) -> str:
    return f"{info.classes} classes and {info.channels} channel{'s' if info.channels != 1 else ''}"


def _read_foreign(
    source: FoundFiles, info: DatasetInfo | None, reading: Reading, tell: Tell
) -> DistilledSet:
    if source.chosen:
        tell(f"{source.storage.url}: read {source.chosen}")
    recipe: dict[str, Any] = {"source": source.url, "format": source.format}
    whitening, soft, extra = None, None, Tensors()
    if source.format in ("pt", "mtt"):
        value = tuple(
            load_pt(source.storage.get(path), join(source.storage.url, path))
            for path in source.paths
        )
        value = value[0] if source.format == "pt" else value
        ours = value if isinstance(value, Mapping) and isinstance(value.get("raydd"), str) else None
        if ours is not None:
            reading.refuse(source.url, "was written by raydd and says itself how it is read")
            info, whitening = _own_facts(
                ours, source
            )  # the images are in its space, whatever the given one's
            reading = replace(reading, space="normalised")
            tell = _nothing
        if reading.orientation != "ignore":
            raise ConfigError(
                f"orientation={reading.orientation} has no effect: {source.url} holds no picture files"
            )
        info = _needed(info, source)
        images, labels = _pt(value, reading, source, recipe, tell)
        images = one_poster(images) if reading.poster else images
        _check_shape(images, info, source, reading)
        hint = (source.space, source.why) if source.space is not None else None
        if whitening is None:
            images, recipe["space"] = images_in_space(
                images, info, reading.space, source.url, tell, hint
            )
        # Ours are learnt as they were, whatever their rows sum to.
        kind = "targets" if ours is not None and labels.ndim == 2 else reading.labels
        said = (info.classes, kind, source.url, tell)
        if reading.poster:
            labels, soft, extra = poster_targets(
                images, labels, _grid(reading, info, images, source.url), *said
            )
        else:
            labels, soft = targets_of(labels, *said)
    else:
        if reading.labels is not None or reading.space is not None:
            raise ConfigError(
                f"{source.url}: pictures are pixels, and their labels are known: only a decoding and a"
                " factor can be stated"
            )
        side = _side(source)
        own = side["info"] is not None
        info = _needed(info or side.pop("info"), source)
        shown = _read_pictures(source, info, side, reading, tell)
        images, labels, soft = shown.images(info.mean, info.std), shown.labels, shown.soft_labels
        if not own and source.format == "webdataset":
            _tell_labels(labels, soft, info, source, tell)
        recipe["space"] = "pixels255"
        _check_shape(images, info, source, reading)
    decoding = reading.decoding_of(info, recipe.get("space", "normalised"))
    # Whitening is of pixels in [0, 1], not of normalised ones.
    plain: dict[str, Any] = (
        {"mean": (0.0,) * info.channels, "std": (1.0,) * info.channels}
        if recipe.get("space") in WHITENED
        else {}
    )
    try:
        return DistilledSet(
            images=images.to(images.dtype if images.dtype == torch.uint8 else torch.float32),
            labels=labels,
            soft_labels=soft,
            extra=extra,
            info=info,
            recipe=recipe,
            whitening=whitening,
            decoding=decoding,
            **plain,
        )
    except RayddError as error:
        stated = "--windows {}x{}: ".format(*reading.windows) if reading.windows else ""
        raise DataError(f"{source.url}: {stated}{error}") from error


def _grid(reading: Reading, info: DatasetInfo, images: Tensor, where: str) -> WindowGrid:
    """Return the windows that a reading states, which are of the size of the data set's images;
    ``ConfigError`` where they do not tile the poster.
    """
    columns, rows = reading.windows or (1, 1)
    grid = WindowGrid(height=info.height, width=info.width, columns=columns, rows=rows)
    try:
        grid.check(*images.shape[2:])
    except ConfigError as error:
        raise ConfigError(f"{where}: --windows {columns}x{rows}: {error}") from error
    return grid


def _nothing(line: str) -> None:
    """Tell nobody: what raydd wrote is no guess."""


def _pt(
    value: Any, reading: Reading, source: FoundFiles, recipe: dict[str, Any], tell: Tell
) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a file as it holds them, and add to the recipe which of its sets they are."""
    if isinstance(value, Tensor) and source.partner:
        raise DataError(
            f"{source.url} needs its {source.partner.split('_')[0]} beside it, in {source.partner}"
        )
    held: Experiments = experiments_of(value, source.url)
    if held.unread:
        tell(
            f"labels: {source.url}: '{held.labels}' (guessed: {', '.join(held.unread)} beside it not read)"
        )
    if source.format == "pt":
        recipe["experiment"] = "all steps" if held.steps and reading.experiment is None else -1
        recipe["experiment"] = (
            recipe["experiment"] if reading.experiment is None else reading.experiment
        )
        recipe["experiments"] = len(held.sets)
        published = held.published_of(-1 if reading.experiment is None else reading.experiment)
        recipe |= (
            {"published": {name: list(values) for name, values in published.items()}}
            if published
            else {}
        )
    if held.steps and reading.experiment is None:
        tell(
            f"{source.url}: {len(held.sets)} steps of other classes each (continual learning), read as one set"
        )
    return held.chosen(reading.experiment, source.url)


def _tell_labels(
    labels: Tensor, soft: Tensor | None, info: DatasetInfo, source: FoundFiles, tell: Tell
) -> None:
    """Tell what in the labels of a tar of others may be meant otherwise."""
    tell_counted_from_1(labels, info.classes, source.url, tell)
    other = (soft.argmax(1) != labels).nonzero().flatten().tolist() if soft is not None else []
    if other:
        first = (
            f"first: image {other[0]}, {int(labels[other[0]])} and"
            f" {int(soft[other[0]].argmax()) if soft is not None else ''}"
        )
        tell(
            f"labels: {source.url}: soft_label is learned (guessed), although in {len(other)} of {len(labels)} samples"
            f" the class beside it is not its likeliest ({first})"
        )


def experiments_at(url: str) -> Experiments | None:
    """Return the sets that a ``.pt`` file lists; ``None`` for any other format."""
    source = detect(url)
    return (
        experiments_of(load_pt(source.storage.get(source.paths[0]), source.url), source.url)
        if source.format == "pt"
        else None
    )


def data_set_at(url: str) -> str:
    """Return the name of the data set that an export of ours at ``url`` says it is of; empty for a set of others."""
    source = detect(url)
    if source.format in ("folder", "webdataset"):
        info = _side(source)["info"]
        return "" if info is None else str(info.name)
    if source.format not in ("pt", "safetensors"):
        return ""
    data, url = source.storage.get(source.paths[0]), source.url
    value = load_pt(data, url) if source.format == "pt" else load_metadata(data, url)
    facts = value.get("raydd") if isinstance(value, Mapping) else None
    if not isinstance(facts, str):
        return ""
    try:
        found = parse_json(facts)
        return str((found["dataset"] if source.format == "safetensors" else found)["name"])
    except (ValueError, KeyError, TypeError):
        return ""


def _own_facts(
    value: Mapping[str, Any], source: FoundFiles
) -> tuple[DatasetInfo, Whitening | None]:
    facts = parse_json(value["raydd"])
    if "whitening_matrix" not in value:
        return info_from(facts), None
    per_image = bool(facts.pop("per_image"))
    whitening = Whitening(
        matrix=value["whitening_matrix"], mean=value["whitening_mean"], per_image=per_image
    )
    return info_from(facts), whitening


def _check_shape(images: Tensor, info: DatasetInfo, source: FoundFiles, reading: Reading) -> None:
    if (
        images.ndim == 4
        and (reading.decoding == "resize" or reading.poster)
        and images.shape[1] == info.channels
    ):
        return  # the decoder looks at their sides
    if images.ndim != 4 or tuple(images.shape[1:]) != info.shape:
        shape, wanted = ("×".join(map(str, v)) for v in (images.shape[1:], info.shape))
        turned = images.ndim == 4 and (images.shape[3], *images.shape[1:3]) == info.shape
        hint = "; bring the channels to the front: images.permute(0, 3, 1, 2)" if turned else ""
        sides = (
            images.shape[2:] if images.ndim == 4 and images.shape[:2] == (1, info.channels) else ()
        )
        if sides and sides[0] >= info.height and sides[1] >= info.width:
            hint = "; if it is a poster, say how many columns and rows of windows it has: --windows 16x6"
        raise DataError(
            f"{source.url}: images are {shape}; those of {info.name} are {wanted} (C×H×W){hint}"
        )


def _needed(info: DatasetInfo | None, source: FoundFiles) -> DatasetInfo:
    if info is None:
        raise ConfigError(
            f"{source.url} ({source.format}) does not say of which data set it is: give its name, or its facts, as"
            " `info`"
        )
    return info


def _side(source: FoundFiles) -> dict[str, Any]:
    """Return what raydd wrote beside a view: its data set's facts as ``info``, and what else there is."""
    values = read_side(source.storage)
    extra: dict[str, Any] = {
        name: values.pop(name) for name in ("view", "folders") if name in values
    }
    if not values:
        return {"info": None}
    try:
        return {"info": info_from(values), **extra}
    except (ValueError, TypeError) as error:
        raise DataError(f"{join(source.storage.url, SIDE_FILE)} cannot be read: {error}") from error


def _read_pictures(
    source: FoundFiles, info: DatasetInfo, side: Mapping[str, Any], reading: Reading, tell: Tell
) -> Pictures:
    storage = source.storage
    if source.format == "webdataset":
        return read_tars(
            ((join(storage.url, path), storage.get(path)) for path in source.paths),
            info.channels,
            reading.orientation,
        )
    empty = [path.rstrip("/") for path in source.unread if path.endswith("/")]
    unread = [path for path in source.unread if not path.endswith("/")]
    if unread:
        kinds = Counter(path.rsplit("/", 1)[1].rpartition(".")[2].lower() for path in unread)
        counted = ", ".join(f"{count} .{kind}" for kind, count in kinds.most_common(5))
        tell(
            f"{storage.url}: {len(unread)} file{'s' * (len(unread) != 1)} in class folders not read ({counted}), first:"
            f" {unread[0]}"
        )
    if empty:
        tell(
            f"{storage.url}: no picture is read in {', '.join(empty[:5])}{', …' * (len(empty) > 5)}"
        )
    files = (
        (path.split("/")[0], join(storage.url, path), storage.get(path)) for path in source.paths
    )
    return read_folder(files, info, side, empty, reading.orientation, tell)
