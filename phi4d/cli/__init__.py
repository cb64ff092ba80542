"""The command line: thin. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
import typer.main

import phi4d
from phi4d.cli import (
    bench,
    configuration,
    holding,
    looking,
    model,
    ordering,
    reloading,
    serving,
    streams,
)
from phi4d.cli.options import HELP
from phi4d.errors import EXIT_FAILURE

app = typer.Typer(
    name="phi4d",
    help="Drop pictures and recordings into a folder; find descriptions and transcripts in another."
    " Runs Phi-4-multimodal on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"phi4d {phi4d.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (
    serving.run,
    serving.process,
    looking.status,
    ordering.retry,
    ordering.regenerate,
    ordering.cancel,
    holding.pause,
    holding.resume,
    holding.rescan,
    reloading.reload,
    looking.explain,
    looking.doctor,
    looking.unit,
    serving.demo,
):
    app.command()(command)
app.add_typer(model.app, name="model")
app.add_typer(bench.app, name="bench")
app.add_typer(configuration.app, name="config")


def main() -> None:
    """Entry point."""
    streams.mend()
    try:
        if "_PHI4D_COMPLETE" in os.environ:  # a shell asks, because somebody pressed TAB
            from phi4d.cli import completing

            completing.main(typer.main.get_command(app))
        else:
            app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if not streams.is_lost(error):
            raise
        typer.echo(f"phi4d: standard output cannot be written: {error.strerror}", err=True)
        sys.exit(EXIT_FAILURE)
