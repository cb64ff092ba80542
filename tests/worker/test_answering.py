"""What the thread that drives the engine gives it, and when."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from phi4d.engine.fake import FakeEngine
from phi4d.errors import DeviceError
from phi4d.job import Completion, Fingerprint, Job, Kind, Piece
from phi4d.meter import Meter
from phi4d.slots import Gate
from phi4d.task import Rule, Task
from phi4d.worker.answering import Answering, Part

WAIT_SECONDS = 30.0


def task(number: int, inbox: str = "in") -> Task:
    job = Job(number, inbox, b"%d.png" % number, Kind.IMAGE, Fingerprint(number, 1, 1))
    rule = Rule(b"/in", b"/out", {Kind.IMAGE: "Describe."})
    return Task(job, rule, logging.LoggerAdapter(logging.getLogger("test"), {}), 0.0)


def parts(of: Task, count: int, *, alone: bool = False) -> list[Part]:
    """Parts of a task, told apart by their width: the task's number, then their own."""
    made = []
    for n in range(count):
        piece = Piece(np.zeros((1, of.job.id * 10 + n, 3), np.uint8))
        of.outstanding += 1
        made.append(Part(of, piece, of.request(piece, 9), alone))
    return made


class Bench:
    """An engine whose gate is closed, and the thread that drives it."""

    def __init__(self) -> None:
        self.gate = Gate("cpu")
        self.engine = FakeEngine(gate=threading.Event(), tokens=2)
        self.meter = Meter()
        self.told = threading.Semaphore(0)
        self.answering = Answering(
            self.engine, self.gate, self.meter, self.told.release, batch_size=2
        )

    def until(self, true: Callable[[], bool]) -> None:
        latest = time.monotonic() + WAIT_SECONDS
        while not true():
            assert time.monotonic() < latest
            self.told.acquire(timeout=0.01)

    def open(self) -> None:
        assert self.engine.gate
        self.engine.gate.set()

    @property
    def asked(self) -> list[int]:
        return [request.media.shape[1] for (request,) in self.engine.calls]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.answering.abort()
    if bench.answering.is_alive():
        bench.answering.join()


def test_the_file_that_the_engine_has_least_of_comes_next(bench: Bench) -> None:
    # given a file of four parts before one of a single part
    long, short = task(1), task(2)
    bench.answering.put(parts(long, 4))
    bench.answering.put(parts(short, 1))
    bench.answering.start()
    bench.until(lambda: len(bench.asked) == 2)
    # then it is begun with the first of each, whatever came first
    assert bench.asked == [10, 20]
    bench.open()
    bench.until(lambda: len(bench.asked) == 5)
    assert sorted(bench.asked[2:]) == [11, 12, 13]
    assert bench.engine.most == 2


def test_who_wants_to_be_alone_has_a_stream_of_its_own_in_its_turn(bench: Bench) -> None:
    # given parts that want to be alone between others
    first, alone, last = task(1), task(2), task(3)
    bench.answering.put(parts(first, 1))
    bench.answering.put(parts(alone, 2, alone=True))
    bench.answering.put(parts(last, 1))
    bench.answering.start()
    bench.until(lambda: bench.asked == [10])
    assert bench.engine.most == 1  # there is room, but not beside it
    bench.open()
    bench.until(lambda: len(bench.asked) == 4)
    assert bench.asked == [10, 20, 21, 30]


def test_two_that_want_to_be_alone_are_not_alone_together(bench: Bench) -> None:
    bench.open()
    for number in (1, 2):
        bench.answering.put(parts(task(number), 1, alone=True))
    bench.answering.start()
    bench.until(lambda: len(bench.asked) == 2)
    assert bench.engine.most == 1


def test_what_is_withdrawn_is_not_asked_and_not_told(bench: Bench) -> None:
    kept, gone = task(1), task(2)
    bench.answering.put([*parts(gone, 3), *parts(kept, 1)])
    bench.answering.start()
    bench.until(lambda: len(bench.asked) == 2)
    assert not bench.answering.has_all(gone)
    bench.answering.withdraw(gone)
    bench.open()
    found: list[Task] = []
    while not found:
        found = [part.task for part, _ in bench.answering.collect()]
        bench.told.acquire(timeout=0.01)
    assert found == [kept]
    assert bench.asked == [20, 10]
    assert bench.answering.ready().total() == 0


def test_nothing_more_of_a_held_inbox_is_begun(bench: Bench) -> None:
    bench.open()
    bench.answering.hold(["held"])
    bench.answering.put([*parts(task(1, "held"), 1), *parts(task(2), 1)])
    bench.answering.start()
    bench.until(lambda: bench.asked == [20])
    bench.until(lambda: len(bench.answering.collect()) == 1)
    assert bench.answering.ready() == {1: 1}
    bench.answering.hold([])
    bench.until(lambda: bench.asked == [20, 10])


def test_it_leaves_the_device_when_somebody_else_wants_it_alone(bench: Bench) -> None:
    # given more parts than it has room for
    bench.answering.put(parts(task(1), 4))
    bench.answering.start()
    bench.until(lambda: len(bench.asked) == 2)
    # when another slot wants the device for itself
    inside: list[int] = []

    def other() -> None:
        with bench.gate.enter(alone=True, on_wait=lambda: None):
            inside.append(len(bench.asked))

    thread = threading.Thread(target=other)
    thread.start()
    bench.until(lambda: bench.gate.is_wanted)
    bench.open()
    thread.join(WAIT_SECONDS)
    # then what was begun is answered first, and the rest afterwards
    assert inside == [2]
    bench.until(lambda: len(bench.asked) == 4)


def test_what_does_not_fit_is_told_and_an_error_waits_until_it_is_seen_to(bench: Bench) -> None:
    bench.open()
    bug = ZeroDivisionError("a bug")
    bench.engine.failures = {1: DeviceError("cpu: out of memory"), 2: bug}
    of = task(1)
    bench.answering.put(parts(of, 1))
    bench.answering.start()
    bench.until(lambda: bool(bench.answering._answers))
    ((_, ended),) = bench.answering.collect()
    assert isinstance(ended, DeviceError)
    bench.answering.put(parts(of, 1))
    bench.until(lambda: bench.answering.broken is not None)
    assert bench.answering.broken
    assert bench.answering.broken.error is bug
    assert [part.task for part in bench.answering.broken.parts] == [of]
    bench.answering.put(parts(of, 1))
    bench.answering.mended()
    bench.until(lambda: bool(bench.answering._answers))
    ((_, ended),) = bench.answering.collect()
    assert isinstance(ended, Completion)


def test_time_without_anything_to_answer_counts_if_files_are_at_hand(bench: Bench) -> None:
    bench.answering.start()
    bench.answering.expect(more=True)
    bench.until(lambda: bench.meter.numbers().starved.get("cpu", 0.0) > 0)
    bench.open()
    bench.answering.put(parts(task(1), 2))
    bench.until(lambda: len(bench.answering._answers) == 2)
    work = bench.meter.numbers().work["cpu", Kind.IMAGE]
    assert work.requests == 2
    assert work.row_seconds >= work.seconds > 0
