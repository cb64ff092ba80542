"""`phi4d bench`: how fast this machine answers, and what to configure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phi4d.cli.options import (
    HELP,
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
from phi4d.errors import EXIT_LATER

app = typer.Typer(
    help="Measure how fast this machine answers.", no_args_is_help=True, context_settings=HELP
)
MOST_ROWS = 1024
MOST_THREADS = 1024


@app.callback()
def _root() -> None:
    """Only so that the one command there is has a name."""


@app.command()
def throughput(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE…",
            help="Pictures and recordings to answer; default: generated ones of both kinds.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…", help="What to try; default: 1, 2, 4 …, until more gains nothing."
        ),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="What to try on the CPU; default: all cores, half of them …, until it is slower.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="S", help="How long each is measured at least.", min=0.1)
    ] = 5.0,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the plot into this file as well.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="With the tiny toy that ships, as by `--model-path demo`."),
    ] = False,
    beside: Annotated[
        bool, typer.Option("--beside", help="Measure also while a daemon is at work.")
    ] = False,
    model_path: ModelOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
    config_file: LegacyOption = None,
    settings: SetOption = None,
) -> None:
    """Measure how much is answered with how many answers at a time, and threads of the CPU.

    It loads the model on each configured device in turn, and prints a table, a plot and the lines
    to put into the configuration. Answers of generated media are as long as those of speech and of
    descriptions usually are. Exit code 75 if a daemon is at work.
    """
    sizes = _numbers("--batch-size", batch_size, MOST_ROWS)
    counts = _numbers("--threads", threads, MOST_THREADS)
    model_path = "demo" if demo else model_path
    options = options_of(settings, model_path=model_path, device=device)
    with Refusals(EXIT_LATER) as refusals:
        refusals.config = settled = load(config, config_file, options)
        import json

        from phi4d import bench, log

        log.configure(log_level="warning")
        sweeps = bench.throughput(
            settled,
            lambda words: typer.echo(f"phi4d: {words}", err=True),
            files=files or (),
            sizes=sizes,
            threads=counts,
            seconds=seconds,
            beside=beside,
        )
        choice = bench.choose(sweeps)
        told = bench.as_json(sweeps, choice) if as_json else None
        typer.echo(json.dumps(told, indent=2) if told else bench.render(sweeps, choice))
        if svg is not None:
            bench.draw(svg, sweeps)


def _numbers(option: str, words: str | None, most: int) -> list[int]:
    """The numbers of a list such as ``1,2,4``."""
    try:
        numbers = [int(word) for word in (words or "").split(",") if words]
    except ValueError:
        numbers = [0]
    if not all(1 <= number <= most for number in numbers):
        refuse(f"{option} {words}: expected whole numbers from 1 to {most}, such as 1,4,16")
    return numbers
