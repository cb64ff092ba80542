"""The thread that drives the engine: it has it answer what is ready, and keeps what became of it.

It knows no files. Whoever does puts parts in and collects answers; that never waits for the device,
and the device never for that, as long as something is ready. What is given to the engine next is
chosen when it has room, and not before: of the file that it has least of, the oldest part.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import cast

from phi4d.engine import Engine
from phi4d.engine.requests import Asked, Ended
from phi4d.engine.resident import Resident
from phi4d.errors import DeviceLost, Stopped
from phi4d.job import Completion, Piece, Request
from phi4d.meter import Meter
from phi4d.slots import Gate
from phi4d.task import Task

BEAT_SECONDS = 0.5
"""how often a thread that waits gives a sign of life"""
MEMORY_SECONDS = 5.0
"""how often the device is asked what its memory holds"""


@dataclass(eq=False, slots=True)
class Part:
    """A piece of a task on its way through the engine."""

    task: Task
    piece: Piece
    request: Request
    alone: bool = False
    """no other file, and no other slot, has the device meanwhile"""
    asked: Asked = field(init=False)
    """what the engine knows of it, once it was put"""
    number: int = 0
    """in order of arrival"""
    began: float = 0.0
    """when the engine was given it"""


def tasks_of(parts: Sequence[Part]) -> list[Task]:
    """The tasks that parts belong to, each once."""
    return list(dict.fromkeys(part.task for part in parts))


@dataclass(frozen=True, slots=True)
class Broken:
    """A stream that ended by an error."""

    error: BaseException
    parts: Sequence[Part]
    """those that the engine had"""


class Answering(threading.Thread):
    """Drives one engine, from `start` to `close` or `abort`.

    Args:
        engine: the slot's engine.
        gate: the way to its device.
        meter: counts the answers.
        tell: called, from this thread, when there is something to `collect`, and when something
            that was ready was given to the engine.
        batch_size: requests that are answered beside each other, at most.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engine: Engine,
        gate: Gate,
        meter: Meter,
        tell: Callable[[], None],
        *,
        batch_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=f"engine {engine.device}")
        self.last_beat = clock()
        """monotonic seconds of the last sign of life"""
        self._engine = engine
        self._gate = gate
        self._meter = meter
        self._tell = tell
        self._batch_size = batch_size
        self._clock = clock
        self._changed = threading.Condition()
        self._closing = False
        self._aborting = False
        self._put = 0
        self._ready: list[Part] = []
        self._inside: dict[int, Part] = {}
        self._answers: deque[tuple[Part, Ended]] = deque()
        self._broken: Broken | None = None
        self._held: Collection[str] = ()
        self._expecting = False
        self._alone: Task | None = None
        """whose parts alone the stream under way is of"""
        self._accounted = meter.clock()
        self._next_measure = 0.0

    # ---- for whoever knows the files

    @property
    def capacity(self) -> int:
        """How many requests are answered beside each other."""
        return max(1, min(self._batch_size, self._engine.rows))

    def limit(self, batch_size: int) -> None:
        """From now on give the engine so many requests beside each other, at most."""
        self._batch_size = batch_size

    def put(self, parts: Sequence[Part]) -> None:
        """Have parts answered."""
        with self._changed:
            for part in parts:
                self._put += 1
                part.number = self._put
                part.asked = Asked(part.request, part.number)
            self._ready += parts
            self._changed.notify_all()

    def withdraw(self, task: Task) -> None:
        """A task's answers are wanted no more; what the engine has of it ends within a step."""
        with self._changed:
            self._ready = [part for part in self._ready if part.task is not task]
            for part in list(self._inside.values()):
                if part.task is task:
                    part.asked.cancelled = True
                    del self._inside[part.number]

    def hold(self, inboxes: Collection[str]) -> None:
        """Give the engine nothing more of these inboxes, until told otherwise."""
        with self._changed:
            if set(inboxes) != set(self._held):
                self._held = set(inboxes)
                self._changed.notify_all()

    def expect(self, *, more: bool) -> None:
        """Whether files are at hand, of which parts will come: then the engine does not rest."""
        self._expecting = more

    def ready(self) -> Counter[int]:
        """How many parts of each job, by its id, wait for room."""
        with self._changed:
            return Counter(part.task.job.id for part in self._ready)

    def has_all(self, task: Task) -> bool:
        """Whether the engine has everything that a task still wants an answer to."""
        with self._changed:
            inside = sum(part.task is task for part in self._inside.values())
            told = sum(part.task is task for part, _ in self._answers)
        return inside + told == task.outstanding

    def collect(self) -> list[tuple[Part, Ended]]:
        """What has been answered since, or why there is no answer."""
        with self._changed:
            answers, self._answers = self._answers, deque()
        return list(answers)

    @property
    def broken(self) -> Broken | None:
        """The stream that ended by an error; the next begins when that is `mended`."""
        return self._broken

    def mended(self) -> None:
        """What became of the parts of a stream that ended by an error has been seen to."""
        with self._changed:
            self._broken = None
            self._changed.notify_all()

    def close(self) -> None:
        """End when nothing is under way any more. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def abort(self) -> None:
        """End at the next step."""
        with self._changed:
            self._aborting = self._closing = True
            self._changed.notify_all()

    # ---- the thread

    def run(self) -> None:
        """Answer until told to end, or until the device is lost."""
        try:
            while self._has_work():
                if not self._stream():
                    return
        except BaseException as error:  # a bug: whoever collects raises it
            self._break_off(error)

    def _has_work(self) -> bool:
        """Wait until something is ready; False: there is nothing more to come."""
        while True:
            self._beat()
            self._account()
            self._measure()
            with self._changed:
                if self._closing:
                    return False
                if self._broken is None and self._oldest() is not None:
                    return True
                idle = not self._expecting
                if not (idle and isinstance(self._engine, Resident)):
                    self._changed.wait(BEAT_SECONDS)
                    continue
            self._engine.rest()  # may take long: not under the lock
            with self._changed:
                if not self._closing and self._oldest() is None:
                    self._changed.wait(BEAT_SECONDS)

    def _stream(self) -> bool:
        """One stream, until nothing is ready; False: the thread is to end."""
        try:
            if isinstance(self._engine, Resident):
                # here, and not within the stream: what is wrong with loading is no file's fault
                self._engine.wake(self._step_unless_closing)
            with self._changed:
                first = self._oldest()
                self._alone = first.task if first is not None and first.alone else None
            with self._gate.enter(alone=self._alone is not None, on_wait=self._step):
                self._engine.serve(self._take, self._told, on_step=self._step)
        except Exception as error:
            if isinstance(error, DeviceLost):
                self._gate.shut()
            self._break_off(error)
            return not isinstance(error, DeviceLost | Stopped)
        finally:
            self._account()
        return True

    def _break_off(self, error: BaseException) -> None:
        with self._changed:
            inside, self._inside = self._inside, {}
            self._broken = Broken(error, list(inside.values()))
        self._tell()

    def _take(self, room: int) -> list[Asked]:
        """What the engine is to begin now: `phi4d.engine.requests.Source`."""
        self._account()
        taken: list[Part] = []
        with self._changed:
            if self._closing or self._gate.is_wanted:
                return []
            room = min(room, self._batch_size - len(self._inside))
            while len(taken) < room and (part := self._next()) is not None:
                part.began = self._meter.clock()
                self._ready.remove(part)
                self._inside[part.number] = part
                taken.append(part)
        if taken:
            self._tell()
        return [part.asked for part in taken]

    def _oldest(self) -> Part | None:
        return min(self._free(), key=lambda part: part.number, default=None)

    def _free(self) -> list[Part]:
        return [part for part in self._ready if part.task.job.inbox not in self._held]

    def _next(self) -> Part | None:
        """The part to begin now: of the stream's kind, and older than all that want another."""
        fits, others = [], math.inf
        for part in self._free():
            if (part.task if part.alone else None) is self._alone:
                fits.append(part)
            else:
                others = min(others, part.number)
        has = Counter(part.task.job.id for part in self._inside.values())
        return min(
            (part for part in fits if part.number < others),
            key=lambda part: (has[part.task.job.id], part.number),
            default=None,
        )

    def _told(self, asked: Asked, ended: Ended) -> None:
        """What became of a request."""
        self._account()
        with self._changed:
            if asked.cancelled:
                return
            beside = len(self._inside)
            part = self._inside.pop(cast("int", asked.key))
            self._answers.append((part, ended))
        if isinstance(ended, Completion):
            kind = part.request.kind
            self._meter.answered(
                self._engine.device,
                kind,
                ended,
                seconds=self._meter.clock() - part.began,
                speech_seconds=part.request.seconds,
                beside=beside,
            )
        self._tell()

    def _beat(self) -> None:
        self.last_beat = self._clock()

    def _step(self) -> None:
        """A sign of life, at least once a token.

        Raises:
            Stopped: what is under way is to be given up.
        """
        self._beat()
        self._measure()
        if self._aborting:
            raise Stopped("the daemon is stopping")

    def _step_unless_closing(self) -> None:
        self._step()
        if self._closing:
            raise Stopped("the daemon is stopping")

    def _account(self) -> None:
        """Count the time since the last time as what it was spent on."""
        now = self._meter.clock()
        seconds, self._accounted = now - self._accounted, now
        with self._changed:
            rows = Counter(part.request.kind for part in self._inside.values())
        if rows:
            self._meter.ran(self._engine.device, rows, seconds)
        elif self._expecting:
            self._meter.starved(self._engine.device, seconds)

    def _measure(self) -> None:
        """Tell the meter what the device's memory holds, if it is a while since it was told."""
        now = self._meter.clock()
        if now >= self._next_measure:
            self._next_measure = now + MEMORY_SECONDS
            memory = self._engine.memory()
            if memory is not None:
                self._meter.holds(self._engine.device, memory)
