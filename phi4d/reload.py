"""Reads the configuration again while the daemon runs, and tells what came of it.

A configuration is taken up whole or not at all: one with faults is refused, and the one in force
stays. What it changes is told by `phi4d.changes`; who takes it up is the daemon's affair.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from phi4d import events
from phi4d.changes import Changes, compare
from phi4d.config import Config
from phi4d.errors import ConfigError, EnvironmentFault, Stopped
from phi4d.notify import notify

log = logging.getLogger(__name__)

Read = Callable[[], Config]
"""Puts the configuration together again from the sources of the first time; may raise
`ConfigError`."""
TakeUp = Callable[[Changes], None]
"""Takes changes up, or raises `ConfigError` or `EnvironmentFault`, and then nothing has changed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of reading the configuration again."""

    faults: tuple[str, ...] = ()
    """why it was refused, a line each; empty: it is in force"""
    changed: str = ""
    """what is otherwise now, in a line for people; empty: nothing"""
    at_start: tuple[str, ...] = ()
    """keys that are otherwise at the next start"""

    def fields(self) -> dict[str, Any]:
        """The outcome as JSON has it."""
        return {"faults": self.faults, "changed": self.changed, "at_start": self.at_start}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Outcome:
        """The outcome that fields of JSON tell."""
        return cls(tuple(fields["faults"]), fields["changed"], tuple(fields["at_start"]))


class Reloader:
    """Reloads for one daemon, one time after the other. Any thread may call it.

    Args:
        in_force: the configuration in force.
        read: reads the new one.
        take_up: makes a new one the one in force.
    """

    def __init__(self, in_force: Config, read: Read, take_up: TakeUp) -> None:
        self._in_force = in_force
        self._read = read
        self._take_up = take_up
        self._turn = threading.Lock()
        self.closed = False
        """whether whoever waits for something should wait no longer"""
        self.busy = False
        """whether it reloads just now"""

    def close(self) -> None:
        """Reload no more; one that is under way is waited for."""
        self.closed = True
        with self._turn:
            pass

    def __call__(self) -> Outcome:
        """Read the configuration again, and take up what is new.

        Raises:
            Stopped: `close` was called.
        """
        with self._turn:
            if self.closed:
                raise Stopped("it is stopping; the next start reads the configuration anyway")
            # systemd lets no other job of the unit begin until READY
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self.busy = True
            try:
                outcome = self._reload()
            finally:
                self.busy = False
                notify("READY=1")
        return outcome

    def _reload(self) -> Outcome:
        new: Config | None = None
        try:
            new = self._read()
            changes = compare(self._in_force, new)
            self._take_up(changes)
        except ConfigError as error:
            return _refused(
                error.fault, tuple(map(new.placed, error.faults) if new else error.faults)
            )
        except EnvironmentFault as fault:
            return _refused(fault.fault, (str(fault),))
        self._in_force = changes.config
        words = changes.words()
        log.info("reloaded: %s", words or "nothing has changed", extra=events.RELOADED())
        if changes.at_start:
            log.warning(
                "%s: taken up at the next start: restart phi4d", ", ".join(changes.at_start)
            )
        return Outcome((), words, changes.at_start)


def _refused(fault: str, faults: tuple[str, ...]) -> Outcome:
    for words in faults:
        log.error("%s", words, extra=events.RELOAD_REFUSED(fault=fault, reason=words))
    log.error(
        "the configuration is refused, and the old one stays in force: mend it, and reload again",
        extra=events.RELOAD_REFUSED(fault=fault),
    )
    return Outcome(faults)
