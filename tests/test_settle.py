"""Settling, with a clock that is passed in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phi4d.job import Fingerprint
from phi4d.settle import Settler

KEY = ("in", b"a.jpg")


def version(n: int) -> Fingerprint:
    return Fingerprint(1, n, n)


def test_a_file_settles_when_it_stays_unchanged() -> None:
    settler = Settler(2.0)
    settler.seen(KEY, version(1), 10.0)
    assert settler.due(11.9) == []
    assert settler.due(12.0) == [KEY]
    assert settler.settled(KEY, version(1), 12.0)
    assert len(settler) == 0


def test_a_growing_file_waits_anew_with_each_change() -> None:
    settler = Settler(2.0)
    settler.seen(KEY, version(1), 10.0)
    settler.seen(KEY, version(2), 11.0)
    assert settler.due(12.5) == []
    assert settler.due(13.0) == [KEY]
    assert not settler.settled(KEY, version(3), 13.0)
    assert settler.due(14.9) == []
    assert settler.settled(KEY, version(3), 15.0)


def test_seeing_the_same_again_does_not_delay_it() -> None:
    settler = Settler(2.0)
    settler.seen(KEY, version(1), 10.0)
    settler.seen(KEY, version(1), 11.9)
    assert settler.due(12.0) == [KEY]


def test_what_is_forgotten_is_never_due() -> None:
    settler = Settler(2.0)
    settler.seen(KEY, version(1), 10.0)
    settler.forget(KEY)
    settler.forget(KEY)
    assert settler.due(99.0) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.floats(0, 3)), max_size=40))
def test_due_is_just_what_has_been_unchanged_long_enough(
    sightings: list[tuple[int, int, float]],
) -> None:
    settler, now = Settler(2.0), 0.0
    since: dict[tuple[str, bytes], tuple[int, float]] = {}
    for file, content, pause in sightings:
        now += pause
        key = ("in", b"%d" % file)
        settler.seen(key, version(content), now)
        if key not in since or since[key][0] != content:
            since[key] = (content, now)
        expected = {k for k, (_, t) in since.items() if now - t >= 2.0}
        assert set(settler.due(now)) == expected
