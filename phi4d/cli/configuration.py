"""`phi4d config`: check it, show it, explain a key, print the sample."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from phi4d.cli.options import (
    HELP,
    ConfigOption,
    LegacyOption,
    SetOption,
    options_of,
)
from phi4d.errors import EXIT_CONFIG

if TYPE_CHECKING:
    from phi4d.config.loading import Reading
    from phi4d.config.telling import Key

app = typer.Typer(
    help="Check the configuration, show it, explain a key, print the sample.",
    no_args_is_help=True,
    context_settings=HELP,
)
WIDEST = 100  # columns
EXIT_USAGE = 2


@app.command()
def check(
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Tell all that is wrong, and what is allowed but probably not meant.

    Exit code 78 if something is wrong. `phi4d doctor` looks at the machine as well.
    """
    reading = _read(config, config_file, settings)
    for source in reading.sources:
        if source.kind == "file" or source.values:
            typer.echo(f"read  {source.name}: {source.summary()}")
    if not any(source.kind == "file" for source in reading.sources):
        typer.echo("read  no file: there is none in /etc/phi4d, nor one of your own")
    if reading.config is None:
        _refuse_all(reading)
    from phi4d.config import doubts

    for doubt in doubts.doubts(reading, reading.config, os.environ):
        typer.echo(f"warn  {doubt}")
    typer.echo("ok")


@app.command()
def show(
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON: of each key its value, and what set it.")
    ] = False,
) -> None:
    """Print every value that is in force, and what set it, such as a line of a file.

    It is TOML, and can be used as a configuration.
    """
    reading = _read(config, config_file, settings)
    if reading.config is None:
        _refuse_all(reading)
    from phi4d.config import telling

    if as_json:
        import json

        shown = json.dumps(telling.as_json(reading.config), indent=2, ensure_ascii=False)
        typer.echo(shown)
    else:
        typer.echo(telling.as_toml(reading, reading.config))


@app.command()
def default() -> None:
    """Print the sample: every key with its default, its unit, and why one would change it."""
    from phi4d.config import telling

    typer.echo(telling.sample(), nl=False)


@app.command()
def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="Such as batch_size or inbox.originals; without it, all are listed.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Tell all about a key: what it takes, its default, where it is set, what it means and why.

    Exit code 2 if there is no such key; the nearest is named.
    """
    from phi4d.config import telling

    if key is None:
        typer.echo(telling.listing())
        return
    found = telling.find(key)
    if found is None:
        typer.echo(f"phi4d: {telling.unknown(key)}", err=True)
        raise typer.Exit(EXIT_USAGE)
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    reading = _read(config, config_file, settings)
    typer.echo(telling.explain(found, reading, width, changed=_taken_up(found)))


def _taken_up(key: Key) -> str:
    """How another value of a key gets into a daemon that runs."""
    from phi4d import changes
    from phi4d.config import Inbox

    is_live = key.table is Inbox or key.name in changes.LIVE
    return f"a running daemon takes it up at a {'reload' if is_live else 'restart'}"


def _read(config: Path | None, config_file: Path | None, settings: list[str] | None) -> Reading:
    from phi4d.config import loading

    return loading.read(config=config, config_file=config_file, options=options_of(settings))


def _refuse_all(reading: Reading) -> NoReturn:
    for fault in reading.faults:
        typer.echo(f"phi4d: {fault}", err=True)
    raise typer.Exit(EXIT_CONFIG)
