"""Commands that hold inboxes back or hurry them: `pause`, `resume`, `rescan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from phi4d.cli.options import (
    ConfigOption,
    LegacyOption,
    Refusals,
    SetOption,
    load,
    options_of,
    refuse,
)
from phi4d.errors import EXIT_FAILURE

if TYPE_CHECKING:
    from phi4d.desk.holding import Hold

InboxesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="INBOX…", help="Names of inboxes; none: all.", show_default=False),
]


def pause(
    inboxes: InboxesArgument = None,
    why: Annotated[
        str | None, typer.Option("--why", metavar="TEXT", help="What the status and the log say.")
    ] = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Take nothing new from inboxes, until `phi4d resume`; over restarts, too.

    What is being worked on is finished; new files are noticed, and wait.
    """
    with Refusals():
        from phi4d.desk.holding import Hold

        _hold(
            Hold(tuple(inboxes or ()), why=why or ""),
            config, config_file, options_of(settings),
        )  # fmt: skip


def resume(
    inboxes: InboxesArgument = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Let paused inboxes go on."""
    with Refusals():
        from phi4d.desk.holding import Hold

        _hold(Hold(tuple(inboxes or ()), pause=False), config, config_file, options_of(settings))


def _hold(order: Hold, *source: object) -> None:
    from phi4d import orders

    settled = load(*source)  # type: ignore[arg-type]
    try:
        held, daemon = orders.hold(order, settled)
    except ValueError as error:
        refuse(f"{order.name}: {error}")
    for name in held.changed:
        words = "paused" if order.pause else "goes on"
        typer.echo(f"{name}: {words}" + ("" if daemon else "; phi4d does not run now"))
    for name in held.already:
        typer.echo(f"{name}: {'is' if order.pause else 'was not'} paused{' already' * order.pause}")
    if not held.changed and not held.already:
        typer.echo("no inbox is paused")


def rescan(
    inboxes: InboxesArgument = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Look through inboxes now for what was not noticed.

    A running phi4d does so by itself, every rescan_seconds and whenever events were lost. Exit code
    1 if it does not run.
    """
    with Refusals():
        from phi4d import orders

        settled = load(config, config_file, options_of(settings))
        names = orders.rescan(inboxes or (), settled)
        if names is None:
            typer.echo(
                "phi4d: no daemon runs; it looks through all inboxes when it starts", err=True
            )
            raise typer.Exit(EXIT_FAILURE)
        typer.echo(f"looking through {', '.join(names)}")
