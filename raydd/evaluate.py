"""Measure what a distilled set is worth: ``raydd evaluate runs/quickstart/distilled --networks convnet3,lenet``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from raydd.core.command import (
    EXIT_MISSING,
    command_errors,
    reading_options,
    setup_logging,
    verbose_option,
)
from raydd.core.errors import refusing


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url")
@click.option(
    "--dataset",
    metavar="NAME",
    help="Data set to test on (default: the one a set of ours was made from).",
)
@click.option(
    "--protocol",
    metavar="NAME",
    help="Published protocol: dc, dm, dsa, dwa, edc, gvbsm, idm, infer, itgan, podd, rat_bptt, rded, sre2l (default: as"
    " in its job).",
)
@click.option(
    "--networks",
    metavar="A,B,C",
    help="Architectures, or pools by letter: S M B W D A P N (default: the set's own network).",
)
@click.option("--repeats", type=int, help="Students per set and architecture.")
@click.option(
    "--epochs", type=int, help="Epochs instead of the protocol's; the printed name then says so."
)
@click.option(
    "--baselines",
    metavar="A,B",
    help="Methods with hard labels (random, herding, dm, …), or whole (default: random).",
)
@click.option(
    "--continual",
    type=int,
    metavar="STEPS",
    help="Also learn the classes in so many steps, from a growing memory.",
)
@click.option(
    "--experiment",
    metavar="N|all",
    help="Which experiment of a DC/DSA/DM result file (default: the last), or all, pooled.",
)
@click.option(
    "--ipc",
    type=int,
    metavar="N",
    help="Only the first N images of each class; soft labels are then computed by the set's teachers.",
)
@click.option(
    "--budgets",
    metavar="A,B,C",
    help="Code the set so that it fits so many bytes (2kB,6kB,20kB), and draw accuracy against bytes.",
)
@reading_options
@click.option(
    "--labels",
    metavar="KIND|URL",
    help=(
        "logits, probabilities or targets: what a foreign set's table of labels holds (default: guessed). Anything"
        " else: URL of soft labels (ours, or FKD's epoch folders) that do not lie beside the set."
    ),
)
@click.option(
    "--output",
    metavar="URL",
    help="Folder for report.json and its pictures (default: below runs/evaluate).",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the plan, and stop; exit code 3 if data or weights are missing.",
)
@verbose_option
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def main(
    url: str,
    experiment: str | None,
    labels: str | None,
    dry_run: bool,
    verbose: bool,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Train students on the set at URL and test them on real images, beside random images of the same number.

    URL is a folder published by raydd, a DC/DSA/DM .pt file, images_<n>.pt with labels_<n>.pt
    beside it, an image folder, or WebDataset tars. KEY=VALUE sets keys of dataset, evaluation,
    numerics, compute and tracking, and seed and store, as in a job: dataset.root=/data
    compute.workers=2
    """
    setup_logging(verbose)
    with command_errors(verbose, dry_run):
        from raydd.artifacts.foreign_posters import windows_from
        from raydd.artifacts.reading import LABEL_KINDS, Reading
        from raydd.config import load_evaluation
        from raydd.runtime import evaluating

        with refusing():
            tree = _tree(options, evaluating.job_of(url))
            job = load_evaluation(tree, overrides)
            kind, where = (labels, None) if labels in LABEL_KINDS else (None, labels)
            pooled, number = experiment == "all", _number(experiment)
            given = ("space", "orientation", "decoding", "factor", "ipc")
            stated = {key: options[key] for key in given}
            stated["windows"] = windows_from(options["windows"])
            reading = Reading(labels=kind, experiment=number, **stated)
            subject, plan = evaluating.plan_stored(
                job, url, reading, where, pooled=pooled, anyway=dry_run
            )
        for line in subject.notes:
            click.echo(line)
        if dry_run:
            text, absent = evaluating.describe_plan(job, subject, plan)
            click.echo(text)
            sys.exit(EXIT_MISSING if absent else 0)
        click.echo(evaluating.run_stored(job, subject, plan, click.echo).render())


def _number(experiment: str | None) -> int | None:
    from raydd.core.errors import ConfigError

    try:
        return None if experiment in (None, "all") else int(str(experiment))
    except ValueError:
        raise ConfigError(f"experiment: '{experiment}' must be a number, or all") from None


def _tree(options: dict[str, Any], made_by: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as the tree a job file would hold; what they leave open is as in the job that made the set."""
    evaluation = {
        key: options[key]
        for key in ("protocol", "repeats", "epochs", "continual")
        if options[key] is not None
    }
    for key in ("networks", "baselines"):
        if options[key] is not None:
            evaluation[key] = [name.strip() for name in options[key].split(",") if name.strip()]
    known = made_by.get("evaluation")
    if isinstance(known, dict) and "protocol" in known:
        evaluation.setdefault("protocol", known["protocol"])
    tree: dict[str, Any] = {"evaluation": evaluation}
    name, own = options["dataset"], made_by.get("dataset")
    if isinstance(own, dict) and name in (None, own.get("name")):
        tree["dataset"] = dict(own)
    elif name is not None:
        tree["dataset"] = {"name": name}
    if options["budgets"] is not None:
        tree["images"] = {"budget": [one.strip() for one in options["budgets"].split(",")]}
    if options["output"] is not None:
        tree["output"] = options["output"]
    return tree


if __name__ == "__main__":
    sys.exit(main())
