"""Lines of ``log.jsonl``: JSON objects that end in a checksum, by which a damaged line is told from a whole one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any

from raydd.core.json_text import parse_json

SUM = "crc"
_END = re.compile(rb', "crc": "([0-9a-f]{8})"\}\Z')


def checked_line(text: bytes) -> bytes:
    """Return the JSON text of an object with members as a line, the CRC-32 of what stands before it as its last one."""
    body = text.removesuffix(b"}")
    return body + f', "{SUM}": "{zlib.crc32(body):08x}"}}\n'.encode()


def record_of(line: bytes) -> Mapping[str, Any]:
    """Return the record of a line without its checksum; a line without one, as earlier versions wrote them, is taken
    as it is. ``ValueError`` for what is no record, or another than was written.
    """
    record = parse_json(line)
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise ValueError("not a record")
    if SUM in record:
        found = _END.search(line)
        if found is None or int(found[1], 16) != zlib.crc32(line[: found.start()]):
            raise ValueError("its checksum differs")
    return {key: value for key, value in record.items() if key != SUM}
