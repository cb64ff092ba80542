"""What is tried, and what is chosen."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import pytest
from benchkit import Timed, clips, measured, pictures
from kit import Clock

from phi4d.bench.sweep import Choice, choose, doubled, halved, sweep, sweep_threads
from phi4d.errors import DeviceError, DeviceLost
from phi4d.job import Kind

BOTH = {Kind.AUDIO: clips(), Kind.IMAGE: pictures()}


def swept(engine: Timed, clock: Clock, *sizes: int, said: list[str] | None = None):
    say = (said if said is not None else []).append
    return sweep(engine, BOTH, sizes, seconds=1.0, say=say, clock=clock)


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])]
)
def test_sizes_double_up_to_the_engines_own(most: int, sizes: list[int]):
    assert doubled(most) == sizes


def test_while_more_is_faster_more_is_tried(clock: Clock):
    said: list[str] = []

    found = swept(Timed(clock, lambda rows: 0.1, rows=12), clock, said=said)

    assert [point.value for point in found.points] == [1, 2, 4, 8, 12]
    assert found.ended == ""
    assert said[:2] == [
        "cpu, batch_size = 1: 4.00 x real time",
        "cpu, batch_size = 1: 2.00 pictures a second",
    ]
    assert len(said) == 10


def test_where_more_gains_nothing_twice_it_ends(clock: Clock):
    # given an engine that is no faster with more than four
    engine = Timed(clock, lambda rows: 0.1 * max(1, rows / 4), rows=64)

    found = swept(engine, clock)

    assert [point.value for point in found.points] == [1, 2, 4, 8, 16]
    assert found.ended == "more gained nothing"


def test_what_is_asked_for_is_tried_whole_and_in_order(clock: Clock):
    engine = Timed(clock, lambda rows: 0.1 * rows, rows=64)

    found = swept(engine, clock, 16, 1, 4, 2, 4)

    assert [point.value for point in found.points] == [1, 2, 4, 16]
    assert found.ended == ""


def test_more_than_the_engine_writes_at_a_time_is_as_many_as_it_does(clock: Clock):
    found = swept(Timed(clock, lambda rows: 0.1, rows=6), clock, 4, 8, 16)

    assert [point.value for point in found.points] == [4, 6]
    assert found.ended == "6 answers are written at a time at most"


def test_where_memory_ends_the_sweep_does(clock: Clock):
    # given an engine whose memory is too small while the third size is measured
    full = DeviceError("cpu: out of memory while answering")
    engine = Timed(clock, lambda rows: 0.1, rows=64)
    swept(engine, clock, 1, 2)
    engine.failures[2 * len(engine.calls) + 1] = full

    found = swept(engine, clock)

    assert [point.value for point in found.points] == [1, 2]
    assert found.ended == str(full)


@pytest.mark.parametrize("error", [DeviceError("too small"), DeviceLost("lost")])
def test_what_fits_not_even_once_is_an_error(clock: Clock, error: DeviceError):
    engine = Timed(clock, lambda rows: 0.1, failures={1: error})

    with pytest.raises(type(error)):
        swept(engine, clock)


class TestThreads:
    """An engine that is fastest with four threads."""

    @pytest.fixture
    def tried(self, clock: Clock) -> Callable[..., list[int]]:
        now = [0]
        engine = Timed(clock, lambda rows: 0.1 * (1 + abs(now[0] - 4)))

        def run(*threads: int) -> list[int]:
            found = sweep_threads(
                engine,
                BOTH,
                2,
                threads,
                set_threads=lambda count: now.__setitem__(0, count),
                seconds=1.0,
                say=lambda words: None,
                clock=clock,
            )
            assert engine.most == 2
            assert choose([dataclasses.replace(measured(image={1: 1.0}), threads=found)]) == (
                Choice(1, min(found, key=lambda point: abs(point.value - 4)).value)
            )
            return [point.value for point in found]

        return run

    def test_fewer_are_tried_until_it_is_slower(
        self, tried: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))

        assert tried() == [2, 4, 8, 16]

    def test_what_is_asked_for_is_tried_whole(self, tried: Callable[..., list[int]]) -> None:
        assert tried(16, 4, 1) == [1, 4, 16]

    def test_they_halve_down_to_one(self) -> None:
        assert (halved(1), halved(6), halved(8)) == ([1], [6, 3, 1], [8, 4, 2, 1])


class TestChoice:
    def test_the_smallest_that_is_as_fast_as_the_fastest(self) -> None:
        speeds = {1: 1.0, 2: 1.9, 4: 3.0, 8: 3.95, 16: 4.0, 32: 3.0}

        assert choose([measured(image=speeds)]).size == 8

    def test_both_kinds_count_the_same_whatever_their_figures(self) -> None:
        # pictures lose more by 8 in place of 4 than clips gain
        found = measured(image={4: 1.0, 8: 0.5}, audio={4: 900.0, 8: 1000.0})

        assert choose([found]).size == 4

    def test_all_devices_together_by_what_each_has_tried(self) -> None:
        first = measured("cuda:0", image={1: 1.0, 2: 2.0, 4: 2.5})
        second = measured("cuda:1", image={1: 1.0, 2: 3.0})

        assert choose([first, second]).size == 2
