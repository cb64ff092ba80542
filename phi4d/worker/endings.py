"""What becomes of a job: done, failed, dropped, put off or put back. By whose fault decides it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from phi4d import events, outputs
from phi4d.errors import (
    Cancelled,
    DecoderDied,
    EnvironmentFault,
    FileChanged,
    FileError,
    SourceFault,
)
from phi4d.job import Fingerprint, Job, Kind, Result, State, printable
from phi4d.meter import Meter, Phase
from phi4d.outputs import atomic, told
from phi4d.scheduler import Pauses, backoff
from phi4d.slots import Slots
from phi4d.store import Store
from phi4d.task import Task
from phi4d.worker.originals import Originals

log = logging.getLogger(__name__)

DECODER_TRIES = 2  # a file that kills its decode process so often is at fault
STORE_SECONDS = 1.0  # how often a store that cannot be written is tried again


def _no_fault(inbox: str) -> str | None:  # noqa: ARG001 -- nobody watches
    return None


def _nobody(inbox: str, path: bytes) -> None:
    pass


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Whom a worker asks, and tells, about the inboxes."""

    root_fault: Callable[[str], str | None] = _no_fault
    """why an inbox folder cannot be used now; a file that is gone from one is not gone"""
    changed: Callable[[str, bytes], None] = _nobody
    """told of a file that is no longer the version that was queued"""
    hook_due: Callable[[], None] = _nothing
    """told that something is to be run or told, because a job has ended"""


