"""Many files that end: a summary now and then in place of a line each. Pure; time is passed in."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from phi4d.log.repeats import span

BUSY_FILES = 20
BUSY_SECONDS = 20.0
"""more than BUSY_FILES that end within BUSY_SECONDS are counted in place of said; a line a second
is about what can be read"""
SUMMARY_SECONDS = 30.0
"""how often what was counted is said"""
MOST_INBOXES = 5
"""inboxes that a summary names at most"""


@dataclass(frozen=True, slots=True)
class Summary:
    """The files that ended and were not said singly; those that failed are said singly as well."""

    done: dict[str, int]
    """by inbox, the most first"""
    failed: int
    dropped: int
    seconds: float

    def words(self, waiting: int | None) -> str:
        """As a line of the log.

        Args:
            waiting: how many files wait; None: not known.
        """
        done = sum(self.done.values())
        named = [f"{inbox} {n:,}" for inbox, n in list(self.done.items())[:MOST_INBOXES]]
        if len(self.done) > MOST_INBOXES:
            named.append(f"{len(self.done) - MOST_INBOXES} more")
        said = [f"done {done:,} file{'' if done == 1 else 's'} in {span(self.seconds)}"]
        if named:
            said[0] += f" ({', '.join(named)})"
        if self.failed:
            said.append(f"{self.failed:,} failed")
        if self.dropped:
            said.append(f"{self.dropped:,} set aside")
        if done:
            said.append(f"{done / self.seconds * 60:,.0f} files/min")
        if waiting is not None:
            said.append(f"{waiting:,} waiting")
        return ", ".join(said)


class Digest:
    """Tells which files' ends to say, and which only to count."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=BUSY_FILES)
        self._is_busy = False
        self._since = 0.0
        self._begin(0.0)

    def _begin(self, now: float) -> None:
        self._since = now
        self._done: Counter[str] = Counter()
        self._failed = 0
        self._dropped = 0

    def counts(self, inbox: str, now: float, *, dropped: bool = False) -> bool:
        """A file is done, or was dropped: whether it is only counted, and not said.

        Args:
            inbox: its inbox.
            now: monotonic seconds.
            dropped: it was changed or went before it was done.
        """
        is_fast = len(self._latest) == BUSY_FILES and now - self._latest[0] < BUSY_SECONDS
        self._latest.append(now)
        if not self._is_busy and is_fast:
            self._is_busy = True
            self._begin(now)
        if self._is_busy and dropped:
            self._dropped += 1
        elif self._is_busy:
            self._done[inbox] += 1
        return self._is_busy

    def failed(self) -> None:
        """A file failed, which was said."""
        if self._is_busy:
            self._failed += 1

    def due(self, now: float, *, everything: bool = False) -> Summary | None:
        """What is to be said now: a period is over, or nothing came for a while."""
        if not self._is_busy:
            return None
        latest = self._latest[-1]
        is_quiet = now - latest >= BUSY_SECONDS
        if not (everything or is_quiet or now - self._since >= SUMMARY_SECONDS):
            return None
        # after a burst, the time in which nothing came is not part of it
        seconds = max(1.0, (latest if is_quiet else now) - self._since)
        summary = Summary(dict(self._done.most_common()), self._failed, self._dropped, seconds)
        ended = sum(self._done.values()) + self._dropped
        # half the rate at which it began, so that it does not come and go
        self._is_busy = not is_quiet and ended / seconds >= BUSY_FILES / BUSY_SECONDS / 2
        self._begin(now)
        return summary if ended or summary.failed else None
