"""`phi4d model`: gets a model onto this machine, checks it, tells what it is. Loads no weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rich.progress
from rich.console import Console

from phi4d import demo
from phi4d.config import Config
from phi4d.engine import checkpoint, hub
from phi4d.engine.pull import Progress, Pulled
from phi4d.engine.pull import pull as download
from phi4d.engine.remote import size
from phi4d.loading import locate

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""what safetensors calls number formats, to what everybody else does"""


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
    found = checkpoint.read(locate(config)[0])
    from phi4d.engine import skeleton  # after it: importing torch takes seconds

    if strange := skeleton.check(found):
        say(f"{len(strange)} tensors have no place in the model and are left out: {strange[0]} …")
    files, count = _files(found)
    say(f"ok: {found.folder}: {found.layout} layout, {files} weight files, {size(count)}")


def info(config: Config) -> dict[str, Any]:
    """What the model that is configured is, in terms of JSON; numbers are parameters and bytes.

    Raises:
        ConfigError: it is not here, or cannot be read.
    """
    found = checkpoint.read(locate(config)[0])
    folder, parts = found.folder, found.size
    parameters = {
        "language": parts.language,
        "embedding": parts.embedding,
        "towers": parts.towers,
        "vision_adapter": parts.vision_adapter,
        "speech_adapter": parts.speech_adapter,
    }
    dtypes: Counter[str] = Counter()
    for tensor in found.tensors.values():
        dtypes[DTYPES.get(tensor.dtype, tensor.dtype)] += tensor.bytes
    files, count = _files(found)
    return {
        "model": config.model_path,
        "revision": config.revision if hub.is_remote(config.model_path) else None,
        "commit": folder.name if hub.is_commit(folder.name) else None,
        "folder": str(folder),
        "layout": str(found.layout),
        "parameters": {"total": sum(parameters.values()), **parameters},
        "adapters": {
            name: {"rank": a.rank, "scale": a.scale} for name, a in found.adapters.items()
        },
        "dtypes": [name for name, _ in dtypes.most_common()],
        "files": files,
        "bytes": count,
    }


def render(told: dict[str, Any]) -> str:
    """`info` for the eyes."""
    parameters = dict(told["parameters"])
    parts = ", ".join(
        f"{name.replace('_', ' ')} {_millions(count)}"
        for name, count in parameters.items()
        if name != "total"
    )
    adapters = "; ".join(
        f"{name} rank {adapter['rank']}, scale {adapter['scale']:g}"
        for name, adapter in told["adapters"].items()
    )
    rows = {
        "model": told["model"],
        "revision": told["revision"],
        "commit": told["commit"],
        "folder": told["folder"],
        "layout": told["layout"],
        "parameters": f"{_millions(parameters['total'])}: {parts}",
        "adapters": adapters,
        "dtype": ", ".join(told["dtypes"]),
        "weights": f"{told['files']} files, {size(told['bytes'])}",
    }
    return "\n".join(f"{name:12}{value}" for name, value in rows.items() if value)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} M" if count >= 1e7 else f"{count / 1e6:.2f} M"


def _files(found: checkpoint.Checkpoint) -> tuple[int, int]:
    """The number of weight files, and their bytes."""
    return len(found.files), sum(file.stat().st_size for file in found.files)


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
