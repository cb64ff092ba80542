"""What happens, in numbers since the start: the daemon's parts count here, others read.

Pure but for its lock, which nobody holds for long. It knows neither store nor clock of its own,
and what it keeps is bounded by the inboxes, devices and kinds that there are. The numbers are lost
with the process; what must last is in the store.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from operator import add
from typing import Generic, TypeVar

from phi4d.job import Completion, Kind, State

MINUTE_SECONDS = 60.0
"""what the rates are taken over"""
HOUR_SECONDS = 3600.0
"""what is taken to tell how long a file takes"""


K = TypeVar("K")
V = TypeVar("V")


class Phase(StrEnum):
    """Where a job's time goes."""

    QUEUE = "queue"
    """from coming in, or from being wanted again, to being taken; not for later tries"""
    DECODE = "decode"
    """what the worker waited for the pieces of a file"""
    ANSWER = "answer"
    """from when the engine was given a request to its answer"""
    WRITE = "write"
    """until the sidecars of a file are durable"""


BUCKETS_SECONDS: Mapping[Phase, Sequence[float]] = {
    Phase.QUEUE: (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400, 604_800),
    Phase.DECODE: (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300),
    Phase.ANSWER: (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300),
    Phase.WRITE: (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
}
"""upper bounds by which the durations of each phase are counted"""
BUCKETS_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)
"""upper bounds by which requests that are answered beside each other are counted"""


@dataclass(frozen=True, slots=True)
class Spread:
    """How a number was distributed."""

    bounds: Sequence[float]
    """upper bounds, rising; above the last there is no bound"""
    counts: Sequence[int]
    """how many were at most so large, for each bound and, last, for none: how many there were"""
    sum: float


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine did."""

    requests: int = 0
    """that it answered"""
    prompt_tokens: int = 0
    new_tokens: int = 0
    speech_seconds: float = 0.0
    """length of the stretches of recordings that it was asked about"""
    seconds: float = 0.0
    """how long it was at it; kinds that are answered beside each other share the time"""
    row_seconds: float = 0.0
    """the same, once for each request that was answered beside the others"""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.new_tokens + other.new_tokens,
            self.speech_seconds + other.speech_seconds,
            self.seconds + other.seconds,
            self.row_seconds + other.row_seconds,
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a device: a GPU's, or the main memory, as far as this process may have it."""

    size_bytes: int
    used_bytes: int
    """by all programs"""
    own_bytes: int
    """by phi4d: what it holds of a GPU for its tensors, or has in main memory"""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Everything that was counted, at one moment. Nothing but memory ever falls."""

    ended: Mapping[tuple[str, Kind, State], int]
    """jobs by inbox, kind, and how they ended: done, failed, dropped"""
    copied: Mapping[tuple[str, Kind], int]
    """of those that are done, the ones whose answer was known; by inbox and kind"""
    faults: Mapping[tuple[str, str, bool], int]
    """by inbox, whose fault it was, and whether the job failed for it; else it waits"""
    pauses: Mapping[str, int]
    """how often an inbox had to wait for its surroundings"""
    hooks: Mapping[tuple[str, bool], int]
    """tries of hooks by inbox, and whether they failed"""
    audio_seconds: Mapping[str, float]
    """length of the recordings that were transcribed, by inbox"""
    work: Mapping[tuple[str, Kind], Work]
    """what the engines did, by device and kind"""
    starved: Mapping[str, float]
    """seconds in which a device's engine had nothing to answer though files were at hand"""
    too_large: Mapping[tuple[str, Kind], int]
    """requests that did not fit the device's memory, by device and kind"""
    phases: Mapping[tuple[Phase, Kind], Spread]
    """seconds by phase and kind"""
    batches: Mapping[tuple[str, Kind], Spread]
    """requests that were answered beside each other, by device and kind"""
    restarts: Mapping[str, int]
    """decode processes that were replaced, by the reason: see `Meter.restarted`"""
    comparisons: Mapping[str, tuple[int, float]]
    """how often an inbox was compared with the store, and how long that took altogether"""
    overflows: int
    """how often the kernel dropped events"""
    memory: Mapping[str, Memory]
    """of each device that could tell, when it was last looked at"""


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """How a device did in the last minute. All its slots together."""

    batch: float = 0.0
    """requests that were answered beside each other, on the average; 0: there were none"""
    tokens_per_second: float = 0.0
    """tokens generated in a second of answering"""
    times_real_time: float = 0.0
    """seconds of speech transcribed in a second of answering; 0: there was none"""
    busy: float = 0.0
    """seconds of answering in a second; slots that share the device add up"""


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast it goes."""

    files_per_minute: Mapping[str, float]
    """files that ended, done or failed, in the last minute; by inbox, those without left out"""
    devices: Mapping[str, DeviceRates]
    """by device, those that answered nothing left out"""
    seconds_per_file: Mapping[Kind, float] = field(default_factory=dict)
    """of a slot's time, over the last hour, or longer ago if nothing ended since"""

    @property
    def total_per_minute(self) -> float:
        """Files of all inboxes that ended in the last minute."""
        return sum(self.files_per_minute.values())

    @property
    def times_real_time(self) -> float:
        """Seconds of speech that all devices together transcribed in a second."""
        return sum(each.times_real_time * each.busy for each in self.devices.values())

    def eta(self, waiting: Mapping[Kind, int], slots: int) -> float | None:
        """Seconds until everything that waits is done, at the pace of the last hour.

        Args:
            waiting: jobs queued or running, by kind.
            slots: how many work on them.

        Returns:
            None if it cannot be told: no file of a kind that waits has been done yet.
        """
        if slots < 1 or any(n and kind not in self.seconds_per_file for kind, n in waiting.items()):
            return None
        return sum(n * self.seconds_per_file[kind] for kind, n in waiting.items() if n) / slots


