"""What all lines of the log go through: says each, or counts it where there are too many.

A line that is only counted is not lost: it goes to DEBUG, and its count is said later.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from phi4d import events
from phi4d.log.digest import Digest
from phi4d.log.repeats import Kind, Repeats

SINGLY = 5
"""lines that differ only in what they are about, such as the file, and are each said"""
FAILED_SINGLY = 20
"""files that failed for one and the same reason, and are each said"""
_STATES = {event.name for event in events.ALL if not event.folds}


class Funnel(logging.Handler):
    """The one handler of the root logger.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._target: logging.Handler = logging.NullHandler()
        self._repeats = Repeats()
        self._digest = Digest()

    def aim(self, target: logging.Handler, level: int) -> None:
        """Send the lines from a level on to a handler; the one before is closed."""
        with self._alone():
            before, self._target = self._target, target
            self.setLevel(level)
        before.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """As `handle` does it: one thread at a time."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Say a line, or count it."""
        if record.levelno > logging.DEBUG and self._is_counted(record):
            record = copy.copy(record)  # other handlers have the same one
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        if record.levelno >= self.level:
            self._target.handle(record)

    def _is_counted(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        event = getattr(record, "PHI4D_EVENT", "")
        inbox = getattr(record, "PHI4D_INBOX", "")
        if event == events.FILE_DONE.name:
            return self._digest.counts(inbox, now)
        if event == events.FILE_DROPPED.name:
            return self._digest.counts(inbox, now, dropped=True)
        if event == events.FILE_FAILED.name:
            self._digest.failed()
        if event in _STATES or (record.levelno < logging.WARNING and not event):
            return False
        kind, text = _kind(record), record.getMessage()
        if event == events.FILE_FAILED.name:  # one that was retried and failed again is said again
            return self._repeats.counts(kind, text, now, FAILED_SINGLY, once=False)
        return self._repeats.counts(kind, text, now, SINGLY)

    def tick(self, waiting: Callable[[], int] | None = None) -> None:
        """Say the counts that are due.

        Args:
            waiting: how many files wait; called, outside the lock, only when it is said.
        """
        self._tell(waiting, everything=False)

    def settle(self) -> None:
        """Say all counts."""
        self._tell(None, everything=True)

    def _tell(self, waiting: Callable[[], int] | None, *, everything: bool) -> None:
        with self._alone():
            now = self._clock()
            counts = list(self._repeats.due(now, everything=everything))
            summary = self._digest.due(now, everything=everything)
        for count in counts:
            self._say(count.kind[1], count.words(), events.SAID_OFTEN(times=count.times))
        if summary:
            left = waiting() if waiting else None
            fields = events.FILES_DONE(
                done=sum(summary.done.values()), failed=summary.failed, waiting=left
            )
            self._say(logging.INFO, summary.words(left), fields)

    def _say(self, level: int, words: str, fields: Mapping[str, Any]) -> None:
        record = logging.makeLogRecord(
            {
                "name": "phi4d.log",
                "levelno": level,
                "levelname": logging.getLevelName(level),
                "msg": words,
                **fields,
            }
        )
        if level >= self.level:
            with self._alone():
                self._target.handle(record)

    def close(self) -> None:
        """Say what is left to say; close the target."""
        self.settle()
        self._target.close()
        super().close()


def _kind(record: logging.LogRecord) -> Kind:
    template = getattr(record, "PHI4D_REASON", "") or str(record.msg)
    return record.name, record.levelno, template
