"""The main thread waits for signals, and is not misled by what else interrupts it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from phi4d import signals


@pytest.fixture(autouse=True)
def blocked() -> Iterator[None]:
    before = signals.block()
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_signal_that_came_is_told():
    signal.raise_signal(signal.SIGHUP)
    assert signals.wait(60) == signal.SIGHUP


def test_none_came():
    assert signals.wait(0.01) is None


def test_an_interruption_that_lasts_beyond_the_time_is_no_signal():
    # given another signal in the midst of it, whose handling takes longer
    seconds = 0.2
    end = time.monotonic() + 2 * seconds

    def hold_up(*_: object) -> None:
        while time.monotonic() < end:
            time.sleep(0.01)

    before = signal.signal(signal.SIGALRM, hold_up)
    signal.setitimer(signal.ITIMER_REAL, seconds / 2)
    try:
        # when
        got = signals.wait(seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    # then
    assert got is None