@dataclass(frozen=True, slots=True)
class _Pace:
    """Files of a kind that ended, and what they took of the slots' time."""

    files: int = 0
    seconds: float = 0.0

    def __add__(self, other: _Pace) -> _Pace:
        return _Pace(self.files + other.files, self.seconds + other.seconds)


class _Histogram:
    """Counts numbers by bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def spread(self) -> Spread:
        return Spread(self.bounds, tuple(accumulate(self.counts)), self.sum)


class _Window(Generic[K, V]):
    """Sums by key over the recent past, in steps, so that it stays small however much happens."""

    def __init__(self, seconds: float, steps: int, add: Callable[[V, V], V]) -> None:
        self._seconds = seconds
        self._step = seconds / steps
        self._add = add
        self._sums: deque[tuple[int, dict[K, V]]] = deque()

    def add(self, now: float, key: K, value: V) -> None:
        step = int(now / self._step)
        if not self._sums or self._sums[-1][0] < step:
            self._forget(now)
            self._sums.append((step, {}))
        sums = self._sums[-1][1]
        sums[key] = self._add(sums[key], value) if key in sums else value

    def sums(self, now: float) -> dict[K, V]:
        self._forget(now)
        found: dict[K, V] = {}
        for _, sums in self._sums:
            for key, value in sums.items():
                found[key] = self._add(found[key], value) if key in found else value
        return found

    def _forget(self, now: float) -> None:
        while self._sums and (self._sums[0][0] + 1) * self._step <= now - self._seconds:
            self._sums.popleft()


class Meter:
    """Counts for the whole daemon. Any thread may call; no call takes long.

    Args:
        clock: monotonic seconds; who measures a duration asks it as well.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.began = clock()
        """when it began to count, by its clock"""
        self._lock = threading.Lock()
        self._ended: Counter[tuple[str, Kind, State]] = Counter()
        self._copied: Counter[tuple[str, Kind]] = Counter()
        self._faults: Counter[tuple[str, str, bool]] = Counter()
        self._pauses: Counter[str] = Counter()
        self._hooks: Counter[tuple[str, bool]] = Counter()
        self._audio_seconds: dict[str, float] = {}
        self._work: dict[tuple[str, Kind], Work] = {}
        self._starved: dict[str, float] = {}
        self._too_large: Counter[tuple[str, Kind]] = Counter()
        self._phases: dict[tuple[Phase, Kind], _Histogram] = {}
        self._batches: dict[tuple[str, Kind], _Histogram] = {}
        self._restarts: Counter[str] = Counter()
        self._comparisons: dict[str, tuple[int, float]] = {}
        self._overflows = 0
        self._memory: dict[str, Memory] = {}
        self._paces: dict[Kind, _Pace] = {}
        self._recent_files: _Window[str, int] = _Window(MINUTE_SECONDS, 60, add)
        self._recent_work: _Window[str, Work] = _Window(MINUTE_SECONDS, 60, add)
        self._recent_paces: _Window[Kind, _Pace] = _Window(HOUR_SECONDS, 60, add)

    # ---- for those to whom it happens

    def ended(
        self,
        inbox: str,
        kind: Kind,
        state: State,
        *,
        copied: bool = False,
        audio_seconds: float = 0.0,
    ) -> None:
        """A job has ended.

        Args:
            inbox: its inbox.
            kind: its kind.
            state: how: done, failed or dropped.
            copied: whether its answer was known already.
            audio_seconds: length of the recording, if it was transcribed.
        """
        now = self.clock()
        with self._lock:
            self._ended[inbox, kind, state] += 1
            if copied:
                self._copied[inbox, kind] += 1
            if audio_seconds:
                self._audio_seconds[inbox] = self._audio_seconds.get(inbox, 0.0) + audio_seconds
            if state is not State.DROPPED:
                self._recent_files.add(now, inbox, 1)
                self._pace(now, kind, _Pace(files=1))

    def fault(self, inbox: str, fault: str, *, failed: bool) -> None:
        """Something was wrong with a job: it failed for it, or waits for its next try."""
        with self._lock:
            self._faults[inbox, fault, failed] += 1

    def paused(self, inbox: str) -> None:
        """An inbox has to wait for its surroundings."""
        with self._lock:
            self._pauses[inbox] += 1

    def hook(self, inbox: str, *, failed: bool) -> None:
        """A hook was tried."""
        with self._lock:
            self._hooks[inbox, failed] += 1

    def spent(self, phase: Phase, kind: Kind, seconds: float) -> None:
        """A job, or in the phase `ANSWER` a request for it, spent time."""
        with self._lock:
            self._spent(phase, kind, seconds)

    def answered(
        self,
        device: str,
        kind: Kind,
        completion: Completion,
        *,
        seconds: float,
        speech_seconds: float,
        beside: int,
    ) -> None:
        """An engine answered a request.

        Args:
            device: the engine's.
            kind: the request's.
            completion: its answer.
            seconds: since the engine was given it.
            speech_seconds: length of the stretch of a recording that it was about.
            beside: how many requests the engine had, this one included, when it was answered.
        """
        work = Work(1, completion.prompt_tokens, completion.new_tokens, speech_seconds)
        with self._lock:
            self._did(device, kind, work)
            self._spent(Phase.ANSWER, kind, seconds)
            _histogram(self._batches, (device, kind), BUCKETS_BATCH).observe(beside)

    def ran(self, device: str, rows: Mapping[Kind, int], seconds: float) -> None:
        """An engine was at work for so long on so many requests of each kind, one at least."""
        total = sum(rows.values())
        with self._lock:
            for kind, n in rows.items():
                work = Work(seconds=seconds * n / total, row_seconds=seconds * n)
                self._did(device, kind, work)

    def starved(self, device: str, seconds: float) -> None:
        """An engine had nothing to answer for so long, though files were at hand."""
        with self._lock:
            self._starved[device] = self._starved.get(device, 0.0) + seconds

    def too_large(self, device: str, kind: Kind) -> None:
        """A request did not fit a device's memory."""
        with self._lock:
            self._too_large[device, kind] += 1

    def worked(self, kind: Kind, seconds: float) -> None:
        """A slot was at jobs of a kind for so long; kinds that it has at once share the time."""
        now = self.clock()
        with self._lock:
            self._pace(now, kind, _Pace(seconds=seconds))

    def restarted(self, reason: str) -> None:
        """A decode process was replaced.

        Args:
            reason: "died" (or hung, or answered nonsense), "broken off" (its file was wanted no
                more), "worn out" (it had decoded its share of files) or "outdated" (its limits are
                others now).
        """
        with self._lock:
            self._restarts[reason] += 1

    def compared(self, inbox: str, seconds: float) -> None:
        """An inbox was compared with the store."""
        with self._lock:
            n, before = self._comparisons.get(inbox, (0, 0.0))
            self._comparisons[inbox] = n + 1, before + seconds

    def overflowed(self) -> None:
        """The kernel dropped events of the inboxes."""
        with self._lock:
            self._overflows += 1

    def holds(self, device: str, memory: Memory) -> None:
        """So much is in a device's memory."""
        with self._lock:
            self._memory[device] = memory

    def _did(self, device: str, kind: Kind, work: Work) -> None:
        self._work[device, kind] = self._work.get((device, kind), Work()) + work
        self._recent_work.add(self.clock(), device, work)

    def _spent(self, phase: Phase, kind: Kind, seconds: float) -> None:
        # a wall clock that was set back is no time spent
        _histogram(self._phases, (phase, kind), BUCKETS_SECONDS[phase]).observe(max(0.0, seconds))

    def _pace(self, now: float, kind: Kind, more: _Pace) -> None:
        self._paces[kind] = self._paces.get(kind, _Pace()) + more
        self._recent_paces.add(now, kind, more)

    # ---- for those who want to know

    def rates(self, now: float | None = None) -> Rates:
        """How fast it goes; since the start, if that is less than a minute ago.

        Args:
            now: by the meter's clock; None: this moment.
        """
        if now is None:
            now = self.clock()
        with self._lock:
            files = self._recent_files.sums(now)
            work = self._recent_work.sums(now)
            paces = self._paces | {
                kind: pace
                for kind, pace in self._recent_paces.sums(now).items()
                if pace.files and pace.seconds
            }
        span = min(max(now - self.began, 1.0), MINUTE_SECONDS)
        return Rates(
            {inbox: n * 60 / span for inbox, n in files.items()},
            {device: _device_rates(sums, span) for device, sums in work.items()},
            {
                kind: pace.seconds / pace.files
                for kind, pace in paces.items()
                if pace.files and pace.seconds
            },
        )

    def memory(self, device: str) -> Memory | None:
        """What a device's memory held when it was last looked at; None: it could not tell yet."""
        with self._lock:
            return self._memory.get(device)

    def numbers(self) -> Numbers:
        """Everything that was counted so far."""
        with self._lock:
            return Numbers(
                ended=dict(self._ended),
                copied=dict(self._copied),
                faults=dict(self._faults),
                pauses=dict(self._pauses),
                hooks=dict(self._hooks),
                audio_seconds=dict(self._audio_seconds),
                work=dict(self._work),
                starved=dict(self._starved),
                too_large=dict(self._too_large),
                phases={key: found.spread() for key, found in self._phases.items()},
                batches={key: found.spread() for key, found in self._batches.items()},
                restarts=dict(self._restarts),
                comparisons=dict(self._comparisons),
                overflows=self._overflows,
                memory=dict(self._memory),
            )


def _histogram(found: dict[K, _Histogram], key: K, bounds: Sequence[float]) -> _Histogram:
    if key not in found:
        found[key] = _Histogram(bounds)
    return found[key]


def _device_rates(sums: Work, span: float) -> DeviceRates:
    seconds = max(sums.seconds, 1e-9)  # a fake engine may take no time at all
    return DeviceRates(
        batch=sums.row_seconds / seconds,
        tokens_per_second=sums.new_tokens / seconds,
        times_real_time=sums.speech_seconds / seconds,
        busy=sums.seconds / span,
    )
