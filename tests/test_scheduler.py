"""The scheduler's policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4d.job import Fingerprint, Job, Kind
from phi4d.scheduler import LONGEST_PAUSE_SECONDS, Pauses, backoff, pick


def job(n: int, kind: Kind = Kind.IMAGE, attempts: int = 0) -> Job:
    return Job(n, "in", b"%d" % n, kind, Fingerprint(n, 0, 0), attempts)


EIGHT = dict.fromkeys(Kind, 8)
jobs = st.lists(
    st.builds(job, st.integers(), st.sampled_from(Kind), st.integers(0, 2)), max_size=30
)


class TestPick:
    def test_nothing_waits(self) -> None:
        assert pick([], EIGHT) == []

    def test_one_kind_oldest_first_up_to_the_capacity(self) -> None:
        a, b = Kind.AUDIO, Kind.IMAGE
        waiting = [job(1, a), job(2, b), job(3, a), job(4, a), job(5, a)]
        assert [j.id for j in pick(waiting, {a: 3, b: 1})] == [1, 3, 4]
        assert [j.id for j in pick(waiting, {a: 1, b: 3})] == [1]

    def test_what_was_interrupted_goes_alone(self) -> None:
        assert [j.id for j in pick([job(1, attempts=1), job(2)], EIGHT)] == [1]
        assert [j.id for j in pick([job(1), job(2, attempts=1), job(3)], EIGHT)] == [1, 3]

    @given(jobs, st.integers(1, 10))
    def test_the_oldest_is_always_among_them_and_kinds_never_mix(
        self, waiting: list[Job], capacity: int
    ) -> None:
        chosen = pick(waiting, dict.fromkeys(Kind, capacity))
        assert chosen[:1] == waiting[:1]
        assert len(chosen) <= capacity
        assert len({j.kind for j in chosen}) <= 1
        assert len(chosen) == 1 or not any(j.attempts for j in chosen)


class TestPauses:
    def test_a_pause_is_news_once_and_ends(self) -> None:
        pauses = Pauses(5.0)
        assert pauses.pause("in", "disk full", 0.0)
        assert pauses.paused(4.9) == ["in"]
        assert pauses.paused(5.0) == []
        assert pauses.on_trial("in")
        assert not pauses.pause("in", "disk full", 5.0)
        assert pauses.pause("in", "read-only", 20.0)
        assert pauses.reasons() == {"in": "read-only"}
        assert pauses.faults() == {"in": 40.0}

    def test_it_doubles_up_to_its_limit(self) -> None:
        pauses, now, lengths = Pauses(5.0), 0.0, []
        for _ in range(9):
            pauses.pause("in", "x", now)
            length = next(s for s in range(1, 1000) if "in" not in pauses.paused(now + s))
            lengths.append(length)
            now += length
        assert lengths == [5, 10, 20, 40, 80, 160, 300, 300, 300]
        assert lengths[-1] == LONGEST_PAUSE_SECONDS

    def test_a_second_worker_at_the_same_wall_does_not_double_it(self) -> None:
        pauses = Pauses(5.0)
        pauses.pause("in", "x", 0.0)
        pauses.pause("in", "x", 1.0)
        assert pauses.paused(5.0) == []

    def test_what_works_again_starts_anew(self) -> None:
        pauses = Pauses(5.0)
        assert not pauses.resume("in")
        pauses.pause("in", "x", 0.0)
        assert pauses.resume("in")
        assert not pauses.on_trial("in")
        assert pauses.pause("in", "x", 1.0)
        assert pauses.paused(5.9) == ["in"]


class TestBackoff:
    @pytest.mark.parametrize(
        ("waits", "seconds"), [(0, 5), (1, 10), (3, 40), (6, 300), (10_000, 300)]
    )
    def test_it_doubles_up_to_minutes_and_varies(self, waits: int, seconds: float) -> None:
        drawn = [backoff(waits, 5.0) for _ in range(200)]
        assert all(0.8 * seconds <= wait <= 1.2 * seconds for wait in drawn)
        assert max(drawn) - min(drawn) > 0.2 * seconds
