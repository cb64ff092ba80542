"""`phi4d doctor`: looks at the machine, the configuration, the model and the folders; changes none.

Each look yields `Check` values. It loads no model, and takes no more of a GPU's memory than asking
how much is free does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from phi4d.config import Config
from phi4d.doctor import decoders, folders, machine, service, start
from phi4d.doctor.check import Check, Status, faulty, ok, warn
from phi4d.engine import devices
from phi4d.engine.placement import wants_gpus
from phi4d.engine.plan import Wishes
from phi4d.errors import EXIT_FAILURE, EXIT_OK, ConfigError
from phi4d.loading import wishes_of

STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}
NAME_WIDTH = 16  # columns; a longer name moves what follows it
UNWRAPPED = 100_000  # columns, for a file or a pipe


def run(load: Callable[[], Config], *, as_json: bool = False) -> int:
    """Look at everything and print what was found, each line as soon as it is known.

    Args:
        load: puts the configuration together; raises `ConfigError` with its faults.
        as_json: print a JSON list of objects with check, status, found, advice.

    Returns:
        The exit code: 1 if anything fails.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = UNWRAPPED
    checks = []
    for check in examine(load):
        checks.append(check)
        if not as_json:
            show(check, console)
    if as_json:
        found = json.dumps([asdict(check) for check in checks], indent=2, ensure_ascii=False)
        sys.stdout.write(f"{found}\n")
    else:
        console.print(summary(checks))
    failed = any(check.status is Status.FAIL for check in checks)
    return EXIT_FAILURE if failed else EXIT_OK


def examine(load: Callable[[], Config]) -> Iterator[Check]:
    """Every check, one after the other; with a broken configuration, those that need none."""
    yield machine.python()
    config = None
    try:
        config = load()
        yield ok("configuration", "valid")
        yield machine.daemon(config.state_dir)
    except ConfigError as error:
        for fault in error.faults:
            yield faulty("configuration", fault)
        yield warn(
            "configuration",
            "the model and the folders were not looked at, because it is broken",
            "mend it, and ask again",
        )
    yield from _engine(config)
    yield from machine.packages()
    yield from decoders.libraries()
    yield from decoders.samples()
    yield machine.sqlite()
    if config:
        yield from _places(config)


def _engine(config: Config | None) -> Iterator[Check]:
    """The devices, the model and the plan."""
    wishes = wishes_of(config) if config else Wishes()
    gpus = machine.gpus() if wants_gpus(wishes) else None
    cpu = devices.cpu()
    yield from machine.hardware(gpus, cpu)
    if config:
        busy = machine.daemon_pid(config.state_dir) is not None
        checks, size = start.model(config)
        yield from checks
        found = gpus.found if gpus else ()
        yield from start.slots(found, cpu, size, wishes, devices.installed(), busy=busy)


def _places(config: Config) -> Iterator[Check]:
    """The folders, and the room on their disks."""
    boxes = config.inboxes()
    trees = [folders.walk(box.path) for box in boxes]
    yield from folders.inboxes(boxes, trees)
    yield from folders.outboxes(boxes)
    yield from folders.originals(boxes)
    yield folders.watches(trees)
    yield folders.writable("state_dir", config.state_dir, "state_dir")
    yield from folders.disks(config)
    yield from service.service(config)


def show(check: Check, console: Console) -> None:
    """Print a check: its status, its name, what was found, and below it what to do."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=4, no_wrap=True)
    grid.add_column(min_width=NAME_WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(check.status, STYLES[check.status]), Text(check.check), Text(check.found))
    console.print(grid)
    if check.advice:  # on one line, however long: it may be a command to copy
        console.print(Text(f"      → {check.advice}", "bold"), soft_wrap=True)


def summary(checks: list[Check]) -> Text:
    """How it is with all of them together."""
    failed = sum(check.status is Status.FAIL for check in checks)
    warned = sum(check.status is Status.WARN for check in checks)
    if failed:
        return Text(
            f"\n{failed} to mend" + (f", {warned} to look at" if warned else ""), "bold red"
        )
    if warned:
        return Text(f"\nphi4d can run; {warned} to look at", "yellow")
    return Text("\nall is well", "green")
