from __future__ import annotations

import pickle
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from phi4d.job import Piece
from phi4d.media.wire import Channel, piece_of

Ends = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    first, second = (Channel(sock) for sock in socket.socketpair())
    yield first, second
    first.close()
    second.close()


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
    ],
)
def test_a_piece_arrives_as_it_was(ends: Ends, media: np.ndarray) -> None:
    ends[0].send_piece(Piece(media, 1.5, 2.25), {"rate": 8000.0})

    header, body = ends[1].receive(max_bytes=media.nbytes)

    piece = piece_of(header, body)
    assert (piece.start, piece.end) == (1.5, 2.25)
    assert piece.media.dtype == media.dtype
    assert np.array_equal(piece.media, media)
    assert header["facts"] == {"rate": 8000.0}


def test_a_large_piece_arrives_whole_while_it_is_sent(ends: Ends) -> None:
    media = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
    sender = threading.Thread(target=ends[0].send_piece, args=(Piece(media), {}))
    sender.start()
    header, body = ends[1].receive(max_bytes=media.nbytes)
    sender.join()
    assert np.array_equal(piece_of(header, body).media, media)


def test_a_message_is_polled_for_byte_by_byte() -> None:
    # given a message, and the beginning of the next
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    header, body = b'{"is": "piece"}', b"body"
    data = struct.pack("!IQ", len(header), len(body)) + header + body
    # when it comes byte by byte
    with theirs:
        for n in range(len(data)):
            assert channel.poll(max_bytes=4) is None
            assert not channel.wait(0)
            theirs.sendall(data[n : n + 1])
        theirs.sendall(data[:7])
        message = channel.poll(max_bytes=4)
        # then it is there when the last has come, and no more was taken
        assert message is not None
        assert (message[0], message[1].tobytes()) == ({"is": "piece"}, body)
        assert channel.wait(0)
        assert channel.poll(max_bytes=4) is None
        theirs.sendall(data[7:])
        assert channel.poll(max_bytes=4) is not None
    channel.close()


def test_messages_keep_their_order_and_bounds(ends: Ends) -> None:
    for number in range(100):
        ends[0].send({"number": number}, np.full(number, number, np.float32) if number else None)
    for number in range(100):
        header, body = ends[1].receive(max_bytes=1000)
        assert header == {"number": number}
        assert len(body) == 4 * number


def test_the_other_end_gone_is_an_eof(ends: Ends) -> None:
    ends[0].close()
    with pytest.raises(EOFError):
        ends[1].receive()


def test_gone_in_the_middle_of_a_message_is_an_eof() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    theirs.sendall(struct.pack("!IQ", 2, 100) + b"{}" + b"only this much")
    theirs.close()
    with pytest.raises(EOFError):
        channel.receive(max_bytes=100)
    channel.close()


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
        struct.pack("!IQ", 2, 1 << 40) + b"{}",
        struct.pack("!IQ", 1 << 30, 0),
        struct.pack("!IQ", 2, 0) + b"[]",
        struct.pack("!IQ", 2, 0) + b"\xff\xfe",
        struct.pack("!IQ", 40, 0) + pickle.dumps(object()).ljust(40, b"."),
    ],
)
def test_nonsense_is_a_value_error(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        theirs.sendall(data)
        with pytest.raises(ValueError, match=r"message|decode|Expecting"):
            channel.receive(max_bytes=1 << 20)
    channel.close()


@pytest.mark.parametrize(
    "header",
    [
        {"dtype": "object", "shape": [2], "start": 0, "end": 0},
        {"dtype": "float32", "shape": [3], "start": 0, "end": 0},
        {"dtype": "float32", "shape": [2]},
        {"dtype": "float32", "shape": None, "start": 0, "end": "x"},
    ],
)
def test_a_header_that_does_not_fit_the_body_is_refused(header: dict[str, object]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        piece_of(header, np.zeros(8, np.uint8))
