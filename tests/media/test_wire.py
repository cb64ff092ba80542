from __future__ import annotations

import os
import pickle
import resource
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from phi4d.job import Kind, Piece
from phi4d.media.shared import filled
from phi4d.media.wire import Channel, Header, packed, pair, piece_of
from phi4d.prepared.clip import clip
from phi4d.prepared.mel import Mel
from phi4d.prepared.preparation import Preparation
from phi4d.prepared.tiles import tile

Ends = tuple[Channel, Channel]
PREPARE = Preparation(4)


@pytest.fixture
def ends() -> Iterator[Ends]:
    first, second = (Channel(sock) for sock in pair())
    yield first, second
    first.close()
    second.close()


@pytest.fixture
def stranger() -> Iterator[tuple[socket.socket, Channel]]:
    """A socket, and a channel at its other end."""
    theirs, ours = pair()
    channel = Channel(ours)
    yield theirs, channel
    theirs.close()
    channel.close()


def crossed(ends: Ends, piece: Piece, prepare: Preparation | None = None) -> Piece:
    """A piece at the other end."""
    ends[0].send(*packed(piece, {"rate": 8000.0}))
    header, body = ends[1].receive(max_bytes=1 << 25)
    assert header["facts"] == {"rate": 8000.0}
    kind = Kind.IMAGE if header["dtype"] == "uint8" else Kind.AUDIO
    return piece_of(header, body, kind, prepare)


def test_a_header_arrives(ends: Ends) -> None:
    ends[0].send({"is": "end", "path": "\udcff\n ü"})
    header, body = ends[1].receive()
    assert header == {"is": "end", "path": "\udcff\n ü"}
    assert len(body) == 0


@pytest.mark.parametrize(
    "media",
    [
        np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3),
        np.linspace(-1, 1, 1000, dtype=np.float32),
        np.arange(3000, dtype=np.float32)[::3],  # not in one stretch of memory
        np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8),
    ],
)
def test_a_piece_arrives_as_it_was(ends: Ends, media: np.ndarray) -> None:
    piece = crossed(ends, Piece(media, 1.5, 2.25))
    assert (piece.start, piece.end) == (1.5, 2.25)
    assert piece.media.dtype == media.dtype
    assert np.array_equal(piece.media, media)


def test_a_prepared_picture_arrives_as_it_was(ends: Ends) -> None:
    tiles = tile(np.random.default_rng(0).integers(0, 256, (900, 700, 3), np.uint8), 4)
    found = crossed(ends, Piece(tiles), PREPARE).media
    assert (found.columns, found.rows, found.tokens) == (2, 2, tiles.tokens)
    assert np.array_equal(found.picture, tiles.picture)


def test_prepared_sound_arrives_as_it_was(ends: Ends) -> None:
    prepare = Preparation(mel=Mel(hop_length=200))
    sound = clip(np.random.default_rng(0).normal(0, 0.1, 9000).astype(np.float32), prepare.mel)
    piece = crossed(ends, Piece(sound, 1.0, 2.0), prepare)
    assert np.array_equal(piece.media.features, sound.features)
    assert (piece.media.mel, len(piece.media), piece.end) == (prepare.mel, len(sound), 2.0)


def test_what_arrived_cannot_be_changed(ends: Ends) -> None:
    piece = crossed(ends, Piece(np.zeros(1000, np.float32)))
    with pytest.raises(ValueError, match="read-only"):
        piece.media[0] = 1


def test_messages_keep_their_order_and_bounds(ends: Ends) -> None:
    for number in range(100):
        ends[0].send({"number": number}, np.full(number, number, np.float32) if number else None)
    for number in range(100):
        header, body = ends[1].receive(max_bytes=1000)
        assert header == {"number": number}
        assert len(body) == 4 * number


def test_a_poll_takes_one_message_and_does_not_wait(ends: Ends) -> None:
    assert ends[1].poll() is None
    assert not ends[1].wait(0)
    ends[0].send({"number": 1})
    ends[0].send({"number": 2})
    assert ends[1].wait(0)
    assert [ends[1].poll(), ends[1].poll(), ends[1].poll()] == [
        ({"number": 1}, pytest.approx([])),
        ({"number": 2}, pytest.approx([])),
        None,
    ]


def test_the_other_end_gone_is_an_eof(ends: Ends) -> None:
    ends[0].close()
    with pytest.raises(EOFError):
        ends[1].receive()


