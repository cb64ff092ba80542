"""The thread: takes jobs, has them decoded and answered, and sees each to its end.

It waits for nothing but news: what decode processes have made, what the engine has answered, what
came in. What is known of a task is its alone: the thread that drives the engine sees parts.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from phi4d import events
from phi4d import log as logs
from phi4d.engine import Engine
from phi4d.errors import DeviceLost, EnvironmentFault, Phi4dError, Stopped
from phi4d.job import (
    GREEDY,
    Completion,
    Job,
    Kind,
    Result,
    Sampling,
    question,
)
from phi4d.media.pool import DecodePool, Decoding
from phi4d.meter import Meter, Phase
from phi4d.scheduler import Pauses
from phi4d.slots import Slots
from phi4d.store import Store
from phi4d.task import Rule, Task
from phi4d.worker.answering import Answering, Part, tasks_of
from phi4d.worker.asking import Asking
from phi4d.worker.bell import Bell
from phi4d.worker.claiming import Claiming
from phi4d.worker.endings import Endings, Surroundings
from phi4d.worker.originals import Originals
from phi4d.worker.reuse import Reuse

log = logging.getLogger(__name__)

CLAIM = 4  # files taken at once, where fewer would do: each time costs a sync of the store's disk
READY = 16  # parts that wait for room at the engine, at most: each may be a picture of 22 MB
IDLE_SECONDS = 1.0
LOOK_SECONDS = 0.25  # how often decode processes are looked at that say nothing
BUSY_SECONDS = 30.0  # how often a model that was unloaded is tried again if it cannot be loaded
_ANYWHERE = Surroundings()


@dataclass(frozen=True, slots=True)
class _Reading:
    """A task whose file is being decoded."""

    task: Task
    stream: Decoding


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
        batch_size: requests that the engine has beside each other, at most.
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
        self.error: BaseException | None = None
        """what ended the thread, if it was not `stop`"""
        self.engine = engine
        self._engine = engine
        self._store = store
        self._pool = pool
        self._rules = rules
        self._pauses = pauses
        self._slots = slots or Slots([engine.device])
        self._slots.rests(self, idle=True)
        self._sampling = sampling
        self._ahead = ahead
        self._meter = meter or Meter()
        self._clock = clock
        self._last_beat = clock()
        self._next_call = clock()
        """before that nothing is taken: other programs have the memory that the model wants"""
        self._next_look = clock()
        """before that nobody looks for jobs, if nobody says that there are any"""
        self._bell = Bell()
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._aborting = threading.Event()
        self._cancelling = threading.Event()
        self._tasks: dict[int, Task] = {}
        """what was taken and has not ended, by the job's id"""
        self._pending: deque[Task] = deque()
        """of these, what is to be decoded"""
        self._readings: dict[int, _Reading] = {}
        """of these, what is being decoded, by the job's id"""
        self._twins: dict[Task, Task] = {}
        """tasks with the same bytes and question as another one, whose answer they wait for"""
        self._paused: set[str] = set()
        self._paced = self._meter.clock()
        self._originals = originals or Originals(store, rules)
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
        self._claiming = Claiming(
            engine.device, store, rules, pauses, self._slots, self, self._endings
        )
        self._reuse = Reuse(store, rules, self._endings, enabled=reuse)
        self._asking = Asking(
            engine, self._slots, self._endings, max_new_tokens=max_new_tokens, meter=self._meter
        )
        self._answering = Answering(
            engine,
            self._slots.gate(engine.device),
            self._meter,
            self._bell.ring,
            batch_size=batch_size,
            clock=clock,
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
        self._answering.limit(batch_size)
        self._asking.change(max_new_tokens)
        self._endings.change(retry_seconds, max_attempts)
        self._sampling = sampling
        self._reuse.enabled = reuse
        self._ahead = ahead

    def wake(self) -> None:
        """There may be work."""
        self._news.set()
        self._bell.ring()

    def stop(self) -> None:
        """Take nothing new, and put back what the engine does not have; the rest may end."""
        self._stopping.set()
        self._bell.ring()

    def abort(self) -> None:
        """Give up what the engine has, at its next step, and put everything back."""
        self._aborting.set()
        self._answering.abort()
        self.stop()

    def at_work(self) -> list[tuple[str, float]]:
        """The files that it has, with the seconds since it took each. Any thread may call."""
        now = self._clock()
        tasks = list(self._tasks.values())
        return [(task.name, now - task.began) for task in tasks if not task.ended]

    @property
    def last_beat(self) -> float:
        """Monotonic seconds of the last sign of life, of the thread that gives fewer."""
        return min(self._last_beat, self._answering.last_beat)

    @property
    def next_try_seconds(self) -> float:
        """Until a model that could not be loaded again is tried again; 0: nothing is waited for."""
        return max(0.0, self._next_call - self._clock())

    def heed_cancels(self) -> None:
        """Jobs of the store that run were cancelled; those of this worker end at its next step."""
        self._cancelling.set()
        self._bell.ring()

    def beat(self) -> None:
        """A sign of life.

        Raises:
            Stopped: `abort` was called.
        """
        self._alive()
        if self._aborting.is_set():
            raise Stopped("the daemon is stopping")

    def _alive(self) -> None:
        self._last_beat = self._clock()

    def run(self) -> None:
        """Work until told to stop, or until the device is lost."""
        self._answering.start()
        try:
            while self._turn():
                self._wait()
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
            self._answering.abort()
        finally:
            self._slots.rests(self, idle=False)
            self._answering.close()
            for reading in self._readings.values():
                reading.stream.close()
            while self._answering.is_alive():
                self._answering.join(IDLE_SECONDS)
            self._bell.close()

    def _turn(self) -> bool:
        """Do all that there is to do now; False: it was told to stop, and nothing is under way."""
        self._alive()
        self._bell.clear()
        broken = self._answering.broken  # before its answers are collected: there are no later ones
        with suppress(Stopped):
            if self._cancelling.is_set():
                self._end_cancelled()
            self._collect()
            if broken is not None:
                self._mend(broken.error, [part for part in broken.parts if not part.task.ended])
            self._paused = set(self._pauses.paused(self._clock()))
            self._answering.hold(self._paused)
            if not self._stopping.is_set():
                self._take()
                self._open()
            self._read()
        if self._aborting.is_set():
            self._endings.put_back(list(self._tasks.values()), count=False)
        elif self._stopping.is_set():
            self._wind_up()
        self._sweep()
        if broken is not None:
            self._answering.mended()  # not before: what it has ready may be of no use any more
        self._pace()
        self._answering.expect(more=bool(self._tasks))
        self._slots.rests(
            self, idle=not (self._tasks or self._stopping.is_set() or self.next_try_seconds)
        )
        return bool(self._tasks) or not self._stopping.is_set()

    def _wait(self) -> None:
        """Until there is news."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        for reading in self._wanted():
            poll.register(reading.stream, select.POLLIN)
        seconds = LOOK_SECONDS if self._readings or self._pending else IDLE_SECONDS
        if self._cancelling.is_set():
            seconds = LOOK_SECONDS
        poll.poll(seconds * 1000)

    # ---- from the store

    def _take(self) -> None:
        """Claim what comes next, if there is anything to do and room for it."""
        n = self._room()
        now = self._clock()
        if n < 1 or now < self._next_call or (now < self._next_look and not self._news.is_set()):
            return
        self._news.clear()
        try:
            self._originals.settle_due(self.beat)
            rules = dict(self._rules)  # these jobs keep them, whatever the configuration becomes
            inboxes = [name for name in rules if name not in self._paused]
            claimed = self._claiming.claim(n, inboxes, self._tasks.values(), self._ahead)
        except EnvironmentFault as fault:
            log.warning("%s", fault)
            self._next_look = now + IDLE_SECONDS
            return
        self._next_look = now if claimed else now + IDLE_SECONDS
        for job in claimed:
            # at once: what is cancelled from here on is looked for among these
            self._tasks[job.id] = self._task(job, rules[job.inbox])
            if job.attempts == 1 and not job.waits:  # else it waited for something else as well
                self._meter.spent(Phase.QUEUE, job.kind, time.time() - job.queued)
        for job in claimed:
            task = self._tasks[job.id]
            if not self._endings.done_before(task) and not self._endings.too_often(task):
                self._pending.append(task)

    def _room(self) -> int:
        """How many files may be taken now.

        While there is one that was started before and not finished, no other is taken: if it takes
        the process down again, it takes no other file's attempt with it.
        """
        if any(task.job.attempts > 1 for task in self._tasks.values()):
            return 0
        free = self._ahead - len(self._readings) - len(self._pending)
        waiting = self._answering.ready().keys() - self._readings.keys()
        return max(free, CLAIM) if free > 0 and len(waiting) < self._most_ready() else 0

    def _task(self, job: Job, rule: Rule) -> Task:
        job_log = logs.for_job(log, job, self._engine.device)
        task = Task(job, rule, job_log, self._clock(), self._sampling)
        task.question = question(job.kind, self._engine.model, task.prompt, task.sampling)
        return task

    # ---- from the decode processes

    def _open(self) -> None:
        """Begin to decode what comes next, as many files as may be decoded at once."""
        while self._pending and len(self._readings) < self._ahead:
            task = self._pending[0]
            if not task.ended:
                with self._faults_of(task, "decode"):
                    stream = self._pool.try_decode(
                        task.source,
                        task.job.kind,
                        task.job.fingerprint,
                        known=self._reuse.contents(task),
                        prepare=self._engine.preparation,
                    )
                    if stream is None:
                        self._give_way()
                        return
                    self._readings[task.job.id] = _Reading(task, stream)
            self._pending.popleft()

    def _give_way(self) -> None:
        """No decode process is free: a file whose inbox is paused lets one go, and begins anew."""
        for reading in list(self._readings.values()):
            if reading.task.job.inbox in self._paused:
                self._endings.put_back([reading.task], count=False)
                return

    def _most_ready(self) -> int:
        return max(2, min(self._answering.capacity, READY))

    def _wanted(self) -> list[_Reading]:
        """The files of which more may be decoded now, those with the least under way first.

        No file fills all the room that there is for what is ready, as long as there are others. The
        end of a picture needs none, and frees its process.
        """
        ready = self._answering.ready()
        share = max(1, self._most_ready() // max(1, len(self._readings)))

        def has_room(task: Task) -> bool:
            stops = self._stopping.is_set() or task.job.inbox in self._paused
            return not stops and ready[task.job.id] < share

        wanted = [
            reading
            for reading in self._readings.values()
            if not reading.task.ended and (_has_all(reading.task) or has_room(reading.task))
        ]
        return sorted(wanted, key=lambda reading: ready[reading.task.job.id])

    def _read(self) -> None:
        """Take what the decode processes have made, as far as there is room for it."""
        while True:
            came = [reading for reading in self._wanted() if self._read_of(reading)]
            if not came or self._aborting.is_set():
                return

    def _read_of(self, reading: _Reading) -> bool:
        """Take one piece of a file; False: there is none now."""
        task, stream, piece = reading.task, reading.stream, None
        with self._faults_of(task, "decode"):
            piece = stream.poll()
            if stream.digest and not task.digest:
                task.digest = stream.digest
                if (twin := self._twin(task)) is not None:
                    self._twins[task] = twin
            if task in self._twins and task.job.kind is Kind.AUDIO:
                self._close(reading)  # of a picture little is left, and its process may live on
                piece = None
            elif stream.over:
                self._decoded(reading)
            elif piece is not None and task not in self._twins:
                task.begun = True
                task.outstanding += 1
                self._answering.put(self._asking.parts(task, piece))
        return piece is not None

    def _decoded(self, reading: _Reading) -> None:
        task, stream = reading.task, reading.stream
        self._close(reading)
        if task in self._twins:
            return
        task.facts = dict(stream.facts)
        task.digest = stream.digest
        task.decoded = not stream.is_known
        if stream.is_known:
            with self._faults_of(task, "write"):
                self._reuse.copy(task)
        self._finish_if_ready(task)

    def _close(self, reading: _Reading) -> None:
        del self._readings[reading.task.job.id]
        reading.stream.close()
        self._meter.spent(Phase.DECODE, reading.task.job.kind, reading.stream.seconds)

    def _twin(self, task: Task) -> Task | None:
        """The task that asks the same about the same bytes; its answer will be copied."""
        if task.job.fresh:
            return None
        for other in self._tasks.values():
            same = (other.digest, other.question) == (task.digest, task.question)
            if same and other is not task and not (other.ended or other in self._twins):
                return other
        return None

    # ---- from the engine

    def _collect(self) -> None:
        """Take what the engine has answered."""
        for part, ended in self._answering.collect():
            if part.task.ended:
                continue
            if isinstance(ended, Completion):
                part.task.answer(part.piece, ended)
                self._finish_if_ready(part.task)
                continue
            with self._faults_of(part.task, "answer"):
                if isinstance(ended, ValueError):
                    raise ended
                self._answering.put(self._asking.refused(part, str(ended)))

    def _mend(self, error: BaseException, parts: list[Part]) -> None:
        """The engine ended what it was at by an error, and these were under way."""
        everything = list(self._tasks.values())
        if isinstance(error, Stopped):
            return
        if isinstance(error, DeviceLost):
            self._asking.blame(parts, str(error))
            self._endings.put_back(everything, count=False)
            raise error
        if isinstance(error, EnvironmentFault):  # the model cannot be loaded now; that was said
            self._endings.put_back(everything, count=False)
            self._next_call = self._clock() + BUSY_SECONDS
            return
        if not isinstance(error, Exception):
            raise error
        self._unexpected(tasks_of(parts), error)

    def _unexpected(self, tasks: list[Task], error: Exception) -> None:
        names = ", ".join(task.name for task in tasks if not task.ended)
        # what is foreseen says in its words all that there is to say
        trace = None if isinstance(error, Phi4dError) else error
        log.error("%s: unexpected error: %s", names, error, exc_info=trace)
        self._endings.unexpected(tasks, error)

    # ---- to the end

    @contextmanager
    def _faults_of(self, task: Task, phase: str) -> Iterator[None]:
        """What goes wrong with a file ends, puts off or puts back its job, and no other."""
        try:
            with self._endings.faults_of(task, phase):
                yield
        except Stopped:
            raise
        except Exception as error:
            self._unexpected([task], error)

    def _finish_if_ready(self, task: Task) -> None:
        if task.complete:
            self._reuse.forget(task)
            result = task.result(self._engine.model, self._engine.device, self._clock())
            with self._faults_of(task, "write"):
                self._endings.done(task, result)

    def _end_cancelled(self) -> None:
        self._cancelling.clear()  # first: what is cancelled from here on sets it again
        if not self._tasks:
            return
        try:
            cancelled = self._store.cancelled([task.job for task in self._tasks.values()])
            for job_id, reason in cancelled.items():
                self._endings.cancelled(self._tasks[job_id], reason)
        except EnvironmentFault as fault:
            log.debug("%s", fault)  # whoever must write to it says so, too
            self._cancelling.set()  # at the next turn; others may wait for this thread meanwhile

    def _wind_up(self) -> None:
        """Put back what would not end with what the engine has now."""
        for task in self._tasks.values():
            if not (_has_all(task) and self._answering.has_all(task)):
                self._endings.put_back([task], count=False)

    def _sweep(self) -> None:
        """Let go of what has ended, by whatever way."""
        for task, twin in self._twins.items():
            if twin.ended:
                self._endings.put_back([task], count=False)
                self._news.set()
        ended = [task for task in self._tasks.values() if task.ended]
        for task in ended:
            del self._tasks[task.job.id]
            self._answering.withdraw(task)
            if reading := self._readings.get(task.job.id):
                self._close(reading)
        if ended:
            self._pending = deque(task for task in self._pending if not task.ended)
            self._twins = {task: twin for task, twin in self._twins.items() if not task.ended}

    def _pace(self) -> None:
        """Count the time since the last turn as work on the kinds at hand."""
        now = self._meter.clock()
        seconds, self._paced = now - self._paced, now
        kinds = Counter(task.job.kind for task in self._tasks.values())
        for kind, n in kinds.items():
            self._meter.worked(kind, seconds * n / kinds.total())


def _has_all(task: Task) -> bool:
    """Whether no piece will come any more, just the end."""
    return task.decoded or (task.job.kind is Kind.IMAGE and task.begun)
