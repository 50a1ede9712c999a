"""Credentials in texts: found by what they stand in, or because the environment holds them, and left out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

GONE = "***"
_WORDS = r"secret|password|passwd|token|credential|signature|api_?key|access_?key|account_?key|private_?key"
_NAMED = re.compile(rf"({_WORDS})(?!.*(_PATH|_FILE|_DIR|APPLICATION_CREDENTIALS)$)", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a variable's value that is looked for: shorter ones are words such as ``true``."""
_PATTERNS = (
    # User and password of a URL, to the last @: a password may hold one, or a slash.
    (re.compile(r"(\w://)(?:[^\s/@:]*:(?!\d+(?:/|\s|$))\S*|[^\s/@:]+)@"), rf"\1{GONE}@"),
    # What is signed or allowed by a URL's query.
    (re.compile(rf"([?&][\w.-]*(?:{_WORDS}|sig)[\w.-]*=)[^&\s'\"]+", re.IGNORECASE), rf"\1{GONE}"),
    (re.compile(r"\b((?:bearer|basic)\s+)[\w+/=.~-]{8,}", re.IGNORECASE), rf"\1{GONE}"),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), GONE),
    (
        re.compile(
            rf"((?:{_WORDS})\w*['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&)}}\]]{{4,}}", re.IGNORECASE
        ),
        rf"\1{GONE}",
    ),
)


def _held() -> list[str]:
    """Return the values of the environment's variables that are called as secrets are, the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _NAMED.search(name)
    }
    return sorted(found, key=len, reverse=True)


def redact(text: str) -> str:
    """Return a text in which :data:`GONE` stands for every credential: values of variables that are called
    as secrets are, users and passwords in URLs, signatures in their queries, values behind such
    words as ``password=``.
    """
    for value in _held():
        text = text.replace(value, GONE)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def redacted(value: Any) -> Any:
    """Return plain values whose texts were changed as :func:`redact` does."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(inner) for key, inner in value.items()}
    return [redacted(one) for one in value] if isinstance(value, (list, tuple)) else value


def secret_in(value: Any, path: str = "") -> str | None:
    """Return where, in plain values, a credential stands (``a.b``), ``None`` if there is none: a text
    that :func:`redact` changes, or any value under a key that is called as a secret is.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            at = f"{path}.{key}" if path else str(key)
            if _NAMED.search(str(key)) and isinstance(inner, str) and inner:
                return redact(at)
            found = secret_in(inner, at)
            if found is not None:
                return found
        return None
    if isinstance(value, (list, tuple)):
        within = (secret_in(one, path) for one in value)
        return next((where for where in within if where is not None), None)
    return redact(path) if isinstance(value, str) and redact(value) != value else None
