"""The scheduler's policy."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4d.job import LONGEST_LIKELY_SECONDS, Fingerprint, Job, Kind, Priority, likely_seconds
from phi4d.scheduler import LONGEST_PAUSE_SECONDS, PASSED_OVER, Pauses, Turns, backoff

IMAGE, AUDIO = Kind.IMAGE, Kind.AUDIO
MEMO, LONG = 500_000, 170_000_000
"""bytes of half a minute and of three hours of speech"""


def job(
    n: int,
    kind: Kind = IMAGE,
    attempts: int = 0,
    *,
    inbox: str = "in",
    size: int = 0,
    queued: float | None = None,
) -> Job:
    fingerprint = Fingerprint(n, size, 0)
    when = float(n) if queued is None else queued
    return Job(n, inbox, b"%d" % n, kind, fingerprint, attempts, queued=when)


def priorities(**known: Priority) -> Turns:
    """Turns of inboxes with such priorities."""
    return Turns(lambda inbox: known.get(inbox, "normal"))


class Line:
    """What waits, as the store has it: of each queue the head comes first."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = list(jobs)

    def look(self, each: int = 99) -> list[Job]:
        """What `Store.waiting` tells."""
        told: list[Job] = []
        names = {(job.inbox, job.kind) for job in self.jobs}
        for name in sorted(names):
            queue = [job for job in self.jobs if (job.inbox, job.kind) == name]
            told += sorted(queue, key=lambda job: (job.due, job.id))[:each]
        return told

    def take(self, turns: Turns, count: int = 1) -> list[Job]:
        """The next jobs; they wait no longer."""
        chosen = turns.pick(self.look(count), count)
        self.jobs = [job for job in self.jobs if job not in chosen]
        return chosen

    def order(self, turns: Turns, count: int = 1) -> list[list[int]]:
        """The ids of what each call takes, until nothing waits."""
        calls: list[list[int]] = []
        while chosen := self.take(turns, count):
            calls.append(ids(chosen))
        assert not self.jobs
        return calls


def ids(jobs: Sequence[Job]) -> list[int]:
    return [job.id for job in jobs]


class TestDue:
    def test_a_small_file_goes_before_a_long_recording_that_came_a_little_earlier(self) -> None:
        assert job(2, AUDIO, size=MEMO, queued=600.0).due < job(1, AUDIO, size=LONG, queued=0).due

    @given(st.sampled_from(Kind), st.integers(0, 2**50))
    def test_nothing_that_comes_hours_later_goes_before_a_file(self, kind: Kind, size: int) -> None:
        assert 0 <= likely_seconds(kind, size) <= LONGEST_LIKELY_SECONDS
        late = job(2, kind, queued=LONGEST_LIKELY_SECONDS + 1)
        assert job(1, kind, size=size, queued=0).due < late.due


