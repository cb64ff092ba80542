"""Watches over the threads: feeds systemd's watchdog, or lets it starve and says whose fault it is.

A worker that hangs holds a device and a model that only a new process can have again: the watchdog
starves. A watcher that hangs waits for a file system (a server of NFS that is gone): a new process
would wait at the same place, and what the workers have to do would wait with it. So that is said,
and the watchdog is fed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from phi4d import events
from phi4d.notices import Notices
from phi4d.notify import notify, watchdog_seconds

log = logging.getLogger(__name__)


class Beating(Protocol):
    """A thread that gives signs of life."""

    @property
    def name(self) -> str:
        """The thread's."""

    @property
    def last_beat(self) -> float:
        """Monotonic seconds of the last one."""


class Looking(Beating, Protocol):
    """The watcher."""

    @property
    def looks_at(self) -> str:
        """The inbox that it looks at."""


class Vigil:
    """Looks at the threads once a second.

    Args:
        notices: where it is said, for `phi4d status`, that an inbox does not answer.
        hang_seconds: a thread without a sign of life for so long hangs.
    """

    def __init__(self, notices: Notices, hang_seconds: Callable[[], float]) -> None:
        self._notices = notices
        self._hang_seconds = hang_seconds
        self._hung = False
        self._silent = ""

    def look(self, now: float, workers: Sequence[Beating], watcher: Looking) -> None:
        """Feed the watchdog if every worker lives.

        Args:
            now: monotonic seconds.
            workers: all of them.
            watcher: of the inboxes.
        """
        self.listen_to(watcher, now)
        longest = self._hang_seconds()
        hung = [worker for worker in workers if now - worker.last_beat > longest]
        if hung and not self._hung:
            log.error(
                "%s: no sign of life for %.0f s; the service manager is left to restart phi4d",
                hung[0].name,
                now - hung[0].last_beat,
                extra=events.WORKER_HUNG(device=hung[0].name.removeprefix("worker ")),
            )
        self._hung = bool(hung)
        if not hung and watchdog_seconds():
            notify("WATCHDOG=1")

    def listen_to(self, watcher: Looking, now: float) -> str:
        """Say it, once, if the watcher hangs, and when it goes on.

        Returns:
            The inbox whose file system it waits for; empty if it lives.
        """
        silence = now - watcher.last_beat
        inbox = watcher.looks_at if silence > self._hang_seconds() else ""
        if inbox == self._silent:
            return inbox
        if inbox:
            words = (
                f"its file system has not answered for {silence:.0f} s; see that its server runs "
                "and its mount works: until it answers no inbox gets new files; what waits already "
                "is done"
            )
            log.error('inbox "%s": %s', inbox, words, extra=events.INBOX_TROUBLED(inbox=inbox))
            self._notices.say_all("silence", {inbox: words})
        else:
            log.warning(
                'inbox "%s": its file system answers again',
                self._silent,
                extra=events.INBOX_HEALED(inbox=self._silent),
            )
            self._notices.say_all("silence", {})
        self._silent = inbox
        return inbox
