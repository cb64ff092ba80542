"""What slots must know of each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from phi4d.errors import DeviceLost, Stopped
from phi4d.slots import Gate, Slots

WAIT_SECONDS = 30.0  # until a test gives up


def nothing() -> None:
    pass


class Visitor:
    """A thread that goes through a gate and stays inside until it is told to leave."""

    def __init__(self, gate: Gate, *, alone: bool) -> None:
        self.inside, self.waits, self.leave = (threading.Event() for _ in range(3))
        self.error: Exception | None = None
        self._gate, self._alone = gate, alone
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._gate.enter(alone=self._alone, on_wait=self.waits.set):
                self.inside.set()
                self.leave.wait(WAIT_SECONDS)
        except DeviceLost as error:
            self.error = error

    def end(self) -> None:
        self.leave.set()
        self._thread.join(WAIT_SECONDS)


@pytest.fixture
def gate() -> Gate:
    return Gate("cuda:0")


@pytest.fixture
def visit(gate: Gate) -> Iterator[type]:
    with ExitStack() as stack:

        def begin(*, alone: bool) -> Visitor:
            visitor = Visitor(gate, alone=alone)
            stack.callback(visitor.end)
            return visitor

        yield begin  # type: ignore[misc]


class TestGate:
    def test_many_are_inside_at_a_time(self, visit: type) -> None:
        for visitor in [visit(alone=False) for _ in range(3)]:
            assert visitor.inside.wait(WAIT_SECONDS)

    def test_who_wants_to_be_alone_waits_for_the_others_and_they_for_it(self, visit: type) -> None:
        first = visit(alone=False)
        assert first.inside.wait(WAIT_SECONDS)
        second = visit(alone=True)
        assert second.waits.wait(WAIT_SECONDS)
        third = visit(alone=False)
        assert third.waits.wait(WAIT_SECONDS)  # behind the second, who would else wait for ever
        assert not second.inside.is_set()
        assert not third.inside.is_set()
        first.end()
        assert second.inside.wait(WAIT_SECONDS)
        third.waits.clear()
        assert third.waits.wait(WAIT_SECONDS)
        assert not third.inside.is_set()
        second.end()
        assert third.inside.wait(WAIT_SECONDS)

    def test_who_gives_up_waiting_is_in_nobodys_way(self, gate: Gate) -> None:
        def stop() -> None:
            raise Stopped("now")

        with (
            gate.enter(alone=False, on_wait=nothing),
            pytest.raises(Stopped),
            gate.enter(alone=True, on_wait=stop),
        ):
            pass
        with gate.enter(alone=True, on_wait=stop):
            pass

    def test_an_error_inside_leaves_it_open(self, gate: Gate) -> None:
        with pytest.raises(ZeroDivisionError), gate.enter(alone=True, on_wait=nothing):
            raise ZeroDivisionError
        with gate.enter(alone=True, on_wait=nothing):
            pass

    def test_nobody_gets_in_once_the_device_is_lost_not_even_who_waited(
        self, gate: Gate, visit: type
    ) -> None:
        first = visit(alone=True)
        assert first.inside.wait(WAIT_SECONDS)
        second = visit(alone=False)
        assert second.waits.wait(WAIT_SECONDS)
        gate.shut()
        first.end()
        second.end()
        assert not second.inside.is_set()
        assert "cuda:0: it was lost" in str(second.error)


class TestSlots:
    def test_slots_of_one_device_share_its_gate(self) -> None:
        slots = Slots(["cuda:0", "cuda:1", "cuda:0"])
        assert slots.shared("cuda:0")
        assert not slots.shared("cuda:1")
        assert slots.gate("cuda:0") is not slots.gate("cuda:1")

    def test_a_job_is_refused_by_devices_until_none_is_left(self) -> None:
        slots = Slots(["cuda:0", "cuda:1", "cuda:0"])
        assert not slots.refuse(7, "cuda:0")
        assert not slots.refuse(7, "cuda:0")
        assert not slots.refuse(8, "cuda:1")
        assert slots.refused("cuda:0") == [7]
        assert slots.refused("cuda:1") == [8]
        assert slots.refuse(7, "cuda:1")
        slots.forget(7)
        slots.forget(7)
        assert slots.refused("cuda:0") == []
        assert slots.refused("cuda:1") == [8]
