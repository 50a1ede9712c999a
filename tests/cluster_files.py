"""The files of ``cluster/``, as tests see them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]
FILLED = {
    "BUCKET": "raydd-bucket",
    "REGION": "us-west-2",
    "ZONE": "us-west-2a",
    "PROJECT": "my-project",
    "SUBNET": "subnet-1",
    "IMAGE": "ami-1",
    "ACCOUNT": "123456789012",
}
"""What set-up scripts write in place of the words in capitals."""


def text_of(path: Path) -> str:
    """Return a file's text."""
    return path.read_text(encoding="utf-8")


def filled(text: str) -> str:
    """Return a text with its words in capitals filled in."""
    return re.sub(rf"\b({'|'.join(FILLED)})\b", lambda found: FILLED[found[1]], text)


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return [document for document in yaml.safe_load_all(filled(text_of(path))) if document]


@dataclass(frozen=True)
class Submission:
    """A ``ray job submit`` that a file's comments tell: the words before ``--`` and the job's command behind it."""

    file: str
    options: list[str]
    entrypoint: list[str]

    @property
    def config(self) -> str:
        """The job file."""
        return self.entrypoint[self.entrypoint.index("--config") + 1]

    @property
    def overrides(self) -> list[str]:
        """The words ``KEY=VALUE``."""
        return [word for word in self.entrypoint if re.match(r"[a-z_.]+=", word)]


def submissions(path: Path) -> list[Submission]:
    """Return the submissions that a file's comments, or a page's blocks of code, tell."""
    found = re.findall(r"^(?:# +| *)(RAY_AUTH_MODE=token ray job submit .+)$", text_of(path), re.M)
    name = path.relative_to(ROOT).as_posix()
    split = [shlex.split(line) for line in found]
    return [
        Submission(name, words[: words.index("--")], words[words.index("--") + 1 :])
        for words in split
    ]
