"""Settling, with a clock that is passed in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4d.inbox.settle import GRACE_SECONDS, Look, Settler
from phi4d.job import Fingerprint

KEY = ("in", b"a.jpg")


def look(version: int = 1, age: float = 0.0, *, written: bool = False) -> Look:
    return Look(Fingerprint(1, version, version), age, written)


@pytest.fixture
def settler() -> Settler:
    return Settler(2.0, 300.0)


class TestUnchanged:
    def test_a_file_settles_when_it_stays_unchanged(self, settler: Settler) -> None:
        settler.found(KEY, look(), 10.0)
        assert settler.due(11.9, 9) == []
        assert settler.due(12.0, 9) == [KEY]
        assert settler.is_complete(KEY, look(), 12.0)

    def test_a_growing_file_waits_anew_with_each_change(self, settler: Settler) -> None:
        settler.found(KEY, look(1), 10.0)
        assert settler.due(12.0, 9) == [KEY]
        assert not settler.is_complete(KEY, look(2), 12.0)
        assert settler.due(13.9, 9) == []
        assert settler.due(14.0, 9) == [KEY]
        assert settler.is_complete(KEY, look(2), 14.0)

    def test_its_own_times_shorten_the_wait(self, settler: Settler) -> None:
        settler.found(KEY, look(age=1.5), 10.0)
        assert settler.next_due() == pytest.approx(10.5)

    def test_finding_it_again_does_not_delay_it(self, settler: Settler) -> None:
        settler.found(KEY, look(), 10.0)
        settler.found(KEY, look(), 11.9)
        assert settler.due(12.0, 9) == [KEY]

    def test_a_changed_file_is_looked_at_again(self, settler: Settler) -> None:
        settler.changed(KEY, 10.0)
        assert settler.due(12.0, 9) == [KEY]
        assert settler.is_complete(KEY, look(age=2.0), 12.0)

    def test_what_is_forgotten_is_never_due(self, settler: Settler) -> None:
        settler.found(KEY, look(), 10.0)
        settler.forget(KEY)
        settler.forget(KEY)
        assert settler.due(99.0, 9) == []
        assert settler.next_due() is None
        assert len(settler) == 0

    def test_no_more_are_due_than_asked_for(self, settler: Settler) -> None:
        for n in range(5):
            settler.found(("in", b"%d" % n), look(), 10.0)
        assert len(settler.due(12.0, 3)) == 3
        assert len(settler.due(12.0, 3)) == 2


class TestClosed:
    def test_a_closed_file_is_complete_after_the_grace(self, settler: Settler) -> None:
        settler.closed(KEY, 10.0)
        assert settler.due(10.04, 9) == []
        assert settler.due(10.0 + GRACE_SECONDS, 9) == [KEY]
        assert settler.is_complete(KEY, look(age=0.06, written=True), 10.05)

    def test_times_that_are_set_after_the_close_prolong_the_grace(self, settler: Settler) -> None:
        settler.closed(KEY, 10.0)
        settler.due(10.05, 9)
        assert not settler.is_complete(KEY, look(age=0.01), 10.05)
        assert settler.next_due() == pytest.approx(10.09)
        assert settler.is_complete(KEY, look(age=0.05), 10.09)

    def test_one_that_is_written_on_after_a_close_settles_like_any_other(
        self, settler: Settler
    ) -> None:
        settler.closed(KEY, 10.0)
        settler.due(10.05, 9)
        assert not settler.is_complete(KEY, look(age=0.01, written=True), 10.05)
        assert settler.next_due() == pytest.approx(12.04)

    def test_a_close_ends_the_wait_for_it(self, settler: Settler) -> None:
        settler.created(KEY, 10.0)
        settler.closed(KEY, 11.0)
        assert settler.due(11.05, 9) == [KEY]
        assert settler.is_complete(KEY, look(age=0.06, written=True), 11.05)

    def test_where_times_are_not_believed_two_looks_must_agree(self, settler: Settler) -> None:
        settler.closed(KEY, 10.0)
        settler.due(10.05, 9)
        assert not settler.is_complete(KEY, look(), 10.05)
        assert settler.due(10.11, 9) == [KEY]
        assert settler.is_complete(KEY, look(), 10.11)


class TestBeingWritten:
    def pause(self, settler: Settler, begin: float, seconds: float) -> float:
        """Looks whenever one is due, at a file that does not change; when it was complete."""
        now = begin
        while (due := settler.next_due()) is not None:
            assert due > now
            now = due
            assert settler.due(now, 9) == [KEY]
            if settler.is_complete(KEY, look(age=now - begin, written=True), now):
                return now
            assert now - begin < seconds
        raise AssertionError("it is not looked at any more")

    def test_one_that_was_made_and_not_closed_waits_for_very_long(self, settler: Settler) -> None:
        settler.created(KEY, 10.0)
        assert self.pause(settler, 10.0, 400.0) == pytest.approx(310.0)

    def test_one_that_was_linked_in_does_not(self, settler: Settler) -> None:
        settler.created(KEY, 10.0)
        settler.due(12.0, 9)
        assert settler.is_complete(KEY, look(age=2.0), 12.0)

    def test_nor_one_whose_close_may_have_been_lost(self, settler: Settler) -> None:
        settler.created(KEY, 10.0)
        settler.doubt()
        settler.due(12.0, 9)
        assert settler.is_complete(KEY, look(age=2.0, written=True), 12.0)

    def test_a_cut_file_waits_until_it_is_closed(self, settler: Settler) -> None:
        settler.closed(KEY, 10.0)
        settler.due(10.05, 9)
        assert settler.is_complete(KEY, look(age=0.05), 10.05)
        assert not settler.gives_up(KEY, look(age=0.05), 10.05)
        settler.closed(KEY, 50.0)
        settler.due(50.05, 9)
        assert settler.is_complete(KEY, look(2, age=0.05), 50.05)

    def test_a_cut_file_is_given_up_when_it_did_not_change_for_very_long(
        self, settler: Settler
    ) -> None:
        settler.found(KEY, look(age=2.0), 10.0)
        assert settler.due(10.0, 9) == [KEY]
        assert settler.is_complete(KEY, look(age=2.0), 10.0)
        assert not settler.gives_up(KEY, look(age=2.0), 10.0)
        done = self.pause(settler, 8.0, 400.0)
        assert done == pytest.approx(308.0)
        assert settler.gives_up(KEY, look(age=300.0), done)

    def test_a_cut_file_that_grows_is_looked_into_again(self, settler: Settler) -> None:
        assert not settler.gives_up(KEY, look(1, age=2.0), 10.0)
        assert settler.due(12.0, 9) == [KEY]
        assert not settler.is_complete(KEY, look(2), 12.0)
        assert settler.due(14.0, 9) == [KEY]
        assert settler.is_complete(KEY, look(2, age=2.0), 14.0)

    def test_one_that_was_cut_off_long_ago_is_given_up_at_once(self, settler: Settler) -> None:
        assert settler.gives_up(KEY, look(age=3600.0), 10.0)


PAUSES = st.integers(0, 96).map(lambda n: n / 32)  # seconds; their sums are exact


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), PAUSES), max_size=40))
def test_a_file_is_complete_just_when_it_has_been_unchanged_long_enough(
    sightings: list[tuple[int, int, float]],
) -> None:
    settler, now = Settler(2.0, 300.0), 0.0
    since: dict[tuple[str, bytes], tuple[int, float]] = {}
    for file, content, pause in sightings:
        now += pause
        key = ("in", b"%d" % file)
        if key not in since:
            settler.found(key, look(content), now)
        elif settler.is_complete(key, look(content), now):
            assert since[key][0] == content
            assert now - since[key][1] >= 2.0
            continue
        if key not in since or since[key][0] != content:
            since[key] = (content, now)
        assert now - since[key][1] < 2.0
    for key, (content, began) in since.items():
        assert key in settler
        assert settler.is_complete(key, look(content), began + 2.0)
