"""The ladder: which rung comes below which."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4d.job import Kind
from phi4d.ladder import Ladder, Rung, reduction, words

ALONE = Rung(1, alone=True)


class TestRungs:
    @pytest.mark.parametrize(
        ("kind", "shared", "failed", "rungs"),
        [
            # (requests, size of the largest) of the calls that failed, and the rungs that follow
            (
                Kind.IMAGE,
                True,
                [(8, 36), (4, 36), (2, 36), (1, 36), (1, 12), (1, 4), (1, 4)],
                [
                    Rung(4),
                    Rung(2),
                    Rung(1),
                    Rung(1, 12),
                    Rung(1, 4),
                    Rung(1, 4, alone=True),
                    None,
                ],
            ),
            (
                Kind.AUDIO,
                False,
                [(8, 30.0), (4, 9.0), (1, 30.0), (1, 14.9), (1, 8.0)],
                [Rung(4), Rung(2), Rung(2, 15), Rung(2, 8), None],
            ),
            # a call smaller than the limit: half of the limit would ask for the same again
            (Kind.IMAGE, False, [(3, 36), (2, 1)], [Rung(2), Rung(1)]),
            # what asks little already cannot be asked for less
            (Kind.IMAGE, False, [(1, 1), (1, 6)], [None, Rung(8, 4)]),
            (
                Kind.AUDIO,
                True,
                [(1, 5.0), (1, 5.0), (1, 30.0)],
                [ALONE, None, replace(ALONE, size=15)],
            ),
        ],
    )
    def test_each_asks_less_than_the_call_that_failed(
        self,
        kind: Kind,
        shared: bool,
        failed: list[tuple[int, float]],
        rungs: list[Rung | None],
    ) -> None:
        ladder = Ladder(8, shared=shared)
        assert [ladder.down(kind, requests, size) for requests, size in failed] == rungs
        stands = [rung for rung in rungs if rung]
        assert ladder.rung(kind) == stands[-1]

    def test_each_kind_has_its_own(self) -> None:
        ladder = Ladder(8, shared=False)
        ladder.down(Kind.IMAGE, 8, 36)
        assert ladder.rung(Kind.AUDIO) == Rung(8)
        assert ladder.capacity() == {Kind.IMAGE: 4, Kind.AUDIO: 8}

    @given(
        st.integers(1, 64),
        st.booleans(),
        st.sampled_from(Kind),
        st.lists(st.tuples(st.integers(1, 64), st.floats(0.1, 36)), max_size=30),
    )
    def test_it_never_goes_up_and_ends(
        self, requests: int, shared: bool, kind: Kind, failed: list[tuple[int, float]]
    ) -> None:
        ladder = Ladder(requests, shared=shared)
        for wanted, media in failed:
            before = ladder.rung(kind)
            held = min(wanted, before.requests)
            largest = min(media, before.size or 36)
            below = ladder.down(kind, held, largest)
            if below is None:
                assert (held, before.alone) == (1, shared)
                assert ladder.rung(kind) == before
            else:
                assert below != before
                assert 1 <= below.requests <= before.requests
                assert (below.size or 36) <= (before.size or 36)
                assert below.alone >= before.alone

    def test_a_call_that_fails_always_has_an_end(self) -> None:
        ladder = Ladder(1024, shared=True)
        calls = 0
        while ladder.down(
            Kind.AUDIO, ladder.rung(Kind.AUDIO).requests, ladder.rung(Kind.AUDIO).size or 30
        ):
            calls += 1
        assert calls == 10 + 2 + 1


def test_rungs_in_words() -> None:
    assert words(Kind.IMAGE, Rung(4)) == "pictures: at most 4 a call"
    assert (
        words(Kind.IMAGE, Rung(1, 12, alone=True))
        == "pictures: at most 1 a call, at most 12 crops, alone on the device"
    )
    assert words(Kind.AUDIO, Rung(1, 15)) == "recordings: at most 1 a call, at most 15 s at a time"
    assert reduction(Kind.IMAGE, 4) == "at most 4 crops"
