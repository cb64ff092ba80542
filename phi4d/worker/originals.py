"""Source files after their jobs: moved or deleted, if their inbox wants it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping

from phi4d.errors import EnvironmentFault, FileChanged
from phi4d.job import Job, State, display_name, printable
from phi4d.notices import Notices
from phi4d.outputs import originals
from phi4d.store import Store
from phi4d.task import Rule

log = logging.getLogger(__name__)

AGAIN_SECONDS = 30.0  # how often what could not be moved is tried again


class Originals:
    """Moves and deletes, shared by all workers.

    That a file is due stands in the store together with the end of its job, so it is neither
    forgotten nor touched before its sidecars are durable.

    Args:
        store: knows what is due.
        rules: the inboxes by name.
        notices: told what cannot be moved.
        root_fault: why an inbox folder cannot be used now: its files are not gone then.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        rules: Mapping[str, Rule],
        notices: Notices | None = None,
        root_fault: Callable[[str], str | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules
        self._store = store
        self._notices = notices or Notices()
        self._root_fault = root_fault
        self._clock = clock
        self._turn = threading.Lock()
        self._next = clock()
        self._faults: dict[str, str] = {}

    def settle(self, job: Job, state: State) -> None:
        """Do with a job's source file what its inbox wants; if it cannot be done now, later."""
        with self._turn, contextlib.suppress(EnvironmentFault):
            self._settle(job, state)

    def hurry(self) -> None:
        """There is something due that nobody has tried."""
        self._next = self._clock()

    def settle_due(self) -> None:
        """Try again, now and then, what could not be done, or was due when the daemon ended.

        Raises:
            EnvironmentFault: the store cannot be read.
        """
        if self._clock() < self._next or not self._turn.acquire(blocking=False):
            return
        try:
            self._next = self._clock() + AGAIN_SECONDS
            stuck: set[str] = set()
            for job, state in self._store.originals():
                if job.inbox in self.rules and job.inbox not in stuck:
                    try:
                        self._settle(job, state)
                    except EnvironmentFault:
                        stuck.add(job.inbox)
        finally:
            self._turn.release()

    def _settle(self, job: Job, state: State) -> None:
        rule = self.rules[job.inbox]
        try:
            if missing := self._root_fault(job.inbox):
                raise EnvironmentFault(missing)
            became, place = _settled(job, state, rule)
        except FileChanged:
            became, place = "kept", None  # a newer version is there, and another job
        except EnvironmentFault as fault:
            if self._faults.get(job.inbox) != str(fault):
                self._faults[job.inbox] = str(fault)
                log.warning('inbox "%s": originals stay for now: %s', job.inbox, fault)
                self._notices.say(job.inbox, "originals", str(fault))
            raise
        self._store.settle_original(job, became, place)
        if self._faults.pop(job.inbox, None):
            log.warning('inbox "%s": originals are moved again', job.inbox)
            self._notices.say(job.inbox, "originals", None)
        log.debug(
            "%s: its original was %s%s",
            display_name(job.inbox, job.path),
            became,
            f" to {printable(place)}" if place else "",
        )


def _settled(job: Job, state: State, rule: Rule) -> tuple[str, bytes | None]:
    """What became of a source file, and where it is now if it was moved."""
    source = rule.source(job)
    folder = rule.failed_dir if state is State.FAILED else rule.done_dir
    if state is State.DONE and rule.originals == "delete":
        originals.delete(source, job.fingerprint)
        return "deleted", None
    if folder is None or (state is State.DONE and rule.originals != "move"):
        return "kept", None  # the configuration has changed meanwhile
    return "moved", originals.move(source, job.fingerprint, folder, job.path)
