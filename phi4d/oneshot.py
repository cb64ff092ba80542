"""One-shot: a few files or URLs, answered now, with the same worker that the daemon uses."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from phi4d.config import Config
from phi4d.daemon import make_pool, make_workers
from phi4d.engine import Engine
from phi4d.errors import EnvironmentFault, FileError, Phi4dError
from phi4d.job import Arrival, Job, Kind, Result, printable
from phi4d.loading import make_engines
from phi4d.media.probe import kind_of, look
from phi4d.scheduler import Pauses
from phi4d.store import Store
from phi4d.task import Rule

DOWNLOAD_SECONDS = 60.0
"""How long a server may keep silent."""
LOOK_SECONDS = 0.2
_EXTENSION_OF_TYPE = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/tiff": ".tif",
    "image/heic": ".heic",
    "image/avif": ".avif",
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "audio/mpeg": ".mp3",
    "audio/mp4": ".m4a",
    "audio/flac": ".flac",
    "audio/x-flac": ".flac",
    "audio/ogg": ".ogg",
    "audio/webm": ".webm",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
}


def process(
    config: Config,
    sources: Sequence[str],
    report: Callable[[str, Result | None, str], None],
    *,
    prompt: str | None = None,
    output_dir: Path | None = None,
    engines: Callable[[Config], Iterator[Engine]] = make_engines,
) -> bool:
    """Answer for files and URLs.

    Args:
        config: the model, the prompts and the limits; its inboxes play no part.
        sources: paths and http(s) URLs.
        report: called for each source with its result, or with None and what went wrong.
        prompt: asked in place of the configured prompts.
        output_dir: where sidecars go; None writes none.
        engines: loads the engines; tests give fake ones.

    Returns:
        Whether all could be answered.

    Raises:
        ConfigError: the model cannot be loaded.
        DeviceError: the device was lost.
        EnvironmentFault: the sidecars cannot be written.
    """
    failed = []

    def finished(source: str, result: Result | None, words: str) -> None:
        if result is None:
            failed.append(source)
        report(source, result, words)

    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="phi4d-")))
        if output_dir is not None:
            output_dir.mkdir(parents=True, exist_ok=True)
        orders: list[_Order] = []
        for source in sources:
            try:
                order = _order(source, scratch / str(len(orders)), config, prompt, output_dir)
                _refuse_same_name(order, orders)
            except Phi4dError as error:
                finished(source, None, str(error))
            else:
                orders.append(order)
        if orders:
            with Store(scratch / "jobs.sqlite3") as store:
                _work_off(orders, config, store, engines, finished)
    return not failed


@dataclass(frozen=True, slots=True)
class _Order:
    """One source, as an inbox of its own with one file in it."""

    source: str
    name: str
    rule: Rule
    arrival: Arrival


def _order(
    source: str, scratch: Path, config: Config, prompt: str | None, output_dir: Path | None
) -> _Order:
    scratch.mkdir(exist_ok=True)
    if re.match(r"https?://", source, re.IGNORECASE):
        path = download(source, scratch, int(config.max_file_mb * 1e6))
    else:
        path = Path(source).expanduser().resolve()
    prompts = {
        Kind.IMAGE: prompt or config.image_prompt,
        Kind.AUDIO: prompt or config.speech_prompt,
    }
    rule = Rule(os.fsencode(path.parent), os.fsencode(output_dir or scratch), prompts)
    name = scratch.name
    kind, fingerprint = look(path)
    return _Order(source, name, rule, Arrival(name, os.fsencode(path.name), kind, fingerprint))


def _refuse_same_name(order: _Order, orders: Sequence[_Order]) -> None:
    for other in orders:
        if (other.rule.outbox, other.arrival.path) == (order.rule.outbox, order.arrival.path):
            raise FileError(
                f"has the same name as {other.source}, whose results it would overwrite; "
                "process it with another --output-dir"
            )


def _work_off(
    orders: Sequence[_Order],
    config: Config,
    store: Store,
    engines: Callable[[Config], Iterator[Engine]],
    finished: Callable[[str, Result | None, str], None],
) -> None:
    """Answer all orders with one worker for each engine."""
    sources = {order.name: order.source for order in orders}
    store.add(order.arrival for order in orders)
    done = threading.Event()

    def on_result(job: Job, result: Result | None, words: str) -> None:
        finished(sources[job.inbox], result, words)
        if not store.busy(list(sources)):
            done.set()

    pauses = Pauses(config.pause_seconds)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(make_pool(config))
        loaded = []
        for engine in engines(config):
            stack.callback(engine.close)
            loaded.append(engine)
        pool.grow(config.decode_processes * len(loaded))
        rules = {order.name: order.rule for order in orders}
        workers = make_workers(config, loaded, store, pool, rules, pauses, on_result)
        for worker in workers:
            worker.start()
            stack.callback(worker.join)
            stack.callback(worker.abort)
        while not done.wait(LOOK_SECONDS) and all(worker.is_alive() for worker in workers):
            for name, reason in pauses.reasons().items():
                raise EnvironmentFault(f"{sources[name]}: {reason}")
    for worker in workers:
        if worker.error is not None:
            raise worker.error


def download(url: str, folder: Path, max_bytes: int) -> Path:
    """Fetch a URL into a folder.

    Returns:
        The file, with the URL's name and, where that tells nothing, the content type's extension.

    Raises:
        EnvironmentFault: the server cannot be reached, or answers with an error.
        FileError: it is larger than ``max_bytes``.
    """
    import httpx

    name = Path(unquote(urlsplit(url).path)).name or "download"
    size = 0
    try:
        with (
            httpx.Client(follow_redirects=True, timeout=DOWNLOAD_SECONDS) as client,
            client.stream("GET", url) as response,
        ):
            response.raise_for_status()
            content_type = response.headers.get("content-type", "").split(";")[0].strip().lower()
            if kind_of(os.fsencode(name)) is None:
                name += _EXTENSION_OF_TYPE.get(content_type, "")
            path = folder / printable(name)[-200:]  # a name that every file system takes
            with path.open("wb") as file:
                for chunk in response.iter_bytes():
                    size += len(chunk)
                    if size > max_bytes:
                        raise FileError(f"is larger than max_file_mb = {max_bytes / 1e6:g}")
                    file.write(chunk)
    except httpx.HTTPStatusError as error:
        status = error.response
        raise EnvironmentFault(
            f"the server answers {status.status_code} {status.reason_phrase}"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EnvironmentFault(f"cannot be fetched: {error}") from error
    return path
