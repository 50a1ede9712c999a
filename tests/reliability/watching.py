"""Reads an input with one of the :mod:`readers`, and tells what it did that reading may not do."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data_readers  # noqa: F401 - registers its readers
import matplotlib as mpl  # noqa: F401 - makes a folder of its own when it is first imported
from readers import READERS, WORK

from raydd.core.errors import RayddError

SECONDS = 10.0
"""Processor time that an input of these sizes may take."""
MEMORY = 768 << 20
"""Bytes that an input of these sizes may take of memory at most, beside what is taken already."""
_RUN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "os.fork",
    "pty.spawn",
)
_CHANGE = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.unpack_archive",
)  # fmt: skip
_CONNECT = ("socket.connect", "socket.bind", "urllib.Request")
_done: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _done is None:
        return
    elsewhere = event in _CHANGE and not str(arguments[0]).startswith(str(WORK))
    if elsewhere or event in (*_RUN, *_CONNECT, "pickle.find_class"):
        _done.append(f"{event} {arguments!r}"[:200])
    elif event == "open":
        path, mode, flags = arguments
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes and not str(path).startswith((str(WORK), "/proc/self", os.devnull)):
            _done.append(f"wrote {path!r}"[:200])


sys.addaudithook(_audit)


class TooLong(BaseException):
    """An input that takes more than :data:`SECONDS`."""


def _late(*_: object) -> None:
    raise TooLong


@contextlib.contextmanager
def _clock() -> Iterator[None]:
    before = signal.signal(signal.SIGVTALRM, _late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0


def _place(error: BaseException) -> str:
    """Return where in raydd an error came up."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/raydd/" in f.filename]
    last = frames[-1] if frames else None
    return "" if last is None else f" at {last.filename.rpartition('/raydd/')[2]}:{last.lineno}"


def fault(name: str, data: bytes) -> str:
    """Read ``data`` as a :class:`readers.Reader` does; return what went wrong, empty if nothing did.

    Wrong is any exception but raydd's own errors, a program or connection started, a file written or a
    name unpickled (but by a reader that refuses names of its own), and more than :data:`SECONDS` or
    :data:`MEMORY`.
    """
    global _done
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, said = _memory("VmRSS"), ""
    level = logging.getLogger().manager.disable
    logging.disable(logging.CRITICAL)
    heard = warnings.catch_warnings()
    heard.__enter__()
    warnings.simplefilter("ignore")
    _done = did = []
    try:
        with _clock():
            READERS[name].read(data)
    except RayddError as error:
        said = "" if str(error).strip() else "an error without a word"
    except TooLong as error:
        said = f"more than {SECONDS:g} s{_place(error)}"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a reader raises is told
        said = f"{type(error).__name__}: {str(error)[:200]}{_place(error)}"
    finally:
        _done = None
        heard.__exit__(None, None, None)
        logging.disable(level)
    grown = _memory("VmHWM") - before
    if grown > MEMORY:
        said = said or f"{grown >> 20} MiB for {len(data)} bytes"
    return said or "; ".join(did)
