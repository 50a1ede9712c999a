"""The console script ``raydd``: one verb per entry point, imported only when it is called."""

from __future__ import annotations

import importlib

import click

from raydd import __version__

_VERBS = {
    "distill": "Distil a data set as a job file says.",
    "sweep": "Search keys of a job, such as method.lr_img.",
    "evaluate": "Measure what a distilled set, ours or foreign, is worth.",
    "status": "Say how far a running or stopped run is.",
    "report": "Write what a run did and reached as a page.",
    "shard": "Write a data set as WebDataset shards.",
    "export": "Write a distilled set in another format.",
    "encode": "Write a distilled set as one small file.",
    "gc": "Remove from a store what no unfinished run needs.",
}


class _Verbs(click.Group):
    """A click group whose commands live in the modules ``raydd.<verb>``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return a verb's command."""
        if name not in _VERBS:
            return None
        return importlib.import_module(f"raydd.{name}").main

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Explain an unknown verb."""
        from raydd.core.errors import nearest

        if args and args[0] not in _VERBS and not args[0].startswith("-"):
            ctx.fail(
                f"no verb '{args[0]}'{nearest(args[0], _VERBS)}; there are: {', '.join(_VERBS)}"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raydd")
def main() -> None:
    """Dataset distillation on Ray: a large labelled image set in, a tiny synthetic one out, with
    proof of what it is worth.
    """


if __name__ == "__main__":
    main()
