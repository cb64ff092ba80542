"""The ladder: which rung comes below which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4d.job import Kind
from phi4d.ladder import Ladder, Rung, reduction, words


class TestRungs:
    @pytest.mark.parametrize(
        ("kind", "shared", "failed", "rungs"),
        [
            # sizes of the requests that failed, and the rungs that follow
            (Kind.IMAGE, True, [36, 12, 4, 4], [Rung(12), Rung(4), Rung(4, alone=True), None]),
            (Kind.AUDIO, False, [30.0, 14.9, 8.0], [Rung(15), Rung(8), None]),
            # what asks little already cannot be asked for less
            (Kind.IMAGE, False, [1, 6], [None, Rung(4)]),
            (
                Kind.AUDIO,
                True,
                [5.0, 5.0, 30.0],
                [Rung(alone=True), None, Rung(15, alone=True)],
            ),
        ],
    )
    def test_each_asks_less_than_the_request_that_failed(
        self, kind: Kind, shared: bool, failed: list[float], rungs: list[Rung | None]
    ) -> None:
        ladder = Ladder(shared=shared)
        assert [ladder.down(kind, size) for size in failed] == rungs
        stands = [rung for rung in rungs if rung]
        assert ladder.rung(kind) == stands[-1]

    def test_each_kind_has_its_own(self) -> None:
        ladder = Ladder(shared=False)
        ladder.down(Kind.IMAGE, 36)
        assert ladder.rung(Kind.AUDIO) == Rung()

    @given(st.booleans(), st.sampled_from(Kind), st.lists(st.floats(0.1, 36), max_size=30))
    def test_it_never_goes_up_and_ends(self, shared: bool, kind: Kind, failed: list[float]) -> None:
        ladder = Ladder(shared=shared)
        for media in failed:
            before = ladder.rung(kind)
            below = ladder.down(kind, min(media, before.size or 36))
            if below is None:
                assert before.alone == shared
                assert ladder.rung(kind) == before
            else:
                assert below != before
                assert (below.size or 36) <= (before.size or 36)
                assert below.alone >= before.alone


def test_rungs_in_words() -> None:
    assert words(Kind.IMAGE, Rung(12)) == "pictures: at most 12 crops"
    assert (
        words(Kind.IMAGE, Rung(12, alone=True)) == "pictures: at most 12 crops, alone on the device"
    )
    assert words(Kind.AUDIO, Rung(15)) == "recordings: at most 15 s at a time"
    assert reduction(Kind.IMAGE, 4) == "at most 4 crops"
