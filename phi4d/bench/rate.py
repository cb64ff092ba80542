"""How fast an engine answers with so many answers at a time. Knows no configuration."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phi4d.engine import Engine
from phi4d.engine.requests import Asked, Ended
from phi4d.errors import FileError, Phi4dError
from phi4d.job import Completion, Kind, Request

LEAST = 4
"""answers that are counted at least"""
MEMORY_SECONDS = 0.1
"""how often it is looked how much memory is taken"""


@dataclass(frozen=True, slots=True)
class Rate:
    """What was answered while new requests took the places of those that ended."""

    kind: Kind
    seconds: float
    requests: int
    new_tokens: int
    sound_seconds: float
    """length of the clips; 0 for pictures"""
    memory_bytes: int
    """what phi4d had of the device's memory at most; 0: it cannot be told"""

    @property
    def requests_per_second(self) -> float:
        """Clips or pictures answered in a second."""
        return self.requests / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens of answers in a second."""
        return self.new_tokens / self.seconds

    @property
    def times_real_time(self) -> float:
        """Seconds of sound answered in a second."""
        return self.sound_seconds / self.seconds

    @property
    def speed(self) -> float:
        """How fast it goes: of clips the time that they last counts, of pictures the number."""
        return self.times_real_time if self.kind is Kind.AUDIO else self.requests_per_second


def measure(
    engine: Engine,
    requests: Sequence[Request],
    size: int,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Rate:
    """Keep so many requests under way; count from when as many have ended, so that all is warm.

    Args:
        engine: it is asked by a stream.
        requests: of one kind; begun again when all were asked.
        size: how many answers are written at a time.
        seconds: for how long is counted at least; at least `LEAST` answers, and ``size``.
        clock: monotonic seconds.

    Raises:
        DeviceError: the device's memory is too small for one of them, or it failed.
        FileError: one of them can be answered by no device.
    """
    stream = _Stream(engine, requests, size, seconds, clock)
    engine.serve(stream.more, stream.told, on_step=stream.beat)
    return stream.rate()


class _Stream:
    """What an engine asks for more requests, and tells the answers.

    It is asked between two steps: so no step is counted in part.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        size: int,
        seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._kind = requests[0].kind
        self._requests = itertools.cycle(requests)
        self._size = size
        self._seconds = seconds
        self._clock = clock
        self._under_way: set[Asked] = set()
        self._ended: list[tuple[Request, Completion]] = []
        self._began: float | None = None
        self._took: float | None = None
        self._error: Phi4dError | None = None
        self._memory = 0
        self._looked = float("-inf")

    def more(self, room: int) -> list[Asked]:
        now = self._clock()
        if self._began is None and len(self._ended) >= self._size:
            self._began = now
            self._ended.clear()
        elif self._began is not None and self._took is None:
            enough = len(self._ended) >= max(self._size, LEAST)
            if enough and now - self._began >= self._seconds:
                self._took = now - self._began
        if self._took is not None or self._error is not None:
            for asked in self._under_way:
                asked.cancelled = True
            return []
        count = min(room, self._size - len(self._under_way))
        taken = [Asked(next(self._requests)) for _ in range(count)]
        self._under_way.update(taken)
        return taken

    def told(self, asked: Asked, ended: Ended) -> None:
        self._under_way.discard(asked)
        if self._took is not None or self._error is not None:
            return
        if isinstance(ended, Completion):
            self._ended.append((asked.request, ended))
        else:
            self._error = ended if isinstance(ended, Phi4dError) else FileError(str(ended))

    def beat(self) -> None:
        now = self._clock()
        if now - self._looked >= MEMORY_SECONDS:
            self._looked = now
            memory = self._engine.memory()
            self._memory = max(self._memory, memory.own_bytes if memory else 0)

    def rate(self) -> Rate:
        if self._error is not None:
            raise self._error
        if self._took is None:
            raise RuntimeError("the engine ended the stream while there was more")
        return Rate(
            self._kind,
            self._took,
            len(self._ended),
            sum(answer.new_tokens for _, answer in self._ended),
            sum(request.seconds for request, _ in self._ended),
            self._memory,
        )