class TestTurns:
    def test_nothing_waits(self) -> None:
        assert Turns().pick([], 8) == []

    def test_a_queue_is_taken_in_its_order_and_no_more_than_is_wanted(self) -> None:
        turns, line = Turns(), Line(*(job(n) for n in range(5)))
        assert line.order(turns, 2) == [[0, 1], [2, 3], [4]]

    def test_a_memo_behind_ten_thousand_pictures_is_among_the_next_two(self) -> None:
        # given a bulk import that is under way
        turns, line = Turns(), Line(*(job(n) for n in range(10_000)))
        line.take(turns, 9)
        # when a memo comes, and a picture in another inbox
        line.jobs += [job(20_000, AUDIO, size=MEMO), job(20_100, inbox="other")]
        # then both are next
        assert ids(line.take(turns, 3)) == [20_000, 20_100, 9]

    def test_queues_have_their_turns_one_after_the_other_over_calls(self) -> None:
        boxes = [job(10 * n + i, inbox=box) for i, box in enumerate("abc") for n in range(3)]
        calls = Line(*boxes).order(Turns(), 2)
        assert [n % 10 for call in calls for n in call] == [0, 1, 2] * 3

    def test_what_was_begun_before_goes_alone_and_none_goes_before_its_turn(self) -> None:
        line = Line(job(1), job(2, attempts=1), job(3), job(4), job(5, attempts=2))
        assert line.order(Turns(), 8) == [[1], [2], [3, 4], [5]]

    def test_a_higher_priority_goes_first_but_for_one_in_eight(self) -> None:
        # given many files in each of three inboxes, the least important ones first
        turns = priorities(urgent="high", bulk="low")
        boxes = ("bulk", "in", "urgent")
        line = Line(
            *(job(100 * i + n, inbox=box) for i, box in enumerate(boxes) for n in range(30))
        )
        # when they are taken
        taken = [job.inbox for job in line.take(turns, 24)]
        # then one in eight is the one of all others that has waited longest
        assert taken == (["urgent"] * PASSED_OVER + ["bulk"]) * 3
        assert PASSED_OVER == 7

    def test_a_lower_priority_is_not_made_up_for_while_nothing_of_it_waited(self) -> None:
        turns = priorities(urgent="high")
        line = Line(*(job(n, inbox="urgent") for n in range(50)))
        line.take(turns, 30)
        line.jobs.append(job(99))
        assert ids(line.take(turns, 9))[PASSED_OVER:] == [99, 37]

    def test_a_job_that_goes_alone_has_its_turn_in_the_exception_too(self) -> None:
        # given one that was begun before, in an inbox of low priority
        turns = priorities(bulk="low")
        line = Line(*(job(n) for n in range(50)), job(99, inbox="bulk", attempts=1, queued=0.0))
        # then its turn ends a call, and is the whole of the next
        assert [ids(line.take(turns, 8)) for _ in range(3)] == [
            [0, 1, 2, 3, 4, 5, 6],
            [99],
            [7, 8, 9, 10, 11, 12, 13, 14],
        ]

    def test_a_priority_that_changes_counts_from_the_next_call_on(self) -> None:
        now: dict[str, Priority] = {"a": "low"}
        turns = Turns(lambda inbox: now.get(inbox, "normal"))
        line = Line(*(job(n, inbox=box) for n, box in enumerate("aabb")))
        assert ids(line.take(turns)) == [2]
        now["a"] = "high"
        assert ids(line.take(turns, 2)) == [0, 1]

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["high", "in", "low"]), st.sampled_from(Kind), st.integers(0, 2)
            ),
            max_size=60,
        ),
        st.integers(1, 9),
    )
    def test_everything_is_taken_once_each_queue_in_its_order_suspects_alone(
        self, waiting: list[tuple[str, Kind, int]], count: int
    ) -> None:
        jobs = {
            n: job(n, kind, attempts, inbox=inbox)
            for n, (inbox, kind, attempts) in enumerate(waiting)
        }
        calls = Line(*jobs.values()).order(priorities(high="high", low="low"), count)
        taken = [n for call in calls for n in call]
        assert sorted(taken) == sorted(jobs)
        assert all(len(call) <= count for call in calls)
        assert all(len(call) == 1 for call in calls if any(jobs[n].attempts for n in call))
        for queue in {(job.inbox, job.kind) for job in jobs.values()}:
            own = [n for n in taken if (jobs[n].inbox, jobs[n].kind) == queue]
            assert own == sorted(own)

    @given(
        st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["high", "normal", "low"])),
        st.sampled_from("abcdef"),
        st.integers(1, 9),
        st.integers(0, 1),
    )
    def test_nobody_waits_for_ever_however_much_comes_in(
        self, known: dict[str, Priority], inbox: str, count: int, attempts: int
    ) -> None:
        # given one that waits in an inbox, and ever more in all
        turns, line, n = priorities(**known), Line(job(0, AUDIO, attempts, inbox=inbox)), 0
        rounds = 0
        while any(job.id == 0 for job in line.jobs):
            for box in "abcdef":
                for kind in Kind:
                    for _ in range(count):
                        n += 1
                        line.jobs.append(job(n, kind, inbox=box))
            # when they are taken
            line.take(turns, count)
            rounds += 1
            # then its turn comes, after those of the other queues at most
            assert rounds <= 12 * (PASSED_OVER + 1)


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
