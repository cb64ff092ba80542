"""What a configuration asks of its surroundings: folders and a network."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from phi4d import demo
from phi4d.config import BESIDE, Config, Inbox
from phi4d.engine import hub


class Use(StrEnum):
    """What a folder is for, as far as systemd has a word for it."""

    FILES = "files"
    """an inbox's or an outbox's: phi4d waits for it, if it is missing"""
    MODEL = "model"
    STATE = "state"
    RUNTIME = "runtime"
    LOGS = "logs"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that phi4d uses."""

    path: Path
    """a file in one or two cases, to be read"""
    keys: str
    """what names it in the configuration, in words"""
    writes: bool
    use: Use = Use.FILES


@dataclass(frozen=True, slots=True)
class Network:
    """Where to phi4d opens sockets of the network."""

    keys: str
    families: frozenset[str]
    """``AF_INET``, ``AF_INET6``"""
    local: bool
    """whether nobody beyond this machine is spoken to"""


def folders(config: Config) -> list[Folder]:
    """The folders, each once; those that lie in another of the list, and want no more, left out."""
    found: list[Folder] = []
    for each in _folders(config):
        same = next((n for n, other in enumerate(found) if other.path == each.path), None)
        if same is None:
            found.append(each)
        else:
            keys = f"{found[same].keys}; {each.keys}"
            found[same] = replace(found[same], keys=keys, writes=found[same].writes or each.writes)
    return [each for each in found if not any(_holds(other, each) for other in found)]


def _holds(outer: Folder, inner: Folder) -> bool:
    return (
        outer.path in inner.path.parents
        and outer.use == inner.use
        and (outer.writes or not inner.writes)
    )


def _folders(config: Config) -> Iterator[Folder]:
    for box in config.inbox:
        yield from _of_inbox(box, config.results_dir)
    if config.model_path != demo.MODEL_PATH:
        if not hub.is_remote(config.model_path):
            path = Path(config.model_path).expanduser().absolute()
            yield Folder(path, "model_path", writes=False, use=Use.MODEL)
        elif _is_set(config, "cache_dir"):
            yield Folder(config.cache_dir, "cache_dir", writes=False, use=Use.MODEL)
    if _is_set(config, "state_dir"):
        yield Folder(config.state_dir, "state_dir", writes=True, use=Use.STATE)
    if config.runtime_dir is not None:
        yield Folder(config.runtime_dir, "runtime_dir", writes=True, use=Use.RUNTIME)
    if config.metrics_at is not None and config.metrics_at.path is not None:
        path = config.metrics_at.path.parent
        yield Folder(path, "metrics_listen", writes=True, use=Use.RUNTIME)
    if config.log_file is not None:
        # the folder, because the file is rotated
        yield Folder(config.log_file.parent, "log_file", writes=True, use=Use.LOGS)


def _is_set(config: Config, key: str) -> bool:
    """Whether a key was set: the default of the service's user is where the unit lets it write."""
    return config.origin(key).kind != "default"


def _of_inbox(box: Inbox, results_dir: Path | None) -> Iterator[Folder]:
    name = f'inbox "{box.name}"'
    reasons = [
        key
        for key, wanted in (
            ('outbox = "beside"', box.outbox == BESIDE),
            (f'originals = "{box.originals}"', box.originals != "leave"),
            ("failed_dir", box.failed_dir is not None),
        )
        if wanted
    ]
    why = f", written to for {' and '.join(reasons)}" if reasons else ""
    yield Folder(box.path, f"{name}: path{why}", writes=bool(reasons))
    if box.outbox is None and results_dir is not None:
        yield Folder(results_dir, f"results_dir, for {name}", writes=True)
    elif box.outbox is not None and box.outbox != BESIDE:
        yield Folder(box.outbox, f"{name}: outbox", writes=True)
    if box.done_dir is not None and box.originals == "move":
        yield Folder(box.done_dir, f"{name}: done_dir", writes=True)
    if box.failed_dir is not None:
        yield Folder(box.failed_dir, f"{name}: failed_dir", writes=True)
    if box.has_webhook and box.webhook_secret_file is not None:
        yield Folder(box.webhook_secret_file, f"{name}: webhook_secret_file", writes=False)
    for key, hook in _hooks(box):
        if isinstance(hook, tuple) and hook[0].startswith("/"):
            yield Folder(Path(hook[0]), f"{name}: {key}", writes=False)


def _hooks(box: Inbox) -> list[tuple[str, tuple[str, ...] | str | None]]:
    return [("on_done", box.on_done), ("on_failed", box.on_failed)]


def networks(config: Config) -> list[Network]:
    """The places of the network that it opens sockets to or at."""
    found = []
    at = config.metrics_at
    if at is not None and at.path is None:
        version = ipaddress.ip_address(at.address).version
        family = "AF_INET6" if version == 6 else "AF_INET"
        found.append(Network("metrics_listen", frozenset({family}), at.is_local))
    for box in config.inbox:
        for key, hook in _hooks(box):
            if isinstance(hook, str):
                both = frozenset({"AF_INET", "AF_INET6"})
                found.append(Network(f'inbox "{box.name}": {key}', both, _is_here(hook)))
    return found


def _is_here(url: str) -> bool:
    """Whether a webhook's receiver is on this machine, by its address."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def families(wanted: Iterable[Network]) -> list[str]:
    """The address families of all together, sorted."""
    return sorted(set().union(*(each.families for each in wanted)))
