"""Labels of a published set, ``labels/`` beside its images: a manifest, and one record per epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError, DataError, TornFileError
from raydd.core.json_text import parse_json
from raydd.core.plain_types import check_fields
from raydd.core.rng import KeyedRng
from raydd.core.storage import Storage, join
from raydd.core.tensors import Tensors, load_tensors
from raydd.core.units import Context, unkeyed
from raydd.labels.codecs import CODECS, STATIC
from raydd.labels.label_checks import CheckedEpoch, check_record
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_sources import FoundLabels, check_digest, refuse_augmentation
from raydd.labels.labelled_set import Epoch, LabelledSet, fits
from raydd.labels.records import RecordedEpoch, label_bytes
from raydd.labels.relabel import FORMAT, VERSION, Relabel
from raydd.labels.static import static_set, stored_rows

FOLDER, MANIFEST = "labels", "manifest.json"


def manifest(relabel: Relabel, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return the bytes of ``labels/manifest.json``; ``files``: ``epoch-000.safetensors`` to its
    ``size`` and ``sha256``.
    """
    return (
        json.dumps(
            {**relabel.facts(), "files": {name: dict(files[name]) for name in sorted(files)}},
            indent=2,
        )
        + "\n"
    ).encode()


@dataclass(frozen=True, kw_only=True)
class PublishedLabels(FoundLabels):
    """The labels stored in the folder of a published set; ``digest`` is the sha256 of their manifest."""

    url: str = unkeyed()
    digest: str
    config: LabelConfig
    images: int
    classes: int
    files: tuple[tuple[str, int, str], ...] = unkeyed(default=())

    @classmethod
    def at(cls, url: str) -> PublishedLabels:
        """Read the manifest below ``url``, the folder of a set or of its labels.

        ``FileNotFoundError`` if there is none, ``DataError`` if it is of another format.
        """
        storage = Storage(url)
        if storage.exists(f"{FOLDER}/{MANIFEST}"):
            storage = Storage(join(storage.url, FOLDER))
        data, where = storage.get(MANIFEST), join(storage.url, MANIFEST)
        try:
            values = parse_json(data)
            found, version = values["format"], int(values["version"])
            if found != FORMAT or version > VERSION:
                raise DataError(
                    f"{where} is of format '{found}' version {version}; this raydd reads '{FORMAT}' up to version"
                    f" {VERSION}"
                )
            files = {
                str(name): (int(facts["size"]), str(facts["sha256"]))
                for name, facts in values.get("files", {}).items()
            }
            plain: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values["config"].items()
            }
            config = LabelConfig(**plain)
            check_fields(config, f"{where}: config")
            if not config.stored:
                raise DataError(
                    f"{where}: codec '{config.codec}' is none that stores labels; known: {', '.join(CODECS)}"
                )
            return cls(
                url=storage.url,
                digest=hashlib.sha256(data).hexdigest(),
                config=config,
                images=int(values["images"]),
                classes=int(values["classes"]),
                files=tuple((name, *files[name]) for name in sorted(files)),
            )
        except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise DataError(f"{where} is not a manifest of labels: {error!r}") from error

    @property
    def bytes(self) -> int:
        """Bytes of the stored labels."""
        return label_bytes(self.config, self.images, self.classes)

    def fits(self, batch: int, epochs: int, augmentation: str = "none") -> None:
        """Raise ``ConfigError`` unless students can be trained with batches of ``batch`` for ``epochs`` epochs."""
        refuse_augmentation(augmentation)
        fits(self.config, batch, epochs, self.config.epochs_kept)

    def check(self, distilled: DistilledSet) -> None:
        """Raise ``DataError`` unless these are labels of ``distilled``; ``TornFileError`` if the
        first epoch is no record, or a file that the manifest names is missing or of another size.
        """
        if (distilled.seen, distilled.info.classes) != (self.images, self.classes):
            found = f"{distilled.seen} images of {distilled.info.classes} classes"
            raise DataError(
                f"{self.url} labels {self.images} images of {self.classes} classes; the set has {found}"
            )
        self._read(STATIC if self.config.static else _epoch(0), distilled)
        sizes = dict(Storage(self.url).sizes(""))
        for name, size, _ in self.files:
            where = join(self.url, name)
            if name not in sizes:
                raise TornFileError(f"{where} is missing although {MANIFEST} names it")
            if sizes[name] != size:
                raise TornFileError(f"{where} is torn: {sizes[name]} bytes, {MANIFEST} says {size}")

    def open(self, distilled: DistilledSet, ctx: Context) -> LabelledSet:
        """Return the training set of ``distilled``; ``DataError`` if the labels are of other images."""
        self.check(distilled)
        size, config = distilled.shape[1:], self.config
        if config.static:
            rows = stored_rows(config, self._read(STATIC, distilled), self.classes)
            return static_set(distilled, config, rows, ctx.device)

        def stored(epoch: int, rng: KeyedRng) -> Epoch:
            record = self._read(_epoch(epoch), distilled)
            found = RecordedEpoch(record, config, self.classes, size)
            where = join(self.url, f"{_epoch(epoch)}.safetensors")
            return CheckedEpoch(found, config, size, self.images, where)

        return LabelledSet(
            distilled, config, ctx.device, stored, shared=True, epochs=config.epochs_kept
        )

    def _read(self, unit: str, distilled: DistilledSet) -> Tensors:
        name = f"{unit}.safetensors"
        where = join(self.url, name)
        try:
            data = Storage(self.url).get(name)
        except FileNotFoundError as error:
            raise TornFileError(
                f"{where} is missing although {MANIFEST} says that there "
                + ("is one" if self.config.static else f"are {self.config.epochs} epochs")
            ) from error
        facts = {file: (size, digest) for file, size, digest in self.files}.get(name)
        if facts is not None and facts != (len(data), hashlib.sha256(data).hexdigest()):
            raise TornFileError(
                f"{where} is torn: {len(data)} bytes, {MANIFEST} says {facts[0]}, or other content"
            )
        record = load_tensors(data, where)
        check_record(record, self.config, self.images, self.classes, where)
        check_digest(record, distilled, where)
        return record


def _epoch(number: int) -> str:
    return f"epoch-{number:03d}"
