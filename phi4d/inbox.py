"""The inbox room: notice files, wait until they are complete, hand them on.

The only importer of watchdog. Events are hints and may be lost; what counts is the comparison of
the folders with the store: at the start, every so often, and when something was missed. The
handler of events only queues them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from phi4d.errors import EnvironmentFault
from phi4d.job import Arrival, Fingerprint, Kind, printable
from phi4d.settle import Settler

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver, ObservedWatch

log = logging.getLogger(__name__)

# The kernel is asked for these alone: opened and closed-without-write would tell of our own reads.
_EVENTS: list[type[FileSystemEvent]] = [
    FileClosedEvent,
    FileMovedEvent,
    FileCreatedEvent,
    DirCreatedEvent,
    DirMovedEvent,
]
# An event and watchdog's own walk may find a new folder at once; it is then watched once, rightly.
warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning, "watchdog")
_HAND_ON = 2_000  # files of a scan that are handed on at once
_TICK_SECONDS = 0.25  # how often the settler is asked while files settle


@dataclass
class Root:
    """A watched folder.

    Attributes:
        name: the inbox's name.
        path: the folder.
        kind_of: tells from a file's name what it holds; None is "not ours".
    """

    name: str
    path: bytes
    kind_of: Callable[[bytes], Kind | None]
    watch: ObservedWatch | None = field(default=None, repr=False)
    identity: tuple[int, int] | None = None
    """device and inode of the folder that is watched: another folder may take its place"""
    readable: bool = True
    """whether it was there and could be read when it was last looked at"""


class Watcher(threading.Thread):
    """Watches all inboxes and hands complete files on.

    Args:
        roots: the inboxes.
        hand_on: takes complete files, known or new; may raise `EnvironmentFault`, and then they
            are found again by the next rescan.
        settle_seconds: see `Settler`.
        rescan_seconds: how often the folders are compared, whatever the events said.
        clock: monotonic seconds.
        wall_clock: seconds since the epoch, comparable with a file's times.
    """

    def __init__(
        self,
        roots: list[Root],
        hand_on: Callable[[list[Arrival]], None],
        *,
        settle_seconds: float = 2.0,
        rescan_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="watcher")
        self.armed = threading.Event()
        """set when the watches are in place"""
        self.caught_up = threading.Event()
        """set while everything that was noticed has been handed on"""
        self._roots = {root.name: root for root in roots}
        self._hand_on = hand_on
        self._settle_seconds = settle_seconds
        self._rescan_seconds = rescan_seconds
        self._clock = clock
        self._wall_clock = wall_clock
        self._settler = Settler(settle_seconds)
        self._events: queue.SimpleQueue[tuple[str, FileSystemEvent] | None] = queue.SimpleQueue()
        self._observer: BaseObserver = Observer()
        self._stopping = threading.Event()
        self._rescan = threading.Event()
        self._said: dict[bytes, str] = {}

    def stop(self) -> None:
        """Ask the watcher to end; `join` waits for it."""
        self._stopping.set()
        self._events.put(None)

    def rescan(self) -> None:
        """Ask for a comparison of the folders now."""
        self._rescan.set()
        self._events.put(None)

    def run(self) -> None:
        """Watch until told to stop."""
        overflow = _OverflowHandler(self.rescan)
        watchdog_log = logging.getLogger("watchdog.observers")
        watchdog_log.addHandler(overflow)
        self._observer.start()
        try:
            # watches first, then the scan: what comes in between is seen twice, not missed
            self._arm()
            self.armed.set()
            self._scan_all()
            self._loop()
        finally:
            watchdog_log.removeHandler(overflow)
            self._observer.stop()
            self._observer.join()

    def _loop(self) -> None:
        next_scan = self._clock() + self._rescan_seconds
        while not self._stopping.is_set():
            if not self._settler and self._events.empty() and not self._rescan.is_set():
                self.caught_up.set()
            batch = self._next_events()
            if self._stopping.is_set():
                break
            self._take(batch)
            self._take_settled()
            if self._is_due(next_scan):
                self._rescan.clear()
                self._arm()
                self._scan_all()
                next_scan = self._clock() + self._rescan_seconds

    def _is_due(self, next_scan: float) -> bool:
        """Whether the folders are to be compared: asked for, time is up, or a root is back."""
        back = any(
            not root.readable and os.access(root.path, os.R_OK | os.X_OK)
            for root in self._roots.values()
        )
        return back or self._rescan.is_set() or self._clock() >= next_scan

    def _next_events(self) -> list[tuple[str, FileSystemEvent]]:
        batch: list[tuple[str, FileSystemEvent]] = []
        with contextlib.suppress(queue.Empty):
            item = self._events.get(timeout=_TICK_SECONDS if self._settler else 1.0)
            while len(batch) < _HAND_ON:
                if item is not None:
                    batch.append(item)
                item = self._events.get_nowait()
        if batch:
            self.caught_up.clear()
        return batch

    def _take(self, batch: list[tuple[str, FileSystemEvent]]) -> None:
        found: dict[bytes, Arrival] = {}
        for name, event in batch:
            root = self._roots[name]
            moved = isinstance(event, FileMovedEvent | DirMovedEvent)
            path = os.fsencode(event.dest_path if moved else event.src_path)
            relative = os.path.relpath(path, root.path)
            if relative.startswith(b"../") or _hidden(relative):
                continue
            if isinstance(event, DirCreatedEvent | DirMovedEvent):
                # inotify misses what was put into a folder before it was watched
                self._scan(root, relative)
                continue
            kind = root.kind_of(os.path.basename(path))
            fingerprint = _look(path) if kind else None
            if kind is None or fingerprint is None:
                continue
            key = (name, relative)
            if isinstance(event, FileClosedEvent) or moved:
                self._settler.forget(key)
                found[path] = Arrival(name, relative, kind, fingerprint)
            else:
                self._settler.seen(key, fingerprint, self._clock())
        self._give(list(found.values()))

    def _take_settled(self) -> None:
        now = self._clock()
        found = []
        for key in self._settler.due(now):
            name, relative = key
            root = self._roots[name]
            fingerprint = _look(os.path.join(root.path, relative))
            kind = root.kind_of(os.path.basename(relative))
            if fingerprint is None or kind is None:
                self._settler.forget(key)
            elif self._settler.settled(key, fingerprint, now):
                found.append(Arrival(name, relative, kind, fingerprint))
        self._give(found)

    def _give(self, found: list[Arrival]) -> None:
        if not found:
            return
        try:
            self._hand_on(found)
        except EnvironmentFault as fault:
            self._say(b"store", f"{fault}; {len(found)} files wait for the next rescan")
        else:
            self._heal(b"store")

    def _arm(self) -> None:
        """Put a watch on every root that has none, or whose folder is no longer the same."""
        for root in self._roots.values():
            try:
                status = os.stat(root.path)
                os.listdir(root.path)  # watchdog would watch a folder that cannot be read
            except OSError as error:
                root.readable = False
                self._disarm(root)
                self._say(
                    root.path,
                    f'inbox "{root.name}": {printable(root.path)} cannot be read: '
                    f"{error.strerror}; make or mount it, or give the daemon's user access: it is "
                    "taken up by itself",
                )
                continue
            root.readable = True
            identity = (status.st_dev, status.st_ino)
            if root.watch is not None and root.identity == identity:
                continue
            self._disarm(root)
            try:
                root.watch = self._observer.schedule(
                    _Handler(self._events, root.name),
                    os.fsdecode(root.path),
                    recursive=True,
                    event_filter=_EVENTS,
                )
            except OSError as error:
                self._say(
                    root.path,
                    f'inbox "{root.name}": {printable(root.path)} cannot be watched: '
                    f"{error.strerror}; raise fs.inotify.max_user_watches: until then new files "
                    f"are found every {self._rescan_seconds:.0f} s",
                )
                continue
            root.identity = identity
            self._heal(root.path)

    def _disarm(self, root: Root) -> None:
        if root.watch is not None:
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(root.watch)
        root.watch = root.identity = None

    def _scan_all(self) -> None:
        self.caught_up.clear()
        for root in self._roots.values():
            self._scan(root, b"")

    def _scan(self, root: Root, below: bytes) -> None:
        found: list[Arrival] = []
        for relative, kind, status in self._walk(root, below):
            if self._stopping.is_set():
                return
            fingerprint = Fingerprint.of(status)
            # a file that was renamed in keeps its mtime, but not its ctime
            unchanged = self._wall_clock() - max(status.st_mtime, status.st_ctime)
            if unchanged >= self._settle_seconds:
                self._settler.forget((root.name, relative))
                found.append(Arrival(root.name, relative, kind, fingerprint))
            else:
                self._settler.seen((root.name, relative), fingerprint, self._clock())
            if len(found) >= _HAND_ON:
                self._give(found)
                found = []
        self._give(found)

    def _walk(self, root: Root, below: bytes) -> Iterator[tuple[bytes, Kind, os.stat_result]]:
        """Regular files of our kinds with their status; links and hidden files are passed over."""
        pending = [b"" if below == b"." else below]
        while pending:
            relative = pending.pop()
            folder = os.path.join(root.path, relative) if relative else root.path
            try:
                with os.scandir(folder) as entries:
                    children = list(entries)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if folder != root.path:  # the root has been spoken of already
                    self._say(
                        folder,
                        f"{printable(folder)} cannot be read: {error.strerror}; give the daemon's "
                        "user access to this folder: its files wait",
                    )
                continue
            if folder != root.path:
                self._heal(folder)
            for entry in children:
                name = entry.name
                if name.startswith(b"."):
                    continue
                path = os.path.join(relative, name)
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
                    elif kind := root.kind_of(name):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            yield path, kind, status

    def _say(self, what: bytes, text: str) -> None:
        """Warn once about a thing, until it has changed or healed."""
        if self._said.get(what) != text:
            self._said[what] = text
            log.warning("%s", text)

    def _heal(self, what: bytes) -> None:
        if self._said.pop(what, None):
            log.warning("%s: works again", printable(what))


class _Handler(FileSystemEventHandler):
    """Queues events. It must not fail: an exception here would end the observer's thread."""

    def __init__(
        self, events: queue.SimpleQueue[tuple[str, FileSystemEvent] | None], name: str
    ) -> None:
        self._events = events
        self._name = name

    def dispatch(self, event: FileSystemEvent) -> None:
        self._events.put((self._name, event))


class _OverflowHandler(logging.Handler):
    """watchdog tells of an overflow of the kernel's queue only in its log."""

    def __init__(self, rescan: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._rescan = rescan

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in record.getMessage():
            self._rescan()


def _look(path: bytes) -> Fingerprint | None:
    """The fingerprint of a regular file; None for anything else, or nothing."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return Fingerprint.of(status) if stat.S_ISREG(status.st_mode) else None


def _hidden(relative: bytes) -> bool:
    return any(part.startswith(b".") for part in relative.split(b"/") if part != b".")
