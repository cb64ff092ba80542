"""The scheduler: pure policy, from what waits to what a worker takes next. No I/O."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from phi4d.job import Job, Kind

LONGEST_PAUSE_SECONDS = 300.0
LONGEST_WAIT_SECONDS = 300.0


def backoff(waits: int, first: float) -> float:
    """Seconds until the next try: doubled each time, varied by a fifth, so not all come at once.

    Args:
        waits: how often was waited before.
        first: seconds of the first wait.
    """
    seconds = min(first * 2.0 ** min(waits, 30), LONGEST_WAIT_SECONDS)
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 -- no secret


def pick(waiting: Sequence[Job], capacity: Mapping[Kind, int]) -> list[Job]:
    """Choose what a worker takes next: jobs of one kind, the oldest first.

    The kinds are never mixed, because one adapter answers for a whole batch (correction G). A
    job that was started before and not finished goes alone: if it takes the process down again,
    it takes no other file's attempt with it.

    Args:
        waiting: queued jobs, oldest first.
        capacity: how many jobs of each kind at most.
    """
    if not waiting:
        return []
    first = waiting[0]
    if first.attempts:
        return [first]
    same = [job for job in waiting if job.kind is first.kind and not job.attempts]
    return same[: capacity[first.kind]]


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
