"""An engine that is unloaded while nothing is to do, and loaded again for the next request."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from kit import Clock

from phi4d.engine import Engine
from phi4d.engine.fake import FakeEngine
from phi4d.engine.requests import Asked, Ended
from phi4d.engine.resident import Resident, words
from phi4d.errors import ConfigError, DeviceError, DeviceLost, EnvironmentFault, Stopped
from phi4d.job import Kind, Request
from phi4d.meter import Memory

REQUEST = Request(Kind.IMAGE, "Describe.", np.zeros((4, 4, 3), np.uint8))
HOLDS = Memory(3, 2, 1)


class Loads:
    """Loads engines, or fails as it is told."""

    def __init__(self) -> None:
        self.made: list[FakeEngine] = []
        self.fails: list[Exception] = []

    def __call__(self, progress: Callable[[int, int], None]) -> Engine:
        progress(0, 2)
        if self.fails:
            raise self.fails.pop(0)
        progress(2, 2)
        self.made.append(FakeEngine("phi", "cuda:0", max_crops=7, holds=HOLDS))
        return self.made[-1]


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def first() -> FakeEngine:
    return FakeEngine("phi", "cuda:0", max_crops=7, holds=HOLDS)


@pytest.fixture
def engine(first: FakeEngine, loads: Loads, clock: Clock) -> Resident:
    return Resident(first, loads, idle_seconds=60, clock=clock)


def unload(engine: Resident, clock: Clock) -> None:
    clock.advance(60)
    assert engine.rest()


def test_it_answers_like_the_engine_that_it_holds(engine: Resident, first: FakeEngine) -> None:
    assert [answer.text for answer in engine.generate([REQUEST])] == ["picture 4x4: Describe."]
    assert first.calls == [(REQUEST,)]
    assert engine.is_loaded
    assert engine.precision == first.precision
    assert (engine.state, words(engine)) == ("loaded", "")


def test_it_is_unloaded_after_so_long_without_a_request_and_not_before(
    engine: Resident, first: FakeEngine, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock.advance(50)
    engine.generate([REQUEST])
    clock.advance(59)
    assert not engine.rest()
    assert not first.closed
    clock.advance(1)
    assert engine.rest()
    assert first.closed
    assert not engine.is_loaded
    assert words(engine) == "model unloaded (idle) on cuda:0"
    assert [record.getMessage() for record in caplog.records] == [
        "cuda:0: model unloaded in 0.0 s after 60 s without work; it is loaded again for the next "
        "file"
    ]
    assert not engine.rest()  # there is nothing left to unload


def test_what_it_is_called_stays_known(engine: Resident, clock: Clock) -> None:
    unload(engine, clock)
    assert (engine.model, engine.device, engine.max_crops) == ("phi", "cuda:0", 7)
    assert engine.memory() == HOLDS


def test_the_next_request_has_it_loaded_again_with_signs_of_life(
    engine: Resident, loads: Loads, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    unload(engine, clock)
    states = []
    answers = engine.generate([REQUEST], on_step=lambda: states.append(engine.state))
    assert [answer.text for answer in answers] == ["picture 4x4: Describe."]
    assert len(loads.made) == 1
    assert states[:2] == ["loading, 0/2 shards", "loading, 2/2 shards"]
    assert [record.getMessage() for record in caplog.records][1:] == [
        "cuda:0: loading the model again, there is work",
        "cuda:0: loaded again in 0.0 s",
    ]
    engine.generate([REQUEST])
    assert len(loads.made) == 1


def test_after_it_was_loaded_again_it_is_idle_from_then_on(
    engine: Resident, loads: Loads, clock: Clock
) -> None:
    unload(engine, clock)
    engine.wake(lambda: None)
    clock.advance(59)
    assert not engine.rest()
    clock.advance(1)
    assert engine.rest()
    assert loads.made[0].closed


@pytest.mark.parametrize(
    "error",
    [
        EnvironmentFault("cuda:0: full"),
        DeviceError("cuda:0: full"),
        ConfigError("/model: no such folder"),
        FileNotFoundError("/model/a.safetensors"),
    ],
)
def test_what_keeps_it_from_loading_is_waited_for_and_said_once(
    engine: Resident,
    loads: Loads,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    unload(engine, clock)
    loads.fails += [error, error]
    for _ in range(2):
        with pytest.raises(EnvironmentFault):
            engine.wake(lambda: None)
        assert words(engine) == "model waits for memory or files on cuda:0"
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert line.endswith(f"files wait until the model can be loaded again: {error}")
    assert engine.generate([REQUEST])
    assert engine.state == "loaded"


def test_a_device_that_is_lost_is_lost(engine: Resident, loads: Loads, clock: Clock) -> None:
    unload(engine, clock)
    loads.fails.append(DeviceLost("cuda:0: gone"))
    with pytest.raises(DeviceLost):
        engine.wake(lambda: None)


def test_a_stop_ends_the_loading_and_it_stays_unloaded(
    engine: Resident, loads: Loads, clock: Clock
) -> None:
    def stop() -> None:
        raise Stopped("the daemon is stopping")

    unload(engine, clock)
    with pytest.raises(Stopped):
        engine.wake(stop)
    assert loads.made == []
    assert engine.state == "unloaded (idle)"


def test_once_closed_it_loads_nothing(
    engine: Resident, first: FakeEngine, loads: Loads, clock: Clock
) -> None:
    engine.close()
    engine.close()
    assert first.closed
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate([REQUEST])
    assert loads.made == []
    assert not engine.rest()


def test_a_stream_loads_it_again_and_counts_as_use(engine: Resident, clock: Clock) -> None:
    # given an engine that was unloaded
    unload(engine, clock)
    coming = [[Asked(REQUEST)]]
    told: list[Ended] = []

    def tell(_: Asked, ended: Ended) -> None:
        clock.advance(59)
        told.append(ended)

    # when a stream is served
    engine.serve(lambda _: coming.pop() if coming else [], tell)
    # then it was loaded, and idle only since the stream's end
    assert len(told) == 1
    clock.advance(59)
    assert not engine.rest()
    clock.advance(1)
    assert engine.rest()


def test_closed_it_serves_no_stream(engine: Resident) -> None:
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.serve(lambda _: [], lambda *_: None)
