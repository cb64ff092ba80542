"""An engine that gives its device's memory back while nothing is to do, and loads itself again.

It knows when it was last asked; whoever drives it says when there is no work, and is the only one
that has it load and unload. No torch here: how an engine is loaded is an argument.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from phi4d import events
from phi4d.engine import Engine
from phi4d.errors import ConfigError, DeviceError, DeviceLost, EnvironmentFault
from phi4d.job import Completion, Request
from phi4d.meter import Memory

if TYPE_CHECKING:
    from phi4d.engine.requests import Asked, Ended, Source
    from phi4d.prepared.preparation import Preparation

log = logging.getLogger(__name__)

Reload = Callable[[Callable[[int, int], None]], Engine]
"""loads the engine once more; told the files that are read, and all, now and then"""


class Resident:
    """An `phi4d.engine.Engine` that may be unloaded for a while; what it is called stays known.

    Args:
        engine: as it was loaded at the start.
        reload: loads it once more, as it was.
        idle_seconds: so long nothing must have been asked before `rest` unloads it.
        clock: monotonic seconds.

    Attributes:
        state: how it is, for people: ``loaded``, ``unloaded (idle)``, ``loading, 3/5 shards``,
            ``waits for memory or files``. Any thread may look.
    """

    def __init__(
        self,
        engine: Engine,
        reload: Reload,
        *,
        idle_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine: Engine | None = engine
        self._reload = reload
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._model, self._device = engine.model, engine.device
        self._precision = engine.precision
        self._max_crops = engine.max_crops
        self._rows = engine.rows
        self._preparation = engine.preparation
        self._memory = engine.memory
        self._used = clock()
        self._refused = ""
        self._closed = False
        self.state = "loaded"

    @property
    def model(self) -> str:
        """Name of the model, as it stands in the sidecars."""
        return self._model

    @property
    def device(self) -> str:
        """The device, such as ``cuda:0`` or ``cpu``."""
        return self._device

    @property
    def precision(self) -> str:
        """How the model is held there, or will be again."""
        return self._precision

    @property
    def max_crops(self) -> int:
        """The most crops that a picture is cut into, if a request does not say fewer."""
        return self._max_crops

    @property
    def rows(self) -> int:
        """How many answers of a stream are written at a time, at most, when it was last loaded."""
        return self._rows

    @property
    def preparation(self) -> Preparation | None:
        """How media may be prepared for it."""
        return self._preparation

    @property
    def is_loaded(self) -> bool:
        """Whether its weights are in memory."""
        return self._engine is not None

    def rest(self) -> bool:
        """Nothing is to do: unload, if that has been so for long enough. Whether it unloaded."""
        idle = self._clock() - self._used
        if self._engine is None or idle < self._idle_seconds:
            return False
        began = self._clock()
        self._engine.close()
        self._engine = None
        self.state = "unloaded (idle)"
        log.info(
            "%s: model unloaded in %.1f s after %.0f s without work; it is loaded again for the "
            "next file",
            self._device,
            self._clock() - began,
            idle,
            extra=events.MODEL_UNLOADED(device=self._device),
        )
        return True

    def wake(self, on_step: Callable[[], None]) -> Engine:
        """The engine, which is loaded again if it was unloaded.

        Args:
            on_step: called now and then while it is read; what it raises ends the loading, and the
                next call begins anew.

        Raises:
            EnvironmentFault: it cannot be had now: other programs have the memory, or its files
                are not there. Said once; the next call tries again.
            DeviceLost: the device failed.
        """
        if self._engine is not None:
            return self._engine
        began = self._clock()
        if not self._refused:
            log.info(
                "%s: loading the model again, there is work",
                self._device,
                extra=events.MODEL_LOADING(device=self._device),
            )

        def step(done: int, of: int) -> None:
            self.state = f"loading, {done}/{of} shards" if of else "loading"
            on_step()

        before = self.state
        try:
            engine = self._engine = self._loaded(step)
        except EnvironmentFault as fault:
            self.state = "waits for memory or files"
            self._say(str(fault))
            raise
        except BaseException:
            self.state = before
            raise
        self._memory = engine.memory
        self._rows = engine.rows
        self._refused = ""
        self._used = self._clock()
        self.state = "loaded"
        log.info(
            "%s: loaded again in %.1f s",
            self._device,
            self._clock() - began,
            extra=events.MODEL_LOADED(device=self._device),
        )
        return engine

    def _loaded(self, step: Callable[[int, int], None]) -> Engine:
        """What was loaded before is no fault of the configuration if it cannot be now."""
        try:
            return self._reload(step)
        except DeviceLost:
            raise
        except (ConfigError, DeviceError, OSError) as error:
            raise EnvironmentFault(str(error)) from error

    def _say(self, fault: str) -> None:
        if not self._refused:
            log.warning(
                "%s: nothing is lost, files wait until the model can be loaded again: %s",
                self._device,
                fault,
                extra=events.MEMORY_WAITED_FOR(device=self._device),
            )
        self._refused = fault

    def generate(
        self, requests: Sequence[Request], *, on_step: Callable[[], None] | None = None
    ) -> list[Completion]:
        """Answer requests, loaded again first if need be; see `phi4d.engine.Engine.generate`.

        Raises:
            EnvironmentFault: by `wake`.
            RuntimeError: it is closed.
        """
        engine = self._awake(on_step)
        try:
            return engine.generate(requests, on_step=on_step)
        finally:
            self._used = self._clock()

    def serve(
        self,
        source: Source,
        on_result: Callable[[Asked, Ended], None],
        *,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        """Answer a stream, loaded again first if need be; see `phi4d.engine.Engine.serve`.

        Raises:
            EnvironmentFault: by `wake`.
            RuntimeError: it is closed.
        """
        engine = self._awake(on_step)
        try:
            engine.serve(source, on_result, on_step=on_step)
        finally:
            self._used = self._clock()

    def _awake(self, on_step: Callable[[], None] | None) -> Engine:
        if self._closed:
            raise RuntimeError(f"the engine on {self._device} is closed")
        return self.wake(on_step or (lambda: None))

    def memory(self) -> Memory | None:
        """What the device's memory holds, unloaded or not; see `phi4d.engine.Engine.memory`."""
        return self._memory()

    def close(self) -> None:
        """Give the device's memory back for good. Idempotent."""
        self._closed = True
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            self.state = "unloaded"


def words(engine: Engine) -> str:
    """What there is to say of a model that is not loaded; nothing of one that is."""
    if not isinstance(engine, Resident) or engine.is_loaded:
        return ""
    return f"model {engine.state} on {engine.device}"
