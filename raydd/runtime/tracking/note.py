"""What a tracked run says of itself on its page: a description with a picture and a table, who ran
it, and by which command.
"""

from __future__ import annotations

import getpass
import shlex
import sys
from pathlib import Path
from urllib.parse import quote

from raydd.artifacts.rendering import images_per_class, random_beside, render_markdown
from raydd.artifacts.report import Report
from raydd.artifacts.tables import inline
from raydd.core.redaction import redact
from raydd.runtime.tracking.mlflow_run import RUN_ID, TAG_LENGTH


def origin() -> dict[str, str]:
    """Return MLflow's tags for who runs this process, and by which command, where that is one of raydd's."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = ""
    command = redact(command_line(sys.argv))
    return {
        "mlflow.source.type": "LOCAL",
        **({"mlflow.user": user} if user else {}),
        **({"raydd.command": command} if command else {}),
    }


def command_line(argv: list[str]) -> str:
    """Return the command that started raydd, as one types it; empty for a program of somebody else's."""
    program = Path(argv[0] if argv else "")
    if program.name == "raydd":
        return shlex.join(["raydd", *argv[1:]])
    own = program.suffix == ".py" and program.parent.name == "raydd"
    return shlex.join(["python", "-m", f"raydd.{program.stem}", *argv[1:]]) if own else ""


def note(report: Report, picture: str | None) -> str:
    """Return a run's description in Markdown, not longer than a tag may be.

    Its first line is the result, since MLflow folds the rest. ``picture``: the path of a picture
    among the run's artifacts; MLflow's page shows it through its own address.
    """
    first = report.rows[0]
    random = random_beside(report, first)
    beside = (
        ""
        if random in (None, first)
        else f" (random images {random.accuracy_mean:.1f} ± {random.accuracy_std:.1f} %)"
    )
    lines = [
        inline(
            f"**{first.accuracy_mean:.1f} ± {first.accuracy_std:.1f} %**{beside}: {report.dataset},"
            f" {images_per_class(report.ipc)}, {first.set}, {first.protocol}, {first.network}"
        ),
        "",
    ]
    if picture is not None:
        lines += [
            f"![the set's images](get-artifact?path={quote(picture, safe='')}&run_uuid={RUN_ID})",
            "",
        ]
    return cut([*lines, *render_markdown(report).splitlines()], "report.json")


def cut(lines: list[str], file: str) -> str:
    """Return the lines that a tag can hold; the last one says, where some do not fit, that they are in ``file``."""
    length = TAG_LENGTH - 100
    kept: list[str] = []
    for line in lines:
        if len("\n".join([*kept, line])) > length:
            return "\n".join([*kept, "", f"… (the rest is in `{file}`)"])
        kept.append(line)
    return "\n".join(kept)
