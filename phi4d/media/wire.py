"""What the decode pool and its processes say to each other: a JSON header and raw bytes.

Never pickle: what comes from a process that just ran a codec on a stranger's file is not trusted
to build objects in the process that holds the model. Never standard output: libsndfile prints
there.
"""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from phi4d.job import Piece

Header = dict[str, Any]
Message = tuple[Header, NDArray[np.uint8]]
"""a header, and the body as (bytes,) uint8"""

_LENGTHS = struct.Struct("!IQ")
_MAX_HEADER_BYTES = 1 << 20
TICK_S = 0.25
"""how often somebody who waits looks around, in seconds"""


class Channel:
    """One end of a stream socket that carries messages. Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._arriving: Generator[None, None, Message] | None = None
        """a message of which some may have been read"""

    def fileno(self) -> int:
        """The socket's descriptor; it is readable when `poll` has something to do."""
        return self._sock.fileno()

    def send(self, header: Header, body: NDArray[Any] | None = None) -> None:
        """Send one message; blocks while the other end does not read.

        Raises:
            OSError: the other end is gone.
        """
        text = json.dumps(header).encode()
        data = b"" if body is None else np.ascontiguousarray(body).data.cast("B")
        self._sock.sendall(_LENGTHS.pack(len(text), len(data)) + text)
        if data:  # the other end may be satisfied, and gone, by now
            self._sock.sendall(data)

    def send_piece(self, piece: Piece, facts: dict[str, float]) -> None:
        """Send a piece with what is known of its source so far."""
        media = cast("NDArray[Any]", piece.media)
        header = {"dtype": media.dtype.name, "shape": media.shape, "facts": facts}
        self.send({"is": "piece", "start": piece.start, "end": piece.end, **header}, media)

    def receive(self, max_bytes: int = 0, tick: Callable[[], None] | None = None) -> Message:
        """The next message.

        Args:
            max_bytes: the longest body that is accepted.
            tick: called every `TICK_S` while nothing comes; may raise to give up.

        Raises:
            EOFError: the other end is gone.
            ValueError: what came is no message, or is too long.
        """
        while True:
            message = self.poll(max_bytes)
            if message is not None:
                return message
            if not self.wait(TICK_S if tick else None) and tick:
                tick()

    def wait(self, seconds: float | None) -> bool:
        """Wait until there is something for `poll` to do. Whether there is; None waits for ever."""
        if seconds is None:
            with suppress(ConnectionError):  # which is something to do
                self._sock.recv(1, socket.MSG_PEEK)  # also of whoever may open no more files
            return True
        readable = select.poll()
        readable.register(self, select.POLLIN)
        return bool(readable.poll(seconds * 1000))

    def poll(self, max_bytes: int = 0) -> Message | None:
        """The next message if all of it has come; never waits, and reads nothing of the one after.

        Raises:
            EOFError: the other end is gone.
            ValueError: what came is no message, or is too long.
        """
        arriving, self._arriving = self._arriving or self._message(max_bytes), None
        try:
            next(arriving)
        except StopIteration as whole:
            message: Message = whole.value
            return message
        self._arriving = arriving
        return None

    def _message(self, max_bytes: int) -> Generator[None, None, Message]:
        lengths = yield from self._read(_LENGTHS.size)
        text_size, size = _LENGTHS.unpack(lengths.tobytes())
        if text_size > _MAX_HEADER_BYTES or size > max_bytes:
            raise ValueError(f"a message of {text_size} + {size} bytes")
        text = yield from self._read(text_size)
        header = json.loads(text.tobytes())
        if not isinstance(header, dict):
            raise ValueError("a message without a header")  # noqa: TRY004 - it is a bad value
        body = yield from self._read(size)
        return header, body

    def _read(self, size: int) -> Generator[None, None, NDArray[np.uint8]]:
        """So many bytes; yields while there are none."""
        body = np.empty(size, np.uint8)
        view, done = body.data, 0
        while done < size:
            try:
                count = self._sock.recv_into(view[done:], flags=socket.MSG_DONTWAIT)
            except BlockingIOError:
                yield
                continue
            except ConnectionError:
                count = 0
            if not count:
                raise EOFError
            done += count
        return body

    def close(self) -> None:
        """Close the socket; the other end gets EOFError."""
        self._sock.close()


def piece_of(header: Header, body: NDArray[np.uint8]) -> Piece:
    """The piece that `Channel.send_piece` sent.

    Raises:
        ValueError, KeyError, TypeError: the header does not fit the body.
    """
    types = {"uint8": np.uint8, "float32": np.float32}
    media = body.view(types[header["dtype"]]).reshape(header["shape"])
    return Piece(media, float(header["start"]), float(header["end"]))