class Endings:
    """Decides for one worker what becomes of its jobs, and makes it durable.

    Args:
        store: where jobs go.
        pauses: the inboxes that wait.
        slots: which devices refused what.
        originals: moves and deletes source files.
        surroundings: who knows the inboxes.
        stopping: set when the worker is to take nothing new.
        alive: a sign of life, for while the store is waited for.
        beat: the same, for while a large original is copied; may raise `Stopped`.
        retry_seconds: the first wait of a job that is put off.
        max_attempts: starts without an end after which a job is given up.
        on_result: called after a job has ended, with its result if it was done.
        meter: counts how jobs end, and by whose fault.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        pauses: Pauses,
        slots: Slots,
        originals: Originals,
        surroundings: Surroundings,
        stopping: threading.Event,
        alive: Callable[[], None],
        beat: Callable[[], None],
        *,
        retry_seconds: float,
        max_attempts: int,
        on_result: Callable[[Job, Result | None, str], None] | None,
        meter: Meter,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._pauses = pauses
        self._slots = slots
        self._originals = originals
        self._surroundings = surroundings
        self._stopping = stopping
        self._alive = alive
        self._beat = beat
        self._retry_seconds = retry_seconds
        self._max_attempts = max_attempts
        self._on_result = on_result
        self._meter = meter
        self._clock = clock

    def change(self, retry_seconds: float, max_attempts: int) -> None:
        """From the next ending on."""
        self._retry_seconds = retry_seconds
        self._max_attempts = max_attempts

    @contextmanager
    def faults_of(self, task: Task, phase: str) -> Iterator[None]:
        """What goes wrong with a file ends, puts off or puts back its job, and no other."""
        try:
            yield
        except FileChanged as error:
            self._changed(task, error)
        except DecoderDied as error:
            if task.job.crashes + 1 < DECODER_TRIES:
                self._put_off(task, str(error), fault=error.fault, count=True, crashed=True)
            else:
                self.give_up(task, error.fault, phase, f"{error}, {DECODER_TRIES} times")
        except FileError as error:
            self.give_up(task, error.fault, phase, str(error))
        except SourceFault as error:
            self._put_off(task, str(error), fault=error.fault, count=False)
        except EnvironmentFault as fault:
            self._surroundings_fault(task, fault)

    def _surroundings_fault(self, task: Task, fault: EnvironmentFault) -> None:
        """Its surroundings keep a job from going on: it alone waits, or its whole inbox."""
        try:
            atomic.probe(task.rule.outbox)
        except EnvironmentFault:
            alone = False
        else:
            alone = fault.place.startswith(task.rule.outbox + b"/")
        if alone:  # a folder in the outbox cannot be written, the others can
            self._put_off(task, str(fault), fault=fault.fault, count=False)
        else:
            if self._originals.rules.get(task.job.inbox) == task.rule:  # else it is another's now
                self.pause(task.job.inbox, fault)
            self.put_back([task], count=False)

    def _changed(self, task: Task, error: FileChanged) -> None:
        """The file is not the version that was queued, or gone; with its folder, perhaps."""
        missing = self._surroundings.root_fault(task.job.inbox)
        if missing:
            self.pause(task.job.inbox, EnvironmentFault(missing))
            self.put_back([task], count=False)
            return
        self._persist(self._store.drop, task.job, str(error))
        task.log.info("set aside %s: %s", task.name, error, extra=events.FILE_DROPPED())
        self._ended(task, None, f"set aside: {error}", State.DROPPED)
        self._surroundings.changed(task.job.inbox, task.job.path)

    def too_often(self, task: Task) -> bool:
        """Give a job up that was begun too often without an end; whether it was."""
        n = task.job.attempts - 1
        if n >= self._max_attempts:
            reason = f"was started {n} times and never finished; look for its cause"
            self.give_up(task, "file", "start", reason)
        return task.ended

    def can_go_on(self, inbox: str) -> bool:
        """Whether an inbox whose pause is over is worth the model's time again."""
        rule = self._originals.rules.get(inbox)
        if rule is None:  # it is no longer configured
            return False
        missing = self._surroundings.root_fault(inbox)
        try:
            if missing:
                raise EnvironmentFault(missing)
            atomic.probe(rule.outbox)
        except EnvironmentFault as fault:
            self.pause(inbox, fault)
            return False
        return True

    def try_again(self, inbox: str) -> None:
        """End the pause of an inbox for which nothing is to be done, if it could be done."""
        if self.can_go_on(inbox):
            self._resume(inbox)

    def pause(self, inbox: str, fault: EnvironmentFault) -> None:
        """Let an inbox wait for its surroundings to be mended."""
        if self._pauses.pause(inbox, str(fault), self._clock()):
            self._meter.paused(inbox)
            log.warning(
                'inbox "%s" pauses, nothing is lost: %s',
                inbox,
                fault,
                extra=events.INBOX_PAUSED(inbox=inbox, fault=fault.fault, reason=str(fault)),
            )

    def _resume(self, inbox: str) -> None:
        if self._pauses.resume(inbox):
            log.warning('inbox "%s": works again', inbox, extra=events.INBOX_RESUMED(inbox=inbox))

    def done(self, task: Task, result: Result, *, reused_from: str = "") -> None:
        """Make the sidecars durable, then the end of the job."""
        if not _is_still(task.source, task.job.fingerprint):
            raise FileChanged("it changed while it was worked on; the new version follows")
        began = self._meter.clock()
        paths = outputs.write(
            task.job,
            result,
            task.rule.outbox,
            content=task.digest,
            reused_from=reused_from,
            beside=task.rule.outbox == task.rule.path,
        )
        self._meter.spent(Phase.WRITE, task.job.kind, self._meter.clock() - began)
        self._resume(task.job.inbox)
        tokens = None if reused_from else result.new_tokens
        how = f"copied from {reused_from}" if reused_from else f"{tokens} tokens on {result.device}"
        output = printable(paths[0])
        self._finish(
            task,
            result,
            f"{result.kind.noun}, {result.seconds:.1f} s, {how} → {output}",
            copied=bool(reused_from),
            seconds=round(result.seconds, 3),
            tokens=tokens,
            output=output,
            reused_from=reused_from,
        )

    def done_before(self, task: Task) -> bool:
        """End a job whose sidecars were safe already when the daemon died; whether they were."""
        if task.job.attempts < 2 or task.job.fresh:
            return False
        known = told.read(task.rule.outbox, task.job.path)
        if (
            known is None
            or not known.is_about(task.job.fingerprint)
            or known.question != task.question
            or not _is_still(task.source, task.job.fingerprint)
        ):
            return False
        task.digest = known.content
        with self.faults_of(task, "write"):
            outputs.clear_error(task.job, task.rule.outbox)
            self._finish(
                task, known.result, "its sidecars were safe before phi4d ended", copied=True
            )
        return task.ended

    def _finish(
        self, task: Task, result: Result, words: str, *, copied: bool, **fields: Any
    ) -> None:
        reusable = task.digest and result.is_whole
        due = task.rule.originals != "leave"
        is_told = self._persist(
            self._store.finish,
            task.job,
            content=bytes.fromhex(task.digest) if reusable else None,
            question=task.question,
            original=due,
            hook=_facts(result, copied=copied) if task.rule.on_done else None,
        )
        extra = events.FILE_DONE(kind=str(result.kind), **fields)
        task.log.info("done %s: %s", task.name, words, extra=extra)
        self._ended(task, result, f"done: {words}", State.DONE, copied=copied)
        if is_told:
            self._follow_up(task, State.DONE, original=due)

    def _follow_up(self, task: Task, state: State, *, original: bool) -> None:
        """Begin what the inbox wants after a job."""
        if original:
            self._originals.settle(task.job, state, task.rule, self._beat)
        if task.rule.hook(state):
            self._surroundings.hook_due()

    def give_up(self, task: Task, fault: str, phase: str, reason: str) -> None:
        """Fail a job, with a record beside its sidecars that says why.

        What failed of a version that is no longer there is of no interest: the job is dropped, and
        the newer version's sidecars get no record of it beside them.
        """
        if not _is_still(task.source, task.job.fingerprint):
            self._changed(task, FileChanged("it changed while it was worked on"))
            return
        now = time.time()
        try:
            outputs.write_error(
                task.job,
                task.rule.outbox,
                fault=fault,
                phase=phase,
                message=reason,
                began=now - (self._clock() - task.began),
                now=now,
            )
        except EnvironmentFault as error:
            self._surroundings_fault(task, error)
            return
        except FileError as error:  # a folder has the record's name, say: the store tells it all
            reason = f"{reason} (and no record of it: {error})"
        # only what is the file's own fault is moved away
        due = fault == FileError.fault and task.rule.failed_dir is not None
        is_told = self._persist(
            self._store.fail,
            task.job,
            fault,
            reason,
            phase,
            original=due,
            hook={"fault": fault, "reason": reason} if task.rule.on_failed else None,
        )
        self._meter.fault(task.job.inbox, fault, failed=True)
        extra = events.FILE_FAILED(fault=fault, phase=phase, reason=reason)
        task.log.error("failed %s: %s", task.name, reason, extra=extra)
        self._ended(task, None, f"failed: {reason}", State.FAILED)
        if is_told:
            self._follow_up(task, State.FAILED, original=due)

    def cancelled(self, task: Task, reason: str) -> None:
        """Give a job up that somebody wants no more: nothing is written beside its file.

        Raises:
            EnvironmentFault: the store cannot be written now; nothing has changed.
        """
        self._store.fail(task.job, Cancelled.fault, reason)
        task.log.warning("%s: %s", task.name, reason)
        task.ended = True
        self._slots.forget(task.job.id)
        if self._on_result:
            self._on_result(task.job, None, reason)

    def unexpected(self, tasks: Iterable[Task], error: Exception) -> None:
        """A fault of ours: each of these jobs is tried alone, a bounded number of times."""
        words = f"{type(error).__name__}: {error}"
        for task in tasks:
            if task.ended:
                continue
            if task.job.attempts >= self._max_attempts:
                self.give_up(
                    task, "internal", "answer", f"unexpected error, {task.job.attempts} times: "
                    f"{words}; please report it",
                )  # fmt: skip
            else:
                self._put_off(task, words, fault="internal", count=True)

    def _put_off(
        self, task: Task, reason: str, *, fault: str, count: bool, crashed: bool = False
    ) -> None:
        """Try a job again later: after longer each time, but never after more than minutes."""
        wait = backoff(task.job.waits, self._retry_seconds)
        level = logging.WARNING if task.job.waits == 0 else logging.DEBUG
        extra = events.FILE_PUT_OFF(fault=fault, reason=reason)
        task.log.log(level, "%s: %s; next try in %.0f s", task.name, reason, wait, extra=extra)
        self._meter.fault(task.job.inbox, fault, failed=False)
        task.ended = True
        self._persist(
            self._store.requeue,
            task.job,
            count=count,
            crashed=crashed,
            wait=wait,
            fault=fault,
            reason=reason,
        )

    def put_back(self, tasks: Iterable[Task], *, count: bool, died: bool = False) -> None:
        """Let jobs that have not ended wait for their turn again."""
        for task in tasks:
            if not task.ended:
                task.ended = True
                self._persist(self._store.requeue, task.job, count=count, died=died)

    def _ended(
        self,
        task: Task,
        result: Result | None,
        words: str,
        state: State,
        *,
        copied: bool = False,
    ) -> None:
        task.ended = True
        self._slots.forget(task.job.id)
        heard = result is not None and result.kind is Kind.AUDIO and not copied
        self._meter.ended(
            task.job.inbox,
            task.job.kind,
            state,
            copied=copied,
            audio_seconds=task.facts.get("duration", 0.0) if heard else 0.0,
        )
        if self._on_result:
            self._on_result(task.job, result, words)

    def _persist(self, change: Callable[..., bool], *args: Any, **options: Any) -> bool:
        """Make a change in the store, waiting for its disk if need be.

        Given up only at a stop: the job is then found running, and done again, at the next start.

        Returns:
            Whether the change was made; where it was not, the source file must stay.
        """
        said = False
        while True:
            try:
                change(*args, **options)
            except EnvironmentFault as fault:
                if not said:
                    log.warning("%s", fault)
                    said = True
                self._alive()
                if self._stopping.wait(STORE_SECONDS):
                    return False
            else:
                return True


def _facts(result: Result, *, copied: bool) -> Mapping[str, str | float]:
    """What whoever is told of a job that is done is told of it."""
    return {
        "device": result.device,
        "model": result.model,
        "seconds": round(result.seconds, 3),
        "tokens": 0 if copied else result.new_tokens,
    }


def _is_still(path: bytes, fingerprint: Fingerprint) -> bool:
    """Whether the file at a path is still the version that was worked on."""
    try:
        return Fingerprint.of(os.stat(path, follow_symlinks=False)) == fingerprint
    except OSError:
        return False
