"""The signals that stop the daemon, and who gets them.

They are blocked in every thread and fetched by the main one: no handler runs at an awkward moment.
A thread that was started before they were blocked would get them in its stead, and the process die:
so they are blocked before any library is imported that starts threads, as numpy does.
"""

from __future__ import annotations

import signal

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}


def block() -> set[int]:
    """Keep the signals from this thread, and from those that it starts.

    Returns:
        What was blocked before.
    """
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS))
