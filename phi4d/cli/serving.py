"""Commands that answer for files: `run`, `process`, `demo`."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phi4d.cli.options import (
    ConfigOption,
    DebugOption,
    DeviceOption,
    LegacyOption,
    ModelOption,
    Refusals,
    SetOption,
    load,
    options_of,
    refuse,
)
from phi4d.errors import EXIT_FAILURE, EXIT_LATER, EXIT_OK

if TYPE_CHECKING:
    from phi4d.job import Result


def run(
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    inbox: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Watch this folder, and only this one.")
    ] = None,
    outbox: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help='Sidecars of --inbox; "beside" = next to the files.'),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Work off what is there and leave.")] = False,
    model_path: ModelOption = None,
    device: DeviceOption = None,
    settings: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Watch the inboxes and write sidecars to the outboxes, until SIGTERM or Ctrl-C.

    SIGHUP, or `phi4d reload`: read the configuration again.
    """
    from phi4d import signals

    signals.block()  # before anything that starts threads is imported
    options = options_of(settings, model_path=model_path, device=device, debug=debug or None)
    if inbox is not None:
        if not once:  # a new folder holds nothing to work off: its name was mistyped
            # if it cannot be made, the daemon says so, and waits
            with contextlib.suppress(OSError):
                inbox.expanduser().mkdir(exist_ok=True)
        table = {"path": str(inbox)}
        if outbox is not None:
            table["outbox"] = str(outbox)
        options["inbox"] = [table]
    elif outbox is not None:
        refuse("--outbox goes with --inbox")
    with Refusals(EXIT_LATER) as refusals:
        read = partial(load, config, config_file, options)
        refusals.config = settled = read()
        import faulthandler

        from phi4d import daemon, log

        log.configure(**settled.log_settings())
        faulthandler.enable()  # a hang that the service manager ends says where each thread was
        code = daemon.run(settled, once=once, read=read)
    raise typer.Exit(code)


def process(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE|URL…", help="Pictures and recordings.", show_default=False),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Ask this instead of the usual.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write sidecars there as well.")
    ] = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    model_path: ModelOption = None,
    device: DeviceOption = None,
    settings: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Describe pictures and transcribe recordings now, and print the answers."""
    with Refusals() as refusals:
        refusals.config = settled = load(
            config,
            config_file,
            options_of(settings, model_path=model_path, device=device, debug=debug or None),
        )
        sources = files or [url for url in (settled.image_url, settled.audio_url) if url]
        if not sources:
            refuse("nothing to do: name a file or a URL")
        from phi4d import log, oneshot

        # a failure is reported below; the daemon's log would say it twice
        log.configure(log_level="debug" if settled.debug else "critical")
        several = len(sources) > 1

        def report(source: str, result: Result | None, words: str) -> None:
            if result is None:
                typer.echo(f"phi4d: {source}: {words.removeprefix('failed: ')}", err=True)
            else:
                typer.echo(f"{source}: {result.text}" if several else result.text)

        ok = oneshot.process(
            settled,
            sources,
            report,
            prompt=prompt,
            output_dir=output_dir or settled.results_dir,
        )
    raise typer.Exit(EXIT_OK if ok else EXIT_FAILURE)


def demo(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Where; default: ./phi4d-demo.")
    ] = None,
) -> None:
    """Show the daemon at work on samples, with a tiny toy model that ships."""
    from phi4d import trial

    raise typer.Exit(trial.run(folder or Path("phi4d-demo")))
