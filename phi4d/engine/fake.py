"""An engine for tests: no model, no torch; its answers follow from the media.

It ships with the package, so that the daemon can be run whole in a test, or by somebody who
extends it, with nothing but this in the GPU's place::

    engine = FakeEngine(failures={1: DeviceError("cuda:0: out of memory")})
    engine.generate([...])  # raises
    engine.generate([...])  # answers

    engine = FakeEngine(capacity=lambda requests: len(requests) <= 2)  # what its memory holds

    engine = FakeEngine(gate=threading.Event())
    engine.entered.wait()   # somebody called generate; it stays there, beating,
    engine.gate.set()       # until this
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from phi4d.engine.requests import Asked, Ended, Source, check_requests
from phi4d.errors import DeviceError, DeviceLost
from phi4d.job import Completion, FinishReason, Kind, Request
from phi4d.meter import Memory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BEAT_S = 0.01
"""how often a call that waits at the gate beats"""


@dataclass(slots=True)
class _Answer:
    """A request of a stream under way."""

    asked: Asked
    failure: Exception | None
    step: int = 0


class FakeEngine:
    """Implements `phi4d.engine.Engine` for tests.

    Args:
        model: its name.
        device: its device's name; nothing is done with it.
        tokens: how many tokens each answer has, one a step.
        gate: a call waits for it before its first token.
        hung: do not call ``on_step`` while waiting at the gate, as a hung device would not.
        failures: what to raise, by the number of the call, the first being 1.
        capacity: whether the device's memory holds such a call; it raises `DeviceError` if not.
            Any call, if none is given.
        max_crops: the most crops that it would cut a picture into.
        rows: requests of a stream that it answers beside each other.
        holds: what its device's memory holds.
        answer: makes a request's text; `describe` if none is given.

    Attributes:
        calls: the requests of each call so far, also of those that failed.
        entered: set when a call begins.
        most: requests that it had at a time, at most.
        closed: `close` was called.
    """

    def __init__(
        self,
        model: str = "fake",
        device: str = "cpu",
        *,
        tokens: int = 3,
        gate: threading.Event | None = None,
        hung: bool = False,
        failures: Mapping[int, Exception] | None = None,
        capacity: Callable[[Sequence[Request]], bool] | None = None,
        max_crops: int = 36,
        rows: int = 8,
        holds: Memory | None = None,
        answer: Callable[[Request], str] | None = None,
    ) -> None:
        self._model = model
        self._device = device
        self._max_crops = max_crops
        self._rows = rows
        self._holds = holds
        self.tokens = tokens
        self.gate = gate
        self.hung = hung
        self.failures = dict(failures or {})
        self.capacity = capacity
        self.answer = answer or describe
        self.calls: list[tuple[Request, ...]] = []
        self.entered = threading.Event()
        self.most = 0
        self.closed = False
        self._turn = threading.Lock()

    @property
    def model(self) -> str:
        """The name it was given."""
        return self._model

    @property
    def device(self) -> str:
        """The device it was given."""
        return self._device

    @property
    def precision(self) -> str:
        """None: it computes nothing."""
        return "no numbers"

    @property
    def max_crops(self) -> int:
        """The number it was given."""
        return self._max_crops

    @property
    def rows(self) -> int:
        """The number it was given."""
        return self._rows

    @property
    def preparation(self) -> None:
        """None: its answers tell of media as they were decoded."""
        return

    def generate(
        self, requests: Sequence[Request], *, on_step: Callable[[], None] | None = None
    ) -> list[Completion]:
        """Answer each request by `answer`, after the gate and the failure meant for this call.

        Raises:
            DeviceError: its memory does not hold this call.
            ValueError: as the real engine does.
            RuntimeError: the engine is closed.
        """
        check_requests(requests)
        beat = on_step or (lambda: None)
        failure = self._called(requests)
        while self.gate is not None and not self.gate.wait(None if self.hung else BEAT_S):
            beat()
        if failure is not None:
            raise failure
        if self.capacity is not None and not self.capacity(requests):
            raise self._too_large(len(requests))
        for _ in range(self.tokens):
            beat()
        return [self._completion(request) for request in requests]

    def serve(
        self,
        source: Source,
        on_result: Callable[[Asked, Ended], None],
        *,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        """Answer requests beside each other, each with a token a step; see `Engine.serve`.

        Each request is a call of its own in `calls`, and may have a failure of its own. While the
        gate is closed the whole device waits. Where `capacity` says that it does not hold all that
        it has, the younger wait; what it does not hold alone fails.
        """
        beat = on_step or (lambda: None)
        has: list[_Answer] = []
        while True:
            taken = source(self._rows - len(has)) if len(has) < self._rows else ()
            for asked in taken:
                try:
                    check_requests([asked.request])
                except ValueError as error:
                    on_result(asked, error)
                else:
                    has.append(_Answer(asked, self._called([asked.request])))
            has = [each for each in has if not each.asked.cancelled]
            self.most = max(self.most, len(has))
            if not (taken or has):
                return
            if self.gate is not None and not self.gate.wait(None if self.hung else BEAT_S):
                beat()
                continue
            for each in self._held(has, on_result):
                each.step += 1
                if each.failure is not None:
                    has.remove(each)
                    if isinstance(each.failure, DeviceLost) or not isinstance(
                        each.failure, DeviceError
                    ):
                        raise each.failure
                    on_result(each.asked, each.failure)
                elif each.step >= self.tokens:
                    has.remove(each)
                    on_result(each.asked, self._completion(each.asked.request))
            beat()

    def _held(self, has: list[_Answer], on_result: Callable[[Asked, Ended], None]) -> list[_Answer]:
        """Those that its memory holds beside each other; one that it does not hold alone fails."""
        held = list(has)
        while held and self.capacity is not None:
            if self.capacity([each.asked.request for each in held]):
                break
            each = held.pop()
            if not held:
                has.remove(each)
                on_result(each.asked, self._too_large(1))
                held = list(has)
        return held

    def _called(self, requests: Sequence[Request]) -> Exception | None:
        """Note a call; the failure that is meant for it."""
        if self.closed:
            raise RuntimeError(f"the engine on {self._device} is closed")
        with self._turn:
            self.calls.append(tuple(requests))
            failure = self.failures.get(len(self.calls))
        self.entered.set()
        return failure

    def _too_large(self, n: int) -> DeviceError:
        return DeviceError(f"{self._device}: out of memory while answering {n} requests")

    def _completion(self, request: Request) -> Completion:
        cut = self.tokens > request.max_new_tokens
        return Completion(
            text=self.answer(request),
            prompt_tokens=len(request.prompt.split()) + 1,
            new_tokens=min(self.tokens, request.max_new_tokens),
            finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
        )

    def memory(self) -> Memory | None:
        """What was given as such."""
        return self._holds

    def close(self) -> None:
        """Refuse further calls; let one that waits at the gate go on. Idempotent."""
        self.closed = True
        if self.gate is not None:
            self.gate.set()


def describe(request: Request) -> str:
    """``picture 640x480: Describe.`` or ``audio 3.2 s: Transcribe.``."""
    if request.kind is Kind.IMAGE:
        height, width = cast("NDArray[np.uint8]", request.media).shape[:2]
        return f"picture {width}x{height}: {request.prompt}"
    return f"audio {request.seconds:.1f} s: {request.prompt}"
