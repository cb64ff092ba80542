"""To settle: to wait until a file is complete. Pure; the time is passed in.

A file is complete when its writer has closed it or it was renamed in, and nothing happened to it
for a moment; or when it has not changed for the settle time. What its events or its format say is
still being written waits until it is closed, or unchanged for much longer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from phi4d.job import Fingerprint

GRACE_SECONDS = 0.05
"""after a close: programs set a file's times then, and SMB servers close it more than once"""

Key = tuple[str, bytes]
"""an inbox's name, and a path below it"""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a file told."""

    fingerprint: Fingerprint
    age: float
    """seconds since it changed, by its times and the wall clock; 0 where these are not believed"""
    written: bool
    """the last that happened to it was a write, not a rename, a link or a change of its times"""


class _Waiting:
    __slots__ = ("closed", "created", "cut", "due", "fingerprint", "since")

    def __init__(self) -> None:
        self.fingerprint: Fingerprint | None = None
        self.since = 0.0
        """unchanged since; nothing without a fingerprint"""
        self.due = 0.0
        self.closed: float | None = None
        """when its closing was told"""
        self.created = -1
        """in which epoch its creation was told, and no closing yet"""
        self.cut = False
        """its format says that its end is missing"""


class Settler:
    """Tells when a file is complete, of those that were told to it. All times are of one clock.

    Args:
        settle_seconds: how long a file must stay unchanged when nothing tells that it is complete.
        settle_max: how long it must stay unchanged when something tells that it is not.
    """

    def __init__(self, settle_seconds: float, settle_max: float) -> None:
        self._settle_seconds = settle_seconds
        self._settle_max = max(settle_seconds, settle_max)
        self._waiting: dict[Key, _Waiting] = {}
        # when to look at whom; an entry counts if the file still has just that time
        self._heap: list[tuple[float, Key]] = []
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting

    def change(self, settle_seconds: float, settle_max: float, now: float) -> None:
        """Wait so long from now on; who waits already is looked at, and waits on by these."""
        self._settle_seconds = settle_seconds
        self._settle_max = max(settle_seconds, settle_max)
        for key, file in self._waiting.items():
            self._look_at(key, file, now)

    def leave(self, inbox: str, unless: Callable[[bytes], bool] = lambda _: False) -> None:
        """Forget the files of an inbox, but those that wait on, by their path below it."""
        for key in [key for key in self._waiting if key[0] == inbox and not unless(key[1])]:
            del self._waiting[key]

    def closed(self, key: Key, now: float) -> None:
        """Its writer closed it, or it was renamed in."""
        file = self._waiting.setdefault(key, _Waiting())
        file.closed = now
        file.created = -1
        file.cut = False
        self._look_at(key, file, now + GRACE_SECONDS)

    def created(self, key: Key, now: float) -> None:
        """It was made under our eyes: a close follows, if it is being written."""
        file = self._waiting[key] = _Waiting()
        file.created = self._epoch
        self._look_at(key, file, now + self._settle_seconds)

    def found(self, key: Key, look: Look, now: float) -> None:
        """It lies in a folder that was listed. One that waits already waits on."""
        if key not in self._waiting:
            file = self._waiting[key] = _Waiting()
            file.fingerprint, file.since = look.fingerprint, now - look.age
            self._look_at(key, file, max(now, file.since + self._settle_seconds))

    def changed(self, key: Key, now: float) -> None:
        """It is not what it was when it was last looked at."""
        file = self._waiting[key] = _Waiting()
        self._look_at(key, file, now + self._settle_seconds)

    def doubt(self) -> None:
        """Events were lost: files whose creation was told may have been closed unheard."""
        self._epoch += 1

    def forget(self, key: Key) -> None:
        """It was handed on, is gone, or is none of ours."""
        self._waiting.pop(key, None)

    def next_due(self) -> float | None:
        """When the next file is to be looked at; None if none waits."""
        while self._heap:
            due, key = self._heap[0]
            file = self._waiting.get(key)
            if file is not None and file.due == due:
                return due
            heapq.heappop(self._heap)
        return None

    def due(self, now: float, limit: int) -> list[Key]:
        """Files that are to be looked at now; each is then given to `is_complete` or `forget`."""
        found: list[Key] = []
        while len(found) < limit and (due := self.next_due()) is not None and due <= now:
            found.append(heapq.heappop(self._heap)[1])
        return found

    def is_complete(self, key: Key, look: Look, now: float) -> bool:
        """Whether a file that was due is complete, as far as time tells; else it waits on."""
        file = self._waiting[key]
        if file.fingerprint != look.fingerprint:
            file.fingerprint, file.since, file.cut = look.fingerprint, now - look.age, False
        else:
            file.since = min(file.since, now - look.age)
        if file.closed is not None and look.written and file.since > file.closed:
            file.closed = None  # written after it was closed: somebody else has it open
        if file.cut or (file.created == self._epoch and look.written):
            needed = self._settle_max
        else:
            needed = self._settle_seconds if file.closed is None else GRACE_SECONDS
        if now >= file.since + needed:
            return True
        self._look_at(key, file, min(file.since + needed, now + self._settle_seconds))
        return False

    def gives_up(self, key: Key, look: Look, now: float) -> bool:
        """Its end is missing: whether it is to be taken as it is; else it waits on."""
        self.found(key, look, now)
        file = self._waiting[key]
        end = file.since + self._settle_max
        if now >= end:
            return True
        file.cut = True
        self._look_at(key, file, min(end, now + self._settle_seconds))
        return False

    def _look_at(self, key: Key, file: _Waiting, due: float) -> None:
        file.due = due
        heapq.heappush(self._heap, (due, key))
