"""Commands that look and change nothing: `status`, `explain`, `doctor`, `unit`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from phi4d.cli.options import (
    ConfigOption,
    DeviceOption,
    LegacyOption,
    ModelOption,
    Refusals,
    SetOption,
    load,
    options_of,
    refuse,
)
from phi4d.errors import EXIT_DOWN, EXIT_FAILURE, EXIT_OK, EnvironmentFault

if TYPE_CHECKING:
    from phi4d.config import Config
    from phi4d.status import Snapshot

ANSWER_SECONDS = 1.0  # a daemon that takes longer hangs


def status(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="For --watch.")
    ] = 1.0,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Tell what waits, runs, is done and has failed, and what holds inboxes and files up.

    Exit code 0 if all is well, 1 if an inbox is held up, a worker hangs or the daemon does not
    answer, 3 if it does not run.
    """
    import json

    from phi4d import status as words

    if watch and as_json:
        refuse("status: --watch goes without --json")
    with Refusals():
        settled = load(config, config_file, options_of(settings))
        if watch:
            _watch(lambda: words.render(_snapshot(settled)), interval)
            return
        snapshot = _snapshot(settled)
    typer.echo(json.dumps(snapshot.fields(), indent=2) if as_json else words.render(snapshot))
    codes = {"healthy": EXIT_OK, "degraded": EXIT_FAILURE, "down": EXIT_DOWN}
    raise typer.Exit(codes[snapshot.health])


def _watch(text: Callable[[], str], interval: float) -> None:
    """Draw a text again and again, until Ctrl-C."""
    from rich.live import Live
    from rich.text import Text

    with contextlib.suppress(KeyboardInterrupt):
        if not sys.stdout.isatty():  # nothing can be drawn over: one below the other
            while True:
                typer.echo(text())
                time.sleep(interval)
        with Live(Text(text()), auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(interval)
                live.update(Text(text()), refresh=True)


def _snapshot(settled: Config) -> Snapshot:
    from phi4d import control, lock
    from phi4d import status as words
    from phi4d.job import display_name
    from phi4d.store import Reader

    try:
        reader = Reader(settled.store_path)
    except FileNotFoundError:
        typer.echo(
            f"phi4d: {settled.store_path}: there is no store; phi4d has not run with this "
            "configuration (state_dir)",
            err=True,
        )
        raise typer.Exit(EXIT_FAILURE) from None
    pid, live = lock.holder(settled.state_dir / "lock"), None
    if pid is not None:
        try:
            live = control.ask(settled.control_path, "status", timeout_s=ANSWER_SECONDS)
        except EnvironmentFault as fault:  # the store tells the rest
            typer.echo(f"phi4d: {fault}", err=True)
    found = words.Snapshot(
        daemon_pid=pid,
        live=live,
        paused=[(each.inbox, each.words, each.since) for each in reader.paused().values()],
        oldest=reader.oldest(),
        counts=reader.counts(),
        running=[
            (job.display_name, device, time.time() - started)
            for job, device, started in reader.running()
        ],
        notices=[(notice.inbox, notice.text, notice.since) for notice in reader.notices()],
        put_off=[
            (row.job.display_name, row.reason or "is tried again", row.next_try)
            for row in reader.put_off(10)
        ],
        failures=[(display_name(f.inbox, f.path), f.reason, f.when) for f in reader.failures(10)],
    )
    reader.close()
    return found


def explain(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Any path, also one that is not there.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Tell why a file is taken or not, where it stands, and what to do.

    A sidecar means its source. Exit code 0 if the file is done or taken, 1 if it failed or is
    passed over.
    """
    with Refusals():
        settled = load(config, config_file, options_of(settings))
        import json

        from phi4d import explain as explanations

        told = explanations.explain(file, settled)
        shown = explanations.as_json(told)
        typer.echo(json.dumps(shown, indent=2) if as_json else explanations.render(told))
    raise typer.Exit(EXIT_OK if told.ok else EXIT_FAILURE)


def doctor(
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    model_path: ModelOption = None,
    device: DeviceOption = None,
    settings: SetOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a list of {check, status, found, advice}.")
    ] = False,
) -> None:
    """Look at machine, configuration, model and folders; tell what to mend.

    Changes nothing, loads no model. Run it as the user that phi4d runs as. Exit code 1 if a line
    says fail.
    """
    options = options_of(settings, model_path=model_path, device=device)
    from phi4d import doctor as examination

    raise typer.Exit(examination.run(lambda: load(config, config_file, options), as_json=as_json))


def unit(
    user: Annotated[
        bool, typer.Option("--user", help="For the service of your own, without root.")
    ] = False,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Print what the configuration wants of systemd beyond phi4d.service, as a drop-in.

    It is worked out from /etc/phi4d alone, as the service has it, and names the key of each line.
    The printed text tells the command that puts it in place.
    """
    import os

    from phi4d import config as configuration

    if not user and config is None:
        config = configuration.SYSTEM_FILE
    with Refusals():
        settled = configuration.load(
            config=config,
            config_file=config_file,
            environ=os.environ if user else {},
            options=options_of(settings),
        )
    from phi4d import unit as units
    from phi4d.unit import host

    wanted = (units.for_user if user else units.settings)(settled, host.look())
    source = str(config) if config else "your configuration"
    typer.echo(units.render(wanted, source=source, user=user))
