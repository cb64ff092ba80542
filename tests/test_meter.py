"""The meter: what was counted, and how fast it went."""

from __future__ import annotations

import random
import threading

import pytest
from kit import Clock

from phi4d.job import Completion, Kind, State
from phi4d.meter import (
    BUCKETS_BATCH,
    BUCKETS_SECONDS,
    HOUR_SECONDS,
    MINUTE_SECONDS,
    DeviceRates,
    Meter,
    Phase,
    Work,
)


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(clock)


def call(meter: Meter, device: str = "cpu", *, requests: int = 2, seconds: float = 1.0) -> None:
    """Pictures that are answered beside each other, with ten tokens each."""
    meter.ran(device, {Kind.IMAGE: requests}, seconds)
    for beside in range(requests, 0, -1):
        meter.answered(
            device, Kind.IMAGE, Completion("x", 5, 10), seconds=seconds, speech_seconds=0.0,
            beside=beside,
        )  # fmt: skip


def speak(meter: Meter, device: str, speech_seconds: float, tokens: int, seconds: float) -> None:
    """A stretch of speech that is answered alone."""
    meter.ran(device, {Kind.AUDIO: 1}, seconds)
    meter.answered(
        device, Kind.AUDIO, Completion("x", 7, tokens), seconds=seconds,
        speech_seconds=speech_seconds, beside=1,
    )  # fmt: skip


class TestNumbers:
    def test_a_fresh_one_has_counted_nothing(self, meter: Meter) -> None:
        numbers = meter.numbers()
        assert not any(
            (numbers.ended, numbers.faults, numbers.work, numbers.phases, numbers.overflows)
        )
        assert (meter.rates().files_per_minute, meter.rates().devices) == ({}, {})

    def test_jobs_are_counted_by_inbox_kind_and_end(self, meter: Meter) -> None:
        meter.ended("a", Kind.IMAGE, State.DONE)
        meter.ended("a", Kind.IMAGE, State.DONE, copied=True)
        meter.ended("a", Kind.AUDIO, State.DONE, audio_seconds=2.5)
        meter.ended("b", Kind.AUDIO, State.DONE, audio_seconds=1.0)
        meter.ended("b", Kind.AUDIO, State.FAILED)
        meter.ended("b", Kind.AUDIO, State.DROPPED)

        numbers = meter.numbers()
        assert numbers.ended == {
            ("a", Kind.IMAGE, State.DONE): 2,
            ("a", Kind.AUDIO, State.DONE): 1,
            ("b", Kind.AUDIO, State.DONE): 1,
            ("b", Kind.AUDIO, State.FAILED): 1,
            ("b", Kind.AUDIO, State.DROPPED): 1,
        }
        assert numbers.copied == {("a", Kind.IMAGE): 1}
        assert numbers.audio_seconds == {"a": 2.5, "b": 1.0}

    def test_faults_pauses_restarts_comparisons_and_overflows(self, meter: Meter) -> None:
        meter.fault("a", "file", failed=True)
        meter.fault("a", "environment", failed=False)
        meter.fault("a", "environment", failed=False)
        meter.paused("a")
        meter.restarted("died")
        meter.compared("a", 0.5)
        meter.compared("a", 1.0)
        meter.overflowed()
        meter.too_large("cuda:0", Kind.AUDIO)

        numbers = meter.numbers()
        assert numbers.faults == {("a", "file", True): 1, ("a", "environment", False): 2}
        assert (numbers.pauses, numbers.restarts) == ({"a": 1}, {"died": 1})
        assert (numbers.comparisons, numbers.overflows) == ({"a": (2, 1.5)}, 1)
        assert numbers.too_large == {("cuda:0", Kind.AUDIO): 1}

    def test_work_adds_up_and_its_size_and_length_are_spread(self, meter: Meter) -> None:
        call(meter, requests=3, seconds=0.5)
        call(meter, requests=1, seconds=2.0)
        speak(meter, "cpu", 1.5, 4, 0.25)

        numbers = meter.numbers()
        assert numbers.work == {
            ("cpu", Kind.IMAGE): Work(4, 20, 40, 0.0, 2.5, 3.5),
            ("cpu", Kind.AUDIO): Work(1, 7, 4, 1.5, 0.25, 0.25),
        }
        batches = numbers.batches["cpu", Kind.IMAGE]
        assert dict(zip(batches.bounds, batches.counts, strict=False)) == {
            1: 2, 2: 3, 4: 4, 8: 4, 16: 4, 32: 4, 64: 4, 128: 4,
        }  # fmt: skip
        assert (batches.counts[-1], batches.sum) == (4, 7)
        assert numbers.phases[Phase.ANSWER, Kind.IMAGE].sum == 3.5

    def test_kinds_that_are_answered_beside_each_other_share_the_time(self, meter: Meter) -> None:
        meter.ran("cpu", {Kind.IMAGE: 3, Kind.AUDIO: 1}, 2.0)
        work = meter.numbers().work
        assert work["cpu", Kind.IMAGE] == Work(seconds=1.5, row_seconds=6.0)
        assert work["cpu", Kind.AUDIO] == Work(seconds=0.5, row_seconds=2.0)
        assert meter.rates().devices["cpu"].batch == 4

    def test_time_in_which_an_engine_had_nothing_to_answer(self, meter: Meter) -> None:
        meter.starved("cpu", 0.5)
        meter.starved("cpu", 0.25)
        assert meter.numbers().starved == {"cpu": 0.75}

    def test_a_duration_at_a_bound_counts_below_it_and_the_longest_above_all(
        self, meter: Meter
    ) -> None:
        for seconds in (-1.0, 0.001, 30.0, 31.0):
            meter.spent(Phase.WRITE, Kind.IMAGE, seconds)

        spread = meter.numbers().phases[Phase.WRITE, Kind.IMAGE]
        below = dict(zip(spread.bounds, spread.counts, strict=False))
        assert (below[0.001], below[1], below[30], spread.counts[-1]) == (2, 2, 3, 4)
        assert spread.sum == pytest.approx(61.001)  # a clock that was set back is no time spent

    def test_bounds_rise(self) -> None:
        for bounds in (*BUCKETS_SECONDS.values(), BUCKETS_BATCH):
            assert list(bounds) == sorted(set(bounds))
        assert set(BUCKETS_SECONDS) == set(Phase)

    def test_what_was_handed_out_does_not_change(self, meter: Meter) -> None:
        call(meter)
        before = meter.numbers()
        call(meter)
        assert before.work["cpu", Kind.IMAGE].requests == 2
        assert before.batches["cpu", Kind.IMAGE].counts[-1] == 2


