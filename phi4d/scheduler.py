"""The scheduler: pure policy, from what waits to what a worker takes next. No I/O."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from phi4d.job import Job, Kind, Priority

LONGEST_PAUSE_SECONDS = 300.0
LONGEST_WAIT_SECONDS = 300.0
PASSED_OVER = 7
"""so many jobs of the highest priority that waits are taken, then one of the others"""
RANKS: Mapping[Priority, int] = {"high": 0, "normal": 1, "low": 2}
Queue = tuple[str, Kind]
"""the jobs of one kind in one inbox"""


def backoff(waits: int, first: float) -> float:
    """Seconds until the next try: doubled each time, varied by a fifth, so not all come at once.

    Args:
        waits: how often was waited before.
        first: seconds of the first wait.
    """
    seconds = min(first * 2.0 ** min(waits, 30), LONGEST_WAIT_SECONDS)
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 -- no secret


class Turns:
    """Whose turn it is. Not for several threads: each worker has its own.

    The jobs of one kind in one inbox are a queue. Queues of inboxes with a higher priority go
    first, but for one job in eight, which is the one of all others that has been due longest.
    Queues of the same priority have their turns one after the other, however long each is: the one
    that was served longest ago comes next. A job that was started before and not finished goes
    alone: if it takes the process down again, it takes no other file's attempt with it.

    Args:
        priority: of an inbox, by its name; asked each time.
    """

    def __init__(self, priority: Callable[[str], Priority] = lambda _: "normal") -> None:
        self._priority = priority
        self._count = 0
        self._served: dict[Queue, int] = {}
        """the number of the job that each queue gave last"""
        self._passed_over = 0
        """jobs that were taken, while others of a lower priority waited, since one of these was"""

    def pick(self, waiting: Sequence[Job], count: int) -> list[Job]:
        """Choose what is taken next, in order.

        Args:
            waiting: queued jobs, of each queue its head in order; so many that `count` can be had.
            count: how many at most.
        """
        chosen: list[Job] = []
        queues: dict[Queue, deque[Job]] = {}
        for job in waiting:
            queues.setdefault((job.inbox, job.kind), deque()).append(job)
        rank = {queue: RANKS[self._priority(queue[0])] for queue in queues}
        while queues and len(chosen) < count and not (chosen and chosen[0].attempts):
            highest = min(rank[queue] for queue in queues)
            below = [queue for queue in queues if rank[queue] > highest]
            queue = self._next(queues, below)
            if queues[queue][0].attempts and chosen:
                break  # the next call begins with it, and ends
            chosen.append(queues[queue].popleft())
            if not queues[queue]:
                del queues[queue]
            self._count += 1
            self._served[queue] = self._count
            if below:
                self._passed_over = 0 if queue in below else self._passed_over + 1
        return chosen

    def _next(self, queues: Mapping[Queue, Sequence[Job]], below: Collection[Queue]) -> Queue:
        """The queue whose turn it is.

        Args:
            queues: all that wait.
            below: those of them that have not the highest priority.
        """
        if below and self._passed_over >= PASSED_OVER:
            return min(below, key=lambda queue: queues[queue][0].due)
        return min(
            (queue for queue in queues if queue not in below),
            key=lambda queue: (self._served.get(queue, 0), queues[queue][0].due),
        )


@dataclass(frozen=True, slots=True)
class Pause:
    """An inbox that waits for its surroundings to be mended."""

    reason: str
    until: float
    seconds: float


class Pauses:
    """Which inboxes wait, and how long: longer each time, up to five minutes.

    An inbox whose pause is over is on trial: it is no longer paused, and `resume` or another
    `pause` tells how the trial went. The time is passed in. Any thread may call.

    Args:
        seconds: the first pause.
    """

    def __init__(self, seconds: float) -> None:
        self._first = seconds
        self._pauses: dict[str, Pause] = {}
        self._held: dict[str, str] = {}
        self._lock = threading.Lock()

    def change(self, seconds: float) -> None:
        """Let first pauses be so long; those that last go on."""
        self._first = seconds

    def pause(self, inbox: str, reason: str, now: float) -> bool:
        """Let an inbox wait.

        Returns:
            Whether this is news: not paused before, or for another reason.
        """
        with self._lock:
            old = self._pauses.get(inbox)
            if old is not None and now < old.until:
                return False  # another worker of the same inbox met the same wall
            seconds = min(old.seconds * 2, LONGEST_PAUSE_SECONDS) if old else self._first
            self._pauses[inbox] = Pause(reason, now + seconds, seconds)
            return old is None or old.reason != reason

    def resume(self, inbox: str) -> bool:
        """The inbox works.

        Returns:
            Whether it had been paused.
        """
        with self._lock:
            return self._pauses.pop(inbox, None) is not None

    def paused(self, now: float) -> list[str]:
        """The inboxes that wait now, for whatever reason."""
        with self._lock:
            waiting = [inbox for inbox, pause in self._pauses.items() if now < pause.until]
            return [*waiting, *(inbox for inbox in self._held if inbox not in waiting)]

    def hold(self, held: Mapping[str, str]) -> None:
        """Let these inboxes wait until they are no longer among them, and no others so.

        Args:
            held: why, by inbox: somebody wants it.
        """
        with self._lock:
            self._held = dict(held)

    def held(self) -> dict[str, str]:
        """The inboxes that wait because somebody wants it, and why."""
        with self._lock:
            return dict(self._held)

    def on_trial(self, inbox: str) -> bool:
        """Whether the inbox was paused and has not worked since."""
        with self._lock:
            return inbox in self._pauses

    def faults(self) -> dict[str, float]:
        """When each inbox that waits for its surroundings is tried next, by the clock of `pause`.

        What is past is tried with the next file.
        """
        with self._lock:
            return {inbox: pause.until for inbox, pause in self._pauses.items()}

    def reasons(self) -> dict[str, str]:
        """Why each inbox waits for its surroundings."""
        with self._lock:
            return {inbox: pause.reason for inbox, pause in self._pauses.items()}
