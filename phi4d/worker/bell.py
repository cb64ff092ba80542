"""What wakes a thread that waits for descriptors: rung by any other, at any time."""

from __future__ import annotations

import socket
from contextlib import suppress


class Bell:
    """Readable, for `select.poll`, from when it is rung until it is cleared."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._ours.fileno()

    def ring(self) -> None:
        """Any thread may call, also after `close`."""
        with suppress(OSError):  # it is full, so it rings; or it is closed
            self._theirs.send(b"!")

    def clear(self) -> None:
        """What was rung for is seen to from here on."""
        with suppress(BlockingIOError):
            while self._ours.recv(4096):
                pass

    def close(self) -> None:
        """Nobody waits any more."""
        self._ours.close()
        self._theirs.close()
