"""`phi4d model`: gets a model onto this machine, checks it, tells what it is. Loads none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import rich.progress
from rich.console import Console

from phi4d import demo
from phi4d.config import Config
from phi4d.engine import checkpoint, hub
from phi4d.engine.pull import Progress, Pulled
from phi4d.engine.pull import pull as download
from phi4d.engine.remote import size


def find(config: Config) -> Path:
    """The folder of the model that is configured.

    Raises:
        ConfigError: it is not here, or not whole.
    """
    if config.model_path == demo.MODEL_PATH:
        return demo.CHECKPOINT
    return hub.resolve(config.model_path, config.revision, config.cache_dir)


def pull(config: Config, say: Callable[[str], None]) -> None:
    """Download the model that is configured, check it, and tell where it is.

    Args:
        config: `model_path`, `revision` and `cache_dir` count.
        say: takes the lines that tell what came of it. Progress goes to standard error.

    Raises:
        ConfigError: there is no such model, or it may not be had, or is none that phi4d runs.
        EnvironmentFault: no network, no room.
    """
    model = config.model_path
    if model == demo.MODEL_PATH:
        say("the demo's model ships with phi4d: there is nothing to download")
    elif not hub.is_remote(model):
        say(f"{model} is not on the hub but a folder: there is nothing to download")
    else:
        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        try:
            with _progress(console) as progress:
                pulled = download(model, config.revision, config.cache_dir, progress)
        except KeyboardInterrupt:
            console.print("phi4d: stopped; the same command goes on from here")
            raise
        say(_what_came(pulled))
    check(config, say)


def check(config: Config, say: Callable[[str], None]) -> None:
    """Look at the model that is configured without loading it, and tell that it is well.

    Raises:
        ConfigError: with every fault.
    """
    found = checkpoint.read(find(config))
    from phi4d.engine import skeleton  # after it: importing torch takes seconds

    skeleton.check(found)
    say(f"ok: {found.folder}")


def _what_came(pulled: Pulled) -> str:
    if pulled.unasked:
        return f"not compared with the hub: {pulled.unasked}\nthe copy that is here is whole"
    if not pulled.fetched_bytes:
        return "nothing to download: the model is here, and up to date"
    return f"downloaded {size(pulled.fetched_bytes)}"


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A bar on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        "{task.description}",
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as bars:
        task: rich.progress.TaskID | None = None

        def show(name: str, here: int, total: int) -> None:
            nonlocal task
            if task is None:  # what was here before does not count for the speed
                task = bars.add_task(name, total=total, completed=here)
            bars.update(task, description=name, completed=here)

        yield show


class _Lines:
    """A line for each file, and for each tenth of the whole."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ("", 0)

    def __call__(self, name: str, here: int, total: int) -> None:
        news = (name, 10 * here // total)
        if news != self._last:
            self._last = news
            self._console.print(f"{name}: {size(here)} of {size(total)}")
