"""The command that has the daemon read its configuration again: `reload`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from phi4d.cli.options import ConfigOption, LegacyOption, Refusals, SetOption, options_of
from phi4d.errors import EXIT_CONFIG, EXIT_DOWN

if TYPE_CHECKING:
    from phi4d.config.loading import Reading

RUNTIME_FOLDER = "/run/phi4d"  # the service's


def reload(
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Have the daemon read its configuration again, and tell what it took up.

    Inboxes, prompts, limits, the log and the metrics change while it runs; what wants a restart is
    named. A configuration with faults is refused whole, and the old one stays in force. The daemon
    reads the sources that it was started with; the options only tell where it is. Exit code 78 if
    it refused, 3 if no daemon runs.
    """
    with Refusals():
        from phi4d import orders
        from phi4d.config import loading

        # also with a faulty configuration: the daemon's log is to tell of it, too
        found = loading.read(config=config, config_file=config_file, options=options_of(settings))
        for socket in _sockets(found, named=config is not None):
            outcome = orders.reload(socket)
            if outcome is not None:
                break
        else:
            for fault in found.faults:
                typer.echo(f"phi4d: {fault}", err=True)
            if found.faults:
                typer.echo(
                    f"phi4d: no daemon listens at {found.control_path}, which is all that can be "
                    "told of where it is: mend this, and reload again",
                    err=True,
                )
                raise typer.Exit(EXIT_CONFIG)
            typer.echo("phi4d: no daemon runs; the next start reads the configuration", err=True)
            raise typer.Exit(EXIT_DOWN)
    if outcome.faults:
        for words in outcome.faults:
            typer.echo(f"phi4d: {words}", err=True)
        typer.echo("phi4d: refused; the old configuration stays in force", err=True)
        raise typer.Exit(EXIT_CONFIG)
    typer.echo(f"reloaded: {outcome.changed or 'nothing has changed'}")
    if outcome.at_start:
        typer.echo(f"only at the next start of phi4d: {', '.join(outcome.at_start)}")


def _sockets(found: Reading, *, named: bool) -> Iterator[Path]:
    yield found.control_path
    if found.config is None and not named:  # it may be the very file that tells where it is
        yield Path(os.environ.get("RUNTIME_DIRECTORY", RUNTIME_FOLDER)) / "control"
