"""Tell systemd how the service is: the sd_notify protocol in a few lines.

See sd_notify(3). Without a service manager every call does nothing.
"""

from __future__ import annotations

import os
import socket


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


def watchdog_seconds() -> float | None:
    """How often the service manager wants a sign of life; None when it wants none."""
    try:
        pid = int(os.environ.get("WATCHDOG_PID", os.getpid()))
        microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and pid == os.getpid() else None
