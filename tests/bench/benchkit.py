"""An engine with a clock of its own: what it answers takes as long as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from kit import Clock

from phi4d.bench.rate import Rate
from phi4d.bench.sweep import Point, Sweep
from phi4d.engine.fake import FakeEngine
from phi4d.engine.requests import Asked, Ended, Source
from phi4d.job import SAMPLE_RATE_HZ, Kind, Request

TOKENS = 5
CLIP_S = 2.0


class Timed(FakeEngine):
    """Every answer has five tokens; a step takes what `cost` says of so many answers at a time.

    Attributes:
        most: the most answers that were written at a time.
    """

    def __init__(self, clock: Clock, cost: Callable[[int], float], **options: Any) -> None:
        super().__init__(tokens=TOKENS, capacity=self._fits, **options)
        self._clock = clock
        self._cost = cost
        self._now = 0
        self.most = 0

    def _fits(self, requests: Sequence[Request]) -> bool:
        self._now = len(requests)
        self.most = max(self.most, self._now)
        return True

    def serve(
        self,
        source: Source,
        on_result: Callable[[Asked, Ended], None],
        *,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        def step() -> None:
            self._clock.advance(self._cost(self._now))
            if on_step:
                on_step()

        super().serve(source, on_result, on_step=step)


def clips(count: int = 3) -> list[Request]:
    samples = np.zeros(int(CLIP_S * SAMPLE_RATE_HZ), np.float32)
    return [Request(Kind.AUDIO, "Transcribe.", samples, 64)] * count


def pictures(count: int = 3) -> list[Request]:
    return [Request(Kind.IMAGE, "Describe.", np.zeros((4, 4, 3), np.uint8), 64)] * count


def rate(kind: Kind, speed: float) -> Rate:
    """So many pictures, or clips of a second, a second."""
    sound_s = 10 * speed if kind is Kind.AUDIO else 0.0
    return Rate(kind, 10.0, round(10 * speed), round(100 * speed), sound_s, 2_000_000_000)


def points(**speeds: dict[int, float]) -> list[Point]:
    """With these speeds by kind and value: ``image={1: 2.0, 2: 3.0}``."""
    values = next(iter(speeds.values()))
    return [
        Point(value, {Kind(kind): rate(Kind(kind), some[value]) for kind, some in speeds.items()})
        for value in values
    ]


def measured(device: str = "cpu", ended: str = "", **speeds: dict[int, float]) -> Sweep:
    """A sweep with these speeds by kind and ``batch_size``."""
    return Sweep(device, "model <1>", "float32", points(**speeds), ended)
