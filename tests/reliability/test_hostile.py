"""Files and names that mean harm: nothing is executed, or written elsewhere; they take little memory and time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from changing import json_files, line_files, yaml_files
from click.testing import CliRunner
from fault_rows import ROOT, Row, Tally
from hostile_files import KINDS, MARK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, folder, published, small_set
from watching import fault

from raydd.core.errors import RayddError
from raydd.data.tar_scan import Scan

pytestmark = pytest.mark.slow
REFUSED = "refused with its path and why"


def _kind(name: str, fault: str) -> Row:
    return Row("hostile", "files of others", fault, REFUSED, "test_files_that_mean_harm", data=name)


HARMFUL = [
    _kind("pickles", "pickles in .pt files, npz and label files that name programs or objects"),
    _kind("paths", "names that lead out of the folder, links and devices, in tars and manifests"),
    _kind("bombs", "gzip, zip, MATLAB, sparse and pickled files that unfold to gigabytes"),
    _kind("pictures", "pictures of up to 60,000² pixels, or of 20,000 passes"),
    _kind("headers", "sizes in headers up to 2^64, below 0, and headers of headers"),
    _kind("yamls", "YAML tags, aliases, merges, depth, length"),
    _kind("jsons", "JSON depth, digits, NaN, encoding"),
]
MUST = ("pickles", "bombs", "pictures")
"""Kinds of which no file may be read."""
CHANGES: dict[str, Callable[[bytes], Iterator[tuple[str, bytes]]]] = {
    "job file": yaml_files,
    "space file": yaml_files,
    "manifest of a set": json_files,
    "facts of a set": json_files,
    "recipe": json_files,
    "header of data.safetensors": json_files,
    "manifest of labels": json_files,
    "header of labels": json_files,
    "manifest of shards": json_files,
    "page of a run: job.yaml": yaml_files,
    "page of a run: plan.json": json_files,
    "page of a run: report.json": json_files,
    "page of a run: log.jsonl": line_files,
}
EVERY = 16
"""In the check every so-manieth change is tried, all of them in the long series."""
EXAMPLES = 10
OTHERS = "read, or refused with an error of raydd's"
CHANGED = [
    Row(
        "hostile",
        name,
        "each value in the place of another, or gone",
        OTHERS,
        "test_changed_values",
        "changed values",
    )
    for name in CHANGES
]
BYTES = [
    Row(
        "hostile",
        name,
        "bytes changed, cut out, repeated",
        OTHERS,
        "test_changed_bytes",
        "changed bytes",
    )
    for name in READERS
]
COMMANDS = Row(
    "hostile", "raydd distill, sweep, evaluate, export, report", "files that mean harm",
    "one message, exit code 2 (1), no traceback", "test_the_command_line_refuses_in_words",
)  # fmt: skip
NAMES = Row(
    "hostile", "card, report page, MLflow description", "HTML and Markdown in names",
    "shown as text", "test_names_are_text",
)  # fmt: skip
OVER = Row(
    "hostile", "publishing over a folder", "a manifest that lists files elsewhere",
    "refused; they stay", "test_nothing_elsewhere_is_deleted",
)  # fmt: skip
EXPORTED = Row(
    "hostile",
    "exporting",
    "class names that are paths",
    "stays in its folder",
    "test_an_export_stays_in_its_folder",
)
ROWS = [*HARMFUL, COMMANDS, NAMES, OVER, EXPORTED, *CHANGED, *BYTES]
HARM = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "![a](http://h/x.png)",
    "a\n# heading", "a | b", "</pre></code>", '"onload="alert(1)',
]  # fmt: skip


def refused(name: str, data: bytes) -> str:
    """Return the words in which a file is refused; empty if it is read."""
    try:
        found = READERS[name].read(data)
    except RayddError as error:
        return str(error)
    if isinstance(found, Scan) and not found.samples:  # a scan tells what it leaves out
        return " ".join(
            [found.damage[0].message] if found.damage else ["memory://", *found.left_out.reasons]
        )
    return ""


@pytest.mark.parametrize("row", HARMFUL, ids=str)
def test_files_that_mean_harm(row: Row, tally: Tally) -> None:
    count, kind = 0, row.data
    for name, what, data in KINDS[kind]():
        count += 1
        assert fault(name, data) == "", f"{name}: {what}"
        assert not MARK.exists(), f"{name}: {what} was executed"
        if kind in MUST:
            said = refused(name, data)
            assert said, f"{name}: {what} was read"
            assert "memory://" in said or "picture" in said, f"{name}: {what}: no path: {said}"
    tally(row, count)


def _changed(row: Row, every: int) -> int:
    count = 0
    for seed in READERS[row.what].seeds():
        for at, (what, data) in enumerate(CHANGES[row.what](seed)):
            if at % every == 0:
                count += 1
                assert fault(row.what, data) == "", what
    return count


@pytest.mark.parametrize("row", CHANGED, ids=str)
def test_changed_values(row: Row, tally: Tally) -> None:
    tally(row, _changed(row, EVERY * (5 if row.what == "space file" else 1)))


@pytest.mark.nightly
@pytest.mark.parametrize("row", CHANGED, ids=str)
def test_every_changed_value(row: Row, tally: Tally) -> None:
    tally(row, _changed(row, 1))


def damaged(data: bytes, draws: random.Random) -> bytes:
    """Return bytes of which some are others, missing, or there twice."""
    found = bytearray(data)
    for _ in range(draws.randint(1, 4)):
        at, length = draws.randrange(len(found) + 1), draws.choice((1, 1, 2, 4, 8, 64))
        new = draws.choice(
            (
                b"",
                draws.randbytes(length),
                b"\xff" * length,
                bytes(length),
                bytes(found[at : at + length]) * 2,
            )
        )
        found[at : at + draws.choice((0, length))] = new
    return bytes(found[: draws.choice((len(found), len(found), draws.randrange(len(found) + 1)))])


@pytest.mark.parametrize("row", BYTES, ids=str)
def test_changed_bytes(row: Row, tally: Tally) -> None:
    seeds, count = list(READERS[row.what].seeds()), 0

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(seeds), st.integers(0, 1 << 32))
    def try_out(data: bytes, number: int) -> None:
        nonlocal count
        count += 1
        assert fault(row.what, damaged(data, random.Random(number))) == ""

    try_out()
    tally(row, count)


def test_the_command_line_refuses_in_words(tmp_path: Path, tally: Tally) -> None:
    from raydd.distill import main as distill
    from raydd.evaluate import main as evaluate
    from raydd.export import main as export
    from raydd.report import main as report
    from raydd.sweep import main as sweep

    runner, count = CliRunner(), 0
    pickled = tmp_path / "set.pt"
    calls: list[tuple[object, list[str]]] = []
    for at, (name, _, data) in enumerate([*KINDS["yamls"]()]):
        if name == "job file":
            path = tmp_path / f"{at}.yaml"
            path.write_bytes(data)
            calls += [(distill, ["--config", str(path), "--dry-run"])]
            calls += [
                (
                    sweep,
                    [
                        "--config",
                        str(ROOT / "jobs/quickstart.yaml"),
                        "--space",
                        str(path),
                        "--dry-run",
                    ],
                )
            ]
    for name, _, data in KINDS["pickles"]():
        if name == ".pt set":
            pickled.write_bytes(data)
            out = str(tmp_path / "out")
            calls.append((export, [str(pickled), out, "--to", "folder", "--dataset", "digits"]))
            calls.append(
                (
                    evaluate,
                    [str(pickled), "--dataset", "digits", f"output={out}", f"store={tmp_path}/s"],
                )
            )
    calls.append((report, [str(pickled)]))
    for command, words in calls:
        done = runner.invoke(command, words)  # type: ignore[arg-type]
        count += 1
        assert done.exit_code in (1, 2), (words, done.output)
        assert isinstance(done.exception, SystemExit), (words, done.exception)
        assert "Traceback" not in done.output
        assert "rror: " in done.output, (words, done.output)
    assert not MARK.exists()
    tally(COMMANDS, count)


def test_names_are_text(tally: Tally) -> None:
    from page_tree import check_page
    from run_records import JOB, PLAN, RUNNING

    from raydd.artifacts.published_folder import publish
    from raydd.artifacts.report import Report
    from raydd.runtime.page_file import page_of
    from raydd.runtime.tracking.note import note

    plain = json.loads((ROOT / "docs/results/quickstart.json").read_text())
    count = 0
    for harm in HARM:
        values = json.loads(json.dumps(plain))
        values |= {"dataset": harm, "device": harm, "notes": [harm]}
        for row in values["rows"]:
            row |= {"protocol": harm, "network": harm}
        values["rows"][0]["set"] = harm
        report = Report.from_dict(values)
        made = small_set(20)
        info = replace(made.info, name=harm, class_names=tuple(f"{harm}{i}" for i in range(10)))
        made = replace(made, info=info, recipe={"method": {"name": harm}, "note": harm})
        url = folder("named", {})
        publish(made, url, report)
        card = fsspec.filesystem("memory").cat_file("/reliability/named/README.md").decode()
        text = card.split("---\n", 2)[2]
        head, _, rest = text.partition("```json\n")
        for told in (head + rest.partition("\n```\n")[2], note(report, None)):
            count += 1
            assert "<script" not in told
            assert "<img" not in told
            assert "](javascript" not in told
            assert "](http://h" not in told
            assert "\n# heading" not in told
        job = {**JOB, "name": harm, "dataset": {"name": harm}, "method": {"name": harm}}
        plan = {**PLAN, "name": harm, "dataset": harm}
        log = "".join(json.dumps({**record, "worker": harm}) + "\n" for record in RUNNING)
        files = {"job.yaml": job, "plan.json": plan, "report.json": values}
        run = folder(
            "run",
            {name: json.dumps(value).encode() for name, value in files.items()}
            | {"log.jsonl": log.encode()},
        )
        page, _ = page_of(run)
        count += 1
        tree = check_page(page)
        assert not [
            node
            for node in tree.all("img")
            if str(node.attrs.get("src", "")).startswith(("x", "http"))
        ]
        assert page.count("<script") == page_of(
            folder(
                "run",
                {
                    n: json.dumps(v).encode()
                    for n, v in {"job.yaml": JOB, "plan.json": PLAN}.items()
                },
            )
        )[0].count("<script")
    tally(NAMES, count)


def test_nothing_elsewhere_is_deleted(tmp_path: Path, tally: Tally) -> None:
    from raydd.artifacts.published_folder import publish

    kept, count = tmp_path / "kept", 0
    for name in ("../kept", "a/../../kept", str(kept)):
        kept.write_text("stays")
        target = tmp_path / "set"
        target.mkdir(exist_ok=True)
        manifest = json.loads(published()["manifest.json"])
        manifest["files"] = {name: {"size": 1, "sha256": ""}}
        (target / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(RayddError, match="leaves"):
            publish(small_set(20), str(target))
        assert kept.read_text() == "stays"
        count += 1
    tally(OVER, count)


def test_an_export_stays_in_its_folder(tmp_path: Path, tally: Tally) -> None:
    from raydd.artifacts.writing import write_set

    count = 0
    for harm in ("../../x", "/etc/x", "a/b", "..", ".", "\x00", "con", "x" * 300, "~/x"):
        made = small_set(20)
        info = replace(made.info, class_names=tuple(f"{harm}{i}" if i else harm for i in range(10)))
        made = replace(made, info=info)
        target = tmp_path / "deep" / str(count) / "out"
        write_set(made, str(target), "folder")
        above = tmp_path / "deep" / str(count)
        found = [path for path in above.rglob("*") if path.is_file()]
        assert len(found) == 21
        assert all(target in path.parents for path in found)
        count += 1
    assert {path.name for path in tmp_path.iterdir()} == {"deep"}
    tally(EXPORTED, count)
