"""What meter, store and threads say at one moment. Nothing here waits for any of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from phi4d.engine import Engine
from phi4d.errors import EnvironmentFault
from phi4d.inbox import Health
from phi4d.job import Kind, State
from phi4d.meter import Meter, Numbers, Rates
from phi4d.scheduler import Pauses
from phi4d.store import Reader


class Beating(Protocol):
    """A thread that shows life: a worker."""

    @property
    def last_beat(self) -> float:
        """Monotonic seconds of its last sign of life."""


class Watching(Protocol):
    """The thread that watches the inboxes."""

    last_beat: float

    def health(self) -> Mapping[str, Health]:
        """How each inbox is watched."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything there is to say."""

    numbers: Numbers
    rates: Rates
    inboxes: Mapping[str, tuple[Kind, ...]]
    """those that are configured, with the kinds that they take"""
    slots: Sequence[tuple[str, str, float]]
    """device, model, and seconds since the last sign of life; none before all is loaded"""
    health: Mapping[str, Health]
    watcher_age: float | None
    """seconds; None: nobody watches yet"""
    readable: bool
    """the store could be read; if not, the next four are empty"""
    tally: Mapping[tuple[str, Kind, State], int]
    cancelled: Mapping[tuple[str, Kind], int]
    """of those that failed, the ones that somebody cancelled"""
    ages: Mapping[str, float]
    """how long the longest waiting job of each inbox has waited, in seconds"""
    paused_by_operator: frozenset[str]
    paused_by_surroundings: frozenset[str]

    @property
    def eta(self) -> float | None:
        """Seconds until what waits in inboxes that are not paused is done; None: unknown."""
        if not self.readable:
            return None
        waiting: dict[Kind, int] = {}
        held_up = self.paused_by_operator | self.paused_by_surroundings
        for (inbox, kind, state), n in self.tally.items():
            if state is State.RUNNING or (
                state is State.QUEUED and inbox in self.inboxes and inbox not in held_up
            ):
                waiting[kind] = waiting.get(kind, 0) + n
        return self.rates.eta(waiting, len(self.slots))


@dataclass(frozen=True, slots=True)
class Live:
    """Where to look. Called from the threads that serve clients.

    The store is read through a connection that is opened for it: who reads waits for no writer.
    """

    store_path: Path
    meter: Meter
    pauses: Pauses
    inboxes: Callable[[], Mapping[str, tuple[Kind, ...]]]
    """those that are configured, with the kinds that they take"""
    engines: Callable[[], Sequence[Engine]]
    """one for each worker, in the same order"""
    workers: Callable[[], Sequence[Beating]]
    watcher: Callable[[], Watching | None]
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    started: float = field(default_factory=time.time)
    """seconds since the epoch"""

    def look(self) -> Snapshot:
        """What there is to say now."""
        now = self.clock()
        watcher = self.watcher()
        pairs = zip(list(self.engines()), list(self.workers()), strict=False)
        readable, tally, cancelled, oldest, paused = self._read()
        epoch = self.wall_clock()
        return Snapshot(
            numbers=self.meter.numbers(),
            rates=self.meter.rates(),
            inboxes=self.inboxes(),
            slots=[
                (engine.device, engine.model, max(0.0, now - worker.last_beat))
                for engine, worker in pairs
            ],
            health={} if watcher is None else watcher.health(),
            watcher_age=None if watcher is None else max(0.0, now - watcher.last_beat),
            readable=readable,
            tally=tally,
            cancelled=cancelled,
            ages={inbox: max(0.0, epoch - since) for inbox, since in oldest.items()},
            paused_by_operator=paused,
            paused_by_surroundings=frozenset(self.pauses.reasons()),
        )

    def _read(
        self,
    ) -> tuple[
        bool,
        dict[tuple[str, Kind, State], int],
        dict[tuple[str, Kind], int],
        dict[str, float],
        frozenset[str],
    ]:
        try:
            with contextlib.closing(Reader(self.store_path)) as reader:
                paused = frozenset(reader.paused())
                return True, reader.tally(), reader.cancelled(), reader.oldest(), paused
        except (EnvironmentFault, FileNotFoundError):
            return False, {}, {}, {}, frozenset()
