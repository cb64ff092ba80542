"""The worker: a thread that takes jobs from claim to finish on one slot.

It knows the engine's protocol, the store, the decode pool and the outputs, and decides by whose
fault something is what becomes of a job. It never looks into an inbox and never opens a file.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from phi4d import log as logs
from phi4d import outputs
from phi4d.engine import Engine
from phi4d.errors import (
    DecoderDied,
    DeviceError,
    DeviceLost,
    EnvironmentFault,
    FileChanged,
    FileError,
    Phi4dError,
    Stopped,
)
from phi4d.job import GREEDY, Fingerprint, Job, Kind, Piece, Result, Sampling, printable
from phi4d.ladder import Ladder, Rung, reduction, size, words
from phi4d.media.pool import DecodePool, Decoding
from phi4d.outputs import atomic
from phi4d.scheduler import Pauses, pick
from phi4d.slots import Slots
from phi4d.store import Store
from phi4d.task import Rule, Task

log = logging.getLogger(__name__)

LOOK_AHEAD = 256  # waiting jobs that the scheduler sees at once
DECODER_TRIES = 2  # a file that kills its decode process so often is at fault
DEVICE_DEATHS = 3  # devices lost over one file alone, after which it is taken for the cause
IDLE_SECONDS = 1.0


class Worker(threading.Thread):
    """Drives one engine.

    Args:
        engine: the slot's engine; the worker does not close it.
        store: where jobs come from and go to.
        pool: the decode processes, shared by all workers.
        rules: the inboxes by name.
        pauses: the inboxes that wait, shared by all workers.
        slots: all workers' slots, shared by them; None if this is the only one.
        batch_size: requests in one call of the engine, at most.
        max_new_tokens: tokens of one answer, at most.
        sampling: how the tokens of an answer are chosen.
        max_attempts: starts without an end after which a job is given up.
        ahead: how many files are being decoded at once for this worker.
        on_result: called after a job has ended, with its result if it was done.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        pool: DecodePool,
        rules: Mapping[str, Rule],
        pauses: Pauses,
        slots: Slots | None = None,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 512,
        sampling: Sampling = GREEDY,
        max_attempts: int = 5,
        ahead: int = 1,
        on_result: Callable[[Job, Result | None, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=f"worker {engine.device}")
        self.last_beat = clock()
        """monotonic seconds of the last sign of life"""
        self.error: BaseException | None = None
        """what ended the thread, if it was not `stop`"""
        self._engine = engine
        self._store = store
        self._pool = pool
        self._rules = rules
        self._pauses = pauses
        self._slots = slots or Slots([engine.device])
        self._gate = self._slots.gate(engine.device)
        self._ladder = Ladder(batch_size, shared=self._slots.shared(engine.device))
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self._max_attempts = max_attempts
        self._ahead = ahead
        self._on_result = on_result
        self._clock = clock
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._aborting = threading.Event()

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

    def beat(self) -> None:
        """A sign of life, given at least once a token.

        Raises:
            Stopped: `abort` was called.
        """
        self.last_beat = self._clock()
        if self._aborting.is_set():
            raise Stopped("the daemon is stopping")

    def run(self) -> None:
        """Work until told to stop, or until the device is lost."""
        try:
            while not self._stopping.is_set():
                self.last_beat = self._clock()
                self._wake.clear()
                if tasks := self._take():
                    self._work(tasks)
                else:
                    self._wake.wait(IDLE_SECONDS)
        except BaseException as error:
            self.error = error
            if isinstance(error, Phi4dError):
                log.error("%s: %s", self._engine.device, error)  # noqa: TRY400 -- foreseen
            else:
                log.exception("%s: the worker ended unexpectedly", self._engine.device)

    def _take(self) -> list[Task]:
        """Claim what comes next; empty when there is nothing to do."""
        try:
            paused = self._pauses.paused(self._clock())
            inboxes = [name for name in self._rules if name not in paused]
            refused = self._slots.refused(self._engine.device)
            waiting = self._store.waiting(LOOK_AHEAD, inboxes, refused)
            chosen = pick(waiting, self._ladder.capacity())
            for inbox in {job.inbox for job in chosen}:
                if self._pauses.on_trial(inbox) and not self._can_write(inbox):
                    chosen = [job for job in chosen if job.inbox != inbox]
            if not chosen:
                return []
            claimed = self._store.claim([job.id for job in chosen], self._engine.device)
        except EnvironmentFault as fault:
            log.warning("%s", fault)
            self._stopping.wait(IDLE_SECONDS)
            return []
        tasks = [self._task(job) for job in claimed]
        for task in tasks:
            if task.job.attempts > self._max_attempts:
                n = task.job.attempts - 1
                self._give_up(
                    task, "file", f"was started {n} times and never finished; look for its cause"
                )
        return [task for task in tasks if not task.ended]

    def _task(self, job: Job) -> Task:
        job_log = logs.for_job(log, job, self._engine.device)
        return Task(job, self._rules[job.inbox], job_log, self._clock(), self._sampling)

    def _can_write(self, inbox: str) -> bool:
        """Whether an inbox whose pause is over is worth the model's time again."""
        try:
            atomic.probe(self._rules[inbox].outbox)
        except EnvironmentFault as fault:
            self._pause(inbox, fault)
            return False
        return True

    def _pause(self, inbox: str, fault: EnvironmentFault) -> None:
        if self._pauses.pause(inbox, str(fault), self._clock()):
            log.warning('inbox "%s" pauses, nothing is lost: %s', inbox, fault)

    def _work(self, tasks: list[Task]) -> None:
        ready: list[tuple[Task, Piece]] = []
        pieces = self._decode(tasks)
        try:
            for task, piece in pieces:
                # here, and not after an answer: asking for this piece finished the job before it
                if self._stopping.is_set():
                    raise Stopped("the daemon is stopping")
                ready.append((task, piece))
                if len(ready) >= self._ladder.rung(task.job.kind).requests:
                    self._answer(ready)
                    ready = []
            if ready:
                self._answer(ready)
        except Stopped:
            self._put_back(tasks, count=False)
        except DeviceLost:
            self._put_back(tasks, count=False)
            raise
        except Exception:
            # a fault of ours: each of these jobs is tried alone, a bounded number of times
            log.exception("%s: unexpected error", ", ".join(t.name for t in tasks if not t.ended))
            self._put_back(tasks, count=True)
        finally:
            pieces.close()

    def _decode(self, tasks: Sequence[Task]) -> Generator[tuple[Task, Piece]]:
        """The pieces of all tasks in order; some files are decoded ahead of the one given out."""
        pending = deque(tasks)
        open_: deque[tuple[Task, Decoding]] = deque()
        try:
            while pending or open_:
                while pending and len(open_) < self._ahead:
                    # only who holds no process may wait for one: two that hold one each and
                    # wait for another would wait for ever
                    begin = self._pool.try_decode if open_ else self._pool.decode
                    task = pending[0]
                    with self._faults_of(task):
                        job = task.job
                        stream = begin(task.source, job.kind, job.fingerprint, on_wait=self.beat)
                        if stream is None:
                            break
                        open_.append((task, stream))
                    pending.popleft()
                if not open_:
                    continue
                task, stream = open_[0]
                with self._faults_of(task):
                    for piece in stream:
                        task.outstanding += 1
                        yield task, piece
                        if task.ended:  # the device refused it
                            break
                    task.facts = dict(stream.facts)
                    task.decoded = True
                stream.close()
                open_.popleft()
                self._finish_if_ready(task)
        finally:
            for _, stream in open_:
                stream.close()

    @contextmanager
    def _faults_of(self, task: Task) -> Iterator[None]:
        """What goes wrong in decoding a file ends or puts back its job, and no other."""
        try:
            yield
        except FileChanged as error:
            self._persist(self._store.drop, task.job, str(error))
            self._ended(task, None, f"set aside: {error}", logging.INFO)
        except DecoderDied as error:
            if task.job.crashes + 1 < DECODER_TRIES:
                task.log.warning("%s: %s; it is tried once more", task.name, error)
                self._persist(self._store.requeue, task.job, count=True, crashed=True)
                task.ended = True
            else:
                self._give_up(task, error.fault, f"{error}, {DECODER_TRIES} times")
        except FileError as error:
            self._give_up(task, error.fault, str(error))
        except EnvironmentFault as fault:
            self._pause(task.job.inbox, fault)
            self._put_back([task], count=False)

    def _answer(self, ready: Sequence[tuple[Task, Piece]]) -> None:
        """Ask about pieces of one kind, in as many calls of the engine as its memory wants.

        Jobs that have all their answers are finished. A call that does not fit is repeated a rung
        lower, so that what was answered before is not lost.
        """
        waiting = [(task, piece) for task, piece in ready if not task.ended]
        while waiting:
            kind = waiting[0][0].job.kind
            rung = self._ladder.rung(kind)
            if kind is Kind.AUDIO and rung.size is not None:
                waiting = [(t, part) for t, p in waiting for part in t.shorter(p, rung.size)]
            call = waiting[: rung.requests]
            too_much = self._ask(call, rung)
            if too_much:
                self._step_down(call, rung, too_much)
            else:
                waiting = waiting[len(call) :]
                for task in _tasks(call):
                    self._finish_if_ready(task)
            waiting = [(task, piece) for task, piece in waiting if not task.ended]
            if waiting and self._stopping.is_set():
                raise Stopped("the daemon is stopping")

    def _ask(self, call: Sequence[tuple[Task, Piece]], rung: Rung) -> str:
        """One call of the engine, its answers taken.

        A job that was started before and not finished has the device for itself: if it is lost,
        this is why, and no other slot's job.

        Returns:
            Nothing, or in words that the device's memory was too small. Not the error itself: it
            holds the frames of the call, and they its tensors, which the next call needs the room
            of.

        Raises:
            DeviceLost: the jobs of the call are back in the queue, or given up.
        """
        fewer = rung.size if call[0][0].job.kind is Kind.IMAGE else None
        requests = [task.request(piece, self._max_new_tokens, fewer) for task, piece in call]
        alone = rung.alone or any(task.job.attempts > 1 for task, _ in call)
        with self._gate.enter(alone=alone, on_wait=self.beat):
            try:
                completions = self._engine.generate(requests, on_step=self.beat)
            except DeviceLost as error:
                self._gate.shut()
                self._blame(_tasks(call), str(error), alone=alone)
                raise
            except DeviceError as error:
                return str(error)
        for (task, piece), completion in zip(call, completions, strict=True):
            task.answer(piece, completion)
        return ""

    def _blame(self, tasks: Sequence[Task], error: str, *, alone: bool) -> None:
        """The device was lost over these: their attempts count, and one that was alone is marked.

        Several come back one by one; then it shows which it was.
        """
        sole = len(tasks) == 1 and (alone or not self._slots.shared(self._engine.device))
        for task in tasks:
            if sole and task.job.deaths + 1 >= DEVICE_DEATHS:
                self._give_up(
                    task,
                    "file",
                    f"the device was lost {DEVICE_DEATHS} times over it alone; look for its cause "
                    f"in the kernel's log, or leave the file out. The last time: {error}",
                )
            else:
                task.ended = True
                self._persist(self._store.requeue, task.job, count=True, died=sole)

    def _step_down(self, call: Sequence[tuple[Task, Piece]], rung: Rung, error: str) -> None:
        """The device's memory was too small for a call: ask for less, or refuse its job."""
        kind = call[0][0].job.kind
        asked = max(size(kind, piece.media) for _, piece in call)
        if kind is Kind.IMAGE:
            asked = min(asked, rung.size or self._engine.max_crops)
        below = self._ladder.down(kind, len(call), asked)
        if below is not None:
            log.warning("%s; from now on %s", error, words(kind, below))
            return
        ((task, _),) = call
        if self._slots.refuse(task.job.id, self._engine.device):
            least = f" and with {reduction(kind, rung.size)}" if rung.size else ""
            self._give_up(
                task,
                "device",
                f"needs more memory than any device has, even alone{least}: give the device more, "
                f'set quantization = "4bit", or make the file smaller ({error})',
            )
        else:
            task.log.warning("%s: waits for another device: %s", task.name, error)
            self._put_back([task], count=False)

    def _finish_if_ready(self, task: Task) -> None:
        if not task.complete:
            return
        result = task.result(self._engine.model, self._engine.device, self._clock())
        with self._faults_of(task):
            if not _is_still(task.source, task.job.fingerprint):
                raise FileChanged("it changed while it was worked on; the new version follows")
            paths = outputs.write(task.job, result, task.rule.outbox)
            self._persist(self._store.finish, task.job)
            if self._pauses.resume(task.job.inbox):
                log.warning('inbox "%s": works again', task.job.inbox)
            self._ended(
                task,
                result,
                f"done: {result.kind}, {result.seconds:.1f} s, {result.new_tokens} tokens, "
                f"{result.device} → {printable(paths[0])}",
                logging.INFO,
            )

    def _put_back(self, tasks: Iterable[Task], *, count: bool) -> None:
        for task in tasks:
            if not task.ended:
                task.ended = True
                self._persist(self._store.requeue, task.job, count=count)

    def _give_up(self, task: Task, fault: str, reason: str) -> None:
        self._persist(self._store.fail, task.job, fault, reason)
        self._ended(task, None, f"failed: {reason}", logging.ERROR, fault)

    def _ended(
        self, task: Task, result: Result | None, words: str, level: int, fault: str = ""
    ) -> None:
        task.ended = True
        self._slots.forget(task.job.id)
        task.log.log(
            level, "%s: %s", task.name, words, extra={"PHI4D_FAULT": fault} if fault else {}
        )
        if self._on_result:
            self._on_result(task.job, result, words)

    def _persist(self, change: Callable[..., bool], *args: Any, **options: bool) -> None:
        """Make a change in the store, waiting for its disk if need be.

        Given up only at a stop: the job is then found running, and done again, at the next start.
        """
        said = False
        while True:
            try:
                change(*args, **options)
            except EnvironmentFault as fault:
                if not said:
                    log.warning("%s", fault)
                    said = True
                self.last_beat = self._clock()
                if self._stopping.wait(IDLE_SECONDS):
                    return
            else:
                return


def _tasks(call: Sequence[tuple[Task, Piece]]) -> list[Task]:
    """The tasks that pieces belong to, each once."""
    return list({id(task): task for task, _ in call}.values())


def _is_still(path: bytes, fingerprint: Fingerprint) -> bool:
    """Whether the file at a path is still the version that was worked on."""
    try:
        return Fingerprint.of(os.stat(path, follow_symlinks=False)) == fingerprint
    except OSError:
        return False
