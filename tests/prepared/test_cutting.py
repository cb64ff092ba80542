from __future__ import annotations

import numpy as np
import pytest

from phi4d.job import SAMPLE_RATE_HZ, Kind, Piece
from phi4d.prepared.clip import Clip, clip
from phi4d.prepared.cutting import FRAME, parts, size
from phi4d.prepared.mel import Mel
from phi4d.prepared.tiles import tile


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


class TestPartsOfFeatures:
    def piece(self, samples: np.ndarray) -> Piece:
        return Piece(clip(samples), 100.0, 100.0 + len(samples) / SAMPLE_RATE_HZ)

    def noise(self, seconds: float) -> np.ndarray:
        n = round(seconds * SAMPLE_RATE_HZ)
        return np.random.default_rng(0).uniform(-1, 1, n).astype(np.float32)

    def test_what_is_short_enough_is_left_whole(self) -> None:
        piece = self.piece(self.noise(8.0))
        assert parts(piece, 8) == [piece]

    @pytest.mark.parametrize("limit", [8, 15])
    @pytest.mark.parametrize("seconds", [8.02, 15.03, 16.0, 22.3, 30.0])
    def test_no_frame_is_lost_and_no_part_is_too_long(self, seconds: float, limit: int) -> None:
        piece = self.piece(self.noise(seconds))
        cut = parts(piece, limit)
        features = [part.media.features for part in cut]
        assert np.array_equal(np.concatenate(features), piece.media.features)
        assert max(size(Kind.AUDIO, part.media) for part in cut) <= limit
        assert (cut[0].start, cut[-1].end) == (piece.start, piece.end)
        assert [part.end for part in cut[:-1]] == [part.start for part in cut[1:]]
        assert all(part.media.tokens == -(-len(part.media.features) // 8) for part in cut)
        for part in cut[:-1]:
            assert part.end - part.start == pytest.approx(len(part.media.features) / 100)

    def test_it_is_cut_where_the_sound_is_quietest(self) -> None:
        samples = self.noise(30.0)
        for at, loudness in zip([9.1, 10.2, 20.7], (0.2, 0.1, 0.1), strict=True):
            begin = round(at * SAMPLE_RATE_HZ)
            samples[begin : begin + 3 * FRAME] *= np.float32(loudness)
        cut = parts(self.piece(samples), 15)
        assert [part.start - 100.0 for part in cut] == pytest.approx([0, 10.23, 20.73], abs=0.03)

    def test_the_parts_are_made_as_the_whole_was(self) -> None:
        mel = Mel(hop_length=200, feature_size=40)
        piece = Piece(clip(self.noise(20.0), mel), 0.0, 20.0)
        cut = parts(piece, 8)
        assert len(cut) >= 3
        assert {part.media.mel for part in cut} == {mel}
        assert max(len(part.media) for part in cut) <= 8 * SAMPLE_RATE_HZ


def test_what_prepared_media_ask() -> None:
    assert size(Kind.IMAGE, tile(np.zeros((3000, 4000, 3), np.uint8))) == 12
    assert size(Kind.IMAGE, tile(np.zeros((1, 1, 3), np.uint8))) == 1
    assert size(Kind.AUDIO, clip(np.zeros(24_000, np.float32))) == pytest.approx(1.5, abs=0.01)
    assert size(Kind.AUDIO, Clip(np.zeros((1, 80), np.float32))) == 0.025
