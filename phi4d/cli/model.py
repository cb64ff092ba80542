"""`phi4d model`: download the model, check it, tell what it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phi4d.cli.options import (
    HELP,
    ConfigOption,
    LegacyOption,
    Refusals,
    SetOption,
    load,
    options_of,
)
from phi4d.errors import EXIT_LATER, EnvironmentFault

if TYPE_CHECKING:
    from phi4d.config import Config

app = typer.Typer(
    help="Download the model, check it, tell what it is.",
    no_args_is_help=True,
    context_settings=HELP,
)

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


@app.command()
def pull(
    model: ModelArgument = None,
    revision: RevisionOption = None,
    cache_dir: CacheOption = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Download what is not here yet of the model, and check it. Goes on where it was stopped."""
    with Refusals():
        settled = _model_config(config, config_file, settings, model, revision, cache_dir)
        from phi4d import model as models

        try:
            models.pull(settled, typer.echo)
        except EnvironmentFault as fault:
            typer.echo(f"phi4d: {fault}", err=True)
            raise typer.Exit(EXIT_LATER) from None


@app.command()
def check(
    model: ModelArgument = None,
    revision: RevisionOption = None,
    cache_dir: CacheOption = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """See that the model's files are there, whole, and fit together, without loading it."""
    with Refusals():
        settled = _model_config(config, config_file, settings, model, revision, cache_dir)
        from phi4d import model as models

        models.check(settled, typer.echo)


@app.command()
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
    with Refusals():
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
    return load(config, config_file, options_of(settings, **named))
