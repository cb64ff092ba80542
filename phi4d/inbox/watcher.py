"""The watcher: one thread that does everything about inboxes, one turn after the other.

A turn waits until there is something to do, serves the requests of other threads and the kernel's
events, looks at the files whose time to settle is up, looks after the roots, and goes a step
further with the folders that are to be listed. No step takes long, so events are served soon even
while a million files are compared.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from phi4d import events
from phi4d.errors import EnvironmentFault
from phi4d.inbox import watches
from phi4d.inbox.intake import Intake
from phi4d.inbox.place import Place, Root, examine
from phi4d.inbox.rules import IGNORE_FILE
from phi4d.inbox.scan import Visitor, learn, walk
from phi4d.inbox.settle import Settler
from phi4d.inbox.troubles import Troubles
from phi4d.inbox.watches import Watches
from phi4d.job import Arrival, Fingerprint, Inspection, Kind, printable
from phi4d.meter import Meter

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0  # how often the roots are looked after
SHARE = 0.1  # of the time, at most, goes into comparing an inbox
FRESH_AT_ONCE = 16  # folders that were just made, in one step: most are small

# what is in trouble, where it is not a folder below the root
_ROOT, _LIMIT, _STORE = b"/root", b"/limit", b"/store"


@dataclass(frozen=True, slots=True)
class _Change:
    """What is to be watched from the next turn on; see `Watcher`."""

    roots: Sequence[Root]
    settle_seconds: float
    settle_max: float
    rescan_seconds: float
    poll_seconds: float
    made: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Health:
    """How an inbox is watched."""

    usable: bool
    """its folder is there and can be read"""
    polled: bool
    """it is looked through now and then in place of events"""
    limited: bool
    """the kernel has no watches for some of its folders, so that it is looked through as well"""
    watches: int
    """how many folders have a watch of the kernel's"""


