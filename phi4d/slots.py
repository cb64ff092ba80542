"""What the slots must know of each other: who shares a device, and what a device has refused.

Pure but for waiting: it knows neither engine nor store. Any thread may call.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from phi4d.errors import DeviceLost

BEAT_SECONDS = 0.5
"""how often somebody who waits at a gate gives a sign of life"""


class Gate:
    """The way to one device: many streams at a time, or one alone. First come, first served.

    Args:
        device: its name, for the message.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._inside = 0
        self._alone = False
        self._lost = False

    @contextmanager
    def enter(self, *, alone: bool, on_wait: Callable[[], None]) -> Iterator[None]:
        """Use the device.

        Args:
            alone: let nobody else use it meanwhile.
            on_wait: called twice a second while waiting; what it raises ends that.

        Raises:
            DeviceLost: `shut` was called.
        """
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                while self._queue[0] is not ticket or (self._inside if alone else self._alone):
                    self._changed.wait(BEAT_SECONDS)
                    on_wait()
                if self._lost:
                    raise DeviceLost(f"{self._device}: it was lost in the call of another worker")
                self._inside += 1
                self._alone = alone
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits; who is inside for long should leave, and queue up again."""
        return bool(self._queue)

    def shut(self) -> None:
        """Let nobody in any more: the device is lost."""
        self._lost = True


class Slots:
    """All slots of the daemon, by their devices.

    Args:
        devices: the device of each slot; slots that share one have the same name there.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = tuple(devices)
        self._gates = {device: Gate(device) for device in devices}
        self._refused: dict[int, set[str]] = {}
        self._idle: set[int] = set()
        self._lock = threading.Lock()

    def rests(self, slot: object, *, idle: bool) -> None:
        """Tell whether a slot, which any object stands for, has nothing to do and could."""
        with self._lock:
            (self._idle.add if idle else self._idle.discard)(id(slot))

    def resting(self, slot: object) -> int:
        """How many others have nothing to do: so many files are left for them."""
        with self._lock:
            return len(self._idle - {id(slot)})

    def gate(self, device: str) -> Gate:
        """The way to a device, the same for all its slots."""
        return self._gates[device]

    def shared(self, device: str) -> bool:
        """Whether several slots use a device."""
        return self._devices.count(device) > 1

    def refuse(self, job: int, device: str) -> bool:
        """A job does not fit a device: from now on only slots on others should take it.

        Returns:
            Whether every device has refused it.
        """
        with self._lock:
            by = self._refused.setdefault(job, set())
            by.add(device)
            return by >= self._gates.keys()

    def refused(self, device: str) -> list[int]:
        """The jobs that a device has refused."""
        with self._lock:
            return [job for job, by in self._refused.items() if device in by]

    def forget(self, job: int) -> None:
        """A job has ended."""
        with self._lock:
            self._refused.pop(job, None)
