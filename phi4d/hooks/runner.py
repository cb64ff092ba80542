"""Sees to the hooks that are due: which is next, in which thread, and what becomes of it.

The store is the queue: that a hook is due is written with the end of its job, and taken off when it
was seen to. So none is forgotten when phi4d is killed, and one that was under way is done again.
A webhook that should be tried again holds up the others of its inbox for a while, longer each time,
as the receiver may be down; the others then go before it, as it may be the one that is wrong.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from phi4d import events
from phi4d.errors import EnvironmentFault, HookFailed, Stopped
from phi4d.hooks import command, ending, webhook
from phi4d.job import State, display_name
from phi4d.notices import Notices
from phi4d.scheduler import backoff
from phi4d.store import Row, Store
from phi4d.task import Rule

log = logging.getLogger(__name__)

AT_ONCE = 4  # hooks
OF_ONE = 2  # at once, of one inbox and end of jobs: a slow one leaves room for the others
LOOK_SECONDS = 10.0  # how often it is looked for what nobody told of
FIRST_WAIT_SECONDS = 2.0  # of a webhook, doubled up to five minutes
LONGEST_SECONDS = 86_400.0  # after the end of its job, a webhook is given up
TOLD_AFTER = 3
"""failures in a row after which `phi4d status` tells"""

Target = tuple[str, State]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says of all hooks."""

    seconds: float = 30.0
    """how long a command may take, or the receiver of a webhook be silent"""
    secret_file: Path | None = None
    """holds what webhooks are signed with"""
    with_text: bool = False
    """whether a webhook is told the answer itself"""


