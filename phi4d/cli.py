"""The command line: thin. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import phi4d
from phi4d.errors import (
    EXIT_CONFIG,
    EXIT_DEVICE,
    EXIT_FAILURE,
    EXIT_LATER,
    EXIT_OK,
    ConfigError,
    DeviceLost,
    EnvironmentFault,
    Phi4dError,
)

if TYPE_CHECKING:
    from phi4d.again import Order
    from phi4d.config import Config
    from phi4d.job import Result

app = typer.Typer(
    name="phi4d",
    help="Drop pictures and recordings into a folder; find descriptions and transcripts in another."
    " Runs Phi-4-multimodal on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

model_app = typer.Typer(
    help="Download the model, check it, tell what it is.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(model_app, name="model")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file, instead of /etc/phi4d/phi4d.toml and your own.",
    ),
]
LegacyOption = Annotated[
    Path | None,
    typer.Option("--config-file", metavar="FILE", help="The old script's config.json."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key; may be given several times."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model-path", metavar="MODEL", help='Hub id, folder, or "demo" (a tiny toy to try).'
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:0,cuda:1 …")
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help='Hub id, folder, or "demo"; default: model_path of the configuration.',
        show_default=False,
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit on the hub.")
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache-dir", metavar="DIR", help="Where downloaded models are.")
]
PathsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="PATH…", help="Files, folders, sidecars.", show_default=False),
]
InboxOption = Annotated[
    str | None, typer.Option("--inbox", metavar="NAME", help="Only in this inbox.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Log in detail.")]


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


@app.command()
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
    """Watch the inboxes and write sidecars to the outboxes, until SIGTERM or Ctrl-C."""
    from phi4d import signals

    signals.block()  # before anything that starts threads is imported
    options = _options(settings, model_path=model_path, device=device, debug=debug or None)
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
        _refuse("--outbox goes with --inbox")
    with _Refusals(EXIT_LATER):
        settled = _load(config, config_file, options)
        import logging

        from phi4d import daemon, log

        log.setup(logging.DEBUG if settled.debug else logging.INFO)
        code = daemon.run(settled, once=once)
    raise typer.Exit(code)


@app.command()
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
    with _Refusals():
        settled = _load(
            config,
            config_file,
            _options(settings, model_path=model_path, device=device, debug=debug or None),
        )
        sources = files or [url for url in (settled.image_url, settled.audio_url) if url]
        if not sources:
            _refuse("nothing to do: name a file or a URL")
        import logging

        from phi4d import log, oneshot

        # a failure is reported below; the daemon's log would say it twice
        log.setup(logging.DEBUG if settled.debug else logging.CRITICAL)
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


@app.command()
def status(
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Tell what waits, runs, is done and has failed, and what holds inboxes and files up."""
    from phi4d import lock
    from phi4d import status as words
    from phi4d.job import display_name
    from phi4d.store import Reader

    with _Refusals():
        settled = _load(config, config_file, _options(settings))
        try:
            reader = Reader(settled.store_path)
        except FileNotFoundError:
            typer.echo(
                f"phi4d: {settled.store_path}: there is no store; phi4d has not run with this "
                "configuration (state_dir)",
                err=True,
            )
            raise typer.Exit(EXIT_FAILURE) from None
        snapshot = words.Snapshot(
            daemon_pid=lock.holder(settled.state_dir / "lock"),
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
    typer.echo(words.render(snapshot))


@app.command()
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
        _refuse("retry: name files or folders, or give --failed for all that failed")
    if inbox is not None and not failed:
        _refuse("retry: --inbox goes with --failed")
    with _Refusals():
        from phi4d.again import Order

        settled = _load(config, config_file, _options(settings))
        _order(settled, Order(_absolute(settled, paths), _known(settled, inbox)))


@app.command()
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
        _refuse("regenerate: name files or folders, or give --stale for all that is out of date")
    if inbox is not None and paths:
        _refuse("regenerate: --inbox goes with --stale, without a PATH")
    with _Refusals():
        from phi4d.again import Order

        settled = _load(config, config_file, _options(settings))
        _order(
            settled,
            Order(
                _absolute(settled, paths), _known(settled, inbox), anew=True, stale=stale,
                dry_run=dry_run,
            ),
        )  # fmt: skip


@app.command()
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
    with _Refusals():
        settled = _load(config, config_file, _options(settings))
        import json

        from phi4d import explain as explanations

        told = explanations.explain(file, settled)
        shown = explanations.as_json(told)
        typer.echo(json.dumps(shown, indent=2) if as_json else explanations.render(told))
    raise typer.Exit(EXIT_OK if told.ok else EXIT_FAILURE)


@app.command()
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
    options = _options(settings, model_path=model_path, device=device)
    from phi4d import doctor as examination

    raise typer.Exit(examination.run(lambda: _load(config, config_file, options), as_json=as_json))


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Where; default: ./phi4d-demo.")
    ] = None,
) -> None:
    """Show the daemon at work on samples, with a tiny toy model that ships."""
    from phi4d import trial

    raise typer.Exit(trial.run(folder or Path("phi4d-demo")))


