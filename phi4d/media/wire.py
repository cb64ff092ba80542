"""What the decode pool and its processes say to each other: a JSON header, and a body both can see.

Never pickle: what comes from a process that just ran a codec on a stranger's file is not trusted
to build objects in the process that holds the model. Never standard output: libsndfile prints
there.
"""

from __future__ import annotations

import errno
import json
import math
import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from phi4d.job import Kind, Piece
from phi4d.media.shared import filled, mapped
from phi4d.prepared.clip import Clip
from phi4d.prepared.preparation import Preparation
from phi4d.prepared.tiles import Tiles

Header = dict[str, Any]
Message = tuple[Header, NDArray[np.uint8]]
"""a header, and the body as (bytes,) uint8, which may only be read"""

_MAX_HEADER_BYTES = 1 << 16
_DESCRIPTOR = struct.Struct("i")
_BESIDE = socket.CMSG_LEN(_DESCRIPTOR.size)
_NOTHING = np.empty(0, np.uint8)
TICK_S = 0.25
"""how often somebody who waits looks around, in seconds"""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends for a channel, of the kind that keeps messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    """One end of a `pair` that carries messages. Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """The socket's descriptor; it is readable when `poll` has something to do."""
        return self._sock.fileno()

    def send(self, header: Header, body: NDArray[Any] | None = None) -> None:
        """Send one message; blocks while the other end does not read.

        Raises:
            OSError: the other end is gone, or there is no memory for the body.
        """
        if body is None:
            self.hand_over(header, None)
            return
        descriptor = filled(body)
        try:
            self.hand_over(header, descriptor)
        finally:
            os.close(descriptor)

    def hand_over(self, header: Header, descriptor: int | None) -> None:
        """Send one message whose body, if any, is in `phi4d.media.shared` memory already.

        Raises:
            OSError: the other end is gone.
        """
        text = json.dumps(header).encode()
        bodies = [] if descriptor is None else [descriptor]
        socket.send_fds(self._sock, [text], bodies)

    def receive(self, max_bytes: int = 0, tick: Callable[[], None] | None = None) -> Message:
        """The next message.

        Args:
            max_bytes: the longest body that is accepted.
            tick: called every `TICK_S` while nothing comes; may raise to give up.

        Raises:
            EOFError: the other end is gone.
            ValueError: what came is no message, or is too long.
            OSError: this process may open no more files.
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
        """The next message if it has come; never waits.

        Raises:
            As `receive`.
        """
        at_once = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            # not recv_fds, which does not hand its flags on
            text, beside, flags, _ = self._sock.recvmsg(_MAX_HEADER_BYTES, _BESIDE, at_once)
        except BlockingIOError:
            return None
        except ConnectionError:
            text, beside, flags = b"", [], 0
        bodies = [body for _, kind, body in beside if kind == socket.SCM_RIGHTS and body]
        body = mapped(_DESCRIPTOR.unpack(bodies[0])[0], max_bytes) if bodies else _NOTHING
        if flags & socket.MSG_CTRUNC and not bodies:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if not text:
            raise EOFError
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("a message that is too long")
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("a message without a header")  # noqa: TRY004 - it is a bad value
        return header, body

    def close(self) -> None:
        """Close the socket; the other end gets EOFError."""
        self._sock.close()


def packed(piece: Piece, facts: dict[str, float]) -> tuple[Header, NDArray[Any]]:
    """A piece as a message, with what is known of its source so far."""
    header: Header = {"is": "piece", "start": piece.start, "end": piece.end, "facts": facts}
    media = piece.media
    if isinstance(media, Tiles):
        array: NDArray[Any] = media.picture
        header["grid"] = media.columns, media.rows
    else:
        array = media.features if isinstance(media, Clip) else cast("NDArray[Any]", media)
    return header | {"dtype": array.dtype.name, "shape": array.shape}, array


def piece_of(
    header: Header, body: NDArray[np.uint8], kind: Kind, prepare: Preparation | None
) -> Piece:
    """The piece that was `packed`.

    Args:
        header: of the message.
        body: of the message.
        kind: what was asked for.
        prepare: how it was to be prepared.

    Raises:
        ValueError, KeyError, TypeError: the header does not fit the body, or is not of a piece of
            that kind, so prepared.
    """
    types = {"uint8": np.uint8, "float32": np.float32}
    shape = tuple(int(side) for side in header["shape"])
    array = body.view(types[header["dtype"]]).reshape(shape)
    start, end = float(header["start"]), float(header["end"])
    if not 0 <= start <= end < math.inf:
        raise ValueError(f"a piece from {start} to {end} s")
    if prepare is None:
        expected = (3, "uint8") if kind is Kind.IMAGE else (1, "float32")
        if (array.ndim, array.dtype.name) != expected:
            raise ValueError(f"{kind} as {array.ndim} dimensions of {array.dtype}")
        return Piece(array, start, end)
    if kind is Kind.IMAGE:
        columns, rows = (int(count) for count in header["grid"])
        tiles = Tiles(array, columns, rows)
        if tiles.crops > prepare.max_crops:
            raise ValueError(f"{tiles.crops} crops")
        return Piece(tiles, start, end)
    clip = Clip(array, prepare.mel)
    if not np.isfinite(clip.features).all():
        raise ValueError("features that are no numbers")
    return Piece(clip, start, end)
