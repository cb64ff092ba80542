"""What commands share: their options, how they load the configuration, how they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self

import typer

from phi4d.errors import (
    EXIT_CONFIG,
    EXIT_DEVICE,
    EXIT_FAILURE,
    ConfigError,
    DeviceLost,
    EnvironmentFault,
    Phi4dError,
)

if TYPE_CHECKING:
    from phi4d.config import Config

HELP = {"help_option_names": ["-h", "--help"]}

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file, with conf.d beside it, instead of those in /etc/phi4d and your own.",
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
DebugOption = Annotated[bool, typer.Option("--debug", help="Log in detail.")]


def options_of(settings: list[str] | None, **named: Any) -> dict[str, Any]:
    """What was given on the command line: by --set, or by an option of its own, which wins."""
    options: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            refuse(f"--set {setting}: expected KEY=VALUE")
        options[key] = value
    return {**options, **{key: value for key, value in named.items() if value is not None}}


def load(config: Path | None, config_file: Path | None, options: dict[str, Any]) -> Config:
    """Put the configuration together.

    Raises:
        ConfigError: with every fault.
    """
    from phi4d import config as configuration

    return configuration.load(config=config, config_file=config_file, options=options)


class Refusals:
    """What goes wrong on purpose becomes lines on stderr and an exit code, not a traceback.

    Args:
        surroundings: the exit code when the surroundings are at fault.
    """

    def __init__(self, surroundings: int = EXIT_FAILURE) -> None:
        self._surroundings = surroundings
        self.config: Config | None = None
        """once it is known: faults are told with what set their key"""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigError):
            for fault in error.faults:
                told = self.config.placed(fault) if self.config else fault
                typer.echo(f"phi4d: {told}", err=True)
            raise typer.Exit(EXIT_CONFIG) from None
        if isinstance(error, Phi4dError):
            typer.echo(f"phi4d: {error}", err=True)
            if isinstance(error, EnvironmentFault):
                raise typer.Exit(self._surroundings) from None
            lost = isinstance(error, DeviceLost)
            raise typer.Exit(EXIT_DEVICE if lost else EXIT_FAILURE) from None


def refuse(words: str) -> NoReturn:
    """End with exit code 2: the command line is wrong."""
    typer.echo(f"phi4d: {words}; see phi4d --help", err=True)
    raise typer.Exit(2)
