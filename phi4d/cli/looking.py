"""Commands that look and change nothing: `status`, `explain`, `doctor`, `unit`."""

from __future__ import annotations

import contextlib
import os
import shutil
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
STARTING_SECONDS = 60.0  # so long one that takes no orders yet is taken to be starting


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

    Exit code 0 if all is well, also while the model is loaded or somebody paused it; 1 if an inbox
    is held up, a worker hangs or the daemon does not answer; 3 if it does not run.
    """
    import json

    from phi4d import status as words

    if watch and as_json:
        refuse("status: --watch goes without --json")
    with Refusals():
        settled = load(config, config_file, options_of(settings))
        if watch:
            _watch(lambda: _drawn(settled), interval)
            return
        said: list[str] = []
        snapshot = _snapshot(settled, said)
    for fault in said:
        typer.echo(f"phi4d: {fault}", err=True)
    text = json.dumps(snapshot.fields(), indent=2) if as_json else None
    typer.echo(text or words.render(snapshot, _columns()))
    codes = {"healthy": EXIT_OK, "degraded": EXIT_FAILURE, "down": EXIT_DOWN}
    raise typer.Exit(codes[snapshot.health])


def _drawn(settled: Config) -> str:
    from phi4d import status as words

    said: list[str] = []
    try:
        text = words.render(_snapshot(settled, said), _columns())
    except EnvironmentFault as fault:  # it may go by: the daemon is being restarted, say
        return f"phi4d: {fault}"
    return "\n".join([text, *(f"\nphi4d: {fault}" for fault in said)])


def _columns() -> int | None:
    """Of the terminal; None: what is written is no terminal's."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


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


def _snapshot(settled: Config, said: list[str]) -> Snapshot:
    """What the daemon tells, or, if it does not, the store.

    Args:
        settled: where they are.
        said: takes what is to be said beside it.

    Raises:
        EnvironmentFault: neither can be asked.
    """
    from phi4d import __version__, control, lock
    from phi4d import status as words
    from phi4d.desk import telling

    live = other = None
    try:
        live = control.ask(settled.control_path, "status", timeout_s=ANSWER_SECONDS)
    except EnvironmentFault as fault:  # the store tells the rest
        said.append(str(fault))
    if live is not None and live.get("version") != __version__:
        found = live.get("version", "of another version")
        said.append(f"the daemon is phi4d {found}, this command {__version__}: restart the daemon")
        live, other = None, live  # it may mean something else by it
    if live is not None and live["stored"] is not None:
        return words.Snapshot.of(live["stored"], live, pid=live["pid"])
    held = settled.state_dir / "lock"
    pid = (live or other or {}).get("pid") or lock.holder(held)
    try:
        stored = telling.read(settled.store_path)
    except EnvironmentFault as fault:
        if said or pid is not None or os.access(settled.store_path, os.R_OK, effective_ids=True):
            raise
        stored = telling.nothing()  # nobody listens, and this user may know no more
        said.append(str(fault))
    except FileNotFoundError:
        stored = telling.nothing()
        if pid is None:
            said.append(
                f"{settled.store_path}: there is no store; phi4d has not run with this "
                "configuration (state_dir)"
            )
    starting = pid is not None and not said and lock.age_seconds(pid) < STARTING_SECONDS
    return words.Snapshot.of(stored, live, pid=pid, starting=starting)


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
    write: Annotated[bool, typer.Option("--write", help="Put it in place as well.")] = False,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Print what the configuration wants of systemd beyond phi4d.service, as a drop-in.

    It is worked out from /etc/phi4d alone, as the service has it, and names the key of each line.
    Its place is /etc/systemd/system/phi4d.service.d/phi4d.conf.
    """
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
    text = units.render(wanted, source=source, user=user)
    typer.echo(text)
    if write:
        with Refusals():
            place = units.write(text, user=user)
        again = units.read_again(user=user)
        typer.echo(f"phi4d: {place} is written; it is in force after: {again}", err=True)
