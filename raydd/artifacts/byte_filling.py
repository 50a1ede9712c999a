"""As many images of each class as fit into a file of so many bytes (docs/per_byte.md)."""

from __future__ import annotations

from collections.abc import Callable

from raydd.core.errors import ConfigError


def most_that_fit(code: Callable[[int], bytes], budget: int, most: int) -> tuple[int, bytes] | None:
    """Return how many images of each class fit, ``most`` at most, and their file: ``n`` fit, and ``n + 1`` do not;
    ``None`` if one does not.

    Files grow nearly in proportion to their images, so the number is found by a line through the
    last two tried, between what is known to fit and what is known not to.
    """
    files: dict[int, bytes] = {}

    def size(count: int) -> int:
        if count not in files:
            files[count] = code(count)
        return len(files[count])

    fits, beyond, last = 0, most + 1, (0, 0)
    guess = 1
    while beyond - fits > 1:
        held = size(guess)
        fits, beyond = (guess, beyond) if held <= budget else (fits, guess)
        slope = (held - last[1]) / (guess - last[0])
        step = (budget - held) / slope if slope > 0 else 0.0
        last = (guess, held)
        guess = min(max(guess + int(step // 1), fits + 1), beyond - 1)
        files = {count: file for count, file in files.items() if count == fits}
    return (fits, files[fits]) if fits else None


def none_fits(what: str, budget: int, smallest: int, how: str) -> ConfigError:
    """Return the error for a budget that is too small; ``smallest``: bytes of the smallest file, made ``how``."""
    return ConfigError(
        f"{what}: no file fits into {budget:,} bytes; the smallest has {smallest:,} ({how})"
    )
