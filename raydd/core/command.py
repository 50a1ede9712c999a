"""What every command line of raydd shares: exit codes, messages instead of tracebacks, logging."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import click

from raydd.core.errors import ConfigError, DataError, Missing, RayddError
from raydd.core.redaction import redact

F = TypeVar("F", bound=Callable[..., Any])
EXIT_CONFIG, EXIT_FAILED, EXIT_MISSING, EXIT_INTERRUPTED = 2, 1, 3, 130

verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Also print debugging messages and tracebacks."
)
orientation_option = click.option(
    "--orientation",
    type=click.Choice(["ignore", "exif"]),
    default="ignore",
    show_default=True,
    help="exif: turn picture files as they say.",
)
_READING = (
    click.option(
        "--space",
        metavar="SPACE",
        help="Space of a foreign set's images: pixels, pixels255, normalised, zca, zca_per_image (default: guessed).",
    ),
    orientation_option,
    click.option(
        "--decoding",
        metavar="NAME",
        help="What students see of a foreign set's images: identity, partition (IDM, BACON), grid (IDC), resize,"
        " windows (PoDD).",
    ),
    click.option(
        "--factor",
        type=int,
        help="Rows and columns of images that each stored one holds (default: 2 of a partition or grid).",
    ),
    click.option(
        "--windows",
        metavar="COLUMNSxROWS",
        help="Columns and rows of windows of a foreign poster, 16x6; the decoding is then windows.",
    ),
)


def reading_options(command: F) -> F:
    """Give a command the options that say how a set of others is read, by the names of
    :class:`raydd.artifacts.reading.Reading`'s fields.
    """
    for option in reversed(_READING):
        command = option(command)
    return command


def set_options(command: F) -> F:
    """Give a command that reads one set of others all options that say what it is and how it is read."""
    command = click.option(
        "--labels",
        metavar="KIND",
        help="What a foreign set's table of labels holds: logits, probabilities or targets (default: guessed).",
    )(command)
    command = reading_options(command)
    command = click.option(
        "--experiment",
        type=int,
        help="Repetition to take from a .pt file that lists several (default: -1, the last).",
    )(command)
    return click.option(
        "--dataset",
        metavar="NAME",
        help="Data set that the set stands for, where its format does not say (a name of the catalog).",
    )(command)


@contextmanager
def command_errors(verbose: bool = False, dry_run: bool = False) -> Iterator[None]:
    """Turn raydd's errors into one clear message and an exit code: 2 for what never started, 1 for
    what failed, 130 for a stop.

    With ``dry_run``, 3 for data or weights that are missing.
    """
    try:
        yield
    except RayddError as error:
        if verbose:
            logging.getLogger("raydd").exception("%s", type(error).__name__)
        kind = "stopped" if type(error).__name__ == "Interrupted" else "error"
        click.echo(f"{kind}: {error}", err=True)
        if dry_run and isinstance(error, Missing):
            sys.exit(EXIT_MISSING)
        sys.exit(
            EXIT_INTERRUPTED
            if kind == "stopped"
            else EXIT_CONFIG
            if isinstance(error, (ConfigError, DataError))
            else EXIT_FAILED
        )
    except KeyboardInterrupt:
        click.echo("stopped at once; the same command goes on from the last checkpoint", err=True)
        sys.exit(EXIT_INTERRUPTED)


class _Redacting(logging.Formatter):
    """Leaves credentials out of messages, and of the tracebacks below them."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that nobody expected, as Python does, without credentials."""
    text = "".join(traceback.format_exception(kind, error, trace))
    click.echo(redact(text).rstrip("\n"), err=True)


def setup_logging(verbose: bool = False) -> None:
    """Send raydd's warnings (with ``verbose`` everything) to stderr, and keep libraries quiet."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacting("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    sys.excepthook = _told
    logging.getLogger("raydd").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        warnings.filterwarnings("ignore")
