"""The engine room: the resident model on one device, behind one protocol.

The worker knows this protocol and nothing else of the room: the same daemon runs on the Phi-4
engine, on the fake one in tests, or on a remote actor. Only files of this package may import
torch or transformers, and this one imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from phi4d.job import Completion, Request
from phi4d.meter import Memory

if TYPE_CHECKING:
    from phi4d.engine.requests import Asked, Ended, Source
    from phi4d.prepared.preparation import Preparation


class Engine(Protocol):
    """The resident model on one device."""

    @property
    def model(self) -> str:
        """Name of the model, as it stands in the sidecars."""

    @property
    def device(self) -> str:
        """The device, such as ``cuda:0`` or ``cpu``."""

    @property
    def precision(self) -> str:
        """How the model is held there, for people: its number format, what else was done to it."""

    @property
    def max_crops(self) -> int:
        """The most crops that a picture is cut into, if a request does not say fewer."""

    @property
    def rows(self) -> int:
        """How many answers of a stream are written at a time, at most."""

    @property
    def preparation(self) -> Preparation | None:
        """How media may be prepared before it is asked; None: it takes them as they were decoded.

        Known also while the model is not loaded. What was not prepared is taken, too.
        """

    def generate(
        self, requests: Sequence[Request], *, on_step: Callable[[], None] | None = None
    ) -> list[Completion]:
        """Answer requests of one kind as a batch, each as if it were alone.

        Args:
            requests: at least one, all of the same kind.
            on_step: called at least once a generated token; what it raises ends the call.

        Returns:
            One completion a request, in the same order.

        Raises:
            DeviceError: out of memory; fewer or smaller requests may do.
            DeviceLost: the device failed; the engine is of no use any more.
            ValueError: requests of different kinds.
        """

    def serve(
        self,
        source: Source,
        on_result: Callable[[Asked, Ended], None],
        *,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        """Answer a stream of requests, each as if it were alone; new ones join those under way.

        Args:
            source: asked before each step for which there is room for more. Once it has none and
                all are answered, the stream ends.
            on_result: told of each request, as soon as it has ended, its answer, or why it has
                none: `DeviceError`, the device's memory is too small for it; `ValueError`, it is
                none that could be answered. The others do not suffer from it.
            on_step: called at least once a generated token; what it, or another of the three,
                raises ends the stream.

        Raises:
            DeviceLost: the device failed; the engine is of no use any more.
        """

    def memory(self) -> Memory | None:
        """What the device's memory holds; None: it cannot be told.

        Asked now and then between two calls, by the thread that makes them, and takes no time to
        speak of: nobody else can wait for a device that hangs.
        """

    def close(self) -> None:
        """Give the device's memory back. Idempotent."""