class Hooks:
    """Runs the hooks of all inboxes. Its threads begin with the first that is due.

    Args:
        store: knows what is due.
        rules: the inboxes by name, as they are at the moment.
        settings: what the configuration says at the moment.
        notices: told of hooks that keep failing.
        clock: monotonic seconds.
        now: seconds since the epoch.

    Attributes:
        failed: how many ended badly, by inbox.
        ended: how many were seen to, well or badly, by inbox.
    """

    def __init__(
        self,
        store: Store,
        rules: Mapping[str, Rule],
        settings: Callable[[], Settings] = Settings,
        notices: Notices | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.failed: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self._store = store
        self._rules = rules
        self._settings = settings
        self._notices = notices or Notices()
        self._clock = clock
        self._now = now
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._aborting = threading.Event()
        self._threads: list[threading.Thread] = []
        self._running: dict[int, Target] = {}
        """by the job's id"""
        self._lines: dict[int, webhook.Line] = {}
        self._held_up: dict[Target, tuple[int, float]] = {}
        """failures in a row, and until when nothing more is tried"""
        self._later: dict[int, tuple[int, float]] = {}
        """the same of one job's webhook"""
        self._unwritten: list[Row] = []
        """seen to, but the store could not be told"""
        self._turn = 0

    def start(self) -> None:
        """Take up what was due when the daemon ended.

        Raises:
            EnvironmentFault: the store cannot be read or written.
        """
        if n := self._store.forget_hooks(self._targets()):
            log.info("%d hooks were due that are configured no more; they are left out", n)
        if any(self._store.hooks_due(*target, 1) for target in self._targets()):
            self.wake()

    def wake(self) -> None:
        """Something is due, or may be."""
        with self._changed:
            if not self._threads and not self._stopping.is_set():
                self._threads = [
                    threading.Thread(target=self._run, name=f"hook {n}") for n in range(AT_ONCE)
                ]
                for thread in self._threads:
                    thread.start()
            self._changed.notify_all()

    def is_idle(self) -> bool:
        """Whether none runs, and none is due but those that wait for another try.

        Raises:
            EnvironmentFault: the store cannot be read.
        """
        with self._changed:
            return not self._running and self._next() is None

    def waiting(self) -> list[str]:
        """What waits for another try, in words."""
        with self._changed:
            held_up = {target for target in self._held_up if self._is_due(target)}
        return [f'inbox "{inbox}": {_key(state)} still waits' for inbox, state in sorted(held_up)]

    def _is_due(self, target: Target) -> bool:
        return bool(self._store.hooks_due(*target, 1))

    def stop(self, deadline: float) -> None:
        """Begin nothing more, let what runs end until a deadline, then end it. Idempotent.

        What was ended so stays due, and is done at the next start.

        Args:
            deadline: in `time.monotonic` seconds.
        """
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._aborting.set()
        with self._changed:
            for line in self._lines.values():
                line.cut()
        for thread in threads:
            thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._changed:
                row = self._take()
                if row is None:
                    self._changed.wait(LOOK_SECONDS)
                    continue
            try:
                self._see_to(row)
            except Exception:
                log.exception("%s: its hook: unexpected error", _name(row))
                self._settle(row)
            finally:
                with self._changed:
                    del self._running[row.job.id]
                    self._changed.notify_all()

    def _take(self) -> Row | None:
        """Mark the next as running, if there is one."""
        if self._stopping.is_set():
            return None
        try:
            while self._unwritten:
                self._store.settle_hook(self._unwritten[0])
                del self._unwritten[0]
            row = self._next()
        except EnvironmentFault as fault:
            log.debug("hooks wait: %s", fault)
            return None
        if row is not None:
            self._running[row.job.id] = (row.job.inbox, row.state)
        return row

    def _next(self) -> Row | None:
        """The next that may be begun: of each inbox in turn the oldest."""
        now = self._clock()
        targets = self._targets()
        busy = Counter(self._running.values())
        without = [
            *self._running,
            *(row.job.id for row in self._unwritten),
            *(job for job, (_, until) in self._later.items() if until > now),
        ]
        for n in range(len(targets)):
            target = targets[(self._turn + n) % len(targets)]
            if busy[target] >= OF_ONE or self._held_up.get(target, (0, now))[1] > now:
                continue
            if rows := self._store.hooks_due(*target, 1, without):
                self._turn += n + 1
                return rows[0]
        return None

    def _targets(self) -> list[Target]:
        return [
            (inbox, state)
            for inbox, rule in self._rules.items()
            for state in (State.DONE, State.FAILED)
            if rule.hook(state) is not None
        ]

    def _see_to(self, row: Row) -> None:
        rule = self._rules.get(row.job.inbox)
        hook = rule.hook(row.state) if rule else None
        if rule is None or hook is None:  # the configuration has changed meanwhile
            self._settle(row)
            return
        about = ending.of(row, rule)
        settings = self._settings()
        began = self._clock()
        try:
            if isinstance(hook, str):
                self._post(hook, about, settings)
            else:
                command.run(
                    hook,
                    about.words(),
                    about.sidecars,
                    seconds=settings.seconds,
                    aborting=self._aborting,
                    clock=self._clock,
                )
        except Stopped:
            return
        except HookFailed as error:
            self._failed(row, error)
        else:
            self._well(row, self._clock() - began)

    def _post(self, url: str, about: ending.Ending, settings: Settings) -> None:
        line = webhook.Line()
        with self._changed:
            self._lines[about.job] = line
            if self._aborting.is_set():
                line.cut()
        try:
            now = self._now()
            data = webhook.body(about, now, with_text=settings.with_text)
            told = webhook.headers(about, data, now, webhook.secret(settings.secret_file))
            webhook.post(url, data, told, seconds=settings.seconds, line=line)
        finally:
            with self._changed:
                del self._lines[about.job]

    def _well(self, row: Row, seconds: float) -> None:
        target = (row.job.inbox, row.state)
        with self._changed:
            failures, _ = self._held_up.pop(target, (0, 0.0))
            self._later.pop(row.job.id, None)
            self.ended[row.job.inbox] += 1
        log.debug("%s: %s ran in %.1f s", _name(row), _key(row.state), seconds)
        if failures >= TOLD_AFTER:
            log.warning('inbox "%s": %s works again', row.job.inbox, _key(row.state))
        self._notices.say(row.job.inbox, _key(row.state), None)
        self._settle(row)

    def _failed(self, row: Row, error: HookFailed) -> None:
        target = (row.job.inbox, row.state)
        too_old = self._now() - (row.finished or 0.0) > LONGEST_SECONDS
        again = error.again and not too_old
        now = self._clock()
        with self._changed:
            failures = self._held_up.get(target, (0, 0.0))[0]
            wait = backoff(failures, FIRST_WAIT_SECONDS) if again else 0.0
            self._held_up[target] = (failures + 1, now + wait)
            if again:
                tries = self._later.get(row.job.id, (0, 0.0))[0]
                later = backoff(tries, FIRST_WAIT_SECONDS)
                self._later[row.job.id] = (tries + 1, now + later)
            else:
                self._later.pop(row.job.id, None)
                self.ended[row.job.inbox] += 1
                self.failed[row.job.inbox] += 1
        then = f"; next try in {wait:.0f} s" if again else ""
        if error.again and too_old:
            then = "; given up after a day"
        # while a receiver is down, once is enough
        level = logging.DEBUG if again and failures else logging.WARNING
        log.log(
            level,
            "%s: %s failed: %s%s",
            _name(row),
            _key(row.state),
            error,
            then,
            extra=events.HOOK_FAILED(
                inbox=row.job.inbox, file=row.job.name, job=row.job.id, reason=str(error)
            ),
        )
        if failures + 1 >= TOLD_AFTER:
            self._notices.say(
                row.job.inbox,
                _key(row.state),
                f"{_key(row.state)} failed {failures + 1} times in a row, and no file by it: {error}",
            )
        if not again:
            self._settle(row)

    def _settle(self, row: Row) -> None:
        try:
            self._store.settle_hook(row)
        except EnvironmentFault as fault:
            log.warning("%s", fault)
            with self._changed:
                self._unwritten.append(row)


def _name(row: Row) -> str:
    return display_name(row.job.inbox, row.job.path)


def _key(state: State) -> str:
    """The configuration's key for what is run at such an end."""
    return f"on_{state.value}"
