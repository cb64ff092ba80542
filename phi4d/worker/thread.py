"""The thread: takes jobs, has them decoded and answered, and sees each to its end."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial

from phi4d import events
from phi4d import log as logs
from phi4d.engine import Engine
from phi4d.engine.resident import Resident
from phi4d.errors import Cancelled, DeviceLost, EnvironmentFault, Phi4dError, Stopped
from phi4d.job import GREEDY, Job, Kind, Piece, Priority, Result, Sampling, display_name, question
from phi4d.media.pool import DecodePool, Decoding
from phi4d.meter import Meter, Phase
from phi4d.outputs import told
from phi4d.scheduler import Pauses, Turns
from phi4d.slots import Slots
from phi4d.store import Store
from phi4d.task import Rule, Task
from phi4d.worker.asking import Asking
from phi4d.worker.endings import Endings, Surroundings
from phi4d.worker.originals import Originals

log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
BUSY_SECONDS = 30.0  # how often a model that was unloaded is tried again if it cannot be loaded
_ANYWHERE = Surroundings()


class Worker(threading.Thread):
    """Drives one engine.

    Args:
        engine: the slot's engine; the worker does not close it.
        store: where jobs come from and go to.
        pool: the decode processes, shared by all workers.
        rules: the inboxes by name.
        pauses: the inboxes that wait, shared by all workers.
        slots: all workers' slots, shared by them; None if this is the only one.
        originals: moves and deletes source files, shared by all workers; None as before.
        surroundings: who knows the inboxes.
        batch_size: requests in one call of the engine, at most.
        max_new_tokens: tokens of one answer, at most.
        sampling: how the tokens of an answer are chosen.
        max_attempts: starts without an end after which a job is given up.
        retry_seconds: the first wait of a job that is tried again.
        reuse: whether the answer of a file with the same bytes and question is copied.
        ahead: how many files are being decoded at once for this worker.
        on_result: called after a job has ended, with its result if it was done.
        meter: counts what happens, for all workers.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        pool: DecodePool,
        rules: Mapping[str, Rule],
        pauses: Pauses,
        slots: Slots | None = None,
        originals: Originals | None = None,
        surroundings: Surroundings = _ANYWHERE,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 512,
        sampling: Sampling = GREEDY,
        max_attempts: int = 5,
        retry_seconds: float = 5.0,
        reuse: bool = True,
        ahead: int = 1,
        on_result: Callable[[Job, Result | None, str], None] | None = None,
        meter: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=f"worker {engine.device}")
        self.last_beat = clock()
        """monotonic seconds of the last sign of life"""
        self.error: BaseException | None = None
        """what ended the thread, if it was not `stop`"""
        self.engine = engine
        self._engine = engine
        self._store = store
        self._pool = pool
        self._rules = rules
        self._pauses = pauses
        self._slots = slots or Slots([engine.device])
        self._sampling = sampling
        self._reuse = reuse
        self._ahead = ahead
        self._meter = meter or Meter()
        self._clock = clock
        self._next_call = clock()
        """before that nothing is taken: other programs have the memory that the model wants"""
        self._turns = Turns(self._priority)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._aborting = threading.Event()
        self._cancelling = threading.Event()
        self._tasks: Sequence[Task] = ()
        """what was taken and may not have ended"""
        self._open: deque[tuple[Task, Decoding]] = deque()
        """what is being decoded, in order"""
        self._originals = originals or Originals(store, rules)
        self._not_copied: set[int] = set()
        """jobs whose answer was known, but whose sidecars to copy had gone"""
        self._endings = Endings(
            store,
            pauses,
            self._slots,
            self._originals,
            surroundings,
            self._stopping,
            self._alive,
            self.beat,
            retry_seconds=retry_seconds,
            max_attempts=max_attempts,
            on_result=on_result,
            meter=self._meter,
            clock=clock,
        )
        self._asking = Asking(
            engine,
            self._slots,
            self._endings,
            self._stopping,
            self.beat,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            meter=self._meter,
        )

    def change(
        self,
        *,
        batch_size: int,
        max_new_tokens: int,
        sampling: Sampling,
        max_attempts: int,
        retry_seconds: float,
        reuse: bool,
        ahead: int,
    ) -> None:
        """Work by other numbers from now on; a job that was begun keeps how it is sampled.

        Any thread may call.
        """
        self._asking.change(batch_size, max_new_tokens)
        self._endings.change(retry_seconds, max_attempts)
        self._sampling = sampling
        self._reuse = reuse
        self._ahead = ahead

    def wake(self) -> None:
        """There may be work."""
        self._wake.set()

    def stop(self) -> None:
        """Take nothing new; the running call of the engine may end."""
        self._stopping.set()
        self._wake.set()

    def abort(self) -> None:
        """Give the running call up at its next step and put its jobs back."""
        self._aborting.set()
        self.stop()

    def at_work(self) -> list[tuple[str, float]]:
        """The files that it has, with the seconds since it took each. Any thread may call."""
        now = self._clock()
        return [(task.name, now - task.began) for task in self._tasks if not task.ended]

    @property
    def next_try_seconds(self) -> float:
        """Until a model that could not be loaded again is tried again; 0: nothing is waited for."""
        return max(0.0, self._next_call - self._clock())

    def heed_cancels(self) -> None:
        """Jobs of the store that run were cancelled; those of this worker end at its next step."""
        self._cancelling.set()

    def beat(self) -> None:
        """A sign of life, given at least once a token; what was cancelled ends here.

        Raises:
            Stopped: `abort` was called.
        """
        self._alive()
        if self._aborting.is_set():
            raise Stopped("the daemon is stopping")
        if self._cancelling.is_set():
            self._cancelling.clear()  # first: what is cancelled from here on sets it again
            self._end_cancelled()

    def _end_cancelled(self) -> None:
        running = {task.job.id: task for task in self._tasks if not task.ended}
        if not running:
            return
        try:
            cancelled = self._store.cancelled([task.job for task in running.values()])
            for job_id, reason in cancelled.items():
                self._endings.cancelled(running[job_id], reason)
        except EnvironmentFault as fault:
            log.debug("%s", fault)  # whoever must write to it says so, too
            self._cancelling.set()  # at the next step; others may wait for this thread meanwhile
        for task, stream in self._open:
            if task.ended:
                stream.close()  # it holds a decode process

    def _beat_for(self, task: Task) -> None:
        """As `beat`, while a task is waited for.

        Raises:
            Cancelled: it has been given up.
        """
        self.beat()
        if task.ended:
            raise Cancelled("is wanted no more")

    def _alive(self) -> None:
        self.last_beat = self._clock()

    def run(self) -> None:
        """Work until told to stop, or until the device is lost."""
        try:
            while not self._stopping.is_set():
                self._alive()
                self._wake.clear()
                self._asking.measure()
                if tasks := self._take():
                    self._work(tasks)
                else:
                    if isinstance(self._engine, Resident):
                        self._engine.rest()
                    self._wake.wait(IDLE_SECONDS)
        except BaseException as error:
            self.error = error
            if isinstance(error, Phi4dError):
                event = events.DEVICE_LOST if isinstance(error, DeviceLost) else events.ENDED_BADLY
                log.error(  # noqa: TRY400 -- foreseen
                    "%s: %s",
                    self._engine.device,
                    error,
                    extra=event(device=self._engine.device, fault=error.fault),
                )
            else:
                log.exception(
                    "%s: the worker ended unexpectedly",
                    self._engine.device,
                    extra=events.ENDED_BADLY(device=self._engine.device, fault="internal"),
                )

    def _take(self) -> list[Task]:
        """Claim what comes next; empty when there is nothing to do."""
        try:
            self._originals.settle_due(self.beat)
            if self._clock() < self._next_call:
                return []
            paused = self._pauses.paused(self._clock())
            rules = dict(self._rules)  # these jobs keep them, whatever the configuration becomes
            inboxes = [name for name in rules if name not in paused]
            for inbox in inboxes:  # one for which nothing is to be done works again, too
                if self._pauses.on_trial(inbox) and not self._store.busy([inbox]):
                    self._endings.try_again(inbox)
            refused = self._slots.refused(self._engine.device)
            capacity = self._asking.capacity()
            waiting = self._store.waiting(max(capacity.values()), inboxes, refused)
            chosen = self._turns.batch(waiting, capacity)
            for inbox in {job.inbox for job in chosen}:
                if self._pauses.on_trial(inbox) and not self._endings.can_go_on(inbox):
                    chosen = [job for job in chosen if job.inbox != inbox]
            if not chosen:
                return []
            claimed = self._store.claim([job.id for job in chosen], self._engine.device)
            # at once: what is cancelled from here on is looked for among these
            tasks = self._tasks = [self._task(job, rules[job.inbox]) for job in claimed]
        except EnvironmentFault as fault:
            log.warning("%s", fault)
            self._stopping.wait(IDLE_SECONDS)
            return []
        except Stopped:  # while a large original was copied
            return []
        for job in claimed:
            if job.attempts == 1 and not job.waits:  # else it waited for something else as well
                self._meter.spent(Phase.QUEUE, job.kind, time.time() - job.queued)
        return [
            task
            for task in tasks
            if not self._endings.done_before(task) and not self._endings.too_often(task)
        ]

    def _priority(self, inbox: str) -> Priority:
        rule = self._rules.get(inbox)
        return rule.priority if rule else "normal"

    def _task(self, job: Job, rule: Rule) -> Task:
        job_log = logs.for_job(log, job, self._engine.device)
        task = Task(job, rule, job_log, self._clock(), self._sampling)
        task.question = question(job.kind, self._engine.model, task.prompt, task.sampling)
        return task

    def _work(self, tasks: list[Task]) -> None:
        ready: list[tuple[Task, Piece]] = []
        pieces = self._decode(tasks)
        began = self._meter.clock()
        try:
            for task, piece in pieces:
                # here, and not after an answer: asking for this piece finished the job before it
                if self._stopping.is_set():
                    raise Stopped("the daemon is stopping")
                ready.append((task, piece))
                if len(ready) >= self._asking.batch(task.job.kind):
                    self._asking.answer(ready, self._finish_if_ready)
                    ready = []
            if ready:
                self._asking.answer(ready, self._finish_if_ready)
        except Stopped:
            self._endings.put_back(tasks, count=False)
        except EnvironmentFault:  # the model cannot be loaded again now; that was said
            self._endings.put_back(tasks, count=False)
            self._next_call = self._clock() + BUSY_SECONDS
        except DeviceLost:
            self._endings.put_back(tasks, count=False)
            raise
        except Exception as error:
            names = ", ".join(task.name for task in tasks if not task.ended)
            # what is foreseen says in its words all that there is to say
            trace = None if isinstance(error, Phi4dError) else error
            log.error(  # noqa: TRY400 -- it has its traceback where it needs one
                "%s: unexpected error: %s", names, error, exc_info=trace
            )
            self._endings.unexpected(tasks, error)
        finally:
            pieces.close()
            self._meter.worked(tasks[0].job.kind, self._meter.clock() - began)

    def _decode(self, tasks: Sequence[Task]) -> Generator[tuple[Task, Piece]]:
        """The pieces of all tasks in order; some files are decoded ahead of the one given out."""
        pending = deque(tasks)
        open_ = self._open
        try:
            while pending or open_:
                self._open_some(pending)
                if not open_:
                    continue
                task, stream = open_[0]
                with self._endings.faults_of(task, "decode"):
                    for piece in stream:
                        if not task.digest:
                            task.digest = stream.digest
                            if _twin(task, tasks):
                                self._endings.put_back([task], count=False)
                                if task.job.kind is Kind.IMAGE:
                                    next(stream, None)  # to its end: its process may live on
                                break
                        task.outstanding += 1
                        yield task, piece
                        if task.ended:  # the device refused it
                            break
                    task.facts = dict(stream.facts)
                    task.digest = stream.digest
                    task.decoded = not stream.is_known
                stream.close()
                self._meter.spent(Phase.DECODE, task.job.kind, stream.seconds)
                open_.popleft()
                if stream.is_known and not task.ended:
                    self._copy(task)
                self._finish_if_ready(task)
        finally:
            for _, stream in open_:
                stream.close()
            open_.clear()

    def _open_some(self, pending: deque[Task]) -> None:
        """Begin to decode what comes next, as many files as may be decoded at once."""
        while pending and len(self._open) < self._ahead:
            # only who holds no process may wait for one: two that hold one each and
            # wait for another would wait for ever
            begin = self._pool.try_decode if self._open else self._pool.decode
            task = pending[0]
            if not task.ended:
                with self._endings.faults_of(task, "decode"):
                    stream = begin(
                        task.source,
                        task.job.kind,
                        task.job.fingerprint,
                        known=self._answered(task),
                        prepare=self._engine.preparation,
                        on_wait=partial(self._beat_for, task),
                    )
                    if stream is None:
                        return
                    self._open.append((task, stream))
            pending.popleft()

    def _answered(self, task: Task) -> list[str] | None:
        """The contents of which the answer to a task's question is known; None: do not look."""
        if not self._reuse:
            return None
        if task.job.fresh or task.job.id in self._not_copied:
            return []
        task.answered = self._store.answered(task.job.fingerprint.size, task.question)
        return list(task.answered)

    def _copy(self, task: Task) -> None:
        """Answer a file with the sidecars of another one that has the same bytes."""
        inbox, path = task.answered[task.digest]
        rule = self._rules.get(inbox)
        known = rule and told.read(rule.outbox, path)
        if (
            not known
            or known.content != task.digest
            or known.question != task.question
            or not known.reusable
        ):
            self._not_copied.add(task.job.id)
            self._endings.put_back([task], count=False)
            return
        with self._endings.faults_of(task, "write"):
            self._endings.done(task, known.result, reused_from=display_name(inbox, path))

    def _finish_if_ready(self, task: Task) -> None:
        if task.complete:
            self._not_copied.discard(task.job.id)
            result = task.result(self._engine.model, self._engine.device, self._clock())
            with self._endings.faults_of(task, "write"):
                self._endings.done(task, result)


def _twin(task: Task, tasks: Sequence[Task]) -> bool:
    """Whether the same bytes are asked the same in this very batch; the answer is then copied."""
    return (
        bool(task.digest)
        and not task.job.fresh
        and any(
            other is not task
            and not other.ended
            and (other.digest, other.question) == (task.digest, task.question)
            for other in tasks
        )
    )
