"""The ladder: which rung comes below which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4d.job import SAMPLE_RATE_HZ, Kind, Piece
from phi4d.ladder import FRAME, Ladder, Rung, parts, reduction, size, words

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


@pytest.mark.parametrize(
    ("kind", "shape", "asked"),
    [
        (Kind.IMAGE, (1, 1, 3), 1),
        (Kind.IMAGE, (448, 448, 3), 1),
        (Kind.IMAGE, (449, 448, 3), 2),
        (Kind.IMAGE, (3000, 4000, 3), 7 * 9),
        (Kind.AUDIO, (24_000,), 1.5),
    ],
)
def test_what_media_ask(kind: Kind, shape: tuple[int, ...], asked: float) -> None:
    assert size(kind, np.zeros(shape)) == asked


class TestParts:
    def piece(self, seconds: float) -> Piece:
        n = round(seconds * SAMPLE_RATE_HZ)
        noise = np.random.default_rng(0).uniform(0.5, 1.0, n).astype(np.float32)
        return Piece(noise, 100.0, 100.0 + n / SAMPLE_RATE_HZ)

    def test_what_is_short_enough_is_left_whole(self) -> None:
        piece = self.piece(8.0)
        assert parts(piece, 8) == [piece]

    @pytest.mark.parametrize("limit", [8, 15])
    @pytest.mark.parametrize("seconds", [8.001, 15.0001, 16.0, 22.3, 30.0])
    def test_nothing_is_lost_and_no_part_is_too_long(self, seconds: float, limit: int) -> None:
        piece = self.piece(seconds)
        cut = parts(piece, limit)
        assert np.array_equal(np.concatenate([part.media for part in cut]), piece.media)
        assert max(len(part.media) for part in cut) <= limit * SAMPLE_RATE_HZ
        assert (cut[0].start, cut[-1].end) == (piece.start, piece.end)
        assert [part.end for part in cut[:-1]] == [part.start for part in cut[1:]]
        for part in cut:
            assert part.end - part.start == pytest.approx(len(part.media) / SAMPLE_RATE_HZ)

    def test_it_is_cut_where_it_is_quietest(self) -> None:
        piece = self.piece(30.0)
        quiet = [9.1, 10.2, 20.7]
        for at, loudness in zip(quiet, (0.2, 0.1, 0.1), strict=True):
            begin = round(at * SAMPLE_RATE_HZ)
            piece.media[begin : begin + 3 * FRAME] *= np.float32(loudness)
        cut = parts(piece, 15)
        # even cuts would be at 10 and 20 s; 9.1 s is near, too, but louder
        assert [part.start - 100.0 for part in cut] == pytest.approx([0, 10.23, 20.73], abs=0.03)
