"""Commands that look and change nothing: `status`, `explain`, `doctor`."""

from __future__ import annotations

import time
from typing import Annotated

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
)
from phi4d.errors import EXIT_DOWN, EXIT_FAILURE, EXIT_OK, EnvironmentFault

ANSWER_SECONDS = 1.0  # a daemon that takes longer hangs


def status(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Tell what waits, runs, is done and has failed, and what holds inboxes and files up.

    Exit code 0 if all is well, 1 if an inbox is held up, a worker hangs or the daemon does not
    answer, 3 if it does not run.
    """
    import json

    from phi4d import control, lock
    from phi4d import status as words
    from phi4d.job import display_name
    from phi4d.store import Reader

    with Refusals():
        settled = load(config, config_file, options_of(settings))
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
        snapshot = words.Snapshot(
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
            failures=[
                (display_name(f.inbox, f.path), f.reason, f.when) for f in reader.failures(10)
            ],
        )
        reader.close()
    typer.echo(json.dumps(snapshot.fields(), indent=2) if as_json else words.render(snapshot))
    codes = {"healthy": EXIT_OK, "degraded": EXIT_FAILURE, "down": EXIT_DOWN}
    raise typer.Exit(codes[snapshot.health])


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