@model_app.command()
def pull(
    model: ModelArgument = None,
    revision: RevisionOption = None,
    cache_dir: CacheOption = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Download what is not here yet of the model, and check it. Goes on where it was stopped."""
    with _Refusals():
        settled = _model_config(config, config_file, settings, model, revision, cache_dir)
        from phi4d import model as models

        try:
            models.pull(settled, typer.echo)
        except EnvironmentFault as fault:
            typer.echo(f"phi4d: {fault}", err=True)
            raise typer.Exit(EXIT_LATER) from None


@model_app.command()
def check(
    model: ModelArgument = None,
    revision: RevisionOption = None,
    cache_dir: CacheOption = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """See that the model's files are there, whole, and fit together, without loading it."""
    with _Refusals():
        settled = _model_config(config, config_file, settings, model, revision, cache_dir)
        from phi4d import model as models

        models.check(settled, typer.echo)


@model_app.command()
def info(
    model: ModelArgument = None,
    revision: RevisionOption = None,
    cache_dir: CacheOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Tell what the model is: layout, parameters, adapters, number format, size, place."""
    with _Refusals():
        settled = _model_config(config, config_file, settings, model, revision, cache_dir)
        import json

        from phi4d import model as models

        told = models.info(settled)
        typer.echo(json.dumps(told, indent=2) if as_json else models.render(told))


def _model_config(
    config: Path | None,
    config_file: Path | None,
    settings: list[str] | None,
    model: str | None,
    revision: str | None,
    cache_dir: Path | None,
) -> Config:
    named = {"model_path": model, "revision": revision, "cache_dir": cache_dir}
    return _load(config, config_file, _options(settings, **named))


def _options(settings: list[str] | None, **named: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            _refuse(f"--set {setting}: expected KEY=VALUE")
        options[key] = value
    return {**options, **{key: value for key, value in named.items() if value is not None}}


def _absolute(settled: Config, paths: list[str] | None) -> tuple[bytes, ...]:
    from phi4d.paths import as_configured

    return tuple(as_configured(path, settled.inboxes()) for path in paths or ())


def _known(settled: Config, inbox: str | None) -> str | None:
    names = [box.name for box in settled.inboxes()]
    if inbox is not None and inbox not in names:
        _refuse(f"--inbox {inbox}: there is none of that name; there are: {', '.join(names)}")
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


def _load(config: Path | None, config_file: Path | None, options: dict[str, Any]) -> Config:
    from phi4d import config as configuration

    return configuration.load(config=config, config_file=config_file, options=options)


class _Refusals:
    """What goes wrong on purpose becomes lines on stderr and an exit code, not a traceback.

    Args:
        surroundings: the exit code when the surroundings are at fault.
    """

    def __init__(self, surroundings: int = EXIT_FAILURE) -> None:
        self._surroundings = surroundings

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigError):
            for fault in error.faults:
                typer.echo(f"phi4d: {fault}", err=True)
            raise typer.Exit(EXIT_CONFIG) from None
        if isinstance(error, Phi4dError):
            typer.echo(f"phi4d: {error}", err=True)
            if isinstance(error, EnvironmentFault):
                raise typer.Exit(self._surroundings) from None
            lost = isinstance(error, DeviceLost)
            raise typer.Exit(EXIT_DEVICE if lost else EXIT_FAILURE) from None


def _refuse(words: str) -> NoReturn:
    typer.echo(f"phi4d: {words}; see phi4d --help", err=True)
    raise typer.Exit(2)


def main() -> None:
    """Entry point."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