class Watcher(threading.Thread):
    """Watches all inboxes and hands complete files on.

    Args:
        roots: the inboxes.
        hand_on: takes complete files that `known` denied; may raise `EnvironmentFault`, and then
            they are found again by the next comparison.
        known: whether the store has these versions already, one answer for each (inbox, path below
            it, fingerprint); may raise `EnvironmentFault`, as above.
        inspect: what a file's content tells, by its absolute path. It must not block. Raises
            `FileChanged` if it is gone or another version, `SourceFault` if it cannot be read now.
        by_name: the kind that a file's name promises, without looking at the file.
        notice: is told an inbox's name and what keeps it from being watched, or None when all is
            well again.
        settle_seconds: see `Settler`.
        settle_max: see `Settler`.
        rescan_seconds: how often the folders are compared, whatever the events said.
        poll_seconds: how often those are that send no events.
        clock: monotonic seconds.
        wall_clock: seconds since the epoch, comparable with a file's times.
        meter: counts comparisons and lost events.

    Attributes:
        armed: set when the watches are in place.
        caught_up: set while everything that was noticed has been handed on.
        last_beat: monotonic seconds of the last sign of life.
        looks_at: the inbox that it looks at, or looked at last.
    """

    def __init__(
        self,
        roots: Sequence[Root],
        hand_on: Callable[[list[Arrival]], None],
        *,
        known: Callable[[Sequence[tuple[str, bytes, Fingerprint]]], list[bool]],
        inspect: Callable[[bytes, Fingerprint], Inspection],
        by_name: Callable[[bytes], Kind | None],
        notice: Callable[[str, str | None], None] = lambda _inbox, _text: None,
        settle_seconds: float = 2.0,
        settle_max: float = 300.0,
        rescan_seconds: float = 60.0,
        poll_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(name="watcher")
        self._meter = meter or Meter()
        self.armed = threading.Event()
        self.caught_up = threading.Event()
        self.last_beat = clock()
        self.looks_at = roots[0].name if roots else ""
        self._places = {root.name: Place(root) for root in roots}
        self._rescan_seconds = rescan_seconds
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._watches = Watches()
        self._troubles = Troubles(notice)
        self._settler = Settler(settle_seconds, settle_max)
        self._intake = Intake(
            self._places,
            self._settler,
            hand_on,
            known=known,
            inspect=inspect,
            by_name=by_name,
            owe=self._owe,
            settle_seconds=settle_seconds,
            clock=clock,
            wall_clock=wall_clock,
        )
        # folders that were just made or moved in, to be listed before anything else
        self._fresh: deque[tuple[Place, Iterator[None]]] = deque()
        self._turnwise = deque(self._places.values())
        self._numbers = count(1)
        self._next_check = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._requests: deque[tuple[str, bytes | None]] = deque()
        self._change: _Change | None = None
        self._bell: int | None = None

    # ---- for other threads ----

    def stop(self) -> None:
        """Ask the watcher to end; `join` waits for it."""
        self._stopping.set()
        self._ring()

    def rescan(self, inbox: str | None = None) -> None:
        """Ask for a comparison of an inbox, or of all, now; one that is not watched has none."""
        self._ring(*((name, None) for name in ([inbox] if inbox else self._places)))

    def look(self, inbox: str, path: bytes) -> None:
        """Ask for another look at one file, which was found to have changed.

        Args:
            inbox: its inbox.
            path: below the inbox.
        """
        self._ring((inbox, path))

    def change(
        self,
        roots: Sequence[Root],
        *,
        settle_seconds: float,
        settle_max: float,
        rescan_seconds: float,
        poll_seconds: float,
    ) -> threading.Event:
        """Ask for other inboxes and other times. What is as it was goes on undisturbed.

        An inbox with another folder begins anew. One with other patterns, kinds or mode is compared
        at once; its watches stay. Of one that is left out nothing more is handed on.

        Args:
            roots: all inboxes from now on.
            settle_seconds: as for the watcher.
            settle_max: as for the watcher.
            rescan_seconds: as for the watcher.
            poll_seconds: as for the watcher.

        Returns:
            An event that is set when new inboxes are watched, and those that are left out are not.
            It is never set if the watcher ends before, or is asked for yet another change.
        """
        change = _Change(roots, settle_seconds, settle_max, rescan_seconds, poll_seconds)
        with self._lock:
            self._change = change
            self.caught_up.clear()
        self._ring()
        return change.made

    def root_fault(self, inbox: str) -> str | None:
        """Why an inbox's folder cannot be used now, in words; None if it can, or is not watched.

        The folder is looked at anew: while it answers, no file of it counts as gone. Cheap.
        """
        place = self._places.get(inbox)
        return (place.fault() or None) if place else None

    def modes(self) -> dict[str, str]:
        """How each inbox is watched: "inotify", "poll", or "poll" with its reason in brackets."""
        return {name: place.mode for name, place in self._places.items()}

    def health(self) -> dict[str, Health]:
        """How each inbox is watched, as it was found last: nothing is looked at for it."""
        return {
            name: Health(
                usable=place.state is not None,
                polled=bool(place.polled),
                limited=place.limited,
                watches=self._watches.count(name),
            )
            for name, place in list(self._places.items())
        }

    def _ring(self, *requests: tuple[str, bytes | None]) -> None:
        with self._lock:
            self._requests.extend(requests)
            if requests:
                self.caught_up.clear()
            if self._bell is not None:
                with contextlib.suppress(OSError):  # it looks by itself once a second
                    os.eventfd_write(self._bell, 1)

    # ---- the thread ----

    def run(self) -> None:
        """Watch until told to stop."""
        try:
            self.begin()
            while not self._stopping.is_set():
                self.turn()
        finally:
            self.end()

    def begin(self) -> None:
        """Put the watches in place. `run` does this; a test may, and then `turn` and `end`."""
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for place in self._places.values():
            self._check(place)
            if place.state is not None and not place.polled:
                for _ in self._list(place, files=False):
                    self.last_beat = self._clock()
                    if self._stopping.is_set():
                        return
        self._next_check = self._clock() + CHECK_SECONDS
        self.armed.set()

    def end(self) -> None:
        """End all watches. Idempotent."""
        with self._lock:
            bell, self._bell = self._bell, None
        if bell is not None:
            os.close(bell)
        self._watches.close()

    def turn(self, longest: float = CHECK_SECONDS) -> None:
        """One turn.

        Args:
            longest: seconds to wait at most if there is nothing to do.
        """
        self.last_beat = self._clock()
        self._wait(min(longest, self._leisure()))
        self._make_change()
        self._serve_requests()
        self._serve_events()
        self._intake.look_at_due()
        if self._clock() >= self._next_check:
            self._next_check = self._clock() + CHECK_SECONDS
            for place in self._places.values():
                self._check(place)
        self._step()
        with self._lock:
            if self._idle() and not self._requests and self._change is None:
                self.caught_up.set()

    def _leisure(self) -> float:
        """Seconds until there is something to do, if nothing happens."""
        if (
            self._requests
            or self._change
            or self._fresh
            or any(p.scan for p in self._places.values())
        ):
            return 0.0
        times = [self._next_check]
        for place in self._places.values():
            if place.state is not None:
                times.append(-math.inf if place.again else place.next_scan)
        due = self._settler.next_due()
        return max(0.0, min(times if due is None else [*times, due]) - self._clock())

    def _idle(self) -> bool:
        return not (
            self._settler
            or self._fresh
            or any(p.state and (p.scan or p.again or p.owes) for p in self._places.values())
        )

    def _wait(self, seconds: float) -> None:
        poll = select.poll()
        for descriptor in (self._bell, self._watches.fileno()):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        poll.poll(math.ceil(seconds * 1000))

    def _make_change(self) -> None:
        with self._lock:
            change, self._change = self._change, None
        if change is None:
            return
        places: dict[str, Place] = {}
        for root in change.roots:
            old = self._places.get(root.name)
            same_folder = old is not None and old.root.path == root.path
            places[root.name] = old if old is not None and same_folder else Place(root)
        begun = [place for name, place in places.items() if place is not self._places.get(name)]
        for name, place in self._places.items():
            if places.get(name) is not place:
                self._drop(place)
                self._watches.forget_older(name, next(self._numbers))
                self._troubles.forget(name)
                self._settler.leave(name)
        for root in change.roots:
            if not places[root.name].root.same(root):
                self._go_by(places[root.name], root)
        # in one go, for threads that look at them
        self._places = places
        self._turnwise = deque(places.values())
        self._settler.change(change.settle_seconds, change.settle_max, self._clock())
        self._intake.change(places, change.settle_seconds)
        self._rescan_seconds, self._poll_seconds = change.rescan_seconds, change.poll_seconds
        for place in places.values():
            often = place.polled or place.limited or place.owes
            every = self._poll_seconds if often else self._rescan_seconds
            place.next_scan = min(place.next_scan, self._clock() + every)
        for place in begun:  # the comparison sets each folder's watch before it lists it
            self._check(place)
        change.made.set()

    def _go_by(self, place: Place, root: Root) -> None:
        """The same folder with other rules, kinds or mode: the comparison finds it all again."""
        root.rules.inherit(place.root.rules)
        place.root, place.scan, place.again = root, None, True
        self._fresh = deque(each for each in self._fresh if each[0] is not place)
        self._settler.leave(place.name, unless=lambda path: root.rules.verdict(path).taken)
        self.caught_up.clear()

    def _serve_requests(self) -> None:
        with self._lock:
            requests, self._requests = self._requests, deque()
            if self._bell is not None:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
        for inbox, path in requests:
            place = self._places.get(inbox)
            if place is None:
                continue
            if path is None:
                self._check(place)
                place.again = True
            elif (inbox, path) not in self._settler:
                self._settler.changed((inbox, path), self._clock())

    # ---- events ----

    def _serve_events(self) -> None:
        for watch, mask, name in self._watches.read():
            if watch is None:
                self._overflowed()
                continue
            place = self._places[watch.inbox]
            if not watch.path and mask & watches.ROOT_ENDS:
                if mask & watches.IGNORED:
                    self._drop(place)  # the same inode may have been given to another folder
                self._check(place)
            elif mask & watches.UNMOUNT:
                place.again = True  # what lay below a mount within the inbox has come to light
            elif mask & watches.ISDIR:
                self._serve_folder(place, watch.path, mask, name)
            elif name:
                self._serve_file(place, watch.path, mask, name)

    def _overflowed(self) -> None:
        self._meter.overflowed()
        log.info(
            "more happened in the inboxes than the kernel keeps: they are compared anew",
            extra=events.EVENTS_OVERFLOWED(),
        )
        self._settler.doubt()
        for place in self._places.values():
            if not place.polled:
                place.again = True
        self.caught_up.clear()

    def _serve_folder(self, place: Place, parent: bytes, mask: int, name: bytes) -> None:
        path = os.path.join(parent, name)
        if mask & watches.MOVED_FROM:
            self._watches.forget(place.name, path)
            self._settler.doubt()
        elif place.root.rules.within(parent).enters(name):
            self._fresh.append((place, self._list(place, path)))
            self.caught_up.clear()

    def _serve_file(self, place: Place, folder: bytes, mask: int, name: bytes) -> None:
        if name == IGNORE_FILE:
            self._tell_wrong(place, folder, learn(place.root.path, place.root.rules, folder))
        elif mask & watches.MOVED_FROM:
            pass  # if it waited, it will not be found
        elif self._intake.worth(name) and place.root.rules.within(folder).takes(name):
            key = (place.name, os.path.join(folder, name))
            if mask & watches.CREATE:
                self._settler.created(key, self._clock())
            else:
                self._settler.closed(key, self._clock())
            self.caught_up.clear()

    # ---- folders ----

    def _step(self) -> None:
        """Go on with the folders that are to be listed."""
        for _ in range(min(len(self._fresh), FRESH_AT_ONCE)):
            place, steps = self._fresh.popleft()
            if place.state is not None and not _has_ended(steps):
                self._fresh.append((place, steps))
        for place in list(self._turnwise):
            self._turnwise.rotate(-1)
            if place.state is None:
                continue
            if place.scan is None and (place.again or self._clock() >= place.next_scan):
                place.again = False
                place.scan = self._list(place)
                self.caught_up.clear()
            scan = place.scan
            if scan is not None:
                if _has_ended(scan) and place.scan is scan:
                    place.scan = None
                break  # the others have their turn next

    def _list(self, place: Place, below: bytes = b"", *, files: bool = True) -> Iterator[None]:
        """List a folder with all in it, step by step: watch it, hand on what is complete.

        Args:
            place: the inbox.
            below: the folder; ``b""`` is the inbox itself, and the comparison is then complete.
            files: False: only put the watches in place.
        """
        state, began, spent, turn = place.state, self._clock(), 0.0, next(self._numbers)
        failed: dict[bytes, OSError] = {}
        troubled: set[bytes] = set()
        if not below:
            place.owes = False
            self._choose(place)

        def enter(folder: bytes) -> None:
            if place.polled:
                return
            try:
                self._watches.place(place.name, place.root.path, folder, turn)
            except OSError as error:  # what else it may be, its listing tells
                if error.errno in watches.LIMITS:
                    failed[folder] = error

        def refused(folder: bytes, error: OSError) -> None:
            if not folder:
                self._check(place)
            if place.state is state:
                troubled.add(folder)
                self._troubles.say(
                    place.name,
                    folder,
                    f"{printable(os.path.join(place.root.path, folder))} cannot be read: "
                    f"{error.strerror}; give the daemon's user access to this folder: until then "
                    "its files wait",
                )

        def wrong(folder: bytes, lines: list[str]) -> None:
            if lines:
                troubled.add(os.path.join(folder, IGNORE_FILE))
            self._tell_wrong(place, folder, lines)

        visitor = Visitor(enter, refused, wrong, self._intake.worth if files else None)
        steps = walk(place.root.path, place.root.rules, below, visitor)
        while True:
            time_before = self._clock()
            self.looks_at = place.name
            batch = next(steps, None)
            if batch is None or place.state is not state:
                break
            ready = self._intake.sort(place, batch)
            spent += self._clock() - time_before
            yield from self._intake.examine(ready)
            yield
        if place.state is not state:
            return
        self._tell_limit(place, failed, whole=not below)
        if below:
            return
        self._watches.forget_older(place.name, turn)
        for what in set(self._troubles.of(place.name)) - troubled - {_ROOT, _LIMIT, _STORE}:
            path = printable(os.path.join(place.root.path, what))
            self._troubles.heal(place.name, what, f"{path}: works again, or is gone")
        if files:
            often = place.polled or place.limited or place.owes
            every = self._poll_seconds if often else self._rescan_seconds
            rest = spent * (1 / SHARE - 1)
            place.next_scan = max(began + every, self._clock() + rest)
            self._meter.compared(place.name, spent)
            log.debug('inbox "%s": compared in %.1f s', place.name, self._clock() - began)

    def _tell_wrong(self, place: Place, folder: bytes, lines: list[str]) -> None:
        what = os.path.join(folder, IGNORE_FILE)
        path = printable(os.path.join(place.root.path, what))
        if lines:
            self._troubles.say(
                place.name,
                what,
                f'{path}: found "{printable(lines[0])}"; expected patterns as in .gitignore: what '
                "is none is passed over",
            )
        else:
            self._troubles.heal(place.name, what, f"{path}: works again")

    def _tell_limit(self, place: Place, failed: dict[bytes, OSError], *, whole: bool) -> None:
        """Poll while folders are without a watch, and say so."""
        if failed:
            error = next(reversed(failed.values()))
            key = "instances" if error.errno in (errno.EMFILE, errno.ENFILE) else "watches"
            watched = self._watches.count(place.name)
            self._troubles.say(
                place.name,
                _LIMIT,
                f"{watched} of {watched + len(failed)} folders are watched, for the rest: "
                f"{error.strerror}; raise fs.inotify.max_user_{key}{_now(key)} with sysctl -w: "
                f"until then the inbox is looked through every {self._poll_seconds:g} s",
            )
            place.limited = True
            place.next_scan = min(place.next_scan, self._clock() + self._poll_seconds)
        elif whole and place.limited:
            place.limited = False
            self._troubles.heal(place.name, _LIMIT, "all its folders are watched again")

    # ---- roots ----

    def _check(self, place: Place) -> None:
        """Notice that a root is missing, back, or another folder than before."""
        self.looks_at = place.name
        now = examine(place.root.path)
        if place.state is not None and place.state.identity == now.identity and not now.fault:
            return
        fault = now.fault or place.lost(now)
        self._drop(place)
        if fault:
            self._troubles.say(place.name, _ROOT, fault)
            return
        if place.seen and _ROOT not in self._troubles.of(place.name):
            log.warning(
                'inbox "%s": another folder is at %s than before, renamed or mounted there; it is '
                "taken up",
                place.name,
                printable(place.root.path),
            )
        place.take_up(now)
        place.again = True
        self.caught_up.clear()
        self._choose(place)
        self._troubles.heal(place.name, _ROOT, f"{printable(place.root.path)} works again")

    def _drop(self, place: Place) -> None:
        """The folder is not to be used as it was."""
        self._watches.forget(place.name)
        place.state = place.scan = None

    def _choose(self, place: Place) -> None:
        try:
            place.choose()
        except OSError as error:  # as it was: the comparison says what is wrong
            log.debug('inbox "%s": its file system is unknown: %s', place.name, error)
        if place.polled:
            self._watches.forget(place.name)

    def _owe(self, inbox: str, fault: EnvironmentFault | None) -> None:
        """The store could not be asked, or given files; None: it could."""
        if fault is None:
            self._troubles.heal(inbox, _STORE, "the store takes files again")
            return
        place = self._places[inbox]
        place.owes = True
        place.next_scan = min(place.next_scan, self._clock() + self._poll_seconds)
        self._troubles.say(inbox, _STORE, f"{fault}; new files wait for the next comparison")


def _now(key: str) -> str:
    try:
        return f" ({Path(f'/proc/sys/fs/inotify/max_user_{key}').read_text().strip()} now)"
    except OSError:  # a service may be denied this part of /proc
        return ""


def _has_ended(steps: Iterator[None]) -> bool:
    """Take a step."""
    for _ in steps:
        return False
    return True
