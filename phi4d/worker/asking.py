"""Asking the engine, in as many calls as the memory of its device wants."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from phi4d import events
from phi4d.engine import Engine
from phi4d.engine.resident import Resident
from phi4d.errors import Cancelled, DeviceError, DeviceLost, Stopped
from phi4d.job import Kind, Piece
from phi4d.ladder import Ladder, Rung, reduction, words
from phi4d.meter import Meter
from phi4d.prepared.cutting import size
from phi4d.slots import Slots
from phi4d.task import Task
from phi4d.worker.endings import Endings

log = logging.getLogger(__name__)

DEVICE_DEATHS = 3  # devices lost over one file alone, after which it is taken for the cause

MEMORY_SECONDS = 5.0  # how often the device is asked what its memory holds


class Asking:
    """What one worker asks of its engine.

    Args:
        engine: the slot's engine.
        slots: all workers' slots.
        endings: where jobs go that the device refuses, or is lost over.
        stopping: set when the worker is to take nothing new.
        beat: a sign of life, given at least once a token; may raise `Stopped`, and ends tasks that
            are wanted no more.
        batch_size: requests in one call, at most.
        max_new_tokens: tokens of one answer, at most.
        meter: counts the calls.
    """

    def __init__(
        self,
        engine: Engine,
        slots: Slots,
        endings: Endings,
        stopping: threading.Event,
        beat: Callable[[], None],
        *,
        batch_size: int,
        max_new_tokens: int,
        meter: Meter,
    ) -> None:
        self._engine = engine
        self._slots = slots
        self._gate = slots.gate(engine.device)
        self._ladder = Ladder(min(batch_size, engine.rows), shared=slots.shared(engine.device))
        self._endings = endings
        self._stopping = stopping
        self._beat = beat
        self._max_new_tokens = max_new_tokens
        self._meter = meter
        self._next_measure = 0.0

    def change(self, batch_size: int, max_new_tokens: int) -> None:
        """From the next call on; what did not fit before is not tried again."""
        self._ladder.widen(min(batch_size, self._engine.rows))
        self._max_new_tokens = max_new_tokens

    def capacity(self) -> Mapping[Kind, int]:
        """How many files of each kind are worth taking at once."""
        return self._ladder.capacity()

    def batch(self, kind: Kind) -> int:
        """How many requests of a kind one call takes now."""
        return self._ladder.rung(kind).requests

    def measure(self) -> None:
        """Tell the meter what the device's memory holds, if it is a while since it was told."""
        now = self._meter.clock()
        if now >= self._next_measure:
            self._next_measure = now + MEMORY_SECONDS
            memory = self._engine.memory()
            if memory is not None:
                self._meter.holds(self._engine.device, memory)

    def answer(self, ready: Sequence[tuple[Task, Piece]], then: Callable[[Task], None]) -> None:
        """Ask about pieces of one kind, in as many calls of the engine as its memory wants.

        A call that does not fit is repeated a rung lower, so that what was answered before is not
        lost.

        Args:
            ready: pieces with their tasks.
            then: called with each task of a call that was answered.

        Raises:
            Stopped: between two calls, because the worker is to stop.
            DeviceLost: the jobs of the call are back in the queue, or given up.
            EnvironmentFault: the model was unloaded, and cannot be loaded again now.
        """
        if isinstance(self._engine, Resident) and not all(task.ended for task, _ in ready):
            # here, and not within a call: what is wrong with loading is no fault of its files
            self._engine.wake(self._beat_unless_stopping)
        waiting = [(task, piece) for task, piece in ready if not task.ended]
        while waiting:
            kind = waiting[0][0].job.kind
            rung = self._ladder.rung(kind)
            if kind is Kind.AUDIO and rung.size is not None:
                waiting = [(t, part) for t, p in waiting for part in t.shorter(p, rung.size)]
            call = waiting[: rung.requests]
            try:
                too_much = self._ask(call, rung)
            except Cancelled:  # the other files of the call are asked about again
                pass
            else:
                if too_much:
                    self._step_down(call, rung, too_much)
                else:
                    waiting = waiting[len(call) :]
                    for task in _tasks(call):
                        then(task)
            waiting = [(task, piece) for task, piece in waiting if not task.ended]
            if waiting and self._stopping.is_set():
                raise Stopped("the daemon is stopping")

    def _beat_unless_stopping(self) -> None:
        self._beat()
        if self._stopping.is_set():
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
            Cancelled: at a step, because a job of the call was given up.
            DeviceLost: the jobs of the call are back in the queue, or given up.
        """
        fewer = rung.size if call[0][0].job.kind is Kind.IMAGE else None
        requests = [task.request(piece, self._max_new_tokens, fewer) for task, piece in call]
        alone = rung.alone or any(task.job.attempts > 1 for task, _ in call)
        tasks = _tasks(call)

        def beat() -> None:
            self._beat()
            if any(task.ended for task in tasks):
                raise Cancelled("a file of the call is wanted no more")

        with self._gate.enter(alone=alone, on_wait=beat):
            began = self._meter.clock()
            try:
                completions = self._engine.generate(requests, on_step=beat)
            except DeviceLost as error:
                self._gate.shut()
                self._blame(tasks, str(error), alone=alone)
                raise
            except DeviceError as error:
                self._meter.too_large(self._engine.device, requests[0].kind)
                return str(error)
            seconds = self._meter.clock() - began
        self._meter.answered(self._engine.device, requests, completions, seconds)
        self.measure()
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
                self._endings.give_up(
                    task,
                    "file",
                    "answer",
                    f"the device was lost {DEVICE_DEATHS} times over it alone; look for its cause "
                    f"in the kernel's log, or leave the file out. The last time: {error}",
                )
            else:
                self._endings.put_back([task], count=True, died=sole)

    def _step_down(self, call: Sequence[tuple[Task, Piece]], rung: Rung, error: str) -> None:
        """The device's memory was too small for a call: ask for less, or refuse its job."""
        kind = call[0][0].job.kind
        asked = max(size(kind, piece.media) for _, piece in call)
        if kind is Kind.IMAGE:
            asked = min(asked, rung.size or self._engine.max_crops)
        below = self._ladder.down(kind, len(call), asked)
        if below is not None:
            log.warning(
                "%s; from now on %s",
                error,
                words(kind, below),
                extra=events.DEVICE_FULL(device=self._engine.device, fault="device"),
            )
            return
        ((task, _),) = call
        if self._slots.refuse(task.job.id, self._engine.device):
            least = f" and with {reduction(kind, rung.size)}" if rung.size else ""
            self._endings.give_up(
                task,
                "device",
                "answer",
                f"needs more memory than any device has, even alone{least}: give the device more, "
                f'set quantization = "4bit", or make the file smaller ({error})',
            )
        else:
            task.log.warning("%s: waits for another device: %s", task.name, error)
            self._endings.put_back([task], count=False)


def _tasks(call: Sequence[tuple[Task, Piece]]) -> list[Task]:
    """The tasks that pieces belong to, each once."""
    return list({id(task): task for task, _ in call}.values())
