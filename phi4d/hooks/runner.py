"""Sees to the hooks that are due: which is next, in which thread, and what becomes of it.

The store is the queue: that a hook is due is written with the end of its job, and taken off when it
was seen to. So none is forgotten when phi4d is killed, and one that was under way is done again.
The hooks of an inbox and an end of its jobs are seen to one after another, in order. A webhook that
does not get through lets them wait, longer each time, as the receiver may be down; then the others
go before it, as it may be the one that is wrong.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from phi4d import events
from phi4d.errors import EnvironmentFault, HookFailed, Stopped
from phi4d.hooks import command, ending, webhook
from phi4d.job import State, display_name, printable
from phi4d.meter import Meter
from phi4d.notices import Notices
from phi4d.outputs import told
from phi4d.scheduler import backoff
from phi4d.store import Due, Store, Target
from phi4d.task import Rule

log = logging.getLogger(__name__)

AT_ONCE = 4  # hooks, of different inboxes or ends
LOOK_SECONDS = 5.0  # how often it is looked for what nobody told of: a next try, a moved original
FIRST_WAIT_SECONDS = 5.0  # of a webhook, doubled up to five minutes
STORE_SECONDS = 1.0  # how often a store that cannot be written is tried again
TOLD_AFTER = 3
"""failures in a row after which `phi4d status` tells"""
DOWN_AFTER = 10
"""failures in a row after which a receiver is taken to be down for good"""


@dataclass(frozen=True, slots=True)
class _Trouble:
    """How the hooks of an inbox and an end fare."""

    failures: int
    """in a row"""
    until: float
    """none is tried before, by the monotonic clock"""


class Hooks:
    """Runs the hooks of all inboxes. Its threads begin with the first that is due.

    Args:
        store: knows what is due.
        rules: the inboxes by name, as they are at the moment.
        notices: told of hooks that keep failing.
        meter: counts how they end.
        clock: monotonic seconds.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        rules: Mapping[str, Rule],
        notices: Notices | None = None,
        meter: Meter | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._rules = rules
        self._notices = notices or Notices()
        self._meter = meter or Meter()
        self._clock = clock
        self._now = now
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._aborting = threading.Event()
        self._line = webhook.Line()
        self._threads: list[threading.Thread] = []
        self._running: set[Target] = set()
        self._troubles: dict[Target, _Trouble] = {}
        self._turn = 0

    def begin(self) -> None:
        """Take up what is due, at the start or when the rules have changed.

        What is due by rules that are no more is forgotten; what waits is tried at once.

        Raises:
            EnvironmentFault: the store cannot be read or written.
        """
        if n := self._store.forget_hooks(self._targets()):
            log.info("%d hooks were due that are configured no more; they are forgotten", n)
        self._store.hurry_hooks()
        with self._changed:
            for inbox, state in self._troubles:
                self._notices.say(inbox, _key(state), None)
            self._troubles.clear()
        if any(self._store.hooks_left(target) for target in self._targets()):
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
        """Whether none runs, and none can be run now.

        Raises:
            EnvironmentFault: the store cannot be read.
        """
        with self._changed:
            return not self._running and self._next() is None

    def left(self) -> list[str]:
        """Which have not been seen to, in words.

        Raises:
            EnvironmentFault: the store cannot be read.
        """
        counted = {target: self._store.hooks_left(target) for target in self._targets()}
        return [
            f'inbox "{inbox}": the hook {_key(state)} still waits (files: {n})'
            for (inbox, state), n in counted.items()
            if n
        ]

    def take_no_more(self) -> None:
        """Begin nothing more; what runs goes on. Idempotent."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()

    def stop(self, deadline: float) -> None:
        """Let what runs end until a deadline, then end it. Idempotent.

        What was ended so stays due, and is done again at the next start.

        Args:
            deadline: in `time.monotonic` seconds.
        """
        self.take_no_more()
        with self._changed:
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._aborting.set()
        self._line.cut()
        for thread in threads:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopping.is_set():
                    return
                due = self._take()
                if due is None:
                    self._changed.wait(LOOK_SECONDS)
                    continue
            try:
                self._see_to(due)
            except Stopped:
                pass  # it stays due
            except Exception:
                log.exception("%s: its hook: unexpected error; please report it", _name(due))
                self._settle(due)
            finally:
                with self._changed:
                    self._running.discard(_target(due))
                    self._changed.notify_all()

    def _take(self) -> Due | None:
        """Mark the next as running, if there is one."""
        try:
            due = self._next()
        except EnvironmentFault as fault:
            log.debug("hooks wait: %s", fault)
            return None
        if due is not None:
            self._running.add(_target(due))
        return due

    def _next(self) -> Due | None:
        """The next that may be begun: of each inbox and end in turn the oldest."""
        now = self._clock()
        targets = self._targets()
        for n in range(len(targets)):
            target = targets[(self._turn + n) % len(targets)]
            trouble = self._troubles.get(target)
            if target in self._running or (trouble is not None and now < trouble.until):
                continue
            if due := self._store.hook_due(target):
                self._turn += n + 1
                return due
        return None

    def _targets(self) -> list[Target]:
        return [
            (inbox, state)
            for inbox, rule in dict(self._rules).items()
            for state in (State.DONE, State.FAILED)
            if rule.hook(state) is not None
        ]

    def _see_to(self, due: Due) -> None:
        rule = self._rules.get(due.inbox)
        hook = rule.hook(due.state) if rule else None
        if rule is None or hook is None:  # the configuration has changed meanwhile
            self._settle(due)
            return
        began = self._clock()
        try:
            if isinstance(hook, str):
                self._post(hook, due, rule)
            else:
                self._execute(hook, due, rule)
        except HookFailed as error:
            self._failed(due, rule, error)
        else:
            self._succeeded(due, self._clock() - began)

    def _execute(self, hook: tuple[str, ...], due: Due, rule: Rule) -> None:
        about = ending.of(due, rule)
        command.run(
            hook,
            about.words(),
            about.sidecars,
            seconds=rule.hook_seconds,
            aborting=self._aborting,
            clock=self._clock,
        )

    def _post(self, url: str, due: Due, rule: Rule) -> None:
        known = told.read(rule.outbox, due.path) if rule.webhook_text else None
        is_done = due.state is State.DONE
        data = webhook.body(ending.of(due, rule), known.result.text if known and is_done else None)
        secret = webhook.secret(rule.webhook_secret_file)
        told_too = webhook.headers(due.event, data, self._now(), secret)
        webhook.post(url, data, told_too, seconds=rule.hook_seconds, line=self._line)

    def _succeeded(self, due: Due, seconds: float) -> None:
        self._meter.hook(due.inbox, failed=False)
        log.debug("%s: %s took %.1f s", _name(due), _key(due.state), seconds)
        with self._changed:
            trouble = self._troubles.pop(_target(due), None)
        if trouble is not None and trouble.failures >= TOLD_AFTER:
            log.warning('inbox "%s": the hook %s works again', due.inbox, _key(due.state))
        self._notices.say(due.inbox, _key(due.state), None)
        self._settle(due)

    def _failed(self, due: Due, rule: Rule, error: HookFailed) -> None:
        self._meter.hook(due.inbox, failed=True)
        target, key = _target(due), _key(due.state)
        before = self._troubles.get(target, _Trouble(0, 0.0))
        failures = before.failures + 1
        wait = backoff(max(before.failures, due.tries), FIRST_WAIT_SECONDS) if error.again else 0.0
        of_all = min(wait, backoff(before.failures, FIRST_WAIT_SECONDS))
        with self._changed:
            self._troubles[target] = _Trouble(failures, self._clock() + of_all)
        again = error.again and self._now() - due.finished < rule.webhook_seconds
        # while a receiver is down, once is enough
        level = logging.DEBUG if again and before.failures else logging.WARNING
        if again:
            then = f"; next try in {wait:.0f} s"
        else:
            then = f"; given up ({_limit(rule)})" if error.again else ""
        log.log(
            level,
            "%s: the hook %s failed: %s%s",
            _name(due),
            key,
            error,
            then,
            extra=events.HOOK_FAILED(
                inbox=due.inbox, file=printable(due.path), fault=error.fault, reason=str(error)
            ),
        )
        if failures >= TOLD_AFTER:
            self._notices.say(
                due.inbox, key, f"the hook {key} failed {failures} times in a row: {error}"
            )
        if again:
            self._persist(lambda: self._store.put_off_hook(due, wait))
            return
        self._settle(due)
        if error.again and failures >= DOWN_AFTER:
            self._give_up(target, rule)

    def _give_up(self, target: Target, rule: Rule) -> None:
        """A receiver is down for good: what is too old goes without a try."""
        gone: list[int] = []
        self._persist(lambda: gone.append(self._store.give_up_hooks(target, rule.webhook_seconds)))
        if n := sum(gone):
            log.warning(
                'inbox "%s": the hook %s is given up for %d more files (%s)',
                target[0],
                _key(target[1]),
                n,
                _limit(rule),
            )

    def _settle(self, due: Due) -> None:
        self._persist(lambda: self._store.settle_hook(due))

    def _persist(self, change: Callable[[], None]) -> None:
        """Make a change in the store, waiting for its disk if need be; given up only at a stop."""
        said = False
        while True:
            try:
                change()
            except EnvironmentFault as fault:
                if not said:
                    log.warning("%s", fault)
                    said = True
                if self._stopping.wait(STORE_SECONDS):
                    return  # it stays due
            else:
                return


def _target(due: Due) -> Target:
    return due.inbox, due.state


def _name(due: Due) -> str:
    return display_name(due.inbox, due.path)


def _limit(rule: Rule) -> str:
    return f"webhook_hours = {rule.webhook_seconds / 3600:g}"


def _key(state: State) -> str:
    """The configuration's key for what is run at such an end."""
    return f"on_{state.value}"
