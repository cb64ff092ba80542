"""Source files after their jobs: moved or deleted, if their inbox wants it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping

from phi4d import events
from phi4d.errors import EnvironmentFault, FileChanged, Stopped
from phi4d.job import Job, State, display_name, printable
from phi4d.notices import Notices
from phi4d.outputs import originals
from phi4d.store import Store
from phi4d.task import Rule

log = logging.getLogger(__name__)

AGAIN_SECONDS = 30.0  # how often what could not be moved is tried again
AT_ONCE = 100  # of those that are due, between two looks for files that want an answer
TURN_SECONDS = 1.0  # how often somebody who waits for another's move gives a sign of life


def _nobody_waits() -> None:
    pass


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
        self._stuck: set[str] = set()
        """inboxes whose files could not be moved in this round of `settle_due`"""

    def settle(
        self, job: Job, state: State, rule: Rule, on_wait: Callable[[], None] = _nobody_waits
    ) -> None:
        """Do with a job's source file what its inbox wants; if it cannot be done now, later.

        Args:
            job: the job.
            state: how it ended.
            rule: the inbox's, as the job began with it.
            on_wait: called now and then while a large file is copied, by whoever; may raise
                `Stopped`, and then it is done later.
        """
        with contextlib.suppress(EnvironmentFault, Stopped):
            while not self._turn.acquire(timeout=TURN_SECONDS):
                on_wait()
            try:
                self._settle(job, state, rule, on_wait)
            finally:
                self._turn.release()

    def hurry(self) -> None:
        """There is something due that nobody has tried."""
        self._next = self._clock()

    def forget(self, inbox: str) -> None:
        """What kept an inbox's files from being moved is out of date: its rule is another now."""
        self._stuck.discard(inbox)
        self._faults.pop(inbox, None)
        self.hurry()

    def settle_due(self, on_wait: Callable[[], None] = _nobody_waits) -> None:
        """Try again, now and then, what could not be done, or was due when the daemon ended.

        A few at a time; while there are more, the next call goes on.

        Args:
            on_wait: as for `settle`.

        Raises:
            EnvironmentFault: the store cannot be read.
            Stopped: by `on_wait`.
        """
        if self._clock() < self._next or not self._turn.acquire(blocking=False):
            return
        try:
            if not self._stuck:
                self._next = self._clock() + AGAIN_SECONDS
            rules = dict(self.rules)
            inboxes = [name for name in rules if name not in self._stuck]
            due = self._store.originals(inboxes, AT_ONCE)
            for job, state in due:
                if job.inbox not in self._stuck:
                    try:
                        self._settle(job, state, rules[job.inbox], on_wait)
                    except EnvironmentFault:
                        self._stuck.add(job.inbox)
            if len(due) == AT_ONCE:
                self._next = self._clock()  # there may be more: files come between
            else:
                self._stuck.clear()
                self._next = self._clock() + AGAIN_SECONDS
        finally:
            self._turn.release()

    def _settle(self, job: Job, state: State, rule: Rule, on_wait: Callable[[], None]) -> None:
        try:
            if missing := self._root_fault(job.inbox):
                raise EnvironmentFault(missing)
            became, place = _settled(job, state, rule, on_wait)
        except FileChanged:
            became, place = "kept", None  # a newer version is there, and another job
        except EnvironmentFault as fault:
            if self._faults.get(job.inbox) != str(fault):
                self._faults[job.inbox] = str(fault)
                log.warning(
                    'inbox "%s": originals stay for now: %s',
                    job.inbox,
                    fault,
                    extra=events.ORIGINALS_STAY(
                        inbox=job.inbox, fault=fault.fault, reason=str(fault)
                    ),
                )
                self._notices.say(job.inbox, "originals", str(fault))
            raise
        self._store.settle_original(job, became, place)
        if self._faults.pop(job.inbox, None):
            log.warning(
                'inbox "%s": originals are moved again',
                job.inbox,
                extra=events.ORIGINALS_GO(inbox=job.inbox),
            )
            self._notices.say(job.inbox, "originals", None)
        log.debug(
            "%s: its original was %s%s",
            display_name(job.inbox, job.path),
            became,
            f" to {printable(place)}" if place else "",
        )


def _settled(
    job: Job, state: State, rule: Rule, on_wait: Callable[[], None]
) -> tuple[str, bytes | None]:
    """What became of a source file, and where it is now if it was moved."""
    source = rule.source(job)
    folder = rule.failed_dir if state is State.FAILED else rule.done_dir
    if state is State.DONE and rule.originals == "delete":
        originals.delete(source, job.fingerprint)
        return "deleted", None
    if folder is None or (state is State.DONE and rule.originals != "move"):
        return "kept", None  # the configuration has changed meanwhile
    return "moved", originals.move(source, job.fingerprint, folder, job.path, on_wait=on_wait)
