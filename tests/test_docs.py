"""Every citation in code leads to a file and a heading of docs/, and every link of the documents somewhere."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from test_layers import LEVELS, TOP

from raydd.cli import main
from raydd.config import load_job, read_job
from raydd.core.errors import ConfigError
from raydd.search.space_reading import load_space

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path
    for folder in ("raydd", "tests", "jobs", "cluster", "tune_spaces")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".yaml"} and path != Path(__file__) and path.parent.name != "schemas"
)
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LOST = re.compile(
    r"\b[Ss]pecifications?\b|(?<![/\x22])\bspec\b|\bDESIGN\b|\bSTYLE\b|\b[Ss]ections? \d|_gvbsm_rded|dc_dsa_dm spec"
)
"""Words that cite what is not here."""
CITATION = re.compile(r'(docs/[\w./-]+\.md)((?:(?:, | and )"[^"]+")*)')
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def headings(page: Path) -> list[str]:
    """Return the headings of a page, without those in blocks of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"^#+ +(.+?) *$", text, re.M)


def anchors(page: Path) -> list[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings(page))
    return [text.replace(" ", "-") for text in plain]


def joined(text: str) -> str:
    """Return code with its lines joined, so that a citation may be wrapped."""
    return re.sub(r"\n[ \t]*(# )?", " ", text)


def citations(text: str) -> list[tuple[str, str | None]]:
    """Return ``(file, heading)`` for every citation in code; no heading: of the file as a whole."""
    found: list[tuple[str, str | None]] = []
    for file, quoted in CITATION.findall(joined(text)):
        named = re.findall(r'"([^"]+)"', quoted)
        found += [(file, heading) for heading in named] or [(file, None)]
    return found


def unresolved(text: str) -> list[tuple[str, str | None]]:
    """Return the citations that lead nowhere."""
    return [
        (file, heading)
        for file, heading in citations(text)
        if not (ROOT / file).is_file() or heading not in (None, *headings(ROOT / file))
    ]


def test_citations_lead_somewhere() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in CODE}
    assert {name: found for name, text in texts.items() if (found := unresolved(text))} == {}
    texts |= {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
    # Kubernetes' own key is "spec".
    plain = {name: text for name, text in texts.items() if not name.startswith("cluster/kuberay/")}
    lines = [(name, line) for name, text in plain.items() for line in text.splitlines()]
    assert [(name, line) for name, line in lines if LOST.search(line)] == []


def test_a_citation_of_nothing_is_seen() -> None:
    right = 'of DM\n    (docs/methods/dm.md, "The\n    update" and "Batch norm").'
    assert len(citations(right)) == 2
    assert unresolved(right) == []
    assert unresolved('docs/methods/dm.md, "The updates"') == [
        ("docs/methods/dm.md", "The updates")
    ]
    assert unresolved("docs/methods/dn.md") == [("docs/methods/dn.md", None)]


def test_code_cites_every_page_of_methods() -> None:
    cited = {file for path in CODE for file, _ in citations(path.read_text(encoding="utf-8"))}
    pages = {f"docs/methods/{page.name}" for page in (ROOT / "docs" / "methods").glob("*.md")}
    assert pages - cited == {"docs/methods/README.md"}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        place = page.parent / file if file else page
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place), target
    for name in re.findall(
        r"`((?:raydd|jobs|tests|docs|cluster|tune_spaces|\.ci)/[\w./]+\.\w+)`", text
    ):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`([a-z]+/[\w/]+\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "raydd" / name).exists(), name


def test_the_architecture_has_every_room_at_its_level() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = {int(level): rest for level, rest in re.findall(r"^\| (\d) \| (.+)", text, re.M)}
    entries = {path.stem for path in (ROOT / "raydd").glob("*.py")} - {"__init__", *LEVELS}
    rooms = {f"{room}{'.py' if room == 'config' else '/'}": at for room, at in LEVELS.items()}
    rooms |= {f"{entry}.py": TOP for entry in entries}
    assert [room for room, at in rooms.items() if f"`{room}`" not in rows[at]] == []


@every_page
def test_headings_of_a_page_differ(page: Path) -> None:
    assert len(set(anchors(page))) == len(anchors(page))


# -- the papers' commands --------------------------------------------------------------------------------------------

PAPERS = ROOT / "docs" / "from_papers.md"


def keys_of(tree: Mapping[str, Any], before: str = "") -> set[str]:
    """Return the dotted keys of a tree, with those of its groups."""
    found: set[str] = set()
    for key, value in tree.items():
        found |= {before + key}
        if isinstance(value, Mapping):
            found |= keys_of(value, f"{before}{key}.")
    return found


@functools.cache
def known_keys() -> frozenset[str]:
    """Return the dotted keys of all jobs."""
    jobs = (load_job(str(job)) for job in (ROOT / "jobs").glob("*.yaml"))
    return frozenset(key for job in jobs for key in keys_of(job.resolved()))


def spans(text: str) -> list[str]:
    """Return what stands in backquotes in prose and in the last column of tables, where ours are."""
    rows = [
        line.rsplit(" | ", 1)[-1] if line.startswith("|") else line for line in text.splitlines()
    ]
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row)]


def mistakes(text: str) -> list[str]:
    """Return the commands, keys and jobs of ours in a page that do not exist, and why."""
    wrong = []
    for span in spans(text):
        key = span.partition("=")[0]
        try:
            if span.startswith("raydd "):
                check_command(shlex.split(span)[1:])
            elif span.startswith("jobs/"):
                load_job(str(ROOT / span))
            elif key.partition(".")[0] in known_keys() and re.fullmatch(r"[a-z_.]+", key):
                assert key in known_keys(), "no such key"
        except (AssertionError, ConfigError, click.ClickException, OSError) as error:
            wrong.append(f"{span}: {error}")
    return wrong


def check_command(words: list[str]) -> None:
    """Read a command as raydd does, up to where it would start."""
    verb = main.get_command(click.Context(main), words[0])
    assert verb is not None, "no such verb"
    if len(words) > 2:
        context = verb.make_context(words[0], list(words[1:]))
    else:  # an option alone
        assert words[1] in {option for parameter in verb.params for option in parameter.opts}
    if words[0] in ("distill", "sweep"):
        job = read_job(str(ROOT / context.params["config"]), context.params["overrides"])
        job.job()
        if words[0] == "sweep":
            load_space(str(ROOT / context.params["space"]), job)


def test_jobs_and_keys_of_the_papers_page_exist() -> None:
    text = PAPERS.read_text(encoding="utf-8")
    assert len(spans(text)) > 150
    assert mistakes(text) == []


@pytest.mark.parametrize(
    "ours",
    [
        "method.lr_image",
        "evaluation.network=[M]",
        "jobs/mnist_dcc.yaml",
        "raydd distill --config jobs/mnist_dc.yaml method.dist=mse",
        "raydd evaluate --label",
        "raydd evaluate x.pt --protocols dm",
        "raydd distil --config jobs/mnist_dc.yaml ipc=1",
        "raydd sweep --config jobs/mnist_dc.yaml --space tune_spaces/dcc.yaml",
        "raydd sweep --config jobs/mnist_dc.yaml --space tune_spaces/edc.yaml",
    ],
)
def test_what_does_not_exist_is_seen(ours: str) -> None:
    assert len(mistakes(f"| `--flag` | `{ours}` |")) == 1
