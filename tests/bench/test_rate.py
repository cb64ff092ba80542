"""How fast an engine is, by an engine that is as fast as it says."""

from __future__ import annotations

import numpy as np
import pytest
from benchkit import CLIP_S, TOKENS, Timed, clips, pictures
from kit import Clock

from phi4d.bench.rate import measure
from phi4d.errors import DeviceError, DeviceLost, FileError
from phi4d.job import Kind, Request
from phi4d.meter import Memory

STEP_S = 0.25


@pytest.mark.parametrize("size", [1, 3, 4])
def test_it_counts_what_was_answered_with_so_many_at_a_time(clock: Clock, size: int):
    engine = Timed(clock, lambda rows: STEP_S, rows=8)

    found = measure(engine, clips(), size, seconds=10.0, clock=clock)

    assert engine.most == size
    assert found.seconds >= 10.0
    assert found.requests_per_second == pytest.approx(size / (TOKENS * STEP_S))
    assert found.tokens_per_second == pytest.approx(size / STEP_S)
    assert found.times_real_time == found.speed == found.requests_per_second * CLIP_S


def test_of_pictures_the_number_is_the_speed(clock: Clock):
    engine = Timed(clock, lambda rows: STEP_S)

    found = measure(engine, pictures(), 2, seconds=10.0, clock=clock)

    assert (found.kind, found.sound_seconds) == (Kind.IMAGE, 0)
    assert found.speed == found.requests_per_second > 0


def test_what_comes_before_all_is_warm_does_not_count(clock: Clock):
    # given an engine whose first answers take long
    begun = clock()
    engine = Timed(clock, lambda rows: 100.0 if clock() == begun else STEP_S)
    # when
    found = measure(engine, clips(), 2, seconds=5.0, clock=clock)
    # then
    assert found.requests_per_second == pytest.approx(2 / (TOKENS * STEP_S))


def test_a_slow_one_is_measured_by_a_few_answers(clock: Clock):
    engine = Timed(clock, lambda rows: 60.0)

    found = measure(engine, clips(), 1, seconds=1.0, clock=clock)

    assert found.requests == 4


def test_as_many_are_counted_as_are_written_at_a_time(clock: Clock):
    # given an engine that is through with one after the other, in no time
    engine = Timed(clock, lambda rows: 1e-6, rows=32)

    found = measure(engine, clips(), 32, seconds=1e-9, clock=clock)

    assert found.requests >= 32


def test_memory_is_what_it_had_at_most(clock: Clock):
    held = iter([Memory(10, 5, 3), Memory(10, 9, 7), Memory(10, 5, 4)])

    class Growing(Timed):
        def memory(self) -> Memory | None:
            return next(held, None)

    engine = Growing(clock, lambda rows: STEP_S)

    assert measure(engine, clips(), 1, seconds=5.0, clock=clock).memory_bytes == 7


@pytest.mark.parametrize("error", [DeviceError("cpu: out of memory"), DeviceLost("cpu: lost")])
def test_a_device_that_refuses_is_told(clock: Clock, error: DeviceError):
    # given an engine to which it happens while it is being measured
    engine = Timed(clock, lambda rows: STEP_S, failures={7: error})

    with pytest.raises(type(error), match=str(error)):
        measure(engine, clips(), 2, seconds=60.0, clock=clock)

    assert len(engine.calls) < 12  # it asked no more


def test_a_request_that_is_none_is_a_fault_of_its_file(clock: Clock):
    wrong = Request(Kind.AUDIO, "Transcribe.", np.zeros((2, 2), np.float32))

    with pytest.raises(FileError, match=r"\(samples,\) float32 expected"):
        measure(Timed(clock, lambda rows: STEP_S), [wrong], 1, seconds=1.0, clock=clock)
