"""JSON objects that end in a checksum of what stands before it: a torn one never passes for whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from raydd.core.errors import TornFileError
from raydd.core.json_text import parse_json

CHECKSUM = "checksum"
_END = re.compile(rb',(\s*)"checksum": ?"([0-9a-f]{64})"\s*\}\s*\Z')


def seal(text: bytes) -> bytes:
    """Return the text of a JSON object with members, its checksum (sha256 of the bytes before) added as the last."""
    body, end = text.rstrip(), b"\n" if text.endswith(b"\n") else b""
    if not body.endswith(b"}") or body[:-1].rstrip().endswith((b"{", b",")):
        raise ValueError("not the text of a JSON object with members")
    inner = body[:-1].rstrip()
    space = b"\n  " if b"\n" in inner else b""
    digest = hashlib.sha256(inner).hexdigest().encode()
    close = b"\n}" if space else b"}"
    return inner + b"," + space + b'"' + CHECKSUM.encode() + b'": "' + digest + b'"' + close + end


def unseal(
    data: bytes, where: str, shape: Callable[[dict[str, Any]], object] | None = None
) -> dict[str, Any]:
    """Return a JSON object without its checksum; one without, as earlier versions wrote them, is taken as it is.

    ``shape``: reads what has to be there, and raises ``KeyError``, ``TypeError``, ``ValueError`` or ``AttributeError``
    if something is not. ``TornFileError`` naming ``where`` for what is no such object, or another than was written.
    """
    try:
        values = parse_json(data)
        if not isinstance(values, Mapping):
            raise ValueError(f"a {type(values).__name__}, not an object")
        found = _END.search(data)
        if CHECKSUM in values and (
            found is None or hashlib.sha256(data[: found.start()]).hexdigest().encode() != found[2]
        ):
            raise ValueError("its checksum differs")
        plain = {key: value for key, value in values.items() if key != CHECKSUM}
        if shape is not None:
            shape(plain)
        return plain
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise TornFileError(f"{where} is torn: {why}") from error


_STAMP = re.compile(rb"\A# sha256 of the lines below: ([0-9a-f]{64})\n")


def stamp(text: bytes) -> bytes:
    """Return a text (YAML) after a comment that holds its checksum."""
    return f"# sha256 of the lines below: {hashlib.sha256(text).hexdigest()}\n".encode() + text


def as_stamped(data: bytes) -> bool:
    """Return whether a text is what was stamped; one without a stamp, of an earlier version, counts as such."""
    found = _STAMP.search(data)
    if found is None:
        return not data.startswith(b"# sha256")
    return hashlib.sha256(data[found.end() :]).hexdigest().encode() == found[1]
