"""Pictures made small enough for a page: as they are where they fit, else recompressed, else fewer of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

from raydd.pages.blocks import Shown

BYTES = 9_000_000
"""What the pictures of a page may take; in the page they take a third more."""
ATTEMPTS = ((1600, 85), (1200, 75), (900, 65))
"""Longer sides and qualities that are tried one after another."""


def fitting(pictures: Sequence[Shown], most: int = BYTES) -> tuple[list[Shown], str]:
    """Return pictures that together take at most so many bytes, in order, the last one always among
    them, and what was changed and left out, empty if nothing was.
    """
    if sum(len(one.data) for one in pictures) <= most:
        return list(pictures), ""
    for longest, quality in ATTEMPTS:
        smaller = [_recompressed(one, longest, quality) for one in pictures]
        if sum(len(one.data) for one in smaller) <= most:
            return (
                smaller,
                f"The pictures are recompressed (at most {longest} pixels wide or high).",
            )
    kept = _thinned(smaller, most)
    left = len(pictures) - len(kept)
    return kept, (
        f"The pictures are recompressed (at most {longest} pixels wide or high), and {left} of {len(pictures)} are left"
        " out, so that the page stays small; all of them lie in the run's folder."
    )


def _thinned(pictures: Sequence[Shown], most: int) -> list[Shown]:
    """Return evenly spread pictures, the last among them, that together fit."""
    for count in range(len(pictures) - 1, 0, -1):
        chosen = [
            pictures[-1 - round(i * (len(pictures) - 1) / max(1, count - 1))] for i in range(count)
        ]
        kept = list(dict.fromkeys(reversed(chosen)))
        if sum(len(one.data) for one in kept) <= most:
            return kept
    return [one for one in pictures[-1:] if len(one.data) <= most]


def _recompressed(shown: Shown, longest: int, quality: int) -> Shown:
    """Return a picture as WebP of at most so many pixels; as it is, where that is no smaller or cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(shown.data)) as image:
            image.thumbnail((longest, longest))
            out = io.BytesIO()
            image.convert("RGB").save(out, "WEBP", quality=quality)
    except (OSError, ValueError, Image.DecompressionBombError):
        return shown
    data = out.getvalue()
    return shown if len(data) >= len(shown.data) else replace(shown, data=data, kind="image/webp")
