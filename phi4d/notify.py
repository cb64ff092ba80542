"""Tell systemd how the service is: the sd_notify protocol in a few lines.

See sd_notify(3). Without a service manager every call does nothing.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

PATIENCE_SECONDS = 300.0  # what a start may be silent for; TimeoutStartSec of the unit is the same
BEG_SECONDS = 1.0  # between two requests for more time


def notify(state: str) -> bool:
    """Send a state such as ``READY=1`` or ``STATUS=3 running``; lines are joined by newlines.

    Returns:
        Whether there was a service manager to hear it.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
    except OSError:
        return False
    return True


def more_time(seconds: float = PATIENCE_SECONDS) -> str:
    """The state that asks for so much time, from now on, to start or to stop in."""
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"


class GettingOn:
    """Asks for more time as long as something long gets on; whoever hangs asks no more.

    Any thread may call it.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """Another step was made. The service manager is asked once a second at most."""
        with self._lock:
            now = self._clock()
            if now < self._next:
                return
            self._next = now + BEG_SECONDS
        notify(more_time())


def watchdog_seconds() -> float | None:
    """How often the service manager wants a sign of life; None when it wants none."""
    try:
        pid = int(os.environ.get("WATCHDOG_PID", os.getpid()))
        microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and pid == os.getpid() else None
