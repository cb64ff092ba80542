"""The signals that stop the daemon or let it reload, and who gets them.

They are blocked in every thread and fetched by the main one: no handler runs at an awkward moment.
A thread that was started before they were blocked would get them in its stead, and the process die:
so they are blocked before any library is imported that starts threads, as numpy does.
"""

from __future__ import annotations

import os
import signal

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
RELOAD_SIGNAL = signal.SIGHUP


def block() -> set[int]:
    """Keep the signals from this thread, and from those that it starts.

    Returns:
        What was blocked before.
    """
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP_SIGNALS, RELOAD_SIGNAL}))


def on_terminal() -> bool:
    """Whether a terminal controls this process; no more, when it has been closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def wait(seconds: float) -> signal.Signals | None:
    """The next of the signals; None: none came for so long."""
    wanted = {*STOP_SIGNALS, RELOAD_SIGNAL}
    got = signal.sigtimedwait(wanted, seconds)
    # interrupted, as by SIGSTOP and SIGCONT, a debugger or a frozen control group, and late when it
    # goes on, Python 3.11 gives back memory that nothing was written to
    return signal.Signals(got.si_signo) if got is not None and got.si_signo in wanted else None