def test_what_was_sent_before_the_end_is_still_there(ends: Ends) -> None:
    ends[0].send({"is": "last"}, np.ones(5, np.uint8))
    ends[0].close()
    assert ends[1].receive(5)[1].tolist() == [1] * 5
    with pytest.raises(EOFError):
        ends[1].receive()


def test_whoever_waits_is_called_and_may_give_up(ends: Ends) -> None:
    class GiveUpError(Exception):
        pass

    def tick() -> None:
        raise GiveUpError

    with pytest.raises(GiveUpError):
        ends[1].receive(tick=tick)


@pytest.mark.parametrize(
    "data",
    [
        b"x" * (1 << 16) + b"y",
        b"[]",
        b"\xff\xfe",
        pickle.dumps(object()),
    ],
)
def test_nonsense_is_a_value_error(stranger: tuple[socket.socket, Channel], data: bytes) -> None:
    theirs, channel = stranger
    theirs.send(data)
    with pytest.raises(ValueError, match=r"message|decode|Expecting"):
        channel.receive(max_bytes=1 << 20)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_body_that_is_too_long_is_refused(ends: Ends) -> None:
    before = descriptors()
    ends[0].send({"is": "piece"}, np.zeros(101, np.uint8))
    with pytest.raises(ValueError, match="a body of 101 bytes"):
        ends[1].receive(max_bytes=100)
    assert descriptors() == before


def test_more_than_one_body_is_refused(stranger: tuple[socket.socket, Channel]) -> None:
    theirs, channel = stranger
    before = descriptors()
    memory = filled(np.ones(1, np.uint8))
    socket.send_fds(theirs, [b"{}"], [memory, memory])
    os.close(memory)
    with pytest.raises(ValueError, match="too long"):
        channel.receive(max_bytes=100)
    assert descriptors() == before


def test_that_no_more_files_may_be_opened_is_no_nonsense(ends: Ends) -> None:
    ends[0].send({"is": "piece"}, np.zeros(1, np.uint8))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            ends[1].poll(max_bytes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)


SOUND: Header = {"dtype": "float32", "shape": [2], "start": 0, "end": 0}
FEATURES: Header = {"dtype": "float32", "shape": [1, 80], "start": 0, "end": 0}
PICTURE: Header = {"dtype": "uint8", "shape": [448, 448, 3], "start": 0, "end": 0, "grid": [1, 1]}


@pytest.mark.parametrize(
    ("header", "kind", "prepare"),
    [
        (SOUND | {"dtype": "object"}, Kind.AUDIO, None),
        (SOUND | {"shape": [3]}, Kind.AUDIO, None),
        (SOUND | {"shape": None}, Kind.AUDIO, None),
        (SOUND | {"end": "x"}, Kind.AUDIO, None),
        (SOUND | {"start": 1}, Kind.AUDIO, None),
        (SOUND | {"end": float("nan")}, Kind.AUDIO, None),
        ({"dtype": "float32", "shape": [2]}, Kind.AUDIO, None),
        (SOUND, Kind.IMAGE, None),
        (SOUND, Kind.AUDIO, PREPARE),
        (FEATURES, Kind.AUDIO, None),
        (FEATURES | {"shape": [2, 40]}, Kind.AUDIO, PREPARE),
        (PICTURE, Kind.AUDIO, PREPARE),
        (PICTURE | {"grid": [5, 1]}, Kind.IMAGE, PREPARE),
        (PICTURE | {"grid": [1]}, Kind.IMAGE, PREPARE),
        (PICTURE | {"grid": [-1, -1]}, Kind.IMAGE, PREPARE),
        (PICTURE | {"shape": [896, 224, 3]}, Kind.IMAGE, PREPARE),
        ({**PICTURE, "grid": None}, Kind.IMAGE, PREPARE),
    ],
)
def test_a_header_that_does_not_fit_is_refused(
    header: Header, kind: Kind, prepare: Preparation | None
) -> None:
    size = {"float32": 8, "uint8": 448 * 448 * 3}.get(header["dtype"], 8)
    if header["shape"] in ([1, 80], [2, 40]):
        size = 320
    with pytest.raises((ValueError, KeyError, TypeError)):
        piece_of(header, np.zeros(size, np.uint8), kind, prepare)


def test_features_that_are_no_numbers_are_refused() -> None:
    body = np.full(80, np.nan, np.float32).view(np.uint8)
    with pytest.raises(ValueError, match="no numbers"):
        piece_of(FEATURES, body, Kind.AUDIO, PREPARE)
