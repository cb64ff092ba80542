"""Commands that have files done again: `retry`, `regenerate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

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
from phi4d.errors import EXIT_FAILURE, EXIT_OK

if TYPE_CHECKING:
    from phi4d.config import Config
    from phi4d.desk.again import Order

PathsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="PATH…", help="Files, folders, sidecars.", show_default=False),
]
InboxOption = Annotated[
    str | None, typer.Option("--inbox", metavar="NAME", help="Only in this inbox.")
]


def retry(
    paths: PathsArgument = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="All that failed or waits, without a PATH.")
    ] = False,
    inbox: InboxOption = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Take up at once what failed, or waits for its next try.

    A PATH is a file or folder in an inbox, or a file's sidecar, such as NAME.error.json. Exit code
    1 if there was nothing to take up.
    """
    if bool(paths) == failed:
        refuse("retry: name files or folders, or give --failed for all that failed")
    if inbox is not None and not failed:
        refuse("retry: --inbox goes with --failed")
    with Refusals():
        from phi4d.desk.again import Order

        settled = load(config, config_file, options_of(settings))
        _order(settled, Order(_absolute(settled, paths), _known(settled, inbox)))


def regenerate(
    paths: PathsArgument = None,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Only what another prompt, model or sampling answered."),
    ] = False,
    inbox: InboxOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell how many files it would be.")
    ] = False,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Answer anew what is done.

    A PATH is a file or folder in an inbox, or a file's sidecar. The answer takes the old one's
    place when it is there. Exit code 1 if there was nothing to answer anew.
    """
    if not paths and not stale:
        refuse("regenerate: name files or folders, or give --stale for all that is out of date")
    if inbox is not None and paths:
        refuse("regenerate: --inbox goes with --stale, without a PATH")
    with Refusals():
        from phi4d.desk.again import Order

        settled = load(config, config_file, options_of(settings))
        _order(
            settled,
            Order(
                _absolute(settled, paths), _known(settled, inbox), anew=True, stale=stale,
                dry_run=dry_run,
            ),
        )  # fmt: skip


def cancel(
    paths: PathsArgument = None,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="All that waits, without a PATH.")
    ] = False,
    inbox: InboxOption = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Give up what waits or is being worked on; `phi4d retry` takes it up again.

    What is being worked on stops within a token, unless it is done before that; --waiting lets it
    be. Exit code 1 if there was nothing to give up.
    """
    if bool(paths) == waiting:
        refuse("cancel: name files or folders, or give --waiting for all that waits")
    with Refusals():
        from phi4d import orders

        settled = load(config, config_file, options_of(settings))
        known = _known(settled, inbox)
        outcome = orders.cancel(_absolute(settled, paths), known, settled)
        if outcome.taken or not outcome.stopping:
            typer.echo(f"{outcome.taken:,} cancelled")
        if outcome.stopping:
            typer.echo(f"{outcome.stopping:,} being worked on: told to stop")
        for path, why in outcome.left:
            typer.echo(f"phi4d: {path}: {why}", err=True)
        raise typer.Exit(EXIT_OK if outcome.taken or outcome.stopping else EXIT_FAILURE)


def _absolute(settled: Config, paths: list[str] | None) -> tuple[bytes, ...]:
    from phi4d.paths import as_configured

    return tuple(as_configured(path, settled.inboxes()) for path in paths or ())


def _known(settled: Config, inbox: str | None) -> str | None:
    names = [box.name for box in settled.inboxes()]
    if inbox is not None and inbox not in names:
        refuse(f"--inbox {inbox}: there is none of that name; there are: {', '.join(names)}")
    return inbox


def _order(settled: Config, order: Order) -> NoReturn:
    """Have an order carried out, and tell what came of it."""
    from phi4d import orders

    outcome, daemon = orders.give(order, settled)
    for line in orders.told(order, outcome, daemon=daemon):
        typer.echo(line)
    for path, why in outcome.left:
        typer.echo(f"phi4d: {path}: {why}", err=True)
    raise typer.Exit(EXIT_OK if outcome.taken else EXIT_FAILURE)
