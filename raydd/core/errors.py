"""The errors raydd raises, and the nearest-match hint they carry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from raydd.core.redaction import redact


class RayddError(Exception):
    """Base of every error raydd raises on purpose; its text is meant for a person, and holds no credential."""

    def __str__(self) -> str:
        """Return the text, without credentials that the libraries below may have put into it."""
        return redact(super().__str__())


class ConfigError(RayddError, ValueError):
    """A job, an argument or a combination of them that cannot run. Raised before work starts."""


class Missing(ConfigError):
    """Data or weights that are not where a job looks for them; the job itself could be planned."""


class TooFew(ConfigError):
    """A class with fewer real images than are needed: ``found``, what there is; ``most``, what is
    possible; ``advice``, what else helps.
    """

    def __init__(self, found: str, most: str, advice: str = "") -> None:
        self.found, self.most = found, most
        super().__init__(f"{found}; {most}" + (f", or {advice}" if advice else ""))


class DataError(RayddError):
    """A data set that is missing, incomplete, or holds a sample that cannot be read."""


class StorageError(RayddError):
    """A URL that could not be read or written after retries."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turn a storage that cannot be read into a ``ConfigError``: used before work starts, when it
    is the job's address that is wrong.

    Meanwhile a storage that fails is tried for a shorter time.
    """
    from raydd.core.retries import before_work

    try:
        with before_work():
            yield
    except StorageError as error:
        raise ConfigError(str(error)) from error


class TornFileError(StorageError):
    """An object whose size or checksum is not what its marker says."""


class TornOutput(TornFileError):
    """An output in the store that is torn; ``ref``: which (:class:`raydd.core.units.Ref`). It can be computed again."""

    def __init__(self, text: str, ref: Any = None) -> None:
        super().__init__(text)
        self.ref = ref


class NumericsError(RayddError):
    """NaN or infinity in images, weights or loss; names stage, unit and step."""


class LockedError(RayddError):
    """An output folder that another living process is writing."""


class RunFailed(RayddError):
    """A run that stopped because one of its units could not be computed."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class's name where there is none."""
    return redact(next(iter(str(error).strip().splitlines()), type(error).__name__))


def nearest(word: str, options: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the option closest to ``word``, or an empty string."""
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.5)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""


def unknown(what: str, word: str, options: Iterable[str]) -> ConfigError:
    """Build the error for a name that is not among ``options``: bad value, nearest match, what is allowed."""
    options = sorted(options)
    shown = ", ".join(options[:30]) + (", …" if len(options) > 30 else "")
    return ConfigError(f"unknown {what} '{word}'{nearest(word, options)}; allowed: {shown}")
