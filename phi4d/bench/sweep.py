"""Which numbers are tried, and which is the best of them. Pure but for the engine that is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from phi4d.bench.rate import Rate, measure
from phi4d.engine import Engine
from phi4d.errors import DeviceError, DeviceLost
from phi4d.job import Kind, Request

WORTH = 0.03
"""a share of the speed that is not worth anything: figures differ by it from run to run"""


@dataclass(frozen=True, slots=True)
class Point:
    """How fast it goes with these numbers."""

    size: int
    """of ``batch_size``"""
    rates: Mapping[Kind, Rate]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What was measured on one device."""

    device: str
    model: str
    precision: str
    points: Sequence[Point]
    ended: str
    """why no larger size was tried; empty: all that were wanted were"""

    def best(self, kind: Kind) -> float:
        """The highest speed of a kind."""
        return _fastest(self.points, kind)


def sweep(
    engine: Engine,
    requests: Mapping[Kind, Sequence[Request]],
    sizes: Sequence[int] = (),
    *,
    seconds: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Sweep:
    """Measure an engine with one number of answers at a time after the other.

    Args:
        engine: it is not closed.
        requests: by kind; each is measured by itself.
        sizes: what is tried; none: from 1 on twice as many each time, up to what the engine writes
            at a time, until that has gained nothing twice.
        seconds: how long each is measured at least.
        say: told what was measured.
        clock: monotonic seconds.

    Raises:
        DeviceError: not even the first fits, or the device was lost.
        FileError: a request that cannot be answered.
    """
    points: list[Point] = []
    ended = ""
    for size in sorted(set(sizes)) or doubled(engine.rows):
        try:
            rates = {
                kind: measure(engine, some, size, seconds=seconds, clock=clock)
                for kind, some in requests.items()
            }
        except DeviceLost:
            raise
        except DeviceError as error:
            if not points:
                raise
            ended = str(error)
            break
        points.append(Point(size, rates))
        say(f"{engine.device}: batch_size = {size}: {words(rates)}")
        if not sizes and _levels_off(points):
            ended = "more gained nothing"
            break
    return Sweep(engine.device, engine.model, engine.precision, tuple(points), ended)


def doubled(most: int) -> list[int]:
    """1, 2, 4 and so on, and the most."""
    return [*(1 << n for n in range(most.bit_length()) if 1 << n < most), most]


def _levels_off(points: Sequence[Point]) -> bool:
    """Whether the last two were no faster than the best before."""
    before, last = points[:-2], points[-2:]
    return bool(before) and all(
        _fastest(last, kind) < (1 + WORTH) * _fastest(before, kind) for kind in points[0].rates
    )


def _fastest(points: Sequence[Point], kind: Kind) -> float:
    return max(point.rates[kind].speed for point in points)


@dataclass(frozen=True, slots=True)
class Choice:
    """What to put into the configuration."""

    size: int
    """of ``batch_size``"""


def choose(sweeps: Sequence[Sweep]) -> Choice:
    """The smallest numbers that are as fast as the fastest, for all devices together.

    Each kind on each device counts the same, as its share of its own best speed.
    """
    sizes = sorted(set.intersection(*({point.size for point in one.points} for one in sweeps)))
    shares = {
        size: sum(
            rate.speed / one.best(kind)
            for one in sweeps
            for point in one.points
            if point.size == size
            for kind, rate in point.rates.items()
        )
        for size in sizes
    }
    most = max(shares.values())
    return Choice(next(size for size in sizes if shares[size] >= (1 - WORTH) * most))


def words(rates: Mapping[Kind, Rate]) -> str:
    """The speeds in a few words."""
    said = {Kind.AUDIO: "x real time", Kind.IMAGE: "pictures a second"}
    return ", ".join(f"{rate.speed:.2f} {said[kind]}" for kind, rate in rates.items())
