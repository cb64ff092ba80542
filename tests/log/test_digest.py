"""Many files that end are summed up, each is said or counted, and calm brings single lines back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4d.log.digest import BUSY_FILES, BUSY_SECONDS, SUMMARY_SECONDS, Digest, Summary


def feed(digest: Digest, files: int, begin: float, step: float, inbox: str = "photos") -> int:
    """Files that are done one after the other; how many of them were counted and not said."""
    return sum(digest.counts(inbox, begin + n * step) for n in range(files))


def test_a_file_now_and_then_is_said() -> None:
    digest = Digest()
    assert feed(digest, 200, 0, BUSY_SECONDS / BUSY_FILES + 0.01) == 0
    assert digest.due(1000) is None


def test_a_flood_is_said_at_first_and_then_counted() -> None:
    digest = Digest()
    assert feed(digest, BUSY_FILES + 400, 0, 0.01) == 400
    feed(digest, 12, 5, 0.1, "memos")
    for _ in range(3):
        digest.failed()
    assert digest.due(20) is None
    began = BUSY_FILES * 0.01
    summary = digest.due(began + SUMMARY_SECONDS)
    assert summary == Summary({"photos": 400, "memos": 12}, 3, 0, pytest.approx(5.9, abs=0.01))
    assert digest.due(2 * SUMMARY_SECONDS) is None


def test_while_it_lasts_there_is_one_summary_a_period() -> None:
    digest, summaries, counted = Digest(), [], 0
    for tick in range(1000):  # ten a second
        counted += digest.counts("in", tick / 10)
        if summary := digest.due(tick / 10):
            summaries.append(summary)
    assert [round(s.seconds) for s in summaries] == [SUMMARY_SECONDS] * 3
    last = digest.due(100, everything=True)
    assert last is not None
    assert sum(s.done["in"] for s in [*summaries, last]) == counted == 1000 - BUSY_FILES


def test_a_burst_is_summed_up_as_soon_as_it_is_over_and_calm_is_back() -> None:
    digest = Digest()
    feed(digest, BUSY_FILES + 10, 0, 0.1)
    summary = digest.due(3 + BUSY_SECONDS)
    assert summary is not None
    assert summary.done == {"photos": 10}
    assert not digest.counts("photos", 4 + BUSY_SECONDS)


def test_half_the_rate_at_which_it_began_is_calm() -> None:
    digest = Digest()
    feed(digest, BUSY_FILES + 1, 0, 0.01)
    step = 2.5 * BUSY_SECONDS / BUSY_FILES
    assert digest.counts("in", step)
    feed(digest, 11, step, step)
    assert digest.due(SUMMARY_SECONDS + 1) is not None
    assert not digest.counts("in", SUMMARY_SECONDS + 2)


def test_files_that_were_dropped_are_counted_as_such() -> None:
    digest = Digest()
    assert sum(digest.counts("in", 0, dropped=True) for _ in range(BUSY_FILES + 7)) == 7
    summary = digest.due(BUSY_SECONDS)
    assert summary == Summary({}, 0, 7, 1.0)


def test_failures_alone_are_no_flood_of_this_kind() -> None:
    digest = Digest()
    for _ in range(100):
        digest.failed()
    assert digest.due(SUMMARY_SECONDS, everything=True) is None


@given(st.lists(st.floats(0, 5), max_size=300))
def test_each_file_is_said_or_counted_once(steps: list[float]) -> None:
    digest, now, said, counted = Digest(), 0.0, 0, 0
    for step in steps:
        now += step
        if summary := digest.due(now):
            counted += summary.done["in"]
        said += not digest.counts("in", now)
    if summary := digest.due(now, everything=True):
        counted += summary.done["in"]
    assert said + counted == len(steps)


class TestWords:
    def test_all_of_it(self) -> None:
        summary = Summary({"photos": 1400, "memos": 12}, 3, 2, 30.0)
        assert summary.words(1203) == (
            "done 1,412 files in 30 s (photos 1,400, memos 12), 3 failed, 2 set aside, "
            "2,824 files/min, 1,203 waiting"
        )

    def test_little_of_it(self) -> None:
        assert (
            Summary({"in": 1}, 0, 0, 30.0).words(None) == "done 1 file in 30 s (in 1), 2 files/min"
        )
        assert Summary({}, 0, 7, 3.0).words(0) == "done 0 files in 3 s, 7 set aside, 0 waiting"

    def test_many_inboxes(self) -> None:
        summary = Summary({str(n): 9 - n for n in range(8)}, 0, 0, 60.0)
        assert "(0 9, 1 8, 2 7, 3 6, 4 5, 3 more)" in summary.words(None)