class TestRates:
    def test_files_of_the_last_minute_and_no_others(self, meter: Meter, clock: Clock) -> None:
        clock.advance(MINUTE_SECONDS)
        for _ in range(30):
            meter.ended("a", Kind.IMAGE, State.DONE)
        meter.ended("a", Kind.IMAGE, State.FAILED)
        meter.ended("b", Kind.IMAGE, State.DROPPED)  # nobody did any work for it
        assert meter.rates().files_per_minute == {"a": 31.0}
        assert meter.rates(clock.now + 59).total_per_minute == 31.0
        clock.advance(MINUTE_SECONDS + 2)
        assert meter.rates().files_per_minute == {}
        assert meter.rates().total_per_minute == 0

    def test_soon_after_the_start_the_rest_of_the_minute_does_not_count(
        self, meter: Meter, clock: Clock
    ) -> None:
        clock.advance(20)
        meter.ended("a", Kind.IMAGE, State.DONE)
        assert meter.rates().files_per_minute == {"a": 3.0}

    def test_a_device_is_measured_while_it_answers(self, meter: Meter, clock: Clock) -> None:
        clock.advance(100)
        call(meter, "cuda:0", requests=4, seconds=3.0)
        call(meter, "cuda:0", requests=2, seconds=3.0)
        speak(meter, "cuda:1", 30.0, 20, 0.5)

        assert meter.rates().devices == {
            "cuda:0": DeviceRates(batch=3.0, tokens_per_second=10.0, busy=0.1),
            "cuda:1": DeviceRates(1.0, 40.0, 60.0, 0.5 / 60),
        }
        assert meter.rates().times_real_time == pytest.approx(0.5)  # 30 s of speech in a minute

    def test_how_long_the_rest_takes_follows_from_each_kinds_pace(
        self, meter: Meter, clock: Clock
    ) -> None:
        assert meter.rates().eta({Kind.IMAGE: 0, Kind.AUDIO: 0}, 1) == 0
        assert meter.rates().eta({Kind.IMAGE: 1}, 1) is None
        for _ in range(4):
            meter.ended("a", Kind.IMAGE, State.DONE)
        meter.worked(Kind.IMAGE, 2.0)
        assert meter.rates().seconds_per_file == {Kind.IMAGE: 0.5}
        assert meter.rates().eta({Kind.IMAGE: 10, Kind.AUDIO: 1}, 1) is None
        meter.worked(Kind.AUDIO, 60.0)
        assert meter.rates().eta({Kind.AUDIO: 1}, 1) is None  # none has ended yet
        meter.ended("a", Kind.AUDIO, State.DONE)
        assert meter.rates().eta({Kind.IMAGE: 10, Kind.AUDIO: 2}, 2) == 62.5
        assert meter.rates().eta({Kind.IMAGE: 10}, 0) is None

    def test_the_pace_is_the_last_hours_or_else_that_of_before(
        self, meter: Meter, clock: Clock
    ) -> None:
        meter.ended("a", Kind.IMAGE, State.DONE)
        meter.worked(Kind.IMAGE, 9.0)
        clock.advance(HOUR_SECONDS + 120)
        assert meter.rates().seconds_per_file == {Kind.IMAGE: 9.0}
        meter.ended("a", Kind.IMAGE, State.DONE)
        meter.worked(Kind.IMAGE, 1.0)
        assert meter.rates().seconds_per_file == {Kind.IMAGE: 1.0}

    def test_it_stays_small_however_long_it_runs(self, meter: Meter, clock: Clock) -> None:
        for _ in range(5000):
            clock.advance(random.uniform(0, 5))
            meter.ended("a", Kind.IMAGE, State.DONE)
            meter.worked(Kind.IMAGE, 1.0)
            call(meter)
        for window in (meter._recent_files, meter._recent_work, meter._recent_paces):
            assert len(window._sums) <= 61


def test_nothing_is_lost_when_many_threads_count() -> None:
    meter = Meter()

    def count() -> None:
        for _ in range(500):
            meter.ended("a", Kind.IMAGE, State.DONE)
            meter.spent(Phase.WRITE, Kind.IMAGE, 0.01)
            call(meter)
            meter.rates()
            meter.numbers()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = meter.numbers()
    assert numbers.ended["a", Kind.IMAGE, State.DONE] == 2000
    assert numbers.phases[Phase.WRITE, Kind.IMAGE].counts[-1] == 2000
    assert numbers.work["cpu", Kind.IMAGE].new_tokens == 40_000
