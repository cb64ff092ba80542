"""Which numbers are tried, and which is the best of them. Pure but for the engine that is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from phi4d.bench.rate import Rate, measure
from phi4d.engine import Engine, devices
from phi4d.errors import DeviceError, DeviceLost
from phi4d.job import Kind, Request

WORTH = 0.03
"""a share of the speed that is not worth anything: figures differ by it from run to run"""

SPEEDS = {Kind.AUDIO: "x real time", Kind.IMAGE: "pictures a second"}


@dataclass(frozen=True, slots=True)
class Point:
    """How fast it goes with a number."""

    value: int
    """of ``batch_size``, or of ``threads``"""
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
    threads: Sequence[Point] = ()
    """with the best size, on the CPU"""


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
        sizes: what is tried, up to what the engine writes at a time; none: from 1 on twice as many
            each time, until that has gained nothing twice.
        seconds: how long each is measured at least.
        say: told what was measured.
        clock: monotonic seconds.

    Raises:
        DeviceError: not even the first fits, or the device was lost.
        FileError: a request that cannot be answered.
    """
    points: list[Point] = []
    ended = ""
    if any(size > engine.rows for size in sizes):
        ended = f"{engine.rows} answers are written at a time at most"
    for size in sorted({min(size, engine.rows) for size in sizes}) or doubled(engine.rows):
        try:
            rates = _rates(engine, requests, size, seconds, _saying(say, engine, size), clock)
        except DeviceLost:
            raise
        except DeviceError as error:
            if not points:
                raise
            ended = str(error)
            break
        points.append(Point(size, rates))
        if not sizes and _levels_off(points):
            ended = "more gained nothing"
            break
    return Sweep(engine.device, engine.model, engine.precision, tuple(points), ended)


def _rates(
    engine: Engine,
    requests: Mapping[Kind, Sequence[Request]],
    size: int,
    seconds: float,
    say: Callable[[str], None],
    clock: Callable[[], float],
) -> dict[Kind, Rate]:
    """Measure each kind; what it is is told at once: on a slow device one takes minutes."""
    rates = {}
    for kind, some in requests.items():
        rates[kind] = measure(engine, some, size, seconds=seconds, clock=clock)
        say(f"{rates[kind].speed:.2f} {SPEEDS[kind]}")
    return rates


def doubled(most: int) -> list[int]:
    """1, 2, 4 and so on, and the most."""
    return [*(1 << n for n in range(most.bit_length()) if 1 << n < most), most]


def _levels_off(points: Sequence[Point]) -> bool:
    """Whether the last two were no faster than the best before."""
    before, last = points[:-2], points[-2:]
    return bool(before) and all(
        fastest(last, kind) < (1 + WORTH) * fastest(before, kind) for kind in points[0].rates
    )


def fastest(points: Sequence[Point], kind: Kind) -> float:
    """The highest speed of a kind."""
    return max(point.rates[kind].speed for point in points)


def halved(most: int) -> list[int]:
    """So many, and half as many each time, down to 1."""
    return [most >> n for n in range(most.bit_length())]


def sweep_threads(
    engine: Engine,
    requests: Mapping[Kind, Sequence[Request]],
    size: int,
    threads: Sequence[int] = (),
    *,
    set_threads: Callable[[int], None],
    seconds: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Point]:
    """Measure an engine on the CPU with one number of threads after the other.

    Args:
        engine: it is not closed.
        requests: by kind; each is measured by itself.
        size: how many answers are written at a time.
        threads: what is tried; none: as many as there are cores for this process, then half as
            many each time, until that is slower.
        set_threads: has the engine compute with so many.
        seconds: how long each is measured at least.
        say: told what was measured.
        clock: monotonic seconds.

    Returns:
        From the fewest threads to the most.

    Raises:
        DeviceError: the memory is too small.
        FileError: a request that cannot be answered.
    """
    points: list[Point] = []
    for count in sorted(set(threads)) or halved(devices.cpu_count()):
        set_threads(count)
        telling = _saying(say, engine, size, count)
        points.append(Point(count, _rates(engine, requests, size, seconds, telling, clock)))
        if not threads and _is_slower(points):
            break
    return sorted(points, key=lambda point: point.value)


def _is_slower(points: Sequence[Point]) -> bool:
    """Whether the last is slower than the best before, with all kinds together."""
    *before, last = points
    if not before:
        return False
    shares = [rate.speed / fastest(before, kind) for kind, rate in last.rates.items()]
    return sum(shares) < (1 - WORTH) * len(shares)


@dataclass(frozen=True, slots=True)
class Choice:
    """What to put into the configuration."""

    size: int
    """of ``batch_size``"""
    threads: int | None = None
    """None: they were not measured"""


def choose(sweeps: Sequence[Sweep]) -> Choice:
    """The smallest numbers that are as fast as the fastest, for all devices together."""
    threads = [one.threads for one in sweeps if one.threads]
    return Choice(_least([one.points for one in sweeps]), _least(threads) if threads else None)


def _least(measured: Sequence[Sequence[Point]]) -> int:
    """Of what all devices have tried. Each kind on each counts as its share of its best speed."""
    common = set.intersection(*({point.value for point in points} for points in measured))
    shares = {
        value: sum(
            rate.speed / fastest(points, kind)
            for points in measured
            for point in points
            if point.value == value
            for kind, rate in point.rates.items()
        )
        for value in sorted(common)
    }
    most = max(shares.values())
    return next(value for value, share in shares.items() if share >= (1 - WORTH) * most)


def _saying(
    say: Callable[[str], None], engine: Engine, size: int, threads: int | None = None
) -> Callable[[str], None]:
    """Says what is measured before how fast it is."""
    numbers = f"batch_size = {size}" + ("" if threads is None else f", threads = {threads}")
    return lambda speed: say(f"{engine.device}, {numbers}: {speed}")
