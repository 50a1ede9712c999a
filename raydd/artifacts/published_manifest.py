"""What a published folder says of its own files (``manifest.json``), and its files read by it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from raydd.core.errors import DataError, TornFileError
from raydd.core.json_text import parse_json
from raydd.core.storage import Storage, join

FORMAT, VERSION, APART = "raydd-distilled-set", 1, 2
"""The word for the format; versions of sets in one file, and of whitened ones in several."""
MANIFEST = "manifest.json"


def read_manifest(storage: Storage) -> dict[str, Any]:
    """Return a folder's manifest; ``FileNotFoundError`` if there is none, ``TornFileError`` if it is not whole."""
    where = join(storage.url, MANIFEST)
    try:
        manifest = parse_json(storage.get(MANIFEST))
        files = {
            str(path): {"size": int(v["size"]), "sha256": str(v["sha256"])}
            for path, v in manifest["files"].items()
        }
        found, version = manifest["format"], int(manifest["version"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise TornFileError(f"{where} is torn or not a manifest: {error!r}") from error
    if found != FORMAT or version > APART:
        raise DataError(
            f"{where} is of format '{found}' version {version}; this raydd reads '{FORMAT}' up to version {APART}"
        )
    return {**manifest, "files": files}


def listed_file(storage: Storage, path: str, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return a file of a manifest's ``files``; ``TornFileError`` for one that is not as published."""
    where = join(storage.url, path)
    if path not in files:
        raise TornFileError(f"{where} is not in {MANIFEST}")
    try:
        data = storage.get(path)
    except FileNotFoundError as error:
        raise TornFileError(f"{where} is missing although {MANIFEST} lists it") from error
    if len(data) != files[path]["size"]:
        raise TornFileError(
            f"{where} is torn: {len(data)} bytes, {MANIFEST} says {files[path]['size']}"
        )
    if hashlib.sha256(data).hexdigest() != files[path]["sha256"]:
        raise TornFileError(f"{where} is torn: its checksum is not the one in {MANIFEST}")
    return data
